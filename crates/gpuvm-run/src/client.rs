//! The other end of a supervisor's socket: what asks it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuvm_core::control::{
    Answer, Do, Entry, Hello, Lines, ParseAnswerError, Refusal, Request, TooLong, VERSION, line,
};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

/// How long a supervisor may take to say hello: it does so between two steps, some of which wait for the kernel.
pub const HELLO: Duration = Duration::from_secs(5);

/// Why nothing came of asking a supervisor.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: there is no socket, or nobody has it open any more.
    #[error("nobody answers on {path}: {source}")]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket can't be used.
    #[error("connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("no answer to `{what}` within {} s", .after.as_secs_f32())]
    Silent {
        /// What was asked.
        what: String,
        /// For how long it was waited.
        after: Duration,
    },
    /// The connection ended before the answer.
    #[error("the connection ended before the answer to `{what}`")]
    Closed {
        /// What was asked.
        what: String,
    },
    /// What came isn't of the protocol.
    #[error("what answers is no gpuvm, or one that speaks otherwise: {0}")]
    Odd(String),
    /// It speaks another version.
    #[error(
        "the supervisor is gpuvm {gpuvm}, which speaks version {version} of the protocol; this gpuvm speaks {VERSION}"
    )]
    Version {
        /// Its version of gpuvm.
        gpuvm: String,
        /// Its version of the protocol.
        version: u32,
    },
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
}

impl From<TooLong> for ClientError {
    fn from(error: TooLong) -> Self {
        Self::Odd(error.to_string())
    }
}

impl From<ParseAnswerError> for ClientError {
    fn from(error: ParseAnswerError) -> Self {
        Self::Odd(error.to_string())
    }
}

impl ClientError {
    /// Says for how long it was waited in all.
    fn after(self, all: Duration) -> Self {
        match self {
            Self::Silent { what, .. } => Self::Silent { what, after: all },
            error => error,
        }
    }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Asked {
    id: u64,
    name: String,
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines,
    requests: u64,
    /// Answers that came before those that were waited for.
    early: Vec<Answer>,
    /// What the other side has said of itself.
    hello: Hello,
}

impl Client {
    /// Connects and exchanges hellos; to be called inside a tokio runtime.
    ///
    /// # Errors
    /// Returns that nobody is there, or says hello in time, and that the versions don't fit.
    pub async fn connect(socket: &Path, gpuvm: &str, within: Duration) -> Result<Self, ClientError> {
        let path = || socket.to_owned();
        let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Nobody { path: path(), source }
            }
            // Its queue of connections is full: nobody takes them.
            io::ErrorKind::WouldBlock => {
                ClientError::Silent { what: "hello".to_owned(), after: Duration::ZERO }
            }
            _ => ClientError::Connect { path: path(), source },
        })?;
        let hello = Hello { version: VERSION, gpuvm: String::new() };
        let mut client = Self { stream, lines: Lines::default(), requests: 0, early: Vec::new(), hello };
        client.send(&line(&Hello::of(gpuvm)).unwrap_or_default(), "hello").await?;
        let said = client.line("hello", within).await?;
        client.hello = serde_json::from_slice(&said).map_err(|error| ClientError::Odd(error.to_string()))?;
        if client.hello.version != VERSION {
            let Hello { gpuvm, version } = client.hello;
            return Err(ClientError::Version { gpuvm, version });
        }
        Ok(client)
    }

    /// Asks, and returns the answer.
    ///
    /// # Errors
    /// Returns the refusal, and that no answer came in time.
    pub async fn ask<T: DeserializeOwned>(&mut self, what: Do, within: Duration) -> Result<T, ClientError> {
        let asked = self.begin(what).await?;
        self.answer(&asked, within).await
    }

    /// Asks without waiting for the answer.
    ///
    /// # Errors
    /// Returns that it can't be sent.
    pub async fn begin(&mut self, what: Do) -> Result<Asked, ClientError> {
        self.requests += 1;
        let asked = Asked { id: self.requests, name: name(&what) };
        let request = line(&Request { id: asked.id, what }).ok_or_else(|| {
            ClientError::Odd(format!("the request `{}` is longer than a line may be", asked.name))
        })?;
        self.send(&request, &asked.name).await?;
        Ok(asked)
    }

    /// Waits for the answer to what was asked.
    ///
    /// # Errors
    /// Returns the refusal, and that no answer came in time.
    pub async fn answer<T: DeserializeOwned>(
        &mut self,
        asked: &Asked,
        within: Duration,
    ) -> Result<T, ClientError> {
        // 0 is of a line that was no request, and no other was sent.
        let fits = |answer: &Answer| answer.id == asked.id || answer.id == 0;
        let until = Instant::now() + within;
        let answer = match self.early.iter().position(fits) {
            Some(at) => self.early.swap_remove(at),
            None => loop {
                let left = until.saturating_duration_since(Instant::now());
                let line = self.line(&asked.name, left).await;
                let answer = Answer::parse(&line.map_err(|error| error.after(within))?)?;
                if fits(&answer) {
                    break answer;
                }
                self.early.push(answer);
            },
        };
        answer.take().map_err(ClientError::Refused)
    }

    /// Waits for the next entry of a stream of events, which [`Do::Events`] has begun; nothing once it has ended. May be dropped and
    /// called again without loss.
    ///
    /// # Errors
    /// Returns what isn't an entry.
    pub async fn entry(&mut self) -> Result<Option<Entry>, ClientError> {
        match self.next_line().await? {
            None => Ok(None),
            Some(line) => serde_json::from_slice(&line)
                .map(Some)
                .map_err(|error| ClientError::Odd(format!("not an entry: {error}"))),
        }
    }

    /// Gives the connection away that has become something else, with what has come of that already.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.lines.into_rest())
    }

    /// Returns the version of the gpuvm at the other end.
    pub fn gpuvm(&self) -> &str {
        &self.hello.gpuvm
    }

    async fn send(&mut self, line: &[u8], what: &str) -> Result<(), ClientError> {
        let closed = |_| ClientError::Closed { what: what.to_owned() };
        match timeout(HELLO, self.stream.write_all(line)).await {
            Ok(sent) => sent.map_err(closed),
            Err(_) => Err(ClientError::Silent { what: what.to_owned(), after: HELLO }),
        }
    }

    async fn line(&mut self, what: &str, within: Duration) -> Result<Vec<u8>, ClientError> {
        match timeout(within, self.next_line()).await {
            Ok(line) => line?.ok_or_else(|| ClientError::Closed { what: what.to_owned() }),
            Err(_) => Err(ClientError::Silent { what: what.to_owned(), after: within }),
        }
    }

    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line?));
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(count) => self.lines.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }
}

/// Names a request as the protocol does.
fn name(what: &Do) -> String {
    let value = serde_json::to_value(what).unwrap_or_default();
    value.get("do").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}
