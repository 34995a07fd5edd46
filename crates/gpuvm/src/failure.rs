//! A failed verb: what failed, what to do about it, and how gpuvm ends.

use std::fmt::{Debug, Display};
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::diagnostics;
use crate::exit::Exit;
use crate::hints;
use crate::load::BadProfile;
use crate::out;
use gpuvm_core::plan::{Refusal, RefusalKind};
use gpuvm_host::HostError;
use gpuvm_host::errno::{EACCES, EBUSY, EPERM, EROFS};
use gpuvm_run::{Cause, LaunchError, UpError};

/// Why a verb failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Exit,
    items: Vec<Item>,
    /// The profile's problems, shown with its lines.
    profile: Option<BadProfile>,
    /// The devices that aren't healthy, of a VM that didn't come up.
    devices: Vec<serde_json::Value>,
}

/// One thing that failed, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// The kind of error, as programs tell it from others.
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Item {
    pub(crate) fn new(error: &(impl Debug + Display), hint: Option<String>) -> Self {
        Self { kind: kind(error), message: error.to_string(), hint }
    }

    /// Renders it for a program.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({ "kind": self.kind, "message": self.message, "hint": self.hint })
    }
}

/// Names an error's variant in the manner of JSON keys: `TooFewCpus` is `too-few-cpus`.
///
/// It is what derived `Debug` begins with, so that no variant can be without one.
pub(crate) fn kind(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    let name = text.chars().take_while(char::is_ascii_alphanumeric);
    let mut kind = String::new();
    for letter in name {
        if letter.is_ascii_uppercase() && !kind.is_empty() {
            kind.push('-');
        }
        kind.push(letter.to_ascii_lowercase());
    }
    kind
}

impl Failure {
    /// A failure of one thing.
    pub(crate) fn one(code: Exit, message: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            code,
            items: vec![Item { kind: kind(&code), message: message.into(), hint }],
            profile: None,
            devices: Vec::new(),
        }
    }

    /// A failure of several things.
    pub(crate) fn of(code: Exit, items: Vec<Item>) -> Self {
        Self { code, items, profile: None, devices: Vec::new() }
    }

    /// Returns what failed.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Tells whether nothing failed but that a signal came before the guest ran.
    pub(crate) fn is_interruption(&self) -> bool {
        self.code == Exit::Guest && self.items.iter().all(|item| item.kind == "interrupted")
    }

    /// Returns what failed, without remedies.
    pub(crate) fn message(&self) -> String {
        self.items.iter().map(|item| item.message.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// Returns what failed, each thing with its remedy.
    pub(crate) fn into_items(self) -> Vec<Item> {
        self.items
    }

    /// Adds what may be the cause.
    pub(crate) fn and(mut self, items: Vec<Item>) -> Self {
        self.items.extend(items);
        self
    }

    /// Prints it for a person.
    pub(crate) fn print(&self) {
        if let Some(profile) = &self.profile {
            out::note(&diagnostics::render(profile));
        }
        for item in &self.items {
            print_item("error", item);
        }
    }

    /// Renders it for a program.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut problems: Vec<_> = self.profile.iter().flat_map(diagnostics::to_json).collect();
        problems.extend(self.items.iter().map(Item::to_json));
        let mut error = json!({ "exit_code": self.code, "problems": problems });
        if !self.devices.is_empty() {
            error["devices"] = json!(self.devices);
        }
        json!({ "error": error })
    }
}

/// Prints a message and its remedy.
pub(crate) fn print_item(level: &str, item: &Item) {
    out::note(&spell(level, item));
}

fn spell(level: &str, item: &Item) -> String {
    let hints = item.hint.iter().flat_map(|hint| hint.lines()).map(|line| format!("\n  hint: {line}"));
    format!("{level}: {}{}", item.message, hints.collect::<String>())
}

/// Describes a reason why the host can't run a profile.
pub(crate) fn refused(refusal: &Refusal) -> Item {
    Item::new(refusal, hints::refusal(refusal))
}

/// Describes what of the host could not be given back.
pub(crate) fn left(error: &HostError) -> Item {
    Item::new(error, hints::host(error))
}

impl From<BadProfile> for Failure {
    fn from(profile: BadProfile) -> Self {
        Self { code: Exit::Profile, items: Vec::new(), profile: Some(profile), devices: Vec::new() }
    }
}

impl From<Vec<Refusal>> for Failure {
    fn from(refusals: Vec<Refusal>) -> Self {
        Self::refused(&refusals, hints::refusal)
    }
}

impl Failure {
    /// A failure for reasons that lie with the host or the profile, with a remedy for each.
    pub(crate) fn refused(refusals: &[Refusal], hint: impl Fn(&Refusal) -> Option<String>) -> Self {
        // A profile that asks for what isn't there comes first: no other user or host makes it right.
        let code = match refusals.iter().map(Refusal::kind).min() {
            Some(RefusalKind::Profile) => Exit::Profile,
            Some(RefusalKind::Permission) => Exit::Permission,
            Some(RefusalKind::Unfit) => Exit::Unfit,
            Some(RefusalKind::Busy) => Exit::Busy,
            None => Exit::Internal,
        };
        let item = |refusal: &Refusal| Item::new(refusal, hint(refusal));
        Self { code, items: refusals.iter().map(item).collect(), profile: None, devices: Vec::new() }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self { code: host_code(&error), items: vec![left(&error)], profile: None, devices: Vec::new() }
    }
}

impl From<UpError> for Failure {
    fn from(error: UpError) -> Self {
        let (code, item) = match &*error.cause {
            Cause::Host(cause) => (host_code(cause), left(cause)),
            Cause::Launch(cause) => (launch_code(cause), Item::new(cause, hints::launch(cause))),
            cause @ Cause::SickBefore { bdf, .. } => {
                (Exit::NotGivenBack, Item::new(cause, Some(hints::sick(*bdf))))
            }
            cause @ Cause::NotAdopted { vm, .. } => {
                (Exit::Unfit, Item::new(cause, Some(hints::not_adopted(vm))))
            }
            cause @ Cause::Interrupted { .. } => (Exit::Guest, Item::new(cause, None)),
        };
        let well = error.devices.iter().all(|device| !device.judgement.verdict.is_bad());
        let code = if error.left.is_empty() && well { code } else { Exit::NotGivenBack };
        let mut items = vec![item];
        items.extend(error.left.iter().map(left));
        let devices = error.devices.iter().filter(|device| device.judgement.reason().is_some());
        // What can't be spelt is none of ours: these are values that were made to be spelt.
        let devices = devices.filter_map(|device| serde_json::to_value(device).ok()).collect();
        Self { code, items, profile: None, devices }
    }
}

fn host_code(error: &HostError) -> Exit {
    match error {
        HostError::Reserved { .. }
        | HostError::AlreadyUp { .. }
        | HostError::LeftBehind { .. }
        | HostError::Unsupervised { .. }
        | HostError::GroupBusy { .. }
        | HostError::Locked { .. }
        | HostError::SoakRuns { .. }
        | HostError::Soaked { .. }
        | HostError::Spared { .. }
        | HostError::ReachesMore { .. }
        | HostError::Stale { .. } => Exit::Busy,
        HostError::InFlight { .. }
        | HostError::NotAnswering { .. }
        | HostError::Sick { .. }
        | HostError::NotFoundAnew { .. }
        | HostError::DriverGone { .. }
        | HostError::KeptOff { .. }
        | HostError::PoolNotRestored { .. }
        | HostError::ChangedByOthers { .. }
        | HostError::QemuStuck { .. } => Exit::NotGivenBack,
        HostError::Content { path, .. } if path.ends_with("set.json") => Exit::NotGivenBack,
        HostError::NoInterruptRemapping { .. } => Exit::Unfit,
        error => match error.errno() {
            Some(EPERM | EACCES | EROFS) => Exit::Permission,
            Some(EBUSY) => Exit::Busy,
            _ => Exit::Unfit,
        },
    }
}

fn launch_code(error: &LaunchError) -> Exit {
    match error {
        LaunchError::Died { .. } | LaunchError::Silent { .. } | LaunchError::Qmp(_) => Exit::Guest,
        LaunchError::File { source, .. } if source.kind() == ErrorKind::PermissionDenied => Exit::Permission,
        LaunchError::TooOld { .. } | LaunchError::Spawn { .. } | LaunchError::File { .. } => Exit::Unfit,
        LaunchError::Pin { .. } | LaunchError::NotPinned { .. } => Exit::Unfit,
        LaunchError::Vcpus { .. } => Exit::Internal,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
