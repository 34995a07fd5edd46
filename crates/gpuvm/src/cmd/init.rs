//! `gpuvm init`: writes a first profile for a device of this host.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use gpuvm_core::facts::HostFacts;
use gpuvm_core::init::{Candidate, Choices, Draft, NoDraft, candidates, card_of, draft};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Refusal;
use gpuvm_core::profile::{FirmwareKind, VmName};
use gpuvm_core::units::ByteSize;
use gpuvm_host::facts::{Depth, Scope};
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{hints, load, out};

/// What `init` takes.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The device, as in 0000:81:00.0; the only GPU that can be passed, if none is named
    bdf: Option<Bdf>,

    /// Write the profile to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write over FILE if it is there
    #[arg(long, requires = "output")]
    force: bool,

    /// Ask for device, name, vCPUs, memory and firmware; an empty answer takes what is in brackets
    #[arg(short, long)]
    interactive: bool,

    /// The VM's name [default: after the device]
    #[arg(long)]
    name: Option<VmName>,
}

pub(super) fn run(cli: &Cli, args: &InitArgs) -> Result<Exit, Failure> {
    let facts = facts(cli, args.bdf)?;
    let draft = if args.interactive {
        Session { facts: &facts, from: &mut std::io::stdin().lock() }.draft(args)?
    } else {
        let choices = Choices { name: args.name.clone(), ..Choices::default() };
        let device = args.bdf.map_or_else(|| only_gpu(&facts), Ok)?;
        draft(&facts, device, &choices).map_err(no_draft)?
    };
    if let Some(path) = &args.output {
        let over = if args.force { Over::Anything } else { Over::Nothing };
        write(path, &draft.text, over)?;
    }
    print(cli, args, &draft)
}

/// Reads the cards, and of the host what decides how much a guest can have.
fn facts(cli: &Cli, named: Option<Bdf>) -> Result<HostFacts, Failure> {
    let mut facts = load::survey(cli, &Scope::Passable, Depth::Sysfs, None)?;
    // What was named may be nothing that can be passed: then it is looked at, to say why.
    if let Some(bdf) = named.filter(|bdf| !facts.devices.contains_key(bdf)) {
        let more = load::survey(cli, &Scope::Devices(BTreeSet::from([bdf])), Depth::Sysfs, None)?;
        facts.devices.extend(more.devices);
        facts.groups.extend(more.groups);
    }
    for what in &facts.unread {
        tracing::warn!("it couldn't be read: {what}");
    }
    Ok(facts)
}

/// Returns the card that is meant where none is named.
fn only_gpu(facts: &HostFacts) -> Result<Bdf, Failure> {
    let all = candidates(facts);
    let passable: Vec<_> = all.iter().filter(|card| card.refusals.is_empty()).collect();
    if let [card] = passable.as_slice() {
        return Ok(card.device);
    }
    let (message, code) = match passable.len() {
        0 => ("no GPU of this host can be passed", Exit::Unfit),
        _ => ("several GPUs of this host can be passed: name one", Exit::Usage),
    };
    let list: Vec<_> = all.iter().map(|card| format!("\n  {}", listed(facts, card))).collect();
    let hint = passable.first().map_or_else(hints::no_gpu, |card| format!("gpuvm init {}", card.device));
    Err(Failure::one(code, format!("{message}{}", list.concat()), Some(hint)))
}

/// Says what a card is, and whether it can be passed.
fn listed(facts: &HostFacts, card: &Candidate) -> String {
    let what = facts.devices.get(&card.device).map_or_else(String::new, |device| {
        let node = device.node.map_or_else(String::new, |node| format!(", node {node}"));
        format!(" {} {}{node}", device.class.name(), device.id)
    });
    let reasons: Vec<_> = card.refusals.iter().map(Refusal::to_string).collect();
    let refused = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    format!("{}{what}{refused}", card.device)
}

fn no_draft(why: NoDraft) -> Failure {
    match why {
        NoDraft::Refused(refusals) => refusals.into(),
        NoDraft::Invalid(problems) => {
            let said: Vec<_> = problems.iter().map(|problem| problem.kind.to_string()).collect();
            Failure::one(Exit::Usage, said.join("; "), None)
        }
    }
}

/// What a file may be written over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    Anything,
}

fn write(path: &Path, text: &str, over: Over) -> Result<(), Failure> {
    let open = match over {
        Over::Nothing => File::options().write(true).create_new(true).open(path),
        Over::Anything => File::create(path),
    };
    open.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        let (code, hint) = match error.kind() {
            ErrorKind::AlreadyExists => (Exit::Usage, Some("write over it: --force".to_owned())),
            ErrorKind::PermissionDenied => (Exit::Permission, None),
            _ => (Exit::Usage, hints::unwritable(path, &error)),
        };
        Failure::one(code, format!("write {}: {error}", path.display()), hint)
    })
}

fn print(cli: &Cli, args: &InitArgs, draft: &Draft) -> Result<Exit, Failure> {
    if cli.json {
        let not_ready: Vec<_> = draft.not_ready.iter().map(Refusal::to_string).collect();
        let (name, device, file) = (&draft.name, draft.device, &args.output);
        out::json(&json!({
            "name": name, "device": device, "file": file, "profile": draft.text, "not_ready": not_ready
        }))?;
        return Ok(Exit::Ok);
    }
    if let Some(asked) = args.bdf.filter(|asked| *asked != draft.device) {
        out::note(&format!(
            "gpuvm: {asked} is a function of the card {}: the profile names that",
            draft.device
        ));
    }
    match &args.output {
        None => out::text(&draft.text)?,
        Some(path) => {
            let path = path.display();
            out::note(&format!("gpuvm: {path} is written; see what it does: gpuvm plan {path}"));
        }
    }
    for refusal in &draft.not_ready {
        failure::print_item("note: `up` would refuse this now", &failure::refused(refusal));
    }
    Ok(Exit::Ok)
}

/// Questions on standard error, answers from standard input: at its end, all that is left takes the defaults.
struct Session<'a> {
    facts: &'a HostFacts,
    from: &'a mut dyn BufRead,
}

impl Session<'_> {
    fn draft(&mut self, args: &InitArgs) -> Result<Draft, Failure> {
        let device = match args.bdf {
            Some(bdf) => bdf,
            None => self.device()?,
        };
        let mut choices = Choices { name: args.name.clone(), ..Choices::default() };
        let mut now = draft(self.facts, device, &choices).map_err(no_draft)?;
        if choices.name.is_none() {
            let name =
                |answer: &str, choices: &mut Choices| answer.parse().map(|name| choices.name = Some(name));
            now = self.choose("name", now.name.to_string(), device, (&mut choices, now), name)?;
        }
        let shown = now.vcpus.to_string();
        now = self.choose("vCPUs", shown, device, (&mut choices, now), |answer, choices| {
            let count = answer.parse().map_err(|_| format!("`{answer}` is no number of vCPUs"))?;
            choices.vcpus = Some(count);
            Ok(())
        })?;
        let shown = now.memory.to_string();
        now = self.choose("memory", shown, device, (&mut choices, now), |answer, choices| {
            let size: ByteSize = answer.parse().map_err(|error| format!("{error}"))?;
            choices.memory = Some(size);
            Ok(())
        })?;
        let shown = match now.firmware {
            FirmwareKind::Uefi => "uefi",
            FirmwareKind::Bios => "bios",
        };
        self.choose(
            "firmware, uefi or bios",
            shown.to_owned(),
            device,
            (&mut choices, now),
            |answer, choices| {
                choices.firmware = Some(match answer {
                    "uefi" => FirmwareKind::Uefi,
                    "bios" => FirmwareKind::Bios,
                    other => return Err(format!("`{other}` is neither uefi nor bios")),
                });
                Ok(())
            },
        )
    }

    /// Asks for a card until one is named that can be passed.
    fn device(&mut self) -> Result<Bdf, Failure> {
        let all = candidates(self.facts);
        all.iter().for_each(|card| out::note(&format!("  {}", listed(self.facts, card))));
        let passable = all.iter().find(|card| card.refusals.is_empty());
        let first = passable.map(|card| card.device);
        loop {
            let shown = first.map(|bdf| bdf.to_string());
            let Some(answer) = self.answer("device", shown.as_deref())? else {
                return first.map_or_else(|| only_gpu(self.facts), Ok);
            };
            let bdf = match answer.parse::<Bdf>() {
                Ok(bdf) => card_of(self.facts, bdf),
                Err(error) => {
                    out::note(&format!("  {error}"));
                    continue;
                }
            };
            match draft(self.facts, bdf, &Choices::default()) {
                Ok(_) => return Ok(bdf),
                Err(why) => no_draft(why).print(),
            }
        }
    }

    /// Asks until an answer makes a profile that fits; without one, all stays as it is.
    fn choose(
        &mut self,
        question: &str,
        shown: String,
        device: Bdf,
        (choices, now): (&mut Choices, Draft),
        set: impl Fn(&str, &mut Choices) -> Result<(), String>,
    ) -> Result<Draft, Failure> {
        while let Some(answer) = self.answer(question, Some(&shown))? {
            let mut with = choices.clone();
            if let Err(problem) = set(&answer, &mut with) {
                out::note(&format!("  {problem}"));
                continue;
            }
            match draft(self.facts, device, &with) {
                Ok(draft) => {
                    *choices = with;
                    return Ok(draft);
                }
                Err(why) => no_draft(why).print(),
            }
        }
        Ok(now)
    }

    /// Asks once; nothing is what an empty line and the end of the input answer.
    fn answer(&mut self, question: &str, default: Option<&str>) -> Result<Option<String>, Failure> {
        let default = default.map_or_else(String::new, |default| format!(" [{default}]"));
        out::ask(&format!("{question}{default}: "));
        let mut line = String::new();
        let read = self.from.read_line(&mut line);
        let read =
            read.map_err(|error| Failure::one(Exit::Usage, format!("read an answer: {error}"), None))?;
        if read == 0 {
            out::note("");
        }
        let answer = line.trim();
        Ok(Some(answer.to_owned()).filter(|answer| !answer.is_empty()))
    }
}
