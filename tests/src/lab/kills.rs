//! Launchers and cleanups that are killed on a real kernel, at each point of the way of the lab's profile.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Output;

use gpuvm_core::plan::Plan;

use super::placement::Placed;
use super::snapshot::Snapshot;
use super::vm::{PROFILE, gpuvm};
use super::{Outcome, doing, ensure};
use crate::killed::{KillPoint, PREPARED, Task, Verb, Victim};

const SIGKILL: i32 = 9;
/// Power attributes that are set before, so that there is something to put back: (function, attribute, value).
const POLICIES: [(&str, &str, &str); 5] = [
    ("0000:81:00.0", "power/control", "auto"),
    ("0000:81:00.0", "d3cold_allowed", "1"),
    ("0000:83:00.0", "power/control", "auto"),
    ("0000:80:02.0", "power/control", "auto"),
    ("0000:80:02.0", "d3cold_allowed", "1"),
];

/// Killed before and after each operation, and its cleanup killed on its way: after one whole cleanup the host is as it was.
pub(super) fn kill_matrix() -> Outcome {
    under_policies(all_points)
}

/// Does something while power attributes are set, and puts them back.
pub(super) fn under_policies(what: impl FnOnce() -> Outcome) -> Outcome {
    let mut former = Vec::new();
    for (bdf, attribute, value) in POLICIES {
        let path = format!("/sys/bus/pci/devices/{bdf}/{attribute}");
        former.push((path.clone(), fs::read_to_string(&path).map_err(doing(&path))?));
        fs::write(&path, value).map_err(doing(&path))?;
    }
    let outcome = what();
    for (path, value) in former {
        fs::write(&path, value.trim()).map_err(doing(&path))?;
    }
    outcome
}

fn all_points() -> Outcome {
    let plan = Placed::planned(PROFILE)?;
    let before = Snapshot::take()?;
    let operations = plan.operations.len();
    let steps = |every: usize| {
        (0..operations).step_by(every).flat_map(|n| [KillPoint::BeforeStep(n), KillPoint::AfterStep(n)])
    };
    let points: Vec<KillPoint> = steps(1).collect();
    ensure(points.len() == 2 * operations && operations > 15, || format!("{} points", points.len()))?;
    for point in points {
        killed(&run(Verb::Up(Box::new(plan.clone())), point)?)?;
        restored(&before, &format!("up killed at {point:?}"))?;
    }
    let writes = [KillPoint::BeforeWrite(2), KillPoint::AfterWrite(5), KillPoint::AfterWrite(11)];
    for point in steps(4).chain(writes).chain([KillPoint::BeforeRelease]) {
        prepare(&plan)?;
        killed(&run(Verb::Cleanup, point)?)?;
        restored(&before, &format!("cleanup killed at {point:?}"))?;
    }
    for point in [KillPoint::BeforeWrite(8), KillPoint::AfterWrite(8)] {
        killed(&run(Verb::Up(Box::new(plan.clone())), point)?)?;
        restored(&before, &format!("up killed at {point:?}"))?;
    }
    Ok(())
}

/// Makes all operations, and leaves them made.
fn prepare(plan: &Plan) -> Outcome {
    let output = run(Verb::Up(Box::new(plan.clone())), KillPoint::Never)?;
    ensure(output.status.code() == Some(PREPARED), || format!("up to its last operation: {output:?}"))
}

fn run(verb: Verb, kill: KillPoint) -> Result<Output, String> {
    Task { fake: None, verb, kill, victim: Victim::Launcher }
        .run(&program()?)
        .map_err(doing("start killed-launcher"))
}

/// Finds the program beside this one.
pub(super) fn program() -> Result<PathBuf, String> {
    Ok(std::env::current_exe().map_err(doing("find this program"))?.with_file_name("killed-launcher"))
}

fn killed(output: &Output) -> Outcome {
    ensure(output.status.signal() == Some(SIGKILL), || format!("not killed: {output:?}"))
}

fn restored(before: &Snapshot, what: &str) -> Outcome {
    let cleaned = gpuvm(&["cleanup"])?;
    ensure(cleaned.status.code() == Some(0), || format!("{what}: cleanup: {cleaned:?}"))?;
    let differences = before.differences(&Snapshot::take()?);
    ensure(differences.is_empty(), || {
        format!("{what}: the host has changed:\n  {}", differences.join("\n  "))
    })
}
