//! The whole way of a VM: reserve, prepare, start, run, judge, give back.
//!
//! ```text
//! reserve -> journal -> operations -> check groups -> QEMU -S -> pin -> cont -> run -> exit -> judge -> undo -> release
//!               \____________\_____________\____________\_______\______\_____ any failure _____/
//! ```
//!
//! From the journal's first line on there is one way out, [`Session::give_back`], and it is taken whatever happened.

use std::path::Path;
use std::time::Instant;

use gpuvm_core::lifecycle::{Outcome, Patience};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::plan::mmio::memory_top;
use gpuvm_core::profile::Serial;
use gpuvm_core::reset::{Finding, Snapshot, Verdict, judge};
use gpuvm_core::units::ByteSize;
use gpuvm_host::apply::{self, Host};
use gpuvm_host::journal::{self, Journal};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::{HostError, config, lock, undo};
use serde::Serialize;

use crate::console::{Console, Sink};
use crate::driver::{self, Running};
use crate::error::{Cause, UpError};
use crate::launch::{self, COMMAND, Paths, Started};
use crate::pin;
use crate::report::{DeviceReport, Observer, Phase, Report, Timing};
use crate::signals::Signals;

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
}

/// What is kept beside the journal, so that no later verb reads the user's file again.
#[derive(Serialize)]
struct Kept<'a> {
    plan: &'a Plan,
    profile: &'a str,
}

/// A run that has something to give back.
struct Session<'a> {
    run: &'a Run<'a>,
    journal: Journal,
    reservation: Reservation,
    timings: Vec<Timing>,
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
    let early = |cause: Cause| UpError { cause: Box::new(cause), left: Vec::new() };
    observer.phase(&Phase::Reserving);
    let baselines = baselines(run).map_err(early)?;
    let reservation = Reservation::new(run.plan, run.boot_id);
    reservation::reserve(run.places, &reservation).map_err(|error| early(error.into()))?;
    let journal = match begin(run) {
        Ok(journal) => journal,
        Err(error) => {
            let left = reservation::release(run.places, &run.plan.name).err().into_iter().collect();
            return Err(UpError { cause: Box::new(error.into()), left });
        }
    };
    let mut session = Session { run, journal, reservation, timings: Vec::new() };
    let outcome = session.live(signals, console, observer).await;
    session.give_back(outcome, &baselines, observer)
}

/// Takes what each device says of itself before anything is done: what it is judged against afterwards.
fn baselines(run: &Run<'_>) -> Result<Vec<(Bdf, Snapshot)>, Cause> {
    let mut baselines = Vec::new();
    for device in &run.plan.devices {
        let bdf = device.bdf;
        let now = config::snapshot(&run.kernel.root, bdf)?;
        if let Verdict::Sick { findings } = judge(&now, Ok(now))
            && let Some(finding) = findings.into_iter().next()
        {
            return Err(Cause::SickBefore { bdf, finding });
        }
        // Its ids as the kernel read them at boot: a card that has gone since answers with all ones.
        if now.id != device.id && now.id.vendor != 0xffff || now.command == 0xffff {
            let finding = match now.command {
                0xffff => Finding::AllOnes,
                _ => Finding::OtherId { was: device.id, now: now.id },
            };
            return Err(Cause::SickBefore { bdf, finding });
        }
        baselines.push((bdf, now));
    }
    Ok(baselines)
}

fn begin(run: &Run<'_>) -> Result<Journal, HostError> {
    let folder = run.places.vm(&run.plan.name);
    // What a former run of this name left there is closed, or reserve would have refused.
    journal::remove_dir(&folder)?;
    for folder in [&folder, &run.places.state(&run.plan.name), &run.places.logs(&run.plan.name)] {
        lock::make_dir(folder)?;
    }
    let kept = folder.join("run.json");
    let text = serde_json::to_vec_pretty(&Kept { plan: run.plan, profile: run.profile })
        .map_err(|error| HostError::content(&kept, "", error))?;
    lock::replace(&kept, &text)?;
    Journal::begin(&run.places.journal(&run.plan.name), run.boot_id)
}

impl<'a> Session<'a> {
    /// Prepares the host, starts QEMU and runs the guest to its end. QEMU is gone and collected when this returns.
    async fn live(
        &mut self,
        signals: &mut Signals,
        console: Option<Sink>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, Cause> {
        let begun = Instant::now();
        self.prepare(signals, observer).await?;
        self.timings.push(Timing::new("prepare", begun.elapsed()));
        observer.phase(&Phase::Starting);
        let begun = Instant::now();
        let paths = self.paths();
        let Started { mut process, monitor, serial } = launch::start(self.run.plan, &paths)?;
        let console = match self.run.plan.serial {
            Serial::Console => console,
            Serial::Log => None,
        };
        let log = paths.logs.join("console.log");
        let console = Console::copy(serial, &log, console);
        let console = console.map_err(HostError::file("copy the console to", &log));
        let ready = match (console, self.record_qemu(process.pid())) {
            (Ok(console), Ok(())) => {
                let ready = self.ready(&mut process, monitor, signals, observer).await;
                ready.map(|running| (running, console))
            }
            (Err(error), _) | (_, Err(error)) => Err(error.into()),
        };
        self.timings.push(Timing::new("start", begun.elapsed()));
        let (running, console) = match ready {
            Ok(both) => both,
            Err(cause) => {
                driver::end(&mut process).await;
                return Err(cause);
            }
        };
        let begun = Instant::now();
        let outcome = driver::drive(running, &mut process, self.run.patience, signals, observer).await;
        self.timings.push(Timing::new("run", begun.elapsed()));
        observer.phase(&Phase::Ended);
        if matches!(outcome, Outcome::QemuDied { .. } | Outcome::InternalError) {
            observer.note(&crate::report::Note(format!("QEMU said:\n{}", process.stderr())));
        }
        console.finish().await;
        Ok(outcome)
    }

    /// Makes the planned changes and asks the kernel whether it would let a guest have the groups.
    async fn prepare(&mut self, signals: &mut Signals, observer: &mut dyn Observer) -> Result<(), Cause> {
        let plan = self.run.plan;
        observer.phase(&Phase::Preparing { operations: plan.operations.len() });
        for planned in &plan.operations {
            if let Some(signal) = signals.pending().await {
                return Err(Cause::Interrupted { signal });
            }
            observer.phase(&Phase::Operation { what: planned.op.to_string() });
            let result = apply::apply(&self.run.host(), &mut self.journal, &planned.op);
            if let Err(HostError::InFlight { pid, .. }) = &result {
                self.record_in_flight(*pid)?;
            }
            result?;
        }
        let groups: Vec<_> = plan.groups.iter().map(|group| group.id).collect();
        if !groups.is_empty() {
            observer.phase(&Phase::Checking { groups: groups.len() });
            let size: u64 = plan.memory.iter().map(|cell| cell.size.as_bytes()).sum();
            self.run.kernel.check_groups(&groups, memory_top(ByteSize::bytes(size)))?;
        }
        match signals.pending().await {
            Some(signal) => Err(Cause::Interrupted { signal }),
            None => Ok(()),
        }
    }

    /// Brings a started QEMU to where the guest runs: greeting, pinning, `cont`.
    async fn ready(
        &self,
        process: &mut launch::Process,
        monitor: tokio::net::UnixStream,
        signals: &mut Signals,
        observer: &mut dyn Observer,
    ) -> Result<Running<'a>, Cause> {
        let plan = self.run.plan;
        let greeted = tokio::select! {
            greeted = launch::greet(plan, process, monitor) => greeted?,
            signal = signals.next() => return Err(Cause::Interrupted { signal }),
        };
        let vcpus = greeted.qmp.vcpu_threads(COMMAND).await.map_err(launch_error)?;
        observer.phase(&Phase::Pinning { vcpus: plan.placement.vcpus.len() });
        pin::pin(plan, process.pid(), &vcpus)?;
        greeted.qmp.cont(COMMAND).await.map_err(launch_error)?;
        observer.phase(&Phase::Running { pid: process.pid(), qemu: greeted.qmp.version().to_string() });
        Ok(Running { greeted, plan, vcpus })
    }

    fn paths(&self) -> Paths {
        let (places, name) = (self.run.places, &self.run.plan.name);
        Paths { run: places.vm(name), state: places.state(name), logs: places.logs(name) }
    }

    fn record_qemu(&mut self, pid: i32) -> Result<(), HostError> {
        self.reservation.qemu = process_id(pid);
        reservation::update(self.run.places, &self.reservation)
    }

    fn record_in_flight(&mut self, pid: i32) -> Result<(), HostError> {
        self.reservation.in_flight.extend(process_id(pid));
        reservation::update(self.run.places, &self.reservation)
    }

    /// Judges the devices, undoes every change and gives the devices free: the one way out.
    fn give_back(
        mut self,
        outcome: Result<Outcome, Cause>,
        baselines: &[(Bdf, Snapshot)],
        observer: &mut dyn Observer,
    ) -> Result<Report, UpError> {
        let begun = Instant::now();
        observer.phase(&Phase::Judging);
        let root = &self.run.kernel.root;
        let verdict = |(bdf, before): &(Bdf, Snapshot)| DeviceReport {
            bdf: *bdf,
            verdict: judge(before, config::snapshot(root, *bdf).map_err(|error| error.to_string())),
        };
        let devices: Vec<_> = baselines.iter().map(verdict).collect();
        observer.phase(&Phase::GivingBack);
        let left = self.undo();
        self.timings.push(Timing::new("give-back", begun.elapsed()));
        match outcome {
            Ok(outcome) => Ok(Report {
                name: self.run.plan.name.clone(),
                outcome,
                devices,
                not_given_back: left.iter().map(ToString::to_string).collect(),
                timings: self.timings,
                left,
            }),
            Err(cause) => Err(UpError { cause: Box::new(cause), left }),
        }
    }

    /// Undoes what the journal holds. Where anything is left, journal and reservation stay, for `gpuvm cleanup`.
    fn undo(&mut self) -> Vec<HostError> {
        let mut left = match undo::undo_all(&self.run.host(), &mut self.journal) {
            Ok(left) => left,
            Err(error) => vec![error],
        };
        for error in &left {
            if let HostError::InFlight { pid, .. } = error {
                self.reservation.in_flight.extend(process_id(*pid));
            }
        }
        if self.journal.open_records().is_empty() {
            left.extend(close(self.run.places, &self.run.plan.name, &mut self.journal).err());
        } else {
            left.extend(reservation::update(self.run.places, &self.reservation).err());
        }
        left
    }
}

impl<'a> Run<'a> {
    fn host(&self) -> Host<'a> {
        Host { kernel: self.kernel, places: self.places, boot_id: self.boot_id, vm: &self.plan.name }
    }
}

/// Closes a journal that has nothing left, gives the devices free and removes the VM's folder.
pub(crate) fn close(
    places: &Places,
    vm: &gpuvm_core::profile::VmName,
    journal: &mut Journal,
) -> Result<(), HostError> {
    journal.close()?;
    let folder = places.vm(vm);
    journal::remove_dir(Path::new(&folder))?;
    reservation::release(places, vm)
}

fn process_id(pid: i32) -> Option<ProcessId> {
    ProcessId::of(pid)
}

fn launch_error(error: gpuvm_qmp::Error) -> Cause {
    Cause::Launch(error.into())
}
