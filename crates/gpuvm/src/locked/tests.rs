//! What `up` makes of a lock, on hosts of files.

use std::path::PathBuf;

use clap::Parser;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::cli::ProfileArgs;

const PROFILE: &str = "version = 1\nname = \"vm\"\naccel = \"tcg\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n\
                       [[device]]\nbdf = \"0000:81:00.0\"\n";

/// A host with a card, and a profile that asks for it.
struct Case {
    host: FakeHost,
    folder: TempDir,
    profile: PathBuf,
}

impl Case {
    fn new() -> Self {
        let (host, folder) = (FakeHost::new(), tempfile::tempdir().unwrap());
        let profile = folder.path().join("vm.toml");
        fs::write(&profile, PROFILE).unwrap();
        host.device(&FakeDevice { port: Some("0000:80:01.0"), ..gpu("0000:81:00.0", 7, 1) });
        host.file("/usr/bin/qemu-system-x86_64", "x");
        Self { host, folder, profile }
    }

    /// A host that was locked.
    fn locked() -> Self {
        let case = Self::new();
        let (cli, loaded) = (case.cli(), case.loaded().unwrap());
        let facts = facts_for(&cli, &loaded.profile, None).unwrap();
        write(&loaded.lock.path, &Lock::of(&loaded.profile, &facts).unwrap()).unwrap();
        case
    }

    fn cli(&self) -> Cli {
        let root = self.host.path("/").display().to_string();
        let prefix = self.host.prefix().display().to_string();
        Cli::try_parse_from(["gpuvm", "--host-root", &root, "--prefix", &prefix, "check", "vm.toml"]).unwrap()
    }

    fn loaded(&self) -> Result<Loaded, Failure> {
        load::profile(&self.cli(), &self.args())
    }

    fn args(&self) -> ProfileArgs {
        ProfileArgs { profile: self.profile.clone(), set: Vec::new() }
    }

    fn up(&self, on_changes: OnChanges) -> Result<Judged, Failure> {
        before_up(&self.cli(), &self.args(), self.loaded()?, on_changes)
    }

    fn lock_file(&self) -> PathBuf {
        self.folder.path().join("vm.lock")
    }

    /// A second function on the card, in its group.
    fn grows(&self) {
        self.host.device(&FakeDevice {
            id: (0x10de, 0x22ba),
            class: 0x04_0300,
            port: Some("0000:80:01.0"),
            ..gpu("0000:81:00.1", 7, 1)
        });
    }

    fn boots_another_kernel(&self) {
        self.host.file("/proc/sys/kernel/osrelease", "6.13.0-fake\n");
    }
}

fn messages(judged: &Judged) -> Vec<&str> {
    judged.warnings.iter().map(|warning| warning.message.as_str()).collect()
}

#[rstest]
fn up_of_a_host_that_has_no_lock_or_has_not_changed_says_nothing(
    #[values(OnChanges::Refuse, OnChanges::Accept)] on_changes: OnChanges,
    #[values(Case::new, Case::locked)] case: fn() -> Case,
) {
    let case = case();
    let before = fs::read(case.lock_file()).ok();
    let judged = case.up(on_changes).unwrap();
    assert_eq!((messages(&judged), judged.written), (vec![], false));
    assert_eq!(fs::read(case.lock_file()).ok(), before);
}

#[test]
fn up_of_a_group_that_grew_is_refused_and_nothing_is_written() {
    let case = Case::locked();
    case.grows();
    case.boots_another_kernel();
    let before = fs::read(case.lock_file()).unwrap();
    let failure = case.up(OnChanges::Refuse).unwrap_err();
    assert_eq!(failure.code, Exit::Unfit);
    let problems = failure.to_json()["error"]["problems"].clone();
    let kinds: Vec<_> = problems.as_array().unwrap().iter().map(|problem| problem["kind"].clone()).collect();
    assert_eq!(kinds, ["group-grew", "slot-grew", "reset-grew"]);
    let path = case.lock_file().display().to_string();
    let grew = format!(
        "since {path} was written: 0000:81:00.0: its group grew: 0000:81:00.1 (10de:22ba audio device) is new in it"
    );
    assert_eq!(problems[0]["message"], grew);
    let hint = problems[2]["hint"].as_str().unwrap();
    assert!(hint.contains("gpuvm lock --check") && hint.contains("--accept-changes"), "{hint}");
    assert_eq!(fs::read(case.lock_file()).unwrap(), before);
}

#[test]
fn up_with_another_kernel_warns_and_leaves_the_lock() {
    let case = Case::locked();
    case.boots_another_kernel();
    let before = fs::read(case.lock_file()).unwrap();
    let judged = case.up(OnChanges::Refuse).unwrap();
    assert_eq!(messages(&judged), ["the kernel was `6.12.0-fake`, and is `6.13.0-fake`"]);
    assert!(judged.warnings.iter().all(|warning| warning.about == Topic::Lock));
    assert_eq!(fs::read(case.lock_file()).unwrap(), before);
}

#[test]
fn up_that_accepts_changes_locks_the_host_as_it_is_and_tells_them() {
    let case = Case::locked();
    case.grows();
    case.boots_another_kernel();
    let judged = case.up(OnChanges::Accept).unwrap();
    assert!(judged.written);
    assert!(messages(&judged)[0].starts_with("accepted: 0000:81:00.0: its group grew"), "{judged:?}");
    assert_eq!(judged.warnings.len(), 4);
    let judged = case.up(OnChanges::Refuse).unwrap();
    assert_eq!((messages(&judged), judged.written), (vec![], false));
}

/// A host that can't run the profile isn't what it is to be compared with.
#[test]
fn up_that_accepts_changes_of_a_host_that_cannot_run_the_profile_leaves_the_lock() {
    let case = Case::locked();
    case.host.device(&gpu("0000:82:00.0", 7, 1));
    let before = fs::read(case.lock_file()).unwrap();
    assert_eq!(case.up(OnChanges::Accept).unwrap_err().code, Exit::Unfit);
    assert_eq!(fs::read(case.lock_file()).unwrap(), before);
}

/// A profile that describes its device, and a host that was locked when there was one that fits.
fn described() -> Case {
    let case = Case::new();
    fs::write(
        &case.profile,
        PROFILE.replace("bdf = \"0000:81:00.0\"", "select = { id = \"10de:2330\", nth = 0 }"),
    )
    .unwrap();
    let (cli, loaded) = (case.cli(), case.loaded().unwrap());
    let facts = facts_for(&cli, &loaded.profile, None).unwrap();
    write(&loaded.lock.path, &Lock::of(&loaded.profile, &facts).unwrap()).unwrap();
    case
}

fn devices(loaded: &Loaded) -> Vec<String> {
    loaded.profile.devices.iter().map(|device| device.bdf.to_string()).collect()
}

#[test]
fn up_takes_the_card_that_is_locked_although_another_comes_first_now() {
    let case = described();
    case.host.device(&gpu("0000:41:00.0", 9, 0));
    let judged = case.up(OnChanges::Accept).unwrap();
    assert_eq!((devices(&judged.loaded), judged.written), (vec!["0000:81:00.0".to_owned()], false));
}

#[test]
fn up_of_a_described_card_that_has_moved_is_refused_until_that_is_accepted() {
    let case = described();
    fs::remove_file(case.host.path("/sys/bus/pci/devices/0000:81:00.0")).unwrap();
    case.host.device(&FakeDevice { port: Some("0000:80:02.0"), ..gpu("0000:82:00.0", 9, 1) });
    let failure = case.up(OnChanges::Refuse).unwrap_err();
    let message = failure.message();
    assert_eq!(failure.code, Exit::Unfit);
    assert!(
        message.ends_with("is gone; there is a card with the same ids at 0000:82:00.0 (behind 0000:80:02.0)"),
        "{message}"
    );
    let judged = case.up(OnChanges::Accept).unwrap();
    assert_eq!((devices(&judged.loaded), judged.written), (vec!["0000:82:00.0".to_owned()], true));
    let judged = case.up(OnChanges::Refuse).unwrap();
    assert_eq!((devices(&judged.loaded), messages(&judged)), (vec!["0000:82:00.0".to_owned()], vec![]));
}

#[rstest]
#[case::damaged("version = 1\nhost = 3\n", "it is damaged")]
#[case::newer("version = 2\n", "it is of version 2")]
#[case::empty("", "it has no version")]
fn a_lock_that_cannot_be_used_is_an_error(#[case] text: &str, #[case] says: &str) {
    let case = Case::new();
    fs::write(case.lock_file(), text).unwrap();
    let failure = case.up(OnChanges::Accept).unwrap_err();
    assert_eq!(failure.code, Exit::Profile);
    let message = failure.to_json()["error"]["problems"][0]["message"].to_string();
    assert!(message.contains("vm.lock can't be used") && message.contains(says), "{message}");
}

#[rstest]
#[case("vm.toml", "vm.lock")]
#[case("/etc/gpuvm/profiles/a.b.toml", "/etc/gpuvm/profiles/a.b.lock")]
#[case("vm", "vm.lock")]
#[case("dir/vm.profile", "dir/vm.profile.lock")]
fn a_lock_is_beside_its_profile(#[case] profile: &str, #[case] lock: &str) {
    assert_eq!(path_of(Path::new(profile)), Path::new(lock));
}

#[test]
fn a_lock_that_is_replaced_keeps_its_permissions_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.lock");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link.lock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let lock = Lock::parse("version = 1\n[host]\n").unwrap();
    write(&link, &lock).unwrap();
    assert_eq!(Lock::parse(&fs::read_to_string(&path).unwrap()), Ok(lock));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(link.is_symlink());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}
