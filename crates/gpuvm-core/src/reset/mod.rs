//! Whether a device came back: what its registers say, against what they said before.

mod check;
mod config;
mod domain;
mod ledger;
mod method;
pub mod plan;
mod snapshot;
mod verdict;
pub mod wait;

pub use check::{inspect, judge};
pub use config::ConfigSpace;
pub use domain::ResetDomain;
pub use ledger::{Deed, Entry, Grounds, Identity, Quarantine, quarantine};
pub use method::{Method, ResetMethod, Standing, methods, what_it_does};
pub use plan::{PlannedReset, RebootPolicy, Rejected, ResetPlan, ResetPolicy, ResetWish, Step, reset_plan};
pub use snapshot::{Heard, PortSnapshot, Reading, Snapshot};
pub use verdict::{Check, Finding, Judgement, Verdict};
