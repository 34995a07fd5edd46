//! Config space of any bytes, as a device that lies would show it: its lists end, what is found lies in the bytes, and a verdict is
//! drawn from it whatever it says.

#![no_main]

use gpuvm_core::config_space::{Capabilities, Lists};
use gpuvm_core::facts::{BarFacts, BarKind, Presence};
use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::reset::{ConfigSpace, Heard, PortSnapshot, Reading, Snapshot, Verdict, inspect, judge};
use gpuvm_core::units::ByteSize;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|config: &[u8]| {
    let found = Capabilities::parse(config);
    if config.len() < 0x100 {
        assert!(
            !found.aer && found.acs.is_none() && found.serial.is_none(),
            "{found:?} of {} bytes",
            config.len()
        );
    }
    if let Some(acs) = found.acs {
        let _ = acs.isolates();
    }
    // What is found again is the same.
    assert_eq!(found, Capabilities::parse(config));
    let lists = Lists::parse(config);
    assert!(lists.standard.iter().all(|(_, at)| *at < config.len().min(256)));
    assert!(lists.extended.iter().all(|(_, at)| (256..config.len()).contains(at)));
    judged(config);
});

/// Draws verdicts from the bytes: as a function and as its port, alone, and as what each half has become of the other.
fn judged(config: &[u8]) {
    let (one, other) = config.split_at(config.len() / 2);
    let whole = snapshot(config, config);
    let ones = config.iter().all(|byte| *byte == 0xff);
    assert!(!ones || inspect(&whole).verdict == Verdict::Unreachable);
    assert!(config.len() >= 256 || inspect(&whole).verdict > Verdict::Healthy);
    let said = Heard::Said(Vec::new());
    for (before, after) in [(one, other), (config, one), (other, config)] {
        let judgement = judge(&snapshot(before, after), &snapshot(after, before), &said);
        let weights = judgement.findings.iter().filter_map(|finding| finding.weight);
        assert_eq!(weights.max().unwrap_or(Verdict::Healthy), judgement.verdict);
    }
    // What is as it was has no more against it than what it was.
    assert_eq!(judge(&whole, &whole, &said).verdict, inspect(&whole).verdict);
    let mut unread = whole;
    unread.errors = Reading::Unread("no".to_owned());
    assert!(judge(&unread, &unread, &said).verdict >= Verdict::Unknown);
}

fn snapshot(config: &[u8], port: &[u8]) -> Snapshot {
    let bdf: Bdf = "0000:81:00.0".parse().expect("an address");
    let above: Bdf = "0000:80:01.0".parse().expect("an address");
    let virtual_function = if config.len() % 3 == 0 { Presence::Present } else { Presence::Absent };
    let bar = |index, kind| BarFacts {
        index,
        size: ByteSize::bytes(1 << 20),
        address: Some(0x3_8000_0000 >> index),
        kind,
    };
    Snapshot {
        virtual_function,
        bars: Reading::Read(vec![bar(0, BarKind::High), bar(2, BarKind::Low), bar(5, BarKind::Io)]),
        port: Some(PortSnapshot {
            bdf: above,
            config: Reading::Read(ConfigSpace::new(port)),
            root_port: above,
            root_errors: Reading::Absent,
        }),
        ..Snapshot::of(bdf, PciId { vendor: 0x10de, device: 0x2330 }, config)
    }
}
