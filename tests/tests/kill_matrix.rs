//! Launchers and cleanups that are killed with SIGKILL at each point of their way, on a fake host: nothing is left in the end.
//!
//! Each is a real process of its own (`killed-launcher`). The same in the lab, with a real kernel: scenario `kill-matrix`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::lifecycle::State;
use gpuvm_core::plan::{Plan, Refusal, plan};
use gpuvm_core::profile::{Sources, parse};
use gpuvm_e2e::killed::{ADOPTED, ENDED, GIVEN_BACK, KillPoint, PREPARED, Task, Verb, Victim};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::{facts, reservation};
use gpuvm_run::{Cleaned, Note, Observer, Phase, cleanup};
use gpuvm_testkit::fake_host::{self, FakeDevice, FakeHost, PowerAttributes, Snapshot, gpu, nvme};
use gpuvm_testkit::fake_qemu::{OnQuit, OnSignal, Script};
use proptest::prelude::*;

const SIGKILL: i32 = 9;

/// A host, a plan for it, and what it was before.
struct Bench {
    fake: FakeHost,
    plan: Plan,
    before: Snapshot,
}

impl Bench {
    /// Plans what the profile's lines say beside what all have.
    fn new(fake: FakeHost, hugepages: &str, lines: &str) -> Self {
        Self::planned(fake, hugepages, lines).unwrap_or_else(|refusals| panic!("{refusals:?}"))
    }

    /// As [`Self::new`], for a host on which the planner may refuse it.
    fn planned(fake: FakeHost, hugepages: &str, lines: &str) -> Result<Self, Vec<Refusal>> {
        let text = format!(
            "version = 1\nname = \"vm\"\nfirmware = \"bios\"\n[memory]\nsize = \"64M\"\nhugepages = \"{hugepages}\"\n\
             [cpu]\ncount = 1\npin = \"off\"\n{lines}"
        );
        let profile =
            parse(&Sources::new("vm.toml", text), Path::new("/")).unwrap_or_else(|e| panic!("{e:?}"));
        let mut facts = facts::read(&fake.root(), &profile).unwrap();
        facts.qemu = Some(fake.path("/fake-qemu/qemu"));
        facts.qemu_img = Some(fake.fake_qemu_img());
        let mut plan = plan(&profile, &facts)?;
        move_disks(&mut plan, &fake);
        let before = fake.snapshot().unwrap();
        Ok(Self { fake, plan, before })
    }

    fn run(&self, verb: Verb, kill: KillPoint) -> Output {
        let task = Task { fake: Some(self.fake.path("/")), verb, kill, victim: Victim::Launcher };
        task.run(Path::new(env!("CARGO_BIN_EXE_killed-launcher"))).unwrap()
    }

    /// Runs the plan as a launcher does that goes on by itself.
    fn detached(&self, kill: KillPoint, victim: Victim) -> Output {
        let verb = Verb::Detached(Box::new(self.plan.clone()));
        let task = Task { fake: Some(self.fake.path("/")), verb, kill, victim };
        task.run(Path::new(env!("CARGO_BIN_EXE_killed-launcher"))).unwrap()
    }

    fn up(&self, kill: KillPoint) -> Output {
        self.run(Verb::Up(Box::new(self.plan.clone())), kill)
    }

    /// Runs a cleanup to its end and checks that the host is as it was.
    fn assert_cleanup_restores(&self, what: &str) {
        let cleaned = self.run(Verb::Cleanup, KillPoint::Never);
        assert!(cleaned.status.success(), "{what}: {cleaned:?}");
        assert_eq!(self.before.differences(&self.fake.snapshot().unwrap()), [""; 0], "{what}");
    }
}

/// The images of a plan lie on the fake host, and so do their overlays.
fn move_disks(plan: &mut Plan, fake: &FakeHost) {
    for planned in &mut plan.operations {
        if let HostOp::CreateOverlay { path, backing, .. } = &mut planned.op {
            *path = fake.path("/overlays").join(path.file_name().unwrap());
            *backing = fake.root().path(&backing);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
    }
}

fn killed(output: &Output) -> bool {
    output.status.signal() == Some(SIGKILL)
}

/// A card with two functions below a port, a disk controller with a policy of its own, a device without a driver, and one that is
/// on vfio-pci already; hugepages and an overlay.
fn every_kind() -> Bench {
    let fake = FakeHost::new();
    let port = Some("0000:80:01.0");
    fake.device(&FakeDevice { port, ..gpu("0000:81:00.0", 7, 1) });
    fake.device(&FakeDevice {
        port,
        class: 0x04_0300,
        driver: Some("snd_hda_intel"),
        ..gpu("0000:81:00.1", 7, 1)
    });
    fake.driver_sets_power("snd_hda_intel", "auto", "on");
    let power = PowerAttributes { control: "auto", d3cold_allowed: None };
    fake.device(&FakeDevice { port: Some("0000:80:02.0"), power, ..nvme("0000:83:00.0", 8, 1) });
    fake.device(&FakeDevice { class: 0xff_0000, driver: None, ..gpu("0000:84:00.0", 9, 1) });
    fake.device(&FakeDevice { power, driver: Some("vfio-pci"), ..gpu("0000:85:00.0", 10, 1) });
    fake.file("/images/base.img", "x");
    let reset = |bdf: &str| if bdf == "83:00.0" { "flr" } else { "auto" };
    let devices: String = ["81:00.0", "83:00.0", "84:00.0", "85:00.0"]
        .iter()
        .map(|bdf| format!("[[device]]\nbdf = \"0000:{bdf}\"\nreset = \"{}\"\n", reset(bdf)))
        .collect();
    let disk = "[[disk]]\npath = \"/images/base.img\"\nmode = \"overlay\"\n";
    Bench::new(fake, "2M", &format!("{devices}{disk}"))
}

/// Names an operation's kind. A new kind doesn't compile until it has an arm here, and then fails the test until the plan uses it.
fn kind(op: &HostOp) -> &'static str {
    match op {
        HostOp::ClaimHugepages { .. } => "claim-hugepages",
        HostOp::ClaimAwake { .. } => "claim-awake",
        HostOp::CreateOverlay { .. } => "create-overlay",
        HostOp::KeepAwake { .. } => "keep-awake",
        HostOp::SetResetMethods { .. } => "set-reset-methods",
        HostOp::Adopt { .. } => "adopt",
        HostOp::Unbind { .. } => "unbind",
        HostOp::SetDriverOverride { .. } => "set-driver-override",
        HostOp::Bind { .. } => "bind",
        HostOp::HoldAutoprobe => "hold-autoprobe",
        HostOp::Remove { .. } => "remove",
    }
}

/// All kinds that there are, in the words of the parser, which lists them when it is given none of them.
fn all_kinds() -> BTreeSet<String> {
    let error = serde_json::from_str::<HostOp>(r#"{"op": "none of them"}"#).unwrap_err().to_string();
    let (_, expected) = error.split_once("expected").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn a_launcher_killed_before_or_after_any_operation_is_cleaned_up_after() {
    let bench = every_kind();
    let operations = &bench.plan.operations;
    let used: BTreeSet<String> = operations.iter().map(|planned| kind(&planned.op).to_owned()).collect();
    // What only `gpuvm unbind` does is killed in its own matrix (bind_kills.rs), and what only a repair does (repair.rs of gpuvm-host).
    let elsewhere = ["adopt", "hold-autoprobe", "remove"];
    let others: BTreeSet<String> =
        all_kinds().into_iter().filter(|kind| !elsewhere.contains(&kind.as_str())).collect();
    assert_eq!(used, others);

    let mut points = 0;
    for number in 0..operations.len() {
        for point in [KillPoint::BeforeStep(number), KillPoint::AfterStep(number)] {
            assert!(killed(&bench.up(point)), "{point:?}");
            bench.assert_cleanup_restores(&format!("{point:?}"));
            points += 1;
        }
    }
    assert_eq!(points, 2 * operations.len());
}

#[test]
fn a_launcher_killed_between_note_and_deed_or_deed_and_mark_is_cleaned_up_after() {
    let bench = every_kind();
    for point in [KillPoint::BeforeOverlay, KillPoint::AfterOverlay] {
        assert!(killed(&bench.up(point)), "{point:?}");
        bench.assert_cleanup_restores(&format!("{point:?}"));
    }
    let mut writes = 0;
    while killed(&bench.up(KillPoint::BeforeWrite(writes))) {
        bench.assert_cleanup_restores(&format!("before write {writes}"));
        assert!(killed(&bench.up(KillPoint::AfterWrite(writes))));
        bench.assert_cleanup_restores(&format!("after write {writes}"));
        writes += 1;
    }
    bench.assert_cleanup_restores("not killed");
    // Each operation but the overlay writes at least once, a bind and a wake-up more than once.
    assert!(writes >= bench.plan.operations.len(), "{writes} writes");
}

#[test]
fn a_cleanup_killed_at_any_step_is_made_good_by_the_next() {
    let bench = every_kind();
    let operations = bench.plan.operations.len();
    let steps = (0..operations).flat_map(|n| [KillPoint::BeforeStep(n), KillPoint::AfterStep(n)]);
    for point in steps.chain([KillPoint::BeforeRelease]) {
        assert_eq!(bench.up(KillPoint::Never).status.code(), Some(PREPARED));
        assert!(killed(&bench.run(Verb::Cleanup, point)), "{point:?}");
        bench.assert_cleanup_restores(&format!("cleanup {point:?}"));
    }
    let mut write = 0;
    loop {
        for point in [KillPoint::BeforeWrite(write), KillPoint::AfterWrite(write)] {
            assert_eq!(bench.up(KillPoint::Never).status.code(), Some(PREPARED));
            let output = bench.run(Verb::Cleanup, point);
            if !killed(&output) {
                assert!(output.status.success() && write > operations, "{point:?}: {output:?}");
                return;
            }
            bench.assert_cleanup_restores(&format!("cleanup {point:?}"));
        }
        write += 1;
    }
}

/// Dies over and over, a step further each time, and comes to its end all the same.
#[test]
fn a_cleanup_that_is_killed_at_each_of_its_first_writes_comes_to_its_end() {
    let bench = every_kind();
    assert_eq!(bench.up(KillPoint::Never).status.code(), Some(PREPARED));
    let mut kills = 0;
    while killed(&bench.run(Verb::Cleanup, KillPoint::AfterWrite(0))) {
        kills += 1;
        assert!(kills < 100, "it never gets further");
    }
    assert!(kills > bench.plan.operations.len() / 2, "{kills}");
    bench.assert_cleanup_restores("killed over and over");
}

/// Where no seam reaches: in the middle of a record's own replacement.
#[test]
fn records_that_were_written_in_part_are_gone_after_cleanup() {
    let bench = every_kind();
    for point in [KillPoint::BeforeWrite(0), KillPoint::AfterStep(1)] {
        assert!(killed(&bench.up(point)), "{point:?}");
        for record in ["claims.json", "reservations/vm.json", "vm/vm/run.json"] {
            bench.fake.file(&format!("/gpuvm/run/{record}.partial"), "{\"boot");
        }
        bench.assert_cleanup_restores(&format!("{point:?}"));
    }
}

#[test]
fn an_up_after_a_reboot_removes_the_overlay_of_the_run_before_and_makes_its_own() {
    let fake = FakeHost::new();
    fake.file("/images/base.img", "x");
    let bench = Bench::new(fake, "off", "[[disk]]\npath = \"/images/base.img\"\nmode = \"overlay\"\n");
    assert!(killed(&bench.up(KillPoint::AfterStep(0))));
    let boot = "/proc/sys/kernel/random/boot_id";
    let former = std::fs::read(bench.fake.path(boot)).unwrap();
    bench.fake.file(boot, "00000000-0000-4000-8000-000000000002\n");
    let again = bench.up(KillPoint::Never);
    assert_eq!(again.status.code(), Some(PREPARED), "{again:?}");
    let cleaned = bench.run(Verb::Cleanup, KillPoint::Never);
    assert!(cleaned.status.success(), "{cleaned:?}");
    bench.fake.file(boot, former);
    assert_eq!(bench.before.differences(&bench.fake.snapshot().unwrap()), [""; 0]);
}

struct Silent;

impl Observer for Silent {
    fn phase(&mut self, _phase: &Phase) {}
    fn note(&mut self, _note: &Note) {}
}

#[test]
fn the_qemu_of_a_killed_launcher_is_dead_before_its_devices_are_given_back() {
    let mut bench = every_kind();
    // It doesn't heed the signal that its launcher's death sends it, and takes a second and a half to end.
    let script = Script { on_signal: OnSignal::Ignore, life_ms: 1500, ..Script::default() };
    bench.fake.fake_qemu(&script);
    // QEMU would open the overlay; the fake doesn't.
    bench.before = bench.fake.snapshot().unwrap();
    let output = bench.up(KillPoint::Running);
    assert!(killed(&output), "{output:?}");

    let places = Places::below(&bench.fake.prefix());
    let boot_id = facts::boot_id(&bench.fake.root()).unwrap();
    let qemu = reservation::all(&places, &boot_id).unwrap()[0].qemu.unwrap();
    assert!(qemu.is_alive(), "the test proves nothing");
    let (write, check) = fake_host::kernel_at(&bench.fake.path("/"));
    let seen: std::rc::Rc<RefCell<Vec<bool>>> = std::rc::Rc::default();
    let alive = std::rc::Rc::clone(&seen);
    let watching = move |path: &Path, bytes: &[u8], deadline| {
        alive.borrow_mut().push(qemu.is_alive());
        write(path, bytes, deadline)
    };
    let kernel = Kernel::new(bench.fake.root(), Box::new(watching), check);
    let reports = cleanup(&kernel, &places, &boot_id, None, &mut Silent).unwrap();
    assert_eq!(reports[0].result, Cleaned::Done, "{reports:?}");
    assert!(!seen.borrow().is_empty() && !seen.borrow().contains(&true), "{:?}", seen.borrow());
    assert_eq!(bench.before.differences(&bench.fake.snapshot().unwrap()), [""; 0]);
}

/// A host with a fake QEMU, which is a part of what it was before.
fn with_qemu(script: &Script) -> Bench {
    let mut bench = every_kind();
    bench.fake.fake_qemu(script);
    bench.before = bench.fake.snapshot().unwrap();
    bench
}

/// A guest with time to look at it between a request for its end and that.
fn slow_to_end() -> Script {
    Script { powerdown_takes_ms: 3000, on_quit: OnQuit::Ignore, ..Script::default() }
}

/// Where a detached launcher is killed, and what a recovery makes of it.
fn deaths() -> Vec<(KillPoint, i32)> {
    let states = [
        (State::Preparing, GIVEN_BACK),
        (State::HostReady, GIVEN_BACK),
        (State::Paused, GIVEN_BACK),
        (State::Running, ADOPTED),
        (State::PoweringDown, ADOPTED),
        (State::Quitting, ADOPTED),
        (State::Exited, GIVEN_BACK),
        (State::Released, 0),
    ];
    let states = states.into_iter().map(|(state, end)| (KillPoint::In(state), end));
    let others = [(KillPoint::Spawned, GIVEN_BACK), (KillPoint::BeforeRelease, GIVEN_BACK)];
    states.chain(others).collect()
}

#[test]
fn a_detached_launcher_killed_in_any_state_is_recovered_from_and_nothing_is_left() {
    for (point, end) in deaths() {
        let script = if point == KillPoint::In(State::Exited) || end == 0 || point == KillPoint::BeforeRelease
        {
            Script::default()
        } else {
            slow_to_end()
        };
        let bench = with_qemu(&script);
        let output = bench.detached(point, Victim::Launcher);
        assert!(killed(&output), "{point:?}: {output:?}");
        let recovered = bench.run(Verb::Recover, KillPoint::Never);
        assert_eq!(recovered.status.code(), Some(end), "{point:?}: {recovered:?}");
        let after = bench.fake.snapshot().unwrap();
        assert_eq!(bench.before.differences(&after), [""; 0], "{point:?}");
    }
}

/// Where there is a QEMU to be killed.
const WITH_QEMU: [KillPoint; 5] = [
    KillPoint::Spawned,
    KillPoint::In(State::Paused),
    KillPoint::In(State::Running),
    KillPoint::In(State::PoweringDown),
    KillPoint::In(State::Quitting),
];

#[test]
fn a_qemu_killed_in_any_state_is_told_and_its_detached_launcher_leaves_nothing() {
    for point in WITH_QEMU {
        let bench = with_qemu(&slow_to_end());
        let output = bench.detached(point, Victim::Qemu);
        assert_eq!(output.status.code(), Some(ENDED), "{point:?}: {output:?}");
        assert_eq!(bench.before.differences(&bench.fake.snapshot().unwrap()), [""; 0], "{point:?}");
    }
}

#[test]
fn a_detached_launcher_killed_with_its_qemu_in_any_state_is_cleaned_up_after() {
    for point in WITH_QEMU {
        let bench = with_qemu(&slow_to_end());
        assert!(killed(&bench.detached(point, Victim::Both)), "{point:?}");
        bench.assert_cleanup_restores(&format!("{point:?}"));
    }
}

/// A device as a random host has it.
#[derive(Debug, Clone)]
struct RandomDevice {
    driver: Option<&'static str>,
    /// Its `driver_override`.
    set: Option<&'static str>,
    port: Option<&'static str>,
    power: PowerAttributes,
}

/// What a device's `driver_override` was set to by whoever was there before.
#[derive(Debug, Clone, Copy)]
enum Set {
    Nothing,
    To(&'static str),
    ToItsOwn,
}

fn device() -> impl Strategy<Value = RandomDevice> {
    let driver =
        prop::sample::select(vec![None, Some("nvidia"), Some("nvme"), Some("vfio-pci"), Some("moody")]);
    let port = prop::sample::select(vec![None, Some("0000:80:01.0"), Some("0000:80:02.0")]);
    let control = prop::sample::select(vec!["on", "auto"]);
    let d3cold = prop::sample::select(vec![None, Some("0"), Some("1")]);
    let set = prop_oneof![
        4 => Just(Set::Nothing),
        1 => Just(Set::To("vfio-pci")),
        1 => Just(Set::To("mlx5-vfio-pci")),
        1 => Just(Set::ToItsOwn),
    ];
    (driver, set, port, control, d3cold).prop_map(|(driver, set, port, control, d3cold_allowed)| {
        let set = match set {
            Set::Nothing => None,
            Set::To(driver) => Some(driver),
            Set::ToItsOwn => driver,
        };
        RandomDevice { driver, set, port, power: PowerAttributes { control, d3cold_allowed } }
    })
}

const ADDRESSES: [&str; 4] = ["0000:81:00.0", "0000:82:00.0", "0000:83:00.0", "0000:84:00.0"];

/// Builds a random host; none where the planner refuses an override.
fn random(devices: &[RandomDevice], hugepages: &str) -> Option<Bench> {
    let fake = FakeHost::new();
    // One that changes its mind about power each time.
    fake.driver_sets_power("moody", "auto", "auto");
    let mut lines = String::new();
    for ((number, random), bdf) in (1..).zip(devices).zip(ADDRESSES) {
        let RandomDevice { driver, set, port, power } = random.clone();
        fake.device(&FakeDevice { driver, port, power, class: 0xff_0000, ..gpu(bdf, number, 1) });
        if let Some(set) = set {
            fake.file(&format!("/sys/bus/pci/devices/{bdf}/driver_override"), format!("{set}\n"));
        }
        lines.push_str(&format!("[[device]]\nbdf = \"{bdf}\"\n"));
    }
    let overridden = |refusal: &Refusal| matches!(refusal, Refusal::Overridden { .. });
    match Bench::planned(fake, hugepages, &lines) {
        Ok(bench) => Some(bench),
        Err(refusals) if refusals.iter().all(overridden) => None,
        Err(refusals) => panic!("{refusals:?}"),
    }
}

/// A point that lies on the way for a fraction of it, or past its end.
fn point(kind: u8, fraction: f64, steps: usize) -> KillPoint {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let number = (fraction * steps as f64) as usize;
    match kind {
        0 => KillPoint::BeforeStep(number),
        1 => KillPoint::AfterStep(number),
        2 => KillPoint::BeforeWrite(number),
        _ => KillPoint::AfterWrite(number),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_plan_killed_anywhere_with_its_cleanup_killed_anywhere_is_cleaned_up_after(
        devices in prop::collection::vec(device(), 1..=4),
        hugepages in prop::sample::select(vec!["off", "2M"]),
        up in (0u8..4, 0.0..1.0),
        first in (0u8..4, 0.0..1.2),
    ) {
        let bench = random(&devices, hugepages);
        prop_assume!(bench.is_some(), "an override is refused");
        let bench = bench.unwrap();
        let steps = bench.plan.operations.len();
        let output = bench.up(point(up.0, up.1, steps));
        prop_assert!(killed(&output) || output.status.code() == Some(PREPARED), "{:?}", output);
        bench.run(Verb::Cleanup, point(first.0, first.1, steps));
        bench.assert_cleanup_restores(&format!("{up:?} {first:?}"));
    }
}
