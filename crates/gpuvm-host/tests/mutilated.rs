//! Hosts that something is wrong with: files that are missing, cut off, of other bytes, of absurd numbers, or of another kind.
//!
//! Whatever is done to a tree, a survey says what it couldn't read, a plan isn't made of it or names the path, and nothing that
//! decides falls over. `GPUVM_MUTILATIONS=N` tries N trees instead of 150.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpuvm_core::doctor::{Verdict, examine};
use gpuvm_core::facts::HostFacts;
use gpuvm_core::init::{Choices, draft};
use gpuvm_core::lock::{Lock, Severity, compare};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{passable, plan};
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::topology::Topology;
use gpuvm_core::topology::svg::svg;
use gpuvm_host::facts::{self, Depth, Scope, survey};
use gpuvm_host::root::HostRoot;
use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::hosts;
use gpuvm_testkit::recorded::{self, TempHost};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use rstest::rstest;

/// Of how many functions it is asked whether they could be passed.
const FEW: usize = 8;

/// What keeps a host's files there.
enum Keep {
    Fake(FakeHost),
    Recorded(TempHost),
}

/// A whole host.
struct Tree {
    name: String,
    keep: Keep,
    /// Paths that there is one of, and those of devices, groups and CPUs, of which there are many.
    few: Vec<PathBuf>,
    many: Vec<PathBuf>,
    of_card: Vec<PathBuf>,
    /// The card that is asked for.
    card: Bdf,
    profile: Profile,
}

impl Tree {
    fn new(name: &str, keep: Keep) -> Self {
        let root = root_of(&keep);
        let (mut few, mut many) = (Vec::new(), Vec::new());
        walk(&root.path("/"), &mut |path| {
            let shown = path.strip_prefix(root.path("/")).unwrap().display().to_string();
            let repeats =
                ["sys/devices/pci", "sys/bus/pci/devices/", "sys/kernel/iommu_groups/", "system/cpu/cpu"];
            if repeats.iter().any(|part| shown.contains(part)) {
                many.push(path.to_owned());
            } else if !shown.starts_with("fake-kernel") {
                few.push(path.to_owned());
            }
        });
        let whole = survey(&root, &Scope::All, Depth::Sysfs, None).unwrap();
        let card = |(_, device): &(&Bdf, &gpuvm_core::facts::DeviceFacts)| {
            matches!(device.class.class(), 0x0300 | 0x0302 | 0x1200 | 0x0200) && !device.upstream.is_empty()
        };
        let card = *whole.devices.iter().find(card).unwrap().0;
        let mut of_card = Vec::new();
        walk(&fs::canonicalize(root.device(card)).unwrap(), &mut |path| of_card.push(path.to_owned()));
        Self { name: name.to_owned(), keep, few, many, of_card, card, profile: profile(card) }
    }

    fn root(&self) -> HostRoot {
        root_of(&self.keep)
    }

    /// Returns the paths that are meant.
    fn paths(&self, place: &Place) -> Vec<&Path> {
        let one = |paths: &'_ [PathBuf], index: &Index| index.index(paths.len());
        match place {
            Place::Few(index) => vec![&self.few[one(&self.few, index)]],
            Place::Many(index) => vec![&self.many[one(&self.many, index)]],
            Place::OfCard(index) => vec![&self.of_card[one(&self.of_card, index)]],
            Place::Alike(index) => {
                let name = self.few[one(&self.few, index)].file_name();
                self.few.iter().filter(|path| path.file_name() == name).map(PathBuf::as_path).collect()
            }
        }
    }
}

fn root_of(keep: &Keep) -> HostRoot {
    match keep {
        Keep::Fake(host) => host.root(),
        Keep::Recorded(host) => host.root(),
    }
}

fn walk(folder: &Path, found: &mut impl FnMut(&Path)) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        found(&path);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            walk(&path, found);
        }
    }
}

/// Where something is done.
#[derive(Debug, Clone)]
enum Place {
    /// To something that there is one of.
    Few(Index),
    /// To something of devices, groups or CPUs.
    Many(Index),
    /// To something of the card.
    OfCard(Index),
    /// To all files of one name, as the `meminfo` of all nodes.
    Alike(Index),
}

fn place() -> impl Strategy<Value = Place> {
    let index = any::<Index>;
    prop_oneof![
        3 => index().prop_map(Place::Few),
        3 => index().prop_map(Place::Many),
        3 => index().prop_map(Place::OfCard),
        2 => index().prop_map(Place::Alike),
    ]
}

/// All made-up and all recorded hosts.
fn trees() -> Vec<Tree> {
    let fake = hosts::ALL.iter().map(|(name, make)| Tree::new(name, Keep::Fake(make())));
    let recorded = recorded::names().unwrap();
    let recorded =
        recorded.iter().map(|name| Tree::new(name, Keep::Recorded(recorded::lay_out(name).unwrap())));
    fake.chain(recorded).collect()
}

fn profile(card: Bdf) -> Profile {
    let text = format!(
        "version = 1\nname = \"x\"\n[memory]\nsize = \"2G\"\nhugepages = \"2M\"\n[cpu]\ncount = 2\n[[device]]\nbdf = \"{card}\"\n"
    );
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

/// What is done to a path.
#[derive(Debug, Clone, PartialEq)]
enum Mutilation {
    Remove,
    /// The first so many bytes are left.
    CutTo(usize),
    /// It holds this.
    Content(Vec<u8>),
    /// It holds what it held many times, above what anybody reads.
    Endless,
    /// It is an empty folder.
    Folder,
    /// It is a link to nowhere.
    Dangling,
    /// It is a link to itself, which nobody can open, root included.
    Circle,
    /// It holds files of its own whose names are no names.
    OddNames,
}

/// Numbers and texts that no kernel writes there.
const ABSURD: [&str; 16] = [
    "",
    "\n",
    "-1",
    "256",
    "65536",
    "4294967296",
    "18446744073709551615",
    "99999999999999999999999999",
    "0xffffffffffffffffffff",
    "0-4294967295",
    "0-65535",
    "1,0,3-2",
    "Unknown",
    "ffffffffffffffff",
    "0x0000000000000000 0xffffffffffffffff 0x000000000014220c\n",
    "Node 0 MemTotal: 18446744073709551615 kB\nNode 0 MemFree: 18446744073709551615 kB\n",
];

fn mutilation() -> impl Strategy<Value = Mutilation> {
    prop_oneof![
        3 => Just(Mutilation::Remove),
        2 => (0usize..64).prop_map(Mutilation::CutTo),
        6 => select(&ABSURD[..]).prop_map(|text| Mutilation::Content(text.as_bytes().to_vec())),
        3 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Mutilation::Content),
        2 => "[ -~\n]{0,80}".prop_map(|text| Mutilation::Content(text.into_bytes())),
        1 => Just(Mutilation::Content(vec![0xff; 4096])),
        1 => Just(Mutilation::Endless),
        2 => Just(Mutilation::Folder),
        1 => Just(Mutilation::Dangling),
        2 => Just(Mutilation::Circle),
        1 => Just(Mutilation::OddNames),
    ]
}

/// Puts things back as they were, in the reverse order.
struct Restore(Vec<(PathBuf, PathBuf)>);

impl Drop for Restore {
    fn drop(&mut self) {
        for (path, aside) in self.0.drain(..).rev() {
            remove(&path);
            fs::rename(&aside, &path).unwrap();
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Moves what is there aside, and puts something else in its place.
fn mutilate(path: &Path, mutilation: &Mutilation, restore: &mut Restore) {
    // An earlier mutilation may have taken the folder that it was in.
    let Ok(data) = fs::symlink_metadata(path) else { return };
    let aside = path.with_file_name(format!(".aside-{}", restore.0.len()));
    fs::rename(path, &aside).unwrap();
    restore.0.push((path.to_owned(), aside.clone()));
    let before = if data.is_file() { fs::read(&aside).unwrap() } else { Vec::new() };
    match mutilation {
        Mutilation::Remove => {}
        Mutilation::CutTo(length) => fs::write(path, &before[..before.len().min(*length)]).unwrap(),
        Mutilation::Content(bytes) => fs::write(path, bytes).unwrap(),
        Mutilation::Endless => {
            let line = if before.is_empty() { b"0".to_vec() } else { before };
            let line = line.repeat(5_000_000 / line.len());
            fs::write(path, line).unwrap();
        }
        Mutilation::Folder => fs::create_dir(path).unwrap(),
        Mutilation::Dangling => symlink("nowhere", path).unwrap(),
        Mutilation::Circle => symlink(path, path).unwrap(),
        Mutilation::OddNames => {
            fs::create_dir(path).unwrap();
            for name in [&b"\xff\xfe"[..], b"0000:zz:00.0", b"0000:07:00.7", b"10000000000:00:00.0", b" "] {
                fs::create_dir(path.join(std::ffi::OsStr::from_bytes(name))).unwrap();
            }
        }
    }
}

/// Reads a host as the verbs do and decides on what was read.
fn look_at(tree: &Tree, scope: &Scope) {
    let root = tree.root();
    let prefix = root.path("/").display().to_string();
    let facts = survey(&root, scope, Depth::Config, Some(&tree.profile)).unwrap();
    for unread in &facts.unread {
        assert!(unread.contains(&prefix), "{unread:?} names no path");
    }
    decide(&facts, tree);
    match facts::read(&root, &tree.profile) {
        Ok(facts) => decide(&facts, tree),
        Err(error) => assert!(error.to_string().contains(&prefix), "{error} names no path"),
    }
}

/// What rests on facts never falls over.
fn decide(facts: &HostFacts, tree: &Tree) {
    match plan(&tree.profile, facts) {
        Ok(plan) => assert!(plan.devices.iter().any(|device| device.bdf == tree.card)),
        Err(refusals) => assert!(!refusals.is_empty()),
    }
    for targets in [&[][..], &[tree.card]] {
        let checks = examine(facts, Some(&tree.profile), targets).checks;
        assert!(checks.iter().all(|check| !check.found.is_empty()));
    }
    for bdf in facts.devices.keys().take(FEW) {
        let _ = passable(*bdf, facts);
    }
    assert!(svg(&Topology::of(facts)).ends_with("</svg>\n"));
    if let Ok(draft) = draft(facts, tree.card, &Choices::default()) {
        assert!(draft.text.contains(&tree.card.to_string()));
    }
    if let Ok(lock) = Lock::of(&tree.profile, facts) {
        let changes = compare(&lock, &tree.profile, facts);
        assert!(changes.iter().all(|change| change.severity() != Severity::Matters), "{changes:?}");
        assert_eq!(Lock::parse(&lock.to_toml().unwrap()).unwrap(), lock);
    }
    let text = serde_json::to_string(facts).unwrap();
    assert_eq!(&serde_json::from_str::<HostFacts>(&text).unwrap(), facts, "facts are kept as they are");
}

#[test]
fn whatever_is_done_to_a_tree_is_named_and_nothing_falls_over() {
    let cases = std::env::var("GPUVM_MUTILATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    let trees = trees();
    // Of the large hosts a survey takes long, so they come less often.
    let weights: Vec<(u32, usize)> = trees
        .iter()
        .enumerate()
        .map(|(index, tree)| (if tree.many.len() > 1500 { 1 } else { 6 }, index))
        .collect();
    let host = proptest::strategy::Union::new_weighted(
        weights.into_iter().map(|(weight, index)| (weight, Just(index))).collect(),
    );
    let strategy = (host, 0usize..5, proptest::collection::vec((place(), mutilation()), 1..6));
    let tried = RefCell::new(0u32);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(host, scope, done)| {
        let tree = &trees[host];
        let scope = match scope {
            0 => Scope::All,
            1 => Scope::Passable,
            _ => Scope::Devices([tree.card].into()),
        };
        let mut restore = Restore(Vec::new());
        let mut shown = Vec::new();
        for (place, mutilation) in &done {
            for path in tree.paths(place) {
                mutilate(path, mutilation, &mut restore);
                shown.push(format!("{}: {mutilation:?}", path.display()));
            }
        }
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look_at(tree, &scope)));
        drop(restore);
        *tried.borrow_mut() += 1;
        prop_assert!(looked.is_ok(), "{}: {}", tree.name, shown.join("\n"));
        Ok(())
    });
    writeln!(std::io::stderr(), "{} trees", tried.borrow()).unwrap();
    result.unwrap_or_else(|error| panic!("{error}"));
    // All is as it was: the last host is whole again.
    for tree in &trees {
        assert_eq!(survey(&tree.root(), &Scope::All, Depth::Config, None).unwrap().unread, [""; 0]);
    }
}

/// What a survey reads of a card, below its folder.
const ATTRIBUTES: [&str; 21] = [
    "vendor",
    "device",
    "class",
    "revision",
    "subsystem_vendor",
    "subsystem_device",
    "numa_node",
    "driver_override",
    "resource",
    "reset_method",
    "boot_vga",
    "modalias",
    "power_state",
    "power/control",
    "power/runtime_status",
    "d3cold_allowed",
    "current_link_speed",
    "current_link_width",
    "max_link_speed",
    "max_link_width",
    "config",
];

#[test]
fn an_attribute_that_cannot_be_read_is_named() {
    let tree = Tree::new("desktop", Keep::Fake(hosts::desktop()));
    for attribute in ATTRIBUTES {
        let path = tree.root().device(tree.card).join(attribute);
        for mutilation in [Mutilation::Circle, Mutilation::Folder] {
            let mut restore = Restore(Vec::new());
            mutilate(&path, &mutilation, &mut restore);
            let scope = Scope::Devices([tree.card].into());
            let unread = survey(&tree.root(), &scope, Depth::Config, None).unwrap().unread;
            let named = |text: &String| text.contains(&format!("/{attribute}"));
            assert!(unread.iter().any(named), "{attribute} as {mutilation:?}: {unread:?}");
        }
    }
}

#[rstest]
#[case::units("/sys/class/iommu", "iommu-active")]
#[case::groups("/sys/class/iommu", "plan")]
#[case::mounts("/proc/self/mountinfo", "plan")]
#[case::swaps("/proc/swaps", "plan")]
#[case::disks("/sys/class/block", "plan")]
#[case::class("/sys/bus/pci/devices/0000:01:00.1/class", "plan")]
#[case::interrupts("/proc/interrupts", "interrupt-remapping")]
#[case::tables("/sys/firmware/acpi/tables", "iommu-tables")]
#[case::width("/sys/class/iommu/dmar0/intel-iommu/cap", "iommu-width")]
#[case::options("/proc/cmdline", "iommu-options")]
#[case::online("/sys/devices/system/cpu/online", "cpus-online")]
#[case::offline("/sys/devices/system/cpu/offline", "cpus-online")]
#[case::pool("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "hugepages")]
#[case::addresses("/proc/cpuinfo", "guest-addresses")]
#[case::swap("/proc/swaps", "swap")]
#[case::entries("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "dma-entries")]
#[case::holders("/proc/self/mountinfo", "device-holders")]
#[case::registers("/sys/bus/pci/devices/0000:01:00.0/resource", "bar-addresses")]
#[case::screens("/proc/iomem", "firmware-framebuffer")]
#[case::members("/sys/bus/pci/devices/0000:01:00.0/iommu_group", "iommu-group")]
#[case::anything("/sys/devices/system/cpu/online", "facts-unread")]
fn what_cannot_be_read_is_not_called_ok(#[case] path: &str, #[case] check: &str) {
    let tree = Tree::new("desktop", Keep::Fake(hosts::desktop()));
    let verdicts = || {
        let facts = survey(&tree.root(), &Scope::All, Depth::Config, Some(&tree.profile)).unwrap();
        let checks = examine(&facts, Some(&tree.profile), &[tree.card]).checks;
        let of_check = checks.into_iter().filter(|found| found.name == check);
        (of_check.map(|found| found.verdict).collect::<Vec<_>>(), facts.unread)
    };
    assert!(verdicts().0.contains(&Verdict::Ok), "{check} is ok on a whole host");
    let absolute = tree.root().path(path);
    let other = if absolute.is_dir() { Mutilation::Content(b"x".to_vec()) } else { Mutilation::Folder };
    for mutilation in [Mutilation::Circle, other] {
        let mut restore = Restore(Vec::new());
        mutilate(&absolute, &mutilation, &mut restore);
        let (found, unread) = verdicts();
        assert!(!found.contains(&Verdict::Ok), "{check} with {path} as {mutilation:?}: {found:?}");
        assert!(unread.iter().any(|text| text.contains(path)), "{path} as {mutilation:?}: {unread:?}");
    }
}
