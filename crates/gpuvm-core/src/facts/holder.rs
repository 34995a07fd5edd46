//! What of the host sits on a device.

use serde::{Deserialize, Serialize};

/// A part of the host that sits on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Holder {
    /// A mounted file system.
    Mount {
        /// The block device.
        device: String,
        /// Where it is mounted.
        target: String,
    },
    /// Swap space.
    Swap {
        /// The block device.
        device: String,
    },
    /// A block device that something else of the host has: a volume, an array, a pool, a mount in another namespace.
    BlockInUse {
        /// The block device.
        device: String,
    },
    /// A network interface that the default route goes out by.
    Route {
        /// The interface.
        interface: String,
    },
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mount { device, target } => write!(f, "{device} is mounted on {target}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::BlockInUse { device } => {
                write!(f, "{device} is in use (a volume, an array, a pool or a mount elsewhere)")
            }
            Self::Route { interface } => write!(f, "{interface} carries the default route"),
        }
    }
}
