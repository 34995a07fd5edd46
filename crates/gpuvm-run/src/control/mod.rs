//! The supervisor's ear: a VM's control socket, served on a thread of its own beside the one task that drives the VM.
//!
//! ```text
//! driver --Observer--> Board (what is known, and what has happened) --> server thread --> clients
//! driver <--Requests-- server thread <-- clients
//! ```
//!
//! The driver's thread waits for the kernel at times, so the socket isn't served there: a status can be asked for while an unbind hangs. Nothing here
//! changes the VM's state: a request goes to the driver like a signal does.

mod board;
mod client;
mod hub;
mod server;
mod watched;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gpuvm_core::control::Finale;
use gpuvm_core::plan::Plan;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use tokio::sync::mpsc;

use crate::signals::Request;
use board::Board;
pub(crate) use hub::{Hub, Typed};
use server::Server;
pub(crate) use server::settle;
pub(crate) use watched::Watched;

/// The name of the socket in a VM's folder.
pub const SOCKET: &str = "control";

/// Whether gpuvm runs on without the one who has started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Launched {
    /// A person waits for the guest's end: QEMU doesn't outlive gpuvm.
    #[default]
    Foreground,
    /// It runs in a session of its own: a QEMU whose gpuvm is killed goes on.
    Detached,
}

/// Whether a gpuvm is the first of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It has begun the run.
    First,
    /// It goes on with what another one has begun: so do its records.
    Later,
}

/// What others can learn and ask of a VM, from before it is reserved until its last word is said.
pub struct Control {
    board: Arc<Board>,
    hub: Arc<Hub>,
    server: Option<Server>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("served", &self.server.is_some()).finish_non_exhaustive()
    }
}

impl Control {
    /// Makes one for a gpuvm of this version; nobody can connect before the VM is reserved.
    pub fn new(version: &str, launched: Launched) -> Self {
        Self { board: Arc::new(Board::new(version, launched)), hub: Arc::default(), server: None }
    }

    /// Begins with an attempt to run a plan, and returns what is asked of it.
    pub(crate) fn begin(
        &self,
        plan: &Plan,
        kernel: &Kernel,
        boot_id: &str,
    ) -> mpsc::UnboundedReceiver<Request> {
        let (ask, asked) = mpsc::unbounded_channel();
        self.board.begin(plan, &kernel.root, boot_id, ask);
        asked
    }

    /// Begins with a guest that another gpuvm has started, at so many seconds since 1970, and returns what is asked of it.
    pub(crate) fn adopt(
        &self,
        plan: &Plan,
        kernel: &Kernel,
        boot_id: &str,
        begun: u64,
    ) -> mpsc::UnboundedReceiver<Request> {
        let asked = self.begin(plan, kernel, boot_id);
        self.board.goes_on(begun);
        asked
    }

    /// Returns where the console can be listened to.
    pub(crate) fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.hub)
    }

    /// Opens the socket, in the folder of a VM that is reserved for this process.
    fn open(&mut self, places: &Places, vm: &gpuvm_core::profile::VmName) -> io::Result<()> {
        // One that is there is of a gpuvm that is dead: this one has the reservation.
        self.close();
        let path = places.vm(vm).join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.server = Some(Server::start(&path, Arc::clone(&self.board), Arc::clone(&self.hub))?);
        Ok(())
    }

    /// Takes the socket away from those who come, while those who are there are still served.
    fn close(&mut self) {
        self.server = None;
    }

    /// Says the last word, waits a moment for those who are to hear it, and takes the socket away.
    pub fn finish(mut self, finale: Finale) {
        self.hub.close();
        self.board.finish(finale);
        if let Some(server) = self.server.take() {
            server.finish();
        }
    }
}

/// How long those who wait for the last word have to take it.
const LAST_WORD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
