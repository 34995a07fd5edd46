//! Two records, held against each other: a kernel before and after its upgrade.

mod chance;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::tally::{Found, Spread, Tally, Times, float};
use super::{Begun, CycleVerdict, Line};

pub use chance::{Ranks, mann_whitney};

/// The least number of times on either side from which something can be told: the test's distribution is near enough to normal then.
pub const LEAST: usize = 8;
/// The probability below which a difference isn't taken for chance.
pub const ALPHA: f64 = 0.01;
/// How much slower B may be without being worse: by this many ms, or by a tenth.
pub const TOLERATED_MS: u64 = 20;

/// Two records, held against each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// What is otherwise about the machines, and about what was asked for.
    pub differences: Vec<Difference>,
    /// How long things took.
    pub times: Vec<Compared>,
    /// What was found in A alone.
    pub only_in_a: Vec<Found>,
    /// What was found in B alone.
    pub only_in_b: Vec<Found>,
    /// In what B is worse; empty if it isn't.
    pub worse: Vec<String>,
}

/// One of two records.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// The cycles that are over.
    pub cycles: u32,
    /// Those that gpuvm didn't see the end of.
    pub cut: usize,
    /// The cycles of each verdict.
    pub verdicts: BTreeMap<CycleVerdict, u32>,
}

/// Something that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What.
    pub what: &'static str,
    /// What it is in A.
    pub a: Option<String>,
    /// What it is in B.
    pub b: Option<String>,
}

/// How long something took in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// What: `cycle`, a phase's name, or a reset's (`reset kernel: flr`).
    pub what: String,
    /// In A.
    pub a: Option<Spread>,
    /// In B.
    pub b: Option<Spread>,
    /// How probable a difference like this is where there is none (Mann-Whitney, two-sided); nothing where too few were seen.
    pub p: Option<f64>,
    /// What that comes to.
    pub outcome: Outcome,
}

/// What a comparison of times comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// No difference that these cycles show.
    Same,
    /// B takes longer, and that isn't chance.
    Slower,
    /// B takes less, and that isn't chance.
    Faster,
    /// There are too few to tell.
    TooFew,
    /// Only one of the records has it.
    OnlyOne,
}

/// Compares two records.
pub fn compare(a: &[Line], b: &[Line]) -> Comparison {
    let (first, second) = (Tally::of(a), Tally::of(b));
    let times = times(&first, &second);
    let mut worse = worse_verdicts(&first, &second);
    worse.extend(times.iter().filter_map(Compared::worse));
    Comparison {
        a: Side::of(&first),
        b: Side::of(&second),
        differences: differences(last_begun(a), last_begun(b)),
        times,
        only_in_a: missing(&first, &second),
        only_in_b: missing(&second, &first),
        worse,
    }
}

impl Side {
    fn of(tally: &Tally) -> Self {
        Self { cycles: tally.done(), cut: tally.cut.len(), verdicts: tally.verdicts.clone() }
    }
}

impl Compared {
    fn of(what: String, a: Option<&Times>, b: Option<&Times>) -> Self {
        let (first, second) = (a.and_then(Times::spread), b.and_then(Times::spread));
        let mut compared = Self { what, a: first, b: second, p: None, outcome: Outcome::OnlyOne };
        let (Some(a), Some(b)) = (a, b) else { return compared };
        if a.len() < LEAST || b.len() < LEAST {
            compared.outcome = Outcome::TooFew;
            return compared;
        }
        let ranks = mann_whitney(a.sorted(), b.sorted());
        compared.p = Some(ranks.p);
        compared.outcome = match ranks.p < ALPHA {
            false => Outcome::Same,
            true if ranks.second_is_larger => Outcome::Slower,
            true => Outcome::Faster,
        };
        compared
    }

    /// Returns by how many ms B's median is longer, and by which part of A's.
    pub fn difference(&self) -> Option<(i128, Option<f64>)> {
        let (a, b) = (self.a?.p50, self.b?.p50);
        let part = (a > 0).then(|| (float(b) - float(a)) / float(a));
        Some((i128::from(b) - i128::from(a), part))
    }

    fn worse(&self) -> Option<String> {
        let (a, b) = (self.a?.p50, self.b?.p50);
        let longer = b.saturating_sub(a);
        // More than a tenth: of 0 ms, anything is.
        let much = longer > TOLERATED_MS && u128::from(longer) * 10 > u128::from(a);
        (self.outcome == Outcome::Slower && much)
            .then(|| format!("{}: {b} ms at the median instead of {a} ms", self.what))
    }
}

fn times(a: &Tally, b: &Tally) -> Vec<Compared> {
    let mut rows = vec![Compared::of("cycle".to_owned(), Some(&a.cycle), Some(&b.cycle))];
    let phases = a.phases.keys().chain(b.phases.keys()).collect::<BTreeSet<_>>();
    for phase in phases {
        rows.push(Compared::of(phase.name().to_owned(), a.phases.get(phase), b.phases.get(phase)));
    }
    let ways = a.resets.keys().chain(b.resets.keys()).collect::<BTreeSet<_>>();
    for way in ways {
        rows.push(Compared::of(format!("reset by {way}"), a.resets.get(way), b.resets.get(way)));
    }
    rows
}

/// Holds the shares of verdicts against each other, from the worst on: B may have as many cycles of a verdict or a worse one as A's
/// share comes to in its number of cycles, rounded up.
fn worse_verdicts(a: &Tally, b: &Tally) -> Vec<String> {
    for (name, tally) in [("A", a), ("B", b)] {
        if tally.done() == 0 {
            return vec![format!("{name} has no cycle that is over: there is nothing to compare")];
        }
    }
    let at_least = |tally: &Tally, verdict: CycleVerdict| -> u64 {
        tally.verdicts.range(verdict..).map(|(_, count)| u64::from(*count)).sum()
    };
    use CycleVerdict::{Bad, Degraded, Failed, Repaired};
    let (mut worse, mut told) = (Vec::new(), 0);
    for verdict in [Bad, Failed, Repaired, Degraded] {
        let (of_a, of_b) = (at_least(a, verdict), at_least(b, verdict));
        let allowed = (of_a * u64::from(b.done())).div_ceil(u64::from(a.done()));
        // What is told of the bad ones isn't told of them again as of failed ones.
        if of_b > allowed && of_b > told {
            let or_worse = if verdict == Bad { "" } else { " or worse" };
            let (all_a, all_b) = (a.done(), b.done());
            let text =
                format!("{of_b} of {all_b} cycles came out {verdict}{or_worse} instead of {of_a} of {all_a}");
            worse.push(text);
            told = of_b;
        }
    }
    worse
}

/// Returns what was found in one and not in the other, whichever the cycles and the values were.
fn missing(of: &Tally, than: &Tally) -> Vec<Found> {
    let found = of.findings.iter().filter(|(key, _)| !than.findings.contains_key(key));
    found.map(|(_, found)| found.clone()).collect()
}

fn last_begun(lines: &[Line]) -> Option<&Begun> {
    lines.iter().rev().find_map(|line| match line {
        Line::Begun(begun) => Some(&**begun),
        _ => None,
    })
}

pub(super) fn differences(a: Option<&Begun>, b: Option<&Begun>) -> Vec<Difference> {
    type Of = fn(&Begun) -> Option<String>;
    let asked: [(&str, Of); 15] = [
        ("gpuvm", |begun| Some(begun.machine.gpuvm.clone())),
        ("kernel", |begun| Some(begun.machine.kernel.clone())),
        ("kernel build", |begun| Some(begun.machine.kernel_build.clone())),
        ("kernel command line", |begun| Some(begun.machine.cmdline.clone())),
        ("QEMU", |begun| begun.machine.qemu.clone()),
        ("machine", |begun| begun.machine.product.clone()),
        ("firmware", |begun| begun.machine.firmware.clone()),
        ("CPU", |begun| begun.machine.cpu.clone()),
        ("devices", |begun| {
            let devices = begun.devices.iter();
            let devices = devices.map(|device| {
                format!("{} {} (resets: {})", device.bdf, device.id, device.reset_methods.join(" "))
            });
            Some(devices.collect::<Vec<_>>().join(", "))
        }),
        ("mix", |begun| Some(begun.settings.mix.to_string())),
        ("ready when", |begun| Some(super::report::ready(&begun.settings.ready))),
        ("poll", |begun| begun.settings.poll.clone()),
        ("profile", |begun| Some(begun.settings.profile.clone())),
        ("set", |begun| Some(begun.settings.set.join(" "))),
        ("profile's text", |begun| Some(begun.settings.profile_text.clone())),
    ];
    let value = |begun: Option<&Begun>, of: Of| begun.and_then(of).filter(|value| !value.is_empty());
    let differences =
        asked.into_iter().map(|(what, of)| Difference { what, a: value(a, of), b: value(b, of) });
    differences.filter(|difference| difference.a != difference.b).collect()
}
