use super::super::{WriteFailure, WriteStep, reap, still_in_flight};
use super::*;
use std::fs;
use std::time::Instant;

const SOON: Duration = Duration::from_secs(10);

fn failure(outcome: WriteOutcome) -> (WriteStep, Option<i32>) {
    match outcome {
        WriteOutcome::Failed(WriteFailure { step, source }) => (step, source.raw_os_error()),
        other => panic!("{other:?}"),
    }
}

fn pid(writer: &Writer) -> i32 {
    writer.child.borrow().as_ref().unwrap().pid.as_raw()
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap()
}

fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut found: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    found
}

#[test]
fn one_child_makes_all_writes_and_holds_nothing_but_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "").unwrap();
    fs::write(&b, "").unwrap();
    let writer = Writer::new();
    assert!(matches!(writer.write(&a, b"first", SOON).unwrap(), WriteOutcome::Done));
    let child = pid(&writer);
    // Failures end nothing: the next write is made by the same child.
    assert_eq!(
        failure(writer.write(&dir.path().join("absent"), b"1", SOON).unwrap()),
        (WriteStep::Open, Some(libc::ENOENT))
    );
    let full = writer.write(Path::new("/dev/full"), b"1", SOON).unwrap();
    assert_eq!(failure(full), (WriteStep::Write, Some(libc::ENOSPC)));
    assert!(matches!(writer.write(&b, b"second", SOON).unwrap(), WriteOutcome::Done));
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"first".to_vec(), b"second".to_vec()));
    assert_eq!(pid(&writer), child);
    assert_eq!(comm(child), "gpuvm-writer\n");
    assert_eq!(descriptors(child), ["0"]);
    assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(child))).unwrap().as_raw(), child);
    let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
    assert_eq!(blocked, "fffffffe7ffbfeff", "all but KILL, STOP and glibc's own");

    writer.rest();
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "it is left, or a zombie");
    assert!(matches!(writer.write(&a, b"third", SOON).unwrap(), WriteOutcome::Done));
    let child = pid(&writer);
    drop(writer);
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "it is left, or a zombie");
}

#[test]
fn senseless_input_is_refused_and_more_than_a_request_holds_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let writer = Writer::new();
    for (path, bytes) in [(Path::new("/tmp/a\0b"), b"1".as_slice()), (Path::new("/dev/null"), b"")] {
        assert_eq!(writer.write(path, bytes, SOON).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    let long = vec![b'x'; MOST];
    assert!(matches!(writer.write(&file, &long, SOON).unwrap(), WriteOutcome::Done));
    assert_eq!(fs::read(&file).unwrap(), long);
    assert!(writer.child.borrow().is_none());
}

#[test]
fn a_write_that_hangs_is_left_alone_and_the_next_one_is_made_by_another_child() {
    let dir = tempfile::tempdir().unwrap();
    let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(&file, "").unwrap();
    let writer = Writer::new();
    assert!(matches!(writer.write(&file, b"before", SOON).unwrap(), WriteOutcome::Done));
    let kept = pid(&writer);
    let begun = Instant::now();
    let WriteOutcome::InFlight { pid: late } =
        writer.write(&fifo, b"0000:01:00.0", Duration::from_millis(100)).unwrap()
    else {
        panic!()
    };
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(late, kept);
    assert!(still_in_flight(late).unwrap());
    // It is named after what it writes, by which whoever takes over finds it.
    assert_eq!(comm(late), "0000:01:00.0\n");

    assert!(matches!(writer.write(&file, b"behind", SOON).unwrap(), WriteOutcome::Done));
    assert_ne!(pid(&writer), late);
    writer.rest();
    assert!(reap(late).unwrap().is_none(), "resting has ended what hangs");

    assert_eq!(fs::read(&fifo).unwrap(), b"0000:01:00.0");
    let end = Instant::now() + SOON;
    while still_in_flight(late).unwrap() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(reap(late).unwrap(), Some(WriteOutcome::Done)));
}

#[test]
fn a_late_write_that_fails_in_the_end_tells_so_when_collected() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let writer = Writer::new();
    // More than the pipe takes, so that it hangs in write(2): its reader leaves it with a part.
    let fill = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    nix::fcntl::fcntl(&fill, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let WriteOutcome::InFlight { pid } =
        writer.write(&fifo, &vec![7; 8000], Duration::from_millis(100)).unwrap()
    else {
        panic!()
    };
    drop(fill);
    let end = Instant::now() + SOON;
    let outcome = loop {
        if let Some(outcome) = reap(pid).unwrap() {
            break outcome;
        }
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(failure(outcome).0, WriteStep::Write);
}

#[test]
fn a_child_that_was_killed_between_two_writes_is_replaced() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = Writer::new();
    assert!(matches!(writer.write(file.path(), b"first", SOON).unwrap(), WriteOutcome::Done));
    let first = pid(&writer);
    // As an administrator or the kernel's out-of-memory killer would; this crate never does.
    nix::sys::signal::kill(Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
    let end = Instant::now() + SOON;
    while still_in_flight(first).unwrap() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(writer.write(file.path(), b"again", SOON).unwrap(), WriteOutcome::Done));
    assert_eq!(fs::read(file.path()).unwrap(), b"again");
    assert_ne!(pid(&writer), first);
    assert!(!Path::new(&format!("/proc/{first}")).exists(), "a zombie is left");
}

#[test]
fn a_child_that_was_killed_in_a_write_is_not_taken_for_success() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let writer = Writer::new();
    assert!(matches!(writer.write(Path::new("/dev/null"), b"1", SOON).unwrap(), WriteOutcome::Done));
    let child = pid(&writer);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        nix::sys::signal::kill(Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
    });
    assert_eq!(failure(writer.write(&fifo, b"1", SOON).unwrap()), (WriteStep::Child, None));
    killer.join().unwrap();
}

const ORPHANED_WRITER: &str = "GPUVM_TEST_ORPHANED_WRITER";

/// Begins the write of the test below, in a process that the test kills.
#[test]
fn orphaned_writer() {
    if let Some(path) = std::env::var_os(ORPHANED_WRITER) {
        let writer = Writer::new();
        writer.write(Path::new("/dev/null"), b"1", SOON).unwrap();
        fs::write(Path::new(&path).with_extension("child"), pid(&writer).to_string()).unwrap();
        writer.write(Path::new(&path), b"1", SOON).unwrap();
    }
}

#[test]
fn a_writer_whose_parent_is_dead_writes_nothing_more_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "watched::writer::tests::orphaned_writer"])
        .env(ORPHANED_WRITER, &fifo)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + SOON;
    let wait = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let child = || fs::read_to_string(fifo.with_extension("child")).ok()?.parse::<i32>().ok();
    // Its child waits for a reader in open(2).
    wait(&|| child().is_some_and(|pid| comm(pid) == "1\n"));
    let pid = child().unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(fs::read(&fifo).unwrap(), b"", "the write was made");
    wait(&|| !still_in_flight(pid).unwrap());
}
