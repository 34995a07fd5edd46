//! The one way out of a run: its devices are judged, what was changed is undone, and what it had is given free.

use std::time::Instant;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::lifecycle::{Event, GivenBack, Outcome, State};
use gpuvm_core::profile::VmName;
use gpuvm_host::journal::{self, Journal};
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::{HostError, reservation, undo};

use super::Session;
use crate::driver;
use crate::error::{Cause, UpError};
use crate::judging::{self, Judged, Ran, Resets, Stage, keep};
use crate::repairing;
use crate::report::{DeviceReport, Observer, Phase, Report, Timing};

impl Session<'_> {
    /// Resets the devices if the plan wants it, judges them and writes down how they came back.
    pub(super) fn judge(&mut self, outcome: Option<&Outcome>, observer: &mut dyn Observer) -> Judged {
        let mut resets = Resets::default();
        for (bdf, ms) in self.kernel_log.take_resets() {
            self.kernel_resets.entry(bdf).or_default().push(ms);
        }
        if self.started {
            let mut told = |method, bdf| observer.phase(&Phase::Resetting { bdf, method });
            resets = judging::reset(self.run.kernel, &judging::planned(self.run.plan), &mut told);
        }
        observer.phase(&Phase::Judging);
        let (root, places) = (&self.run.kernel.root, self.run.places);
        let ran = Ran {
            vm: &self.run.plan.name,
            qemu: self.qemu.as_deref(),
            started: self.started,
            outcome,
            took: self.since.elapsed(),
        };
        let (log, ours) = (&mut self.kernel_log, judging::our_methods(&self.journal));
        let heard = &mut |bdf| log.heard(bdf);
        let mut judged = judging::after_run(root, places, &self.baselines, &ours, heard, resets, ran);
        self.repair(&mut judged, observer);
        tell(&judged, observer);
        judged
    }

    /// Repairs what was judged sick, as far as the plan has it so.
    fn repair(&mut self, judged: &mut Judged, observer: &mut dyn Observer) {
        let expected = judging::expected(&self.baselines, &judging::our_methods(&self.journal));
        let host = self.run.host(&expected);
        let mended = repairing::repair(&host, &mut self.journal, self.run.plan, judged, observer);
        let Some(took) = mended.took else { return };
        self.timings.push(Timing::new("repair", took));
        mended.regroup(&self.run.kernel.root, &mut self.reservation);
        judged.failures.extend(reservation::update(self.run.places, &self.reservation).err());
        self.baselines.extend(mended.baselines);
        judged.failures.extend(keep(&self.run.places.baselines(&self.run.plan.name), &self.baselines).err());
        // What the kernel has said of the repair is in its verdict.
        judged.devices.iter().for_each(|device| drop(self.kernel_log.heard(device.bdf)));
    }

    /// Judges the devices, undoes every change and gives the devices free: the one way out.
    pub(super) fn give_back(
        mut self,
        outcome: Result<Outcome, Cause>,
        observer: &mut dyn Observer,
    ) -> Result<Report, UpError> {
        if let Err(cause @ Cause::Host(HostError::QemuStuck { .. })) = outcome {
            // It still has the devices: journal and reservation stay, and `gpuvm cleanup` judges them.
            return Err(UpError { cause: Box::new(cause), devices: Vec::new(), left: Vec::new() });
        }
        if matches!(self.life.state(), State::Preparing | State::HostReady) {
            driver::step(&mut self.life, Event::NeverStarted, observer);
        }
        let begun = Instant::now();
        let judged = match self.judged.take() {
            Some(judged) => judged,
            None => self.judge(outcome.as_ref().ok(), observer),
        };
        observer.phase(&Phase::GivingBack);
        let (left, devices) = self.undo(judged, observer);
        self.timings.push(Timing::new("give-back", begun.elapsed()));
        driver::step(&mut self.life, Event::GivenBack(given_back(&left)), observer);
        match outcome {
            Ok(outcome) => Ok(Report {
                name: self.run.plan.name.clone(),
                outcome,
                reboots: self.reboots,
                devices,
                between_boots: self.between_boots,
                kernel_resets: self.kernel_resets,
                not_given_back: left.iter().map(ToString::to_string).collect(),
                warnings: self.run.plan.warnings.iter().cloned().chain(self.warnings).collect(),
                timings: self.timings,
                last_words: self.last_words,
                left,
            }),
            Err(cause) => Err(UpError { cause: Box::new(cause), devices, left }),
        }
    }

    /// Undoes what the journal holds, but of what stays as it is. Where anything is left, journal and reservation stay, for
    /// `gpuvm cleanup`.
    fn undo(&mut self, judged: Judged, observer: &mut dyn Observer) -> (Vec<HostError>, Vec<DeviceReport>) {
        let (places, vm) = (self.run.places, &self.run.plan.name);
        let noted = judging::note_judged(places, vm, &judged.devices, Stage::Judged);
        let host = self.run.host(&self.baselines);
        let mut told = |op: &HostOp| observer.phase(&Phase::Undoing { what: op.to_string() });
        let mut left = undo::undo_some(&host, &mut self.journal, &|op| judged.part(op), &mut told);
        left.extend(judged.stay(&self.journal));
        left.extend(judged.failures);
        left.extend(noted.err());
        for error in &left {
            if let HostError::InFlight { pid, .. } = error {
                self.reservation.in_flight.extend(ProcessId::of(*pid));
            }
        }
        if self.journal.open_records().is_empty() {
            observer.phase(&Phase::Releasing);
            left.extend(close(places, vm, &mut self.journal).err());
        } else {
            left.extend(reservation::update(places, &self.reservation).err());
            left.extend(judging::note_judged(places, vm, &judged.devices, Stage::Told).err());
        }
        (left, judged.devices)
    }
}

/// Tells how each device is.
pub(super) fn tell(judged: &Judged, observer: &mut dyn Observer) {
    judged.devices.iter().for_each(|device| observer.judged(device.bdf, &device.judgement));
}

/// Says in how far the host was given back.
fn given_back(left: &[HostError]) -> GivenBack {
    match left {
        [] => GivenBack::Wholly,
        left if left.iter().all(|error| matches!(error, HostError::Sick { .. })) => GivenBack::ButSick,
        _ => GivenBack::Partly,
    }
}

/// Closes a journal that has nothing left, removes the VM's folder and gives the devices free: last, so that nobody else
/// comes in between.
pub(crate) fn close(places: &Places, vm: &VmName, journal: &mut Journal) -> Result<(), HostError> {
    journal.close()?;
    journal::remove_dir(&places.vm(vm))?;
    reservation::release(places, vm)
}
