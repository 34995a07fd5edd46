//! Tier 2: VMs that go on without the gpuvm that has started them, with this machine's QEMU and no device.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use gpuvm_core::control::{Answer, Finale, Live, State};
use gpuvm_core::lifecycle::{Outcome, Stage};
use gpuvm_host::process::ProcessId;
use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use rstest::rstest;
use serde_json::{Value, json};

const PROFILE: &str = "version = 1\nname = \"idle\"\naccel = \"tcg\"\nfirmware = \"bios\"\nnetwork = \"none\"\n\
                       [memory]\nsize = \"64M\"\n[cpu]\ncount = 1\npin = \"off\"\n";
const LONG: Duration = Duration::from_secs(60);

/// A folder with a profile, whose VM is ended with it, whatever the test comes to.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("idle.toml"), PROFILE).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn gpuvm(&self, words: &[&str]) -> Output {
        let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"));
        gpuvm.arg("--prefix").arg(self.0.path()).args(words).current_dir(self.0.path()).output().unwrap()
    }

    fn detach(&self, more: &[&str]) -> Output {
        self.gpuvm(&[&["--json", "up", "--detach", "idle.toml"], more].concat())
    }

    fn ask(&self, request: &str) -> Answer {
        let mut stream = UnixStream::connect(self.path("run/vm/idle/control")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "{{\"gpuvm-control\":1}}\n{{\"id\":1,\"do\":{request}}}\n").unwrap();
        let lines: Vec<String> = BufReader::new(stream).lines().take(2).map(Result::unwrap).collect();
        Answer::parse(lines[1].as_bytes()).unwrap()
    }

    fn live(&self) -> Live {
        self.ask("\"status\"").take().unwrap()
    }

    /// Ends the VM by force and returns its last word.
    fn down(&self) -> Finale {
        self.ask("\"stop\",\"force\":true").take::<Value>().unwrap();
        self.ask("\"wait\"").take().unwrap()
    }

    /// Returns the supervisor's process, by the records.
    fn live_pid(&self) -> i32 {
        self.pids()[0]
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log/idle/events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn pids(&self) -> Vec<i32> {
        let Ok(text) = fs::read_to_string(self.path("run/reservations/idle.json")) else { return Vec::new() };
        let record: Value = serde_json::from_str(&text).unwrap();
        let pids = [&record["supervisor"]["pid"], &record["qemu"]["pid"]];
        pids.iter().filter_map(|pid| i32::try_from(pid.as_i64()?).ok()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.pids().into_iter().filter(|pid| is_ours(*pid)) {
            kill(pid);
        }
    }
}

fn kill(pid: i32) {
    if let Ok(fd) = pidfd_open(pid) {
        pidfd_send_signal(fd.as_fd(), Signal::SIGKILL).ok();
    }
}

fn words(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

fn is_ours(pid: i32) -> bool {
    words(pid).contains("idle")
}

/// Waits until no thread of a process is left, as gpuvm means it.
fn gone(pid: i32) {
    let begun = Instant::now();
    while ProcessId::of(pid).is_some_and(ProcessId::is_alive) {
        assert!(begun.elapsed() < LONG, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The session of a process, field 6 of its stat.
fn session(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_detached_vm_runs_on_answers_and_is_ended() {
    let bench = Bench::new();
    let up = bench.detach(&[]);
    assert_eq!(up.status.code(), Some(0), "{up:?}");
    let told = document(&up);
    let live = bench.live();
    assert_eq!((live.state, live.supervisor.detached), (State::Running, true));
    assert_eq!(told["supervisor"], live.supervisor.pid);
    let qemu = live.qemu.unwrap().pid;
    assert_eq!(told["qemu"], qemu);
    assert_eq!(session(live.supervisor.pid), live.supervisor.pid);
    // Neither holds the socket on which it was said that the guest runs, nor standard input.
    assert_eq!(fs::read_link(format!("/proc/{}/fd/0", live.supervisor.pid)).unwrap(), Path::new("/dev/null"));

    let again = bench.detach(&[]);
    assert_eq!(again.status.code(), Some(75), "{again:?}");
    let problem = &document(&again)["error"]["problems"][0];
    assert_eq!(problem["kind"], "already-up", "{problem}");
    assert!(problem["hint"].is_string(), "{problem}");

    let finale = bench.down();
    assert_eq!((finale.exit_code, finale.not_given_back.len()), (0, 0), "{finale:?}");
    gone(live.supervisor.pid);
    assert!(!bench.path("run/vm/idle").exists());
    let log = fs::read_to_string(bench.path("log/idle/supervisor.log")).unwrap();
    assert!(log.contains("the host is as it was"), "{log}");
}

/// Kills the supervisor of a running VM, and returns its QEMU.
fn orphan(bench: &Bench) -> i32 {
    let begun = Instant::now();
    while bench.live().state != State::Running {
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(20));
    }
    let live = bench.live();
    kill(live.supervisor.pid);
    gone(live.supervisor.pid);
    live.qemu.unwrap().pid
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_guest_outlives_its_killed_supervisor_and_cleanup_leaves_it_alone() {
    let bench = Bench::new();
    let up = bench.detach(&["--wait", "none"]);
    assert_eq!(up.status.code(), Some(0), "{up:?}");
    let qemu = orphan(&bench);
    let cleanup = bench.gpuvm(&["cleanup"]);
    assert_eq!(cleanup.status.code(), Some(75), "{cleanup:?}");
    let told =
        String::from_utf8_lossy(&cleanup.stdout).into_owned() + &String::from_utf8_lossy(&cleanup.stderr);
    assert!(told.contains("unsupervised") && told.contains("gpuvm recover idle"), "{told}");
    assert!(words(qemu).contains("idle"), "QEMU is gone");
    // Both are dead now.
    kill(qemu);
    gone(qemu);
    let cleanup = bench.gpuvm(&["cleanup"]);
    assert_eq!(cleanup.status.code(), Some(0), "{cleanup:?}");
    assert!(!bench.path("run/vm/idle").exists() && bench.pids().is_empty());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_guest_without_a_supervisor_gets_another_one_and_all_goes_on() {
    let bench = Bench::new();
    assert_eq!(bench.detach(&[]).status.code(), Some(0));
    let first = bench.live();
    let qemu = orphan(&bench);
    let recovered = bench.gpuvm(&["--json", "recover", "idle"]);
    assert_eq!(recovered.status.code(), Some(0), "{recovered:?}");
    let (told, live) = (document(&recovered), bench.live());
    assert_eq!((&told["supervisor"], &told["qemu"]), (&json!(live.supervisor.pid), &json!(qemu)));
    assert_eq!((live.state, live.qemu.unwrap().pid), (State::Running, qemu));
    assert_ne!(live.supervisor.pid, first.supervisor.pid);
    assert_eq!(live.begun_ms / 1000, first.begun_ms / 1000);
    // Its events go on where they were, each with a number of its own.
    let seqs: Vec<u64> = bench.events().iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(seqs.len() > 4 && seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    // Nobody else is to see to it too, and a second death is as the first.
    assert_eq!(bench.gpuvm(&["recover", "idle"]).status.code(), Some(75));
    assert_eq!(orphan(&bench), qemu);
    assert_eq!(bench.gpuvm(&["recover", "idle"]).status.code(), Some(0));
    let finale = bench.down();
    assert_eq!((finale.exit_code, finale.not_given_back.len()), (0, 0), "{finale:?}");
    assert!(finale.outcome.is_some_and(|outcome| outcome == Outcome::Stopped { stage: Stage::Quit }));
    gone(qemu);
    assert!(!bench.path("run/vm/idle").exists() && bench.pids().is_empty());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_paused_guest_is_still_paused_once_it_has_another_supervisor() {
    let bench = Bench::new();
    assert_eq!(bench.detach(&[]).status.code(), Some(0));
    assert_eq!(bench.gpuvm(&["pause", "idle"]).status.code(), Some(0));
    kill(bench.live().supervisor.pid);
    gone(bench.live_pid());
    assert_eq!(bench.gpuvm(&["recover", "idle"]).status.code(), Some(0));
    let begun = Instant::now();
    while bench.live().state != State::Paused {
        assert!(begun.elapsed() < LONG, "{:?}", bench.live());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(bench.gpuvm(&["resume", "idle"]).status.code(), Some(0));
    assert_eq!(bench.live().state, State::Running);
    assert_eq!(bench.down().exit_code, 0);
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_guest_that_ends_under_its_second_supervisor_is_told_with_what_was_seen() {
    let bench = Bench::new();
    assert_eq!(bench.detach(&[]).status.code(), Some(0));
    let qemu = orphan(&bench);
    assert_eq!(bench.gpuvm(&["recover", "idle"]).status.code(), Some(0));
    let supervisor = bench.live_pid();
    kill(qemu);
    gone(supervisor);
    assert!(!bench.path("run/vm/idle").exists() && bench.pids().is_empty());
    let log = fs::read_to_string(bench.path("log/idle/supervisor.log")).unwrap();
    assert!(log.contains("the guest ended because QEMU died (a status that nobody saw)"), "{log}");
    assert!(log.contains("the host is as it was"), "{log}");
}

#[rstest]
#[case::by_force(&["down", "--force", "idle"])]
#[case::by_recovery_of_one_that_never_ran(&["recover", "idle"])]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_guest_without_a_supervisor_is_ended_by(#[case] words: &[&str]) {
    let bench = Bench::new();
    assert_eq!(bench.detach(&[]).status.code(), Some(0));
    let qemu = orphan(&bench);
    if words[0] == "recover" {
        // As a supervisor leaves it that is killed before it has told QEMU to let the guest run.
        fs::remove_file(bench.path("run/vm/idle/continued")).unwrap();
    }
    let ended = bench.gpuvm(words);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stdout).contains("idle is given back"), "{ended:?}");
    gone(qemu);
    assert!(!bench.path("run/vm/idle").exists() && bench.pids().is_empty());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_qemu_that_does_not_answer_is_not_taken_over_and_stays_as_it_is() {
    let bench = Bench::new();
    assert_eq!(bench.detach(&[]).status.code(), Some(0));
    let qemu = orphan(&bench);
    // Whoever is at the monitor first has it.
    let holder = UnixStream::connect(bench.path("run/vm/idle/qmp.sock")).unwrap();
    let mut greeting = String::new();
    BufReader::new(&holder).read_line(&mut greeting).unwrap();
    let refused = bench.gpuvm(&["--json", "recover", "idle"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    let problem = &document(&refused)["error"]["problems"][0];
    assert_eq!(problem["kind"], "not-adopted", "{problem}");
    assert!(words(qemu).contains("idle"), "QEMU is gone");
    drop(holder);
    assert_eq!(bench.gpuvm(&["recover", "idle"]).status.code(), Some(0));
    assert_eq!(bench.down().exit_code, 0);
}

#[rstest]
#[case::what_never_comes(&["--wait", "console:never", "--wait-timeout", "3s"], 124, "is not ready after 3 s")]
#[case::more_memory_than_there_is(&["--set", "memory.size=60T"], 69, "memory")]
#[case::a_profile_that_is_wrong(&["--set", "cpu.count=0"], 78, "")]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_what_keeps_a_detached_vm_from_being_ready_is_told_with_its_exit_code(
    #[case] words: &[&str],
    #[case] code: i32,
    #[case] message: &str,
) {
    let bench = Bench::new();
    let up = bench.detach(words);
    assert_eq!(up.status.code(), Some(code), "{up:?}");
    let told = document(&up)["error"]["problems"].to_string();
    assert!(told.contains(message), "{told}");
    if code == 124 {
        assert_eq!(bench.live().state, State::Running);
        assert_eq!(bench.down().exit_code, 0);
    }
    assert!(bench.pids().is_empty(), "{:?}", bench.pids());
}
