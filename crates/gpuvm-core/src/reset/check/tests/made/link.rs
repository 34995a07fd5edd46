//! Its link and its port.

use super::*;

/// The cases.
pub(in super::super) const LINK: &[Case] = &[
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
