//! What to do next, with the command: added here, at the edge, and nowhere else.

mod asked;
mod refused;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

use gpuvm_core::profile::VmName;

use gpuvm_core::facts::file::FactsFileError;
use gpuvm_core::lifecycle::Exit;
use gpuvm_core::pci::Bdf;
use gpuvm_core::qemu::cmdline::quote;
use gpuvm_core::reset::Method;
use gpuvm_core::reset::quirks::FileProblem;
use gpuvm_core::reset::repair::BY_HAND;
use gpuvm_core::trouble::{self, Context, Explanation};
use gpuvm_host::HostError;
use gpuvm_host::errno::{EAGAIN, EBUSY, EINVAL, ENODEV, ENOTTY};
use gpuvm_host::reservation::{Owner, ProcessRole};
use gpuvm_host::reset::{Attempted, FunctionReport, Report};
use gpuvm_run::{LastWords, LaunchError};

pub(crate) use self::asked::{
    console_lines, has_a_supervisor, look_again, no_such_vm, nobody_listens, not_adopted, not_yours,
    other_version, refused_by_supervisor, silent, stale, unsupervised,
};
pub(crate) use self::refused::{of_bind, of_reset, refusal};
use crate::cli::ProfileArgs;

const SIGKILL: i32 = 9;
/// The most meanings of messages that one error is told with.
const EXPLANATIONS: usize = 3;

/// What to do about what a detached gpuvm that ended may have left.
pub(crate) fn without_a_word(vm: &VmName) -> String {
    format!("what is left of it, if anything: gpuvm cleanup {vm}")
}

/// What to do about a detached VM that takes long.
pub(crate) fn not_ready(vm: &VmName, log: &Path) -> String {
    format!("how far it is: tail {}; gpuvm status {vm}. To end it: gpuvm down {vm}", log.display())
}

/// What to do about a soak that could not tell when its guests are ready.
pub(crate) fn never_ready() -> String {
    "--expect 'login:' waits for a line of the console, --job for a line `gpuvm-job: {\"exit\":0}`, --after 30s for nothing but time"
        .to_owned()
}

/// What to do about a folder that has a record already.
pub(crate) fn record_there(profile: &ProfileArgs, folder: &Path) -> String {
    let (profile, folder) = (quote(profile.profile.as_os_str()), quote(folder.as_os_str()));
    format!("go on with it: gpuvm soak {profile} --resume --out {folder}; or name another folder")
}

/// What to do about a file that is no record.
pub(crate) fn no_record() -> String {
    "name the folder of a soak, or the record.jsonl in it; gpuvm keeps them in /var/log/gpuvm/VM/soak"
        .to_owned()
}

/// What to do about a record that can't be gone on with.
pub(crate) fn damaged_record(record: &Path) -> String {
    let record = quote(record.as_os_str());
    format!("look at it: {record}; put that line right, or move it away and begin a new soak")
}

/// What to do where there is no soak to go on with.
pub(crate) fn no_soak() -> String {
    "name its folder by --out, or begin one: the same command without --resume".to_owned()
}

/// What to do about a soak that was begun otherwise.
pub(crate) fn other_soak() -> String {
    "leave those options out to go on as it was begun, or begin a new one: the same command without --resume"
        .to_owned()
}

/// What to do about a device that a reset has not made well.
pub(crate) fn after_reset(function: &FunctionReport, report: &Report) -> String {
    let bdf = function.bdf;
    let tried = |attempt: &Attempted| attempt.method == Method::Hot;
    let ours = report.attempts.iter().filter(|attempt| attempt.bdf == bdf);
    if ours.clone().any(|attempt| matches!(attempt.error, Some(HostError::InFlight { .. }))) {
        return format!(
            "once the process that resets it is gone: gpuvm cleanup, then gpuvm reset {bdf}, which judges it again"
        );
    }
    if function.before_repair.is_some() {
        return format!("{}\nthen: gpuvm reset {bdf}; gpuvm quarantine clear {bdf}", by_hand(bdf));
    }
    let way_out = format!(
        "it stays on vfio-pci until gpuvm unbind {bdf}, and nobody gets it before a reset brings it back well and gpuvm quarantine clear \
         {bdf}\n\
         step by step up to removing it and having the kernel find it anew: gpuvm reset --repair rescan {bdf}\n\
         {POWER_CYCLE}"
    );
    match ours.clone().next().is_some() && !ours.clone().any(tried) {
        true => format!("try its bus, with everything on it: gpuvm reset --method hot {bdf}\n{way_out}"),
        false => way_out,
    }
}

const POWER_CYCLE: &str =
    "a card that has fallen off the bus mostly comes back with a power cycle of the host";

/// What a refused reset by its errno calls for.
fn of_failed_reset(bdf: Bdf, errno: i32) -> Option<String> {
    Some(match errno {
        ENOTTY => {
            format!("see what the kernel said: dmesg | grep {bdf}; other ways: gpuvm reset --dry-run {bdf}")
        }
        EINVAL => format!("see who has what is beside it: gpuvm reset --dry-run {bdf}"),
        EBUSY | EAGAIN => format!("see who is at it: gpuvm devices {bdf}; or try later"),
        ENODEV => "its bus can't be reset; a power cycle of the host does it".to_owned(),
        _ => return None,
    })
}

/// The way out of quarantine.
pub(crate) fn quarantined(bdf: Bdf, reset_since: bool) -> String {
    match reset_since {
        true => format!("it was reset since and came back well: gpuvm quarantine clear {bdf}"),
        false => format!(
            "reset it, and clear it if it comes back well: gpuvm reset {bdf}, then gpuvm quarantine clear {bdf}\n\
             where a reset isn't enough, step by step up to having the kernel find it anew: gpuvm reset --repair rescan {bdf}"
        ),
    }
}

/// What to do about a device that can't be cleared yet.
pub(crate) fn not_cleared(bdf: Bdf) -> String {
    format!(
        "reset it: gpuvm reset {bdf}, or with --repair rescan where that isn't enough; or take it as it is, if you know that it is \
         well: gpuvm quarantine clear {bdf} --accept"
    )
}

/// Where the ledger of a recorded host is.
pub(crate) fn ledger_elsewhere(reported: bool) -> String {
    match reported {
        true => "what was written down is in the report itself, below gpuvm/ledger".to_owned(),
        false => "name the folder that holds it: --prefix DIR".to_owned(),
    }
}

/// What to do about a file of the ledger that can't be read.
pub(crate) fn damaged_ledger() -> String {
    "look at the file, and put it right or move it away: without it nothing is held against its device, so reset that first".to_owned()
}

/// What to do about a mistake in a file of the host's own quirks.
pub(crate) fn quirk_file(problem: &FileProblem) -> Option<String> {
    let aside = || format!("put it right, or move {} away: nothing is planned on half a table", problem.file);
    Some(problem.hint.clone().unwrap_or_else(aside))
}

/// What to do about a failure of the host: what the kernel's own words mean, where it said any, and what gpuvm knows beside them.
pub(crate) fn host(error: &HostError) -> Option<String> {
    let known = messages(&error.said().join("\n"), &context(error));
    match error {
        // The kernel's word is better than a guess by the errno.
        HostError::Refused { .. } | HostError::NoEffect { .. } | HostError::Vfio { .. } => {
            known.or_else(|| of_error(error))
        }
        error => {
            let all: Vec<String> = of_error(error).into_iter().chain(known).collect();
            (!all.is_empty()).then(|| all.join("\n"))
        }
    }
}

/// What is known beside the words of an error.
fn context(error: &HostError) -> Context {
    let bdf = match error {
        HostError::Refused { value, .. } | HostError::InFlight { value, .. } => value.parse().ok(),
        HostError::NoEffect { bdf, .. } => Some(*bdf),
        _ => None,
    };
    let group = match error {
        HostError::Vfio { group, .. } | HostError::NoInterruptRemapping { group, .. } => Some(*group),
        _ => None,
    };
    Context { bdf, group, ..Context::default() }
}

/// What to do about an error by its kind.
fn of_error(error: &HostError) -> Option<String> {
    Some(match error {
        HostError::InFlight { pid, .. } => format!(
            "something holds the device; it is let go as soon as that ends. Look: cat /proc/{pid}/stack; dmesg | tail. \
             Don't kill process {pid}: it would only hang harder. Then: gpuvm cleanup"
        ),
        HostError::Spared { pid, .. } => format!(
            "something holds the device; see what: ls -l /proc/*/fd 2>/dev/null | grep /dev/. Don't kill process {pid}. Once it is gone: gpuvm cleanup"
        ),
        HostError::Hugepages { node, page, .. } => format!(
            "free memory is too scattered or too little on node {node}. Look: cat \
             /sys/devices/system/node/node{node}/meminfo. Then: echo 1 > /proc/sys/vm/compact_memory, a smaller \
             memory.size, or {page} pages reserved at boot"
        ),
        HostError::KeptOff { bdf, .. } => format!(
            "if that is no longer wanted: echo > /sys/bus/pci/devices/{bdf}/driver_override; then: gpuvm cleanup"
        ),
        HostError::Content { path, .. } if path.ends_with("journal") => format!(
            "what was changed can't be read from it. See which devices are on vfio-pci (lspci -Dk), which have an override, and \
             nr_hugepages; put them right by hand; then: rm -r {}",
            path.parent().unwrap_or(path).display()
        ),
        HostError::Content { path, .. } if path.ends_with("set.json") => {
            let folder = path.parent().unwrap_or(path);
            let bdf = folder.file_name().unwrap_or_default().to_string_lossy();
            let bdf = bdf.split('-').next().unwrap_or_default();
            format!(
                "what was bound, and from which driver, can't be read from it. See what the function has: lspci -Dks {bdf}. Put it \
                 right by hand (echo > /sys/bus/pci/devices/{bdf}/driver_override; echo {bdf} > \
                 /sys/bus/pci/drivers/vfio-pci/unbind; echo {bdf} > /sys/bus/pci/drivers_probe); then: rm -r {}",
                folder.display()
            )
        }
        HostError::NotViable { .. } => {
            "each member that isn't a bridge must be on vfio-pci or without a driver".to_owned()
        }
        HostError::GroupBusy { .. } => "end that process, or try later".to_owned(),
        HostError::NoInterruptRemapping { .. } => {
            told(&trouble::known("no-interrupt-remapping", &context(error))?)
        }
        HostError::AlreadyUp { vm, role: ProcessRole::Qemu | ProcessRole::InFlight, .. } => {
            format!("its gpuvm is gone; see what goes on, and what to do: gpuvm status {vm}")
        }
        HostError::Unsupervised { vm, .. } => unsupervised(vm),
        HostError::LeftBehind { vm } => format!("gpuvm cleanup {vm}"),
        HostError::QemuStuck { pid, .. } => {
            format!(
                "see what it waits for: cat /proc/{pid}/task/*/stack; dmesg | tail. Once it is gone: gpuvm cleanup"
            )
        }
        HostError::AlreadyUp { .. } => {
            "each name runs once; --set name=OTHER runs another beside it".to_owned()
        }
        HostError::Soaked { pid, .. } => format!(
            "wait until the soak is over, or end it: kill -INT {pid}; --set name=OTHER runs another VM beside it, on other devices"
        ),
        HostError::Aperture { .. } => {
            "write a smaller [memory] size, which fits below the gap or the end".to_owned()
        }
        HostError::PoolNotRestored { page, .. } => format!(
            "somebody uses pages of it still; see who: grep -l 'KernelPageSize: *{} kB' /proc/*/smaps. Once they are free: gpuvm cleanup",
            page.as_kib()
        ),
        HostError::Stale { .. } | HostError::ReachesMore { .. } => {
            "try again: it is planned anew then".to_owned()
        }
        HostError::NotFoundAnew { .. } => format!(
            "gpuvm cleanup looks for it once more. What is left then, the mildest first: {}",
            BY_HAND.join("; ")
        ),
        HostError::Reserved { owner, state, .. } if state.starts_with("ended") => match owner {
            Owner::Vm(vm) => format!("gpuvm cleanup {vm}"),
            Owner::Bind(_) | Owner::Reset(_) => "gpuvm cleanup".to_owned(),
        },
        HostError::Reserved { owner: Owner::Vm(vm), .. } => {
            format!("VM {vm} gives it back when it ends; try again then")
        }
        HostError::Reserved { owner: Owner::Bind(_) | Owner::Reset(_), .. } => {
            "try again once that process has ended; what it leaves behind is given back by: gpuvm cleanup"
                .to_owned()
        }
        HostError::DriverGone { bdf, driver } => {
            format!("load it and give the device back: modprobe {driver} && gpuvm cleanup # {bdf}")
        }
        HostError::NotAnswering { bdf, .. } | HostError::Sick { bdf, .. } => sick(*bdf),
        HostError::Refused { doing, value, source, .. }
            if doing.starts_with("bind") && source.raw_os_error() == Some(ENODEV) =>
        {
            format!(
                "the driver didn't take it: dmesg | grep {value}. A card that was reset while it didn't answer has lost its BARs; \
                 the kernel gives it new ones: echo 1 > /sys/bus/pci/devices/{value}/remove; echo 1 > \
                 /sys/bus/pci/rescan; gpuvm cleanup"
            )
        }
        HostError::File { source, .. }
        | HostError::Refused { source, .. }
        | HostError::Vfio { source, .. }
        | HostError::Reset { source, .. }
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            "run gpuvm as root".to_owned()
        }
        HostError::Reset { bdf, source, .. } => return of_failed_reset(*bdf, source.raw_os_error()?),
        HostError::File { path, source, .. } if source.kind() == ErrorKind::StorageFull => disk_full(path),
        _ => return None,
    })
}

/// What to do on a host without a GPU that can be passed.
pub(crate) fn no_gpu() -> String {
    "name any other device: gpuvm init BDF; list them: lspci -D".to_owned()
}

/// What to do about a file that holds no facts which can be read.
pub(crate) fn facts(error: &FactsFileError) -> String {
    match error {
        FactsFileError::Newer { gpuvm, .. } => format!("use gpuvm {gpuvm} or newer"),
        _ => "make one on that host: gpuvm report".to_owned(),
    }
}

/// What to do about a report that isn't whole, or is none.
pub(crate) fn damaged_facts() -> String {
    "copy it anew from where it was made, or make another one on that host: gpuvm report".to_owned()
}

/// What to do about facts that were taken for other files.
pub(crate) fn foreign_files() -> String {
    "make the report with this profile on that host: gpuvm report PROFILE. In a redacted report, the files have the names that \
     the profile.toml beside the facts gives them"
        .to_owned()
}

/// What to do about a QEMU that didn't get to run the guest.
pub(crate) fn launch(error: &LaunchError) -> Option<String> {
    Some(match error {
        LaunchError::Spawn { qemu, source } if source.source.kind() == ErrorKind::PermissionDenied => {
            format!("see who may run it: ls -l {}", qemu.display())
        }
        LaunchError::Spawn { .. } => "install it: apt-get install qemu-system-x86".to_owned(),
        LaunchError::File { path, source, .. } if source.kind() == ErrorKind::StorageFull => disk_full(path),
        LaunchError::TooOld { .. } => "install a newer one, from your distribution's backports".to_owned(),
        LaunchError::NotPinned { .. } => {
            "a cpuset holds gpuvm back; look: cat /proc/self/status | grep Cpus_allowed_list".to_owned()
        }
        LaunchError::Died { exit: Exit::Signal(SIGKILL), stderr, said } => words(stderr, &said.0)
            .unwrap_or_else(|| {
                "somebody killed it; if that was the kernel for want of memory: dmesg | grep -i oom"
                    .to_owned()
            }),
        LaunchError::Died { stderr, said, .. } | LaunchError::Silent { stderr, said, .. } => {
            return words(stderr, &said.0);
        }
        _ => return None,
    })
}

/// What to do about a host that has changed since it was locked.
pub(crate) fn changed(args: &ProfileArgs) -> String {
    format!("see all that has changed: gpuvm lock --check {}; {}", spelled(args), relock(args))
}

/// What to do about changes that were all told.
pub(crate) fn relock(args: &ProfileArgs) -> String {
    let args = spelled(args);
    format!("if it is as you want it: gpuvm lock {args}, or gpuvm up --accept-changes {args}")
}

/// Spells a profile with what is set in it, as words of a shell: a lock of another guest is another lock.
fn spelled(args: &ProfileArgs) -> String {
    let sets = args.set.iter().map(|set| format!("--set {} ", quote(OsStr::new(set))));
    format!("{}{}", sets.collect::<String>(), quote(args.profile.as_os_str()))
}

/// What to do about a lock that isn't there.
pub(crate) fn no_lock(args: &ProfileArgs) -> String {
    format!("make one: gpuvm lock {}", spelled(args))
}

/// What to do about a lock that can't be used.
pub(crate) fn bad_lock(args: &ProfileArgs) -> String {
    format!(
        "put back the one that you have kept, or lock the host as it is now: gpuvm lock {}",
        spelled(args)
    )
}

/// What to do about what QEMU and the kernel said when a guest ended badly.
pub(crate) fn last_words(words: &LastWords) -> Option<String> {
    self::words(&words.qemu, &words.kernel.0)
}

fn words(qemu: &str, kernel: &[String]) -> Option<String> {
    messages(&format!("{qemu}\n{}", kernel.join("\n")), &Context::default())
}

/// What messages of the kernel and of QEMU mean, as far as something can be done about them.
fn messages(text: &str, context: &Context) -> Option<String> {
    let mut told_of = BTreeSet::new();
    let mut all = trouble::explain_all(text, context);
    all.retain(|found| found.none.is_none() && told_of.insert(found.id));
    all.truncate(EXPLANATIONS);
    let all: Vec<String> = all.iter().map(told).collect();
    (!all.is_empty()).then(|| all.join("\n"))
}

/// Spells what a message means: why, then the commands, a line each.
fn told(found: &Explanation) -> String {
    let commands = found.commands.iter().map(|command| format!("\n  {command}"));
    format!("{}{}", found.cause, commands.collect::<String>())
}

/// What to do about a file that the user has named and that can't be written.
pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Option<String> {
    Some(match error.kind() {
        ErrorKind::StorageFull => disk_full(path),
        ErrorKind::NotFound => match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => format!("make its folder: mkdir -p {}", folder.display()),
            None => return None,
        },
        ErrorKind::AlreadyExists | ErrorKind::IsADirectory => "name another file".to_owned(),
        _ => return None,
    })
}

fn disk_full(path: &Path) -> String {
    format!("make room there: df -h {}", path.parent().unwrap_or(path).display())
}

/// What to do about a device that doesn't answer.
pub(crate) fn sick(bdf: Bdf) -> String {
    format!(
        "nobody gets it before it is known to be well: gpuvm reset {bdf}; gpuvm quarantine clear {bdf}; gpuvm cleanup\n\
         where a reset isn't enough, step by step up to removing it and having the kernel find it anew: gpuvm reset --repair rescan {bdf}; \
         gpuvm cleanup\n\
         what the kernel said: dmesg | grep {bdf}; {POWER_CYCLE}"
    )
}

/// What is left to do about a device that the ladder hasn't brought back.
pub(crate) fn not_repaired(bdf: Bdf) -> String {
    format!("{}\nthen: gpuvm reset {bdf}; gpuvm quarantine clear {bdf}; gpuvm cleanup", by_hand(bdf))
}

/// Lists what only a person can do.
fn by_hand(bdf: Bdf) -> String {
    let steps = BY_HAND.map(|step| format!("- {step}")).join("\n");
    format!(
        "what the kernel said: dmesg | grep {bdf}\nwhat is left only a person can do, the mildest first:\n{steps}"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[test]
    fn hints_of_a_lock_keep_what_is_set_and_a_check_isnt_sent_back_to_itself() {
        let set = vec!["memory.size=2G".to_owned(), "disk=[]".to_owned()];
        let args = ProfileArgs { profile: "my vm.toml".into(), set };
        let words = "--set memory.size=2G --set 'disk=[]' 'my vm.toml'";
        for hint in [changed(&args), relock(&args), no_lock(&args), bad_lock(&args)] {
            assert!(hint.contains(&format!("gpuvm lock {words}")), "{hint}");
        }
        assert!(changed(&args).contains(&format!("lock --check {words}")));
        assert!(!relock(&args).contains("--check"));
    }
}
