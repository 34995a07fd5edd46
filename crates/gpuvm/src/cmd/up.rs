//! `gpuvm up`: runs a VM until its guest ends.

pub(crate) mod detach;
pub(crate) mod unit;
mod wait;
mod word;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuvm_core::control::Finale;
use gpuvm_core::lifecycle::{Halt, NotAgain, Outcome, Patience, State};
use gpuvm_core::plan::{Topic, Warning};
use gpuvm_core::profile::{Hugepages, Memory, Policy, Profile, Serial};
use gpuvm_host::HostError;
use gpuvm_host::kernel::Kernel;
use gpuvm_run::{
    Cause, Control, Launched, Longest, Note, Observer, Phase, Report, Run, Signals, Sink, UpError, up_served,
};
use serde::Serialize;

use crate::cli::{Cli, UpArgs};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::load::Loaded;
use unit::Unit;
pub(crate) use wait::WaitFor;
pub(crate) use word::Teller;

use crate::{came_back, hints, load, locked, out};

pub(super) fn run(cli: &Cli, args: &UpArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let word = match (args.detach, args.word_fd) {
        (true, None) => return detach::run(cli, args),
        (_, Some(fd)) => Some(word_socket(fd)?),
        (false, None) => None,
    };
    // What has started a detached one may itself be a service, whose manager this VM is no affair of.
    let unit = if word.is_none() { Unit::from_env() } else { None };
    let teller = Arc::new(Teller::new(word, unit));
    // The timer and the signals live in a runtime on this thread: QEMU dies with the thread that starts it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::one(Exit::Internal, format!("start tokio: {error}"), None))?;
    let result = runtime.block_on(up(cli, args, &teller));
    teller.ended(&result);
    let result = match result {
        // Who has it stopped before its guest ran has what it wants: a service that is stopped has not failed.
        Err(failure) if teller.has_manager() && failure.is_interruption() => {
            out::note(&format!("gpuvm: {}", failure.message()));
            Ok(Exit::Ok)
        }
        result => result,
    };
    if matches!(result, Ok(Exit::Ok)) {
        teller.ends_well();
    }
    result
}

/// Takes the socket on which the gpuvm that has started this one is told how it goes.
pub(super) fn word_socket(fd: i32) -> Result<UnixStream, Failure> {
    let message = |error| format!("take descriptor {fd} of the gpuvm that has started this one: {error}");
    gpuvm_run::detach::word_socket(fd).map_err(|error| Failure::one(Exit::Usage, message(error), None))
}

async fn up(cli: &Cli, args: &UpArgs, teller: &Arc<Teller>) -> Result<Exit, Failure> {
    // Caught before anything is changed, so that no signal can end gpuvm between a change and its undoing.
    let launched = if args.word_fd.is_some() { Launched::Detached } else { Launched::Foreground };
    let signals = match launched {
        Launched::Foreground => Signals::catch(),
        Launched::Detached => Signals::catch().and_then(Signals::of_a_scope),
    };
    let signals =
        signals.map_err(|error| Failure::one(Exit::Internal, format!("catch signals: {error}"), None))?;
    let loaded = load::profile(cli, &args.profile)?;
    teller.wait_for(args.wait.clone().unwrap_or_else(|| WaitFor::Ready(loaded.profile.ready.clone())));
    let mut progress = Progress::with_teller(cli, teller);
    let mut served = Served { control: Control::new(env!("CARGO_PKG_VERSION"), launched), signals, launched };
    let judged = locked::before_up(cli, &args.profile, loaded, args.on_changes())?;
    let loaded = judged.loaded;
    if judged.written {
        progress.tell(&format!("{} is written anew", loaded.lock.path.display()));
    }
    let mut known = judged.warnings;
    let first = attempt(cli, args, &loaded, &known, &mut served, &mut progress).await?;
    let report = match first {
        Err(error) => match shortage(&loaded.profile, &error) {
            Some(shortage) => {
                progress.tell("the host is as it was; trying again with ordinary pages");
                known.push(shortage);
                let loaded = Loaded { profile: without_hugepages(loaded.profile), ..loaded };
                attempt(cli, args, &loaded, &known, &mut served, &mut progress).await?
            }
            None => Err(error),
        },
        ran => ran,
    };
    conclude(cli, report, served.control, &mut progress)
}

/// Tells how a run has ended: the person, whoever has started this gpuvm, and those at the control socket.
pub(super) fn conclude(
    cli: &Cli,
    report: Result<Report, UpError>,
    control: Control,
    progress: &mut Progress,
) -> Result<Exit, Failure> {
    let lasts = finale(&report);
    if let (Ok(report), Some(teller)) = (&report, &progress.teller) {
        teller.status(&format!("the guest {}", report.outcome));
    }
    let report = report.map_err(|mut error| {
        let goes_on =
            matches!(*error.cause, Cause::Host(HostError::QemuStuck { .. }) | Cause::NotAdopted { .. });
        if error.left.is_empty() && !goes_on {
            progress.tell("the host is as it was");
        }
        // A device that was sick before is told as what stood in the way.
        if !cli.json && !matches!(*error.cause, Cause::SickBefore { .. }) {
            came_back::tell(&error.devices);
            error.left.retain(|left| !came_back::is_told(left));
        }
        error
    });
    let result = report.map_err(Failure::from).map(|report| {
        if cli.json {
            out::told(out::json(&Document { exit_code: code(&report), report: &report }));
        } else {
            summary(&report);
        }
        code(&report)
    });
    let exit = result.as_ref().map_or_else(|failure| failure.code, |exit| *exit);
    control.finish(Finale { exit_code: exit as u8, ..lasts });
    result
}

/// What of a run is the same in each attempt.
struct Served {
    control: Control,
    signals: Signals,
    launched: Launched,
}

/// Says how a run ended, for those who have asked for its end.
fn finale(ended: &Result<Report, UpError>) -> Finale {
    let (outcome, failure, devices, left) = match ended {
        Ok(report) => (Some(report.outcome.clone()), None, &report.devices, &report.left),
        Err(error) => (None, Some(error.cause.to_string()), &error.devices, &error.left),
    };
    let sick = devices.iter().filter_map(|device| {
        let judgement = &device.judgement;
        judgement.reason().map(|finding| format!("{} is {}: {finding}", device.bdf, judgement.verdict))
    });
    Finale {
        outcome,
        failure,
        not_given_back: left.iter().map(ToString::to_string).collect(),
        devices: sick.collect(),
        exit_code: Exit::Ok as u8,
    }
}

/// Plans a profile on the host as it is now, and runs it. The outer result is the plan's, the inner one the run's.
async fn attempt(
    cli: &Cli,
    args: &UpArgs,
    loaded: &Loaded,
    known: &[Warning],
    served: &mut Served,
    progress: &mut Progress,
) -> Result<Result<Report, UpError>, Failure> {
    let (mut plan, _) = load::planned(cli, &loaded.profile)?;
    plan.warnings.extend(known.iter().cloned());
    for warning in &plan.warnings {
        progress.tell(&format!("warning: {}: {}", warning.about, warning.message));
    }
    for deviation in &plan.deviations {
        progress.tell(&format!("{}: {}", deviation.key, deviation.what));
    }
    progress.tell(&format!("console.log and qemu.log: {}", cli.places().logs(&plan.name).display()));
    // Whoever waits for the guest's end reads it in the plan that is kept.
    plan.shutdown_timeout = args.shutdown_timeout.unwrap_or(plan.shutdown_timeout);
    let acpi = Duration::from_secs(plan.shutdown_timeout.into());
    let patience = Patience { acpi, ..Patience::with_functions(plan.owned().count()) };
    if let Some(teller) = &progress.teller {
        teller.limits(Longest::of(&plan, patience));
    }
    let run = Run {
        plan: &plan,
        profile: &loaded.text,
        kernel: &Kernel::running(cli.host_root()),
        places: &cli.places(),
        boot_id: &gpuvm_host::facts::boot_id(&cli.host_root())?,
        patience,
        launched: served.launched,
    };
    let shown = match served.launched {
        Launched::Foreground => console(cli).filter(|_| plan.serial == Serial::Console),
        Launched::Detached => None,
    };
    let console = both(shown, progress.teller.as_ref().and_then(Teller::sink));
    Ok(up_served(&run, &mut served.signals, &mut served.control, console, progress).await)
}

/// Tells whether a run ended before it began because the kernel found too few hugepages, the profile can do without them, and
/// the host is as it was.
pub(super) fn shortage(profile: &Profile, error: &UpError) -> Option<Warning> {
    let prefers = profile.memory.hugepages_policy == Policy::Prefer && error.left.is_empty();
    let Cause::Host(cause @ HostError::Hugepages { .. }) = &*error.cause else { return None };
    let message = format!("{cause}; ordinary pages back the guest's memory");
    prefers.then_some(Warning { about: Topic::Hugepages, message })
}

/// The same profile with ordinary pages: whether a node has enough of them is for the plan to say.
pub(super) fn without_hugepages(profile: Profile) -> Profile {
    let memory = Memory { hugepages: Hugepages::Off, ..profile.memory };
    Profile { memory, ..profile }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    exit_code: Exit,
    #[serde(flatten)]
    report: &'a Report,
}

fn code(report: &Report) -> Exit {
    if !report.left.is_empty() || !report.all_well() {
        return Exit::NotGivenBack;
    }
    match report.outcome {
        Outcome::PoweredOff | Outcome::Stopped { .. } => Exit::Ok,
        Outcome::Rebooted { not_again: Some(NotAgain::Looping) } => Exit::Guest,
        Outcome::Rebooted { .. } => Exit::Ok,
        Outcome::Panicked
        | Outcome::InternalError { .. }
        | Outcome::MemoryFailure
        | Outcome::Watchdog
        | Outcome::QemuDied { .. } => Exit::Guest,
    }
}

/// Streams the console to standard output; with `--json` that is kept for the one document.
fn console(cli: &Cli) -> Option<Sink> {
    if cli.json {
        return None;
    }
    Some(Box::new(|bytes: &[u8]| {
        // The guest's bytes go through as they are: it may draw on the terminal.
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }))
}

/// Makes one sink of two. When one is gone, such as a closed pipe, the other goes on.
fn both(one: Option<Sink>, other: Option<Sink>) -> Option<Sink> {
    let mut sinks: Vec<Sink> = one.into_iter().chain(other).collect();
    if sinks.len() < 2 {
        return sinks.pop();
    }
    Some(Box::new(move |bytes: &[u8]| {
        let mut last = Ok(());
        sinks.retain_mut(|sink| {
            let result = sink(bytes);
            let stays = result.is_ok();
            if !stays {
                last = result;
            }
            stays
        });
        if sinks.is_empty() { last } else { Ok(()) }
    }))
}

fn summary(report: &Report) {
    let reboots = match report.reboots {
        0 => String::new(),
        1 => ", after 1 reboot".to_owned(),
        count => format!(", after {count} reboots"),
    };
    out::note(&format!("gpuvm: the guest {}{reboots}", report.outcome));
    for line in report.last_words.as_ref().and_then(hints::last_words).iter().flat_map(|hint| hint.lines()) {
        out::note(&format!("  hint: {line}"));
    }
    came_back::tell(&report.devices);
    for error in report.left.iter().filter(|error| !came_back::is_told(error)) {
        failure::print_item("error", &failure::left(error));
    }
    out::note(given_back(&report.left));
}

/// Says in how far the host is as it was.
fn given_back(left: &[HostError]) -> &'static str {
    let by_others = |error: &HostError| matches!(error, HostError::ChangedByOthers { .. });
    match left {
        [] => "gpuvm: the host is as it was",
        left if left.iter().all(by_others) => {
            "gpuvm: the host is given back, but for what others have changed meanwhile"
        }
        left if left.iter().all(|error| by_others(error) || came_back::is_told(error)) => {
            "gpuvm: the host is given back, but for the sick devices"
        }
        _ => "gpuvm: the host is NOT wholly as it was; once mended: gpuvm cleanup",
    }
}

/// Says of a signal that ends a guest that another one hurries: until the guest is off, nothing else is told.
pub(super) fn hurried(note: &str) -> String {
    match note.strip_suffix(": ending the guest") {
        Some(signal) if signal.starts_with("SIG") => {
            format!("{note}, by its power button first; one more {signal} hurries")
        }
        _ => note.to_owned(),
    }
}

/// Tells a person what is done.
pub(super) struct Progress {
    /// Who waits for the VM to be up.
    teller: Option<Arc<Teller>>,
    begun: Instant,
    verbose: Verbose,
}

#[derive(PartialEq, Eq)]
enum Verbose {
    Quiet,
    Told,
}

impl Progress {
    pub(super) fn new(cli: &Cli) -> Self {
        let verbose = if cli.json { Verbose::Quiet } else { Verbose::Told };
        Self { teller: None, begun: Instant::now(), verbose }
    }

    pub(super) fn with_teller(cli: &Cli, teller: &Arc<Teller>) -> Self {
        Self { teller: Some(Arc::clone(teller)), ..Self::new(cli) }
    }

    pub(super) fn tell(&self, text: &str) {
        if self.verbose == Verbose::Told {
            out::note(&format!("gpuvm: [{:6.2} s] {text}", self.begun.elapsed().as_secs_f64()));
        }
    }
}

impl Observer for Progress {
    fn phase(&mut self, phase: &Phase) {
        self.tell(&phase.to_string());
        if let Some(teller) = &self.teller {
            teller.phase(phase);
        }
    }

    fn state(&mut self, state: State, halt: Option<&Halt>) {
        if let Some(teller) = &self.teller {
            teller.state(state, halt);
        }
    }

    fn reserved(&mut self) {
        if let Some(teller) = &self.teller {
            teller.reserved();
        }
    }

    fn note(&mut self, note: &Note) {
        self.tell(&hurried(&note.0));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use std::sync::Mutex;

    use rstest::rstest;

    use super::*;

    /// A sink that takes so many pieces and is gone then.
    fn sink(taken: &Arc<Mutex<Vec<u8>>>, mut pieces: usize) -> Option<Sink> {
        let taken = Arc::clone(taken);
        Some(Box::new(move |bytes| {
            pieces = pieces.checked_sub(1).ok_or(std::io::ErrorKind::BrokenPipe)?;
            taken.lock().unwrap().extend(bytes);
            Ok(())
        }))
    }

    #[test]
    fn of_two_sinks_one_goes_on_when_the_other_is_gone() {
        let (one, other) = (Arc::default(), Arc::default());
        let mut both = both(sink(&one, 1), sink(&other, 2)).unwrap();
        assert!(both(b"a").is_ok() && both(b"b").is_ok());
        assert!(both(b"c").is_err());
        assert_eq!((&**one.lock().unwrap(), &**other.lock().unwrap()), (&b"a"[..], &b"ab"[..]));
        assert!(super::both(None, None).is_none());
    }

    #[rstest]
    #[case::of_a_signal("SIGINT: ending the guest", true)]
    #[case::of_a_soak("soak: ending the guest", false)]
    #[case::of_something_else("SIGINT: the guest is not started again", false)]
    fn only_a_signal_that_ends_the_guest_is_told_with_what_hurries(#[case] note: &str, #[case] told: bool) {
        let hurries = hurried(note) == format!("{note}, by its power button first; one more SIGINT hurries");
        assert_eq!((hurries, hurried(note) == note), (told, !told));
    }
}
