//! Locks: what is taken down, and what is told of a host that has changed.

use std::fs;
use std::os::unix::fs::symlink;

use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};
use tempfile::TempDir;

use crate::shared::golden::{compare, repository};
use crate::shared::hosts::lab;
use crate::{gpuvm, transcript};

/// The lab's host, and its profile with a lock beside it.
struct Locked {
    host: FakeHost,
    folder: TempDir,
}

impl Locked {
    fn new() -> Self {
        Self::without_lock().locked()
    }

    fn locked(self) -> Self {
        assert!(self.run(&["lock"]).starts_with("exit 0\n"));
        self
    }

    fn without_lock() -> Self {
        let (host, folder) = (lab(), tempfile::tempdir().unwrap());
        host.device(&FakeDevice {
            id: (0x1234, 0x11e8),
            class: 0x00_ff00,
            driver: None,
            port: Some("0000:84:01.0"),
            ..gpu("0000:85:00.0", 30, 1)
        });
        for bdf in ["0000:81:00.0", "0000:85:00.0"] {
            for (name, text) in
                [("subsystem_vendor", "0x1af4"), ("subsystem_device", "0x1100"), ("revision", "0x02")]
            {
                host.file(&format!("/sys/bus/pci/devices/{bdf}/{name}"), format!("{text}\n"));
            }
        }
        host.file("/proc/interrupts", "      CPU0\n 24:  0  IR-PCI-MSI-0000:00:02.0  0-edge  xhci\n");
        host.file("/sys/class/dmi/id/sys_vendor", "Example\n");
        host.file("/sys/class/dmi/id/product_name", "R1\n");
        host.file("/sys/class/dmi/id/bios_version", "1.0\n");
        let text = fs::read_to_string(repository().join("profiles/lab-compute.toml")).unwrap();
        let (own, _) = text.split_once("[[device]]").unwrap();
        fs::write(
            folder.path().join("vm.toml"),
            format!("{own}[[device]]\nbdf = \"0000:81:00.0\"\n[[device]]\nbdf = \"0000:85:00.0\"\n"),
        )
        .unwrap();
        Self { host, folder }
    }

    /// The profile with its second device described.
    fn described(self) -> Self {
        let path = self.folder.path().join("vm.toml");
        let text = fs::read_to_string(&path).unwrap();
        let described = text.replace("bdf = \"0000:85:00.0\"", "select = { id = \"1234:11e8\", nth = 1 }");
        assert_ne!(text, described);
        fs::write(path, described).unwrap();
        self
    }

    /// Runs a verb for the profile; its folder and the host's are named by words.
    fn run(&self, args: &[&str]) -> String {
        let root = self.host.root().path("/").display().to_string();
        let root = root.trim_end_matches('/').to_owned();
        let profile = self.folder.path().join("vm.toml").display().to_string();
        let args = [&["--host-root", &root], args, &[profile.as_str()]].concat();
        transcript(&gpuvm(&args), &root).replace(&self.folder.path().display().to_string(), "DIR")
    }

    fn after(self, change: impl FnOnce(&FakeHost)) -> Self {
        change(&self.host);
        self
    }

    fn with_lock(self, text: &str) -> Self {
        fs::write(self.folder.path().join("vm.lock"), text).unwrap();
        self
    }
}

/// Takes the second card out, and puts one like it elsewhere.
fn moved(host: &FakeHost) {
    fs::remove_file(host.path("/sys/bus/pci/devices/0000:85:00.0")).unwrap();
    let card =
        FakeDevice { id: (0x1234, 0x11e8), class: 0x00_ff00, driver: None, ..gpu("0000:87:00.0", 31, 1) };
    host.device(&FakeDevice { port: Some("0000:86:01.0"), ..card });
}

/// Adds a card with the ids of the second, and an address before both.
fn first_of_all(host: &FakeHost) {
    host.device(&FakeDevice {
        id: (0x1234, 0x11e8),
        class: 0x00_ff00,
        driver: None,
        ..gpu("0000:31:00.0", 32, 0)
    });
}

fn locked_description() -> Locked {
    Locked::without_lock().described().locked()
}

fn grown(host: &FakeHost) {
    let audio =
        FakeDevice { id: (0x10de, 0x1ad8), class: 0x0c_0330, driver: None, ..gpu("0000:81:00.2", 16, 1) };
    host.device(&audio);
}

/// Puts a network card where the second card was.
fn another_card(host: &FakeHost) {
    for (name, text) in [("vendor", "0x8086"), ("device", "0x100e"), ("class", "0x020000")] {
        host.file(&format!("/sys/bus/pci/devices/0000:85:00.0/{name}"), format!("{text}\n"));
    }
}

/// The firmware has been updated, and the kernel was told to look away from ACS.
fn updated(host: &FakeHost) {
    host.file("/sys/class/dmi/id/bios_version", "2.0\n");
    host.file("/proc/cmdline", "intel_iommu=on pcie_acs_override=downstream\n");
}

fn unreadable(host: &FakeHost) {
    let config = host.path("/sys/bus/pci/devices/0000:81:00.0/config");
    fs::remove_file(&config).unwrap();
    symlink(crate::shared::hosts::NOT_READABLE, config).unwrap();
}

#[test]
fn locks_are_made_and_checked_as_they_were() {
    let check: &[&str] = &["lock", "--check"];
    let cases = [
        ("made", Locked::without_lock().run(&["lock"])),
        ("made-json", Locked::without_lock().run(&["lock", "--json"])),
        ("made-again", Locked::new().run(&["lock"])),
        ("made-again-after-changes", Locked::new().after(grown).after(updated).run(&["lock"])),
        ("made-over-a-damaged-one", Locked::without_lock().with_lock("version = 1").run(&["lock"])),
        ("made-of-what-cannot-be-read", Locked::without_lock().after(unreadable).run(&["lock"])),
        ("check-of-what-was-not-read", Locked::without_lock().after(unreadable).locked().run(check)),
        ("made-of-a-description", Locked::without_lock().described().run(&["lock", "--json"])),
        ("made-again-of-a-description", locked_description().after(moved).run(&["lock"])),
        ("check-description-moved", locked_description().after(moved).run(check)),
        (
            "check-description-although-others-came-before",
            locked_description().after(first_of_all).run(check),
        ),
        ("check-description-that-is-not-locked", Locked::new().described().run(check)),
        ("check-same", Locked::new().run(check)),
        ("check-moved", Locked::new().after(moved).run(check)),
        ("check-grown", Locked::new().after(grown).run(check)),
        ("check-grown-json", Locked::new().after(grown).run(&["lock", "--check", "--json"])),
        ("check-updated", Locked::new().after(updated).run(check)),
        ("check-unreadable", Locked::new().after(unreadable).run(check)),
        ("check-without-lock", Locked::without_lock().run(check)),
        ("check-of-a-damaged-lock", Locked::without_lock().with_lock("version = 1").run(check)),
        ("check-of-a-newer-lock", Locked::without_lock().with_lock("version = 2").run(check)),
        ("profile-with-a-damaged-lock", Locked::without_lock().with_lock("version = 1").run(&["check"])),
        ("plan-moved", Locked::new().after(moved).run(&["plan"])),
        ("bind-of-another-card", locked_description().after(another_card).run(&["bind", "--dry-run"])),
        ("unbind-of-another-card", locked_description().after(another_card).run(&["unbind", "--dry-run"])),
        ("plan-updated", {
            let plan = Locked::new().after(updated).run(&["plan"]);
            plan.split_inclusive("\n\n").take(2).collect()
        }),
    ];
    compare("lock", cases.map(|(name, transcript)| (name.to_owned(), transcript)));
}

#[test]
fn a_lock_is_written_beside_the_profile_and_read_as_it_was() {
    let case = Locked::new();
    let text = fs::read_to_string(case.folder.path().join("vm.lock")).unwrap();
    compare("lock-file", [("vm".to_owned(), text)]);
}
