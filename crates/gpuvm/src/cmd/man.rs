//! `gpuvm man`: the manual, one page for gpuvm and one for each verb.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// What `man` takes.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder that the pages are written into; without one, that of gpuvm itself is printed, as in: gpuvm man | man -l -
    folder: Option<PathBuf>,
}

/// A page and the name of its file.
struct Page {
    file: String,
    text: Vec<u8>,
}

pub(super) fn run(cli: &Cli, args: &ManArgs) -> Result<Exit, Failure> {
    let failed =
        |error: io::Error| Failure::one(Exit::Internal, format!("make a page of the manual: {error}"), None);
    let mut pages = Vec::new();
    let mut gpuvm = Cli::command().disable_help_subcommand(true);
    // Fills in what verbs inherit.
    gpuvm.build();
    collect(&gpuvm, "gpuvm", &mut pages).map_err(failed)?;
    match &args.folder {
        Some(folder) => write(cli, folder, &pages),
        None => print(cli, &pages),
    }
}

/// Makes the page of a command, and then those of its own.
fn collect(command: &Command, name: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    let mut text = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    Man::new(command.clone().version(version)).manual("gpuvm manual").render(&mut text)?;
    pages.push(Page { file: format!("{name}.1"), text });
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, &format!("{name}-{}", below.get_name()), pages)?;
    }
    Ok(())
}

fn write(cli: &Cli, folder: &Path, pages: &[Page]) -> Result<Exit, Failure> {
    let put = || {
        fs::create_dir_all(folder)?;
        pages.iter().try_for_each(|page| fs::write(folder.join(&page.file), &page.text))
    };
    put().map_err(|error| {
        let code =
            if error.kind() == io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::Unfit };
        Failure::one(code, format!("write the manual into {}: {error}", folder.display()), None)
    })?;
    if cli.json {
        let files: Vec<&str> = pages.iter().map(|page| page.file.as_str()).collect();
        out::json(&json!({ "folder": folder, "files": files }))?;
    } else {
        out::text(&format!("{} pages in {}\n", pages.len(), folder.display()))?;
    }
    Ok(Exit::Ok)
}

fn print(cli: &Cli, pages: &[Page]) -> Result<Exit, Failure> {
    let text = pages.first().map(|page| String::from_utf8_lossy(&page.text)).unwrap_or_default();
    if cli.json {
        out::json(&json!({ "page": text }))?;
    } else {
        out::text(&text)?;
    }
    Ok(Exit::Ok)
}
