//! What a cycle comes to, and whether a soak goes on after it.

use serde::{Deserialize, Serialize};

use super::{Cycle, Fault};
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
        let fault = |fault: &Fault| match fault {
            Fault::NotGivenBack { .. } => CycleVerdict::Bad,
            // `up` refuses with 74 where a device is sick or the host isn't given back, and with 69 one in quarantine.
            Fault::Refused { exit_code: 69 | 74, .. } => CycleVerdict::Bad,
            Fault::NotReady { .. }
            | Fault::EndedOtherwise { .. }
            | Fault::Job { .. }
            | Fault::Refused { .. } => CycleVerdict::Failed,
        };
        let device = |device: &super::DeviceCycle| {
            let sick = |verdict: Verdict| verdict.is_bad();
            match &device.before_repair {
                _ if sick(device.judgement.verdict) => CycleVerdict::Bad,
                Some(_) => CycleVerdict::Repaired,
                None if device.judgement.verdict > Verdict::Healthy || !device.drift.is_empty() => {
                    CycleVerdict::Degraded
                }
                None => CycleVerdict::Healthy,
            }
        };
        let worst = self.faults.iter().map(fault).chain(self.devices.iter().map(device)).max();
        worst.unwrap_or(CycleVerdict::Healthy)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::CycleVerdict::{Bad, Degraded, Failed, Healthy, Repaired};
    use super::*;

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
}
