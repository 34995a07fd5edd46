//! What is known of a VM, and what has happened: written by the driver's thread, read by the server's.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gpuvm_core::control::{self, Entry, Finale, Live, Node, State, Told, Vcpu};
use gpuvm_core::lifecycle::{self, Halt, Outcome};
use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::plan::{MemoryCell, Plan};
use gpuvm_core::profile::Display;
use gpuvm_core::reset::Judgement;
use gpuvm_host::process::ProcessId;
use gpuvm_host::root::HostRoot;
use gpuvm_qmp::verbs::VcpuThread;
use tokio::sync::{broadcast, mpsc, watch};

use super::{Arrival, Launched};
use crate::log::Log;
use crate::signals::Request;

/// How many entries are kept for those who come later; all of them are in the file.
const KEPT: usize = 200;
/// How many of them a status shows.
const SHOWN: usize = 10;
/// How many entries a reader may be behind.
const BEHIND: usize = 1024;

/// What is known, for every thread.
pub(crate) struct Board {
    inner: Mutex<Inner>,
    entries: broadcast::Sender<Entry>,
    /// Changes with the VM's state, and for the last time with its end.
    state: watch::Sender<State>,
}

struct Inner {
    version: String,
    launched: Launched,
    run: Option<Running>,
    finale: Option<Finale>,
    seq: u64,
    kept: VecDeque<Entry>,
    log: Option<Log>,
}

/// What is known of the run that is under way.
struct Running {
    live: Live,
    life: lifecycle::State,
    root: HostRoot,
    display: Display,
    /// When the part of the run began that isn't over.
    part: Instant,
    pins: Vec<(u32, u32)>,
    ask: mpsc::UnboundedSender<Request>,
}

/// What a request has to know of a run.
pub(crate) struct Standing {
    pub(crate) life: lifecycle::State,
    pub(crate) display: Display,
}

impl Board {
    pub(super) fn new(version: &str, launched: Launched) -> Self {
        let inner = Inner {
            version: version.to_owned(),
            launched,
            run: None,
            finale: None,
            seq: 0,
            kept: VecDeque::new(),
            log: None,
        };
        Self {
            inner: Mutex::new(inner),
            entries: broadcast::Sender::new(BEHIND),
            state: watch::Sender::new(State::Preparing),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with a run; one before it never came to anything.
    pub(super) fn begin(
        &self,
        plan: &Plan,
        root: &HostRoot,
        boot_id: &str,
        ask: mpsc::UnboundedSender<Request>,
    ) {
        let mut inner = self.inner();
        let now = now_ms();
        let live = Live {
            name: plan.name.clone(),
            state: State::Preparing,
            why: None,
            since_ms: now,
            begun_ms: now,
            boot_id: boot_id.to_owned(),
            supervisor: control::Gpuvm {
                pid: ProcessId::own().pid,
                version: inner.version.clone(),
                detached: inner.launched == Launched::Detached,
            },
            qemu: None,
            reboots: 0,
            timings: Vec::new(),
            vcpus: Vec::new(),
            devices: plan.devices.iter().map(|device| unread(device.bdf, device.id)).collect(),
            memory: (0..).zip(&plan.memory).map(|(number, cell)| node(number, cell)).collect(),
            warnings: plan.warnings.clone(),
            events: Vec::new(),
        };
        inner.run = Some(Running {
            live,
            life: lifecycle::State::Preparing,
            root: root.clone(),
            display: plan.display,
            part: Instant::now(),
            pins: plan.placement.vcpus.iter().map(|pin| (pin.vcpu, pin.cpu)).collect(),
            ask,
        });
        drop(inner);
        self.state.send_replace(State::Preparing);
    }

    /// Takes in that the run has begun before, at so many seconds since 1970, and that its guest runs.
    pub(super) fn goes_on(&self, begun: u64) {
        if let Some(run) = &mut self.inner().run {
            (run.live.begun_ms, run.live.state) = (begun.saturating_mul(1000), State::Running);
            run.life = lifecycle::State::Running;
        }
        self.state.send_replace(State::Running);
    }

    /// Keeps what happens from now on in a file too; it goes on with the numbers of what is in there of this run.
    pub(super) fn log_to(&self, path: &Path, arrival: Arrival) {
        let (log, last) = match arrival {
            Arrival::First => (Log::begin(path), 0),
            Arrival::Later => (Log::resume(path), last_number(path)),
        };
        match log {
            Ok(log) => {
                let mut inner = self.inner();
                inner.log = Some(log);
                inner.seq = inner.seq.max(last);
            }
            Err(error) => tracing::warn!("{} is not written: {error}", path.display()),
        }
    }

    /// Writes down what has happened.
    pub(super) fn happened(&self, what: Told) {
        let mut inner = self.inner();
        inner.add(what, &self.entries);
    }

    /// Takes in where the life of the VM stands.
    pub(super) fn life(&self, life: lifecycle::State, halt: Option<&Halt>) {
        let mut inner = self.inner();
        if let Some(run) = &mut inner.run {
            run.life = life;
        }
        let state = match life {
            lifecycle::State::Preparing => State::Preparing,
            lifecycle::State::HostReady | lifecycle::State::Paused => State::Starting,
            lifecycle::State::Running => State::Running,
            lifecycle::State::PausedByUser | lifecycle::State::PausedByError => State::Paused,
            lifecycle::State::PoweringDown => State::PoweringDown,
            lifecycle::State::Quitting => State::Quitting,
            lifecycle::State::Killing => State::Killing,
            lifecycle::State::Exited => State::Judging,
            // The end is told with the last word, once everything is done.
            lifecycle::State::Released | lifecycle::State::NeedsOperator | lifecycle::State::Quarantined => {
                State::GivingBack
            }
        };
        let why = halt.map(ToString::to_string);
        self.enter(&mut inner, state, why);
    }

    /// Takes in that the host is being given back.
    pub(super) fn gives_back(&self) {
        self.enter(&mut self.inner(), State::GivingBack, None);
    }

    fn enter(&self, inner: &mut Inner, state: State, why: Option<String>) {
        let Some(run) = &mut inner.run else { return };
        if run.live.state == state && run.live.why == why {
            return;
        }
        let (before, now) = (run.live.state, Instant::now());
        if let Some(part) = part(before).filter(|part| Some(*part) != self::part(state)) {
            let ms = u64::try_from(now.duration_since(run.part).as_millis()).unwrap_or(u64::MAX);
            run.live.timings.push(control::Timing { phase: part.to_owned(), ms });
            run.part = now;
        }
        (run.live.state, run.live.why, run.live.since_ms) = (state, why, now_ms());
        if before != state {
            inner.add(Told::State { state }, &self.entries);
        }
        self.state.send_replace(state);
    }

    /// Takes in that QEMU is there, and its version once it is known.
    pub(super) fn qemu(&self, pid: i32, version: Option<&str>) {
        if let Some(run) = &mut self.inner().run {
            run.live.qemu = Some(control::Qemu { pid, version: version.map(str::to_owned), exit: None });
        }
    }

    /// Takes in that the guest has rebooted.
    pub(super) fn rebooted(&self) {
        if let Some(run) = &mut self.inner().run {
            run.live.reboots += 1;
        }
    }

    /// Takes in how a device is.
    pub(super) fn judged(&self, bdf: Bdf, judgement: &Judgement) {
        let mut inner = self.inner();
        let devices = inner.run.iter_mut().flat_map(|run| &mut run.live.devices);
        if let Some(device) = devices.into_iter().find(|device| device.bdf == bdf) {
            device.verdict = Some(judgement.verdict);
            device.finding = judgement.reason().map(ToString::to_string);
        }
    }

    /// Takes in the vCPUs' threads.
    pub(super) fn threads(&self, threads: &[VcpuThread]) {
        if let Some(run) = &mut self.inner().run {
            let cpu = |index| run.pins.iter().find(|(vcpu, _)| *vcpu == index).map(|(_, cpu)| *cpu);
            let vcpu = |thread: &VcpuThread| Vcpu {
                vcpu: thread.index,
                thread: thread.thread_id,
                cpu: cpu(thread.index),
            };
            run.live.vcpus = threads.iter().map(vcpu).collect();
        }
    }

    /// Takes in the last word.
    pub(super) fn finish(&self, finale: Finale) {
        let mut inner = self.inner();
        if let Some(run) = &mut inner.run {
            let exit = match finale.outcome {
                Some(Outcome::QemuDied { exit }) => Some(exit),
                _ => None,
            };
            if let Some(qemu) = &mut run.live.qemu {
                qemu.exit = exit;
            }
        }
        inner.finale = Some(finale);
        self.enter(&mut inner, State::Over, None);
        drop(inner);
        // Also where there was no run to be over.
        self.state.send_replace(State::Over);
    }

    /// Returns the VM as it is, with what is to be read of its devices.
    pub(super) fn live(&self) -> Option<(Live, HostRoot)> {
        let inner = self.inner();
        let run = inner.run.as_ref()?;
        let mut live = run.live.clone();
        live.events = inner.kept.iter().rev().take(SHOWN).rev().cloned().collect();
        Some((live, run.root.clone()))
    }

    /// Returns what a request has to know.
    pub(super) fn standing(&self) -> Option<Standing> {
        let inner = self.inner();
        inner.run.as_ref().map(|run| Standing { life: run.life, display: run.display })
    }

    /// Returns the version of this gpuvm.
    pub(super) fn version(&self) -> String {
        self.inner().version.clone()
    }

    /// Asks the driver; it may be gone.
    pub(super) fn ask(&self, request: Request) -> bool {
        self.inner().run.as_ref().is_some_and(|run| run.ask.send(request).is_ok())
    }

    /// Returns the last word, once it is said.
    pub(super) fn finale(&self) -> Option<Finale> {
        self.inner().finale.clone()
    }

    /// Returns the last entries, and those to come: none is lost or told twice.
    pub(super) fn entries(&self, last: u32) -> (Vec<Entry>, broadcast::Receiver<Entry>) {
        let inner = self.inner();
        let count = usize::try_from(last).unwrap_or(usize::MAX).min(inner.kept.len());
        let before = inner.kept.iter().skip(inner.kept.len() - count).cloned().collect();
        (before, self.entries.subscribe())
    }

    /// Returns where changes of the state are seen.
    pub(super) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

impl Inner {
    fn add(&mut self, what: Told, readers: &broadcast::Sender<Entry>) {
        self.seq += 1;
        let entry = Entry { seq: self.seq, at_ms: now_ms(), what };
        if let (Some(log), Some(line)) = (&mut self.log, control::line(&entry))
            && let Err(error) = log.write(&line)
        {
            tracing::warn!("events.jsonl is not whole: {error}");
            self.log = None;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(entry.clone());
        // Nobody may be listening.
        readers.send(entry).ok();
    }
}

/// Returns the number of a file's last entry; 0 where there is none.
fn last_number(path: &Path) -> u64 {
    let text = std::fs::read(path).unwrap_or_default();
    let last = text.split(|byte| *byte == b'\n').rev().find_map(|line| serde_json::from_slice(line).ok());
    last.map_or(0, |Entry { seq, .. }| seq)
}

/// Names the part of a run that a state belongs to, as the report does.
fn part(state: State) -> Option<&'static str> {
    Some(match state {
        State::Preparing => "prepare",
        State::Starting => "start",
        State::Running | State::Paused | State::PoweringDown | State::Quitting | State::Killing => "run",
        State::Judging | State::GivingBack => "give-back",
        State::Over | State::Other => return None,
    })
}

fn unread(bdf: Bdf, id: PciId) -> control::Device {
    control::Device { bdf, name: id.to_string(), driver: None, link: None, verdict: None, finding: None }
}

fn node(number: u32, cell: &MemoryCell) -> Node {
    let pages = cell.hugepages.map_or("ordinary".to_owned(), |size| size.to_string());
    Node { guest_node: number, host_node: cell.host_node, size: cell.size, pages }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
