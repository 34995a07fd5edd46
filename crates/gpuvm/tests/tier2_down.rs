//! Tier 2: the beginning and the end of detached VMs, by each stage of `down`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use gpuvm_sys::process::Signal;
use machine::{Bench, Ran, pid, send, until, until_gone};
use rstest::rstest;
use serde_json::{Value, json};

/// How a VM is that is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// Linux, which sees its power button.
    Listens,
    /// Linux, which doesn't.
    Ignores,
    /// One whose QEMU stands still.
    Stopped,
}

#[rstest]
#[case::a_guest_that_listens(Guest::Listens, &[], "acpi", 0..25, "powered off when its power button was pressed")]
#[case::a_guest_that_ignores_its_button(Guest::Ignores, &["--timeout", "4s"], "quit", 3..25, "was ended by telling QEMU to quit")]
#[case::one_who_does_not_want_to_wait(Guest::Ignores, &["--force"], "quit", 0..15, "was ended by telling QEMU to quit")]
#[case::a_qemu_that_stands_still(Guest::Stopped, &["--timeout", "4"], "kill", 4..30, "was ended by killing QEMU")]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_down_says_which_stage_was_needed(
    #[case] guest: Guest,
    #[case] words: &[&str],
    #[case] stage: &str,
    #[case] seconds: std::ops::Range<u64>,
    #[case] outcome: &str,
) {
    let bench = Bench::new();
    let ignores = if guest == Guest::Ignores { "gpuvm.ignore-power-button" } else { "" };
    bench.linux("linux", ignores);
    let up = bench.up_linux("linux");
    let (supervisor, qemu) = (pid(&up["supervisor"]), pid(&up["qemu"]));
    if guest == Guest::Stopped {
        send(qemu, Signal::SIGSTOP);
    }
    let begun = Instant::now();
    let down = bench.gpuvm(&[&["--json", "down", "linux"], words].concat());
    let took = begun.elapsed();
    assert_eq!(down.code, 0, "{down:?}");
    let document = down.json();
    assert_eq!((&document["stage"], &document["exit_code"]), (&json!(stage), &json!(0)), "{document}");
    assert!(seconds.contains(&took.as_secs()), "{took:?}");
    until_gone(supervisor);
    until_gone(qemu);
    bench.assert_nothing_left();
    let log = fs::read_to_string(bench.path("log/linux/supervisor.log")).unwrap();
    assert!(log.contains(&format!("the guest {outcome}")) && log.contains("the host is as it was"), "{log}");
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_who_asks_meanwhile_is_told_what_an_end_waits_for() {
    let bench = Bench::new();
    bench.linux("linux", "gpuvm.ignore-power-button");
    bench.up_linux("linux");
    let mut down = bench.command(&["down", "linux", "--timeout", "40"]);
    let down = down.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    bench.until("linux", "powering-down");
    let list = bench.says(&["list"]);
    assert!(list.contains("linux  powering-down  "), "{list}");
    for refused in ["pause", "reboot"] {
        let ran = bench.gpuvm(&[refused, "linux"]);
        assert!(ran.code == 75 && ran.told.contains("powering"), "{ran:?}");
    }
    let begun = Instant::now();
    // Another gentle wish doesn't hurry it; force does.
    assert_eq!(bench.live("linux")["state"], "powering-down");
    let forced = bench.gpuvm(&["down", "linux", "--force"]);
    assert_eq!(forced.out, "linux is down: the guest was ended by telling QEMU to quit\n", "{forced:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let down = Ran::of(&down.wait_with_output().unwrap());
    assert_eq!((down.code, down.out.as_str()), (0, forced.out.as_str()), "{down:?}");
    assert!(down.told.contains("pressing the guest's power button"), "{down:?}");
    bench.assert_nothing_left();
}

/// QEMU is started by a script that takes its time, so that the VM is seen before its guest runs.
#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_vm_is_seen_starting_and_ended_before_its_guest_has_run() {
    let bench = Bench::new();
    bench.idle("idle");
    let folder = bench.path("bin");
    fs::create_dir(&folder).unwrap();
    let script = folder.join("qemu-system-x86_64");
    let path = std::env::var("PATH").unwrap();
    let slow = format!(
        "#!/bin/sh\nPATH='{path}'\ncase \" $* \" in *' -S '*) sleep 4 ;; esac\nexec qemu-system-x86_64 \"$@\"\n"
    );
    fs::write(&script, slow).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut up =
        bench.command(&["up", "--detach", "idle.toml", "--wait", "none", "--shutdown-timeout", "7m"]);
    let up = Ran::of(&up.env("PATH", format!("{}:{path}", folder.display())).output().unwrap());
    assert_eq!(up.code, 0, "{up:?}");
    bench.until("idle", "starting");
    let text = bench.says(&["status", "idle"]);
    assert!(text.starts_with("idle  starting since ") && text.contains("  took        prepare "), "{text}");
    assert!(!text.contains("vCPU"), "{text}");
    let list = bench.says(&["list"]);
    assert!(list.contains("idle  starting  "), "{list}");
    let live = bench.live("idle");
    assert_eq!((&live["state"], &live["vcpus"]), (&json!("starting"), &json!([])), "{live}");
    for refused in [&["pause", "idle"][..], &["reboot", "idle"], &["qmp", "idle", "query-status"]] {
        let ran = bench.gpuvm(refused);
        assert_eq!(ran.code, 75, "{ran:?}");
    }
    // For as long a verb has to wait that asks for its end.
    let kept = fs::read_to_string(bench.path("run/vm/idle/run.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["plan"]["shutdown_timeout"], 420);
    let down = bench.gpuvm(&["--json", "down", "idle"]);
    assert_eq!(down.code, 0, "{down:?}");
    until("its folder's end", || !bench.path("run/vm/idle").exists());
    bench.assert_nothing_left();
}
