//! Whether it is there, and what it is.

use super::*;

/// The cases.
pub(in super::super) const PRESENCE: &[Case] = &[
    Case("well", "nothing has happened to it", "facts D2", |_| {}, Healthy, &[]),
    Case(
        "conventional",
        "a conventional PCI device without a link, errors or a port",
        "facts A7",
        |pair| {
            pair.both(|card| {
                card.cut(256);
                card.put(0x61, &[0]);
                (card.port, card.errors) = (None, Reading::Absent);
            });
        },
        Healthy,
        &[],
    ),
    Case(
        "other-driver",
        "the baseline is of its own driver: command register, interrupts and controls differ",
        "facts A7",
        |pair| {
            pair.before.driven_by("nvidia");
            pair.before.put_word(COMMAND, 0x0507);
            pair.before.put(0x6a, &[0x81, 0x00, 0xe0, 0xfe]);
            pair.before.put_word(0x80, 0x2910);
            pair.before.power(PowerControl::Auto, D3cold::Allowed);
            pair.after.put_word(COMMAND, 0);
        },
        Healthy,
        &[],
    ),
    Case(
        "all-ones",
        "it has fallen off the bus",
        "facts A7",
        |pair| pair.after.fill(0xff),
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "all-ones-after-good-reset",
        "a kernel with the bug of facts A2 calls the reset of a dead device done",
        "facts A2",
        |pair| {
            pair.after.fill(0xff);
            pair.said(&["vfio-pci 0000:81:00.0: resetting", "vfio-pci 0000:81:00.0: reset done"]);
        },
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "ones-with-power-flipped",
        "ones, and the kernel calls it D3cold (MI300X after FLR)",
        "facts A10",
        |pair| {
            pair.after.fill(0xff);
            pair.after.power_state = Reading::Read("D3cold".to_owned());
        },
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "ids-alone-are-ones",
        "its ids read ones and its command register doesn't",
        "facts A7",
        |pair| {
            pair.after.put(0, &[0xff; 4]);
        },
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "command-alone-is-ones",
        "its ids are well and its command register reads ones",
        "facts A7",
        |pair| {
            pair.after.put(COMMAND, &[0xff; 4]);
        },
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "retrying",
        "it is in reset for ever, and the other bytes read ones",
        "facts A7",
        |pair| {
            pair.after.fill(0xff);
            pair.after.put(0, &[0x01, 0x00, 0xff, 0xff]);
        },
        Unreachable,
        &[Check::Retrying],
    ),
    Case(
        "retrying-with-registers",
        "the vendor id is that of a retry and the rest is there",
        "facts A7",
        |pair| {
            pair.after.put(0, &[0x01, 0x00]);
        },
        Unreachable,
        &[Check::Retrying],
    ),
    Case(
        "config-unread",
        "its config space can't be read",
        "facts A7",
        |pair| pair.after.config = unread(),
        Unknown,
        &[Check::Config],
    ),
    Case(
        "config-gone",
        "the kernel has lost the device",
        "facts A7",
        |pair| {
            pair.after.config = Reading::Absent;
            (pair.after.bars, pair.after.power_state) = (Reading::Absent, Reading::Absent);
        },
        Unreachable,
        &[Check::Config],
    ),
    Case(
        "config-short",
        "less than a header could be read",
        "facts A7",
        |pair| pair.after.cut(32),
        Unreachable,
        &[Check::Config],
    ),
    Case(
        "baseline-unread",
        "it answers, and its baseline couldn't be read",
        "facts D2",
        |pair| {
            pair.before.config = unread();
        },
        Unknown,
        &[Check::Config],
    ),
    Case(
        "baseline-dead",
        "it was dead before and answers now",
        "facts D2",
        |pair| pair.before.fill(0xff),
        Unknown,
        &[Check::Config],
    ),
    Case(
        "virtual",
        "a virtual function, whose ids read ffff",
        "facts A7",
        |pair| {
            pair.both(|card| card.is_virtual());
        },
        Healthy,
        &[],
    ),
    Case(
        "virtual-ones",
        "a virtual function that is gone: its command register tells",
        "facts A7",
        |pair| {
            pair.both(|card| card.is_virtual());
            pair.after.fill(0xff);
        },
        Unreachable,
        &[Check::AllOnes],
    ),
    Case(
        "virtual-retrying",
        "a virtual function in reset",
        "facts A7",
        |pair| {
            pair.both(|card| card.is_virtual());
            pair.after.put(0, &[0x01, 0x00, 0xff, 0xff]);
        },
        Unreachable,
        &[Check::Retrying],
    ),
    Case(
        "other-ids",
        "another device answers",
        "facts A7",
        |pair| pair.after.put(2, &[0x31, 0x23]),
        Impaired,
        &[Check::Identity],
    ),
    Case(
        "ids-of-nobody",
        "its ids read zeros",
        "facts A7",
        |pair| pair.after.put(0, &[0; 4]),
        Unreachable,
        &[Check::Identity],
    ),
    Case(
        "other-card",
        "the subsystem is lost",
        "facts A7",
        |pair| pair.after.put(0x2c, &[0; 4]),
        Impaired,
        &[Check::Subsystem],
    ),
    Case(
        "other-class",
        "it came back as another class",
        "facts A7",
        |pair| pair.after.put(0x0a, &[0x80]),
        Impaired,
        &[Check::Class],
    ),
    Case(
        "other-revision",
        "it came back with other firmware",
        "facts A7",
        |pair| pair.after.put(0x08, &[0xa2]),
        Degraded,
        &[Check::Class],
    ),
    Case(
        "revision-ones",
        "the revision that lspci shows of the dead",
        "facts A7",
        |pair| {
            pair.after.put(0x08, &[0xff]);
        },
        Impaired,
        &[Check::Class],
    ),
    Case(
        "other-layout",
        "its header is a bridge's",
        "facts A7",
        |pair| {
            pair.after.put(0x0e, &[0x01]);
            pair.both(|card| card.bars = Reading::Read(Vec::new()));
        },
        Impaired,
        &[Check::HeaderType],
    ),
    Case(
        "audio-function-hidden",
        "its audio function is switched off: the multi-function bit alone differs",
        "facts A10",
        |pair| {
            pair.before.put(0x0e, &[0x80]);
        },
        Healthy,
        &[Check::HeaderType],
    ),
    Case(
        "interrupt-pin-ones",
        "QEMU aborts at this pin",
        "facts A7",
        |pair| pair.after.put(0x3d, &[0xff]),
        Impaired,
        &[Check::InterruptPin],
    ),
    Case(
        "interrupt-pin-moved",
        "another pin than before",
        "facts A7",
        |pair| pair.after.put(0x3d, &[2]),
        Impaired,
        &[Check::InterruptPin],
    ),
    Case(
        "capability-lost",
        "the list ends early: PCI Express is gone",
        "facts A7",
        |pair| {
            pair.after.put(0x69, &[0]);
        },
        Impaired,
        &[Check::Capabilities],
    ),
    Case(
        "capability-in-a-circle",
        "the list runs in a circle",
        "facts A7",
        |pair| {
            pair.after.put(0x69, &[0x60]);
        },
        Impaired,
        &[Check::Capabilities],
    ),
    Case(
        "capability-gained",
        "a capability more than before",
        "facts A7",
        |pair| {
            pair.after.put(SERIAL + 2, &[0x01, 0x18]);
            pair.after.put(0x180, &[0x0b, 0x00, 0x01, 0x00]);
        },
        Healthy,
        &[Check::Capabilities],
    ),
    Case(
        "extended-ones",
        "its extended config space reads ones",
        "facts A7",
        |pair| {
            pair.after.put(AER, &[0xff; 256]);
        },
        Impaired,
        &[Check::Capabilities],
    ),
];
