//! A launcher, or a cleanup, that kills itself with SIGKILL at a chosen point: a process of its own, since nothing runs after.
//!
//! The points are reached by the seams that the product has for other reasons: the observer hears of each step, and the kernel is
//! acted upon through two functions.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::{fs, io};

use gpuvm_core::lifecycle::{Halt, Outcome, Patience, Stage, State};
use gpuvm_core::plan::{BindPlan, Plan, UnbindPlan};
use gpuvm_host::bound::{self, Step};
use gpuvm_host::facts;
use gpuvm_host::kernel::{CheckGroups, Kernel, WriteAttr};
use gpuvm_host::places::Places;
use gpuvm_host::root::HostRoot;
use gpuvm_host::standing;
use gpuvm_run::adopt::{self, Remedy};
use gpuvm_run::{Cleaned, Control, Launched, Note, Observer, Phase, Run, Signals};
use gpuvm_sys::watched::write_watched;
use gpuvm_testkit::fake_host::{self, KILL_PARENT};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// What the process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Where the host's trees are: a fake host's folder, or none for the real ones.
    pub fake: Option<PathBuf>,
    /// What is run for it.
    pub verb: Verb,
    /// Where it ends.
    pub kill: KillPoint,
    /// Who ends there.
    pub victim: Victim,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Victim {
    /// The process itself.
    Launcher,
    /// Its QEMU, while it goes on.
    Qemu,
    /// Both.
    Both,
}

/// What is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Verb {
    /// `up` of a plan; it ends before QEMU is started at the latest, unless it is to be killed later.
    Up(Box<Plan>),
    /// `up` of a plan by a gpuvm that goes on by itself, as `up --detach` has it: its QEMU goes on without it.
    Detached(Box<Plan>),
    /// `recover` of all VMs; a guest that goes on is ended as soon as it is seen to.
    Recover,
    /// `bind`, to its end.
    Bind(Box<BindPlan>),
    /// `unbind`, to its end.
    Unbind(Box<UnbindPlan>),
    /// `cleanup` of all VMs and of all that was bound.
    Cleanup,
}

/// Where a process kills itself. A step is an operation that `up` makes, or one that `cleanup` undoes; all count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillPoint {
    /// Before a step: nothing of it is noted.
    BeforeStep(usize),
    /// After a step: it is noted, made and marked.
    AfterStep(usize),
    /// Before a write to the kernel: its operation is noted and not yet made, or made in part.
    BeforeWrite(usize),
    /// After a write to the kernel: its operation is made, or made in part, and not yet marked.
    AfterWrite(usize),
    /// When the overlay is about to be made by the fake qemu-img.
    BeforeOverlay,
    /// When the fake qemu-img has made it, under a name that isn't its own yet.
    AfterOverlay,
    /// When QEMU is started, and not yet on record as this run's.
    Spawned,
    /// When the VM's life comes to a state. Its end is asked for where it doesn't come there otherwise.
    In(State),
    /// When the guest runs.
    Running,
    /// When all changes are undone, and the records are still there.
    BeforeRelease,
    /// Nowhere.
    Never,
}

/// The exit code of an `up` that came to the end of its run, with the host given back.
pub const ENDED: i32 = 10;
/// The exit code of a `recover` that gave a VM's remains back, its guest having nothing to lose.
pub const GIVEN_BACK: i32 = 8;
/// The exit code of a `recover` that saw to a guest that went on, to its end.
pub const ADOPTED: i32 = 9;

/// The exit code of an `up` that came to the end of its operations without being killed.
pub const PREPARED: i32 = 7;

impl Task {
    /// Runs the task in a process of its own, by a program `killed-launcher`, and waits for its end.
    ///
    /// # Errors
    /// What kept it from being started.
    pub fn run(&self, program: &Path) -> io::Result<Output> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), serde_json::to_vec(self)?)?;
        let mut command = Command::new(program);
        match self.kill {
            KillPoint::BeforeOverlay => command.env(KILL_PARENT, "before"),
            KillPoint::AfterOverlay => command.env(KILL_PARENT, "after"),
            _ => command.env_remove(KILL_PARENT),
        };
        // QEMU has files of its own for its output, so nothing keeps these pipes open after the end.
        command.arg(file.path()).output()
    }

    /// Does the task in this process; returns its exit code if it isn't killed.
    ///
    /// # Errors
    /// What failed, in words.
    pub fn perform(&self) -> Result<i32, String> {
        let root = self.fake.clone().map_or_else(HostRoot::default, HostRoot::new);
        let places =
            self.fake.as_ref().map_or_else(Places::default, |fake| Places::below(&fake.join("gpuvm")));
        let boot_id = facts::boot_id(&root).map_err(|error| error.to_string())?;
        let kernel = self.kernel(root);
        let (ask, asked) = mpsc::unbounded_channel();
        let mut killer =
            Killer { point: self.kill, victim: self.victim, qemu: None, begun: 0, verb: &self.verb, ask };
        match &self.verb {
            Verb::Cleanup => {
                let reports = gpuvm_run::cleanup(&kernel, &places, &boot_id, None, &mut killer);
                let reports = reports.map_err(|error| error.to_string())?;
                let left = reports.into_iter().filter(|report| report.result != Cleaned::Done);
                let mut words: Vec<String> = left.map(|report| format!("{report:?}")).collect();
                let bound = bound::cleanup(&kernel, &places, &boot_id, &mut |step| killer.step(step));
                let bound = bound.map_err(|error| error.to_string())?;
                let left = bound.into_iter().filter(|report| report.result != bound::Cleaned::Done);
                words.extend(left.map(|report| format!("{report:?}")));
                if words.is_empty() { Ok(0) } else { Err(words.join("\n")) }
            }
            Verb::Bind(plan) => {
                let bound = bound::bind(&kernel, &places, &boot_id, plan, &mut |step| killer.step(step));
                bound.map(|()| 0).map_err(|error| format!("{}; left: {:?}", error.cause, error.left))
            }
            Verb::Unbind(plan) => {
                let given = bound::unbind(&kernel, &places, &boot_id, plan, &mut |step| killer.step(step));
                let left = given.map_err(|error| error.to_string())?.not_given_back;
                if left.is_empty() { Ok(0) } else { Err(left.join("\n")) }
            }
            Verb::Up(plan) | Verb::Detached(plan) => {
                let launched = match &self.verb {
                    Verb::Detached(_) => Launched::Detached,
                    _ => Launched::Foreground,
                };
                let run = run(plan, &kernel, &places, &boot_id, launched);
                let ended = drive(async {
                    let mut signals = signals(launched, asked)?;
                    let ended = gpuvm_run::up(&run, &mut signals, None, &mut killer).await;
                    match &ended {
                        Err(error) => {
                            Ok((format!("{}; left: {:?}", error.cause, error.left), error.left.len()))
                        }
                        Ok(report) => {
                            Ok((format!("{:?}; left: {:?}", report.outcome, report.left), report.left.len()))
                        }
                    }
                });
                let (words, left) = ended?;
                match (self.victim, left) {
                    (Victim::Qemu, 0) => Ok(ENDED),
                    _ => Err(format!("up came to its end: {words}")),
                }
            }
            Verb::Recover => recover(&kernel, &places, &boot_id, asked, &mut killer),
        }
    }

    /// Makes the kernel that is acted upon, and dies at a write.
    fn kernel(&self, root: HostRoot) -> Kernel {
        let (write, check): (Box<WriteAttr>, Box<CheckGroups>) = match &self.fake {
            Some(fake) => fake_host::kernel_at(fake),
            None => (Box::new(write_watched), Box::new(gpuvm_host::vfio::check_groups)),
        };
        let (point, begun) = (self.kill, Rc::new(Cell::new(0)));
        let killing = move |path: &Path, bytes: &[u8], deadline| {
            let number = begun.replace(begun.get() + 1);
            if point == KillPoint::BeforeWrite(number) {
                die();
            }
            let outcome = write(path, bytes, deadline);
            if point == KillPoint::AfterWrite(number) {
                die();
            }
            outcome
        };
        Kernel::new(root, Box::new(killing), check)
    }
}

fn run<'a>(
    plan: &'a Plan,
    kernel: &'a Kernel,
    places: &'a Places,
    boot_id: &'a str,
    launched: Launched,
) -> Run<'a> {
    Run { plan, profile: "", kernel, places, boot_id, patience: Patience::default(), launched }
}

fn drive<T>(what: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(what)
}

/// Takes real signals for a launcher that a person would have, and what the killer asks for one that goes on by itself.
fn signals(launched: Launched, asked: Asked) -> Result<Signals, String> {
    match launched {
        Launched::Foreground => Signals::catch().map_err(|error| error.to_string()),
        Launched::Detached => Ok(Signals::from_channel(asked)),
    }
}

type Asked = mpsc::UnboundedReceiver<&'static str>;

/// Sees to what is left of the one VM, as `gpuvm recover` does.
fn recover(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    asked: Asked,
    killer: &mut Killer<'_>,
) -> Result<i32, String> {
    let names = standing::names(places).map_err(|error| error.to_string())?;
    let Some(vm) = names.first() else { return Ok(0) };
    let known = standing::of(places, boot_id, vm);
    match adopt::remedy(places, &known).map_err(|error| error.to_string())? {
        None => Err(format!("there is nothing to be done about {known:?}")),
        Some(Remedy::GiveBack(_)) => {
            let report = gpuvm_run::end_unsupervised(kernel, places, boot_id, vm, killer);
            if report.result == Cleaned::Done { Ok(GIVEN_BACK) } else { Err(format!("{report:?}")) }
        }
        Some(Remedy::Adopt) => {
            let words = |error: gpuvm_host::HostError| error.to_string();
            let decided = adopt::decided(places, vm).map_err(words)?.ok_or("nothing was decided")?;
            let lone = adopt::adopt(places, boot_id, vm).map_err(words)?.ok_or("its guest is gone")?;
            let run = run(&decided.plan, kernel, places, boot_id, Launched::Detached);
            let report = drive(async {
                let mut signals = Signals::from_channel(asked);
                let mut control = Control::new("0", Launched::Detached);
                let ended = adopt::adopted(&run, lone, &mut signals, &mut control, killer).await;
                ended.map_err(|error| format!("{}; left: {:?}", error.cause, error.left))
            })?;
            let stopped = matches!(report.outcome, Outcome::Stopped { stage: Stage::Acpi | Stage::Quit });
            let well = report.left.is_empty() && stopped;
            if well { Ok(ADOPTED) } else { Err(format!("{:?}, {:?}", report.outcome, report.left)) }
        }
    }
}

struct Killer<'a> {
    point: KillPoint,
    victim: Victim,
    /// QEMU's process, once there is one.
    qemu: Option<i32>,
    /// How many steps have begun.
    begun: usize,
    verb: &'a Verb,
    /// Asks for the guest's end.
    ask: mpsc::UnboundedSender<&'static str>,
}

impl Killer<'_> {
    /// Kills whom it is to kill: QEMU first, where that is both.
    fn strike(&self) {
        if let (Victim::Qemu | Victim::Both, Some(qemu)) = (self.victim, self.qemu) {
            // One that is gone already has come to its end by itself.
            kill(Pid::from_raw(qemu), Signal::SIGKILL).ok();
        }
        if self.victim != Victim::Qemu {
            die();
        }
    }

    fn end(&self, times: u32) {
        // Nobody listens any more where it is over.
        (0..times).for_each(|_| self.ask.send("SIGTERM").unwrap_or(()));
    }

    /// Dies before or after a step of a bind, an unbind or their cleanup.
    fn step(&mut self, step: Step<'_>) {
        if self.begun > 0 && self.point == KillPoint::AfterStep(self.begun - 1) {
            die();
        }
        match step {
            Step::Apply(_) | Step::Undo(_) => {
                if self.point == KillPoint::BeforeStep(self.begun) {
                    die();
                }
                self.begun += 1;
            }
            Step::Release if self.point == KillPoint::BeforeRelease => die(),
            Step::Release => {}
        }
    }
}

impl Observer for Killer<'_> {
    fn phase(&mut self, phase: &Phase) {
        if self.begun > 0 && self.point == KillPoint::AfterStep(self.begun - 1) {
            die();
        }
        match (phase, self.verb) {
            (Phase::Operation { .. }, Verb::Up(_) | Verb::Detached(_))
            | (Phase::Undoing { .. }, Verb::Cleanup) => {
                if self.point == KillPoint::BeforeStep(self.begun) {
                    die();
                }
                self.begun += 1;
            }
            (Phase::Releasing, _) if self.point == KillPoint::BeforeRelease => die(),
            (Phase::Running { .. }, _) if self.point == KillPoint::Running => die(),
            // All operations are made, and QEMU is not started.
            (Phase::Starting, Verb::Up(_)) if self.point != KillPoint::Running => {
                std::process::exit(PREPARED)
            }
            (Phase::Adopted { .. }, _) => self.end(1),
            _ => {}
        }
    }

    fn note(&mut self, _note: &Note) {}

    fn started(&mut self, pid: i32) {
        self.qemu = Some(pid);
        if self.point == KillPoint::Spawned {
            self.strike();
        }
    }

    fn state(&mut self, state: State, _halt: Option<&Halt>) {
        if self.point == KillPoint::In(state) {
            self.strike();
        }
        match self.point {
            KillPoint::In(State::PoweringDown) if state == State::Running => self.end(1),
            // The second one doesn't wait for the guest.
            KillPoint::In(_) | KillPoint::BeforeRelease if state == State::Running => self.end(2),
            _ => {}
        }
    }
}

/// Ends this process as nothing can catch it.
fn die() -> ! {
    loop {
        // A process may always signal itself.
        kill(Pid::this(), Signal::SIGKILL).ok();
    }
}
