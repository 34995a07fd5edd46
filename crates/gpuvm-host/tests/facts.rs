//! Facts as they are read from a tree.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use rstest::rstest;
use std::collections::BTreeSet;
use std::path::Path;

use gpuvm_core::facts::{Access, Holder, HostFacts, Presence, ProcessFacts, Users};
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::units::PageSize;
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

fn profile(devices: &[&str]) -> Profile {
    let mut text = String::from(
        "version = 1\nname = \"x\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n",
    );
    for bdf in devices {
        text.push_str(&format!("[[device]]\nbdf = \"{bdf}\"\n"));
    }
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

fn read(host: &FakeHost, devices: &[&str]) -> HostFacts {
    facts::read(&host.root(), &profile(devices)).unwrap()
}

fn holders(host: &FakeHost, bdf: &str) -> Vec<Holder> {
    read(host, &[bdf]).devices[&bdf.parse().unwrap()].holders.clone()
}

#[test]
fn scope_is_the_slot_and_the_groups_and_nothing_else() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.device(&FakeDevice { class: 0x04_0300, ..gpu("0000:81:00.1", 8, 1) });
    host.device(&nvme("0000:82:00.0", 8, 1));
    host.device(&nvme("0000:83:00.0", 9, 1));
    let facts = read(&host, &["0000:81:00.0"]);
    let found: Vec<String> = facts.devices.keys().map(ToString::to_string).collect();
    assert_eq!(found, ["0000:81:00.0", "0000:81:00.1", "0000:82:00.0"]);
    assert_eq!(facts.groups.len(), 2);
}

/// A whole entry of the host's own.
fn quirk(name: &str, behaviour: &str) -> String {
    format!(
        "[[quirk]]\nname = \"{name}\"\nvendor = \"10de\"\ndevices = [\"2330\"]\nbehaviour = \"{behaviour}\"\neffects = []\n\
         advice = \"wait\"\nsource = \"us\"\nconfidence = \"one-report\"\n"
    )
}

#[test]
fn quirks_of_the_host_are_read_by_the_names_of_their_files() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    assert!(read(&host, &["0000:81:00.0"]).quirks.is_empty());
    let folder = "/etc/gpuvm/quirks.d";
    host.file(&format!("{folder}/20-b.toml"), quirk("mine", "it is late"));
    host.file(&format!("{folder}/10-a.toml"), quirk("mine", "it is early"));
    host.file(&format!("{folder}/30-c.toml.off"), "[[");
    let facts = read(&host, &["0000:81:00.0"]);
    let said: Vec<&str> = facts.quirks.entries.iter().map(|quirk| quirk.behaviour.as_str()).collect();
    assert_eq!(said, ["it is late"]);
    assert_eq!(facts.quirks.entries[0].file.as_deref(), Some("/etc/gpuvm/quirks.d/20-b.toml"));
    let found = gpuvm_core::reset::quirks_of("0000:81:00.0".parse().unwrap(), &facts);
    assert!(found.iter().any(|found| found.quirk.name == "mine"));
    host.file(&format!("{folder}/30-c.toml"), "[[");
    let problems = read(&host, &["0000:81:00.0"]).quirks.problems;
    assert!(problems.iter().all(|problem| problem.file.ends_with("30-c.toml")), "{problems:?}");
    assert!(!problems.is_empty());
}

#[test]
fn a_file_of_quirks_that_cant_be_read_is_told_and_those_beside_it_are_read() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    let folder = "/etc/gpuvm/quirks.d";
    host.file(&format!("{folder}/10-a.toml"), quirk("mine", "it is late"));
    host.file(&format!("{folder}/20-folder.toml/what"), "");
    std::os::unix::fs::symlink("nowhere", host.root().path(format!("{folder}/30-link.toml"))).unwrap();
    let quirks = read(&host, &["0000:81:00.0"]).quirks;
    assert_eq!(quirks.entries.len(), 1);
    let told: Vec<String> = quirks.problems.iter().map(ToString::to_string).collect();
    let [folder, link] = &told[..] else { panic!("{told:?}") };
    assert!(folder.starts_with("/etc/gpuvm/quirks.d/20-folder.toml: it can't be read: "), "{folder}");
    assert_eq!(link, "/etc/gpuvm/quirks.d/30-link.toml: it can't be read: it leads nowhere");
}

/// A plan looks at no bridge, and still has to know which of them mark what is below.
#[test]
fn of_the_port_right_above_a_device_its_ids_are_read() {
    let host = FakeHost::new();
    let port = Some("0000:80:01.0");
    host.device(&FakeDevice {
        id: (0x10de, 0x22ce),
        class: 0x06_0400,
        driver: None,
        ..gpu("0000:80:01.0", 6, 1)
    });
    host.device(&FakeDevice { port, ..gpu("0000:81:00.0", 7, 1) });
    let asked = read(&host, &["0000:81:00.0"]);
    let above: Vec<String> = asked.ports.iter().map(|(bdf, id)| format!("{bdf} {id}")).collect();
    assert_eq!(above, ["0000:80:01.0 10de:22ce"]);
    let all = facts::survey(&host.root(), &Scope::All, Depth::Sysfs, None).unwrap();
    assert!(all.ports.is_empty(), "it is among the devices");
    let asked = [&"0000:81:00.0".parse().unwrap()].into_iter().copied().collect();
    let narrowed = facts::narrow(all, &Scope::Devices(asked), Depth::Sysfs);
    assert_eq!(narrowed.ports.len(), 1);
}

/// A reset of the bus is of all that is on it, in whichever slot and group; a virtual function there goes by another bus.
#[test]
fn scope_takes_in_what_shares_a_bus_below_a_port() {
    let host = FakeHost::new();
    let port = Some("0000:80:01.0");
    host.device(&FakeDevice { port, ..gpu("0000:81:00.0", 7, 1) });
    host.device(&FakeDevice { port, ..gpu("0000:81:01.0", 8, 1) });
    host.device(&FakeDevice { port, driver: None, ..gpu("0000:81:02.0", 9, 1) });
    host.link("/sys/bus/pci/devices/0000:81:02.0/physfn", "/sys/bus/pci/devices/0000:81:01.0");
    host.device(&nvme("0000:82:00.0", 10, 1));
    host.device(&nvme("0000:82:01.0", 11, 1));
    let found = |device: &str| {
        let facts = read(&host, &[device]);
        facts.devices.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(found("0000:81:00.0"), ["0000:81:00.0", "0000:81:01.0"]);
    assert_eq!(found("0000:81:02.0"), ["0000:81:02.0"], "a virtual function is reset by itself");
    assert_eq!(found("0000:82:00.0"), ["0000:82:00.0"], "a root bus can't be reset");
}

#[test]
fn a_device_is_read_as_sysfs_tells() {
    let host = FakeHost::new();
    host.device(&FakeDevice { boot_vga: Some(1), port: Some("0000:80:01.0"), ..gpu("0000:81:00.0", 7, -1) });
    host.file("/sys/bus/pci/devices/0000:81:00.0/driver_override", "vfio-pci\n");
    let facts = read(&host, &["0000:81:00.0"]);
    let device = &facts.devices[&"0000:81:00.0".parse().unwrap()];
    assert_eq!(device.id.to_string(), "10de:2330");
    assert_eq!(device.class.to_string(), "030200");
    assert_eq!(device.driver.as_ref().unwrap().as_str(), "nvidia");
    assert_eq!(device.driver_override.as_ref().unwrap().as_str(), "vfio-pci");
    assert_eq!(device.node, None);
    assert_eq!(device.boot_display, Presence::Present);
    assert_eq!(device.upstream, ["0000:80:01.0".parse().unwrap()]);
    assert_eq!(device.reset_methods, ["flr", "bus"]);
}

#[test]
fn nodes_pools_and_device_nodes_are_read() {
    let host = FakeHost::new();
    host.remove("/dev/kvm");
    let facts = read(&host, &[]);
    assert_eq!(facts.nodes[&1].cpus.to_string(), "4-7");
    assert_eq!(facts.nodes[&1].memory.to_string(), "64G");
    assert_eq!(facts.nodes[&0].hugepages.keys().copied().collect::<Vec<_>>(), PageSize::ALL);
    assert_eq!((facts.kvm, facts.vfio.container), (Access::Missing, Access::Usable));
    assert_eq!(facts.vfio.pci_driver, Presence::Present);
}

/// Puts a disk with a partition below an NVMe controller.
fn with_disk(host: &FakeHost, bdf: &str) {
    let disk = format!("/sys/bus/pci/devices/{bdf}/nvme/nvme0/nvme0n1");
    host.file(&format!("{disk}/nvme0n1p1/partition"), "1\n");
    host.link("/sys/class/block/nvme0n1", &disk);
    host.link("/sys/class/block/nvme0n1p1", &format!("{disk}/nvme0n1p1"));
    host.file("/dev/nvme0n1p1", "");
}

#[test]
fn a_mounted_partition_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/proc/self/mountinfo", "36 35 259:1 / /srv/my\\040data rw - ext4 /dev/nvme0n1p1 rw\n");
    let holder = Holder::Mount {
        device: "/dev/nvme0n1p1".into(),
        target: "/srv/my data".into(),
        users: Users::default(),
    };
    assert_eq!(holders(&host, "0000:01:00.0"), [holder]);
}

#[rstest]
#[case::by_its_tag("9p root rw,trans=virtio", Some("root\0"), true)]
#[case::another_tag("9p root rw,trans=virtio", Some("other\0"), false)]
#[case::no_tag_is_told("9p root rw,trans=virtio", None, true)]
#[case::over_the_network("9p 10.0.0.1 rw,trans=tcp", None, false)]
#[case::virtiofs_is_of_another_device("virtiofs root rw", Some("root\0"), false)]
fn a_folder_of_the_hypervisor_holds_the_device_that_carries_it(
    #[case] mount: &str,
    #[case] tag: Option<&str>,
    #[case] held: bool,
) {
    let host = FakeHost::new();
    // Two devices: the second has the tag where the first has another.
    for (bdf, group, own, tag) in
        [("0000:00:1e.0", 1, "virtio0", tag), ("0000:00:1f.0", 2, "virtio1", tag.map(|_| "root\n"))]
    {
        host.device(&FakeDevice { class: 0x00_0200, driver: Some("virtio-pci"), ..gpu(bdf, group, 0) });
        let folder = format!("/sys/bus/pci/devices/{bdf}/{own}");
        host.file(&format!("{folder}/status"), "");
        tag.inspect(|tag| host.file(&format!("{folder}/mount_tag"), tag));
        host.link(&format!("/sys/bus/virtio/drivers/9pnet_virtio/{own}"), &folder);
    }
    host.file("/proc/self/mountinfo", format!("1 0 0:20 / / rw - {mount}\n"));
    assert_eq!(!holders(&host, "0000:00:1e.0").is_empty(), held);
}

#[test]
fn a_volume_on_a_disk_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p1", "");
    host.link("/sys/class/block/dm-0", "/sys/devices/virtual/block/dm-0");
    host.file("/dev/dm-0", "");
    host.link("/dev/mapper/root", "/dev/dm-0");
    host.file("/proc/self/mountinfo", "36 35 0:44 /@ / rw - btrfs /dev/mapper/root rw\n");
    assert_eq!(holders(&host, "0000:01:00.0").len(), 1);
}

#[test]
fn swap_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n");
    assert_eq!(holders(&host, "0000:01:00.0"), [Holder::Swap { device: "/dev/nvme0n1p1".into() }]);
}

#[test]
fn the_route_out_holds_its_card_through_a_bridge() {
    let host = FakeHost::new();
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000e"), ..gpu("0000:02:00.0", 2, 0) });
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:02:00.0");
    host.link("/sys/class/net/br0/lower_eth0", "/sys/class/net/eth0");
    host.file(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         br0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
         br0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
    );
    let destinations = ["10.0.2.0/24", "default"].map(str::to_owned).into();
    assert_eq!(holders(&host, "0000:02:00.0"), [Holder::Route { interface: "br0".into(), destinations }]);
}

#[test]
fn an_ipv6_route_counts_and_the_kernels_unreachable_entry_does_not() {
    let host = FakeHost::new();
    host.device(&FakeDevice { class: 0x02_0000, ..gpu("0000:02:00.0", 2, 0) });
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:02:00.0");
    let zero = "0".repeat(32);
    let entry = |flags: &str, interface: &str| {
        format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {interface}\n")
    };
    host.file("/proc/net/ipv6_route", entry("00200200", "lo"));
    assert_eq!(holders(&host, "0000:02:00.0"), []);
    host.file("/proc/net/ipv6_route", entry("00450003", "eth0"));
    assert_eq!(holders(&host, "0000:02:00.0").len(), 1);
}

#[test]
fn a_damaged_attribute_is_named_with_its_content() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.file("/sys/bus/pci/devices/0000:81:00.0/numa_node", b"\xff\xfe");
    let error = facts::read(&host.root(), &profile(&["0000:81:00.0"])).unwrap_err().to_string();
    assert!(error.contains("0000:81:00.0/numa_node"), "{error}");
}

#[test]
fn firmware_descriptors_in_etc_mask_those_in_usr() {
    let host = FakeHost::new();
    let descriptor = |code: &str| {
        serde_json::json!({"description": "UEFI", "interface-types": ["uefi"], "features": [],
            "mapping": {"device": "flash", "executable": {"filename": code, "format": "raw"},
                "nvram-template": {"filename": "/vars", "format": "raw"}},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]})
        .to_string()
    };
    host.file("/usr/share/qemu/firmware/40-a.json", descriptor("/usr/a"));
    host.file("/usr/share/qemu/firmware/50-b.json", descriptor("/usr/b"));
    host.file("/usr/share/qemu/firmware/60-broken.json", "{");
    host.file("/etc/qemu/firmware/40-a.json", "");
    host.file("/etc/qemu/firmware/50-b.json", descriptor("/etc/b"));
    let mut profile = profile(&[]);
    profile.firmware = gpuvm_core::profile::FirmwareKind::Uefi;
    let facts = facts::read(&host.root(), &profile).unwrap();
    let codes: Vec<_> = facts
        .firmware
        .iter()
        .map(|found| found.content.mapping.executable.as_ref().unwrap().filename.clone())
        .collect();
    assert_eq!(codes, [Path::new("/etc/b")]);
}

#[test]
fn a_root_mounted_as_dev_root_is_found_by_its_numbers() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.link("/sys/dev/block/259:2", "/sys/class/block/nvme0n1p1");
    host.file("/proc/self/mountinfo", "1 0 259:2 / / rw - ext4 /dev/root rw\n");
    let holder = Holder::Mount { device: "/dev/root".into(), target: "/".into(), users: Users::default() };
    assert_eq!(holders(&host, "0000:01:00.0"), [holder]);
}

#[test]
fn the_firmwares_words_are_read_and_its_blanks_are_none() {
    let host = FakeHost::new();
    host.file("/sys/class/dmi/id/sys_vendor", "Supermicro\n");
    host.file("/sys/class/dmi/id/bios_version", "2.1\n");
    host.file("/sys/class/dmi/id/bios_date", "07/14/2025\n");
    host.file("/sys/class/dmi/id/board_name", "    \n");
    let facts = facts::survey(&host.root(), &Scope::Devices(BTreeSet::new()), Depth::Sysfs, None).unwrap();
    let system = facts.platform.system;
    assert_eq!(system.vendor.as_deref(), Some("Supermicro"));
    assert_eq!(
        (system.bios_version.as_deref(), system.bios_date.as_deref()),
        (Some("2.1"), Some("07/14/2025"))
    );
    assert_eq!((system.board, system.product, system.bios_vendor), (None, None, None));
}

/// Makes a process with a file open for each of these paths.
fn process(host: &FakeHost, pid: i32, command: &str, files: &[&str]) -> ProcessFacts {
    host.file(&format!("/proc/{pid}/comm"), format!("{command}\n"));
    // The kernel's own threads have none.
    host.link(&format!("/proc/{pid}/exe"), &format!("/usr/bin/{command}"));
    for (fd, file) in files.iter().enumerate() {
        let link = host.path(&format!("/proc/{pid}/fd/{fd}"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        // As the kernel shows them: whatever the root that is looked at.
        std::os::unix::fs::symlink(file, link).unwrap();
    }
    ProcessFacts { pid, command: command.to_owned() }
}

/// Gives a device of the host a file, as sysfs shows it.
fn node(host: &FakeHost, bdf: &str, numbers: &str, class: &str, name: &str) {
    let base = name.rsplit('/').next().unwrap();
    let folder = format!("/sys/bus/pci/devices/{bdf}/{class}/{base}");
    host.file(&format!("{folder}/uevent"), format!("MAJOR=1\nDEVNAME={name}\n"));
    host.link(&format!("/sys/dev/char/{numbers}"), &folder);
    host.file(&format!("/dev/{name}"), "");
}

fn opened(process: &ProcessFacts, files: &[&str]) -> Holder {
    Holder::Process { process: process.clone(), files: files.iter().map(|file| (*file).into()).collect() }
}

#[test]
fn who_has_device_files_open_is_named_once_with_all_of_them() {
    let host = FakeHost::new();
    host.device(&FakeDevice { driver: Some("amdgpu"), ..gpu("0000:81:00.0", 7, 1) });
    host.device(&FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..gpu("0000:81:00.1", 7, 1) });
    host.device(&FakeDevice { driver: Some("amdgpu"), ..gpu("0000:82:00.0", 8, 1) });
    node(&host, "0000:81:00.0", "226:1", "drm", "dri/card1");
    node(&host, "0000:81:00.0", "226:128", "drm", "dri/renderD128");
    node(&host, "0000:82:00.0", "226:2", "drm", "dri/card2");
    node(&host, "0000:81:00.1", "116:2", "sound/card0", "snd/controlC0");
    host.file("/dev/kfd", "");
    let xorg =
        process(&host, 41, "Xorg", &["/dev/null", "/dev/dri/card1", "/dev/dri/renderD128", "/dev/dri/card1"]);
    let mixer = process(&host, 42, "pipewire", &["/dev/snd/controlC0", "socket:[1]"]);
    let compute = process(&host, 43, "python", &["/dev/kfd"]);
    process(&host, 44, "bash", &["/dev/dri/card3", "/dev/tty"]);
    let facts = read(&host, &["0000:81:00.0", "0000:82:00.0"]);
    let of = |bdf: &str| facts.devices[&bdf.parse().unwrap()].holders.clone();
    let card = [opened(&xorg, &["/dev/dri/card1", "/dev/dri/renderD128"]), opened(&compute, &["/dev/kfd"])];
    assert_eq!(of("0000:81:00.0"), card);
    assert_eq!(of("0000:81:00.1"), [opened(&mixer, &["/dev/snd/controlC0"])]);
    assert_eq!(of("0000:82:00.0"), [opened(&compute, &["/dev/kfd"])]);
}

#[test]
fn an_nvidia_card_is_known_by_the_minor_number_that_its_driver_tells() {
    let host = FakeHost::new();
    for (bdf, group, minor) in [("0000:81:00.0", 7, 0), ("0000:82:00.0", 8, 1)] {
        host.device(&gpu(bdf, group, 1));
        let information =
            format!("Model: \t\t NVIDIA H100\nBus Location: \t {bdf}\nDevice Minor: \t {minor}\n");
        host.file(&format!("/proc/driver/nvidia/gpus/{bdf}/information"), information);
        host.file(&format!("/dev/nvidia{minor}"), "");
    }
    host.file("/dev/nvidiactl", "");
    let daemon = process(&host, 50, "nvidia-persiste", &["/dev/nvidiactl", "/dev/nvidia1"]);
    let files: [&[&str]; 2] = [&["/dev/nvidiactl"], &["/dev/nvidia1", "/dev/nvidiactl"]];
    for (bdf, files) in ["0000:81:00.0", "0000:82:00.0"].into_iter().zip(files) {
        assert_eq!(holders(&host, bdf), [opened(&daemon, files)], "{bdf}");
    }
}

#[test]
fn a_process_with_the_vfio_group_open_is_a_virtual_machine() {
    let host = FakeHost::new();
    host.device(&FakeDevice { driver: Some("vfio-pci"), ..gpu("0000:81:00.0", 7, 1) });
    node(&host, "0000:81:00.0", "510:0", "vfio-dev", "vfio/devices/vfio0");
    let qemu =
        process(&host, 60, "qemu-system-x86", &["/dev/vfio/vfio", "/dev/vfio/7", "/dev/vfio/devices/vfio0"]);
    let files = ["/dev/vfio/7", "/dev/vfio/devices/vfio0"].map(std::path::PathBuf::from).into();
    assert_eq!(holders(&host, "0000:81:00.0"), [Holder::Vfio { process: qemu, files, vm: None }]);
}

#[test]
fn the_users_of_a_mounted_disk_are_counted_and_those_of_other_mounts_below_are_not() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file(
        "/proc/self/mountinfo",
        "36 35 259:1 / /srv rw - ext4 /dev/nvme0n1p1 rw\n\
         37 35 259:1 / /bind rw - ext4 /dev/nvme0n1p1 rw\n\
         38 36 0:5 / /srv/tmp rw - tmpfs tmpfs rw\n",
    );
    let reader = process(&host, 70, "cat", &["/srv/file", "/srv/other"]);
    process(&host, 71, "tmp", &["/srv/tmp/file", "/srvx", "/home"]);
    let shell = process(&host, 72, "bash", &["/dev/tty"]);
    std::os::unix::fs::symlink("/bind", host.path("/proc/72/cwd")).unwrap();
    let raw = process(&host, 73, "dd", &["/dev/nvme0n1p1"]);
    let users = Users { count: 2, some: vec![reader, shell] };
    let mount = Holder::Mount { device: "/dev/nvme0n1p1".into(), target: "/srv".into(), users };
    assert_eq!(holders(&host, "0000:01:00.0"), [mount, opened(&raw, &["/dev/nvme0n1p1"])]);
}

#[test]
fn the_text_console_is_noted_on_the_first_framebuffer_alone() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.device(&gpu("0000:82:00.0", 8, 1));
    for (bdf, framebuffer) in [("0000:81:00.0", "fb0"), ("0000:82:00.0", "fb1")] {
        let folder = format!("/sys/bus/pci/devices/{bdf}/graphics/{framebuffer}");
        host.file(&format!("{folder}/name"), "");
        host.link(&format!("/sys/class/graphics/{framebuffer}"), &folder);
    }
    host.file("/proc/fb", "1 amdgpudrmfb\n0 amdgpudrmfb\n");
    host.file("/sys/class/vtconsole/vtcon0/name", "(S) dummy device\n");
    host.file("/sys/class/vtconsole/vtcon0/bind", "1\n");
    assert_eq!(holders(&host, "0000:81:00.0"), []);
    host.file("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n");
    host.file("/sys/class/vtconsole/vtcon1/bind", "1\n");
    assert_eq!(holders(&host, "0000:81:00.0"), [Holder::Console { framebuffer: "fb0".into() }]);
    assert_eq!(holders(&host, "0000:82:00.0"), []);
}

#[test]
fn the_vfio_drivers_that_fit_a_device_are_read_with_the_drivers_of_loaded_modules() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.device(&gpu("0000:82:00.0", 8, 1));
    let modalias = "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00\n";
    host.file("/sys/bus/pci/devices/0000:81:00.0/modalias", modalias);
    host.file(
        "/lib/modules/6.12.0-fake/modules.alias",
        "# Aliases extracted from modules themselves.\n\
         alias pci:v000010DEd*sv*sd*bc03sc*i* nvidia\n\
         alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci\n\
         alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n\
         alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n",
    );
    host.link("/sys/module/nvgrace_gpu_vfio_pci/drivers/pci:nvgrace-gpu-vfio-pci", "/sys/bus/pci/drivers/x");
    let facts = read(&host, &["0000:81:00.0", "0000:82:00.0"]);
    let of = |bdf: &str| {
        let aliases = facts.devices[&bdf.parse().unwrap()].vfio_aliases.clone();
        aliases.into_iter().map(|alias| (alias.module, alias.driver.map(|driver| driver.to_string())))
    };
    let found: Vec<_> = of("0000:81:00.0").collect();
    let driver = "nvgrace-gpu-vfio-pci".to_owned();
    assert_eq!(found, [("nvgrace_gpu_vfio_pci".to_owned(), Some(driver)), ("vfio_pci".to_owned(), None)]);
    assert_eq!(of("0000:82:00.0").count(), 0, "a device without modalias");
}
