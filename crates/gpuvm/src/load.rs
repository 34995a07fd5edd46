//! Loads a profile and plans it on a host: what check, plan, argv and up begin with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpuvm_core::facts::file::FactsFile;
use gpuvm_core::facts::{BoundFacts, Holder, HostFacts, Presence};
use gpuvm_core::lock::Lock;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::files::named;
use gpuvm_core::plan::{Plan, plan};
use gpuvm_core::profile::{Problem, Profile, Selector, Sources, parse};
use gpuvm_core::reset::quirks::FileProblem;
use gpuvm_core::select::{FunctionIndex, Hold, needs_index, resolve};
use gpuvm_host::HostError;
use gpuvm_host::archive;
use gpuvm_host::errno::EACCES;
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_host::given;
use gpuvm_host::ledger;
use gpuvm_host::reservation::{self, Reservation, pinned_cpus};
use gpuvm_host::root::HostRoot;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{Failure, Item};
use crate::hints;
use crate::locked::{self, LockFile};

/// How many things that couldn't be read are told one by one.
const UNREAD_SHOWN: usize = 3;

/// A profile that was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) text: String,
    /// What it means on this host: every device has an address.
    pub(crate) profile: Profile,
    /// What it says, where devices may be described and not named.
    pub(crate) described: Profile,
    pub(crate) lock: LockFile,
}

impl Loaded {
    /// The same profile with its devices chosen anew, where those that are locked no longer fit.
    pub(crate) fn chosen_anew(self, cli: &Cli) -> Result<Self, Failure> {
        let profile = resolved(cli, &self.described, self.lock.lock.as_ref(), Hold::WhileItFits)?;
        Ok(Self { profile, ..self })
    }
}

/// A profile with mistakes, and the texts that they are in.
#[derive(Debug)]
pub(crate) struct BadProfile {
    pub(crate) sources: Sources,
    pub(crate) problems: Vec<Problem>,
}

/// Reads and checks a profile, and its lock where it has one, and finds the devices that it describes.
pub(crate) fn profile(cli: &Cli, args: &ProfileArgs) -> Result<Loaded, Failure> {
    let (text, described) = parsed(args, base_there(cli)?)?;
    let lock = locked::read(args)?;
    let profile = resolved(cli, &described, lock.lock.as_ref(), Hold::Always)?;
    Ok(Loaded { text, profile, described, lock })
}

/// Reads and checks a profile, and looks at no host: devices that it describes are not looked for.
pub(crate) fn unresolved(args: &ProfileArgs) -> Result<Profile, Failure> {
    let (_, profile) = parsed(args, None)?;
    locked::read(args)?;
    Ok(profile)
}

/// The same for a lock that is to be written anew: of one that can't be used, only what is wrong with it is of interest.
pub(crate) fn to_lock(cli: &Cli, args: &ProfileArgs) -> Result<(Loaded, Option<Failure>), Failure> {
    let (text, described) = parsed(args, base_there(cli)?)?;
    let (lock, damaged) = match locked::read(args) {
        Ok(lock) => (lock, None),
        Err(failure) if failure.code == Exit::Profile => {
            (LockFile { path: locked::path_of(&args.profile), lock: None, text: None }, Some(failure))
        }
        Err(failure) => return Err(failure),
    };
    let profile = resolved(cli, &described, lock.lock.as_ref(), Hold::Always)?;
    Ok((Loaded { text, profile, described, lock }, damaged))
}

/// Finds the devices that a profile describes. Where it names all of them, nothing is read.
fn resolved(cli: &Cli, profile: &Profile, lock: Option<&Lock>, hold: Hold) -> Result<Profile, Failure> {
    let index = match needs_index(profile, lock, hold) {
        false => FunctionIndex::default(),
        true => index(cli, profile)?,
    };
    Ok(resolve(profile.clone(), lock, hold, &index)?)
}

fn index(cli: &Cli, profile: &Profile) -> Result<FunctionIndex, Failure> {
    if let Some(recorded) = recorded(cli)? {
        return Ok(FunctionIndex::of(&recorded.facts));
    }
    check_host_root(cli)?;
    let selectors: Vec<&Selector> = profile.choices.iter().map(|choice| &choice.select).collect();
    Ok(facts::index(&host_root(cli), &selectors)?)
}

/// Returns where relative paths of a profile start on the host that is looked at: with recorded facts, where they started there.
fn base_there(cli: &Cli) -> Result<Option<PathBuf>, Failure> {
    Ok(recorded(cli)?.and_then(|recorded| recorded.base))
}

fn parsed(args: &ProfileArgs, base: Option<PathBuf>) -> Result<(String, Profile), Failure> {
    let path = &args.profile;
    let unreadable = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Profile,
        };
        Failure::one(code, format!("read {}: {error}", path.display()), None)
    };
    let text = given::text(path).map_err(unreadable)?;
    let own = folder_of(path).map_err(unreadable)?;
    let base = base.as_deref().unwrap_or(&own);
    let sources = Sources::new(path.display().to_string(), &text);
    let sources = args.set.iter().fold(sources, |sources, set| sources.with_override(set));
    match parse(&sources, base) {
        Ok(profile) => Ok((text, profile)),
        Err(problems) => Err(BadProfile { sources, problems }.into()),
    }
}

/// Returns the folder that relative paths of a profile start from.
pub(crate) fn folder_of(profile: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(profile)?;
    Ok(absolute.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Reads the host and plans the profile on it.
pub(crate) fn planned(cli: &Cli, profile: &Profile) -> Result<(Plan, HostFacts), Failure> {
    let facts = facts_for(cli, profile)?;
    let plan = plan(profile, &facts)?;
    Ok((plan, facts))
}

/// Reads what a plan for a profile needs to know; a plan isn't made of half the facts.
pub(crate) fn facts_for(cli: &Cli, profile: &Profile) -> Result<HostFacts, Failure> {
    check_host_root(cli)?;
    let facts = match recorded(cli)? {
        Some(recorded) => {
            tell_of_unread(cli, &recorded.facts);
            tells_of_files(cli, profile, &recorded.facts)?;
            facts::narrow(recorded.facts, &Scope::Devices(facts::asked(profile)), Depth::Sysfs)
        }
        None => {
            damaged(cli).iter().for_each(|(_, error)| tracing::warn!("what was bound isn't known: {error}"));
            facts::read(&host_root(cli), profile)?
        }
    };
    with_own(cli, facts, Some(profile), Unreadable::Refused)
}

/// Reads what there is to know of the host and of the devices in scope, and goes on where something can't be read.
pub(crate) fn survey(
    cli: &Cli,
    scope: &Scope,
    depth: Depth,
    profile: Option<&Profile>,
) -> Result<HostFacts, Failure> {
    check_host_root(cli)?;
    let facts = match recorded(cli)? {
        Some(recorded) => {
            profile.map_or(Ok(()), |profile| tells_of_files(cli, profile, &recorded.facts))?;
            facts::narrow(recorded.facts, scope, depth)
        }
        None => facts::survey(&host_root(cli), scope, depth, profile)?,
    };
    with_own(cli, facts, profile, Unreadable::Noted)
}

/// Reads the file of facts, where one is given instead of a host.
pub(crate) fn recorded(cli: &Cli) -> Result<Option<FactsFile>, Failure> {
    let Some(path) = &cli.facts else { return Ok(None) };
    let told = |problem: String| format!("--facts {}: {problem}", path.display());
    let bytes = archive::facts(path).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Usage,
        };
        let damaged = error.kind() == std::io::ErrorKind::InvalidData;
        Failure::one(code, told(error.to_string()), damaged.then(hints::damaged_facts))
    })?;
    let file = FactsFile::parse(&bytes)
        .map_err(|error| Failure::one(Exit::Usage, told(error.to_string()), Some(hints::facts(&error))))?;
    Ok(Some(file))
}

/// Checks that recorded facts tell of each file that a profile names: those that were looked at are another profile's, maybe.
fn tells_of_files(cli: &Cli, profile: &Profile, facts: &HostFacts) -> Result<(), Failure> {
    let unknown = named(profile).into_iter().filter(|(_, path)| facts.file(path).is_none());
    let unknown: Vec<_> = unknown.map(|(role, path)| format!("{role} {}", path.display())).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let file = cli.facts.as_deref().unwrap_or(Path::new("")).display();
    let message =
        format!("--facts {file}: they don't tell of files that the profile names: {}", unknown.join(", "));
    Err(Failure::one(Exit::Usage, message, Some(hints::foreign_files())))
}

/// Tells what a plan on recorded facts has to do without: on the host itself it would have ended there.
fn tell_of_unread(cli: &Cli, facts: &HostFacts) {
    let shown = facts.unread.iter().take(UNREAD_SHOWN);
    shown.for_each(|what| tracing::warn!("when the facts were taken, this couldn't be read: {what}"));
    if let (Some(more @ 1..), false) = (facts.unread.len().checked_sub(UNREAD_SHOWN), cli.json) {
        tracing::warn!("and {more} more");
    }
}

fn check_host_root(cli: &Cli) -> Result<(), Failure> {
    let Some(root) = cli.host_root.as_ref().filter(|root| !root.join("sys").is_dir()) else {
        return Ok(());
    };
    let message = format!("--host-root {}: there is no folder `sys` in it", root.display());
    Err(Failure::one(Exit::Usage, message, None))
}

/// What is done about records of gpuvm's own that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// A plan isn't made without them.
    Refused,
    /// A survey goes on, and says so.
    Noted,
}

/// Adds what gpuvm itself knows: its folders, its other VMs and the CPUs that they have.
fn with_own(
    cli: &Cli,
    mut facts: HostFacts,
    profile: Option<&Profile>,
    unreadable: Unreadable,
) -> Result<HostFacts, Failure> {
    if !cli.is_recorded() {
        name_vms(cli, &mut facts);
        match (bound(cli, &facts), unreadable) {
            (Ok(bound), _) => facts.bound = bound,
            (Err(error), Unreadable::Noted) => facts.unread.push(error.to_string()),
            (Err(error), Unreadable::Refused) => return Err(error.into()),
        }
        let root = host_root(cli);
        facts.kept = root.spared().map(|(bdf, error)| (bdf, error.to_string())).collect();
        for (bdf, error) in damaged(cli) {
            facts.kept.extend(bdf.map(|bdf| (bdf, error.clone())));
            facts.unread.push(error);
        }
    }
    if cli.has_ledger() {
        add_standing(cli, &mut facts, unreadable)?;
    }
    if unreadable == Unreadable::Refused && !facts.quirks.problems.is_empty() {
        return Err(Failure::of(Exit::Profile, facts.quirks.problems.iter().map(quirk_problem).collect()));
    }
    let Some(profile) = profile else { return Ok(facts) };
    facts.state_dir = cli.places().state(&profile.name);
    if !cli.is_recorded() {
        match pinned_cpus(&cli.places(), &facts.kernel.boot_id, &profile.name) {
            Ok(taken) => facts.cpus.taken = taken,
            // Everybody may plan; only who may run a VM sees the others' records, and `up` looks again.
            Err(error) if error.errno() == Some(EACCES) => {
                tracing::warn!("other VMs' CPUs aren't known: {error}")
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(facts)
}

/// Describes a mistake in a file of the host's own quirks.
pub(crate) fn quirk_problem(problem: &FileProblem) -> Item {
    Item { kind: "quirk-file".to_owned(), message: problem.to_string(), hint: hints::quirk_file(problem) }
}

/// Adds what the ledger says of the devices. Its files are for root; who may read them needs them whole.
fn add_standing(cli: &Cli, facts: &mut HostFacts, unreadable: Unreadable) -> Result<(), Failure> {
    let standing = match (ledger::quarantined(&cli.places(), &host_root(cli), facts), unreadable) {
        (Ok(standing), _) => standing,
        (Err(error), Unreadable::Noted) => {
            facts.unread.push(error.to_string());
            return Ok(());
        }
        (Err(error), Unreadable::Refused) if error.errno() == Some(EACCES) => {
            tracing::warn!("which devices are in quarantine isn't known: {error}");
            return Ok(());
        }
        (Err(error), Unreadable::Refused) => return Err(error.into()),
    };
    facts.ledger = Presence::Present;
    facts.quarantined = standing.quarantined;
    facts.ledgers_unread = standing.unreadable;
    for stray in standing.strays {
        match unreadable {
            Unreadable::Noted => facts.unread.push(stray),
            Unreadable::Refused => tracing::warn!("a file of the ledger tells of no device: {stray}"),
        }
    }
    Ok(())
}

/// Reads what `gpuvm bind` has bound. Its records are for root; who may read them needs them whole.
fn bound(cli: &Cli, facts: &HostFacts) -> Result<BTreeMap<Bdf, BoundFacts>, HostError> {
    match gpuvm_host::bound::bound(&cli.places(), &facts.kernel.boot_id) {
        Err(error) if error.errno() == Some(EACCES) => Ok(BTreeMap::new()),
        bound => bound,
    }
}

/// Says which records of `gpuvm bind` make no sense: whoever wants those devices is refused, and everybody else goes on.
fn damaged(cli: &Cli) -> Vec<(Option<Bdf>, String)> {
    // Who may not read them was told nothing of what is bound, either.
    let damaged = gpuvm_host::bound::damaged(&cli.places()).unwrap_or_default();
    damaged.into_iter().map(|(bdf, error)| (bdf, error.to_string())).collect()
}

/// Reads what must be known of devices to bind them or to give them back.
pub(crate) fn devices(cli: &Cli, asked: BTreeSet<Bdf>) -> Result<HostFacts, Failure> {
    check_host_root(cli)?;
    let facts = facts::read_devices(&host_root(cli), asked)?;
    with_own(cli, facts, None, Unreadable::Refused)
}

/// Reads what must be known of devices to reset them.
pub(crate) fn for_reset(cli: &Cli, asked: &BTreeSet<Bdf>) -> Result<HostFacts, Failure> {
    check_host_root(cli)?;
    let facts = facts::read_for_reset(&host_root(cli), asked)?;
    with_own(cli, facts, None, Unreadable::Refused)
}

/// Returns the host to read, with what hangs in it left alone.
pub(crate) fn host_root(cli: &Cli) -> HostRoot {
    let root = cli.host_root();
    if cli.is_recorded() {
        return root;
    }
    let spared =
        facts::boot_id(&root).and_then(|boot_id| reservation::in_flight(&root, &cli.places(), &boot_id));
    root.sparing(spared.unwrap_or_else(|error| {
        tracing::debug!("what hangs isn't known: {error}");
        BTreeMap::new()
    }))
}

/// Adds the names of gpuvm's own VMs to those that have devices. Without them it's the process that is named.
fn name_vms(cli: &Cli, facts: &mut HostFacts) {
    let held = facts.devices.values_mut().flat_map(|device| &mut device.holders);
    let vms: Vec<_> = held
        .filter_map(|holder| match holder {
            Holder::Vfio { process, vm, .. } => Some((process.pid, vm)),
            _ => None,
        })
        .collect();
    if vms.is_empty() {
        return;
    }
    let records = reservation::all(&cli.places(), &facts.kernel.boot_id).unwrap_or_else(|error| {
        tracing::debug!("whose VMs have devices isn't known: {error}");
        Vec::new()
    });
    for (pid, vm) in vms {
        let of = |record: &&Reservation| record.qemu.is_some_and(|qemu| qemu.pid == pid && qemu.is_alive());
        *vm = records.iter().find(of).map(|record| record.vm.to_string());
    }
}
