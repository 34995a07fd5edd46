//! What the kernel's log says of resets, power, links and errors.
//!
//! The texts are those of Linux 6.1 to 7.1: drivers/pci/pci.c (resets, power), drivers/pci/pcie/{aer,dpc,err}.c,
//! drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c. A text counts only where the kernel puts it, behind the driver and
//! the address of the device: one that quotes another says nothing. `resetting` and `reset done` aren't among them, since the
//! kernel says the latter whatever the reset came to.

use crate::pci::Bdf;

/// One line of the kernel's log that tells something of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The function or port that it is about.
    pub bdf: Bdf,
    /// Whether the line names the function without its domain, as those of the Intel IOMMU do: it may be any of the domains.
    pub any_domain: bool,
    /// What has happened.
    pub what: What,
}

/// What the kernel's log tells of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It didn't answer so long after a reset, and the kernel waits on.
    Waiting {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by, as the kernel says it: `FLR`, `bus reset`, `resume`.
        after: String,
    },
    /// It didn't answer so long after a reset, and the kernel has given up.
    GaveUp {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by.
        after: String,
    },
    /// It answered after so long; the kernel says it only of more than a second.
    Ready {
        /// How long, in ms.
        ms: u64,
        /// What it was reset by.
        after: String,
    },
    /// The link below this port didn't come up.
    LinkNotActive {
        /// How long the kernel has waited, in ms.
        ms: u64,
    },
    /// It was reset although transactions were pending.
    PendingTransaction,
    /// It couldn't be woken from this power state.
    PowerStuck {
        /// The state, as the kernel says it.
        from: String,
    },
    /// Its config space doesn't answer.
    Inaccessible,
    /// An error was reported.
    Error(Severity),
    /// The kernel has recovered it from an error.
    Recovered,
    /// The kernel couldn't recover it from an error.
    RecoveryFailed,
    /// The IOMMU has stopped an access of it.
    IommuFault,
}

/// How bad a reported error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The hardware has repaired it.
    Correctable,
    /// It has cost a transaction.
    Nonfatal,
    /// It has cost the link.
    Fatal,
}

/// Resets and power, of the device that the line begins with: what the message holds, and what it tells.
const PLAIN: [(&str, What); 4] = [
    ("timed out waiting for pending transaction", What::PendingTransaction),
    ("Device config space inaccessible", What::Inaccessible),
    ("device recovery failed", What::RecoveryFailed),
    ("device recovery successful", What::Recovered),
];
/// Beginnings of the messages of a power state that couldn't be changed; the state follows.
const STUCK: [&str; 3] = [
    "Unable to change power state from ",
    "Refused to change power state from ",
    "can't change power state from ",
];

impl Event {
    /// Reads a line of the log; nothing of one that tells nothing of a function's health.
    pub fn parse(line: &str) -> Option<Self> {
        if let Some(faulting) = iommu_fault(line) {
            return Self::of(&faulting, What::IommuFault);
        }
        let (bdf, message) = of_device(line)?;
        let event = |what| Self { bdf, any_domain: false, what };
        let message = message.strip_prefix("AER: ").unwrap_or(message);
        if let Some((source, severity)) = received(message) {
            return Self::of(source, What::Error(severity));
        }
        what(message).map(event)
    }

    fn of(address: &str, what: What) -> Option<Self> {
        // With its domain, it has two colons.
        let any_domain = address.matches(':').count() < 2;
        Some(Self { bdf: address.parse().ok()?, any_domain, what })
    }

    /// Tells whether a function may be the one that the line is about.
    pub fn is_about(&self, bdf: Bdf) -> bool {
        self.bdf == bdf || (self.any_domain && self.bdf.in_domain_of(bdf) == bdf)
    }
}

/// Splits the line of a device, `vfio-pci 0000:81:00.0: message`, into its address and its message.
fn of_device(line: &str) -> Option<(Bdf, &str)> {
    let (head, message) = line.split_once(": ")?;
    let (driver, address) = head.split_once(' ')?;
    let is_name = !driver.is_empty() && driver.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    Some((address.parse().ok()?, message)).filter(|_| is_name)
}

/// How long the kernel's resets of one function took: what it says before and after each, with the log's own time.
///
/// It says `reset done` whatever the reset came to, so that this tells of times and of nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResetTimes {
    /// When the one began that isn't over, in us since boot.
    begun: Option<u64>,
    /// The others, in ms, oldest first.
    took: Vec<u64>,
}

impl ResetTimes {
    /// The most that are kept until they are taken.
    const MOST: usize = 500;

    /// Takes in a line of the log that was said at a time, in us since boot; those of other functions change nothing.
    pub fn take_in(&mut self, bdf: Bdf, at: u64, line: &str) {
        let Some((of, message)) = of_device(line) else { return };
        match message.trim_end() {
            _ if of != bdf => {}
            // The end of one that had begun before was never said: nobody knows how long it took.
            "resetting" => self.begun = Some(at),
            "reset done" => {
                let took = self.begun.take().and_then(|begun| at.checked_sub(begun));
                let room = self.took.len() < Self::MOST;
                self.took.extend(took.filter(|_| room).map(|us| (us + 500) / 1000));
            }
            _ => {}
        }
    }

    /// Learns that lines are missing: what begins before them and what ends behind them may be two resets.
    pub fn missed(&mut self) {
        self.begun = None;
    }

    /// Returns those that are known and weren't taken yet.
    pub fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.took)
    }
}

/// Reads the message of a device.
fn what(message: &str) -> Option<What> {
    if let Some((_, what)) = PLAIN.iter().find(|(text, _)| message.starts_with(text)) {
        return Some(what.clone());
    }
    if let Some(rest) = STUCK.iter().find_map(|text| message.strip_prefix(text)) {
        let (from, _to) = rest.split_once(" to ")?;
        return Some(What::PowerStuck { from: from.to_owned() });
    }
    if let Some(rest) = message.strip_prefix("not ready ") {
        let (ms, rest) = milliseconds(rest)?;
        let (after, end) = rest.strip_prefix(" after ")?.rsplit_once("; ")?;
        let after = after.to_owned();
        return match end {
            "waiting" => Some(What::Waiting { ms, after }),
            "giving up" => Some(What::GaveUp { ms, after }),
            _ => None,
        };
    }
    if let Some(rest) = message.strip_prefix("ready ") {
        let (ms, rest) = milliseconds(rest)?;
        return Some(What::Ready { ms, after: rest.strip_prefix(" after ")?.to_owned() });
    }
    if let Some(rest) = message.strip_prefix("Data Link Layer Link Active not set in ") {
        let ms = rest.strip_suffix(" msec")?.parse().ok()?;
        return Some(What::LinkNotActive { ms });
    }
    // Downstream Port Containment: the port has cut the link because of an uncorrectable error.
    if message.starts_with("DPC: containment event") {
        return Some(What::Error(Severity::Fatal));
    }
    if let Some((_, severity)) = message.strip_prefix("PCIe Bus Error: ")?.split_once("severity=") {
        return severity_of(severity.split_once(',').map_or(severity, |(word, _)| word)).map(What::Error);
    }
    None
}

/// Splits `1023ms after FLR` behind the unit.
fn milliseconds(text: &str) -> Option<(u64, &str)> {
    let (ms, rest) = text.split_once("ms")?;
    Some((ms.parse().ok()?, rest))
}

/// Reads what a port says of an error that it was told of, and who told it:
/// `Multiple Uncorrectable (Non-Fatal) error message received from 0000:02:00.0`.
fn received(message: &str) -> Option<(&str, Severity)> {
    let message = message.strip_prefix("Multiple ").unwrap_or(message);
    let (severity, rest) = message.split_once(" error ")?;
    let source = rest.strip_prefix("message received from ").or_else(|| rest.strip_prefix("received: "))?;
    Some((source.split_ascii_whitespace().next()?, severity_of(severity)?))
}

/// Reads a severity; older kernels say "Corrected" and "Uncorrected".
fn severity_of(text: &str) -> Option<Severity> {
    match text.trim() {
        "Correctable" | "Corrected" => Some(Severity::Correctable),
        "Uncorrectable (Non-Fatal)" | "Uncorrected (Non-Fatal)" => Some(Severity::Nonfatal),
        "Uncorrectable (Fatal)" | "Uncorrected (Fatal)" => Some(Severity::Fatal),
        _ => None,
    }
}

/// Returns the address in a report of an IOMMU:
/// `DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr 0x0 ...`,
/// `vfio-pci 0000:81:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e ...]` or, of a device that the kernel doesn't know,
/// `AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:81:00.0 ...]`.
fn iommu_fault(line: &str) -> Option<String> {
    if let Some(rest) = line.strip_prefix("DMAR: ").or_else(|| line.strip_prefix("DMAR:")) {
        let (_, rest) = rest.split_once("Request device [")?;
        return rest.split_once(']').map(|(address, _)| address.to_owned());
    }
    let logged = "AMD-Vi: Event logged [";
    if let Some(rest) = line.strip_prefix(logged) {
        let (_, rest) = rest.split_once("device=")?;
        let end = |c: char| c == ' ' || c == ']';
        return rest.split(end).next().map(str::to_owned);
    }
    let (bdf, message) = of_device(line)?;
    message.starts_with(logged).then(|| bdf.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn read(line: &str) -> Option<(String, What)> {
        Event::parse(line).map(|event| (event.bdf.to_string(), event.what))
    }

    fn after(ms: u64, make: impl Fn(u64, String) -> What, kind: &str) -> What {
        make(ms, kind.to_owned())
    }

    #[rstest]
    #[case::waiting(
        "vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting",
        after(1023, |ms, after| What::Waiting { ms, after }, "FLR")
    )]
    #[case::gave_up(
        "vfio-pci 0000:81:00.0: not ready 65535ms after bus reset; giving up",
        after(65535, |ms, after| What::GaveUp { ms, after }, "bus reset")
    )]
    #[case::ready(
        "nvidia 0000:81:00.0: ready 2047ms after PM D3hot->D0",
        after(2047, |ms, after| What::Ready { ms, after }, "PM D3hot->D0")
    )]
    #[case::link("pcieport 0000:81:00.0: Data Link Layer Link Active not set in 100 msec", What::LinkNotActive { ms: 100 })]
    #[case::pending(
        "vfio-pci 0000:81:00.0: timed out waiting for pending transaction; performing function level reset anyway",
        What::PendingTransaction
    )]
    #[case::stuck(
        "vfio-pci 0000:81:00.0: Unable to change power state from D3hot to D0, device inaccessible",
        What::PowerStuck { from: "D3hot".to_owned() }
    )]
    #[case::stuck_on_the_way_down(
        "vfio-pci 0000:81:00.0: Unable to change power state from D0 to D3hot, device inaccessible",
        What::PowerStuck { from: "D0".to_owned() }
    )]
    #[case::refused(
        "vfio-pci 0000:81:00.0: Refused to change power state from D3hot to D0",
        What::PowerStuck { from: "D3hot".to_owned() }
    )]
    #[case::inaccessible(
        "vfio-pci 0000:81:00.0: Device config space inaccessible; unable to save config state",
        What::Inaccessible
    )]
    #[case::correctable(
        "igb 0000:81:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
        What::Error(Severity::Correctable)
    )]
    #[case::fatal_by_aer(
        "igb 0000:81:00.0: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Inaccessible, (Unregistered Agent ID)",
        What::Error(Severity::Fatal)
    )]
    #[case::of_an_older_kernel(
        "igb 0000:81:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer",
        What::Error(Severity::Nonfatal)
    )]
    #[case::told_by_the_port(
        "pcieport 0000:80:01.0: AER: Uncorrectable (Non-Fatal) error message received from 0000:81:00.0",
        What::Error(Severity::Nonfatal)
    )]
    #[case::told_of_many(
        "pcieport 0000:80:01.0: AER: Multiple Corrected error received: 0000:81:00.0",
        What::Error(Severity::Correctable)
    )]
    #[case::contained(
        "pcieport 0000:81:00.0: DPC: containment event, status:0x1f01 source:0x0000",
        What::Error(Severity::Fatal)
    )]
    #[case::recovered("pcieport 0000:81:00.0: AER: device recovery successful", What::Recovered)]
    #[case::not_recovered("pcieport 0000:81:00.0: AER: device recovery failed", What::RecoveryFailed)]
    #[case::vt_d(
        "DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr 0xfee00000 [fault reason 0x06] PTE Read access is not set",
        What::IommuFault
    )]
    #[case::vt_d_with_domain(
        "DMAR: [DMA Write] Request device [0000:81:00.0] fault addr 0x0",
        What::IommuFault
    )]
    #[case::interrupt_remapping(
        "DMAR: [INTR-REMAP] Request device [81:00.0] fault index 0x1 [fault reason 0x26] Blocked an interrupt request",
        What::IommuFault
    )]
    #[case::amd_known(
        "vfio-pci 0000:81:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0xfdf8000000 flags=0x0000]",
        What::IommuFault
    )]
    #[case::amd_unknown(
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:81:00.0 domain=0x0000 address=0x0 flags=0x0020]",
        What::IommuFault
    )]
    #[case::amd_of_an_older_kernel(
        "AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=81:00.0 address=0x1]",
        What::IommuFault
    )]
    fn a_line_tells_what_happened_and_to_whom(#[case] line: &str, #[case] what: What) {
        assert_eq!(read(line), Some(("0000:81:00.0".to_owned(), what)));
    }

    #[rstest]
    #[case::whatever_it_came_to("vfio-pci 0000:81:00.0: reset done")]
    #[case::a_quotation("vfio-pci 0000:81:00.0: somebody said: not ready 1023ms after FLR; waiting")]
    #[case::no_device("systemd[1]: not ready 1023ms after FLR; waiting")]
    #[case::no_number("vfio-pci 0000:81:00.0: not ready ms after FLR; waiting")]
    #[case::too_big_a_number("vfio-pci 0000:81:00.0: not ready 99999999999999999999ms after FLR; waiting")]
    #[case::another_end("vfio-pci 0000:81:00.0: not ready 1ms after FLR; dancing")]
    #[case::another_severity("igb 0000:81:00.0: PCIe Bus Error: severity=Odd, type=Physical Layer")]
    #[case::details("igb 0000:81:00.0:   device [8086:10c9] error status/mask=00000001/00002000")]
    #[case::no_address("DMAR: [DMA Read] Request device [somebody] fault addr 0x0")]
    #[case::no_fault("DMAR: DRHD: handling fault status reg 2")]
    #[case::empty("")]
    fn what_tells_nothing_of_its_health_is_no_event(#[case] line: &str) {
        assert_eq!(Event::parse(line), None);
    }

    #[rstest]
    #[case::any_domain("DMAR: [DMA Read] Request device [81:00.0] fault addr 0x0", "0001:81:00.0", true)]
    #[case::another_device("DMAR: [DMA Read] Request device [81:00.0] fault addr 0x0", "0000:81:00.1", false)]
    #[case::another_domain(
        "vfio-pci 0000:81:00.0: not ready 1ms after FLR; giving up",
        "0001:81:00.0",
        false
    )]
    #[case::its_own("vfio-pci 0001:81:00.0: not ready 1ms after FLR; giving up", "0001:81:00.0", true)]
    fn a_line_without_a_domain_may_be_about_any(#[case] line: &str, #[case] bdf: &str, #[case] ours: bool) {
        assert_eq!(Event::parse(line).unwrap().is_about(bdf.parse().unwrap()), ours);
    }

    const BEGINS: &str = "vfio-pci 0000:81:00.0: resetting";
    const OVER: &str = "vfio-pci 0000:81:00.0: reset done";

    #[rstest]
    #[case::one(&[(1_000, BEGINS), (104_400, OVER)], &[103])]
    #[case::two(&[(0, BEGINS), (2_000, OVER), (5_000, BEGINS), (9_600, OVER)], &[2, 5])]
    #[case::with_another_between(
        &[(0, BEGINS), (100, "vfio-pci 0000:81:00.1: resetting"), (900, "vfio-pci 0000:81:00.1: reset done"), (7_000, OVER)],
        &[7]
    )]
    #[case::never_over(&[(0, BEGINS), (50_000, BEGINS), (51_000, OVER)], &[1])]
    #[case::not_begun(&[(50_000, OVER), (51_000, OVER)], &[])]
    #[case::still_going_on(&[(50_000, BEGINS)], &[])]
    #[case::back_in_time(&[(50_000, BEGINS), (40_000, OVER)], &[])]
    #[case::a_quotation(&[(0, BEGINS), (9_000, "vfio-pci 0000:81:00.0: it said: reset done")], &[])]
    #[case::by_another_driver(
        &[(0, "nvgrace-gpu-vfio-pci 0000:81:00.0: resetting"), (3_000, "nvgrace-gpu-vfio-pci 0000:81:00.0: reset done")],
        &[3]
    )]
    fn resets_are_as_long_as_the_log_says(#[case] lines: &[(u64, &str)], #[case] expected: &[u64]) {
        let mut times = ResetTimes::default();
        for (at, line) in lines {
            times.take_in("0000:81:00.0".parse().unwrap(), *at, line);
        }
        assert_eq!(times.take(), expected);
        assert_eq!(times.take(), [0; 0], "they are taken once");
    }

    #[test]
    fn two_halves_of_two_resets_are_no_reset() {
        let (bdf, mut times) = ("0000:81:00.0".parse().unwrap(), ResetTimes::default());
        times.take_in(bdf, 0, BEGINS);
        times.missed();
        times.take_in(bdf, 9_000, OVER);
        assert_eq!(times.take(), [0; 0]);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(line in ".*") {
            let _ = Event::parse(&line);
        }

        #[test]
        fn numbers_and_addresses_are_read_back(
            (bus, device, function) in (any::<u8>(), 0u8..32, 0u8..8),
            ms: u64,
            kind in "(FLR|AF_FLR|bus reset|resume|PM D3hot->D0)",
        ) {
            let bdf = Bdf::new(0, bus, device, function).unwrap();
            let event = Event::parse(&format!("vfio-pci {bdf}: not ready {ms}ms after {kind}; giving up")).unwrap();
            prop_assert_eq!(event, Event { bdf, any_domain: false, what: What::GaveUp { ms, after: kind } });
        }

        #[test]
        fn a_known_line_that_is_cut_or_spoilt_tells_nothing_worse(
            at in 0usize..60,
            junk in "\\PC{0,4}",
        ) {
            let line = "vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting";
            let spoilt = format!("{}{junk}{}", &line[..at.min(line.len())], &line[at.min(line.len())..]);
            let gave_up = matches!(Event::parse(&spoilt), Some(Event { what: What::GaveUp { .. }, .. }));
            prop_assert!(!gave_up);
        }
    }
}
