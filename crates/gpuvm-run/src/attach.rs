//! A person at a guest's serial port: keys to it, its bytes to the terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use gpuvm_sys::terminal::RawTerminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

use crate::signals::Signals;

/// The key that leaves a console: Ctrl-], as of telnet and of other launchers.
pub const LEAVE: u8 = 0x1d;

/// Why a person is no longer at a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The escape key was typed.
    Escape,
    /// The other side has ended it.
    Ended,
    /// A signal has come, of this name.
    Signal(&'static str),
    /// Nobody takes what the guest says any more.
    OutputClosed,
}

/// Whether there is somebody to type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Standard input is a terminal.
    Terminal,
    /// It is not: the guest is only watched.
    None,
}

impl Keys {
    /// Looks at standard input.
    pub fn here() -> Self {
        if io::stdin().is_terminal() { Self::Terminal } else { Self::None }
    }
}

/// What a person has typed.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Keys(Vec<u8>),
    Leave,
}

/// Connects a serial port with this process's terminal until one of the two ends, or the escape key is typed. `first` is what has come
/// of the port already.
///
/// The terminal is as it was when this returns, also where it is dropped or panics.
///
/// # Errors
/// Returns that the terminal can't be made raw.
pub async fn attach(
    stream: UnixStream,
    first: Vec<u8>,
    keys: Keys,
    signals: &mut Signals,
) -> io::Result<Left> {
    let raw = match keys {
        Keys::Terminal => Some(RawTerminal::enter(io::stdin().as_fd())?),
        Keys::None => None,
    };
    let (typed, leave) = type_on(keys)?;
    let (mut from, to) = stream.into_split();
    // On its own: a guest that takes nothing must not keep anybody from leaving.
    let writer = tokio::spawn(write(to, typed));
    let left = watch(&mut from, first, leave, signals).await;
    writer.abort();
    match raw {
        Some(raw) => raw.restore().map(|()| left),
        None => Ok(left),
    }
}

/// Shows what the guest says until that is over.
async fn watch(
    from: &mut (impl AsyncReadExt + Unpin),
    first: Vec<u8>,
    mut leave: mpsc::Receiver<()>,
    signals: &mut Signals,
) -> Left {
    if show(&first).is_err() {
        return Left::OutputClosed;
    }
    let mut buffer = vec![0; 16 << 10];
    loop {
        let left = async {
            match leave.recv().await {
                Some(()) => (),
                // Nobody types any more.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = left => return Left::Escape,
            signal = signals.next() => return Left::Signal(signal),
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return Left::Ended,
                Ok(count) if show(buffer.get(..count).unwrap_or_default()).is_err() => return Left::OutputClosed,
                Ok(_) => {}
            }
        }
    }
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

async fn write(mut to: OwnedWriteHalf, mut typed: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(keys) = typed.recv().await {
        if to.write_all(&keys).await.is_err() {
            return;
        }
    }
    // The other half goes on: that nobody types is no wish to leave. The write half closes only with the connection.
    to.forget();
}

/// Reads keys on a thread of its own, which ends with the process. What a guest doesn't take is kept: that is no more than somebody types.
fn type_on(keys: Keys) -> io::Result<(mpsc::UnboundedReceiver<Vec<u8>>, mpsc::Receiver<()>)> {
    let (send, typed) = mpsc::unbounded_channel();
    let (left, leave) = mpsc::channel(1);
    if keys == Keys::Terminal {
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = [0; 4096];
            while let Ok(count) = stdin.read(&mut buffer)
                && count > 0
            {
                for typed in split(buffer.get(..count).unwrap_or_default()) {
                    let gone = match typed {
                        Typed::Keys(keys) => send.send(keys).is_err(),
                        Typed::Leave => left.blocking_send(()).is_err() || send.is_closed(),
                    };
                    if gone {
                        return;
                    }
                }
            }
        })?;
    }
    Ok((typed, leave))
}

/// Parts what was typed at the escape key; nothing after it counts.
fn split(bytes: &[u8]) -> Vec<Typed> {
    let end = bytes.iter().position(|byte| *byte == LEAVE);
    let keys = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let keys = (!keys.is_empty()).then(|| Typed::Keys(keys.to_vec()));
    keys.into_iter().chain(end.map(|_| Typed::Leave)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"ls\r", vec![Typed::Keys(b"ls\r".to_vec())])]
    #[case(b"\x03", vec![Typed::Keys(vec![3])])]
    #[case(b"\x1d", vec![Typed::Leave])]
    #[case(b"exit\r\x1drest", vec![Typed::Keys(b"exit\r".to_vec()), Typed::Leave])]
    fn keys_go_through_up_to_the_one_that_leaves(#[case] bytes: &[u8], #[case] expected: Vec<Typed>) {
        assert_eq!(split(bytes), expected);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_console_ends_with_its_guest_and_with_a_signal() {
        let (ask, asked) = mpsc::unbounded_channel();
        let mut signals = Signals::from_channel(asked);
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let ended = attach(near, b"login: ".to_vec(), Keys::None, &mut signals).await.unwrap();
        assert_eq!(ended, Left::Ended);
        let (near, _far) = UnixStream::pair().unwrap();
        ask.send("SIGTERM").unwrap();
        assert_eq!(
            attach(near, Vec::new(), Keys::None, &mut signals).await.unwrap(),
            Left::Signal("SIGTERM")
        );
    }
}
