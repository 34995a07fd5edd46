//! One node with its root complexes: a tree from left to right, a device on each row.

use super::SMALL;
use super::drawing::{Anchor, Area, Drawing, Shape, Text};
use super::frames::{self, Boxed, Colours, HEAD, PAD};
use super::measure::{Face, fit, width};
use crate::inventory::Kind;
use crate::pci::GroupId;
use crate::topology::{Branch, Complex, Room};

/// The space between a room's wall and what is in it.
const WALL: f64 = 16.0;
/// The height of a room's own words.
const TITLE: f64 = 52.0;
/// A device's box.
const DEVICE: (f64, f64) = (256.0, 42.0);
/// The height of a port's box.
const PORT: f64 = 38.0;
/// The space between boxes of one group, and between boxes without a frame.
const NEAR: f64 = 7.0;
/// The space between root complexes.
const APART: f64 = 24.0;
/// The space beside an edge's words, and the least length of an edge.
const EDGE: (f64, f64) = (32.0, 34.0);
/// How many parts of the machine stand in a line.
const PARTS: usize = 3;
/// The height of a line in a list.
const LINE: f64 = 16.0;

/// Draws a room, with its corner at 0, 0 and without its wall.
pub(super) fn draw(room: &Room, colours: &Colours) -> Drawing {
    let mut sheet = Sheet {
        page: Drawing::default(),
        boxes: Vec::new(),
        colours,
        y: TITLE,
        last: None,
        run: 0,
        is_elsewhere: false,
    };
    let columns = Columns::of(room);
    for complex in &room.complexes {
        sheet.complex(complex, &columns);
    }
    sheet.finish(room)
}

struct Sheet<'a> {
    page: Drawing,
    boxes: Vec<Boxed>,
    colours: &'a Colours,
    /// Where the next row begins.
    y: f64,
    /// The last row's group, where that has a frame; nothing before the first row.
    last: Option<Option<GroupId>>,
    /// Counts the runs of neighbours of one group.
    run: usize,
    /// Whether the next row hangs on another port than the last.
    is_elsewhere: bool,
}

/// Where the boxes of each depth begin, and how wide ports are.
struct Columns {
    at: Vec<f64>,
    ports: f64,
}

impl Columns {
    fn of(room: &Room) -> Self {
        let mut edges = Vec::new();
        let mut ports = width("root complex", Face::Sans, SMALL);
        for complex in &room.complexes {
            ports = width(&format!("pci{}", complex.bus), Face::MonoBold, SMALL).max(ports);
            complex.branches.iter().for_each(|branch| measure(branch, 0, &mut edges, &mut ports));
        }
        let ports = ports + 18.0;
        let mut at = vec![WALL];
        for edge in edges {
            let length = if edge > 0.0 { edge + EDGE.0 } else { EDGE.1 };
            at.push(at.last().copied().unwrap_or(WALL) + ports + length);
        }
        Self { at, ports }
    }

    fn at(&self, depth: usize) -> f64 {
        self.at.get(depth).copied().unwrap_or(WALL)
    }
}

/// Takes the widest words of the edges to each depth, and of the ports.
fn measure(branch: &Branch, depth: usize, edges: &mut Vec<f64>, ports: &mut f64) {
    if edges.len() <= depth {
        edges.resize(depth + 1, 0.0);
    }
    let words = edge_words(branch).map_or(0.0, |(words, _)| width(&words, Face::Sans, SMALL));
    edges[depth] = edges[depth].max(words);
    if is_port(branch) {
        *ports = ports.max(width(&branch.bdf.to_string(), Face::Mono, SMALL)).max(width(
            &group_words(branch),
            Face::Sans,
            SMALL,
        ));
    }
    branch.below.iter().for_each(|below| measure(below, depth + 1, edges, ports));
}

fn is_port(branch: &Branch) -> bool {
    branch.kind == Kind::Bridge || !branch.below.is_empty()
}

fn group_words(branch: &Branch) -> String {
    branch.group.map_or_else(|| "no group".to_owned(), |group| format!("group {group}"))
}

/// What stands on the edge to a function: its link, once for a card. Ports inside a switch have none.
fn edge_words(branch: &Branch) -> Option<(String, &'static str)> {
    let link = branch.link.filter(|link| branch.bdf.function() == 0 && link.now.width != Some(0))?;
    Some((link.label()?, if link.lacks_lanes() { "slow" } else { "muted" }))
}

impl Sheet<'_> {
    fn complex(&mut self, complex: &Complex, columns: &Columns) {
        if self.last.take().is_some() {
            self.y += APART;
        }
        let (parts, branches): (Vec<&Branch>, Vec<&Branch>) = complex
            .branches
            .iter()
            .partition(|branch| branch.kind == Kind::Chipset && branch.below.is_empty());
        let mut ends: Vec<f64> = Vec::new();
        for branch in branches {
            ends.push(self.branch(branch, 1, columns).middle());
        }
        if !parts.is_empty() {
            ends.push(self.parts(&parts, columns).middle());
        }
        let (Some(first), Some(last)) = (ends.first().copied(), ends.last().copied()) else { return };
        let area = Area { x: WALL, y: f64::midpoint(first, last) - PORT / 2.0, w: columns.ports, h: PORT };
        self.page.rect(area, 6.0, "port");
        self.words(area, format!("pci{}", complex.bus), 16.0, Face::MonoBold, "");
        self.words(area, "root complex".to_owned(), 31.0, Face::Sans, "muted");
        self.boxes.push(Boxed { area, group: None, run: None });
        for end in ends {
            self.edge(area, columns.at(1), end);
        }
    }

    /// Draws a function with what is below it, and returns where its own box is.
    fn branch(&mut self, branch: &Branch, depth: usize, columns: &Columns) -> Area {
        let x = columns.at(depth);
        if !is_port(branch) {
            return self.device(branch, x);
        }
        self.is_elsewhere = true;
        let below: Vec<Area> =
            branch.below.iter().map(|below| self.branch(below, depth + 1, columns)).collect();
        let area = match (below.first(), below.last()) {
            (Some(first), Some(last)) => {
                let y = f64::midpoint(first.middle(), last.middle()) - PORT / 2.0;
                Area { x, y, w: columns.ports, h: PORT }
            }
            _ => {
                let y = self.row(self.colours.of_group(branch.group).map(|(group, _)| group), PORT);
                Area { x, y, w: columns.ports, h: PORT }
            }
        };
        self.is_elsewhere = true;
        self.port(branch, area);
        for below in &below {
            self.edge(area, below.x, below.middle());
        }
        self.boxes.push(Boxed {
            area,
            group: branch.group,
            run: branch.below.is_empty().then_some(self.run),
        });
        self.link(branch, area);
        area
    }

    /// Takes a row for a box, below the last one and its frame.
    fn row(&mut self, framed: Option<GroupId>, height: f64) -> f64 {
        let same = framed.is_some() && self.last == Some(framed) && !self.is_elsewhere;
        self.is_elsewhere = false;
        let above = match self.last {
            Some(Some(_)) if !same => PAD + NEAR,
            Some(_) => NEAR,
            None => 0.0,
        };
        let head = if framed.is_some() && !same { HEAD } else { 0.0 };
        self.run += usize::from(!same);
        let y = self.y + above + head;
        (self.y, self.last) = (y + height, Some(framed));
        y
    }

    fn device(&mut self, branch: &Branch, x: f64) -> Area {
        let framed = self.colours.of_group(branch.group).map(|(group, _)| group);
        let y = self.row(framed, DEVICE.1);
        let area = Area { x, y, w: DEVICE.0, h: DEVICE.1 };
        let is_gpu = branch.kind == Kind::Accelerator && matches!(branch.class.base(), 0x03 | 0x12 | 0x0b);
        self.page.rect(area, 5.0, if is_gpu { "gpu" } else { "device" });
        let title = title(branch);
        let (inner, face) = (DEVICE.0 - 18.0, if is_gpu { Face::Bold } else { Face::Sans });
        let bdf = branch.bdf.to_string();
        let left = inner - width(&bdf, Face::MonoBold, SMALL) - 10.0;
        self.words(area, bdf, 17.0, Face::MonoBold, "");
        let driver = branch.driver.as_ref().map_or("no driver", |driver| driver.as_str());
        self.at_right(area, fit(driver, Face::Sans, SMALL, left), 17.0);
        let folded = match branch.virtual_functions {
            0 => String::new(),
            1 => "+1 VF".to_owned(),
            count => format!("+{count} VFs"),
        };
        let taken = width(&folded, Face::Sans, SMALL);
        self.at_right(area, folded, 34.0);
        let left = inner - if taken > 0.0 { taken + 8.0 } else { 0.0 };
        let name = fit(&shorter(branch.label(), face, left), face, SMALL, left);
        self.titled(area, name, 34.0, face, title);
        self.boxes.push(Boxed { area, group: branch.group, run: Some(self.run) });
        self.link(branch, area);
        area
    }

    fn port(&mut self, branch: &Branch, area: Area) {
        self.page.rect(area, 6.0, "port");
        self.titled(area, branch.bdf.to_string(), 16.0, Face::Mono, title(branch));
        self.words(area, group_words(branch), 31.0, Face::Sans, "muted");
    }

    /// Lists the parts of the machine on a root bus.
    fn parts(&mut self, parts: &[&Branch], columns: &Columns) -> Area {
        let cell =
            parts.iter().map(|part| width(&part.bdf.to_string(), Face::Mono, SMALL)).fold(0.0, f64::max);
        let cell = cell + 12.0;
        let lines: Vec<&[&Branch]> = parts.chunks(PARTS).collect();
        let height = lines.iter().fold(LINE + 8.0, |height, _| height + LINE);
        let y = self.row(None, height);
        let area = Area { x: columns.at(1), y, w: DEVICE.0.max(cell * 3.0 + 12.0), h: height };
        self.page.rect(area, 5.0, "parts");
        self.words(area, "parts of the machine".to_owned(), LINE, Face::Sans, "muted");
        let mut y = y + 2.0 * LINE;
        for line in lines {
            let mut x = area.x + 9.0;
            for part in line {
                self.page.text(Text {
                    x,
                    y,
                    size: SMALL,
                    face: Face::Mono,
                    anchor: Anchor::Begin,
                    class: "muted",
                    text: part.bdf.to_string(),
                    title: Some(title(part)),
                });
                x += cell;
            }
            y += LINE;
        }
        self.boxes.push(Boxed { area, group: None, run: Some(self.run) });
        area
    }

    /// Draws an edge from the right of one box to the left of another.
    fn edge(&mut self, from: Area, x: f64, y: f64) {
        let bend = from.right() + 9.0;
        let points = vec![(from.right(), from.middle()), (bend, from.middle()), (bend, y), (x, y)];
        self.page.shapes.push(Shape::Line { points, class: "edge" });
    }

    /// Writes a function's link on the edge that leads to it.
    fn link(&mut self, branch: &Branch, area: Area) {
        if let Some((words, class)) = edge_words(branch) {
            self.page.text(Text {
                x: area.x - PAD - 6.0,
                y: area.middle() - 5.0,
                size: SMALL,
                face: Face::Sans,
                anchor: Anchor::End,
                class,
                text: words,
                title: None,
            });
        }
    }

    fn words(&mut self, area: Area, text: String, y: f64, face: Face, class: &'static str) {
        let (x, y) = (area.x + 9.0, area.y + y);
        self.page.text(Text { x, y, size: SMALL, face, anchor: Anchor::Begin, class, text, title: None });
    }

    fn titled(&mut self, area: Area, text: String, y: f64, face: Face, title: String) {
        let (x, y, title) = (area.x + 9.0, area.y + y, Some(title));
        self.page.text(Text { x, y, size: SMALL, face, anchor: Anchor::Begin, class: "", text, title });
    }

    fn at_right(&mut self, area: Area, text: String, y: f64) {
        let (x, y, face) = (area.right() - 9.0, area.y + y, Face::Sans);
        let (anchor, class) = (Anchor::End, "muted");
        self.page.text(Text { x, y, size: SMALL, face, anchor, class, text, title: None });
    }

    /// Draws the frames below the boxes, and the room's words.
    fn finish(self, room: &Room) -> Drawing {
        let Self { page, boxes, colours, y, last, .. } = self;
        let mut drawing = Drawing::default();
        for (area, group, colour) in frames::around(&boxes, colours) {
            drawing.rect(area, 8.0, format!("group g{colour}"));
            drawing.text(Text {
                x: area.x + PAD,
                y: area.y + 14.0,
                size: SMALL,
                face: Face::Sans,
                anchor: Anchor::Begin,
                class: "muted",
                text: format!("group {group}"),
                title: None,
            });
        }
        drawing.shapes.extend(page.shapes);
        let right = boxes.iter().map(|boxed| boxed.area.right() + PAD).fold(330.0, f64::max);
        let bottom = if last.flatten().is_some() { PAD } else { 0.0 };
        (drawing.width, drawing.height) = (right + WALL, y + bottom + WALL);
        let name = room.node.map_or_else(|| "No node told".to_owned(), |node| format!("Node {node}"));
        let most = drawing.width - 2.0 * WALL;
        let mut line = |y, size, face, class, text: String| {
            let shown = fit(&text, face, size, most);
            let title = (shown != text).then_some(text);
            let (x, anchor) = (WALL, Anchor::Begin);
            drawing.text(Text { x, y, size, face, anchor, class, text: shown, title });
        };
        line(25.0, 15.0, Face::Bold, "", name);
        line(43.0, SMALL, Face::Sans, "muted", what_it_has(room));
        drawing
    }
}

/// Says what a node has beside devices.
fn what_it_has(room: &Room) -> String {
    if room.node.is_none() {
        return "the firmware doesn't tell where these are".to_owned();
    }
    let cpus = if room.cpus.is_empty() { "no CPUs".to_owned() } else { format!("CPUs {}", room.cpus) };
    let mib = room.memory.as_mib_ceil();
    let memory = match mib {
        0 => "no memory".to_owned(),
        1..10_240 => format!("{mib} MiB"),
        _ => format!("{} GiB", mib.div_ceil(1024)),
    };
    let devices = if room.complexes.is_empty() { " · no devices" } else { "" };
    format!("{cpus} · {memory}{devices}")
}

/// Takes what pci.ids has in brackets, what a card is sold as, where the whole name is too long: `TU104 [GeForce RTX 2080]`.
fn shorter(name: String, face: Face, most: f64) -> String {
    if width(&name, face, SMALL) <= most {
        return name;
    }
    let sold_as = name.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    sold_as.map_or_else(|| name.clone(), |(sold_as, _)| sold_as.to_owned())
}

/// What is shown of a function that is pointed at.
fn title(branch: &Branch) -> String {
    let driver = branch.driver.as_ref().map_or_else(|| "no driver".to_owned(), ToString::to_string);
    let group = group_words(branch);
    format!("{}: {} ({}, {}), {driver}, {group}", branch.bdf, branch.name, branch.class_name, branch.id)
}
