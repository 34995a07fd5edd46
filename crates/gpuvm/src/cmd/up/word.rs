//! Who waits for a VM to be up, and is told: by one line, the gpuvm that has started a detached one; all along, a service manager.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gpuvm_core::lifecycle::{Halt, State};
use gpuvm_core::profile::Ready;
use gpuvm_run::{Longest, Phase, Sink};
use serde::{Deserialize, Serialize};

use super::unit::Unit;
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

/// Who tells them; nobody is told where gpuvm runs at a terminal.
pub(crate) struct Teller {
    inner: Mutex<Inner>,
    /// What they wait for, once the profile is read.
    wait: OnceLock<WaitFor>,
}

struct Inner {
    /// Where it is said; nothing once it was.
    to: Option<UnixStream>,
    qemu: Option<i32>,
    unit: Option<Unit>,
}

impl Teller {
    pub(crate) fn new(to: Option<UnixStream>, unit: Option<Unit>) -> Self {
        Self { inner: Mutex::new(Inner { to, qemu: None, unit }), wait: OnceLock::new() }
    }

    /// Takes in what is waited for.
    pub(crate) fn wait_for(&self, wait: WaitFor) {
        self.wait.get_or_init(|| wait);
    }

    /// Tells whether a service manager has started this gpuvm.
    pub(super) fn has_manager(&self) -> bool {
        self.inner().unit.is_some()
    }

    /// Takes in how long the parts of the run may take.
    pub(crate) fn limits(&self, longest: Longest) {
        if let Some(unit) = &mut self.inner().unit {
            unit.limits(longest);
        }
    }

    /// Takes in that the VM is reserved.
    pub(crate) fn reserved(&self) {
        if matches!(self.wait.get(), Some(WaitFor::None)) {
            self.ready();
        }
    }

    /// Takes in a step.
    pub(crate) fn phase(&self, phase: &Phase) {
        if let Some(unit) = &mut self.inner().unit {
            unit.phase(phase);
        }
        let (Phase::Running { pid, .. } | Phase::Adopted { pid, .. }) = phase else { return };
        self.inner().qemu = Some(*pid);
        if matches!(self.wait.get(), Some(WaitFor::Ready(Ready::Running))) {
            self.ready();
        }
    }

    /// Takes in where the VM's life stands.
    pub(crate) fn state(&self, state: State, halt: Option<&Halt>) {
        if let Some(unit) = &self.inner().unit {
            unit.state(state, halt);
        }
    }

    /// Returns what matches the console, where that is waited for and somebody does.
    pub(crate) fn sink(self: &Arc<Self>) -> Option<Sink> {
        let Some(WaitFor::Ready(Ready::Console(said))) = self.wait.get() else { return None };
        let waited_for = {
            let inner = self.inner();
            inner.to.is_some() || inner.unit.is_some()
        };
        if !waited_for {
            return None;
        }
        let (mut matcher, teller) = (Some(Matcher::new(said.regex().clone())), Arc::clone(self));
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
        if let Err(failure) = result {
            let message = failure.message();
            self.status(if message.is_empty() { "the profile is wrong" } else { &message });
        }
        self.say(&match result {
            Ok(exit) => Word::Ended { exit_code: *exit as u8 },
            Err(failure) => Word::Failed { exit_code: failure.code as u8, items: failure.items().to_vec() },
        });
    }

    /// Takes in that a run is over that has not failed, whatever was waited for.
    pub(super) fn ends_well(&self) {
        if let Some(unit) = &mut self.inner().unit {
            unit.ends_well();
        }
    }

    /// Tells who is told all along.
    pub(super) fn status(&self, text: &str) {
        if let Some(unit) = &self.inner().unit {
            unit.says(text);
        }
    }

    fn ready(&self) {
        let qemu = {
            let mut inner = self.inner();
            if let Some(unit) = &mut inner.unit {
                unit.ready();
            }
            inner.qemu
        };
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
