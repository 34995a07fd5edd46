//! Profiles that `init` writes, and its questions.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use gpuvm_core::init::{Choices, NoDraft, candidates, draft};
use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Sources, parse};
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_host::root::HostRoot;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};
use gpuvm_testkit::{hosts, recorded};
use rstest::rstest;

use crate::shared::Host;
use crate::shared::golden::{compare, repository};
use crate::shared::hosts::{
    lab, with_driver, with_files, with_ovmf, with_slot, with_small_node, with_smt, without_pools,
};
use crate::{gpuvm, transcript};

/// Runs gpuvm in a folder, with words for its standard input.
fn gpuvm_in(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(args)
        .current_dir(folder)
        .env("PATH", "/usr/bin:/bin")
        .env_remove("GPUVM_PREFIX")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A verb that has no questions may end before.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn init(root: &str, args: &[&str]) -> Output {
    gpuvm(&[&["init", "--host-root", root], args].concat())
}

/// Checks that a profile that was written is one that this host takes.
fn is_taken(root: &str, profile: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.toml").display().to_string();
    fs::write(&path, profile).unwrap();
    for verb in ["check", "plan"] {
        let output = gpuvm(&[verb, "--host-root", root, &path]);
        assert!(output.status.success(), "{verb}: {output:?}\n{}", String::from_utf8_lossy(profile));
    }
}

fn root(host: &FakeHost) -> String {
    host.path("/").display().to_string().trim_end_matches('/').to_owned()
}

/// Hosts on which a device is asked for, and how that ends.
fn cases() -> Vec<(&'static str, FakeHost, i32, &'static [&'static str])> {
    let reserved = with_ovmf(lab());
    for name in ["nr_hugepages", "free_hugepages"] {
        reserved
            .file(&format!("/sys/devices/system/node/node1/hugepages/hugepages-1048576kB/{name}"), "24\n");
    }
    let unready = lab();
    fs::remove_dir_all(unready.path("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    unready.remove("/dev/kvm");
    let nowhere = lab();
    nowhere.file("/sys/bus/pci/devices/0000:82:00.0/numa_node", "-1\n");
    let without_cpus = lab();
    without_cpus.file("/sys/devices/system/cpu/online", "0-3\n");
    let broken = with_ovmf(lab());
    broken.file("/usr/share/OVMF/OVMF_VARS_4M.fd", "");
    let accelerator = FakeDevice { class: 0x12_0000, driver: Some("amdgpu"), ..gpu("0000:84:00.0", 19, 1) };
    vec![
        ("gpu", with_ovmf(lab()), 0, &["0000:81:00.0"]),
        ("gpu-by-its-audio-function", lab(), 0, &["81:00.1"]),
        ("gpu-as-json", lab(), 0, &["--json", "81:00.0", "--name", "my-vm"]),
        ("gpu-with-threads", with_smt(lab()), 0, &["81:00.0"]),
        ("gpu-on-a-small-node", with_small_node(lab()), 69, &["81:00.0"]),
        ("gpu-beside-an-accelerator", with_slot(lab(), &[&accelerator]), 0, &["84:00.0"]),
        ("pages-of-1g-reserved", reserved, 0, &["81:00.0"]),
        ("no-pools", without_pools(lab()), 0, &["81:00.0"]),
        ("empty-firmware", broken, 0, &["81:00.0"]),
        ("device-without-a-node", nowhere, 0, &["82:00.0"]),
        ("node-without-cpus", without_cpus, 0, &["82:00.0"]),
        ("member-of-a-group", lab(), 0, &["04:02.0"]),
        ("host-not-ready", unready, 0, &["81:00.0"]),
        ("on-a-variant-driver", with_driver(lab(), "0000:81:00.0", "nvgrace-gpu-vfio-pci"), 0, &["81:00.0"]),
        ("several-gpus", lab(), 64, &[]),
        ("no-gpu", FakeHost::new(), 69, &[]),
        ("mounted-nvme", lab(), 69, &["02:00.0"]),
        ("nic-with-the-route", lab(), 69, &["01:00.0"]),
        ("boot-display", lab(), 69, &["00:01.0"]),
        ("bridge", lab(), 78, &["03:00.0"]),
        ("no-such-device", lab(), 78, &["99:00.0"]),
        ("no-address", lab(), 64, &["the-gpu"]),
        ("force-without-a-file", lab(), 64, &["81:00.0", "--force"]),
        (
            "odd-names",
            with_files(&[("/sys/bus/pci/devices/0000:82:00.0/driver_override", b"pci-stub\n")]),
            69,
            &["82:00.0"],
        ),
    ]
}

#[test]
fn first_profiles_are_as_they_were() {
    let recorded = recorded::names().unwrap().into_iter().flat_map(|name| {
        let host = recorded::lay_out(&name).unwrap();
        let root = host.path().display().to_string();
        let cards = ["41:00.0", "81:00.0"]
            .into_iter()
            .filter(|card| host.path().join("sys/bus/pci/devices").join(format!("0000:{card}")).exists());
        let written = cards.map(|card| {
            let output = init(&root, &[card]);
            is_taken(&root, &output.stdout);
            (format!("{name}-{}", card.replace([':', '.'], "-")), transcript(&output, &root))
        });
        written.collect::<Vec<_>>()
    });
    let fakes = cases().into_iter().map(|(name, host, code, args)| {
        let root = root(&host);
        let output = init(&root, args);
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        if code == 0 && !args.contains(&"--json") && name != "host-not-ready" {
            is_taken(&root, &output.stdout);
        }
        (name.to_owned(), transcript(&output, &root))
    });
    compare("init", fakes.chain(recorded).chain(sessions()));
}

/// Questions and answers, one line each; the session's own words are on standard error.
fn sessions() -> Vec<(String, String)> {
    let cases = [
        ("session-of-defaults", "\n\n\n\n\n"),
        ("session-that-ends-at-once", ""),
        ("session-of-answers", "41:00.0\nmy-vm\n2\n8G\nbios\n"),
        ("session-of-slips", "x\n02:00.0\n81:00.1\na b\nok\nmany\n400\n99\n4\n8GB\n1T\n1001M\nefi\nuefi\n"),
        ("session-that-ends-after-a-slip", "81:00.0\nname\n99"),
    ];
    let host = with_ovmf(lab());
    let root = root(&host);
    let case = |(name, input): (&str, &str)| {
        let output = gpuvm_in(&repository(), &["init", "--host-root", &root, "--interactive"], input);
        assert!(output.status.success(), "{name}: {output:?}");
        is_taken(&root, &output.stdout);
        (name.to_owned(), transcript(&output, &root))
    };
    cases.into_iter().map(case).collect()
}

#[rstest]
fn a_file_is_never_written_over_unless_that_is_asked_for() {
    let (host, folder) = (lab(), tempfile::tempdir().unwrap());
    let (root, path) = (root(&host), folder.path().join("my.toml"));
    let run = |args: &[&str]| {
        gpuvm_in(
            folder.path(),
            &[&["init", "--host-root", &root, "81:00.0", "-o", "my.toml"], args].concat(),
            "",
        )
    };
    let first = run(&[]);
    assert!(first.status.success() && first.stdout.is_empty(), "{first:?}");
    let written = fs::read(&path).unwrap();
    is_taken(&root, &written);
    fs::write(&path, "mine").unwrap();
    let second = run(&[]);
    assert_eq!(second.status.code(), Some(64), "{second:?}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert!(run(&["--force"]).status.success());
    assert_eq!(fs::read(&path).unwrap(), written);
}

/// Whatever can be passed, its profile is taken, and what can't be has reasons: of each host, every function.
#[test]
fn each_device_of_each_host_gets_a_profile_that_is_planned_or_reasons() {
    let (mut planned, mut refused, mut gpus) = (0, 0, 0);
    let recorded = recorded::names().unwrap().into_iter();
    let recorded = recorded.map(|name| (name.clone(), Host::Recorded(recorded::lay_out(&name).unwrap())));
    let made_up = hosts::ALL.iter().map(|(name, make)| ((*name).to_owned(), Host::Fake(make())));
    for (name, host) in recorded.chain(made_up) {
        let root = HostRoot::new(host.root());
        let facts = facts::survey(&root, &Scope::Physical, Depth::Sysfs, None).unwrap();
        for bdf in facts.devices.keys() {
            match draft(&facts, *bdf, &Choices::default()) {
                Ok(draft) => {
                    let profile = parse(&Sources::new("x", &draft.text), Path::new("/")).unwrap();
                    let plan = plan(&profile, &facts::read(&root, &profile).unwrap());
                    assert_eq!(plan.as_ref().err(), None, "{name} {bdf}:\n{}", draft.text);
                    assert!(
                        draft.not_ready.is_empty() && plan.is_ok(),
                        "{name} {bdf}: {:?}",
                        draft.not_ready
                    );
                    planned += 1;
                }
                Err(NoDraft::Refused(reasons)) if !reasons.is_empty() => refused += 1,
                Err(other) => panic!("{name} {bdf}: {other:?}"),
            }
        }
        gpus += candidates(&facts).iter().filter(|card| card.refusals.is_empty()).count();
    }
    assert!(
        planned >= 80 && refused >= 80 && gpus >= 40,
        "{planned} are planned, {refused} refused; {gpus} GPUs"
    );
}
