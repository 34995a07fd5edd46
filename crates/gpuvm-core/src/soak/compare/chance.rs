//! Whether two sets of times differ by more than chance.

use super::float;

/// What the Mann-Whitney test comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranks {
    /// U of the first set: of how many pairs the first's is the larger, ties counting half.
    pub u: f64,
    /// How probable a difference like this or a larger one is, either way, where there is none.
    pub p: f64,
    /// Whether the second set's times are rather the larger ones.
    pub second_is_larger: bool,
}

/// Holds two sets against each other by their ranks (Mann-Whitney U, two-sided, by the normal distribution with corrections for ties
/// and for continuity). Both are given in order, the smallest first.
pub fn mann_whitney(a: &[u64], b: &[u64]) -> Ranks {
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    let (mut in_a, mut in_b) = (a, b);
    // Each distinct time in turn: all that have it share the mean of their ranks.
    while let Some(least) = in_a.first().into_iter().chain(in_b.first()).min().copied() {
        let (of_a, of_b) = (leading(in_a, least), leading(in_b, least));
        let tied = count(of_a) + count(of_b);
        rank_sum += count(of_a) * (before + (tied + 1.0) / 2.0);
        ties += tied * tied * tied - tied;
        before += tied;
        (in_a, in_b) = (&in_a[of_a..], &in_b[of_b..]);
    }
    let (of_a, of_b) = (count(a.len()), count(b.len()));
    let all = of_a + of_b;
    let u = rank_sum - of_a * (of_a + 1.0) / 2.0;
    let mean = of_a * of_b / 2.0;
    let variance = of_a * of_b / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)).max(1.0));
    let p = match variance > 0.0 {
        true => erfc(((u - mean).abs() - 0.5).max(0.0) / (2.0 * variance).sqrt()).min(1.0),
        // All are the same, or there are none.
        false => 1.0,
    };
    Ranks { u, p, second_is_larger: u < mean }
}

/// Counts how many at the beginning have a value.
fn leading(sorted: &[u64], value: u64) -> usize {
    sorted.partition_point(|other| *other <= value)
}

fn count(number: usize) -> f64 {
    float(u64::try_from(number).unwrap_or(u64::MAX))
}

/// The complementary error function, wrong by less than 1.2e-7 of its value: a Chebyshev fit of its logarithm (Press and others,
/// Numerical Recipes, section 6.2).
fn erfc(x: f64) -> f64 {
    const FIT: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let fit = FIT.iter().rev().fold(0.0, |sum, factor| sum * t + factor);
    let value = t * (fit - x * x).exp();
    if x < 0.0 { 2.0 - value } else { value }
}
