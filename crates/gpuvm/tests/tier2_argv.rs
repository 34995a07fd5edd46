//! Tier 2: the real QEMU of this machine takes every command line that has a golden file.
//!
//! Command lines are tried as they are but for one closed table of stand-ins, [`StandIns`]: what this machine can't have.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

#[allow(dead_code, reason = "the golden files' tests use the rest of it")]
mod shared;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuvm_core::plan::{Plan, SlotUse, plan};
use gpuvm_core::profile::{Sources, parse};
use gpuvm_core::qemu::cmdline::Start;
use gpuvm_core::qemu::{Handle, Handles, argv};
use gpuvm_core::select::{Hold, resolve};
use gpuvm_host::facts;
use gpuvm_host::root::HostRoot;
use rstest::rstest;
use serde_json::{Map, Value, json};
use shared::golden::repository;
use shared::{Case, features, hosts, matrix};

/// How much memory each node of a guest gets: QEMU touches all of it, and hosts may have more than this machine.
const NODE_BYTES: u64 = 32 << 20;

fn qemu() -> PathBuf {
    std::env::var_os("GPUVM_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into()).into()
}

/// The table of stand-ins. What is named here is replaced, and nothing else; all other words go to QEMU byte for byte.
struct StandIns<'a> {
    plan: &'a Plan,
    /// The folder that the host lies in.
    root: &'a Path,
}

impl StandIns<'_> {
    /// Replaces what this machine can't have in the word that comes after a switch.
    fn of(&self, switch: &str, word: &str) -> String {
        if let Ok(Value::Object(mut object)) = serde_json::from_str(word) {
            let before = object.clone();
            self.in_object(&mut object);
            return if object == before { word.to_owned() } else { Value::Object(object).to_string() };
        }
        match switch {
            // This machine may have no KVM, and TCG no `host`. Its `max` may be an AMD CPU, which has threads by topoext alone, and
            // that TCG doesn't have.
            "-machine" => word.replace("accel=kvm", "accel=tcg"),
            "-cpu" => word
                .replace("host,migratable=off", "max,vendor=GenuineIntel")
                .split(',')
                // KVM alone plays Hyper-V, or an AMD CPU's threads.
                .filter(|option| !option.starts_with("hv-") && *option != "topoext=on")
                .collect::<Vec<_>>()
                .join(","),
            "-m" => format!("size={}M", (NODE_BYTES >> 20) * self.plan.memory.len() as u64),
            "-kernel" | "-initrd" => self.on_host(word),
            // Ports of this machine may be taken: these are free ones.
            "-vnc" if !word.starts_with("vnc=unix:") => {
                let host = word.strip_prefix("vnc=").unwrap().rsplit_once(':').unwrap().0;
                format!("vnc={host}:{}", free_vnc_display(host))
            }
            "-netdev" => word.split(',').map(any_port).collect::<Vec<_>>().join(","),
            _ => word.to_owned(),
        }
    }

    fn in_object(&self, object: &mut Map<String, Value>) {
        // No VFIO here: another device on the same bus, address and multifunction. It isn't one to boot from.
        if object.get("driver") == Some(&json!("vfio-pci")) {
            object.insert("driver".to_owned(), json!("pci-testdev"));
            object.remove("host");
            object.remove("bootindex");
        }
        if object.contains_key("prealloc") {
            // No hugepages, and no other nodes.
            for key in ["hugetlb", "hugetlbsize", "host-nodes", "policy"] {
                object.remove(key);
            }
            object.insert("size".to_owned(), json!(NODE_BYTES));
        }
        for key in ["filename", "romfile"] {
            if let Some(Value::String(path)) = object.get(key).filter(|path| **path != "") {
                let path = self.on_host(path);
                object.insert(key.to_owned(), json!(path));
            }
        }
        for key in ["file", "backing"] {
            if let Some(Value::Object(below)) = object.get_mut(key) {
                self.in_object(below);
            }
        }
    }

    /// Finds a file that the profile names below the host's folder. Firmware is this machine's own, under the same name.
    fn on_host(&self, path: &str) -> String {
        let below = HostRoot::new(self.root).path(path);
        let firmware = path.starts_with("/usr/share/");
        if below.exists() && !firmware { below.display().to_string() } else { path.to_owned() }
    }
}

/// Finds a VNC display whose port nobody has; tests that run at once begin to look at different ones.
fn free_vnc_display(host: &str) -> u16 {
    let begin = 100 + u16::try_from(std::process::id() % 20_000).unwrap();
    let free = |display: &u16| TcpListener::bind(format!("{host}:{}", 5900 + display)).is_ok();
    (begin..).find(free).unwrap()
}

/// Lets the kernel choose the host's port in `hostfwd=tcp:127.0.0.1:2222-:22`.
fn any_port(option: &str) -> String {
    match option.strip_prefix("hostfwd=").and_then(|forward| forward.rsplit_once("-:")) {
        Some((host, guest)) => format!("hostfwd={}:0-:{guest}", host.rsplit_once(':').unwrap().0),
        None => option.to_owned(),
    }
}

#[rstest]
#[case("-netdev", "user,id=net0", "user,id=net0")]
#[case("-netdev", "user,hostfwd=tcp:127.0.0.1:2222-:22", "user,hostfwd=tcp:127.0.0.1:0-:22")]
#[case("-vnc", "vnc=unix:/a", "vnc=unix:/a")]
#[case("-machine", "q35,accel=kvm,hpet=off", "q35,accel=tcg,hpet=off")]
#[case(
    "-device",
    r#"{"addr":"0x0.0x1","driver":"vfio-pci","host":"x","rombar":0}"#,
    r#"{"addr":"0x0.0x1","driver":"pci-testdev","rombar":0}"#
)]
#[case("-device", r#"{ "driver": "edu" }"#, r#"{ "driver": "edu" }"#)]
#[case("-append", "accel=kvm", "accel=kvm")]
fn stand_ins_replace_what_the_table_names(#[case] switch: &str, #[case] word: &str, #[case] expected: &str) {
    let case = &features::GROUPS[0]()[0];
    let (plan, root) = (planned(case, Path::new("/nowhere")), case.host.root());
    assert_eq!(StandIns { plan: &plan, root: &root }.of(switch, word), expected);
}

/// A QEMU that is ended with the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A QEMU's monitor, and where it says what is wrong.
struct Monitor {
    stream: BufReader<UnixStream>,
    stderr: PathBuf,
}

impl Monitor {
    /// Connects to a QEMU that was just started.
    fn connect(path: &Path, qemu: &mut Qemu, stderr: &Path) -> Result<Self, String> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut monitor = Self { stream: BufReader::new(stream), stderr: stderr.to_owned() };
                monitor.line()?;
                monitor.ask("qmp_capabilities", &json!({}))?;
                return Ok(monitor);
            }
            let ended = qemu.0.try_wait().unwrap();
            if ended.is_some() || begun.elapsed() > Duration::from_secs(30) {
                return Err(format!("{ended:?}: {}", fs::read_to_string(stderr).unwrap()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads a line, or returns what QEMU said where none comes.
    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).map_err(|error| error.to_string());
        let said = || fs::read_to_string(&self.stderr).unwrap();
        read.and_then(|_| serde_json::from_str(&line).map_err(|error| error.to_string()))
            .map_err(|error| format!("{error}: {}", said()))
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments});
        // A QEMU that is gone is told by its silence.
        writeln!(self.stream.get_mut(), "{request}").ok();
        loop {
            let line = self.line()?;
            if line.get("event").is_none() {
                return Ok(line["return"].clone());
            }
        }
    }
}

/// Plans a case as `gpuvm plan` does; the VM's own files are in a folder of the test.
fn planned(case: &Case, folder: &Path) -> Plan {
    let path = repository().join(&case.profile);
    let sources = Sources::new(&*case.profile, fs::read_to_string(&path).unwrap());
    let sources = case.set.iter().fold(sources, |sources, set| sources.with_override(set));
    let profile = parse(&sources, path.parent().unwrap()).unwrap_or_else(|p| panic!("{}: {p:?}", case.name));
    let root = HostRoot::new(case.host.root());
    let selectors: Vec<_> = profile.choices.iter().map(|choice| &choice.select).collect();
    let index = facts::index(&root, &selectors).unwrap();
    let profile = resolve(profile, None, Hold::Always, &index).unwrap();
    let mut facts = facts::read(&root, &profile).unwrap();
    facts.state_dir = folder.to_owned();
    plan(&profile, &facts).unwrap_or_else(|refusals| panic!("{}: {refusals:?}", case.name))
}

/// Starts QEMU paused with a case's command line, and asks it whether all is where it was planned.
fn try_out(case: &Case) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let (path, root) = (|name: &str| folder.path().join(name), case.host.root());
    let plan = planned(case, folder.path());
    for overlay in plan.disks.iter().filter_map(|disk| disk.overlay.as_ref()) {
        fs::create_dir_all(overlay.parent().unwrap()).unwrap();
        fs::write(overlay, hosts::qcow2()).unwrap();
    }
    // As large as the code's other half, whichever firmware it is.
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", path("vars")).unwrap();
    let handles = Handles {
        monitor: Handle::Path(path("qmp")),
        serial: Handle::Path(path("serial")),
        vars: Handle::Path(path("vars")),
        disks: BTreeMap::new(),
        display: path("vnc"),
        start: Start::Paused,
    };
    let words: Vec<String> =
        argv(&plan, &handles).into_iter().map(|word| word.into_string().unwrap()).collect();
    let stand_ins = StandIns { plan: &plan, root: &root };
    let before = std::iter::once("").chain(words.iter().map(String::as_str));
    let tried: Vec<String> = before.zip(&words).map(|(switch, word)| stand_ins.of(switch, word)).collect();
    let stderr = File::create(path("stderr")).unwrap();
    let mut qemu =
        Qemu(Command::new(qemu()).args(&tried).stdin(Stdio::null()).stderr(stderr).spawn().unwrap());
    let mut monitor = Monitor::connect(&path("qmp"), &mut qemu, &path("stderr"))?;
    let status = monitor.ask("query-status", &json!({}))?["status"].clone();
    let said = fs::read_to_string(path("stderr")).unwrap();
    if status != "prelaunch" || !said.is_empty() {
        return Err(format!("{status}, {said:?}"));
    }
    all_is_in_its_place(&mut monitor, &plan)?;
    vfio_pci_knows(&mut monitor, &words)?;
    cpu_knows(&mut monitor, &words)
}

/// Asks for the address of each root port and of each passed function.
fn all_is_in_its_place(monitor: &mut Monitor, plan: &Plan) -> Result<(), String> {
    let mut expected = Vec::new();
    for port in &plan.pcie.ports {
        expected.push((format!("rp{}", port.index), port.slot << 3 | port.function));
        if let SlotUse::Passthrough { functions } = &port.holds {
            let id = |(function, _): &(u8, _)| (format!("vfio{}.{function}", port.index), *function);
            expected.extend(functions.iter().map(id));
        }
    }
    for (id, devfn) in expected {
        let path = json!({"path": format!("/machine/peripheral/{id}"), "property": "addr"});
        let found = monitor.ask("qom-get", &path)?;
        if found != devfn {
            return Err(format!("{id} is at {found}, planned was {devfn}"));
        }
    }
    Ok(())
}

/// Checks that this QEMU's vfio-pci has each property that it is given: its stand-in can't tell.
fn vfio_pci_knows(monitor: &mut Monitor, words: &[String]) -> Result<(), String> {
    let known = monitor.ask("device-list-properties", &json!({"typename": "vfio-pci"}))?;
    let known: Vec<&str> = known.as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    let devices = words.iter().filter_map(|word| serde_json::from_str::<Map<String, Value>>(word).ok());
    for device in devices.filter(|device| device.get("driver") == Some(&json!("vfio-pci"))) {
        // These three are of every device.
        let mut own = device.keys().filter(|key| !["driver", "id", "bus"].contains(&key.as_str()));
        if let Some(key) = own.find(|key| !known.contains(&key.as_str())) {
            return Err(format!("vfio-pci of this QEMU has no property {key}"));
        }
    }
    Ok(())
}

/// Checks that this QEMU's CPUs have each property that they are given, those that only KVM honours too.
fn cpu_knows(monitor: &mut Monitor, words: &[String]) -> Result<(), String> {
    let known = monitor.ask("device-list-properties", &json!({"typename": "max-x86_64-cpu"}))?;
    let known: Vec<&str> = known.as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    let model = words.iter().skip_while(|word| *word != "-cpu").nth(1).unwrap();
    let mut keys = model.split(',').skip(1).filter_map(|option| Some(option.split_once('=')?.0));
    match keys.find(|key| !known.contains(key)) {
        Some(key) => Err(format!("CPUs of this QEMU have no property {key}")),
        None => Ok(()),
    }
}

fn try_all(cases: &[Case]) {
    let wrong: Vec<String> =
        cases.iter().filter_map(|case| Some(format!("{}: {}", case.name, try_out(case).err()?))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[rstest]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_real_qemu_takes_the_command_line_of_each_feature(#[values(0, 1, 2, 3, 4, 5, 6, 7)] group: usize) {
    const { assert!(features::GROUPS.len() == 8, "the groups of features are listed above") };
    try_all(&features::GROUPS[group]());
}

#[rstest]
#[case::dev("dev")]
#[case::first_install("first-install")]
#[case::headless_compute("headless-compute")]
#[case::lab_compute("lab-compute")]
#[case::two_gpus("two-gpus")]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_real_qemu_takes_the_command_line_of_each_shipped_profile(#[case] profile: &str) {
    let planned = |case: &Case| {
        let golden = repository().join(format!("tests/golden/plan-matrix/{}.txt", case.name));
        case.profile == format!("profiles/{profile}.toml")
            && fs::read_to_string(golden).unwrap().starts_with("exit 0\n")
    };
    let cases: Vec<Case> = matrix::all().into_iter().filter(planned).collect();
    assert!(!cases.is_empty(), "{profile} is planned nowhere");
    try_all(&cases);
}

#[test]
fn each_shipped_profile_has_a_test_of_its_command_line() {
    let tried = ["dev", "first-install", "headless-compute", "lab-compute", "two-gpus"];
    assert_eq!(matrix::profiles(), tried);
}
