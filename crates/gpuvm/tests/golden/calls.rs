//! Help, and calls that make no sense.

use std::fs;
use std::path::Path;

use crate::shared::golden::compare;
use crate::{gpuvm, transcript};

const VERBS: &[&str] = &[
    "",
    "check",
    "plan",
    "argv",
    "doctor",
    "devices",
    "topology",
    "bind",
    "unbind",
    "schema",
    "up",
    "status",
    "list",
    "down",
    "pause",
    "resume",
    "reboot",
    "recover",
    "logs",
    "events",
    "console",
    "screenshot",
    "qmp",
    "cleanup",
    "lock",
    "init",
    "report",
    "explain",
    "quarantine",
    "soak",
    "soak report",
    "soak compare",
    "completions",
    "man",
];

#[test]
fn help_is_as_it_was() {
    let case = |verb: &str| {
        let args: Vec<&str> = verb.split_whitespace().chain(["--help"]).collect();
        let name = if verb.is_empty() { "gpuvm".to_owned() } else { verb.replace(' ', "-") };
        (name, transcript(&gpuvm(&args), "\0"))
    };
    compare("help", VERBS.iter().copied().map(case));
}

/// The verbs and options that gpuvm shows, from its own help.
fn shown() -> Vec<String> {
    let help = String::from_utf8(gpuvm(&["--help"]).stdout).unwrap();
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let verbs = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    // A line that goes on begins with blanks; `help` is clap's own.
    let verbs = verbs.filter_map(|line| line.split(' ').next()).filter(|verb| !["", "help"].contains(verb));
    verbs.map(str::to_owned).collect()
}

#[rstest::rstest]
#[case::bash("bash", "complete -F")]
#[case::zsh("zsh", "#compdef gpuvm")]
#[case::fish("fish", "complete -c gpuvm")]
#[case::elvish("elvish", "edit:completion")]
fn completions_know_each_verb_and_nothing_hidden(#[case] shell: &str, #[case] sign: &str) {
    let output = gpuvm(&["completions", shell]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(script.contains(sign) && script.contains("shutdown-timeout"), "{script}");
    assert!(!script.contains("word-fd"), "a hidden option is offered");
    let verbs = shown();
    assert!(verbs.len() > 25, "{verbs:?}");
    let missing: Vec<_> = verbs.iter().filter(|verb| !script.contains(verb.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    if shell == "bash" {
        let mut bash = std::process::Command::new("bash");
        let parsed = bash.args(["-n", "-c", &script]).output().unwrap();
        assert!(parsed.status.success() && parsed.stderr.is_empty(), "{parsed:?}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_verb() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("a/man1");
    let output = gpuvm(&["man", pages.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let files: Vec<_> = told["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    for verb in
        shown().iter().map(|verb| format!("-{verb}")).chain([String::new(), "-soak-compare".to_owned()])
    {
        let file = format!("gpuvm{verb}.1");
        assert!(files.contains(&file.as_str()), "no {file} among {files:?}");
        let page = fs::read_to_string(pages.join(file)).unwrap();
        assert!(page.contains(&format!(".TH gpuvm{verb} 1")) && page.contains(".SH SYNOPSIS"), "{page}");
        assert!(!page.contains("word\\-fd"), "a hidden option is shown:\n{page}");
    }
    assert_eq!(fs::read_dir(&pages).unwrap().count(), files.len());
    // Without a folder, the first of them.
    let printed = gpuvm(&["man"]);
    assert_eq!(printed.stdout, fs::read(pages.join("gpuvm.1")).unwrap());
}

#[test]
fn the_schema_is_as_it_was() {
    compare("schema", [("profile".to_owned(), transcript(&gpuvm(&["schema"]), "\0"))]);
}

/// Wrong calls that need no file of their own.
const PLAIN: &[(&str, i32, &[&str])] = &[
    ("no-verb", 64, &[]),
    ("unknown-verb", 64, &["upp"]),
    ("no-profile", 64, &["plan"]),
    ("no-message", 64, &["explain"]),
    ("cleanup-of-no-name", 64, &["cleanup", "../x"]),
    ("bind-nothing", 64, &["bind"]),
    ("bind-a-word", 64, &["bind", "nvidia"]),
    ("devices-all-of-one", 64, &["devices", "--all", "81:00.0"]),
    ("devices-history-of-all", 64, &["devices", "--history"]),
    ("quarantine-clear-nothing", 64, &["quarantine", "clear"]),
    ("pause-nothing", 64, &["pause"]),
    ("down-force-in-time", 64, &["down", "vm1", "--force", "--timeout", "5"]),
    ("logs-of-a-word", 64, &["logs", "vm1", "--which", "kernel"]),
    ("qmp-with-a-list", 64, &["qmp", "vm1", "query-status", "[1]"]),
    ("qmp-with-half-an-object", 64, &["qmp", "vm1", "query-status", "{"]),
    ("soak-never-ready", 64, &["soak", DEV, "--cycles", "3"]),
    ("soak-never-over", 64, &["soak", DEV, "--after", "1s"]),
    ("soak-of-an-empty-expression", 64, &["soak", DEV, "--cycles", "3", "--expect", ""]),
    ("soak-of-no-file", 78, &["soak", "/nonexistent.toml"]),
    ("soak-of-a-wrong-shutdown-timeout", 64, &["soak", DEV, "--shutdown-timeout", "1500ms"]),
    ("soak-of-a-wrong-expression", 64, &["soak", DEV, "--cycles", "3", "--expect", "up("]),
    ("soak-of-a-wrong-mix", 64, &["soak", DEV, "--cycles", "3", "--after", "1s", "--mix", "clean:8,crash:1"]),
    ("soak-of-no-cycles", 64, &["soak", DEV, "--cycles", "0", "--after", "1s"]),
    ("soak-of-no-time", 64, &["soak", DEV, "--for", "500ms", "--after", "1s"]),
    ("soak-of-a-number-for-a-time", 64, &["soak", DEV, "--for", "8", "--after", "1s"]),
    ("soak-stop-on-a-word", 64, &["soak", DEV, "--cycles", "3", "--job", "--stop-on", "warning"]),
    ("soak-of-a-wrong-profile", 78, &["soak", DEV, "--cycles", "3", "--job", "--set", "memory.sice=1G"]),
];

const DEV: &str = "profiles/dev.toml";

/// Writes files that are none of what they are called as.
fn lay_out(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    write("other.json", b"{\"plan\": {}}");
    write("newer.json", b"{\"gpuvm-facts\": 7, \"gpuvm\": \"9.0.0\", \"facts\": {}}");
    write("latin1.toml", b"name = \"\xe9\"\n");
    std::os::unix::fs::symlink(crate::shared::hosts::NOT_READABLE, folder.join("denied.toml")).unwrap();
    fs::create_dir(folder.join("garbage")).unwrap();
    write("garbage/record.jsonl", b"some notes\nof somebody\n");
}

/// Wrong command lines, and files that are no profiles.
#[test]
fn each_wrong_call_is_refused_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    lay_out(folder.path());
    let (missing, latin1, denied, host) =
        (path("none.toml"), path("latin1.toml"), path("denied.toml"), path(""));
    let (other, newer, garbage) = (path("other.json"), path("newer.json"), path("garbage"));
    let dev = DEV;
    let cases: &[(&str, i32, &[&str])] = &[
        ("unknown-option", 64, &["plan", "--strict", dev]),
        ("two-profiles", 64, &["check", dev, dev]),
        ("set-without-value", 64, &["plan", "x.toml", "--set", "name"]),
        ("set-without-key", 64, &["plan", "x.toml", "--set", "=1"]),
        ("set-unknown-key", 78, &["check", dev, "--set", "memory.sice=1G"]),
        ("set-wrong-value", 78, &["check", dev, "--set", "cpu.count=many"]),
        ("set-a-table-to-a-word", 78, &["check", dev, "--set", "memory=1G"]),
        ("profile-missing", 78, &["check", &missing]),
        ("profile-is-a-folder", 78, &["check", "profiles"]),
        ("profile-not-utf8", 78, &["check", &latin1]),
        ("profile-unreadable", 77, &["check", &denied]),
        ("shutdown-timeout-of-a-word", 64, &["up", dev, "--shutdown-timeout", "soon"]),
        ("bind-on-a-recorded-host", 64, &["bind", "--host-root", &host, "81:00.0"]),
        ("unbind-on-a-recorded-host", 64, &["unbind", "--host-root", &host, "81:00.0"]),
        ("doctor-of-a-profile-and-a-device", 64, &["doctor", dev, "0000:81:00.0"]),
        ("doctor-of-a-wrong-profile", 78, &["doctor", dev, "--set", "memory.sice=1G"]),
        ("devices-history-of-a-profile", 64, &["devices", "--history", dev]),
        ("devices-history-on-facts", 64, &["devices", "--history", "--facts", &other, "81:00.0"]),
        ("quarantine-on-a-recorded-host", 64, &["quarantine", "--host-root", &host]),
        (
            "quarantine-clear-on-a-recorded-host",
            64,
            &["quarantine", "--host-root", &host, "clear", "81:00.0"],
        ),
        ("soak-on-a-recorded-host", 64, &["soak", "--host-root", &host, dev, "--cycles", "3", "--job"]),
        ("soak-resume-nothing", 64, &["soak", dev, "--prefix", &host, "--resume"]),
        (
            "soak-resume-a-folder-without-one",
            64,
            &["soak", dev, "--prefix", &host, "--resume", "--out", &missing],
        ),
        (
            "soak-resume-what-is-no-record",
            64,
            &["soak", dev, "--prefix", &host, "--resume", "--out", &garbage],
        ),
        ("up-on-a-recorded-host", 64, &["up", "--host-root", &host, dev]),
        ("list-on-a-recorded-host", 64, &["list", "--host-root", &host]),
        ("cleanup-on-facts", 64, &["cleanup", "--facts", &other]),
        ("plan-on-a-host-and-on-facts", 64, &["plan", "--host-root", &host, "--facts", &other, dev]),
        ("plan-on-facts-missing", 64, &["plan", "--facts", &missing, dev]),
        ("plan-on-facts-unreadable", 77, &["plan", "--facts", &denied, dev]),
        ("plan-on-facts-that-are-none", 64, &["plan", "--facts", dev, dev]),
        ("plan-on-facts-of-another-kind", 64, &["plan", "--facts", &other, dev]),
        ("plan-on-facts-of-a-newer-gpuvm", 64, &["plan", "--facts", &newer, dev]),
    ];
    let case = |(name, code, args): &(&str, i32, &[&str])| {
        let output = gpuvm(args);
        assert_eq!(output.status.code(), Some(*code), "{name}: {output:?}");
        ((*name).to_owned(), transcript(&output, &folder.path().display().to_string()))
    };
    compare("calls", cases.iter().chain(PLAIN).map(case));
}

/// The records of binds can't be read: what became of a VM's remains is told all the same.
#[test]
fn cleanup_tells_of_vms_although_what_was_bound_is_unreadable() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib/vm/vm1/overlays/disk0.qcow2", "half");
    write("run/bound/0000:81:00.0/set.json", "{");
    let output = gpuvm(&["cleanup", "--prefix", &folder.path().display().to_string()]);
    let told = transcript(&output, &folder.path().display().to_string());
    assert!(told.starts_with("exit 74\n"), "{told}");
    assert!(told.contains("vm1 is given back\n  removed overlay") && told.contains("disk0.qcow2"), "{told}");
    assert!(
        told.contains("0000:81:00.0 is NOT given back")
            && told.contains("set.json holds `{`")
            && told.contains("rm -r "),
        "{told}"
    );
    // Nor does it keep anybody from looking at the host.
    let prefix = folder.path().display().to_string();
    let doctor = transcript(&gpuvm(&["doctor", "--prefix", &prefix]), &prefix);
    assert!(doctor.contains("HOST/run/bound/0000:81:00.0/set.json holds `{`"), "{doctor}");
}
