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
    // The height of the highest column is the sum of some rooms in a row.
    let mut limits = Vec::new();
    for from in 0..rooms.len() {
        let mut height = 0.0;
        for room in &rooms[from..] {
            height += room.height;
            limits.push(height);
            height += MARGIN;
        }
    }
    limits.sort_by(f64::total_cmp);
    let fits = limits.into_iter().map(fill).find(|filled| filled.len() <= columns);
    fits.unwrap_or_default()
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
