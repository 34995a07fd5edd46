//! `fake-qemu`: a program with QEMU's command line and monitor, and no machine behind them.
//!
//! It takes its monitor and console from argv as QEMU does (`-chardev socket,...` with `-mon` and `-serial` or `isa-serial`), and plays a [`Script`]
//! that the variable [`SCRIPT_ENV`] names; without one it mimics a QEMU 7.2.22 whose guest runs until it is told to stop. What it was given, heard and
//! did goes into a [`Recording`].
//!
//! ```no_run
//! use gpuvm_testkit::fake_qemu::{Action, SCRIPT_ENV, Script, TimedAction, binary};
//! # fn example(dir: &std::path::Path) -> std::io::Result<()> {
//! let script = Script {
//!     record: Some(dir.join("record")),
//!     after_cont: vec![TimedAction { after_ms: 50, action: Action::Die { signal: 11 } }],
//!     ..Script::default()
//! };
//! let path = script.save(dir)?;
//! std::process::Command::new(binary()?).env(SCRIPT_ENV, path).arg("-S").spawn()?;
//! # Ok(())
//! # }
//! ```

mod args;
mod commands;
mod machine;
mod monitor;
mod record;
mod script;

pub use record::{RecordedCommand, RecordedExit, Recording};
pub use script::{
    Action, ExitAtStart, Greeting, OnPowerdown, OnQuit, OnSignal, Reply, SCRIPT_ENV, Script, TimedAction,
};

use machine::Machine;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

/// The whole life of the program; `argv` as QEMU's, the program first. Most scripts end it elsewhere, by `exit` or a signal.
#[must_use]
pub fn run(argv: Vec<OsString>) -> ExitCode {
    match play(argv) {
        Ok(code) => code,
        Err(error) => {
            // As QEMU words it, and with its exit code. Standard error may be closed, and then there is nobody to tell.
            let _ = writeln!(io::stderr(), "fake-qemu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(argv: Vec<OsString>) -> io::Result<ExitCode> {
    let args = args::Args::parse(&argv).map_err(io::Error::other)?;
    if args.version {
        writeln!(io::stdout(), "QEMU emulator version 7.2.22 (fake)")?;
        return Ok(ExitCode::SUCCESS);
    }
    let script = Script::from_env()?;
    let machine = Arc::new(Machine::new(script, args, &argv)?);
    machine.exit_at_start();
    machine.watch_signals();
    let monitor = machine.open_monitor()?;
    machine.serve_console()?;
    machine.start_if_not_paused();
    monitor::serve(&machine, monitor);
    // Without a monitor, or with one that was closed, the machine lives on until something else ends it.
    machine.linger()
}

/// Where the program is: beside the test that asks, made by cargo if it is not there.
///
/// Running the tests of the whole workspace makes it; those of one other package don't.
///
/// # Errors
/// `NotFound` when this is no program below a cargo target directory, or cargo fails.
pub fn binary() -> io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/TEST-HASH, or target/PROFILE/PROGRAM.
    let dirs = test.ancestors().skip(1).take(2).map(|dir| dir.join("fake-qemu"));
    let found = || dirs.clone().find(|path| path.is_file());
    if let Some(path) = found() {
        return Ok(path);
    }
    let target = test.ancestors().nth(3);
    let missing = |why: &str| {
        io::Error::new(io::ErrorKind::NotFound, format!("no fake-qemu beside {}: {why}", test.display()))
    };
    let target = target.ok_or_else(|| missing("not below a target directory"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--package", "gpuvm-testkit", "--bin", "fake-qemu", "--target-dir"])
        .arg(target);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = build.status()?;
    found().ok_or_else(|| missing(&format!("cargo build ended with {status}")))
}
