//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use gpuvm_core::profile::VmName;
use gpuvm_host::places::Places;
use gpuvm_host::root::HostRoot;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cmd::bind::BindArgs;
use crate::cmd::completions::CompletionsArgs;
use crate::cmd::console::ConsoleArgs;
use crate::cmd::devices::DevicesArgs;
use crate::cmd::doctor::DoctorArgs;
use crate::cmd::down::DownArgs;
use crate::cmd::events::EventsArgs;
use crate::cmd::explain::ExplainArgs;
use crate::cmd::lock::LockArgs;
use crate::cmd::logs::LogsArgs;
use crate::cmd::man::ManArgs;
use crate::cmd::qmp::QmpArgs;
use crate::cmd::recover::RecoverArgs;
use crate::cmd::reset::ResetArgs;
use crate::cmd::screenshot::ScreenshotArgs;
use crate::cmd::soak::SoakArgs;
use crate::cmd::status::StatusArgs;
use crate::cmd::topology::TopologyArgs;
use crate::cmd::up::WaitFor;
use crate::exit::Exit;
use crate::locked::OnChanges;
use crate::out;

/// What each exit code means.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0   all went well
  1   the guest ended badly: it panicked, QEMU died, or it did nothing but reboot
  64  the command line makes no sense
  69  this host can't run the profile, or a device is in quarantine
  70  an internal error
  74  a device is sick, or the host is not wholly given back
  75  busy: somebody else has the device; try later
  77  permission denied
  78  the profile is wrong
  124 it took too long";

/// Gives a VM whole PCI devices through VFIO, by driving QEMU directly.
///
/// gpuvm proves that IOMMU, drivers, groups and devices agree before the guest starts, places the guest on the devices' NUMA
/// node, and leaves the host as it was when the guest is gone.
#[derive(Debug, Parser)]
#[command(name = "gpuvm", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say more about what is done (twice: everything)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Keep gpuvm's own files below DIR (DIR/run, DIR/lib, DIR/log, DIR/cache) instead of /run/gpuvm, /var/lib/gpuvm and so on
    #[arg(long, global = true, value_name = "DIR", env = "GPUVM_PREFIX")]
    prefix: Option<PathBuf>,

    /// Read the host's /sys, /proc and /dev below DIR, as recorded from another machine (verbs that only look)
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) host_root: Option<PathBuf>,

    /// Use the facts in FILE, a report of another host or the facts.json in it; for verbs that only look
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "host_root")]
    pub(crate) facts: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a profile, without looking at this host
    Check(ProfileArgs),
    /// Show what `up` would do on this host, and why
    Plan(ProfileArgs),
    /// Print the QEMU command line of a profile, to be run by hand
    Argv(ProfileArgs),
    /// Check all that passthrough rests on: firmware, topology, drivers, isolation, QEMU, memory
    Doctor(DoctorArgs),
    /// Print the JSON Schema of profiles, for editors that check TOML by one
    Schema,
    /// Run a VM until its guest ends, then give the host back
    Up(UpArgs),
    /// Show VMs: where each stands and since when, its processes, vCPUs, memory, devices, what happened last
    Status(StatusArgs),
    /// List the VMs that are up, or that have left something behind
    List,
    /// End a VM's guest and wait until the host is given back; says what it took
    Down(DownArgs),
    /// Stop a guest's vCPUs, until `resume`
    Pause(VmArgs),
    /// Let a paused guest go on
    Resume(VmArgs),
    /// Reset a guest's machine, as by its reset button
    Reboot(VmArgs),
    /// Put a new gpuvm beside a guest whose own was killed; where the guest is gone too, give the host back
    Recover(RecoverArgs),
    /// Print what a guest, its QEMU or its gpuvm said; also of a VM that has ended
    Logs(LogsArgs),
    /// Print what has happened to a VM, and what happens
    Events(EventsArgs),
    /// Sit down at a guest's serial port
    Console(ConsoleArgs),
    /// Take a picture of a guest's display
    Screenshot(ScreenshotArgs),
    /// Send one command to a VM's QEMU, and print its answer
    Qmp(QmpArgs),
    /// List the devices that can be passed, and why others can't; or show everything about one
    Devices(DevicesArgs),
    /// Show nodes, root complexes, ports, groups and devices as a tree, or as a picture
    Topology(TopologyArgs),
    /// Bind devices to VFIO by hand, by whole IOMMU groups; they stay bound until `unbind`
    Bind(BindArgs),
    /// Give bound devices back to the drivers that they had
    Unbind(BindArgs),
    /// Reset devices, and say by their registers how they came back; a device on its own driver is taken from it meanwhile
    Reset(ResetArgs),
    /// Run a VM again and again, see how its devices come back each time, and write a report; or look at what earlier soaks have written
    Soak(SoakArgs),
    /// Give back what VMs left behind whose gpuvm was killed, and what a bind or unbind was cut short in
    Cleanup(CleanupArgs),
    /// List the devices that came back sick and that nobody may have; or clear one
    Quarantine(crate::cmd::QuarantineArgs),
    /// Take down what a profile rests on, or say what has changed since
    Lock(LockArgs),
    /// Write a first profile for a device of this host
    Init(crate::cmd::InitArgs),
    /// Put what somebody else needs to see what is wrong into one archive
    Report(crate::cmd::ReportArgs),
    /// Say what a message of the kernel, of QEMU or of a guest means, and what to do about it
    Explain(ExplainArgs),
    /// Print what a shell needs to complete gpuvm's words
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages into a folder
    Man(ManArgs),
}

/// A profile and changes to it.
#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// The profile, in TOML
    pub(crate) profile: PathBuf,

    /// Set a key of the profile, as in --set memory.size=8G; a value that is no TOML is taken as a string
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<String>,
}

/// Reads a time as in 90s or 2m; a number alone is one of seconds.
pub(crate) fn whole_seconds(text: &str) -> Result<u32, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let time = match is_number {
        true => {
            Duration::from_secs(text.parse().map_err(|_| "it is longer than a guest may take".to_owned())?)
        }
        false => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if time.subsec_nanos() > 0 {
        return Err("expected whole seconds".to_owned());
    }
    u32::try_from(time.as_secs()).map_err(|_| "it is longer than a guest may take".to_owned())
}

/// A VM that is there.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// The VM
    pub(crate) vm: VmName,
}

/// What `up` takes.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) profile: ProfileArgs,

    /// Give the guest so long to power off when asked to, before QEMU is told to quit [default: the profile's shutdown-timeout]
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    pub(crate) shutdown_timeout: Option<u32>,

    /// Go on although this host has changed since it was locked, and lock it as it is now
    #[arg(long)]
    pub(crate) accept_changes: bool,

    /// Return once the guest runs; the VM goes on in a session of its own, without this terminal
    #[arg(long)]
    pub(crate) detach: bool,

    /// What to wait for before that: running, console:REGEX (its serial port says so), or none (the VM is reserved) [default: the profile's ready]
    #[arg(long, value_name = "WHAT", requires = "detach")]
    pub(crate) wait: Option<WaitFor>,

    /// For how long; the VM is left to itself after it, and gpuvm ends with 124
    #[arg(long, value_name = "TIME", requires = "detach", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) wait_timeout: Duration,

    /// The socket on which the one that goes on tells the one that has started it
    #[arg(long, hide = true, requires = "detach")]
    pub(crate) word_fd: Option<i32>,
}

impl UpArgs {
    /// Returns what to do about a host that has changed since it was locked.
    pub(crate) fn on_changes(&self) -> OnChanges {
        if self.accept_changes { OnChanges::Accept } else { OnChanges::Refuse }
    }
}

/// What `cleanup` takes.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// The VM; all of them if none is named
    pub(crate) vm: Option<VmName>,
}

pub(crate) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() && !key.contains('\n') => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE, like memory.size=8G".to_owned()),
    }
}

impl Cli {
    /// Returns the host to read.
    pub(crate) fn host_root(&self) -> HostRoot {
        self.host_root.as_ref().map_or_else(HostRoot::default, HostRoot::new)
    }

    /// Tells whether the host is a recorded one, which can't be acted upon.
    pub(crate) fn is_recorded(&self) -> bool {
        self.host_root.is_some() || self.facts.is_some()
    }

    /// Tells whether the ledger is that of the host in question: of a recorded one it is there only where its folder is named.
    pub(crate) fn has_ledger(&self) -> bool {
        self.facts.is_none() && (self.host_root.is_none() || self.prefix.is_some())
    }

    /// Tells whether more is to be said.
    pub(crate) fn is_verbose(&self) -> bool {
        self.verbose > 0
    }

    /// Returns gpuvm's own folders.
    pub(crate) fn places(&self) -> Places {
        self.prefix.as_deref().map_or_else(Places::default, Places::below)
    }

    /// Returns the options that another gpuvm needs, to be for the same VMs as this one.
    pub(crate) fn again(&self) -> Vec<OsString> {
        let mut words = vec![OsString::from("-v"); self.verbose.into()];
        if let Some(prefix) = &self.prefix {
            words.extend([OsString::from("--prefix"), prefix.clone().into_os_string()]);
        }
        words
    }

    /// Sends log records of the chosen level to stderr.
    pub(crate) fn start_logging(&self) {
        let level = match self.verbose {
            0 => LevelFilter::WARN,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        let format = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(out::stderr_is_terminal())
            .without_time();
        tracing_subscriber::registry().with(format).with(Targets::new().with_target("gpuvm", level)).init();
    }
}

/// Prints help, version or what is wrong with the command line.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a terminal that is gone.
    error.print().ok();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_number("90", Ok(90))]
    #[case::seconds("2s", Ok(2))]
    #[case::minutes_and_seconds("1m 30s", Ok(90))]
    #[case::none("0", Ok(0))]
    #[case::empty("", Err(()))]
    #[case::a_part_of_a_second("1500ms", Err(()))]
    #[case::a_word("soon", Err(()))]
    #[case::too_long("99999999999", Err(()))]
    #[case::negative("-1", Err(()))]
    fn times_are_taken_as_elsewhere_and_as_plain_seconds(
        #[case] text: &str,
        #[case] expected: Result<u32, ()>,
    ) {
        assert_eq!(whole_seconds(text).map_err(drop), expected);
    }
}
