//! A VM on a fake host with a fake QEMU.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuvm_core::lifecycle::{Halt, Patience, State};
use gpuvm_core::plan::{Plan, plan};
use gpuvm_core::profile::{Sources, parse};
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_run::{Launched, Note, Observer, Phase, Report, Run, Signals, UpError, up};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, Snapshot, gpu};
use gpuvm_testkit::fake_qemu::{Action, Recording, Script, TimedAction};

pub(crate) const GPU: &str = "0000:81:00.0";
pub(crate) const AUDIO: &str = "0000:81:00.1";

pub(crate) const PORT: &str = "0000:80:03.1";

pub(crate) struct Bench {
    pub(crate) fake: FakeHost,
    pub(crate) kernel: Kernel,
    pub(crate) places: Places,
    pub(crate) plan: Plan,
    pub(crate) record: PathBuf,
    pub(crate) boot_id: String,
    pub(crate) before: Snapshot,
}

#[derive(Default)]
pub(crate) struct Told(pub(crate) Vec<String>);

impl Observer for Told {
    fn phase(&mut self, phase: &Phase) {
        self.0.push(format!("{phase:?}"));
    }

    fn note(&mut self, note: &Note) {
        self.0.push(note.0.clone());
    }

    fn state(&mut self, state: State, _halt: Option<&Halt>) {
        self.0.push(format!("state {}", state.name()));
    }
}

/// The CPUs that this test may run on: the fake's threads are real, and so is their pinning.
pub(crate) fn cpus() -> Vec<u32> {
    gpuvm_sys::sched::affinity(0).unwrap()
}

impl Bench {
    pub(crate) fn new(script: &Script) -> Self {
        Self::with_profile(script, "pin = \"off\"")
    }

    pub(crate) fn with_profile(script: &Script, cpu: &str) -> Self {
        Self::with(script, None, "", cpu)
    }

    /// Makes the card below a port, by which its bus can be reset, with keys of the profile's own.
    pub(crate) fn below_port(script: &Script, keys: &str) -> Self {
        Self::with(script, Some(PORT), keys, "pin = \"off\"")
    }

    fn with(script: &Script, port: Option<&'static str>, keys: &str, cpu: &str) -> Self {
        let fake = FakeHost::new();
        fake.device(&FakeDevice { port, ..gpu(GPU, 7, 1) });
        fake.device(&FakeDevice {
            port,
            class: 0x04_0300,
            driver: Some("snd_hda_intel"),
            ..gpu(AUDIO, 7, 1)
        });
        let list: Vec<String> = cpus().iter().map(ToString::to_string).collect();
        fake.cpus(&list.join(","));
        fake.node(1, &list.join(","), 64 << 20);
        let record = fake.fake_qemu(script);
        let text = format!(
            "version = 1\nname = \"vm\"\nfirmware = \"bios\"\n{keys}\n[memory]\nsize = \"64M\"\nhugepages = \"2M\"\n\
             [cpu]\ncount = 1\n{cpu}\n[[device]]\nbdf = \"{GPU}\"\n"
        );
        let profile = parse(&Sources::new("vm.toml", text), Path::new("/")).unwrap();
        let facts = facts::read(&fake.root(), &profile).unwrap();
        let mut plan = plan(&profile, &facts).unwrap_or_else(|refusals| panic!("{refusals:?}"));
        plan.qemu = fake.root().path(&plan.qemu);
        let before = fake.snapshot().unwrap();
        Self {
            kernel: fake.kernel(),
            places: Places::below(&fake.prefix()),
            plan,
            record,
            boot_id: facts.kernel.boot_id,
            before,
            fake,
        }
    }

    pub(crate) fn run(&self) -> Run<'_> {
        let patience = Patience {
            acpi: Duration::from_millis(300),
            quit: Duration::from_millis(300),
            exit: Duration::from_millis(500),
            killed: Duration::from_secs(10),
        };
        Run {
            plan: &self.plan,
            profile: "",
            kernel: &self.kernel,
            places: &self.places,
            boot_id: &self.boot_id,
            patience,
            launched: Launched::Foreground,
        }
    }

    pub(crate) async fn up(&self) -> Result<Report, UpError> {
        self.up_told(&mut Told::default()).await
    }

    pub(crate) async fn up_told(&self, told: &mut Told) -> Result<Report, UpError> {
        up(&self.run(), &mut nobody(), None, told).await
    }

    /// Runs the VM and asks for its end so many times once the guest runs.
    pub(crate) async fn up_asked_to_stop(&self, times: u32) -> Result<Report, UpError> {
        let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
        let mut signals = Signals::from_channel(requests);
        let mut told = Told::default();
        let asking = async {
            self.runs().await;
            for _ in 0..times {
                tokio::time::sleep(Duration::from_millis(50)).await;
                ask.send("SIGTERM").unwrap();
            }
            std::future::pending().await
        };
        let run = self.run();
        tokio::select! {
            result = up(&run, &mut signals, None, &mut told) => result,
            never = asking => never,
        }
    }

    /// Waits until the guest runs: `cont` is in the recording then.
    pub(crate) async fn runs(&self) {
        while !Recording::load(&self.record).is_ok_and(|recording| recording.names().contains(&"cont")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn assert_given_back(&self) {
        assert_eq!(self.before.differences(&self.fake.snapshot().unwrap()), [""; 0]);
        assert!(!self.places.vm(&self.plan.name).exists(), "the VM's folder is still there");
        assert_eq!(gpuvm_host::root::list(&self.places.reservations()).unwrap(), [""; 0]);
    }
}

/// Signals that never come.
pub(crate) fn nobody() -> Signals {
    Signals::from_channel(tokio::sync::mpsc::unbounded_channel().1)
}

pub(crate) fn shutdown_after(ms: u64) -> Vec<TimedAction> {
    vec![TimedAction { after_ms: ms, action: Action::Shutdown { reason: "guest-shutdown".to_owned() } }]
}

pub(crate) fn action(action: Action) -> Vec<TimedAction> {
    vec![TimedAction { after_ms: 20, action }]
}
