//! Writes that outlive their launcher: what is to be undone waits for its own, and for nobody else's.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::DriverName;
use gpuvm_host::HostError;
use gpuvm_host::journal::{OpState, Record};
use gpuvm_host::orphans::check;
use gpuvm_host::places::Places;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};
use rstest::rstest;

/// A process of this name that has a file open until its standard input ends.
fn writer(file: &Path, name: &str) -> Child {
    let script = r#"exec 3>>"$1"; printf %s "$2" >"/proc/$$/comm"; echo open; read -r _"#;
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(file)
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "open\n");
    child
}

#[rstest]
#[case::of_this_device("nvidia", "unbind", "0000:81:00.0", true)]
#[case::of_this_device_the_other_way("nvidia", "bind", "0000:81:00.0", true)]
#[case::of_nobody_knows_what("nvidia", "unbind", "sh", true)]
#[case::of_another_device_of_the_driver("nvidia", "unbind", "0000:82:00.0", false)]
#[case::of_another_driver("vfio-pci", "unbind", "0000:81:00.0", false)]
fn an_unbind_is_undone_once_nobody_writes_for_its_device(
    #[case] driver: &str,
    #[case] attribute: &str,
    #[case] name: &str,
    #[case] waits: bool,
) {
    let fake = FakeHost::new();
    fake.device(&gpu("0000:81:00.0", 7, 1));
    let (bdf, nvidia) = ("0000:81:00.0".parse().unwrap(), DriverName::new("nvidia").unwrap());
    let op = HostOp::Unbind { bdf, driver: nvidia };
    let record = Record { seq: 0, op, saved: None, state: OpState::Intent };
    let mut writer = writer(&fake.path(&format!("/sys/bus/pci/drivers/{driver}/{attribute}")), name);
    let found = check(&fake.root(), std::slice::from_ref(&record));
    drop(writer.stdin.take());
    let pid = i32::try_from(writer.id()).unwrap();
    writer.wait().unwrap();
    match found {
        Err(HostError::InFlight { pid: found, .. }) => assert!(waits && found == pid, "{found}, not {pid}"),
        other => assert!(!waits && other.is_ok(), "{other:?}"),
    }
}

#[test]
fn a_write_that_nobody_had_time_to_note_is_among_those_in_flight_once_somebody_has_a_record() {
    let fake = FakeHost::new();
    fake.device(&gpu("0000:81:00.0", 7, 1));
    let (places, bdf) = (Places::below(&fake.prefix()), "0000:81:00.0".parse().unwrap());
    let in_flight = || reservation::in_flight(&fake.root(), &places, "boot").unwrap();
    let mut writer = writer(&fake.path("/sys/bus/pci/drivers/nvidia/unbind"), "0000:81:00.0");
    let without = in_flight();
    let record = Reservation::of_bind(bdf, "boot", Vec::new(), vec![bdf]);
    reservation::update(&places, &record).unwrap();
    let with = in_flight();
    drop(writer.stdin.take());
    let pid = i32::try_from(writer.id()).unwrap();
    writer.wait().unwrap();
    assert!(without.is_empty() && with == [(bdf, pid)].into(), "{without:?}, {with:?}");
    assert!(in_flight().is_empty());
}

/// It isn't in any journal, since nothing of it is undone.
#[test]
fn a_reset_of_all_below_a_port_is_in_the_way_of_all_below_it() {
    let fake = FakeHost::new();
    let (port, functions) = ("0000:80:01.0", ["0000:81:00.0", "0000:81:00.1"]);
    for at in functions {
        fake.device(&FakeDevice { port: Some(port), ..gpu(at, 7, 1) });
    }
    fake.device(&gpu("0000:82:00.0", 8, 1));
    let place = std::fs::canonicalize(fake.path(&format!("/sys/bus/pci/devices/{port}"))).unwrap();
    let mut writer = writer(&place.join("reset_subordinate"), "1");
    let bind = |at: &str| {
        let op = HostOp::Bind { bdf: at.parse().unwrap(), driver: DriverName::new("vfio-pci").unwrap() };
        check(&fake.root(), &[Record { seq: 0, op, saved: None, state: OpState::Applied }])
    };
    let (below, beside) = (bind(functions[0]), bind("0000:82:00.0"));
    let places = Places::below(&fake.prefix());
    let bdf = functions[0].parse().unwrap();
    reservation::update(&places, &Reservation::of_bind(bdf, "boot", Vec::new(), vec![bdf])).unwrap();
    let in_flight = reservation::in_flight(&fake.root(), &places, "boot").unwrap();
    drop(writer.stdin.take());
    let pid = i32::try_from(writer.id()).unwrap();
    writer.wait().unwrap();
    assert_eq!(in_flight, functions.map(|at| (at.parse().unwrap(), pid)).into());
    assert!(matches!(below, Err(HostError::InFlight { pid: found, .. }) if found == pid), "{below:?}");
    assert!(beside.is_ok(), "{beside:?}");
}

/// The kernel takes the attribute away first, and the device's place when it has let go of it.
#[rstest]
#[case::of_this_device("0000:81:00.0", Gone::Attribute, Some("0000:80:01.0"), true)]
#[case::of_this_device_whose_place_is_gone("0000:81:00.0", Gone::Place, Some("0000:80:01.0"), true)]
#[case::of_this_device_on_a_root_bus("0000:81:00.0", Gone::Place, None, true)]
#[case::of_the_cards_other_function("0000:81:00.1", Gone::Attribute, Some("0000:80:01.0"), false)]
fn a_removal_is_finished_once_nobody_removes_its_device(
    #[case] removed: &str,
    #[case] gone: Gone,
    #[case] port: Option<&'static str>,
    #[case] waits: bool,
) {
    let fake = FakeHost::new();
    for at in ["0000:81:00.0", "0000:81:00.1"] {
        fake.device(&FakeDevice { port, ..gpu(at, 7, 1) });
    }
    let device = format!("/sys/bus/pci/devices/{removed}");
    let place = std::fs::canonicalize(fake.path(&device)).unwrap();
    let mut writer = writer(&place.join("remove"), "1");
    match gone {
        Gone::Attribute => std::fs::remove_file(place.join("remove")).unwrap(),
        Gone::Place => {
            fake.remove(&device);
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    let (bdf, port) = ("0000:81:00.0".parse().unwrap(), port.map(|port| port.parse().unwrap()));
    let record = Record { seq: 0, op: HostOp::Remove { bdf, port }, saved: None, state: OpState::Intent };
    let found = check(&fake.root(), std::slice::from_ref(&record));
    let places = Places::below(&fake.prefix());
    reservation::update(&places, &Reservation::of_bind(bdf, "boot", Vec::new(), vec![bdf])).unwrap();
    let in_flight = reservation::in_flight(&fake.root(), &places, "boot").unwrap();
    drop(writer.stdin.take());
    let pid = i32::try_from(writer.id()).unwrap();
    writer.wait().unwrap();
    assert_eq!(in_flight, [(removed.parse().unwrap(), pid)].into());
    match found {
        Err(HostError::InFlight { pid: found, .. }) => assert!(waits && found == pid, "{found}, not {pid}"),
        other => assert!(!waits && other.is_ok(), "{other:?}"),
    }
}

/// How far the kernel has come with removing a device.
#[derive(Debug, Clone, Copy)]
enum Gone {
    Attribute,
    Place,
}
