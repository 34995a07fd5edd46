//! The picture of each recorded host and of each host that nobody here owns: legible, complete, and nothing over anything else.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::path::Path;
use std::process::Command;

use gpuvm_testkit::{hosts, recorded};
use roxmltree::{Document, Node};

/// How wide the picture is shown, and the smallest type that may be seen then.
const SHOWN: f64 = 1600.0;
const SMALLEST: f64 = 9.0;

#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Area {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn is_in(&self, other: &Self) -> bool {
        self.left >= other.left
            && self.right <= other.right
            && self.top >= other.top
            && self.bottom <= other.bottom
    }
}

struct Picture {
    page: Area,
    texts: Vec<(String, Area)>,
    /// Boxes of devices and ports, frames, rooms.
    boxes: Vec<Area>,
    frames: Vec<Area>,
    rooms: Vec<Area>,
    smallest_type: f64,
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

/// Estimates what a letter takes, as part of the size: by the kinds of letters, and not by the table that the picture is made with.
fn letter(letter: char, is_mono: bool) -> f64 {
    match letter {
        _ if is_mono => 0.602,
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | '\'' | '|' => 0.3,
        ' ' | '-' | '/' | '(' | ')' | '[' | ']' | 'f' | 't' | 'r' => 0.38,
        'm' | 'w' | 'M' | 'W' | '@' | '…' => 0.95,
        letter if letter.is_uppercase() => 0.7,
        _ => 0.61,
    }
}

fn text_area(node: Node<'_, '_>, text: &str) -> Area {
    let (x, y, size) = (number(node, "x"), number(node, "y"), number(node, "font-size"));
    let classes = node.attribute("class").unwrap_or_default();
    let is_mono = classes.contains("mono");
    let bold = if classes.contains("bold") && !is_mono { 1.08 } else { 1.0 };
    let width = text.chars().map(|found| letter(found, is_mono)).sum::<f64>() * size * bold;
    let left = if node.attribute("text-anchor") == Some("end") { x - width } else { x };
    Area { left, right: left + width, top: y - 0.76 * size, bottom: y + 0.24 * size }
}

fn picture(svg: &str) -> Picture {
    let document = Document::parse(svg).unwrap();
    let root = document.root_element();
    let page = Area { left: 0.0, top: 0.0, right: number(root, "width"), bottom: number(root, "height") };
    let mut picture = Picture {
        page,
        texts: Vec::new(),
        boxes: Vec::new(),
        frames: Vec::new(),
        rooms: Vec::new(),
        smallest_type: f64::MAX,
    };
    for node in root.children().filter(Node::is_element) {
        match node.tag_name().name() {
            "text" => {
                let text: String =
                    node.children().filter(Node::is_text).filter_map(|node| node.text()).collect();
                picture.smallest_type = picture.smallest_type.min(number(node, "font-size"));
                picture.texts.push((text.clone(), text_area(node, &text)));
            }
            "rect" => {
                let (left, top) = (number(node, "x"), number(node, "y"));
                let (right, bottom) = (left + number(node, "width"), top + number(node, "height"));
                let area = Area { left, top, right, bottom };
                match node.attribute("class").unwrap() {
                    "page" => {}
                    "room" => picture.rooms.push(area),
                    "gpu" | "device" | "port" | "parts" => picture.boxes.push(area),
                    class => {
                        assert!(class.starts_with("group "), "{class}");
                        picture.frames.push(area);
                    }
                }
            }
            _ => {}
        }
    }
    picture
}

fn draw(root: &Path, file: &Path) -> String {
    let status = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(["topology", "--host-root"])
        .arg(root)
        .arg("--svg")
        .arg(file)
        .env("PATH", "/usr/bin:/bin")
        .status()
        .unwrap();
    assert!(status.success());
    fs::read_to_string(file).unwrap()
}

/// Lists the functions that must be seen: all but virtual ones, which are counted.
fn functions(root: &Path) -> Vec<String> {
    let folder = fs::read_dir(root.join("sys/bus/pci/devices")).unwrap();
    folder
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.path().join("physfn").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// Finds everything that a reader would stumble over.
fn faults(root: &Path, picture: &Picture) -> Vec<String> {
    let mut faults = Vec::new();
    let shown = picture.smallest_type * SHOWN / picture.page.right;
    if shown < SMALLEST {
        faults.push(format!("the smallest type is {shown:.1} px high at {SHOWN} px width"));
    }
    for bdf in functions(root) {
        if picture.texts.iter().filter(|(text, _)| *text == bdf).count() != 1 {
            faults.push(format!("{bdf} isn't there once"));
        }
    }
    for (at, (text, area)) in picture.texts.iter().enumerate() {
        for (other, _) in picture.texts[at + 1..].iter().filter(|(_, other)| other.meets(area)) {
            faults.push(format!("{text:?} is over {other:?}"));
        }
        if !area.is_in(&picture.page) {
            faults.push(format!("{text:?} leaves the page"));
        }
        let around = picture.boxes.iter().chain(&picture.frames).chain(&picture.rooms);
        for boxed in around.filter(|boxed| boxed.meets(area) && !area.is_in(boxed)) {
            faults.push(format!("{text:?} runs over the edge of {boxed:?}"));
        }
    }
    for (what, areas) in [("boxes", &picture.boxes), ("frames", &picture.frames), ("rooms", &picture.rooms)] {
        for (at, area) in areas.iter().enumerate() {
            for other in areas[at + 1..].iter().filter(|other| other.meets(area)) {
                faults.push(format!("{what} meet: {area:?} and {other:?}"));
            }
        }
    }
    for frame in &picture.frames {
        for boxed in picture.boxes.iter().filter(|boxed| boxed.meets(frame) && !boxed.is_in(frame)) {
            faults.push(format!("a frame cuts through a box: {frame:?} and {boxed:?}"));
        }
    }
    faults
}

#[test]
fn every_host_is_drawn_legibly_and_with_all_its_functions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.svg");
    let mut wrong = Vec::new();
    let mut check = |name: &str, root: &Path| {
        let picture = picture(&draw(root, &file));
        assert!(picture.boxes.len() > 3 && !picture.frames.is_empty() && !picture.rooms.is_empty(), "{name}");
        wrong.extend(faults(root, &picture).into_iter().map(|fault| format!("{name}: {fault}")));
    };
    for name in recorded::names().unwrap() {
        check(&name, recorded::lay_out(&name).unwrap().path());
    }
    for (name, make) in hosts::ALL {
        let host = make();
        host.file("/usr/share/misc/pci.ids", include_str!("shared/pci.ids"));
        check(name, &host.path("/"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_picture_with_faults_is_found_out() {
    let svg = r#"<svg width="3000" height="100"><rect class="device" x="0" y="0" width="40" height="20"/>
        <rect class="room" x="0" y="0" width="90" height="90"/><rect class="group g0" x="10" y="0" width="60" height="60"/>
        <text x="1" y="12" font-size="12">a text that is too long</text><text x="1" y="14" font-size="12">over it</text></svg>"#;
    let host = recorded::lay_out("workstation").unwrap();
    let found = faults(host.path(), &picture(svg)).join("\n");
    for fault in ["the smallest type", "isn't there once", "is over", "runs over the edge", "cuts through"] {
        assert!(found.contains(fault), "{fault}: {found}");
    }
}
