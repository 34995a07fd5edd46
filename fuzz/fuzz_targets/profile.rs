//! The profile parser on any text: it never panics, and its problems lie inside the text.

#![no_main]

use std::path::Path;

use gpuvm_core::profile::{Profile, Sources, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let sources = Sources::new("x.toml", text);
    match parse(&sources, Path::new("/")) {
        Ok(profile) => holds(&profile),
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                let (_, text) = sources.at(&problem.place).expect("a source of that number");
                assert!(text.get(problem.place.span()).is_some(), "{problem:?} is outside the text");
                assert!(!problem.kind.to_string().is_empty());
            }
        }
    }
});

/// What a profile that was taken promises to whoever plans it.
fn holds(profile: &Profile) {
    assert!(profile.cpu.count > 0 && profile.memory.size.as_bytes() > 0);
    let boots = profile.disks.iter().filter_map(|disk| disk.boot);
    let mut boots: Vec<u32> = boots.chain(profile.devices.iter().filter_map(|device| device.boot)).collect();
    boots.sort_unstable();
    assert!(boots.windows(2).all(|pair| pair[0] != pair[1]), "{boots:?}");
}
