//! Lays out a host that isn't there, for `gpuvm VERB --host-root FOLDER`: `fake-host NAME` prints the folder, which stays
//! until somebody removes it; no test runs this.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;

use gpuvm_testkit::hosts;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, make)) = hosts::ALL.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = hosts::ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("fake-host NAME: one of {}", names.join(", "));
        return ExitCode::from(64);
    };
    let folder = make().keep();
    println!("{}", folder.display());
    eprintln!("it stays in memory until it is removed: rm -r {}", folder.display());
    ExitCode::SUCCESS
}
