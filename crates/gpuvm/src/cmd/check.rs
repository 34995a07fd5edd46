//! `gpuvm check`: is the profile right, whatever the host?

use serde_json::json;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{load, out};

pub(super) fn run(cli: &Cli, args: &ProfileArgs) -> Result<Exit, Failure> {
    let profile = load::unresolved(args)?;
    if cli.json {
        out::json(&json!({ "valid": true, "profile": profile }))?;
    } else {
        let (path, name) = (args.profile.display(), &profile.name);
        out::text(&format!("{path}: valid (VM {name}). See what it would do here: gpuvm plan {path}\n"))?;
    }
    Ok(Exit::Ok)
}
