//! The verbs of a VM's life: by its records alone, and with a supervisor by script.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use gpuvm_host::process::ProcessId;
use regex::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peer::{Hello, Reply, listen};
use crate::shared::golden::{compare, repository};
use crate::transcript;

/// A VM's records, each with live processes and dead ones.
#[derive(Clone, Copy)]
enum Is {
    Running,
    Starting,
    Stopping,
    Unsupervised,
    Stale,
    BeforeReboot,
    Unreadable,
}

/// gpuvm's own folders, with VMs in them.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn with(self, vm: &str, is: Is) -> Self {
        let own = ProcessId::own();
        // The same number with another start time: a process that has ended.
        let dead = ProcessId { start_time: u64::MAX, ..own };
        let (supervisor, qemu) = match is {
            Is::Running | Is::Unreadable => (own, Some(own)),
            Is::Starting => (own, None),
            Is::Stopping => (own, Some(dead)),
            Is::Unsupervised => (dead, Some(own)),
            Is::Stale | Is::BeforeReboot => (dead, Some(dead)),
        };
        let boot = match is {
            Is::BeforeReboot => "00000000-0000-0000-0000-000000000000".to_owned(),
            _ => fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
        };
        let record = json!({
            "vm": vm, "boot_id": boot, "groups": [7], "devices": ["0000:81:00.0", "0000:81:00.1"],
            "supervisor": supervisor, "qemu": qemu, "in_flight": [],
        });
        let text = if let Is::Unreadable = is { "{".to_owned() } else { record.to_string() };
        self.file(&format!("run/reservations/{vm}.json"), &text);
        let begin = json!({ "entry": "begin", "version": 3, "boot_id": boot });
        let intent = json!({ "entry": "intent", "seq": 0, "op": { "op": "adopt", "bdf": "0000:81:00.0" }, "saved": null });
        self.file(&format!("run/vm/{vm}/journal"), &format!("{begin}\n{intent}\n"));
        self.file(&format!("run/vm/{vm}/begun.json"), "{\"at\":1800000000,\"log\":{}}");
        self
    }

    fn logs(self, vm: &str) -> Self {
        self.file(&format!("log/{vm}/console.log"), "booting\r\nWelcome\r\nlogin: ");
        self.file(&format!("log/{vm}/qemu.log"), "qemu-system-x86_64 -name vm1\n");
        let entries: Vec<String> = entries().iter().map(|entry| format!("{entry}\n")).collect();
        self.file(&format!("log/{vm}/events.jsonl"), &entries.concat());
        self
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Has a supervisor answer.
    fn answered(
        self,
        vm: &str,
        hello: Hello,
        reply: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        listen(&self.path().join("run/vm").join(vm).join("control"), hello, reply);
        self
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gpuvm"))
            .args(args)
            .current_dir(repository())
            .env("GPUVM_PREFIX", self.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn transcript(&self, args: &[&str]) -> String {
        let told = transcript(&self.run(args), &self.path().display().to_string());
        let pid = std::process::id().to_string();
        // A column of a table stays as wide as it is.
        let cell = Regex::new(&format!(r"\b{pid}\b(  +)")).unwrap();
        let told = cell.replace_all(&told, format!("{:<width$}$1", "PID", width = pid.len()));
        let own = Regex::new(&format!(r"\b{pid}\b")).unwrap();
        let state = Regex::new(r"state [A-Z](, waiting in \w+)?").unwrap();
        state.replace_all(&own.replace_all(&told, "PID"), "state S").into_owned()
    }
}

fn entries() -> [Value; 4] {
    let at = |second: u64| 1_800_000_000_000_u64 + second * 1000;
    [
        json!({ "seq": 1, "at_ms": at(0), "kind": "state", "state": "preparing" }),
        json!({ "seq": 2, "at_ms": at(1), "kind": "phase", "phase": "starting", "text": "starting QEMU, paused" }),
        json!({ "seq": 3, "at_ms": at(2), "kind": "qmp", "event": "RESUME" }),
        json!({ "seq": 4, "at_ms": at(3), "kind": "note", "text": "the clock of the guest is late" }),
    ]
}

fn live(state: &str) -> Value {
    json!({
        "name": "vm1", "state": state, "since_ms": 1_800_000_003_000_u64, "begun_ms": 1_800_000_000_000_u64,
        "boot_id": "b00t", "supervisor": { "pid": 4242, "version": "0.1.0", "detached": true },
        "qemu": { "pid": 4250, "version": "7.2.9" }, "reboots": 1,
        "timings": [{ "phase": "prepare", "ms": 120 }, { "phase": "start", "ms": 803 }],
        "vcpus": [{ "vcpu": 0, "thread": 4255, "cpu": 2 }, { "vcpu": 1, "thread": 4256, "cpu": null }],
        "devices": [
            { "bdf": "0000:81:00.0", "name": "NVIDIA H100 PCIe", "driver": "vfio-pci", "link": "32.0 GT/s x16" },
            { "bdf": "0000:81:00.1", "name": "10de:22be", "driver": null, "link": null, "verdict": "impaired", "finding": "link is slow" },
        ],
        "memory": [{ "guest_node": 0, "host_node": 1, "size": "4G", "pages": "2M" }],
        "warnings": [{ "about": "hugepages", "message": "ordinary pages back the guest's memory" }],
        "events": entries(),
    })
}

fn finale(outcome: &Value, code: u8, left: &[&str]) -> Value {
    json!({ "outcome": outcome, "not_given_back": left, "exit_code": code })
}

fn ours(reply: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static) -> Host {
    Host::new().with("vm1", Is::Running).answered("vm1", Hello::Ours, reply)
}

/// A supervisor that ends its VM when asked to.
fn ends(outcome: Value, code: u8, left: &'static [&'static str]) -> Host {
    ours(move |what, _| match what {
        "wait" => Reply::Ok(finale(&outcome, code, left)),
        "stop" => Reply::Ok(json!({})),
        _ => Reply::Silent,
    })
}

/// A supervisor that does what it is asked.
fn obeys(state: &'static str) -> Host {
    ours(move |what, _| match what {
        "status" => Reply::Ok(live(state)),
        _ => Reply::Ok(json!({})),
    })
}

fn refuses(kind: &'static str, message: &'static str) -> Host {
    ours(move |_, _| Reply::Error(kind, message))
}

fn several() -> Host {
    Host::new()
        .with("vm1", Is::Running)
        .answered("vm1", Hello::Ours, |_, _| Reply::Ok(live("paused")))
        .with("vm2", Is::Unsupervised)
        .with("vm3", Is::Stale)
        .with("vm4", Is::BeforeReboot)
        .with("vm5", Is::Starting)
        .with("vm6", Is::Stopping)
        .with("vm7", Is::Unreadable)
}

fn stopped(stage: &str) -> Value {
    json!({ "kind": "stopped", "stage": stage })
}

/// What is told by records alone.
fn by_records() -> Vec<(&'static str, i32, Host, Vec<&'static str>)> {
    let alone = |is| Host::new().with("vm1", is);
    vec![
        ("list-of-none", 0, Host::new(), vec!["list"]),
        ("list-of-none-json", 0, Host::new(), vec!["list", "--json"]),
        ("list", 0, several(), vec!["list"]),
        ("list-json", 0, several(), vec!["list", "--json"]),
        ("status-of-none", 0, Host::new(), vec!["status"]),
        ("status-of-several", 0, several(), vec!["status"]),
        ("status-unsupervised", 0, alone(Is::Unsupervised), vec!["status", "vm1"]),
        ("status-unsupervised-json", 0, alone(Is::Unsupervised), vec!["status", "vm1", "--json"]),
        ("status-stale", 0, alone(Is::Stale), vec!["status", "vm1"]),
        ("status-starting", 0, alone(Is::Starting), vec!["status", "vm1"]),
        ("status-unreadable", 0, alone(Is::Unreadable), vec!["status", "vm1"]),
        ("no-such-vm", 69, several(), vec!["status", "vm0"]),
        ("no-such-vm-json", 69, several(), vec!["pause", "vm0", "--json"]),
        ("no-vm-at-all", 69, Host::new(), vec!["down", "vm0"]),
        ("a-vm-that-has-ended", 69, Host::new().logs("vm1"), vec!["status", "vm1"]),
        ("pause-unsupervised", 69, alone(Is::Unsupervised), vec!["pause", "vm1"]),
        ("recover-of-none", 69, several(), vec!["recover", "vm0"]),
        ("recover-of-a-supervised-vm", 75, alone(Is::Running), vec!["recover", "vm1"]),
        ("recover-unreadable", 69, alone(Is::Unreadable), vec!["recover", "vm1"]),
        ("down-stale", 69, alone(Is::Stale), vec!["down", "vm1"]),
        ("reboot-unreadable", 69, alone(Is::Unreadable), vec!["reboot", "vm1"]),
        ("nobody-listens", 75, alone(Is::Running), vec!["console", "vm1"]),
        ("logs", 0, Host::new().logs("vm1"), vec!["logs", "vm1"]),
        ("logs-last-json", 0, Host::new().logs("vm1"), vec!["logs", "vm1", "--last", "2", "--json"]),
        ("logs-of-qemu", 0, Host::new().logs("vm1"), vec!["logs", "vm1", "--which", "qemu"]),
        ("logs-of-none", 69, Host::new(), vec!["logs", "vm1"]),
        (
            "logs-followed-of-an-ended-vm",
            0,
            Host::new().logs("vm1"),
            vec!["logs", "-f", "vm1", "--which", "events"],
        ),
        ("events", 0, Host::new().logs("vm1"), vec!["events", "vm1", "--last", "3"]),
        ("events-json", 0, Host::new().logs("vm1"), vec!["events", "vm1", "--json"]),
    ]
}

/// What is told by a supervisor.
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn by_supervisor() -> Vec<(&'static str, i32, Host, Vec<&'static str>)> {
    let stream = || {
        let lines: Vec<String> = entries().iter().map(|entry| format!("{entry}\n")).collect();
        let missed = json!({ "seq": 9, "at_ms": 1_800_000_009_000_u64, "kind": "missed", "count": 5 });
        let newer = json!({ "seq": 10, "at_ms": 1_800_000_010_000_u64, "kind": "teleported" });
        let text = format!("{}{missed}\n{newer}\n", lines.concat());
        ours(move |_, _| Reply::Stream(text.clone()))
    };
    let said =
        |line| Host::new().with("vm1", Is::Running).answered("vm1", Hello::Line(line), |_, _| Reply::Silent);
    vec![
        ("status", 0, obeys("running"), vec!["status", "vm1"]),
        ("status-json", 0, obeys("running"), vec!["status", "vm1", "--json"]),
        ("pause", 0, obeys("paused"), vec!["pause", "vm1"]),
        ("pause-json", 0, obeys("paused"), vec!["pause", "vm1", "--json"]),
        ("resume", 0, obeys("running"), vec!["resume", "vm1"]),
        ("reboot", 0, obeys("running"), vec!["reboot", "vm1"]),
        ("down-by-acpi", 0, ends(stopped("acpi"), 0, &[]), vec!["down", "vm1"]),
        ("down-by-quit", 0, ends(stopped("quit"), 0, &[]), vec!["down", "vm1", "--timeout", "5"]),
        ("down-by-kill", 0, ends(stopped("kill"), 0, &[]), vec!["down", "vm1", "--force"]),
        ("down-by-acpi-json", 0, ends(stopped("acpi"), 0, &[]), vec!["down", "vm1", "--json"]),
        (
            "down-of-a-guest-that-panicked",
            0,
            ends(json!({ "kind": "panicked" }), 1, &[]),
            vec!["down", "vm1"],
        ),
        (
            "down-and-not-given-back",
            74,
            ends(stopped("quit"), 74, &["0000:81:00.0 is sick: it reads ffff"]),
            vec!["down", "vm1"],
        ),
        ("down-by-a-supervisor-that-dies", 74, ours(|_, _| Reply::Close), vec!["down", "vm1"]),
        ("not-now", 75, refuses("not-now", "the guest doesn't run yet"), vec!["pause", "vm1"]),
        (
            "unknown-request",
            69,
            refuses("unknown-request", "this gpuvm does not know the request `pause`"),
            vec!["pause", "vm1"],
        ),
        (
            "qemu-is-silent",
            124,
            refuses("timeout", "QEMU did not answer `stop` within 30 s"),
            vec!["pause", "vm1"],
        ),
        (
            "a-kind-of-refusal-that-is-newer",
            69,
            refuses("on-strike", "not today"),
            vec!["reboot", "vm1", "--json"],
        ),
        (
            "qmp",
            0,
            ours(|_, request| {
                Reply::Ok(json!({ "asked": request["execute"], "with": request["arguments"] }))
            }),
            vec!["qmp", "vm1", "query-block", "{\"flat\": true}"],
        ),
        (
            "qmp-refused",
            69,
            refuses("qemu", "CommandNotFound: The command x has not been found"),
            vec!["qmp", "vm1", "x"],
        ),
        (
            "screenshot-without-a-display",
            69,
            refuses("not-there", "it has no display"),
            vec!["screenshot", "vm1", "x.png"],
        ),
        ("events-followed", 0, stream(), vec!["events", "vm1", "--follow"]),
        ("events-followed-json", 0, stream(), vec!["events", "vm1", "--follow", "--json"]),
        (
            "console-to-be-read",
            0,
            ours(|_, request| {
                assert_eq!(request["scrollback"], 2048);
                Reply::Stream("login: ".to_owned())
            }),
            vec!["console", "vm1", "--scrollback", "2K"],
        ),
        ("console-json", 64, obeys("running"), vec!["console", "vm1", "--json"]),
        ("another-version", 69, said("{\"gpuvm-control\":7,\"gpuvm\":\"9.0.0\"}"), vec!["pause", "vm1"]),
        ("no-gpuvm-at-all", 70, said("SSH-2.0-OpenSSH"), vec!["pause", "vm1"]),
        (
            "a-supervisor-that-is-silent",
            124,
            Host::new().with("vm1", Is::Running).answered("vm1", Hello::Never, |_, _| Reply::Silent),
            vec!["pause", "vm1"],
        ),
        (
            "status-of-a-silent-supervisor",
            0,
            Host::new().with("vm1", Is::Running).answered("vm1", Hello::Never, |_, _| Reply::Silent),
            vec!["status", "vm1"],
        ),
    ]
}

#[test]
fn verbs_of_a_vms_life_tell_what_they_told() {
    let cases = by_records().into_iter().chain(by_supervisor());
    compare(
        "life",
        cases.map(|(name, code, host, args)| {
            let told = host.transcript(&args);
            assert!(told.starts_with(&format!("exit {code}\n")), "{name}: {told}");
            (name.to_owned(), told)
        }),
    );
}

#[test]
fn a_picture_is_taken_away_from_where_the_supervisor_has_put_it() {
    // The smallest PNG: one pixel.
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89";
    let host = Host::new().with("vm1", Is::Running);
    let file = host.path().join("run/vm/vm1/picture.png");
    fs::write(&file, PNG).unwrap();
    let told = json!({ "file": file });
    let host = host.answered("vm1", Hello::Ours, move |_, _| Reply::Ok(told.clone()));
    let to = host.path().join("screen.png");
    let output = host.run(&["screenshot", "vm1", &to.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("screen.png: 1 x 1 pixels\n"), "{output:?}");
    assert_eq!(fs::read(&to).unwrap(), PNG);
    assert!(!file.exists());
}

#[test]
fn a_qemu_that_writes_no_png_still_gives_a_picture() {
    let host = ours(|what, request| match what {
        "screenshot" => Reply::Error("qemu", "Enable PNG support with libpng for screendump"),
        _ => {
            assert_eq!(
                (&request["execute"], &request["arguments"]["format"]),
                (&json!("screendump"), &json!("ppm"))
            );
            let file = request["arguments"]["filename"].as_str().unwrap();
            fs::write(file, b"P6\n2 1\n255\nabcdef").unwrap();
            Reply::Ok(json!({}))
        }
    });
    let to = host.path().join("screen.png");
    let output = host.run(&["screenshot", "vm1", &to.display().to_string(), "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["width"], &told["height"]), (&json!(2), &json!(1)), "{output:?}");
    assert!(fs::read(&to).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn down_tells_what_is_done_meanwhile() {
    let entries = entries().map(|entry| format!("{entry}\n")).concat();
    let host = ours(move |what, _| match what {
        "wait" => {
            // Until the other connection has had its stream.
            std::thread::sleep(std::time::Duration::from_secs(2));
            Reply::Ok(finale(&stopped("acpi"), 0, &[]))
        }
        "events" => Reply::Stream(entries.clone()),
        _ => Reply::Ok(json!({})),
    });
    let told = host.transcript(&["down", "vm1"]);
    assert!(told.contains("gpuvm: starting QEMU, paused\n"), "{told}");
    assert!(told.contains("gpuvm: the clock of the guest is late\n"), "{told}");
    assert!(told.contains("vm1 is down: the guest "), "{told}");
}
