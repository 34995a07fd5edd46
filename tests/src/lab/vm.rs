//! gpuvm as a child process inside the lab host.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::doing;
use super::guest::GuestReport;

/// The profile that most scenarios run.
pub const PROFILE: &str = "profiles/lab-compute.toml";
/// The guest's kernel command line in that profile, without the guest's own words.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check \
     random.trust_cpu=on rcupdate.rcu_expedited=1 lpj=10000000";

/// A running `gpuvm up`.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: PathBuf,
    told: PathBuf,
}

/// How `gpuvm up` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The guest's console.
    pub console: String,
    /// What gpuvm told.
    pub told: String,
}

/// Runs gpuvm to its end.
///
/// # Errors
/// That it could not be started.
pub fn gpuvm(args: &[&str]) -> Result<Output, String> {
    Command::new("gpuvm").args(args).stdin(Stdio::null()).output().map_err(doing("start gpuvm"))
}

/// Spells the `--set` that gives the guest its own words.
pub fn guest_words(words: &str) -> String {
    format!("kernel.cmdline=\"{CMDLINE} {words}\"")
}

/// Spells the `--set` that gives any profile the lab's guest, with its own words.
pub fn guest_kernel(words: &str) -> String {
    format!(
        "kernel={{path = \"/lab/guest/kernel\", initrd = \"/lab/guest/initrd\", cmdline = \"{CMDLINE} {words}\"}}"
    )
}

impl Vm {
    /// Starts `gpuvm up` of the lab's profile, with words for the guest.
    ///
    /// # Errors
    /// That it could not be started.
    pub fn start(words: &str) -> Result<Self, String> {
        Self::start_with(words, &[])
    }

    /// Starts `gpuvm up` of the lab's profile, with words for the guest and settings as for `--set`.
    ///
    /// # Errors
    /// That it could not be started.
    pub fn start_with(words: &str, settings: &[&str]) -> Result<Self, String> {
        let words = guest_words(words);
        let set = settings.iter().flat_map(|setting| ["--set", setting]);
        Self::up(&[PROFILE, "--set", &words].into_iter().chain(set).collect::<Vec<_>>())
    }

    /// Starts `gpuvm up` with a profile and what else is asked for.
    ///
    /// # Errors
    /// That it could not be started.
    pub fn up(args: &[&str]) -> Result<Self, String> {
        let unique =
            format!("{}-{:?}", std::process::id(), Instant::now()).replace(|c: char| !c.is_ascii_digit(), "");
        let (console, told) =
            (PathBuf::from(format!("/tmp/console-{unique}")), PathBuf::from(format!("/tmp/told-{unique}")));
        let file = |path: &Path| File::create(path).map_err(doing("make a file"));
        let child = Command::new("gpuvm")
            .arg("up")
            .args(args)
            .stdin(Stdio::null())
            .stdout(file(&console)?)
            .stderr(file(&told)?)
            .spawn()
            .map_err(doing("start gpuvm up"))?;
        Ok(Self { child, console, told })
    }

    /// Waits until the guest has reported.
    ///
    /// # Errors
    /// That gpuvm ended before, or that the deadline passed.
    pub fn reported(&mut self, within: Duration) -> Result<GuestReport, String> {
        self.printed("{\"gpuvm_guest\":1,", within)?;
        GuestReport::find(&read(&self.console)?)
    }

    /// Waits until a whole line with a text in it is on the console.
    ///
    /// # Errors
    /// That gpuvm ended before, or that the deadline passed.
    pub fn printed(&mut self, text: &str, within: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let console = read(&self.console)?;
            if console.split_inclusive('\n').any(|line| line.contains(text) && line.ends_with('\n')) {
                return Ok(());
            }
            let ended = self.child.try_wait().map_err(doing("wait for gpuvm"))?;
            if ended.is_some() || begun.elapsed() > within {
                let told = read(&self.told)?;
                return Err(format!(
                    "no `{text}` ({ended:?} after {:?}); gpuvm told:\n{told}\n{console}",
                    begun.elapsed()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends gpuvm a signal.
    ///
    /// # Errors
    /// That there is no such process any more.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).map_err(doing("gpuvm's pid"))?;
        kill(Pid::from_raw(pid), signal).map_err(doing("signal gpuvm"))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// That the deadline passed.
    pub fn ended(&mut self, within: Duration) -> Result<Ended, String> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().map_err(doing("wait for gpuvm"))? {
                let (console, told) = (read(&self.console)?, read(&self.told)?);
                return Ok(Ended { code: status.code(), console, told });
            }
            if begun.elapsed() > within {
                return Err(format!("gpuvm did not end within {within:?}; it told:\n{}", read(&self.told)?));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Vm {
    /// Ends what a scenario that failed left running, so that the next one finds the host free.
    fn drop(&mut self) {
        for _ in 0..3 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            self.signal(Signal::SIGTERM).ok();
            std::thread::sleep(Duration::from_secs(2));
        }
        self.child.wait().ok();
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(doing("open what gpuvm printed"))?;
    file.read_to_end(&mut bytes).map_err(doing("read what gpuvm printed"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
