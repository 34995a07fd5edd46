//! What the kernel has said.

use super::*;

/// The cases.
pub(in super::super) const LOG: &[Case] = &[
    Case(
        "gave-up",
        "it answers again after the kernel has given it up",
        "facts A1",
        |pair| {
            pair.said(&["vfio-pci 0000:81:00.0: not ready 65535ms after FLR; giving up"]);
        },
        Faulted,
        &[Check::GaveUp],
    ),
    Case(
        "gave-up-and-ones",
        "stuck after a bus reset (RX 7900 XTX)",
        "facts A10",
        |pair| {
            pair.after.fill(0xff);
            pair.said(&[
                "vfio-pci 0000:81:00.0: not ready 1023ms after bus reset; waiting",
                "vfio-pci 0000:81:00.0: not ready 65535ms after bus reset; giving up",
                "vfio-pci 0000:81:00.0: Unable to change power state from D0 to D3hot, device inaccessible",
            ]);
        },
        Unreachable,
        &[Check::AllOnes, Check::GaveUp, Check::PowerStuck],
    ),
    Case(
        "gave-up-and-ready-later",
        "the kernel has given it up, and found it ready after another reset",
        "facts A1",
        |pair| {
            pair.said(&[
                "vfio-pci 0000:81:00.0: not ready 65535ms after FLR; giving up",
                "vfio-pci 0000:81:00.0: ready 2047ms after bus reset",
            ]);
        },
        Faulted,
        &[Check::GaveUp, Check::SlowReset],
    ),
    Case(
        "first-wait-given-up",
        "after a bus reset the kernel gives up at first, waits on, and finds it ready",
        "facts A1",
        |pair| {
            pair.said(&[
                "vfio-pci 0000:81:00.0: not ready 1023ms after bus reset; giving up",
                "vfio-pci 0000:81:00.0: not ready 1023ms after bus reset; waiting",
                "vfio-pci 0000:81:00.0: ready 2047ms after bus reset",
            ]);
        },
        Degraded,
        &[Check::SlowReset],
    ),
    Case(
        "first-wait-given-up-and-silence",
        "after a bus reset the kernel gives up at first and says no more, and it answers",
        "facts A1",
        |pair| pair.said(&["vfio-pci 0000:81:00.0: not ready 1023ms after bus reset; giving up"]),
        Degraded,
        &[Check::GaveUp],
    ),
    Case(
        "first-wait-given-up-and-ones",
        "after a bus reset the kernel gives up at first, and it reads ones",
        "facts A1",
        |pair| {
            pair.after.fill(0xff);
            pair.said(&["vfio-pci 0000:81:00.0: not ready 1023ms after bus reset; giving up"]);
        },
        Unreachable,
        &[Check::AllOnes, Check::GaveUp],
    ),
    Case(
        "power-stuck",
        "the kernel couldn't wake it (RX 9070 XT)",
        "facts A8",
        |pair| {
            pair.said(&[
                "vfio-pci 0000:81:00.0: Unable to change power state from D3cold to D0, device inaccessible",
            ]);
        },
        Faulted,
        &[Check::PowerStuck],
    ),
    Case(
        "inaccessible",
        "its config space was inaccessible for a while",
        "facts A1",
        |pair| {
            pair.said(&["vfio-pci 0000:81:00.0: Device config space inaccessible; unable to save state"]);
        },
        Faulted,
        &[Check::Inaccessible],
    ),
    Case(
        "recovery-failed",
        "the kernel couldn't recover it",
        "lab findings 2",
        |pair| {
            pair.said(&["pcieport 0000:80:01.0: AER: device recovery failed"]);
        },
        Faulted,
        &[Check::RecoveryFailed],
    ),
    Case(
        "uncorrectable-logged",
        "recovered, as the kernel says, and QEMU has stopped all the same",
        "facts A6",
        |pair| {
            pair.said(&[
            "pcieport 0000:80:01.0: AER: Uncorrectable (Non-Fatal) error message received from 0000:81:00.0",
            "vfio-pci 0000:81:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID)",
            "pcieport 0000:80:01.0: AER: device recovery successful",
        ]);
        },
        Faulted,
        &[Check::UncorrectableLogged],
    ),
    Case(
        "correctable-logged",
        "the link was repaired",
        "facts A6",
        |pair| {
            pair.said(&["vfio-pci 0000:81:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)"]);
        },
        Degraded,
        &[Check::CorrectableLogged],
    ),
    Case(
        "slow-reset",
        "it took two seconds",
        "facts A7",
        |pair| {
            pair.said(&[
                "vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting",
                "vfio-pci 0000:81:00.0: ready 2047ms after FLR",
            ]);
        },
        Degraded,
        &[Check::SlowReset],
    ),
    Case(
        "link-not-active",
        "its link didn't come up",
        "facts A1",
        |pair| {
            pair.said(&["pcieport 0000:80:01.0: Data Link Layer Link Active not set in 100 msec"]);
        },
        Degraded,
        &[Check::LinkNotActive],
    ),
    Case(
        "pending-transaction",
        "it was reset while it waited for answers",
        "facts A1",
        |pair| {
            let rest = "timed out waiting for pending transaction; performing function level reset anyway";
            pair.said(&[&format!("vfio-pci 0000:81:00.0: {rest}")]);
        },
        Degraded,
        &[Check::PendingTransaction],
    ),
    Case(
        "iommu-fault",
        "an Intel IOMMU, which names it without its domain",
        "facts A7",
        |pair| {
            pair.said(&["DMAR: [DMA Write NO_PASID] Request device [81:00.0] fault addr 0xdead000 [fault reason 0x05] PTE Write access is not set"]);
        },
        Degraded,
        &[Check::IommuFault],
    ),
    Case(
        "iommu-fault-amd",
        "an AMD IOMMU",
        "facts A7",
        |pair| {
            pair.said(&["vfio-pci 0000:81:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0xdead000 flags=0x0020]"]);
        },
        Degraded,
        &[Check::IommuFault],
    ),
    Case(
        "said-of-others",
        "whatever is said of other devices",
        "facts A7",
        |pair| {
            pair.said(&[
                "vfio-pci 0000:82:00.0: not ready 65535ms after FLR; giving up",
                "vfio-pci 0000:81:00.1: Unable to change power state from D3hot to D0, device inaccessible",
                "pcieport 0000:80:01.0: AER: Uncorrectable (Fatal) error message received from 0000:82:00.0",
                "DMAR: [DMA Read NO_PASID] Request device [82:00.0] fault addr 0x0",
            ]);
        },
        Healthy,
        &[],
    ),
    Case(
        "said-of-the-root-port",
        "errors of the root port above a switch",
        "facts A6",
        |pair| {
            pair.both(|card| card.behind_a_switch());
            pair.said(&[
                "pcieport 0000:80:01.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Data Link Layer",
            ]);
        },
        Healthy,
        &[Check::UncorrectableLogged],
    ),
    Case(
        "deaf",
        "the kernel's log can't be opened",
        "facts A7",
        |pair| {
            pair.heard = Heard::Deaf("/dev/kmsg: Operation not permitted (os error 1)".to_owned());
        },
        Unknown,
        &[Check::Log],
    ),
    Case(
        "log-overwritten",
        "a part of the kernel's log is lost",
        "facts A7",
        |pair| {
            pair.heard = Heard::Partly {
                lines: vec!["vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting".to_owned()],
                lost: "the kernel has overwritten a part of its log before it was read".to_owned(),
            };
        },
        Unknown,
        &[Check::Log, Check::SlowReset],
    ),
];
