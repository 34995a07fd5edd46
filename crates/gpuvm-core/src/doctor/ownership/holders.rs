//! What of the host sits on the devices.

use crate::doctor::device::{each, of};
use crate::doctor::{Case, Definition, Layer, Remedy, Verdict};

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

fn judge(case: &Case<'_>) -> Vec<super::super::Judgement> {
    let unread = case.facts.unread.iter().find(|said| SOURCES.iter().any(|source| said.contains(source)));
    each(case, |bdf, device| {
        let held: Vec<String> = device.holders.iter().map(ToString::to_string).collect();
        let judgement = match (held.is_empty(), unread) {
            (false, _) => of(bdf, Verdict::Failed, held.join("; ")).remedy(Remedy::new(
                "choose another device, or have the host do without: unmount, swapoff, another route out",
            )),
            (true, Some(why)) => of(bdf, Verdict::Unknown, format!("what uses it isn't known: {why}")),
            (true, None) => of(bdf, Verdict::Ok, "nothing of the host is seen to use it"),
        };
        SOURCES.iter().fold(judgement, |judgement, source| judgement.read(*source))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for};
    use crate::facts::Holder;

    #[test]
    fn a_device_that_holds_something_of_the_host_fails_with_its_name() {
        let mut facts = host();
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Ok);
        let holder = Holder::Swap { device: "/dev/nvme0n1p2".to_owned() };
        change(&mut facts, GPU, |gpu| gpu.holders.push(holder));
        let judgement = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert_eq!(
            (judgement.verdict, judgement.found.as_str()),
            (Verdict::Failed, "/dev/nvme0n1p2 is swap space")
        );
    }

    #[test]
    fn mounts_that_could_not_be_read_leave_it_unknown() {
        let mut facts = host();
        facts.unread.push("read /proc/self/mountinfo: Permission denied".to_owned());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
