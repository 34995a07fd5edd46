//! A guest that is spoken to at its console: each line that is typed is answered by one line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::thread;

use crate::system::{Console, uptime};

/// Answers from now on, for as long as the machine is up.
pub(crate) fn begin() -> Result<(), String> {
    let failed = |error| format!("/dev/console: {error}");
    let typed = BufReader::new(File::open("/dev/console").map_err(failed)?);
    let answer_all = move || {
        let mut console = Console::open();
        // A console that hangs up has nobody who could be answered.
        for line in typed.lines().map_while(Result::ok) {
            console.line(&format!("gpuvm-guest: {}", answer(&line, uptime)));
        }
    };
    thread::Builder::new().name("talk".into()).spawn(answer_all).map(drop).map_err(failed)
}

/// Tells how long the kernel has been running, by its own clock; or says what was heard.
fn answer(line: &str, uptime: impl FnOnce() -> Result<f64, String>) -> String {
    match line.trim() {
        "uptime" => uptime().map_or_else(|error| error, |seconds| format!("up {seconds:.2} s")),
        heard => format!("heard {heard:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_answered_by_what_it_asks_or_by_itself() {
        assert_eq!(answer("uptime", || Ok(3.256)), "up 3.26 s");
        assert_eq!(answer("uptime\r", || Err("/proc/uptime: gone".into())), "/proc/uptime: gone");
        assert_eq!(answer("a \"b\"\n", || Ok(0.0)), r#"heard "a \"b\"""#);
    }
}
