//! What the kernel's log says of resets, power, links and errors.
//!
//! The texts are those of Linux 6.1 to 7.1: drivers/pci/pci.c (resets, power), drivers/pci/pcie/{aer,err}.c, drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c.

use crate::pci::Bdf;

/// One line of the kernel's log that tells something of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The function or port that it is about.
    pub bdf: Bdf,
    /// What has happened.
    pub what: What,
}

/// What the kernel's log tells of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It didn't answer so long after a reset, and the kernel waits on.
    Waiting {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by, as the kernel says it: `FLR`, `bus reset`, `resume`.
        after: String,
    },
    /// It didn't answer so long after a reset, and the kernel has given up.
    GaveUp {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by.
        after: String,
    },
    /// It answered after so long; the kernel says it only of more than a second.
    Ready {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by.
        after: String,
    },
    /// The link below this port didn't come up.
    LinkNotActive {
        /// How long the kernel has waited, in ms.
        ms: u64,
    },
    /// It was reset although transactions were pending.
    PendingTransaction,
    /// It couldn't be woken from this power state.
    PowerStuck {
        /// The state, as the kernel says it.
        from: String,
    },
    /// Its config space doesn't answer.
    Inaccessible,
    /// An error was reported.
    Error(Severity),
    /// The kernel has recovered it from an error.
    Recovered,
    /// The kernel couldn't recover it from an error.
    RecoveryFailed,
    /// The IOMMU has stopped an access of it.
    IommuFault,
}

/// How bad a reported error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The hardware has repaired it.
    Correctable,
    /// It has cost a transaction.
    Nonfatal,
    /// It has cost the link.
    Fatal,
}
