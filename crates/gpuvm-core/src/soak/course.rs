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
    /// Which of them is this boot's end: what its console said before may be heard after it.
    end: Option<usize>,
    /// How long it was waited for before it rebooted, where QEMU is started again for that (ms).
    waited: u64,
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
            end: None,
            waited: 0,
            outline: Outline::default(),
        }
    }

    /// Notes that a part of the cycle begins.
    pub fn begins(&mut self, at: u64, phase: Phase) {
        match phase {
            Phase::Boot | Phase::Reboot | Phase::Work => self.end = None,
            _ => self.end = self.end.or(Some(self.marks.len())),
        }
        self.marks.push((at, phase));
    }

    /// Takes in what happened.
    pub fn take_in(&mut self, at: u64, happened: Happened) {
        match happened {
            Happened::Runs => {
                self.begins(at, self.booting());
                if matches!(self.stand, Stand::Idle | Stand::Waiting { .. }) {
                    let since = at.saturating_sub(std::mem::take(&mut self.waited));
                    // One that has rebooted by itself would do so again and again.
                    let over = self.has_rebooted();
                    self.stand = if over { Stand::Working { until: at } } else { Stand::Waiting { since } };
                    self.began = at;
                }
            }
            Happened::Matched | Happened::Reported(_) if at < self.reset_at => {}
            Happened::Matched => self.matched = self.matched.or(Some(at)),
            Happened::Reported(report) => self.report(at, report),
            Happened::Reset => {
                if let Some(phase) = self.reset(at) {
                    self.begins(at, phase);
                }
            }
            Happened::Relaunched => {
                let (boot, stand) = (self.boot, self.stand);
                self.reset(at);
                if self.stand != Stand::Asked {
                    self.waited = match stand {
                        Stand::Waiting { since } if self.boot == boot => at.saturating_sub(since),
                        _ => 0,
                    };
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

    /// Returns when something is to be done if nothing happens before. Of one that is ending, whoever asked for it, nothing is asked:
    /// to be asked once more would only cut its end short.
    pub fn due(&self) -> Option<u64> {
        if self.end.is_some() {
            return None;
        }
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

    /// Takes in that it begins anew, and returns which part of the cycle does so with it.
    fn reset(&mut self, at: u64) -> Option<Phase> {
        let soon = at.saturating_sub(self.began) < Self::FIRMWARE;
        let is_reboot = self.kind == CycleKind::Reboot && self.boot == Boot::First;
        let begins = match self.stand {
            Stand::Idle | Stand::Asked => return None,
            Stand::Waiting { .. } => None,
            Stand::Working { .. } if soon => {
                self.stand = Stand::Waiting { since: self.began };
                Some(self.booting())
            }
            Stand::Resetting { .. } | Stand::Working { .. } if is_reboot => {
                (self.boot, self.began) = (Boot::Second, at);
                self.stand = Stand::Waiting { since: at };
                Some(Phase::Reboot)
            }
            Stand::Resetting { .. } | Stand::Working { .. } => {
                let how = "once it was ready, it rebooted by itself".to_owned();
                let fault = Fault::EndedOtherwise { how };
                if !self.outline.faults.contains(&fault) {
                    self.outline.faults.push(fault);
                }
                None
            }
        };
        (self.matched, self.reported, self.reset_at) = (None, None, at);
        begins
    }

    /// Tells whether it has rebooted when nobody wanted that.
    fn has_rebooted(&self) -> bool {
        self.outline.faults.iter().any(|fault| matches!(fault, Fault::EndedOtherwise { .. }))
    }

    /// Looks whether it has got ready.
    fn look(&mut self) {
        let Stand::Waiting { since } = self.stand else { return };
        let matched = if self.ready.expect.is_some() { self.matched } else { Some(since) };
        let reported = if self.ready.job { self.reported } else { Some(since) };
        let Some((matched, reported)) = matched.zip(reported) else { return };
        let at = since.max(matched).max(reported).max(self.last_boot());
        self.stand = Stand::Working { until: at.saturating_add(self.ready.after_ms) };
        match self.end.and_then(|end| Some((end, self.marks.get(end)?.0))) {
            Some((end, left)) => self.marks.insert(end, (at.min(left), Phase::Work)),
            None => self.begins(at, Phase::Work),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn ready(expect: Option<&str>, job: bool, after_ms: u64) -> Ready {
        Ready { expect: expect.map(str::to_owned), job, after_ms, timeout_seconds: 10 }
    }

    fn course(kind: CycleKind, ready: &Ready) -> Course {
        let mut course = Course::new(kind, ready, RebootPolicy::InPlace);
        course.begins(0, Phase::Prepare);
        course.begins(50, Phase::Start);
        course
    }

    fn parts(outline: &Outline) -> Vec<(Phase, u64)> {
        outline.phases.iter().map(|part| (part.phase, part.ms)).collect()
    }

    fn went_well() -> Happened {
        Happened::Reported(Ok(JobReport { exit: 0, message: None, figures: serde_json::Map::new() }))
    }

    const KILLED: Outcome = Outcome::QemuDied { exit: Exit::Signal(9) };
    const BUTTON: Outcome = Outcome::Stopped { stage: Stage::Acpi };

    #[rstest]
    #[case::clean(CycleKind::Clean, Act::Stop, BUTTON)]
    #[case::kill(CycleKind::Kill, Act::Crash, KILLED)]
    fn an_end_is_asked_for_once_it_is_ready_and_its_time_is_over(
        #[case] kind: CycleKind,
        #[case] act: Act,
        #[case] outcome: Outcome,
    ) {
        let mut course = course(kind, &ready(Some("login:"), true, 300));
        course.take_in(100, Happened::Runs);
        course.take_in(700, Happened::Matched);
        assert_eq!((course.due(), course.act(900)), (Some(10_100), None));
        course.take_in(1_000, went_well());
        assert_eq!((course.due(), course.act(1_299)), (Some(1_300), None));
        assert_eq!((course.act(1_300), course.act(1_400), course.due()), (Some(act), None, None));
        course.begins(1_500, Phase::Judge);
        let outline = course.finish(1_600, Some(&outcome), EndedBy::Itself);
        let expected = [
            (Phase::Prepare, 50),
            (Phase::Start, 50),
            (Phase::Boot, 900),
            (Phase::Work, 300),
            (Phase::Stop, 200),
            (Phase::Judge, 100),
        ];
        assert_eq!((parts(&outline), &outline.faults[..]), (expected.to_vec(), &[][..]));
    }

    #[test]
    fn a_reboot_cycle_resets_once_and_waits_once_more_for_everything() {
        let mut course = course(CycleKind::Reboot, &ready(Some("x"), true, 0));
        course.take_in(100, Happened::Runs);
        course.take_in(200, Happened::Matched);
        course.take_in(300, went_well());
        assert_eq!(course.act(300), Some(Act::Reset));
        course.take_in(310, Happened::Reset);
        // Of the boot before, and heard late.
        course.take_in(305, Happened::Matched);
        // The firmware resets it once more.
        course.take_in(330, Happened::Reset);
        course.take_in(900, Happened::Matched);
        assert_eq!(course.act(900), None);
        course.take_in(950, went_well());
        assert_eq!(course.act(950), Some(Act::Stop));
        let outline = course.finish(1_000, Some(&BUTTON), EndedBy::Itself);
        let expected = [
            (Phase::Prepare, 50),
            (Phase::Start, 50),
            (Phase::Boot, 200),
            (Phase::Work, 0),
            (Phase::Reboot, 650),
            (Phase::Work, 0),
            (Phase::Stop, 50),
        ];
        assert_eq!((parts(&outline), &outline.faults[..]), (expected.to_vec(), &[][..]));
    }

    #[test]
    fn a_guest_that_reboots_by_itself_in_a_reboot_cycle_isnt_reset_again() {
        let mut course = course(CycleKind::Reboot, &ready(Some("x"), false, 60_000));
        course.take_in(100, Happened::Runs);
        course.take_in(200, Happened::Matched);
        course.take_in(9_000, Happened::Reset);
        course.take_in(9_500, Happened::Matched);
        assert_eq!((course.act(60_200), course.act(69_500)), (None, Some(Act::Stop)));
        assert_eq!(course.finish(70_000, Some(&BUTTON), EndedBy::Itself).faults, []);
    }

    #[test]
    fn a_guest_that_reboots_by_itself_once_it_is_ready_fails_other_cycles_once() {
        let mut course = course(CycleKind::Clean, &ready(None, false, 60_000));
        course.take_in(100, Happened::Runs);
        for at in [200, 4_000, 9_000, 20_000] {
            course.take_in(at, Happened::Reset);
        }
        let outline = course.finish(70_000, Some(&Outcome::Panicked), EndedBy::Itself);
        assert!(
            matches!(&outline.faults[..], [Fault::EndedOtherwise { how }] if how.contains("rebooted by itself")),
            "{outline:?}"
        );
    }

    #[test]
    fn under_relaunch_nothing_is_asked_of_a_guest_that_is_being_started_again() {
        let mut course = Course::new(CycleKind::Reboot, &ready(None, false, 0), RebootPolicy::Relaunch);
        course.take_in(100, Happened::Runs);
        assert_eq!(course.act(100), Some(Act::Reset));
        course.take_in(110, Happened::Leaves("host-qmp-system-reset".to_owned()));
        course.begins(150, Phase::Judge);
        course.take_in(160, Happened::Relaunched);
        course.begins(160, Phase::Start);
        assert_eq!((course.due(), course.act(100_000)), (None, None));
        course.take_in(300, Happened::Runs);
        assert_eq!(course.act(300), Some(Act::Stop));
        let outline = course.finish(400, Some(&BUTTON), EndedBy::Itself);
        let expected = [
            (Phase::Boot, 0),
            (Phase::Work, 0),
            (Phase::Reboot, 50),
            (Phase::Judge, 10),
            (Phase::Start, 140),
            (Phase::Reboot, 0),
            (Phase::Work, 0),
            (Phase::Stop, 100),
        ];
        assert_eq!((parts(&outline), &outline.faults[..]), (expected.to_vec(), &[][..]));
    }

    #[test]
    fn under_relaunch_a_guest_that_reboots_before_it_is_ready_has_no_more_time_than_another() {
        let mut course = Course::new(CycleKind::Clean, &ready(Some("x"), false, 0), RebootPolicy::Relaunch);
        course.take_in(100, Happened::Runs);
        course.take_in(6_100, Happened::Relaunched);
        course.begins(6_100, Phase::Start);
        course.take_in(60_000, Happened::Runs);
        assert_eq!((course.act(63_999), course.act(64_000)), (None, Some(Act::Stop)));
        let outline = course.finish(65_000, Some(&BUTTON), EndedBy::Itself);
        assert!(matches!(outline.faults[..], [Fault::NotReady { ms: 10_000, .. }]), "{outline:?}");
    }

    #[test]
    fn under_relaunch_a_guest_that_reboots_by_itself_once_it_is_ready_is_ended_when_it_runs_again() {
        let mut course = Course::new(CycleKind::Clean, &ready(None, false, 60_000), RebootPolicy::Relaunch);
        course.take_in(100, Happened::Runs);
        course.take_in(50_000, Happened::Relaunched);
        course.take_in(51_000, Happened::Runs);
        assert_eq!(course.act(51_000), Some(Act::Stop));
        let outline = course.finish(52_000, Some(&BUTTON), EndedBy::Itself);
        assert!(matches!(outline.faults[..], [Fault::EndedOtherwise { .. }]), "{outline:?}");
    }

    #[rstest]
    #[case::that_works(ready(None, false, 300), CycleKind::Clean)]
    #[case::that_is_to_be_killed(ready(None, false, 300), CycleKind::Kill)]
    #[case::that_is_to_be_reset(ready(None, false, 300), CycleKind::Reboot)]
    #[case::that_is_not_ready(ready(Some("x"), false, 0), CycleKind::Clean)]
    fn nothing_is_asked_of_a_guest_whose_end_somebody_else_has_asked_for(
        #[case] ready: Ready,
        #[case] kind: CycleKind,
    ) {
        let mut course = course(kind, &ready);
        course.take_in(100, Happened::Runs);
        course.begins(200, Phase::Stop);
        assert_eq!(course.act(90_000), None);
        assert_eq!(course.finish(90_000, Some(&BUTTON), EndedBy::Signal).faults, []);
    }

    /// The console and the monitor are two connections.
    #[test]
    fn what_was_said_before_the_end_and_is_heard_after_it_counts() {
        let mut course = course(CycleKind::Clean, &ready(Some("x"), false, 1_000));
        course.take_in(100, Happened::Runs);
        course.take_in(400, Happened::Leaves("guest-shutdown".to_owned()));
        course.begins(420, Phase::Judge);
        course.take_in(421, Happened::Matched);
        let outline = course.finish(430, Some(&Outcome::PoweredOff), EndedBy::Itself);
        let expected = [
            (Phase::Prepare, 50),
            (Phase::Start, 50),
            (Phase::Boot, 300),
            (Phase::Work, 0),
            (Phase::Stop, 20),
            (Phase::Judge, 10),
        ];
        assert_eq!((parts(&outline), &outline.faults[..]), (expected.to_vec(), &[][..]));
    }

    #[rstest]
    #[case::asked_and_died(Outcome::QemuDied { exit: Exit::Signal(11) }, Some("QEMU died (signal 11)"))]
    #[case::sick(Outcome::Rebooted { not_again: Some(NotAgain::SickDevice) }, Some("did not come back well"))]
    #[case::by_quit(Outcome::Stopped { stage: Stage::Quit }, Some("telling QEMU to quit"))]
    #[case::by_kill(Outcome::Stopped { stage: Stage::Kill }, Some("killing QEMU"))]
    #[case::off(Outcome::PoweredOff, None)]
    fn how_a_guest_ended_otherwise_is_told_in_words(#[case] outcome: Outcome, #[case] words: Option<&str>) {
        let mut course = course(CycleKind::Clean, &ready(None, false, 0));
        course.take_in(100, Happened::Runs);
        assert_eq!(course.act(100), Some(Act::Stop));
        for (by, words) in [(EndedBy::Itself, words), (EndedBy::Signal, None)] {
            let outline = course.clone().finish(200, Some(&outcome), by);
            match (&outline.faults[..], words) {
                ([], None) => {}
                ([Fault::EndedOtherwise { how }], Some(words)) => assert!(how.contains(words), "{how}"),
                other => panic!("{other:?}"),
            }
        }
    }

    fn any_happening() -> impl Strategy<Value = Happened> {
        prop_oneof![
            Just(Happened::Runs),
            Just(Happened::Matched),
            Just(went_well()),
            Just(Happened::Reported(Err("no report".to_owned()))),
            Just(Happened::Reset),
            Just(Happened::Relaunched),
            Just(Happened::Leaves("guest-reset".to_owned())),
            Just(Happened::Leaves("guest-shutdown".to_owned())),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_every_ms_is_accounted_for_and_the_end_is_asked_for_once(
            kind in prop_oneof![Just(CycleKind::Clean), Just(CycleKind::Kill), Just(CycleKind::Reboot)],
            (line, job, after_ms) in (any::<bool>(), any::<bool>(), 0_u64..3_000),
            happenings in proptest::collection::vec((0_u64..20_000, any_happening()), 0..30),
            late in 0_u64..50,
        ) {
            let mut course = Course::new(kind, &ready(line.then_some("x"), job, after_ms), RebootPolicy::InPlace);
            course.begins(0, Phase::Prepare);
            let (mut now, mut acts) = (0, Vec::new());
            for (wait, what) in happenings {
                now += wait;
                acts.extend(course.act(now));
                // Told late, by a clock that doesn't run backwards for long.
                course.take_in(now.saturating_sub(late), what);
                acts.extend(course.act(now));
            }
            let ends = acts.iter().filter(|act| **act != Act::Reset).count();
            prop_assert!(ends <= 1 && acts.len() - ends <= 1, "{acts:?}");
            prop_assert!(acts.iter().all(|act| *act != Act::Crash || kind == CycleKind::Kill));
            prop_assert!(acts.iter().all(|act| *act != Act::Reset || kind == CycleKind::Reboot));
            let outline = course.finish(now, None, EndedBy::Itself);
            prop_assert_eq!(outline.phases.iter().map(|part| part.ms).sum::<u64>(), now);
            let adjacent = outline.phases.windows(2).filter(|two| two[0].phase == two[1].phase).count();
            prop_assert_eq!(adjacent, 0);
        }
    }
}
