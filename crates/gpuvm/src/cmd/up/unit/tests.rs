//! What a service manager hears, on sockets as systemd makes them.

use std::sync::Arc;

use gpuvm_core::lifecycle::Stage;
use gpuvm_core::profile::Ready;
use rstest::rstest;

use super::super::Teller;
use super::super::wait::WaitFor;
use super::*;
use crate::exit::Exit;
use crate::failure::Failure;

/// The manager's end, and what stands in NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    name: String,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn at_path() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::of(socket, path.display().to_string(), folder)
    }

    fn abstract_name() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Nobody else has a name with that folder's in it.
        let name = format!("gpuvm{}", folder.path().display());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        Self::of(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"), folder)
    }

    fn of(socket: UnixDatagram, name: String, folder: tempfile::TempDir) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, name, _folder: folder }
    }

    fn unit(&self) -> Unit {
        Unit::at(OsStr::new(&self.name)).unwrap()
    }

    /// The datagrams that have come, as their lines.
    fn heard(&self) -> Vec<Vec<String>> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            let count = self.socket.recv(&mut buffer).ok()?;
            let text = String::from_utf8(buffer[..count].to_vec()).unwrap();
            Some(text.lines().map(str::to_owned).collect())
        })
        .collect()
    }

    /// What was heard of readiness.
    fn ups_and_downs(&self) -> Vec<String> {
        let lines = self.heard().concat();
        lines.into_iter().filter(|line| line.ends_with("=1")).collect()
    }
}

fn running() -> Phase {
    Phase::Running { pid: 7, qemu: "7.2.22".to_owned() }
}

#[test]
fn a_guest_that_ends_well_before_it_was_ready_was_up_for_that_moment() {
    let manager = Manager::at_path();
    let mut unit = manager.unit();
    unit.phase(&running());
    unit.ends_well();
    assert_eq!(manager.heard().last(), Some(&vec!["READY=1".to_owned()]));
    // One that was up has told its end by its steps.
    unit.ends_well();
    assert_eq!(manager.ups_and_downs(), [""; 0]);
}

#[rstest]
#[case::path(Manager::at_path())]
#[case::abstract_name(Manager::abstract_name())]
fn a_guest_that_runs_is_told_at_a_socket_of_each_kind(#[case] manager: Manager) {
    let mut unit = manager.unit();
    unit.phase(&running());
    unit.ready();
    unit.ready();
    let status = "STATUS=the guest runs (QEMU 7.2.22, process 7)";
    assert_eq!(manager.heard(), [vec![status, "EXTEND_TIMEOUT_USEC=300000000"], vec!["READY=1"]]);
}

#[rstest]
#[case::of_a_virtual_machine_monitor("vsock:2:1234")]
#[case::relative("notify")]
#[case::only_an_at("")]
fn a_name_that_is_no_local_socket_is_refused(#[case] name: &str) {
    assert!(Unit::at(OsStr::new(name)).is_err());
}

#[test]
fn a_manager_that_is_gone_is_no_failure_of_the_run() {
    let manager = Manager::at_path();
    let mut unit = manager.unit();
    drop(manager);
    unit.phase(&running());
    unit.ready();
}

#[test]
fn an_end_is_told_once_it_is_certain_and_only_of_a_unit_that_was_up() {
    let manager = Manager::at_path();
    let mut unit = manager.unit();
    // A first try that the host was given back after.
    unit.phase(&Phase::GivingBack);
    unit.phase(&running());
    unit.ready();
    unit.phase(&Phase::Ended);
    unit.phase(&Phase::Relaunching { count: 1 });
    unit.phase(&running());
    unit.ready();
    unit.phase(&Phase::Stopping { stage: Stage::Acpi });
    unit.phase(&Phase::GivingBack);
    unit.phase(&Phase::Releasing);
    assert_eq!(manager.ups_and_downs(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn a_guest_that_is_paused_and_goes_on_is_told_as_such() {
    let manager = Manager::at_path();
    let mut unit = manager.unit();
    unit.phase(&running());
    unit.ready();
    manager.heard();
    unit.state(State::PausedByUser, Some(&Halt::User));
    unit.state(State::Running, None);
    unit.state(State::PoweringDown, None);
    let heard = manager.heard();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0][0].starts_with("STATUS=the guest is paused"), "{heard:?}");
    assert_eq!(heard[1], ["STATUS=the guest runs (QEMU 7.2.22, process 7)"]);
}

#[rstest]
#[case::blank_before("  vfio-pci to 0000:81:00.0", "STATUS=vfio-pci to 0000:81:00.0")]
#[case::several_lines("QEMU died\nREADY=1\nSTOPPING=1", "STATUS=QEMU died")]
#[case::nothing("", "STATUS=")]
fn a_status_is_one_line_whatever_is_in_it(#[case] text: &str, #[case] line: &str) {
    assert_eq!(status(text), line);
    assert!(status(&"ä".repeat(5000)).len() < 1000);
}

/// A teller with a manager, for a profile's `ready` or what `--wait` says.
fn teller(manager: &Manager, wait: WaitFor) -> Arc<Teller> {
    let teller = Arc::new(Teller::new(None, Some(manager.unit())));
    teller.wait_for(wait);
    teller
}

#[test]
fn a_unit_whose_profile_waits_for_the_console_is_up_once_it_has_said_so() {
    let manager = Manager::at_path();
    let ready: Ready = "console:^login: $".parse().unwrap();
    let teller = teller(&manager, WaitFor::Ready(ready));
    let mut sink = teller.sink().unwrap();
    teller.reserved();
    teller.phase(&running());
    sink(b"Debian\r\nlog").unwrap();
    assert_eq!(manager.ups_and_downs(), [""; 0]);
    sink(b"in: ").unwrap();
    sink(b"\r\nlogin: ").unwrap();
    assert_eq!(manager.ups_and_downs(), ["READY=1"]);
}

#[rstest]
#[case::running("running")]
#[case::none("none")]
fn a_unit_is_up_when_what_it_waits_for_is_there(#[case] wait: WaitFor) {
    let manager = Manager::at_path();
    let teller = teller(&manager, wait.clone());
    assert!(teller.sink().is_none());
    teller.reserved();
    assert_eq!(manager.ups_and_downs().len(), usize::from(matches!(wait, WaitFor::None)));
    teller.phase(&running());
    assert_eq!(manager.ups_and_downs().len(), usize::from(!matches!(wait, WaitFor::None)));
}

#[test]
fn what_keeps_a_vm_from_coming_up_is_its_last_status() {
    let manager = Manager::at_path();
    let teller = teller(&manager, WaitFor::None);
    teller.ended(&Err(Failure::one(Exit::Busy, "0000:81:00.0 is taken", None)));
    assert_eq!(manager.heard(), [["STATUS=0000:81:00.0 is taken"]]);
    teller.ended(&Ok(Exit::Ok));
    assert_eq!(manager.heard(), [[""; 0]; 0]);
}

#[test]
fn nobody_watches_the_console_where_nobody_waits() {
    let teller = Arc::new(Teller::new(None, None));
    teller.wait_for(WaitFor::Ready("console:login".parse().unwrap()));
    assert!(teller.sink().is_none());
}
