use gpuvm_core::profile::VmName;
use gpuvm_core::soak::{
    Begun, Cut, Cycle, Ended, Headway, Machine, Next, OwnUse, Ready, Settings, StopOn, Why,
};
use rstest::rstest;

use super::*;

const CYCLES: u32 = 3;

fn settings() -> Settings {
    Settings {
        profile: "vm.toml".to_owned(),
        profile_text: String::new(),
        set: Vec::new(),
        cycles: Some(CYCLES),
        seconds: None,
        mix: "clean:1,kill:1".parse().unwrap(),
        ready: Ready { expect: None, job: false, after_ms: 0, timeout_seconds: 1 },
        poll: None,
        stop_on: StopOn::Bad,
        shutdown_timeout: None,
    }
}

fn begun(done_before: u32) -> Line {
    let vm = VmName::new("vm1").unwrap();
    let (settings, machine) = (settings(), Machine::default());
    Line::Begun(Box::new(Begun {
        version: 1,
        at: 1,
        vm,
        done_before,
        settings,
        machine,
        devices: Vec::new(),
    }))
}

fn cycle(number: u32, kind: CycleKind) -> Line {
    Line::Cycle(Box::new(Cycle {
        number,
        kind,
        at: 1,
        ms: 1,
        phases: Vec::new(),
        waited_ms: 0,
        outcome: None,
        faults: Vec::new(),
        devices: Vec::new(),
        job: None,
        polled: None,
        own: OwnUse::default(),
    }))
}

/// A gpuvm that soaks, and is killed after so many writes: it does what the verb does, in its order.
struct Gpuvm<'a> {
    folder: &'a Path,
    /// The writes until it is killed.
    left: u32,
    /// The cycles that were begun, by all of them.
    ran: &'a mut Vec<u32>,
}

/// It was killed.
struct Killed;

impl Gpuvm<'_> {
    fn write<T>(&mut self, written: impl FnOnce() -> Result<T, HostError>) -> Result<T, Killed> {
        self.left = self.left.checked_sub(1).ok_or(Killed)?;
        Ok(written().unwrap())
    }

    fn soak(&mut self) -> Result<(), Killed> {
        let folder = self.folder;
        let (mut record, mut headway) =
            match read(folder).unwrap().is_some_and(|record| !record.lines.is_empty()) {
                true => self.resumed()?,
                // Nothing has begun: a new one is made.
                false => {
                    fs::remove_dir_all(folder).ok();
                    (self.write(|| Record::begin(folder))?, Headway::default())
                }
            };
        if let Some(Why::Done) = headway.why() {
            return self.write(|| record.close());
        }
        let line = begun(headway.number());
        self.append(&mut record, &mut headway, &line)?;
        loop {
            let (number, kind) = match headway.next(&settings(), 0) {
                Next::Over(why) => {
                    self.append(&mut record, &mut headway, &Line::Ended(Ended { at: 1, why }))?;
                    return self.write(|| record.close());
                }
                Next::Cycle { number, kind } => (number, kind),
            };
            self.write(|| record.note(number, kind))?;
            self.ran.push(number);
            self.append(&mut record, &mut headway, &cycle(number, kind))?;
        }
    }

    fn resumed(&mut self) -> Result<(Record, Headway), Killed> {
        let (mut record, resumed) = self.write(|| Record::resume(self.folder))?;
        let mut headway = Headway::of(&resumed.lines);
        if let Some((number, kind)) = resumed.cut {
            let cut = Line::Cut(Cut { number, kind, at: 1, found: Vec::new(), left: Vec::new() });
            self.append(&mut record, &mut headway, &cut)?;
        }
        if headway.why().is_none() {
            self.write(|| record.clear_note())?;
        }
        Ok((record, headway))
    }

    fn append(&mut self, record: &mut Record, headway: &mut Headway, line: &Line) -> Result<(), Killed> {
        self.write(|| record.append(line))?;
        headway.add(line);
        Ok(())
    }
}

/// What a kill leaves behind the last whole line.
fn tear(folder: &Path, torn: &str) {
    if let Ok(mut file) = File::options().append(true).open(folder.join(RECORD)) {
        file.write_all(torn.as_bytes()).unwrap();
    }
}

#[rstest]
#[case::between_two_writes("")]
#[case::in_a_line("{\"line\":\"cycle\",\"numb")]
#[case::with_blocks_that_never_came("\0\0\0\0\0\0\0\0\n")]
fn however_often_gpuvm_is_killed_no_cycle_is_lost_and_none_is_there_twice(#[case] torn: &str) {
    // A whole soak makes 10 writes; killed twice, each at every one of them.
    for first in 0..=10 {
        for second in 0..=10 {
            // In memory, where a sync costs nothing.
            let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let mut ran = Vec::new();
            for left in [first, second] {
                let mut gpuvm = Gpuvm { folder: folder.path(), left, ran: &mut ran };
                if gpuvm.soak().is_err() && left > 0 {
                    tear(folder.path(), torn);
                }
            }
            assert!(Gpuvm { folder: folder.path(), left: u32::MAX, ran: &mut ran }.soak().is_ok());
            let Written { lines, torn, .. } = read(folder.path()).unwrap().unwrap();
            let numbers: Vec<u32> = lines.iter().filter_map(Line::number).collect();
            let at = format!("killed after {first} and {second} writes: {lines:?}");
            assert_eq!(numbers, (1..=CYCLES).collect::<Vec<_>>(), "{at}");
            assert_eq!(ran, numbers, "each was begun once; {at}");
            assert_eq!(
                (lines.last().cloned(), torn),
                (Some(Line::Ended(Ended { at: 1, why: Why::Done })), 0),
                "{at}"
            );
            assert!(!folder.path().join(RUNNING).exists(), "{at}");
        }
    }
}

#[test]
fn a_soak_that_nobody_kills_makes_as_many_writes_as_the_kills_are_tried_at() {
    let folder = tempfile::tempdir().unwrap();
    let mut gpuvm = Gpuvm { folder: folder.path(), left: 100, ran: &mut Vec::new() };
    assert!(gpuvm.soak().is_ok());
    assert_eq!(100 - gpuvm.left, 10);
}

#[rstest]
#[case::of_a_cycle_without_a_line("{\"number\":2,\"kind\":\"kill\"}   \n", Some((2, CycleKind::Kill)))]
#[case::of_one_that_has_its_line("{\"number\":1,\"kind\":\"clean\"}   \n", None)]
#[case::that_was_being_written("{\"number\":2,\"ki", None)]
#[case::that_was_taken_away("", None)]
fn a_note_tells_of_a_cycle_that_was_cut_short(#[case] note: &str, #[case] cut: Option<(u32, CycleKind)>) {
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::begin(folder.path()).unwrap();
    record.append(&begun(0)).unwrap();
    record.append(&cycle(1, CycleKind::Clean)).unwrap();
    drop(record);
    fs::write(folder.path().join(RUNNING), note).unwrap();
    assert_eq!(Record::resume(folder.path()).unwrap().1.cut, cut);
}

#[test]
fn a_note_beside_a_record_that_is_over_is_of_a_cycle_that_is_to_be_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::begin(folder.path()).unwrap();
    record.append(&begun(0)).unwrap();
    record.note(1, CycleKind::Clean).unwrap();
    record
        .append(&Line::Ended(Ended { at: 1, why: Why::Interrupted { signal: "SIGINT".to_owned() } }))
        .unwrap();
    drop(record);
    assert_eq!(Record::resume(folder.path()).unwrap().1.cut, None);
}

#[test]
fn what_is_noted_is_always_as_long_and_replaces_what_was_noted() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::begin(folder.path()).unwrap();
    for (number, kind) in [(1_000_000, CycleKind::Reboot), (7, CycleKind::Kill)] {
        record.note(number, kind).unwrap();
        let note = fs::read_to_string(folder.path().join(RUNNING)).unwrap();
        assert_eq!((note.len(), serde_json::from_str(&note).unwrap()), (NOTE, Running { number, kind }));
    }
}

#[test]
fn a_record_is_written_by_one_gpuvm_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::begin(folder.path()).unwrap();
    record.append(&begun(0)).unwrap();
    let error = Record::resume(folder.path()).unwrap_err();
    assert!(
        matches!(&error, HostError::SoakRuns { owner, .. } if *owner == format!("process {}", std::process::id()))
    );
    drop(record);
    assert_eq!(Record::resume(folder.path()).unwrap().1.lines, [begun(0)]);
    assert!(matches!(Record::begin(folder.path()), Err(HostError::File { doing: "make", .. })));
}

#[rstest]
#[case::garbage_in_the_middle("{\"line\":\"begun\"}\n")]
#[case::a_cycle_that_is_none("{\"line\":\"cycle\"}\n{\"line\":\"x\"}\n")]
fn a_record_that_makes_no_sense_is_refused_and_left_as_it_is(#[case] more: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut text = serde_json::to_string(&begun(0)).unwrap() + "\n" + more;
    text.push_str(&(serde_json::to_string(&cycle(1, CycleKind::Clean)).unwrap() + "\n"));
    fs::write(folder.path().join(RECORD), &text).unwrap();
    assert!(matches!(Record::resume(folder.path()), Err(HostError::Content { .. })));
    assert_eq!(fs::read_to_string(folder.path().join(RECORD)).unwrap(), text);
}
