//! What is meant on the command line: an address, a slot, or a profile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gpuvm_core::pci::{Bdf, Slot};
use gpuvm_core::plan::Target;

use crate::cli::{Cli, ProfileArgs};
use crate::failure::Failure;
use crate::{load, locked};

/// A target as it is named.
#[derive(Debug, Clone)]
pub(crate) enum Named {
    Function(Bdf),
    Slot(Slot),
    Profile(PathBuf),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(bdf) = text.parse() {
            return Ok(Self::Function(bdf));
        }
        if let Ok(slot) = text.parse() {
            return Ok(Self::Slot(slot));
        }
        let path = Path::new(text);
        let profile =
            path.extension().is_some_and(|end| end == "toml") || text.contains('/') || path.is_file();
        match profile {
            true => Ok(Self::Profile(path.to_owned())),
            false => {
                Err("expected an address like 0000:81:00.0, a slot like 0000:81:00, or a profile".to_owned())
            }
        }
    }
}

/// What is done about a profile whose lock no longer fits the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cmd) enum Changed {
    /// It is refused, as `up` does: another card may be at the address.
    Refused,
    /// It is taken as it is: what is given back is on record.
    Taken,
}

/// Reads the profiles among the targets, and lists the functions that must be looked at.
pub(in crate::cmd) fn resolve(
    cli: &Cli,
    named: &[Named],
    changed: Changed,
) -> Result<(Vec<Target>, BTreeSet<Bdf>), Failure> {
    let mut targets = Vec::new();
    let mut asked = BTreeSet::new();
    for name in named {
        targets.push(match name {
            Named::Function(bdf) => {
                asked.insert(*bdf);
                Target::Function(*bdf)
            }
            Named::Slot(slot) => {
                asked.insert(slot.first());
                Target::Slot(*slot)
            }
            Named::Profile(path) => {
                let args = ProfileArgs { profile: path.clone(), set: Vec::new() };
                let loaded = load::profile(cli, &args)?;
                if changed == Changed::Refused {
                    let changes = locked::changes(cli, &loaded.profile, loaded.lock.lock.as_ref())?;
                    if locked::matter(&changes) {
                        return Err(locked::refusal(&loaded.lock, &args, &changes));
                    }
                }
                let devices = loaded.profile.devices;
                asked.extend(
                    devices.iter().flat_map(|device| device.hold.iter().copied().chain([device.bdf])),
                );
                Target::Profile(devices)
            }
        });
    }
    Ok((targets, asked))
}
