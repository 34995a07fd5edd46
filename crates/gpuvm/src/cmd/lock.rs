//! `gpuvm lock`: takes down what a profile rests on, and says what has changed since.

use std::fmt::Write;

use clap::Args;
use gpuvm_core::lock::{Change, Lock, LockedDevice, Serial, Severity, compare};
use serde_json::json;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{Failure, kind};
use crate::load::{self, Loaded};
use crate::{hints, locked, out};

/// What `lock` takes.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    #[command(flatten)]
    pub(crate) profile: ProfileArgs,

    /// Write nothing, and say what has changed on this host since it was locked
    #[arg(long)]
    check: bool,
}

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

pub(super) fn run(cli: &Cli, args: &LockArgs) -> Result<Exit, Failure> {
    if args.check { check(cli, args) } else { write(cli, args) }
}

/// Takes the host down as it is. A lock that is there is replaced, since that was asked for, and what differs is shown.
fn write(cli: &Cli, args: &LockArgs) -> Result<Exit, Failure> {
    let (loaded, damaged) = load::to_lock(cli, &args.profile)?;
    let changes = locked::changes(cli, &loaded.profile, loaded.lock.lock.as_ref())?;
    let loaded = loaded.chosen_anew(cli)?;
    let facts = locked::facts_for(cli, &loaded.profile, None)?;
    let lock = Lock::of(&loaded.profile, &facts)?;
    locked::write(&loaded.lock.path, &lock)?;
    if cli.json {
        out::json(&json!({
            "path": loaded.lock.path,
            "lock": lock,
            "replaced": damaged.map(|failure| failure.message()),
            "changes": changes.iter().map(to_json).collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Ok);
    }
    if let Some(failure) = damaged {
        out::note(&format!("note: {}; it was replaced", failure.message()));
    }
    let mut text = String::new();
    recorded(&loaded, &lock, &mut text);
    let known: Vec<&Change> =
        changes.iter().filter(|change| change.severity() != Severity::Unknown).collect();
    let unknown = compare(&lock, &loaded.profile, &facts);
    listed("changed since it was locked before", known.into_iter().chain(&unknown), &mut text);
    out::text(&text)?;
    Ok(Exit::Ok)
}

/// Compares the host with the lock, and changes nothing.
fn check(cli: &Cli, args: &LockArgs) -> Result<Exit, Failure> {
    let loaded = load::profile(cli, &args.profile)?;
    let Some(lock) = &loaded.lock.lock else {
        let message = format!("there is no {}", loaded.lock.path.display());
        return Err(Failure::one(Exit::Profile, message, Some(hints::no_lock(&args.profile))));
    };
    let changes = locked::changes(cli, &loaded.profile, Some(lock))?;
    let code = if locked::matter(&changes) { Exit::Unfit } else { Exit::Ok };
    if cli.json {
        let changes: Vec<_> = changes.iter().map(to_json).collect();
        out::json(&json!({ "path": loaded.lock.path, "changes": changes, "exit_code": code }))?;
        return Ok(code);
    }
    let mut text = String::new();
    let path = loaded.lock.path.display();
    if changes.iter().all(|change| change.severity() == Severity::Unknown) {
        line!(text, "{path}: nothing that it holds has changed");
    }
    listed(&format!("changed since {path} was written"), &changes, &mut text);
    out::text(&text)?;
    if code != Exit::Ok {
        out::note(&format!("hint: {}", hints::relock(&args.profile)));
    }
    Ok(code)
}

fn to_json(change: &Change) -> serde_json::Value {
    json!({
        "kind": kind(change),
        "severity": kind(&change.severity()),
        "device": change.bdf(),
        "message": change.to_string(),
    })
}

/// Lists changes by how much they matter.
fn listed<'a>(title: &str, changes: impl IntoIterator<Item = &'a Change>, text: &mut String) {
    let mut changes: Vec<&Change> = changes.into_iter().collect();
    changes.sort_by_key(|change| change.severity());
    if changes.first().is_some_and(|change| change.severity() != Severity::Unknown) {
        line!(text, "{title}:");
    }
    for change in changes {
        line!(text, "  {:11} {change}", change.severity().to_string());
    }
}

/// Says what was taken down.
fn recorded(loaded: &Loaded, lock: &Lock, text: &mut String) {
    let devices = counted(lock.devices.len(), "device");
    line!(text, "{}: {devices} of VM {}", loaded.lock.path.display(), loaded.profile.name);
    for device in &lock.devices {
        line!(text, "  {}", words(device));
    }
    let host = &lock.host;
    let units = counted(host.iommus.len(), "IOMMU unit");
    let version = host.firmware.version.as_deref().map(|version| format!("firmware {version}, "));
    line!(text, "  host: {}kernel {}, {units}", version.unwrap_or_default(), host.kernel);
}

fn words(device: &LockedDevice) -> String {
    let node = device.node.map_or_else(|| "no node told".to_owned(), |node| format!("node {node}"));
    let group = match (device.group_number, device.group.len()) {
        (None, _) => "no IOMMU group".to_owned(),
        (Some(_), 0) => "alone in its group".to_owned(),
        (Some(_), others) => format!("{} in its group", counted_more(others)),
    };
    let path = match device.path.as_slice() {
        [] => "on a root bus".to_owned(),
        [.., nearest] => format!("behind {}", nearest.bdf),
    };
    let serial = match device.serial {
        Some(Serial::Number(number)) => format!("serial number {number}"),
        Some(Serial::None) => "no serial number".to_owned(),
        None => "serial number not read".to_owned(),
    };
    let bars = counted(device.bars.len(), "BAR");
    format!("{}: {node}, {group}, {path}, {bars}, {serial}", device.function().words())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn counted_more(count: usize) -> String {
    format!("{count} more function{}", if count == 1 { "" } else { "s" })
}
