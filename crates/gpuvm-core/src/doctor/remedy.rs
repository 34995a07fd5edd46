//! What to do about a finding, with the commands of the distribution at hand.

use serde::{Deserialize, Serialize};

/// What to do about a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// What to do, in words.
    pub what: String,
    /// The commands that do it, in order; none where only a person can.
    pub commands: Vec<String>,
}

impl Remedy {
    /// Makes a remedy in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), commands: Vec::new() }
    }

    /// Adds commands.
    #[must_use]
    pub fn commands(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.commands.extend(commands);
        self
    }

    /// Adds one command.
    #[must_use]
    pub fn command(self, command: impl Into<String>) -> Self {
        self.commands([command.into()])
    }
}

/// A family of distributions, as far as their commands differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Debian, Ubuntu, Proxmox and their kin.
    Debian,
    /// Fedora, RHEL and their kin.
    Fedora,
    /// openSUSE and SLES.
    Suse,
    /// Arch and its kin.
    Arch,
    /// NixOS: everything is in one configuration.
    Nix,
    /// Another, or not known.
    #[default]
    Other,
}

/// Something that a distribution packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// QEMU for x86-64.
    Qemu,
    /// qemu-img.
    QemuImg,
    /// UEFI firmware for guests.
    Ovmf,
    /// The names of PCI ids.
    PciIds,
}

impl Distribution {
    /// Finds the family by `ID` and `ID_LIKE` of os-release(5), the first that is known.
    pub fn of(id: &str, like: &str) -> Self {
        let families = std::iter::once(id).chain(like.split_ascii_whitespace());
        let family = |word: &str| match word {
            "debian" | "ubuntu" | "proxmox" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" | "rocky" | "almalinux" => Some(Self::Fedora),
            "suse" | "opensuse" | "sles" | "opensuse-leap" | "opensuse-tumbleweed" => Some(Self::Suse),
            "arch" | "archlinux" => Some(Self::Arch),
            "nixos" => Some(Self::Nix),
            _ => None,
        };
        families.into_iter().find_map(family).unwrap_or_default()
    }

    /// Returns the command that installs something; none where it isn't known.
    pub fn install(self, package: Package) -> Option<String> {
        let names = match package {
            Package::Qemu => ["qemu-system-x86", "qemu-kvm", "qemu-x86", "qemu-system-x86"],
            Package::QemuImg => ["qemu-utils", "qemu-img", "qemu-img", "qemu-img"],
            Package::Ovmf => ["ovmf", "edk2-ovmf", "qemu-ovmf-x86_64", "edk2-ovmf"],
            Package::PciIds => ["pci.ids", "hwdata", "pciutils-ids", "hwdata"],
        };
        let [debian, fedora, suse, arch] = names;
        Some(match self {
            Self::Debian => format!("apt-get install {debian}"),
            Self::Fedora => format!("dnf install {fedora}"),
            Self::Suse => format!("zypper install {suse}"),
            Self::Arch => format!("pacman -S {arch}"),
            Self::Nix | Self::Other => return None,
        })
    }

    /// Returns the commands that add an option to the kernel's command line for the next boots.
    pub fn kernel_option(self, option: &str) -> Vec<String> {
        self.booted_after(match self {
            Self::Fedora => format!("grubby --update-kernel=ALL --args=\"{option}\""),
            Self::Nix => format!("# in configuration.nix: boot.kernelParams = [ \"{option}\" ];"),
            _ => format!("sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{option} /' /etc/default/grub"),
        })
    }

    /// Returns the commands that take an option off the kernel's command line for the next boots.
    pub fn without_kernel_option(self, option: &str) -> Vec<String> {
        self.booted_after(match self {
            Self::Fedora => format!("grubby --update-kernel=ALL --remove-args=\"{option}\""),
            Self::Nix => format!("# in configuration.nix: take \"{option}\" out of boot.kernelParams"),
            // Whole words only: `iommu=off` is also the end of `intel_iommu=off`.
            _ => format!(
                "sed -i -E '/^GRUB_CMDLINE_LINUX/s/([\"\\x27 ]){option}([\"\\x27 ])/\\1\\2/g' /etc/default/grub"
            ),
        })
    }

    /// Follows a change of the kernel's command line by what makes it count; nothing where that isn't known.
    fn booted_after(self, edit: String) -> Vec<String> {
        let mut commands = vec![edit];
        match self {
            Self::Debian => commands.extend(["update-grub".to_owned(), self.other_loader()]),
            Self::Fedora => {}
            Self::Suse => commands.push("grub2-mkconfig -o /boot/grub2/grub.cfg".to_owned()),
            Self::Arch => {
                commands.extend(["grub-mkconfig -o /boot/grub/grub.cfg".to_owned(), self.other_loader()]);
            }
            Self::Nix => commands.push("nixos-rebuild boot".to_owned()),
            Self::Other => return Vec::new(),
        }
        commands.push("reboot".to_owned());
        commands
    }

    /// Says where the command line is on hosts of the family that boot without GRUB, as Proxmox does from ZFS.
    fn other_loader(self) -> String {
        match self {
            Self::Debian => {
                "# without GRUB: edit /etc/kernel/cmdline instead, then proxmox-boot-tool refresh or kernel-install"
            }
            _ => "# without GRUB: edit the options in /boot/loader/entries/*.conf or /etc/kernel/cmdline instead",
        }
        .to_owned()
    }

    /// Returns the file that irqbalance takes its environment from.
    pub fn irqbalance_settings(self) -> &'static str {
        match self {
            Self::Fedora | Self::Suse => "/etc/sysconfig/irqbalance",
            _ => "/etc/default/irqbalance",
        }
    }

    /// Returns the commands that load a module now and at each boot.
    pub fn load_at_boot(self, module: &str) -> Vec<String> {
        match self {
            Self::Nix => vec![
                format!("# in configuration.nix: boot.kernelModules = [ \"{module}\" ];"),
                "nixos-rebuild switch".to_owned(),
            ],
            _ => vec![
                format!("modprobe {module}"),
                format!("echo {module} > /etc/modules-load.d/{module}.conf"),
            ],
        }
    }

    /// Returns the command that makes the initramfs anew after a change below /etc/modprobe.d or /etc/modules-load.d.
    pub fn rebuild_initramfs(self) -> Option<String> {
        Some(
            match self {
                Self::Debian => "update-initramfs -u -k all",
                Self::Fedora | Self::Suse => "dracut --force --regenerate-all",
                Self::Arch => "mkinitcpio -P",
                Self::Nix => "nixos-rebuild boot",
                Self::Other => return None,
            }
            .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("debian", "", Distribution::Debian)]
    #[case("ubuntu", "debian", Distribution::Debian)]
    #[case("pop", "ubuntu debian", Distribution::Debian)]
    #[case("rocky", "rhel centos fedora", Distribution::Fedora)]
    #[case("opensuse-leap", "suse opensuse", Distribution::Suse)]
    #[case("manjaro", "arch", Distribution::Arch)]
    #[case("nixos", "", Distribution::Nix)]
    #[case("void", "", Distribution::Other)]
    fn the_family_is_found_by_id_or_by_what_it_is_like(
        #[case] id: &str,
        #[case] like: &str,
        #[case] expected: Distribution,
    ) {
        assert_eq!(Distribution::of(id, like), expected);
    }
}
