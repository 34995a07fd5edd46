//! What isn't easily made for real: each case changes a card that is well, after what vfio-facts.md (A1, A3, A7, A10, D) tells.

use super::super::super::{Check, Heard, Reading, Verdict};
use super::card::{AER, BAR_0, COMMAND, DEVSTA, LNKCAP, LNKSTA, PMCSR, Pair, SERIAL};
use crate::host_ops::{D3cold, PowerControl, PowerPolicy};

/// A case: its file's name, what it is about, where it is from, what it changes, and what is to come of it.
#[derive(Clone, Copy)]
pub(super) struct Case(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) fn(&mut Pair),
    pub(super) Verdict,
    pub(super) &'static [Check],
);

use Verdict::{Degraded, Faulted, Healthy, Impaired, Unknown, Unreachable};

/// Says that something couldn't be read.
fn unread<T>() -> Reading<T> {
    Reading::Unread("Input/output error (os error 5)".to_owned())
}

/// Sets both ends of a link.
fn link(pair: &mut Pair, status: u16) {
    pair.after.put_word(LNKSTA, status);
    pair.after.put_port(LNKSTA, &(status | 1 << 13).to_le_bytes());
}

/// Whether it is there, and what it is.
pub(super) const PRESENCE: &[Case] = &[
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

/// Whether it can be used: registers and power.
pub(super) const REGISTERS: &[Case] = &[
    Case(
        "bar-zero",
        "a register has lost its address",
        "facts A7",
        |pair| pair.after.put(BAR_0, &[0; 4]),
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-ones",
        "a register reads ones",
        "facts A7",
        |pair| pair.after.put(BAR_0, &[0xff; 4]),
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-moved",
        "a register is elsewhere",
        "facts A7",
        |pair| pair.after.put(BAR_0 + 3, &[0xe1]),
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-upper-half-lost",
        "a 64-bit register has lost its upper half",
        "facts A7",
        |pair| {
            pair.after.put(0x18, &[0; 4]);
        },
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-ports-lost",
        "its ports have lost their address",
        "facts A7",
        |pair| {
            pair.after.put(0x24, &[0x01, 0, 0, 0]);
        },
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-ports-numbered-otherwise",
        "the kernel's numbers of ports aren't the bus's, as on ARM",
        "facts A7",
        |pair| pair.both(|card| card.put(0x24, &[0x01, 0x10, 0, 0])),
        Healthy,
        &[Check::Bars],
    ),
    Case(
        "bar-ports-elsewhere",
        "its ports are elsewhere than before",
        "facts A7",
        |pair| pair.after.put(0x24, &[0x01, 0x10, 0, 0]),
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "bar-without-room",
        "the kernel has found no room for a register",
        "facts A7",
        |pair| {
            pair.both(|card| {
                card.put(BAR_0, &[0; 4]);
                if let Reading::Read(bars) = &mut card.bars {
                    bars[0].address = None;
                }
            });
        },
        Healthy,
        &[],
    ),
    Case(
        "bars-by-enhanced-allocation",
        "its addresses are fixed and its registers empty",
        "facts A7",
        |pair| {
            pair.both(|card| {
                card.put(0x68, &[0x14]);
                card.put(BAR_0, &[0; 24]);
            });
        },
        Healthy,
        &[],
    ),
    Case(
        "bars-lost-asleep",
        "in D3hot without No_Soft_Reset they may be lost until it is resumed",
        "facts A7",
        |pair| {
            pair.both(|card| card.put(PMCSR, &[0x00]));
            pair.after.sleeps();
            pair.after.put(PMCSR, &[0x03]);
            pair.after.put(BAR_0, &[0; 24]);
        },
        Healthy,
        &[],
    ),
    Case(
        "bars-lost-asleep-that-keeps-state",
        "in D3hot with No_Soft_Reset they may not",
        "facts A7",
        |pair| {
            pair.after.sleeps();
            pair.after.put(BAR_0, &[0; 24]);
        },
        Impaired,
        &[Check::Bars],
    ),
    Case(
        "asleep",
        "an idle device of vfio-pci in D3hot",
        "facts A7",
        |pair| pair.after.sleeps(),
        Healthy,
        &[],
    ),
    Case(
        "was-asleep",
        "its own driver had let it sleep",
        "facts A7",
        |pair| {
            pair.before.sleeps();
            pair.before.driven_by("nvidia");
            pair.before.put_word(LNKSTA, 0x1101);
        },
        Healthy,
        &[],
    ),
    Case(
        "pmcsr-ones",
        "its power management doesn't answer",
        "facts A7",
        |pair| {
            pair.after.put(PMCSR, &[0xff; 2]);
        },
        Impaired,
        &[Check::PowerRegister],
    ),
    Case(
        "given-up-as-d3cold",
        "it answers, and the kernel has marked it D3cold",
        "facts A3",
        |pair| {
            pair.after.power_state = Reading::Read("D3cold".to_owned());
        },
        Impaired,
        &[Check::PowerState],
    ),
    Case(
        "sleeps-in-d3cold",
        "it may go to D3cold, and was woken to be read",
        "facts A7",
        |pair| {
            pair.both(|card| card.power(PowerControl::Auto, D3cold::Allowed));
            pair.after.power_state = Reading::Read("D3cold".to_owned());
        },
        Healthy,
        &[Check::PowerState],
    ),
    Case(
        "d3cold-without-acpi",
        "the kernel has no d3cold_allowed, and yet calls it D3cold",
        "facts A8",
        |pair| {
            let policy = PowerPolicy { control: Some(PowerControl::Auto), d3cold: None };
            pair.both(|card| card.power = Reading::Read(policy));
            pair.after.power_state = Reading::Read("D3cold".to_owned());
        },
        Impaired,
        &[Check::PowerState],
    ),
    Case(
        "asleep-behind-the-kernels-back",
        "it sleeps, and the kernel keeps it awake",
        "facts A7",
        |pair| {
            pair.after.put(PMCSR, &[0x0b]);
        },
        Impaired,
        &[Check::PowerState],
    ),
    Case(
        "asleep-in-between",
        "it has gone to sleep or woken between the reads",
        "facts A7",
        |pair| {
            pair.both(|card| card.power(PowerControl::Auto, D3cold::Forbidden));
            pair.after.put(PMCSR, &[0x0b]);
        },
        Healthy,
        &[],
    ),
    Case(
        "power-error",
        "the kernel couldn't tell its power",
        "facts A7",
        |pair| {
            pair.after.power_state = Reading::Read("error".to_owned());
        },
        Impaired,
        &[Check::PowerState],
    ),
    Case(
        "power-unknown-without-driver",
        "the kernel forgets the power of a device that its driver has left",
        "facts A7",
        |pair| {
            pair.after.driver = None;
            pair.after.power_state = Reading::Read("unknown".to_owned());
        },
        Healthy,
        &[],
    ),
    Case(
        "may-sleep-now",
        "somebody lets it sleep who didn't",
        "facts A8",
        |pair| {
            pair.after.power(PowerControl::Auto, D3cold::Allowed);
        },
        Healthy,
        &[Check::PowerPolicy],
    ),
];

/// Its link and its port.
pub(super) const LINK: &[Case] = &[
    Case(
        "narrower",
        "x16 became x8 after FLR until the next cold boot (RTX 5090)",
        "facts A7",
        |pair| {
            link(pair, 0x1085);
        },
        Degraded,
        &[Check::LinkWidth],
    ),
    Case(
        "narrower-by-the-port",
        "only the port says so",
        "facts A7",
        |pair| {
            pair.after.put_port(LNKSTA, &[0x45, 0x30]);
        },
        Degraded,
        &[Check::LinkWidth],
    ),
    Case(
        "wider",
        "it has got its lanes back",
        "facts A7",
        |pair| pair.before.put_word(LNKSTA, 0x1085),
        Healthy,
        &[],
    ),
    Case(
        "slower",
        "GPUs slow their link down when they idle",
        "facts A7",
        |pair| {
            link(pair, 0x1101);
        },
        Healthy,
        &[Check::LinkSpeed],
    ),
    Case(
        "link-down",
        "the port says that the link is down",
        "facts A7",
        |pair| {
            pair.after.put_port(LNKSTA, &[0x05, 0x11]);
        },
        Faulted,
        &[Check::LinkActive],
    ),
    Case(
        "link-down-and-ones",
        "the port says so, and the card reads ones",
        "facts A7",
        |pair| {
            pair.after.fill(0xff);
            pair.after.put_port(LNKSTA, &[0x05, 0x11]);
        },
        Unreachable,
        &[Check::AllOnes, Check::LinkActive],
    ),
    Case(
        "link-not-reported",
        "the port can't tell whether the link is up",
        "facts A7",
        |pair| {
            pair.both(|card| card.put_port(LNKCAP + 2, &[0]));
            pair.after.put_port(LNKSTA, &[0x05, 0x11]);
        },
        Healthy,
        &[],
    ),
    Case(
        "link-never-active",
        "a port of QEMU, which loses the bit",
        "lab findings 3",
        |pair| {
            pair.both(|card| card.put_port(LNKSTA, &[0x11, 0x00]));
        },
        Healthy,
        &[],
    ),
    Case(
        "link-down-asleep",
        "the port sleeps, and says that the link is down",
        "facts A7",
        |pair| {
            pair.after.put_port(LNKSTA, &[0x05, 0x11]);
            pair.after.put_port(PMCSR, &[0x0b]);
        },
        Healthy,
        &[Check::LinkActive],
    ),
    Case(
        "training",
        "the port is training the link",
        "facts A7",
        |pair| {
            pair.after.put_port(LNKSTA, &[0x05, 0x39]);
        },
        Degraded,
        &[Check::LinkTraining],
    ),
    Case(
        "port-ones",
        "the port has gone with it, and it answers still",
        "facts A7",
        |pair| {
            pair.after.put_port(0, &[0xff; 512]);
        },
        Faulted,
        &[Check::Port],
    ),
    Case(
        "port-unread",
        "the port can't be read",
        "facts D2",
        |pair| {
            pair.after.port.as_mut().unwrap().config = unread();
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "other-port",
        "it hangs elsewhere than before",
        "facts D7",
        |pair| {
            pair.after.port.as_mut().unwrap().bdf = "0000:80:03.0".parse().unwrap();
        },
        Unknown,
        &[Check::Port],
    ),
    Case(
        "no-port",
        "the port is gone from above it",
        "facts D7",
        |pair| pair.after.port = None,
        Unknown,
        &[Check::Port],
    ),
];

/// Errors that were counted or shown.
pub(super) const ERRORS: &[Case] = &[
    Case(
        "correctable",
        "the link was repaired",
        "facts A6",
        |pair| {
            pair.after.counted(4, 0, 0);
        },
        Degraded,
        &[Check::CorrectableErrors],
    ),
    Case(
        "nonfatal",
        "a transaction was lost",
        "facts A6",
        |pair| pair.after.counted(3, 1, 0),
        Faulted,
        &[Check::NonfatalErrors],
    ),
    Case(
        "fatal",
        "the link was lost",
        "facts A6",
        |pair| pair.after.counted(3, 0, 1),
        Faulted,
        &[Check::FatalErrors],
    ),
    Case(
        "fatal-at-the-root",
        "only the root port counts a fatal error",
        "lab findings 2",
        |pair| {
            pair.after.root_counted(4, 0, 1);
        },
        Faulted,
        &[Check::RootPortErrors],
    ),
    Case(
        "correctable-at-the-root",
        "the root port repairs the link",
        "facts A6",
        |pair| {
            pair.after.root_counted(5, 0, 0);
        },
        Degraded,
        &[Check::RootPortErrors],
    ),
    Case(
        "fatal-behind-a-switch",
        "behind a switch the root port's errors may be anybody's",
        "facts A6",
        |pair| {
            pair.both(|card| card.behind_a_switch());
            pair.after.root_counted(4, 0, 1);
        },
        Healthy,
        &[Check::RootPortErrors],
    ),
    Case(
        "errors-of-old",
        "what was counted before isn't held against it",
        "facts A6",
        |pair| {
            pair.both(|card| {
                card.counted(9, 2, 1);
                card.root_counted(9, 2, 1);
            });
        },
        Healthy,
        &[],
    ),
    Case(
        "found-anew",
        "its counters began anew: somebody has removed it and looked for it again",
        "facts D7",
        |pair| {
            pair.after.counted(0, 0, 0);
        },
        Healthy,
        &[Check::CountersBegunAnew],
    ),
    Case(
        "found-anew-and-failing",
        "its counters began anew, and count again",
        "facts D7",
        |pair| {
            pair.before.counted(0, 5, 0);
            pair.after.counted(0, 2, 0);
        },
        Faulted,
        &[Check::NonfatalErrors, Check::CountersBegunAnew],
    ),
    Case(
        "shows-nonfatal",
        "a completion didn't arrive in time",
        "facts A7",
        |pair| {
            pair.after.put_dword(AER + 4, 0x0010_4000);
        },
        Faulted,
        &[Check::ErrorStatus],
    ),
    Case(
        "shows-fatal",
        "a malformed packet",
        "facts A7",
        |pair| {
            pair.after.put_dword(AER + 4, 0x0014_0000);
        },
        Faulted,
        &[Check::ErrorStatus],
    ),
    Case(
        "shows-masked",
        "an error that isn't to be reported",
        "facts A7",
        |pair| {
            pair.both(|card| card.put_dword(AER + 8, 0x4000));
            pair.after.put_dword(AER + 4, 0x0010_4000);
        },
        Healthy,
        &[Check::ErrorStatus],
    ),
    Case(
        "shows-advisory",
        "a non-fatal error that it leaves to whoever asked",
        "facts A7",
        |pair| {
            pair.after.put_dword(AER + 4, 0x0010_4000);
            pair.after.put_dword(AER + 0x10, 0x2000);
        },
        Degraded,
        &[Check::ErrorStatus],
    ),
    Case(
        "shows-one-that-may-be-advisory",
        "a non-fatal error where the bit that makes it advisory was set before, and nobody has cleared it",
        "facts A7",
        |pair| {
            pair.both(|card| card.put_dword(AER + 0x10, 0x2000));
            pair.after.put_dword(AER + 4, 0x0010_4000);
        },
        Unknown,
        &[Check::ErrorStatus],
    ),
    Case(
        "shows-ones",
        "the registers of its errors read ones",
        "facts A7",
        |pair| {
            pair.after.put(AER + 4, &[0xff; 16]);
        },
        Impaired,
        &[Check::ErrorStatus],
    ),
    Case(
        "port-shows-surprise-down",
        "a reset of its bus leaves this at the port",
        "facts A4",
        |pair| {
            pair.after.put_port(AER + 4, &[0x20]);
        },
        Healthy,
        &[Check::ErrorStatus],
    ),
    Case(
        "device-status",
        "an unsupported request, as a guest that looks around makes them",
        "facts A7",
        |pair| {
            pair.after.put(DEVSTA, &[0x09]);
        },
        Healthy,
        &[Check::DeviceStatus],
    ),
    Case(
        "transactions-pending",
        "it waits for answers",
        "facts A1",
        |pair| {
            pair.after.put(DEVSTA, &[0x20]);
        },
        Healthy,
        &[Check::DeviceStatus],
    ),
    Case(
        "parity-error",
        "its status shows a parity error",
        "facts A7",
        |pair| {
            pair.after.put(0x07, &[0x80]);
        },
        Healthy,
        &[Check::Status],
    ),
    Case(
        "fewer-reset-methods",
        "FLR is switched off",
        "facts A9",
        |pair| {
            pair.after.reset_methods = Reading::Read(vec!["bus".to_owned()]);
        },
        Healthy,
        &[Check::ResetMethods],
    ),
];

/// What the kernel has said.
pub(super) const LOG: &[Case] = &[
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

/// What couldn't be read.
pub(super) const UNREAD: &[Case] = &[
    Case(
        "header-only",
        "only the header could be read, as of whoever isn't root",
        "facts A7",
        |pair| {
            pair.both(|card| card.cut(64));
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "cut-short-since",
        "less could be read than before",
        "facts A7",
        |pair| pair.after.cut(256),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "resources-unread",
        "where its registers belong isn't known",
        "facts A7",
        |pair| pair.after.bars = unread(),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "power-unread",
        "its power isn't known",
        "facts A7",
        |pair| pair.after.power_state = unread(),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "errors-unread-before",
        "there is nothing to hold its counters against",
        "facts D2",
        |pair| {
            pair.before.errors = unread();
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "errors-gone",
        "its counters are gone",
        "facts A6",
        |pair| pair.after.errors = Reading::Absent,
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "root-errors-unread",
        "what the root port counts isn't known",
        "facts A6",
        |pair| {
            pair.after.port.as_mut().unwrap().root_errors = unread();
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "never-there",
        "a kernel without power attributes, error counters and reset methods",
        "facts A8",
        |pair| {
            pair.both(|card| {
                (card.power, card.power_state) = (Reading::Absent, Reading::Absent);
                (card.errors, card.reset_methods) = (Reading::Absent, Reading::Absent);
                card.port.as_mut().unwrap().root_errors = Reading::Absent;
            });
        },
        Healthy,
        &[],
    ),
];
