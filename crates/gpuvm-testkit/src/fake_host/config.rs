//! The config space of a function, with capability lists as a device has them.

use gpuvm_core::config_space::PortType;

use super::tree::{Function, LinkSide};

/// Where the capabilities lie; any place that is free would do.
const PM: usize = 0x60;
const EXPRESS: usize = 0x78;
const AER: usize = 0x100;

/// What of a header only the place in the tree tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// Whether its slot has other functions.
    pub(super) multifunction: bool,
    /// Its own bus, and for a bridge the first and last behind it.
    pub(super) buses: Option<(u8, u8, u8)>,
    /// Its base address registers that have room, by number, each with the bits that say what it is.
    pub(super) bars: Vec<(u8, u64)>,
}

/// Lays out the config space: 4096 bytes on PCI Express, 256 on PCI.
pub(super) fn bytes(function: &Function, place: &Place) -> Vec<u8> {
    let mut config = vec![0; if function.port.is_some() { 4096 } else { 256 }];
    header(&mut config, function, place);
    let mut at = if function.port.is_some() { EXPRESS } else { 0 };
    if let Some(no_soft_reset) = function.no_soft_reset {
        let keeps = if no_soft_reset { 0x08 } else { 0 };
        let state = if function.power_state == "D3hot" { 0x03 } else { 0 };
        put(&mut config, PM, &[0x01, low(at), 0x03, 0xc8, keeps | state, 0]);
        at = PM;
    }
    config[0x34] = low(at);
    if at != 0 {
        config[0x06] |= 0x10;
    }
    if let Some(port) = function.port {
        express(&mut config, function, port);
        extended(&mut config, function);
    }
    config
}

fn header(config: &mut [u8], function: &Function, place: &Place) {
    put(config, 0x00, &function.id.0.to_le_bytes());
    put(config, 0x02, &function.id.1.to_le_bytes());
    if function.physical.is_some() {
        // A virtual function has none of its own (PCI Express Base Specification 9.3.4.1).
        put(config, 0x00, &[0xff; 4]);
    }
    put(config, 0x04, &[0x06, 0x04]);
    config[0x08] = function.revision;
    put(config, 0x09, &function.class.to_le_bytes()[..3]);
    config[0x0e] = if place.multifunction { 0x80 } else { 0 };
    if let Some((primary, secondary, subordinate)) = place.buses {
        config[0x0e] |= 0x01;
        put(config, 0x18, &[primary, secondary, subordinate]);
    } else if let Some((vendor, device)) = function.subsystem {
        put(config, 0x2c, &vendor.to_le_bytes());
        put(config, 0x2e, &device.to_le_bytes());
    }
    // Those of a virtual function are in its physical one.
    for (index, value) in place.bars.iter().filter(|_| function.physical.is_none()) {
        let wide = value & 0x7 == 0x4;
        let bytes = value.to_le_bytes();
        put(config, 0x10 + 4 * usize::from(*index), if wide { &bytes } else { &bytes[..4] });
    }
    config[0x3d] = u8::from(function.physical.is_none());
}

/// Writes what port it is, whether it has FLR, and its link.
fn express(config: &mut [u8], function: &Function, port: PortType) {
    let code: u16 = match port {
        PortType::Endpoint => 0x0,
        PortType::LegacyEndpoint => 0x1,
        PortType::RootPort => 0x4,
        PortType::UpstreamPort => 0x5,
        PortType::DownstreamPort => 0x6,
        PortType::PcieToPci => 0x7,
        PortType::PciToPcie => 0x8,
        PortType::RootComplexEndpoint => 0x9,
        PortType::EventCollector => 0xa,
    };
    put(config, EXPRESS, &[0x10, 0]);
    put(config, EXPRESS + 2, &(code << 4 | 2).to_le_bytes());
    let flr = if function.flr { 1u32 << 28 } else { 0 };
    put(config, EXPRESS + 4, &(flr | 0x8001).to_le_bytes());
    if let Some(link) = function.link {
        let word = |side: LinkSide| u16::from(side.generation()) | u16::from(side.width) << 4;
        put(config, EXPRESS + 0x0c, &u32::from(word(link.max)).to_le_bytes());
        put(config, EXPRESS + 0x12, &word(link.now).to_le_bytes());
    }
}

/// Writes the extended capabilities, one behind the other.
fn extended(config: &mut [u8], function: &Function) {
    let mut list: Vec<(u16, Vec<u8>)> = Vec::new();
    if function.aer {
        list.push((0x0001, vec![0; 0x44]));
    }
    if let Some(serial) = function.serial {
        list.push((0x0003, serial.to_le_bytes().to_vec()));
    }
    if let Some(acs) = function.acs {
        list.push((0x000d, [acs.capability.to_le_bytes(), acs.control.to_le_bytes()].concat()));
    }
    if function.virtual_functions_total > 0 {
        let (total, bytes) = (function.virtual_functions_total.to_le_bytes(), [0; 0x3c]);
        let mut body = bytes.to_vec();
        put(&mut body, 0x08, &total[..2]);
        put(&mut body, 0x0a, &total[..2]);
        list.push((0x0010, body));
    }
    if !function.resizable.is_empty() {
        let mut body = Vec::new();
        let count = function.resizable.len();
        for (index, sizes) in &function.resizable {
            // Bit 4 of the capability register is 1 MiB; the control register has index, number of registers and size.
            let mask = sizes.iter().fold(0u32, |mask, bits| mask | 1 << (bits + 4).min(31));
            let size = u32::from(sizes.last().copied().unwrap_or(0));
            let control = u32::from(*index) | u32::from(low(count)) << 5 | size << 8;
            body.extend(mask.to_le_bytes());
            body.extend(control.to_le_bytes());
        }
        list.push((0x0015, body));
    }
    let mut at = AER;
    let mut list = list.into_iter().peekable();
    while let Some((id, body)) = list.next() {
        let after = (at + 4 + body.len()).next_multiple_of(0x10);
        let next = if list.peek().is_some() { after } else { 0 };
        put(config, at, &id.to_le_bytes());
        put(config, at + 2, &(1 | u16::try_from(next << 4).unwrap_or(0)).to_le_bytes());
        put(config, at + 4, &body);
        at = after;
    }
}

fn put(config: &mut [u8], at: usize, bytes: &[u8]) {
    config[at..at + bytes.len()].copy_from_slice(bytes);
}

fn low(value: usize) -> u8 {
    value.to_le_bytes()[0]
}
