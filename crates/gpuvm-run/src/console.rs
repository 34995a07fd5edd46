//! The guest's serial port: into the log, and to whoever watches.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::control::{Hub, Typed};
use crate::launch::Which;
use crate::log::Log;

/// Takes the console's output; it runs on a thread of its own, so it may block.
pub type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// Makes of one sink as many as a run starts QEMUs: they write to it one after the other.
pub(crate) fn share(sink: Sink) -> impl Fn() -> Sink {
    let shared = Arc::new(Mutex::new(sink));
    move || {
        let sink = Arc::clone(&shared);
        Box::new(move |bytes| (sink.lock().unwrap_or_else(PoisonError::into_inner))(bytes))
    }
}

/// Chunks that wait for a slow sink before the guest's serial port is held up.
const QUEUE: usize = 64;
/// How long the sink may take for what is left once the guest is gone.
const FLUSH: Duration = Duration::from_secs(5);

/// A console that is being copied.
pub(crate) struct Console {
    reader: JoinHandle<io::Result<()>>,
    log: PathBuf,
    sink: Option<Flushing>,
}

/// The sink's thread, and its word that it has had everything.
struct Flushing {
    finished: std::sync::mpsc::Receiver<()>,
    thread: thread::JoinHandle<()>,
}

impl Console {
    /// Copies the stream into a log, and into a sink if there is one.
    pub(crate) fn copy(
        stream: UnixStream,
        log: &Path,
        sink: Option<Sink>,
        hub: Option<Arc<Hub>>,
        which: Which,
    ) -> io::Result<Self> {
        let path = log.to_owned();
        let log = match which {
            Which::First => Log::begin(log)?,
            Which::Again => Log::resume(log)?,
        };
        let (from, to) = stream.into_split();
        match &hub {
            Some(hub) => drop(tokio::spawn(write(to, hub.open(&path)))),
            // Nothing is typed, and the port goes on.
            None => to.forget(),
        }
        let from = Port { stream: from, log, hub };
        let Some(mut sink) = sink else {
            return Ok(Self { reader: tokio::spawn(read(from, None)), log: path, sink: None });
        };
        let (chunks, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (done, finished) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("console".into()).spawn(move || {
            // A sink that is gone, such as a closed pipe, ends the copy and not the guest.
            while let Some(chunk) = queue.blocking_recv() {
                if sink(&chunk).is_err() {
                    break;
                }
            }
            // Nobody listens any more only if the flush took too long.
            done.send(()).ok();
        })?;
        let reader = tokio::spawn(read(from, Some(chunks)));
        Ok(Self { reader, log: path, sink: Some(Flushing { finished, thread }) })
    }

    /// Waits until everything that came was copied, but not for ever.
    pub(crate) async fn finish(self) {
        match tokio::time::timeout(FLUSH, self.reader).await {
            Ok(Ok(Err(error))) => tracing::warn!("{} is not whole: {error}", self.log.display()),
            Ok(_) => {}
            Err(_) => tracing::warn!("the console did not end within {} s", FLUSH.as_secs()),
        }
        // The runtime has nothing else to do by now.
        if let Some(Flushing { finished, thread }) = self.sink
            && finished.recv_timeout(FLUSH).is_ok()
        {
            // It has nothing left to do; its stack is given back before the next VM has one. A sink that panicked has told so.
            thread.join().ok();
        }
    }
}

/// The serial port, and where all that it says goes.
struct Port {
    stream: OwnedReadHalf,
    log: Log,
    hub: Option<Arc<Hub>>,
}

/// Types for the guest what its clients have typed.
async fn write(mut to: OwnedWriteHalf, mut typed: Typed) {
    while let Some(bytes) = typed.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    to.forget();
}

async fn read(from: Port, mut sink: Option<mpsc::Sender<Vec<u8>>>) -> io::Result<()> {
    let Port { mut stream, mut log, hub } = from;
    let mut buffer = vec![0; 16 << 10];
    let mut log_error = None;
    loop {
        let count = match stream.read(&mut buffer).await {
            // QEMU's death resets the connection when it had something unread.
            Ok(0) | Err(_) => return log_error.map_or(Ok(()), Err),
            Ok(count) => count,
        };
        let Some(bytes) = buffer.get(..count) else { continue };
        // A full disk must not stop the guest or hide its console: the rest goes on, and the error is told at the end.
        let mut keep = || {
            if log_error.is_none() {
                log_error = log.write(bytes).err();
            }
        };
        match &hub {
            Some(hub) => hub.said(bytes, keep),
            None => keep(),
        }
        if let Some(to) = &sink
            && to.send(bytes.to_vec()).await.is_err()
        {
            sink = None;
        }
    }
}
