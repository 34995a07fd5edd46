//! What a quirk does, how sure that is, and which hosts meet it: closed sets of words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::profile::read::Choice;

/// What a quirk does, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The kernel resets no bus that it is on, nor the bus right below it.
    NoBusReset,
    /// The kernel doesn't use its function level reset.
    NoFlr,
    /// The kernel doesn't reset it through D3hot.
    NoPmReset,
    /// A function level reset may leave it not answering.
    FlrHangs,
    /// A reset of its bus may leave it not answering.
    BusResetFails,
    /// No reset brings it back.
    ResetKills,
    /// A guest that is killed leaves it in a state that no reset ends.
    ForcedStopKills,
    /// It is reset by its bus, or not at all.
    NeedsBusReset,
    /// It is reset by a way of its own (`device_specific`), or not well.
    NeedsDeviceSpecific,
    /// It doesn't come back from D3.
    SticksInD3,
    /// A guest's reboot is better made with a new QEMU.
    RelaunchOnReboot,
    /// Only taking its power away helps, once it is lost.
    NeedsPowerCycle,
    /// It may take the host with it.
    HangsHost,
    /// QEMU has a way to reset it where the kernel has none.
    QemuResets,
    /// What joins it to its neighbours must not be managed by host and guest at once.
    SharedFabric,
    /// The kernel says that a reset was done which wasn't.
    ResetLies,
    /// The kernel refuses resets of the bus that would work.
    BusResetRefused,
    /// The kernel writes back a config space that it couldn't read.
    DeadConfigSaved,
    /// The kernel takes its time to map large registers.
    SlowRegisters,
}

impl Choice for Effect {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("no-bus-reset", Self::NoBusReset),
        ("no-flr", Self::NoFlr),
        ("no-pm-reset", Self::NoPmReset),
        ("flr-hangs", Self::FlrHangs),
        ("bus-reset-fails", Self::BusResetFails),
        ("reset-kills", Self::ResetKills),
        ("forced-stop-kills", Self::ForcedStopKills),
        ("needs-bus-reset", Self::NeedsBusReset),
        ("needs-device-specific", Self::NeedsDeviceSpecific),
        ("sticks-in-d3", Self::SticksInD3),
        ("relaunch-on-reboot", Self::RelaunchOnReboot),
        ("needs-power-cycle", Self::NeedsPowerCycle),
        ("hangs-host", Self::HangsHost),
        ("qemu-resets", Self::QemuResets),
        ("shared-fabric", Self::SharedFabric),
        ("reset-lies", Self::ResetLies),
        ("bus-reset-refused", Self::BusResetRefused),
        ("dead-config-saved", Self::DeadConfigSaved),
        ("slow-registers", Self::SlowRegisters),
    ];
}

/// How sure a quirk is: whose word it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The kernel's source says so: what it says of the kernel's resets holds.
    KernelSource,
    /// QEMU's source says so.
    QemuSource,
    /// A tool or a document of whoever makes the device says so.
    VendorTool,
    /// Several users say so, independently.
    SeveralReports,
    /// One user, or one page, says so.
    OneReport,
    /// Nobody has shown it.
    Unverified,
}

impl Choice for Confidence {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("kernel-source", Self::KernelSource),
        ("qemu-source", Self::QemuSource),
        ("vendor-tool", Self::VendorTool),
        ("several-reports", Self::SeveralReports),
        ("one-report", Self::OneReport),
        ("unverified", Self::Unverified),
    ];
}

impl Confidence {
    /// Says whose word it is, as it stands behind a sentence.
    pub fn whose(self) -> &'static str {
        match self {
            Self::KernelSource => "by the kernel's source",
            Self::QemuSource => "by QEMU's source",
            Self::VendorTool => "by the vendor's own tools or documents",
            Self::SeveralReports => "several users report it",
            Self::OneReport => "one user's report, which nobody has confirmed",
            Self::Unverified => "unverified",
        }
    }
}

/// Which functions an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The function that has these ids.
    #[default]
    Device,
    /// A port that has these ids, and what is right below it.
    Port,
    /// Either.
    Any,
}

impl Choice for Role {
    const WORDS: &'static [(&'static str, Self)] =
        &[("device", Self::Device), ("port", Self::Port), ("any", Self::Any)];
}

/// Which hosts meet a quirk of the kernel itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Meets {
    /// All that pass a device.
    #[default]
    All,
    /// Those that pass a device with registers of 32 GiB or more.
    LargeRegisters,
    /// Those that pass a device of which only the bus can be reset.
    BusResetOnly,
}

impl Choice for Meets {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("all", Self::All),
        ("large-registers", Self::LargeRegisters),
        ("bus-reset-only", Self::BusResetOnly),
    ];
}

/// Spells words of a closed set, and reads those that stand in lists.
macro_rules! word {
    ($($type:ty),*) => { $(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let word = Self::WORDS.iter().find(|(_, one)| one == self);
                f.write_str(word.map_or("?", |(word, _)| word))
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::WORDS.iter().find(|(word, _)| *word == text);
                let words = || Self::WORDS.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ");
                found.map(|(_, one)| *one).ok_or_else(|| format!("`{text}` is none of {}", words()))
            }
        }
    )* };
}

word!(Effect, Confidence, Role, Meets);

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    /// The words of a table are those of `--json`.
    fn words_are_those_of_json<T: Choice + Serialize + PartialEq + fmt::Debug + fmt::Display + FromStr>() {
        for (word, one) in T::WORDS {
            assert_eq!(serde_json::to_value(one).unwrap(), *word);
            assert_eq!(one.to_string(), *word);
            assert!(word.parse::<T>().is_ok_and(|parsed| parsed == *one));
        }
    }

    #[test]
    fn each_word_is_spelt_one_way() {
        words_are_those_of_json::<Effect>();
        words_are_those_of_json::<Confidence>();
        words_are_those_of_json::<Role>();
        words_are_those_of_json::<Meets>();
    }
}
