//! The machine that is not there: its run state, its threads, its console, its end.

use super::args::{Args, Listen};
use super::record::Recorder;
use super::script::{Action, OnSignal, Script, TimedAction};
use gpuvm_sys::socket::{adopt_listener, adopt_stream, listen_unix};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, gettid};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine with its script; shared by all threads.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) script: Script,
    pub(crate) recorder: Recorder,
    /// The threads that stand for virtual CPUs.
    pub(crate) vcpus: Vec<i32>,
    args: Args,
    state: Mutex<State>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    /// The monitor's client, once its greeting is out.
    pub(crate) client: Option<UnixStream>,
    /// The client has sent `qmp_capabilities`; it gets no events before.
    pub(crate) negotiated: bool,
    /// The monitor's listener, to close it.
    pub(crate) listener: Option<UnixListener>,
    pub(crate) running: bool,
    /// QEMU's word for the run state.
    pub(crate) status: String,
    /// The script's `after_cont` has begun.
    ran: bool,
    console: Option<UnixStream>,
    /// What the guest wrote while nobody was connected; QEMU drops it, but a test would have to race.
    unread: Vec<u8>,
}

/// Where the monitor's client comes from.
#[derive(Debug)]
pub(crate) enum Monitor {
    /// Clients come one after the other.
    Listening(UnixListener),
    /// There is one, and no other comes.
    Connected(UnixStream),
}

impl Machine {
    pub(crate) fn new(script: Script, args: Args, argv: &[OsString]) -> io::Result<Self> {
        let recorder = Recorder::new(script.record.as_deref(), argv)?;
        block_signals()?;
        let vcpus = start_vcpus(script.vcpus.or(args.smp).unwrap_or(1))?;
        let state = State {
            client: None,
            negotiated: false,
            listener: None,
            running: false,
            status: "prelaunch".to_owned(),
            ran: false,
            console: None,
            unread: Vec::new(),
        };
        Ok(Self { script, recorder, vcpus, args, state: Mutex::new(state) })
    }

    /// A thread that panicked left whole values behind.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn exit_at_start(&self) {
        if let Some(exit) = &self.script.exit_at_start {
            let _ = io::stderr().write_all(exit.stderr.as_bytes());
            self.exit(exit.code);
        }
    }

    /// Ends the program.
    pub(crate) fn exit(&self, code: i32) -> ! {
        self.recorder.exit(code);
        std::process::exit(code)
    }

    /// Waits for an end that others bring.
    pub(crate) fn linger(&self) -> ! {
        thread::sleep(Duration::from_millis(self.script.life_ms));
        self.exit(99)
    }

    /// Starts two threads: one takes TERM, INT and HUP, the other ends the program when its longest life is over.
    pub(crate) fn watch_signals(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        thread::spawn(move || {
            while asked_to_end().wait().is_ok() {
                if machine.script.on_signal == OnSignal::Exit {
                    machine.event("SHUTDOWN", json!({"guest": false, "reason": "host-signal"}));
                    machine.exit(0);
                }
            }
        });
        let machine = Arc::clone(self);
        thread::spawn(move || machine.linger());
    }

    pub(crate) fn open_monitor(&self) -> io::Result<Option<Monitor>> {
        let Some(listen) = &self.args.monitor else { return Ok(None) };
        if let Listen::Connected(fd) = listen {
            return Ok(Some(Monitor::Connected(adopt_stream(*fd)?)));
        }
        let listener = open(listen)?;
        self.state().listener = Some(listener.try_clone()?);
        Ok(Some(Monitor::Listening(listener)))
    }

    /// Takes console clients, one after the other.
    pub(crate) fn serve_console(self: &Arc<Self>) -> io::Result<()> {
        let Some(listen) = &self.args.console else { return Ok(()) };
        let machine = Arc::clone(self);
        if let Listen::Connected(fd) = listen {
            let client = adopt_stream(*fd)?;
            thread::spawn(move || machine.talk(client));
            return Ok(());
        }
        let listener = open(listen)?;
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).for_each(|client| machine.talk(client))
        });
        Ok(())
    }

    /// Gives the console to a client until it goes.
    fn talk(&self, client: UnixStream) {
        let reader = client.try_clone();
        self.state().greet_console(client);
        // What is typed goes nowhere; the end of it is the end of this client.
        let _ = reader.and_then(|mut typed| io::copy(&mut typed, &mut io::sink()));
        self.state().console = None;
    }

    /// The guest writes.
    fn console(&self, bytes: &[u8]) {
        let mut state = self.state();
        match &mut state.console {
            // A client that is gone is noticed by the one who reads from it.
            Some(client) => drop(client.write_all(bytes)),
            None => state.unread.extend_from_slice(bytes),
        }
    }

    pub(crate) fn start_if_not_paused(self: &Arc<Self>) {
        if !self.args.paused {
            self.resume();
        }
    }

    /// The virtual CPUs run; the first time, the script begins.
    pub(crate) fn resume(self: &Arc<Self>) {
        let mut state = self.state();
        if state.running {
            return;
        }
        state.running = true;
        "running".clone_into(&mut state.status);
        let first = !std::mem::replace(&mut state.ran, true);
        drop(state);
        self.event("RESUME", Value::Null);
        if first {
            let machine = Arc::clone(self);
            thread::spawn(move || machine.play());
        }
    }

    /// The virtual CPUs stop.
    pub(crate) fn stop(&self, status: &str) {
        let mut state = self.state();
        let ran = std::mem::replace(&mut state.running, false);
        status.clone_into(&mut state.status);
        drop(state);
        if ran {
            self.event("STOP", Value::Null);
        }
    }

    /// The machine shuts down: the end of the program unless argv keeps it.
    pub(crate) fn shutdown(&self, guest: bool, reason: &str) {
        self.event("SHUTDOWN", json!({"guest": guest, "reason": reason}));
        thread::sleep(Duration::from_millis(self.script.leaves_ms));
        if !self.args.stay {
            self.exit(0);
        }
        self.stop("shutdown");
    }

    /// The machine is reset as the monitor was told to: it goes on, or is at its end if argv says so.
    pub(crate) fn reset(self: &Arc<Self>) {
        const REASON: &str = "host-qmp-system-reset";
        if self.args.no_reboot {
            return self.shutdown(false, REASON);
        }
        self.event("RESET", json!({"guest": false, "reason": REASON}));
        let machine = Arc::clone(self);
        thread::spawn(move || machine.play_actions(machine.script.after_reset.clone()));
    }

    /// The guest's own doings, by time.
    fn play(self: &Arc<Self>) {
        self.console(self.script.console_output.as_bytes());
        self.play_actions(self.script.after_cont.clone());
    }

    fn play_actions(self: &Arc<Self>, mut actions: Vec<TimedAction>) {
        let start = Instant::now();
        actions.sort_by_key(|timed| timed.after_ms);
        for timed in actions {
            thread::sleep(Duration::from_millis(timed.after_ms).saturating_sub(start.elapsed()));
            self.act(timed.action);
        }
    }

    fn act(self: &Arc<Self>, action: Action) {
        match action {
            Action::Event { name, data } => self.event(&name, data),
            Action::Shutdown { reason } => self.shutdown(true, &reason),
            Action::Reboot if self.args.no_reboot => self.shutdown(true, "guest-reset"),
            Action::Reboot => self.event("RESET", json!({"guest": true, "reason": "guest-reset"})),
            Action::Exit { code } => self.exit(code),
            Action::Die { signal } => die(signal),
            Action::Stop { status } => self.stop(&status),
            Action::Resume => self.resume(),
            Action::CloseMonitor => self.close_monitor(),
            Action::Console { text } => self.console(text.as_bytes()),
            Action::Say { text, times } => {
                let state = self.state();
                (0..times).for_each(|_| state.say_text(&text));
            }
            Action::Stderr { text } => drop(io::stderr().write_all(text.as_bytes())),
        }
    }

    /// Closes the monitor for good: the client's connection ends, and nobody can connect. The inherited descriptor stays, so it must be shut down.
    pub(crate) fn close_monitor(&self) {
        let mut state = self.state();
        // The listener first: whoever sees the connection end must not be able to make a new one.
        if let Some(listener) = state.listener.take() {
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        if let Some(client) = state.client.take() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Sends an event to the client if it is ready for events.
    pub(crate) fn event(&self, name: &str, data: Value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let mut event = json!({"timestamp": stamp, "event": name});
        if !data.is_null() {
            event["data"] = data;
        }
        let state = self.state();
        if state.negotiated {
            state.say(&event);
        }
    }
}

impl State {
    /// A client comes to the console and gets what was written before.
    fn greet_console(&mut self, mut client: UnixStream) {
        let _ = client.write_all(&std::mem::take(&mut self.unread));
        self.console = Some(client);
    }

    /// Sends a line; a client that is gone is noticed by the one who reads from it.
    pub(crate) fn say(&self, message: &Value) {
        self.say_text(&format!("{message}\r\n"));
    }

    fn say_text(&self, text: &str) {
        if let Some(mut client) = self.client.as_ref() {
            let _ = client.write_all(text.as_bytes());
        }
    }
}

fn open(listen: &Listen) -> io::Result<UnixListener> {
    match listen {
        Listen::Fd(fd) => adopt_listener(*fd),
        Listen::Path(path) => listen_unix(path).map(UnixListener::from),
        Listen::Connected(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket doesn't listen")),
    }
}

/// Sends itself a signal. Rust's own handler takes the first SIGSEGV or SIGBUS, finds no overflow behind it and restores the default; so there are two. A
/// number that is no signal kills nothing, which the test sees.
fn die(signal: i32) {
    for _ in 0..2 {
        let _ = Signal::try_from(signal).and_then(|signal| kill(Pid::this(), signal));
        thread::sleep(Duration::from_millis(5));
    }
}

fn asked_to_end() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Before any thread starts: all have the mask of the one that made them.
fn block_signals() -> io::Result<()> {
    asked_to_end().thread_block().map_err(io::Error::from)
}

/// Threads with real ids, so that their affinity can be set and seen; they do nothing.
fn start_vcpus(count: u32) -> io::Result<Vec<i32>> {
    let (tell, told) = mpsc::channel();
    let mut ids = Vec::new();
    for index in 0..count {
        let tell = tell.clone();
        let thread = thread::Builder::new().name(format!("CPU {index}/KVM"));
        thread.spawn(move || {
            let _ = tell.send(gettid().as_raw());
            loop {
                thread::park();
            }
        })?;
        ids.push(told.recv().map_err(io::Error::other)?);
    }
    Ok(ids)
}
