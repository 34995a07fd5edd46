//! Many cycles of a soak in one process: alone in its program, since what is counted is the process's.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::time::Duration;

use bench::{Bench, Told, nobody};
use gpuvm_core::lifecycle::Patience;
use gpuvm_core::soak::{CycleVerdict, Mix, Ready};
use gpuvm_run::Run;
use gpuvm_run::soak::{Awaited, CycleJob, cycle, first_baselines};
use gpuvm_testkit::fake_qemu::{Action, Script, TimedAction};

/// What this process has open, and its threads.
fn own() -> (Vec<String>, usize) {
    let list = |folder| std::fs::read_dir(folder).unwrap().flatten();
    let mut open: Vec<String> = list("/proc/self/fd")
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().split(':').next().unwrap_or_default().to_owned())
        .filter(|target| !target.starts_with("/proc/"))
        .collect();
    open.sort();
    (open, list("/proc/self/task").count())
}

#[tokio::test]
async fn files_and_threads_after_fifty_cycles_are_those_after_five() {
    let says = |after_ms| TimedAction { after_ms, action: Action::Console { text: "ready\n".to_owned() } };
    let script = Script { after_cont: vec![says(5)], after_reset: vec![says(200)], ..Script::default() };
    let bench = Bench::new(&script);
    bench.fake.says_now("the kernel's log begins").unwrap();
    let first = first_baselines(&bench.fake.root(), &bench.plan);
    let mix: Mix = "clean:8,kill:1,reboot:1".parse().unwrap();
    let ready = Ready { expect: Some("^ready$".to_owned()), job: false, after_ms: 0, timeout_seconds: 20 };
    let ready = Awaited::new(ready).unwrap();
    let mut after = Vec::new();
    for number in 1..=50 {
        let kind = mix.kind_of(number);
        // What is slow on a busy machine is not what this is about.
        let run = Run {
            patience: Patience { acpi: Duration::from_secs(20), ..bench.run().patience },
            ..bench.run()
        };
        let job = CycleJob { run, number, kind, ready: &ready, first: &first, at: 0, plan_ms: 0 };
        let end = cycle(&job, &mut nobody(), &mut Told::default(), None).await;
        assert_eq!(end.cycle.verdict(), CycleVerdict::Healthy, "{:?}", end.cycle);
        after.push(own());
    }
    assert_eq!(after[49], after[4]);
    bench.assert_given_back();
}
