//! The guest's work as a job that reports: one line that begins with `gpuvm-job:`, which `gpuvm soak --job` reads.

use serde::Serialize;

use crate::report::{Report, RoundTrip};

/// The line's object.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Job {
    /// 0 if everything was right.
    pub(crate) exit: i32,
    /// What wasn't; or what was done.
    pub(crate) message: String,
    /// What was measured.
    pub(crate) figures: Figures,
}

/// What was measured; a device that isn't there has no figure.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// The accelerator's DMA, there and back, in ms.
    #[serde(rename = "dma-ms", skip_serializing_if = "Option::is_none")]
    pub(crate) dma_ms: Option<f64>,
    /// The disk's block, written and read, in ms.
    #[serde(rename = "nvme-ms", skip_serializing_if = "Option::is_none")]
    pub(crate) nvme_ms: Option<f64>,
    /// From the kernel's start to the end of the work, in seconds.
    #[serde(rename = "uptime-s", skip_serializing_if = "Option::is_none")]
    pub(crate) uptime_s: Option<f64>,
}

impl Job {
    /// The line, without a line end.
    pub(crate) fn to_line(&self) -> String {
        match serde_json::to_string(self) {
            Ok(object) => format!("gpuvm-job: {object}"),
            Err(error) => format!("gpuvm-guest: no job: {error}"),
        }
    }
}

/// Judges what the devices did. Both must be there: a guest that lost a device has not done its job.
pub(crate) fn of(report: &Report, uptime: Result<f64, String>) -> Job {
    let mut wrong = report.errors.clone();
    match &report.edu {
        None => wrong.push("there is no accelerator".into()),
        Some(edu) => {
            let right = (1..=edu.factorial_of).fold(1u32, u32::wrapping_mul);
            if edu.factorial != right {
                wrong
                    .push(format!("the factorial of {} is {right}, not {}", edu.factorial_of, edu.factorial));
            }
            if edu.dma.round_trip == RoundTrip::Differs {
                wrong.push("what the accelerator's DMA brought back is not what went out".into());
            }
        }
    }
    match &report.nvme {
        None => wrong.push("there is no disk".into()),
        Some(nvme) if nvme.round_trip == RoundTrip::Differs => {
            wrong.push("what was read from the disk is not what was written".into());
        }
        Some(_) => {}
    }
    let (dma_ms, nvme_ms) =
        (report.edu.as_ref().map(|edu| edu.dma.ms), report.nvme.as_ref().map(|nvme| nvme.ms));
    let figures = Figures { dma_ms, nvme_ms, uptime_s: uptime.map_err(|error| wrong.push(error)).ok() };
    match wrong.is_empty() {
        true => Job { exit: 0, message: "factorial, DMA and disk are right".into(), figures },
        false => Job { exit: 1, message: wrong.join("; "), figures },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edu::{Dma, Edu};
    use crate::nvme::Nvme;
    use crate::report::Firmware;

    fn report() -> Report {
        let dma = Dma { bytes: 2048, address: "0x1000".into(), round_trip: RoundTrip::Equal, ms: 4.25 };
        let edu = Edu {
            bdf: "0000:00:02.0".into(),
            identification: "0x010000ed".into(),
            factorial_of: 13,
            // 13! is more than 32 bits hold.
            factorial: 1_932_053_504,
            dma,
        };
        let nvme = Nvme {
            bdf: "0000:00:03.0".into(),
            model: "QEMU NVMe Ctrl".into(),
            serial: "GPUVMLAB1".into(),
            bytes: 64 << 20,
            round_trip: RoundTrip::Equal,
            ms: 1.5,
        };
        Report {
            gpuvm_guest: 1,
            firmware: Firmware::Bios,
            cpus: 1,
            memory_bytes: 256 << 20,
            nodes: vec![],
            pci: vec![],
            edu: Some(edu),
            nvme: Some(nvme),
            stray_dma: None,
            errors: vec![],
        }
    }

    #[test]
    fn work_that_is_right_exits_with_0_and_its_figures() {
        let line = of(&report(), Ok(3.5)).to_line();
        let object = r#"{"exit":0,"message":"factorial, DMA and disk are right","figures":{"dma-ms":4.25,"nvme-ms":1.5,"uptime-s":3.5}}"#;
        assert_eq!(line, format!("gpuvm-job: {object}"));
    }

    #[test]
    fn whatever_is_wrong_or_missing_is_named_and_exits_with_1() {
        type Spoil = fn(&mut Report);
        let spoilt: [(Spoil, &str); 6] = [
            (|r| r.edu = None, "no accelerator"),
            (|r| r.nvme = None, "no disk"),
            (|r| r.edu.as_mut().unwrap().factorial += 1, "the factorial of 13 is 1932053504, not 1932053505"),
            (|r| r.edu.as_mut().unwrap().dma.round_trip = RoundTrip::Differs, "DMA brought back"),
            (|r| r.nvme.as_mut().unwrap().round_trip = RoundTrip::Differs, "read from the disk"),
            (|r| r.errors.push("nvme: no namespace".into()), "no namespace"),
        ];
        for (spoil, named) in spoilt {
            let mut report = report();
            spoil(&mut report);
            let job = of(&report, Ok(3.5));
            assert!(job.exit == 1 && job.message.contains(named), "{job:?}");
        }
        let job = of(&report(), Err("/proc/uptime: gone".into()));
        assert_eq!((job.exit, job.message.as_str(), job.figures.uptime_s), (1, "/proc/uptime: gone", None));
    }
}
