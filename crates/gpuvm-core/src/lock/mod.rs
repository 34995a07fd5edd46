//! Locks: what a host was when a profile was found to fit it, and what has changed since.
//!
//! A lock is a text beside its profile that people read and keep in version control. [`Lock::of`] takes down what the facts say,
//! and [`diff`] compares two of them; what wasn't read is unknown, which is no equality.

mod change;
mod diff;
mod record;

use std::collections::BTreeSet;

pub use change::{Attribute, Card, Change, HostPart, Identity, Severity};
pub use diff::{Present, diff};
pub use record::{
    Lock, LockError, LockedBar, LockedDevice, LockedFunction, LockedHost, Revision, Serial, VERSION,
};

pub(crate) use record::serial;

use crate::facts::HostFacts;
use crate::pci::{Bdf, PciId};
use crate::profile::Profile;

/// Compares a lock with what a profile means on the host as it is now.
pub fn compare(lock: &Lock, profile: &Profile, facts: &HostFacts) -> Vec<Change> {
    diff(lock, &Present::of(profile, facts))
}

/// Returns the ids of the locked cards that aren't where they were: they may be elsewhere, which is worth a look at all
/// functions with such ids.
pub fn missing(lock: &Lock, facts: &HostFacts) -> BTreeSet<PciId> {
    let there = |device: &&LockedDevice| {
        facts
            .devices
            .get(&device.bdf)
            .is_some_and(|now| device.holds_here(&LockedDevice::of(device.bdf, now, facts)))
    };
    lock.devices.iter().filter(|device| !there(device)).map(|device| device.id).collect()
}

/// Returns the functions that a lock of a profile is about: those that it names for the guest.
pub fn asked(profile: &Profile) -> BTreeSet<Bdf> {
    profile.devices.iter().map(|device| device.bdf).collect()
}
