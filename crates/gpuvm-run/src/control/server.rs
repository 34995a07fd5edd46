//! The thread that serves a VM's control socket.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gpuvm_core::control::State;
use gpuvm_sys::socket::listen_unix;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::LAST_WORD;
use super::board::Board;
use super::client::{self, Served};
use super::hub::Hub;

/// How many clients are served at the same time; more are turned away.
const CLIENTS: usize = 64;
/// The server's pause after a connection that couldn't be taken, as with no descriptor left.
const BREATH: Duration = Duration::from_millis(100);

/// How long after the last client what was taken for it is given back: who asks again and again finds it there.
const CALM: Duration = Duration::from_secs(1);

/// A socket that is served until this is dropped or finished.
pub(super) struct Server {
    path: PathBuf,
    /// The device and number of its file: once the reservation is free, another run's may be there.
    file: (u64, u64),
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Opens the socket, for its owner and root, and serves it on a thread of its own.
    pub(super) fn start(path: &Path, board: Arc<Board>, hub: Arc<Hub>) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(listen_unix(path)?);
        listener.set_nonblocking(true)?;
        let file = std::fs::metadata(path)?;
        let owner = file.uid();
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let served = Served { board, hub, folder };
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let thread = thread::Builder::new().name("control".into()).spawn(move || {
            runtime.block_on(serve(listener, owner, served, stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: (file.dev(), file.ino()),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Waits until those who are there have taken the last word, but no longer than they may take for it.
    pub(super) fn finish(mut self) {
        if let Some(thread) = self.thread.take() {
            // It ends by itself once the VM's end is told.
            thread.join().ok();
        }
    }

    fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        if self.is_there() {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    owner: u32,
    served: Served,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the control socket isn't served: {error}"),
    };
    let served = Arc::new(served);
    let mut clients = JoinSet::new();
    let mut states = served.board.states();
    // Whether more is kept than is needed at rest: an answer may be long, and its making brings much of the program in.
    let mut swollen = true;
    loop {
        let over = async {
            // The board outlives this.
            states.wait_for(|state| *state == State::Over).await.ok();
        };
        tokio::select! {
            biased;
            _ = &mut stopped => return,
            () = over => break,
            Some(_) = clients.join_next() => {}
            taken = listener.accept() => match taken {
                Ok((stream, _)) if clients.len() < CLIENTS && allowed(&stream, owner) => {
                    swollen = true;
                    clients.spawn(client::serve(stream, Arc::clone(&served)));
                }
                // Who isn't wanted is hung up on.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("a connection to the control socket: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            },
            () = tokio::time::sleep(CALM), if swollen && clients.is_empty() => {
                swollen = false;
                settle();
            }
        }
    }
    drop(listener);
    let rest = async { while clients.join_next().await.is_some() {} };
    // Nobody is waited for who doesn't take it.
    tokio::time::timeout(LAST_WORD, rest).await.ok();
}

/// Gives back what a supervisor keeps without need. That it can't is nobody's concern.
pub(crate) fn settle() {
    gpuvm_sys::memory::settle().unwrap_or_else(|error| tracing::debug!("memory is not given back: {error}"));
}

/// Tells whether somebody may ask: root, and whoever the socket belongs to.
fn allowed(stream: &UnixStream, owner: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if may_ask(peer.uid(), owner) => true,
        Ok(peer) => {
            tracing::warn!("user {} may not ask for anything", peer.uid());
            false
        }
        Err(error) => {
            tracing::warn!("who asks isn't known: {error}");
            false
        }
    }
}

pub(super) fn may_ask(uid: u32, owner: u32) -> bool {
    uid == 0 || uid == owner
}
