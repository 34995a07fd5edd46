//! Loads a profile and plans it on a host: what check, plan, argv and up begin with.

use std::path::Path;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::plan::{Plan, plan};
use gpuvm_core::profile::{Problem, Profile, Sources, parse};
use gpuvm_host::errno::EACCES;
use gpuvm_host::facts;
use gpuvm_host::reservation::pinned_cpus;

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
    if let Some(root) = cli.host_root.as_ref().filter(|root| !root.join("sys").is_dir()) {
        let message = format!("--host-root {}: there is no folder `sys` in it", root.display());
        return Err(Failure::one(Exit::Usage, message, None));
    }
    let mut facts = facts::read(&cli.host_root(), profile)?;
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
    let plan = plan(profile, &facts)?;
    Ok((plan, facts))
}
