//! Text that a console, a kernel or a guest has written, made harmless.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind, Output, State};

/// What stands for what can't be shown.
const REPLACEMENT: char = '\u{fffd}';

/// Takes a terminal's escape sequences out of a text, and puts a sign in the place of what a browser can't show or shows otherwise
/// than it is: control letters but line feed and tab, and those that turn the direction of writing.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => skip_sequence(&mut letters),
            // A line of a console ends with both.
            '\r' if letters.peek() == Some(&'\n') => {}
            '\n' | '\t' => cleaned.push(letter),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                cleaned.push(REPLACEMENT)
            }
            '\u{fffe}' | '\u{ffff}' => cleaned.push(REPLACEMENT),
            letter if letter.is_control() => cleaned.push(REPLACEMENT),
            letter => cleaned.push(letter),
        }
    }
    cleaned
}

/// Skips what follows an escape: a control sequence (`[`) up to its last letter, an operating system command (`]`) up to a bell or
/// another escape, or one letter.
fn skip_sequence(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match letters.next_if(|next| matches!(next, ' '..='~')) {
        Some('[') => {
            while letters.next_if(|next| matches!(next, ' '..='?')).is_some() {}
            letters.next_if(|next| matches!(next, '@'..='~'));
        }
        Some(']') => {
            while letters.next_if(|next| !next.is_control()).is_some() {}
            letters.next_if_eq(&'\u{7}');
        }
        _ => {}
    }
}

/// Cleans a text and escapes what HTML and XML have their own meaning for.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in clean(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Writes each value of the template: whatever isn't a chart of ours is cleaned and escaped.
pub(super) fn write_value(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "the page has a place for what isn't told"));
    }
    let text = if value.is_none() { String::new() } else { value.to_string() };
    let text = if value.is_safe() { text } else { escaped(&text) };
    out.write_str(&text).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("vfio-pci 0000:82:00.0: resetting", "vfio-pci 0000:82:00.0: resetting")]
    #[case::colours("\u{1b}[1;31mred\u{1b}[0m text", "red text")]
    #[case::title("\u{1b}]0;owned\u{7}text", "text")]
    #[case::charset("\u{1b}(Btext", "Btext")]
    #[case::escape_alone("text\u{1b}", "text")]
    #[case::sequence_cut_short("text\u{1b}[12", "text")]
    #[case::nul("a\0b", "a\u{fffd}b")]
    #[case::lines("a\r\nb\tc\rd", "a\nb\tc\u{fffd}d")]
    #[case::direction("a\u{202e}b", "a\u{fffd}b")]
    #[case::no_letter("\u{ffff}", "\u{fffd}")]
    #[case::c1("\u{9b}31m", "\u{fffd}31m")]
    fn what_a_console_wrote_is_made_harmless(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(clean(text), expected);
    }

    #[test]
    fn what_html_has_a_meaning_for_is_escaped() {
        assert_eq!(escaped("<script>'\"&\u{1b}[0m"), "&lt;script&gt;&#39;&quot;&amp;");
    }
}
