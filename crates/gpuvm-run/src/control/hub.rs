//! The guest's serial port for several: each hears all that it says, and each may type.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

/// Chunks that a reader may be behind before it is dropped.
const BEHIND: usize = 64;
/// Chunks of input that wait for the guest to take them.
const INPUT: usize = 16;
/// The most that is sent of what the port said before.
const SCROLLBACK: u64 = 1 << 20;

/// What the port says.
pub(crate) type Said = mpsc::Receiver<Vec<u8>>;
/// What is typed.
pub(crate) type Typed = mpsc::Receiver<Vec<u8>>;

/// Where those meet who are at the serial port.
#[derive(Default)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    log: Option<PathBuf>,
    readers: Vec<mpsc::Sender<Vec<u8>>>,
    input: Option<mpsc::Sender<Vec<u8>>>,
}

impl Hub {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with the port of a QEMU, and returns what is typed for it.
    pub(crate) fn open(&self, log: &Path) -> Typed {
        let (input, typed) = mpsc::channel(INPUT);
        let mut inner = self.inner();
        inner.log = Some(log.to_owned());
        inner.input = Some(input);
        typed
    }

    /// Tells everybody what the port has said. `keep` writes it into the log: nobody who comes meanwhile misses it or has it twice. A reader who is too
    /// far behind is dropped, and never waited for.
    pub(crate) fn said(&self, bytes: &[u8], keep: impl FnOnce()) {
        let mut inner = self.inner();
        keep();
        inner.readers.retain(|reader| reader.try_send(bytes.to_vec()).is_ok());
    }

    /// Returns the end of what was said, and what is said from now on.
    pub(super) fn listen(&self, scrollback: u64) -> (Vec<u8>, Said) {
        let (reader, said) = mpsc::channel(BEHIND);
        let mut inner = self.inner();
        let before = inner.log.as_deref().map(|log| end_of(log, scrollback.min(SCROLLBACK)));
        inner.readers.push(reader);
        // A log that can't be read is no reason not to hear what comes.
        (before.and_then(Result::ok).unwrap_or_default(), said)
    }

    /// Returns where it is typed; nothing where there is no port.
    pub(super) fn input(&self) -> Option<mpsc::Sender<Vec<u8>>> {
        self.inner().input.clone()
    }

    /// Ends it for everybody.
    pub(super) fn close(&self) {
        *self.inner() = Inner::default();
    }
}

/// Reads the end of a log. What was put aside when it grew too large, or of a former run, is left out.
fn end_of(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end)
}
