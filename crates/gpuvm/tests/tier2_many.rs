//! Tier 2: many VMs on one machine, two who want the same one, and a session that ends.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use gpuvm_sys::process::Signal;
use machine::tmux::Tmux;
use machine::{Bench, Ran, pid, send, until, until_gone};
use rstest::rstest;
use serde_json::{Value, json};

/// Runs one gpuvm for each of some word lists, all at the same time.
fn all_at_once(bench: &Bench, calls: &[Vec<String>]) -> Vec<Ran> {
    thread::scope(|scope| {
        let run = |call: &'_ Vec<String>| {
            let words: Vec<&str> = call.iter().map(String::as_str).collect();
            bench.gpuvm(&words)
        };
        let threads: Vec<_> = calls.iter().map(|call| scope.spawn(move || run(call))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn call(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn words_of(process: i32) -> String {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_twenty_vms_start_are_listed_and_end_at_once() {
    let bench = Bench::new();
    let names: Vec<String> = (0..20).map(|number| format!("vm-{number:02}")).collect();
    names.iter().for_each(|name| bench.idle(name));
    let up = |name: &String| call(&["--json", "up", "--detach", &format!("{name}.toml")]);
    let ups = all_at_once(&bench, &names.iter().map(up).collect::<Vec<_>>());
    let mut pids = BTreeSet::new();
    for (name, up) in names.iter().zip(&ups) {
        assert_eq!(up.code, 0, "{name}: {up:?}");
        let told = up.json();
        assert_eq!(told["name"], name.as_str());
        let (supervisor, qemu) = (pid(&told["supervisor"]), pid(&told["qemu"]));
        assert!(words_of(supervisor).contains(&format!("{name}.toml")), "{name}: {}", words_of(supervisor));
        assert!(words_of(qemu).contains(name.as_str()), "{name}: {}", words_of(qemu));
        pids.extend([supervisor, qemu]);
    }
    assert_eq!(pids.len(), 40, "{pids:?}");

    let list = bench.json(&["list"]);
    let rows = list["vms"].as_array().unwrap();
    let listed: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
    for (row, up) in rows.iter().zip(&ups) {
        let told = up.json();
        let seen = (&row["state"], &row["standing"], &row["supervisor"]["pid"], &row["qemu"]["pid"]);
        assert_eq!(seen, (&json!("running"), &json!("running"), &told["supervisor"], &told["qemu"]), "{row}");
    }
    // One that is paused, and one that is asked for its status, are no other.
    assert_eq!(bench.says(&["pause", "vm-07"]), "vm-07 is paused\n");
    let all = bench.json(&["status"]);
    let states: Vec<&Value> = all["vms"].as_array().unwrap().iter().map(|vm| &vm["live"]["state"]).collect();
    let wanted = |number| if number == 7 { "paused" } else { "running" };
    assert_eq!(states, (0..20).map(wanted).collect::<Vec<_>>());

    let down = |name: &String| call(&["--json", "down", name, "--force"]);
    for (name, down) in names.iter().zip(all_at_once(&bench, &names.iter().map(down).collect::<Vec<_>>())) {
        assert_eq!(down.code, 0, "{name}: {down:?}");
        let told = down.json();
        assert_eq!((&told["name"], &told["stage"]), (&json!(name), &json!("quit")), "{told}");
    }
    pids.into_iter().for_each(until_gone);
    bench.assert_nothing_left();
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_of_two_who_want_the_same_vm_at_once_one_has_it() {
    let bench = Bench::new();
    bench.idle("idle");
    for _ in 0..5 {
        let call = call(&["--json", "up", "--detach", "idle.toml"]);
        let ran = all_at_once(&bench, &[call.clone(), call.clone(), call]);
        let (won, lost): (Vec<_>, Vec<_>) = ran.iter().partition(|ran| ran.code == 0);
        assert_eq!((won.len(), lost.len()), (1, 2), "{ran:?}");
        let supervisor = pid(&won[0].json()["supervisor"]);
        for lost in lost {
            assert_eq!(lost.code, 75, "{lost:?}");
            let problem = &lost.json()["error"]["problems"][0];
            assert_eq!(problem["kind"], "already-up", "{problem}");
            assert!(problem["message"].as_str().unwrap().contains(&supervisor.to_string()), "{problem}");
        }
        assert_eq!(bench.live("idle")["supervisor"]["pid"], supervisor);
        assert_eq!(bench.gpuvm(&["down", "idle", "--force"]).code, 0);
        until_gone(supervisor);
    }
    bench.assert_nothing_left();
}

/// How a session ends in which a VM was started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its terminal is closed, as with ssh.
    HungUp,
    /// All of its processes are killed, as by CI.
    Killed,
    /// They are killed while it is still waited for the guest.
    KilledWhileWaiting,
}

#[rstest]
#[case::whose_terminal_is_closed(End::HungUp)]
#[case::whose_processes_are_killed(End::Killed)]
#[case::whose_processes_are_killed_while_it_waits(End::KilledWhileWaiting)]
#[ignore = "tier 2: needs QEMU and tmux; scripts/test runs it"]
fn tier2_a_detached_vm_survives_the_session(#[case] end: End) {
    let bench = Bench::new();
    bench.idle("idle");
    let wait = if end == End::KilledWhileWaiting { "console:never" } else { "running" };
    let gpuvm = env!("CARGO_BIN_EXE_gpuvm");
    let prefix = bench.path("").display().to_string();
    // As from cron: with nothing of an environment. It is over at the latest when nobody types to it any more.
    let line = format!(
        "cd '{prefix}' && env -i PATH=\"$PATH\" '{gpuvm}' --prefix '{prefix}' up --detach idle.toml --wait {wait}; exec cat"
    );
    let (mut tmux, mut shell) = (None, None);
    match end {
        End::HungUp => tmux.insert(Tmux::start(&bench)).types("first", &line),
        End::Killed | End::KilledWhileWaiting => {
            let mut words = Command::new("sh");
            words.args(["-c", &line]).process_group(0).stdin(Stdio::piped());
            shell = Some(words.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
    }
    until("the VM", || bench.path("run/vm/idle/control").exists());
    bench.until("idle", "running");
    let live = bench.live("idle");
    let (supervisor, qemu) = (pid(&live["supervisor"]["pid"]), pid(&live["qemu"]["pid"]));
    if let Some(tmux) = tmux {
        tmux.does(&["kill-server"]);
    }
    if let Some(shell) = &mut shell {
        let group = i32::try_from(shell.id()).unwrap();
        let members = group_of(group);
        assert!(members.contains(&group) && !members.contains(&supervisor) && !members.contains(&qemu));
        members.into_iter().for_each(|process| send(process, Signal::SIGKILL));
        assert!(!shell.wait().unwrap().success());
    }
    // Whatever would end them has a moment to do so.
    thread::sleep(std::time::Duration::from_millis(500));
    let after = bench.live("idle");
    assert_eq!((&after["state"], pid(&after["supervisor"]["pid"])), (&json!("running"), supervisor));
    assert_eq!(pid(&after["qemu"]["pid"]), qemu);
    assert_eq!(bench.gpuvm(&["down", "idle", "--force"]).code, 0);
    until_gone(supervisor);
    bench.assert_nothing_left();
}

/// The processes of a group.
fn group_of(group: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_in = |process: &i32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(2));
        field.and_then(|field| field.parse().ok()) == Some(group)
    };
    numbers.filter(is_in).collect()
}
