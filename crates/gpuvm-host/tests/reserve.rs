//! Reservations: what two VMs can't both have.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::GroupId;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::ResetDomain;
use gpuvm_host::HostError;
use gpuvm_host::journal::Journal;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{Owner, Reservation, check, reserve};
use gpuvm_host::soak;
use rstest::rstest;

const BOOT: &str = "boot-1";

/// What a VM of this process has: one device in a group of its own, on a bus and below others.
fn reservation(vm: &str, bdf: &str, group: u32, buses: &[&str]) -> Reservation {
    let mut buses = buses.iter().map(|bus| bus.parse().unwrap());
    let domain = buses.next().map(|bus| ResetDomain { bus, above: buses.collect() });
    Reservation {
        vm: VmName::new(vm).unwrap(),
        boot_id: BOOT.to_owned(),
        groups: vec![GroupId(group)],
        devices: vec![bdf.parse().unwrap()],
        supervisor: ProcessId::own(),
        qemu: None,
        in_flight: Vec::new(),
        cpus: CpuSet::default(),
        reset_domains: domain.into_iter().collect(),
        bind: None,
        detached: false,
        reset: false,
    }
}

#[rstest]
#[case::same_device("0000:81:00.0", 7, &[], "0000:81:00.0")]
#[case::same_group("0000:82:00.0", 7, &[], "group 7")]
#[case::other_function_on_the_bus("0000:81:00.1", 8, &["0000:81"], "bus 0000:81, whose reset")]
#[case::behind_a_bridge_on_the_bus("0000:85:00.0", 8, &["0000:85", "0000:81"], "bus 0000:81, whose reset")]
fn what_another_vm_has_is_refused_by_name(
    #[case] bdf: &str,
    #[case] group: u32,
    #[case] buses: &[&str],
    #[case] says: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    reserve(&places, &reservation("first", "0000:81:00.0", 7, &["0000:81"])).unwrap();
    let error = reserve(&places, &reservation("second", bdf, group, buses)).unwrap_err();
    assert!(
        matches!(&error, HostError::Reserved { owner: Owner::Vm(vm), .. } if vm.as_str() == "first"),
        "{error}"
    );
    assert!(error.to_string().contains(says), "{error}");
}

/// A process that lives until the test is over.
struct Other(std::process::Child);

impl Other {
    fn start() -> Self {
        Self(std::process::Command::new("sleep").arg("60").spawn().unwrap())
    }

    fn id(&self) -> ProcessId {
        ProcessId::of(i32::try_from(self.0.id()).unwrap()).unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

#[test]
fn between_two_cycles_a_soak_has_its_vms_name_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    let (soaked, wanted) = (VmName::new("vm1").unwrap(), reservation("vm1", "0000:81:00.0", 7, &[]));
    // Its own cycles may have it.
    let held = soak::hold(&places, &soaked).unwrap();
    check(&places, &wanted).unwrap();
    let other = Other::start();
    let id = other.id();
    std::fs::write(places.soak_lock(&soaked), serde_json::to_string(&id).unwrap()).unwrap();
    let error = reserve(&places, &wanted).unwrap_err();
    assert!(matches!(&error, HostError::Soaked { vm, pid } if vm == "vm1" && *pid == id.pid), "{error}");
    check(&places, &reservation("vm2", "0000:81:00.0", 7, &[])).unwrap();
    // One that was killed has nothing any more, and neither has one that is over.
    drop(other);
    reserve(&places, &wanted).unwrap();
    drop(held);
    assert_eq!(soak::holder(&places, &soaked).unwrap(), None);
}

#[test]
fn a_soak_that_is_over_gives_its_vms_name_free_though_its_process_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (places, vm) = (Places::below(dir.path()), VmName::new("vm1").unwrap());
    let held = soak::hold(&places, &vm).unwrap();
    assert_eq!(soak::holder(&places, &vm).unwrap(), Some(ProcessId::own()));
    drop(held);
    assert_eq!(soak::holder(&places, &vm).unwrap(), None);
}

#[rstest]
#[case::another_bus(&["0000:82"])]
#[case::the_same_number_in_another_segment(&["0001:81"])]
#[case::no_bus_that_can_be_reset(&[])]
fn what_no_other_vm_has_is_given(#[case] buses: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    reserve(&places, &reservation("first", "0000:81:00.0", 7, &["0000:81"])).unwrap();
    assert_eq!(
        check(&places, &reservation("second", "0000:90:00.0", 8, buses)).unwrap(),
        [] as [std::path::PathBuf; 0]
    );
}

#[rstest]
#[case::of_a_vm_that_runs(ProcessId::own(), Some("CPU 4-5"))]
#[case::of_a_vm_that_was_never_given_back(ProcessId { pid: 0, start_time: 0 }, None)]
fn pinned_cpus_are_taken_while_their_vm_lives(#[case] supervisor: ProcessId, #[case] refused: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    let cpus: CpuSet = "4-5".parse().unwrap();
    let first = Reservation {
        supervisor,
        cpus: cpus.clone(),
        ..reservation("first", "0000:81:00.0", 7, &["0000:81"])
    };
    reserve(&places, &first).unwrap();
    make_dir(&places.vm(&first.vm)).unwrap();
    let mut journal = Journal::begin(&places.journal(&first.vm), BOOT).unwrap();
    journal.intend(&HostOp::KeepAwake { bdf: first.devices[0] }, None).unwrap();
    let second = Reservation { cpus, ..reservation("second", "0000:82:00.0", 8, &["0000:82"]) };
    let error = check(&places, &second).err().map(|error| error.to_string());
    assert_eq!(error.is_some(), refused.is_some(), "{error:?}");
    assert!(error.unwrap_or_default().contains(refused.unwrap_or_default()));
}
