//! Tier 2: the life of a detached VM with a Linux guest and this machine's QEMU, as its verbs tell it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod machine;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use machine::{Bench, LINGERS, pid, until, until_gone};
use serde_json::{Value, json};

/// Somebody at a VM's serial port, by gpuvm's protocol.
struct Seat {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Seat {
    fn take(bench: &Bench, name: &str) -> Self {
        let mut stream = UnixStream::connect(bench.path(&format!("run/vm/{name}/control"))).unwrap();
        stream.set_read_timeout(Some(machine::LONG)).unwrap();
        stream.write_all(b"{\"gpuvm-control\":1}\n{\"id\":1,\"do\":\"console\"}\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let (mut hello, mut answer) = (String::new(), String::new());
        lines.read_line(&mut hello).unwrap();
        lines.read_line(&mut answer).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), json!({ "id": 1, "ok": {} }));
        Self { stream, heard: lines.buffer().to_vec() }
    }

    fn types(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for bytes for so long at most, and keeps them; says whether any came.
    fn listens(&mut self, within: Duration) -> bool {
        self.stream.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).unwrap_or(0);
        self.heard.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Waits for a line that begins so, forgets what came up to its end, and returns what follows the beginning.
    fn hears(&mut self, beginning: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&self.heard).into_owned();
            if let Some((_, rest)) = text.split_once(beginning)
                && let Some((line, after)) = rest.split_once('\n')
            {
                self.heard = after.as_bytes().to_vec();
                return line.trim_end().to_owned();
            }
            assert!(begun.elapsed() < machine::LONG, "no {beginning:?} in {text:?}");
            self.listens(Duration::from_millis(500));
        }
    }

    /// The guest's own time since its start, in seconds.
    fn uptime(&mut self) -> f64 {
        let text = self.hears("gpuvm-guest: up ");
        text.strip_suffix(" s").unwrap().parse().unwrap()
    }
}

/// The processor time that a thread has taken, in ticks.
fn ticks(process: i32, thread: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// What `status` and `list` say of a VM, as text and as documents, must be this state.
fn assert_told(bench: &Bench, name: &str, state: &str) {
    let document = bench.json(&["status", name]);
    assert_eq!(document["live"]["state"], state, "{document}");
    let text = bench.says(&["status", name]);
    assert!(text.starts_with(&format!("{name}  {state} since ")), "{text}");
    let (supervisor, qemu) = (&document["supervisor"]["pid"], &document["qemu"]["pid"]);
    assert!(text.contains(&format!("  supervisor  process {supervisor}, gpuvm ")), "{text}");
    assert!(text.contains(&format!("  QEMU        process {qemu}")), "{text}");
    let listed = &bench.json(&["list"])["vms"][0];
    assert_eq!(
        (&listed["name"], &listed["state"], &listed["qemu"]["pid"]),
        (&json!(name), &json!(state), qemu)
    );
    let list = bench.says(&["list"]);
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[3]), (name, state, qemu.to_string().as_str()), "{list}");
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_linux_guest_lives_its_life_and_each_step_is_told() {
    let bench = Bench::new();
    bench.linux("linux", "");
    let up = bench.up_linux("linux");
    let live = bench.live("linux");
    assert_eq!((&up["supervisor"], &up["qemu"]), (&live["supervisor"]["pid"], &live["qemu"]["pid"]));
    assert_eq!((&live["reboots"], &live["supervisor"]["detached"]), (&json!(0), &json!(true)));
    let parts: Vec<&Value> = live["timings"].as_array().unwrap().iter().map(|part| &part["phase"]).collect();
    assert_eq!(parts, ["prepare", "start"]);
    assert_eq!((&live["memory"][0]["size"], live["vcpus"].as_array().unwrap().len()), (&json!("128M"), 1));
    assert_told(&bench, "linux", "running");
    let followed = bench.path("followed");
    let mut follower = bench.command(&["--json", "events", "linux", "--follow"]);
    let mut follower = follower.stdout(File::create(&followed).unwrap()).spawn().unwrap();
    let read_on = bench.path("read-on");
    let mut reader = bench.command(&["logs", "linux", "--follow"]);
    let mut reader = reader.stdout(File::create(&read_on).unwrap()).spawn().unwrap();
    until("what has happened before", || fs::read_to_string(&followed).unwrap().contains("RESUME"));

    stands_still(&bench, pid(&live["qemu"]["pid"]), pid(&live["vcpus"][0]["thread"]));
    boots_again(&bench);

    let answer = bench.json(&["qmp", "linux", "query-status"]);
    assert!(answer.to_string().contains("\"running\":true"), "{answer}");
    let logs = bench.says(&["logs", "linux"]);
    assert_eq!(logs.matches("{\"gpuvm_guest\":1,").count(), 2, "{logs}");

    let down = bench.gpuvm(&["down", "linux"]);
    assert_eq!(
        down.out, "linux is down: the guest powered off when its power button was pressed\n",
        "{down:?}"
    );
    assert_eq!(down.code, 0, "{down:?}");
    assert!(bench.console("linux").contains("gpuvm-guest: power button"));
    until_gone(pid(&live["supervisor"]["pid"]));
    assert!(follower.wait().unwrap().success());
    // It sees by itself that nothing more will come.
    assert!(reader.wait().unwrap().success());
    assert_eq!(fs::read_to_string(&read_on).unwrap(), bench.console("linux"));
    let states = states(&fs::read_to_string(&followed).unwrap());
    let wanted = ["paused", "running", "powering-down", "quitting", "judging", "giving-back", "over"];
    assert_eq!(states[states.len() - wanted.len()..], wanted, "{states:?}");
    // What was told is kept, for who comes too late to follow.
    let kept = bench.says(&["events", "linux"]);
    assert!(kept.contains("state: paused") && kept.contains("QEMU: SHUTDOWN"), "{kept}");
    bench.assert_nothing_left();
}

/// The states in lines of events.
fn states(lines: &str) -> Vec<String> {
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.filter_map(|entry| Some(entry.get("state")?.as_str()?.to_owned())).collect()
}

/// Pauses the guest: it says nothing, takes no processor time, and its clock hasn't gone on when it is resumed.
fn stands_still(bench: &Bench, qemu: i32, vcpu: i32) {
    const STOOD: Duration = Duration::from_secs(4);
    let mut seat = Seat::take(bench, "linux");
    seat.types("uptime\r");
    let before = seat.uptime();
    assert_eq!(bench.says(&["pause", "linux"]), "linux is paused\n");
    let stood = Instant::now();
    assert_told(bench, "linux", "paused");
    assert_eq!(bench.live("linux")["why"], "as asked");
    let text = bench.says(&["status", "linux"]);
    assert!(text.lines().next().unwrap().ends_with(": as asked"), "{text}");
    for refused in [&["pause", "linux"][..], &["reboot", "linux"]] {
        let ran = bench.gpuvm(refused);
        assert_eq!(ran.code, 75, "{ran:?}");
    }
    // Its last words may be on their way.
    while seat.listens(Duration::from_millis(300)) {}
    let used = ticks(qemu, vcpu);
    seat.types("uptime\r");
    assert!(
        !seat.listens(STOOD.saturating_sub(stood.elapsed())),
        "{:?}",
        String::from_utf8_lossy(&seat.heard)
    );
    assert_eq!(ticks(qemu, vcpu), used);
    let stood = stood.elapsed();
    assert_eq!(bench.says(&["resume", "linux"]), "linux is running\n");
    // It was typed meanwhile, and is answered now.
    let after = seat.uptime();
    assert!(after - before < stood.as_secs_f64() / 2.0, "{before} s, {after} s, and {stood:?} between");
    assert_told(bench, "linux", "running");
}

/// Resets the machine: it boots again, and that is told once.
fn boots_again(bench: &Bench) {
    let mut seat = Seat::take(bench, "linux");
    let reset = Instant::now();
    assert_eq!(bench.says(&["reboot", "linux"]), "linux is running\n");
    bench.until_said("linux", LINGERS, 2);
    assert_told(bench, "linux", "running");
    assert_eq!(bench.live("linux")["reboots"], 1);
    let text = bench.says(&["status", "linux"]);
    assert!(text.contains("  reboots     1\n"), "{text}");
    seat.types("uptime\r");
    let uptime = seat.uptime();
    assert!(uptime < reset.elapsed().as_secs_f64(), "the kernel of before runs on: {uptime} s");
}
