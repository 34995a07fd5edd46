//! The rules between keys: defaults, what must be there, what can't stand together. Knows nothing of the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::problem::{Problem, ProblemKind};
use super::raw::RawProfile;
use super::read::{Leaf, Located};
use super::section::{cpu, device, disk, display, kernel, memory, network};
use super::tree::Place;
use super::{Accel, FirmwareKind, Network, Profile, Ready, Rtc, Serial, VERSION};
use crate::reset::RebootPolicy;
use crate::reset::repair::RepairPolicy;

/// How long a guest may take to power off where nothing is said, in seconds.
const SHUTDOWN_TIMEOUT: u32 = 60;

/// Turns what was written into what is meant, or reports each rule that is broken.
pub(super) fn check(raw: RawProfile, base: &Path, problems: &mut Vec<Problem>) -> Option<Profile> {
    let mut checker = Checker::new(raw.refused.clone(), base, problems);
    let start = Place::default();
    checker.version(&raw, &start);
    let accel = value_or(raw.accel, Accel::Kvm);
    let network = value_or(raw.network, Network::User);
    let name = checker.required(raw.name, "name", r#"name = "compute-1""#, &start);
    let memory = memory::check(raw.memory, &raw.end, &mut checker);
    let cpu = cpu::check(raw.cpu, accel, &raw.end, &mut checker);
    let (devices, choices) = device::check(raw.devices, &mut checker);
    let disks = disk::check(raw.disks, &mut checker);
    let kernel = raw.kernel.and_then(|kernel| kernel::check(kernel, &mut checker));
    let forwards = network::check(raw.forwards, network, &mut checker);
    let display = display::check(raw.display, raw.display_listen, &mut checker);
    for word in &raw.extra_args {
        checker.argument("extra-args", word);
    }
    Some(Profile {
        name: name?.value,
        accel,
        firmware: value_or(raw.firmware, FirmwareKind::Uefi),
        memory: memory?,
        cpu: cpu?,
        kernel,
        devices,
        choices,
        disks,
        network,
        forwards,
        serial: value_or(raw.serial, Serial::Console),
        display,
        rtc: value_or(raw.rtc, Rtc::Utc),
        shutdown_timeout: value_or(raw.shutdown_timeout, SHUTDOWN_TIMEOUT),
        ready: value_or(raw.ready, Ready::Running),
        reboot: value_or(raw.reboot, RebootPolicy::InPlace),
        repair: value_or(raw.repair, RepairPolicy::Never),
        extra_args: raw.extra_args.into_iter().map(|word| word.value).collect(),
    })
}

/// Takes what was written, or the default.
pub(super) fn value_or<T>(leaf: Leaf<T>, default: T) -> T {
    leaf.map_or(default, |located| located.value)
}

/// Collects what is wrong with a profile.
pub(super) struct Checker<'a> {
    refused: Vec<String>,
    base: &'a Path,
    problems: &'a mut Vec<Problem>,
    boot_places: BTreeSet<u32>,
}

impl<'a> Checker<'a> {
    fn new(refused: Vec<String>, base: &'a Path, problems: &'a mut Vec<Problem>) -> Self {
        Self { refused, base, problems, boot_places: BTreeSet::new() }
    }

    pub(super) fn report(&mut self, key: &str, place: Place, kind: ProblemKind) {
        self.problems.push(Problem { key: key.to_owned(), place, kind });
    }

    /// Reports a value that makes no sense.
    pub(super) fn value(&mut self, key: &str, place: Place, message: String) {
        self.report(key, place, ProblemKind::Value { key: key.to_owned(), message });
    }

    /// Reports a key that has no effect beside another one, if it is there.
    pub(super) fn pointless<T>(&mut self, leaf: Leaf<T>, key: &str, because: &'static str) {
        if let Some(Located { place, .. }) = leaf {
            self.report(key, place, ProblemKind::Pointless { key: key.to_owned(), because });
        }
    }

    /// Asks for a leaf that has no default, and belongs at a place; one that was refused by its type isn't reported again.
    pub(super) fn required<T>(
        &mut self,
        leaf: Leaf<T>,
        key: &str,
        example: &'static str,
        place: &Place,
    ) -> Leaf<T> {
        let table_refused = |refused: &String| refused == key || key.starts_with(&format!("{refused}."));
        if leaf.is_none() && !self.refused.iter().filter(|key| !key.is_empty()).any(table_refused) {
            self.report(key, place.clone(), ProblemKind::Missing { key: key.to_owned(), example });
        }
        leaf
    }

    /// Tells whether something in a table was refused already.
    pub(super) fn refused_below(&self, table: &str) -> bool {
        let below = format!("{table}.");
        self.refused.iter().any(|refused| refused == table || refused.starts_with(&below))
    }

    fn version(&mut self, raw: &RawProfile, start: &Place) {
        let version = self.required(raw.version.clone(), "version", "version = 1", start);
        if let Some(Located { value, place }) = version
            && value != i128::from(VERSION)
        {
            self.report("version", place, ProblemKind::Version { found: value });
        }
    }

    /// Takes a place in the boot order, which is one device's or disk's.
    pub(super) fn boot_place(&mut self, key: &str, boot: &Located<u32>) {
        if !self.boot_places.insert(boot.value) {
            let message = format!("place {} in the boot order is taken already", boot.value);
            self.value(key, boot.place.clone(), message);
        }
    }

    /// Checks a text that becomes an argument of a process: it can't hold a NUL byte.
    pub(super) fn argument(&mut self, key: &str, text: &Located<String>) {
        if text.value.contains('\0') {
            self.value(key, text.place.clone(), "an argument can't hold a NUL byte".to_owned());
        }
    }

    /// Resolves a path against the profile's folder. Any byte but NUL may be in it, and it may not be empty.
    pub(super) fn path(&mut self, raw: &Located<String>, key: &str) -> Option<PathBuf> {
        if raw.value.is_empty() || raw.value.contains('\0') {
            self.value(key, raw.place.clone(), "a path can't be empty or hold a NUL byte".to_owned());
            return None;
        }
        Some(self.base.join(&raw.value))
    }
}
