//! The planner on random profiles and random hosts: it never falls over, says the same twice, and keeps its promises.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::facts::{
    Access, BarFacts, BarKind, CpuFacts, CpuVendor, DeviceFacts, FileFacts, FirmwareFacts, Holder, HostFacts,
    HugepagePool, NodeFacts, Presence, VfioFacts,
};
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::init::{Choices, NoDraft, draft};
use gpuvm_core::pci::{Bdf, ClassCode, DriverName, GroupId, PciId};
use gpuvm_core::plan::{Ownership, Plan, Role, SlotUse, Topic, plan};
use gpuvm_core::profile::{Pin, Profile, Sources, parse};
use gpuvm_core::qemu::cmdline::Start;
use gpuvm_core::qemu::{Handle, Handles, argv};
use gpuvm_core::units::{ByteSize, PageSize};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

/// The files that profiles here may name.
const DISK: &str = "/srv/a, disk \"of\" mine.img";
const DRIVERS: [Option<&str>; 5] =
    [None, Some("nvidia"), Some("nvme"), Some("vfio-pci"), Some("nvgrace-gpu-vfio-pci")];
const CLASSES: [u32; 6] = [0x03_0000, 0x03_0200, 0x04_0300, 0x01_0802, 0x02_0000, 0x06_0400];

/// What a function's `driver_override` says.
#[derive(Debug, Clone, Copy)]
enum Override {
    Unset,
    VfioPci,
    Variant,
    /// The driver that has it.
    Own,
}

impl Override {
    fn of(self, driver: Option<&str>) -> Option<DriverName> {
        match self {
            Self::Unset => None,
            Self::VfioPci => Some(DriverName::vfio_pci()),
            Self::Variant => DriverName::new("nvgrace-gpu-vfio-pci"),
            Self::Own => driver.and_then(DriverName::new),
        }
    }
}

/// A function of a slot: its class, its driver and what is set for it.
type FunctionSpec = (u32, Option<&'static str>, Override);

/// A slot of a host: its functions, and the node that they are on.
#[derive(Debug, Clone)]
struct SlotSpec {
    functions: BTreeMap<u8, FunctionSpec>,
    node: Option<u32>,
    /// Slots of one number share a group.
    group: Option<u32>,
    bar: Option<u32>,
    critical: bool,
    boot_display: bool,
}

fn slot() -> impl Strategy<Value = SlotSpec> {
    let set = prop_oneof![
        12 => Just(Override::Unset),
        1 => Just(Override::VfioPci),
        1 => Just(Override::Variant),
        1 => Just(Override::Own),
    ];
    let function = (select(&CLASSES[..]), select(&DRIVERS[..]), set);
    let functions = proptest::collection::btree_map(0u8..8, function, 1..4);
    let rare = || prop::bool::weighted(0.05);
    (
        functions,
        option::weighted(0.8, 0u32..3),
        option::weighted(0.95, 0u32..9),
        option::of(28u32..40),
        rare(),
        rare(),
    )
        .prop_map(|(functions, node, group, bar, critical, boot_display)| SlotSpec {
            functions,
            node,
            group,
            bar,
            critical,
            boot_display,
        })
}

fn device(slot: &SlotSpec, (class, driver, set): FunctionSpec) -> DeviceFacts {
    let bar = |bits: u32| BarFacts {
        index: 1,
        size: ByteSize::bytes(1 << bits),
        address: Some(1 << 40),
        kind: BarKind::High,
    };
    let presence = |there| if there { Presence::Present } else { Presence::Absent };
    DeviceFacts {
        driver: driver.map(|driver| DriverName::new(driver).unwrap()),
        driver_override: set.of(driver),
        group: slot.group.map(GroupId),
        node: slot.node,
        boot_display: presence(slot.boot_display && class >> 16 == 3),
        reset_methods: vec!["flr".to_owned()],
        upstream: vec!["0000:00:01.0".parse().unwrap()],
        holders: slot.critical.then(|| Holder::Swap { device: "/dev/x".to_owned() }).into_iter().collect(),
        bars: slot.bar.map(bar).into_iter().collect(),
        ..DeviceFacts::new(PciId { vendor: 0x10de, device: 0x2330 }, ClassCode::new(class).unwrap())
    }
}

fn devices(slots: &[SlotSpec]) -> BTreeMap<Bdf, DeviceFacts> {
    let mut devices = BTreeMap::new();
    for (bus, slot) in (0x10..).zip(slots) {
        for (function, spec) in &slot.functions {
            devices.insert(Bdf::new(0, bus, 0, *function).unwrap(), device(slot, *spec));
        }
    }
    devices
}

/// Nodes of some CPUs each, with threads or without, and some memory.
fn nodes() -> impl Strategy<Value = (BTreeMap<u32, NodeFacts>, CpuFacts)> {
    let node = (0u32..12, 0u64..80, prop::bool::weighted(0.8));
    (vec(node, 1..4), any::<bool>(), any::<bool>(), option::of(36u8..53), vec(any::<Index>(), 0..3)).prop_map(
        |(specs, threads, amd, phys_bits, taken)| {
            let (mut nodes, mut cores, mut next) = (BTreeMap::new(), Vec::new(), 0);
            for (id, (cpus, gib, pools)) in (0..).zip(specs) {
                let cpus: CpuSet = (next..next + cpus).collect();
                next += 16;
                let listed: Vec<u32> = cpus.iter().collect();
                cores.extend(
                    listed.chunks(if threads { 2 } else { 1 }).map(|core| core.iter().copied().collect()),
                );
                let pool = HugepagePool { total: 0, free: 0 };
                let sizes: &[PageSize] = if pools { &PageSize::ALL } else { &[] };
                let memory = ByteSize::bytes(gib << 30);
                let hugepages = sizes.iter().map(|size| (*size, pool)).collect();
                let distances = vec![10, 21, 31];
                nodes.insert(id, NodeFacts { cpus, memory, memory_free: memory, hugepages, distances });
            }
            let online: CpuSet =
                nodes.values().flat_map(|node| node.cpus.iter().collect::<Vec<_>>()).collect();
            let all: Vec<u32> = online.iter().collect();
            let taken = taken.iter().filter(|_| !all.is_empty()).map(|index| *index.get(&all)).collect();
            let vendor = if amd { CpuVendor::Amd } else { CpuVendor::Other };
            (nodes, CpuFacts { online, vendor, taken, cores, phys_bits })
        },
    )
}

fn firmware() -> FirmwareFacts {
    let flash = |name: &str| serde_json::json!({"filename": name, "format": "raw"});
    let content = serde_json::json!({
        "description": "UEFI", "interface-types": ["uefi"], "features": [],
        "mapping": {"device": "flash", "executable": flash("/code.fd"), "nvram-template": flash("/vars.fd")},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
    });
    FirmwareFacts { descriptor: "/60.json".into(), content: serde_json::from_value(content).unwrap() }
}

fn host() -> impl Strategy<Value = HostFacts> {
    (vec(slot(), 1..6), nodes()).prop_map(|(slots, (nodes, cpus))| {
        let devices = devices(&slots);
        let mut groups: BTreeMap<GroupId, Vec<Bdf>> = BTreeMap::new();
        for (bdf, device) in &devices {
            groups.extend(
                device.group.filter(|group| !groups.contains_key(group)).map(|group| (group, Vec::new())),
            );
            if let Some(members) = device.group.and_then(|group| groups.get_mut(&group)) {
                members.push(*bdf);
            }
        }
        let usable = FileFacts::Usable { bytes: 512, qcow2: Presence::Absent };
        HostFacts {
            cpus,
            nodes,
            iommus: vec!["dmar0".to_owned()],
            vfio: VfioFacts {
                container: Access::Usable,
                iommufd: Access::Missing,
                pci_driver: Presence::Present,
            },
            kvm: Access::Usable,
            devices,
            groups,
            files: [DISK, "/code.fd", "/vars.fd"].map(|path| (path.into(), usable)).into(),
            qemu: Some("/usr/bin/qemu-system-x86_64".into()),
            qemu_img: Some("/usr/bin/qemu-img".into()),
            firmware: vec![firmware()],
            ..HostFacts::default()
        }
    })
}

/// A root port's slot and function.
type PortAt = (u8, u8);

/// What a profile asks for, before it is fitted to a host.
#[derive(Debug, Clone)]
struct Wish {
    /// Which of the host's functions, where in the guest, and when it boots.
    devices: Vec<(Index, Option<PortAt>, Option<u32>)>,
    whole_groups: bool,
    hold: bool,
    size_mib: u32,
    hugepages: &'static str,
    policies: (&'static str, &'static str, &'static str),
    count: u32,
    pin: Option<Vec<Index>>,
    unpinned: bool,
    disks: bool,
    display: bool,
    uefi: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let policy = || select(&["strict", "prefer"][..]);
    let guest_address = option::weighted(0.3, (2u8..0x1f, 0u8..8));
    let memory = (select(&[32u32, 512, 1024, 3072, 4096, 65536][..]), select(&["off", "2M", "1G"][..]));
    let cpu = (
        select(&[1u32, 2, 2, 3, 4, 4, 6, 8][..]),
        option::weighted(0.2, vec(any::<Index>(), 8)),
        prop::bool::weighted(0.2),
    );
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (
        vec((any::<Index>(), guest_address, option::weighted(0.2, 1u32..5)), 0..5),
        prop::bool::weighted(0.8),
        memory,
        (policy(), policy(), policy()),
        cpu,
        flags,
    )
        .prop_map(
            |(devices, whole_groups, (size_mib, hugepages), policies, (count, pin, unpinned), flags)| Wish {
                devices,
                whole_groups,
                hold: flags.0,
                size_mib,
                hugepages,
                policies,
                count,
                pin,
                unpinned,
                disks: flags.1,
                display: flags.2,
                uefi: flags.3,
            },
        )
}

/// Spells a wish as a profile for a host; one that breaks the language's own rules is none.
fn profile(wish: &Wish, facts: &HostFacts) -> Option<Profile> {
    let (known, cpus): (Vec<Bdf>, Vec<u32>) =
        (facts.devices.keys().copied().collect(), facts.cpus.online.iter().collect());
    let firmware = if wish.uefi { "uefi" } else { "bios" };
    let display = if wish.display { "virtual" } else { "none" };
    let mut text =
        format!("version = 1\nname = \"x\"\nfirmware = \"{firmware}\"\ndisplay = \"{display}\"\n[memory]\n");
    text.push_str(&format!("size = \"{}M\"\nhugepages = \"{}\"\n", wish.size_mib, wish.hugepages));
    text.push_str(&format!("node-policy = \"{}\"\n", wish.policies.0));
    if wish.hugepages != "off" {
        text.push_str(&format!("hugepages-policy = \"{}\"\n", wish.policies.1));
    }
    text.push_str(&format!("[cpu]\ncount = {}\n", wish.count));
    match &wish.pin {
        _ if wish.unpinned => text.push_str("pin = \"off\"\n"),
        Some(pin) if !cpus.is_empty() => {
            let listed: Vec<u32> =
                pin.iter().take(wish.count as usize).map(|index| *index.get(&cpus)).collect();
            text.push_str(&format!("pin = {listed:?}\npin-policy = \"{}\"\n", wish.policies.2));
        }
        _ => text.push_str(&format!("pin-policy = \"{}\"\n", wish.policies.2)),
    }
    let mut listed: BTreeSet<Bdf> = BTreeSet::new();
    for (index, at, boot) in &wish.devices {
        let bdf = *index.get(&known);
        let members = facts.devices[&bdf].group.map(|group| facts.groups[&group].clone()).unwrap_or_default();
        let others = members.into_iter().filter(|other| wish.whole_groups && *other != bdf);
        let others: Vec<Bdf> = others.filter(|other| !facts.devices[other].class.is_bridge()).collect();
        if !listed.insert(bdf) {
            continue;
        }
        let others: Vec<Bdf> = others.into_iter().filter(|other| listed.insert(*other)).collect();
        text.push_str(&format!("[[device]]\nbdf = \"{bdf}\"\n"));
        text.extend(at.map(|(slot, function)| format!("guest-address = \"{slot:02x}.{function}\"\n")));
        text.extend(boot.map(|boot| format!("boot = {boot}\n")));
        if wish.hold {
            let held: Vec<String> = others.iter().map(ToString::to_string).collect();
            text.push_str(&format!("hold = {held:?}\n"));
        } else {
            text.extend(others.iter().map(|other| format!("[[device]]\nbdf = \"{other}\"\n")));
        }
    }
    if wish.disks {
        text.push_str(&format!("[[disk]]\npath = {DISK:?}\nmode = \"overlay\"\n"));
    }
    parse(&Sources::new("x.toml", text), Path::new("/")).ok()
}

fn words(plan: &Plan) -> Vec<Value> {
    let path = |name: &str| Handle::Path(name.into());
    let handles = Handles {
        monitor: path("/qmp"),
        serial: path("/serial"),
        vars: path("/vars"),
        disks: BTreeMap::new(),
        display: "/vnc".into(),
        start: Start::Paused,
    };
    let words = argv(plan, &handles);
    words.iter().filter_map(|word| serde_json::from_str(word.to_str()?).ok()).collect()
}

/// Returns the values, or fails where one is there twice.
fn unique<T: Ord + std::fmt::Debug + Clone>(
    what: &str,
    values: impl IntoIterator<Item = T>,
) -> Result<BTreeSet<T>, TestCaseError> {
    let mut seen = BTreeSet::new();
    for value in values {
        prop_assert!(seen.insert(value.clone()), "{} is there twice: {:?}", what, value);
    }
    Ok(seen)
}

fn placement_holds(plan: &Plan, profile: &Profile, facts: &HostFacts) -> Result<(), TestCaseError> {
    let pins = &plan.placement.vcpus;
    unique("a vCPU", pins.iter().map(|pin| pin.vcpu))?;
    for cpu in unique("a CPU", pins.iter().map(|pin| pin.cpu))? {
        prop_assert!(facts.cpus.online.contains(cpu) && !facts.cpus.taken.contains(cpu), "CPU {}", cpu);
    }
    prop_assert!(pins.is_empty() || pins.len() == profile.cpu.count as usize);
    let told = plan.warnings.iter().any(|warning| warning.about == Topic::Pinning);
    prop_assert!(!pins.is_empty() || told || profile.cpu.pin == Pin::Off, "vCPUs are silently not pinned");
    prop_assert_eq!(plan.placement.topology.count(), profile.cpu.count);
    prop_assert_eq!(plan.memory_size(), profile.memory.size);
    let nodes = plan.memory.len();
    prop_assert!(nodes == 1 || (nodes == plan.placement.nodes.len() && pins.len().is_multiple_of(nodes)));
    prop_assert!(plan.distances.is_empty() || plan.distances.len() == nodes);
    Ok(())
}

fn groups_are_whole(plan: &Plan, facts: &HostFacts) -> Result<(), TestCaseError> {
    let owned: BTreeSet<Bdf> = plan.owned().map(|owned| owned.bdf).collect();
    for bdf in &owned {
        let group = facts.devices[bdf].group.unwrap();
        prop_assert!(plan.groups.iter().any(|planned| planned.id == group), "{}'s group isn't planned", bdf);
    }
    for group in &plan.groups {
        let members: Vec<Bdf> = group.members.iter().map(|member| member.bdf).collect();
        prop_assert_eq!(&members, &facts.groups[&group.id]);
        for member in &group.members {
            let bridge = facts.devices[&member.bdf].class.is_bridge();
            prop_assert_eq!(member.role == Role::Bridge, bridge, "{}", member.bdf);
            prop_assert_eq!(owned.contains(&member.bdf), !bridge, "{}", member.bdf);
        }
    }
    for owned in plan.owned() {
        let binds = plan
            .operations
            .iter()
            .filter(|planned| matches!(planned.op, HostOp::Bind { bdf, .. } if bdf == owned.bdf));
        let ours = matches!(owned.ownership, Ownership::BoundByUs { .. });
        prop_assert_eq!(binds.count(), usize::from(ours), "{}", owned.bdf);
        let sets = plan.operations.iter().filter(
            |planned| matches!(planned.op, HostOp::SetDriverOverride { bdf, .. } if bdf == owned.bdf),
        );
        let set = facts.devices[&owned.bdf].driver_override == Some(DriverName::vfio_pci());
        prop_assert_eq!(sets.count(), usize::from(ours && !set), "{}", owned.bdf);
    }
    Ok(())
}

fn addresses_hold(plan: &Plan, profile: &Profile) -> Result<(), TestCaseError> {
    let ports = &plan.pcie.ports;
    unique("a port's number", ports.iter().map(|port| port.index))?;
    let at = unique("a port's place", ports.iter().map(|port| (port.root, port.slot, port.function)))?;
    for port in ports {
        prop_assert!(at.contains(&(port.root, port.slot, 0)), "slot {:x} has no function 0", port.slot);
        prop_assert!(
            plan.pcie
                .expanders
                .iter()
                .all(|other| port.root != Default::default() || other.slot != port.slot)
        );
        if let SlotUse::Passthrough { functions } = &port.holds {
            let numbers = unique("a function", functions.iter().map(|(function, _)| *function))?;
            prop_assert!(numbers.contains(&0), "{:?} has no function 0", functions);
            let slots: BTreeSet<_> = functions.iter().map(|(_, bdf)| bdf.slot()).collect();
            prop_assert_eq!(slots.len(), 1, "{:?} are of one port", functions);
        }
    }
    for device in profile.devices.iter().filter(|device| device.guest_address.is_some()) {
        let guest = plan.devices.iter().find(|planned| planned.bdf == device.bdf).unwrap().guest;
        let port = ports.iter().find(|port| port.index == guest.port).unwrap();
        let asked = device.guest_address.unwrap();
        prop_assert_eq!((port.slot, port.function), (asked.slot, asked.function), "{}", device.bdf);
    }
    Ok(())
}

fn command_line_holds(plan: &Plan) -> Result<(), TestCaseError> {
    let words = words(plan);
    let text = |word: &Value, key: &str| word.get(key).and_then(Value::as_str).map(str::to_owned);
    let of = |driver: &str| -> Vec<&Value> { words.iter().filter(|word| word["driver"] == driver).collect() };
    let passed = unique("a passed function", of("vfio-pci").iter().filter_map(|word| text(word, "host")))?;
    prop_assert_eq!(
        passed,
        plan.devices.iter().map(|device| device.bdf.to_string()).collect::<BTreeSet<_>>()
    );
    unique("an id", words.iter().filter_map(|word| text(word, "id")))?;
    let places = words.iter().filter_map(|word| Some((text(word, "bus")?, text(word, "addr")?)));
    unique("an address", places)?;
    unique("a place in the boot order", words.iter().filter_map(|word| word["bootindex"].as_u64()))?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_plan_keeps_its_promises((facts, wish) in (host(), wish())) {
        let Some(profile) = profile(&wish, &facts) else { return Ok(()) };
        let planned = plan(&profile, &facts);
        prop_assert_eq!(&planned, &plan(&profile, &facts), "it says otherwise when asked again");
        match planned {
            Err(refusals) => {
                prop_assert!(!refusals.is_empty());
                unique("a refusal", refusals.iter().map(ToString::to_string))?;
            }
            Ok(plan) => {
                placement_holds(&plan, &profile, &facts)?;
                groups_are_whole(&plan, &facts)?;
                addresses_hold(&plan, &profile)?;
                command_line_holds(&plan)?;
                let text = serde_json::to_string(&plan).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Plan>(&text).unwrap(), &plan, "it isn't what was kept");
            }
        }
    }
}

/// How the host of a draft must be: all that is mended without another profile is mended.
fn made_ready(facts: &HostFacts) -> HostFacts {
    let mut ready = facts.clone();
    (ready.vfio.container, ready.vfio.pci_driver) = (Access::Usable, Presence::Present);
    ready.kvm = Access::Usable;
    ready.qemu = Some("/usr/bin/qemu-system-x86_64".into());
    ready
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_first_profile_is_planned_or_refused_with_reasons(facts in host()) {
        for device in facts.devices.keys() {
            match draft(&facts, *device, &Choices::default()) {
                Ok(draft) => {
                    let profile = parse(&Sources::new("x", &draft.text), Path::new("/"));
                    let profile = profile.map_err(|problems| TestCaseError::fail(format!("{problems:?}\n{}", draft.text)))?;
                    let planned = plan(&profile, &made_ready(&facts));
                    prop_assert!(planned.is_ok(), "{:?}\n{}", planned, draft.text);
                    prop_assert_eq!(plan(&profile, &facts).err().unwrap_or_default(), draft.not_ready);
                }
                Err(NoDraft::Refused(refusals)) => prop_assert!(!refusals.is_empty()),
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

/// A property that holds because nothing is ever planned would be none.
#[test]
fn random_hosts_take_some_profiles_and_refuse_others() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut planned, mut several, mut held, mut overridden) = (0, 0, 0, 0);
    for _ in 0..2000 {
        let (facts, wish) = (host(), wish()).new_tree(&mut runner).unwrap().current();
        let Some(Ok(plan)) = profile(&wish, &facts).map(|profile| plan(&profile, &facts)) else { continue };
        planned += usize::from(!plan.devices.is_empty());
        several += usize::from(plan.memory.len() > 1);
        held += usize::from(!plan.held.is_empty());
        overridden +=
            plan.owned().filter(|owned| facts.devices[&owned.bdf].driver_override.is_some()).count();
    }
    assert!(
        planned > 100 && several > 10 && held > 20 && overridden > 10,
        "{planned} planned, {several} of several nodes, {held} hold, {overridden} devices with an override"
    );
}
