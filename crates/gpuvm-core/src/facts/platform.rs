//! The machine, its firmware and its distribution.

use serde::{Deserialize, Serialize};

use crate::doctor::Distribution;

/// The machine, its firmware, its distribution, and what of the running system matters to guests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformFacts {
    /// Whose commands a remedy names (os-release(5)).
    #[serde(default)]
    pub distribution: Distribution,
}
