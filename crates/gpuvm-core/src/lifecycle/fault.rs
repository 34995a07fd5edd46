//! What stopped a guest that QEMU calls `internal-error`: one word for a device, for KVM, and for whatever else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pci::Bdf;
use crate::reset::{Check, Finding};

/// Why QEMU can't go on with a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Fault {
    /// A passed-through device has an error that can't be corrected.
    Device {
        /// The device.
        bdf: Bdf,
        /// What of it shows in its registers or counters; nothing where QEMU's word is all there is.
        seen: Option<String>,
    },
    /// KVM can't run the guest's CPU.
    Kvm {
        /// What QEMU said.
        said: String,
    },
    /// Nobody knows.
    #[default]
    Unknown,
}

impl fmt::Display for Fault {
    /// Says it in words that go after "because of".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { bdf, seen: Some(seen) } => write!(f, "an error of {bdf} ({seen})"),
            Self::Device { bdf, seen: None } => {
                write!(f, "an error of {bdf}, of which nothing shows in its registers and counters")
            }
            Self::Kvm { said } => write!(f, "KVM ({said})"),
            Self::Unknown => f.write_str("an error that it can't go on from"),
        }
    }
}

impl Fault {
    /// Tells a fault from what QEMU has written to stderr, and from what is found of the passed-through devices against their baselines,
    /// while the guest stands still.
    ///
    /// QEMU's line names the device whose error the kernel has told it (`vfio_err_notifier_handler` of hw/vfio/pci.c). A device whose
    /// counters or registers alone tell of an error counts too, if QEMU says nothing of KVM: the line may be lost.
    pub fn tell(stderr: &str, findings: &[Finding]) -> Self {
        let errors = findings.iter().filter(|finding| is_error(finding));
        let seen = |bdf: Bdf| errors.clone().find(|finding| finding.bdf == bdf).map(ToString::to_string);
        if let Some(bdf) = stderr.lines().rev().find_map(device_line) {
            // The errors of a device may be counted by its root port alone.
            let seen = seen(bdf).or_else(|| errors.clone().next().map(ToString::to_string));
            return Self::Device { bdf, seen };
        }
        if let Some(said) = stderr.lines().rev().find(|line| is_kvm_line(line)) {
            return Self::Kvm { said: said.trim().to_owned() };
        }
        // A root port's counters tell of everything below it.
        match errors.clone().find(|finding| finding.check != Check::RootPortErrors) {
            Some(finding) => Self::Device { bdf: finding.bdf, seen: Some(finding.to_string()) },
            None => Self::Unknown,
        }
    }
}

/// Reads the line by which QEMU tells that the kernel has told it of a device's error:
/// `vfio_err_notifier_handler(0000:02:00.0) Unrecoverable error detected. ...`.
fn device_line(line: &str) -> Option<Bdf> {
    let (_, rest) = line.split_once("vfio_err_notifier_handler(")?;
    rest.split_once(')')?.0.parse().ok()
}

/// Tells whether a line is one of those that accel/kvm writes before it stops a guest for good.
fn is_kvm_line(line: &str) -> bool {
    ["KVM internal error", "kvm run failed", "KVM: entry failed", "KVM: unknown exit"]
        .iter()
        .any(|words| line.contains(words))
}

/// Tells whether a finding is a sign of an error on a device in use. Most others are its guest's doing: a guest moves BARs and links.
fn is_error(finding: &Finding) -> bool {
    matches!(
        finding.check,
        Check::AllOnes | Check::Retrying | Check::NonfatalErrors | Check::FatalErrors | Check::RootPortErrors
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::reset::Verdict;

    const DEVICE: &str =
        "qemu: vfio_err_notifier_handler(0000:02:00.0) Unrecoverable error detected. Please collect any data";
    const KVM: &str = "KVM internal error. Suberror: 1";

    fn finding(check: Check, bdf: &str) -> Finding {
        let (register, meaning) = ("aer_dev_nonfatal".to_owned(), "it had errors".to_owned());
        let (before, after) = (Some("0".to_owned()), "1".to_owned());
        Finding {
            check,
            weight: Some(Verdict::Faulted),
            bdf: bdf.parse().unwrap(),
            register,
            before,
            after,
            meaning,
        }
    }

    #[rstest]
    #[case::line_and_counter(DEVICE, vec![finding(Check::NonfatalErrors, "0000:02:00.0")], "an error of 0000:02:00.0 (aer_dev_nonfatal of 0000:02:00.0: 1")]
    #[case::line_and_the_ports_counter(DEVICE, vec![finding(Check::RootPortErrors, "0000:00:04.0")], "an error of 0000:02:00.0 (aer_dev_nonfatal of 0000:00:04.0: 1")]
    #[case::line_and_the_guests_own_doing(DEVICE, vec![finding(Check::Bars, "0000:02:00.0")], "an error of 0000:02:00.0, of which nothing shows")]
    #[case::counter_alone("", vec![finding(Check::AllOnes, "0000:02:00.0")], "an error of 0000:02:00.0 (")]
    #[case::a_port_alone_names_no_device("", vec![finding(Check::RootPortErrors, "0000:00:04.0")], "an error that it can't go on from")]
    #[case::kvm(KVM, vec![], "KVM (KVM internal error. Suberror: 1)")]
    #[case::kvm_run("error: kvm run failed Bad address\nRAX=0", vec![], "KVM (error: kvm run failed Bad address)")]
    #[case::line_of_no_device("vfio_err_notifier_handler(gpu0) Unrecoverable", vec![], "an error that it can't go on from")]
    #[case::nothing("", vec![], "an error that it can't go on from")]
    fn what_stopped_a_guest_is_told_apart(
        #[case] stderr: &str,
        #[case] findings: Vec<Finding>,
        #[case] words: &str,
    ) {
        let told = Fault::tell(stderr, &findings).to_string();
        assert!(told.starts_with(words), "{told}");
    }
}
