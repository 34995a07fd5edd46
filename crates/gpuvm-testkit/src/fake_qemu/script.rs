//! What the fake does: values that tests build and the program reads back from JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The variable that names the script's file.
pub const SCRIPT_ENV: &str = "GPUVM_FAKE_QEMU_SCRIPT";

/// Everything that can be asked of the fake; the default is a QEMU whose guest runs until told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Where the [`Recording`](super::Recording) goes.
    pub record: Option<PathBuf>,
    /// Ends the program before it does anything, as QEMU does with a bad argument.
    pub exit_at_start: Option<ExitAtStart>,
    /// Milliseconds before the monitor greets, as for a guest whose memory takes long to allocate.
    pub greeting_after_ms: u64,
    /// What the monitor says first.
    pub greeting: Greeting,
    /// How many threads stand for virtual CPUs; by default as many as `-smp` asks for.
    pub vcpus: Option<u32>,
    /// Answers that stand in for the usual ones; the usual effect of such a command does not happen.
    pub replies: BTreeMap<String, Reply>,
    /// What the guest writes on its console once it runs.
    pub console_output: String,
    /// What happens by itself once the machine first runs, by time.
    pub after_cont: Vec<TimedAction>,
    /// What happens by itself each time the machine was reset by `system_reset` and goes on, by time since then.
    pub after_reset: Vec<TimedAction>,
    /// What the guest does when its power button is pressed.
    pub on_powerdown: OnPowerdown,
    /// Milliseconds that the guest takes to shut down.
    pub powerdown_takes_ms: u64,
    /// Milliseconds from the word that it shuts down to the program's end, as a device takes that is reset.
    pub leaves_ms: u64,
    /// What `quit` does.
    pub on_quit: OnQuit,
    /// What TERM, INT and HUP do.
    pub on_signal: OnSignal,
    /// What the program plays when it is started again.
    pub next: Option<Box<Script>>,
    /// Milliseconds after which the program ends with code 99 whatever the script says, so that a broken test leaves nothing behind.
    pub life_ms: u64,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            record: None,
            exit_at_start: None,
            greeting_after_ms: 0,
            greeting: Greeting::Usual,
            vcpus: None,
            replies: BTreeMap::new(),
            console_output: String::new(),
            after_cont: Vec::new(),
            after_reset: Vec::new(),
            on_powerdown: OnPowerdown::Shutdown,
            powerdown_takes_ms: 0,
            leaves_ms: 0,
            on_quit: OnQuit::Exit,
            on_signal: OnSignal::Exit,
            next: None,
            life_ms: 120_000,
        }
    }
}

/// An end before the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitAtStart {
    /// The exit code; QEMU's is 1.
    pub code: i32,
    /// What goes to standard error before.
    pub stderr: String,
}

/// What the monitor says to a client first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Greeting {
    /// That of QEMU 7.2.22.
    Usual,
    /// This text and a line end, JSON or not.
    Custom(String),
    /// The client is accepted and hears nothing, ever.
    Silent,
    /// The client is never accepted (its connect(2) succeeds all the same).
    Never,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A value for `return`.
    Value(Value),
    /// An error.
    Error {
        /// QEMU's class, such as `GenericError`.
        class: String,
        /// The words.
        desc: String,
    },
    /// None.
    Silence,
    /// The program ends instead.
    Die {
        /// Its exit code.
        code: i32,
    },
}

/// Something that happens by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedAction {
    /// Milliseconds since the machine first ran.
    pub after_ms: u64,
    /// What happens.
    pub action: Action,
}

/// What can happen by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// An event, known to QEMU or not.
    Event {
        /// Its name.
        name: String,
        /// Its data.
        #[serde(default)]
        data: Value,
    },
    /// The guest shuts itself down (`guest-shutdown`), reboots into an end (`guest-reset`) and the like: SHUTDOWN, then the end of the program, or a
    /// stop if argv says so.
    Shutdown {
        /// QEMU's word.
        reason: String,
    },
    /// The guest reboots: RESET, and it goes on; or, if argv says so, SHUTDOWN with `guest-reset` and the end of the program.
    Reboot,
    /// The program ends, without an event.
    Exit {
        /// Its exit code.
        code: i32,
    },
    /// A signal ends the program. One of those in [`OnSignal`] does what is said there.
    Die {
        /// Its number: 11 is SIGSEGV.
        signal: i32,
    },
    /// The virtual CPUs stop, as by QEMU itself or by another of its monitors: STOP, and this word for the run state.
    Stop {
        /// QEMU's word, such as `io-error`.
        status: String,
    },
    /// The virtual CPUs go on, as by another of its monitors: RESUME.
    Resume,
    /// The monitor's socket closes for good; the program goes on.
    CloseMonitor,
    /// The guest writes on its console.
    Console {
        /// The text.
        text: String,
    },
    /// The monitor says this so many times, QMP or not, with no line end of its own.
    Say {
        /// The text.
        text: String,
        /// How often.
        times: u32,
    },
    /// QEMU writes to standard error.
    Stderr {
        /// The text.
        text: String,
    },
}

/// What the guest does when its power button is pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPowerdown {
    /// It shuts down.
    Shutdown,
    /// Nothing.
    Ignore,
}

/// What `quit` does, after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnQuit {
    /// SHUTDOWN, and the program ends.
    Exit,
    /// Nothing.
    Ignore,
    /// SHUTDOWN and the monitor closes, but the program stays, as when a device does not let go.
    Linger,
}

/// What a signal does that asks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSignal {
    /// SHUTDOWN with `host-signal`, and the program ends with code 0, as QEMU does.
    Exit,
    /// Nothing.
    Ignore,
}

impl Script {
    /// Writes the script into `dir` as `script.json` and gives the path, for [`SCRIPT_ENV`].
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn save(&self, dir: &Path) -> io::Result<PathBuf> {
        let path = dir.join("script.json");
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }

    /// The script that [`SCRIPT_ENV`] names, or the default.
    pub(crate) fn from_env() -> io::Result<Self> {
        let Some(path) = std::env::var_os(SCRIPT_ENV) else { return Ok(Self::default()) };
        let path = PathBuf::from(path);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(named)?;
        let script: Self =
            serde_json::from_reader(io::BufReader::new(file)).map_err(|error| named(error.into()))?;
        if let Some(next) = &script.next {
            let next =
                Self { record: next.record.clone().or_else(|| script.record.clone()), ..(**next).clone() };
            std::fs::write(&path, serde_json::to_vec_pretty(&next)?).map_err(named)?;
        }
        Ok(script)
    }
}
