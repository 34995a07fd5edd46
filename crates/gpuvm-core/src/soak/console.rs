//! What is on a guest's console: its lines, and what its job reports there.
//!
//! Whatever the guest writes, no more than a line's beginning is kept.

use super::JobReport;

/// Finds the lines in bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return: what follows it tells whether it has ended the line or draws it anew.
    returned: bool,
}

impl Lines {
    /// The most bytes of a line that are kept, its first ones.
    pub const MOST: usize = 64 << 10;

    /// Takes in bytes and tells each line that they end, without what a terminal makes of it.
    pub fn take_in(&mut self, bytes: &[u8], told: &mut dyn FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    told(&shown(&self.line));
                    self.begin_anew();
                }
                b'\r' => self.returned = true,
                _ => {
                    // A line that is drawn over, as progress is.
                    if std::mem::take(&mut self.returned) {
                        told(&shown(&self.line));
                        self.line.clear();
                    }
                    if self.line.len() < Self::MOST {
                        self.line.push(*byte);
                    }
                }
            }
        }
    }

    /// Returns the line that isn't over, such as a prompt; nothing where there is none.
    pub fn unfinished(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| shown(&self.line))
    }

    /// Forgets the line that isn't over: it will never be.
    pub fn begin_anew(&mut self) {
        self.line.clear();
        // A flood's buffer isn't kept for ever.
        self.line.shrink_to(1 << 10);
        self.returned = false;
    }
}

/// Returns a line's text without control characters and what begins with an escape character (ECMA-48, 5.3 to 5.6).
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_escape(&mut rest),
            '\t' => shown.push(c),
            _ if c.is_control() => {}
            _ => shown.push(c),
        }
    }
    shown
}

/// Skips what follows an escape character.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    match rest.next() {
        // A control sequence ends with a byte of its own range.
        Some('[') => {
            rest.find(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        // A control string, such as a window's title, ends with BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let end = rest.find(|c| *c == '\u{7}' || *c == '\u{1b}');
            end.filter(|end| *end == '\u{1b}').and_then(|_| rest.next());
        }
        // Intermediate bytes, as in the choice of a character set, and one that ends it.
        Some(c) if (' '..='/').contains(&c) => {
            rest.find(|c| !(' '..='/').contains(c));
        }
        _ => {}
    }
}

impl JobReport {
    /// What its line begins with.
    pub const MARK: &str = "gpuvm-job:";

    /// Reads a line of a console: nothing of one that is no report, and what is wrong with one that makes no sense.
    pub fn read(line: &str) -> Option<Result<Self, String>> {
        /// As much of a line as is quoted.
        const QUOTED: usize = 200;
        let text = line.trim_start().strip_prefix(Self::MARK)?.trim();
        let quoted: String = text.chars().take(QUOTED).collect();
        Some(
            serde_json::from_str(text)
                .map_err(|error| format!("its report makes no sense ({error}): {quoted}")),
        )
    }

    /// Says how it failed; nothing of one that went well.
    pub fn failure(&self) -> Option<String> {
        let why = self.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        (self.exit != 0).then(|| format!("it ended with {}{why}", self.exit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        Lines::default().take_in(bytes, &mut |line| found.push(line.to_owned()));
        found
    }

    #[rstest]
    #[case::plain(b"one\ntwo\nthree", &["one", "two"])]
    #[case::of_a_terminal(b"one\r\ntwo\r\r\n", &["one", "two"])]
    #[case::drawn_anew(b"10%\r20%\rdone\n", &["10%", "20%", "done"])]
    #[case::coloured(b"[\x1b[0;32m  OK  \x1b[0m] Reached \x1b[1mtarget\x1b[0m\n", &["[  OK  ] Reached target"])]
    #[case::with_a_title(b"\x1b]0;root@guest\x07# \x1b]0;again\x1b\\ready\n", &["# ready"])]
    #[case::with_character_sets(b"\x1b(Bready\x1b)0 \x1b7now\x1b8\n", &["ready now"])]
    #[case::with_tabs_and_bells(b"a\tb\x07\x00c\n", &["a\tbc"])]
    #[case::no_text(b"caf\xe9\n", &["caf\u{fffd}"])]
    #[case::cut_escape(b"ready\x1b[\nready\x1b\n", &["ready", "ready"])]
    #[case::empty(b"\n\n", &["", ""])]
    fn lines_are_found_as_a_person_sees_them(#[case] bytes: &[u8], #[case] expected: &[&str]) {
        assert_eq!(lines(bytes), expected);
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_next_is_whole() {
        let mut bytes = vec![b'x'; Lines::MOST * 3];
        bytes.extend(b"\nnext\n");
        let found = lines(&bytes);
        assert_eq!([found[0].len(), found[1].len()], [Lines::MOST, 4]);
    }

    #[test]
    fn a_prompt_is_a_line_that_isnt_over_until_it_is_forgotten() {
        let mut lines = Lines::default();
        assert_eq!(lines.unfinished(), None);
        lines.take_in(b"\x1b[1mguest\x1b[0m login: ", &mut |line| panic!("{line}"));
        assert_eq!(lines.unfinished().as_deref(), Some("guest login: "));
        lines.begin_anew();
        assert_eq!(lines.unfinished(), None);
    }

    #[rstest]
    #[case::short(r#"gpuvm-job: {"exit":0}"#, 0, None)]
    #[case::without_a_blank(
        r#"gpuvm-job:{"exit":3,"message":"no device"}"#,
        3,
        Some("it ended with 3: no device")
    )]
    #[case::with_figures(r#"  gpuvm-job: {"exit":0,"figures":{"gib/s":12.5},"new":[1]} "#, 0, None)]
    #[case::by_a_signal(r#"gpuvm-job: {"exit":-9}"#, -9, Some("it ended with -9"))]
    fn a_report_is_read(#[case] line: &str, #[case] exit: i32, #[case] failure: Option<&str>) {
        let report = JobReport::read(line).unwrap().unwrap();
        assert_eq!((report.exit, report.failure().as_deref()), (exit, failure));
    }

    #[rstest]
    #[case::no_json("gpuvm-job: ok", "expected value")]
    #[case::nothing("gpuvm-job:", "EOF")]
    #[case::no_object("gpuvm-job: 0", "invalid type")]
    #[case::no_exit(r#"gpuvm-job: {"message":"well"}"#, "missing field `exit`")]
    #[case::exit_of_another_kind(r#"gpuvm-job: {"exit":"0"}"#, "invalid type")]
    #[case::too_large(r#"gpuvm-job: {"exit":4294967296}"#, "invalid value")]
    #[case::cut(r#"gpuvm-job: {"exit":0,"fig"#, "EOF")]
    fn a_report_that_makes_no_sense_is_told_with_its_text(#[case] line: &str, #[case] what: &str) {
        let error = JobReport::read(line).unwrap().unwrap_err();
        assert!(error.contains(what) && error.ends_with(line.split_once(':').unwrap().1.trim()), "{error}");
    }

    #[rstest]
    #[case::a_commands_echo(r#"+ echo 'gpuvm-job: {"exit":0}'"#)]
    #[case::another_word("gpuvm-jobs: 3")]
    #[case::empty("")]
    fn what_doesnt_begin_as_one_is_no_report(#[case] line: &str) {
        assert_eq!(JobReport::read(line), None);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_are_cut(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0x1b_u8), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(0_usize..200, 0..5),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let (mut whole, mut found, mut from) = (Lines::default(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                whole.take_in(&text[from..cut], &mut |line| found.push(line.to_owned()));
                from = cut;
            }
            prop_assert_eq!(found, lines(&text));
        }

        #[test]
        fn any_line_is_read_without_a_panic(line in "(gpuvm-job:)?.*") {
            let _ = JobReport::read(&line);
        }
    }
}
