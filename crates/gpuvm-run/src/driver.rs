//! The one task that drives a guest: events come in, [`Life::step`] decides, effects go out.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use gpuvm_core::control::{Refusal, Why};
use gpuvm_core::lifecycle::{Ask, DiskError, Effect, Event, Life, Outcome, Patience, Stage, State};
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::wait;
use gpuvm_host::HostError;
use gpuvm_host::kernel_log::KernelLog;
use gpuvm_qmp::verbs::VcpuThread;
use gpuvm_qmp::{Error, Events, Known, Qmp};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::control::settle;
use crate::launch::{COMMAND, Greeted, Process};
use crate::pin;
use crate::report::{Note, Observer, Phase};
use crate::signals::{Command, End, Request, Requests, Way};
use crate::stopped::{self, Evidence};

/// When threads are pinned again, after `cont`: soon for those that a first run makes, then now and then.
const REPIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10)];
/// Between words about a QEMU that was killed and isn't gone.
pub(crate) const STILL_THERE: Duration = Duration::from_secs(20);
/// Between looks at a QEMU that waits in the kernel when its time to quit is over.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How soon after a reset another one is the firmware's own: SeaBIOS finds its memory as it left it, and resets the machine again, by one
/// to three ways, some 20 ms later; in the lab, whose guest is emulated twice, up to 3.5 s later.
const FIRMWARE: Duration = Duration::from_secs(5);
/// QEMU's word for a reset that the monitor was asked for.
const RESET_ASKED: &str = "host-qmp-system-reset";
/// Between later looks.
const REPIN_LATER: Duration = Duration::from_secs(60);

/// A guest that runs, and where its threads belong.
pub(crate) struct Running<'a> {
    pub(crate) greeted: Greeted,
    pub(crate) plan: &'a Plan,
    pub(crate) vcpus: Vec<VcpuThread>,
    /// What has happened to it already.
    pub(crate) first: Option<Event>,
}

/// How a QEMU ended.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// How often the guest rebooted in place before.
    pub(crate) reboots: u32,
}

/// What drives a guest.
struct Driver<'a, 'b> {
    plan: &'a Plan,
    vcpus: Vec<VcpuThread>,
    repin: (usize, Instant),
    process: &'a mut Process,
    kernel_log: &'a mut KernelLog,
    qmp: Qmp,
    events: Option<Events>,
    requests: &'a mut Requests<'b>,
    observer: &'a mut dyn Observer,
    deadline: Option<(Stage, Instant)>,
    /// When to tell that a killed QEMU is still there.
    patience_over: Option<Instant>,
    /// What came before the event that was noticed first.
    queue: VecDeque<Event>,
    killed: Option<Instant>,
    /// When it was told to quit.
    told_to_quit: Option<Instant>,
    /// How its end was asked for by `down`.
    end: Option<End>,
    /// Whether its end is under way, by whomever.
    ending: Ending,
    /// How often the guest has rebooted under this QEMU.
    reboots: u32,
    /// When its machine was reset last, by whomever.
    rebooted: Option<Instant>,
    /// How often the vCPUs have stopped or gone on: what is asked about a stop doesn't hold once they have gone on since.
    turns: u64,
    /// The errors of disks that were told, each once.
    disk_errors: BTreeSet<(Option<String>, String, String)>,
    evidence: Evidence,
    answers: (mpsc::UnboundedSender<Answer>, mpsc::UnboundedReceiver<Answer>),
}

/// What comes of a command that was sent and not waited for.
enum Answer {
    Event(Event),
    /// What is known of a stop, the how many-th turn it was.
    Stopped(u64, Event),
    Note(Note),
}

/// Whether a guest is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// Somebody wants it.
    Asked,
    /// QEMU says so itself.
    Leaving,
}

/// Drives a guest that has been continued until QEMU is gone and collected.
pub(crate) async fn drive(
    running: Running<'_>,
    process: &mut Process,
    (kernel_log, evidence): (&mut KernelLog, Evidence),
    life: &mut Life,
    requests: &mut Requests<'_>,
    observer: &mut dyn Observer,
) -> Result<Ended, HostError> {
    let mut driver = Driver {
        plan: running.plan,
        vcpus: running.vcpus,
        repin: (0, Instant::now() + REPIN[0]),
        process,
        kernel_log,
        qmp: running.greeted.qmp,
        events: Some(running.greeted.events),
        requests,
        observer,
        deadline: None,
        patience_over: None,
        queue: running.first.into_iter().collect(),
        killed: None,
        told_to_quit: None,
        end: None,
        ending: Ending::No,
        reboots: 0,
        rebooted: None,
        turns: 0,
        disk_errors: BTreeSet::new(),
        evidence,
        answers: mpsc::unbounded_channel(),
    };
    loop {
        let event = driver.next().await;
        for effect in step(life, event, driver.observer) {
            driver.perform(effect);
        }
        match (life.outcome(), driver.killed) {
            (Some(outcome), _) => {
                return Ok(Ended { outcome: outcome.clone(), reboots: driver.reboots });
            }
            (None, Some(since)) if life.state().is_final() => {
                return Err(stuck(driver.process.pid(), since));
            }
            _ => {}
        }
    }
}

/// Takes one event into a life, and tells where it stands if that has changed.
pub(crate) fn step(life: &mut Life, event: Event, observer: &mut dyn Observer) -> Vec<Effect> {
    let before = (life.state(), life.halt().cloned());
    let refused = event.ask().and_then(|ask| before.0.refuses(ask));
    // Those who ask for the end of what ends anyway have it.
    if let Some(refusal) = refused.filter(|refusal| !matches!(refusal.ask, Ask::Stop | Ask::Crash)) {
        observer.note(&Note(format!(
            "not done, as the VM is {}: {} was asked for",
            refusal.state,
            refusal.ask.noun()
        )));
    }
    let effects = life.step(event);
    if before == (life.state(), life.halt().cloned()) {
        return effects;
    }
    observer.state(life.state(), life.halt());
    let stood = matches!(before.0, State::PausedByUser | State::PausedByError);
    match life.halt() {
        Some(halt) => observer.note(&Note(format!("the guest is paused {halt}"))),
        None if stood && life.state() == State::Running => {
            observer.note(&Note("the guest goes on".to_owned()))
        }
        None => {}
    }
    effects
}

/// Ends a QEMU whose guest never ran, and collects it.
///
/// # Errors
/// Returns that the kernel doesn't let go of it.
pub(crate) async fn end(
    process: &mut Process,
    life: &mut Life,
    patience: Patience,
    observer: &mut dyn Observer,
) -> Result<(), HostError> {
    step(life, Event::StartFailed, observer);
    process.kill_now();
    let since = Instant::now();
    while since.elapsed() < patience.killed {
        let wait = STILL_THERE.min(patience.killed.saturating_sub(since.elapsed()));
        if let Ok(exit) = tokio::time::timeout(wait, process.exited()).await {
            step(life, Event::Exited(exit), observer);
            return Ok(());
        }
        observer.note(&what_holds(process.pid()));
    }
    step(life, Event::Deadline(Stage::Kill), observer);
    Err(stuck(process.pid(), since))
}

fn stuck(pid: i32, since: Instant) -> HostError {
    let state = gpuvm_host::process::describe_threads(pid);
    HostError::QemuStuck { pid, minutes: since.elapsed().as_secs() / 60, state }
}

/// Tells where in the kernel a killed QEMU waits: resets of a card that has fallen off the bus take some 70 s each, several of
/// them in a row, and nothing shortens that.
fn what_holds(pid: i32) -> Note {
    let states = gpuvm_host::process::describe_threads(pid);
    Note(format!(
        "QEMU was killed, but the kernel has not let go of it ({states}). If it is resetting a device that doesn't \
         answer, that takes minutes: dmesg | tail"
    ))
}

/// Tells that a QEMU doesn't answer because the kernel has it.
pub(crate) fn waits(pid: i32) -> Note {
    let states = gpuvm_host::process::describe_threads(pid);
    Note(format!(
        "QEMU does not answer: it waits in the kernel ({states}). Resets of a device that doesn't answer take minutes: \
         dmesg | tail"
    ))
}

impl Driver<'_, '_> {
    /// Waits for the next thing that happens. Each source may be dropped and asked again without loss.
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return event;
            }
            let (deadline, patience_over) = (self.deadline, self.patience_over);
            let due = async {
                match deadline {
                    Some((stage, at)) => {
                        sleep_until(at).await;
                        stage
                    }
                    None => std::future::pending().await,
                }
            };
            let monitor = async {
                match &mut self.events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                event = monitor => match event {
                    Some(event) => self.monitor(&event),
                    None => {
                        self.events = None;
                        Some(Event::MonitorLost)
                    }
                },
                Some(answer) = self.answers.1.recv() => self.answered(answer),
                request = self.requests.next() => self.asked(request),
                stage = due => self.overdue(stage),
                exit = self.process.exited() => {
                    self.last_words().await;
                    self.queue.push_back(Event::Exited(exit));
                    None
                }
                () = sleep_until(patience_over.unwrap_or_else(Instant::now)), if patience_over.is_some() => {
                    self.observer.note(&what_holds(self.process.pid()));
                    self.patience_over = Some(Instant::now() + STILL_THERE);
                    None
                }
                () = sleep_until(self.repin.1) => {
                    self.look_again();
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn answered(&mut self, answer: Answer) -> Option<Event> {
        match answer {
            Answer::Event(event) => Some(event),
            Answer::Stopped(turn, event) => (turn == self.turns).then_some(event),
            Answer::Note(note) => {
                self.observer.note(&note);
                None
            }
        }
    }

    /// Takes what somebody asks for.
    fn asked(&mut self, request: Request) -> Option<Event> {
        Some(match request {
            Request::Stop(by) => {
                self.tell(&format!("{by}: ending the guest"));
                Event::StopRequested
            }
            Request::End(end) => return self.end_asked(end),
            Request::Crash => Event::CrashRequested,
            Request::Reset => Event::ResetRequested,
            Request::Pause => Event::PauseRequested,
            Request::Resume => Event::ResumeRequested,
            Request::Command(command) => {
                self.pass_on(command);
                return None;
            }
        })
    }

    /// Takes a wish for the guest's end. One that is under way isn't hurried by another gentle one: that may be somebody else's.
    fn end_asked(&mut self, end: End) -> Option<Event> {
        let words = match end.way {
            Way::Gently => "down: ending the guest",
            Way::AtOnce => "down --force: ending the guest",
        };
        self.tell(words);
        match (self.ending, end.way) {
            // QEMU is on its way out by its own word: a push would only cost what it has not written to its disks.
            (Ending::Leaving, _) | (Ending::Asked, Way::Gently) => return None,
            (Ending::No, _) | (Ending::Asked, Way::AtOnce) => {}
        }
        self.end = Some(end);
        Some(Event::StopRequested)
    }

    /// Sends a command for somebody, without waiting for its answer.
    fn pass_on(&self, command: Command) {
        let (qmp, Command { execute, arguments, answer }) = (self.qmp.clone(), command);
        tokio::spawn(async move {
            let result = qmp.execute_value(&execute, arguments, COMMAND).await.map_err(|error| {
                let kind = match &error {
                    gpuvm_qmp::Error::Timeout { .. } => Why::Timeout,
                    _ => Why::Qemu,
                };
                Refusal { kind, message: error.to_string() }
            });
            // Whoever asked may be gone.
            drop(answer.send(result));
        });
    }

    fn is_asked(&mut self) {
        if self.ending == Ending::No {
            self.ending = Ending::Asked;
        }
    }

    /// Returns how long a stage may take.
    fn share(&self, stage: Stage, usual: Duration) -> Duration {
        let Some(End { within: Some(within), way }) = self.end else { return usual };
        match (stage, way) {
            (Stage::Acpi, _) => within / 4 * 3,
            // QEMU has taken it and goes: only that it gets there is waited for.
            (Stage::Quit, _) if self.ending == Ending::Leaving => usual,
            (Stage::Quit, Way::Gently) => within / 4,
            (Stage::Quit, Way::AtOnce) => within,
            (Stage::Kill, _) => usual,
        }
    }

    /// Takes a deadline that has passed. QEMU doesn't hear of `quit` while it resets a device that doesn't answer: a kill would not be
    /// faster, and would lose what it has not written to its disks.
    fn overdue(&mut self, stage: Stage) -> Option<Event> {
        let limit = wait::at_start(self.plan.owned().count());
        let in_time = self.told_to_quit.is_some_and(|since| since.elapsed() < limit);
        if stage == Stage::Quit && in_time && gpuvm_host::process::waits_in_kernel(self.process.pid()) {
            self.observer.note(&waits(self.process.pid()));
            self.deadline = Some((stage, Instant::now() + LOOK_AGAIN));
            return None;
        }
        self.deadline = None;
        Some(Event::Deadline(stage))
    }

    /// Pins threads that came since, and hears what the kernel has said; a thread that can't be pinned is told, and no reason to end a
    /// guest that runs.
    fn look_again(&mut self) {
        if let Err(error) = pin::pin_others(self.plan, self.process.pid(), &self.vcpus) {
            tracing::warn!("{error}");
        }
        self.kernel_log.keep_up();
        self.process.words().keep_small();
        settle();
        let next = self.repin.0 + 1;
        self.repin = (next, Instant::now() + REPIN.get(next).copied().unwrap_or(REPIN_LATER));
    }

    /// Takes in what QEMU said before it ended: why it did is in there, and its end may be noticed first.
    async fn last_words(&mut self) {
        let Some(mut events) = self.events.take() else { return };
        // The other end of the socket is gone, so this ends at once.
        while let Ok(Some(event)) = tokio::time::timeout(COMMAND, events.next()).await {
            let event = self.monitor(&event);
            self.queue.extend(event);
        }
    }

    fn monitor(&mut self, event: &gpuvm_qmp::Event) -> Option<Event> {
        tracing::debug!(name = event.name, data = %event.data, "QMP event");
        self.observer.qmp(event);
        match event.known()? {
            Known::Shutdown { reason, .. } => {
                let reason = reason.unwrap_or_default();
                self.ending = Ending::Leaving;
                self.observer.phase(&Phase::Leaving { reason: reason.clone() });
                Some(Event::Shutdown { reason })
            }
            Known::GuestPanicked { .. } => Some(Event::Panicked),
            // Of a machine that is being made or loaded there is one too.
            Known::Reset { guest, reason } if guest || reason.as_deref() == Some(RESET_ASKED) => {
                let last = self.rebooted.replace(Instant::now());
                let is_own = guest && last.is_some_and(|at| at.elapsed() < FIRMWARE);
                if !is_own {
                    self.reboots += 1;
                    self.observer.phase(&Phase::Rebooting { count: self.reboots });
                }
                None
            }
            Known::Stop => {
                self.turns += 1;
                self.ask_why_it_stopped();
                None
            }
            Known::Resume => {
                self.turns += 1;
                Some(Event::Continued)
            }
            Known::GuestCrashloaded => {
                self.tell("the guest's kernel has crashed, and sees to that by itself");
                None
            }
            Known::Watchdog { action } => {
                let action = action.unwrap_or_default();
                self.tell(&format!("the guest's watchdog was not fed (QEMU's action: {action})"));
                Some(Event::Watchdog { action })
            }
            Known::BlockIoError { disk, operation, action, reason, .. } => {
                let (operation, action) = (operation.unwrap_or_default(), action.unwrap_or_default());
                Some(Event::DiskError(self.disk_error(DiskError { disk, operation, reason, action })))
            }
            Known::MemoryFailure { recipient, action } => {
                let action = action.unwrap_or_default();
                let whose = recipient.unwrap_or_default();
                self.tell(&format!("memory of the host is broken ({whose}; QEMU's action: {action})"));
                Some(Event::MemoryFailure { action })
            }
            Known::DeviceUnplugGuestError { device, .. } => {
                let device = device.unwrap_or_default();
                self.tell(&format!("the guest does not let go of its device {device}"));
                None
            }
            Known::DeviceDeleted { device: Some(device), .. } => {
                self.tell(&format!("the guest has let go of its device {device}"));
                None
            }
            _ => None,
        }
    }

    fn tell(&mut self, text: &str) {
        self.observer.note(&Note(text.to_owned()));
    }

    /// Tells of an error of a disk once: a broken disk gives thousands. One that pauses the guest is told with the pause.
    fn disk_error(&mut self, error: DiskError) -> DiskError {
        const DISKS: usize = 64;
        let kind = (error.disk.clone(), error.operation.clone(), error.action.clone());
        if error.action != "stop" && self.disk_errors.len() < DISKS && self.disk_errors.insert(kind) {
            self.tell(&format!("{error} (QEMU's action: {}); more of that is not told", error.action));
        }
        error
    }

    fn ask_why_it_stopped(&self) {
        let (qmp, answers, turn) = (self.qmp.clone(), self.answers.0.clone(), self.turns);
        let why = stopped::why(qmp, self.evidence.clone());
        tokio::spawn(async move {
            let answer = match why.await {
                Ok(Some(event)) => Answer::Stopped(turn, event),
                Ok(None) => return,
                Err(error) => Answer::Note(Note(format!("why the guest stopped is not known: {error}"))),
            };
            drop(answers.send(answer));
        });
    }

    fn perform(&mut self, effect: Effect) {
        let qmp = self.qmp.clone();
        match effect {
            // Whoever wants it at once doesn't want the guest asked.
            Effect::PowerDown if self.end.is_some_and(|end| end.way == Way::AtOnce) => {
                self.queue.push_back(Event::StopRequested);
            }
            Effect::PowerDown => {
                self.is_asked();
                self.observer.phase(&Phase::Stopping { stage: Stage::Acpi });
                self.command(Stage::Acpi);
            }
            Effect::Quit => {
                self.is_asked();
                self.observer.phase(&Phase::Stopping { stage: Stage::Quit });
                self.told_to_quit = Some(Instant::now());
                self.command(Stage::Quit);
            }
            Effect::Kill => {
                self.observer.phase(&Phase::Stopping { stage: Stage::Kill });
                self.process.kill_now();
                self.killed = Some(Instant::now());
                self.patience_over = Some(Instant::now() + STILL_THERE);
            }
            Effect::Reset => self.send(None, async move { qmp.system_reset(COMMAND).await }),
            // That the vCPUs have stopped or go on is told by STOP and RESUME.
            Effect::Pause => self.send(None, async move { qmp.stop(COMMAND).await }),
            Effect::Resume => self.send(None, async move { qmp.cont(COMMAND).await }),
            Effect::Arm(stage, after) => {
                self.deadline = Some((stage, Instant::now() + self.share(stage, after)));
            }
        }
    }

    /// Sends a command of a stage.
    fn command(&self, stage: Stage) {
        let qmp = self.qmp.clone();
        self.send(Some(stage), async move {
            match stage {
                Stage::Acpi => qmp.system_powerdown(COMMAND).await,
                _ => qmp.quit(COMMAND).await,
            }
        });
    }

    /// Sends a command without waiting for its answer, so that a QEMU that doesn't answer holds up nothing. One that fails without being a
    /// stage's leaves the guest as it is: whoever asked waits for what doesn't come, and is told.
    fn send(&self, stage: Option<Stage>, command: impl Future<Output = Result<(), Error>> + Send + 'static) {
        let answers = self.answers.0.clone();
        tokio::spawn(async move {
            let error = match command.await {
                // A QEMU that has gone was not in need of it; that it has is told by its exit.
                Ok(()) | Err(Error::Closed { .. }) => return,
                Err(error) => error,
            };
            drop(answers.send(Answer::Note(Note(error.to_string()))));
            if let Some(stage) = stage {
                drop(answers.send(Answer::Event(Event::CommandFailed(stage))));
            }
        });
    }
}
