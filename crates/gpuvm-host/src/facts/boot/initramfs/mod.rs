//! What the running kernel's initramfs says about who gets which device.
//!
//! An initramfs is a row of cpio archives, each plain or packed: microcode first, plain; then, in the distributions that gpuvm knows, one
//! packed archive as the last.

mod cache;
mod cpio;
mod unpack;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use gpuvm_core::facts::{BootModule, HostFacts, InitramfsFacts, Rule};
use gpuvm_core::modprobe::{loaded_by_cmdline, parse};

use super::{matters, module_of_file, rules, worth_keeping};
use crate::facts::Reading;
use crate::root::{HostRoot, list, read_text};

/// The most that is unpacked: the largest that are known, with the drivers and firmware of all GPUs in them, have some 600 MiB.
const MAX_BYTES: u64 = 2 << 30;
/// The longest that is unpacked.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Adds what is in the running kernel's initramfs. It is unpacked once and remembered in `cache`, if there is one, for as long as the
/// file stays the same.
pub fn add_initramfs(root: &HostRoot, cache: Option<&Path>, facts: &mut HostFacts) {
    let reading = Reading::lenient();
    let candidates = candidates(root, &facts.kernel.release, &reading);
    let Some(path) = candidates.iter().find(|path| root.path(path).exists()) else {
        facts.boot.initramfs = Some(InitramfsFacts::NotFound { tried: candidates });
        return;
    };
    let mut initramfs = match cached(root, path, cache) {
        Ok(read) => read,
        Err(error) => InitramfsFacts::Unread { path: path.clone(), reason: error.to_string() },
    };
    if let InitramfsFacts::Read { rules, matches, .. } = &mut initramfs {
        // What the rules catch is the host's, and may change while the file stays the same.
        *matches = super::matches(root, rules, &reading).unwrap_or_default();
    }
    facts.boot.initramfs = Some(initramfs);
    facts.unread.extend(reading.unread());
}

/// Lists where distributions put it.
fn candidates(root: &HostRoot, release: &str, reading: &Reading) -> Vec<String> {
    let text = |path: &str| {
        let text = reading.take(read_text(&root.path(path))).ok().flatten();
        text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut paths = vec![
        format!("/boot/initrd.img-{release}"),
        format!("/boot/initramfs-{release}.img"),
        format!("/boot/initrd-{release}"),
    ];
    if let Some(package) = text(&format!("/usr/lib/modules/{release}/pkgbase")) {
        paths.push(format!("/boot/initramfs-{package}.img"));
        paths.push(format!("/efi/initramfs-{package}.img"));
    }
    if let Some(machine) = text("/etc/machine-id") {
        for folder in ["/efi", "/boot/efi", "/boot"] {
            paths.push(format!("{folder}/{machine}/{release}/initrd"));
        }
    }
    paths.push("/run/booted-system/initrd".to_owned());
    // Somebody's own names, where there is one kernel only.
    if let Ok(names) = reading.take(list(&root.path("/boot"))) {
        let mut others =
            names.iter().filter(|name| name.starts_with("initramfs-linux") && !name.contains("fallback"));
        if let (Some(only), None) = (others.next(), others.next()) {
            paths.push(format!("/boot/{only}"));
        }
    }
    paths
}

fn cached(root: &HostRoot, path: &str, cache: Option<&Path>) -> io::Result<InitramfsFacts> {
    let file = File::open(root.path(path))?;
    let key = cache::Key::of(path, &file)?;
    if let Some(known) = cache.and_then(|folder| cache::load(folder, &key)) {
        return Ok(known);
    }
    let read = read(path, file)?;
    if let Some(folder) = cache {
        cache::store(folder, &key, &read);
    }
    Ok(read)
}

/// Reads it all.
fn read(path: &str, file: impl Read) -> io::Result<InitramfsFacts> {
    let mut contents = Contents { path: path.to_owned(), ..Contents::default() };
    let mut from = BufReader::new(file);
    loop {
        match next(&mut from)? {
            Next::End => return Ok(contents.facts()),
            Next::Archive => contents.archive(&mut from)?,
            Next::Packed(magic) => {
                let unpacked = unpack::unpack(&mut from, &magic)?;
                let mut inside = BufReader::new(unpack::Bounded::new(unpacked, MAX_BYTES, MAX_TIME));
                while let Next::Archive = next(&mut inside)? {
                    contents.archive(&mut inside)?;
                }
                return Ok(contents.facts());
            }
        }
    }
}

/// What comes next in a row of archives.
enum Next {
    Archive,
    Packed(Vec<u8>),
    End,
}

/// Passes over the zeros between archives and looks at what comes.
fn next(from: &mut impl BufRead) -> io::Result<Next> {
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Ok(Next::End);
        }
        let zeros = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        if zeros == 0 {
            break;
        }
        from.consume(zeros);
    }
    let bytes = from.fill_buf()?;
    let magic = bytes.get(..6).unwrap_or(bytes).to_vec();
    Ok(if cpio::is_archive(&magic) { Next::Archive } else { Next::Packed(magic) })
}

/// What was found so far.
#[derive(Debug, Default)]
struct Contents {
    path: String,
    rules: Vec<Rule>,
    modules: std::collections::BTreeSet<String>,
    at_boot: Vec<BootModule>,
}

impl Contents {
    fn archive(&mut self, from: &mut impl Read) -> io::Result<()> {
        cpio::read(from, |name| kind(name).is_some(), |name, content| self.file(name, content))
    }

    fn file(&mut self, name: &str, content: Option<&[u8]>) {
        self.modules.extend(module_of_file(name).filter(|module| matters(module)));
        let Some((kind, content)) = kind(name).zip(content) else { return };
        let text = String::from_utf8_lossy(content);
        let source = format!("{}: {name}", self.path);
        let modules: Vec<String> = match kind {
            Kind::Rules => {
                let found = parse(&text).into_iter().filter(worth_keeping);
                self.rules.extend(found.map(|directive| Rule { source: source.clone(), directive }));
                Vec::new()
            }
            Kind::List => rules::listed(&text).collect(),
            Kind::CommandLine => {
                loaded_by_cmdline(&text).into_iter().filter(|module| matters(module)).collect()
            }
            Kind::Mkinitcpio => mkinitcpio(&text),
        };
        self.at_boot.extend(modules.into_iter().map(|module| BootModule { module, source: source.clone() }));
    }

    fn facts(self) -> InitramfsFacts {
        let Self { path, rules, modules, at_boot } = self;
        InitramfsFacts::Read { path, rules, modules, at_boot, matches: Vec::new() }
    }
}

/// What a file of an initramfs is, of those that matter.
#[derive(Clone, Copy)]
enum Kind {
    /// modprobe.d(5).
    Rules,
    /// Modules, one a line: modules-load.d(5), and Debian's.
    List,
    /// Words for the command line (dracut).
    CommandLine,
    /// The settings of mkinitcpio's hooks.
    Mkinitcpio,
}

fn kind(name: &str) -> Option<Kind> {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    match (folder, file) {
        ("etc/modprobe.d" | "usr/lib/modprobe.d" | "lib/modprobe.d" | "run/modprobe.d", file) => {
            file.ends_with(".conf").then_some(Kind::Rules)
        }
        ("etc/modules-load.d" | "usr/lib/modules-load.d", file) => {
            file.ends_with(".conf").then_some(Kind::List)
        }
        ("conf" | "etc", "modules") => Some(Kind::List),
        ("etc/cmdline.d", _) => Some(Kind::CommandLine),
        ("", "config") => Some(Kind::Mkinitcpio),
        _ => None,
    }
}

/// Reads `EARLYMODULES="vfio_pci vfio"` of mkinitcpio's shell file.
fn mkinitcpio(text: &str) -> Vec<String> {
    let values = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| ["EARLYMODULES", "MODULES"].contains(key));
    let words = values.flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_ascii_whitespace());
    words.map(gpuvm_core::modprobe::module_name).filter(|module| matters(module)).collect()
}

#[cfg(test)]
mod tests;
