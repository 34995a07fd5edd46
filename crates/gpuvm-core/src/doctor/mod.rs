//! The doctor: whether firmware, topology, drivers, isolation and resources agree, check by check.
//!
//! Each check is a file with a [`Definition`]: what it is called, why it matters, and a pure function from facts to judgements.
//! [`examine`] runs all of them. A check whose fact couldn't be read says [`Verdict::Unknown`], never [`Verdict::Ok`].

mod device;
mod firmware;
mod isolation;
mod ownership;
mod platform;
mod remedy;
mod resources;
#[cfg(test)]
mod testing;
mod topology;

use serde::Serialize;

pub use remedy::{Distribution, Package, Remedy};

use crate::facts::HostFacts;
use crate::pci::{Bdf, GroupId};
use crate::plan::{Outline, outline};
use crate::profile::Profile;

/// All checks, in the order in which they are shown.
const CHECKS: &[&[Definition]] = &[
    firmware::CHECKS,
    topology::CHECKS,
    ownership::CHECKS,
    isolation::CHECKS,
    platform::CHECKS,
    resources::CHECKS,
];

/// What a check is about; the deeper a layer, the more it rests on those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The firmware, and the IOMMU that it switches on.
    Firmware,
    /// Ports, links, BARs.
    Topology,
    /// Who has which device, now and after the next boot.
    Ownership,
    /// What keeps a device's DMA where it belongs.
    Isolation,
    /// KVM, QEMU, guest firmware, the kernel's VFIO.
    Platform,
    /// Memory, CPUs, limits.
    Resources,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Firmware => "firmware and IOMMU",
            Self::Topology => "PCIe topology",
            Self::Ownership => "driver ownership",
            Self::Isolation => "isolation",
            Self::Platform => "VM platform",
            Self::Resources => "resources",
        })
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// It isn't about this host or this profile.
    NotApplicable,
    /// What it rests on couldn't be read.
    Unknown,
    /// A guest would run, and something of it may go wrong or be slow.
    Warning,
    /// A guest wouldn't run.
    Failed,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 5] = [Self::Ok, Self::NotApplicable, Self::Unknown, Self::Warning, Self::Failed];
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::NotApplicable => "not applicable",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Failed => "failed",
        })
    }
}

/// What a judgement is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Subject {
    /// The host as a whole.
    Host,
    /// One function.
    Device {
        /// Its address.
        bdf: Bdf,
    },
    /// One IOMMU group.
    Group {
        /// Its number.
        group: GroupId,
    },
    /// One NUMA node.
    Node {
        /// Its number.
        node: u32,
    },
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Device { bdf } => bdf.fmt(f),
            Self::Group { group } => write!(f, "group {group}"),
            Self::Node { node } => write!(f, "node {node}"),
        }
    }
}

/// One finding of the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The check's name, stable: `iommu-active`.
    pub name: &'static str,
    /// What it is about.
    pub layer: Layer,
    /// What of the host it is about.
    pub subject: Subject,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub found: String,
    /// What was read to find it: paths and values.
    pub read: Vec<String>,
    /// Why it matters, in one sentence.
    pub why: &'static str,
    /// What to do about it, where something is to be done.
    pub remedy: Option<Remedy>,
}

/// All findings of the doctor, by layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// The findings.
    pub checks: Vec<Check>,
}

impl Examination {
    /// Tells whether nothing failed.
    pub fn is_fit(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Failed)
    }

    /// Takes failures for warnings where they are about what nobody has asked for.
    pub fn only_warn_of(&mut self, subjects: &[Subject]) {
        let failed =
            |check: &&mut Check| check.verdict == Verdict::Failed && subjects.contains(&check.subject);
        self.checks.iter_mut().filter(failed).for_each(|check| check.verdict = Verdict::Warning);
    }

    /// Counts the findings of a kind.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }
}

/// A check as it is written down.
pub(crate) struct Definition {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is about.
    pub(crate) layer: Layer,
    /// Why it matters, in one sentence.
    pub(crate) why: &'static str,
    /// Judges the host; one judgement for each subject that it looked at.
    pub(crate) judge: fn(&Case<'_>) -> Vec<Judgement>,
}

/// What a check may look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    /// The host.
    pub(crate) facts: &'a HostFacts,
    /// The profile whose needs are judged, if one is given.
    pub(crate) profile: Option<&'a Profile>,
    /// The functions that are to be passed, whole cards: those of the profile, or whatever the user named.
    pub(crate) targets: &'a [Bdf],
    /// What that profile comes to on this host.
    pub(crate) outline: Option<&'a Outline>,
}

impl Case<'_> {
    /// Tells whether devices are to be passed: a host without a profile is looked at as one that passes some.
    pub(crate) fn passes_devices(&self) -> bool {
        self.profile.is_none_or(|profile| !profile.devices.is_empty())
    }

    /// Tells whether a function is given to VFIO: it is passed, or the profile holds it so that nobody else has it.
    pub(crate) fn takes(&self, bdf: Bdf) -> bool {
        let holds = |profile: &Profile| profile.devices.iter().any(|device| device.hold.contains(&bdf));
        self.targets.contains(&bdf) || self.profile.is_some_and(holds)
    }

    /// Returns whose commands a remedy names.
    pub(crate) fn distribution(&self) -> Distribution {
        self.facts.platform.distribution
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) subject: Subject,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    pub(crate) read: Vec<String>,
    pub(crate) remedy: Option<Remedy>,
}

impl Judgement {
    /// Makes a judgement of the host as a whole, with nothing to be done about it yet.
    pub(crate) fn of_host(verdict: Verdict, found: impl Into<String>) -> Self {
        Self::of(Subject::Host, verdict, found)
    }

    /// Makes a judgement that there is nothing to judge, and says why.
    pub(crate) fn not_applicable(found: impl Into<String>) -> Vec<Self> {
        vec![Self::of_host(Verdict::NotApplicable, found)]
    }

    /// Makes a judgement, with nothing to be done about it yet.
    pub(crate) fn of(subject: Subject, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { subject, verdict, found: found.into(), read: Vec::new(), remedy: None }
    }

    /// Adds something that was read, as `path: value`.
    pub(crate) fn read(mut self, what: impl Into<String>) -> Self {
        self.read.push(what.into());
        self
    }

    /// Adds what to do about it.
    pub(crate) fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Takes back what rests on something that couldn't be read: a survey takes it for absent, and that may look healthy.
    fn without_what_is_unread(mut self, facts: &HostFacts) -> Self {
        if !matches!(self.verdict, Verdict::Ok | Verdict::NotApplicable) {
            return self;
        }
        let paths =
            self.read.iter().map(|read| read.split_once(": ").map_or(read.as_str(), |(path, _)| path));
        let unread = paths.filter(|path| path.starts_with('/')).find_map(|path| facts.unread_about(path));
        if let Some(unread) = unread {
            self.verdict = Verdict::Unknown;
            self.found = format!("can't be told: {unread}");
        }
        self
    }
}

/// Examines a host, for a profile if one is given, and for the functions that are to be passed.
pub fn examine(facts: &HostFacts, profile: Option<&Profile>, targets: &[Bdf]) -> Examination {
    let outline = profile.map(|profile| outline(profile, facts));
    let case = Case { facts, profile, targets, outline: outline.as_ref() };
    let mut checks = Vec::new();
    for definition in CHECKS.iter().copied().flatten() {
        let judgements = (definition.judge)(&case).into_iter();
        checks.extend(judgements.map(|judgement| judgement.without_what_is_unread(facts)).map(|judgement| {
            Check {
                name: definition.name,
                layer: definition.layer,
                subject: judgement.subject,
                verdict: judgement.verdict,
                found: judgement.found,
                read: judgement.read,
                why: definition.why,
                remedy: judgement.remedy,
            }
        }));
    }
    checks.sort_by_key(|check| check.layer);
    Examination { checks }
}

/// Lists the names of all checks with their layers, in order.
pub fn names() -> impl Iterator<Item = (Layer, &'static str)> {
    CHECKS.iter().copied().flatten().map(|definition| (definition.layer, definition.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_asked_for_is_only_warned_about() {
        let [asked, other] = ["0000:81:00.0", "0000:82:00.0"].map(|bdf| bdf.parse().unwrap());
        let mut examination = examine(&HostFacts::default(), None, &[asked, other]);
        let verdicts = |examination: &Examination, bdf| -> Vec<Verdict> {
            let about = examination.checks.iter().filter(|check| check.subject == Subject::Device { bdf });
            about.map(|check| check.verdict).collect()
        };
        assert!(verdicts(&examination, other).contains(&Verdict::Failed));
        examination.only_warn_of(&[Subject::Device { bdf: other }]);
        assert!(!verdicts(&examination, other).contains(&Verdict::Failed));
        assert!(verdicts(&examination, other).contains(&Verdict::Warning));
        assert!(verdicts(&examination, asked).contains(&Verdict::Failed));
    }

    #[test]
    fn each_check_has_a_name_of_its_own() {
        let mut names: Vec<&str> = names().map(|(_, name)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
