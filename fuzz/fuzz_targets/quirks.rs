//! Tables of quirks of any text: the parser never panics, its problems lie inside the text, and what it takes can be looked up.

#![no_main]

use gpuvm_core::facts::{DeviceFacts, HostFacts};
use gpuvm_core::pci::{ClassCode, PciId};
use gpuvm_core::profile::Sources;
use gpuvm_core::reset::plan::affected;
use gpuvm_core::reset::quirks::{against_bus_reset, parse, quirks_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let sources = Sources::new("x.toml", text);
    if let Err(problems) = parse(&sources) {
        assert!(!problems.is_empty());
        for problem in problems {
            let (_, text) = sources.at(&problem.place).expect("a source of that number");
            assert!(text.get(problem.place.span()).is_some(), "{problem:?} is outside the text");
        }
    }
    let mut facts = HostFacts::default();
    facts.kernel.release = "6.12.117".to_owned();
    let class = ClassCode::new(0x03_0000).expect("24 bits");
    let bdf = "0000:81:00.0".parse().expect("an address");
    facts.devices.insert(bdf, DeviceFacts::new(PciId { vendor: 0x10de, device: 0x2b85 }, class));
    facts.quirks.add("x.toml", text);
    for found in quirks_of(bdf, &facts) {
        assert!(!found.told().is_empty() && !found.quirk.name.is_empty());
    }
    let _ = against_bus_reset(bdf, &affected(bdf, &facts), &facts);
});
