//! The picture: nodes as rooms, groups as coloured frames, links on the edges.

mod drawing;
mod frames;
mod legend;
mod measure;
mod render;
mod room;

use super::Topology;
use drawing::{Area, Drawing};

/// The smallest type, in px of the drawing.
const SMALL: f64 = 12.0;
/// The widest drawing: shown 1600 px wide, its smallest type is 9 px high then.
const WIDEST: f64 = 2100.0;
/// The space around rooms.
const MARGIN: f64 = 20.0;
/// The shape that suits a page best: half as wide again as it is high.
const SHAPE: f64 = 1.5;

/// Draws the host.
pub fn svg(topology: &Topology) -> String {
    render::svg(
        &draw(topology),
        "PCI topology of this host: NUMA nodes, root complexes, IOMMU groups and devices",
    )
}

fn draw(topology: &Topology) -> Drawing {
    let colours = frames::Colours::of(topology);
    let rooms: Vec<Drawing> = topology.rooms.iter().map(|room| room::draw(room, &colours)).collect();
    // Rooms stand in columns, in order from top to bottom; as many columns as make the best shape.
    let most = rooms.len().clamp(1, 4);
    let arranged = (1..=most)
        .map(|columns| arrange(&rooms, columns))
        .filter(|columns| columns.len() == 1 || size(&rooms, columns).0 <= WIDEST);
    let badness = |columns: &Vec<Vec<usize>>| {
        let (width, height) = size(&rooms, columns);
        (width / height / SHAPE).ln().abs()
    };
    let columns = arranged.min_by(|a, b| badness(a).total_cmp(&badness(b))).unwrap_or_default();
    paste(rooms, &columns)
}

/// Distributes rooms over columns so that the highest column is as low as can be; fewer columns where that isn't lower.
fn arrange(rooms: &[Drawing], columns: usize) -> Vec<Vec<usize>> {
    let fill = |limit: f64| {
        let mut filled: Vec<Vec<usize>> = vec![Vec::new()];
        let mut height = 0.0;
        for (at, room) in rooms.iter().enumerate() {
            if height > 0.0 && height + room.height > limit {
                filled.push(Vec::new());
                height = 0.0;
            }
            height += room.height + MARGIN;
            if let Some(column) = filled.last_mut() {
                column.push(at);
            }
        }
        filled
    };
    // All in one column is always possible; halving what is left finds where one column fewer no longer is. The sums of all rows of
    // rooms would say it exactly, and there are two billion of them on a host that claims 65,536 nodes.
    let (mut too_low, mut enough) = (0.0, size(rooms, &[(0..rooms.len()).collect()]).1);
    while enough - too_low > 0.5 {
        let limit = f64::midpoint(too_low, enough);
        if fill(limit).len() <= columns { enough = limit } else { too_low = limit }
    }
    fill(enough)
}

fn column_width(rooms: &[Drawing], column: &[usize]) -> f64 {
    column.iter().map(|at| rooms[*at].width).fold(0.0, f64::max)
}

fn size(rooms: &[Drawing], columns: &[Vec<usize>]) -> (f64, f64) {
    let width: f64 = columns.iter().map(|column| column_width(rooms, column) + MARGIN).sum();
    let height = |column: &Vec<usize>| column.iter().map(|at| rooms[*at].height + MARGIN).sum::<f64>();
    (width + MARGIN, columns.iter().map(height).fold(0.0, f64::max) + MARGIN)
}

/// Puts the rooms on the page, and the legend below them.
fn paste(rooms: Vec<Drawing>, columns: &[Vec<usize>]) -> Drawing {
    let (width, height) = size(&rooms, columns);
    let mut legend = legend::draw((width - 2.0 * MARGIN).max(legend::NARROWEST));
    let width = width.max(legend.width + 2.0 * MARGIN);
    let mut page = Drawing { width, height: height + legend.height + MARGIN, shapes: Vec::new() };
    page.rect(Area { x: 0.0, y: 0.0, w: width, h: page.height }, 0.0, "page");
    let mut rooms: Vec<Option<Drawing>> = rooms.into_iter().map(Some).collect();
    let mut x = MARGIN;
    for column in columns {
        let wide =
            column.iter().filter_map(|at| rooms[*at].as_ref()).map(|room| room.width).fold(0.0, f64::max);
        let mut y = MARGIN;
        for (nth, at) in (1..).zip(column) {
            let Some(room) = rooms[*at].take() else { continue };
            // The last wall goes down to where the highest column ends.
            let h = if nth == column.len() { height - MARGIN - y } else { room.height };
            page.rect(Area { x, y, w: wide, h }, 10.0, "room");
            y += put(&mut page, room, x, y) + MARGIN;
        }
        x += wide + MARGIN;
    }
    legend.shift(MARGIN, height);
    page.shapes.append(&mut legend.shapes);
    page
}

/// Puts a drawing on the page and returns its height.
fn put(page: &mut Drawing, mut part: Drawing, x: f64, y: f64) -> f64 {
    part.shift(x, y);
    page.shapes.append(&mut part.shapes);
    part.height
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::drawing::{Anchor, Shape};
    use super::*;
    use crate::facts::{DeviceFacts, HostFacts, NodeFacts};
    use crate::pci::{Bdf, ClassCode, GroupId};

    /// A function: what it hangs on, whether it is a port, a card, a disk or a part of the machine, its group and its node.
    type Seed = (usize, u8, Option<u32>, Option<u32>);

    fn host(seeds: &[Seed], nodes: u32) -> HostFacts {
        let nodes = (0..nodes).map(|node| (node, NodeFacts::default())).collect();
        let mut facts = HostFacts { nodes, ..HostFacts::default() };
        let mut ports: Vec<(u8, Vec<Bdf>)> = vec![(0, Vec::new())];
        let mut used = [0_u8; 64];
        for (parent, kind, group, node) in seeds {
            let (bus, upstream) = ports[parent % ports.len()].clone();
            let slot = &mut used[usize::from(bus)];
            let Some(bdf) = Bdf::new(0, bus, *slot / 2, *slot % 2) else { continue };
            *slot += 1;
            let class = [0x06_0400, 0x03_0200, 0x01_0802, 0x08_8000][usize::from(kind % 4)];
            if class == 0x06_0400 {
                let below = u8::try_from(ports.len()).unwrap();
                ports.push((below, [upstream.clone(), vec![bdf]].concat()));
            }
            let id = "10de:2330".parse().unwrap();
            let group = group.map(GroupId);
            let device = DeviceFacts {
                group,
                upstream,
                node: *node,
                ..DeviceFacts::new(id, ClassCode::new(class).unwrap())
            };
            facts.devices.insert(bdf, device);
        }
        facts
    }

    fn text_area(text: &drawing::Text) -> Area {
        let w = measure::width(&text.text, text.face, text.size);
        let x = if text.anchor == Anchor::End { text.x - w } else { text.x };
        Area { x, y: text.y - 0.75 * text.size, w, h: text.size }
    }

    fn holds(outer: Area, inner: Area) -> bool {
        let both = outer.with(inner);
        both.w - outer.w < 0.01 && both.h - outer.h < 0.01
    }

    fn shapes(drawing: &Drawing) -> (Vec<Area>, Vec<Area>, Vec<(Area, String)>) {
        let (mut boxes, mut frames, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for shape in &drawing.shapes {
            match shape {
                Shape::Rect { area, class, .. } if class.starts_with("group") => frames.push(*area),
                Shape::Rect { area, class, .. } if class != "page" && class != "room" => boxes.push(*area),
                Shape::Text(text) => texts.push((text_area(text), text.text.clone())),
                _ => {}
            }
        }
        (boxes, frames, texts)
    }

    fn seed() -> impl Strategy<Value = Seed> {
        (0_usize..40, 0_u8..8, prop::option::of(0_u32..6), prop::option::of(0_u32..3))
    }

    proptest! {
        #[test]
        fn nothing_lies_over_anything_whatever_the_tree(seeds in prop::collection::vec(seed(), 0..40), nodes in 0_u32..4) {
            let facts = host(&seeds, nodes);
            let drawing = draw(&Topology::of(&facts));
            let (boxes, frames, texts) = shapes(&drawing);
            for bdf in facts.devices.keys() {
                let count = texts.iter().filter(|(_, text)| *text == bdf.to_string()).count();
                prop_assert_eq!(count, 1, "{}", bdf);
            }
            for areas in [&boxes, &frames] {
                for (at, area) in areas.iter().enumerate() {
                    prop_assert!(!areas[at + 1..].iter().any(|other| other.meets(*area)), "{area:?}");
                }
            }
            for (at, (area, text)) in texts.iter().enumerate() {
                let over = texts[at + 1..].iter().find(|(other, _)| other.meets(*area));
                prop_assert!(over.is_none(), "{text} is over {over:?}");
                for around in boxes.iter().chain(&frames).filter(|around| around.meets(*area)) {
                    prop_assert!(holds(*around, *area), "{text} leaves {around:?}");
                }
            }
            for frame in &frames {
                for boxed in boxes.iter().filter(|boxed| boxed.meets(*frame)) {
                    prop_assert!(holds(*frame, *boxed), "{frame:?} cuts through {boxed:?}");
                }
            }
        }
    }

    /// A host may claim whatever it likes: a damaged `online` of 0-65535 once took 40 GB and minutes.
    #[test]
    fn a_host_that_claims_65_536_nodes_is_drawn_all_the_same() {
        let facts = host(&[(0, 1, None, Some(7))], 65_536);
        assert!(svg(&Topology::of(&facts)).ends_with("</svg>\n"));
    }
}
