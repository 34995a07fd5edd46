//! The frames of groups: as few as hold all members and nobody else.

use std::collections::{BTreeMap, BTreeSet};

use super::drawing::Area;
use super::render::COLOURS;
use crate::inventory::Kind;
use crate::pci::GroupId;
use crate::topology::{Branch, Topology};

/// The room for a frame's words above its boxes.
pub(super) const HEAD: f64 = 19.0;
/// The space between a frame and its boxes on the other sides.
pub(super) const PAD: f64 = 7.0;

/// The groups that get a frame, those with a device in them, each with its colour.
pub(super) struct Colours(BTreeMap<GroupId, usize>);

impl Colours {
    pub(super) fn of(topology: &Topology) -> Self {
        let mut groups = BTreeSet::new();
        let branches =
            topology.rooms.iter().flat_map(|room| &room.complexes).flat_map(|found| &found.branches);
        for branch in branches {
            // The parts of the machine on a root bus are drawn as a list.
            if branch.kind != Kind::Chipset || !branch.below.is_empty() {
                with_devices(branch, &mut groups);
            }
        }
        Self((0..).map(|at| at % COLOURS).zip(groups).map(|(colour, group)| (group, colour)).collect())
    }

    pub(super) fn of_group(&self, group: Option<GroupId>) -> Option<(GroupId, usize)> {
        let group = group?;
        self.0.get(&group).map(|colour| (group, *colour))
    }
}

fn with_devices(branch: &Branch, groups: &mut BTreeSet<GroupId>) {
    if branch.below.is_empty() && branch.kind != Kind::Bridge {
        groups.extend(branch.group);
    }
    branch.below.iter().for_each(|below| with_devices(below, groups));
}

/// A box on the page, as far as frames go around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boxed {
    pub(super) area: Area,
    pub(super) group: Option<GroupId>,
    /// Which run of neighbours it belongs to, those of one group below one port; nothing for what has something below it.
    pub(super) run: Option<usize>,
}

/// Finds the frames of all groups: one for each where that encloses none but its members, else one for each run of members.
pub(super) fn around(boxes: &[Boxed], colours: &Colours) -> Vec<(Area, GroupId, usize)> {
    let mut groups: BTreeMap<GroupId, Vec<Boxed>> = BTreeMap::new();
    for boxed in boxes {
        if let Some(group) = boxed.group.filter(|group| colours.0.contains_key(group)) {
            groups.entry(group).or_default().push(*boxed);
        }
    }
    let mut frames: Vec<(Area, GroupId, usize)> = Vec::new();
    for (group, members) in groups {
        // Other groups' devices have frames of their own.
        let around = |boxed: &Boxed| match colours.of_group(boxed.group).and(boxed.run) {
            Some(_) => framed(boxed.area),
            None => boxed.area,
        };
        let others: Vec<Area> = boxes.iter().filter(|boxed| boxed.group != Some(group)).map(around).collect();
        for area in runs(&members, &others) {
            if let Some(colour) = colours.0.get(&group) {
                frames.push((area, group, *colour));
            }
        }
    }
    frames
}

fn framed(area: Area) -> Area {
    Area { x: area.x - PAD, y: area.y - HEAD, w: area.w + 2.0 * PAD, h: area.h + HEAD + PAD }
}

/// Finds the frames of one group: one around all members where nobody else gets into it, else one around each run of neighbours.
/// A bridge that no frame takes in keeps the group's number in its box.
fn runs(members: &[Boxed], others: &[Area]) -> Vec<Area> {
    let all = members.iter().map(|member| member.area).reduce(Area::with).map(framed);
    if let Some(area) = all.filter(|area| !others.iter().any(|other| area.meets(*other))) {
        return vec![area];
    }
    let mut found: BTreeMap<usize, Area> = BTreeMap::new();
    for (run, member) in members.iter().filter_map(|member| Some((member.run?, member))) {
        found.entry(run).and_modify(|area| *area = area.with(member.area)).or_insert(member.area);
    }
    found.into_values().map(framed).collect()
}
