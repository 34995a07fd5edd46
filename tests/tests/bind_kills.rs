//! Binds and unbinds that are killed with SIGKILL at each point of their way, on a fake host: what was begun is finished by cleanup, and
//! what was whole stays.
//!
//! Each is a real process of its own (`killed-launcher`).

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{self, BindPlan, InUse, Target, UnbindPlan};
use gpuvm_e2e::killed::{KillPoint, Task, Verb, Victim};
use gpuvm_host::places::Places;
use gpuvm_host::{bound, facts};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, PowerAttributes, Snapshot, gpu, nvme};

const SIGKILL: i32 = 9;
const DEVICES: [&str; 3] = ["0000:81:00.0", "0000:83:00.0", "0000:84:00.0"];
const ALL: [&str; 4] = ["0000:81:00.0", "0000:81:00.1", "0000:83:00.0", "0000:84:00.0"];
/// One that somebody else has bound.
const HELD: &str = "0000:85:00.0";

struct Bench {
    fake: FakeHost,
    before: Snapshot,
}

impl Bench {
    /// A card of two functions, a disk with a power policy of its own, a device without a driver: three sets.
    fn new() -> Self {
        let fake = FakeHost::new();
        fake.device(&gpu(ALL[0], 7, 1));
        let audio = FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..gpu(ALL[1], 7, 1) };
        fake.device(&audio);
        let power = PowerAttributes { control: "auto", d3cold_allowed: None };
        fake.device(&FakeDevice { power, ..nvme(ALL[2], 8, 1) });
        fake.device(&FakeDevice { class: 0xff_0000, driver: None, ..gpu(ALL[3], 9, 1) });
        fake.device(&FakeDevice { driver: Some("vfio-pci"), ..nvme(HELD, 10, 1) });
        fake.file(&format!("/fake-kernel/native/{HELD}"), "nvme");
        fake.file("/sys/bus/pci/drivers/nvme/bind", "");
        fake.file(&format!("/sys/bus/pci/devices/{HELD}/driver_override"), "vfio-pci\n");
        let before = fake.snapshot().unwrap();
        Self { fake, before }
    }

    fn facts(&self, of: &[&str]) -> HostFacts {
        let asked: BTreeSet<Bdf> = of.iter().map(|bdf| bdf.parse().unwrap()).collect();
        let mut facts = facts::read_devices(&self.fake.root(), asked).unwrap();
        let boot_id = facts::boot_id(&self.fake.root()).unwrap();
        facts.bound = bound::bound(&Places::below(&self.fake.prefix()), &boot_id).unwrap();
        facts
    }

    fn bind_plan(&self) -> BindPlan {
        plan::bind(&targets(&DEVICES), InUse::Refused, &self.facts(&DEVICES)).unwrap()
    }

    fn unbind_plan(&self, of: &[&str]) -> UnbindPlan {
        plan::unbind(&targets(of), InUse::Refused, &self.facts(of)).unwrap()
    }

    fn run(&self, verb: Verb, kill: KillPoint) -> Output {
        let task = Task { fake: Some(self.fake.path("/")), verb, kill, victim: Victim::Launcher };
        task.run(Path::new(env!("CARGO_BIN_EXE_killed-launcher"))).unwrap()
    }

    fn done(&self, verb: Verb, what: &str) {
        let output = self.run(verb, KillPoint::Never);
        assert!(output.status.success(), "{what}: {output:?}");
    }

    fn unbind(&self, of: &[&str], what: &str) {
        self.done(Verb::Unbind(Box::new(self.unbind_plan(of))), what);
    }

    fn assert_restored(&self, what: &str) {
        assert_eq!(self.before.differences(&self.fake.snapshot().unwrap()), [""; 0], "{what}");
    }

    fn is_bound(&self, of: &[&str]) -> bool {
        of.iter().all(|bdf| self.fake.driver(bdf).unwrap().as_deref() == Some("vfio-pci"))
    }
}

fn targets(of: &[&str]) -> Vec<Target> {
    of.iter().map(|bdf| Target::Function(bdf.parse().unwrap())).collect()
}

fn killed(output: &Output) -> bool {
    output.status.signal() == Some(SIGKILL)
}

/// Lists points until a process isn't killed any more: what it was to do has fewer of them.
fn points() -> impl Iterator<Item = [KillPoint; 2]> {
    let steps = (0..).map(|n| [KillPoint::BeforeStep(n), KillPoint::AfterStep(n)]);
    steps.take(64)
}

fn writes() -> impl Iterator<Item = [KillPoint; 2]> {
    (0..).map(|n| [KillPoint::BeforeWrite(n), KillPoint::AfterWrite(n)]).take(64)
}

#[test]
fn a_bind_killed_anywhere_is_rolled_back_by_cleanup() {
    let bench = Bench::new();
    let plan = bench.bind_plan();
    assert_eq!(plan.sets.len(), 3);
    let operations: usize = plan.sets.iter().map(|set| set.operations.len()).sum();
    let mut kills = 0;
    for way in [points().flatten().collect::<Vec<_>>(), writes().flatten().collect()] {
        for point in way {
            if !killed(&bench.run(Verb::Bind(Box::new(plan.clone())), point)) {
                bench.unbind(&ALL, "not killed");
                bench.assert_restored("not killed");
                break;
            }
            kills += 1;
            bench.done(Verb::Cleanup, &format!("{point:?}"));
            // After the last step all is bound, and stays so.
            if point == KillPoint::AfterStep(operations - 1) {
                assert!(bench.is_bound(&ALL));
                bench.unbind(&ALL, "bound");
            }
            bench.assert_restored(&format!("{point:?}"));
        }
    }
    assert!(kills > 3 * operations, "{kills} kills of {operations} operations");
}

/// When all is bound, and the record that it was being bound is still there.
#[test]
fn a_bind_killed_after_its_last_operation_stays_bound() {
    let bench = Bench::new();
    let plan = bench.bind_plan();
    assert!(killed(&bench.run(Verb::Bind(Box::new(plan)), KillPoint::BeforeRelease)));
    bench.done(Verb::Cleanup, "nothing is left");
    assert!(bench.is_bound(&ALL));
    bench.unbind(&ALL, "after a kill");
    bench.assert_restored("after a kill");
}

#[test]
fn an_unbind_killed_anywhere_is_finished_by_cleanup_or_by_the_next_one() {
    let bench = Bench::new();
    let mut kills = 0;
    for way in
        [points().flatten().collect::<Vec<_>>(), writes().flatten().collect(), vec![KillPoint::BeforeRelease]]
    {
        for (number, point) in way.into_iter().enumerate() {
            bench.done(Verb::Bind(Box::new(bench.bind_plan())), "bind");
            let unbind = bench.unbind_plan(&ALL);
            let ended = !killed(&bench.run(Verb::Unbind(Box::new(unbind.clone())), point));
            if !ended && number % 2 == 0 {
                bench.done(Verb::Cleanup, &format!("{point:?}"));
            }
            // What isn't begun stays bound under cleanup: that's what the next one is for.
            bench.unbind(&ALL, &format!("{point:?}"));
            bench.done(Verb::Cleanup, "of records that are over");
            bench.assert_restored(&format!("{point:?}"));
            if ended {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 40, "{kills}");
}

#[test]
fn giving_back_what_somebody_else_has_bound_survives_a_kill_anywhere() {
    for point in writes().flatten().take(8).chain([
        KillPoint::BeforeStep(0),
        KillPoint::AfterStep(1),
        KillPoint::BeforeRelease,
    ]) {
        let bench = Bench::new();
        let ended = !killed(&bench.run(Verb::Unbind(Box::new(bench.unbind_plan(&[HELD]))), point));
        bench.done(Verb::Cleanup, &format!("{point:?}"));
        assert_eq!(bench.fake.driver(HELD).unwrap().as_deref(), Some("nvme"), "{point:?}");
        assert!(bench.facts(&[HELD]).bound.is_empty(), "{point:?}");
        if ended {
            assert!(matches!(point, KillPoint::BeforeWrite(3..)), "{point:?}");
            break;
        }
    }
}

#[test]
fn a_cleanup_killed_over_and_over_comes_to_its_end() {
    let bench = Bench::new();
    let plan = bench.bind_plan();
    assert!(killed(&bench.run(Verb::Bind(Box::new(plan)), KillPoint::AfterStep(9))));
    let mut kills = 0;
    while killed(&bench.run(Verb::Cleanup, KillPoint::AfterWrite(0))) {
        kills += 1;
        assert!(kills < 100, "it never gets further");
    }
    assert!(kills > 4, "{kills}");
    bench.done(Verb::Cleanup, "killed over and over");
    bench.assert_restored("killed over and over");
}
