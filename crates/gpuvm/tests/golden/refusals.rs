//! Hosts and requests that don't fit together: what is told, and how gpuvm ends.

use std::fs;

use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

use crate::gpuvm_on;
use crate::shared::golden::compare;
use crate::shared::hosts::{
    NOT_READABLE, NOT_WRITABLE, forbid, lab, qcow2, with_cpuinfo, with_large_bar, with_ovmf, with_small_node,
    without_pools,
};

/// A host that can't run the profile: its name, how gpuvm ends, what is changed on the lab's host, and what is set.
type Unfit = (&'static str, i32, fn(FakeHost) -> FakeHost, &'static [&'static str]);

const SAME: fn(FakeHost) -> FakeHost = |host| host;

fn unreadable_serial(host: FakeHost) -> FakeHost {
    forbid(&host, "/sys/bus/pci/devices/0000:82:00.0/config", NOT_READABLE);
    host
}

const DEVICES: &[Unfit] = &[
    ("unknown-device", 78, SAME, &[r#"device=[{bdf="0000:99:00.0"}]"#]),
    ("unknown-function", 78, SAME, &[r#"device=[{bdf="0000:81:00.7"}]"#]),
    ("select-fits-none", 78, SAME, &[r#"device=[{select={id="10de:2331", node=1}}]"#]),
    ("select-fits-several", 78, SAME, &[r#"device=[{select={id="1234:1111"}}]"#]),
    ("select-fits-fewer", 78, SAME, &[r#"device=[{select={id="1234:1111", nth=3}}]"#]),
    ("select-fits-one-that-is-named", 78, SAME, &[r#"device=[{bdf="82:00.0"}, {select={id="1234:11e8"}}]"#]),
    (
        "select-of-a-serial-number-that-cannot-be-read",
        78,
        unreadable_serial,
        &[
            r#"device=[{select={class="0302", serial="00-15-17-ff-ff-aa-bb-cc"}}, {select={slot="82:00", serial="00-15-17-ff-ff-aa-bb-cc"}}]"#,
        ],
    ),
    (
        "select-of-two-cards-for-one-place",
        78,
        SAME,
        &[r#"device=[{bdf="82:00.0", guest-address="1c.0"}, {select={slot="83:00"}, guest-address="1c.0"}]"#],
    ),
    (
        "quirks-of-the-host-that-cant-be-read",
        78,
        |host| {
            host.file("/etc/gpuvm/quirks.d/10-ours.toml", "[[quirk]]\nname = \"ours\"\nvendr = \"10de\"\n");
            host.file("/etc/gpuvm/quirks.d/20-ours.toml", "[[quirk]\n");
            host.file("/etc/gpuvm/quirks.d/README", "not looked at");
            host
        },
        &[],
    ),
    ("bridge", 78, SAME, &[r#"device=[{bdf="0000:03:00.0"}]"#]),
    ("foreign-member", 69, SAME, &[r#"device=[{bdf="0000:04:01.0"}]"#]),
    (
        "member-that-is-not-there",
        69,
        |host| {
            host.link(
                "/sys/kernel/iommu_groups/17/devices/0000:86:00.0",
                "/sys/devices/pci0000:80/0000:86:00.0",
            );
            host
        },
        &[],
    ),
    ("audio-without-its-gpu", 69, SAME, &[r#"device=[{bdf="0000:81:00.1"}]"#]),
    ("mounted", 69, SAME, &[r#"device=[{bdf="0000:02:00.0"}]"#]),
    ("route-out", 69, SAME, &[r#"device=[{bdf="0000:01:00.0"}]"#]),
    ("boot-display", 69, SAME, &[r#"device=[{bdf="0000:00:01.0"}]"#]),
    (
        "boot-display-allowed-for-another",
        69,
        SAME,
        &[r#"device=[{bdf="00:01.0"}, {bdf="82:00.0", allow-boot-display=true}]"#],
    ),
    (
        "route-to-a-network",
        69,
        |host| {
            let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
            let route = "eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
            changed(host, "/proc/net/route", format!("{head}{route}"))
        },
        &[r#"device=[{bdf="0000:01:00.0"}]"#],
    ),
    (
        "opened-by-a-process",
        75,
        |host| opened(card_node(host), 4242, "Xorg", &["/dev/dri/card1"]),
        &[r#"device=[{bdf="0000:81:00.0"}]"#],
    ),
    (
        "opened-by-nvidias-daemon",
        75,
        |host| opened(card_node(host), 4242, "nvidia-persiste", &["/dev/dri/card1"]),
        &[r#"device=[{bdf="0000:81:00.0"}]"#],
    ),
    (
        "opened-by-another-vm",
        75,
        |host| opened(host, 4242, "qemu-system-x86", &["/dev/vfio/vfio", "/dev/vfio/17"]),
        &[r#"device=[{bdf="0000:82:00.0"}]"#],
    ),
    (
        "mounted-and-used",
        69,
        |host| {
            let data = opened(host, 41, "postgres", &["/mnt/lab-data/a"]);
            opened(data, 42, "bash", &["/mnt/lab-data"])
        },
        &[r#"device=[{bdf="0000:02:00.0"}]"#],
    ),
    (
        "swap",
        69,
        |host| {
            let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n";
            changed(changed(host, "/proc/self/mountinfo", ""), "/proc/swaps", swaps)
        },
        &[r#"device=[{bdf="0000:02:00.0"}]"#],
    ),
    ("mounted-member-of-a-group", 69, mounted_member, &[r#"device=[{bdf="0000:82:00.0"}]"#]),
    (
        "virtual-functions-in-use",
        69,
        |host| changed(host, "/sys/bus/pci/devices/0000:83:00.0/sriov_numvfs", "4\n"),
        &[],
    ),
    (
        "overridden",
        69,
        |host| changed(host, "/sys/bus/pci/devices/0000:81:00.1/driver_override", "snd_hda_intel\n"),
        &[],
    ),
    (
        "overridden-for-vfio-and-not-bound-anew",
        69,
        |host| changed(host, "/sys/bus/pci/devices/0000:81:00.0/driver_override", "vfio-pci\n"),
        &[],
    ),
    ("hold-of-an-unknown-function", 78, SAME, &[r#"device=[{bdf="81:00.0", hold=["81:00.5"]}]"#]),
    ("hold-of-a-bridge", 78, SAME, &[r#"device=[{bdf="04:01.0", hold=["04:02.0", "03:00.0"]}]"#]),
    ("hold-of-another-card", 78, SAME, &[r#"device=[{bdf="81:00.0", hold=["82:00.0"]}]"#]),
    ("hold-of-what-the-host-needs", 69, mounted_member, &[r#"device=[{bdf="82:00.0", hold=["86:00.0"]}]"#]),
    ("hold-of-one-member-of-two", 69, third_member, &[r#"device=[{bdf="04:01.0", hold=["04:02.0"]}]"#]),
    ("no-such-reset", 69, SAME, &[r#"device=[{bdf="82:00.0", reset="pm"}, {bdf="83:00.0", reset="hot"}]"#]),
    (
        "hot-reset-of-a-card-in-two-minds",
        69,
        |host| {
            let port = Some("0000:90:01.0");
            host.device(&FakeDevice { port, ..gpu("0000:91:00.0", 31, 1) });
            host.device(&FakeDevice { port, class: 0x04_0300, ..gpu("0000:91:00.1", 31, 1) });
            host
        },
        &[r#"device=[{bdf="91:00.0", reset="hot"}, {bdf="91:00.1", reset="none"}]"#],
    ),
    ("no-group", 69, |host| without(host, "/sys/bus/pci/devices/0000:82:00.0/iommu_group"), &[]),
    ("no-iommu", 69, without_iommu, &[]),
    ("no-iommu-for-two-devices", 69, without_iommu, &[r#"device=[{bdf="82:00.0"}, {bdf="83:00.0"}]"#]),
    ("damaged-class", 69, |host| changed(host, "/sys/bus/pci/devices/0000:81:00.0/class", "zz\n"), &[]),
    (
        "damaged-resource",
        69,
        |host| changed(host, "/sys/bus/pci/devices/0000:81:00.0/resource", "0x0 0xfff\n"),
        &[],
    ),
    ("damaged-node", 69, |host| changed(host, "/sys/bus/pci/devices/0000:81:00.0/numa_node", "one\n"), &[]),
];

const PLACEMENT: &[Unfit] = &[
    (
        "guest-address-of-an-expander",
        78,
        |host| {
            host.device(&gpu("0000:05:00.0", 30, -1));
            host
        },
        &[
            r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}, {bdf="05:00.0", guest-address="1e.0"}]"#,
            "cpu.count=4",
        ],
    ),
    ("uneven-vcpus", 78, SAME, &[r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#, "cpu.count=3"]),
    (
        "uneven-memory",
        78,
        SAME,
        &[r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#, "cpu.count=4", "memory.size=510M"],
    ),
    (
        "uneven-memory-in-1g-pages",
        78,
        SAME,
        &[
            r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#,
            "cpu.count=4",
            "memory.size=3G",
            "memory.hugepages=1G",
        ],
    ),
    ("too-many-vcpus", 69, SAME, &["cpu.count=5"]),
    (
        "too-many-vcpus-for-one-of-two-nodes",
        69,
        SAME,
        &[r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#, "cpu.count=10"],
    ),
    ("too-many-vcpus-unpinned", 69, SAME, &["cpu.count=9", "cpu.pin=off"]),
    ("too-many-vcpus-though-preferred", 69, SAME, &["cpu.count=9", "cpu.pin-policy=prefer"]),
    ("node-without-online-cpus", 69, |host| changed(host, "/sys/devices/system/cpu/online", "0-3\n"), &[]),
    ("no-nodes-to-pin-on", 69, |host| changed(host, "/sys/devices/system/node/online", "\n"), &[]),
    ("pinned-to-an-offline-cpu", 69, SAME, &["cpu.pin=[4, 5, 64]"]),
    ("pinned-to-nodes-in-a-mixture", 78, SAME, &["cpu.count=4", "cpu.pin=[4, 0, 5, 1]"]),
    ("pinned-to-nodes-unevenly", 78, SAME, &["cpu.pin=[0, 4, 5]"]),
    ("emulator-on-an-offline-cpu", 69, SAME, &["cpu.emulator=\"7-8\""]),
    ("emulator-of-a-hand-pinned-guest-offline", 69, SAME, &["cpu.pin=[4, 5, 6]", "cpu.emulator=\"12\""]),
    ("node-too-small", 69, SAME, &["memory.size=128G"]),
    (
        "two-nodes-too-small",
        69,
        SAME,
        &[r#"device=[{bdf="41:00.0"}, {bdf="81:00.0"}]"#, "cpu.count=4", "memory.size=256G"],
    ),
    (
        "more-memory-than-the-host-unpinned",
        69,
        SAME,
        &["device=[]", "cpu.pin=off", "memory.hugepages=off", "memory.size=200G"],
    ),
    (
        "more-memory-than-the-host-though-preferred",
        69,
        SAME,
        &["memory.node-policy=prefer", "memory.hugepages=off", "memory.size=200G"],
    ),
    (
        "a-qcow2-image-as-raw",
        78,
        |host| changed(host, "/srv/a.img", qcow2()),
        &[r#"disk=[{path="/srv/a.img"}]"#],
    ),
    (
        "a-raw-image-as-qcow2",
        78,
        |host| changed(host, "/srv/a.img", "raw"),
        &[r#"disk=[{path="/srv/a.img", format="qcow2"}]"#],
    ),
    ("node-too-full", 69, with_small_node, &["memory.hugepages=off"]),
    ("no-pool", 69, without_pools, &[]),
    ("no-pool-of-1g", 69, without_pools, &["memory.size=1G", "memory.hugepages=1G"]),
    (
        "address-space-too-small",
        69,
        |host| with_cpuinfo(with_large_bar(with_ovmf(host), "0000:81:00.0", 256), "GenuineIntel", 39),
        &["firmware=uefi"],
    ),
    (
        "address-space-too-small-for-memory-alone",
        69,
        |host| with_cpuinfo(host, "GenuineIntel", 36),
        &["memory.size=40G", "memory.hugepages=2M", "device=[]"],
    ),
    (
        "address-space-too-small-for-tcg",
        69,
        |host| with_large_bar(with_ovmf(host), "0000:81:00.0", 1024),
        &["firmware=uefi", "accel=tcg"],
    ),
];

const SYSTEM: &[Unfit] = &[
    ("no-vfio", 69, |host| without(host, "/dev/vfio/vfio"), &[]),
    ("iommufd-only", 69, |host| changed(without(host, "/dev/vfio/vfio"), "/dev/iommu", ""), &[]),
    ("vfio-denied", 77, |host| forbidden(host, "/dev/vfio/vfio", NOT_WRITABLE), &[]),
    (
        "no-vfio-driver",
        69,
        |host| {
            fs::remove_dir_all(host.path("/sys/bus/pci/drivers/vfio-pci")).unwrap();
            host
        },
        &[],
    ),
    (
        "variant-driver-not-loaded",
        69,
        |host| {
            host.file(
                "/sys/bus/pci/devices/0000:81:00.0/modalias",
                "pci:v00001234d00001111sv0sd0bc03sc00i00\n",
            );
            let release = fs::read_to_string(host.path("/proc/sys/kernel/osrelease")).unwrap();
            let aliases = format!("/lib/modules/{}/modules.alias", release.trim());
            changed(host, &aliases, "alias vfio_pci:v00001234d00001111sv*sd*bc*sc*i* edu_vfio_pci\n")
        },
        &[],
    ),
    ("no-kvm", 69, |host| without(host, "/dev/kvm"), &[]),
    ("kvm-denied", 77, |host| forbidden(host, "/dev/kvm", NOT_WRITABLE), &[]),
    ("no-qemu", 69, |host| without(host, "/usr/bin/qemu-system-x86_64"), &[]),
    (
        "no-qemu-img",
        69,
        |host| changed(host, "/srv/a.img", "x"),
        &[r#"disk=[{path="/srv/a.img", mode="overlay"}]"#],
    ),
    ("no-uefi", 69, SAME, &["firmware=uefi"]),
    (
        "uefi-for-another-machine",
        69,
        |host| {
            let descriptor = "/usr/share/qemu/firmware/60-edk2-x86_64.json";
            let host = with_ovmf(host);
            let text = fs::read_to_string(host.path(descriptor)).unwrap().replace("pc-q35-*", "microvm");
            changed(host, descriptor, &text)
        },
        &["firmware=uefi"],
    ),
    (
        "uefi-image-missing",
        69,
        |host| without(with_ovmf(host), "/usr/share/OVMF/OVMF_CODE_4M.fd"),
        &["firmware=uefi"],
    ),
    (
        "uefi-descriptor-damaged",
        69,
        |host| changed(with_ovmf(host), "/usr/share/qemu/firmware/60-edk2-x86_64.json", "{"),
        &["firmware=uefi"],
    ),
    ("damaged-cpu-list", 69, |host| changed(host, "/sys/devices/system/cpu/online", "0-\n"), &[]),
    (
        "damaged-pool",
        69,
        |host| {
            let pool = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
            changed(host, pool, "many\n")
        },
        &[],
    ),
    (
        "all-at-once",
        77,
        |host| {
            forbidden(
                without(without(host, "/usr/bin/qemu-system-x86_64"), "/dev/kvm"),
                "/dev/vfio/vfio",
                NOT_WRITABLE,
            )
        },
        &["cpu.count=5", "firmware=uefi"],
    ),
];

const FILES: &[Unfit] = &[
    ("kernel-missing", 78, |host| without(host, "/lab/guest/kernel"), &[]),
    ("kernel-denied", 77, |host| forbidden(host, "/lab/guest/kernel", NOT_READABLE), &[]),
    ("initrd-empty", 78, |host| changed(host, "/lab/guest/initrd", ""), &[]),
    ("disk-missing", 78, SAME, &[r#"disk=[{path="/srv/none.img"}]"#]),
    ("disk-qcow2-missing", 78, SAME, &[r#"disk=[{path="/srv/none.qcow2", format="qcow2"}]"#]),
    ("disk-below-a-file", 78, SAME, &[r#"disk=[{path="/lab/guest/kernel/disk.img"}]"#]),
    ("disk-is-a-folder", 78, SAME, &[r#"disk=[{path="/lab/guest"}]"#]),
    (
        "disk-not-writable",
        77,
        |host| forbidden(host, "/srv/a.img", NOT_WRITABLE),
        &[r#"disk=[{path="/srv/a.img"}]"#],
    ),
    (
        "disk-read-only-not-readable",
        77,
        |host| forbidden(host, "/srv/a.img", NOT_READABLE),
        &[r#"disk=[{path="/srv/a.img", mode="read-only"}]"#],
    ),
    (
        "cdrom-empty",
        78,
        |host| changed(host, "/srv/a.iso", ""),
        &[r#"disk=[{path="/srv/a.iso", media="cdrom"}]"#],
    ),
    ("rom-file-missing", 78, SAME, &[r#"device=[{bdf="82:00.0", rom-file="/srv/none.rom"}]"#]),
    (
        "rom-file-empty",
        78,
        |host| changed(host, "/srv/a.rom", ""),
        &[r#"device=[{bdf="82:00.0", rom-file="/srv/a.rom"}]"#],
    ),
];

pub(crate) fn changed(host: FakeHost, path: &str, content: impl AsRef<[u8]>) -> FakeHost {
    host.file(path, content);
    host
}

/// Gives the card its DRM node.
pub(crate) fn card_node(host: FakeHost) -> FakeHost {
    let folder = "/sys/bus/pci/devices/0000:81:00.0/drm/card1";
    host.file(&format!("{folder}/uevent"), "DEVNAME=dri/card1\n");
    host.link("/sys/dev/char/226:1", folder);
    changed(host, "/dev/dri/card1", "")
}

/// Makes a process that has files open.
pub(crate) fn opened(host: FakeHost, pid: u32, command: &str, files: &[&str]) -> FakeHost {
    fs::create_dir_all(host.path(&format!("/proc/{pid}/fd"))).unwrap();
    // The kernel's own threads have none.
    std::os::unix::fs::symlink(format!("/usr/bin/{command}"), host.path(&format!("/proc/{pid}/exe")))
        .unwrap();
    for (fd, file) in files.iter().enumerate() {
        std::os::unix::fs::symlink(file, host.path(&format!("/proc/{pid}/fd/{fd}"))).unwrap();
    }
    changed(host, &format!("/proc/{pid}/comm"), format!("{command}\n"))
}

fn without(host: FakeHost, path: &str) -> FakeHost {
    host.remove(path);
    host
}

fn forbidden(host: FakeHost, path: &str, stand_in: &str) -> FakeHost {
    forbid(&host, path, stand_in);
    host
}

fn without_iommu(host: FakeHost) -> FakeHost {
    fs::remove_dir(host.path("/sys/class/iommu/dmar0")).unwrap();
    for bdf in ["81:00.0", "81:00.1", "82:00.0", "83:00.0"] {
        host.remove(&format!("/sys/bus/pci/devices/0000:{bdf}/iommu_group"));
    }
    host
}

/// Puts a disk that is mounted into the accelerator's group.
fn mounted_member(host: FakeHost) -> FakeHost {
    host.device(&nvme("0000:86:00.0", 17, 1));
    let data = "/sys/bus/pci/devices/0000:86:00.0/nvme/nvme1/nvme1n1";
    host.file(&format!("{data}/size"), "1\n");
    host.link("/sys/class/block/nvme1n1", data);
    host.file("/dev/nvme1n1", "");
    changed(host, "/proc/self/mountinfo", "36 35 259:2 / /srv rw - ext4 /dev/nvme1n1 rw\n")
}

/// Puts a third function below the bridge.
fn third_member(host: FakeHost) -> FakeHost {
    host.device(&FakeDevice { driver: None, ..gpu("0000:04:03.0", 12, -1) });
    host
}

#[test]
fn each_unfit_host_is_refused_as_it_was() {
    let case = |(name, code, change, set): &Unfit| {
        let host = change(lab());
        let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        let transcript = gpuvm_on(&host.path("/"), "plan", "profiles/lab-compute.toml", &set);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: expected {code}: {transcript}");
        ((*name).to_owned(), transcript)
    };
    compare("refusals", [DEVICES, PLACEMENT, SYSTEM, FILES].concat().iter().map(case));
}
