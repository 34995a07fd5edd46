//! Functions in a table, what is wanted most first.

use std::collections::BTreeMap;
use std::fmt::Write;

use gpuvm_core::inventory::Kind;
use gpuvm_core::pci::Bdf;

use super::row::Row;

/// The most letters of a name.
const NAME: usize = 44;

/// What a table leaves out, but for its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    Nothing,
    /// Bridges, parts of the machine, and virtual functions.
    Machine,
}

impl Fold {
    pub(super) fn keeps(self, row: &Row) -> bool {
        let machine = matches!(row.kind, Kind::Bridge | Kind::Chipset) || row.physical_function.is_some();
        self == Self::Nothing || !machine
    }
}

/// Writes the table.
pub(super) fn text(rows: Vec<Row>, missing: &[Bdf], fold: Fold) -> String {
    let (kept, folded): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| fold.keeps(row));
    let mut kinds: BTreeMap<Kind, Vec<&Row>> = BTreeMap::new();
    for row in &kept {
        kinds.entry(row.kind).or_default().push(row);
    }
    let lines: Vec<(Kind, Vec<[String; 7]>)> = kinds
        .into_iter()
        .map(|(kind, rows)| (kind, rows.into_iter().flat_map(|row| cells(row, fold)).collect()))
        .collect();
    let mut text = String::new();
    let head = ["bdf", "name", "class", "driver", "group", "node", "verdict"].map(str::to_owned);
    let all = || lines.iter().flat_map(|(_, lines)| lines);
    let widths: Vec<usize> = (0..7)
        .map(|at| all().chain([&head]).map(|cells| cells[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut line = |cells: &[String; 7]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(text, "{}", padded.join("  ").trim_end()).ok();
    };
    if !kept.is_empty() {
        line(&head);
    }
    for (kind, lines) in &lines {
        line(&[
            format!("\n{kind}"),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]);
        lines.iter().for_each(&mut line);
    }
    for bdf in missing {
        writeln!(text, "{bdf}  there is no such PCI device on this host").ok();
    }
    if kept.is_empty() && missing.is_empty() {
        writeln!(text, "no device that could be passed").ok();
    }
    if fold == Fold::Machine {
        let count = folded.iter().filter(|row| row.kind == Kind::Chipset).count();
        let parts = match count {
            0 => String::new(),
            1 => " and 1 part of the machine".to_owned(),
            count => format!(" and {count} parts of the machine"),
        };
        writeln!(text, "\nBridges{parts} are left out; --all lists every function.").ok();
    }
    text
}

/// Spells a function, and a line for its virtual functions where they aren't listed.
fn cells(row: &Row, fold: Fold) -> Vec<[String; 7]> {
    let dash = || "-".to_owned();
    let own = [
        row.bdf.to_string(),
        shortened(&row.name),
        row.class_name.clone(),
        row.driver.as_ref().map_or_else(dash, ToString::to_string),
        row.group.map_or_else(dash, |group| group.to_string()),
        row.node.map_or_else(dash, |node| node.to_string()),
        row.verdict_words(),
    ];
    let mut lines = vec![own];
    if row.virtual_functions > 0 && fold == Fold::Machine {
        let count = match row.virtual_functions {
            1 => "1 virtual function".to_owned(),
            count => format!("{count} virtual functions"),
        };
        let empty = String::new;
        lines.push(["  +".to_owned(), count, empty(), empty(), empty(), empty(), "see --all".to_owned()]);
    }
    lines
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.to_owned();
    }
    let kept: String = name.chars().take(NAME - 1).collect();
    format!("{}…", kept.trim_end())
}
