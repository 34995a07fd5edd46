//! Changes to the host, as values: what is done, and what undoes it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pci::{Bdf, DriverName};
use crate::reset::Method;
use crate::units::PageSize;

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum HostOp {
    /// Claims pages of a node's hugepage pool, growing the pool where it has too few. Shared.
    ClaimHugepages {
        /// The node.
        node: u32,
        /// The size of a page.
        page: PageSize,
        /// How many pages.
        pages: u64,
    },
    /// Claims that a root port or bridge stays awake while a device below it is in use. Shared.
    ClaimAwake {
        /// The port.
        port: Bdf,
    },
    /// Makes an image that takes a guest's writes in place of the one behind it. Private.
    CreateOverlay {
        /// The new image (qcow2); there must be nothing of that name.
        path: PathBuf,
        /// The image that stays as it is.
        backing: PathBuf,
        /// That image's format: never guessed, a guest could write a header into a raw one.
        format: ImageFormat,
        /// The program that makes it.
        qemu_img: PathBuf,
    },
    /// Keeps a device from runtime power management: some don't come back from D3. Private.
    ///
    /// It comes before the device's drivers change, so that what it saved is put back after they have changed back.
    KeepAwake {
        /// The device.
        bdf: Bdf,
    },
    /// Cuts a device's reset methods down to those that its profile allows (`reset_method`). Private.
    ///
    /// It comes before the device's drivers change: the kernel may refuse it, and a list that can't be put back must not keep the
    /// device from its driver.
    SetResetMethods {
        /// The device.
        bdf: Bdf,
        /// The methods that are left, in order; none switches the kernel's resets of the function off.
        methods: Vec<Method>,
    },
    /// Takes over a device that somebody else has bound to VFIO: nothing is changed, and undoing it asks the kernel for a driver.
    /// Private.
    Adopt {
        /// The device.
        bdf: Bdf,
    },
    /// Takes a device from its driver. Private.
    Unbind {
        /// The device.
        bdf: Bdf,
        /// The driver that it has.
        driver: DriverName,
    },
    /// Sets `driver_override`, so that no other driver takes the device. Private.
    SetDriverOverride {
        /// The device.
        bdf: Bdf,
        /// The driver that alone may take it.
        driver: DriverName,
    },
    /// Gives a device without a driver to one. Private.
    Bind {
        /// The device.
        bdf: Bdf,
        /// The driver that it gets.
        driver: DriverName,
    },
    /// Claims that devices which the kernel finds get no driver by themselves (`drivers_autoprobe`). Shared.
    HoldAutoprobe,
    /// Removes a device from the kernel. Undoing it has the kernel scan the device's bus anew, and makes the device what it was when
    /// it was removed: `driver_override`, power policy, reset methods, and at last its driver. That is how a repair goes on as well, so
    /// that the operations before this one find in the end what they have left. Private.
    Remove {
        /// The device.
        bdf: Bdf,
        /// The bridge or root port right above it; none for one on a root bus.
        #[serde(default)]
        port: Option<Bdf>,
    },
}

impl HostOp {
    /// Tells whether it is part of a repair: that is finished before anything else is done with its devices.
    pub fn is_repair(&self) -> bool {
        matches!(self, Self::HoldAutoprobe | Self::Remove { .. })
    }

    /// Returns the device that the operation is about, if it is about one.
    pub fn bdf(&self) -> Option<Bdf> {
        match self {
            Self::ClaimHugepages { .. } | Self::CreateOverlay { .. } | Self::HoldAutoprobe => None,
            Self::ClaimAwake { port: bdf }
            | Self::KeepAwake { bdf }
            | Self::SetResetMethods { bdf, .. }
            | Self::Adopt { bdf }
            | Self::Unbind { bdf, .. }
            | Self::SetDriverOverride { bdf, .. }
            | Self::Bind { bdf, .. }
            | Self::Remove { bdf, .. } => Some(*bdf),
        }
    }
}

impl std::fmt::Display for HostOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClaimHugepages { node, page, pages } => {
                write!(f, "claim {pages} hugepages of {page} on node {node}")
            }
            Self::ClaimAwake { port } => write!(f, "claim that port {port} stays awake"),
            Self::CreateOverlay { path, backing, .. } => {
                write!(f, "make overlay {} of {}", path.display(), backing.display())
            }
            Self::KeepAwake { bdf } => write!(f, "keep {bdf} awake"),
            Self::SetResetMethods { bdf, methods } if methods.is_empty() => {
                write!(f, "switch the reset methods of {bdf} off")
            }
            Self::SetResetMethods { bdf, methods } => {
                let names: Vec<_> = methods.iter().map(|method| method.name()).collect();
                write!(f, "set the reset methods of {bdf} to {}", names.join(" "))
            }
            Self::Adopt { bdf } => write!(f, "take over {bdf}, which somebody else has bound"),
            Self::Unbind { bdf, driver } => write!(f, "unbind {bdf} from {driver}"),
            Self::SetDriverOverride { bdf, driver } => write!(f, "set driver_override of {bdf} to {driver}"),
            Self::Bind { bdf, driver } => write!(f, "bind {bdf} to {driver}"),
            Self::HoldAutoprobe => {
                f.write_str("claim that devices that are found get no driver by themselves")
            }
            Self::Remove { bdf, .. } => write!(f, "remove {bdf} from the kernel, to have it found anew"),
        }
    }
}

/// The format of an image behind an overlay, under qemu-img's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The bytes of the disk, as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Whether runtime power management may put a device to sleep (`power/control`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerControl {
    /// It stays awake.
    On,
    /// It may sleep when it is idle.
    Auto,
}

/// Whether a device's power may be taken away altogether (`d3cold_allowed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum D3cold {
    /// It may not.
    Forbidden,
    /// It may.
    Allowed,
}

/// A device's power attributes; a kernel without CONFIG_PM has none, one without CONFIG_ACPI no `d3cold_allowed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerPolicy {
    /// `power/control`.
    pub control: Option<PowerControl>,
    /// `d3cold_allowed`.
    pub d3cold: Option<D3cold>,
}

impl PowerPolicy {
    /// Tells whether a device with this policy stays in D0.
    pub fn is_awake(&self) -> bool {
        self.control != Some(PowerControl::Auto) && self.d3cold != Some(D3cold::Allowed)
    }
}

/// What undoing the change of one value comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undoing<T> {
    /// It is as it was.
    Nothing,
    /// It is as gpuvm left it: this is written back.
    Restore(T),
    /// It is neither.
    ChangedByOthers,
}

/// Decides how a value is undone by what it was, what gpuvm made it and what it is.
pub fn undoing<T: PartialEq>(saved: T, ours: &T, now: &T) -> Undoing<T> {
    if *now == saved {
        Undoing::Nothing
    } else if now == ours {
        Undoing::Restore(saved)
    } else {
        Undoing::ChangedByOthers
    }
}

/// The claims that one port stays awake, from the first claim to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwakeClaims {
    /// The port's policy without the claims: what the last one restores.
    pub baseline: PowerPolicy,
    /// The VMs that claim.
    pub vms: BTreeSet<String>,
}

impl AwakeClaims {
    /// Starts with the port as it is found.
    pub fn new(found: PowerPolicy) -> Self {
        Self { baseline: found, vms: BTreeSet::new() }
    }

    /// Takes a policy that lets the port sleep in spite of the claims as the one to come back to: somebody else has set it, or
    /// a claim was noted and never made.
    pub fn adopt(&mut self, now: PowerPolicy) {
        if now.control == Some(PowerControl::Auto) {
            self.baseline.control = now.control;
        }
        if now.d3cold == Some(D3cold::Allowed) {
            self.baseline.d3cold = now.d3cold;
        }
    }
}

/// Whether devices that the kernel finds are offered to drivers (`drivers_autoprobe`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Autoprobe {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// The claims that devices which are found get no driver by themselves, from the first claim to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoprobeClaims {
    /// What there is without the claims: what the last one restores.
    pub baseline: Autoprobe,
    /// Who claims.
    pub holders: BTreeSet<String>,
}

impl AutoprobeClaims {
    /// Starts with what is found.
    pub fn new(found: Autoprobe) -> Self {
        Self { baseline: found, holders: BTreeSet::new() }
    }

    /// Takes what is there in spite of the claims as what to come back to: somebody else has switched it on, or a claim was noted
    /// and never made.
    pub fn adopt(&mut self, now: Autoprobe) {
        if now == Autoprobe::On {
            self.baseline = now;
        }
    }
}

/// The claims on one node's pool of one page size, from the first claim to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolClaims {
    /// `nr_hugepages` without the claims: what the last one restores.
    pub baseline: u64,
    /// `free_hugepages` before the first claim: pages that were there for the taking.
    pub spare: u64,
    /// `nr_hugepages` as gpuvm last left it.
    pub written: u64,
    /// What gpuvm was about to write; the kernel resizes page by page, so a crash leaves any size in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u64>,
    /// Pages by VM.
    pub claims: std::collections::BTreeMap<String, u64>,
}

impl PoolClaims {
    /// Starts with the pool as it is found.
    pub fn new(pool: crate::facts::HugepagePool) -> Self {
        Self {
            baseline: pool.total,
            spare: pool.free,
            written: pool.total,
            pending: None,
            claims: Default::default(),
        }
    }

    /// Returns how large the pool must be for all claims: what was there, and what the claims need beyond the spare pages.
    pub fn target(&self) -> u64 {
        self.baseline.saturating_add(self.grown())
    }

    /// Tells whether a pool of this size is as gpuvm left it, or as a crash of gpuvm in the middle of a write left it.
    pub fn is_ours(&self, total: u64) -> bool {
        let pending = self.pending.unwrap_or(self.written);
        (self.written.min(pending)..=self.written.max(pending)).contains(&total)
    }

    /// Takes a size that somebody else has set as the one to come back to, and counts what the claims have grown on top.
    pub fn adopt(&mut self, total: u64) {
        self.baseline = total.saturating_sub(self.grown());
        self.written = total;
        self.pending = None;
    }

    fn grown(&self) -> u64 {
        self.claims.values().copied().fold(0, u64::saturating_add).saturating_sub(self.spare)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::facts::HugepagePool;

    #[rstest]
    #[case::as_it_was("a", "b", "a", Undoing::Nothing)]
    #[case::as_we_left_it("a", "b", "b", Undoing::Restore("a"))]
    #[case::never_changed("a", "a", "a", Undoing::Nothing)]
    #[case::somebody_elses("a", "b", "c", Undoing::ChangedByOthers)]
    #[case::somebody_elses_where_we_changed_nothing("a", "a", "c", Undoing::ChangedByOthers)]
    fn undoing_goes_by_what_it_was_what_we_wrote_and_what_it_is(
        #[case] saved: &str,
        #[case] ours: &str,
        #[case] now: &str,
        #[case] expected: Undoing<&str>,
    ) {
        assert_eq!(undoing(saved, &ours, &now), expected);
    }

    #[test]
    fn a_port_adopts_only_what_lets_it_sleep() {
        let policy = |control, d3cold| PowerPolicy { control: Some(control), d3cold: Some(d3cold) };
        let mut claims = AwakeClaims::new(policy(PowerControl::Auto, D3cold::Forbidden));
        claims.adopt(policy(PowerControl::On, D3cold::Allowed));
        assert_eq!(claims.baseline, policy(PowerControl::Auto, D3cold::Allowed));
    }

    #[rstest]
    #[case(None, None, true)]
    #[case(Some(PowerControl::On), None, true)]
    #[case(Some(PowerControl::On), Some(D3cold::Forbidden), true)]
    #[case(Some(PowerControl::On), Some(D3cold::Allowed), false)]
    #[case(Some(PowerControl::Auto), Some(D3cold::Forbidden), false)]
    fn a_policy_is_awake_when_neither_attribute_lets_it_sleep(
        #[case] control: Option<PowerControl>,
        #[case] d3cold: Option<D3cold>,
        #[case] awake: bool,
    ) {
        assert_eq!(PowerPolicy { control, d3cold }.is_awake(), awake);
    }

    #[test]
    fn pool_grows_only_by_what_is_missing_and_shrinks_back() {
        let mut pool = PoolClaims::new(HugepagePool { total: 100, free: 60 });
        pool.claims.insert("a".into(), 50);
        assert_eq!(pool.target(), 100, "50 of the 60 spare pages are enough");
        pool.claims.insert("b".into(), 50);
        assert_eq!(pool.target(), 140);
        pool.claims.remove("a");
        assert_eq!(pool.target(), 100);
        pool.claims.remove("b");
        assert_eq!(pool.target(), 100);
    }

    #[test]
    fn a_size_between_written_and_pending_is_ours_and_no_other_is() {
        let mut pool = PoolClaims::new(HugepagePool { total: 10, free: 0 });
        pool.pending = Some(100);
        for (total, ours) in [(9, false), (10, true), (77, true), (100, true), (101, false)] {
            assert_eq!(pool.is_ours(total), ours, "{total}");
        }
    }

    #[test]
    fn what_an_administrator_adds_between_two_claims_is_there_in_the_end() {
        let mut pool = PoolClaims::new(HugepagePool { total: 0, free: 0 });
        pool.claims.insert("a".into(), 128);
        pool.written = pool.target();
        pool.adopt(1128);
        pool.claims.insert("b".into(), 128);
        assert_eq!(pool.target(), 1256);
        pool.claims.clear();
        assert_eq!(pool.target(), 1000);
    }
}
