//! `gpuvm resume`: lets a paused guest go on.

use gpuvm_core::control::Do;

use super::pause::done;
use crate::cli::{Cli, VmArgs};
use crate::exit::Exit;
use crate::failure::Failure;

pub(super) fn run(cli: &Cli, args: &VmArgs) -> Result<Exit, Failure> {
    done(cli, &args.vm, Do::Resume)
}
