//! Whether a device came back: what its config space says, against what it said before.

mod domain;
mod method;
mod snapshot;
mod verdict;

pub use domain::ResetDomain;
pub use method::{ResetMethod, Standing, methods, what_it_does};
pub use snapshot::Snapshot;
pub use verdict::{Finding, Verdict, judge};
