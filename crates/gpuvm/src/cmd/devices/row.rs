//! One function in a list.

use gpuvm_core::facts::{HostFacts, Presence};
use gpuvm_core::inventory::Kind;
use gpuvm_core::pci::{Bdf, ClassCode, DriverName, GroupId, PciId};
use gpuvm_core::plan::{Refusal, passable};
use gpuvm_core::reset::quirks::Found;
use gpuvm_core::reset::{RebootPolicy, ResetWish, quirks_of};
use serde::Serialize;

use super::kind;
use crate::hints;

/// One function, and whether it could be passed.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) bdf: Bdf,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) vendor: Option<String>,
    pub(super) id: PciId,
    pub(super) class: ClassCode,
    pub(super) class_name: String,
    pub(super) driver: Option<DriverName>,
    pub(super) group: Option<GroupId>,
    pub(super) node: Option<u32>,
    /// How many virtual functions it has.
    pub(super) virtual_functions: u32,
    /// The function that it is a virtual one of.
    pub(super) physical_function: Option<Bdf>,
    pub(super) verdict: Verdict,
    /// What has to be taken with it.
    pub(super) with: Vec<Bdf>,
    pub(super) reasons: Vec<Reason>,
    /// The names of what is known against it.
    pub(super) quirks: Vec<String>,
    /// The first of the reasons, in few words.
    #[serde(skip)]
    pub(super) words: String,
}

/// Whether a function could be passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Passable,
    Refused,
}

/// Why a function can't be passed.
#[derive(Debug, Serialize)]
pub(super) struct Reason {
    kind: String,
    message: String,
    hint: Option<String>,
}

impl Reason {
    pub(super) fn of(refusal: &Refusal) -> Self {
        Self { kind: kind(refusal), message: refusal.to_string(), hint: hints::refusal(refusal) }
    }
}

impl Row {
    /// Judges a function; nothing for one that isn't there.
    pub(super) fn of(bdf: Bdf, facts: &HostFacts) -> Option<Self> {
        let device = facts.devices.get(&bdf)?;
        let found = passable(bdf, facts);
        let virtual_function = device.virtual_function == Presence::Present;
        // What is wrong with itself is said before what is wrong with its neighbours.
        let own = |refusal: &&Refusal| !words(bdf, refusal).contains(COMES_ALONG);
        let first = found.refusals.iter().find(own).or(found.refusals.first());
        let words = first.map(|refusal| words(bdf, refusal)).unwrap_or_default();
        let words = match found.refusals.len() {
            0 | 1 => words,
            count => format!("{words}; and {} more", count - 1),
        };
        Some(Self {
            bdf,
            kind: Kind::of(bdf, device, facts),
            name: facts.name_of(device),
            vendor: facts.vendor_of(device.id).map(str::to_owned),
            id: device.id,
            class: device.class,
            class_name: facts.class_of(device),
            driver: device.driver.clone(),
            group: device.group,
            node: device.node,
            virtual_functions: device.virtual_functions,
            physical_function: device.physical_function.filter(|_| virtual_function),
            verdict: if found.is_passable() { Verdict::Passable } else { Verdict::Refused },
            reasons: found.refusals.iter().map(Reason::of).collect(),
            with: found.with,
            quirks: worries(bdf, facts),
            words,
        })
    }

    /// Says whether it could be passed, with what, or why not.
    pub(super) fn verdict_words(&self) -> String {
        let with = match &self.with[..] {
            [] => String::new(),
            [one] => format!(" with {one}"),
            [one, two] => format!(" with {one} and {two}"),
            [one, rest @ ..] => format!(" with {one} and {} others", rest.len()),
        };
        let verdict = match self.verdict {
            Verdict::Passable => format!("passable{with}"),
            Verdict::Refused => format!("refused: {}", self.words),
        };
        match &self.quirks[..] {
            [] => verdict,
            quirks => format!("{verdict}; quirk: {}", quirks.join(", ")),
        }
    }
}

/// Names what is known against a function itself and is to be heeded.
fn worries(bdf: Bdf, facts: &HostFacts) -> Vec<String> {
    let Some(device) = facts.devices.get(&bdf) else { return Vec::new() };
    let (wish, reboot) = (ResetWish::default(), RebootPolicy::default());
    let worries = |found: &Found<'_>| found.worry(device, wish, reboot, facts).is_some();
    let found = quirks_of(bdf, facts);
    found.iter().filter(|found| worries(found)).map(|found| found.quirk.name.clone()).collect()
}

/// How a reason is told that lies with another function.
const COMES_ALONG: &str = ", which has to come along: ";

/// Says in few words why a function is refused; another than the one in question is named.
fn words(bdf: Bdf, refusal: &Refusal) -> String {
    let of = |other: &Bdf| {
        if *other == bdf { String::new() } else { format!("{other}{COMES_ALONG}") }
    };
    match refusal {
        Refusal::NoIommu { .. } => "no IOMMU is active".to_owned(),
        Refusal::NoGroup { bdf: other } => format!("{}no IOMMU covers it", of(other)),
        Refusal::Bridge { bdf: other, .. } => format!("{}a bridge", of(other)),
        Refusal::HasVirtualFunctions { bdf: other, count, .. } => {
            format!("{}its {count} virtual functions are enabled", of(other))
        }
        Refusal::Critical { bdf: other, holder, .. } => format!("{}{holder}", of(other)),
        Refusal::BootDisplay { bdf: other, .. } => format!("{}the boot display", of(other)),
        Refusal::Quarantined { bdf: other, finding, .. } => {
            format!("{}quarantined: {finding}", of(other))
        }
        Refusal::LedgerUnread { bdf: other, .. } => format!("{}its ledger can't be read", of(other)),
        Refusal::Kept { bdf: other, .. } => format!("{}in the hands of gpuvm or the kernel", of(other)),
        Refusal::Overridden { bdf: other, set, .. } => {
            format!("{}driver_override is set to `{set}`", of(other))
        }
        other => other.to_string(),
    }
}
