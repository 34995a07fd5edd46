//! Events: what QEMU says unasked.

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

/// One event, as it came: a name and data that this crate need not know.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name, such as `SHUTDOWN`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
    /// When QEMU saw it; `None` when QEMU could not read its clock or said nothing.
    pub timestamp: Option<Timestamp>,
}

/// A point in time since the Unix epoch by the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Microseconds on top, below a million.
    pub microseconds: i64,
}

impl Timestamp {
    /// Reads QEMU's form; -1 in either field means that its clock could not be read (qmp-spec).
    pub(crate) fn parse(value: &Value) -> Option<Self> {
        let field = |name| value.get(name).and_then(Value::as_i64).filter(|number| *number >= 0);
        Some(Self { seconds: field("seconds")?, microseconds: field("microseconds")? })
    }
}

/// The events that steer a virtual machine's life, read from name and data.
///
/// Words that QEMU may add to stay open strings, and a field that is missing never hides the event.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Known {
    /// The machine shuts down; QEMU exits unless told to stay.
    Shutdown {
        /// The guest wanted it.
        guest: bool,
        /// QEMU's word for the cause: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, `host-signal`, `host-error`, and what may come.
        reason: Option<String>,
    },
    /// The machine was reset.
    Reset {
        /// The guest wanted it.
        guest: bool,
        /// As in `Shutdown`.
        reason: Option<String>,
    },
    /// The guest was asked to power down.
    Powerdown,
    /// The guest's kernel panicked.
    GuestPanicked {
        /// What QEMU does about it: `pause`, `poweroff`, `run`.
        action: Option<String>,
        /// What the guest told, by the kind of its `type`.
        info: Option<Value>,
    },
    /// The guest's kernel has crashed, and sees to that by itself (kdump).
    GuestCrashloaded,
    /// The guest's watchdog was not fed.
    Watchdog {
        /// What QEMU does about it: `reset`, `shutdown`, `poweroff`, `pause`, `debug`, `none`, `inject-nmi`, and what may come.
        action: Option<String>,
    },
    /// A disk gave an error.
    BlockIoError {
        /// The disk: its id, or the name of its node where it has none.
        disk: Option<String>,
        /// `read`, `write`, and what may come.
        operation: Option<String>,
        /// What QEMU does about it: `ignore`, `report`, `stop`.
        action: Option<String>,
        /// The disk is full.
        no_space: bool,
        /// The error in the system's words.
        reason: Option<String>,
    },
    /// Memory of the host that a guest has, or QEMU, is broken.
    MemoryFailure {
        /// Whose it is: `hypervisor` or `guest`.
        recipient: Option<String>,
        /// What QEMU does about it: `ignore`, `inject`, `fatal`, `reset`.
        action: Option<String>,
    },
    /// A device is gone. One removal can bring several: match on `device`.
    DeviceDeleted {
        /// The id that it was made with.
        device: Option<String>,
        /// Its place in QEMU's object tree.
        path: Option<String>,
    },
    /// The guest would not let a device go.
    DeviceUnplugGuestError {
        /// The id that it was made with.
        device: Option<String>,
        /// Its place in QEMU's object tree.
        path: Option<String>,
    },
    /// The virtual CPUs stopped.
    Stop,
    /// The virtual CPUs run.
    Resume,
}

impl Event {
    /// The event as one that this crate knows; `None` for every other name.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        let text = |field| self.data.get(field).and_then(Value::as_str).map(str::to_owned);
        let guest = || self.data.get("guest").and_then(Value::as_bool).unwrap_or(false);
        Some(match self.name.as_str() {
            "SHUTDOWN" => Known::Shutdown { guest: guest(), reason: text("reason") },
            "RESET" => Known::Reset { guest: guest(), reason: text("reason") },
            "POWERDOWN" => Known::Powerdown,
            "GUEST_PANICKED" => {
                Known::GuestPanicked { action: text("action"), info: self.data.get("info").cloned() }
            }
            "GUEST_CRASHLOADED" => Known::GuestCrashloaded,
            "WATCHDOG" => Known::Watchdog { action: text("action") },
            "BLOCK_IO_ERROR" => Known::BlockIoError {
                disk: self.disk(),
                operation: text("operation"),
                action: text("action"),
                no_space: self.data.get("nospace").and_then(Value::as_bool).unwrap_or(false),
                reason: text("reason"),
            },
            "MEMORY_FAILURE" => Known::MemoryFailure { recipient: text("recipient"), action: text("action") },
            "DEVICE_DELETED" => Known::DeviceDeleted { device: text("device"), path: text("path") },
            "DEVICE_UNPLUG_GUEST_ERROR" => {
                Known::DeviceUnplugGuestError { device: text("device"), path: text("path") }
            }
            "STOP" => Known::Stop,
            "RESUME" => Known::Resume,
            _ => return None,
        })
    }

    /// The name of the disk that an event is about: `device` is empty for one that was made by `-blockdev`, and its place in the object tree
    /// came only with QEMU 9.2 (qapi/block-core.json).
    fn disk(&self) -> Option<String> {
        let text = |field| self.data.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        // A device that has an id sits there by it; what is below is its own.
        let id = |path: &str| Some(path.strip_prefix("/machine/peripheral/")?.split('/').next()?.to_owned());
        let device = text("device").map(str::to_owned);
        device.or_else(|| text("qom-path").and_then(id)).or_else(|| text("node-name").map(str::to_owned))
    }
}

/// The events of one connection, in order, from before the greeting to its end. None is ever dropped: they queue until they are taken.
#[derive(Debug)]
pub struct Events {
    queue: UnboundedReceiver<Event>,
}

impl Events {
    pub(crate) fn new(queue: UnboundedReceiver<Event>) -> Self {
        Self { queue }
    }

    /// The next event; `None` once the connection has ended and all were taken. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }

    /// The next event if one is there; `Err` says whether more can come.
    ///
    /// # Errors
    /// [`Ended`] once the connection has ended and all events were taken.
    pub fn try_next(&mut self) -> Result<Option<Event>, Ended> {
        match self.queue.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Ended),
        }
    }
}

/// The connection has ended, and no event is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the QMP connection has ended")]
pub struct Ended;
