//! Errors that were counted or shown.

use super::*;

/// The cases.
pub(in super::super) const ERRORS: &[Case] = &[
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
