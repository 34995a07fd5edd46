//! What the lines of a record come to: counts, rate, percentiles, findings.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::{Cut, Cycle, CycleKind, CycleVerdict, DeviceCycle, Line, Phase, ResetWay, Why};
use crate::pci::Bdf;
use crate::reset::{Check, Finding, Method, Verdict};

/// What the lines so far come to. Lines are added one by one, each at the cost of that line alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    /// The cycles of each verdict.
    pub verdicts: BTreeMap<CycleVerdict, u32>,
    /// The cycles of each kind, those that were cut left out.
    pub kinds: BTreeMap<CycleKind, u32>,
    /// How long cycles took.
    pub cycle: Times,
    /// How long each part of a cycle took, of the cycles that have it; one that comes twice in a cycle counts with its sum.
    pub phases: BTreeMap<Phase, Times>,
    /// How long resets took that succeeded.
    pub resets: BTreeMap<Way, Times>,
    /// How many resets failed.
    pub failed_resets: BTreeMap<Way, u32>,
    /// What was found, each with the cycles in which it was.
    pub findings: BTreeMap<FoundKey, Found>,
    /// The numbers of the cycles that gpuvm didn't see the end of.
    pub cut: Vec<u32>,
    /// How often the soak went on after it was stopped.
    pub resumed: u32,
    /// How many cycles were asked for, by the last beginning.
    pub asked: Option<u32>,
    /// The first of the worst cycles; nothing as long as all are healthy.
    pub worst: Option<Worst>,
    /// Why it is over; nothing as long as it isn't.
    pub why: Option<Why>,
    spans: Spans,
}

/// Who made resets, and how, where that is known for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Way {
    /// Who.
    pub by: ResetWay,
    /// How.
    pub method: Option<Method>,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = match self.by {
            ResetWay::Gpuvm => "gpuvm",
            ResetWay::Kernel => "kernel",
        };
        match self.method {
            Some(method) => write!(f, "{by}: {method}"),
            None => write!(f, "{by}: method not known"),
        }
    }
}

/// A cycle that isn't healthy, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worst {
    /// Its number.
    pub cycle: u32,
    /// What it comes to.
    pub verdict: CycleVerdict,
    /// Why, in a sentence.
    pub reason: String,
}

/// How a finding came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// By the verdict, against the baseline of the cycle.
    Verdict,
    /// By the verdict before a repair.
    BeforeRepair,
    /// Against the first cycle's baseline.
    Drift,
}

/// What makes findings of several cycles one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FoundKey {
    /// The device that it was found with.
    pub device: Bdf,
    /// How it came to be known.
    pub origin: Origin,
    /// The check.
    pub check: Check,
    /// Whose register it is.
    pub bdf: Bdf,
    /// The register.
    pub register: String,
    /// What it comes to.
    pub weight: Option<Verdict>,
}

/// A finding, and the cycles in which it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The first of them.
    pub first: Finding,
    /// The cycles, in the record's order.
    pub cycles: Vec<u32>,
    /// What the kernel said in the first of them.
    pub kernel: Vec<String>,
}

/// Durations in ms, in order, so that each of their percentiles is at hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Times(Vec<u64>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, ms: u64) {
        let at = self.0.partition_point(|other| *other <= ms);
        self.0.insert(at, ms);
    }

    /// Returns all, the shortest first.
    pub fn sorted(&self) -> &[u64] {
        &self.0
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a percentile by nearest rank: the shortest that at least so many of a hundred don't exceed. It is always one of the
    /// times themselves, so that the 99th of fewer than a hundred is the longest.
    pub fn percentile(&self, percent: u8) -> Option<u64> {
        let rank = (self.0.len() * usize::from(percent.min(100))).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// Returns what is told of them; nothing of none.
    pub fn spread(&self) -> Option<Spread> {
        Some(Spread {
            count: self.len(),
            p50: self.percentile(50)?,
            p95: self.percentile(95)?,
            p99: self.percentile(99)?,
            max: self.percentile(100)?,
        })
    }
}

impl FromIterator<u64> for Times {
    fn from_iter<I: IntoIterator<Item = u64>>(times: I) -> Self {
        let mut times: Vec<u64> = times.into_iter().collect();
        times.sort_unstable();
        Self(times)
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.spread().serialize(to)
    }
}

/// Percentiles of durations, in ms, by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How many there are.
    pub count: usize,
    /// The median.
    pub p50: u64,
    /// Of twenty, nineteen are no longer.
    pub p95: u64,
    /// Of a hundred, 99 are no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// The times in which the soak ran, in ms since 1970: what lies between an interruption and when it went on is in none of them.
///
/// That clock may be set meanwhile, as it is soon after a boot, and so it is believed no further than the cycles' own times bear it out,
/// which are measured by one that isn't.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Spans {
    over: u64,
    /// The one that isn't over: its beginning and the end of what is known of it.
    open: Option<(u64, u64)>,
    /// What its cycles took, each with what was waited for it.
    cycles: u64,
}

/// What a soak may do besides its cycles: the last one may have been interrupted, and has no line then.
const BESIDES: u64 = 10 * 60_000;
/// Beginnings are in whole seconds.
const ROUNDED: u64 = 1_000;

impl Spans {
    fn begin(&mut self, at: u64) {
        self.over = self.elapsed();
        (self.open, self.cycles) = (Some((at, at)), 0);
    }

    fn cycle(&mut self, begin: u64, ms: u64, waited: u64) {
        self.cycles = self.cycles.saturating_add(ms).saturating_add(waited);
        self.reach(begin, begin.saturating_add(ms));
    }

    fn reach(&mut self, from: u64, to: u64) {
        let (_, end) = self.open.get_or_insert((from, from));
        *end = to.max(*end);
    }

    fn elapsed(&self) -> u64 {
        let open = self.open.map_or(0, |(begin, end)| end.saturating_sub(begin));
        let (least, most) = (self.cycles.saturating_sub(ROUNDED), self.cycles.saturating_add(BESIDES));
        self.over.saturating_add(open.clamp(least, most))
    }
}

impl Tally {
    /// Adds up all lines of a record.
    pub fn of(lines: &[Line]) -> Self {
        let mut tally = Self::default();
        lines.iter().for_each(|line| tally.add(line));
        tally
    }

    /// Adds a line.
    pub fn add(&mut self, line: &Line) {
        match line {
            Line::Begun(begun) => {
                self.resumed += u32::from(begun.done_before > 0 || self.asked.is_some() || self.done() > 0);
                self.asked = begun.settings.cycles;
                self.why = None;
                self.spans.begin(begun.at.saturating_mul(1000));
            }
            Line::Cycle(cycle) => self.add_cycle(cycle),
            Line::Cut(Cut { number, left, .. }) => {
                self.cut.push(*number);
                // Of a cycle whose end nobody saw, only what it has left behind is known.
                if !left.is_empty() {
                    self.note(*number, CycleVerdict::Bad, || left.join("; "));
                }
            }
            Line::Ended(ended) => {
                let at = ended.at.saturating_mul(1000);
                self.spans.reach(at, at);
                self.why = Some(ended.why.clone());
            }
            Line::Newer(_) => {}
        }
    }

    fn add_cycle(&mut self, cycle: &Cycle) {
        let begin = cycle.at.saturating_mul(1000);
        self.spans.cycle(begin, cycle.ms, cycle.waited_ms);
        let verdict = cycle.verdict();
        *self.verdicts.entry(verdict).or_default() += 1;
        *self.kinds.entry(cycle.kind).or_default() += 1;
        self.note(cycle.number, verdict, || cycle.reason().unwrap_or_default());
        self.cycle.add(cycle.ms);
        for (phase, ms) in cycle.phase_sums() {
            self.phases.entry(phase).or_default().add(ms);
        }
        for device in &cycle.devices {
            self.add_device(cycle.number, device);
        }
    }

    fn note(&mut self, cycle: u32, verdict: CycleVerdict, reason: impl FnOnce() -> String) {
        if verdict > self.worst.as_ref().map_or(CycleVerdict::Healthy, |worst| worst.verdict) {
            self.worst = Some(Worst { cycle, verdict, reason: reason() });
        }
    }

    fn add_device(&mut self, cycle: u32, device: &DeviceCycle) {
        for reset in &device.resets {
            let way = Way { by: reset.by, method: reset.method };
            match reset.failure {
                None => self.resets.entry(way).or_default().add(reset.ms),
                Some(_) => *self.failed_resets.entry(way).or_default() += 1,
            }
        }
        for (origin, finding) in device.found() {
            let key = FoundKey {
                device: device.bdf,
                origin,
                check: finding.check,
                bdf: finding.bdf,
                register: finding.register.clone(),
                weight: finding.weight,
            };
            let found = self.findings.entry(key).or_insert_with(|| Found {
                first: finding.clone(),
                cycles: Vec::new(),
                kernel: device.kernel.clone(),
            });
            if found.cycles.last() != Some(&cycle) {
                found.cycles.push(cycle);
            }
        }
    }

    /// Returns how many cycles are over, those that were cut left out.
    pub fn done(&self) -> u32 {
        self.verdicts.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns how many cycles came to a verdict.
    pub fn count(&self, verdict: CycleVerdict) -> u32 {
        self.verdicts.get(&verdict).copied().unwrap_or_default()
    }

    /// Returns how long the soak has run, in ms, the time in which it was stopped left out.
    pub fn elapsed_ms(&self) -> u64 {
        self.spans.elapsed()
    }

    /// Returns how many cycles are over in a minute; nothing before the first.
    pub fn per_minute(&self) -> Option<f64> {
        let minutes = float(self.elapsed_ms()) / 60_000.0;
        (self.done() > 0 && minutes > 0.0).then(|| f64::from(self.done()) / minutes)
    }

    /// Tells whether all that was asked for was run, and every cycle was healthy. One that gpuvm itself was killed in has no verdict,
    /// and bears on this only by what it has left behind.
    pub fn is_all_healthy(&self) -> bool {
        matches!(self.why, Some(Why::Done | Why::Time)) && self.done() > 0 && self.worst.is_none()
    }
}

/// Makes a number one to reckon with.
pub(super) fn float(number: u64) -> f64 {
    let half = |number: u64| f64::from(u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX));
    half(number >> 32) * 4_294_967_296.0 + half(number)
}

impl Cycle {
    /// Returns how long each of its parts took, with the sum of one that comes twice.
    pub fn phase_sums(&self) -> BTreeMap<Phase, u64> {
        let mut sums: BTreeMap<Phase, u64> = BTreeMap::new();
        for part in &self.phases {
            let sum = sums.entry(part.phase).or_default();
            *sum = sum.saturating_add(part.ms);
        }
        sums
    }
}

impl DeviceCycle {
    /// Returns all that was found of it.
    pub fn found(&self) -> impl Iterator<Item = (Origin, &Finding)> {
        let before = self.before_repair.iter().flat_map(|judgement| &judgement.findings);
        let judged = self.judgement.findings.iter().map(|finding| (Origin::Verdict, finding));
        let before = before.map(|finding| (Origin::BeforeRepair, finding));
        before.chain(judged).chain(self.drift.iter().map(|finding| (Origin::Drift, finding)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], None)]
    #[case::one(&[7], Some((7, 7, 7, 7)))]
    #[case::two(&[1, 9], Some((1, 9, 9, 9)))]
    #[case::twenty(&[20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1], Some((10, 19, 20, 20)))]
    fn percentiles_are_by_nearest_rank(
        #[case] times: &[u64],
        #[case] expected: Option<(u64, u64, u64, u64)>,
    ) {
        let mut added = Times::default();
        times.iter().for_each(|ms| added.add(*ms));
        let spread = added.spread().map(|spread| (spread.p50, spread.p95, spread.p99, spread.max));
        assert_eq!(spread, expected);
        assert_eq!(added, times.iter().copied().collect());
    }

    #[rstest]
    #[case(0, 0.0)]
    #[case(u64::from(u32::MAX) + 5, 4_294_967_300.0)]
    #[case(u64::MAX, 18_446_744_073_709_551_615.0)]
    fn numbers_are_reckoned_with(#[case] number: u64, #[case] expected: f64) {
        assert_eq!(float(number).to_bits(), expected.to_bits());
    }

    #[test]
    fn time_between_an_interruption_and_going_on_counts_nothing() {
        let mut spans = Spans::default();
        spans.begin(1_000);
        spans.reach(1_500, 4_000);
        spans.begin(100_000);
        assert_eq!(spans.elapsed(), 3_000);
        spans.reach(101_000, 102_500);
        assert_eq!(spans.elapsed(), 5_500);
        // A clock that was set back takes nothing away.
        spans.reach(50_000, 50_100);
        assert_eq!(spans.elapsed(), 5_500);
    }

    #[rstest]
    #[case::set_forward(1_700_000_000_000, 15_000 + BESIDES)]
    #[case::as_it_is(20_000, 20_000)]
    #[case::set_back(0, 15_000 - ROUNDED)]
    fn a_clock_that_is_set_while_a_soak_runs_hardly_bears_on_how_long_it_ran(
        #[case] later: u64,
        #[case] elapsed: u64,
    ) {
        let mut spans = Spans::default();
        spans.begin(50_000_000);
        spans.cycle(50_000_000, 5_000, 0);
        spans.cycle(later.saturating_add(50_000_000 - 10_000), 6_000, 4_000);
        spans.reach(later + 50_000_000, later + 50_000_000);
        if later == 0 {
            spans = Spans { open: Some((50_000_000, 50_000_000)), ..spans };
        }
        assert_eq!(spans.elapsed(), elapsed);
        // Nor is what comes later counted from there.
        spans.begin(1);
        assert_eq!(spans.elapsed(), elapsed);
    }

    proptest! {
        #[test]
        fn a_percentile_is_one_of_the_times_and_enough_are_no_longer(
            times in prop::collection::vec(any::<u64>(), 1..200),
            percent in 1u8..=100,
        ) {
            let count = times.len();
            let sorted: Times = times.iter().copied().collect();
            let found = sorted.percentile(percent).unwrap();
            prop_assert!(times.contains(&found));
            let no_longer = times.iter().filter(|ms| **ms <= found).count();
            prop_assert!(no_longer * 100 >= count * usize::from(percent));
            // Nor is there a shorter one of which that holds.
            let shorter = times.iter().filter(|ms| **ms < found).count();
            prop_assert!(shorter * 100 < count * usize::from(percent));
            prop_assert!(sorted.percentile(percent.saturating_sub(1)) <= Some(found));
        }
    }
}
