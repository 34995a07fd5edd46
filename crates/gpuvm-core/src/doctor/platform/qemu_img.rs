//! Whether the tool is there that makes overlays.

use crate::doctor::{Case, Definition, Judgement, Layer, Package, Remedy, Verdict};
use crate::profile::DiskMode;

pub(super) const CHECK: Definition = Definition {
    name: "qemu-img",
    layer: Layer::Platform,
    why: "qemu-img makes the throw-away overlay of a disk with mode = \"overlay\"",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let overlays =
        |profile: &crate::profile::Profile| profile.disks.iter().any(|disk| disk.mode == DiskMode::Overlay);
    if case.profile.is_some_and(|profile| !overlays(profile)) {
        return Judgement::not_applicable("the profile has no disk with an overlay");
    }
    let remedy = || {
        let remedy = Remedy::new("install it");
        remedy.commands(case.distribution().install(Package::QemuImg))
    };
    let judgement = match (&case.facts.qemu_img, case.profile) {
        (Some(path), _) => {
            let read = format!("PATH: {}", path.display());
            Judgement::of_host(Verdict::Ok, "qemu-img is there").read(read)
        }
        (None, profile) => {
            let verdict = if profile.is_some() { Verdict::Failed } else { Verdict::Warning };
            Judgement::of_host(verdict, "qemu-img was not found in PATH")
                .read("PATH: no qemu-img")
                .remedy(remedy())
        }
    };
    vec![judgement]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict};
    use crate::facts::HostFacts;

    const OVERLAY: &str = "[[disk]]\npath = \"/d.img\"\nmode = \"overlay\"";

    #[rstest]
    #[case::there(Some("/usr/bin/qemu-img"), Some(OVERLAY), Verdict::Ok)]
    #[case::lacking(None, Some(OVERLAY), Verdict::Failed)]
    #[case::not_needed(None, Some(""), Verdict::NotApplicable)]
    #[case::lacking_without_a_profile(None, None, Verdict::Warning)]
    fn it_must_be_there_for_overlays(
        #[case] tool: Option<&str>,
        #[case] lines: Option<&str>,
        #[case] expected: Verdict,
    ) {
        let facts = HostFacts { qemu_img: tool.map(Into::into), ..HostFacts::default() };
        assert_eq!(verdict(CHECK.name, &facts, lines.map(profile).as_ref()), expected);
    }
}
