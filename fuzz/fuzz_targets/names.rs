//! Lists of names, link speeds, CPU lists, addresses and kernel messages of any text.

#![no_main]

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::facts::{DeviceFacts, HostFacts, LinkSpeed};
use gpuvm_core::names::{PciNames, Wanted};
use gpuvm_core::pci::{Bdf, ClassCode, PciId};
use gpuvm_core::trouble::{Context, explain_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut device = DeviceFacts::new(
        PciId { vendor: 0x10de, device: 0x2330 },
        ClassCode::new(0x03_0200).expect("24 bits"),
    );
    device.subsystem = Some(PciId { vendor: 0x10de, device: 0x16c1 });
    let names = PciNames::parse(text, &Wanted::of([&device]));
    let facts = HostFacts { names, ..HostFacts::default() };
    let _ = (facts.name_of(&device), facts.card_of(&device), facts.class_of(&device));
    let _ = LinkSpeed::parse(text).map(|speed| speed.to_string());
    // What is read is written as what can be read again.
    if let Ok(set) = text.parse::<CpuSet>() {
        assert_eq!(set.to_string().parse().as_ref(), Ok(&set));
    }
    if let Ok(bdf) = text.parse::<Bdf>() {
        assert_eq!(bdf.to_string().parse(), Ok(bdf));
    }
    for found in explain_all(text, &Context::default()) {
        assert!(!found.id.is_empty());
    }
});
