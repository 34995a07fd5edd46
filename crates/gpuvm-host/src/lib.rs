//! The host: read into facts, changed by operations that are written down before they are made, and given back.
//!
//! Everything is below two prefixes: [`root::HostRoot`] for the kernel's trees, [`places::Places`] for gpuvm's own files.
//! The kernel is acted upon through [`kernel::Kernel`] alone, which a test replaces.

mod aer;
pub mod apply;
pub mod archive;
pub mod bound;
pub mod claims;
pub mod collect;
pub mod error;
pub mod facts;
pub mod given;
pub mod journal;
pub mod kernel;
pub mod kernel_log;
pub mod ledger;
pub mod lock;
mod ops;
pub mod orphans;
pub mod places;
mod power;
pub mod process;
pub mod repair;
pub mod reservation;
pub mod reset;
pub mod root;
pub mod snapshot;
pub mod soak;
pub mod standing;
pub mod undo;
pub mod vfio;

pub use error::{HostError, ResetStage};
pub use gpuvm_sys::{errno, signals};
