//! Whether it can be used: registers and power.

use super::*;

/// The cases.
pub(in super::super) const REGISTERS: &[Case] = &[
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
