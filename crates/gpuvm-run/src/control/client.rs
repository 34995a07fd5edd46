//! One client of a VM's control socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gpuvm_core::control::{
    self, Answer, Do, Hello, Lines, Live, Picture, Request as Asked, State, Told, VERSION, Why,
};
use gpuvm_core::lifecycle::Ask;
use gpuvm_core::profile::Display;
use gpuvm_host::root::{HostRoot, driver_of, read_text};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::board::{Board, now_ms};
use super::hub::Hub;
use crate::launch::COMMAND;
use crate::signals::{Command, End, Request, Way};

/// How long a client may take to say hello, and to read what it is sent: then it is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long QEMU may take to say that its vCPUs have stopped, or run.
const SWITCH: Duration = Duration::from_secs(10);
/// How many requests of one client are answered at the same time.
const REQUESTS: usize = 16;
/// How long answers may take that a client is owed who says nothing more.
const LAST_ANSWERS: Duration = Duration::from_secs(60);
/// How long the kernel may take to tell of a device: it is not waited for.
const DEVICES: Duration = Duration::from_millis(500);

/// What a client is served from.
pub(super) struct Served {
    pub(super) board: Arc<Board>,
    pub(super) hub: Arc<Hub>,
    /// The VM's folder.
    pub(super) folder: PathBuf,
}

/// A client, for those who answer it.
struct Client {
    served: Arc<Served>,
    to: Mutex<OwnedWriteHalf>,
}

/// A client that is gone, or too slow: nothing more is done for it.
struct Gone;

/// What a connection turns into.
enum Becomes {
    Events { id: u64, last: u32, follow: bool },
    Console { id: u64, scrollback: u64 },
}

/// Serves a client until one side has had enough.
pub(super) async fn serve(stream: UnixStream, served: Arc<Served>) {
    let (mut from, to) = stream.into_split();
    let client = Arc::new(Client { served, to: Mutex::new(to) });
    let mut lines = Lines::default();
    // They end with the connection.
    let mut answers = JoinSet::new();
    // How it ended is of no interest to anybody.
    let Ok(Some(becomes)) = requests(&client, &mut from, &mut lines, &mut answers).await else {
        // Who says nothing more may still listen; whether he is gone doesn't show before he is written to.
        timeout(LAST_ANSWERS, answers.join_all()).await.ok();
        return;
    };
    match becomes {
        Becomes::Events { id, last, follow } => {
            client.events(&mut from, id, last, follow).await.ok();
        }
        Becomes::Console { id, scrollback } => {
            client.console(from, lines.into_rest(), id, scrollback).await.ok();
        }
    }
}

/// Takes requests until the client goes, or wants the connection to be something else.
async fn requests(
    client: &Arc<Client>,
    from: &mut OwnedReadHalf,
    lines: &mut Lines,
    answers: &mut JoinSet<()>,
) -> Result<Option<Becomes>, Gone> {
    client.send(&Hello::of(&client.served.board.version())).await?;
    let hello = timeout(PATIENCE, next(from, lines)).await.map_err(|_| Gone)??;
    if !hello.is_ok_and(|line| client.greeted(&line)) {
        let words = format!("this gpuvm speaks version {VERSION} of the protocol, and hears hello first");
        client.send(&Answer::refused(0, Why::Version, words)).await?;
        return Ok(None);
    }
    let places = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let line = match next(from, lines).await? {
            Ok(line) => line,
            Err(error) => {
                client.send(&Answer::refused(0, Why::TooLong, error.to_string())).await?;
                continue;
            }
        };
        let asked = match Asked::parse(&line) {
            Ok(asked) => asked,
            Err(error) => {
                let why = match error {
                    control::ParseRequestError::Unknown { .. } => Why::UnknownRequest,
                    _ => Why::BadRequest,
                };
                client.send(&Answer::refused(error.id(), why, error.to_string())).await?;
                continue;
            }
        };
        match asked.what {
            Do::Events { last, follow } => {
                return Ok(Some(Becomes::Events { id: asked.id, last, follow }));
            }
            Do::Console { scrollback } => return Ok(Some(Becomes::Console { id: asked.id, scrollback })),
            _ => {}
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let words = format!("{REQUESTS} requests of this client wait for their answers already");
            client.send(&Answer::refused(asked.id, Why::NotNow, words)).await?;
            continue;
        };
        let client = Arc::clone(client);
        while answers.try_join_next().is_some() {}
        answers.spawn(async move {
            let answer = client.answer(asked).await;
            client.send(&answer).await.ok();
            drop(place);
        });
    }
}

/// Returns the next line.
async fn next(
    from: &mut OwnedReadHalf,
    lines: &mut Lines,
) -> Result<Result<Vec<u8>, control::TooLong>, Gone> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(line) = lines.next() {
            return Ok(line);
        }
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return Err(Gone),
            Ok(count) => lines.push(buffer.get(..count).unwrap_or_default()),
        }
    }
}

impl Client {
    /// Reads a hello, and says whether it fits.
    fn greeted(&self, line: &[u8]) -> bool {
        serde_json::from_slice::<Hello>(line).is_ok_and(|hello| hello.version == VERSION)
    }

    /// Sends a line; who doesn't take it in time is dropped.
    async fn send(&self, message: &impl Serialize) -> Result<(), Gone> {
        let line = control::line(message).ok_or(Gone)?;
        self.write(&line).await
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), Gone> {
        let write = async { self.to.lock().await.write_all(bytes).await };
        match timeout(PATIENCE, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone),
            Err(_) => {
                // Half a line may be out: nothing after it would make sense.
                tracing::debug!("a client of the control socket is too slow");
                self.to.lock().await.shutdown().await.ok();
                Err(Gone)
            }
        }
    }

    async fn answer(&self, asked: Asked) -> Answer {
        let id = asked.id;
        let answer = match asked.what {
            Do::Status => self.status(id).await,
            Do::Stop { timeout_ms, force } => {
                let way = if force { Way::AtOnce } else { Way::Gently };
                let end = End { within: timeout_ms.map(Duration::from_millis), way };
                self.switch(id, Ask::Stop, Request::End(end), None).await
            }
            Do::Wait => self.wait(id).await,
            Do::Pause => self.switch(id, Ask::Pause, Request::Pause, Some(State::Paused)).await,
            Do::Resume => self.switch(id, Ask::Resume, Request::Resume, Some(State::Running)).await,
            Do::Reset => self.switch(id, Ask::Reset, Request::Reset, None).await,
            Do::Qmp { execute, arguments } => {
                self.command(execute, arguments).await.map(|value| Answer::with(id, &value))
            }
            Do::Screenshot => self.screenshot().await.map(|picture| Answer::with(id, &picture)),
            // They have turned the connection into something else before.
            Do::Events { .. } | Do::Console { .. } => Ok(Answer::done(id)),
        };
        let answer = answer.unwrap_or_else(|refusal| Answer { id, result: control::Said::Error(refusal) });
        match control::line(&answer) {
            Some(_) => answer,
            None => Answer::refused(id, Why::TooLong, "the answer is longer than a line may be".to_owned()),
        }
    }

    async fn status(&self, id: u64) -> Result<Answer, control::Refusal> {
        let known = self.served.board.live().ok_or_else(not_there)?;
        let (mut live, root) = known;
        // QEMU may have the lock of what is asked for, or the kernel for it: it is asked aside.
        let looked = live.clone();
        let look = tokio::task::spawn_blocking(move || devices(looked, &root));
        if let Ok(Ok(devices)) = timeout(DEVICES, look).await {
            live.devices = devices;
        }
        Ok(Answer::with(id, &live))
    }

    /// Asks the driver for something that the VM's state allows, and waits for the state that shows that it was done.
    async fn switch(
        &self,
        id: u64,
        ask: Ask,
        request: Request,
        until: Option<State>,
    ) -> Result<Answer, control::Refusal> {
        let board = &self.served.board;
        let standing = board.standing().ok_or_else(not_there)?;
        // Between two boots the guest is gone, and is started again unless its end is asked for.
        let between = ask == Ask::Stop && standing.life == gpuvm_core::lifecycle::State::Exited;
        if let Some(refusal) = standing.life.refuses(ask).filter(|_| !between) {
            return Err(refuse(Why::NotNow, refusal.to_string()));
        }
        let mut states = board.states();
        states.mark_unchanged();
        if !board.ask(request) {
            return Err(gone());
        }
        let Some(until) = until else { return Ok(Answer::done(id)) };
        let seen = states.wait_for(|state| *state == until || is_leaving(*state));
        match timeout(SWITCH, seen).await {
            Ok(Ok(state)) if *state == until => Ok(Answer::done(id)),
            Ok(_) => Err(gone()),
            Err(_) => Err(refuse(
                Why::Timeout,
                format!(
                    "QEMU has not said within {} s that the VM is {until}; once it answers, it may be so still",
                    SWITCH.as_secs()
                ),
            )),
        }
    }

    async fn wait(&self, id: u64) -> Result<Answer, control::Refusal> {
        let mut states = self.served.board.states();
        states.wait_for(|state| *state == State::Over).await.map(drop).map_err(|_| gone())?;
        let finale = self.served.board.finale().ok_or_else(gone)?;
        Ok(Answer::with(id, &finale))
    }

    /// Has the driver send QEMU a command.
    async fn command(&self, execute: String, arguments: Value) -> Result<Value, control::Refusal> {
        if !(arguments.is_null() || arguments.is_object()) {
            return Err(refuse(Why::BadRequest, "the arguments of a QMP command are an object".to_owned()));
        }
        let standing = self.served.board.standing().ok_or_else(not_there)?;
        if !standing.life.has_guest() {
            return Err(refuse(Why::NotNow, format!("there is no QEMU to ask: the VM is {}", standing.life)));
        }
        let (answer, answered) = oneshot::channel();
        if !self.served.board.ask(Request::Command(Command { execute, arguments, answer })) {
            return Err(gone());
        }
        // The driver drops what it can't ask any more, and its own patience ends this.
        match timeout(COMMAND + PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(refuse(Why::Timeout, "QEMU does not answer".to_owned())),
        }
    }

    async fn screenshot(&self) -> Result<Picture, control::Refusal> {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let standing = self.served.board.standing().ok_or_else(not_there)?;
        if standing.display == Display::None {
            return Err(refuse(Why::NotThere, "the VM has no virtual display".to_owned()));
        }
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        let file = self.served.folder.join(format!("screenshot-{}-{number}.png", now_ms()));
        let arguments = json!({ "filename": file, "format": "png" });
        self.command("screendump".to_owned(), arguments).await?;
        Ok(Picture { file })
    }

    async fn events(&self, from: &mut OwnedReadHalf, id: u64, last: u32, follow: bool) -> Result<(), Gone> {
        let (before, mut entries) = self.served.board.entries(last);
        let mut states = self.served.board.states();
        self.send(&Answer::done(id)).await?;
        let mut seq = 0;
        for entry in before {
            seq = entry.seq;
            self.send(&entry).await?;
        }
        if !follow {
            return Ok(());
        }
        loop {
            let entry = tokio::select! {
                biased;
                entry = entries.recv() => entry,
                // All that happened was told before the end.
                _ = states.wait_for(|state| *state == State::Over), if entries.is_empty() => return Ok(()),
                () = hung_up(from) => return Err(Gone),
            };
            match entry {
                Ok(entry) => {
                    seq = entry.seq;
                    self.send(&entry).await?;
                }
                Err(RecvError::Lagged(count)) => {
                    let what = Told::Missed { count };
                    self.send(&control::Entry { seq: seq + 1, at_ms: now_ms(), what }).await?;
                }
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn console(
        &self,
        from: OwnedReadHalf,
        typed: Vec<u8>,
        id: u64,
        scrollback: u64,
    ) -> Result<(), Gone> {
        let (before, said) = self.served.hub.listen(scrollback);
        self.send(&Answer::done(id)).await?;
        let showing = async {
            self.show(&before).await?;
            while let Some(bytes) = said.next().await {
                self.show(&bytes).await?;
            }
            Ok(())
        };
        let typing = type_on(from, typed, &self.served.hub);
        tokio::pin!(showing, typing);
        let mut typing_over = false;
        loop {
            tokio::select! {
                over = &mut showing => return over,
                () = said.lost() => return Err(Gone),
                gone = &mut typing, if !typing_over => match gone {
                    Err(Gone) => return Err(Gone),
                    // It only watches from now on.
                    Ok(()) => typing_over = true,
                },
            }
        }
    }

    /// Sends what the port has said, however long that takes: whoever is too far behind is dropped for that.
    async fn show(&self, bytes: &[u8]) -> Result<(), Gone> {
        self.to.lock().await.write_all(bytes).await.map_err(|_| Gone)
    }
}

/// Waits until a client that has nothing more to say is gone.
async fn hung_up(from: &mut OwnedReadHalf) {
    let mut buffer = [0; 256];
    while matches!(from.read(&mut buffer).await, Ok(count) if count > 0) {}
}

/// Types what a client types, as fast as the guest takes it.
async fn type_on(mut from: OwnedReadHalf, typed: Vec<u8>, hub: &Hub) -> Result<(), Gone> {
    let mut typed = typed;
    let mut buffer = vec![0; 4096];
    loop {
        if !typed.is_empty()
            && let Some(input) = hub.input()
        {
            // A port that is gone takes nothing; the next QEMU's does.
            input.send(std::mem::take(&mut typed)).await.ok();
        }
        match from.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Err(_) => return Err(Gone),
            Ok(count) => typed = buffer.get(..count).unwrap_or_default().to_vec(),
        }
    }
}

fn is_leaving(state: State) -> bool {
    !matches!(state, State::Preparing | State::Starting | State::Running | State::Paused)
}

fn refuse(kind: Why, message: String) -> control::Refusal {
    control::Refusal { kind, message }
}

fn not_there() -> control::Refusal {
    refuse(Why::NotNow, "the VM has not begun".to_owned())
}

fn gone() -> control::Refusal {
    refuse(Why::NotNow, "the VM is at its end".to_owned())
}

/// Reads what is to be known of the devices. While a guest runs nothing of that wakes one, nor waits for its lock.
fn devices(live: Live, root: &HostRoot) -> Vec<control::Device> {
    let awake = matches!(live.state, State::Running | State::Paused | State::PoweringDown);
    let mut devices = live.devices;
    for device in &mut devices {
        let folder = root.device(device.bdf);
        let word = |name: &str| {
            let text = read_text(&folder.join(name)).ok().flatten()?;
            let text = text.trim().to_owned();
            (!text.is_empty() && text != "Unknown" && text != "0").then_some(text)
        };
        device.driver = driver_of(root, device.bdf).ok().flatten().map(|driver| driver.to_string());
        if awake && let (Some(speed), Some(width)) = (word("current_link_speed"), word("current_link_width"))
        {
            let speed = speed.strip_suffix(" PCIe").unwrap_or(&speed);
            device.link = Some(format!("{speed} x{width}"));
        }
    }
    devices
}
