//! Whether a device that is to be passed has virtual functions.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "sriov",
    layer: Layer::Isolation,
    why: "vfio-pci doesn't take a function whose virtual functions are enabled (EBUSY), since its owner has power over all of them",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<super::super::Judgement> {
    each(case, |bdf, device| {
        let said = unread(case, bdf, "sriov_numvfs").or_else(|| unread(case, bdf, "sriov_totalvfs"));
        let judgement = match (said, device.virtual_functions, device.virtual_functions_total) {
            (Some(why), ..) => of(bdf, Verdict::Unknown, why),
            (None, 0, 0) => of(bdf, Verdict::NotApplicable, "it has no virtual functions"),
            (None, 0, total) => {
                of(bdf, Verdict::Ok, format!("none of its {total} virtual functions is enabled"))
            }
            (None, enabled, _) => {
                of(bdf, Verdict::Failed, format!("{enabled} virtual functions of it are enabled")).remedy(
                    Remedy::new(
                        "pass virtual functions instead of it, or disable them once nothing uses them",
                    )
                    .command(format!("echo 0 > {}", path(bdf, "sriov_numvfs"))),
                )
            }
        };
        judgement.read(format!("{}: {}", path(bdf, "sriov_numvfs"), device.virtual_functions))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for};

    #[rstest]
    #[case::none(0, 0, Verdict::NotApplicable)]
    #[case::disabled(0, 64, Verdict::Ok)]
    #[case::enabled(2, 64, Verdict::Failed)]
    fn enabled_virtual_functions_fail(#[case] enabled: u32, #[case] total: u32, #[case] verdict: Verdict) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| {
            (gpu.virtual_functions, gpu.virtual_functions_total) = (enabled, total)
        });
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, verdict);
    }

    #[test]
    fn a_count_that_could_not_be_read_is_unknown() {
        let mut facts = host();
        facts.unread.push(format!("read /sys/bus/pci/devices/{GPU}/sriov_numvfs: Input/output error"));
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
