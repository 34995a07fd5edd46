//! The directives of modprobe.d(5) that decide which driver takes a device, and what stands for them on the kernel's command line.

use serde::{Deserialize, Serialize};

use crate::pci::PciId;

/// One directive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Directive {
    /// Options of a module.
    Options {
        /// The module.
        module: String,
        /// The options, `name=value` each.
        options: Vec<String>,
    },
    /// Modules that are loaded before and after another.
    Softdep {
        /// The module.
        module: String,
        /// Those before.
        pre: Vec<String>,
        /// Those after.
        post: Vec<String>,
    },
    /// The module isn't loaded for a device.
    Blacklist {
        /// The module.
        module: String,
    },
    /// A command that is run instead of loading the module.
    Install {
        /// The module.
        module: String,
        /// The command.
        command: String,
    },
}

/// Spells a module's name as `/sys/module` does: the kernel takes `-` and `_` for the same.
pub fn module_name(word: &str) -> String {
    word.replace('-', "_")
}

/// Reads a file of modprobe.d; lines that say something else are left out. Whatever the bytes say, this ends.
pub fn parse(text: &str) -> Vec<Directive> {
    // A line goes on after a backslash at its end.
    let joined = text.replace("\\\r\n", " ").replace("\\\n", " ");
    joined.lines().filter_map(directive).collect()
}

fn directive(line: &str) -> Option<Directive> {
    let mut words = line.split_ascii_whitespace();
    let keyword = words.next().filter(|word| !word.starts_with('#'))?;
    let module = module_name(words.next()?);
    Some(match keyword {
        "options" => Directive::Options { module, options: words.map(str::to_owned).collect() },
        "blacklist" => Directive::Blacklist { module },
        "install" => Directive::Install { module, command: words.collect::<Vec<_>>().join(" ") },
        "softdep" => {
            let (mut pre, mut post, mut before) = (Vec::new(), Vec::new(), true);
            for word in words {
                match word {
                    "pre:" => before = true,
                    "post:" => before = false,
                    module if before => pre.push(module_name(module)),
                    module => post.push(module_name(module)),
                }
            }
            Directive::Softdep { module, pre, post }
        }
        _ => return None,
    })
}

/// Reads what of a kernel's command line is for modules: `vfio-pci.ids=...`, `modprobe.blacklist=...`.
pub fn of_cmdline(cmdline: &str) -> Vec<Directive> {
    let mut found = Vec::new();
    for word in cmdline.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        match (key, key.split_once('.')) {
            ("modprobe.blacklist" | "module_blacklist", _) => found.extend(blacklist(value)),
            // `rd.driver.pre` and the like are dracut's, and no module's.
            (_, Some(("rd", _)) | None) => {}
            (_, Some((module, option))) => found.push(Directive::Options {
                module: module_name(module),
                options: vec![format!("{option}={value}")],
            }),
        }
    }
    found
}

fn blacklist(value: &str) -> impl Iterator<Item = Directive> + '_ {
    value.split(',').map(|module| Directive::Blacklist { module: module_name(module) })
}

/// Lists the modules that a command line has loaded early: `rd.driver.pre=` of dracut, `modules-load=` and
/// `rd.modules-load=` of systemd.
pub fn loaded_by_cmdline(cmdline: &str) -> Vec<String> {
    let keys = ["rd.driver.pre", "rd.modules-load", "modules-load", "modules_load", "rd.modules_load"];
    let values = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let of_keys = values.filter(|(key, _)| keys.contains(key)).flat_map(|(_, value)| value.split(','));
    of_keys.filter(|module| !module.is_empty()).map(module_name).collect()
}

impl Directive {
    /// Returns the module that it is about.
    pub fn module(&self) -> &str {
        match self {
            Self::Options { module, .. }
            | Self::Softdep { module, .. }
            | Self::Blacklist { module }
            | Self::Install { module, .. } => module,
        }
    }

    /// Tells whether it says something about VFIO: its own modules, or others that wait for them.
    pub fn is_about_vfio(&self) -> bool {
        let vfio = |module: &str| module.starts_with("vfio") || module.ends_with("_vfio_pci");
        match self {
            Self::Softdep { module, pre, post } => {
                std::iter::once(module).chain(pre).chain(post).any(|module| vfio(module))
            }
            other => vfio(other.module()),
        }
    }

    /// Returns the ids by which it gives devices to vfio-pci.
    pub fn ids(&self) -> Vec<IdRule> {
        match self {
            Self::Options { module, options } if module == "vfio_pci" => options
                .iter()
                .filter_map(|option| option.strip_prefix("ids="))
                .flat_map(|ids| ids.trim_matches('"').split(','))
                .filter_map(IdRule::parse)
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Display for Directive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Options { module, options } => write!(f, "options {module} {}", options.join(" ")),
            Self::Softdep { module, pre, post } => {
                write!(f, "softdep {module}")?;
                for (word, modules) in
                    [("pre", pre), ("post", post)].iter().filter(|(_, list)| !list.is_empty())
                {
                    write!(f, " {word}: {}", modules.join(" "))?;
                }
                Ok(())
            }
            Self::Blacklist { module } => write!(f, "blacklist {module}"),
            Self::Install { module, command } => write!(f, "install {module} {command}"),
        }
    }
}

/// One id of `ids=`: `vendor:device[:subvendor[:subdevice[:class[:mask]]]]` (drivers/vfio/pci/vfio_pci.c, vfio_pci_fill_ids).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdRule {
    /// As it is spelt.
    pub text: String,
    /// Vendor and device; nothing for any.
    pub id: (Option<u32>, Option<u32>),
    /// The subsystem's vendor and device; nothing for any.
    pub subsystem: (Option<u32>, Option<u32>),
    /// The class, and its bits that must fit.
    pub class: (u32, u32),
}

impl IdRule {
    fn parse(text: &str) -> Option<Self> {
        let fields =
            text.trim().split(':').map(|field| u32::from_str_radix(field.trim_start_matches("0x"), 16));
        // The first field that is no number ends it, as sscanf does.
        let fields: Vec<u32> = fields.map_while(Result::ok).collect();
        // An id of all ones is any (PCI_ANY_ID).
        let id = |at: usize| fields.get(at).copied().filter(|id| *id != u32::MAX);
        let class = |at: usize| fields.get(at).copied().unwrap_or(0);
        (fields.len() >= 2).then(|| Self {
            text: text.trim().to_owned(),
            id: (id(0), id(1)),
            subsystem: (id(2), id(3)),
            class: (class(4), class(5)),
        })
    }

    /// Tells whether it may catch devices of a vendor.
    pub fn is_about(&self, vendor: u16) -> bool {
        self.id.0.is_none_or(|wanted| wanted == u32::from(vendor))
    }

    /// Tells whether it catches a device (pci_match_one_device of drivers/pci/pci.h); a class that isn't known is of any kind.
    pub fn catches(&self, id: PciId, subsystem: Option<PciId>, class: Option<u32>) -> bool {
        let fits = |wanted: Option<u32>, have: Option<u16>| {
            wanted.is_none_or(|wanted| have.map(u32::from) == Some(wanted))
        };
        fits(self.id.0, Some(id.vendor))
            && fits(self.id.1, Some(id.device))
            && fits(self.subsystem.0, subsystem.map(|id| id.vendor))
            && fits(self.subsystem.1, subsystem.map(|id| id.device))
            && class.is_none_or(|class| (class ^ self.class.0) & self.class.1 == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::options(
        "options vfio-pci ids=10de:2330 disable_idle_d3=1",
        "options vfio_pci ids=10de:2330 disable_idle_d3=1"
    )]
    #[case::on_two_lines("options vfio-pci \\\n ids=10de:2330", "options vfio_pci ids=10de:2330")]
    #[case::softdep(
        "softdep nvidia pre: vfio-pci vfio post: i2c-core",
        "softdep nvidia pre: vfio_pci vfio post: i2c_core"
    )]
    #[case::blacklist("  blacklist\tnouveau\n# blacklist nvidia\n", "blacklist nouveau")]
    #[case::install("install vfio-pci /bin/false", "install vfio_pci /bin/false")]
    #[case::others("alias a b\nremove x y\noptions\n\n", "")]
    fn directives_are_read(#[case] text: &str, #[case] expected: &str) {
        let found: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found.join("\n"), expected);
    }

    #[rstest]
    #[case("ro vfio-pci.ids=10de:2330,10de:22ba quiet", "options vfio_pci ids=10de:2330,10de:22ba")]
    #[case("modprobe.blacklist=nouveau,snd-hda-intel", "blacklist nouveau\nblacklist snd_hda_intel")]
    #[case("module_blacklist=ast", "blacklist ast")]
    #[case("rd.driver.pre=vfio-pci root=UUID=1 quiet", "")]
    fn a_command_line_has_directives_too(#[case] cmdline: &str, #[case] expected: &str) {
        let found: Vec<_> = of_cmdline(cmdline).iter().map(ToString::to_string).collect();
        assert_eq!(found.join("\n"), expected);
    }

    #[test]
    fn modules_that_a_command_line_loads_are_listed() {
        let cmdline = "rd.driver.pre=vfio-pci,vfio modules-load=kvm ids=x";
        assert_eq!(loaded_by_cmdline(cmdline), ["vfio_pci", "vfio", "kvm"]);
    }

    #[rstest]
    #[case::id_alone("10de:2330", "10de:2330", None, true)]
    #[case::capitals("10DE:2330", "10de:2330", None, true)]
    #[case::another("10de:2331", "10de:2330", None, false)]
    #[case::its_subsystem("10de:2330:10de:16c1", "10de:2330", Some("10de:16c1"), true)]
    #[case::another_subsystem("10de:2330:10de:16c1", "10de:2330", Some("10de:0001"), false)]
    #[case::an_unread_subsystem("10de:2330:10de:16c1", "10de:2330", None, false)]
    #[case::any_subsystem("10de:2330:ffffffff:ffffffff", "10de:2330", None, true)]
    #[case::any_device("10de:ffffffff", "10de:2330", None, true)]
    #[case::any_device_of_another("10de:ffffffff", "1002:2330", None, false)]
    #[case::anything("ffffffff:ffffffff", "10de:2330", None, true)]
    #[case::displays("10de:ffffffff:ffffffff:ffffffff:00030000:ffff0000", "10de:2330", None, true)]
    #[case::sound_alone("10de:ffffffff:ffffffff:ffffffff:00040300:ffffff00", "10de:2330", None, false)]
    #[case::class_of_no_weight("10de:2330:ffffffff:ffffffff:00040300", "10de:2330", None, true)]
    fn a_rule_by_id_catches_what_the_kernel_would(
        #[case] rule: &str,
        #[case] id: &str,
        #[case] subsystem: Option<&str>,
        #[case] expected: bool,
    ) {
        let directive =
            Directive::Options { module: "vfio_pci".to_owned(), options: vec![format!("ids={rule}")] };
        let ids = directive.ids();
        let subsystem = subsystem.map(|id| id.parse().unwrap());
        assert_eq!(ids[0].catches(id.parse().unwrap(), subsystem, Some(0x03_0000)), expected);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,200}") {
            for directive in parse(&text).into_iter().chain(of_cmdline(&text)) {
                let _ = (directive.ids(), directive.is_about_vfio(), directive.to_string());
            }
        }
    }
}
