//! Seconds since 1970 as a date in UTC.

/// Spells a time as part of a file's name: `20270115-080000`.
pub fn compact(seconds: u64) -> String {
    let (year, month, day, time) = date(seconds);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// Spells a time as people and programs read it (RFC 3339).
pub fn readable(seconds: u64) -> String {
    let (year, month, day, time) = date(seconds);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// Spells a time as the name of a folder, in the basic form of ISO 8601: `20270115T080000Z`.
pub fn stamp(seconds: u64) -> String {
    let (year, month, day, time) = date(seconds);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// Spells the day of a time: `2027-01-15`.
pub fn day(seconds: u64) -> String {
    let (year, month, day, _) = date(seconds);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Returns year, month, day and the seconds of that day. Years begin in March here, so that the leap day is a year's last, and 400
/// of them are 146,097 days whichever they are.
fn date(seconds: u64) -> (u64, u64, u64, u64) {
    // From the first of March of the year 0 to the first of January 1970.
    const BEFORE: u64 = 719_468;
    let days = seconds / 86_400 + BEFORE;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next, month, day, seconds % 86_400)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "1970-01-01T00:00:00Z")]
    #[case(951_782_399, "2000-02-28T23:59:59Z")]
    #[case(951_782_400, "2000-02-29T00:00:00Z")]
    #[case(951_868_800, "2000-03-01T00:00:00Z")]
    #[case(1_800_000_000, "2027-01-15T08:00:00Z")]
    #[case(4_107_542_400, "2100-03-01T00:00:00Z")]
    fn seconds_are_dates(#[case] seconds: u64, #[case] spelt: &str) {
        assert_eq!(readable(seconds), spelt);
        assert_eq!(day(seconds), spelt[..10]);
        assert_eq!(stamp(seconds), spelt.replace(['-', ':'], ""));
        assert_eq!(compact(seconds), spelt.replace(['-', ':', 'Z'], "").replace('T', "-"));
    }
}
