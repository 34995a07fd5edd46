//! The profile parser: what it takes, and that nothing makes it fall over.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::Path;

use gpuvm_core::profile::{Hugepages, Network, Pin, ProblemKind, Profile, Serial, Sources, parse};
use gpuvm_core::units::PageSize;
use proptest::prelude::*;

const MINIMAL: &str = "version = 1\nname = \"x\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n";

fn parsed(sources: &Sources) -> Profile {
    parse(sources, Path::new("/base")).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn defaults_are_what_a_headless_compute_host_wants() {
    let profile = parsed(&Sources::new("x.toml", MINIMAL));
    assert_eq!(profile.accel.to_string(), "kvm");
    assert_eq!((profile.cpu.pin, profile.memory.hugepages), (Pin::Auto, Hugepages::Off));
    assert_eq!((profile.network, profile.serial), (Network::User, Serial::Console));
    assert!(profile.kernel.is_none() && profile.devices.is_empty() && profile.disks.is_empty());
}

#[test]
fn relative_paths_start_at_the_profile() {
    let text = format!("{MINIMAL}[kernel]\npath = \"k\"\ninitrd = \"/i\"\n[[disk]]\npath = \"../d\"\n");
    let profile = parsed(&Sources::new("x.toml", text));
    let kernel = profile.kernel.unwrap();
    assert_eq!(kernel.path, Path::new("/base/k"));
    assert_eq!(kernel.initrd.unwrap(), Path::new("/i"));
    assert_eq!(profile.disks[0].path, Path::new("/base/../d"));
}

#[test]
fn overrides_replace_leaves_and_merge_tables() {
    let sources = Sources::new("x.toml", MINIMAL)
        .with_override("memory.hugepages=2M")
        .with_override("cpu.count=4")
        .with_override("name=other")
        .with_override("device=[{bdf=\"81:00.0\"}]");
    let profile = parsed(&sources);
    assert_eq!(profile.memory.hugepages, Hugepages::Size(PageSize::M2));
    assert_eq!(profile.memory.size.to_string(), "1G");
    assert_eq!((profile.cpu.count, profile.name.as_str(), profile.devices.len()), (4, "other", 1));
}

#[test]
fn an_override_can_not_smuggle_in_a_second_key() {
    let sources = Sources::new("x.toml", MINIMAL).with_override("name=\"a\"\naccel=\"tcg\"");
    let problems = parse(&sources, Path::new("/")).unwrap_err();
    assert!(matches!(problems[0].kind, ProblemKind::Value { .. }), "{problems:?}");
}

#[test]
fn problems_point_at_the_line_they_are_on() {
    let text = MINIMAL.replace("1G", "1GB");
    let sources = Sources::new("x.toml", text);
    let problems = parse(&sources, Path::new("/")).unwrap_err();
    assert_eq!((problems.len(), sources.line(&problems[0].place)), (1, 4));
}

proptest! {
    #[test]
    fn parse_never_panics_on_any_text(text in "\\PC*") {
        let _ = parse(&Sources::new("x.toml", text), Path::new("/"));
    }

    #[test]
    fn parse_never_panics_on_a_profile_with_a_hole(from in 0usize..80, len in 0usize..20, filler in "[\\[\\]\"=.0-9a-z\\n{}, -]{0,6}") {
        let mut text = MINIMAL.to_owned();
        let from = from.min(text.len());
        let to = (from + len).min(text.len());
        text.replace_range(from..to, &filler);
        let sources = Sources::new("x.toml", text);
        if let Err(problems) = parse(&sources, Path::new("/")) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                let (_, text) = sources.at(&problem.place).unwrap();
                prop_assert!(text.get(problem.place.span()).is_some(), "{:?} is outside the text", problem);
            }
        }
    }
}

/// README's example is the whole language: it parses, and no key is missing from it.
#[test]
fn the_example_in_the_readme_is_the_whole_language() {
    use gpuvm_core::profile::language::{Key, Kind};
    let readme = include_str!("../../../README.md");
    let example = readme.split("```toml").find(|block| block.contains("of this language")).unwrap();
    let example = example.split("```").next().unwrap();
    parsed(&Sources::new("README.md", example));
    fn look(keys: &[Key], text: &str, missing: &mut Vec<&'static str>) {
        for key in keys {
            let spelt = match key.kind {
                Kind::Table(_) => format!("[{}]", key.name),
                Kind::Tables(_) => format!("[[{}]]", key.name),
                _ => format!("\n{} = ", key.name),
            };
            if !text.contains(&spelt) {
                missing.push(key.name);
            }
            if let Kind::Table(keys) | Kind::Tables(keys) = key.kind {
                look(keys, text, missing);
            }
        }
    }
    let mut lacking = Vec::new();
    look(gpuvm_core::profile::language::root(), example, &mut lacking);
    assert!(lacking.is_empty(), "README's example lacks {lacking:?}");
}
