//! Lines in, lines out: a task that owns the socket, and the table of commands that wait for an answer.

use crate::error::Error;
use crate::event::{Event, Timestamp};
use gpuvm_sys::socket::send_with_fd;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// The longest line that is taken from QEMU, in bytes; the longest known is the schema's, 242 KiB in QEMU 11.1.
pub const MAX_LINE: usize = 16 << 20;

/// A line to QEMU, with its end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) line: Vec<u8>,
    /// What goes with it.
    pub(crate) fd: Option<OwnedFd>,
}

/// Why a connection is over.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// End of file, or a reset: QEMU resets the connection when it exits on `quit`.
    Closed,
    /// Any other failure, kept in parts because [`io::Error`] can't be cloned.
    Io(io::ErrorKind, Option<i32>, String),
    /// A line over the limit.
    TooLong,
}

impl End {
    fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            kind => Self::Io(kind, error.raw_os_error(), error.to_string()),
        }
    }

    /// The error for a command that can't be answered any more.
    pub(crate) fn error(self, command: &str) -> Error {
        let command = command.to_owned();
        match self {
            Self::Closed => Error::Closed { command },
            Self::TooLong => Error::TooLong { command, limit: MAX_LINE },
            Self::Io(kind, errno, text) => {
                let source = errno.map_or_else(|| io::Error::new(kind, text), io::Error::from_raw_os_error);
                Error::Io { command, source }
            }
        }
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The value of `return`.
    Return(Box<RawValue>),
    /// QEMU's error.
    Error { class: String, desc: String },
}

/// What a waiting command gets.
pub(crate) type Outcome = Result<Answer, End>;

/// The commands that wait, and whether any answer can still come.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    last_id: u64,
    end: Option<End>,
}

impl Pending {
    /// Enters a command; fails at once when the connection is over.
    pub(crate) fn enter(&self) -> Result<(u64, oneshot::Receiver<Outcome>), End> {
        let mut table = self.table();
        if let Some(end) = &table.end {
            return Err(end.clone());
        }
        table.last_id += 1;
        let id = table.last_id;
        let (sender, receiver) = oneshot::channel();
        table.waiting.insert(id, sender);
        Ok((id, receiver))
    }

    /// Takes out a command that nobody waits for any more.
    pub(crate) fn forget(&self, id: u64) {
        self.table().waiting.remove(&id);
    }

    /// Ends the connection: all that wait fail, and all that come fail. The first cause stands.
    fn end(&self, end: &End) {
        let mut table = self.table();
        table.end.get_or_insert_with(|| end.clone());
        for (_, waiting) in table.waiting.drain() {
            // A receiver that is gone has stopped waiting.
            let _ = waiting.send(Err(end.clone()));
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let Some(waiting) = self.table().waiting.remove(&id) else {
            tracing::debug!(id, "QMP answer to a command that nobody waits for");
            return;
        };
        let _ = waiting.send(Ok(answer));
    }

    /// No code can panic while it holds the lock in a way that leaves the table half changed, so a poisoned lock is as good.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line from QEMU. All fields are optional and of open type: what does not fit is skipped with a note, never fatal.
#[derive(Debug, Default, Deserialize)]
struct Frame {
    #[serde(default)]
    event: Option<Value>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    timestamp: Value,
    #[serde(default, rename = "return")]
    returned: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    id: Value,
    #[serde(default, rename = "QMP")]
    greeting: Option<Value>,
}

/// What a line means.
#[derive(Debug)]
pub(crate) enum Message {
    Greeting(Value),
    Event(Event),
    Answer(u64, Answer),
}

/// Reads a line; `None` with a note in the log for one that means nothing to us.
pub(crate) fn parse(line: &[u8]) -> Option<Message> {
    // QEMU writes ASCII. Bytes that are no UTF-8 are replaced rather than lose the line, which may hold the answer that somebody waits for.
    let text = String::from_utf8_lossy(line);
    let frame: Frame = match serde_json::from_str(text.trim()) {
        Ok(frame) => frame,
        Err(error) => {
            tracing::warn!(%error, line = crate::error::shortened(&text), "skipped a QMP line");
            return None;
        }
    };
    let message = match frame {
        Frame { event: Some(Value::String(name)), data, timestamp, .. } => {
            Some(Message::Event(Event { name, data, timestamp: Timestamp::parse(&timestamp) }))
        }
        Frame { greeting: Some(greeting), .. } => Some(Message::Greeting(greeting)),
        Frame { id, error: Some(error), .. } => {
            id.as_u64().map(|id| Message::Answer(id, error_answer(&error)))
        }
        Frame { id, returned, .. } => id.as_u64().map(|id| {
            let returned = returned.unwrap_or_else(|| RawValue::NULL.to_owned());
            Message::Answer(id, Answer::Return(returned))
        }),
    };
    if message.is_none() {
        tracing::warn!(line = crate::error::shortened(&text), "skipped a QMP message without a usable id");
    }
    message
}

fn error_answer(error: &Value) -> Answer {
    let text = |field| error.get(field).and_then(Value::as_str).map(str::to_owned);
    Answer::Error {
        class: text("class").unwrap_or_else(|| "no class".to_owned()),
        desc: text("desc").unwrap_or_else(|| error.to_string()),
    }
}

/// The reading half, cut into lines of limited length.
#[derive(Debug)]
pub(crate) struct Lines {
    reader: BufReader<OwnedReadHalf>,
}

impl Lines {
    pub(crate) fn new(half: OwnedReadHalf) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, half) }
    }

    /// The next line without its end; a last line that has no end was cut off and does not count.
    async fn next(&mut self) -> Result<Vec<u8>, End> {
        let mut line = Vec::new();
        loop {
            let chunk = match self.reader.fill_buf().await {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::from_io(&error)),
            };
            if chunk.is_empty() {
                if !line.is_empty() {
                    tracing::warn!(bytes = line.len(), "the QMP connection ended within a line");
                }
                return Err(End::Closed);
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = end.unwrap_or(chunk.len());
            if line.len() + part > MAX_LINE {
                return Err(End::TooLong);
            }
            line.extend_from_slice(&chunk[..part]);
            self.reader.consume(end.map_or(part, |at| at + 1));
            if end.is_some() {
                return Ok(line);
            }
        }
    }

    /// The next message that means something. Not to be called again once it was dropped half-way: a part of a line is lost with it.
    pub(crate) async fn message(&mut self) -> Result<Message, End> {
        loop {
            let line = self.next().await?;
            if line.iter().any(|byte| !byte.is_ascii_whitespace())
                && let Some(message) = parse(&line)
            {
                return Ok(message);
            }
        }
    }
}

/// Carries messages both ways until the connection ends, and then closes it: also when QEMU would go on but is not understood any more.
pub(crate) async fn serve(
    incoming: Lines,
    events: mpsc::UnboundedSender<Event>,
    outgoing: OwnedWriteHalf,
    lines: mpsc::UnboundedReceiver<Outgoing>,
    pending: &Pending,
) {
    let reading = read_all(incoming, pending, events);
    tokio::pin!(reading);
    tokio::select! {
        () = &mut reading => {}
        // Nobody is left to send, or nobody to receive; what QEMU still has to say is read to its end.
        () = write_all(outgoing, lines, pending) => reading.await,
    }
}

/// Reads until the connection ends; then everything that waits fails, and the events end.
async fn read_all(mut lines: Lines, pending: &Pending, events: mpsc::UnboundedSender<Event>) {
    let end = loop {
        match lines.message().await {
            Ok(Message::Answer(id, answer)) => pending.answer(id, answer),
            // Events that nobody wants to see are no reason to stop reading answers.
            Ok(Message::Event(event)) => drop(events.send(event)),
            Ok(Message::Greeting(_)) => tracing::warn!("a second QMP greeting"),
            Err(end) => break end,
        }
    };
    tracing::debug!(?end, "the QMP connection has ended");
    pending.end(&end);
}

async fn write_one(half: &mut OwnedWriteHalf, outgoing: Outgoing) -> io::Result<()> {
    let Outgoing { line, fd } = outgoing;
    let mut sent = 0;
    if let Some(fd) = fd {
        let stream: &UnixStream = half.as_ref();
        let send = || send_with_fd(stream.as_fd(), &line, fd.as_fd());
        sent = stream.async_io(Interest::WRITABLE, send).await?;
    }
    half.write_all(line.get(sent..).unwrap_or_default()).await
}

/// Writes whole lines until there is nobody left to send one. Apart from the commands themselves, so that a command that is given up never leaves half a line behind.
async fn write_all(
    mut half: OwnedWriteHalf,
    mut lines: mpsc::UnboundedReceiver<Outgoing>,
    pending: &Pending,
) {
    while let Some(outgoing) = lines.recv().await {
        if let Err(error) = write_one(&mut half, outgoing).await {
            // When QEMU has closed, the answers that it gave before are still to be read: reading comes to the end by itself.
            match End::from_io(&error) {
                End::Closed => {}
                end => pending.end(&end),
            }
            return;
        }
    }
}
