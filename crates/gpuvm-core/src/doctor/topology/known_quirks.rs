//! Whether devices are known not to do as they should.

use crate::doctor::device::of;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::DeviceFacts;
use crate::pci::Bdf;
use crate::reset::quirks::{Bearing, Found, quirks_of};
use crate::reset::{RebootPolicy, ResetWish};

pub(super) const CHECK: Definition = Definition {
    name: "known-quirks",
    layer: Layer::Topology,
    why: "what others have met with the same device, the next guest may meet too, and some of it can be got round",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let mut judgements = files(case);
    let present = case.targets.iter().filter_map(|bdf| Some((*bdf, case.facts.devices.get(bdf)?)));
    for (bdf, device) in present {
        let found = quirks_of(bdf, case.facts);
        if found.is_empty() {
            judgements.push(of(bdf, Verdict::Ok, "nothing is known against it").read(ids(device)));
        }
        judgements.extend(found.iter().map(|found| of_quirk(bdf, device, found, case)));
    }
    judgements
}

/// Fails where the host's own files make no sense: what they say isn't heeded then.
fn files(case: &Case<'_>) -> Vec<Judgement> {
    let problems = &case.facts.quirks.problems;
    let Some(first) = problems.first() else { return Vec::new() };
    let found = match problems.len() {
        1 => format!("this host's own quirks can't be read: {first}"),
        count => format!("this host's own quirks can't be read, for {count} mistakes: {first}"),
    };
    let judgement = Judgement::of_host(Verdict::Failed, found);
    let judgement = problems.iter().fold(judgement, |judgement, problem| {
        let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        judgement.read(format!("{problem}{hint}"))
    });
    vec![
        judgement
            .remedy(Remedy::new("put the files right, or move them away: no VM is started on half a table")),
    ]
}

fn of_quirk(bdf: Bdf, device: &DeviceFacts, found: &Found<'_>, case: &Case<'_>) -> Judgement {
    let quirk = found.quirk;
    let (wish, reboot) = asked(bdf, case);
    let verdict = match (found.bearing, found.worry(device, wish, reboot, case.facts)) {
        (_, None) => Verdict::Ok,
        (Bearing::Has(_), Some(_)) => Verdict::Warning,
        (_, Some(_)) => Verdict::Unknown,
    };
    let judgement = of(bdf, verdict, format!("{}: {}", quirk.name, found.told()))
        .read(ids(device))
        .read(format!("{}: {}", quirk.file.as_deref().unwrap_or("source"), quirk.source));
    match verdict {
        Verdict::Ok => judgement,
        _ => judgement.remedy(Remedy::new(quirk.advice.clone())),
    }
}

/// Returns what the profile asks for, of the device or of the card that it comes along with.
fn asked(bdf: Bdf, case: &Case<'_>) -> (ResetWish, RebootPolicy) {
    let Some(profile) = case.profile else { return (ResetWish::default(), RebootPolicy::default()) };
    let by_name = profile.devices.iter().find(|device| device.bdf == bdf);
    let by_card = || profile.devices.iter().find(|device| device.bdf.slot() == bdf.slot());
    let wish = by_name.or_else(by_card).map(|device| device.reset).unwrap_or_default();
    (wish, profile.reboot)
}

fn ids(device: &DeviceFacts) -> String {
    let revision = device.revision.map(|revision| format!(", revision {revision:02x}")).unwrap_or_default();
    format!("vendor and device: {}, class {}{revision}", device.id, device.class)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, judge_for, told};
    use crate::facts::HostFacts;
    use crate::reset::quirks::LocalQuirks;

    fn with(id: &str) -> HostFacts {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.id = id.parse().unwrap());
        facts
    }

    #[test]
    fn a_device_with_nothing_against_it_passes() {
        assert_eq!(told(&CHECK, &host()), (Verdict::Ok, ["nothing is known against it"; 2].join("\n")));
    }

    #[rstest]
    #[case::said_by_the_kernel(
        "10de:2342",
        Verdict::Warning,
        "by the kernel's source",
        "function level reset"
    )]
    #[case::said_by_one_user("10de:2b85", Verdict::Warning, "one user's report", "avoid-flr = true")]
    #[case::nothing_to_be_done("8086:56a6", Verdict::Ok, "one user's report", "")]
    fn a_quirk_is_told_with_whose_word_it_is(
        #[case] id: &str,
        #[case] verdict: Verdict,
        #[case] says: &str,
        #[case] advice: &str,
    ) {
        let judged = judge_for(&CHECK, &with(id), &[GPU]).remove(0);
        assert_eq!(judged.verdict, verdict, "{}", judged.found);
        assert!(judged.found.contains(says), "{}", judged.found);
        let remedy = judged.remedy.map(|remedy| remedy.what).unwrap_or_default();
        assert!(remedy.contains(advice) && remedy.is_empty() == advice.is_empty(), "{remedy}");
    }

    /// GB10's port marks what is below it from 6.12.75 on.
    #[rstest]
    #[case::has("6.12.75", Verdict::Warning)]
    #[case::not_yet("6.12.74", Verdict::Ok)]
    #[case::which_of_them("6.12.0-3-amd64", Verdict::Unknown)]
    #[case::no_name("", Verdict::Unknown)]
    fn a_quirk_of_some_kernels_is_told_on_those(#[case] release: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        change(&mut facts, crate::doctor::device::testing::PORT, |port| {
            port.id = "10de:22ce".parse().unwrap()
        });
        let judged = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert_eq!(judged.verdict, verdict, "{}", judged.found);
        assert_eq!(judged.found.contains("0000:80:01.0"), verdict != Verdict::Ok, "{}", judged.found);
    }

    #[test]
    fn files_that_make_no_sense_fail_and_the_rest_is_told() {
        let mut facts = with("10de:2b85");
        let mut quirks = LocalQuirks::default();
        quirks.add("/etc/gpuvm/quirks.d/a.toml", "[[quirk]]\nnam = \"x\"\n");
        facts.quirks = quirks;
        let judged = judge_for(&CHECK, &facts, &[GPU, AUDIO]);
        assert_eq!(judged[0].verdict, Verdict::Failed);
        assert!(judged[0].found.contains("/etc/gpuvm/quirks.d/a.toml, line "), "{}", judged[0].found);
        assert!(
            judged[0].read.iter().any(|read| read.contains("did you mean `name`?")),
            "{:?}",
            judged[0].read
        );
        assert!(judged[1].found.starts_with("rtx-5090-flr"), "{}", judged[1].found);
    }
}
