//! What a cycle comes to, and whether a soak goes on after it.

use serde::{Deserialize, Serialize};

use super::{Cycle, DeviceCycle, Fault};
use crate::reset::Verdict;

/// What a cycle comes to, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CycleVerdict {
    /// The guest did what it was to, all devices came back healthy and as they were before the first cycle, and the host is as it was.
    Healthy,
    /// A device is degraded or not wholly known, or isn't what it was before the first cycle.
    Degraded,
    /// A device came back sick, and was repaired.
    Repaired,
    /// The guest didn't do what it was to.
    Failed,
    /// A device is sick, or the host is not as it was.
    Bad,
}

impl std::fmt::Display for CycleVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Repaired => "repaired",
            Self::Failed => "failed",
            Self::Bad => "bad",
        })
    }
}

/// What stops a soak before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopOn {
    /// The first cycle that isn't healthy.
    Degraded,
    /// A sick device, a host that is not as it was, or a guest that failed [`StopOn::FAILED_IN_A_ROW`] times in a row.
    #[default]
    Bad,
}

impl StopOn {
    /// So many failed cycles one after the other tell no more than the first few.
    pub const FAILED_IN_A_ROW: usize = 3;

    /// Tells whether a soak whose cycles so far came to these, the last one last, is to stop.
    pub fn stops(self, verdicts: &[CycleVerdict]) -> bool {
        let Some(last) = verdicts.last() else { return false };
        let in_a_row = verdicts.iter().rev().take_while(|verdict| **verdict == CycleVerdict::Failed).count();
        match self {
            Self::Degraded => *last > CycleVerdict::Healthy,
            Self::Bad => *last == CycleVerdict::Bad || in_a_row >= Self::FAILED_IN_A_ROW,
        }
    }
}

impl Cycle {
    /// Draws the verdict from what the cycle's line holds.
    pub fn verdict(&self) -> CycleVerdict {
        let worst = self
            .faults
            .iter()
            .map(Fault::verdict)
            .chain(self.devices.iter().map(DeviceCycle::comes_to))
            .max();
        worst.unwrap_or(CycleVerdict::Healthy)
    }

    /// Says what somebody else has, where that alone kept the guest from running: nothing is held against the guest or its devices then.
    pub fn busy(&self) -> Option<&str> {
        match &self.faults[..] {
            [Fault::Refused { message, exit_code: Fault::BUSY }]
                if self.devices.iter().all(|device| device.comes_to() == CycleVerdict::Healthy) =>
            {
                Some(message)
            }
            _ => None,
        }
    }

    /// Says in a sentence why it isn't healthy, by what weighs most; nothing of one that is.
    pub fn reason(&self) -> Option<String> {
        let verdict = self.verdict();
        let device = |found: &DeviceCycle| {
            let judged = (&found.judgement, "is", "");
            let (judgement, is, after) = match &found.before_repair {
                Some(before) if verdict == CycleVerdict::Repaired => (before, "was", ", and was repaired"),
                _ => judged,
            };
            let why = judgement.reason().map(|finding| format!(": {}", finding.meaning)).unwrap_or_default();
            (judgement.verdict > Verdict::Healthy)
                .then(|| format!("{} {is} {}{why}{after}", found.bdf, judgement.verdict))
                .or_else(|| Some(format!("{} isn't as it was: {}", found.bdf, found.drift.first()?.meaning)))
        };
        let worst_device = || self.worst_device().and_then(device);
        let sick = self.devices.iter().any(|device| device.judgement.verdict.is_bad());
        let waited = || match self.busy() {
            Some(_) => format!(" (waited {} s for it)", self.waited_ms / 1000),
            None => String::new(),
        };
        let faults = || self.faults.iter().max_by_key(|fault| fault.verdict());
        let faults = || faults().map(|fault| format!("{fault}{}", waited()));
        match verdict {
            CycleVerdict::Healthy => None,
            CycleVerdict::Bad if sick => worst_device(),
            CycleVerdict::Bad | CycleVerdict::Failed => faults(),
            CycleVerdict::Repaired | CycleVerdict::Degraded => worst_device(),
        }
    }

    /// Returns the device that the cycle's verdict rests on: of several that weigh as much the first; nothing where there is none.
    pub fn worst_device(&self) -> Option<&DeviceCycle> {
        self.devices.iter().rev().max_by_key(|device| (device.comes_to(), device.judgement.verdict))
    }
}

impl DeviceCycle {
    /// Returns what a cycle with it comes to.
    pub fn comes_to(&self) -> CycleVerdict {
        match &self.before_repair {
            _ if self.judgement.verdict.is_bad() => CycleVerdict::Bad,
            Some(_) => CycleVerdict::Repaired,
            None if self.judgement.verdict > Verdict::Healthy || !self.drift.is_empty() => {
                CycleVerdict::Degraded
            }
            None => CycleVerdict::Healthy,
        }
    }
}

impl Fault {
    /// The exit code of an `up` that is refused because somebody else has a device or CPU.
    const BUSY: u8 = 75;

    /// Returns what a cycle with it comes to.
    pub fn verdict(&self) -> CycleVerdict {
        match self {
            Self::NotGivenBack { .. } => CycleVerdict::Bad,
            // `up` refuses with 74 where a device is sick or the host isn't given back, and with 69 one in quarantine.
            Self::Refused { exit_code: 69 | 74, .. } => CycleVerdict::Bad,
            Self::NotReady { .. } | Self::EndedOtherwise { .. } | Self::Job { .. } | Self::Refused { .. } => {
                CycleVerdict::Failed
            }
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotReady { waited_for, ms } => {
                let (seconds, tenths) = (ms / 1000, ms / 100 % 10);
                write!(f, "the guest was not ready after {seconds}.{tenths} s: waited for {waited_for}")
            }
            Self::EndedOtherwise { how } => write!(f, "the guest ended otherwise than it was to: {how}"),
            Self::Job { message } => write!(f, "the guest's job failed: {message}"),
            Self::Refused { message, exit_code: Self::BUSY } => {
                write!(f, "busy, so that the guest never ran: {message}")
            }
            Self::Refused { message, .. } => write!(f, "the guest never ran: {message}"),
            Self::NotGivenBack { message } => write!(f, "the host is not as it was: {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::{CycleKind, OwnUse};
    use super::CycleVerdict::{Bad, Degraded, Failed, Healthy, Repaired};
    use super::*;
    use crate::facts::ErrorCounters;
    use crate::reset::{Check, Finding, Judgement};

    #[rstest]
    #[case::nothing_yet(&[], false, false)]
    #[case::healthy(&[Healthy], false, false)]
    #[case::degraded(&[Healthy, Degraded], true, false)]
    #[case::degraded_before(&[Degraded, Healthy], false, false)]
    #[case::repaired(&[Repaired], true, false)]
    #[case::failed(&[Failed], true, false)]
    #[case::failed_now_and_then(&[Failed, Failed, Healthy, Failed], true, false)]
    #[case::failed_in_a_row(&[Healthy, Failed, Failed, Failed], true, true)]
    #[case::bad(&[Bad], true, true)]
    fn a_soak_stops_at_what_it_was_told_to(
        #[case] verdicts: &[CycleVerdict],
        #[case] degraded: bool,
        #[case] bad: bool,
    ) {
        assert_eq!(StopOn::Degraded.stops(verdicts), degraded);
        assert_eq!(StopOn::Bad.stops(verdicts), bad);
    }

    fn device(address: &str, verdict: Option<Verdict>, before_repair: Option<Verdict>) -> DeviceCycle {
        let bdf = address.parse().unwrap();
        let judgement = |verdict: Option<Verdict>| {
            let found = verdict.map(|verdict| Finding {
                check: Check::LinkWidth,
                weight: Some(verdict),
                bdf,
                register: "link".to_owned(),
                before: None,
                after: "x1".to_owned(),
                meaning: "lanes are lost".to_owned(),
            });
            Judgement::new(found.into_iter().collect())
        };
        DeviceCycle {
            bdf,
            judgement: judgement(verdict),
            drift: Vec::new(),
            speed: None,
            width: None,
            errors: ErrorCounters::default(),
            resets: Vec::new(),
            repair: Vec::new(),
            before_repair: before_repair.map(|verdict| judgement(Some(verdict))),
            kernel: Vec::new(),
        }
    }

    #[rstest]
    #[case::a_repaired_one_and_a_degraded_one(
        (Some(Verdict::Degraded), None), (None, Some(Verdict::Impaired)), "82:00.0 was impaired: lanes are lost, and was repaired"
    )]
    #[case::two_degraded_ones((Some(Verdict::Degraded), None), (Some(Verdict::Degraded), None), "81:00.0 is degraded: lanes are lost")]
    #[case::a_sick_one(
        (None, Some(Verdict::Impaired)), (Some(Verdict::Impaired), None), "82:00.0 is impaired: lanes are lost"
    )]
    fn the_reason_is_that_of_the_device_that_the_verdict_rests_on(
        #[case] first: (Option<Verdict>, Option<Verdict>),
        #[case] second: (Option<Verdict>, Option<Verdict>),
        #[case] expected: &str,
    ) {
        let cycle = Cycle {
            number: 1,
            kind: CycleKind::Clean,
            at: 0,
            ms: 0,
            phases: Vec::new(),
            waited_ms: 0,
            outcome: None,
            faults: Vec::new(),
            devices: vec![device("81:00.0", first.0, first.1), device("82:00.0", second.0, second.1)],
            job: None,
            polled: None,
            own: OwnUse::default(),
        };
        assert_eq!(cycle.reason().unwrap(), format!("0000:{expected}"));
    }
}
