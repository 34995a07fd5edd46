//! Changes to the host, as values: what is done, and what undoes it.

use serde::{Deserialize, Serialize};

use crate::pci::{Bdf, DriverName};
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
}

impl HostOp {
    /// Returns the device that the operation is about, if it is about one.
    pub fn bdf(&self) -> Option<Bdf> {
        match self {
            Self::ClaimHugepages { .. } => None,
            Self::Unbind { bdf, .. } | Self::SetDriverOverride { bdf, .. } | Self::Bind { bdf, .. } => {
                Some(*bdf)
            }
        }
    }
}

impl std::fmt::Display for HostOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClaimHugepages { node, page, pages } => {
                write!(f, "claim {pages} hugepages of {page} on node {node}")
            }
            Self::Unbind { bdf, driver } => write!(f, "unbind {bdf} from {driver}"),
            Self::SetDriverOverride { bdf, driver } => write!(f, "set driver_override of {bdf} to {driver}"),
            Self::Bind { bdf, driver } => write!(f, "bind {bdf} to {driver}"),
        }
    }
}

/// The claims on one node's pool of one page size, from the first claim to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolClaims {
    /// `nr_hugepages` before the first claim: what the last one restores.
    pub baseline: u64,
    /// `free_hugepages` before the first claim: pages that were there for the taking.
    pub spare: u64,
    /// What gpuvm last wrote, or saw, in `nr_hugepages`.
    pub written: u64,
    /// Pages by VM.
    pub claims: std::collections::BTreeMap<String, u64>,
}

impl PoolClaims {
    /// Starts with the pool as it is found.
    pub fn new(pool: crate::facts::HugepagePool) -> Self {
        Self { baseline: pool.total, spare: pool.free, written: pool.total, claims: Default::default() }
    }

    /// Returns how large the pool must be for all claims: what was there, and what the claims need beyond the spare pages.
    pub fn target(&self) -> u64 {
        let claimed: u64 = self.claims.values().sum();
        self.baseline + claimed.saturating_sub(self.spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HugepagePool;

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
}
