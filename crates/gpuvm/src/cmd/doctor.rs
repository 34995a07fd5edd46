//! `gpuvm doctor`: does all that passthrough rests on fit together?

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use gpuvm_core::doctor::{Check, Examination, Remedy, Subject, Verdict, examine};
use gpuvm_core::facts::{DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{card_of, plan, targets};
use gpuvm_core::profile::Profile;
use gpuvm_host::facts::{Depth, Scope, add_initramfs, narrow};
use gpuvm_host::vfio::viability;
use serde::Serialize;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, load, out};

/// What `doctor` takes.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// A profile, to judge what it needs; or devices by address; else all display cards and accelerators
    #[arg(value_name = "PROFILE | BDF")]
    about: Vec<String>,

    /// Set a key of the profile, as in --set memory.size=8G
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::cli::assignment)]
    set: Vec<String>,

    /// Show what was read, and why it matters, of what is well too
    #[arg(long)]
    all: bool,
}

/// What is examined.
#[derive(Debug, PartialEq, Eq)]
enum About {
    /// What a profile needs.
    Profile(PathBuf),
    /// These devices.
    Devices(BTreeSet<Bdf>),
    /// Whatever cards there are.
    Cards,
}

pub(super) fn run(cli: &Cli, args: &DoctorArgs) -> Result<Exit, Failure> {
    let about = about(args)?;
    let screen = match about {
        About::Cards => Screen::Unasked,
        _ => Screen::Asked,
    };
    let (facts, profile, targets) = match about {
        About::Profile(profile) => {
            let loaded = load::profile(cli, &ProfileArgs { profile, set: args.set.clone() })?;
            let facts = survey(cli, Scope::Devices(named(&loaded.profile)), Some(&loaded.profile))?;
            let targets = targets(&loaded.profile, &facts);
            (facts, Some(loaded.profile), targets)
        }
        About::Devices(devices) => {
            let facts = survey(cli, Scope::Devices(devices.clone()), None)?;
            let targets = whole_cards(devices, &facts);
            (facts, None, targets)
        }
        About::Cards => {
            let facts = survey(cli, Scope::Cards, None)?;
            let targets = whole_cards(cards(&facts), &facts);
            (facts, None, targets)
        }
    };
    let examination = examined(&facts, profile.as_ref(), &targets, screen);
    if cli.json {
        out::json(&Document::of(&examination))?;
    } else {
        let detail = if args.all || cli.is_verbose() { text::Detail::All } else { text::Detail::Findings };
        out::text(&text::text(&examination, detail))?;
    }
    Ok(if examination.is_fit() { Exit::Ok } else { Exit::Unfit })
}

/// Whether the host's screen was asked for, or is only one of the host's cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Screen {
    Asked,
    Unasked,
}

fn examined(facts: &HostFacts, profile: Option<&Profile>, targets: &[Bdf], screen: Screen) -> Examination {
    let mut examination = examine(facts, profile, targets);
    if screen == Screen::Unasked {
        examination.only_warn_of(&boot_display(facts));
    }
    add_hints(&mut examination, profile, facts);
    examination
}

/// Examines facts of a whole host as `doctor` does without more words, or of a profile: as text without colours, and as `--json` has it.
pub(super) fn told(facts: &HostFacts, profile: Option<&Profile>) -> (String, serde_json::Value) {
    let scope = profile.map_or(Scope::Cards, |profile| Scope::Devices(named(profile)));
    let facts = narrow(facts.clone(), &scope, Depth::Config);
    let targets = match profile {
        Some(profile) => targets(profile, &facts),
        None => whole_cards(cards(&facts), &facts),
    };
    let screen = if profile.is_some() { Screen::Asked } else { Screen::Unasked };
    let examination = examined(&facts, profile, &targets, screen);
    let document = serde_json::to_value(Document::of(&examination));
    let document = document.unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }));
    let text = text::text(&examination, text::Detail::All);
    (anstream::adapter::strip_str(&text).to_string(), document)
}

/// Tells a profile from devices.
fn about(args: &DoctorArgs) -> Result<About, Failure> {
    let usage = |message: String| Err(Failure::one(Exit::Usage, message, None));
    let devices: BTreeSet<Bdf> = args.about.iter().filter_map(|word| word.parse().ok()).collect();
    match args.about.as_slice() {
        [] if !args.set.is_empty() => usage("--set changes a profile, and none is named".to_owned()),
        [] => Ok(About::Cards),
        [profile] if devices.is_empty() => Ok(About::Profile(profile.into())),
        words => match words.iter().find(|word| word.parse::<Bdf>().is_err()) {
            Some(word) => {
                usage(format!("`{word}` is no device: name one profile, or devices like 0000:81:00.0"))
            }
            None if !args.set.is_empty() => {
                usage("--set changes a profile, and devices are named".to_owned())
            }
            None => Ok(About::Devices(devices)),
        },
    }
}

/// Returns the functions that a profile names.
fn named(profile: &Profile) -> BTreeSet<Bdf> {
    profile.devices.iter().flat_map(|device| std::iter::once(device.bdf).chain(device.hold.clone())).collect()
}

/// Returns the cards of a host.
fn cards(facts: &HostFacts) -> BTreeSet<Bdf> {
    let is_card = |facts: &DeviceFacts| facts.class.is_card() && facts.virtual_function == Presence::Absent;
    facts.devices.iter().filter(|(_, facts)| is_card(facts)).map(|(bdf, _)| *bdf).collect()
}

fn whole_cards(devices: BTreeSet<Bdf>, facts: &HostFacts) -> Vec<Bdf> {
    let all: BTreeSet<Bdf> = devices.into_iter().flat_map(|bdf| card_of(bdf, facts)).collect();
    all.into_iter().collect()
}

/// Returns what there is of the boot display, which most guests don't get: its card and their groups.
fn boot_display(facts: &HostFacts) -> Vec<Subject> {
    let boot = facts.devices.iter().filter(|(_, device)| device.boot_display == Presence::Present);
    let card: Vec<Bdf> = boot.flat_map(|(bdf, _)| card_of(*bdf, facts)).collect();
    let groups = card.iter().filter_map(|bdf| facts.devices.get(bdf)?.group);
    let groups = groups.map(|group| Subject::Group { group }).collect::<Vec<_>>();
    card.iter().map(|bdf| Subject::Device { bdf: *bdf }).chain(groups).collect()
}

fn survey(cli: &Cli, scope: Scope, profile: Option<&Profile>) -> Result<HostFacts, Failure> {
    let mut facts = load::survey(cli, &scope, Depth::Config, profile)?;
    ask(cli, &mut facts);
    Ok(facts)
}

/// Adds what isn't read of files alone: what QEMU can do, what the initramfs holds, what the kernel says of groups.
///
/// Another machine's QEMU and kernel can't be asked, what is in its initramfs isn't this one's to remember, and recorded facts
/// have it all.
pub(super) fn ask(cli: &Cli, facts: &mut HostFacts) {
    let (root, places) = (cli.host_root(), cli.places());
    match (&cli.facts, cli.is_recorded()) {
        (Some(_), _) => {}
        (None, true) => add_initramfs(&root, None, facts),
        (None, false) => {
            facts.qemu_probe = gpuvm_run::probe(facts, &places);
            add_initramfs(&root, Some(&places.initramfs()), facts);
            facts.viability = viability(&root, &places, facts);
        }
    }
}

/// Adds what to do about the refusals of the plan, which the core has no words for.
fn add_hints(examination: &mut Examination, profile: Option<&Profile>, facts: &HostFacts) {
    let Some(Err(refusals)) = profile.map(|profile| plan(profile, facts)) else { return };
    let refused = examination.checks.iter_mut().filter(|check| check.name == "plan");
    for (check, refusal) in refused.zip(&refusals) {
        check.remedy = hints::refusal(refusal).map(Remedy::new);
    }
}

/// The examination as a program reads it.
#[derive(Debug, Serialize)]
struct Document<'a> {
    fit: bool,
    counts: BTreeMap<Verdict, usize>,
    checks: &'a [Check],
}

impl<'a> Document<'a> {
    fn of(examination: &'a Examination) -> Self {
        let counts = Verdict::ALL.into_iter().map(|verdict| (verdict, examination.count(verdict)));
        Self { fit: examination.is_fit(), counts: counts.collect(), checks: &examination.checks }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use rstest::rstest;

    use super::*;

    fn of(words: &[&str], set: &[&str]) -> Result<About, Failure> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        about(&DoctorArgs { about: owned(words), set: owned(set), all: false })
    }

    #[test]
    fn words_are_a_profile_or_devices() {
        assert_eq!(of(&[], &[]).unwrap(), About::Cards);
        assert_eq!(of(&["a.toml"], &["name=x"]).unwrap(), About::Profile("a.toml".into()));
        let devices = ["0000:81:00.0", "0000:41:00.0"].map(|bdf| bdf.parse().unwrap());
        assert_eq!(of(&["81:00.0", "0000:41:00.0"], &[]).unwrap(), About::Devices(devices.into()));
    }

    #[rstest]
    #[case::two_profiles(&["a.toml", "b.toml"], &[])]
    #[case::a_profile_and_a_device(&["81:00.0", "a.toml"], &[])]
    #[case::a_setting_without_a_profile(&["81:00.0"], &["name=x"])]
    #[case::a_setting_alone(&[], &["name=x"])]
    fn a_mixture_is_refused(#[case] words: &[&str], #[case] set: &[&str]) {
        assert_eq!(of(words, set).unwrap_err().code, Exit::Usage);
    }
}
