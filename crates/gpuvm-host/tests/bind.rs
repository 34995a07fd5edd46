//! `bind` and `unbind` on a host that can hang, fail and lie.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{self, BindPlan, InUse, Refusal, Target, UnbindPlan};
use gpuvm_host::HostError;
use gpuvm_host::bound::{self, BindError, Cleaned, GivenBack, Step};
use gpuvm_host::errno::ENODEV;
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Owner, Reservation};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, Fault, PowerAttributes, Snapshot, gpu, nvme};

const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
const DISK: &str = "0000:83:00.0";
const BRIDGED: [&str; 2] = ["0000:04:01.0", "0000:04:02.0"];
const HELD: &str = "0000:85:00.0";

struct Bench {
    fake: FakeHost,
    places: Places,
    before: Snapshot,
}

impl Bench {
    /// A card of two functions, a disk with a power policy of its own, two functions in one group, and one that somebody has bound.
    fn new() -> Self {
        let fake = FakeHost::new();
        fake.device(&gpu(GPU, 7, 1));
        let audio = FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..gpu(AUDIO, 8, 1) };
        fake.device(&audio);
        let power = PowerAttributes { control: "auto", d3cold_allowed: Some("1") };
        fake.device(&FakeDevice { power, ..nvme(DISK, 9, 1) });
        fake.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000"), ..gpu(BRIDGED[0], 12, -1) });
        fake.device(&FakeDevice { class: 0xff_0000, driver: None, ..gpu(BRIDGED[1], 12, -1) });
        fake.device(&FakeDevice { driver: Some("vfio-pci"), ..nvme(HELD, 13, 1) });
        fake.file(&format!("/sys/bus/pci/devices/{HELD}/driver_override"), "vfio-pci\n");
        let (places, before) = (Places::below(&fake.prefix()), fake.snapshot().unwrap());
        Self { fake, places, before }
    }

    fn kernel(&self) -> Kernel {
        self.fake.kernel()
    }

    fn boot_id(&self) -> String {
        facts::boot_id(&self.fake.root()).unwrap()
    }

    fn facts(&self, targets: &[&str]) -> HostFacts {
        let asked: BTreeSet<Bdf> = targets.iter().map(|target| bdf(target)).collect();
        let mut facts = facts::read_devices(&self.fake.root(), asked).unwrap();
        facts.bound = bound::bound(&self.places, &self.boot_id()).unwrap();
        facts
    }

    fn planned(&self, targets: &[&str]) -> Result<BindPlan, Vec<Refusal>> {
        plan::bind(&functions(targets), InUse::Refused, &self.facts(targets))
    }

    fn bind(&self, targets: &[&str]) -> Result<(), BindError> {
        let plan = self.planned(targets).unwrap();
        bound::bind(&self.kernel(), &self.places, &self.boot_id(), &plan, &mut |_| {})
    }

    fn unbind_planned(&self, targets: &[&str]) -> Result<UnbindPlan, Vec<Refusal>> {
        plan::unbind(&functions(targets), InUse::Refused, &self.facts(targets))
    }

    fn unbind(&self, targets: &[&str]) -> GivenBack {
        let plan = self.unbind_planned(targets).unwrap();
        bound::unbind(&self.kernel(), &self.places, &self.boot_id(), &plan, &mut |_| {}).unwrap()
    }

    fn cleanup(&self) -> Vec<(Cleaned, Vec<String>)> {
        let reports = bound::cleanup(&self.kernel(), &self.places, &self.boot_id(), &mut |_| {}).unwrap();
        reports.into_iter().map(|report| (report.result, report.not_given_back)).collect()
    }

    fn drivers(&self, of: &[&str]) -> Vec<String> {
        of.iter().map(|bdf| self.fake.driver(bdf).unwrap().unwrap_or_default()).collect()
    }

    fn assert_as_before(&self, what: &str) {
        assert_eq!(self.before.differences(&self.fake.snapshot().unwrap()), [""; 0], "{what}");
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn functions(targets: &[&str]) -> Vec<Target> {
    targets.iter().map(|target| Target::Function(bdf(target))).collect()
}

#[test]
fn a_card_is_bound_with_its_other_function_and_given_back_as_it_was() {
    let bench = Bench::new();
    bench.bind(&[GPU]).unwrap();
    assert_eq!(bench.drivers(&[GPU, AUDIO]), ["vfio-pci", "vfio-pci"]);
    let again = bench.planned(&[GPU]).unwrap();
    assert!(again.sets.is_empty() && again.devices.len() == 2, "{again:?}");
    let given = bench.unbind(&[AUDIO, GPU]);
    assert!(given.left.is_empty(), "{:?}", given.left);
    assert_eq!(given.devices[&bdf(GPU)].as_ref().unwrap().as_str(), "nvidia");
    bench.assert_as_before("bound and unbound");
    assert_eq!(bench.unbind_planned(&[GPU]).unwrap().already.len(), 2);
}

#[test]
fn a_power_policy_of_its_own_is_put_back() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    let control = |bench: &Bench| {
        std::fs::read_to_string(bench.fake.path(&format!("/sys/bus/pci/devices/{DISK}/power/control")))
            .unwrap()
    };
    assert_eq!(control(&bench), "on\n");
    assert!(bench.unbind(&[DISK]).left.is_empty());
    assert_eq!(control(&bench), "auto\n");
    bench.assert_as_before("a disk");
}

#[test]
fn one_of_a_group_is_refused_with_the_words_that_take_all_of_it() {
    let bench = Bench::new();
    let refusals = bench.planned(&[BRIDGED[0]]).unwrap_err();
    let [Refusal::ForeignMember { member, wanted, .. }] = refusals.as_slice() else { panic!("{refusals:?}") };
    assert_eq!((*member, wanted.clone()), (bdf(BRIDGED[1]), BRIDGED.map(bdf).to_vec()));
    bench.bind(&BRIDGED).unwrap();
    assert_eq!(bench.drivers(&BRIDGED), ["vfio-pci", "vfio-pci"]);
    assert!(bench.unbind(&BRIDGED[..1]).left.is_empty());
    bench.assert_as_before("a group");
}

#[test]
fn what_was_bound_in_one_go_is_given_back_by_parts() {
    let bench = Bench::new();
    bench.bind(&[GPU, DISK]).unwrap();
    assert!(bench.unbind(&[DISK]).left.is_empty());
    assert_eq!(bench.drivers(&[GPU, AUDIO, DISK]), ["vfio-pci", "vfio-pci", "nvme"]);
    bench.bind(&[DISK]).unwrap();
    assert!(bench.unbind(&[GPU]).left.is_empty());
    assert!(bench.unbind(&[DISK]).left.is_empty());
    bench.assert_as_before("by parts");
}

#[test]
fn a_device_that_somebody_else_has_bound_is_offered_to_the_kernels_drivers() {
    let bench = Bench::new();
    bench.fake.file(&format!("/fake-kernel/native/{HELD}"), "nvme");
    let given = bench.unbind(&[HELD]);
    assert!(given.left.is_empty(), "{:?}", given.left);
    assert_eq!(given.devices[&bdf(HELD)].as_ref().unwrap().as_str(), "nvme");
    let set =
        std::fs::read_to_string(bench.fake.path(&format!("/sys/bus/pci/devices/{HELD}/driver_override")));
    assert_eq!(set.unwrap(), "(null)\n");
    assert_eq!(bench.cleanup(), []);
}

#[test]
fn a_bind_that_fails_puts_everything_back() {
    let bench = Bench::new();
    for (fault, part) in [(Fault::Errno(ENODEV), "vfio-pci/bind"), (Fault::Lie, "snd_hda_intel/unbind")] {
        bench.fake.fault(part, fault);
        let error = bench.bind(&[GPU, DISK]).unwrap_err();
        assert!(error.left.is_empty(), "{:?}", error.left);
        bench.assert_as_before(part);
    }
}

#[test]
fn a_driver_that_does_not_take_its_device_strands_it_until_it_does() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    bench.fake.fault("drivers/nvme/bind", Fault::Errno(ENODEV));
    let given = bench.unbind(&[DISK]);
    assert!(given.devices.is_empty() && given.not_given_back[0].contains("bind 0000:83:00.0 to nvme"));
    let stranded = bench.facts(&[DISK]).bound[&bdf(DISK)].clone();
    assert!(stranded.stranded.unwrap().contains("bind 0000:83:00.0 to nvme"));
    // Nobody else may take it meanwhile, and cleanup says so for as long as it is so.
    let error = bench.bind(&[DISK]).unwrap_err();
    assert!(matches!(*error.cause, HostError::Reserved { owner: Owner::Bind(_), .. }), "{:?}", error.cause);
    bench.fake.fault("drivers/nvme/bind", Fault::Errno(ENODEV));
    let [(Cleaned::Left, words)] = &bench.cleanup()[..] else { panic!() };
    assert!(words[0].contains("bind 0000:83:00.0 to nvme"), "{words:?}");
    assert_eq!(bench.cleanup(), [(Cleaned::Done, Vec::new())]);
    bench.assert_as_before("stranded and taken");
}

#[test]
fn a_stranded_device_that_somebody_gave_to_its_driver_is_found_to_be_solved() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    bench.fake.fault("drivers/nvme/bind", Fault::Errno(ENODEV));
    assert_eq!(bench.unbind(&[DISK]).left.len(), 1);
    let nvme = "/sys/bus/pci/drivers/nvme";
    bench.fake.link(&format!("/sys/bus/pci/devices/{DISK}/driver"), nvme);
    let given = bench.unbind(&[DISK]);
    assert!(given.left.is_empty(), "{:?}", given.left);
    bench.assert_as_before("given by hand");
}

#[test]
fn an_unbind_that_hangs_is_told_and_kept_and_ends_when_its_holder_lets_go() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    bench.fake.fault("drivers/vfio-pci/unbind", Fault::Hang);
    let given = bench.unbind(&[DISK]);
    let [HostError::InFlight { pid, .. }] = given.left.as_slice() else { panic!("{:?}", given.left) };
    let spared = reservation::in_flight(&bench.fake.root(), &bench.places, &bench.boot_id()).unwrap();
    assert_eq!(spared.get(&bdf(DISK)), Some(pid));
    // Nothing is asked of the device meanwhile, and whoever reads it is told.
    let root = bench.fake.root().sparing(spared);
    let error = facts::read_devices(&root, [bdf(DISK)].into()).unwrap_err();
    assert!(matches!(error, HostError::Spared { .. }), "{error}");
    let writes = bench.fake.writes().len();
    let [(Cleaned::Left, words)] = &bench.cleanup()[..] else { panic!() };
    assert!(words[0].contains(&format!("process {pid}")), "{words:?}");
    assert_eq!(bench.fake.writes().len(), writes);
    let wanted = Reservation::of_bind(bdf(DISK), &bench.boot_id(), Vec::new(), vec![bdf(DISK)]);
    let error = reservation::reserve(&bench.places, &wanted).unwrap_err();
    assert!(matches!(error, HostError::Reserved { owner: Owner::Bind(_), .. }), "{error}");

    bench.fake.release();
    assert_eq!(bench.cleanup(), [(Cleaned::Done, Vec::new())]);
    bench.assert_as_before("released");
}

#[test]
fn a_record_that_makes_no_sense_is_in_the_way_of_its_own_device_alone() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    let set = bench.places.bound().join(DISK).join("set.json");
    let good = std::fs::read_to_string(&set).unwrap();
    std::fs::write(&set, "junk").unwrap();
    let damaged = bound::damaged(&bench.places).unwrap();
    assert!(
        matches!(&damaged[..], [(Some(of), HostError::Content { .. })] if *of == bdf(DISK)),
        "{damaged:?}"
    );
    bench.bind(&[GPU]).unwrap();
    assert!(bench.unbind(&[GPU]).left.is_empty());
    let error = bench.bind(&[DISK]).unwrap_err();
    assert!(matches!(*error.cause, HostError::Content { .. }), "{:?}", error.cause);
    let [(Cleaned::Left, words)] = &bench.cleanup()[..] else { panic!() };
    assert!(words[0].contains("set.json holds `junk`"), "{words:?}");
    // Nothing was taken for over: with its record it is given back.
    std::fs::write(&set, good).unwrap();
    assert!(bench.unbind(&[DISK]).left.is_empty());
    bench.assert_as_before("mended");
}

#[test]
fn a_bind_that_hangs_keeps_its_device_reserved_and_gives_the_others_back() {
    let bench = Bench::new();
    bench.fake.fault("drivers/snd_hda_intel/unbind", Fault::Hang);
    let error = bench.bind(&[GPU]).unwrap_err();
    assert!(matches!(*error.cause, HostError::InFlight { .. }), "{:?}", error.cause);
    assert_eq!(bench.drivers(&[GPU]), ["nvidia"]);
    assert_eq!(reservation::in_flight(&bench.fake.root(), &bench.places, &bench.boot_id()).unwrap().len(), 2);
    bench.fake.release();
    assert_eq!(bench.cleanup(), [(Cleaned::Done, Vec::new())]);
    bench.assert_as_before("released");
}

#[test]
fn one_who_is_at_a_device_already_is_named() {
    let bench = Bench::new();
    let boot_id = bench.boot_id();
    let other = Reservation::of_bind(bdf(AUDIO), &boot_id, Vec::new(), vec![bdf(AUDIO)]);
    let supervisor = ProcessId::of(1).unwrap();
    reservation::update(&bench.places, &Reservation { supervisor, ..other }).unwrap();
    let error = bench.bind(&[GPU]).unwrap_err().cause.to_string();
    assert!(error.contains("a bind or unbind of 0000:81:00.1 (gpuvm process 1 is alive)"), "{error}");
    assert_eq!(bench.drivers(&[GPU, AUDIO]), ["nvidia", "snd_hda_intel"]);
}

#[test]
fn a_device_with_a_driver_of_its_own_for_vfio_gets_that_one_and_a_changed_one_is_refused() {
    let bench = Bench::new();
    let modalias = "pci:v0000144Dd0000A80Asv0sd0bc01sc08i02\n";
    bench.fake.file(&format!("/sys/bus/pci/devices/{DISK}/modalias"), modalias);
    let alias = "alias vfio_pci:v0000144Dd0000A80Asv*sd*bc*sc*i* nvme_vfio_pci\n";
    bench.fake.file("/lib/modules/6.12.0-fake/modules.alias", alias);
    bench.fake.file("/sys/bus/pci/drivers/nvme-vfio-pci/bind", "");
    bench.fake.file("/sys/bus/pci/drivers/nvme-vfio-pci/unbind", "");
    let refusals = bench.planned(&[DISK]).unwrap_err();
    assert!(matches!(refusals[..], [Refusal::VariantNotLoaded { .. }]), "{refusals:?}");
    bench
        .fake
        .link("/sys/module/nvme_vfio_pci/drivers/pci:nvme-vfio-pci", "/sys/bus/pci/drivers/nvme-vfio-pci");
    let before = bench.fake.snapshot().unwrap();
    bench.bind(&[DISK]).unwrap();
    assert_eq!(bench.drivers(&[DISK]), ["nvme-vfio-pci"]);
    assert!(bench.unbind(&[DISK]).left.is_empty());
    assert_eq!(before.differences(&bench.fake.snapshot().unwrap()), [""; 0]);
}

#[test]
fn a_device_that_changed_since_it_was_planned_is_left_alone() {
    let bench = Bench::new();
    let plan = bench.planned(&[DISK]).unwrap();
    bench.fake.remove(&format!("/sys/bus/pci/devices/{DISK}/driver"));
    let before = bench.fake.snapshot().unwrap();
    let error =
        bound::bind(&bench.kernel(), &bench.places, &bench.boot_id(), &plan, &mut |_| {}).unwrap_err();
    assert!(matches!(*error.cause, HostError::Stale { .. }), "{:?}", error.cause);
    assert_eq!(before.differences(&bench.fake.snapshot().unwrap()), [""; 0]);
}

#[test]
fn what_somebody_took_from_vfio_by_hand_can_be_bound_anew() {
    let bench = Bench::new();
    bench.bind(&[GPU]).unwrap();
    for (bdf, driver) in [(GPU, "nvidia"), (AUDIO, "snd_hda_intel")] {
        bench.fake.remove(&format!("/sys/bus/pci/devices/{bdf}/driver"));
        bench
            .fake
            .link(&format!("/sys/bus/pci/devices/{bdf}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
        bench.fake.file(&format!("/sys/bus/pci/devices/{bdf}/driver_override"), "(null)\n");
    }
    bench.bind(&[GPU]).unwrap();
    assert!(bench.unbind(&[GPU]).left.is_empty());
    bench.fake.file(&format!("/sys/bus/pci/devices/{GPU}/power/control"), "on\n");
    assert_eq!(bench.cleanup(), []);
    assert_eq!(bench.drivers(&[GPU, AUDIO]), ["nvidia", "snd_hda_intel"]);
}

#[test]
fn what_somebody_left_without_a_driver_and_is_bound_anew_gets_the_driver_that_it_had() {
    let bench = Bench::new();
    bench.bind(&[DISK]).unwrap();
    bench.fake.remove(&format!("/sys/bus/pci/devices/{DISK}/driver"));
    bench.bind(&[DISK]).unwrap();
    assert_eq!(bench.facts(&[DISK]).bound[&bdf(DISK)].was.as_ref().unwrap().as_str(), "nvme");
    let given = bench.unbind(&[DISK]);
    assert!(given.left.is_empty(), "{:?}", given.left);
    bench.assert_as_before("bound twice");
}

#[test]
fn a_bind_that_cannot_be_noted_as_done_is_given_back() {
    let bench = Bench::new();
    let plan = bench.planned(&[GPU, DISK]).unwrap();
    let mut told = |step: Step<'_>| {
        if let Step::Apply(op) = step
            && op.to_string() == format!("bind {DISK} to vfio-pci")
        {
            std::fs::create_dir(bench.places.bound().join(DISK).join("set.json.partial")).unwrap();
        }
    };
    let error = bound::bind(&bench.kernel(), &bench.places, &bench.boot_id(), &plan, &mut told).unwrap_err();
    assert!(matches!(*error.cause, HostError::File { .. }), "{:?}", error.cause);
    assert!(error.left.is_empty(), "{:?}", error.left);
    bench.assert_as_before("not noted");
}

#[test]
fn a_bind_that_comes_to_its_end_while_cleanup_is_at_another_stands() {
    let bench = Bench::new();
    bench.bind(&[GPU]).unwrap();
    bench.bind(&[DISK]).unwrap();
    let set = |of: &str| bench.places.bound().join(of).join("set.json");
    let stands = std::fs::read_to_string(set(DISK)).unwrap();
    for of in [GPU, DISK] {
        let leaving = match of {
            GPU => format!("\"leaving\": [\"{GPU}\", \"{AUDIO}\"]"),
            _ => format!("\"leaving\": [\"{of}\"]"),
        };
        let text = std::fs::read_to_string(set(of)).unwrap().replace("\"leaving\": []", &leaving);
        assert!(text.contains(&leaving), "{text}");
        std::fs::write(set(of), text).unwrap();
    }
    let mut told = |step: Step<'_>| {
        if let Step::Undo(op) = step
            && op.bdf() == Some(bdf(GPU))
        {
            std::fs::write(set(DISK), &stands).unwrap();
        }
    };
    let reports = bound::cleanup(&bench.kernel(), &bench.places, &bench.boot_id(), &mut told).unwrap();
    assert_eq!(reports.iter().map(|report| report.result).collect::<Vec<_>>(), [Cleaned::Done]);
    assert_eq!(bench.drivers(&[GPU, AUDIO, DISK]), ["nvidia", "snd_hda_intel", "vfio-pci"]);
    assert!(reservation::all(&bench.places, &bench.boot_id()).unwrap().is_empty());
    assert!(bench.unbind(&[DISK]).left.is_empty());
    bench.assert_as_before("stood");
}

#[test]
fn while_a_bind_is_under_way_no_folder_is_removed_that_it_may_be_making() {
    let bench = Bench::new();
    let unmade = bench.places.bound().join(DISK);
    let other = Reservation::of_bind(bdf(DISK), &bench.boot_id(), Vec::new(), vec![bdf(DISK)]);
    let supervisor = ProcessId::of(1).unwrap();
    reservation::update(&bench.places, &Reservation { supervisor, ..other.clone() }).unwrap();
    std::fs::create_dir_all(&unmade).unwrap();
    assert_eq!(bench.cleanup(), []);
    assert!(unmade.exists());
    reservation::release_bind(&bench.places, &other).unwrap();
    // A VM may be called as if it were a bind; it is none, and its record isn't touched.
    let vm = gpuvm_core::profile::VmName::new("bind-1").unwrap();
    let of_vm = Reservation { supervisor, bind: None, vm, boot_id: "before".to_owned(), ..other };
    reservation::update(&bench.places, &of_vm).unwrap();
    assert_eq!(bench.cleanup(), []);
    assert!(!unmade.exists() && bench.places.reservations().join("bind-1.json").exists());
}

#[test]
fn records_of_before_a_reboot_are_removed_and_nothing_is_replayed() {
    let bench = Bench::new();
    bench.bind(&[GPU]).unwrap();
    bench.fake.file("/proc/sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000002\n");
    let writes = bench.fake.writes().len();
    assert_eq!(bench.cleanup(), [(Cleaned::Done, Vec::new())]);
    assert_eq!(bench.fake.writes().len(), writes);
    assert!(bench.facts(&[GPU]).bound.is_empty());
}

#[test]
fn each_step_is_told_before_it_is_taken() {
    let bench = Bench::new();
    let plan = bench.planned(&[DISK]).unwrap();
    let mut steps = Vec::new();
    let mut told = |step: Step<'_>| {
        steps.push(match step {
            Step::Apply(op) => op.to_string(),
            Step::Undo(op) => format!("undo {op}"),
            Step::Release => "release".to_owned(),
        });
    };
    bound::bind(&bench.kernel(), &bench.places, &bench.boot_id(), &plan, &mut told).unwrap();
    assert_eq!(
        steps,
        [
            "keep 0000:83:00.0 awake",
            "unbind 0000:83:00.0 from nvme",
            "set driver_override of 0000:83:00.0 to vfio-pci",
            "bind 0000:83:00.0 to vfio-pci",
            "release",
        ]
    );
}
