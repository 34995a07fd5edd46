//! Tier 2: the real QEMU of this machine, without VFIO.
//!
//! Command lines are tried as they are but for one closed table of stand-ins, [`stand_in`]; and a VM without devices is run
//! from its start to its end.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Sources, parse};
use gpuvm_core::qemu::cmdline::Start;
use gpuvm_core::qemu::{Handle, Handles, argv};
use gpuvm_host::facts;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};
use rstest::rstest;
use serde_json::{Value, json};

fn qemu() -> PathBuf {
    std::env::var_os("GPUVM_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into()).into()
}

/// Replaces what this machine can't have, and nothing else:
/// vfio-pci by pci-testdev on the same bus, address and multifunction; hugetlb off; host-nodes and their policy dropped; kvm by tcg. JSON is parsed and written again for that.
fn stand_in(word: &str) -> String {
    if let Ok(Value::Object(mut object)) = serde_json::from_str(word) {
        if object.get("driver") == Some(&json!("vfio-pci")) {
            object.insert("driver".to_owned(), json!("pci-testdev"));
            object.remove("host");
        }
        for key in ["hugetlb", "hugetlbsize", "host-nodes", "policy"] {
            object.remove(key);
        }
        return Value::Object(object).to_string();
    }
    match word {
        "host,migratable=off" => "max".to_owned(),
        word => word.replace("accel=kvm", "accel=tcg"),
    }
}

/// A QEMU that is ended with the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Self {
        let begun = Instant::now();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    let mut monitor = Self(BufReader::new(stream));
                    assert!(monitor.line().get("QMP").is_some());
                    monitor.ask("qmp_capabilities", &json!({}));
                    return monitor;
                }
                Err(error) => {
                    assert!(begun.elapsed() < Duration::from_secs(30), "{}: {error}", path.display())
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{request}").unwrap();
        loop {
            let line = self.line();
            if line.get("event").is_none() {
                return line["return"].clone();
            }
        }
    }
}

/// A host with a card of two functions, an NVMe whose slot lacks a function 0, UEFI and disks.
fn host(folder: &Path) -> FakeHost {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.device(&FakeDevice { class: 0x04_0300, ..gpu("0000:81:00.1", 7, 1) });
    host.device(&nvme("0000:82:00.3", 8, 1));
    host.file("/usr/bin/qemu-system-x86_64", "");
    // The plan looks at files below the host's root, and QEMU opens them by the same names on this machine.
    for firmware in ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"] {
        host.file(firmware, "x");
    }
    let descriptors = "/usr/share/qemu/firmware";
    for entry in std::fs::read_dir(descriptors).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        host.file(&format!("{descriptors}/{name}"), std::fs::read(entry.path()).unwrap());
    }
    let disk = folder.join("disk, with \"quotes\".img");
    std::fs::write(&disk, [0; 1 << 20]).unwrap();
    host.file(&disk.display().to_string(), "x");
    host
}

#[rstest]
#[case::bios("firmware = \"bios\"", "[memory]\nsize = \"256M\"\nhugepages = \"2M\"")]
#[case::uefi("firmware = \"uefi\"", "[memory]\nsize = \"1G\"\nhugepages = \"1G\"")]
#[case::no_network("firmware = \"bios\"\nnetwork = \"none\"", "[memory]\nsize = \"64M\"")]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_real_qemu_takes_the_command_line(#[case] top: &str, #[case] memory: &str) {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let disk = folder.path().join("disk, with \"quotes\".img").display().to_string().replace('"', "\\\"");
    let text = format!(
        "version = 1\nname = \"argv\"\n{top}\n{memory}\n[cpu]\ncount = 3\n[[device]]\nbdf = \"0000:81:00.0\"\n\
         [[device]]\nbdf = \"0000:82:00.3\"\n[[disk]]\npath = \"{disk}\"\n"
    );
    let profile = parse(&Sources::new("argv.toml", text), Path::new("/")).unwrap_or_else(|p| panic!("{p:?}"));
    let facts = facts::read(&host.root(), &profile).unwrap();
    let plan = plan(&profile, &facts).unwrap_or_else(|refusals| panic!("{refusals:?}"));
    let vars = folder.path().join("vars.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
    let monitor = folder.path().join("qmp.sock");
    let handles = Handles {
        monitor: Handle::Path(monitor.clone()),
        serial: Handle::Path(folder.path().join("serial.sock")),
        vars: Handle::Path(vars),
        disks: BTreeMap::new(),
        display: folder.path().join("vnc.sock"),
        start: Start::Paused,
    };
    let words: Vec<String> =
        argv(&plan, &handles).iter().map(|word| stand_in(word.to_str().unwrap())).collect();
    let stderr = std::fs::File::create(folder.path().join("stderr")).unwrap();
    let child = Command::new(qemu()).args(&words).stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
    let _qemu = Qemu(child);
    let mut monitor = Monitor::connect(&monitor);
    assert_eq!(monitor.ask("query-status", &json!({}))["status"], "prelaunch");
    let said = std::fs::read_to_string(folder.path().join("stderr")).unwrap();
    assert_eq!(said, "", "QEMU has remarks on the command line");
    let known = monitor.ask("device-list-properties", &json!({"typename": "vfio-pci"}));
    let known: Vec<&str> = known.as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    for word in
        argv(&plan, &handles).iter().filter_map(|word| serde_json::from_str::<Value>(word.to_str()?).ok())
    {
        if word["driver"] == "vfio-pci" {
            for key in word
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| !["driver", "id", "bus"].contains(&key.as_str()))
            {
                assert!(known.contains(&key.as_str()), "vfio-pci of this QEMU has no property {key}");
            }
        }
    }
    // Functions of a slot are together, and the slot without a function 0 was given one.
    for (id, devfn) in [("vfio0.0", 0), ("vfio0.1", 1), ("vfio1.0", 0)] {
        let path = json!({"path": format!("/machine/peripheral/{id}"), "property": "addr"});
        assert_eq!(monitor.ask("qom-get", &path), devfn, "{id}");
    }
    monitor.ask("quit", &json!({}));
}

/// Runs a VM without devices until something is to be seen, then asks for its end; returns what gpuvm told.
fn run_until(args: &[&str], prefix: &Path, seen: impl Fn(&str) -> bool) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let stderr = prefix.join("told");
    let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(["up", "profiles/dev.toml", "--shutdown-timeout", "1"])
        .args(args)
        .arg("--prefix")
        .arg(prefix)
        .current_dir(repository)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let told = || std::fs::read_to_string(&stderr).unwrap();
    let begun = Instant::now();
    while !seen(&told()) {
        let runs = gpuvm.try_wait().unwrap().is_none();
        assert!(begun.elapsed() < Duration::from_secs(90) && runs, "{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pidfd = gpuvm_sys::process::pidfd_open(i32::try_from(gpuvm.id()).unwrap()).unwrap();
    let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
    gpuvm_sys::process::pidfd_send_signal(pidfd, gpuvm_sys::process::Signal::SIGTERM).unwrap();
    let status = gpuvm.wait().unwrap();
    assert!(status.success(), "{status}: {}", told());
    told()
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_vm_without_devices_comes_up_and_ends_when_told() {
    let prefix = tempfile::tempdir().unwrap();
    let told = run_until(&[], prefix.path(), |told| told.contains("the guest runs"));
    // SeaBIOS without anything to boot doesn't know the power button: it took the monitor's quit.
    assert!(told.contains("telling QEMU to quit") && told.contains("the host is as it was"), "{told}");
    assert!(!prefix.path().join("run/vm/dev").exists());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_uefi_comes_up_from_its_descriptor_with_variables_of_its_own() {
    let prefix = tempfile::tempdir().unwrap();
    let log = prefix.path().join("log/dev/console.log");
    // With nothing to boot, OVMF tries the network: it is through with its own start then.
    let seen = |_: &str| std::fs::read(&log).is_ok_and(|log| String::from_utf8_lossy(&log).contains("PXE"));
    run_until(&["--set", "firmware=uefi", "--set", "memory.size=256M"], prefix.path(), seen);
    let vars = std::fs::read(prefix.path().join("lib/vm/dev/uefi-vars.fd")).unwrap();
    assert!(vars.windows(8).any(|bytes| bytes == "B\0o\0o\0t\0".as_bytes()), "OVMF has stored no boot entry");
}
