//! Lines of the kernel's log of any text: nothing falls over, what is said of another device doesn't count, and hearing more makes
//! a verdict better only where it was ready at last.

#![no_main]

use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::reset::{Event, Heard, Snapshot, Verdict, What, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let card: Bdf = "0000:81:00.0".parse().expect("an address");
    let mut config = [0; 256];
    config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
    let snapshot = Snapshot::of(card, PciId { vendor: 0x10de, device: 0x2330 }, &config);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let ours = lines.iter().filter_map(|line| Event::parse(line)).filter(|event| event.is_about(card)).count();
    let judgement = judge(&snapshot, &snapshot, &Heard::Said(lines.clone()));
    assert!(ours > 0 || judgement.findings.is_empty(), "{judgement:?} of nothing that was said of it");
    if let Some((last, rest)) = lines.split_last() {
        let ready = Event::parse(last).is_some_and(|event| matches!(event.what, What::Ready { .. }));
        let less = judge(&snapshot, &snapshot, &Heard::Said(rest.to_vec())).verdict;
        assert!(ready || less <= judgement.verdict, "{less} becomes {}", judgement.verdict);
    }
    let partly = Heard::Partly { lines, lost: "some".to_owned() };
    assert!(judge(&snapshot, &snapshot, &partly).verdict >= Verdict::Unknown);
});
