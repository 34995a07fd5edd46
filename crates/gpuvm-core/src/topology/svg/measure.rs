//! How wide a text is at the most, whatever font the reader's browser takes.
//!
//! The widths are those of DejaVu Sans, rounded up: of the fonts that stand in for each other it is the widest.

/// A face of type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Sans,
    Bold,
    Mono,
    MonoBold,
}

/// Returns how wide a text is at the most, in px at a size in px.
pub(super) fn width(text: &str, face: Face, size: f64) -> f64 {
    let letter = |letter| match face {
        Face::Sans => em(letter),
        Face::Bold => em(letter) * 1.14,
        // All letters of a fixed-width face are 0.6 wide, but for those that another font has to give.
        Face::Mono | Face::MonoBold => {
            if letter.is_ascii() {
                0.61
            } else {
                1.3
            }
        }
    };
    text.chars().map(letter).sum::<f64>() * size
}

/// More letters than fit into any box.
const LONGEST: usize = 512;

/// Shortens a text to a width, with an ellipsis.
pub(super) fn fit(text: &str, face: Face, size: f64, most: f64) -> String {
    if width(text, face, size) <= most {
        return text.to_owned();
    }
    // A damaged list of names may have lines of megabytes, of which each letter would be tried.
    let mut kept: String = text.chars().take(LONGEST).collect();
    while kept.pop().is_some() {
        let shortened = format!("{}…", kept.trim_end());
        if width(&shortened, face, size) <= most {
            return shortened;
        }
    }
    String::new()
}

/// The width of a letter as part of the size.
fn em(letter: char) -> f64 {
    match letter {
        'i' | 'j' | 'l' | '|' | '\'' => 0.29,
        ' ' | '.' | ',' | ':' | ';' | 'I' | 'J' | '/' | '-' | '·' => 0.37,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '!' => 0.42,
        's' | 'c' | 'z' | 'k' | 'v' | 'x' | 'y' | 'L' | '_' | '"' | '*' => 0.6,
        'a'..='h' | 'n'..='q' | 'u' | '0'..='9' | 'E' | 'F' | 'P' | 'S' | 'T' | 'Y' | 'Z' | '?' | '$' => 0.65,
        'A' | 'B' | 'C' | 'K' | 'R' | 'V' | 'X' => 0.71,
        'D' | 'G' | 'H' | 'N' | 'O' | 'Q' | 'U' | '&' => 0.8,
        '+' | '<' | '>' | '=' | '#' | '~' | '^' | '×' | 'w' => 0.85,
        'm' | 'M' | 'W' | '%' | '@' | '…' => 1.01,
        letter if letter.is_ascii() => 0.7,
        // Letters of other scripts may come from any font.
        _ => 1.3,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_that_fits_stays_as_it_is() {
        assert_eq!(fit("GH100", Face::Sans, 12.0, 100.0), "GH100");
        assert_eq!(fit("GH100 [H100 SXM5 80GB]", Face::Sans, 12.0, 80.0), "GH100 [H…");
    }

    proptest! {
        #[test]
        fn what_is_fitted_is_no_wider(text in "\\PC{0,60}", most in 0.0..300.0) {
            for face in [Face::Sans, Face::Bold, Face::Mono, Face::MonoBold] {
                prop_assert!(width(&fit(&text, face, 12.0, most), face, 12.0) <= most);
            }
        }
    }
}
