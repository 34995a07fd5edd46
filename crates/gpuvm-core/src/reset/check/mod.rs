//! The checks: a function after a run or a reset against what it was before.
//!
//! A device changes between two snapshots without being sick, and no check may hold that against it. The baseline is taken under
//! the native driver, the other snapshot under vfio-pci or after it has closed the device: the command register, MSI, the control
//! registers of PCI Express and the power state are then what the driver of the moment has set, and none is compared. In D3hot
//! config space answers, and a device without No_Soft_Reset may have lost its base address registers there until it is resumed.
//! Links slow down when they idle. `resource` holds addresses as the CPU uses them, which on x86 are those in the registers.

mod aer;
mod bars;
mod identity;
mod link;
mod log;
mod power;
mod presence;
#[cfg(test)]
mod tests;
mod unread;

use super::log::Event;
use super::registers::Registers;
use super::{Check, Finding, Heard, Judgement, Snapshot, Verdict};
use crate::facts::Presence;
use crate::pci::Bdf;

/// A check: its name, and what finds.
type Entry = (Check, fn(&Comparison<'_>) -> Vec<Finding>);

/// Every check. Each finds for itself: taking one out takes away its findings and no others.
const CHECKS: &[Entry] = &[
    (Check::Config, presence::config),
    (Check::AllOnes, presence::all_ones),
    (Check::Retrying, presence::retrying),
    (Check::Identity, identity::identity),
    (Check::Subsystem, identity::subsystem),
    (Check::Class, identity::class),
    (Check::HeaderType, identity::header_type),
    (Check::InterruptPin, identity::interrupt_pin),
    (Check::Capabilities, identity::capabilities),
    (Check::Status, aer::status),
    (Check::Bars, bars::bars),
    (Check::PowerRegister, power::register),
    (Check::PowerState, power::state),
    (Check::PowerPolicy, power::policy),
    (Check::LinkWidth, link::width),
    (Check::LinkSpeed, link::speed),
    (Check::LinkActive, link::active),
    (Check::LinkTraining, link::training),
    (Check::Port, link::port),
    (Check::CorrectableErrors, aer::correctable),
    (Check::NonfatalErrors, aer::nonfatal),
    (Check::FatalErrors, aer::fatal),
    (Check::RootPortErrors, aer::root_port),
    (Check::CountersBegunAnew, aer::begun_anew),
    (Check::ErrorStatus, aer::error_status),
    (Check::DeviceStatus, aer::device_status),
    (Check::ResetMethods, identity::reset_methods),
    (Check::Log, log::heard),
    (Check::GaveUp, log::gave_up),
    (Check::PowerStuck, log::power_stuck),
    (Check::Inaccessible, log::inaccessible),
    (Check::RecoveryFailed, log::recovery_failed),
    (Check::UncorrectableLogged, log::uncorrectable),
    (Check::CorrectableLogged, log::correctable),
    (Check::SlowReset, log::slow_reset),
    (Check::LinkNotActive, log::link_not_active),
    (Check::PendingTransaction, log::pending_transaction),
    (Check::IommuFault, log::iommu_fault),
    (Check::Unread, unread::unread),
];

/// Judges a function by its snapshots before and after, and by what the kernel has said between.
pub fn judge(before: &Snapshot, after: &Snapshot, heard: &Heard) -> Judgement {
    judge_by(CHECKS, &Comparison::new(before, after, Some(heard)))
}

/// Judges a function by one snapshot, held against what the kernel believes of it: before a run there is nothing else.
pub fn inspect(now: &Snapshot) -> Judgement {
    judge_by(CHECKS, &Comparison::new(now, now, None))
}

fn judge_by(checks: &[Entry], comparison: &Comparison<'_>) -> Judgement {
    Judgement::new(checks.iter().flat_map(|(_, check)| check(comparison)).collect())
}

/// Two snapshots side by side.
struct Comparison<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    /// What the kernel has said between; nothing where there is no between.
    heard: Option<&'a Heard>,
    events: Vec<(Event, &'a str)>,
    /// The function's registers, of a moment when it answered: one that doesn't has none to look at.
    function: Both<Registers<'a>>,
    /// Its port's.
    port: Both<Registers<'a>>,
}

/// Something before and after.
struct Both<T> {
    before: Option<T>,
    after: Option<T>,
}

impl<T> Both<T> {
    /// Returns both, if there were both.
    fn pair(&self) -> Option<(&T, &T)> {
        self.before.as_ref().zip(self.after.as_ref())
    }

    /// Returns one value of both, if it could be had of both.
    fn of<V>(&self, value: impl Fn(&T) -> Option<V>) -> Option<(V, V)> {
        let (before, after) = self.pair()?;
        value(before).zip(value(after))
    }
}

impl<'a> Comparison<'a> {
    fn new(before: &'a Snapshot, after: &'a Snapshot, heard: Option<&'a Heard>) -> Self {
        let is_virtual = |snapshot: &Snapshot| snapshot.virtual_function == Presence::Present;
        let function = |snapshot: &'a Snapshot| Registers::of(&snapshot.config, is_virtual(snapshot));
        let port = |snapshot: &'a Snapshot| Registers::of(&snapshot.port.as_ref()?.config, false);
        let same_port = before.port.as_ref().map(|port| port.bdf) == after.port.as_ref().map(|port| port.bdf);
        let lines = heard.map_or(&[][..], Heard::lines);
        Self {
            before,
            after,
            heard,
            events: lines.iter().filter_map(|line| Some((Event::parse(line)?, line.as_str()))).collect(),
            function: Both { before: function(before), after: function(after) },
            // The registers of two ports tell nothing of each other.
            port: Both { before: port(before).filter(|_| same_port), after: port(after) },
        }
    }

    fn is_virtual(&self) -> bool {
        self.after.virtual_function == Presence::Present
    }

    /// Returns the address of the port right above.
    fn port_bdf(&self) -> Option<Bdf> {
        self.after.port.as_ref().or(self.before.port.as_ref()).map(|port| port.bdf)
    }

    /// Begins a finding about the function itself.
    fn found(
        &self,
        check: Check,
        weight: impl Into<Option<Verdict>>,
        register: &str,
        after: impl ToString,
        meaning: &str,
    ) -> Finding {
        found(check, weight, self.after.bdf, register, after, meaning)
    }
}

/// Begins a finding.
fn found(
    check: Check,
    weight: impl Into<Option<Verdict>>,
    bdf: Bdf,
    register: &str,
    after: impl ToString,
    meaning: &str,
) -> Finding {
    Finding {
        check,
        weight: weight.into(),
        bdf,
        register: register.to_owned(),
        before: None,
        after: after.to_string(),
        meaning: meaning.to_owned(),
    }
}

impl Finding {
    fn was(self, before: impl ToString) -> Self {
        Self { before: Some(before.to_string()), ..self }
    }
}
