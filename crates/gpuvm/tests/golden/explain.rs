//! What `gpuvm explain` says.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::shared::golden::{compare, repository};
use crate::{gpuvm, transcript};

/// A log with trouble in it, with time stamps, repetitions and lines that say nothing.
const LOG: &str = "\
[    6.594169] vfio-pci 0000:81:00.0: vgaarb: VGA decodes changed: olddecodes=io+mem,decodes=io+mem:owns=none
[   11.410591] vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded
[  148.114194] vfio-pci 0000:83:00.0: not ready 1023ms after FLR; waiting
[  149.169763] vfio-pci 0000:83:00.0: not ready 2047ms after FLR; waiting
[  216.561801] vfio-pci 0000:83:00.0: not ready 65535ms after FLR; giving up
[  217.000000] vfio-pci 0000:83:00.0: reset done
";

#[test]
fn each_message_is_explained_as_it_was() {
    let cases: [(&str, &[&str]); 5] = [
        ("message", &["explain", "vfio 0000:81:00.0: group 16 is not viable"]),
        ("message-in-words", &["explain", "RLIMIT_MEMLOCK", "(8388608)", "exceeded"]),
        ("message-json", &["explain", "--json", "kvm: vfio: Unable to power on device, stuck in D3"]),
        (
            "message-for-the-kernels-command-line",
            &[
                "explain",
                "vfio-pci 0000:c3:00.0: BAR 0: can't reserve [mem 0x2800000000-0x2fffffffff 64bit pref]",
            ],
        ),
        ("nothing-known", &["explain", "the coffee is cold"]),
    ];
    let logs: [(&str, &[&str], &[u8]); 4] = [
        ("log", &["explain", "-"], LOG.as_bytes()),
        ("log-json", &["explain", "--json", "-"], LOG.as_bytes()),
        ("log-empty", &["explain", "-"], b""),
        (
            "log-of-bytes",
            &["explain", "-"],
            b"\xff\xfe\x00\n\x1b[31mGPU 0000:41:00.0: Bus error (core dumped)\x07\n",
        ),
    ];
    // Whose commands are given depends on the host, which is made up here.
    let host = tempfile::tempdir().unwrap();
    for folder in ["sys", "etc"] {
        fs::create_dir(host.path().join(folder)).unwrap();
    }
    fs::write(host.path().join("etc/os-release"), "ID=debian\n").unwrap();
    let host = host.path().display().to_string();
    let of_log = |(name, args, log): &(&str, &[&str], &[u8])| {
        ((*name).to_owned(), with_input(&[args, &["--host-root", &host][..]].concat(), log))
    };
    let of_message = |(name, args): &(&str, &[&str])| {
        ((*name).to_owned(), transcript(&gpuvm(&[args, &["--host-root", &host][..]].concat()), "\0"))
    };
    compare("explain", cases.iter().map(of_message).chain(logs.iter().map(of_log)));
}

fn with_input(args: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(args)
        .current_dir(repository())
        .env_remove("GPUVM_PREFIX")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    transcript(&child.wait_with_output().unwrap(), "\0")
}
