//! Lines of a bounded length out of a stream of bytes.

use super::MAX_LINE;

/// A line was too long: what of it came and what is still to come of it is read over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {MAX_LINE} bytes")]
pub struct TooLong;

/// Makes lines of bytes that come in pieces.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    /// What has come of the next lines.
    bytes: Vec<u8>,
    /// How far it was gone through without finding an end.
    seen: usize,
    rest: Rest,
}

/// What becomes of the bytes up to the next end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Line,
    ReadOver,
}

impl Default for Lines {
    fn default() -> Self {
        Self::with_limit(MAX_LINE)
    }
}

impl Lines {
    /// Takes lines of at most so many bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), seen: 0, rest: Rest::Line }
    }

    /// Takes the next bytes in. To be followed by [`Self::next`] until that has no more, or they pile up.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns what has come and belongs to no whole line: what follows the lines where a connection turns into something else.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the next whole line without its end; once [`TooLong`] for one that is too long.
    #[expect(clippy::should_implement_trait, reason = "there is more once more was pushed")]
    pub fn next(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        loop {
            let end = self.bytes.iter().skip(self.seen).position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| end + self.seen) else {
                self.seen = self.bytes.len();
                if self.rest == Rest::ReadOver {
                    self.forget(self.seen);
                } else if self.seen > self.limit {
                    self.forget(self.seen);
                    self.rest = Rest::ReadOver;
                    return Some(Err(TooLong));
                }
                return None;
            };
            let rest = std::mem::replace(&mut self.rest, Rest::Line);
            let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.seen = 0;
            line.pop();
            match rest {
                Rest::ReadOver => {}
                Rest::Line if line.len() > self.limit => return Some(Err(TooLong)),
                Rest::Line => return Some(Ok(line)),
            }
        }
    }

    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.seen = 0;
    }
}
