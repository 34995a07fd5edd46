//! The guest's serial port for several: each hears all that it says, and each may type.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

/// Bytes that a reader may be behind before it is dropped: a terminal that somebody scrolls back in stands still for a while. A port often says one
/// byte at a time, so that chunks are no measure.
const BEHIND: usize = 256 << 10;
/// Chunks of input that wait for the guest to take them.
const INPUT: usize = 16;
/// The most that is sent of what the port said before.
const SCROLLBACK: u64 = 1 << 20;

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
    readers: Vec<Arc<Ear>>,
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
        inner.readers.retain(|reader| reader.hear(bytes));
    }

    /// Returns the end of what was said, and what is said from now on.
    pub(super) fn listen(&self, scrollback: u64) -> (Vec<u8>, Said) {
        let ear = Arc::new(Ear::default());
        let mut inner = self.inner();
        let before = inner.log.as_deref().map(|log| end_of(log, scrollback.min(SCROLLBACK)));
        inner.readers.push(Arc::clone(&ear));
        // A log that can't be read is no reason not to hear what comes.
        (before.and_then(Result::ok).unwrap_or_default(), Said { ear })
    }

    /// Returns where it is typed; nothing where there is no port.
    pub(super) fn input(&self) -> Option<mpsc::Sender<Vec<u8>>> {
        self.inner().input.clone()
    }

    /// Ends it for everybody.
    pub(super) fn close(&self) {
        let inner = std::mem::take(&mut *self.inner());
        inner.readers.iter().for_each(|reader| reader.end(Over::Said));
    }
}

/// What the port says, for one reader.
pub(crate) struct Said {
    ear: Arc<Ear>,
}

/// What a reader has not taken yet.
#[derive(Default)]
struct Ear {
    heard: Mutex<Heard>,
    /// Somebody waits for more of it.
    more: Notify,
    /// Somebody waits for its loss.
    lost: Notify,
}

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    over: Over,
}

/// Whether more will come.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Over {
    #[default]
    No,
    /// All was said.
    Said,
    /// The reader was too far behind.
    Lost,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes in; says whether there is somebody to take more.
    fn hear(self: &Arc<Self>, bytes: &[u8]) -> bool {
        // The reader has the other one.
        if Arc::strong_count(self) == 1 {
            return false;
        }
        let mut heard = self.heard();
        let fits = heard.bytes.len() + bytes.len() <= BEHIND;
        if fits {
            heard.bytes.extend_from_slice(bytes);
        }
        drop(heard);
        if fits {
            self.more.notify_one()
        } else {
            self.end(Over::Lost)
        }
        fits
    }

    fn end(&self, over: Over) {
        self.heard().over = over;
        self.more.notify_one();
        if over == Over::Lost {
            self.lost.notify_one();
        }
    }
}

impl Said {
    /// Waits for what the port says, and takes all of it that has come; nothing once that is over.
    pub(super) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            match self.take() {
                Ok(bytes) => return Some(bytes),
                Err(Over::No) => self.ear.more.notified().await,
                Err(Over::Said | Over::Lost) => return None,
            }
        }
    }

    /// Takes what has come, or says whether more will.
    fn take(&self) -> Result<Vec<u8>, Over> {
        let mut heard = self.ear.heard();
        if heard.bytes.is_empty() { Err(heard.over) } else { Ok(std::mem::take(&mut heard.bytes)) }
    }

    /// Waits until so much was not taken that more isn't kept.
    pub(super) async fn lost(&self) {
        self.ear.lost.notified().await;
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
