//! Records of soaks, as a lab host would write them, made by hand: cycles of plausible lengths, without a clock and without chance.

use gpuvm_core::facts::{ErrorCounters, LinkFacts, LinkSpeed};
use gpuvm_core::lifecycle::{Exit, Outcome, Stage};
use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::repair::{Climbed, Rung};
use gpuvm_core::reset::{Check, Finding, Judgement, Method, Reading, Snapshot, Verdict};
use gpuvm_core::soak::{
    Begun, Cut, Cycle, CycleKind, DeviceCycle, DeviceStart, Ended, JobReport, Line, Machine, Mix, OwnUse,
    Phase, PhaseTime, Polled, Ready, ResetTime, ResetWay, Settings, StopOn, VERSION, Why,
};
use serde_json::json;

/// When every made record begins: 2027-01-15T08:00:00Z.
pub const BEGIN: u64 = 1_800_000_000;

/// A record that is being made.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its lines so far.
    pub lines: Vec<Line>,
    mix: Mix,
    next: u32,
    at_ms: u64,
    seed: u64,
    begun: Begun,
}

/// The two functions of the card that made records have.
pub const CARD: [&str; 2] = ["0000:82:00.0", "0000:82:00.1"];

fn bdf(text: &str) -> Bdf {
    text.parse().expect("the addresses here are right")
}

/// A device as it was before the first cycle.
fn start(address: &str) -> DeviceStart {
    let id = if address.ends_with('0') { "1234:11e8" } else { "1234:11e9" };
    let id = id.parse().expect("the ids here are right");
    DeviceStart {
        bdf: bdf(address),
        id,
        name: Some(if address.ends_with('0') { "QEMU edu".to_owned() } else { "QEMU audio".to_owned() }),
        link: Some(LinkFacts {
            speed: Some(LinkSpeed(25)),
            width: Some(1),
            max_speed: Some(LinkSpeed(25)),
            max_width: Some(1),
        }),
        reset_methods: vec!["flr".to_owned(), "bus".to_owned()],
        snapshot: Box::new(Snapshot {
            bdf: bdf(address),
            id: Reading::Read(id),
            virtual_function: Default::default(),
            driver: None,
            config: Reading::Absent,
            bars: Reading::Absent,
            power_state: Reading::Read("D0".to_owned()),
            power: Reading::Absent,
            errors: Reading::Absent,
            reset_methods: Reading::Absent,
            port: None,
        }),
    }
}

impl Made {
    /// Begins a record of so many cycles, of the mix that the product is tested with.
    pub fn new(cycles: u32) -> Self {
        let mix: Mix = "clean:8,kill:1,reboot:1".parse().expect("the mix here is one");
        let begun = Begun {
            version: VERSION,
            at: BEGIN,
            vm: "lab".parse().expect("the name here is one"),
            done_before: 0,
            settings: Settings {
                profile: "profiles/lab-compute.toml".to_owned(),
                profile_text: "name = \"lab\"\ndevices = [\"0000:82:00.0\"]\n\n[memory]\nsize = \"256M\"\n"
                    .to_owned(),
                set: vec!["repair=rescan".to_owned()],
                cycles: Some(cycles),
                seconds: None,
                mix: mix.clone(),
                ready: Ready {
                    expect: Some("^lab: up".to_owned()),
                    job: true,
                    after_ms: 500,
                    timeout_seconds: 300,
                },
                poll: Some("test -d /sys/bus/pci".to_owned()),
                stop_on: StopOn::Bad,
                shutdown_timeout: None,
            },
            machine: Machine {
                gpuvm: "0.1.0".to_owned(),
                boot_id: "5c0f1111-2222-4333-8444-555566667777".to_owned(),
                kernel: "6.12.48-lab".to_owned(),
                kernel_build: "Linux version 6.12.48-lab (gcc 14.2.0) #1 SMP".to_owned(),
                cmdline: "console=ttyS0 intel_iommu=on".to_owned(),
                qemu: Some("7.2.19".to_owned()),
                product: Some("QEMU Standard PC (Q35 + ICH9, 2009)".to_owned()),
                firmware: Some("SeaBIOS 1.16.2 04/01/2014".to_owned()),
                cpu: Some("QEMU TCG CPU version 2.5+".to_owned()),
            },
            devices: CARD.map(start).to_vec(),
        };
        let lines = vec![Line::Begun(Box::new(begun.clone()))];
        Self { lines, mix, next: 1, at_ms: BEGIN * 1000 + 1_200, seed: 7, begun }
    }

    /// Begins it otherwise than usual.
    pub fn begun(mut self, change: impl FnOnce(&mut Begun)) -> Self {
        change(&mut self.begun);
        self.lines = vec![Line::Begun(Box::new(self.begun.clone()))];
        self
    }

    /// Returns a number from 0 to below another, the same in every run.
    pub fn vary(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below.max(1)
    }

    /// Adds healthy cycles.
    pub fn healthy(mut self, cycles: u32) -> Self {
        for _ in 0..cycles {
            self = self.cycle(|_| {});
        }
        self
    }

    /// Adds a cycle that is healthy but for what is changed of it.
    pub fn cycle(mut self, change: impl FnOnce(&mut Cycle)) -> Self {
        let mut cycle = self.usual();
        change(&mut cycle);
        self.at_ms += cycle.ms + 40;
        self.lines.push(Line::Cycle(Box::new(cycle)));
        self
    }

    /// Adds a cycle that gpuvm was killed in, and the beginning of what went on a minute later.
    pub fn killed_and_resumed(mut self, change: impl FnOnce(&mut Begun)) -> Self {
        let number = self.next;
        self.next += 1;
        self.at_ms += 64_000;
        self.begun.at = self.at_ms / 1000;
        self.begun.done_before = number - 1;
        change(&mut self.begun);
        self.lines.push(Line::Begun(Box::new(self.begun.clone())));
        self.lines.push(Line::Cut(Cut {
            number,
            kind: self.mix.kind_of(number),
            at: self.at_ms / 1000,
            left: Vec::new(),
            found: vec![
                "QEMU (process 4711) was still running: it was ended, and the host was given back".to_owned(),
            ],
        }));
        self.at_ms += 2_000;
        self
    }

    /// Ends it.
    pub fn ended(mut self, why: Why) -> Vec<Line> {
        self.lines.push(Line::Ended(Ended { at: self.at_ms / 1000, why }));
        self.lines
    }

    fn usual(&mut self) -> Cycle {
        let number = self.next;
        self.next += 1;
        let kind = self.mix.kind_of(number);
        // A guest is a little slower now and then.
        let late = if self.vary(12) == 0 { 1_400 } else { 0 };
        let mut phases = vec![
            (Phase::Plan, 18 + self.vary(6)),
            (Phase::Prepare, 52 + self.vary(20)),
            (Phase::Start, 610 + self.vary(90)),
            (Phase::Boot, 8_200 + self.vary(700) + late),
            (Phase::Work, 505 + self.vary(8)),
        ];
        if kind == CycleKind::Reboot {
            phases.push((Phase::Reboot, 8_400 + self.vary(600)));
        }
        phases.extend([
            (Phase::Stop, if kind == CycleKind::Kill { 240 + self.vary(30) } else { 900 + self.vary(160) }),
            (Phase::Judge, 14 + self.vary(5)),
            (Phase::GiveBack, 41 + self.vary(12)),
        ]);
        let phases: Vec<_> = phases.into_iter().map(|(phase, ms)| PhaseTime { phase, ms }).collect();
        let figures = json!({ "factorials_per_second": 41_000 + self.vary(900), "temperature": 50.5 });
        Cycle {
            number,
            kind,
            at: self.at_ms / 1000,
            ms: phases.iter().map(|part| part.ms).sum(),
            waited_ms: 0,
            phases,
            outcome: Some(match kind {
                CycleKind::Kill => Outcome::QemuDied { exit: Exit::Signal(9) },
                CycleKind::Clean | CycleKind::Reboot => Outcome::Stopped { stage: Stage::Acpi },
            }),
            faults: Vec::new(),
            devices: CARD.map(|address| self.device(address)).to_vec(),
            job: Some(JobReport {
                exit: 0,
                message: None,
                figures: figures.as_object().cloned().unwrap_or_default(),
            }),
            polled: Some(Polled { runs: 9, longest_ms: 4 + self.vary(9), ..Polled::default() }),
            own: OwnUse { rss_kib: 14_200 + self.vary(60), fds: 17 },
        }
    }

    fn device(&mut self, address: &str) -> DeviceCycle {
        let method = Some(if address.ends_with('0') { Method::Flr } else { Method::Bus });
        let usual = if method == Some(Method::Flr) { 101 } else { 138 };
        let kernel = |ms| ResetTime { by: ResetWay::Kernel, method, ms, failure: None };
        DeviceCycle {
            bdf: bdf(address),
            judgement: Judgement::new(Vec::new()),
            drift: Vec::new(),
            speed: Some(LinkSpeed(25)),
            width: Some(1),
            errors: ErrorCounters::default(),
            resets: vec![kernel(usual + self.vary(9)), kernel(usual + self.vary(12))],
            repair: Vec::new(),
            before_repair: None,
            kernel: Vec::new(),
        }
    }
}

/// What is found of a card that has fallen off the bus.
pub fn fallen() -> Judgement {
    Judgement::new(vec![
        Finding {
            check: Check::AllOnes,
            weight: Some(Verdict::Unreachable),
            bdf: bdf(CARD[0]),
            register: "config 0x00".to_owned(),
            before: Some("0x11e81234".to_owned()),
            after: "0xffffffff".to_owned(),
            meaning: "all ones: it has fallen off the bus".to_owned(),
        },
        Finding {
            check: Check::GaveUp,
            weight: Some(Verdict::Faulted),
            bdf: bdf(CARD[0]),
            register: "kernel log".to_owned(),
            before: None,
            after: "not ready 65535ms after FLR; giving up".to_owned(),
            meaning: "the kernel has given up waiting for it after a reset".to_owned(),
        },
    ])
}

/// What the kernel says of such a card.
pub fn last_words() -> Vec<String> {
    [
        "[  831.204417] vfio-pci 0000:82:00.0: resetting",
        "[  831.312091] vfio-pci 0000:82:00.0: not ready 1023ms after FLR; waiting",
        "[  896.847222] vfio-pci 0000:82:00.0: not ready 65535ms after FLR; giving up",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What is found of errors that the link repairs.
pub fn correctable(count: u64) -> Finding {
    Finding {
        check: Check::CorrectableErrors,
        weight: Some(Verdict::Degraded),
        bdf: bdf(CARD[0]),
        register: "aer_dev_correctable".to_owned(),
        before: Some("0".to_owned()),
        after: count.to_string(),
        meaning: "the link has repaired errors".to_owned(),
    }
}

/// The steps of a repair that ends with the second rung.
pub fn climbed() -> Vec<Climbed> {
    let step = |rung, ms, judgement, failure: Option<&str>| Climbed {
        rung,
        ms,
        failure: failure.map(str::to_owned),
        judgement,
    };
    vec![
        step(Rung::Hot, 1_204, fallen(), Some("EIO: Input/output error")),
        step(Rung::Rescan, 340, Judgement::new(Vec::new()), None),
    ]
}
