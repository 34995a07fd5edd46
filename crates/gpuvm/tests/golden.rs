//! Golden files: what gpuvm prints for a plan, a refusal, a wrong profile, and its help.
//!
//! They lie below `tests/golden`, one per case; `GPUVM_BLESS=1 cargo test -p gpuvm --test golden` writes them anew. A file
//! that no case claims fails the run.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

const VERBS: [&str; 6] = ["", "check", "plan", "argv", "up", "cleanup"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn gpuvm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(args)
        .current_dir(repository())
        .env("COLUMNS", "100")
        .env("PATH", "/usr/bin:/bin")
        .env_remove("GPUVM_PREFIX")
        .output()
        .unwrap()
}

/// Spells what a run printed and how it ended, with the temporary folder named by a word.
fn transcript(output: &Output, temporary: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(temporary, "HOST");
    let mut transcript = format!("exit {}\n", output.status.code().unwrap());
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            transcript.push_str(&format!("--- {name}\n{}", text(bytes)));
        }
    }
    transcript
}

/// Compares with a golden file, or writes it.
fn golden(folder: &str, name: &str, actual: &str) -> Result<(), String> {
    let path = repository().join("tests/golden").join(folder).join(format!("{name}.txt"));
    if std::env::var_os("GPUVM_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{}: expected\n{expected}\n--- but got\n{actual}", path.display()))
}

/// Compares all cases of a folder and reports all that differ, and all files that no case claims.
fn compare(folder: &str, cases: impl IntoIterator<Item = (String, String)>) {
    let mut claimed = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, actual) in cases {
        wrong.extend(golden(folder, &name, &actual).err());
        assert!(claimed.insert(format!("{name}.txt")), "{name}: two cases of one name");
    }
    for entry in fs::read_dir(repository().join("tests/golden").join(folder)).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !claimed.contains(&name) {
            wrong.push(format!("{folder}/{name}: no case claims this golden file"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn help_is_as_it_was() {
    let case = |verb: &str| {
        let args: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let name = if verb.is_empty() { "gpuvm" } else { verb };
        (name.to_owned(), transcript(&gpuvm(&args), "\0"))
    };
    compare("help", VERBS.into_iter().map(case));
}

fn samples(kind: &str) -> Vec<String> {
    let folder = repository().join("tests/sample-profiles").join(kind);
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().strip_suffix(".toml").unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn each_invalid_sample_is_refused_as_it_was() {
    let case = |name: String| {
        let output = gpuvm(&["check", &format!("tests/sample-profiles/invalid/{name}.toml")]);
        assert_eq!(output.status.code(), Some(78), "{name}");
        (name, transcript(&output, "\0"))
    };
    compare("profile-errors", samples("invalid").into_iter().map(case));
}

#[test]
fn each_valid_sample_and_each_shipped_profile_is_valid() {
    let mut profiles: Vec<String> =
        samples("valid").iter().map(|name| format!("tests/sample-profiles/valid/{name}.toml")).collect();
    profiles.extend(["profiles/dev.toml", "profiles/lab-compute.toml"].map(str::to_owned));
    for profile in profiles {
        let output = gpuvm(&["check", &profile]);
        assert!(output.status.success(), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A host laid out as the lab's default one.
fn lab() -> FakeHost {
    let host = FakeHost::new();
    let vga = |bdf, group, node| FakeDevice {
        id: (0x1234, 0x1111),
        class: 0x03_0000,
        driver: Some("bochs-drm"),
        ..gpu(bdf, group, node)
    };
    let audio = |bdf, group, node| FakeDevice {
        id: (0x8086, 0x2668),
        class: 0x04_0300,
        driver: Some("snd_hda_intel"),
        ..gpu(bdf, group, node)
    };
    host.device(&FakeDevice { boot_vga: Some(1), ..vga("0000:00:01.0", 1, -1) });
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000e"), ..gpu("0000:01:00.0", 10, -1) });
    host.device(&nvme("0000:02:00.0", 11, -1));
    let bridge = FakeDevice { class: 0x06_0400, driver: None, ..gpu("0000:03:00.0", 12, -1) };
    host.device(&bridge);
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000"), ..gpu("0000:04:01.0", 12, -1) });
    host.device(&FakeDevice { class: 0x00_ff00, driver: None, ..gpu("0000:04:02.0", 12, -1) });
    host.device(&FakeDevice { boot_vga: Some(0), ..vga("0000:41:00.0", 20, 0) });
    host.device(&audio("0000:41:00.1", 20, 0));
    host.device(&FakeDevice { boot_vga: Some(0), ..vga("0000:81:00.0", 16, 1) });
    host.device(&audio("0000:81:00.1", 16, 1));
    host.device(&FakeDevice {
        id: (0x1234, 0x11e8),
        class: 0x00_ff00,
        driver: None,
        ..gpu("0000:82:00.0", 17, 1)
    });
    host.device(&nvme("0000:83:00.0", 18, 1));
    for file in ["/usr/bin/qemu-system-x86_64", "/lab/guest/kernel", "/lab/guest/initrd"] {
        host.file(file, "x");
    }
    let data = "/sys/bus/pci/devices/0000:02:00.0/nvme/nvme0/nvme0n1";
    host.file(&format!("{data}/size"), "1\n");
    host.link("/sys/class/block/nvme0n1", data);
    host.file("/dev/nvme0n1", "");
    host.file("/proc/self/mountinfo", "36 35 259:1 / /mnt/lab-data rw - ext4 /dev/nvme0n1 rw\n");
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:01:00.0");
    host.file("/proc/net/route", "Iface Destination\neth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n");
    host
}

/// Adds OVMF as Debian lays it out.
fn with_ovmf(host: FakeHost) -> FakeHost {
    let flash =
        |name: &str| serde_json::json!({"filename": format!("/usr/share/OVMF/{name}.fd"), "format": "raw"});
    let descriptor = serde_json::json!({
        "description": "UEFI firmware for x86_64", "interface-types": ["uefi"], "features": ["acpi-s3"], "tags": [],
        "mapping": {"device": "flash", "executable": flash("OVMF_CODE_4M"), "nvram-template": flash("OVMF_VARS_4M")},
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}]
    });
    host.file("/usr/share/qemu/firmware/60-edk2-x86_64.json", descriptor.to_string());
    for name in ["OVMF_CODE_4M", "OVMF_VARS_4M"] {
        host.file(&format!("/usr/share/OVMF/{name}.fd"), "x");
    }
    host
}

/// Runs a verb on a fake host with the lab's profile.
fn on(host: &FakeHost, verb: &str, args: &[&str]) -> String {
    let root = host.path("/").display().to_string();
    let root = root.trim_end_matches('/');
    let output = gpuvm(&[&[verb, "--host-root", root, "profiles/lab-compute.toml"], args].concat());
    transcript(&output, root)
}

const SMT: [(&str, &str); 4] = [("0", "0,4"), ("1", "1,5"), ("2", "2,6"), ("3", "3,7")];

/// The hosts and settings that plans and command lines are compared on.
fn plans() -> Vec<(&'static str, FakeHost, Vec<&'static str>)> {
    let smt = lab();
    smt.node(1, "0-7", 64 << 20);
    for (cpu, siblings) in SMT {
        let other = siblings.split(',').nth(1).unwrap();
        for cpu in [cpu, other] {
            smt.file(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), siblings);
        }
    }
    let bound = lab();
    bound.remove("/sys/bus/pci/devices/0000:82:00.0/driver_override");
    bound.file("/sys/bus/pci/devices/0000:82:00.0/driver_override", "vfio-pci\n");
    bound.link("/sys/bus/pci/devices/0000:82:00.0/driver", "/sys/bus/pci/drivers/vfio-pci");
    let disk = lab();
    disk.file("/srv/a,b \"c\".img", "x");
    vec![
        ("lab-compute", lab(), vec![]),
        ("uefi", with_ovmf(lab()), vec!["--set", "firmware=uefi"]),
        ("smt-siblings", smt, vec!["--set", "cpu.count=4"]),
        ("already-on-vfio", bound, vec![]),
        ("unpinned", lab(), vec!["--set", "cpu.pin=off", "--set", "memory.hugepages=off"]),
        (
            "tcg-disk-and-net",
            disk,
            vec![
                "--set",
                "accel=tcg",
                "--set",
                "network=user",
                "--set",
                "device=[]",
                "--set",
                r#"disk=[{path = "/srv/a,b \"c\".img"}]"#,
            ],
        ),
        ("whole-bridge", lab(), vec!["--set", r#"device=[{bdf="0000:04:01.0"}, {bdf="0000:04:02.0"}]"#]),
    ]
}

#[test]
fn plans_are_as_they_were() {
    compare("plan", plans().iter().map(|(name, host, args)| ((*name).to_owned(), on(host, "plan", args))));
}

#[test]
fn command_lines_are_as_they_were() {
    compare("argv", plans().iter().map(|(name, host, args)| ((*name).to_owned(), on(host, "argv", args))));
}

/// A host that can't run the profile: what is changed on it, and the arguments.
type Unfit = (&'static str, i32, fn(&FakeHost), &'static [&'static str]);

const NOTHING: fn(&FakeHost) = |_| {};

const UNFIT: &[Unfit] = &[
    ("unknown-device", 78, NOTHING, &["--set", r#"device=[{bdf="0000:99:00.0"}]"#]),
    ("bridge", 78, NOTHING, &["--set", r#"device=[{bdf="0000:03:00.0"}]"#]),
    ("foreign-member", 69, NOTHING, &["--set", r#"device=[{bdf="0000:04:01.0"}]"#]),
    ("audio-without-its-gpu", 69, NOTHING, &["--set", r#"device=[{bdf="0000:81:00.1"}]"#]),
    ("mounted", 69, NOTHING, &["--set", r#"device=[{bdf="0000:02:00.0"}]"#]),
    ("route-out", 69, NOTHING, &["--set", r#"device=[{bdf="0000:01:00.0"}]"#]),
    ("boot-display", 69, NOTHING, &["--set", r#"device=[{bdf="0000:00:01.0"}]"#]),
    ("uneven-vcpus", 78, NOTHING, &["--set", r#"device=[{bdf="0000:41:00.0"}, {bdf="0000:81:00.0"}]"#]),
    ("too-many-vcpus", 69, NOTHING, &["--set", "cpu.count=5"]),
    ("too-many-vcpus-unpinned", 69, NOTHING, &["--set", "cpu.count=9", "--set", "cpu.pin=off"]),
    ("node-too-small", 69, NOTHING, &["--set", "memory.size=128G"]),
    (
        "node-too-full",
        69,
        |host| {
            let text = "Node 1 MemTotal: 67108864 kB\nNode 1 MemFree: 1024 kB\nNode 1 FilePages: 2048 kB\nNode 1 Shmem: 1024 kB\n";
            host.file("/sys/devices/system/node/node1/meminfo", text);
        },
        &["--set", "memory.hugepages=off"],
    ),
    ("no-uefi", 69, NOTHING, &["--set", "firmware=uefi"]),
    ("kernel-missing", 78, |host| host.remove("/lab/guest/kernel"), &[]),
    ("initrd-empty", 78, |host| host.file("/lab/guest/initrd", ""), &[]),
    ("disk-is-a-folder", 78, NOTHING, &["--set", r#"disk=[{path="/lab/guest"}]"#]),
    (
        "overridden",
        69,
        |host| {
            host.file("/sys/bus/pci/devices/0000:81:00.1/driver_override", "snd_hda_intel\n");
        },
        &[],
    ),
    (
        "no-iommu",
        69,
        |host| {
            fs::remove_dir(host.path("/sys/class/iommu/dmar0")).unwrap();
            for bdf in ["81:00.0", "81:00.1", "82:00.0", "83:00.0"] {
                host.remove(&format!("/sys/bus/pci/devices/0000:{bdf}/iommu_group"));
            }
        },
        &[],
    ),
    ("no-group", 69, |host| host.remove("/sys/bus/pci/devices/0000:82:00.0/iommu_group"), &[]),
    ("no-vfio", 69, |host| host.remove("/dev/vfio/vfio"), &[]),
    (
        "iommufd-only",
        69,
        |host| {
            host.remove("/dev/vfio/vfio");
            host.file("/dev/iommu", "");
        },
        &[],
    ),
    (
        "no-vfio-driver",
        69,
        |host| fs::remove_dir_all(host.path("/sys/bus/pci/drivers/vfio-pci")).unwrap(),
        &[],
    ),
    ("no-kvm", 69, |host| host.remove("/dev/kvm"), &[]),
    ("no-qemu", 69, |host| host.remove("/usr/bin/qemu-system-x86_64"), &[]),
    (
        "no-pool",
        69,
        |host| {
            let pool = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
            fs::remove_dir_all(host.path(pool)).unwrap();
        },
        &[],
    ),
    ("damaged-sysfs", 69, |host| host.file("/sys/bus/pci/devices/0000:81:00.0/class", "zz\n"), &[]),
];

#[test]
fn each_unfit_host_is_refused_as_it_was() {
    let case = |(name, code, change, args): &Unfit| {
        let host = lab();
        change(&host);
        let transcript = on(&host, "plan", args);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: {transcript}");
        ((*name).to_owned(), transcript)
    };
    compare("refusals", UNFIT.iter().map(case));
}

/// Wrong command lines, and files that are none.
#[test]
fn each_wrong_call_is_refused_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("latin1.toml"), b"name = \"\xe9\"\n").unwrap();
    let cases: [(&str, i32, Vec<String>); 8] = [
        ("no-verb", 64, vec![]),
        ("unknown-verb", 64, vec!["upp".into()]),
        ("no-profile", 64, vec!["plan".into()]),
        ("set-without-value", 64, vec!["plan".into(), "x.toml".into(), "--set".into(), "name".into()]),
        (
            "set-unknown-key",
            78,
            vec!["check".into(), "profiles/dev.toml".into(), "--set".into(), "memory.sice=1G".into()],
        ),
        ("profile-missing", 78, vec!["check".into(), path("none.toml")]),
        ("profile-not-utf8", 78, vec!["check".into(), path("latin1.toml")]),
        (
            "up-on-a-recorded-host",
            64,
            vec!["up".into(), "--host-root".into(), path(""), "profiles/dev.toml".into()],
        ),
    ];
    let case = |(name, code, args): &(&str, i32, Vec<String>)| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = gpuvm(&args);
        assert_eq!(output.status.code(), Some(*code), "{name}: {output:?}");
        ((*name).to_owned(), transcript(&output, &folder.path().display().to_string()))
    };
    compare("calls", cases.iter().map(case));
}

#[test]
fn no_folder_of_golden_files_is_left_over() {
    let known = ["argv", "calls", "help", "plan", "profile-errors", "refusals"];
    for entry in fs::read_dir(repository().join("tests/golden")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name.as_str()), "tests/golden/{name} belongs to no test");
    }
}

/// What `--json` prints is one document, for good and for bad.
#[test]
fn json_is_one_document_with_the_exit_code_in_it() {
    let bad = gpuvm(&["check", "--json", "tests/sample-profiles/invalid/many-at-once.toml"]);
    let document: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(document["error"]["exit_code"], 78);
    assert!(document["error"]["problems"].as_array().unwrap().len() > 5);
    assert_eq!(document["error"]["problems"][0]["line"], 1);
    let good = gpuvm(&["check", "--json", "profiles/dev.toml"]);
    let document: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(document["profile"]["name"], "dev");
}
