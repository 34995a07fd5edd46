//! Whether the kernel can reset a device between guests.

use crate::doctor::device::{each, list, of, path, reset_mates, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::Bdf;
use crate::reset::{Standing, methods};

pub(super) const CHECK: Definition = Definition {
    name: "reset-methods",
    layer: Layer::Topology,
    why: "a device that can't be reset keeps what its last guest did to it, and many don't start a second time",
    judge,
};

/// Methods that reach this function alone, and leave nothing of its state.
const WHOLE: [&str; 4] = ["device_specific", "acpi", "flr", "af_flr"];

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| {
        let said = match has_file(device) {
            true => device.reset_methods.join(" "),
            false => "there is no such file".to_owned(),
        };
        judge_one(case, bdf, device).read(format!("{}: {said}", path(bdf, "reset_method")))
    })
}

/// Tells whether there is a file to read and to write: the kernel makes none where it finds no method as it starts.
fn has_file(device: &DeviceFacts) -> bool {
    device.reset_method_file == Presence::Present || !device.reset_methods.is_empty()
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if let Some(why) = unread(case, bdf, "reset_method") {
        return of(bdf, Verdict::Unknown, why);
    }
    let kernel = &case.facts.kernel;
    if device.reset_methods.is_empty() && kernel.at_least(0, 0) && !kernel.at_least(5, 15) {
        return of(bdf, Verdict::Unknown, "this kernel doesn't list how it resets devices (Linux 5.15 does)");
    }
    let listed = |method: &str| device.reset_methods.iter().any(|listed| listed == method);
    let usable = |method: &str| {
        methods(bdf, case.facts)
            .iter()
            .any(|listed| listed.name == method && listed.standing == Standing::Usable)
    };
    let own: Vec<&str> = WHOLE.into_iter().filter(|method| listed(method)).collect();
    if !own.is_empty() {
        return of(bdf, Verdict::Ok, format!("it can be reset by itself ({})", own.join(", ")));
    }
    let unused = match &device.config {
        Some(config) if config.capabilities.flr || config.capabilities.af_flr => {
            "; it says that it has a function level reset, which the kernel doesn't use: known not to work, or taken out of reset_method"
        }
        _ => "",
    };
    let mates = reset_mates(case, bdf, device);
    let foreign: Vec<Bdf> = mates.iter().flatten().copied().filter(|mate| !case.takes(*mate)).collect();
    match mates {
        Some(mates) if mates.is_empty() && (listed("bus") || listed("cxl_bus")) => {
            of(bdf, Verdict::Ok, format!("it can be reset by its bus, which is its own{unused}"))
        }
        // The kernel lists methods before a function has joined its bus, so function 0 is taken to be alone there; a reset then finds
        // the others and refuses (drivers/pci/probe.c, pci_device_add; drivers/pci/pci.c, pci_parent_bus_reset).
        Some(mates) if !mates.is_empty() && foreign.is_empty() => {
            let stale = if listed("bus") { "`bus` is listed and would be refused, since" } else { "it can't be reset by itself, and" };
            let shared = list(&mates);
            of(bdf, Verdict::Ok, format!("{stale} its bus is shared with {shared}; VFIO resets them together, all of which are to be passed{unused}"))
        }
        Some(_) if usable("pm") => only_by_power(bdf, unused),
        Some(_) if !foreign.is_empty() => {
            let stale = if listed("bus") { " (`bus` is listed, and would be refused)" } else { "" };
            of(bdf, Verdict::Warning, format!("it can only be reset together with {}, which isn't to be passed{stale}{unused}", list(&foreign)))
                .remedy(Remedy::new("pass the others of its bus too, or hold them with it"))
        }
        None if usable("pm") => only_by_power(bdf, unused),
        // A bus that is the device's own can still be reset through VFIO, unless the kernel knows that it doesn't survive it.
        _ if !has_file(device) => of(bdf, Verdict::Warning, format!("the kernel knows no way to reset it{unused}"))
            .remedy(Remedy::new("expect that it works once after each start of the host")),
        _ => of(bdf, Verdict::Warning, format!("the kernel knows no way to reset it{unused}")).remedy(
            Remedy::new("see whether the kernel finds one when asked again; otherwise expect that it works once after each start of the host")
                .commands([format!("echo default > {}", path(bdf, "reset_method")), format!("cat {}", path(bdf, "reset_method"))]),
        ),
    }
}

fn only_by_power(bdf: Bdf, unused: &str) -> Judgement {
    of(bdf, Verdict::Warning, format!("it can only be reset by its power state (pm, D3hot to D0), which leaves much of a GPU as it was{unused}"))
        .remedy(Remedy::new("see that it starts a second time before relying on it"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, judge_for};

    fn words(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[rstest]
    #[case::flr("flr bus", &[GPU, AUDIO], Verdict::Ok, "by itself (flr)")]
    #[case::stale_and_all_ours("bus", &[GPU, AUDIO], Verdict::Ok, "`bus` is listed and would be refused")]
    #[case::stale_and_not_ours("bus", &[GPU], Verdict::Warning, "0000:81:00.1, which isn't to be passed")]
    #[case::none_and_all_ours("", &[GPU, AUDIO], Verdict::Ok, "VFIO resets them together")]
    #[case::pm_and_not_ours("pm bus", &[GPU], Verdict::Warning, "(pm, D3hot to D0)")]
    fn a_card_of_two_functions_is_reset_by_itself_or_as_a_whole(
        #[case] methods: &str,
        #[case] targets: &[&str],
        #[case] verdict: Verdict,
        #[case] says: &str,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.reset_methods = words(methods));
        let judgement = judge_for(&CHECK, &facts, targets).remove(0);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.found);
        assert!(judgement.found.contains(says), "{}", judgement.found);
    }

    #[rstest]
    #[case::its_own_bus("bus", Verdict::Ok)]
    #[case::power_alone("pm", Verdict::Warning)]
    #[case::nothing("", Verdict::Warning)]
    fn a_card_of_one_function_has_its_bus_for_itself(#[case] methods: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        let card = "0000:82:00.0";
        change(&mut facts, card, |gpu| gpu.reset_methods = words(methods));
        assert_eq!(judge_for(&CHECK, &facts, &[card])[0].verdict, verdict);
    }

    #[rstest]
    #[case::before_there_was_a_list("5.10.0-30-amd64", "", Verdict::Unknown)]
    #[case::a_list_that_was_brought_back("5.14.0-503.el9.x86_64", "flr", Verdict::Ok)]
    #[case::an_empty_list("5.15.0", "", Verdict::Warning)]
    fn a_kernel_without_a_list_is_not_one_without_resets(
        #[case] release: &str,
        #[case] methods: &str,
        #[case] verdict: Verdict,
    ) {
        let (mut facts, card) = (host(), "0000:82:00.0");
        facts.kernel.release = release.to_owned();
        change(&mut facts, card, |gpu| gpu.reset_methods = words(methods));
        assert_eq!(judge_for(&CHECK, &facts, &[card])[0].verdict, verdict);
    }

    #[rstest]
    #[case::emptied(Presence::Present, "reset_method: ", 2)]
    #[case::never_made(Presence::Absent, "there is no such file", 0)]
    fn a_file_that_is_not_there_is_neither_shown_as_empty_nor_to_be_written(
        #[case] file: Presence,
        #[case] read: &str,
        #[case] commands: usize,
    ) {
        let (mut facts, card) = (host(), "0000:82:00.0");
        change(&mut facts, card, |gpu| gpu.reset_method_file = file);
        let judgement = judge_for(&CHECK, &facts, &[card]).remove(0);
        assert_eq!(judgement.verdict, Verdict::Warning);
        assert!(judgement.read[0].ends_with(read), "{:?}", judgement.read);
        assert_eq!(judgement.remedy.unwrap().commands.len(), commands);
    }

    #[test]
    fn a_power_state_that_keeps_everything_is_no_reset() {
        let (mut facts, card) = (host(), "0000:82:00.0");
        change(&mut facts, card, |gpu| {
            gpu.reset_methods = words("pm");
            gpu.config.as_mut().unwrap().capabilities.no_soft_reset = Some(true);
        });
        let judgement = judge_for(&CHECK, &facts, &[card]).remove(0);
        assert_eq!(judgement.verdict, Verdict::Warning);
        assert!(judgement.found.contains("knows no way"), "{}", judgement.found);
    }

    #[test]
    fn a_device_of_the_root_complex_without_a_method_is_told() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.upstream.clear());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Warning);
    }

    #[test]
    fn a_function_level_reset_that_the_kernel_does_not_use_is_told() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.config.as_mut().unwrap().capabilities.flr = true);
        let judgement = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert!(judgement.found.contains("which the kernel doesn't use"), "{}", judgement.found);
    }

    #[test]
    fn what_was_not_read_is_unknown() {
        let mut facts = host();
        facts.unread.push(format!("read /sys/bus/pci/devices/{GPU}/reset_method: Permission denied"));
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
