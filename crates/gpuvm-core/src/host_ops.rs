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
        self.claims.values().sum::<u64>().saturating_sub(self.spare)
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
