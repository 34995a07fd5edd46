//! `[kernel]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::profile::check::Checker;
use crate::profile::language::{Key, Kind};
use crate::profile::problem::Problem;
use crate::profile::read::{Cursor, Leaf};
use crate::profile::tree::Place;

/// A kernel that QEMU loads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelBoot {
    /// The kernel: a bzImage, or an ELF with a PVH entry point.
    pub path: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::required("path", Kind::Text, "The kernel: a bzImage, or an ELF file with a PVH entry point."),
    Key::optional("initrd", Kind::Text, "Its initial RAM file system."),
    Key::default("cmdline", Kind::Text, "\"\"", "Its command line."),
];

#[derive(Debug, Clone)]
pub(in crate::profile) struct RawKernel {
    place: Place,
    path: Leaf<String>,
    initrd: Leaf<String>,
    cmdline: Leaf<String>,
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawKernel {
    let kernel = RawKernel {
        place: table.place(),
        path: table.text("path", problems),
        initrd: table.text("initrd", problems),
        cmdline: table.text("cmdline", problems),
    };
    table.finish(problems);
    kernel
}

pub(in crate::profile) fn check(raw: RawKernel, checker: &mut Checker<'_>) -> Option<KernelBoot> {
    let key = "kernel.path";
    let path = checker.required(raw.path, key, r#"path = "/boot/vmlinuz""#, &raw.place)?;
    let initrd = raw.initrd.and_then(|initrd| checker.path(&initrd, "kernel.initrd"));
    let cmdline = raw.cmdline.map_or_else(String::new, |cmdline| {
        checker.argument("kernel.cmdline", &cmdline);
        cmdline.value
    });
    Some(KernelBoot { path: checker.path(&path, key)?, initrd, cmdline })
}
