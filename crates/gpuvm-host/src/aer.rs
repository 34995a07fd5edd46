//! The errors that Advanced Error Reporting has counted (Documentation/ABI/testing/sysfs-bus-pci-devices-aer).

use std::path::Path;

use gpuvm_core::facts::ErrorCounters;

use crate::HostError;
use crate::root::{read_parsed, read_text};

/// Reads what was counted of a function: lines of `NAME COUNT`, the last of them the sum; nothing where the kernel counts nothing.
///
/// # Errors
/// Returns failures to read, and a file without a sum.
pub(crate) fn of_function(folder: &Path) -> Result<Option<ErrorCounters>, HostError> {
    let total = |name: &str| -> Result<Option<u64>, HostError> {
        let path = folder.join(name);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let sum = text.lines().find_map(|line| line.strip_prefix("TOTAL_ERR_")?.split_once(' '));
        let sum = sum.and_then(|(_, count)| count.trim().parse().ok());
        sum.map(Some).ok_or_else(|| HostError::content(&path, &text, "there is no total"))
    };
    let counters = total("aer_dev_correctable")?.zip(total("aer_dev_nonfatal")?).zip(total("aer_dev_fatal")?);
    Ok(counters.map(|((correctable, nonfatal), fatal)| ErrorCounters { correctable, nonfatal, fatal }))
}

/// Reads what a root port was told of, by itself and everything below it: one number a file.
///
/// # Errors
/// Returns failures to read, and what is no number.
pub(crate) fn of_root_port(folder: &Path) -> Result<Option<ErrorCounters>, HostError> {
    let total = |name: &str| read_parsed::<u64>(&folder.join(name));
    let counters = total("aer_rootport_total_err_cor")?
        .zip(total("aer_rootport_total_err_nonfatal")?)
        .zip(total("aer_rootport_total_err_fatal")?);
    Ok(counters.map(|((correctable, nonfatal), fatal)| ErrorCounters { correctable, nonfatal, fatal }))
}
