//! The whole way of a VM: reserve, prepare, start, run, judge, give back.
//!
//! ```text
//!                                                      /<-- well, and reboot = "relaunch" <--\
//! reserve -> journal -> baselines -> operations -> groups -> QEMU -S -> pin -> cont -> run -> exit -> reset -> judge -> undo -> release
//!               \___________\___________\___________\________\_______\_______\_____ any failure _____________/       |
//!                                                                                      ledger, quarantine <---------/
//! ```
//!
//! From the journal's first line on there is one way out, [`Session::give_back`], and it is taken whatever happened. What each device
//! said of itself before (its baseline) and the place in the kernel's log are kept beside the journal: a run whose launcher was
//! killed is judged by the cleanup, or by a gpuvm that adopts its guest ([`adopt`]). A device that is judged sick keeps its driver, its
//! journal and its reservation; everything else is given back.

pub mod adopt;
mod give_back;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuvm_core::lifecycle::{Event, Life, NotAgain, Outcome, Patience, Reboots};
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::plan::{Owned, Ownership, Plan, Warning};
use gpuvm_core::profile::Serial;
use gpuvm_core::reset::{Reading, RebootPolicy, Snapshot};
use gpuvm_host::apply::{self, Host};
use gpuvm_host::journal::{self, Journal};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::kernel_log::KernelLog;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::root::{HostRoot, driver_of};
use gpuvm_host::{HostError, lock, snapshot, undo};
use serde::Serialize;

pub(crate) use self::give_back::close;
use crate::console::{self, Console, Sink};
use crate::control::{Arrival, Control, Hub, Launched, Watched};
use crate::driver::{self, Running};
use crate::error::{Cause, LaunchError, UpError};
use crate::judging::{self, Begun, Judged, Ran, keep};
use crate::launch::{self, COMMAND, Connections, Paths, Which};
use crate::pin;
use crate::repairing;
use crate::report::{DeviceReport, LastWords, Note, Observer, Phase, Report, Timing};
use crate::signals::{Requests, Signals};
use crate::stopped::Evidence;

/// What is to be run, and where.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The profile's text, kept with the run.
    pub profile: &'a str,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// gpuvm's own folders.
    pub places: &'a Places,
    /// This boot.
    pub boot_id: &'a str,
    /// How long the guest's end may take.
    pub patience: Patience,
    /// Whether QEMU outlives a gpuvm that is killed.
    pub launched: Launched,
}

/// What is kept beside the journal, so that no later verb reads the user's file again.
#[derive(Serialize)]
struct Kept<'a> {
    plan: &'a Plan,
    profile: &'a str,
    /// How long its power button is waited for, in s.
    shutdown_timeout: u64,
}

/// A run that has something to give back.
struct Session<'a> {
    run: &'a Run<'a>,
    /// Where others hear the console, and type.
    hub: Option<Arc<Hub>>,
    life: Life,
    journal: Journal,
    reservation: Reservation,
    /// What each device said of itself before anything was done: what it is judged against afterwards.
    baselines: BTreeMap<Bdf, Snapshot>,
    begun: Begun,
    /// What the kernel has said of the devices since.
    kernel_log: KernelLog,
    /// The resets that the kernel made for QEMU.
    kernel_resets: BTreeMap<Bdf, Vec<u64>>,
    since: Instant,
    /// Whether there was a QEMU, which opens the devices.
    started: bool,
    /// Its version, once it has greeted.
    qemu: Option<String>,
    /// How often the guest has rebooted and went on.
    reboots: u32,
    /// How the devices came back, once that is known for good.
    judged: Option<Judged>,
    /// How those that weren't healthy came back from boots before the last, when it was worst.
    between_boots: BTreeMap<Bdf, DeviceReport>,
    timings: Vec<Timing>,
    /// What is to be known of boots before the last.
    warnings: Vec<Warning>,
    /// What was said, if the guest ended badly.
    last_words: Option<LastWords>,
}

/// How one QEMU of a run ended.
struct Ended {
    outcome: Outcome,
    /// How long its guest had run.
    ran: Duration,
}

/// Runs a VM from its reservation until the host is given back.
///
/// # Errors
/// Returns why the guest never ran, and what of the host could not be given back. A guest that ran always gives a
/// [`Report`], whatever became of it.
pub async fn up(
    run: &Run<'_>,
    signals: &mut Signals,
    console: Option<Sink>,
    observer: &mut dyn Observer,
) -> Result<Report, UpError> {
    let console = match run.plan.serial {
        Serial::Console => console,
        Serial::Log => None,
    };
    up_asked(run, &mut Requests::new(signals, None), console, None, observer).await
}

/// Runs a VM like [`up`], and lets others ask for it at its control socket. The last word there is the caller's, by [`Control::finish`].
///
/// # Errors
/// As [`up`].
pub async fn up_served(
    run: &Run<'_>,
    signals: &mut Signals,
    control: &mut Control,
    console: Option<Sink>,
    observer: &mut dyn Observer,
) -> Result<Report, UpError> {
    let asked = control.begin(run.plan, run.kernel, run.boot_id);
    let hub = control.hub();
    let mut requests = Requests::new(signals, Some(asked));
    let (places, vm) = (run.places, &run.plan.name);
    let mut watched = Watched { control, inner: observer, places, vm, arrival: Arrival::First };
    up_asked(run, &mut requests, console, Some(hub), &mut watched).await
}

/// Runs a VM that can be asked for more than its end. The sink is given its console, whether or not its user wants to see it.
pub(crate) async fn up_asked(
    run: &Run<'_>,
    requests: &mut Requests<'_>,
    console: Option<Sink>,
    hub: Option<Arc<Hub>>,
    observer: &mut dyn Observer,
) -> Result<Report, UpError> {
    observer.phase(&Phase::Reserving);
    let reservation = Reservation {
        detached: run.launched == Launched::Detached,
        ..Reservation::new(run.plan, run.boot_id)
    };
    reservation::reserve(run.places, &reservation).map_err(|error| UpError {
        cause: Box::new(error.into()),
        devices: Vec::new(),
        left: Vec::new(),
    })?;
    let journal = match begin(run) {
        Ok(journal) => journal,
        Err(error) => {
            let left = reservation::release(run.places, &run.plan.name).err().into_iter().collect();
            return Err(UpError { cause: Box::new(error.into()), devices: Vec::new(), left });
        }
    };
    observer.reserved();
    let functions: Vec<Bdf> = run.plan.owned().map(|device| device.bdf).collect();
    let log = KernelLog::of_functions(&run.kernel.root, &functions);
    let mut session = Session::new(run, hub, (journal, reservation), (Begun::now(&run.kernel.root), log));
    observer.state(session.life.state(), None);
    let outcome = session.live(requests, console, observer).await;
    session.give_back(outcome, observer)
}

/// Reads a device's baseline, and refuses one that isn't as the plan found it.
fn baseline(root: &HostRoot, device: Owned<'_>) -> Result<Snapshot, Cause> {
    let bdf = device.bdf;
    let planned = match device.ownership {
        Ownership::BoundByUs { was } => was.clone(),
        Ownership::WasVfio => Some(DriverName::vfio_pci()),
        Ownership::KeepDriver { driver } => Some(driver.clone()),
    };
    let now = driver_of(root, bdf)?;
    if now != planned {
        let words =
            |driver: Option<DriverName>| driver.map_or("no driver".to_owned(), |d| format!("driver {d}"));
        return Err(HostError::Stale { bdf, planned: words(planned), now: words(now) }.into());
    }
    let mut before = snapshot::take(root, bdf);
    // The ids as the kernel read them when it found the device; those of a VF read ffff in its config space.
    before.id = Reading::Read(device.id);
    Ok(before)
}

fn begin(run: &Run<'_>) -> Result<Journal, HostError> {
    let folder = run.places.vm(&run.plan.name);
    let (_, left) = undo::clear_stale(run.places, &run.plan.name, run.boot_id)?;
    if let Some(error) = left.into_iter().next() {
        return Err(error);
    }
    // What a former run of this name left there is closed, or reserve would have refused.
    journal::remove_dir(&folder)?;
    for folder in [&folder, &run.places.state(&run.plan.name), &run.places.logs(&run.plan.name)] {
        lock::make_dir(folder)?;
    }
    keep(
        &folder.join("run.json"),
        &Kept { plan: run.plan, profile: run.profile, shutdown_timeout: run.patience.acpi.as_secs() },
    )?;
    Journal::begin(&run.places.journal(&run.plan.name), run.boot_id)
}

impl<'a> Session<'a> {
    /// Makes one of a run that is reserved and has its journal, and of the moment from which the kernel's log counts.
    fn new(
        run: &'a Run<'a>,
        hub: Option<Arc<Hub>>,
        (journal, reservation): (Journal, Reservation),
        (begun, kernel_log): (Begun, KernelLog),
    ) -> Self {
        Self {
            run,
            hub,
            life: Life::new(run.patience),
            journal,
            reservation,
            baselines: BTreeMap::new(),
            begun,
            kernel_log,
            kernel_resets: BTreeMap::new(),
            since: Instant::now(),
            started: false,
            qemu: None,
            reboots: 0,
            judged: None,
            between_boots: BTreeMap::new(),
            timings: Vec::new(),
            warnings: Vec::new(),
            last_words: None,
        }
    }

    /// Prepares the host, starts QEMU and runs the guest to its end. QEMU is gone and collected when this returns, unless the
    /// kernel doesn't let go of it.
    async fn live(
        &mut self,
        requests: &mut Requests<'_>,
        console: Option<Sink>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, Cause> {
        self.look_before(observer)?;
        let begun = Instant::now();
        self.prepare(requests, observer).await?;
        self.timings.push(Timing::new("prepare", begun.elapsed()));
        driver::step(&mut self.life, Event::Prepared, observer);
        let sinks = console.map(console::share);
        let sink = sinks.as_ref().map(|another| another());
        let ended = self.run_once(Which::First, requests, sink, observer).await?;
        self.go_on(ended, requests, sinks.as_ref(), observer).await
    }

    /// Starts QEMU again and again, as long as its guest reboots and is to be started again.
    async fn go_on(
        &mut self,
        mut ended: Ended,
        requests: &mut Requests<'_>,
        sinks: Option<&impl Fn() -> Sink>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, Cause> {
        let mut reboots = Reboots::default();
        loop {
            let rebooted = Outcome::Rebooted { not_again: Some(NotAgain::Policy) };
            if ended.outcome != rebooted || self.run.plan.reboot != RebootPolicy::Relaunch {
                return Ok(ended.outcome);
            }
            match self.between(&mut reboots, ended.ran, requests, observer).await {
                Ok(count) => observer.phase(&Phase::Relaunching { count }),
                Err(why) => return Ok(Outcome::Rebooted { not_again: Some(why) }),
            }
            driver::step(&mut self.life, Event::StartedAgain, observer);
            let sink = sinks.map(|another| another());
            ended = match self.run_once(Which::Again, requests, sink, observer).await {
                // The guest had run, and rebooted: that it isn't started again is no failure.
                Err(Cause::Interrupted { .. }) => {
                    return Ok(Outcome::Rebooted { not_again: Some(NotAgain::Asked) });
                }
                ended => ended?,
            };
        }
    }

    /// Takes the baselines and refuses a device that is sick already.
    fn look_before(&mut self, observer: &mut dyn Observer) -> Result<(), Cause> {
        let (run, vm) = (self.run, &self.run.plan.name);
        let root = &run.kernel.root;
        for device in run.plan.owned() {
            self.baselines.insert(device.bdf, baseline(root, device)?);
        }
        let took = self.since.elapsed();
        let ran = Ran { vm, qemu: None, started: false, outcome: None, took };
        let judged = judging::before_run(root, run.places, &self.baselines, ran);
        give_back::tell(&judged, observer);
        // One that can't be read isn't known to be well, and its ids wouldn't be known afterwards.
        let unfit = |bdf: &Bdf| self.baselines.get(bdf).is_none_or(|before| before.config.read().is_none());
        for device in &judged.devices {
            let Some(finding) = device.judgement.reason() else { continue };
            if device.judgement.verdict.is_bad() || unfit(&device.bdf) {
                let cause = Cause::SickBefore { bdf: device.bdf, finding: Box::new(finding.clone()) };
                self.judged = Some(judged);
                return Err(cause);
            }
            let verdict = device.judgement.verdict;
            observer.note(&Note(format!("{} is {verdict} before the run: {finding}", device.bdf)));
        }
        keep(&run.places.baselines(vm), &self.baselines)?;
        keep(&run.places.begun(vm), &self.begun)?;
        Ok(())
    }

    /// Starts QEMU and waits until it is gone and collected, unless the kernel doesn't let go of it.
    async fn run_once(
        &mut self,
        which: Which,
        requests: &mut Requests<'_>,
        console: Option<Sink>,
        observer: &mut dyn Observer,
    ) -> Result<Ended, Cause> {
        observer.phase(&Phase::Starting);
        // Those before are none of this QEMU's, but gpuvm's own after the last one.
        self.kernel_log.take_resets();
        let paths = self.paths();
        let (listeners, connections) = launch::sockets(&paths)?;
        let (root, launched) = (&self.run.kernel.root, self.run.launched);
        let mut process = launch::spawn(root, self.run.plan, &paths, listeners, which, launched)?;
        observer.started(process.pid());
        self.started = true;
        // Nothing is written for as long as the guest runs.
        self.run.kernel.rest();
        let ended = self.supervise(&mut process, connections, which, requests, console, observer).await;
        match &ended {
            // It was waited for long enough, and still has the devices.
            Ok(_) | Err(Cause::Host(HostError::QemuStuck { .. })) => {}
            Err(_) => driver::end(&mut process, &mut self.life, self.run.patience, observer).await?,
        }
        ended
    }

    /// Sees to the devices between two QEMUs: they are reset, judged, and given to a guest again only if they are well. Returns for
    /// the how many-th time it is started again, or why it is not.
    async fn between(
        &mut self,
        reboots: &mut Reboots,
        ran: Duration,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<u32, NotAgain> {
        let count = reboots.again(ran)?;
        if let Some(signal) = requests.pending().await {
            observer.note(&Note(format!("{signal}: the guest is not started again")));
            return Err(NotAgain::Asked);
        }
        let judged = self.judge(Some(&Outcome::Rebooted { not_again: None }), observer);
        if !judged.all_well() {
            self.judged = Some(judged);
            return Err(NotAgain::SickDevice);
        }
        for device in &judged.devices {
            if let Some(finding) = device.judgement.reason() {
                let (bdf, verdict) = (device.bdf, device.judgement.verdict);
                observer.note(&Note(format!("{bdf} is {verdict} between two boots: {finding}")));
            }
        }
        judged.failures.iter().for_each(|error| observer.note(&Note(error.to_string())));
        self.warnings.extend(judged.devices.iter().filter_map(repairing::between_boots));
        if let Some(signal) = requests.pending().await {
            observer.note(&Note(format!("{signal}: the guest is not started again")));
            self.judged = Some(judged);
            return Err(NotAgain::Asked);
        }
        repairing::keep_worst(&mut self.between_boots, judged.devices);
        // What the kernel has said so far is in these verdicts: whoever judges after us begins here.
        self.begun.log = Begun::now(&self.run.kernel.root).log;
        if let Err(error) = keep(&self.run.places.begun(&self.run.plan.name), &self.begun) {
            observer.note(&Note(error.to_string()));
        }
        self.reboots += 1;
        Ok(count)
    }

    /// Brings a QEMU that was started to its end.
    async fn supervise(
        &mut self,
        process: &mut launch::Process,
        connections: Connections,
        which: Which,
        requests: &mut Requests<'_>,
        console: Option<Sink>,
        observer: &mut dyn Observer,
    ) -> Result<Ended, Cause> {
        let begun = Instant::now();
        self.reservation.qemu = ProcessId::of(process.pid());
        reservation::update(self.run.places, &self.reservation)?;
        let Connections { monitor, serial } = connections;
        let log = self.paths().logs.join("console.log");
        let console = Console::copy(serial, &log, console, self.hub.clone(), which)
            .map_err(HostError::file("copy the console to", &log))?;
        let running = self.ready(process, monitor, requests, observer).await?;
        self.timings.push(Timing::new("start", begun.elapsed()));
        self.follow(running, process, Some(console), requests, observer).await
    }

    /// Follows a guest that runs until its QEMU is gone and collected.
    async fn follow(
        &mut self,
        running: Running<'_>,
        process: &mut launch::Process,
        console: Option<Console>,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Ended, Cause> {
        self.qemu = Some(running.greeted.qmp.version().to_string());
        let begun = Instant::now();
        let evidence = self.evidence(process);
        let watched = (&mut self.kernel_log, evidence);
        let driver::Ended { outcome, reboots } =
            driver::drive(running, process, watched, &mut self.life, requests, observer).await?;
        let ran = begun.elapsed();
        self.reboots += reboots;
        self.timings.push(Timing::new("run", ran));
        observer.phase(&Phase::Ended);
        let was_to_die = requests.crash_was_asked();
        let badly = matches!(
            outcome,
            Outcome::QemuDied { .. } | Outcome::InternalError { .. } | Outcome::MemoryFailure
        );
        if badly && !was_to_die {
            let words = process.last_words();
            observer.note(&Note(words.to_string()));
            self.last_words = Some(words);
        }
        if let Some(console) = console {
            console.finish().await;
        }
        Ok(Ended { outcome, ran })
    }

    fn evidence(&self, process: &launch::Process) -> Evidence {
        Evidence {
            root: self.run.kernel.root.clone(),
            baselines: self.baselines.clone(),
            words: process.words().clone(),
        }
    }

    /// Makes the planned changes and asks the kernel whether it would let a guest have the groups.
    async fn prepare(
        &mut self,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), Cause> {
        let plan = self.run.plan;
        observer.phase(&Phase::Preparing { operations: plan.operations.len() });
        for planned in &plan.operations {
            if let Some(signal) = requests.pending().await {
                return Err(Cause::Interrupted { signal });
            }
            observer.phase(&Phase::Operation { what: planned.op.to_string() });
            let host = self.run.host(&self.baselines);
            let result = apply::apply(&host, &mut self.journal, &planned.op);
            if let Err(HostError::InFlight { pid, .. }) = &result
                && let Err(error) = self.record_in_flight(*pid)
            {
                // What hangs is what has to be told; that it isn't on record comes second.
                tracing::error!("{error}");
            }
            result?;
        }
        let groups: Vec<_> = plan.groups.iter().map(|group| group.id).collect();
        if !groups.is_empty() {
            observer.phase(&Phase::Checking { groups: groups.len() });
            self.run.kernel.check_groups(&groups, plan.addresses.memory_top())?;
        }
        match requests.pending().await {
            Some(signal) => Err(Cause::Interrupted { signal }),
            None => Ok(()),
        }
    }

    /// Brings a started QEMU to where the guest runs: greeting, pinning, `cont`. Each wait races with QEMU's end and with
    /// signals.
    async fn ready(
        &mut self,
        process: &mut launch::Process,
        monitor: tokio::net::UnixStream,
        requests: &mut Requests<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Running<'a>, Cause> {
        let (plan, pid) = (self.run.plan, process.pid());
        let continued = self.run.places.continued(&plan.name);
        let greeting = launch::greet(plan, monitor);
        tokio::pin!(greeting);
        let greeted = loop {
            let result = tokio::select! {
                result = &mut greeting => result,
                exit = process.exited() => Err(process.died(exit)),
                signal = requests.end() => return Err(Cause::Interrupted { signal }),
                () = tokio::time::sleep(driver::STILL_THERE) => {
                    if gpuvm_host::process::waits_in_kernel(pid) {
                        observer.note(&driver::waits(pid));
                    }
                    continue;
                }
            };
            match result {
                Ok(greeted) => break greeted,
                Err(error) => return Err(process.explain(error).await.into()),
            }
        };
        driver::step(&mut self.life, Event::Greeted, observer);
        let steps = async {
            let vcpus = greeted.qmp.vcpu_threads(COMMAND).await?;
            observer.threads(&vcpus);
            observer.phase(&Phase::Pinning { vcpus: plan.placement.vcpus.len() });
            pin::pin(plan, pid, &vcpus)?;
            // Noted first: a guest without this note has not run an instruction.
            fs::write(&continued, pid.to_string()).map_err(launch::file("write", &continued))?;
            greeted.qmp.cont(COMMAND).await?;
            Ok::<_, LaunchError>(Running { greeted, plan, vcpus, first: None })
        };
        let result = tokio::select! {
            result = steps => result,
            exit = process.exited() => Err(process.died(exit)),
            signal = requests.end() => return Err(Cause::Interrupted { signal }),
        };
        match result {
            Err(error) => Err(process.explain(error).await.into()),
            Ok(running) => {
                // In this order: whoever is told that it runs may pause it at once.
                driver::step(&mut self.life, Event::Continued, observer);
                let qemu = running.greeted.qmp.version().to_string();
                observer.phase(&Phase::Running { pid, qemu });
                Ok(running)
            }
        }
    }

    fn paths(&self) -> Paths {
        let (places, name) = (self.run.places, &self.run.plan.name);
        let (run, record) = (places.vm(name), places.qemu(name));
        Paths { run, record, state: places.state(name), logs: places.logs(name) }
    }

    fn record_in_flight(&mut self, pid: i32) -> Result<(), HostError> {
        self.reservation.in_flight.extend(ProcessId::of(pid));
        reservation::update(self.run.places, &self.reservation)
    }
}

impl Run<'_> {
    fn host<'b>(&'b self, baselines: &'b BTreeMap<Bdf, Snapshot>) -> Host<'b> {
        let vm = &self.plan.name;
        Host { kernel: self.kernel, places: self.places, boot_id: self.boot_id, vm, baselines }
    }
}
