//! What VMs share, ended in every order, with and without somebody else's hand in it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::fs;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Snapshot as Baseline;
use gpuvm_core::units::PageSize;
use gpuvm_host::HostError;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::undo::undo_all;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, PowerAttributes, gpu};
use rstest::rstest;

const PORT: &str = "0000:80:01.0";
const CONTROL: &str = "/sys/bus/pci/devices/0000:80:01.0/power/control";
const D3COLD: &str = "/sys/bus/pci/devices/0000:80:01.0/d3cold_allowed";
const POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Every order in which three VMs can end.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Three VMs that each claim 100 pages of one pool and the same port.
struct Bench {
    fake: FakeHost,
    kernel: Kernel,
    places: Places,
    baselines: BTreeMap<Bdf, Baseline>,
    vms: Vec<VmName>,
    journals: Vec<Journal>,
}

impl Bench {
    fn new(power: PowerAttributes) -> Self {
        let fake = FakeHost::new();
        fake.device(&FakeDevice { class: 0x06_0400, driver: Some("pcieport"), power, ..gpu(PORT, 1, 1) });
        let (kernel, places) = (fake.kernel(), Places::below(&fake.prefix()));
        let vms: Vec<VmName> = NAMES.iter().map(|name| VmName::new(name).unwrap()).collect();
        let journal = |vm: &VmName| {
            make_dir(&places.vm(vm)).unwrap();
            Journal::begin(&places.journal(vm), "boot-1").unwrap()
        };
        let journals = vms.iter().map(journal).collect();
        Self { fake, kernel, places, baselines: BTreeMap::new(), vms, journals }
    }

    fn claim(&mut self, at: usize) {
        let operations = [
            HostOp::ClaimHugepages { node: 1, page: PageSize::M2, pages: 100 },
            HostOp::ClaimAwake { port: PORT.parse().unwrap() },
        ];
        for op in operations {
            let host = Host {
                kernel: &self.kernel,
                places: &self.places,
                boot_id: "boot-1",
                vm: &self.vms[at],
                baselines: &self.baselines,
            };
            apply(&host, &mut self.journals[at], &op).unwrap();
        }
    }

    fn end(&mut self, at: usize) -> Vec<HostError> {
        let host = Host {
            kernel: &self.kernel,
            places: &self.places,
            boot_id: "boot-1",
            vm: &self.vms[at],
            baselines: &self.baselines,
        };
        let left = undo_all(&host, &mut self.journals[at], &mut |_| {});
        assert!(self.journals[at].open_records().is_empty(), "{left:?}");
        left
    }

    fn read(&self, attribute: &str) -> String {
        fs::read_to_string(self.fake.path(attribute)).unwrap().trim().to_owned()
    }

    fn pool(&self) -> String {
        self.read(&format!("{POOL}/nr_hugepages"))
    }

    fn set_pool(&self, pages: u64) {
        for file in ["nr_hugepages", "free_hugepages"] {
            self.fake.file(&format!("{POOL}/{file}"), format!("{pages}\n"));
        }
    }
}

const ASLEEP: PowerAttributes = PowerAttributes { control: "auto", d3cold_allowed: Some("1") };

#[rstest]
#[case::may_sleep(ASLEEP)]
#[case::awake_already(PowerAttributes { control: "on", d3cold_allowed: Some("0") })]
#[case::without_acpi(PowerAttributes { control: "auto", d3cold_allowed: None })]
fn pool_and_port_go_back_when_the_last_is_gone_in_every_order(#[case] power: PowerAttributes) {
    for order in ORDERS {
        let mut bench = Bench::new(power);
        let before = bench.fake.snapshot().unwrap().of_host();
        (0..3).for_each(|at| bench.claim(at));
        for (ended, at) in order.into_iter().enumerate() {
            let pages = 100 * (3 - ended);
            assert_eq!(
                (bench.pool(), bench.read(CONTROL)),
                (pages.to_string(), "on".to_owned()),
                "{order:?}"
            );
            assert!(bench.end(at).is_empty());
        }
        assert_eq!(before.differences(&bench.fake.snapshot().unwrap().of_host()), [""; 0], "{order:?}");
        assert!(!bench.places.claims().exists());
    }
}

#[test]
fn a_pool_that_somebody_resized_is_reported_once_and_keeps_what_they_added() {
    for order in ORDERS {
        for changed_after in 0..3 {
            let mut bench = Bench::new(ASLEEP);
            (0..3).for_each(|at| bench.claim(at));
            let mut told = Vec::new();
            for (ended, at) in order.into_iter().enumerate() {
                if ended == changed_after {
                    bench.set_pool(100 * (3 - ended as u64) + 7);
                }
                told.extend(bench.end(at));
            }
            assert!(matches!(told[..], [HostError::ChangedByOthers { .. }]), "{order:?}: {told:?}");
            // The pages of the VM that is told stay: nobody can say whose they are.
            assert_eq!(bench.pool(), "107", "{order:?} {changed_after}");
        }
    }
}

#[test]
fn a_port_that_somebody_lets_sleep_under_running_vms_is_reported_once_and_left_so() {
    for order in ORDERS {
        for changed_after in 0..2 {
            let mut bench = Bench::new(PowerAttributes { control: "on", d3cold_allowed: Some("0") });
            (0..3).for_each(|at| bench.claim(at));
            let mut told = Vec::new();
            for (ended, at) in order.into_iter().enumerate() {
                if ended == changed_after {
                    bench.fake.file(CONTROL, "auto\n");
                }
                told.extend(bench.end(at));
            }
            assert!(told.iter().all(|error| matches!(error, HostError::ChangedByOthers { .. })), "{told:?}");
            assert!(!told.is_empty() && told[0].to_string().contains(PORT), "{told:?}");
            assert_eq!((bench.read(CONTROL), bench.read(D3COLD)), ("auto".to_owned(), "0".to_owned()));
        }
    }
}

#[test]
fn a_port_that_was_awake_and_is_let_sleep_before_the_last_vm_ends_is_reported_and_left_so() {
    let mut bench = Bench::new(PowerAttributes { control: "on", d3cold_allowed: Some("0") });
    bench.claim(0);
    bench.fake.file(D3COLD, "1\n");
    let told = bench.end(0);
    assert!(
        matches!(&told[..], [HostError::ChangedByOthers { now, .. }] if now == "d3cold_allowed 1"),
        "{told:?}"
    );
    assert_eq!(bench.read(D3COLD), "1");
}

#[test]
fn what_somebody_sets_between_two_claims_is_what_comes_back() {
    let mut bench = Bench::new(PowerAttributes { control: "on", d3cold_allowed: Some("0") });
    bench.claim(0);
    bench.fake.file(CONTROL, "auto\n");
    bench.claim(1);
    assert_eq!(bench.read(CONTROL), "on", "the second VM needs it awake");
    for at in [0, 1] {
        assert!(bench.end(at).is_empty());
    }
    assert_eq!(bench.read(CONTROL), "auto");
}
