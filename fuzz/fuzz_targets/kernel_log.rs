//! Lines of the kernel's log of any text: nothing falls over, what is said of another device doesn't count, and hearing more
//! never makes a verdict better.

#![no_main]

use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::reset::{Event, Heard, Snapshot, judge};
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
    let less = lines.split_last().map_or(Vec::new(), |(_, rest)| rest.to_vec());
    assert!(judge(&snapshot, &snapshot, &Heard::Said(less)).verdict <= judgement.verdict);
    let partly = Heard::Partly { lines, lost: "some".to_owned() };
    assert!(judge(&snapshot, &snapshot, &partly).verdict >= gpuvm_core::reset::Verdict::Unknown);
});
