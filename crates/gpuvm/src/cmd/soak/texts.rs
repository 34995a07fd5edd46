//! Where two texts of a profile differ, line by line.

/// The most places that are told.
const PLACES: usize = 5;
/// The longest part of a line that is quoted, in characters.
const QUOTED: usize = 100;

/// Says where two texts differ; nothing of two that are alike.
pub(super) fn differ(was: &str, now: &str) -> Vec<String> {
    let places = places(&was.lines().collect::<Vec<_>>(), &now.lines().collect::<Vec<_>>());
    let mut told: Vec<String> = places.iter().take(PLACES).map(Place::told).collect();
    if places.len() > PLACES {
        told.push(format!("other lines in {} more places of the profile", places.len() - PLACES));
    }
    if told.is_empty() && was != now {
        told.push("other ends of lines in the profile".to_owned());
    }
    told
}

/// Lines that stand where others stood.
#[derive(Debug, Default, PartialEq)]
struct Place<'a> {
    /// The number of the first of them, in the text that has any; the first line is 1.
    line: usize,
    was: Vec<&'a str>,
    now: Vec<&'a str>,
}

impl Place<'_> {
    fn told(&self) -> String {
        let Self { line, was, now } = self;
        match (&was[..], &now[..]) {
            ([], now) => format!("no {}, which line {line} of the profile begins now", quoted(now)),
            (was, []) => format!("line {line} of the profile {}, and now without it", quoted(was)),
            (was, now) => format!("line {line} of the profile {}, and now {}", quoted(was), quoted(now)),
        }
    }
}

fn quoted(lines: &[&str]) -> String {
    let first: String = lines.first().map_or("", |line| line.trim()).chars().take(QUOTED).collect();
    match lines.len() {
        0 | 1 => format!("`{first}`"),
        count => format!("`{first}` and {} more", count - 1),
    }
}

/// Finds them by the longest sequence of lines that both texts have.
fn places<'a>(was: &[&'a str], now: &[&'a str]) -> Vec<Place<'a>> {
    let alike = was.iter().zip(now).take_while(|(was, now)| was == now).count();
    let (was, now) = (&was[alike..], &now[alike..]);
    let end = was.iter().rev().zip(now.iter().rev()).take_while(|(was, now)| was == now).count();
    let (was, now) = (&was[..was.len() - end], &now[..now.len() - end]);
    // How many lines the rests from each pair of lines on have in common.
    let mut common = vec![vec![0_u32; now.len() + 1]; was.len() + 1];
    for i in (0..was.len()).rev() {
        for j in (0..now.len()).rev() {
            common[i][j] = match was[i] == now[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut places, mut open, mut i, mut j) = (Vec::new(), Place::default(), 0, 0);
    while i < was.len() || j < now.len() {
        if i < was.len() && j < now.len() && was[i] == now[j] {
            places.extend((open != Place::default()).then(|| std::mem::take(&mut open)));
            (i, j) = (i + 1, j + 1);
        } else if j == now.len() || (i < was.len() && common[i + 1][j] >= common[i][j + 1]) {
            if open.was.is_empty() {
                open.line = alike + i + 1;
            }
            open.was.push(was[i]);
            i += 1;
        } else {
            if open == Place::default() {
                open.line = alike + j + 1;
            }
            open.now.push(now[j]);
            j += 1;
        }
    }
    places.extend((open != Place::default()).then_some(open));
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const TEXT: &str = "name = \"a\"\n[memory]\nsize = \"2G\"\n[cpu]\ncount = 2\n";

    #[rstest]
    #[case::nothing(TEXT, &[])]
    #[case::one_line(&TEXT.replace("2G", "4G"), &["line 3 of the profile `size = \"2G\"`, and now `size = \"4G\"`"])]
    #[case::two_places(&TEXT.replace("2G", "4G").replace("= 2", "= 3"), &[
        "line 3 of the profile `size = \"2G\"`, and now `size = \"4G\"`", "line 5 of the profile `count = 2`, and now `count = 3`"
    ])]
    #[case::less(&TEXT.replace("[cpu]\ncount = 2\n", ""), &["line 4 of the profile `[cpu]` and 1 more, and now without it"])]
    #[case::more(&format!("{TEXT}[boot]\n"), &["no `[boot]`, which line 6 of the profile begins now"])]
    #[case::ends_of_lines(&TEXT.replace('\n', "\r\n"), &["other ends of lines in the profile"])]
    fn places_are_told_with_their_lines(#[case] now: &str, #[case] expected: &[&str]) {
        assert_eq!(differ(TEXT, now), expected);
    }

    #[test]
    fn of_many_places_the_first_are_told() {
        let lines = |mark: &str| {
            (0..40).map(|n| format!("{n}{}\n", if n % 2 == 0 { mark } else { "" })).collect::<String>()
        };
        let told = differ(&lines("a"), &lines("b"));
        assert_eq!((told.len(), &*told[5]), (6, "other lines in 15 more places of the profile"));
    }

    proptest! {
        #[test]
        fn whatever_differs_is_told(was in "([ab]\n){0,9}", now in "([ab]\n){0,9}") {
            prop_assert_eq!(differ(&was, &now).is_empty(), was == now);
        }
    }
}
