//! What of the host sits on the devices.

use crate::doctor::device::{each, of};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Gravity, Holder};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "device-holders",
    layer: Layer::Ownership,
    why: "taking a device that the host itself uses ends in lost data or a host that can't be reached",
    judge,
};

/// What holders are found by.
const SOURCES: [&str; 6] = [
    "/proc/self/mountinfo",
    "/proc/swaps",
    "/proc/net/route",
    "/proc/net/ipv6_route",
    "/sys/class/block",
    "/sys/class/net",
];

/// What is said when processes of other users couldn't be looked into.
const HIDDEN: &str = "can't be seen";

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| {
        let judgement = judge_one(case, bdf, device);
        SOURCES.iter().fold(judgement, |judgement, source| judgement.read(*source)).read("/proc/PID/fd")
    })
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    let held: Vec<String> = device.holders.iter().map(ToString::to_string).collect();
    let unread = case
        .facts
        .unread
        .iter()
        .find(|said| said.contains(HIDDEN) || SOURCES.iter().any(|source| said.contains(source)));
    match (device.holders.iter().map(Holder::gravity).min(), unread) {
        (Some(Gravity::Critical), _) => of(bdf, Verdict::Failed, held.join("; ")).remedy(Remedy::new(
            "choose another device, or have the host do without: unmount, swapoff, another route out",
        )),
        (Some(Gravity::Busy), _) => of(bdf, Verdict::Failed, held.join("; ")).remedy(Remedy::new(
            "end what uses it, as its own service would be stopped: an unbind waits for it",
        )),
        (_, Some(why)) => of(bdf, Verdict::Unknown, format!("what uses it isn't known: {why}")),
        (Some(Gravity::Note), None) => of(bdf, Verdict::Warning, held.join("; ")),
        (None, None) => of(bdf, Verdict::Ok, "nothing of the host is seen to use it"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for};
    use crate::facts::ProcessFacts;

    fn process() -> Holder {
        let process = ProcessFacts { pid: 7, command: "Xorg".to_owned() };
        Holder::Process { process, files: ["/dev/dri/card1".into()].into() }
    }

    #[rstest]
    #[case::nothing(&[], Verdict::Ok, "nothing of the host")]
    #[case::swap(&[Holder::Swap { device: "/dev/nvme0n1p2".to_owned() }], Verdict::Failed, "is swap space")]
    #[case::a_process(&[process()], Verdict::Failed, "Xorg")]
    #[case::the_console(&[Holder::Console { framebuffer: "fb0".to_owned() }], Verdict::Warning, "fb0")]
    #[case::the_worst_counts(&[Holder::Console { framebuffer: "fb0".to_owned() }, process()], Verdict::Failed, "Xorg")]
    fn a_device_is_judged_by_what_holds_it(
        #[case] holders: &[Holder],
        #[case] verdict: Verdict,
        #[case] says: &str,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.holders = holders.to_vec());
        let judgement = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert_eq!(judgement.verdict, verdict);
        assert!(judgement.found.contains(says), "{}", judgement.found);
    }

    #[test]
    fn processes_that_can_not_be_looked_into_leave_it_unknown() {
        let mut facts = host();
        facts.unread.push("what 12 processes of other users have open can't be seen".to_owned());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn mounts_that_could_not_be_read_leave_it_unknown() {
        let mut facts = host();
        facts.unread.push("read /proc/self/mountinfo: Permission denied".to_owned());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
