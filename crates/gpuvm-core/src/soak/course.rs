//! The course of one cycle's guest as a pure function: what happened on its console and to its machine, and what is to be asked of it.
//!
//! ```text
//! Idle --runs--> Waiting --matched, reported--> Working --after_ms--> Asked (stop or crash)
//!                  ^   \--timeout--> Asked (stop)     \--of a reboot cycle--> Resetting --reset--> Waiting, the second time
//!                  \---------------------------- firmware's own reset <----/
//! ```
//!
//! No clock is read here: all times are in ms since the cycle began, and come in with what happened then.

use super::{CycleKind, Fault, JobReport, Phase, PhaseTime, Ready};
use crate::lifecycle::{Exit, NotAgain, Outcome, Stage};
use crate::reset::RebootPolicy;

/// What happened to the guest.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    /// It was started.
    Runs,
    /// A line of its console was the one that is waited for.
    Matched,
    /// Its job has reported, or what it reported makes no sense.
    Reported(Result<JobReport, String>),
    /// Its machine was reset, and goes on.
    Reset,
    /// It has rebooted, and QEMU is started again for it.
    Relaunched,
    /// QEMU has said that it shuts down, and why.
    Leaves(String),
}

/// What is to be asked of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// To end, by its power button first.
    Stop,
    /// That QEMU dies under it.
    Crash,
    /// To begin anew.
    Reset,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outline {
    /// How long each part took: together all of the cycle.
    pub phases: Vec<PhaseTime>,
    /// What went wrong with the guest.
    pub faults: Vec<Fault>,
    /// What its job reported, the last time.
    pub job: Option<JobReport>,
}

/// The course of a cycle's guest.
#[derive(Debug, Clone)]
pub struct Course {
    kind: CycleKind,
    ready: Ready,
    reboot: RebootPolicy,
    boot: Boot,
    stand: Stand,
    /// When this boot began: by a start, or by a reset that was to be.
    began: u64,
    /// When its machine was last reset: what its console said before is of no boot that goes on.
    reset_at: u64,
    /// When its console had the line that is waited for.
    matched: Option<u64>,
    /// When its job reported.
    reported: Option<u64>,
    /// When each part began.
    marks: Vec<(u64, Phase)>,
    outline: Outline,
}

/// Which boot of the cycle it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    First,
    Second,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// It hasn't run yet.
    Idle,
    /// It isn't ready.
    Waiting { since: u64 },
    /// It is ready, and left alone until then.
    Working { until: u64 },
    /// It was asked to begin anew.
    Resetting { since: u64 },
    /// Its end was asked for.
    Asked,
}

impl Course {
    /// A machine is often reset once more by its firmware, this soon after a start or a reset (ms): that is no reboot of the guest.
    const FIRMWARE: u64 = 5_000;

    /// Begins at 0.
    pub fn new(kind: CycleKind, ready: &Ready, reboot: RebootPolicy) -> Self {
        Self {
            kind,
            ready: ready.clone(),
            reboot,
            boot: Boot::First,
            stand: Stand::Idle,
            began: 0,
            reset_at: 0,
            matched: None,
            reported: None,
            marks: Vec::new(),
            outline: Outline::default(),
        }
    }

    /// Notes that a part of the cycle begins.
    pub fn begins(&mut self, at: u64, phase: Phase) {
        self.marks.push((at, phase));
    }

    /// Takes in what happened.
    pub fn take_in(&mut self, at: u64, happened: Happened) {
        match happened {
            Happened::Runs => {
                self.begins(at, self.booting());
                if matches!(self.stand, Stand::Idle | Stand::Waiting { .. }) {
                    (self.stand, self.began) = (Stand::Waiting { since: at }, at);
                }
            }
            Happened::Matched | Happened::Reported(_) if at < self.reset_at => {}
            Happened::Matched => self.matched = self.matched.or(Some(at)),
            Happened::Reported(report) => self.report(at, report),
            Happened::Reset => self.reset(at),
            Happened::Relaunched => {
                self.reset(at);
                if self.stand != Stand::Asked {
                    self.stand = Stand::Idle;
                }
            }
            Happened::Leaves(reason) => {
                let reboots = matches!(reason.as_str(), "guest-reset" | "host-qmp-system-reset");
                let again = reboots && self.reboot != RebootPolicy::Stop;
                self.begins(at, if again { Phase::Reboot } else { Phase::Stop });
            }
        }
        self.look();
    }

    /// Returns when something is to be done if nothing happens before.
    pub fn due(&self) -> Option<u64> {
        let timeout = self.ready.timeout_seconds.saturating_mul(1000);
        match self.stand {
            Stand::Waiting { since } | Stand::Resetting { since } => Some(since.saturating_add(timeout)),
            Stand::Working { until } => Some(until),
            Stand::Idle | Stand::Asked => None,
        }
    }

    /// Returns what is to be done by now, once.
    pub fn act(&mut self, now: u64) -> Option<Act> {
        self.due().filter(|due| *due <= now)?;
        match self.stand {
            Stand::Waiting { since } | Stand::Resetting { since } => {
                let waited_for = self.waited_for();
                self.outline.faults.push(Fault::NotReady { waited_for, ms: now.saturating_sub(since) });
            }
            Stand::Working { .. } if self.kind == CycleKind::Reboot && self.boot == Boot::First => {
                self.begins(now, Phase::Reboot);
                self.stand = Stand::Resetting { since: now };
                return Some(Act::Reset);
            }
            _ => {}
        }
        let was_ready = matches!(self.stand, Stand::Working { .. });
        self.stand = Stand::Asked;
        self.begins(now, Phase::Stop);
        Some(if self.kind == CycleKind::Kill && was_ready { Act::Crash } else { Act::Stop })
    }

    /// Ends the course: the cycle is over, and its guest ended so, if it ever ran. Of one that somebody else has ended before its time
    /// nothing is held against the guest's end.
    pub fn finish(mut self, at: u64, outcome: Option<&Outcome>, ended_by: EndedBy) -> Outline {
        let told = self.outline.faults.iter().any(|fault| !matches!(fault, Fault::Job { .. }));
        if let (Some(outcome), EndedBy::Itself, false) = (outcome, ended_by, told)
            && let Some(how) = self.otherwise(outcome)
        {
            self.outline.faults.push(Fault::EndedOtherwise { how });
        }
        self.outline.phases = phases(self.marks, at);
        self.outline
    }

    fn booting(&self) -> Phase {
        match self.boot {
            Boot::First => Phase::Boot,
            Boot::Second => Phase::Reboot,
        }
    }

    /// Takes in what the job reported, its first word of a boot.
    fn report(&mut self, at: u64, report: Result<JobReport, String>) {
        if !self.ready.job || self.reported.is_some() || self.stand == Stand::Asked {
            return;
        }
        self.reported = Some(at);
        let failure = match &report {
            Ok(report) => report.failure(),
            Err(error) => Some(error.clone()),
        };
        self.outline.faults.extend(failure.map(|message| Fault::Job { message }));
        self.outline.job = report.ok().or(self.outline.job.take());
    }

    fn reset(&mut self, at: u64) {
        let soon = at.saturating_sub(self.began) < Self::FIRMWARE;
        let is_reboot = self.kind == CycleKind::Reboot && self.boot == Boot::First;
        match self.stand {
            Stand::Idle | Stand::Asked => return,
            Stand::Waiting { .. } => {}
            Stand::Working { .. } if soon => {
                self.stand = Stand::Waiting { since: self.began };
                self.begins(at, self.booting());
            }
            Stand::Resetting { .. } | Stand::Working { .. } if is_reboot => {
                (self.boot, self.began) = (Boot::Second, at);
                self.stand = Stand::Waiting { since: at };
                self.begins(at, Phase::Reboot);
            }
            Stand::Resetting { .. } | Stand::Working { .. } => {
                let fault =
                    Fault::EndedOtherwise { how: "once it was ready, it rebooted by itself".to_owned() };
                if !self.outline.faults.contains(&fault) {
                    self.outline.faults.push(fault);
                }
            }
        }
        (self.matched, self.reported, self.reset_at) = (None, None, at);
    }

    /// Looks whether it has got ready.
    fn look(&mut self) {
        let Stand::Waiting { since } = self.stand else { return };
        let matched = if self.ready.expect.is_some() { self.matched } else { Some(since) };
        let reported = if self.ready.job { self.reported } else { Some(since) };
        if let Some((matched, reported)) = matched.zip(reported) {
            let at = since.max(matched).max(reported).max(self.last_boot());
            self.stand = Stand::Working { until: at.saturating_add(self.ready.after_ms) };
            self.begins(at, Phase::Work);
        }
    }

    /// Returns when the boot that goes on began, or was begun anew.
    fn last_boot(&self) -> u64 {
        let boots = self.marks.iter().filter(|(_, phase)| matches!(phase, Phase::Boot | Phase::Reboot));
        boots.map(|(at, _)| *at).max().unwrap_or(0)
    }

    /// Says what it hasn't done yet.
    fn waited_for(&self) -> String {
        if matches!(self.stand, Stand::Resetting { .. }) {
            return "the reset that QEMU was asked for".to_owned();
        }
        let line = self.ready.expect.as_ref().filter(|_| self.matched.is_none());
        let line = line.map(|expect| format!("a line of its console that matches `{expect}`"));
        let job = (self.ready.job && self.reported.is_none()).then(|| "the report of its job".to_owned());
        let waited: Vec<String> = line.into_iter().chain(job).collect();
        let again = if self.boot == Boot::Second { ", after its reset" } else { "" };
        format!("{}{again}", waited.join(", and for "))
    }

    /// Says how a guest ended that ended otherwise than it was to.
    fn otherwise(&self, outcome: &Outcome) -> Option<String> {
        let first_of_two = self.kind == CycleKind::Reboot && self.boot == Boot::First;
        // Where the profile says so, a reboot is the end, and no second boot comes.
        let ends_there = first_of_two
            && *outcome == (Outcome::Rebooted { not_again: Some(NotAgain::Policy) })
            && self.reboot == RebootPolicy::Stop;
        let powered_off = matches!(outcome, Outcome::PoweredOff | Outcome::Stopped { stage: Stage::Acpi });
        let killed = Outcome::QemuDied { exit: Exit::Signal(9) };
        match self.stand {
            Stand::Idle => None,
            Stand::Waiting { .. } => Some(format!(
                "before it was ready, it {outcome}; what was waited for was {}",
                self.waited_for()
            )),
            Stand::Resetting { .. } | Stand::Working { .. } if ends_there => None,
            Stand::Resetting { .. } => Some(format!("when it was reset, it {outcome}")),
            Stand::Working { .. } if first_of_two => Some(format!("before it was to be reset, it {outcome}")),
            Stand::Working { .. } if self.kind == CycleKind::Kill => {
                Some(format!("before QEMU was to be killed, it {outcome}"))
            }
            Stand::Asked if self.kind == CycleKind::Kill => {
                (*outcome != killed).then(|| format!("when QEMU was to be killed, it {outcome}"))
            }
            Stand::Working { .. } | Stand::Asked => (!powered_off).then(|| format!("it {outcome}")),
        }
    }
}

/// Who has ended a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// Itself, or the soak as the cycle wants it.
    Itself,
    /// Somebody who has ended the soak.
    Signal,
}

/// Makes lengths of beginnings, so that they add up to the whole. A beginning may be told late.
fn phases(mut marks: Vec<(u64, Phase)>, end: u64) -> Vec<PhaseTime> {
    marks.sort_by_key(|(at, _)| *at);
    let ends: Vec<u64> = marks.iter().skip(1).map(|(at, _)| *at).chain([end]).collect();
    let mut phases: Vec<PhaseTime> = Vec::new();
    for ((at, phase), end) in marks.into_iter().zip(ends) {
        let ms = end.saturating_sub(at);
        match phases.last_mut() {
            Some(last) if last.phase == phase => last.ms += ms,
            _ => phases.push(PhaseTime { phase, ms }),
        }
    }
    phases
}
