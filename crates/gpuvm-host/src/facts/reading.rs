//! What a reader does about an attribute that can't be read.

use std::cell::RefCell;

use crate::HostError;

/// Whether what can't be read ends the reading, and what couldn't be read so far.
#[derive(Debug)]
pub(crate) struct Reading {
    on_failure: OnFailure,
    unread: RefCell<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    End,
    GoOn,
}

impl Reading {
    /// Ends at the first failure: a plan isn't made of half the facts.
    pub(crate) fn strict() -> Self {
        Self { on_failure: OnFailure::End, unread: RefCell::default() }
    }

    /// Goes on without what can't be read, and takes it down.
    pub(crate) fn lenient() -> Self {
        Self { on_failure: OnFailure::GoOn, unread: RefCell::default() }
    }

    /// Takes what was read, or what stands for its absence.
    ///
    /// # Errors
    /// Returns the failure, where that ends the reading.
    pub(crate) fn take<T: Default>(&self, read: Result<T, HostError>) -> Result<T, HostError> {
        match (read, self.on_failure) {
            (Err(error), OnFailure::GoOn) => {
                self.remark(error.to_string());
                Ok(T::default())
            }
            (read, _) => read,
        }
    }

    /// Takes down, in words, what couldn't be seen although nothing failed.
    pub(crate) fn remark(&self, words: String) {
        let mut unread = self.unread.borrow_mut();
        // Several attributes fail for one reason, which is told once.
        if !unread.contains(&words) {
            unread.push(words);
        }
    }

    /// Returns what couldn't be read, in words.
    pub(crate) fn unread(self) -> Vec<String> {
        self.unread.into_inner()
    }
}
