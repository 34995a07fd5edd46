//! What to do where a VM isn't there, or nobody answers for it.

use gpuvm_core::control::Why;
use gpuvm_core::profile::VmName;

/// What to do about a VM that isn't there: those that are.
pub(crate) fn no_such_vm(vm: &VmName, others: &[VmName], ran: bool) -> String {
    let names: Vec<&str> = others.iter().map(VmName::as_str).collect();
    let there = match names.as_slice() {
        [] => "no VM is up; bring one up: gpuvm up PROFILE.toml".to_owned(),
        names => format!("there are: {}; more about them: gpuvm list", names.join(", ")),
    };
    match ran {
        true => format!("what it said when it was: gpuvm logs {vm}\n{there}"),
        false => there,
    }
}

/// What to do about a guest that nobody sees to.
pub(crate) fn unsupervised(vm: &str) -> String {
    format!(
        "its guest goes on, and nobody gives the host back when it ends. Put a new gpuvm beside it: gpuvm recover {vm}\n\
         or end it, as pulling its plug, and give the host back: gpuvm down --force {vm}"
    )
}

/// What to do about a VM that is not to be recovered, as it has its gpuvm; `pid` is that one's number.
pub(crate) fn has_a_supervisor(vm: &VmName, pid: i32) -> String {
    format!(
        "ask it how it is: gpuvm status {vm}; one that hangs for good can be killed, and its guest be recovered then if it was started by \
         up --detach: kill -9 {pid}"
    )
}

/// What to do about a guest that couldn't be taken over.
pub(crate) fn not_adopted(vm: &str) -> String {
    format!(
        "QEMU may wait for the kernel, or somebody else is at its monitor: gpuvm logs {vm} --which qemu; dmesg | tail; then try again: \
         gpuvm recover {vm}\nor end the guest, as pulling its plug, and give the host back: gpuvm down --force {vm}"
    )
}

/// What to do about what a VM left behind.
pub(crate) fn stale(vm: &VmName) -> String {
    format!("give the host back: gpuvm cleanup {vm}")
}

/// What to do about a supervisor that has no socket.
pub(crate) fn nobody_listens(vm: &VmName, pid: i32) -> String {
    format!(
        "it is just starting or ending, or it is no `up`, as a cleanup is none: try again, or see: ps -fp {pid}; gpuvm status {vm}"
    )
}

/// What to do about a supervisor that doesn't answer.
pub(crate) fn silent(vm: &VmName, pid: i32) -> String {
    format!(
        "it may wait for the kernel, which a device that doesn't answer makes last minutes: cat /proc/{pid}/wchan; dmesg | tail. Its \
         guest goes on meanwhile. Once process {pid} is gone, see what to do: gpuvm status {vm}"
    )
}

/// What to do about somebody else's VM.
pub(crate) fn not_yours(vm: &VmName) -> String {
    format!("a VM takes requests from root and from whoever started it: sudo gpuvm status {vm}")
}

/// What to do about a connection that has ended.
pub(crate) fn look_again(vm: &VmName) -> String {
    format!("see what has become of it: gpuvm status {vm}")
}

/// What to do about a supervisor of another gpuvm.
pub(crate) fn other_version() -> String {
    "use the gpuvm that has started it, or bring the VM down and up again".to_owned()
}

/// What to do about a refusal.
pub(crate) fn refused_by_supervisor(vm: &VmName, why: Why) -> Option<String> {
    Some(match why {
        Why::NotNow => look_again(vm),
        Why::UnknownRequest | Why::Version => other_version(),
        Why::Timeout => format!("what QEMU and the kernel say: gpuvm logs {vm} --which qemu; dmesg | tail"),
        _ => return None,
    })
}

/// What has a console's lines for programs.
pub(crate) fn console_lines(vm: &VmName) -> String {
    format!("for its lines: gpuvm logs {vm} --follow --json")
}
