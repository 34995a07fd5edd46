//! Whether it has power, by its own register and by the kernel's word.

use super::super::{Check, Finding, Verdict};
use super::Comparison;
use crate::host_ops::{D3cold, PowerControl, PowerPolicy};

/// Finds a power register that reads ones. D3hot is no finding: vfio-pci lets an idle device sleep.
pub(super) fn register(at: &Comparison<'_>) -> Vec<Finding> {
    let pmcsr = at.function.after.as_ref().and_then(|registers| registers.pmcsr());
    let found = |pmcsr: u16| {
        let meaning = "its power management doesn't answer";
        let finding =
            at.found(Check::PowerRegister, Verdict::Impaired, "PMCSR", format!("{pmcsr:#06x}"), meaning);
        let before = at.function.before.as_ref().and_then(|registers| registers.pmcsr());
        Finding { before: before.filter(|before| *before != pmcsr).map(|b| format!("{b:#06x}")), ..finding }
    };
    pmcsr.filter(|pmcsr| *pmcsr == u16::MAX).map(found).into_iter().collect()
}

/// Finds a device that the kernel has given up although it answers.
///
/// The kernel marks what it couldn't read D3cold (drivers/pci/pci.c), so that this often means "was unreadable" where it should
/// mean "has no power". A device that may go to D3cold can be there by right: reading its config space has woken it, and it sleeps
/// again before `power_state` is read. What the kernel knows and what the register says differ for a moment whenever a device
/// goes to sleep or wakes, so the two are compared only where the kernel keeps it awake. `unknown` is what the kernel makes of a
/// device whose driver has left it (`pci_device_remove` of drivers/pci/pci-driver.c), and what it says of one without power
/// management.
pub(super) fn state(at: &Comparison<'_>) -> Vec<Finding> {
    let (Some(state), Some(registers)) = (at.after.power_state.read(), &at.function.after) else {
        return Vec::new();
    };
    let policy = at.after.power.read();
    let stays_awake = policy.is_some_and(|policy| policy.control == Some(PowerControl::On));
    let (weight, meaning) = match state.as_str() {
        "D3cold" if policy.is_some_and(may_lose_power) => {
            (None, "it may sleep without power, and was woken to be read")
        }
        "D3cold" => {
            (Some(Verdict::Impaired), "it answers, and the kernel has given it up as one without power")
        }
        "error" => (Some(Verdict::Impaired), "it answers, and the kernel can't tell its power"),
        "D0" if stays_awake && registers.power_state().is_some_and(|state| state != 0) => (
            Some(Verdict::Impaired),
            "it sleeps, and the kernel, which keeps it awake, believes that it doesn't",
        ),
        _ => return Vec::new(),
    };
    let mut finding = at.found(Check::PowerState, weight, "power_state", state, meaning);
    finding.before = at.before.power_state.read().filter(|before| *before != state).cloned();
    vec![finding]
}

/// Tells whether a device may go to D3cold by its attributes, both of which it takes to.
fn may_lose_power(policy: &PowerPolicy) -> bool {
    (policy.control, policy.d3cold) == (Some(PowerControl::Auto), Some(D3cold::Allowed))
}

/// Finds that somebody lets it sleep who didn't before. The other way round is what gpuvm itself does.
pub(super) fn policy(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((before, after)) = at.before.power.read().zip(at.after.power.read()) else { return Vec::new() };
    let found = |register: &str, before: &str, after: &str| {
        at.found(Check::PowerPolicy, None, register, after, "it may sleep where it wasn't allowed to")
            .was(before)
    };
    let mut findings = Vec::new();
    if (before.control, after.control) == (Some(PowerControl::On), Some(PowerControl::Auto)) {
        findings.push(found("power/control", "on", "auto"));
    }
    if (before.d3cold, after.d3cold) == (Some(D3cold::Forbidden), Some(D3cold::Allowed)) {
        findings.push(found("d3cold_allowed", "0", "1"));
    }
    findings
}
