//! Two VMs that want the same device at the same moment, on a fake host.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::sync::Barrier;
use std::thread;

use bench::{Bench, GPU, Told, nobody, shutdown_after};
use gpuvm_core::lifecycle::{Outcome, Patience};
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_host::HostError;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::reservation::Owner;
use gpuvm_host::root::HostRoot;
use gpuvm_run::{Cause, Launched, Report, Run, UpError, up};
use gpuvm_testkit::fake_host::kernel_at;
use gpuvm_testkit::fake_qemu::Script;

/// Who wants the device: what of a bench threads can share.
struct Wanting<'a> {
    plan: &'a Plan,
    root: HostRoot,
    places: &'a Places,
    boot_id: &'a str,
    ready: &'a Barrier,
}

impl Wanting<'_> {
    /// Runs the plan as soon as all are there.
    fn run(&self) -> Result<Report, UpError> {
        let (write, check) = kernel_at(self.root.path("/").as_path());
        let kernel = Kernel::new(self.root.clone(), write, check);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = Run {
            plan: self.plan,
            profile: "",
            kernel: &kernel,
            places: self.places,
            boot_id: self.boot_id,
            patience: Patience::default(),
            launched: Launched::Foreground,
        };
        self.ready.wait();
        runtime.block_on(async { up(&run, &mut nobody(), None, &mut Told::default()).await })
    }
}

#[test]
fn of_two_vms_that_want_a_device_at_the_same_moment_one_has_it_and_the_other_is_told_who() {
    for _ in 0..8 {
        let bench = Bench::new(&Script { after_cont: shutdown_after(400), ..Script::default() });
        let other = Plan { name: VmName::new("other").unwrap(), ..bench.plan.clone() };
        let plans = [&bench.plan, &other];
        let ready = Barrier::new(plans.len());
        let ran: Vec<_> = thread::scope(|scope| {
            let (places, boot_id) = (&bench.places, bench.boot_id.as_str());
            let threads = plans.map(|plan| {
                let wanting = Wanting { plan, root: bench.fake.root(), places, boot_id, ready: &ready };
                scope.spawn(move || wanting.run())
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winner = ran.iter().position(Result::is_ok).unwrap();
        assert_eq!(ran[winner].as_ref().unwrap().outcome, Outcome::PoweredOff);
        let lost = ran[1 - winner].as_ref().unwrap_err();
        let Cause::Host(HostError::Reserved { owner: Owner::Vm(owner), .. }) = &*lost.cause else {
            panic!("{lost:?}")
        };
        assert_eq!(*owner, plans[winner].name);
        assert!(lost.cause.to_string().contains(GPU) && lost.left.is_empty(), "{}", lost.cause);
        bench.assert_given_back();
        assert!(!bench.places.vm(&other.name).exists());
    }
}
