//! One test per entry of the table: its examples are explained by it, with commands that can be pasted.

use std::collections::BTreeSet;

use rstest::rstest;

use super::table::{TEXT, Table};
use super::*;

/// A kernel's log of an ordinary boot: that of the lab's host, which has an IOMMU and devices for VFIO.
const ORDINARY: &str = include_str!("ordinary.log");

fn table() -> Table {
    Table::parse(TEXT).unwrap()
}

fn explained(line: &str) -> Explanation {
    explain(line, &Context::default()).unwrap_or_else(|| panic!("nothing explains `{line}`"))
}

#[test]
fn the_table_parses_and_is_the_one_that_is_used() {
    let ids: Vec<String> = table().entries().iter().map(|entry| entry.id.clone()).collect();
    assert!(ids.len() >= 80, "{} entries are fewer than there were", ids.len());
    assert!(ids.iter().all(|id| known(id, &Context::default()).is_some()));
}

/// Of each entry: every example is explained by it and by no other entry first, and every pattern is what explains one of them.
#[test]
fn each_entry_explains_its_examples() {
    let table = table();
    let mut wrong = Vec::new();
    for entry in table.entries() {
        let mut used = BTreeSet::new();
        for example in &entry.examples {
            let found = table.patterns().find(|(_, pattern)| pattern.find(example).is_some());
            match found {
                Some((first, pattern)) if first.id == entry.id => drop(used.insert(pattern.to_string())),
                Some((first, _)) => {
                    wrong.push(format!("{}: `{example}` is explained by {}", entry.id, first.id))
                }
                None => wrong.push(format!("{}: nothing explains `{example}`", entry.id)),
            }
        }
        let unused = entry.patterns.iter().filter(|pattern| !used.contains(*pattern));
        wrong.extend(unused.map(|pattern| format!("{}: no example is for `{pattern}`", entry.id)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of each entry: what the message says is in the commands that ask for it, and what it doesn't say stands there in capitals.
#[test]
fn each_entry_fills_its_commands() {
    let table = table();
    for entry in table.entries() {
        for example in &entry.examples {
            let found = explained(example);
            let all = found.commands.join("\n");
            assert_eq!(found.commands.is_empty(), found.none.is_some(), "{}", entry.id);
            for (name, word) in [("{bdf}", "BDF"), ("{group}", "GROUP")] {
                let asks = entry.commands.iter().any(|command| command.contains(name));
                assert!(!all.contains(name), "{}: {all}", entry.id);
                let own = entry.commands.iter().any(|command| command.contains(word));
                assert!(asks || own || !all.contains(word), "{}: {all}", entry.id);
            }
            for (capture, value) in captured(&table, example) {
                let asks = entry.commands.iter().any(|command| command.contains(&placeholder(capture)));
                assert!(!asks || all.contains(&value), "{}: `{value}` isn't in {all}", entry.id);
            }
        }
    }
}

fn captured(table: &Table, line: &str) -> Captures {
    table.patterns().find_map(|(_, pattern)| pattern.find(line)).unwrap_or_default()
}

fn placeholder(capture: Capture) -> String {
    format!("{{{}}}", capture.unknown().to_lowercase())
}

#[test]
fn each_version_of_a_kernel_is_one() {
    for entry in table().entries() {
        for version in entry.since.iter().chain(&entry.until) {
            let parts: Vec<Result<u32, _>> = version.split('.').map(str::parse).collect();
            assert!(parts.len() >= 2 && parts.iter().all(Result::is_ok), "{}: {version}", entry.id);
        }
    }
}

#[test]
fn an_ordinary_log_has_nothing_but_what_is_harmless() {
    assert!(ORDINARY.lines().count() >= 200);
    let found = explain_all(ORDINARY, &Context::default());
    let found: Vec<_> = found.iter().map(|found| (found.id, found.none)).collect();
    assert_eq!(found, [("window-no-io", Some("harmless"))]);
}

#[rstest]
#[case::empty("")]
#[case::blank("   ")]
#[case::a_word("vfio-pci")]
#[case::qemu_says_hello("QEMU emulator version 10.0.2")]
#[case::gpuvm_itself("gpuvm runs: qemu-system-x86_64 -device vfio-pci,host=0000:81:00.0")]
fn what_is_no_trouble_is_not_explained(#[case] line: &str) {
    assert_eq!(explain(line, &Context::default()), None);
}

/// What differs from line to line and from kernel to kernel doesn't matter: time stamps, levels, programs, journald's columns.
#[rstest]
#[case(
    "[  128.750571] vfio-pci 0000:82:00.0: No device request channel registered, blocked until released by user"
)]
#[case(
    "Nov 22 17:31:49 host kernel: vfio-pci 0000:82:00.0: No device request channel registered, blocked until released by user"
)]
#[case(
    "4,812,128750571,-;vfio-pci 0000:82:00.0: No device request channel registered, blocked until released by user"
)]
fn a_prefix_does_not_matter(#[case] line: &str) {
    assert_eq!(explained(line).id, "unbind-blocked");
}

#[rstest]
#[case::waiting("vfio-pci 0000:83:00.0: not ready 1023ms after FLR; waiting", "reset-waiting")]
#[case::gave_up("vfio-pci 0000:83:00.0: not ready 65535ms after FLR; giving up", "reset-gave-up")]
#[case::any_driver("nvme 0000:83:00.0: probe with driver nvme failed with error -22", "driver-probe-failed")]
#[case::vfio("vfio-pci 0000:83:00.0: probe with driver vfio-pci failed with error -22", "vfio-probe-invalid")]
#[case::minus_one_of_sixteen(
    "vfio-pci 0000:83:00.0: probe with driver vfio-pci failed with error -16",
    "vfio-probe-busy"
)]
#[case::minus_one(
    "vfio-pci 0000:83:00.0: probe with driver vfio-pci failed with error -1",
    "driver-probe-failed"
)]
fn the_most_specific_meaning_is_taken(#[case] line: &str, #[case] expected: &str) {
    assert_eq!(explained(line).id, expected);
}

#[test]
fn commands_are_filled_by_the_message_first_and_then_by_what_is_known() {
    let context = Context {
        bdf: "0000:41:00.0".parse().ok(),
        group: Some(GroupId(20)),
        distribution: Distribution::Fedora,
    };
    let by_message = explain("vfio-pci 0000:c3:00.0: BAR 0: can't reserve [mem 0x0-0xf]", &context).unwrap();
    assert!(by_message.commands.iter().any(|c| c.contains("grubby --update-kernel=ALL")), "{by_message:?}");
    let stuck = explain("kvm: vfio: Unable to power on device, stuck in D3", &context).unwrap();
    assert!(stuck.commands[0].contains("setpci -s 0000:41:00.0"), "{stuck:?}");
    let unknown = explain("kvm: vfio: Unable to power on device, stuck in D3", &Context::default()).unwrap();
    assert!(unknown.commands[0].contains("setpci -s BDF"), "{unknown:?}");
    let named = known("group-in-use", &context).unwrap();
    assert!(named.commands[0].contains("/dev/vfio/20"), "{named:?}");
}

/// A guest or an image's name may choose these words; the command is pasted into a root shell.
#[test]
fn what_a_message_says_is_quoted_in_commands() {
    let found = explained("Is another process using the image [/srv/$(reboot).qcow2]?");
    assert_eq!(found.commands, ["fuser -v '/srv/$(reboot).qcow2'"]);
}

#[test]
fn a_line_is_shown_without_what_a_terminal_would_act_upon() {
    let found = explained("\x1b[31mvfio-pci 0000:83:00.0: not ready 1023ms after FLR; waiting\x07\r");
    assert_eq!(found.line, "[31mvfio-pci 0000:83:00.0: not ready 1023ms after FLR; waiting");
}

#[test]
fn a_log_is_explained_in_its_order_and_repetitions_are_counted() {
    let log = "\
[1.0] vfio-pci 0000:83:00.0: not ready 1023ms after FLR; waiting
[2.0] something else
[3.0] vfio-pci 0000:83:00.0: not ready 2047ms after FLR; waiting
[4.0] vfio-pci 0000:41:00.0: not ready 1023ms after FLR; waiting
[5.0] vfio-pci 0000:83:00.0: not ready 65535ms after FLR; giving up
";
    let found = explain_all(log, &Context::default());
    let told: Vec<_> =
        found.iter().map(|found| (found.id, found.count, found.line.get(..5).unwrap())).collect();
    assert_eq!(
        told,
        [("reset-waiting", 2, "[1.0]"), ("reset-waiting", 1, "[4.0]"), ("reset-gave-up", 1, "[5.0]"),]
    );
}

#[rstest]
#[case::no_toml("[[message]")]
#[case::unknown_field("id = 'a'\nfoo = 1")]
#[case::id_in_capitals("id = 'A'")]
#[case::neither_commands_nor_why("id = 'a'\ncommands = []")]
#[case::commands_and_why_none("id = 'a'\nnone = 'harmless'")]
#[case::unknown_placeholder("id = 'a'\ncommands = ['cat {foo}']")]
#[case::short_pattern("id = 'a'\npatterns = ['{bdf}: no']")]
#[case::twice("id = 'b'")]
fn a_bad_table_is_refused(#[case] changes: &str) {
    let good = [
        ("id", "'a'"),
        ("source", "'kernel'"),
        ("patterns", "['a text of a message']"),
        ("examples", "['a text of a message']"),
        ("cause", "'why'"),
        ("commands", "['true']"),
        ("fact", "'a file'"),
        ("confidence", "'certain'"),
    ];
    let changed: BTreeMap<&str, &str> = changes.lines().filter_map(|line| line.split_once(" = ")).collect();
    let mut fields: BTreeMap<&str, &str> = good.into_iter().collect();
    let text = |fields: &BTreeMap<&str, &str>| {
        let lines = fields.iter().map(|(key, value)| format!("{key} = {value}\n"));
        format!("[[message]]\n{}", lines.collect::<String>())
    };
    let other = text(&BTreeMap::from_iter(good.into_iter().chain([("id", "'b'")])));
    assert!(Table::parse(&format!("{}{other}", text(&fields))).is_ok(), "the table without the mistake");
    fields.extend(changed);
    let bad = if changes.starts_with('[') { changes.to_owned() } else { text(&fields) };
    assert!(Table::parse(&format!("{bad}\n{other}")).is_err());
}
