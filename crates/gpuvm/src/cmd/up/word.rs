//! The one line that a detached gpuvm says to the one that has started it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use gpuvm_run::Sink;
use serde::{Deserialize, Serialize};

use super::wait::{Matcher, WaitFor};
use crate::exit::Exit;
use crate::failure::{Failure, Item};

/// The line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub(super) enum Word {
    /// What was waited for is there.
    Ready {
        /// Its process.
        supervisor: u32,
        /// QEMU's, once there is one.
        qemu: Option<i32>,
    },
    /// The VM never came up.
    Failed {
        /// How a gpuvm in the foreground had ended.
        exit_code: u8,
        /// What failed.
        items: Vec<Item>,
    },
    /// The guest has ended before what was waited for was there.
    Ended {
        /// How a gpuvm in the foreground had ended.
        exit_code: u8,
    },
}

/// Who says it: nobody, where gpuvm runs in the foreground.
pub(crate) struct Teller {
    inner: Mutex<Inner>,
    wait: WaitFor,
}

struct Inner {
    /// Where it is said; nothing once it was.
    to: Option<UnixStream>,
    qemu: Option<i32>,
}

impl Teller {
    pub(crate) fn new(to: Option<UnixStream>, wait: WaitFor) -> Self {
        Self { inner: Mutex::new(Inner { to, qemu: None }), wait }
    }

    /// Takes in that the VM is reserved.
    pub(crate) fn reserved(&self) {
        if matches!(self.wait, WaitFor::None) {
            self.ready();
        }
    }

    /// Takes in that the guest runs.
    pub(crate) fn running(&self, qemu: i32) {
        self.inner().qemu = Some(qemu);
        if matches!(self.wait, WaitFor::Running) {
            self.ready();
        }
    }

    /// Returns what matches the console, where that is waited for.
    pub(crate) fn sink(self: &std::sync::Arc<Self>) -> Option<Sink> {
        let WaitFor::Console(expect) = &self.wait else { return None };
        let (mut matcher, teller) = (Some(Matcher::new(expect.clone())), std::sync::Arc::clone(self));
        Some(Box::new(move |bytes: &[u8]| {
            if matcher.as_mut().is_some_and(|matcher| matcher.shows(bytes)) {
                matcher = None;
                teller.ready();
            }
            Ok(())
        }))
    }

    /// Takes in how it ended, which is news for who still waits.
    pub(crate) fn ended(&self, result: &Result<Exit, Failure>) {
        self.say(&match result {
            Ok(exit) => Word::Ended { exit_code: *exit as u8 },
            Err(failure) => Word::Failed { exit_code: failure.code as u8, items: failure.items().to_vec() },
        });
    }

    fn ready(&self) {
        let qemu = self.inner().qemu;
        self.say(&Word::Ready { supervisor: std::process::id(), qemu });
    }

    fn say(&self, word: &Word) {
        let Some(mut to) = self.inner().to.take() else { return };
        let Ok(mut line) = serde_json::to_vec(word) else { return };
        line.push(b'\n');
        // Who waited may have given up: the VM goes on all the same.
        to.write_all(&line).ok();
        to.shutdown(std::net::Shutdown::Both).ok();
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
