use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use gpuvm_testkit::fake_host::{FakeHost, gpu};
use proptest::prelude::*;
use rstest::rstest;

use super::cpio::tests::archive;
use super::*;

const RULE: &[u8] = b"options vfio-pci ids=10de:2330\noptions snd power_save=1\n";

/// A file as initramfs-tools makes it: microcode, padding, then the rest, packed.
fn main_archive() -> Vec<u8> {
    archive(&[
        ("etc/modprobe.d/vfio.conf", RULE),
        ("usr/lib/modules/6.12/kernel/drivers/vfio/pci/vfio-pci.ko.zst", b"\x7fELF"),
        ("usr/lib/modules/6.12/kernel/drivers/nvme/host/nvme.ko", b"\x7fELF"),
        ("conf/modules", b"# early\nvfio-pci\nnvme\n"),
        ("etc/cmdline.d/20-vfio.conf", b"rd.driver.pre=vfio_iommu_type1\n"),
        ("config", b"EARLYMODULES=\"vfio nvme\"\n"),
    ])
}

fn with_microcode(rest: &[u8]) -> Vec<u8> {
    let mut bytes = archive(&[("kernel/x86/microcode/AuthenticAMD.bin", &[7; 1000])]);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(rest);
    bytes
}

/// Packs bytes with a program of the machine, or returns nothing where it hasn't got that one.
fn packed(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.ok()?;
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

fn check(facts: &InitramfsFacts) {
    let InitramfsFacts::Read { rules, modules, at_boot, .. } = facts else { panic!("{facts:?}") };
    let rules: Vec<_> = rules.iter().map(|rule| format!("{}: {}", rule.source, rule.directive)).collect();
    assert_eq!(rules, ["/boot/x: etc/modprobe.d/vfio.conf: options vfio_pci ids=10de:2330"]);
    assert_eq!(modules.iter().collect::<Vec<_>>(), ["vfio_pci"]);
    let at_boot: Vec<_> = at_boot.iter().map(|at| at.module.as_str()).collect();
    assert_eq!(at_boot, ["vfio_pci", "vfio_iommu_type1", "vfio"]);
}

#[test]
fn plain_archives_behind_each_other_are_read() {
    check(&read("/boot/x", &with_microcode(&main_archive())[..]).unwrap());
}

#[rstest]
#[case::gzip("gzip", &["-c"])]
#[case::zstd("zstd", &["-q", "-c", "-9", "-T0"])]
#[case::xz("xz", &["-c", "--check=crc32"])]
#[case::lz4_of_the_kernel("lz4", &["-q", "-l", "-c"])]
#[case::lz4_frame("lz4", &["-q", "-c"])]
fn a_packed_archive_behind_microcode_is_read(#[case] program: &str, #[case] args: &[&str]) {
    // Large enough for several blocks of each packing.
    let mut bytes = main_archive();
    let noise: Vec<u8> = (0..9_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    bytes.splice(0..0, archive(&[("usr/lib/firmware/large.bin", &noise)]));
    let Some(rest) = packed(program, args, &bytes) else {
        // The packers are no dependency of gpuvm; gzip's own library is, so this much is always tried.
        return check(&read("/boot/x", &with_microcode(&gzip(&bytes))[..]).unwrap());
    };
    check(&read("/boot/x", &with_microcode(&rest)[..]).unwrap());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[rstest]
#[case::bzip2(b"BZh91AY", "bzip2")]
#[case::lzo(b"\x89LZO\0\r\n", "lzo")]
#[case::nothing_known(b"MZ\x90\0\x03\0", "no packing that is known")]
#[case::broken_gzip(b"\x1f\x8b\x08\0\0\0\0\0\0\x03abcdef", "")]
#[case::broken_zstd(b"\x28\xb5\x2f\xfd\0\0\0\0", "")]
#[case::broken_xz(b"\xfd7zXZ\0\0\0\0\0\0\0\0\0\0", "")]
#[case::broken_lz4(b"\x02\x21\x4c\x18\xff\xff\xff\x7f", "")]
fn what_can_not_be_unpacked_is_an_error(#[case] bytes: &[u8], #[case] says: &str) {
    let error = read("/boot/x", &with_microcode(bytes)[..]).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn an_archive_that_is_cut_off_is_an_error() {
    let whole = gzip(&main_archive());
    read("/boot/x", &whole[..whole.len() / 2]).unwrap_err();
}

#[test]
fn what_unpacks_without_end_is_given_up() {
    let bomb = unpack::Bounded::new(std::io::repeat(0), 1000, MAX_TIME);
    let error = std::io::copy(&mut { bomb }, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("larger"), "{error}");
}

/// Reads the initramfs of a fake host, with a cache or without.
fn of_host(host: &FakeHost, cache: Option<&Path>) -> InitramfsFacts {
    let mut facts = HostFacts::default();
    facts.kernel.release = "6.12.0-fake".to_owned();
    add_initramfs(&HostRoot::new(host.path("/")), cache, &mut facts);
    facts.boot.initramfs.unwrap()
}

#[test]
fn an_initramfs_is_found_read_once_and_matched_with_the_host() {
    let host = FakeHost::new();
    assert!(matches!(of_host(&host, None), InitramfsFacts::NotFound { .. }));
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.file("/boot/initrd.img-6.12.0-fake", with_microcode(&gzip(&main_archive())));
    let cache = host.path("/cache");
    let first = of_host(&host, Some(&cache));
    let InitramfsFacts::Read { matches, .. } = &first else { panic!("{first:?}") };
    assert_eq!((matches[0].id.as_str(), matches[0].devices.len()), ("10de:2330", 1));
    // A second look doesn't unpack it: what is remembered is told, and what it catches is the host's of now.
    let kept = cache.join("initramfs.json");
    let changed = fs::read_to_string(&kept).unwrap().replace("\"vfio_iommu_type1\"", "\"vfio_remembered\"");
    fs::write(&kept, changed).unwrap();
    host.device(&gpu("0000:82:00.0", 8, 1));
    let InitramfsFacts::Read { at_boot, matches, .. } = of_host(&host, Some(&cache)) else { panic!() };
    assert!(at_boot.iter().any(|at| at.module == "vfio_remembered"));
    assert_eq!(matches[0].devices.len(), 2);
    // Another file of that name is read again.
    host.file("/boot/initrd.img-6.12.0-fake", archive(&[("init", b"")]));
    let InitramfsFacts::Read { at_boot, .. } = of_host(&host, Some(&cache)) else { panic!() };
    assert_eq!(at_boot, []);
}

#[test]
fn a_broken_cache_is_no_cache_and_a_broken_initramfs_says_why() {
    let host = FakeHost::new();
    host.file("/boot/initrd.img-6.12.0-fake", b"BZh91AY");
    host.file("/cache/initramfs.json", "{");
    let InitramfsFacts::Unread { reason, .. } = of_host(&host, Some(&host.path("/cache"))) else { panic!() };
    assert!(reason.contains("bzip2"), "{reason}");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(kind in 0usize..6, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let magic: [&[u8]; 6] =
            [b"070701", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x02\x21\x4c\x18", b""];
        let _ = read("x", &[magic[kind], &bytes].concat()[..]);
    }
}
