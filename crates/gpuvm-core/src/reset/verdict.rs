//! Judges a device by its snapshots before and after a run.

use serde::{Deserialize, Serialize};

use super::Snapshot;
use crate::pci::PciId;

/// What a device is fit for after a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It answers, as the device that it was.
    Alive,
    /// It doesn't.
    Sick {
        /// What is wrong with it.
        findings: Vec<Finding>,
    },
}

/// One thing that is wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "finding")]
pub enum Finding {
    /// Its config space couldn't be read: unread is never healthy.
    #[error("its config space couldn't be read ({message})")]
    Unread {
        /// Why.
        message: String,
    },
    /// All ones: the device fell off the bus.
    #[error("its config space reads all ones: it has fallen off the bus")]
    AllOnes,
    /// Still in reset: it answers requests with Request Retry Status (vendor id 0001).
    #[error("it is still in reset (vendor id 0001, Request Retry Status)")]
    Retrying,
    /// Another id than before.
    #[error("it answers as {now}, and was {was}")]
    OtherId {
        /// Before the run.
        was: PciId,
        /// After it.
        now: PciId,
    },
    /// A register that never changes has changed.
    #[error("{register} reads {now:#x}, and was {was:#x}")]
    Changed {
        /// The register's name.
        register: String,
        /// Before the run.
        was: u32,
        /// After it.
        now: u32,
    },
}

/// Judges a device. `after` is the reading after the run, or why there is none.
pub fn judge(before: &Snapshot, after: Result<Snapshot, String>) -> Verdict {
    let findings = match after {
        Err(message) => vec![Finding::Unread { message }],
        Ok(after) => findings(before, &after),
    };
    if findings.is_empty() { Verdict::Alive } else { Verdict::Sick { findings } }
}

fn findings(before: &Snapshot, after: &Snapshot) -> Vec<Finding> {
    // A VF's ids always read ffff (SR-IOV 1.1, 3.4.1.1), so its command register tells whether it is there.
    let virtual_function = before.id.vendor == 0xffff && before.command != 0xffff;
    if after.command == 0xffff && (virtual_function || after.id.vendor == 0xffff) {
        return vec![Finding::AllOnes];
    }
    // No vendor has this id (PCI Express Base Specification 2.3.2).
    if after.id.vendor == 0x0001 {
        return vec![Finding::Retrying];
    }
    let mut findings = Vec::new();
    if after.id != before.id {
        findings.push(Finding::OtherId { was: before.id, now: after.id });
    }
    let registers = [
        ("class and revision", before.class_revision, after.class_revision),
        ("header type", before.header_type.into(), after.header_type.into()),
        ("interrupt pin", before.interrupt_pin.into(), after.interrupt_pin.into()),
    ];
    for (register, was, now) in registers {
        if was != now {
            findings.push(Finding::Changed { register: register.to_owned(), was, now });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut config = vec![0u8; 256];
        config[..16].copy_from_slice(&[0x36, 0x1b, 0x10, 0, 7, 5, 0x10, 0, 2, 2, 8, 1, 0, 0, 0, 0]);
        config[0x3d] = 1;
        for (at, byte) in bytes {
            config[*at] = *byte;
        }
        config
    }

    fn verdict(after: &[u8]) -> Verdict {
        judge(&Snapshot::new(&config(&[])).unwrap(), Snapshot::new(after).ok_or("short".to_owned()))
    }

    #[test]
    fn a_device_that_reads_as_before_is_alive_whatever_its_command_register() {
        assert_eq!(verdict(&config(&[(4, 0), (5, 0)])), Verdict::Alive);
    }

    #[test]
    fn all_ones_are_a_lost_device_and_not_five_changed_registers() {
        assert_eq!(verdict(&[0xff; 256]), Verdict::Sick { findings: vec![Finding::AllOnes] });
    }

    #[test]
    fn a_retrying_device_is_named_so() {
        let mut after = vec![0xff; 256];
        after[..2].copy_from_slice(&[1, 0]);
        assert_eq!(verdict(&after), Verdict::Sick { findings: vec![Finding::Retrying] });
    }

    #[test]
    fn another_id_or_header_is_sick() {
        let Verdict::Sick { findings } = verdict(&config(&[(2, 0x11), (0x0e, 0x7f)])) else {
            panic!("alive")
        };
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn an_unread_device_is_never_alive() {
        assert!(matches!(verdict(&[0; 10]), Verdict::Sick { .. }));
    }

    #[test]
    fn a_virtual_function_is_judged_by_its_command_register() {
        let mut vf = vec![0u8; 64];
        vf[..4].copy_from_slice(&[0xff; 4]);
        let before = Snapshot::new(&vf).unwrap();
        assert_eq!(judge(&before, Ok(before)), Verdict::Alive);
        let gone = Snapshot::new(&[0xff; 64]).unwrap();
        assert_eq!(judge(&before, Ok(gone)), Verdict::Sick { findings: vec![Finding::AllOnes] });
    }
}
