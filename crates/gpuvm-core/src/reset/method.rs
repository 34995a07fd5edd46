//! What the reset methods that the kernel lists come to.

use serde::{Deserialize, Serialize};

use crate::facts::HostFacts;
use crate::pci::Bdf;

/// A way to reset a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A way that the kernel knows for this very device.
    DeviceSpecific,
    /// By the firmware (_RST).
    Acpi,
    /// Function level reset.
    Flr,
    /// Function level reset of conventional PCI.
    AfFlr,
    /// Through D3hot and back.
    Pm,
    /// Secondary bus reset, of a function that is alone on its bus.
    Bus,
    /// The reset of a CXL port's bus.
    CxlBus,
    /// VFIO's bus reset of everything on the bus, by whoever owns all of it (VFIO_DEVICE_PCI_HOT_RESET).
    Hot,
}

impl Method {
    /// All that the kernel may list, under its names, in its order (pci_reset_fn_methods of drivers/pci/pci.c).
    const OF_KERNEL: [(&'static str, Self); 7] = [
        ("device_specific", Self::DeviceSpecific),
        ("acpi", Self::Acpi),
        ("flr", Self::Flr),
        ("af_flr", Self::AfFlr),
        ("pm", Self::Pm),
        ("bus", Self::Bus),
        ("cxl_bus", Self::CxlBus),
    ];

    /// Finds the method that the kernel lists under a name, if this gpuvm knows it.
    pub fn of_kernel(name: &str) -> Option<Self> {
        Self::OF_KERNEL.into_iter().find(|(known, _)| *known == name).map(|(_, method)| method)
    }

    /// Returns the kernel's name; `hot` has none of the kernel's.
    pub fn name(self) -> &'static str {
        Self::OF_KERNEL.into_iter().find(|(_, method)| *method == self).map_or("hot", |(name, _)| name)
    }

    /// Tells whether it is a function level reset.
    pub fn is_flr(self) -> bool {
        matches!(self, Self::Flr | Self::AfFlr)
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A method that the kernel lists for a device (`reset_method`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetMethod {
    /// Its name.
    pub name: String,
    /// Whether it does what its name says.
    pub standing: Standing,
}

/// Whether a reset method works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "standing")]
pub enum Standing {
    /// Nothing is known against it.
    Usable,
    /// It is listed and fails: the kernel looks for it before it knows the other functions on the bus, and refuses a bus reset
    /// of one while there are others (pci_parent_bus_reset of drivers/pci/pci.c).
    Stale {
        /// The other functions.
        others: Vec<Bdf>,
    },
    /// The device keeps its state over D3hot (No_Soft_Reset), so that this resets nothing.
    KeepsState,
}

/// Lists a device's reset methods, in the order in which the kernel tries them.
pub fn methods(bdf: Bdf, facts: &HostFacts) -> Vec<ResetMethod> {
    let Some(device) = facts.devices.get(&bdf) else { return Vec::new() };
    let capabilities = device.config.as_ref().map(|config| &config.capabilities);
    let others: Vec<Bdf> = facts
        .devices
        .range(bdf.bus().functions())
        .map(|(other, _)| *other)
        .filter(|other| *other != bdf)
        .collect();
    let standing = |name: &str| match name {
        "bus" | "cxl_bus" if !others.is_empty() => Standing::Stale { others: others.clone() },
        "pm" if capabilities.and_then(|found| found.no_soft_reset) == Some(true) => Standing::KeepsState,
        _ => Standing::Usable,
    };
    device
        .reset_methods
        .iter()
        .map(|name| ResetMethod { name: name.clone(), standing: standing(name) })
        .collect()
}

/// Says what a method does.
pub fn what_it_does(method: &str) -> &'static str {
    match method {
        "device_specific" => "a way that the kernel knows for this very device",
        "acpi" => "by the firmware (_RST)",
        "flr" => "function level reset, of the function alone",
        "af_flr" => "function level reset of conventional PCI, of the function alone",
        "pm" => "through D3hot and back, of the function alone",
        "bus" => "of its bus, with everything on it",
        "cxl_bus" => "of its CXL port's bus, with everything on it",
        _ => "a method that this gpuvm doesn't know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::Capabilities;
    use crate::facts::{ConfigFacts, DeviceFacts, Presence};
    use crate::pci::ClassCode;

    #[test]
    fn bus_is_stale_beside_other_functions_and_pm_where_state_is_kept() {
        let (card, audio): (Bdf, Bdf) = ("41:00.0".parse().unwrap(), "41:00.1".parse().unwrap());
        let mut device = DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(0x03_0000).unwrap());
        device.reset_methods = ["flr", "pm", "bus"].map(str::to_owned).to_vec();
        let mut facts = HostFacts::default();
        facts.devices.insert(card, device.clone());
        let standing =
            |facts: &HostFacts| methods(card, facts).into_iter().map(|m| m.standing).collect::<Vec<_>>();
        assert_eq!(standing(&facts), [Standing::Usable, Standing::Usable, Standing::Usable]);
        facts.devices.insert(audio, device);
        let capabilities = Capabilities { no_soft_reset: Some(true), ..Capabilities::default() };
        facts.devices.get_mut(&card).unwrap().config =
            Some(ConfigFacts { capabilities, complete: Presence::Present, ..ConfigFacts::default() });
        let stale = Standing::Stale { others: vec![audio] };
        assert_eq!(standing(&facts), [Standing::Usable, Standing::KeepsState, stale]);
    }
}
