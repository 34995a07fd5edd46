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
