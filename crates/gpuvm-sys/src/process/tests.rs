//! Children made of `sh`, looked at from within and from outside.

use super::*;
use crate::limits::memlock;
use crate::socket::{adopt_listener, listen_unix};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;

const SOON: Duration = Duration::from_secs(20);

fn sh(script: &str, out: &std::path::Path) -> SpawnSpec {
    SpawnSpec {
        argv: ["sh", "-c", script].map(OsString::from).to_vec(),
        env: vec![],
        fds: vec![],
        stdout: File::create(out).unwrap().into(),
        stderr: File::create(out.with_extension("err")).unwrap().into(),
        death_signal: None,
        memlock: None,
        record: None,
    }
}

fn run(spec: SpawnSpec) -> ExitStatus {
    spawn(spec).unwrap().wait_deadline(SOON).unwrap().unwrap()
}

#[test]
fn output_environment_and_exit_code_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut spec = sh("echo $GREETING; echo oops >&2; cat; exit 7", &out);
    spec.env = vec![("GREETING".into(), "hello".into())];
    assert_eq!(run(spec).code(), Some(7));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "hello\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("out.err")).unwrap(), "oops\n");
}

#[test]
fn the_child_has_a_session_a_death_signal_and_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut spec = sh("ulimit -l; sleep 100", &out);
    spec.death_signal = Some(Signal::SIGTERM);
    spec.memlock = Some(Memlock { soft: Some(1 << 20), hard: memlock().unwrap().hard });
    let mut child = spawn(spec).unwrap();
    assert_eq!(
        nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(child.pid()))).unwrap().as_raw(),
        child.pid()
    );
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.wait_deadline(Duration::from_millis(300)).unwrap().is_none());
    child.kill(Signal::SIGKILL).unwrap();
    let status = child.wait_deadline(SOON).unwrap().unwrap();
    assert_eq!(status.signal(), Some(9));
    assert_eq!(child.wait_deadline(SOON).unwrap(), Some(status), "asking again is fine");
    assert_eq!(child.kill(Signal::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "1024\n");
}

#[test]
fn the_death_signal_follows_the_thread_that_spawned() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = sh("exec sleep 100", &dir.path().join("out"));
    spec.death_signal = Some(Signal::SIGTERM);
    let mut child = thread::spawn(move || spawn(spec).unwrap()).join().unwrap();
    assert_eq!(child.wait_deadline(SOON).unwrap().unwrap().signal(), Some(15));
}

#[test]
fn descriptors_keep_their_numbers_and_are_gone_here() {
    let dir = tempfile::tempdir().unwrap();
    let (out, path) = (dir.path().join("out"), dir.path().join("s"));
    let listener = listen_unix(&path).unwrap();
    let number = listener.as_raw_fd();
    let other = File::open("/dev/null").unwrap();
    let script =
        format!("[ -S /proc/self/fd/{number} ] && [ ! -e /proc/self/fd/{} ]; exit $?", other.as_raw_fd());
    let mut spec = sh(&script, &out);
    spec.fds = vec![listener];
    assert_eq!(run(spec).code(), Some(0));
    // Neither the child nor this process holds the listener any more; the child of another test may, until it execs.
    let end = std::time::Instant::now() + SOON;
    while let Ok(_accepted) = UnixStream::connect(&path) {
        assert!(std::time::Instant::now() < end);
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(UnixStream::connect(&path).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    drop(other);
    assert!(adopt_listener(RawFd::MAX).is_err());
}

#[test]
fn failures_name_their_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let of = |spec| {
        let error = spawn(spec).unwrap_err();
        (error.step, error.source.raw_os_error())
    };
    let mut spec = sh("", &out);
    spec.argv = vec!["/nonexistent/program".into()];
    assert_eq!(of(spec), (SpawnStep::Exec, Some(libc::ENOENT)));

    let mut spec = sh("", &out);
    spec.argv.clear();
    assert_eq!(of(spec), (SpawnStep::Prepare, None));

    // A soft limit above the hard one is EINVAL, with or without privileges.
    let mut spec = sh("", &out);
    spec.memlock = Some(Memlock { soft: Some(2 << 20), hard: Some(1 << 20) });
    let error = spawn(spec).unwrap_err();
    assert_eq!(error.step, SpawnStep::Memlock);
    assert_eq!(error.to_string(), "RLIMIT_MEMLOCK: Invalid argument (os error 22)");
    assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn pidfds_know_ended_processes() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(sh("exit 0", &dir.path().join("out"))).unwrap();
    let other = pidfd_open(child.pid()).unwrap();
    assert!(child.wait_deadline(SOON).unwrap().unwrap().success());
    assert_eq!(
        pidfd_send_signal(other.as_fd(), Signal::SIGTERM).unwrap_err().raw_os_error(),
        Some(libc::ESRCH)
    );
    assert_eq!(pidfd_open(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn a_child_is_on_record_before_it_is_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let (out, path) = (dir.path().join("out"), dir.path().join("stat"));
    let mut spec = sh("cat /proc/$$/stat", &out);
    spec.record = Some(File::create(&path).unwrap().into());
    assert_eq!(run(spec).code(), Some(0));
    let (record, own) = (std::fs::read_to_string(&path).unwrap(), std::fs::read_to_string(&out).unwrap());
    let field = |text: &str, number: usize| {
        let (_, rest) = text.rsplit_once(')').unwrap();
        rest.split_ascii_whitespace().nth(number - 3).unwrap().to_owned()
    };
    // The number, and the start time (proc_pid_stat(5), field 22): both are those of the program.
    assert_eq!(record.split(' ').next(), own.split(' ').next());
    assert_eq!(field(&record, 22), field(&own, 22));
    assert!(!record.contains("(sh)") && record.ends_with('\n'), "{record}");
}

#[test]
fn a_record_that_cannot_be_written_keeps_the_program_from_being_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = sh("touch ran", &dir.path().join("out"));
    spec.record = Some(File::options().write(true).open("/dev/full").unwrap().into());
    let error = spawn(spec).unwrap_err();
    assert_eq!((error.step, error.source.raw_os_error()), (SpawnStep::Record, Some(libc::ENOSPC)));
    assert_eq!(error.to_string(), "record its process: No space left on device (os error 28)");
}
