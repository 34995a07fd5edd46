//! The profile parser: what it takes, and that nothing makes it fall over.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
#![allow(clippy::disallowed_methods, reason = "the sample profiles are files")]

use std::path::Path;
use std::sync::LazyLock;

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
    fn look(keys: &[Key], above: &str, text: &str, missing: &mut Vec<&'static str>) {
        for key in keys {
            let spelt = match key.kind {
                Kind::Table(_) => format!("[{above}{}]", key.name),
                Kind::Tables(_) => format!("[[{above}{}]]", key.name),
                _ => format!("\n{} = ", key.name),
            };
            if !text.contains(&spelt) {
                missing.push(key.name);
            }
            if let Kind::Table(keys) | Kind::Tables(keys) = key.kind {
                look(keys, &format!("{above}{}.", key.name), text, missing);
            }
        }
    }
    let mut lacking = Vec::new();
    look(gpuvm_core::profile::language::root(), "", example, &mut lacking);
    assert!(lacking.is_empty(), "README's example lacks {lacking:?}");
}

/// Reads the sample profiles of a kind.
fn samples(kind: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sample-profiles").join(kind);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// All of them, read once.
static SAMPLES: LazyLock<Vec<String>> = LazyLock::new(|| [samples("valid"), samples("invalid")].concat());

fn problems_lie_inside(sources: &Sources) -> Result<(), TestCaseError> {
    let Err(problems) = parse(sources, Path::new("/")) else { return Ok(()) };
    prop_assert!(!problems.is_empty());
    for problem in problems {
        let (_, text) = sources.at(&problem.place).unwrap();
        prop_assert!(text.get(problem.place.span()).is_some(), "{:?} is outside the text", problem);
        prop_assert!(sources.line(&problem.place) <= text.lines().count() + 1, "{:?}", problem);
        prop_assert!(!problem.kind.to_string().is_empty());
    }
    Ok(())
}

/// What a slip of the editor puts into a profile.
const SLIPS: &[&str] = &[
    "",
    "\n",
    "\"",
    "[",
    "[[",
    "]",
    "=",
    ".",
    "{",
    "}",
    ",",
    "#",
    "'''",
    "\\u0000",
    "-1",
    "1e9",
    "ü",
    "true",
    "[[device]]\n",
    "[cpu]\n",
    "boot = 1\n",
];

/// A change to a text: letters go, and others come.
type Slip = (prop::sample::Index, usize, &'static str);

fn slipped(text: &str, slips: &[Slip]) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    for (at, gone, come) in slips {
        let at = at.index(letters.len() + 1);
        let end = (at + gone).min(letters.len());
        letters.splice(at..end, come.chars());
    }
    letters.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_sample_has_its_problems_inside_the_text(
        which in any::<prop::sample::Index>(),
        slips in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, prop::sample::select(SLIPS)), 1..5),
    ) {
        problems_lie_inside(&Sources::new("x.toml", slipped(which.get::<String>(&SAMPLES), &slips)))?;
    }

    #[test]
    fn a_damaged_override_has_its_problems_inside_the_text(
        which in any::<prop::sample::Index>(),
        key in "[a-z.\"-]{0,12}",
        value in "[\\[\\]{}a-z0-9=\", .-]{0,16}",
    ) {
        let sources = Sources::new("x.toml", which.get::<String>(&SAMPLES).clone());
        problems_lie_inside(&sources.with_override(&format!("{key}={value}")))?;
    }
}

/// Tables in another order, inline tables as tables: what is meant is the same.
#[test]
fn each_valid_sample_means_the_same_when_its_values_are_written_anew() {
    for text in samples("valid") {
        let anew = toml::to_string(&text.parse::<toml::Table>().unwrap()).unwrap();
        assert_eq!(
            parsed(&Sources::new("anew.toml", &*anew)),
            parsed(&Sources::new("x.toml", &*text)),
            "{anew}"
        );
    }
}

/// A profile is kept with its run, and read again by a later gpuvm.
#[test]
fn each_valid_sample_survives_being_kept() {
    for text in samples("valid") {
        let profile = parsed(&Sources::new("x.toml", text));
        let kept = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&kept).unwrap(), profile, "{kept}");
    }
}

/// Spells a string as TOML does, which takes JSON's spelling.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn generated() -> impl Strategy<Value = String> {
    let word = |words: &'static [&'static str]| prop::option::of(prop::sample::select(words));
    let top = (
        "[A-Za-z0-9][A-Za-z0-9_.-]{0,39}",
        word(&["uefi", "bios"]),
        word(&["console", "log"]),
        word(&["utc", "local"]),
        prop::option::of(1u32..=86_400),
        prop::collection::vec("[^\\x00]{0,12}", 0..3),
    );
    let sizes = (32u32..100_000, word(&["strict", "prefer"]), 1u32..=288, word(&["auto", "off"]));
    let disks = prop::collection::btree_set("[^\\x00/.]{1,20}", 0..4);
    let options = (any::<bool>(), prop::option::of(any::<bool>()));
    let devices = prop::collection::btree_map((0u8..=255, 0u8..32), options, 0..4);
    (top, sizes, disks, devices).prop_map(|(top, (mib, policy, count, pin), disks, devices)| {
        let (name, firmware, serial, rtc, timeout, extra) = top;
        let mut text = format!("version = 1\nname = {}\n", quoted(&name));
        for (key, value) in [("firmware", firmware), ("serial", serial), ("rtc", rtc)] {
            text.extend(value.map(|value| format!("{key} = \"{value}\"\n")));
        }
        text.extend(timeout.map(|seconds| format!("shutdown-timeout = {seconds}\n")));
        let extra: Vec<String> = extra.iter().map(|word| quoted(word)).collect();
        text.push_str(&format!("extra-args = [{}]\n[memory]\nsize = \"{mib}M\"\n", extra.join(", ")));
        text.extend(policy.map(|policy| format!("node-policy = \"{policy}\"\n")));
        text.push_str(&format!("[cpu]\ncount = {count}\n"));
        text.extend(pin.map(|pin| format!("pin = \"{pin}\"\n")));
        text.extend(disks.iter().map(|path| format!("[[disk]]\npath = {}\n", quoted(path))));
        for ((bus, slot), (boot_display, rombar)) in devices {
            text.push_str(&format!("[[device]]\nbdf = \"{bus:02x}:{slot:02x}.0\"\n"));
            text.push_str(&format!("allow-boot-display = {boot_display}\n"));
            text.extend(rombar.map(|rombar| format!("rombar = {rombar}\n")));
        }
        text
    })
}

proptest! {
    #[test]
    fn a_generated_profile_means_the_same_when_its_values_are_written_anew(text in generated()) {
        let profile = parse(&Sources::new("x.toml", &*text), Path::new("/"));
        prop_assert!(profile.is_ok(), "{:?}\n{}", profile, text);
        let anew = toml::to_string(&text.parse::<toml::Table>().unwrap()).unwrap();
        prop_assert_eq!(parse(&Sources::new("anew.toml", &*anew), Path::new("/")), profile);
    }
}
