//! Overlays: made whole or not at all, and removed only where they are gpuvm's own.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use gpuvm_core::host_ops::{HostOp, ImageFormat};
use gpuvm_core::profile::VmName;
use gpuvm_host::HostError;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::undo::undo_all;
use gpuvm_testkit::fake_host::FakeHost;
use rstest::rstest;

struct Bench {
    fake: FakeHost,
    kernel: Kernel,
    places: Places,
    vm: VmName,
}

impl Bench {
    fn new() -> Self {
        let fake = FakeHost::new();
        fake.file("/images/a base, with \"words\".img", "x");
        let (kernel, places) = (fake.kernel(), Places::below(&fake.prefix()));
        Self { fake, kernel, places, vm: VmName::new("vm").unwrap() }
    }

    fn op(&self, qemu_img: PathBuf) -> HostOp {
        HostOp::CreateOverlay {
            path: self.fake.path("/images/overlay.qcow2"),
            backing: self.fake.path("/images/a base, with \"words\".img"),
            format: ImageFormat::Raw,
            qemu_img,
        }
    }

    fn host(&self) -> Host<'_> {
        static NONE: BTreeMap<gpuvm_core::pci::Bdf, gpuvm_core::reset::Snapshot> = BTreeMap::new();
        Host { kernel: &self.kernel, places: &self.places, boot_id: "boot-1", vm: &self.vm, baselines: &NONE }
    }

    fn journal(&self) -> Journal {
        make_dir(&self.places.vm(&self.vm)).unwrap();
        Journal::begin(&self.places.journal(&self.vm), "boot-1").unwrap()
    }

    fn images(&self) -> Vec<String> {
        gpuvm_host::root::list(&self.fake.path("/images")).unwrap()
    }
}

const ALONE: [&str; 1] = ["a base, with \"words\".img"];

#[test]
fn an_overlay_is_made_by_its_own_name_alone_and_removed() {
    let bench = Bench::new();
    let mut journal = bench.journal();
    apply(&bench.host(), &mut journal, &bench.op(bench.fake.fake_qemu_img())).unwrap();
    assert_eq!(bench.images(), [ALONE[0], "overlay.qcow2"]);
    assert!(undo_all(&bench.host(), &mut journal, &mut |_| {}).is_empty());
    assert_eq!(bench.images(), ALONE);
}

#[test]
fn an_image_that_is_there_already_is_refused_before_anything_is_noted_and_stays() {
    let bench = Bench::new();
    bench.fake.file("/images/overlay.qcow2", "somebody's work");
    let mut journal = bench.journal();
    let error = apply(&bench.host(), &mut journal, &bench.op(bench.fake.fake_qemu_img())).unwrap_err();
    assert!(error.to_string().contains("overlay.qcow2: File exists"), "{error}");
    assert!(journal.records().is_empty());
    assert!(undo_all(&bench.host(), &mut journal, &mut |_| {}).is_empty());
    assert_eq!(fs::read_to_string(bench.fake.path("/images/overlay.qcow2")).unwrap(), "somebody's work");
}

#[rstest]
#[case::full_disk(
    "echo 'qemu-img: x: Could not write: No space left on device' >&2; : > \"$9\"; exit 1",
    "No space left on device"
)]
#[case::silent("exit 3", "exit status: 3")]
#[case::killed("kill -9 $$", "signal: 9")]
fn a_qemu_img_that_fails_is_quoted_and_leaves_nothing(#[case] script: &str, #[case] says: &str) {
    let bench = Bench::new();
    let qemu_img = bench.fake.script("/fake-qemu/bad-img", &format!("#!/bin/sh\n{script}\n"));
    let mut journal = bench.journal();
    let error = apply(&bench.host(), &mut journal, &bench.op(qemu_img)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HostError::Overlay { .. }), "{text}");
    assert!(text.contains(says) && text.contains("overlay.qcow2") && text.contains("bad-img"), "{text}");
    assert!(undo_all(&bench.host(), &mut journal, &mut |_| {}).is_empty());
    assert_eq!(bench.images(), ALONE);
}

#[test]
fn a_qemu_img_that_is_not_there_is_named() {
    let bench = Bench::new();
    let error =
        apply(&bench.host(), &mut bench.journal(), &bench.op("/nowhere/qemu-img".into())).unwrap_err();
    assert!(error.to_string().contains("/nowhere/qemu-img: No such file"), "{error}");
}

#[rstest]
#[case::another_image_behind("QFI\u{fb}")]
#[case::no_image("text")]
fn what_has_taken_the_overlays_place_is_reported_and_kept(#[case] content: &str) {
    let bench = Bench::new();
    let mut journal = bench.journal();
    apply(&bench.host(), &mut journal, &bench.op(bench.fake.fake_qemu_img())).unwrap();
    bench.fake.file("/images/overlay.qcow2", content);
    let left = undo_all(&bench.host(), &mut journal, &mut |_| {});
    assert!(matches!(left[..], [HostError::ChangedByOthers { .. }]), "{left:?}");
    assert_eq!(fs::read_to_string(bench.fake.path("/images/overlay.qcow2")).unwrap(), content);
    assert!(journal.open_records().is_empty(), "there is nothing left of ours");
}

/// The same with the real program: its words and the header that it writes.
#[test]
#[ignore = "tier 2: needs qemu-img; scripts/test runs it"]
fn tier2_qemu_img_makes_an_overlay_that_undo_knows_as_its_own() {
    let bench = Bench::new();
    fs::write(bench.fake.path("/images/a base, with \"words\".img"), vec![0; 1 << 20]).unwrap();
    let program = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join("qemu-img"))
        .find(|path| path.is_file())
        .expect("qemu-img is in PATH");
    let mut journal = bench.journal();
    apply(&bench.host(), &mut journal, &bench.op(program.clone())).unwrap();
    assert!(undo_all(&bench.host(), &mut journal, &mut |_| {}).is_empty());
    assert_eq!(bench.images(), ALONE);

    bench.fake.remove("/images/a base, with \"words\".img");
    let error = apply(&bench.host(), &mut journal, &bench.op(program)).unwrap_err();
    assert!(error.to_string().contains("said: qemu-img: "), "{error}");
    assert!(undo_all(&bench.host(), &mut journal, &mut |_| {}).is_empty());
}
