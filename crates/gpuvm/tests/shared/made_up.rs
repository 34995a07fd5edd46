//! Profiles on the hosts that nobody here owns (`gpuvm_testkit::hosts`).

use gpuvm_testkit::hosts;

use super::{Case, Host};

/// Name, host, devices by address or as tables, and what else is set.
type Row = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// What fits everywhere.
const SMALL: &[&str] = &["memory.size=8G", "cpu.count=4"];

const ROWS: &[Row] = &[
    ("acs-override-splits-a-card", "acs_override", &["05:00.0"], SMALL),
    ("bridge-with-neighbours", "pci_bridge", &["04:00.0"], SMALL),
    (
        "bridge-with-neighbours-all-of-them",
        "pci_bridge",
        &["04:00.0", "04:01.0"],
        &["memory.size=8G", "cpu.count=4", "network=none", "forward=[]"],
    ),
    ("desktop-card-of-four-functions", "desktop", &["01:00.0"], &["memory.size=16G", "cpu.count=8"]),
    (
        "hgx-eight-gpus",
        "hgx_h100",
        &["1b:00.0", "43:00.0", "52:00.0", "61:00.0", "9d:00.0", "c3:00.0", "d1:00.0", "df:00.0"],
        &["memory.size=1536G", "cpu.count=192"],
    ),
    ("hgx-one-gpu", "hgx_h100", &["9d:00.0"], &["memory.size=192G", "cpu.count=24"]),
    ("hgx-disk-of-the-host", "hgx_h100", &["02:00.0"], &[]),
    ("hgx-gpu-with-nvswitch", "hgx_h100", &["1b:00.0", "07:00.0"], &["memory.size=192G", "cpu.count=24"]),
    ("identical-cards-the-boot-display", "two_identical", &["0b:00.0"], SMALL),
    ("identical-cards-the-other", "two_identical", &["0c:00.0"], SMALL),
    ("known-quirk-of-the-kernel", "known_quirks", &["41:00.0"], SMALL),
    ("known-quirk-reported", "known_quirks", &["61:00.0"], SMALL),
    (
        "known-quirk-reported-and-heeded",
        "known_quirks",
        &["{bdf=\"61:00.0\",avoid-flr=true}"],
        &["memory.size=8G", "cpu.count=4", "reboot=relaunch"],
    ),
    ("known-quirk-without-a-way-round", "known_quirks", &["81:00.0"], SMALL),
    ("node-without-memory", "memoryless", &["af:00.0"], SMALL),
    (
        "node-without-memory-prefer",
        "memoryless",
        &["af:00.0"],
        &["memory.size=8G", "cpu.count=4", "memory.hugepages=off", "memory.node-policy=prefer"],
    ),
    (
        "mi300x-eight-accelerators",
        "mi300x",
        &["0c:00.0", "22:00.0", "38:00.0", "5c:00.0", "9f:00.0", "af:00.0", "bf:00.0", "df:00.0"],
        &["memory.size=1T", "cpu.count=192"],
    ),
    ("offline-cpus", "offline_cpus", &["3b:00.0"], &["memory.size=8G", "cpu.count=24"]),
    ("physical-function-with-virtual-ones", "sriov", &["3b:00.0"], SMALL),
    ("virtual-function", "sriov", &["3b:01.0"], SMALL),
    ("virtual-function-on-vfio", "sriov", &["3b:01.2"], SMALL),
    ("vmd-disk", "domain32", &["10000:02:00.0"], SMALL),
    ("vmd-other-card", "domain32", &["3b:00.0"], SMALL),
    ("nps4-two-gpus-on-two-sockets", "nps4", &["41:00.0", "c1:00.0"], &["memory.size=128G", "cpu.count=32"]),
    (
        "nps4-eight-gpus",
        "nps4",
        &["01:00.0", "21:00.0", "41:00.0", "61:00.0", "81:00.0", "a1:00.0", "c1:00.0", "e1:00.0"],
        &["memory.size=512G", "cpu.count=128"],
    ),
];

/// Returns every case.
pub(crate) fn all() -> Vec<Case> {
    ROWS.iter().map(case).collect()
}

fn case((name, host, devices, set): &Row) -> Case {
    let (_, make) = hosts::ALL.iter().find(|(known, _)| known == host).unwrap();
    let table = |device: &&str| match device.starts_with('{') {
        true => (*device).to_owned(),
        false => format!("{{bdf=\"{device}\"}}"),
    };
    let devices: Vec<String> = devices.iter().map(table).collect();
    let mut set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
    set.extend([format!("device=[{}]", devices.join(",")), "disk=[]".to_owned()]);
    Case {
        name: (*name).to_owned(),
        host: Host::Fake(make()),
        profile: "profiles/headless-compute.toml".to_owned(),
        set,
    }
}
