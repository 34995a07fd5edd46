//! The language of quirk tables.

use super::Quirk;
use super::effect::{Confidence, Effect, Meets, Role};
use super::ids::{ClassPrefix, DeviceIds, VendorId};
use super::kernel::{KernelRange, Version};
use crate::pci::PciId;
use crate::profile::language::{Key, Kind, words};
use crate::profile::read::{Cursor, Located};
use crate::profile::tree::{Place, Sources, parse as parse_tree};
use crate::profile::{Problem, ProblemKind};

/// What a table of quirks may hold.
pub const KEYS: &[Key] =
    &[Key::optional("quirk", Kind::Tables(QUIRK), "The quirks, each in a table of its own.")];

const QUIRK: &[Key] = &[
    Key::required(
        "name",
        Kind::Text,
        "Its name: small letters, digits and hyphens. One of the same name in a later file replaces it.",
    ),
    Key::optional(
        "vendor",
        Kind::Text,
        "The vendor's id, four hex digits; without it the quirk is the kernel's own.",
    ),
    Key::optional(
        "devices",
        Kind::List(&Kind::Text),
        "Device ids: \"2342\", \"2340-237f\", \"2340/ffc0\" (id and mask); all of the vendor's without it.",
    ),
    Key::optional("class", Kind::Text, "How their class begins: \"03\", \"0300\"."),
    Key::optional("subsystem", Kind::Text, "The card's ids, as in \"1458:4128\"."),
    Key::optional("revision", Kind::Integer { low: 0, high: 255 }, "The revision."),
    Key::default(
        "role",
        Kind::Words(words::<Role>),
        "\"device\"",
        "Whose ids these are: the device's, or those of the port right above it.",
    ),
    Key::optional("on-root-bus", Kind::Flag, "Whether it must be on a root bus, or must not."),
    Key::optional("kernels", Kind::Tables(KERNELS), "The kernels that have it; all of them without it."),
    Key::default(
        "meets",
        Kind::Words(words::<Meets>),
        "\"all\"",
        "Which hosts meet a quirk of the kernel's own.",
    ),
    Key::required("behaviour", Kind::Text, "What happens, in one sentence."),
    Key::required(
        "effects",
        Kind::List(&Kind::Text),
        "The same for programs, as words of a closed set; an empty list where nothing is to be done.",
    ),
    Key::required("advice", Kind::Text, "What to do."),
    Key::required("source", Kind::Text, "Where it is from."),
    Key::required("confidence", Kind::Words(words::<Confidence>), "Whose word it is."),
];

const KERNELS: &[Key] = &[
    Key::optional("from", Kind::Text, "The first release, as in \"6.12\" or \"6.12.23\"."),
    Key::optional(
        "to",
        Kind::Text,
        "The last that is known to have it; \"6.12\" is the last of that series.",
    ),
    Key::optional("fixed", Kind::Text, "What has it no longer; without it, where it ends isn't known."),
];

/// Reads a table of quirks.
///
/// # Errors
/// Returns every problem that the text has, in its order.
pub fn parse(sources: &Sources) -> Result<Vec<Quirk>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut quirks: Vec<Quirk> = Vec::new();
    if let Some(tree) = parse_tree(sources, &mut problems) {
        let mut root = Cursor::new(&tree, String::new(), KEYS);
        for mut entry in root.tables("quirk", &mut problems) {
            if let Some(quirk) = Entry::read(&mut entry, &quirks, &mut problems) {
                quirks.push(quirk);
            }
            entry.finish(&mut problems);
        }
        root.finish(&mut problems);
    }
    problems.sort_by_key(|problem| problem.place.clone());
    if problems.is_empty() { Ok(quirks) } else { Err(problems) }
}

/// One entry while it is read.
struct Entry<'e, 'a> {
    cursor: &'e mut Cursor<'a>,
    problems: &'e mut Vec<Problem>,
}

impl Entry<'_, '_> {
    /// Reads an entry; nothing of one that something is missing from, of which a problem tells.
    fn read(cursor: &mut Cursor<'_>, before: &[Quirk], problems: &mut Vec<Problem>) -> Option<Quirk> {
        let mut entry = Entry { cursor, problems };
        let name = entry.name(before);
        if entry.silences() {
            return name.map(Quirk::silence);
        }
        let vendor: Option<Located<VendorId>> = entry.cursor.parsed("vendor", entry.problems);
        let devices = entry.devices();
        let class: Option<Located<ClassPrefix>> = entry.cursor.parsed("class", entry.problems);
        let subsystem: Option<Located<PciId>> = entry.cursor.parsed("subsystem", entry.problems);
        let revision = entry.cursor.count("revision", 0..=255, entry.problems);
        let role: Option<Located<Role>> = entry.cursor.choice("role", entry.problems);
        let on_root_bus = entry.cursor.flag("on-root-bus", entry.problems);
        let meets: Option<Located<Meets>> = entry.cursor.choice("meets", entry.problems);
        let kernels = entry.kernels();
        let (behaviour, advice, source) =
            (entry.said("behaviour"), entry.said("advice"), entry.said("source"));
        let effects = entry.effects();
        let confidence = entry.confidence();
        let of_devices = [
            ("devices", entry.cursor.is_list("devices").then(|| entry.cursor.place())),
            ("class", class.as_ref().map(|class| class.place.clone())),
            ("subsystem", subsystem.as_ref().map(|subsystem| subsystem.place.clone())),
            ("revision", revision.as_ref().map(|revision| revision.place.clone())),
            ("role", role.as_ref().map(|role| role.place.clone())),
            ("on-root-bus", on_root_bus.as_ref().map(|flag| flag.place.clone())),
        ];
        match (&vendor, &meets) {
            (None, _) => of_devices.into_iter().for_each(|(key, place)| entry.needs_vendor(key, place)),
            (Some(_), Some(meets)) => {
                let because =
                    "it is for quirks of the kernel's own, and this one is about devices of a vendor";
                entry.problem("meets", meets.place.clone(), |key| ProblemKind::Pointless { key, because });
            }
            (Some(_), None) => {}
        }
        Some(Quirk {
            name: name?,
            vendor: vendor.map(|vendor| vendor.value),
            devices,
            class: class.map(|class| class.value),
            subsystem: subsystem.map(|subsystem| subsystem.value),
            revision: revision.and_then(|revision| u8::try_from(revision.value).ok()),
            role: role.map(|role| role.value).unwrap_or_default(),
            on_root_bus: on_root_bus.map(|flag| flag.value),
            kernels,
            meets: meets.map(|meets| meets.value).unwrap_or_default(),
            behaviour: behaviour?,
            effects,
            advice: advice?,
            source: source?,
            confidence: confidence?,
            file: None,
        })
    }

    /// Tells whether it is there to silence the quirk of its name: it says nothing but that there is no effect.
    fn silences(&mut self) -> bool {
        let mut others = QUIRK.iter().filter(|key| !matches!(key.name, "name" | "effects"));
        let silences = self.cursor.is_empty_list("effects") && others.all(|key| !self.cursor.has(key.name));
        // Read, so that it isn't told as unknown.
        silences && self.effects().is_empty()
    }

    fn problem(&mut self, key: &str, place: Place, kind: impl FnOnce(String) -> ProblemKind) {
        let key = self.cursor.key(key);
        let kind = kind(key.clone());
        self.problems.push(Problem { key, place, kind });
    }

    fn wrong(&mut self, key: &str, place: Place, message: String) {
        self.problem(key, place, |key| ProblemKind::Value { key, message });
    }

    fn missing(&mut self, key: &str, example: &'static str) {
        let place = self.cursor.place();
        self.problem(key, place, |key| ProblemKind::Missing { key, example });
    }

    fn needs_vendor(&mut self, key: &'static str, place: Option<Place>) {
        if let Some(place) = place {
            self.problem(key, place, |key| ProblemKind::Needs { key, other: "`vendor`" });
        }
    }

    fn name(&mut self, before: &[Quirk]) -> Option<String> {
        if !self.cursor.has("name") {
            self.missing("name", "name = \"my-card-flr\"");
            return None;
        }
        let Located { value: name, place } = self.cursor.text("name", self.problems)?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 60 || !name.bytes().all(plain) {
            self.wrong(
                "name",
                place,
                format!("`{name}` is no name: expected up to 60 small letters, digits and hyphens"),
            );
            return None;
        }
        if before.iter().any(|other| other.name == name) {
            self.wrong("name", place, format!("there is a `{name}` in this file already"));
        }
        Some(name)
    }

    fn devices(&mut self) -> Vec<DeviceIds> {
        let devices: Vec<Located<DeviceIds>> = self.cursor.list_parsed("devices", self.problems);
        if self.cursor.is_empty_list("devices") {
            let place = self.cursor.place();
            self.wrong(
                "devices",
                place,
                "it names no device; leave it out for all of the vendor's".to_owned(),
            );
        }
        devices.into_iter().map(|located| located.value).collect()
    }

    /// Reads a sentence that must be there.
    fn said(&mut self, key: &'static str) -> Option<String> {
        if !self.cursor.has(key) {
            let example = match key {
                "behaviour" => "behaviour = \"a function level reset leaves it not answering\"",
                "advice" => "advice = \"set `avoid-flr = true` in its [[device]]\"",
                _ => "source = \"seen on our hosts in May 2026\"",
            };
            self.missing(key, example);
            return None;
        }
        let Located { value, place } = self.cursor.text(key, self.problems)?;
        if value.trim().is_empty() || value.contains('\n') {
            self.wrong(key, place, "expected one line of text".to_owned());
            return None;
        }
        Some(value)
    }

    fn effects(&mut self) -> Vec<Effect> {
        if !self.cursor.has("effects") {
            self.missing("effects", "effects = [\"flr-hangs\"]");
        }
        let effects: Vec<Located<Effect>> = self.cursor.list_parsed("effects", self.problems);
        effects.into_iter().map(|located| located.value).collect()
    }

    fn confidence(&mut self) -> Option<Confidence> {
        if !self.cursor.has("confidence") {
            self.missing("confidence", "confidence = \"one-report\"");
        }
        self.cursor.choice("confidence", self.problems).map(|located: Located<Confidence>| located.value)
    }

    fn kernels(&mut self) -> Vec<KernelRange> {
        let mut ranges = Vec::new();
        for mut table in self.cursor.tables("kernels", self.problems) {
            let from: Option<Located<Version>> = table.parsed("from", self.problems);
            let to: Option<Located<Version>> = table.parsed("to", self.problems);
            let fixed = table.text("fixed", self.problems);
            let (key, place) = (table.key("from"), table.place());
            let mut wrong = |message: &str| {
                let kind = ProblemKind::Value { key: key.clone(), message: message.to_owned() };
                self.problems.push(Problem { key: key.clone(), place: place.clone(), kind });
            };
            match (&from, &to) {
                (Some(from), Some(to)) if from.value.first() > to.value.last() => {
                    wrong("it is later than `to`")
                }
                (None, None) => wrong("a range of kernels has a `from`, a `to`, or both"),
                _ => {}
            }
            if let (None, Some(fixed)) = (&to, &fixed) {
                let key = table.key("fixed");
                let kind = ProblemKind::Needs { key: key.clone(), other: "`to`" };
                self.problems.push(Problem { key, place: fixed.place.clone(), kind });
            }
            ranges.push(KernelRange {
                from: from.map(|from| from.value),
                to: to.map(|to| to.value),
                fixed: fixed.map(|fixed| fixed.value),
            });
            table.finish(self.problems);
        }
        ranges
    }
}
