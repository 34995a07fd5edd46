//! A device's reset methods are cut down and given back, on a kernel that lists one that it refuses.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
#![allow(clippy::disallowed_methods, reason = "the fake host is files")]

use std::collections::BTreeMap;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::{Method, Snapshot};
use gpuvm_host::HostError;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::snapshot;
use gpuvm_host::undo::undo_all;
use gpuvm_sys::errno::{EINVAL, EPERM};
use gpuvm_testkit::fake_host::{FakeHost, Fault, gpu};
use rstest::rstest;

const BOOT: &str = "boot-1";
const GPU: &str = "0000:81:00.0";
const LIST: &str = "/sys/bus/pci/devices/0000:81:00.0/reset_method";

struct Bench {
    fake: FakeHost,
    kernel: Kernel,
    places: Places,
    vm: VmName,
    journal: Journal,
    baselines: BTreeMap<Bdf, Snapshot>,
}

impl Bench {
    /// A GPU with this list, alone on its bus or not.
    fn new(list: &str, functions: &[&'static str]) -> Self {
        let fake = FakeHost::new();
        for function in functions {
            fake.device(&gpu(function, 7, 1));
        }
        fake.file(LIST, format!("{list}\n"));
        let (places, vm) = (Places::below(&fake.prefix()), VmName::new("vm").unwrap());
        make_dir(&places.vm(&vm)).unwrap();
        let journal = Journal::begin(&places.journal(&vm), BOOT).unwrap();
        let baselines = BTreeMap::from([(bdf(), snapshot::take(&fake.root(), bdf()))]);
        Self { kernel: fake.kernel(), fake, places, vm, journal, baselines }
    }

    fn list(&self) -> String {
        std::fs::read_to_string(self.fake.path(LIST)).unwrap().trim().to_owned()
    }

    fn set(&mut self, methods: &[Method]) -> Result<(), HostError> {
        let op = HostOp::SetResetMethods { bdf: bdf(), methods: methods.to_vec() };
        self.with_host(|host, journal| apply(host, journal, &op))
    }

    fn give_back(&mut self) -> Vec<HostError> {
        self.with_host(|host, journal| undo_all(host, journal, &mut |_| {}))
    }

    /// Reads the journal anew, as whoever cleans up after a crash does.
    fn crash(&mut self) {
        self.journal = Journal::reopen(&self.places.journal(&self.vm), BOOT).unwrap().unwrap();
    }

    fn with_host<T>(&mut self, what: impl FnOnce(&Host<'_>, &mut Journal) -> T) -> T {
        let host = Host {
            kernel: &self.kernel,
            places: &self.places,
            boot_id: BOOT,
            vm: &self.vm,
            baselines: &self.baselines,
        };
        what(&host, &mut self.journal)
    }
}

fn bdf() -> Bdf {
    GPU.parse().unwrap()
}

const ALONE: &[&str] = &[GPU];
const CARD: &[&str] = &[GPU, "0000:81:00.1"];

#[rstest]
#[case::one_of_three("flr pm bus", ALONE, &[Method::Flr], "flr", "flr pm bus")]
#[case::none_of_three("flr pm bus", ALONE, &[], "", "flr pm bus")]
#[case::an_order_of_somebodys("bus flr", ALONE, &[Method::Flr], "flr", "bus flr")]
#[case::with_a_bus_that_never_was("flr pm bus", CARD, &[Method::Pm], "pm", "flr pm")]
#[case::of_nothing_but_that("bus", CARD, &[], "", "")]
#[case::which_was_chosen_by_hand("pm flr bus", CARD, &[], "", "pm flr")]
#[case::which_was_empty("", CARD, &[], "", "")]
fn a_list_is_cut_down_and_put_back_without_what_the_kernel_refuses(
    #[case] before: &str,
    #[case] functions: &'static [&'static str],
    #[case] methods: &[Method],
    #[case] during: &str,
    #[case] after: &str,
) {
    let mut bench = Bench::new(before, functions);
    bench.set(methods).unwrap();
    assert_eq!(bench.list(), during);
    bench.crash();
    assert!(bench.give_back().is_empty());
    assert_eq!(bench.list(), after);
    assert!(bench.journal.open_records().is_empty());
}

#[test]
fn a_method_that_the_device_has_not_is_refused_and_nothing_is_changed() {
    let mut bench = Bench::new("flr bus", CARD);
    let error = bench.set(&[Method::Bus]).unwrap_err();
    assert!(
        matches!(&error, HostError::Refused { source, .. } if source.raw_os_error() == Some(EINVAL)),
        "{error}"
    );
    assert!(bench.give_back().is_empty());
    assert_eq!(bench.list(), "flr bus", "undoing what was not made writes nothing");
}

#[test]
fn a_list_that_somebody_else_has_changed_is_told_of_and_left() {
    let mut bench = Bench::new("flr pm bus", ALONE);
    bench.set(&[Method::Flr]).unwrap();
    bench.fake.file(LIST, "pm\n");
    let left = bench.give_back();
    assert!(matches!(&left[..], [HostError::ChangedByOthers { .. }]), "{left:?}");
    assert_eq!(bench.list(), "pm");
}

#[test]
fn a_crash_while_a_refused_list_is_put_back_is_made_good() {
    let mut bench = Bench::new("flr pm bus", CARD);
    bench.set(&[]).unwrap();
    bench.fake.file(LIST, "flr pm\n");
    bench.crash();
    assert!(bench.give_back().is_empty());
    assert_eq!(bench.list(), "flr pm");
}

#[test]
fn a_refusal_for_another_reason_than_the_list_stays_open_and_is_tried_again() {
    let mut bench = Bench::new("flr pm bus", CARD);
    bench.set(&[]).unwrap();
    bench.fake.fault("reset_method", Fault::Errno(EPERM));
    let left = bench.give_back();
    assert!(matches!(&left[..], [HostError::Refused { .. }]), "{left:?}");
    assert_eq!((bench.list().as_str(), bench.journal.open_records().len()), ("", 1));
    assert!(bench.give_back().is_empty());
    assert_eq!(bench.list(), "flr pm");
}

#[test]
fn a_write_that_changes_nothing_is_no_success() {
    let mut bench = Bench::new("flr pm bus", ALONE);
    bench.fake.fault("reset_method", Fault::Lie);
    let error = bench.set(&[Method::Pm]).unwrap_err();
    assert!(error.to_string().contains("flr pm bus"), "{error}");
}

#[test]
fn a_device_that_does_not_answer_keeps_its_short_list() {
    let mut bench = Bench::new("flr pm bus", ALONE);
    bench.set(&[Method::Flr]).unwrap();
    bench.fake.file("/sys/bus/pci/devices/0000:81:00.0/config", [0xff; 256]);
    let left = bench.give_back();
    assert_eq!((left.len(), bench.list().as_str()), (1, "flr"), "{left:?}");
    assert_eq!(bench.journal.open_records().len(), 1);
}
