use std::path::Path;

use clap::Parser;
use gpuvm_core::soak::{Fault, OwnUse, Settings, Standing};
use gpuvm_host::soak::Record;
use gpuvm_testkit::soak::Made;
use rstest::rstest;

use super::*;
use crate::cli::Cli;

/// Cycles that take no time. A letter says what each comes to: h, f, b are healthy, failed and bad; i is interrupted, g and j are that
/// and failed or bad; where an s stands, a signal comes before the cycle. An r is a cycle that is refused because somebody else has the
/// device: it is tried again after a w, which is a wait, and not after an x, a wait in which a signal comes.
struct Letters<'a> {
    letters: std::iter::Peekable<std::str::Chars<'a>>,
    /// The cycles whose consoles were kept.
    kept: Vec<u32>,
    /// How long was waited.
    waited: Duration,
}

impl Cycles for Letters<'_> {
    async fn cycle(&mut self, number: u32, kind: CycleKind, _: &mut Progress) -> Over {
        let letter = self.letters.next().unwrap();
        let made = Made::new(1).healthy(1).ended(Why::Done);
        let Some(Line::Cycle(cycle)) = made.into_iter().nth(1) else { panic!("its second line is a cycle") };
        let mut cycle = Cycle { number, kind, polled: None, own: OwnUse::default(), ..*cycle };
        match letter {
            'f' | 'g' => cycle.faults.push(Fault::Job { message: "no".to_owned() }),
            'b' | 'j' => cycle.faults.push(Fault::NotGivenBack { message: "a claim".to_owned() }),
            'r' => {
                let message = "0000:81:00.0 is reserved by VM other".to_owned();
                cycle.faults.push(Fault::Refused { message, exit_code: 75 });
                cycle.outcome = None;
            }
            _ => {}
        }
        Over { cycle, interrupted: "gij".contains(letter).then_some("SIGINT") }
    }

    async fn asked(&mut self) -> Option<&'static str> {
        self.letters.next_if_eq(&'s').map(|_| "SIGTERM")
    }

    async fn wait(&mut self, time: Duration) -> Option<&'static str> {
        self.waited += time;
        match self.letters.next() {
            Some('w') => None,
            Some('x') => Some("SIGINT"),
            other => panic!("a wait comes where {other:?} was to"),
        }
    }

    fn keep_console(&mut self, number: u32) -> Option<String> {
        self.kept.push(number);
        None
    }

    fn draw(&mut self) -> Option<String> {
        Some("it can't be drawn, which ends no soak".to_owned())
    }
}

fn settings(cycles: u32) -> Settings {
    let lines = Made::new(cycles).ended(Why::Done);
    let Some(Line::Begun(begun)) = lines.first() else { panic!("a record begins") };
    Settings { poll: None, mix: "clean:1,kill:1".parse().unwrap(), ..begun.settings.clone() }
}

/// Runs cycles in a folder, by the letters; goes on where there is a record already.
fn soak(folder: &Path, cycles: u32, letters: &str) -> (Book, Vec<u32>) {
    let mut progress = Progress::new(&Cli::try_parse_from(["gpuvm", "--json", "schema"]).unwrap());
    let (record, lines) = match folder.join("record.jsonl").exists() {
        true => Record::resume(folder).map(|(record, resumed)| (record, resumed.lines)).unwrap(),
        false => (Record::begin(folder).unwrap(), Vec::new()),
    };
    let mut book = Book::new(settings(cycles), record, &lines);
    let begun = Made::new(cycles).ended(Why::Done).remove(0);
    book.append(&begun, &mut progress).unwrap();
    let mut cycles =
        Letters { letters: letters.chars().peekable(), kept: Vec::new(), waited: Duration::ZERO };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(run(&mut book, &mut cycles, &mut progress)).unwrap();
    assert_eq!(cycles.letters.next(), None, "not all cycles were run");
    (book, cycles.kept)
}

fn numbers(folder: &Path) -> Vec<u32> {
    soak::read(folder).unwrap().unwrap().lines.iter().filter_map(Line::number).collect()
}

#[rstest]
#[case::all_healthy(3, "hhh", Why::Done, Standing::Healthy, &[])]
#[case::one_failed(3, "hfh", Why::Done, Standing::NotHealthy, &[2])]
#[case::a_bad_one(5, "hb", Why::Stopped { cycle: 2, reason: "the host is not as it was: a claim".to_owned() }, Standing::Bad, &[2])]
#[case::three_failed(9, "fff", Why::Stopped { cycle: 3, reason: "the guest's job failed: no".to_owned() }, Standing::NotHealthy, &[1, 2, 3])]
#[case::interrupted(5, "hi", Why::Interrupted { signal: "SIGINT".to_owned() }, Standing::NotHealthy, &[])]
#[case::interrupted_between_two(5, "hs", Why::Interrupted { signal: "SIGTERM".to_owned() }, Standing::NotHealthy, &[])]
#[case::interrupted_and_failed_before(5, "hg", Why::Interrupted { signal: "SIGINT".to_owned() }, Standing::NotHealthy, &[2])]
#[case::interrupted_and_bad(5, "hj", Why::Interrupted { signal: "SIGINT".to_owned() }, Standing::Bad, &[2])]
fn a_soak_runs_until_it_is_over_and_keeps_the_consoles_of_cycles_that_are_not_healthy(
    #[case] cycles: u32,
    #[case] letters: &str,
    #[case] why: Why,
    #[case] standing: Standing,
    #[case] kept: &[u32],
) {
    let folder = tempfile::tempdir().unwrap();
    let (book, consoles) = soak(folder.path(), cycles, letters);
    assert_eq!((book.headway.why(), book.headway.standing(), &*consoles), (Some(&why), standing, kept));
    // A cycle that was interrupted has no line, unless it has something to tell.
    let told = u32::try_from(letters.chars().filter(|letter| !"is".contains(*letter)).count()).unwrap();
    assert_eq!(numbers(folder.path()), (1..=told).collect::<Vec<_>>());
    let file = std::fs::read_dir(folder.path())
        .unwrap()
        .filter(|file| file.as_ref().unwrap().file_name() == "running");
    assert_eq!(file.count(), 0);
}

#[test]
fn a_cycle_that_was_interrupted_is_run_again_with_its_number_and_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    soak(folder.path(), 3, "hi");
    let (book, _) = soak(folder.path(), 3, "hh");
    assert_eq!((numbers(folder.path()), book.headway.standing()), (vec![1, 2, 3], Standing::Healthy));
    let lines = soak::read(folder.path()).unwrap().unwrap().lines;
    let kinds: Vec<CycleKind> = lines
        .iter()
        .filter_map(|line| if let Line::Cycle(cycle) = line { Some(cycle.kind) } else { None })
        .collect();
    assert_eq!(kinds, [CycleKind::Clean, CycleKind::Kill, CycleKind::Clean]);
}

fn lines(folder: &Path) -> Vec<Cycle> {
    let lines = soak::read(folder).unwrap().unwrap().lines;
    lines
        .into_iter()
        .filter_map(|line| if let Line::Cycle(cycle) = line { Some(*cycle) } else { None })
        .collect()
}

#[test]
fn a_cycle_whose_device_somebody_else_has_is_waited_for_and_run_under_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let (book, kept) = soak(folder.path(), 3, "hrwrwhh");
    let waited: Vec<_> = lines(folder.path()).iter().map(|cycle| (cycle.number, cycle.waited_ms)).collect();
    assert_eq!((book.headway.standing(), kept), (Standing::Healthy, vec![]));
    assert_eq!(waited, [(1, 0), (2, 3_000), (3, 0)]);
}

#[test]
fn what_is_not_given_free_in_time_is_told_as_what_it_is_and_no_guest_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    soak(folder.path(), 2, &format!("{}rh", "rw".repeat(BUSY.len())));
    let [busy, healthy] = &lines(folder.path())[..] else { panic!("two cycles") };
    assert_eq!((busy.waited_ms, healthy.waited_ms), (300_000, 0));
    let reason =
        "busy, so that the guest never ran: 0000:81:00.0 is reserved by VM other (waited 300 s for it)";
    assert_eq!(busy.reason().as_deref(), Some(reason));
}

#[test]
fn a_signal_ends_a_wait_and_the_cycle_is_run_again_by_whoever_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (book, _) = soak(folder.path(), 2, "hrwrx");
    let why = Why::Interrupted { signal: "SIGINT".to_owned() };
    assert_eq!((book.headway.why(), numbers(folder.path())), (Some(&why), vec![1]));
}

#[test]
fn each_cycle_is_written_down_with_what_gpuvm_itself_used() {
    let folder = tempfile::tempdir().unwrap();
    soak(folder.path(), 1, "h");
    let lines = soak::read(folder.path()).unwrap().unwrap().lines;
    assert!(
        matches!(&lines[1], Line::Cycle(cycle) if cycle.own.rss_kib > 0 && cycle.polled.is_none()),
        "{lines:?}"
    );
}
