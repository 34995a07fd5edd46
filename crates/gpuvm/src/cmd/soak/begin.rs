//! How a soak begins, and how it goes on after it was stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{Plan, Warning};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Snapshot;
use gpuvm_core::soak::{self as core, Cut, CycleKind, Ended, Line, Next, Settings, VERSION, Why};
use gpuvm_host::HostError;
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::ledger::now;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::soak::{self, Holding, Record};
use gpuvm_run::{Cleaned, CleanupReport};

use super::args::RunArgs;
use super::book::Book;
use super::progress::Progress;
use super::{machine, settings};
use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::load::Loaded;
use crate::{came_back, hints, load, locked};

/// A soak that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) vm: VmName,
    pub(super) book: Book,
    /// The profile, with the devices that it came to mean.
    pub(super) loaded: Loaded,
    /// What each device said of itself before the first cycle.
    pub(super) first: BTreeMap<Bdf, Snapshot>,
    _holding: Holding,
}

/// Begins a soak.
pub(super) fn anew(cli: &Cli, args: &RunArgs, progress: &mut Progress) -> Result<Begun, Failure> {
    let asked = settings::asked(args, "").map_err(|failure| no_profile(args).unwrap_or(failure))?;
    if let Some(folder) = args.out.as_ref().filter(|folder| folder.join(soak::RECORD).exists()) {
        let message = format!("there is a record in {} already", folder.display());
        return Err(Failure::one(Exit::Usage, message, Some(hints::record_there(&args.profile(), folder))));
    }
    let Ready { loaded, plan, warnings } = ready(cli, args, &args.profile(), progress)?;
    let settings = Settings { profile_text: loaded.text.clone(), ..asked };
    let places = cli.places();
    let vm = loaded.profile.name.clone();
    let holding = soak::hold(&places, &vm)?;
    free(cli, &plan)?;
    let folder = soak::new_folder(&places, &vm, args.out.as_deref(), now())?;
    let record = Record::begin(&folder)?;
    let first = gpuvm_run::soak::first_baselines(&load::host_root(cli), &plan);
    let book = Book::new(settings, record, &[]);
    let mut begun = Begun { vm, book, loaded, first, _holding: holding };
    begin(cli, &mut begun, &plan, progress)?;
    told(&begun, &warnings, progress);
    Ok(begun)
}

/// Goes on with a soak that was stopped, or whose gpuvm was killed.
pub(super) fn again(cli: &Cli, args: &RunArgs, progress: &mut Progress) -> Result<Begun, Failure> {
    let places = cli.places();
    // The sets may be the record's, so this name is a first guess; it is the same one unless --set names the VM.
    let vm = load::unresolved(&args.profile())?.name;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => soak::newest(&places, &vm).map_err(unreadable)?.ok_or_else(|| nothing(&places.soaks(&vm)))?,
    };
    if !folder.join(soak::RECORD).exists() {
        return Err(nothing(&folder));
    }
    let mut holding = soak::hold(&places, &vm)?;
    let (record, resumed) = Record::resume(&folder).map_err(unreadable)?;
    let Some(Recorded { vm: of, settings: was, first }) = recorded(&resumed.lines) else {
        return Err(nothing(&folder));
    };
    let mut profile = args.profile();
    if profile.set.is_empty() {
        profile.set.clone_from(&was.set);
    }
    let loaded = load::profile(cli, &profile)?;
    let names = (&of, &loaded.profile.name);
    let settings =
        settings::again(args, &loaded.text, names, was).map_err(|differ| other(&folder, &differ))?;
    if loaded.profile.name != vm {
        holding = soak::hold(&places, &loaded.profile.name)?;
    }
    if resumed.torn > 0 {
        progress.tell(&format!("took {} bytes of a torn line off {}", resumed.torn, record.path().display()));
    }
    let book = Book::new(settings, record, &resumed.lines);
    let vm = loaded.profile.name.clone();
    let mut begun = Begun { vm, book, loaded, first, _holding: holding };
    let left = match begun.book.headway.why() {
        Some(_) => None,
        None => clean_up(cli, &mut begun, resumed.cut, progress)?,
    };
    if let Some(why) = left.or_else(|| over(&begun)) {
        match begun.book.headway.why() {
            Some(_) => progress.tell("the soak is over, and no more is asked for: see --cycles and --for"),
            // What a killed gpuvm had no time to write down.
            None => begun.book.append(&Line::Ended(Ended { at: now(), why }), progress)?,
        }
        begun.book.record.close()?;
        return Ok(begun);
    }
    let Ready { loaded, plan, warnings } = ready(cli, args, &profile, progress)?;
    begun.loaded = loaded;
    free(cli, &plan)?;
    let now_there = gpuvm_run::soak::first_baselines(&load::host_root(cli), &plan);
    // Of a device that wasn't there before, now is the first time.
    begun.first =
        now_there.into_iter().map(|(bdf, now)| (bdf, begun.first.remove(&bdf).unwrap_or(now))).collect();
    begun.book.record.clear_note()?;
    begin(cli, &mut begun, &plan, progress)?;
    told(&begun, &warnings, progress);
    Ok(begun)
}

/// Returns that the profile isn't there: it comes before what is missing besides.
fn no_profile(args: &RunArgs) -> Option<Failure> {
    let profile = args.profile();
    if profile.profile.exists() { None } else { load::unresolved(&profile).err() }
}

/// What a record says of its soak.
struct Recorded {
    vm: VmName,
    settings: Settings,
    first: BTreeMap<Bdf, Snapshot>,
}

/// Finds what was asked for last, and what the devices said before the first cycle.
fn recorded(lines: &[Line]) -> Option<Recorded> {
    let begun =
        || lines.iter().filter_map(|line| if let Line::Begun(begun) = line { Some(begun) } else { None });
    let devices = begun().flat_map(|begun| &begun.devices);
    let mut first = BTreeMap::new();
    for device in devices {
        first.entry(device.bdf).or_insert_with(|| (*device.snapshot).clone());
    }
    let last = begun().next_back()?;
    Some(Recorded { vm: last.vm.clone(), settings: last.settings.clone(), first })
}

/// Says why nothing more is to be run of a soak that is to go on; nothing where something is. What it was stopped for, whoever goes on
/// with it means to try again.
fn over(begun: &Begun) -> Option<Why> {
    match begun.book.headway.again().next(&begun.book.settings, begun.book.before_ms / 1000) {
        Next::Over(why) => Some(why),
        Next::Cycle { .. } => None,
    }
}

/// Gives back what a soak has left that was killed, and writes down the cycle whose end it didn't see. Returns why nobody can go on.
fn clean_up(
    cli: &Cli,
    begun: &mut Begun,
    cut_short: Option<(u32, CycleKind)>,
    progress: &mut Progress,
) -> Result<Option<Why>, Failure> {
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let (kernel, vm) = (Kernel::running(root), begun.vm.clone());
    let reports = gpuvm_run::cleanup(&kernel, &cli.places(), &boot_id, Some(&vm), progress)?;
    if reports.iter().any(|report| matches!(report.result, Cleaned::Running | Cleaned::Unsupervised)) {
        let message = format!("VM {vm} is in the hands of another gpuvm");
        return Err(Failure::one(Exit::Busy, message, None));
    }
    let Some((number, kind)) = cut_short else { return Ok(None) };
    let cut = cut(number, kind, &reports);
    for what in cut.found.iter().chain(&cut.left) {
        progress.tell(&format!("cycle {number}, which was cut short: {what}"));
    }
    let reason = cut.left.join("; ");
    begun.book.append(&Line::Cut(cut), progress)?;
    Ok((!reason.is_empty()).then_some(Why::Stopped { cycle: number, reason }))
}

/// Says what was found of a cycle whose gpuvm was killed.
fn cut(number: u32, kind: CycleKind, reports: &[CleanupReport]) -> Cut {
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for report in reports {
        found.extend(report.cleared.iter().map(|what| format!("removed {what}")));
        for device in &report.devices {
            let judged = match device.judgement.reason() {
                Some(reason) => format!("{} is {}: {reason}", device.bdf, device.judgement.verdict),
                None => format!("{} is {}", device.bdf, device.judgement.verdict),
            };
            if device.judgement.verdict.is_bad() { &mut left } else { &mut found }.push(judged);
        }
        let more = report.left.iter().filter(|error| !came_back::is_told(error));
        left.extend(more.map(ToString::to_string));
        if report.result == Cleaned::Done {
            found.push(format!("VM {} was given back", report.name));
        }
    }
    if found.is_empty() && left.is_empty() {
        found.push("nothing of it was left to be given back".to_owned());
    }
    Cut { number, kind, at: now(), found, left }
}

/// A profile that can be run on this host as it is now.
struct Ready {
    loaded: Loaded,
    plan: Plan,
    warnings: Vec<Warning>,
}

fn ready(
    cli: &Cli,
    args: &RunArgs,
    profile: &ProfileArgs,
    progress: &mut Progress,
) -> Result<Ready, Failure> {
    let loaded = load::profile(cli, profile)?;
    let judged = locked::before_up(cli, profile, loaded, args.on_changes())?;
    if judged.written {
        progress.tell(&format!("{} is written anew", judged.loaded.lock.path.display()));
    }
    let (plan, _) = load::planned(cli, &judged.loaded.profile)?;
    let warnings = judged.warnings.into_iter().chain(plan.warnings.iter().cloned()).collect();
    Ok(Ready { loaded: judged.loaded, plan, warnings })
}

/// Refuses a soak whose devices somebody else has, before it has a record.
fn free(cli: &Cli, plan: &Plan) -> Result<(), Failure> {
    let boot_id = facts::boot_id(&cli.host_root())?;
    reservation::check(&cli.places(), &Reservation::new(plan, &boot_id))?;
    Ok(())
}

/// Writes the line that a soak begins with.
fn begin(cli: &Cli, begun: &mut Begun, plan: &Plan, progress: &mut Progress) -> Result<(), Failure> {
    let profile = &begun.loaded.profile;
    let scope = Scope::Devices(facts::asked(profile));
    let mut facts = load::survey(cli, &scope, Depth::Sysfs, Some(profile))?;
    facts.qemu_probe = gpuvm_run::probe(&facts, &cli.places());
    let line = Line::Begun(Box::new(core::Begun {
        version: VERSION,
        at: now(),
        vm: begun.vm.clone(),
        done_before: begun.book.headway.number(),
        settings: begun.book.settings.clone(),
        machine: machine::machine(&cli.host_root(), &facts),
        devices: machine::devices(plan, &facts, &begun.first),
    }));
    begun.book.append(&line, progress)
}

/// Tells once what every cycle would say.
fn told(begun: &Begun, warnings: &[Warning], progress: &mut Progress) {
    for warning in warnings {
        progress.tell(&format!("warning: {}: {}", warning.about, warning.message));
    }
    progress.tell(&format!("record: {}", begun.book.record.path().display()));
}

fn nothing(folder: &Path) -> Failure {
    let message = format!("there is no soak to go on with in {}", folder.display());
    Failure::one(Exit::Usage, message, Some(hints::no_soak()))
}

/// Says that what is to be gone on with is no record, in the words of those who draw one.
fn unreadable(error: HostError) -> Failure {
    match error {
        HostError::Content { path, problem, .. } if path.ends_with(soak::RECORD) => {
            let message = format!("{} is no record of a soak: {problem}", path.display());
            let hint = format!("{}\n{}", hints::damaged_record(&path), hints::no_soak());
            Failure::one(Exit::Usage, message, Some(hint))
        }
        error => error.into(),
    }
}

fn other(folder: &Path, differ: &[String]) -> Failure {
    let message =
        format!("the soak in {} was begun with {}", PathBuf::from(folder).display(), differ.join("; with "));
    Failure::one(Exit::Usage, message, Some(hints::other_soak()))
}
