//! What comes next in a soak, and what it comes to: both by the record's lines alone.

use super::{CycleKind, CycleVerdict, Line, Settings, Why};

/// How far a soak has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headway {
    /// The highest number of a cycle that has a line.
    number: u32,
    /// The cycle whose line is the last of a cycle, with what it comes to and why.
    last: Option<(u32, CycleVerdict, String)>,
    /// What the cycles since the last beginning came to. Whoever goes on after a stop means to try it again.
    since: Vec<CycleVerdict>,
    /// The worst of all.
    worst: Option<CycleVerdict>,
    /// Why it is over, as long as nobody goes on with it.
    why: Option<Why>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A cycle.
    Cycle {
        /// Its number.
        number: u32,
        /// How its guest is to end.
        kind: CycleKind,
    },
    /// The end.
    Over(Why),
}

/// What a soak comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All that was asked for was run, and every cycle is healthy.
    Healthy,
    /// It isn't over, or was ended before its time, or a cycle isn't healthy.
    NotHealthy,
    /// A device is sick, or the host is not as it was.
    Bad,
}

impl Headway {
    /// Reads it off a record's lines.
    pub fn of(lines: &[Line]) -> Self {
        let mut headway = Self::default();
        lines.iter().for_each(|line| headway.add(line));
        headway
    }

    /// Adds the record's next line.
    pub fn add(&mut self, line: &Line) {
        self.number = self.number.max(line.number().unwrap_or(0));
        match line {
            Line::Begun(_) => {
                self.since.clear();
                self.why = None;
            }
            Line::Cycle(cycle) => {
                let verdict = cycle.verdict();
                self.since.push(verdict);
                self.note(cycle.number, verdict, cycle.reason().unwrap_or_default());
            }
            // Of a cycle whose end nobody saw, only what it has left behind is known.
            Line::Cut(cut) if !cut.left.is_empty() => {
                self.since.push(CycleVerdict::Bad);
                self.note(cut.number, CycleVerdict::Bad, cut.left.join("; "));
            }
            Line::Ended(ended) => self.why = Some(ended.why.clone()),
            Line::Cut(_) | Line::Newer(_) => {}
        }
    }

    fn note(&mut self, number: u32, verdict: CycleVerdict, reason: String) {
        self.last = Some((number, verdict, reason));
        self.worst = self.worst.max(Some(verdict));
    }

    /// Returns the highest number of a cycle that is over.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns it as it is when somebody goes on with it.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { since: Vec::new(), why: None, ..self.clone() }
    }

    /// Returns why it is over; nothing of one that isn't.
    pub fn why(&self) -> Option<&Why> {
        self.why.as_ref()
    }

    /// Says what comes next, of a soak that has run for so many seconds.
    pub fn next(&self, settings: &Settings, seconds: u64) -> Next {
        if let Some((cycle, _, reason)) = &self.last
            && settings.stop_on.stops(&self.since)
        {
            return Next::Over(Why::Stopped { cycle: *cycle, reason: reason.clone() });
        }
        if settings.cycles.is_some_and(|cycles| self.number >= cycles) {
            return Next::Over(Why::Done);
        }
        if settings.seconds.is_some_and(|most| seconds >= most) {
            return Next::Over(Why::Time);
        }
        let number = self.number.saturating_add(1);
        Next::Cycle { number, kind: settings.mix.kind_of(number) }
    }

    /// Says what it comes to.
    pub fn standing(&self) -> Standing {
        let whole = matches!(self.why, Some(Why::Done | Why::Time));
        match (&self.last, self.worst) {
            (Some((_, CycleVerdict::Bad, _)), _) => Standing::Bad,
            (_, Some(CycleVerdict::Healthy)) if whole => Standing::Healthy,
            _ => Standing::NotHealthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::soak::{Begun, Cut, Cycle, Ended, Fault, Machine, OwnUse, Ready, StopOn};

    fn settings(cycles: Option<u32>, seconds: Option<u64>) -> Settings {
        Settings {
            profile: "vm.toml".to_owned(),
            profile_text: String::new(),
            set: Vec::new(),
            cycles,
            seconds,
            mix: "clean:1,kill:1".parse().unwrap(),
            ready: Ready { expect: None, job: false, after_ms: 1, timeout_seconds: 1 },
            poll: None,
            stop_on: StopOn::Bad,
            shutdown_timeout: None,
        }
    }

    /// Makes the lines that letters stand for: h, f and b are cycles that are healthy, failed and bad, x is one that was cut short and X
    /// one that has left something behind; B begins, D is done, T is out of time, S was stopped and I was interrupted.
    fn headway(letters: &str) -> Headway {
        let mut headway = Headway::default();
        for letter in letters.chars() {
            let number = headway.number() + 1;
            let ended = |why| Line::Ended(Ended { at: 1, why });
            headway.add(&match letter {
                'B' => Line::Begun(Box::new(Begun {
                    version: 1,
                    at: 1,
                    vm: "vm1".parse().unwrap(),
                    done_before: headway.number(),
                    settings: settings(None, None),
                    machine: Machine::default(),
                    devices: Vec::new(),
                })),
                'D' => ended(Why::Done),
                'T' => ended(Why::Time),
                'S' => ended(Why::Stopped { cycle: headway.number(), reason: String::new() }),
                'I' => ended(Why::Interrupted { signal: "SIGINT".to_owned() }),
                'x' | 'X' => Line::Cut(Cut {
                    number,
                    kind: CycleKind::Clean,
                    at: 1,
                    found: Vec::new(),
                    left: if letter == 'X' { vec!["QEMU".to_owned()] } else { Vec::new() },
                }),
                letter => Line::Cycle(Box::new(cycle(number, letter))),
            });
        }
        headway
    }

    fn cycle(number: u32, letter: char) -> Cycle {
        let faults = match letter {
            'f' => vec![Fault::Job { message: "no".to_owned() }],
            'b' => vec![Fault::NotGivenBack { message: "a claim".to_owned() }],
            _ => Vec::new(),
        };
        Cycle {
            number,
            kind: CycleKind::Clean,
            at: 1,
            ms: 1,
            phases: Vec::new(),
            waited_ms: 0,
            outcome: None,
            faults,
            devices: Vec::new(),
            job: None,
            polled: None,
            own: OwnUse::default(),
        }
    }

    #[rstest]
    #[case::the_first("B", Some(3), None, 0, Ok((1, CycleKind::Clean)))]
    #[case::the_second("Bh", Some(3), None, 0, Ok((2, CycleKind::Kill)))]
    #[case::after_one_that_was_cut_short("BxB", Some(3), None, 0, Ok((2, CycleKind::Kill)))]
    #[case::the_last_is_over("Bhhh", Some(3), None, 0, Err(Why::Done))]
    #[case::the_last_was_cut_short("Bhhx", Some(3), None, 0, Err(Why::Done))]
    #[case::the_time_is_not_over("Bh", None, Some(60), 59, Ok((2, CycleKind::Kill)))]
    #[case::the_time_is_over("Bh", None, Some(60), 60, Err(Why::Time))]
    #[case::all_are_over_before_the_time("Bhhh", Some(3), Some(60), 59, Err(Why::Done))]
    #[case::a_bad_one("Bhb", Some(3), None, 0, Err(Why::Stopped { cycle: 2, reason: "the host is not as it was: a claim".to_owned() }))]
    #[case::one_that_left_something("BhX", Some(3), None, 0, Err(Why::Stopped { cycle: 2, reason: "QEMU".to_owned() }))]
    #[case::a_failed_one("Bf", Some(3), None, 0, Ok((2, CycleKind::Kill)))]
    #[case::three_failed_ones("Bfff", Some(9), None, 0, Err(Why::Stopped { cycle: 3, reason: "the guest's job failed: no".to_owned() }))]
    #[case::three_of_which_two_were_before("BffSBf", Some(9), None, 0, Ok((4, CycleKind::Kill)))]
    #[case::somebody_goes_on_after_a_bad_one("BbSB", Some(9), None, 0, Ok((2, CycleKind::Kill)))]
    fn what_comes_next_is_read_off_the_lines(
        #[case] letters: &str,
        #[case] cycles: Option<u32>,
        #[case] most: Option<u64>,
        #[case] seconds: u64,
        #[case] expected: Result<(u32, CycleKind), Why>,
    ) {
        let next = headway(letters).next(&settings(cycles, most), seconds);
        let expected = match expected {
            Ok((number, kind)) => Next::Cycle { number, kind },
            Err(why) => Next::Over(why),
        };
        assert_eq!(next, expected);
    }

    #[test]
    fn whoever_goes_on_after_a_stop_tries_again() {
        let stopped = headway("BhbS");
        assert_eq!(stopped.again().why(), None);
        let (number, kind) = (3, CycleKind::Clean);
        assert_eq!(stopped.again().next(&settings(Some(9), None), 0), Next::Cycle { number, kind });
    }

    #[rstest]
    #[case::all_healthy("BhhD", Standing::Healthy)]
    #[case::the_time_is_over("BhhT", Standing::Healthy)]
    #[case::not_over("Bhh", Standing::NotHealthy)]
    #[case::nothing_was_run("BT", Standing::NotHealthy)]
    #[case::interrupted("BhhI", Standing::NotHealthy)]
    #[case::interrupted_and_gone_on_with("BhIBhD", Standing::Healthy)]
    #[case::one_was_cut_short_and_all_is_given_back("BhxBhD", Standing::Healthy)]
    #[case::none_but_one_that_was_cut_short("BxD", Standing::NotHealthy)]
    #[case::one_failed("BhfhD", Standing::NotHealthy)]
    #[case::one_was_bad_and_is_mended("BhbSBhD", Standing::NotHealthy)]
    #[case::the_last_is_bad("BhbS", Standing::Bad)]
    #[case::interrupted_and_bad("BhbI", Standing::Bad)]
    #[case::one_that_was_cut_short_left_something("BhXS", Standing::Bad)]
    fn what_it_comes_to_is_read_off_the_lines(#[case] letters: &str, #[case] expected: Standing) {
        assert_eq!(headway(letters).standing(), expected);
    }
}
