//! A guest that goes on without its gpuvm, and the one that sees to it from now on.
//!
//! ```text
//! launcher killed -> reservation -> QEMU by its pidfd -> monitor -> serial port -> run -> exit, unseen -> judge -> undo -> release
//! ```
//!
//! Everything that the dead one knew and that counts is on record: the plan, the baselines, the moment they were taken at, the journal. Until QEMU has
//! answered nothing is done that matters: a gpuvm that fails before leaves the VM as it was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gpuvm_core::lifecycle::{Event, Exit, Life, Outcome, State};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_core::qemu::SERIAL;
use gpuvm_core::reset::{Snapshot, inspect};
use gpuvm_core::standing::Standing;
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel_log::{KernelLog, Mark};
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::root::read_text;
use gpuvm_host::standing::Known;
use gpuvm_host::{HostError, ledger};
use gpuvm_qmp::Qmp;
use serde::Deserialize;

use super::{Run, Session};
use crate::console::{Console, Sink};
use crate::control::{Arrival, Control, Watched};
use crate::driver::{self, Running};
use crate::error::{Cause, LaunchError, UpError};
use crate::judging::{Begun, kept};
use crate::launch::{self, COMMAND, Greeted, Which};
use crate::pin;
use crate::report::{Note, Observer, Phase, Report};
use crate::signals::{Requests, Signals};
use crate::stopped;

/// How long a QEMU that runs may take to greet: it does so from its main loop, which is held up by a device that is reset.
const GREETING: Duration = Duration::from_secs(30);

/// What was decided for a VM, as it was kept with it.
#[derive(Debug, Deserialize)]
pub struct Decided {
    /// The plan.
    pub plan: Box<Plan>,
    /// The profile's text.
    pub profile: String,
    /// How long its power button is waited for, in s.
    pub shutdown_timeout: u64,
}

/// A VM without a supervisor, of which this process is to be the next.
#[derive(Debug)]
pub struct Lone {
    reservation: Reservation,
    qemu: ProcessId,
    journal: Journal,
    baselines: BTreeMap<Bdf, Snapshot>,
    begun: Begun,
}

/// A QEMU in hand.
struct Taken<'a> {
    process: launch::Process,
    running: Running<'a>,
    console: Option<Console>,
}

/// What is to be done about a VM that nobody sees to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Its guest goes on: it gets another gpuvm.
    Adopt,
    /// What it has is given back, as its guest has nothing to lose.
    GiveBack(Nothing),
}

/// Why a guest has nothing to lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// Its QEMU is there, and was not told to let it run.
    NeverRan,
    /// Its processes are dead.
    Dead,
}

impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NeverRan => "its guest had not begun to run",
            Self::Dead => "its processes are dead",
        })
    }
}

/// Says what is to be done about a VM; nothing where somebody sees to it, or where nothing is known of it.
///
/// # Errors
/// Returns failures to read whether its guest has run.
pub fn remedy(places: &Places, known: &Known) -> Result<Option<Remedy>, HostError> {
    Ok(match (known.standing, known.qemu) {
        (Standing::Unsupervised, Some(qemu)) if has_run(places, &known.name, qemu.pid)? => {
            Some(Remedy::Adopt)
        }
        (Standing::Unsupervised, _) => Some(Remedy::GiveBack(Nothing::NeverRan)),
        (Standing::Stale, _) => Some(Remedy::GiveBack(Nothing::Dead)),
        _ => None,
    })
}

/// Reads what was decided for a VM; nothing where nothing was kept.
///
/// # Errors
/// Returns failures to read, and what another gpuvm may have written.
pub fn decided(places: &Places, vm: &VmName) -> Result<Option<Decided>, HostError> {
    kept(&places.vm(vm).join("run.json"))
}

/// Tells whether the guest of a QEMU was let run.
fn has_run(places: &Places, vm: &VmName, qemu: i32) -> Result<bool, HostError> {
    let note = read_text(&places.continued(vm))?;
    Ok(note.is_some_and(|pid| pid.trim() == qemu.to_string()))
}

/// Makes this process the supervisor of a VM whose guest goes on without one; nothing where there is no such guest.
///
/// # Errors
/// Returns that somebody sees to it, and failures to read what was kept with it.
pub fn adopt(places: &Places, boot_id: &str, vm: &VmName) -> Result<Option<Lone>, HostError> {
    let baselines = kept(&places.baselines(vm))?.unwrap_or_default();
    let unknown = || Begun { at: ledger::now(), log: Mark::Unread("nobody noted where it was".to_owned()) };
    let begun = kept(&places.begun(vm))?.unwrap_or_else(unknown);
    let Some(reservation) = reservation::adopt(places, boot_id, vm)? else { return Ok(None) };
    let Some(qemu) = reservation.qemu else { return Ok(None) };
    let path = places.journal(vm);
    let journal = match Journal::reopen(&path, boot_id)? {
        Some(journal) => journal,
        // There is nothing to undo in it.
        None => Journal::begin(&path, boot_id)?,
    };
    Ok(Some(Lone { reservation, qemu, journal, baselines, begun }))
}

/// Sees to an adopted guest until it ends and the host is given back. The last word at the control socket is the caller's, by
/// [`Control::finish`].
///
/// # Errors
/// Returns why QEMU can't be got hold of: then all is left as it was.
pub async fn adopted(
    run: &Run<'_>,
    lone: Lone,
    signals: &mut Signals,
    control: &mut Control,
    observer: &mut dyn Observer,
) -> Result<Report, UpError> {
    let asked = control.adopt(run.plan, run.kernel, run.boot_id, lone.begun.at);
    let hub = control.hub();
    let mut requests = Requests::new(signals, Some(asked));
    let (places, vm) = (run.places, &run.plan.name);
    let mut watched = Watched { control, inner: observer, places, vm, arrival: Arrival::Later };
    let functions: Vec<Bdf> = run.plan.owned().map(|device| device.bdf).collect();
    let took = Duration::from_secs(ledger::now().saturating_sub(lone.begun.at));
    let qemu = lone.qemu;
    let log = KernelLog::of_functions_since(&run.kernel.root, &functions, &lone.begun.log);
    let mut session = Session {
        life: Life::adopted(run.patience),
        baselines: lone.baselines,
        since: Instant::now().checked_sub(took).unwrap_or_else(Instant::now),
        started: true,
        ..Session::new(run, Some(hub), (lone.journal, lone.reservation), (lone.begun, log))
    };
    let taken = match session.take(qemu, &mut requests, &mut watched).await {
        Ok(taken) => taken,
        Err(source) => {
            let (vm, source) = (vm.to_string(), Box::new(source));
            let cause = Cause::NotAdopted { vm, pid: qemu.pid, source };
            return Err(UpError { cause: Box::new(cause), devices: Vec::new(), left: Vec::new() });
        }
    };
    let outcome = match taken {
        Some(taken) => session.see_to(taken, &mut requests, &mut watched).await,
        None => Ok(session.gone(&mut watched)),
    };
    session.give_back(outcome, &mut watched)
}

impl<'a> Session<'a> {
    /// Gets hold of a QEMU: its process, its monitor, its threads and its serial port. Nothing of one that has ended meanwhile.
    async fn take(
        &mut self,
        qemu: ProcessId,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Taken<'a>>, Cause> {
        let (plan, paths) = (self.run.plan, self.paths());
        let Some(mut process) = launch::adopt(&self.run.kernel.root, plan, &paths, qemu)? else {
            return Ok(None);
        };
        let steps = async {
            let greeted = launch::greet_within(plan, launch::connect_again(&paths).await?, GREETING).await?;
            let vcpus = greeted.qmp.vcpu_threads(COMMAND).await?;
            let pinned = pin::pin(plan, qemu.pid, &vcpus);
            let status = greeted.qmp.query_status(COMMAND).await?;
            Ok::<_, LaunchError>((greeted, vcpus, pinned, status))
        };
        let (greeted, vcpus, pinned, status) = tokio::select! {
            taken = steps => taken?,
            _ = process.exited() => return Ok(None),
            signal = requests.end() => return Err(Cause::Interrupted { signal }),
        };
        // From here on there is somebody who can be asked.
        observer.reserved();
        observer.state(State::Running, None);
        observer.started(qemu.pid);
        observer.threads(&vcpus);
        if let Err(error) = pinned {
            // A CPU may have gone since: no reason to leave a guest alone that runs.
            observer.note(&Note(error.to_string()));
        }
        self.baselines.values().for_each(|before| observer.judged(before.bdf, &inspect(before)));
        let Greeted { qmp, .. } = &greeted;
        observer.phase(&Phase::Adopted { pid: qemu.pid, qemu: qmp.version().to_string() });
        let console = self.console(qmp, observer).await;
        let mut first = None;
        if status.status == "prelaunch" {
            // Its launcher was killed between its note that the guest runs and the command for it.
            qmp.cont(COMMAND).await.map_err(LaunchError::from)?;
        } else if !status.running {
            let evidence = self.evidence(&process);
            first = stopped::why(qmp.clone(), evidence).await.map_err(LaunchError::from)?;
        }
        Ok(Some(Taken { process, running: Running { greeted, plan, vcpus, first }, console }))
    }

    /// Gives the guest's serial port another end: that of the dead gpuvm is closed. A guest whose port can't be had goes on without it.
    async fn console(&self, qmp: &Qmp, observer: &mut dyn Observer) -> Option<Console> {
        let (paths, log) = (self.paths(), self.paths().logs.join("console.log"));
        let connected = async {
            let (serial, far) = launch::serial_pair(&paths)?;
            qmp.reconnect_chardev(SERIAL, far, COMMAND).await?;
            Console::copy(serial, &log, None, self.hub.clone(), Which::Again)
                .map_err(launch::file("copy the console to", &log))
        };
        match connected.await {
            Ok(console) => Some(console),
            Err(error) => {
                observer.note(&Note(format!("the guest's serial port can't be had: {error}")));
                None
            }
        }
    }

    /// Sees to a guest until it ends, and to those that are started after it when it reboots.
    async fn see_to(
        &mut self,
        taken: Taken<'a>,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, Cause> {
        let Taken { mut process, running, console } = taken;
        let ended = self.follow(running, &mut process, console, requests, observer).await?;
        self.go_on(ended, requests, None::<&fn() -> Sink>, observer).await
    }

    /// Takes in that the guest has ended before anybody could ask.
    fn gone(&mut self, observer: &mut dyn Observer) -> Outcome {
        observer.reserved();
        driver::step(&mut self.life, Event::Exited(Exit::Unseen), observer);
        Outcome::QemuDied { exit: Exit::Unseen }
    }
}
