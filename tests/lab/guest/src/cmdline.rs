//! The guest's options: words of the kernel command line that begin with `gpuvm.`.

use std::time::Duration;

/// What the guest was told to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// `gpuvm.factorial=N`: the number whose factorial the accelerator computes.
    pub(crate) factorial: u32,
    /// `gpuvm.stray-dma=0xADDRESS`: make the accelerator write 8 bytes there, outside the guest's memory.
    pub(crate) stray_dma: Option<u64>,
    /// `gpuvm.job`: report the work as a job's, for `gpuvm soak --job`, once the power button is listened to.
    pub(crate) job: bool,
    /// `gpuvm.linger=SECONDS`: stay up after the report, until then or until the power button.
    pub(crate) linger: Option<Duration>,
    /// `gpuvm.ignore-power-button`: a guest that doesn't react to ACPI.
    pub(crate) ignore_power_button: bool,
    /// `gpuvm.talk`: answer what is typed at the console while it stays up.
    pub(crate) talk: bool,
    /// `gpuvm.panic`: end in a kernel panic instead of a power-off.
    pub(crate) panic: bool,
    /// `gpuvm.reboot-once`: reboot after the report; the boot after that goes on. The disk remembers which it is.
    pub(crate) reboot_once: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            factorial: 10,
            stray_dma: None,
            job: false,
            linger: None,
            ignore_power_button: false,
            talk: false,
            panic: false,
            reboot_once: false,
        }
    }
}

/// Reads the options, and says which `gpuvm.` words make no sense.
pub(crate) fn parse(line: &str) -> (Options, Vec<String>) {
    let mut options = Options::default();
    let mut errors = Vec::new();
    for word in line.split_whitespace().filter_map(|word| word.strip_prefix("gpuvm.")) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if apply(&mut options, key, value).is_none() {
            errors.push(format!("kernel command line: gpuvm.{word} isn't understood"));
        }
    }
    (options, errors)
}

/// Takes one option, or says `None`.
fn apply(options: &mut Options, key: &str, value: &str) -> Option<()> {
    match (key, value) {
        ("factorial", number) => options.factorial = number.parse().ok()?,
        ("stray-dma", address) => options.stray_dma = Some(parse_address(address)?),
        ("job", "") => options.job = true,
        ("linger", seconds) => options.linger = Some(Duration::from_secs(seconds.parse().ok()?)),
        ("ignore-power-button", "") => options.ignore_power_button = true,
        ("talk", "") => options.talk = true,
        ("panic", "") => options.panic = true,
        ("reboot-once", "") => options.reboot_once = true,
        _ => return None,
    }
    Some(())
}

/// A hexadecimal number with `0x` before it, as sysfs and people write addresses.
pub(crate) fn parse_address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_picked_out_of_the_line() {
        let line = "console=ttyS0 quiet gpuvm.factorial=12 gpuvm.stray-dma=0x7f0000000 gpuvm.job gpuvm.linger=60 gpuvm.ignore-power-button gpuvm.talk gpuvm.panic gpuvm.reboot-once\n";
        let (options, errors) = parse(line);
        let wanted = Options {
            factorial: 12,
            stray_dma: Some(0x7_f000_0000),
            job: true,
            linger: Some(Duration::from_secs(60)),
            ignore_power_button: true,
            talk: true,
            panic: true,
            reboot_once: true,
        };
        assert_eq!((options, errors), (wanted, vec![]));
    }

    #[test]
    fn without_options_there_are_defaults() {
        assert_eq!(parse("console=ttyS0 panic=-1 gpuvmx=1"), (Options::default(), vec![]));
    }

    #[test]
    fn nonsense_is_reported_and_leaves_the_default() {
        for word in [
            "gpuvm.factorial=ten",
            "gpuvm.stray-dma=123",
            "gpuvm.linger=-1",
            "gpuvm.panic=1",
            "gpuvm.unknown",
        ] {
            let (options, errors) = parse(word);
            assert_eq!(options, Options::default(), "{word}");
            assert_eq!(errors, [format!("kernel command line: {word} isn't understood")]);
        }
    }
}
