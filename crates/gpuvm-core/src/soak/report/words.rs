//! Numbers in words.

use crate::soak::tally::float;

/// Spells a duration as people say it.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..10 => format!("{:.2} s", float(ms) / 1000.0),
        10..60 => format!("{:.1} s", float(ms) / 1000.0),
        60..3600 => both(seconds / 60, "min", seconds % 60, "s"),
        _ => both(seconds / 3600, "h", seconds / 60 % 60, "min"),
    }
}

fn both(large: u64, unit: &str, small: u64, part: &str) -> String {
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {part}") }
}

/// Spells a number of things.
pub(super) fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Spells a number of cycles.
pub(super) fn cycles(number: u32) -> String {
    counted(usize::try_from(number).unwrap_or(usize::MAX), "cycle", "cycles")
}

/// The most runs of numbers that are told.
const RUNS: usize = 24;

/// Spells numbers, with runs of neighbours as one: `3, 5-9`.
pub(super) fn numbers(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let run = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let mut text = runs.iter().take(RUNS).map(run).collect::<Vec<_>>().join(", ");
    if runs.len() > RUNS {
        text.push_str(" and more");
    }
    text
}

/// Spells a figure with three digits that count.
pub(super) fn figure(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        0.0 => return "0".to_owned(),
        1e6.. => format!("{value:.2e}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        0.001.. => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    };
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The unit of an axis of time that reaches so far: its name and its length in ms.
pub(super) fn unit_of_time(most_ms: f64) -> (&'static str, f64) {
    match most_ms {
        ..2_000.0 => ("ms", 1.0),
        ..600_000.0 => ("s", 1000.0),
        ..10_800_000.0 => ("min", 60_000.0),
        _ => ("h", 3_600_000.0),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0 ms")]
    #[case(999, "999 ms")]
    #[case(1240, "1.24 s")]
    #[case(59_940, "59.9 s")]
    #[case(61_000, "1 min 1 s")]
    #[case(300_000, "5 min")]
    #[case(3_600_000, "1 h")]
    #[case(u64::MAX, "5124095576030 h 25 min")]
    fn durations_are_spelt(#[case] ms: u64, #[case] expected: &str) {
        assert_eq!(duration(ms), expected);
    }

    #[rstest]
    #[case(&[], "")]
    #[case(&[7], "7")]
    #[case(&[1, 2, 3, 5, 8, 9], "1-3, 5, 8-9")]
    #[case(&[u32::MAX, u32::MAX], "4294967295, 4294967295")]
    fn runs_of_numbers_are_one(#[case] of: &[u32], #[case] expected: &str) {
        assert_eq!(numbers(of), expected);
    }

    #[rstest]
    #[case(0.0, "0")]
    #[case(1.50, "1.5")]
    #[case(0.05, "0.05")]
    #[case(1234.5, "1234")]
    #[case(-12.34, "-12.3")]
    #[case(1.8e19, "1.80e19")]
    #[case(1e-7, "1.00e-7")]
    fn figures_have_three_digits(#[case] value: f64, #[case] expected: &str) {
        assert_eq!(figure(value), expected);
    }
}
