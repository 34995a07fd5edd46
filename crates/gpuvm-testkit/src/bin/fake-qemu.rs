//! A program that stands in for QEMU in tests: see `gpuvm_testkit::fake_qemu`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gpuvm_testkit::fake_qemu::run(std::env::args_os().collect())
}
