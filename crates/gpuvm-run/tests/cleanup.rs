//! Cleanup of what a run before a reboot has left: its files are removed, and nothing else is touched.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;

use gpuvm_core::host_ops::{HostOp, ImageFormat};
use gpuvm_core::pci::DriverName;
use gpuvm_core::profile::VmName;
use gpuvm_core::units::PageSize;
use gpuvm_host::HostError;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_run::{Cleaned, CleanupReport, Note, Observer, Phase, cleanup};
use gpuvm_testkit::fake_host::{FakeHost, gpu};
use rstest::rstest;

const GPU: &str = "0000:81:00.0";

#[derive(Default)]
struct Told(Vec<String>);

impl Observer for Told {
    fn phase(&mut self, phase: &Phase) {
        self.0.push(format!("{phase:?}"));
    }

    fn note(&mut self, note: &Note) {
        self.0.push(note.0.clone());
    }
}

struct Bench {
    fake: FakeHost,
    places: Places,
    vm: VmName,
}

impl Bench {
    /// A host on which a run has claimed pages, made an overlay and bound a card, all in boot `before`; and its record.
    fn before_a_reboot() -> Self {
        let fake = FakeHost::new();
        fake.device(&gpu(GPU, 7, 1));
        fake.file("/images/base.img", "x");
        let (places, vm) = (Places::below(&fake.prefix()), VmName::new("vm").unwrap());
        make_dir(&places.vm(&vm)).unwrap();
        let mut journal = Journal::begin(&places.journal(&vm), "before").unwrap();
        let bdf = GPU.parse().unwrap();
        let operations = [
            HostOp::ClaimHugepages { node: 1, page: PageSize::M2, pages: 100 },
            HostOp::CreateOverlay {
                path: fake.path("/images/overlay.qcow2"),
                backing: fake.path("/images/base.img"),
                format: ImageFormat::Raw,
                qemu_img: fake.fake_qemu_img(),
            },
            HostOp::Unbind { bdf, driver: DriverName::new("nvidia").unwrap() },
        ];
        let kernel = fake.kernel();
        let baselines = Default::default();
        let host =
            Host { kernel: &kernel, places: &places, boot_id: "before", vm: &vm, baselines: &baselines };
        for op in &operations {
            apply(&host, &mut journal, op).unwrap();
        }
        let record = Reservation {
            vm: vm.clone(),
            boot_id: "before".to_owned(),
            groups: Vec::new(),
            devices: vec![bdf],
            // Numbers are used again: this one belongs to a process of today.
            supervisor: ProcessId::of(1).unwrap(),
            qemu: Some(ProcessId::own()),
            in_flight: Vec::new(),
            cpus: Default::default(),
            reset_domains: Vec::new(),
            bind: None,
            detached: false,
            reset: false,
        };
        reservation::reserve(&places, &record).unwrap();
        Self { fake, places, vm }
    }

    fn cleanup(&self, told: &mut Told) -> Vec<CleanupReport> {
        cleanup(&self.fake.kernel(), &self.places, "after", None, told).unwrap()
    }

    fn overlay(&self) -> std::path::PathBuf {
        self.fake.path("/images/overlay.qcow2")
    }
}

/// The steps after the last change is undone: the journal is closed, its folder is removed, the devices are given free.
#[rstest]
#[case::journal_closed(Ended::Closed)]
#[case::folder_removed(Ended::FolderRemoved)]
fn a_run_that_died_while_it_ended_is_forgotten(#[case] ended: Ended) {
    let fake = FakeHost::new();
    let (places, vm) = (Places::below(&fake.prefix()), VmName::new("vm").unwrap());
    let before = fake.snapshot().unwrap();
    reservation::take_over(&places, "boot", &vm, reservation::Guest::Spared).unwrap();
    if ended == Ended::Closed {
        make_dir(&places.vm(&vm)).unwrap();
        Journal::begin(&places.journal(&vm), "boot").unwrap().close().unwrap();
    }
    let reports = cleanup(&fake.kernel(), &places, "boot", None, &mut Told::default()).unwrap();
    assert_eq!((reports.len(), reports[0].result), (1, Cleaned::Done), "{reports:?}");
    assert_eq!(before.differences(&fake.snapshot().unwrap()), [""; 0]);
}

#[test]
fn a_record_that_makes_no_sense_stops_no_other_vms_cleanup() {
    let fake = FakeHost::new();
    let places = Places::below(&fake.prefix());
    reservation::take_over(&places, "boot", &VmName::new("b-fine").unwrap(), reservation::Guest::Spared)
        .unwrap();
    fs::write(places.reservations().join("a-broken.json"), "{}\n").unwrap();
    let reports = cleanup(&fake.kernel(), &places, "boot", None, &mut Told::default()).unwrap();
    let results: Vec<_> = reports.iter().map(|report| (report.name.as_str(), report.result)).collect();
    assert_eq!(results, [("a-broken", Cleaned::Left), ("b-fine", Cleaned::Done)], "{reports:?}");
    assert!(reports[0].not_given_back[0].contains("a-broken.json"), "{reports:?}");
}

/// How far a run had got with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Closed,
    FolderRemoved,
}

/// A launcher that is killed while the kernel lets it wait has noted no child; the child goes on, with the attribute open.
#[test]
fn a_write_that_outlives_its_launcher_keeps_everything_as_it_is_until_it_ends() {
    let bench = Bench::before_a_reboot();
    let record = &mut reservation::all(&bench.places, "before").unwrap()[0];
    record.supervisor = ProcessId { pid: 1, start_time: 1 };
    record.qemu = None;
    reservation::update(&bench.places, record).unwrap();
    let attribute = bench.fake.path("/sys/bus/pci/drivers/nvidia/unbind");
    let mut writer = std::process::Command::new("sleep")
        .arg("600")
        .stdout(fs::File::options().append(true).open(attribute).unwrap())
        .spawn()
        .unwrap();
    let writes = bench.fake.writes();
    let clean = || {
        let (kernel, mut told) = (bench.fake.kernel(), Told::default());
        cleanup(&kernel, &bench.places, "before", None, &mut told).unwrap()
    };
    let reports = clean();
    let pid = i32::try_from(writer.id()).unwrap();
    assert!(
        matches!(reports[0].left[..], [HostError::InFlight { pid: found, .. }] if found == pid),
        "{reports:?}"
    );
    assert_eq!(bench.fake.writes(), writes, "something was written to");
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(clean()[0].result, Cleaned::Done);
}

#[test]
fn after_a_reboot_only_files_are_removed_and_told() {
    let bench = Bench::before_a_reboot();
    let writes = bench.fake.writes();
    let mut told = Told::default();
    let reports = bench.cleanup(&mut told);
    assert_eq!((reports.len(), reports[0].result), (1, Cleaned::Done), "{reports:?}");
    let overlay = bench.overlay().display().to_string();
    assert!(reports[0].cleared[0].contains(&overlay), "{reports:?}");
    assert!(told.0.iter().any(|line| line.contains("claims") && line.contains("reboot")), "{:?}", told.0);
    assert_eq!(bench.fake.writes(), writes, "the kernel of today was written to");
    let ours: Vec<String> = ["reservations", "vm"]
        .iter()
        .flat_map(|f| gpuvm_host::root::list(&bench.places.run().join(f)).unwrap())
        .collect();
    assert_eq!(ours, [""; 0]);
    assert!(!bench.overlay().exists() && !bench.places.claims().exists());
    assert!(bench.cleanup(&mut Told::default()).is_empty(), "there is nothing left for a second time");
}

#[test]
fn after_a_reboot_an_image_that_took_the_overlays_place_is_kept_and_told() {
    let bench = Bench::before_a_reboot();
    fs::write(bench.overlay(), "somebody's work").unwrap();
    let reports = bench.cleanup(&mut Told::default());
    assert_eq!(reports[0].result, Cleaned::Left);
    assert!(matches!(reports[0].left[..], [HostError::ChangedByOthers { .. }]), "{reports:?}");
    assert!(bench.overlay().exists());
    fs::remove_file(bench.overlay()).unwrap();
    assert_eq!(bench.cleanup(&mut Told::default())[0].result, Cleaned::Done);
}

#[test]
fn a_record_without_a_folder_is_cleared_and_one_vm_can_be_named() {
    let bench = Bench::before_a_reboot();
    gpuvm_host::journal::remove_dir(&bench.places.vm(&bench.vm)).unwrap();
    let (kernel, other) = (bench.fake.kernel(), VmName::new("other").unwrap());
    let mut told = Told::default();
    assert!(cleanup(&kernel, &bench.places, "after", Some(&other), &mut told).unwrap().is_empty());
    assert_eq!(reservation::names(&bench.places).unwrap(), std::slice::from_ref(&bench.vm));
    cleanup(&kernel, &bench.places, "after", Some(&bench.vm), &mut told).unwrap();
    assert_eq!(reservation::names(&bench.places).unwrap(), []);
}
