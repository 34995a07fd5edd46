//! `[memory]`.

use serde::{Deserialize, Serialize};

use crate::profile::check::{Checker, value_or};
use crate::profile::language::{Key, Kind, SIZE, words};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Choice, Cursor, Leaf};
use crate::profile::tree::Place;
use crate::profile::{GUEST_MEMORY_MIN, Policy};
use crate::units::{ByteSize, PageSize};

/// The guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How much; fixed while the guest runs.
    pub size: ByteSize,
    /// What backs it.
    pub hugepages: Hugepages,
    /// What happens when a node can't give the hugepages.
    pub hugepages_policy: Policy,
    /// What happens when the node of the devices has too little memory.
    pub node_policy: Policy,
}

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hugepages {
    /// Ordinary pages.
    Off,
    /// Hugepages of one size, taken from the node's pool.
    Size(PageSize),
}

impl Choice for Hugepages {
    const WORDS: &'static [(&'static str, Self)] =
        &[("2M", Self::Size(PageSize::M2)), ("1G", Self::Size(PageSize::G1)), ("off", Self::Off)];
}

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::required("size", SIZE, "How much memory the guest has, as in \"64G\"; a whole number of MiB."),
    Key::default(
        "hugepages",
        Kind::Words(words::<Hugepages>),
        "\"off\"",
        "The pages that back it, taken from the node's pool, which is grown for it and given back afterwards.",
    ),
    Key::default(
        "hugepages-policy",
        Kind::Words(words::<Policy>),
        "\"strict\"",
        "What happens when a node can't give the hugepages: fail, or go on with ordinary pages and a warning.",
    ),
    Key::default(
        "node-policy",
        Kind::Words(words::<Policy>),
        "\"strict\"",
        "What happens when the devices' node has too little memory: fail, or let the kernel take it from other nodes too, with a warning.",
    ),
];

#[derive(Debug, Clone, Default)]
pub(in crate::profile) struct RawMemory {
    place: Option<Place>,
    pub(in crate::profile) size: Leaf<ByteSize>,
    hugepages: Leaf<Hugepages>,
    hugepages_policy: Leaf<Policy>,
    node_policy: Leaf<Policy>,
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawMemory {
    let memory = RawMemory {
        place: Some(table.place()),
        size: table.parsed("size", problems),
        hugepages: table.choice("hugepages", problems),
        hugepages_policy: table.choice("hugepages-policy", problems),
        node_policy: table.choice("node-policy", problems),
    };
    table.finish(problems);
    memory
}

pub(in crate::profile) fn check(raw: RawMemory, end: &Place, checker: &mut Checker<'_>) -> Option<Memory> {
    let key = "memory.size";
    let size = match &raw.place {
        Some(table) => checker.required(raw.size, key, "size = \"64G\"", table),
        None => checker.required(raw.size, key, "[memory]\nsize = \"64G\"", end),
    };
    let hugepages = value_or(raw.hugepages, Hugepages::Off);
    if hugepages == Hugepages::Off && raw.hugepages_policy.is_some() {
        checker.pointless(raw.hugepages_policy.clone(), "memory.hugepages-policy", "memory.hugepages is off");
    }
    let size = size?;
    if size.value < GUEST_MEMORY_MIN {
        let message = format!("`{}` is less than the {GUEST_MEMORY_MIN} that any guest needs", size.value);
        checker.value(key, size.place, message);
    } else if !size.value.as_bytes().is_multiple_of(1 << 20) {
        checker.value(key, size.place, format!("`{}` isn't a whole number of MiB", size.value));
    } else if let Hugepages::Size(page) = hugepages
        && !size.value.is_multiple_of(page)
    {
        checker.report(key, size.place, ProblemKind::Unaligned { size: size.value, page });
    }
    Some(Memory {
        size: size.value,
        hugepages,
        hugepages_policy: value_or(raw.hugepages_policy, Policy::Strict),
        node_policy: value_or(raw.node_policy, Policy::Strict),
    })
}
