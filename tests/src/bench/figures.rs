//! Many measurements of one thing, in a few figures.

use std::time::Duration;

use serde::Serialize;

/// Measurements in ms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// How many there are.
    pub runs: usize,
    /// The least.
    pub min_ms: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median_ms: f64,
    /// The least that at least 95 of 100 don't exceed.
    pub p95_ms: f64,
}

impl Figures {
    /// Sums up measurements; all zero if there are none.
    pub fn of(measured: &[Duration]) -> Self {
        let mut all: Vec<f64> = measured.iter().copied().map(ms).collect();
        let (runs, median_ms) = (all.len(), median(&mut all));
        let at = |index: usize| all.get(index).copied().unwrap_or(0.0);
        Self { runs, min_ms: at(0), median_ms, p95_ms: at((runs * 95).div_ceil(100).saturating_sub(1)) }
    }
}

/// Returns a time in ms.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Sorts, and returns the middle one or the mean of the two in the middle; zero if there are none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], (0.0, 0.0, 0.0))]
    #[case::one(&[7], (7.0, 7.0, 7.0))]
    #[case::odd(&[9, 1, 5], (1.0, 5.0, 9.0))]
    #[case::even(&[4, 1, 3, 2], (1.0, 2.5, 4.0))]
    #[case::twenty(&[20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1], (1.0, 10.5, 19.0))]
    fn figures_are_min_median_and_p95(#[case] ms: &[u64], #[case] expected: (f64, f64, f64)) {
        let measured: Vec<Duration> = ms.iter().copied().map(Duration::from_millis).collect();
        let figures = Figures::of(&measured);
        assert_eq!((figures.min_ms, figures.median_ms, figures.p95_ms), expected);
        assert_eq!(figures.runs, ms.len());
    }
}
