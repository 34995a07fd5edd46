//! What happens to devices at boot.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Modules and the rules by which they take devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootFacts {
    /// The modules that are loaded or built in, of those that matter (`/sys/module`).
    #[serde(default)]
    pub modules: BTreeSet<String>,
}
