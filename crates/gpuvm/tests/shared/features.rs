//! One case for each thing that a profile can ask for, on a host that has it.

use super::hosts::{
    kernel, lab, qcow2, with_cpuinfo, with_driver, with_files, with_large_bar, with_ovmf, with_slot,
    with_small_node, with_smt, without_pools,
};
use super::{Case, Host};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

/// The lab's profile with changes.
fn case(name: &str, host: FakeHost, set: &[&str]) -> Case {
    Case {
        name: name.to_owned(),
        host: Host::Fake(host),
        profile: "profiles/lab-compute.toml".to_owned(),
        set: set.iter().map(|set| (*set).to_owned()).collect(),
    }
}

/// The cases by what they are about.
pub(crate) const GROUPS: [fn() -> Vec<Case>; 8] =
    [machine, cpus, nodes_and_memory, devices, resets, addresses, disks, displays_and_nets];

/// Returns every case.
pub(crate) fn all() -> Vec<Case> {
    GROUPS.iter().flat_map(|group| group()).collect()
}

fn machine() -> Vec<Case> {
    // Commas, quotes of both kinds, spaces and newlines, in every file that a profile names.
    let path = |end: &str| format!("/srv/it's a \"b,c\",,d=e\n{end}");
    let quoted = |end: &str| serde_json::json!(path(end)).to_string();
    let host = with_files(&[
        (&path("kernel"), &kernel()),
        (&path("initrd"), b"x"),
        (&path("rom"), &[0x55, 0xaa, 1, 0]),
        (&path("disk"), &[0; 512]),
        (&path("base"), &[0; 512]),
        ("/usr/bin/qemu-img", b"x"),
    ]);
    let (kernel, initrd) = (quoted("kernel"), quoted("initrd"));
    let odd = [
        format!("kernel={{path={kernel}, initrd={initrd}, cmdline=\"a=\\\"b,c\\\" d='e'\"}}"),
        format!("device=[{{bdf=\"82:00.0\", rom-file={}}}]", quoted("rom")),
        format!("disk=[{{path={}}}, {{path={}, mode=\"overlay\"}}]", quoted("disk"), quoted("base")),
    ];
    vec![
        case("lab-compute", lab(), &[]),
        case("uefi", with_ovmf(lab()), &["firmware=uefi"]),
        case("reboot-relaunch", lab(), &["reboot=relaunch"]),
        case("reboot-stop", lab(), &["reboot=stop"]),
        case("repair-hot", lab(), &["repair=hot"]),
        case("repair-rescan", lab(), &["repair=rescan"]),
        case("rtc-local", lab(), &["rtc=local", "serial=log", "shutdown-timeout=5"]),
        case("extra-args-taint", lab(), &[r#"extra-args=["-device", '{"driver":"edu","id":"more"}']"#]),
        case("paths-with-odd-letters", host, &odd.each_ref().map(String::as_str)),
        case("no-devices", lab(), &["device=[]"]),
    ]
}

fn cpus() -> Vec<Case> {
    let hyperv = ["cpu.hyperv=true", "cpu.hv-vendor-id=\"Some = Body\"", "cpu.kvm-hidden=true"];
    let amd = with_cpuinfo(with_smt(lab()), "AuthenticAMD", 48);
    vec![
        case("smt-siblings", with_smt(lab()), &["cpu.count=4"]),
        case("smt-siblings-on-amd", amd, &["cpu.count=4"]),
        case("smt-siblings-with-tcg", with_smt(lab()), &["cpu.count=4", "accel=tcg"]),
        case("smt-siblings-odd-count", with_smt(lab()), &["cpu.count=3"]),
        case("all-cpus-of-the-node", lab(), &["cpu.count=4"]),
        case("unpinned", lab(), &["cpu.pin=off", "memory.hugepages=off"]),
        case("unpinned-with-hugepages-and-no-node", lab(), &["cpu.pin=off", "device=[]"]),
        case("pinned-by-hand", lab(), &["cpu.pin=[7, 5, 4]"]),
        case("pinned-by-hand-on-another-node", lab(), &["cpu.pin=[0, 1, 2]", "cpu.emulator=\"3\""]),
        case("pinned-by-hand-on-two-nodes", lab(), &["cpu.count=4", "cpu.pin=[4, 5, 0, 1]"]),
        case("emulator-that-vcpus-leave-alone", lab(), &["cpu.count=2", "cpu.emulator=\"4-5\""]),
        case("emulator-elsewhere", lab(), &["cpu.emulator=\"0-3\""]),
        case("hyperv", lab(), &hyperv),
        case("cpu-flags", lab(), &["cpu.flags=[\"-x2apic\", \"+lahf-lm\"]"]),
        case("pin-policy-prefer-too-few", lab(), &["cpu.count=5", "cpu.pin-policy=prefer"]),
        case("pin-policy-prefer-offline", lab(), &["cpu.pin=[4, 5, 9]", "cpu.pin-policy=prefer"]),
    ]
}

/// The lab's host with the functions of a card in groups of their own, and a GPU that only its bus resets.
fn apart() -> FakeHost {
    let (host, audio) = (lab(), "/sys/bus/pci/devices/0000:81:00.1");
    host.file("/sys/bus/pci/devices/0000:81:00.0/reset_method", "bus\n");
    host.remove(&format!("{audio}/iommu_group"));
    host.remove("/sys/kernel/iommu_groups/16/devices/0000:81:00.1");
    host.file("/dev/vfio/30", "");
    host.link("/sys/kernel/iommu_groups/30/devices/0000:81:00.1", audio);
    host.link(&format!("{audio}/iommu_group"), "/sys/kernel/iommu_groups/30");
    host
}

/// The lab's host with devices below root ports, where their buses can be reset: a card whose graphics function has FLR and a bus
/// reset that the kernel lists and refuses, an accelerator that only its bus resets, and an NVMe that has both.
fn below_ports() -> FakeHost {
    let card = Some("0000:90:01.0");
    let host = with_slot(
        lab(),
        &[
            &FakeDevice { port: card, ..gpu("0000:91:00.0", 31, 1) },
            &FakeDevice { port: card, class: 0x04_0300, ..gpu("0000:91:00.1", 31, 1) },
            &FakeDevice {
                port: Some("0000:90:02.0"),
                class: 0x12_0000,
                driver: None,
                ..gpu("0000:92:00.0", 32, 1)
            },
            &FakeDevice { port: Some("0000:90:03.0"), ..nvme("0000:93:00.0", 33, 1) },
        ],
    );
    host.file("/sys/bus/pci/devices/0000:91:00.1/reset_method", "pm\n");
    host.file("/sys/bus/pci/devices/0000:92:00.0/reset_method", "bus\n");
    host
}

/// The same, with a device on a root bus whose methods somebody has switched off.
fn without_resets() -> FakeHost {
    let host = lab();
    host.file("/sys/bus/pci/devices/0000:82:00.0/reset_method", "\n");
    host
}

fn nodes_and_memory() -> Vec<Case> {
    let two = r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#;
    let near = r#"device=[{bdf="41:00.0", guest-address="03.1"}, {bdf="81:00.0", guest-address="04.0"}]"#;
    let elsewhere = lab();
    elsewhere.file("/sys/bus/pci/devices/0000:82:00.0/numa_node", "5\n");
    vec![
        case("device-on-a-node-that-is-offline", elsewhere, &[r#"device=[{bdf="82:00.0"}]"#]),
        case("two-gpus", lab(), &[two, "cpu.count=4"]),
        case(
            "two-gpus-uefi-ordinary-pages",
            with_ovmf(lab()),
            &[two, "cpu.count=2", "firmware=uefi", "memory.hugepages=off"],
        ),
        case("two-gpus-guest-addresses", lab(), &[near, "cpu.count=4"]),
        case("two-gpus-unpinned", lab(), &[two, "cpu.pin=off"]),
        case("two-gpus-uneven-prefer", lab(), &[two, "cpu.count=3", "cpu.pin-policy=prefer"]),
        case("hugepages-1g", lab(), &["memory.size=2G", "memory.hugepages=1G"]),
        case("hugepages-policy-prefer", without_pools(lab()), &["memory.hugepages-policy=prefer"]),
        case(
            "node-policy-prefer",
            with_small_node(lab()),
            &["memory.hugepages=off", "memory.node-policy=prefer"],
        ),
        case("memory-above-4-gib", lab(), &["memory.size=8G"]),
    ]
}

fn devices() -> Vec<Case> {
    let bound = with_driver(lab(), "0000:82:00.0", "vfio-pci");
    bound.remove("/sys/bus/pci/devices/0000:82:00.0/driver_override");
    bound.file("/sys/bus/pci/devices/0000:82:00.0/driver_override", "vfio-pci\n");
    let third = with_slot(lab(), &[&nvme("0000:84:00.3", 19, 1)]);
    let virtual_function = with_slot(
        lab(),
        &[
            &FakeDevice { driver: None, ..gpu("0000:85:00.1", 21, 1) },
            &FakeDevice { driver: None, ..gpu("0000:85:00.2", 22, 1) },
        ],
    );
    for function in ["0000:85:00.1", "0000:85:00.2"] {
        virtual_function
            .link(&format!("/sys/bus/pci/devices/{function}/physfn"), "/sys/bus/pci/devices/0000:83:00.0");
    }
    vec![
        case("already-on-vfio", bound, &[]),
        case("keeps-its-variant-driver", with_driver(lab(), "0000:81:00.0", "nvgrace-gpu-vfio-pci"), &[]),
        case("whole-bridge", lab(), &[r#"device=[{bdf="0000:04:01.0"}, {bdf="0000:04:02.0"}]"#]),
        case("hold-a-member", lab(), &[r#"device=[{bdf="04:01.0", hold=["04:02.0"]}]"#]),
        case("hold-a-function-of-another-group", apart(), &[r#"device=[{bdf="81:00.0", hold=["81:00.1"]}]"#]),
        case("hold-the-audio-function", lab(), &[r#"device=[{bdf="81:00.0", hold=["81:00.1"]}]"#]),
        case(
            "functions-listed-apart",
            lab(),
            &[r#"device=[{bdf="81:00.1"}, {bdf="82:00.0"}, {bdf="81:00.0"}]"#],
        ),
        case("function-3-alone-becomes-0", third, &[r#"device=[{bdf="84:00.3"}]"#]),
        case("one-virtual-function-of-a-card", virtual_function, &[r#"device=[{bdf="85:00.1"}]"#]),
        case(
            "chosen-by-selectors",
            lab(),
            &[
                r#"device=[{select={class="0300", node=1}}, {bdf="83:00.0"}, {select={id="1234:11e8"}, guest-address="1c.0"}]"#,
            ],
        ),
        case("allow-boot-display", lab(), &[r#"device=[{bdf="00:01.0", allow-boot-display=true}]"#]),
        case("rom-bar-off", lab(), &[r#"device=[{bdf="81:00.0", rombar=false}]"#]),
        case("boot-from-a-passed-disk", lab(), &[r#"device=[{bdf="83:00.0", boot=1}]"#]),
        case(
            "guest-addresses",
            lab(),
            &[r#"device=[{bdf="82:00.0", guest-address="1c.0"}, {bdf="83:00.0", guest-address="1c.4"}]"#],
        ),
        case(
            "guest-address-without-function-0",
            lab(),
            &[r#"device=[{bdf="82:00.0", guest-address="05.3"}]"#],
        ),
        case(
            "guest-address-where-ports-begin",
            lab(),
            &[r#"device=[{bdf="81:00.0"}, {bdf="82:00.0", guest-address="02.0"}]"#],
        ),
    ]
}

fn resets() -> Vec<Case> {
    vec![
        case("reset-none", below_ports(), &[r#"device=[{bdf="92:00.0", reset="none"}]"#]),
        case("reset-flr", below_ports(), &[r#"device=[{bdf="93:00.0", reset="flr"}]"#]),
        case("reset-bus", below_ports(), &[r#"device=[{bdf="93:00.0", reset="bus"}]"#]),
        case("reset-hot", below_ports(), &[r#"device=[{bdf="91:00.0", reset="hot"}]"#]),
        case(
            "reset-flr-of-a-card-whose-audio-has-none",
            below_ports(),
            &[r#"device=[{bdf="91:00.0", reset="flr"}]"#],
        ),
        case(
            "avoid-flr",
            below_ports(),
            &[r#"device=[{bdf="91:00.0", avoid-flr=true}, {bdf="93:00.0", avoid-flr=true}]"#],
        ),
        case("resets-as-they-are", below_ports(), &[r#"device=[{bdf="91:00.0"}, {bdf="92:00.0"}]"#]),
        case("no-reset-at-all", without_resets(), &[r#"device=[{bdf="82:00.0"}]"#]),
    ]
}

fn addresses() -> Vec<Case> {
    let gpu = r#"device=[{bdf="81:00.0"}]"#;
    let large = || with_large_bar(with_ovmf(lab()), "0000:81:00.0", 128);
    vec![
        case("bar-of-128g-widths-unknown", large(), &[gpu, "firmware=uefi"]),
        case("bar-of-128g-on-a-server", with_cpuinfo(large(), "GenuineIntel", 46), &[gpu, "firmware=uefi"]),
        case("bar-of-128g-with-seabios", large(), &[gpu]),
        case(
            "bar-of-8g-on-a-desktop",
            with_cpuinfo(with_large_bar(lab(), "0000:81:00.0", 8), "GenuineIntel", 39),
            &[gpu],
        ),
    ]
}

fn disks() -> Vec<Case> {
    let files: &[(&str, &[u8])] = &[
        ("/srv/system.qcow2", &qcow2()),
        ("/srv/data.img", &[0; 512]),
        ("/srv/installer.iso", &[0; 2048]),
        ("/srv/drivers.iso", &[0; 2048]),
        ("/usr/bin/qemu-img", b"x"),
    ];
    let order = r#"disk=[
        {path="/srv/system.qcow2", format="qcow2"}, {path="/srv/data.img", boot=2},
        {path="/srv/installer.iso", media="cdrom", boot=1}, {path="/srv/drivers.iso", media="cdrom"}]"#
        .replace('\n', "");
    let overlays = r#"disk=[{path="/srv/data.img", mode="overlay"},
        {path="/srv/system.qcow2", format="qcow2", mode="overlay", boot=1}]"#
        .replace('\n', "");
    vec![
        case("disks-and-boot-order", with_files(files), &[&order]),
        case("disk-read-only", with_files(files), &[r#"disk=[{path="/srv/data.img", mode="read-only"}]"#]),
        case("overlays", with_files(files), &[&overlays]),
        case(
            "tcg-disk-and-net",
            with_files(&[("/srv/a,b \"c\".img", b"x")]),
            &["accel=tcg", "network=user", "device=[]", r#"disk=[{path = "/srv/a,b \"c\".img"}]"#],
        ),
    ]
}

fn displays_and_nets() -> Vec<Case> {
    let forwards = r#"forward=[{host-port=2222, guest-port=22},
        {protocol="udp", host-address="0.0.0.0", host-port=5353, guest-port=53}]"#
        .replace('\n', "");
    vec![
        case("display-on-a-socket", lab(), &["display=virtual"]),
        case("display-on-loopback", lab(), &["display=virtual", "display-listen=127.0.0.1:5977"]),
        case("display-on-ipv6-loopback", lab(), &["display=virtual", "display-listen=[::1]:5977"]),
        case("forwards", lab(), &["network=user", &forwards]),
    ]
}
