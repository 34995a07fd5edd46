//! `gpuvm schema`: the profile language, for editors.

use gpuvm_core::profile::schema::schema;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

pub(super) fn run() -> Result<Exit, Failure> {
    out::json(&schema())?;
    Ok(Exit::Ok)
}
