//! The one task that drives a guest: events come in, [`Life::step`] decides, effects go out.

use std::collections::VecDeque;
use std::time::Duration;

use gpuvm_core::control::{Refusal, Why};
use gpuvm_core::lifecycle::{Effect, Event, Fault, Life, Outcome, Patience, Stage};
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::wait;
use gpuvm_host::HostError;
use gpuvm_host::kernel_log::KernelLog;
use gpuvm_qmp::verbs::VcpuThread;
use gpuvm_qmp::{Events, Known, Qmp};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::launch::{COMMAND, Greeted, Process};
use crate::pin;
use crate::report::{Note, Observer, Phase};
use crate::signals::{Command, End, Request, Requests, Way};

/// When threads are pinned again, after `cont`: soon for those that a first run makes, then now and then.
const REPIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10)];
/// Between words about a QEMU that was killed and isn't gone.
pub(crate) const STILL_THERE: Duration = Duration::from_secs(20);
/// Between looks at a QEMU that waits in the kernel when its time to quit is over.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// QEMU's word for a reset that the monitor was asked for.
const RESET_ASKED: &str = "host-qmp-system-reset";
/// Between later looks.
const REPIN_LATER: Duration = Duration::from_secs(60);

/// A guest that runs, and where its threads belong.
pub(crate) struct Running<'a> {
    pub(crate) greeted: Greeted,
    pub(crate) plan: &'a Plan,
    pub(crate) vcpus: Vec<VcpuThread>,
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
    answers: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
}

/// Whether a guest is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    Yes,
}

/// Drives a guest that has been continued until QEMU is gone and collected.
pub(crate) async fn drive(
    running: Running<'_>,
    process: &mut Process,
    kernel_log: &mut KernelLog,
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
        queue: VecDeque::new(),
        killed: None,
        told_to_quit: None,
        end: None,
        ending: Ending::No,
        reboots: 0,
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
    let effects = life.step(event);
    if before != (life.state(), life.halt().cloned()) {
        observer.state(life.state(), life.halt());
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
                Some(event) = self.answers.1.recv() => Some(event),
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

    /// Takes what somebody asks for.
    fn asked(&mut self, request: Request) -> Option<Event> {
        Some(match request {
            Request::Stop(by) => {
                self.observer.note(&Note(format!("{by}: ending the guest")));
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
        self.observer.note(&Note(words.to_owned()));
        let before = std::mem::replace(&mut self.ending, Ending::Yes);
        match (before, end.way) {
            (Ending::Yes, Way::Gently) => return None,
            (Ending::Yes, Way::AtOnce) => {}
            (Ending::No, Way::Gently) => self.end = Some(end),
            // The first leads to the power button, which is left out, and the second goes on from there.
            (Ending::No, Way::AtOnce) => {
                self.end = Some(end);
                self.queue.push_back(Event::StopRequested);
            }
        }
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

    /// Returns how long a stage may take.
    fn share(&self, stage: Stage, usual: Duration) -> Duration {
        let Some(End { within: Some(within), way }) = self.end else { return usual };
        match (stage, way) {
            (Stage::Acpi, _) => within / 4 * 3,
            // QEMU has taken it and goes: only that it gets there is waited for.
            (Stage::Quit, _) if self.told_to_quit.is_none() => usual,
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
                self.ending = Ending::Yes;
                self.observer.phase(&Phase::Leaving { reason: reason.clone() });
                Some(Event::Shutdown { reason })
            }
            Known::GuestPanicked { .. } => Some(Event::Panicked),
            Known::Resume => Some(Event::Continued),
            // Of a machine that is being made or loaded there is one too.
            Known::Reset { guest, reason } if guest || reason.as_deref() == Some(RESET_ASKED) => {
                self.reboots += 1;
                self.observer.phase(&Phase::Rebooting { count: self.reboots });
                None
            }
            // STOP carries no reason: a fatal error of a passed-through device looks like a pause until asked.
            Known::Stop => {
                self.ask_why_it_stopped();
                None
            }
            _ => None,
        }
    }

    fn ask_why_it_stopped(&self) {
        let (qmp, answers) = (self.qmp.clone(), self.answers.0.clone());
        tokio::spawn(async move {
            match qmp.query_status(COMMAND).await {
                Ok(status) if status.status == "internal-error" => {
                    drop(answers.send(Event::Failed(Fault::Unknown)));
                }
                Ok(status) if status.running => {}
                Ok(status) => drop(answers.send(Event::Halted { status: status.status })),
                Err(error) => tracing::warn!("why the guest stopped is not known: {error}"),
            }
        });
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            // Whoever wants it at once doesn't want the guest asked.
            Effect::PowerDown if self.end.is_some_and(|end| end.way == Way::AtOnce) => {}
            Effect::PowerDown => {
                self.ending = Ending::Yes;
                self.observer.phase(&Phase::Stopping { stage: Stage::Acpi });
                self.command(Stage::Acpi);
            }
            Effect::Quit => {
                self.ending = Ending::Yes;
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
            Effect::Reset => self.reset(),
            Effect::Pause => self.pause(),
            Effect::Resume => self.resume(),
            Effect::Arm(stage, after) => {
                self.deadline = Some((stage, Instant::now() + self.share(stage, after)));
            }
        }
    }

    /// Resets the machine. One that QEMU doesn't reset goes on as it is: whoever asked waits for a reboot that doesn't come.
    fn reset(&self) {
        let qmp = self.qmp.clone();
        tokio::spawn(async move {
            if let Err(error) = qmp.system_reset(COMMAND).await {
                tracing::warn!("{error}");
            }
        });
    }

    /// Stops the vCPUs; that they have stopped is told by QEMU's STOP.
    fn pause(&self) {
        let qmp = self.qmp.clone();
        tokio::spawn(async move {
            if let Err(error) = qmp.stop(COMMAND).await {
                tracing::warn!("{error}");
            }
        });
    }

    /// Lets the vCPUs go on; that they do is told by QEMU's RESUME.
    fn resume(&self) {
        let qmp = self.qmp.clone();
        tokio::spawn(async move {
            if let Err(error) = qmp.cont(COMMAND).await {
                tracing::warn!("{error}");
            }
        });
    }

    /// Sends a command without waiting for its answer, so that a QEMU that doesn't answer holds up nothing.
    fn command(&self, stage: Stage) {
        let (qmp, answers) = (self.qmp.clone(), self.answers.0.clone());
        tokio::spawn(async move {
            let answer = match stage {
                Stage::Acpi => qmp.system_powerdown(COMMAND).await,
                _ => qmp.quit(COMMAND).await,
            };
            if let Err(error) = answer {
                tracing::warn!("{error}");
                drop(answers.send(Event::CommandFailed(stage)));
            }
        });
    }
}
