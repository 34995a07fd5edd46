//! A picture as SVG.

use std::fmt::Write;

use super::drawing::{Anchor, Drawing, Shape, Text};
use super::measure::Face;

/// Colours for light and for dark paper. The frames' colours are of a middle tone and transparent, so that they do for both.
const STYLE: &str = "\
text{font-family:'Helvetica Neue',Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif;fill:#1f2328}
.mono{font-family:ui-monospace,Menlo,Consolas,'Liberation Mono','DejaVu Sans Mono',monospace}
.bold{font-weight:bold}
text.muted{fill:#59636e}
text.slow{fill:#bc4c00}
.page{fill:#ffffff}
.room{fill:#f6f8fa;stroke:#d1d9e0}
.device{fill:#ffffff;stroke:#8c959f}
.gpu{fill:#ddf4ff;stroke:#0969da;stroke-width:2}
.port{fill:#eaeef2;stroke:#8c959f}
.parts{fill:none;stroke:#8c959f;stroke-dasharray:3 3}
.edge{fill:none;stroke:#8c959f;stroke-width:1.5}
.group{fill-opacity:0.13;stroke-width:1.5}
.g0{fill:#1a7f37;stroke:#1a7f37}
.g1{fill:#8250df;stroke:#8250df}
.g2{fill:#bf8700;stroke:#bf8700}
.g3{fill:#cf222e;stroke:#cf222e}
.g4{fill:#1b7c83;stroke:#1b7c83}
.g5{fill:#bf3989;stroke:#bf3989}
.g6{fill:#218bff;stroke:#218bff}
.g7{fill:#9a6700;stroke:#9a6700}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}
text.muted{fill:#9198a1}
text.slow{fill:#f0883e}
.page{fill:#0d1117}
.room{fill:#151b23;stroke:#3d444d}
.device{fill:#0d1117;stroke:#656c76}
.gpu{fill:#0c2d6b;stroke:#58a6ff}
.port{fill:#212830;stroke:#656c76}
.parts,.edge{stroke:#656c76}
.group{fill-opacity:0.2}
}
";

/// How many colours of frames there are.
pub(super) const COLOURS: usize = 8;

/// Writes a picture as one SVG document.
pub(super) fn svg(drawing: &Drawing, title: &str) -> String {
    let (width, height) = (number(drawing.width), number(drawing.height));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n",
        escaped(title)
    );
    for shape in &drawing.shapes {
        match shape {
            Shape::Rect { area, round, class } => {
                let [x, y, w, h] = [area.x, area.y, area.w, area.h].map(number);
                let round = number(*round);
                writeln!(
                    svg,
                    "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"{round}\"/>"
                )
                .ok();
            }
            Shape::Line { points, class } => {
                let points: Vec<String> =
                    points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
                writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")).ok();
            }
            Shape::Text(line) => svg.push_str(&text(line)),
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(line: &Text) -> String {
    let face = match line.face {
        Face::Sans => "",
        Face::Bold => "bold",
        Face::Mono => "mono",
        Face::MonoBold => "mono bold",
    };
    let class = [face, line.class].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let anchor = match line.anchor {
        Anchor::Begin => "",
        Anchor::End => " text-anchor=\"end\"",
    };
    let [x, y, size] = [line.x, line.y, line.size].map(number);
    let title = line.title.as_ref().map(|title| format!("<title>{}</title>", escaped(title)));
    format!(
        "<text{class} x=\"{x}\" y=\"{y}\" font-size=\"{size}\"{anchor}>{}{}</text>\n",
        title.unwrap_or_default(),
        escaped(&line.text)
    )
}

/// Spells a number with one decimal at most, so that the text is the same wherever it is made.
fn number(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// Escapes what XML has its own meaning for, and leaves out what it doesn't take at all.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_has_a_meaning_for_is_escaped() {
        assert_eq!(escaped("a<b> & \"c\"\u{1}\u{ffff}"), "a&lt;b&gt; &amp; &quot;c&quot;  ");
        assert_eq!([number(1.0), number(1.25), number(0.05)], ["1", "1.2", "0.1"].map(str::to_owned));
    }
}
