//! Whether a device came back: what its registers say, against what they said before.

mod check;
mod config;
mod domain;
mod identity;
mod ledger;
mod log;
mod method;
pub mod plan;
mod quarantine;
pub mod quirks;
mod registers;
pub mod repair;
mod snapshot;
mod verdict;
pub mod wait;

pub use check::{inspect, judge};
pub use config::ConfigSpace;
pub use domain::ResetDomain;
pub use identity::Identity;
pub use ledger::{Before, Deed, Entry, Grounds};
pub use log::{Event, ResetTimes, Severity, What};
pub use method::{Method, ResetMethod, Standing, methods, what_it_does};
pub use plan::{PlannedReset, RebootPolicy, Rejected, ResetPlan, ResetPolicy, ResetWish, Step, reset_plan};
pub use quarantine::{Quarantine, kept, quarantine};
pub use quirks::{Confidence, Effect, Quirk, quirks_of};
pub use snapshot::{Heard, PortSnapshot, Reading, Snapshot};
pub use verdict::{Check, Finding, Judgement, Verdict};
