//! Config space of any bytes, as a device that lies would show it: its lists end, and what is found lies in the bytes.

#![no_main]

use gpuvm_core::config_space::Capabilities;
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
});
