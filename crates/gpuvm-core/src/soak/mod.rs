//! Soak: the same VM again and again, and how its devices came back from each cycle.
//!
//! ```text
//! Settings --kind_of(n)--> CycleKind --up--> Cycle --append--> record (JSON lines) --read--> Line... --> progress, stop, report, compare
//! ```
//!
//! The record is the one truth: each line is written and synced before the next cycle begins, and everything that is told of a soak,
//! its report and its exit code too, is drawn from the record's lines by the pure functions here.

pub mod compare;
mod console;
mod course;
mod drift;
mod headway;
mod mix;
mod read;
mod record;
pub mod report;
pub mod tally;
mod verdict;

pub use console::Lines;
pub use course::{Act, Course, EndedBy, Happened, Outline};
pub use drift::drift;
pub use headway::{Headway, Next, Standing};
pub use mix::{CycleKind, Mix};
pub use read::{BadRecord, read};
pub use record::{
    Begun, Cut, Cycle, DeviceCycle, DeviceStart, Ended, Fault, JobReport, Line, Machine, OwnUse, Phase,
    PhaseTime, Polled, Ready, ResetTime, ResetWay, Settings, VERSION, Why,
};
pub use tally::Tally;
pub use verdict::{CycleVerdict, StopOn};
