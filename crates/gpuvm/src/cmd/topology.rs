//! `gpuvm topology`: how the host hangs together, as a tree or as a picture.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;
use gpuvm_core::facts::HostFacts;
use gpuvm_core::inventory::Kind;
use gpuvm_core::topology::{Branch, Room, Topology, svg};
use gpuvm_host::facts::{Depth, Scope, narrow};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, load, out};

/// What `topology` takes.
#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    /// Draw it as a picture: write SVG to FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn run(cli: &Cli, args: &TopologyArgs) -> Result<Exit, Failure> {
    let facts = load::survey(cli, &Scope::Physical, Depth::Config, None)?;
    let topology = Topology::of(&facts);
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::svg(&topology)).map_err(|error| {
            let code = match error.kind() {
                ErrorKind::PermissionDenied => Exit::Permission,
                ErrorKind::StorageFull => Exit::Unfit,
                _ => Exit::Usage,
            };
            Failure::one(code, format!("write {}: {error}", path.display()), hints::unwritable(path, &error))
        })?;
    }
    if cli.json {
        out::json(&topology)?;
    } else if args.svg.is_none() {
        out::text(&text(&topology))?;
    }
    for unread in facts.unread.iter().filter(|_| !cli.json) {
        out::note(&format!("note: couldn't be read, so it is left out: {unread}"));
    }
    Ok(Exit::Ok)
}

/// Writes the tree of facts of a whole host.
pub(super) fn told(facts: &HostFacts) -> String {
    text(&Topology::of(&narrow(facts.clone(), &Scope::Physical, Depth::Config)))
}

/// Writes the tree: what is below something is indented.
fn text(topology: &Topology) -> String {
    let mut text = String::new();
    for room in &topology.rooms {
        writeln!(text, "{}", room_line(room)).ok();
        for complex in &room.complexes {
            writeln!(text, "  pci{}", complex.bus).ok();
            complex.branches.iter().for_each(|found| branch(found, 4, &mut text));
        }
    }
    text
}

fn room_line(room: &Room) -> String {
    let Some(node) = room.node else { return "no node told".to_owned() };
    let cpus = if room.cpus.is_empty() { "no CPUs".to_owned() } else { format!("CPUs {}", room.cpus) };
    let devices = if room.complexes.is_empty() { ", no devices" } else { "" };
    format!("node {node}: {cpus}, {} MiB{devices}", room.memory.as_mib_ceil())
}

fn branch(found: &Branch, indent: usize, text: &mut String) {
    let mut line = format!("{:indent$}{}  {}", "", found.bdf, found.label());
    if found.name != found.id.to_string() && found.kind != Kind::Bridge {
        write!(line, " ({})", found.class_name).ok();
    }
    line.push_str(&found.group.map_or_else(|| ", no group".to_owned(), |group| format!(", group {group}")));
    if let Some(driver) = found.driver.as_ref().filter(|_| found.kind != Kind::Bridge) {
        write!(line, ", {driver}").ok();
    }
    if let Some(label) = found.link.and_then(|link| link.label()) {
        write!(line, ", {label}").ok();
    }
    if found.virtual_functions > 0 {
        write!(line, ", +{} virtual functions", found.virtual_functions).ok();
    }
    writeln!(text, "{line}").ok();
    found.below.iter().for_each(|below| branch(below, indent + 2, text));
}
