//! The verdict on a function: what is wrong with it after a run or a reset, against what it was before.

use serde::{Deserialize, Serialize};

use crate::pci::Bdf;

/// What a function is fit for, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It answers as it did, everything was read, and nothing speaks against it.
    Healthy,
    /// It works, and less well: a narrower link, errors that the link repairs, a reset that took long.
    Degraded,
    /// Nothing bad was seen, but not everything could be read.
    Unknown,
    /// Its config space is alive, and its registers, power or identity are wrong: no driver can use it as it is.
    Impaired,
    /// It, its link or the kernel has reported an error that nothing has repaired.
    Faulted,
    /// It doesn't answer: all ones, or still in reset.
    Unreachable,
}

impl Verdict {
    /// Tells whether nobody should be given the device before it is known to be well again.
    pub fn is_bad(self) -> bool {
        self >= Self::Impaired
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::Impaired => "impaired",
            Self::Faulted => "faulted",
            Self::Unreachable => "unreachable",
        })
    }
}

/// What was found by a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check.
    pub check: Check,
    /// What it comes to; nothing for what is only worth knowing.
    pub weight: Option<Verdict>,
    /// Whose register it is: the function's, or the port's above it.
    pub bdf: Bdf,
    /// The register or attribute, as `config 0x04 COMMAND` or `aer_dev_fatal`.
    pub register: String,
    /// Its value before, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Its value after, or why there is none.
    pub after: String,
    /// What that means, in one sentence without its subject.
    pub meaning: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}: {}", self.register, self.bdf, self.after)?;
        if let Some(before) = &self.before {
            write!(f, ", was {before}")?;
        }
        write!(f, ": {}", self.meaning)
    }
}

/// What is looked at. The names are stable: they are in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Whether the config space could be read at all.
    Config,
    /// Whether it answers with anything but ones.
    AllOnes,
    /// Whether it has left reset (vendor id 0001 is Request Retry Status).
    Retrying,
    /// Whether it is the device that it was.
    Identity,
    /// Whether it is the card that it was.
    Subsystem,
    /// Whether it is of the class and the revision that it was.
    Class,
    /// Whether its header has the layout that it had.
    HeaderType,
    /// Whether its interrupt pin is one: QEMU aborts otherwise.
    InterruptPin,
    /// Whether its capabilities are where they were.
    Capabilities,
    /// Whether it has seen a system or parity error (`Status`).
    Status,
    /// Whether its base address registers are where the kernel has placed them.
    Bars,
    /// Whether its power management answers (`PMCSR`).
    PowerRegister,
    /// Whether the kernel still believes in its power.
    PowerState,
    /// Whether somebody lets it sleep who didn't.
    PowerPolicy,
    /// Whether both ends of its link are as wide as they were.
    LinkWidth,
    /// Whether both ends of its link are as fast as they were.
    LinkSpeed,
    /// Whether its port says that the link is up.
    LinkActive,
    /// Whether its port has done with training the link.
    LinkTraining,
    /// Whether the port above it answers, and is the one that it was.
    Port,
    /// Whether errors that the hardware repairs were counted.
    CorrectableErrors,
    /// Whether errors that cost a transaction were counted.
    NonfatalErrors,
    /// Whether errors that cost the link were counted.
    FatalErrors,
    /// Whether the root port was told of errors.
    RootPortErrors,
    /// Whether a counter of errors began anew.
    CountersBegunAnew,
    /// Whether its Advanced Error Reporting shows uncorrectable errors that it didn't.
    ErrorStatus,
    /// Whether its Device Status shows errors that it didn't.
    DeviceStatus,
    /// Whether the kernel lists the reset methods that it did.
    ResetMethods,
    /// Whether the kernel's log could be heard, all of it.
    Log,
    /// Whether the kernel has given up waiting for it after a reset.
    GaveUp,
    /// Whether the kernel couldn't wake it.
    PowerStuck,
    /// Whether the kernel found it inaccessible.
    Inaccessible,
    /// Whether the kernel couldn't recover it from an error.
    RecoveryFailed,
    /// Whether the kernel was told of an uncorrectable error.
    UncorrectableLogged,
    /// Whether the kernel was told of a correctable error.
    CorrectableLogged,
    /// Whether it took more than a second to come back.
    SlowReset,
    /// Whether its link didn't come up in time.
    LinkNotActive,
    /// Whether it was reset with transactions pending.
    PendingTransaction,
    /// Whether the IOMMU has stopped an access of it.
    IommuFault,
    /// Whether it was reset as it was asked for: otherwise what its last user left may be in it.
    Reset,
    /// Whether everything else could be read.
    Unread,
}

impl Check {
    /// Returns the name under which the ledger and `--json` have it.
    pub fn name(self) -> String {
        // A variant without fields is a text.
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// The verdict on one function, with everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worst of the findings.
    pub verdict: Verdict,
    /// What was found, worst first; what is only worth knowing comes last.
    pub findings: Vec<Finding>,
}

impl Judgement {
    /// Draws the verdict from what was found.
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.weight));
        let worst = findings.first().and_then(|finding| finding.weight);
        Self { verdict: worst.unwrap_or(Verdict::Healthy), findings }
    }

    /// Returns the finding that the verdict rests on; none of a healthy device.
    pub fn reason(&self) -> Option<&Finding> {
        self.findings.first().filter(|finding| finding.weight.is_some())
    }
}
