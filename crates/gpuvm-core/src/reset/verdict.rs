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
