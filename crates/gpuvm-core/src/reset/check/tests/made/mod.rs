//! What isn't easily made for real: each case changes a card that is well, after what vfio-facts.md (A1, A3, A7, A10, D) tells.

mod errors;
mod link;
mod log;
mod presence;
mod registers;
mod unread;

use super::super::super::{Check, Heard, Reading, Verdict};
use super::card::{AER, BAR_0, COMMAND, DEVSTA, LNKCAP, LNKSTA, PMCSR, Pair, SERIAL};
use crate::host_ops::{D3cold, PowerControl, PowerPolicy};

pub(super) use self::errors::ERRORS;
pub(super) use self::link::LINK;
pub(super) use self::log::LOG;
pub(super) use self::presence::PRESENCE;
pub(super) use self::registers::REGISTERS;
pub(super) use self::unread::UNREAD;

/// A case: its file's name, what it is about, where it is from, what it changes, and what is to come of it.
#[derive(Clone, Copy)]
pub(super) struct Case(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) fn(&mut Pair),
    pub(super) Verdict,
    pub(super) &'static [Check],
);

use Verdict::{Degraded, Faulted, Healthy, Impaired, Unknown, Unreachable};

/// Says that something couldn't be read.
fn unread<T>() -> Reading<T> {
    Reading::Unread("Input/output error (os error 5)".to_owned())
}

/// Sets both ends of a link.
fn link(pair: &mut Pair, status: u16) {
    pair.after.put_word(LNKSTA, status);
    pair.after.put_port(LNKSTA, &(status | 1 << 13).to_le_bytes());
}
