//! Whether a card is the screen that the host boots with.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "boot-display",
    layer: Layer::Ownership,
    why: "a guest that gets the host's screen leaves the host's console dark, and a card that the firmware has used may need its ROM from a file",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| judge_one(case, bdf, device).read(path(bdf, "boot_vga")))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if let Some(why) = unread(case, bdf, "boot_vga") {
        return of(bdf, Verdict::Unknown, why);
    }
    let allowed = case.profile.is_some_and(|profile| {
        profile.devices.iter().any(|request| request.allow_boot_display && request.bdf.slot() == bdf.slot())
    });
    match (device.boot_display, allowed) {
        (Presence::Present, false) => of(bdf, Verdict::Failed, "it is the boot display of this host").remedy(Remedy::new(
            "choose another card as boot display in the firmware's setup; or set `allow-boot-display = true` for it in the profile, if the \
             host can do without a console",
        )),
        (Presence::Present, true) => {
            of(bdf, Verdict::Warning, "it is the boot display of this host, and the profile allows that: the console is dark meanwhile")
        }
        (Presence::Absent, _) if device.class.is_display() => of(bdf, Verdict::Ok, "it isn't the boot display"),
        (Presence::Absent, _) => of(bdf, Verdict::NotApplicable, "it is no display"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, judge_for};
    use crate::profile::{Sources, parse};

    #[test]
    fn the_boot_display_fails_and_another_card_does_not() {
        let mut facts = host();
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Ok);
        assert_eq!(judge_for(&CHECK, &facts, &[AUDIO])[0].verdict, Verdict::NotApplicable);
        change(&mut facts, GPU, |gpu| gpu.boot_display = Presence::Present);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Failed);
    }

    #[test]
    fn a_profile_that_allows_it_makes_it_a_warning() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.boot_display = Presence::Present);
        let text = format!(
            "version = 1\nname = \"x\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n\
             [[device]]\nbdf = \"{GPU}\"\nallow-boot-display = true\n"
        );
        let profile = parse(&Sources::new("x.toml", text), std::path::Path::new("/")).unwrap();
        let targets = [GPU.parse().unwrap()];
        let case = Case { facts: &facts, profile: Some(&profile), targets: &targets, outline: None };
        assert_eq!((CHECK.judge)(&case)[0].verdict, Verdict::Warning);
    }

    #[test]
    fn what_could_not_be_read_is_unknown() {
        let mut facts = host();
        facts.unread.push(format!("read /sys/bus/pci/devices/{GPU}/boot_vga: Input/output error"));
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
