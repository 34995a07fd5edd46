//! Whether the running kernel has bugs that passthrough meets.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{BarKind, KernelFacts};

pub(super) const CHECK: Definition = Definition {
    name: "kernel-bugs",
    layer: Layer::Isolation,
    why: "some kernels report a reset that failed as done, or refuse resets that would work",
    judge,
};

/// A version of the kernel: major, minor, patch.
type Version = (u32, u32, u32);

/// A bug, and the versions that have it.
struct Bug {
    /// What it does, after "this kernel".
    does: &'static str,
    /// What to do where the kernel can't be changed.
    instead: &'static str,
    /// First and last version, inclusive, and how it ends.
    affected: &'static [(Version, Version, End)],
    /// Which hosts meet it.
    meets: Meets,
}

/// How a range of versions that have a bug ends.
#[derive(Clone, Copy)]
enum End {
    /// With a version that has the fix.
    Fixed(&'static str),
    /// Nobody has looked any further: later versions may have it too.
    NotKnown,
}

/// Which hosts meet a bug.
enum Meets {
    /// All that pass a device.
    All,
    /// Those that pass a device with registers of 32 GiB or more.
    LargeRegisters,
}

/// The last patch of a series, whatever it will be.
const ANY: u32 = u32::MAX;

const BUGS: &[Bug] = &[
    Bug {
        // d591f6804e7e (6.12) made pci_dev_wait() poll the vendor id, and take all ones for ready; fixed in 6.12.115 ("Don't treat ~0 as
        // ready in pci_dev_wait() with RRS SV", Debian's changelog). 7.1.8 still has it; in which later release it ends isn't known.
        does: "takes a device that doesn't answer after a reset for one that is ready, and says that the reset was done",
        instead: "don't believe a reset by its result; gpuvm reads the device's config space after each",
        affected: &[
            ((6, 12, 0), (6, 12, 114), End::Fixed("6.12.115 or a later 6.12")),
            ((6, 13, 0), (7, 1, ANY), End::NotKnown),
        ],
        meets: Meets::All,
    },
    Bug {
        // "PCI: Avoid reset when disabled via sysfs", reverted in 6.12.25 and 6.1.135 (Debian's changelog, notes of 6.1.135,
        // zen-kernel/zen-kernel#380); the end of the range in 6.14 is told, not read.
        does: "refuses to reset the bus of a device that has no reset of its own",
        instead: "expect that cards without a function level reset don't start a second time",
        affected: &[
            ((6, 1, 134), (6, 1, 134), End::Fixed("6.1.135 or a later 6.1")),
            ((6, 12, 23), (6, 12, 24), End::Fixed("6.12.25 or a later 6.12")),
            ((6, 14, 2), (6, 14, 3), End::Fixed("6.14.4 or a later 6.14")),
        ],
        meets: Meets::All,
    },
    Bug {
        // "Avoid saving config space state if inaccessible" (Debian's changelog of 6.12.117); pci_save_state() of 7.1.8 is without it.
        // Which kernels before 6.12 have it wasn't looked up.
        does: "saves the config space of a device that doesn't answer, and writes it back as all ones",
        instead: "start the host anew where a device doesn't answer, instead of resetting it",
        affected: &[
            ((6, 12, 0), (6, 12, 116), End::Fixed("6.12.117 or a later 6.12")),
            ((6, 13, 0), (7, 1, ANY), End::NotKnown),
        ],
        meets: Meets::All,
    },
    Bug {
        // vfio/type1 maps registers by the page until 6.15 (absent from 6.12, present in 7.1; the patch's thread has the figures: 1 s
        // for 32 GB each time, and a guest's firmware and kernel map them many times).
        does: "maps registers page by page, which makes a guest with registers of 32 GiB or more start minutes later",
        instead: "expect it",
        affected: &[((0, 0, 0), (6, 14, ANY), End::Fixed("6.15 or later"))],
        meets: Meets::LargeRegisters,
    },
];

const LARGE: u64 = 32 << 30;

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let kernel = &case.facts.kernel;
    let read = |judgement: Judgement| {
        judgement
            .read(format!("/proc/sys/kernel/osrelease: {}", kernel.release))
            .read(format!("/proc/version: {}", kernel.build))
    };
    let bugs = BUGS.iter().filter(|bug| meets(case, bug));
    let (version, series) = match known(kernel) {
        Known::Version(version) => (version, false),
        Known::Series(version) => (version, true),
        Known::Nothing => {
            return vec![read(Judgement::of_host(Verdict::Unknown, "which version it is couldn't be told"))];
        }
    };
    let (major, minor, patch) = version;
    // A series is affected for certain only where a range covers all of it.
    let last = (major, minor, if series { ANY } else { patch });
    let first = (major, minor, if series { 0 } else { patch });
    let mut found: Vec<Judgement> = bugs.filter_map(|bug| judge_bug(bug, first, last)).collect();
    if found.is_empty() {
        let version = if series { format!("{major}.{minor}") } else { format!("{major}.{minor}.{patch}") };
        found.push(Judgement::of_host(
            Verdict::Ok,
            format!("Linux {version} has none of the {} bugs that gpuvm knows of", BUGS.len()),
        ));
    }
    found.into_iter().map(read).collect()
}

/// Judges a bug on a kernel between these versions; nothing where it doesn't have it.
fn judge_bug(bug: &Bug, first: Version, last: Version) -> Option<Judgement> {
    let touched = bug.affected.iter().find(|(from, to, _)| *from <= last && first <= *to);
    let Some((from, to, end)) = touched else {
        let (_, seen, _) =
            bug.affected.iter().find(|(_, to, end)| *to < first && matches!(end, End::NotKnown))?;
        let found = format!(
            "it is newer than what gpuvm knows: Linux {}.{} {}; where that ends isn't known",
            seen.0, seen.1, bug.does
        );
        return Some(Judgement::of_host(Verdict::Unknown, found).remedy(Remedy::new(bug.instead)));
    };
    let (and, remedy) = match end {
        End::Fixed(fixed) => ("", format!("run {fixed}; until then, {}", bug.instead)),
        End::NotKnown => ("; where that ends isn't known", bug.instead.to_owned()),
    };
    let (verdict, found) = match *from <= first && last <= *to {
        true => (Verdict::Warning, format!("this kernel {}{and}", bug.does)),
        false => (
            Verdict::Unknown,
            format!(
                "it follows {}.{}, of which some releases have a bug (this kernel {}), and its name doesn't say which it is",
                first.0, first.1, bug.does
            ),
        ),
    };
    Some(Judgement::of_host(verdict, found).remedy(Remedy::new(remedy)))
}

fn meets(case: &Case<'_>, bug: &Bug) -> bool {
    let devices = || case.targets.iter().filter_map(|bdf| case.facts.devices.get(bdf));
    match bug.meets {
        Meets::All => true,
        Meets::LargeRegisters => devices()
            .flat_map(|device| &device.bars)
            .any(|bar| bar.kind == BarKind::High && bar.size.as_bytes() >= LARGE),
    }
}

/// What is known of the kernel's version.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// The release of the stable series that it follows.
    Version(Version),
    /// Only the series.
    Series(Version),
    Nothing,
}

/// Finds the version that a kernel follows: a distribution's release may carry its own counter (Debian's `6.1.0-37-amd64`, Ubuntu's
/// `6.8.0-45-generic`), and then its build tells: `Debian 6.1.140-1`, `Ubuntu 6.8.0-45.45-generic 6.8.12`.
fn known(kernel: &KernelFacts) -> Known {
    let Some((version, rest)) = parse(&kernel.release) else { return Known::Nothing };
    let same_series = |found: &Version| (found.0, found.1) == (version.0, version.1);
    let words: Vec<&str> = kernel.build.split_ascii_whitespace().collect();
    let after = |name: &str| words.iter().position(|word| *word == name);
    let debian = after("Debian").and_then(|at| words.get(at + 1)).and_then(|word| parse(word));
    let ubuntu = after("Ubuntu").and_then(|at| words.get(at + 2)).and_then(|word| parse(word));
    if let Some((built, _)) = debian.or(ubuntu).filter(|(built, _)| same_series(built)) {
        return Known::Version(built);
    }
    // Enterprise kernels (el9, .sles) keep a version of years ago and take fixes from everywhere.
    let counted = rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let enterprise = rest.contains(".el") || rest.contains("-default");
    match version.2 == 0 && counted || enterprise {
        true => Known::Series(version),
        false => Known::Version(version),
    }
}

/// Reads `6.12.117-amd64`; the third number may be missing.
fn parse(text: &str) -> Option<(Version, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut numbers = numbers.split('.').filter(|number| !number.is_empty()).map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let patch = numbers.next().map_or(Ok(0), |patch| patch).ok()?;
    Some(((major, minor, patch), rest))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, told};
    use crate::facts::BarFacts;
    use crate::units::ByteSize;

    #[rstest]
    #[case("6.12.117-amd64", "", Known::Version((6, 12, 117)))]
    #[case("6.12.48+deb13-amd64", "", Known::Version((6, 12, 48)))]
    #[case("6.1.0-37-amd64", "Linux version 6.1.0-37-amd64 (d@x) #1 SMP Debian 6.1.140-1 (2025-05-22)", Known::Version((6, 1, 140)))]
    #[case("6.1.0-37-amd64", "", Known::Series((6, 1, 0)))]
    #[case("6.8.0-45-generic", "Ubuntu 6.8.0-45.45-generic 6.8.12", Known::Version((6, 8, 12)))]
    #[case("5.14.0-503.el9.x86_64", "", Known::Series((5, 14, 0)))]
    #[case("6.13.0", "", Known::Version((6, 13, 0)))]
    #[case("6.13-rc1", "", Known::Version((6, 13, 0)))]
    #[case("unknown", "", Known::Nothing)]
    #[case("", "", Known::Nothing)]
    fn a_version_is_known_by_release_and_build(
        #[case] release: &str,
        #[case] build: &str,
        #[case] expected: Known,
    ) {
        let kernel =
            KernelFacts { release: release.to_owned(), build: build.to_owned(), ..KernelFacts::default() };
        assert_eq!(known(&kernel), expected);
    }

    #[rstest]
    #[case::before("6.11.9", Verdict::Ok)]
    #[case::begins("6.12.0", Verdict::Warning)]
    #[case::last_of_it("6.12.114-amd64", Verdict::Warning)]
    #[case::fixed_in_part("6.12.116-amd64", Verdict::Warning)]
    #[case::fixed("6.12.117-amd64", Verdict::Ok)]
    #[case::not_in_the_next("6.18.3", Verdict::Warning)]
    #[case::still("7.1.8", Verdict::Warning)]
    #[case::nobody_has_looked("7.2.0", Verdict::Unknown)]
    #[case::refuses("6.1.134", Verdict::Warning)]
    #[case::refuses_no_more("6.1.135", Verdict::Ok)]
    #[case::which_of_them("6.1.0-37-amd64", Verdict::Unknown)]
    #[case::all_of_them("6.14.0-37-generic", Verdict::Warning)]
    #[case::none("garbage", Verdict::Unknown)]
    fn a_kernel_in_a_range_is_warned_of(#[case] release: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let judged: Vec<Verdict> = crate::doctor::device::testing::judge(&CHECK, &facts)
            .iter()
            .map(|judgement| judgement.verdict)
            .collect();
        assert!(judged.contains(&verdict), "{judged:?}");
    }

    #[rstest]
    #[case::in_its_own_series("6.12.40", Some("run 6.12."))]
    #[case::in_a_series_with_its_own_fix("6.14.3", Some("run 6.14.4"))]
    #[case::newer_than_the_fix("6.18.3", None)]
    #[case::newer_than_what_is_known("7.2.0", None)]
    fn nobody_is_told_to_run_an_older_kernel(#[case] release: &str, #[case] run: Option<&str>) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let judged = crate::doctor::device::testing::judge(&CHECK, &facts);
        let told: Vec<&str> =
            judged.iter().filter_map(|judgement| Some(judgement.remedy.as_ref()?.what.as_str())).collect();
        let versions: Vec<&&str> = told.iter().filter(|what| what.starts_with("run ")).collect();
        assert_eq!(versions.is_empty(), run.is_none(), "{told:?}");
        assert!(run.is_none_or(|run| versions.iter().all(|what| what.starts_with(run))), "{told:?}");
        let ends = judged.iter().any(|judgement| judgement.found.contains("where that ends isn't known"));
        assert_eq!(ends, !release.starts_with("6.12"), "{judged:?}");
    }

    #[rstest]
    #[case("6.8.12", true)]
    #[case("7.2.0", false)]
    fn registers_of_32_gib_are_slow_before_6_15(#[case] release: &str, #[case] slow: bool) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let before = told(&CHECK, &facts).1;
        let size = ByteSize::bytes(LARGE);
        change(&mut facts, GPU, |gpu| {
            gpu.bars = vec![BarFacts { index: 1, size, address: Some(1 << 40), kind: BarKind::High }];
        });
        assert_eq!(told(&CHECK, &facts).1 != before, slow);
    }
}
