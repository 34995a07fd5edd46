//! How long the verbs take that look at a host and change nothing, on the largest host of files.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::figures::Figures;
use super::plan_time::{SIZES, Size, host, profile_text};
use super::{Result, doing};

/// A verb with its words, and what the whole process may take, in ms.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Look {
    /// The words; `PROFILE` stands for a profile that asks for all cards.
    pub words: &'static [&'static str],
    /// The target.
    pub target_ms: f64,
}

/// What is measured: what is about one device or one profile, and what is about the whole host.
pub const LOOKS: &[Look] = &[
    Look { words: &["devices", "0000:41:00.0"], target_ms: 150.0 },
    Look { words: &["devices", "PROFILE"], target_ms: 150.0 },
    Look { words: &["devices"], target_ms: 2000.0 },
    Look { words: &["devices", "--all"], target_ms: 2000.0 },
    Look { words: &["topology"], target_ms: 2000.0 },
];

/// What a verb took.
#[derive(Debug, Serialize)]
pub struct LookTime {
    /// The verb.
    #[serde(flatten)]
    pub look: Look,
    /// The host.
    pub size: Size,
    /// The whole process, from its start to its end.
    pub process: Figures,
}

impl LookTime {
    /// Spells the command.
    pub fn command(&self) -> String {
        format!("gpuvm {}", self.look.words.join(" "))
    }
}

/// Runs each verb many times on the largest host, with the names of this machine's devices where it has a list.
///
/// # Errors
/// A verb that fails.
pub fn measure(gpuvm: &Path, runs: usize) -> Result<Vec<LookTime>> {
    let Some(size) = SIZES.last().copied() else { return Ok(Vec::new()) };
    let host = host(size);
    let profile = host.path("/bench.toml");
    std::fs::write(&profile, profile_text(size)).map_err(doing("write the profile"))?;
    if let Ok(names) = std::fs::read("/usr/share/misc/pci.ids") {
        host.file("/usr/share/misc/pci.ids", names);
    }
    let mut measured = Vec::new();
    for look in LOOKS {
        let mut times = Vec::new();
        // The first fills the caches and doesn't count.
        for run in 0..=runs {
            let took = time(gpuvm, &host.path("/"), look, &profile)?;
            if run > 0 {
                times.push(took);
            }
        }
        measured.push(LookTime { look: *look, size, process: Figures::of(&times) });
    }
    Ok(measured)
}

fn time(gpuvm: &Path, root: &Path, look: &Look, profile: &Path) -> Result<Duration> {
    let words =
        look.words.iter().map(|word| if *word == "PROFILE" { profile.as_os_str() } else { word.as_ref() });
    let mut command = Command::new(gpuvm);
    command.arg("--host-root").arg(root).args(words).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.status().map_err(doing("start gpuvm"))?;
    let took = begun.elapsed();
    let words = look.words.join(" ");
    if status.success() { Ok(took) } else { Err(format!("gpuvm {words} ended with {status}")) }
}
