//! Locks: what is taken down, how it is spelt, and what is told of each change.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::Path;

use gpuvm_core::config_space::Capabilities;
use gpuvm_core::facts::{BarFacts, BarKind, ConfigFacts, DeviceFacts, HostFacts, Presence, SystemFacts};
use gpuvm_core::lock::{Change, Lock, LockError, Severity, compare, missing};
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::units::ByteSize;
use proptest::prelude::*;
use rstest::rstest;

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn profile(devices: &[&str]) -> Profile {
    let head = "version = 1\nname = \"x\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n";
    let device = |bdf: &&str| format!("[[device]]\nbdf = \"{bdf}\"\n");
    let text: String = std::iter::once(head.to_owned()).chain(devices.iter().map(device)).collect();
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

/// The card at 81:00 that the tests are about, and its lock.
fn subject() -> Profile {
    profile(&["0000:81:00.0"])
}

/// A host whose facts are all known.
#[derive(Debug)]
struct Host(HostFacts);

impl Host {
    fn new() -> Self {
        let mut facts = HostFacts::default();
        facts.kernel.release = "6.12.1".to_owned();
        facts.kernel.cmdline = "quiet intel_iommu=on".to_owned();
        facts.iommus = vec!["dmar0".to_owned(), "dmar1".to_owned()];
        facts.platform.interrupt_chips = Some(["IR-PCI-MSI".to_owned()].into());
        facts.platform.system = SystemFacts {
            product: Some("R760".to_owned()),
            bios_version: Some("2.1".to_owned()),
            bios_date: Some("07/14/2025".to_owned()),
            ..SystemFacts::default()
        };
        let mut host = Self(facts);
        host.add("0000:80:01.0", "8086:352a", "060400", 5, &[]);
        host.add("0000:80:02.0", "8086:352b", "060400", 6, &[]);
        host.add("0000:81:00.0", "10de:2330", "030200", 7, &["0000:80:01.0"]);
        host.add("0000:81:00.1", "10de:22ba", "040300", 7, &["0000:80:01.0"]);
        let gpu = host.device("0000:81:00.0");
        gpu.node = Some(1);
        let bar = |index, size| BarFacts { index, size, address: Some(0x1000), kind: BarKind::High };
        gpu.bars = vec![bar(0, ByteSize::mib(16)), bar(2, ByteSize::mib(128 << 10))];
        host
    }

    fn add(&mut self, at: &str, id: &str, class: &str, group: u32, path: &[&str]) -> &mut DeviceFacts {
        let facts = DeviceFacts {
            group: Some(GroupId(group)),
            upstream: path.iter().map(|path| bdf(path)).collect(),
            subsystem: Some("10de:16c1".parse().unwrap()),
            revision: Some(0xa1),
            config: Some(ConfigFacts {
                capabilities: Capabilities::default(),
                complete: Presence::Present,
                ..ConfigFacts::default()
            }),
            ..DeviceFacts::new(id.parse().unwrap(), class.parse().unwrap())
        };
        let members = self.0.groups.entry(GroupId(group)).or_default();
        members.push(bdf(at));
        members.sort();
        self.0.devices.insert(bdf(at), facts);
        self.device(at)
    }

    fn device(&mut self, at: &str) -> &mut DeviceFacts {
        self.0.devices.get_mut(&bdf(at)).unwrap()
    }

    fn remove(&mut self, at: &str) -> DeviceFacts {
        self.0.groups.values_mut().for_each(|members| members.retain(|member| *member != bdf(at)));
        self.0.devices.remove(&bdf(at)).unwrap()
    }

    /// Puts a function at another address, as it is.
    fn move_to(&mut self, from: &str, to: &str, path: &[&str]) -> &mut DeviceFacts {
        let facts = self.remove(from);
        let members = self.0.groups.entry(facts.group.unwrap()).or_default();
        members.push(bdf(to));
        let path = path.iter().map(|path| bdf(path)).collect();
        self.0.devices.insert(bdf(to), DeviceFacts { upstream: path, ..facts });
        self.device(to)
    }

    fn serial(&mut self, at: &str, serial: u64) {
        self.device(at).config.as_mut().unwrap().capabilities.serial = Some(serial);
    }

    fn lock(&self) -> Lock {
        Lock::of(&subject(), &self.0).unwrap()
    }
}

/// Lists what is told, with how much it matters, and without what nobody knows.
fn told(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{}: {change}", change.severity())).collect()
}

#[rstest]
#[case::gone(|host: &mut Host| drop(host.remove("0000:81:00.0")), &["matters: 0000:81:00.0 (10de:2330 3D controller) is gone"])]
#[case::moved_behind_the_same_bridge(
    |host: &mut Host| { host.move_to("0000:81:00.0", "0000:82:00.0", &["0000:80:01.0"]); },
    &["matters: 0000:81:00.0 (10de:2330 3D controller) has moved: it is at 0000:82:00.0 now (the same ids, behind the same bridges)"]
)]
#[case::a_card_with_the_same_ids_elsewhere(
    |host: &mut Host| { host.move_to("0000:81:00.0", "0000:82:00.0", &["0000:80:02.0"]); },
    &["matters: 0000:81:00.0 (10de:2330 3D controller) is gone; there is a card with the same ids at 0000:82:00.0 (behind \
       0000:80:02.0)"]
)]
#[case::another_card(
    |host: &mut Host| host.device("0000:81:00.0").id = "1002:74a1".parse().unwrap(),
    &["matters: 0000:81:00.0 is another card: it was 10de:2330 of 10de:16c1, and is 1002:74a1 of 10de:16c1"]
)]
#[case::two_cards_that_were_exchanged_with_others_elsewhere(
    |host: &mut Host| {
        host.move_to("0000:81:00.0", "0000:82:00.0", &["0000:80:02.0"]);
        host.add("0000:81:00.0", "1002:74a1", "030200", 7, &["0000:80:01.0"]);
    },
    &["matters: 0000:81:00.0 is another card: it was 10de:2330 of 10de:16c1, and is 1002:74a1 of 10de:16c1; as it was, there is a card \
       with the same ids at 0000:82:00.0 (behind 0000:80:02.0)"]
)]
#[case::another_builder(
    |host: &mut Host| host.device("0000:81:00.0").subsystem = Some("1043:0001".parse().unwrap()),
    &["matters: 0000:81:00.0 is another card: it was 10de:2330 of 10de:16c1, and is 10de:2330 of 1043:0001"]
)]
#[case::another_class(
    |host: &mut Host| host.device("0000:81:00.0").class = "030000".parse().unwrap(),
    &["matters: 0000:81:00.0: its class was 030200 (3D controller), and is 030000 (VGA controller)"]
)]
#[case::group_grew(
    |host: &mut Host| { host.add("0000:82:00.0", "144d:a80a", "010802", 7, &["0000:80:02.0"]); },
    &["matters: 0000:81:00.0: its group grew: 0000:82:00.0 (144d:a80a NVMe controller) is new in it"]
)]
#[case::group_shrank(
    |host: &mut Host| {
        host.0.groups.insert(GroupId(8), vec![bdf("0000:81:00.1")]);
        host.0.groups.insert(GroupId(7), vec![bdf("0000:81:00.0")]);
    },
    &["matters: 0000:81:00.0: its group shrank: 0000:81:00.1 (10de:22ba audio device) is no longer in it"]
)]
#[case::group_lost(|host: &mut Host| host.device("0000:81:00.0").group = None, &["matters: 0000:81:00.0: it has no IOMMU group any more"])]
#[case::function_new_in_slot(
    |host: &mut Host| { host.add("0000:81:00.2", "10de:1ad8", "0c0330", 9, &["0000:80:01.0"]); },
    &[
        "matters: 0000:81:00.0: its slot has more functions: 0000:81:00.2 (10de:1ad8 USB controller) is new in it",
        "matters: 0000:81:00.0: a bus reset of it reaches more: 0000:81:00.2 (10de:1ad8 USB controller) is new to it",
    ]
)]
#[case::function_gone_from_slot(
    |host: &mut Host| drop(host.remove("0000:81:00.1")),
    &[
        "matters: 0000:81:00.0: its group shrank: 0000:81:00.1 (10de:22ba audio device) is no longer in it",
        "matters: 0000:81:00.0: its slot has fewer functions: 0000:81:00.1 (10de:22ba audio device) is no longer in it",
        "matters: 0000:81:00.0: a bus reset of it reaches less: 0000:81:00.1 (10de:22ba audio device) is out of it",
    ]
)]
#[case::function_replaced(
    |host: &mut Host| host.device("0000:81:00.1").id = "10de:0001".parse().unwrap(),
    &[
        "matters: 0000:81:00.0: its group grew: 0000:81:00.1 (10de:0001 audio device) is new in it",
        "matters: 0000:81:00.0: its group shrank: 0000:81:00.1 (10de:22ba audio device) is no longer in it",
        "matters: 0000:81:00.0: its slot has more functions: 0000:81:00.1 (10de:0001 audio device) is new in it",
        "matters: 0000:81:00.0: its slot has fewer functions: 0000:81:00.1 (10de:22ba audio device) is no longer in it",
        "matters: 0000:81:00.0: a bus reset of it reaches more: 0000:81:00.1 (10de:0001 audio device) is new to it",
        "matters: 0000:81:00.0: a bus reset of it reaches less: 0000:81:00.1 (10de:22ba audio device) is out of it",
    ]
)]
#[case::another_device_on_the_bus(
    |host: &mut Host| { host.add("0000:81:01.0", "1234:11e8", "00ff00", 9, &["0000:80:01.0"]); },
    &["matters: 0000:81:00.0: a bus reset of it reaches more: 0000:81:01.0 (1234:11e8 device) is new to it"]
)]
#[case::bar_of_another_size(
    |host: &mut Host| host.device("0000:81:00.0").bars[1].size = ByteSize::mib(256),
    &["matters: 0000:81:00.0: its BAR 2 was 128G, and is 256M"]
)]
#[case::bar_gone(
    |host: &mut Host| host.device("0000:81:00.0").bars.truncate(1),
    &["matters: 0000:81:00.0: its BAR 2 was 128G, and is not there"]
)]
#[case::another_node(
    |host: &mut Host| host.device("0000:81:00.0").node = Some(0),
    &["matters: 0000:81:00.0: it was on node 1, and is on node 0"]
)]
#[case::no_node(
    |host: &mut Host| host.device("0000:81:00.0").node = None,
    &["matters: 0000:81:00.0: it was on node 1, and is on a node that the firmware doesn't tell"]
)]
#[case::another_bridge(
    |host: &mut Host| host.device("0000:81:00.0").upstream = vec![bdf("0000:80:02.0")],
    &["matters: 0000:81:00.0: it was behind 0000:80:01.0 (8086:352a PCI bridge), and is behind 0000:80:02.0 (8086:352b PCI bridge)"]
)]
#[case::another_revision(
    |host: &mut Host| host.device("0000:81:00.0").revision = Some(0xa2),
    &["may matter: 0000:81:00.0: its revision was a1, and is a2"]
)]
#[case::another_group_number(
    |host: &mut Host| {
        let members = host.0.groups.remove(&GroupId(7)).unwrap();
        host.0.groups.insert(GroupId(17), members);
        host.device("0000:81:00.0").group = Some(GroupId(17));
    },
    &["may matter: 0000:81:00.0: its group was number 7, and is number 17"]
)]
#[case::another_firmware(
    |host: &mut Host| {
        host.0.platform.system.bios_version = Some("2.2".to_owned());
        host.0.platform.system.bios_date = None;
    },
    &["may matter: the firmware's version was `2.1`, and is `2.2`", "may matter: the firmware's date was `07/14/2025`, and is not told"]
)]
#[case::another_kernel(
    |host: &mut Host| host.0.kernel.release = "6.13.0".to_owned(),
    &["may matter: the kernel was `6.12.1`, and is `6.13.0`"]
)]
#[case::another_command_line(
    |host: &mut Host| host.0.kernel.cmdline = "quiet pcie_acs_override=downstream".to_owned(),
    &["may matter: the kernel's command line has changed: `intel_iommu=on` no longer in it, `pcie_acs_override=downstream` new in it"]
)]
#[case::another_order_of_words(
    |host: &mut Host| host.0.kernel.cmdline = "intel_iommu=on quiet".to_owned(),
    &["may matter: the kernel's command line has changed: its words have another order"]
)]
#[case::fewer_iommus(
    |host: &mut Host| drop(host.0.iommus.pop()),
    &["may matter: the kernel used the IOMMU units dmar0, dmar1, and uses dmar0"]
)]
#[case::interrupts_no_longer_remapped(
    |host: &mut Host| host.0.platform.interrupt_chips = Some(["PCI-MSI".to_owned()].into()),
    &["matters: the IOMMU remapped interrupts, and doesn't now"]
)]
#[case::who_handles_interrupts_is_not_told(
    |host: &mut Host| host.0.platform.interrupt_chips = None,
    &["may matter: the host: who handles interrupts was read when it was locked, and can't be read now"]
)]
#[case::revision_unreadable(
    |host: &mut Host| host.device("0000:81:00.0").revision = None,
    &["may matter: 0000:81:00.0: its revision was read when it was locked, and can't be read now"]
)]
#[case::serial_unreadable(
    |host: &mut Host| host.device("0000:81:00.0").config = None,
    &["may matter: 0000:81:00.0: its serial number was read when it was locked, and can't be read now"]
)]
#[case::a_member_unreadable_is_told_once(
    |host: &mut Host| drop(host.0.devices.remove(&bdf("0000:80:01.0"))),
    &["may matter: 0000:81:00.0: what 0000:80:01.0 is was read when it was locked, and can't be read now"]
)]
#[case::something_unread(
    |host: &mut Host| host.0.unread.push("read /sys/x: Input/output error".to_owned()),
    &["may matter: read /sys/x: Input/output error"]
)]
fn each_change_is_told_with_how_much_it_matters(#[case] change: fn(&mut Host), #[case] expected: &[&str]) {
    let mut host = Host::new();
    let lock = host.lock();
    change(&mut host);
    assert_eq!(told(&compare(&lock, &subject(), &host.0)), expected);
}

#[test]
fn a_card_with_a_serial_number_is_found_wherever_it_is() {
    let mut host = Host::new();
    host.serial("0000:81:00.0", 7);
    let lock = host.lock();
    host.move_to("0000:81:00.0", "0000:82:00.0", &["0000:80:02.0"]);
    host.add("0000:81:00.0", "10de:2330", "030200", 7, &["0000:80:01.0"]);
    host.serial("0000:81:00.0", 8);
    let expected = [
        "matters: 0000:81:00.0 is another card: it was 10de:2330 of 10de:16c1, serial number 00-00-00-00-00-00-00-07, and is \
         10de:2330 of 10de:16c1, serial number 00-00-00-00-00-00-00-08",
        "matters: 0000:81:00.0 (10de:2330 3D controller) has moved: it is at 0000:82:00.0 now (it has the same serial number)",
    ];
    assert_eq!(told(&compare(&lock, &subject(), &host.0)), expected);
    assert_eq!(missing(&lock, &host.0).into_iter().collect::<Vec<_>>(), ["10de:2330".parse().unwrap()]);
}

/// The twin of a locked card is no trace of it.
#[test]
fn a_card_that_is_locked_itself_is_not_taken_for_one_that_is_gone() {
    let mut host = Host::new();
    host.add("0000:82:00.0", "10de:2330", "030200", 8, &["0000:80:02.0"]);
    let both = profile(&["0000:81:00.0", "0000:82:00.0"]);
    let lock = Lock::of(&both, &host.0).unwrap();
    host.remove("0000:81:00.0");
    let expected = ["matters: 0000:81:00.0 (10de:2330 3D controller) is gone"];
    assert_eq!(told(&compare(&lock, &both, &host.0)), expected);
}

#[test]
fn what_the_profile_asks_for_is_compared_and_what_it_does_not_is_told() {
    let mut host = Host::new();
    let lock = host.lock();
    host.add("0000:82:00.0", "144d:a80a", "010802", 9, &["0000:80:02.0"]);
    let changes = compare(&lock, &profile(&["0000:82:00.0"]), &host.0);
    let expected = [
        "may matter: 0000:81:00.0 (10de:2330 3D controller) is in the lock, and the profile doesn't ask for it",
        "matters: 0000:82:00.0 (144d:a80a NVMe controller) is not in the lock",
    ];
    assert_eq!(told(&changes), expected);
}

#[test]
fn what_was_never_read_is_unknown_and_no_equality() {
    let mut host = Host::new();
    host.device("0000:81:00.0").config = None;
    host.device("0000:81:00.0").subsystem = None;
    host.0.platform.system = SystemFacts::default();
    host.0.devices.remove(&bdf("0000:81:00.1"));
    host.0.unread.push("read /sys/x: Input/output error".to_owned());
    let changes = compare(&host.lock(), &subject(), &host.0);
    let expected = [
        "unknown: 0000:81:00.0: the id of its subsystem was not read when it was locked",
        "unknown: 0000:81:00.0: its serial number was not read when it was locked",
        "unknown: 0000:81:00.0: what 0000:81:00.1 is was not read when it was locked",
        "unknown: the host: what the firmware says of itself (/sys/class/dmi/id) was not read when it was locked",
        "unknown: not read when it was locked: read /sys/x: Input/output error",
    ];
    assert_eq!(told(&changes), expected);
}

#[test]
fn a_config_space_that_was_not_read_whole_says_nothing_about_a_serial_number() {
    let mut host = Host::new();
    host.device("0000:81:00.0").config.as_mut().unwrap().complete = Presence::Absent;
    assert_eq!(host.lock().devices[0].serial, None);
}

#[test]
fn a_device_that_is_not_there_is_not_locked() {
    let refusals = Lock::of(&profile(&["0000:99:00.0"]), &Host::new().0).unwrap_err();
    assert_eq!(refusals[0].to_string(), "0000:99:00.0: there is no such PCI device on this host");
}

#[test]
fn virtual_functions_are_no_part_of_a_slot_or_a_reset() {
    let mut host = Host::new();
    let lock = host.lock();
    host.add("0000:81:00.4", "10de:2330", "030200", 9, &["0000:80:01.0"]).virtual_function =
        Presence::Present;
    assert_eq!(told(&compare(&lock, &subject(), &host.0)), [""; 0]);
}

#[test]
fn a_lock_is_spelt_for_people() {
    let mut host = Host::new();
    host.serial("0000:81:00.0", 0x0015_17ff_ffaa_bbcc);
    let text = host.lock().to_toml().unwrap();
    let expected = r#"
version = 1

[host]
kernel = "6.12.1"
cmdline = "quiet intel_iommu=on"
iommus = [
    "dmar0",
    "dmar1",
]
interrupt-remapping = true

[host.firmware]
product = "R760"
version = "2.1"
date = "07/14/2025"

[[device]]
bdf = "0000:81:00.0"
id = "10de:2330"
subsystem = "10de:16c1"
revision = "a1"
class = "030200"
serial = "00-15-17-ff-ff-aa-bb-cc"
node = 1
group-number = 7
bars = [
    "0: 16M",
    "2: 128G",
]
path = ["0000:80:01.0 8086:352a 060400"]
group = ["0000:81:00.1 10de:22ba 040300"]
slot = ["0000:81:00.1 10de:22ba 040300"]
reset = ["0000:81:00.1 10de:22ba 040300"]
"#;
    assert!(text.ends_with(expected), "{text}");
}

#[rstest]
#[case::empty("", "it is damaged: it has no version")]
#[case::no_toml("version = ", "it is damaged: ")]
#[case::newer("version = 2\nmore = 1\n", "it is of version 2, and this gpuvm reads version 1")]
#[case::version_as_text("version = \"1\"\n[host]\n", "it is damaged: it has no version")]
#[case::no_host("version = 1\n", "it is damaged: missing field `host`")]
#[case::unknown_key("version = 1\n[host]\nname = 1\n", "it is damaged: unknown field `name`")]
#[case::bad_address("version = 1\n[host]\n[[device]]\nbdf = \"x\"\n", "it is damaged: `x` is no PCI address")]
#[case::bad_bar(
    "version = 1\n[host]\n[[device]]\nbdf = \"81:00.0\"\nid = \"10de:2330\"\nclass = \"030200\"\nbars = [\"16M\"]\n",
    "it is damaged: `16M` is no register"
)]
#[case::twice(
    "version = 1\n[host]\n[[device]]\nbdf = \"81:00.0\"\nid = \"10de:2330\"\nclass = \"030200\"\n[[device]]\nbdf = \"81:00.0\"\nid = \
     \"10de:2330\"\nclass = \"030200\"\n",
    "it is damaged: 0000:81:00.0 is in it twice"
)]
fn what_is_no_lock_is_refused(#[case] text: &str, #[case] says: &str) {
    let error = Lock::parse(text).unwrap_err();
    assert!(error.to_string().starts_with(says), "{error}");
    assert_eq!(matches!(error, LockError::Version { .. }), says.contains("of version"));
}

prop_compose! {
    fn a_function()(bus: u8, device in 0u8..32, function in 0u8..8, vendor: u16, id: u16, class in 0u32..0x100_0000)
        -> (String, String, String) {
        (format!("0000:{bus:02x}:{device:02x}.{function}"), format!("{vendor:04x}:{id:04x}"), format!("{class:06x}"))
    }
}

prop_compose! {
    fn a_host()(
        functions in prop::collection::vec((a_function(), 0u32..4, any::<Option<u64>>(), any::<Option<u8>>(), any::<Option<u32>>()), 1..12),
        words in "\\PC{0,40}", bars in prop::collection::vec(0u32..44, 0..6),
        product in prop::option::of("\\PC{1,20}"),
    ) -> Host {
        let mut host = Host(HostFacts::default());
        host.0.kernel.cmdline = words.clone();
        host.0.kernel.release = words;
        host.0.platform.system.product = product;
        for ((at, id, class), group, serial, revision, node) in functions {
            if host.0.devices.contains_key(&bdf(&at)) {
                continue;
            }
            let device = host.add(&at, &id, &class, group, &[]);
            (device.revision, device.node) = (revision, node);
            device.config.as_mut().unwrap().capabilities.serial = serial;
            let bar = |(index, bits): (u8, &u32)| BarFacts {
                index, size: ByteSize::bytes(1 << bits), address: None, kind: BarKind::High,
            };
            device.bars = (0..).zip(&bars).map(bar).collect();
        }
        host
    }
}

proptest! {
    #[test]
    fn a_lock_is_read_as_it_was_written_and_differs_from_itself_in_nothing(host in a_host()) {
        let all: Vec<String> = host.0.devices.keys().map(ToString::to_string).collect();
        let profile = profile(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let lock = Lock::of(&profile, &host.0).unwrap();
        prop_assert_eq!(&Lock::parse(&lock.to_toml().unwrap()).unwrap(), &lock);
        prop_assert_eq!(lock.to_toml(), Lock::parse(&lock.to_toml().unwrap()).unwrap().to_toml());
        let changes = compare(&lock, &profile, &host.0);
        let known: Vec<_> = changes.iter().filter(|change| change.severity() != Severity::Unknown).collect();
        prop_assert!(known.is_empty(), "{:?}", known);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _ = Lock::parse(&text);
        let _ = Lock::parse(&format!("version = 1\n[host]\nkernel = \"{text}\"\n"));
    }
}
