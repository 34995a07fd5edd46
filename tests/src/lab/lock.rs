//! Locks: one that was made on the default host, there and on hosts whose topology is another.
//!
//! The lock is kept with the repository (`tests/lab/locks`), since no lab host outlives its run.

use std::fs;
use std::path::Path;

use super::scenarios::{CYCLE, EDU, GPU, leaving_no_trace};
use super::vm::{Vm, gpuvm, guest_kernel};
use super::{Outcome, doing, ensure};

/// The lab's profile with the lock of the default host beside it.
const LOCKED: &str = "tests/lab/locks/lab-compute.toml";

/// Runs gpuvm and checks its exit code and what it says.
fn says(args: &[&str], code: i32, words: &[&str]) -> Outcome {
    let output = gpuvm(args)?;
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure(output.status.code() == Some(code), || {
        format!("{args:?}: {}, not {code}:\n{told}", output.status)
    })?;
    let missing: Vec<_> = words.iter().filter(|words| !told.contains(**words)).collect();
    ensure(missing.is_empty(), || format!("{args:?}: {missing:?} isn't said in:\n{told}"))
}

/// Checks that `lock --check` and `up` refuse with the same differences, and that nothing was touched.
fn refused(differences: &[&str]) -> Outcome {
    leaving_no_trace(|| {
        says(&["lock", "--check", LOCKED], 69, differences)?;
        says(&["up", LOCKED], 69, &[differences, &["gpuvm lock --check", "--accept-changes"]].concat())?;
        Ok(())
    })
}

/// A copy that may be written to.
fn copied(name: &str) -> Result<String, String> {
    let folder = Path::new("/tmp").join(name);
    fs::create_dir_all(&folder).map_err(doing("make a folder"))?;
    for file in ["lab-compute.toml", "lab-compute.lock"] {
        let from = Path::new(LOCKED).with_file_name(file);
        fs::copy(&from, folder.join(file)).map_err(doing("copy"))?;
    }
    Ok(folder.join("lab-compute.toml").display().to_string())
}

/// On the host that it was made on the lock holds: kernel and firmware may be others by now, and that is no more than a warning. A
/// device that is described is chosen, runs, and is held fast by a lock.
pub(super) fn same() -> Outcome {
    leaving_no_trace(|| {
        says(&["lock", "--check", LOCKED], 0, &["lab-compute.lock"])?;
        let profile = copied("lock-same")?;
        let described = r#"device=[{select={id="1234:1111", node=1}}, {select={id="1234:11e8"}}]"#;
        let set = ["--set", described];
        says(&[&["lock", profile.as_str()], set.as_slice()].concat(), 0, &[GPU, EDU])?;
        let lock = fs::read_to_string(Path::new(&profile).with_extension("lock")).map_err(doing("read"))?;
        ensure(lock.contains(r#"chosen-by = 'id = "1234:11e8"'"#), || lock.clone())?;
        says(
            &[&["lock", "--check", profile.as_str()], set.as_slice()].concat(),
            0,
            &["nothing that it holds has changed"],
        )?;
        // The function of another card is no part of what was locked.
        says(
            &["up", &profile, "--set", r#"device=[{bdf="83:00.0"}]"#],
            69,
            &["0000:83:00.0", "is not in the lock"],
        )?;
        let words = guest_kernel("gpuvm.factorial=9");
        let mut vm = Vm::up(&[&[profile.as_str(), "--set", &words], set.as_slice()].concat())?;
        let report = vm.reported(CYCLE)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0) && !ended.told.contains("warning: lock"), || format!("{ended:?}"))?;
        let edu = report.edu.as_ref().ok_or("the guest found no accelerator")?;
        ensure(edu.factorial == 362_880, || format!("{edu:?}"))
    })
}

/// The accelerator sits in another port, and the buses behind have other numbers.
pub(super) fn moved() -> Outcome {
    refused(&[
        "0000:82:00.0 is another card: it was 1234:11e8",
        "there is a card with the same ids at 0000:83:00.0 (behind 0000:80:03.0)",
        "0000:83:00.0 is another card: it was 1b36:0010",
        "0000:83:00.0 (1b36:0010 NVMe controller) has moved: it is at 0000:82:00.0 now (the same ids, behind the same bridges)",
    ])
}

/// The first GPU's group has a third function. Accepted, the guest gets it, and the lock holds it.
pub(super) fn grown() -> Outcome {
    refused(&[
        "0000:81:00.0: its group grew: 0000:81:00.2 (1234:11e8 device) is new in it",
        "0000:81:00.0: its slot has more functions: 0000:81:00.2",
        "0000:81:00.0: a bus reset of it reaches more: 0000:81:00.2",
    ])?;
    leaving_no_trace(|| {
        let profile = copied("lock-grown")?;
        let accepted =
            ["warning: lock: accepted: 0000:81:00.0: its group grew", "lab-compute.lock is written anew"];
        says(&["up", &profile, "--accept-changes"], 0, &accepted)?;
        says(&["lock", "--check", &profile], 0, &["nothing that it holds has changed"])
    })
}
