//! The cycles of a soak, each planned anew on the host as it is then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpuvm_core::lifecycle::Patience;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::{Profile, VmName};
use gpuvm_core::reset::Snapshot;
use gpuvm_core::soak::{Cycle, CycleKind, Fault, OwnUse, Phase, PhaseTime};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::ledger::now;
use gpuvm_host::{HostError, facts, soak};
use gpuvm_run::soak::{Awaited, CycleEnd, CycleJob};
use gpuvm_run::{Cause, Launched, Run, Signals, UpError};

use super::begin::Begun;
use super::course::{Cycles, Over};
use super::progress::Progress;
use super::report::Drawing;
use crate::cli::Cli;
use crate::cmd::up::{shortage, without_hugepages};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::load;

/// A VM that is run again and again.
pub(super) struct Guest<'a> {
    cli: &'a Cli,
    vm: VmName,
    profile: Profile,
    text: String,
    kernel: Kernel,
    boot_id: String,
    ready: Awaited,
    first: BTreeMap<Bdf, Snapshot>,
    shutdown_timeout: Option<u32>,
    folder: PathBuf,
    signals: Signals,
    drawing: Drawing,
}

impl<'a> Guest<'a> {
    pub(super) fn new(cli: &'a Cli, begun: &Begun, signals: Signals) -> Result<Self, Failure> {
        let ready = Awaited::new(begun.book.settings.ready.clone())
            .map_err(|error| Failure::one(Exit::Usage, format!("--expect: {error}"), None))?;
        Ok(Self {
            cli,
            vm: begun.vm.clone(),
            profile: begun.loaded.profile.clone(),
            text: begun.loaded.text.clone(),
            kernel: Kernel::running(cli.host_root()).without_rest(),
            drawing: Drawing::default(),
            boot_id: facts::boot_id(&cli.host_root())?,
            ready,
            first: begun.first.clone(),
            shutdown_timeout: begun.book.settings.shutdown_timeout,
            folder: begun.book.record.folder().to_owned(),
            signals,
        })
    }

    /// Plans the profile and runs it.
    async fn once(
        &mut self,
        profile: &Profile,
        number: u32,
        kind: CycleKind,
        progress: &mut Progress,
    ) -> Result<CycleEnd, Box<(Failure, u64)>> {
        let (at, begun) = (now(), Instant::now());
        let planned = load::planned(self.cli, profile);
        let plan_ms = millis(begun.elapsed());
        let (plan, _) = planned.map_err(|failure| Box::new((failure, plan_ms)))?;
        let acpi = Duration::from_secs(self.shutdown_timeout.unwrap_or(plan.shutdown_timeout).into());
        let places = self.cli.places();
        let run = Run {
            plan: &plan,
            profile: &self.text,
            kernel: &self.kernel,
            places: &places,
            boot_id: &self.boot_id,
            patience: Patience { acpi, ..Patience::with_functions(plan.owned().count()) },
            launched: Launched::Foreground,
        };
        let job = CycleJob { run, number, kind, ready: &self.ready, first: &self.first, at, plan_ms };
        Ok(gpuvm_run::soak::cycle(&job, &mut self.signals, progress, None).await)
    }
}

impl Cycles for Guest<'_> {
    async fn cycle(&mut self, number: u32, kind: CycleKind, progress: &mut Progress) -> Over {
        let (at, begun) = (now(), Instant::now());
        let profile = self.profile.clone();
        let mut end = self.once(&profile, number, kind, progress).await;
        if let Ok(CycleEnd { error: Some(error), .. }) = &end
            && shortage(&profile, error).is_some()
        {
            end = self.once(&without_hugepages(profile), number, kind, progress).await;
        }
        let mut over = match end {
            Ok(CycleEnd { mut cycle, interrupted, error, .. }) => {
                cycle.faults.extend(error.filter(is_fault).map(never_ran));
                Over { cycle, interrupted }
            }
            Err(refused) => {
                let (failure, plan_ms) = *refused;
                Over { cycle: unplanned(number, kind, at, plan_ms, &failure), interrupted: None }
            }
        };
        // Of one that was tried twice, both tries.
        over.cycle.at = at;
        over.cycle.ms = over.cycle.ms.max(millis(begun.elapsed()));
        over
    }

    async fn asked(&mut self) -> Option<&'static str> {
        self.signals.pending().await
    }

    async fn wait(&mut self, time: Duration) -> Option<&'static str> {
        tokio::select! {
            biased;
            signal = self.signals.next() => Some(signal),
            () = tokio::time::sleep(time) => None,
        }
    }

    fn keep_console(&mut self, number: u32) -> Option<String> {
        let kept = soak::keep_console(&self.cli.places(), &self.vm, &self.folder, number);
        kept.err().map(|error| error.to_string())
    }

    fn draw(&mut self) -> Option<String> {
        self.drawing.begin(&self.folder).err()
    }
}

/// Tells whether it is held against a cycle that its guest never ran. That somebody asked for its end before is none; that something is
/// left of it is one, and so is whatever else went wrong, though a signal came at the same moment.
fn is_fault(error: &UpError) -> bool {
    !error.left.is_empty() || !matches!(*error.cause, Cause::Interrupted { .. })
}

/// Turns why a guest never ran, or isn't gone, into what is wrong with the cycle.
fn never_ran(error: UpError) -> Fault {
    let stuck = matches!(*error.cause, Cause::Host(HostError::QemuStuck { .. }));
    let failure = Failure::from(error);
    match stuck {
        true => Fault::NotGivenBack { message: failure.message() },
        false => Fault::Refused { message: failure.message(), exit_code: failure.code as u8 },
    }
}

/// Makes the line of a cycle that couldn't even be planned.
fn unplanned(number: u32, kind: CycleKind, at: u64, plan_ms: u64, failure: &Failure) -> Cycle {
    Cycle {
        number,
        kind,
        at,
        ms: plan_ms,
        phases: vec![PhaseTime { phase: Phase::Plan, ms: plan_ms }],
        waited_ms: 0,
        outcome: None,
        faults: vec![Fault::Refused { message: failure.message(), exit_code: failure.code as u8 }],
        devices: Vec::new(),
        job: None,
        polled: None,
        own: OwnUse::default(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::asked_to_end_before_it_ran(Cause::Interrupted { signal: "SIGINT" }, false, false)]
    #[case::and_something_is_left(Cause::Interrupted { signal: "SIGINT" }, true, true)]
    #[case::refused_as_a_signal_came(Cause::Host(HostError::LeftBehind { vm: "vm1".to_owned() }), false, true)]
    fn a_signal_takes_no_refusal_away(#[case] cause: Cause, #[case] leaves: bool, #[case] is: bool) {
        let left = || HostError::LeftBehind { vm: "vm2".to_owned() };
        let left = leaves.then(left).into_iter().collect();
        assert_eq!(is_fault(&UpError { cause: Box::new(cause), devices: Vec::new(), left }), is);
    }
}
