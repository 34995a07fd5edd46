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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// The expected values are those of SciPy 1.17: `mannwhitneyu(a, b, method="asymptotic")`.
    #[rstest]
    #[case::its_own_example(&[16, 19, 22, 24, 29], &[11, 12, 17, 20], 17.0, 0.111_346_886_533_140_41)]
    #[case::ties(&[1, 2, 2, 3, 3, 3, 4, 10], &[2, 3, 4, 4, 5, 6, 6, 7], 16.5, 0.110_088_523_229_725_95)]
    #[case::a_shift(
        &[100, 101, 103, 104, 106, 107, 109, 110, 111, 112],
        &[102, 105, 108, 113, 114, 115, 116, 117, 118, 119],
        18.0,
        0.017_257_456_083_119_765
    )]
    #[case::all_the_same(&[5, 5, 5], &[5, 5, 5, 5], 6.0, 1.0)]
    #[case::very_large(&[0, u64::MAX], &[1, 2, 3], 3.0, 1.0)]
    #[case::nothing(&[], &[], 0.0, 1.0)]
    #[case::nothing_in_one(&[1, 2], &[], 0.0, 1.0)]
    fn ranks_are_those_of_others(#[case] a: &[u64], #[case] b: &[u64], #[case] u: f64, #[case] p: f64) {
        let ranks = mann_whitney(a, b);
        assert!((ranks.u - u).abs() < 1e-9, "{ranks:?}");
        assert!((ranks.p - p).abs() < 1e-6, "{ranks:?}");
    }

    #[test]
    fn sets_that_lie_apart_are_hardly_chance() {
        let (a, b): (Vec<u64>, Vec<u64>) = ((100..130).collect(), (200..230).collect());
        let ranks = mann_whitney(&a, &b);
        assert!(
            (ranks.p / 3.019_859_359_162_157e-11 - 1.0).abs() < 1e-5 && ranks.second_is_larger,
            "{ranks:?}"
        );
        assert!(!mann_whitney(&b, &a).second_is_larger);
    }

    proptest! {
        #[test]
        fn it_is_the_same_from_either_side(
            mut a in prop::collection::vec(0u64..50, 0..40),
            mut b in prop::collection::vec(0u64..50, 0..40),
        ) {
            a.sort_unstable();
            b.sort_unstable();
            let (one, other) = (mann_whitney(&a, &b), mann_whitney(&b, &a));
            prop_assert!((one.p - other.p).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&one.p));
            // Counted pair by pair.
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
            let u: f64 = pairs.map(|(a, b)| if a > b { 1.0 } else if a == b { 0.5 } else { 0.0 }).sum();
            prop_assert!((one.u - u).abs() < 1e-9);
        }
    }
}
