//! Whether the CPUs' addresses reach far enough for the guest's memory and BARs.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::plan::Refusal;

pub(super) const CHECK: Definition = Definition {
    name: "guest-addresses",
    layer: Layer::Platform,
    why: "memory and BARs of a guest share one address space, which is as wide as the host's CPUs make it",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let bits = case.facts.cpus.phys_bits;
    let read = |judgement: Judgement| match bits {
        Some(bits) => judgement.read(format!("/proc/cpuinfo: {bits} bits physical")),
        None => judgement.read("/proc/cpuinfo: no address sizes"),
    };
    let Some(outline) = case.outline else {
        return vec![read(match bits {
            Some(bits) => Judgement::of_host(Verdict::Ok, format!("the CPUs have {bits} address bits")),
            None => Judgement::of_host(Verdict::Unknown, "the CPUs' address bits aren't told"),
        })];
    };
    let addresses = &outline.addresses;
    let judgement = match (addresses.phys_bits, addresses.overrun()) {
        (None, _) => Judgement::of_host(Verdict::Unknown, "the CPUs' address bits aren't told"),
        (Some(bits), Some(end)) => {
            let refusal = Refusal::AddressSpace { need: end - 1, bars: addresses.room(), bits };
            Judgement::of_host(Verdict::Failed, refusal.to_string()).remedy(Remedy::new(
                "pass fewer devices or give less memory; where there is the choice, raise the CPU's physical address bits in the \
                 firmware's setup",
            ))
        }
        (Some(bits), None) => Judgement::of_host(
            Verdict::Ok,
            format!("{bits} address bits hold the guest's memory and BARs: {}", addresses.reason),
        ),
    };
    vec![read(judgement)]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict};
    use crate::facts::HostFacts;

    #[rstest]
    #[case::small(Some(39), "4G", Verdict::Ok)]
    #[case::large(Some(46), "600G", Verdict::Ok)]
    #[case::too_large(Some(39), "600G", Verdict::Failed)]
    #[case::unknown(None, "4G", Verdict::Unknown)]
    fn memory_must_fit_into_the_cpus_addresses(
        #[case] bits: Option<u8>,
        #[case] memory: &str,
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts::default();
        facts.cpus.phys_bits = bits;
        let profile = profile(&format!("[memory]\nsize = \"{memory}\"\n"));
        assert_eq!(verdict(CHECK.name, &facts, Some(&profile)), expected);
    }

    #[test]
    fn a_host_alone_tells_its_width() {
        let mut facts = HostFacts::default();
        facts.cpus.phys_bits = Some(46);
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::Ok);
    }
}
