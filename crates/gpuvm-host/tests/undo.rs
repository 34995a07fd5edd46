//! Changes to the host and their undoing, on a host that can hang, fail and lie.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::rc::Rc;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Snapshot as Baseline;
use gpuvm_core::units::PageSize;
use gpuvm_host::HostError;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::snapshot;
use gpuvm_host::undo::undo_all;
use gpuvm_sys::errno::EBUSY;
use gpuvm_sys::watched::WriteOutcome;
use gpuvm_testkit::fake_host::{FakeHost, Fault, Snapshot, gpu};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const BOOT: &str = "boot-1";
const GPU: &str = "0000:81:00.0";

struct Bench {
    fake: FakeHost,
    kernel: Kernel,
    places: Places,
    vm: VmName,
    baselines: BTreeMap<Bdf, Baseline>,
}

impl Bench {
    fn new() -> Self {
        let fake = FakeHost::new();
        fake.device(&gpu(GPU, 7, 1));
        let places = Places::below(&fake.prefix());
        let baselines = BTreeMap::from([(bdf(), snapshot::take(&fake.root(), bdf()))]);
        Self { kernel: fake.kernel(), places, vm: VmName::new("vm").unwrap(), baselines, fake }
    }

    fn host(&self) -> Host<'_> {
        self.host_of(&self.vm)
    }

    fn host_of<'a>(&'a self, vm: &'a VmName) -> Host<'a> {
        Host { kernel: &self.kernel, places: &self.places, boot_id: BOOT, vm, baselines: &self.baselines }
    }

    /// Lists what of the host is not as it was; gpuvm's own files aside, whose journals stay open here.
    fn changes(&self, before: &Snapshot) -> Vec<String> {
        before.differences(&self.fake.snapshot().unwrap().of_host())
    }

    fn journal(&self, vm: &VmName) -> Journal {
        make_dir(&self.places.vm(vm)).unwrap();
        Journal::begin(&self.places.journal(vm), BOOT).unwrap()
    }

    /// Applies operations up to the first that fails, and returns its error.
    fn apply(&self, journal: &mut Journal, ops: &[HostOp]) -> Option<HostError> {
        ops.iter().find_map(|op| apply(&self.host(), journal, op).err())
    }
}

fn give_back(host: &Host<'_>, journal: &mut Journal) -> Vec<HostError> {
    undo_all(host, journal, &mut |_| {})
}

fn bdf() -> Bdf {
    GPU.parse().unwrap()
}

fn driver(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

fn claim(pages: u64) -> HostOp {
    HostOp::ClaimHugepages { node: 1, page: PageSize::M2, pages }
}

/// All that gives a device to vfio-pci, after the memory.
fn take() -> Vec<HostOp> {
    vec![
        claim(128),
        HostOp::KeepAwake { bdf: bdf() },
        HostOp::Unbind { bdf: bdf(), driver: driver("nvidia") },
        HostOp::SetDriverOverride { bdf: bdf(), driver: driver("vfio-pci") },
        HostOp::Bind { bdf: bdf(), driver: driver("vfio-pci") },
    ]
}

#[test]
fn undo_restores_the_host_from_every_point_of_the_way() {
    for made in 0..=take().len() {
        let bench = Bench::new();
        let before = bench.fake.snapshot().unwrap().of_host();
        let mut journal = bench.journal(&bench.vm);
        assert!(bench.apply(&mut journal, &take()[..made]).is_none());
        assert!(give_back(&bench.host(), &mut journal).is_empty(), "after {made}");
        assert_eq!(bench.changes(&before), [""; 0], "after {made}");
        assert!(journal.open_records().is_empty());
    }
}

#[test]
fn undo_restores_the_host_when_a_crash_came_between_note_and_deed() {
    for noted in 0..take().len() {
        let bench = Bench::new();
        let before = bench.fake.snapshot().unwrap().of_host();
        let mut journal = bench.journal(&bench.vm);
        assert!(bench.apply(&mut journal, &take()[..noted]).is_none());
        journal.intend(&take()[noted], None).unwrap();
        let mut journal = Journal::reopen(&bench.places.journal(&bench.vm), BOOT).unwrap().unwrap();
        assert!(give_back(&bench.host(), &mut journal).is_empty(), "at {noted}");
        assert_eq!(bench.changes(&before), [""; 0], "at {noted}");
    }
}

#[test]
fn the_gpu_is_bound_to_vfio_and_nothing_is_written_that_is_not_needed() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(
        bench.fake.writes(),
        [
            "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages=128",
            "/sys/bus/pci/devices/0000:81:00.0/d3cold_allowed=0",
            "/sys/bus/pci/drivers/nvidia/unbind=0000:81:00.0",
            "/sys/bus/pci/devices/0000:81:00.0/driver_override=vfio-pci",
            "/sys/bus/pci/drivers/vfio-pci/bind=0000:81:00.0",
            // vfio-pci has let it sleep.
            "/sys/bus/pci/devices/0000:81:00.0/power/control=on",
        ]
    );
}

#[test]
fn an_unbind_that_hangs_is_named_in_flight_and_left_alone_until_it_ends() {
    let bench = Bench::new();
    bench.fake.fault("nvidia/unbind", Fault::Hang);
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    assert!(matches!(error, HostError::InFlight { .. }), "{error}");
    assert!(error.to_string().contains(GPU) && error.to_string().contains("(state "), "{error}");
    let writes = bench.fake.writes().len();
    let left = give_back(&bench.host(), &mut journal);
    assert!(matches!(left[..], [HostError::InFlight { .. }]), "{left:?}");
    // Only the pool was given back: nothing of the device was written to.
    assert_eq!(bench.fake.writes().len(), writes + 1);
    bench.fake.release();
    assert!(give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("nvidia"));
}

/// A journal on a file in memory, and what seals the file: then it can't grow, as on a full disk.
fn journal_that_fills_up() -> (Journal, File) {
    let file = File::from(memfd_create("journal", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (Journal::reopen(Path::new(&path), BOOT).unwrap().unwrap(), file)
}

#[test]
fn a_child_that_a_full_journal_cannot_take_is_told_and_its_device_left_alone() {
    let mut bench = Bench::new();
    let (mut journal, file) = journal_that_fills_up();
    let writes = Rc::new(Cell::new(0));
    let counted = Rc::clone(&writes);
    let hang = move |_: &Path, _: &[u8], _| {
        counted.set(counted.get() + 1);
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
        Ok(WriteOutcome::InFlight { pid: ProcessId::own().pid })
    };
    bench.kernel = Kernel::new(bench.fake.root(), Box::new(hang), Box::new(|_, _, _| Ok(())));
    let unbind = HostOp::Unbind { bdf: bdf(), driver: driver("nvidia") };
    let error = apply(&bench.host(), &mut journal, &unbind).unwrap_err();
    assert!(matches!(error, HostError::InFlight { pid, .. } if pid == ProcessId::own().pid), "{error}");
    let left = give_back(&bench.host(), &mut journal);
    assert!(matches!(left[..], [HostError::File { .. }, HostError::InFlight { .. }]), "{left:?}");
    assert_eq!(writes.get(), 1, "the device was written to");
}

#[test]
fn a_bind_that_changes_nothing_is_an_error() {
    let bench = Bench::new();
    bench.fake.fault("vfio-pci/bind", Fault::Lie);
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    assert!(matches!(&error, HostError::NoEffect { now, .. } if now == "no driver"), "{error}");
}

#[test]
fn a_refused_write_names_attribute_value_and_errno() {
    let bench = Bench::new();
    bench.fake.fault("vfio-pci/bind", Fault::Errno(EBUSY));
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    let text = error.to_string();
    assert!(text.contains("vfio-pci/bind") && text.contains(GPU) && text.contains("os error 16"), "{text}");
}

/// A device that was removed and found anew is on its own driver, without an override: as it was before.
#[test]
fn a_device_that_the_kernel_has_found_anew_is_where_it_belongs() {
    let bench = Bench::new();
    let before = bench.fake.snapshot().unwrap().of_host();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    // As the kernel leaves it after `remove` and `rescan`.
    let write = |path: &str, value: &str| {
        let path = bench.fake.path(path);
        bench.kernel.write("find it anew", &path, value, std::time::Duration::from_secs(5)).unwrap();
    };
    write("/sys/bus/pci/drivers/vfio-pci/unbind", GPU);
    write(&format!("/sys/bus/pci/devices/{GPU}/driver_override"), "\n");
    write("/sys/bus/pci/drivers/nvidia/bind", GPU);
    assert!(give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(bench.changes(&before), [""; 0]);
}

#[test]
fn what_somebody_else_has_changed_is_reported_and_not_overwritten() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    let set = format!("/sys/bus/pci/devices/{GPU}/driver_override");
    bench.fake.file(&set, "pci-stub\n");
    bench.fake.file("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "999\n");
    let left = give_back(&bench.host(), &mut journal);
    let changed = left.iter().filter(|e| matches!(e, HostError::ChangedByOthers { .. })).count();
    assert_eq!(changed, 2, "{left:?}");
    assert!(left[0].to_string().contains("pci-stub"), "{left:?}");
    assert_eq!(std::fs::read_to_string(bench.fake.path(&set)).unwrap(), "pci-stub\n");
    let pool = bench.fake.path("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages");
    assert_eq!(std::fs::read_to_string(pool).unwrap(), "999\n");
}

/// Each cleanup names the override as the reason, until somebody clears it.
#[test]
fn a_device_that_anothers_override_keeps_off_its_driver_is_given_back_once_that_is_cleared() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    let set = format!("/sys/bus/pci/devices/{GPU}/driver_override");
    bench.fake.file(&set, "pci-stub\n");
    give_back(&bench.host(), &mut journal);
    for _ in 0..2 {
        let left = give_back(&bench.host(), &mut journal);
        assert!(
            matches!(&left[..], [HostError::KeptOff { set, .. }] if set.as_str() == "pci-stub"),
            "{left:?}"
        );
    }
    bench.fake.file(&set, "(null)\n");
    assert!(give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("nvidia"));
}

#[test]
fn a_device_that_no_longer_answers_is_not_given_to_its_driver() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    bench.fake.file(&format!("/sys/bus/pci/devices/{GPU}/config"), [0xff; 256]);
    let left = give_back(&bench.host(), &mut journal);
    assert!(left.iter().any(|error| matches!(error, HostError::NotAnswering { .. })), "{left:?}");
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert!(!journal.open_records().is_empty(), "cleanup must be able to try again");
}

#[test]
fn a_driver_that_was_unloaded_is_named() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    std::fs::remove_dir_all(bench.fake.path("/sys/bus/pci/drivers/nvidia")).unwrap();
    let left = give_back(&bench.host(), &mut journal);
    assert!(
        matches!(&left[..], [HostError::DriverGone { driver, .. }] if driver.as_str() == "nvidia"),
        "{left:?}"
    );
}

#[test]
fn an_override_that_was_there_before_comes_back() {
    let bench = Bench::new();
    let set = format!("/sys/bus/pci/devices/{GPU}/driver_override");
    bench.fake.file(&set, "nvidia\n");
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    assert!(give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(std::fs::read_to_string(bench.fake.path(&set)).unwrap(), "nvidia\n");
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("nvidia"));
}

#[test]
fn too_few_hugepages_fail_with_the_figure_and_leave_the_pool_as_it_was() {
    let bench = Bench::new();
    let before = bench.fake.snapshot().unwrap().of_host();
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &[claim(40_000)]).unwrap();
    assert!(matches!(error, HostError::Hugepages { need: 40_000, have: 32_768, .. }), "{error}");
    assert_eq!(bench.changes(&before), [""; 0]);
    assert!(give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(bench.changes(&before), [""; 0]);
}

#[test]
fn two_vms_share_a_pool_and_the_last_to_go_restores_it_in_either_order() {
    for first in [0, 1] {
        let bench = Bench::new();
        let before = bench.fake.snapshot().unwrap().of_host();
        let vms = [VmName::new("a").unwrap(), VmName::new("b").unwrap()];
        let mut journals: Vec<_> = vms.iter().map(|vm| bench.journal(vm)).collect();
        for (vm, journal) in vms.iter().zip(&mut journals) {
            apply(&bench.host_of(vm), journal, &claim(100)).unwrap();
        }
        let total =
            || std::fs::read_to_string(bench.kernel.root.hugepage_pool(1, PageSize::M2).join("nr_hugepages"));
        assert_eq!(total().unwrap(), "200\n");
        for (at, expected) in [(first, "100\n"), (1 - first, "0\n")] {
            assert!(give_back(&bench.host_of(&vms[at]), &mut journals[at]).is_empty());
            assert_eq!(total().unwrap(), expected);
        }
        assert_eq!(bench.changes(&before), [""; 0]);
    }
}

fn pool_of(bench: &Bench) -> String {
    let pool = bench.kernel.root.hugepage_pool(1, PageSize::M2).join("nr_hugepages");
    std::fs::read_to_string(pool).unwrap().trim().to_owned()
}

fn set_pool(bench: &Bench, total: u64) {
    for file in ["nr_hugepages", "free_hugepages"] {
        let path = format!("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/{file}");
        bench.fake.file(&path, format!("{total}\n"));
    }
}

#[test]
fn pages_that_an_administrator_adds_between_two_claims_are_still_there_in_the_end() {
    let bench = Bench::new();
    let vms = [VmName::new("a").unwrap(), VmName::new("b").unwrap()];
    let mut journals: Vec<_> = vms.iter().map(|vm| bench.journal(vm)).collect();
    apply(&bench.host_of(&vms[0]), &mut journals[0], &claim(128)).unwrap();
    set_pool(&bench, 1128);
    apply(&bench.host_of(&vms[1]), &mut journals[1], &claim(128)).unwrap();
    for at in [1, 0] {
        assert!(give_back(&bench.host_of(&vms[at]), &mut journals[at]).is_empty());
    }
    assert_eq!(pool_of(&bench), "1000");
}

#[test]
fn a_pool_that_was_grown_half_way_when_its_launcher_died_is_given_back() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    // The write is noted, hangs, and ends with 77 of the 128 pages.
    bench.fake.fault("nr_hugepages", Fault::Hang);
    assert!(matches!(bench.apply(&mut journal, &[claim(128)]), Some(HostError::InFlight { .. })));
    bench.fake.release();
    set_pool(&bench, 77);
    let left = give_back(&bench.host(), &mut journal);
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(pool_of(&bench), "0");
}

#[test]
fn a_device_that_is_still_in_reset_is_not_given_to_its_driver() {
    let bench = Bench::new();
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    let mut config = [0xff; 256];
    config[..2].copy_from_slice(&[1, 0]);
    bench.fake.file(&format!("/sys/bus/pci/devices/{GPU}/config"), config);
    let left = give_back(&bench.host(), &mut journal);
    assert!(left.iter().any(|error| matches!(error, HostError::NotAnswering { .. })), "{left:?}");
}

#[test]
fn a_device_that_dies_while_it_is_taken_from_its_driver_stays_where_it_is() {
    let bench = Bench::new();
    bench.fake.fault("nvidia/unbind", Fault::KillsDevice);
    let mut journal = bench.journal(&bench.vm);
    assert!(bench.apply(&mut journal, &take()).is_none());
    assert!(!give_back(&bench.host(), &mut journal).is_empty());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
}

#[test]
fn a_claim_that_was_noted_and_never_made_has_nothing_to_do_with_the_pool() {
    let bench = Bench::new();
    let vms = [VmName::new("a").unwrap(), VmName::new("b").unwrap()];
    let mut journals: Vec<_> = vms.iter().map(|vm| bench.journal(vm)).collect();
    apply(&bench.host_of(&vms[0]), &mut journals[0], &claim(128)).unwrap();
    journals[1].intend(&claim(128), None).unwrap();
    set_pool(&bench, 500);
    let left = give_back(&bench.host_of(&vms[1]), &mut journals[1]);
    assert!(left.is_empty(), "{left:?}");
    // The VM that does have a claim is the one that is told.
    let left = give_back(&bench.host_of(&vms[0]), &mut journals[0]);
    assert!(matches!(left[..], [HostError::ChangedByOthers { .. }]), "{left:?}");
    assert_eq!(pool_of(&bench), "500");
}

/// The kernel says in its log alone why a driver doesn't take a device.
#[test]
fn a_failed_bind_and_unbind_tell_what_the_kernel_said_about_the_device() {
    const REFUSED: &str = "vfio-pci 0000:81:00.0: Cannot bind to PF with SR-IOV enabled";
    let bench = Bench::new();
    bench.fake.says("vfio-pci/bind", REFUSED).unwrap();
    bench.fake.says("vfio-pci/bind", "nvme 0000:83:00.0: another device's business").unwrap();
    bench.fake.fault("vfio-pci/bind", Fault::Errno(EBUSY));
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    assert!(matches!(error, HostError::Refused { .. }), "{error}");
    assert_eq!(error.said(), [REFUSED]);
    assert!(error.to_string().ends_with(&format!("; the kernel said:\n{REFUSED}")), "{error}");

    const BLOCKED: &str = "vfio-pci 0000:81:00.0: Relaying device request to user (#0)";
    let bench = Bench::new();
    bench.fake.says("nvidia/unbind", BLOCKED).unwrap();
    bench.fake.fault("nvidia/unbind", Fault::Hang);
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    assert!(matches!(error, HostError::InFlight { .. }), "{error}");
    assert_eq!(error.said(), [BLOCKED]);
    bench.fake.release();
}

#[test]
fn a_bind_that_fails_on_a_host_whose_log_cannot_be_read_says_nothing_more() {
    let bench = Bench::new();
    bench.fake.fault("vfio-pci/bind", Fault::Errno(EBUSY));
    let mut journal = bench.journal(&bench.vm);
    let error = bench.apply(&mut journal, &take()).unwrap();
    assert_eq!(error.said(), [""; 0]);
    assert!(!error.to_string().contains("the kernel said"), "{error}");
}
