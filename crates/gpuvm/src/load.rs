//! Loads a profile and plans it on a host: what check, plan, argv and up begin with.

use std::path::Path;

use gpuvm_core::facts::{Holder, HostFacts};
use gpuvm_core::plan::{Plan, plan};
use gpuvm_core::profile::{Problem, Profile, Sources, parse};
use gpuvm_host::errno::EACCES;
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_host::reservation::{self, Reservation, pinned_cpus};

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::Failure;

/// A profile that was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) text: String,
    pub(crate) profile: Profile,
}

/// A profile with mistakes, and the texts that they are in.
#[derive(Debug)]
pub(crate) struct BadProfile {
    pub(crate) sources: Sources,
    pub(crate) problems: Vec<Problem>,
}

/// Reads and checks a profile.
pub(crate) fn profile(args: &ProfileArgs) -> Result<Loaded, Failure> {
    let path = &args.profile;
    let unreadable = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Profile,
        };
        Failure::one(code, format!("read {}: {error}", path.display()), None)
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let base = std::path::absolute(path).map_err(unreadable)?;
    let base = base.parent().unwrap_or(Path::new("/"));
    let sources = Sources::new(path.display().to_string(), &text);
    let sources = args.set.iter().fold(sources, |sources, set| sources.with_override(set));
    match parse(&sources, base) {
        Ok(profile) => Ok(Loaded { text, profile }),
        Err(problems) => Err(BadProfile { sources, problems }.into()),
    }
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
    let facts = facts::read(&cli.host_root(), profile)?;
    with_own(cli, facts, Some(profile))
}

/// Reads what there is to know of the host and of the devices in scope, and goes on where something can't be read.
pub(crate) fn survey(
    cli: &Cli,
    scope: &Scope,
    depth: Depth,
    profile: Option<&Profile>,
) -> Result<HostFacts, Failure> {
    check_host_root(cli)?;
    let facts = facts::survey(&cli.host_root(), scope, depth, profile)?;
    with_own(cli, facts, profile)
}

fn check_host_root(cli: &Cli) -> Result<(), Failure> {
    let Some(root) = cli.host_root.as_ref().filter(|root| !root.join("sys").is_dir()) else {
        return Ok(());
    };
    let message = format!("--host-root {}: there is no folder `sys` in it", root.display());
    Err(Failure::one(Exit::Usage, message, None))
}

/// Adds what gpuvm itself knows: its folders, its other VMs and the CPUs that they have.
fn with_own(cli: &Cli, mut facts: HostFacts, profile: Option<&Profile>) -> Result<HostFacts, Failure> {
    if !cli.is_recorded() {
        name_vms(cli, &mut facts);
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
