//! What is drawn from a soak's record: the report and the comparison, of made records.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gpuvm_core::reset::{Judgement, Verdict};
use gpuvm_core::soak::{self, Cycle, CycleKind, Fault, Line, Phase, Why, report};
use gpuvm_testkit::soak::{Made, climbed, correctable, fallen, last_words};
use roxmltree::{Document, Node, ParsingOptions};

use crate::shared::golden::{compare, compare_as, repository};
use crate::{gpuvm, transcript};

fn all_healthy(cycles: u32) -> Vec<Line> {
    Made::new(cycles).healthy(cycles).ended(Why::Done)
}

/// The card falls off the bus in the last cycle.
fn fell(cycle: &mut Cycle) {
    cycle.devices[0].judgement = fallen();
    cycle.devices[0].kernel = last_words();
    cycle.devices[0].speed = None;
    cycle.devices[0].width = Some(0);
}

fn stopped_at_a_fault(cycles: u32) -> Vec<Line> {
    let made = Made::new(200).healthy(cycles - 1).cycle(fell);
    let Some(Line::Cycle(last)) = made.lines.last() else { panic!("there is a cycle") };
    let why = Why::Stopped { cycle: last.number, reason: last.reason().unwrap() };
    made.ended(why)
}

fn repaired() -> Vec<Line> {
    let repaired = |cycle: &mut Cycle| {
        fell(cycle);
        let device = &mut cycle.devices[0];
        device.before_repair = Some(std::mem::replace(&mut device.judgement, Judgement::new(Vec::new())));
        device.repair = climbed();
    };
    let degraded = |cycle: &mut Cycle| {
        cycle.devices[0].judgement = Judgement::new(vec![correctable(3)]);
        cycle.devices[0].errors.correctable = 3;
    };
    Made::new(30).healthy(11).cycle(repaired).healthy(6).cycle(degraded).healthy(11).ended(Why::Done)
}

fn not_ready(cycle: &mut Cycle) {
    cycle.faults = vec![Fault::NotReady {
        waited_for: "a console line that matches `^lab: up`".to_owned(),
        ms: 300_000,
    }];
    cycle.phases.iter_mut().filter(|part| part.phase == Phase::Boot).for_each(|part| part.ms = 300_000);
    cycle.ms = 302_000;
    cycle.job = None;
}

fn cut_and_resumed() -> Vec<Line> {
    let made =
        Made::new(40).healthy(14).killed_and_resumed(|begun| begun.machine.kernel = "6.12.49-lab".to_owned());
    made.healthy(5).cycle(not_ready).healthy(6).ended(Why::Interrupted { signal: "SIGINT".to_owned() })
}

/// A console, a kernel and a guest that mean harm.
fn hostile() -> Vec<Line> {
    let evil = "<script>alert(1)</script>\u{1b}[31m\0 \u{202e}\"'&amp; ]]> </style> {{ 7*7 }} <!-- \u{ffff}";
    let harm = |cycle: &mut Cycle| {
        fell(cycle);
        let device = &mut cycle.devices[0];
        device.kernel = vec![evil.to_owned(); 50];
        device.judgement.findings[0].meaning = evil.to_owned();
        device.judgement.findings[0].after = evil.to_owned();
        cycle.faults = vec![Fault::Job { message: evil.to_owned() }];
        let job = cycle.job.as_mut().unwrap();
        job.message = Some(evil.to_owned());
        job.figures.insert(evil.to_owned(), serde_json::json!(1e300));
        cycle.polled.as_mut().unwrap().said = Some(evil.to_owned());
    };
    let made = Made::new(9).begun(|begun| {
        begun.settings.profile_text = evil.to_owned();
        begun.settings.profile = evil.to_owned();
        begun.machine.cpu = Some(evil.to_owned());
        begun.devices[0].name = Some(evil.to_owned());
    });
    made.healthy(2).cycle(harm).ended(Why::Stopped { cycle: 3, reason: evil.to_owned() })
}

fn records() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        ("all-healthy", all_healthy(40)),
        ("stopped-at-a-fault", stopped_at_a_fault(17)),
        ("repaired", repaired()),
        ("cut-and-resumed", cut_and_resumed()),
        ("hostile", hostile()),
        ("no-cycles", Made::new(10).ended(Why::Interrupted { signal: "SIGTERM".to_owned() })),
        ("not-over", Made::new(10).healthy(1).lines),
        ("empty", Vec::new()),
    ]
}

/// A poll that hangs is one run, though it never came back.
#[test]
fn a_poll_that_hangs_is_told_as_one_that_was_run() {
    let hangs = |runs: u32| {
        Made::new(3)
            .cycle(|cycle| {
                let polled = cycle.polled.as_mut().unwrap();
                (polled.runs, polled.hangs, polled.longest_ms) = (runs, true, 42_000);
            })
            .ended(Why::Done)
    };
    let page = report::html(&hangs(0));
    assert!(page.contains("It was run once, and has not come back: it hangs, for 42.0 s so far."), "{page}");
    assert!(!page.contains("It was run 0 times"));
    let page = report::html(&hangs(4));
    assert!(page.contains("It was run 4 times and failed 0 times"), "{page}");
    assert!(page.contains("the run after those has not come back: it hangs"), "{page}");
}

#[test]
fn reports_are_as_they_were() {
    let pages = records().into_iter().map(|(name, lines)| (name.to_owned(), report::html(&lines)));
    compare_as("html", "soak-report", pages);
}

/// Reads a page as XML: its elements are all closed, and all text in it is escaped.
fn parsed(html: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(html, options).unwrap()
}

fn elements<'a, 'b>(page: &'a Document<'b>, name: &str) -> Vec<Node<'a, 'b>> {
    page.descendants().filter(|node| node.tag_name().name() == name).collect()
}

#[test]
fn pages_are_well_formed_and_run_and_load_nothing() {
    for (name, lines) in records() {
        let html = report::html(&lines);
        let page = parsed(&html);
        for forbidden in ["script", "link", "img", "iframe", "object", "image", "use", "foreignObject"] {
            assert!(elements(&page, forbidden).is_empty(), "{name}: <{forbidden}>");
        }
        for attribute in page.descendants().flat_map(|node| node.attributes()) {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(
                !key.starts_with("on") && !["href", "src", "style"].contains(&key),
                "{name}: {key}={value}"
            );
        }
        let style = elements(&page, "style")[0].text().unwrap();
        assert!(!style.contains("url(") && !style.contains("@import"), "{name}");
        let outside = html.replace("http://www.w3.org/", "");
        assert!(!outside.contains("http:") && !outside.contains("https:"), "{name}");
        // What a terminal would obey, and what turns the direction of writing, is nowhere.
        let harmful = |letter: char| letter.is_control() && !"\n\t".contains(letter) || letter == '\u{202e}';
        assert!(!html.contains(harmful), "{name}");
        assert!(!html.contains("NaN") && !html.contains("inf "), "{name}");
    }
}

/// README shows a picture of it: the record is that of a real soak.
#[test]
fn the_sample_in_docs_is_drawn_from_its_record() {
    let folder = repository().join("docs/soak");
    let lines = soak::read(&fs::read(folder.join("record.jsonl")).unwrap()).unwrap();
    let (html, path) = (report::html(&lines), folder.join("report.html"));
    if std::env::var_os("GPUVM_BLESS").is_some() {
        fs::write(&path, &html).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap() == html,
        "GPUVM_BLESS=1 draws it anew; the picture is made by hand"
    );
    assert!(html.contains("199 cycles, all healthy"));
}

#[test]
fn each_chart_says_what_it_shows() {
    for (name, lines) in records() {
        let html = report::html(&lines);
        let page = parsed(&html);
        let charts = elements(&page, "svg").into_iter().filter(|svg| svg.attribute("role") == Some("img"));
        let mut seen = 0;
        for svg in charts {
            seen += 1;
            let text = |part: &str| {
                svg.children().find(|node| node.has_tag_name((svg.tag_name().namespace().unwrap(), part)))
            };
            let [title, description] =
                ["title", "desc"].map(|part| text(part).and_then(|node| node.text()).unwrap_or_default());
            assert!(!title.is_empty() && description.len() > 10, "{name}: {title:?} {description:?}");
        }
        assert_eq!(seen > 5, !["no-cycles", "empty"].contains(&name), "{name}: {seen} charts");
    }
}

#[test]
fn the_verdict_comes_first_in_plain_words() {
    let title = |lines: &[Line]| {
        let html = report::html(lines);
        let page = parsed(&html);
        let heading = elements(&page, "h1")[0];
        heading
            .descendants()
            .filter(roxmltree::Node::is_text)
            .filter_map(|node| node.text())
            .collect::<String>()
    };
    assert_eq!(title(&all_healthy(200)), "✓200 cycles, all healthy");
    assert_eq!(
        title(&stopped_at_a_fault(57)),
        "✗Stopped at cycle 57: 0000:82:00.0 is unreachable: all ones: it has fallen off the bus"
    );
    assert_eq!(title(&repaired()), "!30 cycles, 2 not healthy: 1 repaired, 1 degraded");
    assert_eq!(title(&cut_and_resumed()), "✗Interrupted by SIGINT after 26 cycles, 1 not healthy: 1 failed");
    assert_eq!(title(&Made::new(10).healthy(1).lines), "…Not over: 1 cycle, healthy so far");
    assert_eq!(title(&[]), "…No cycle has come to its end");
    // The finding that it rests on, and what the kernel said, come before everything else.
    let html = report::html(&stopped_at_a_fault(57));
    let place = |words: &str| html.find(words).unwrap_or_else(|| panic!("{words} isn't there"));
    assert!(
        place("0x11e81234") < place("What was asked for") && place("giving up") < place("What was asked for")
    );
    assert!(place("What was asked for") < place("<svg") && place("<svg") < place("The machine"));
}

#[test]
fn long_records_stay_small_and_their_cycles_share_places() {
    let size = |lines: &[Line]| {
        let html = report::html(lines);
        parsed(&html);
        (html.len(), html.contains("is the mean of 10 cycles"))
    };
    let (of_200, shared) = size(&all_healthy(200));
    assert!(of_200 < 200_000 && !shared, "{of_200}");
    let (of_2000, shared) = size(&all_healthy(2000));
    assert!(of_2000 < 400_000 && shared, "{of_2000}");
    // Nor does it matter if everything is bad.
    let mut made = Made::new(2000);
    for _ in 0..2000 {
        made = made.cycle(fell);
    }
    let (of_bad, _) = size(&made.ended(Why::Done));
    assert!(of_bad < 700_000, "{of_bad}");
}

/// The relative luminance of a colour (WCAG 2.1).
fn luminance(colour: &str) -> f64 {
    let part = |at: usize| {
        let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn colours_have_contrast_on_light_and_on_dark_paper() {
    let html = report::html(&[]);
    let colours = |rule: &str| -> BTreeMap<String, String> {
        let rule = &rule[..rule.find('}').unwrap()];
        let pairs = rule.split(';').filter_map(|pair| pair.trim().strip_prefix("--")?.split_once(':'));
        pairs.map(|(name, colour)| (name.to_owned(), colour.to_owned())).collect()
    };
    let roots: Vec<_> = html
        .split(":root{color-scheme:light dark;")
        .nth(1)
        .into_iter()
        .chain(html.split("{:root{").nth(1))
        .collect();
    assert_eq!(roots.len(), 2);
    for colours in roots.into_iter().map(colours) {
        let contrast = |a: &str, b: &str| {
            let (a, b) = (luminance(&colours[a]), luminance(&colours[b]));
            (a.max(b) + 0.05) / (a.min(b) + 0.05)
        };
        for paper in ["page", "panel"] {
            for ink in ["ink", "muted", "good", "warn", "bad", "open"] {
                assert!(contrast(ink, paper) >= 4.5, "{ink} on {paper}: {}", contrast(ink, paper));
            }
            for shape in ["p0", "p1", "p2", "p3", "p4", "curve", "repaired"] {
                assert!(contrast(shape, paper) >= 3.0, "{shape} on {paper}: {}", contrast(shape, paper));
            }
        }
    }
}

#[test]
fn a_made_record_is_read_as_it_was_written() {
    for (name, lines) in records().into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        assert_eq!(soak::read(text.as_bytes()).unwrap(), lines, "{name}");
    }
}

#[test]
fn percentiles_are_of_the_kind_of_cycle_that_has_the_part() {
    let tally = soak::Tally::of(&all_healthy(200));
    assert_eq!((tally.done(), tally.kinds[&CycleKind::Kill], tally.kinds[&CycleKind::Reboot]), (200, 20, 20));
    assert_eq!((tally.phases[&Phase::Reboot].len(), tally.phases[&Phase::Boot].len()), (20, 200));
    assert!(tally.is_all_healthy());
    let stopped = soak::Tally::of(&stopped_at_a_fault(57));
    assert!(!stopped.is_all_healthy());
    assert_eq!(stopped.worst.unwrap().cycle, 57);
    assert_eq!(stopped.findings.len(), 2);
    assert!(
        stopped
            .findings
            .values()
            .all(|found| found.cycles == [57] && found.first.weight >= Some(Verdict::Faulted))
    );
}

/// Writes a record and returns its path.
fn written(folder: &Path, name: &str, lines: &[Line]) -> String {
    let path = folder.join(name).join("record.jsonl");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// After the upgrade each stop takes 210 ms longer, which is more than a tenth of it and no chance.
fn slower(cycles: u32, kernel: &str) -> Vec<Line> {
    let mut made = Made::new(cycles).begun(|begun| {
        begun.machine.kernel = kernel.to_owned();
        begun.settings.profile_text = begun.settings.profile_text.replace("256M", "512M");
    });
    let later = |cycle: &mut Cycle| {
        cycle.phases.iter_mut().filter(|part| part.phase == Phase::Stop).for_each(|part| part.ms += 210);
        cycle.ms += 210;
    };
    for _ in 0..cycles {
        made = made.cycle(later);
    }
    made.ended(Why::Done)
}

#[test]
fn records_are_compared_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let healthy = written(at, "healthy", &all_healthy(60));
    let slow = written(at, "slow", &slower(60, "6.13.1-lab"));
    let few = written(at, "few", &all_healthy(6));
    let stopped = written(at, "stopped", &stopped_at_a_fault(57));
    let repaired = written(at, "repaired", &repaired());
    let hostile = written(at, "hostile", &hostile());
    let none = written(at, "none", &Made::new(10).lines);
    let beside = at.join("healthy").display().to_string();
    let missing = at.join("missing").display().to_string();
    let other = at.join("other.jsonl").display().to_string();
    fs::write(&other, "{\"plan\":{}}\n").unwrap();
    let damaged = at.join("damaged.jsonl").display().to_string();
    let lines = fs::read_to_string(&few).unwrap();
    fs::write(&damaged, lines.replace("\"number\":3,", "\"number\":-3,")).unwrap();
    let cases: &[(&str, i32, &[&str])] = &[
        ("same", 0, &[&healthy, &beside]),
        ("slower", 1, &[&healthy, &slow]),
        ("slower-json", 1, &[&healthy, &slow, "--json"]),
        ("faster", 0, &[&slow, &healthy]),
        ("too-few", 0, &[&healthy, &few]),
        ("stopped", 1, &[&healthy, &stopped]),
        ("mended", 0, &[&repaired, &healthy]),
        ("hostile", 1, &[&few, &hostile]),
        ("no-cycles", 64, &[&healthy, &none]),
        ("missing", 64, &[&healthy, &missing]),
        ("no-record", 64, &[&other, &healthy]),
        ("damaged", 64, &[&healthy, &damaged]),
        ("damaged-json", 64, &[&healthy, &damaged, "--json"]),
        ("one-alone", 64, &[&healthy]),
    ];
    let case = |(name, code, words): &(&str, i32, &[&str])| {
        let output = gpuvm(&[&["soak", "compare"], *words].concat());
        assert_eq!(output.status.code(), Some(*code), "{name}");
        ((*name).to_owned(), transcript(&output, &at.display().to_string()))
    };
    compare("soak-compare", cases.iter().map(case));
}

#[test]
fn a_report_is_written_beside_its_record_or_where_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let lines = all_healthy(12);
    let record = written(folder.path(), "one", &lines);
    let beside = folder.path().join("one/report.html");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let told = gpuvm(&["soak", "report", &path("one")]);
    assert_eq!(String::from_utf8(told.stdout).unwrap(), format!("{}\n", beside.display()));
    assert_eq!(fs::read_to_string(&beside).unwrap(), report::html(&lines));
    let told = gpuvm(&["soak", "report", &record, "--out", &path("other.html"), "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told, serde_json::json!({ "report": path("other.html") }));
    assert_eq!(fs::read(path("other.html")).unwrap(), fs::read(&beside).unwrap());
    // A record whose last line a crash has torn is one all the same.
    fs::write(&record, fs::read_to_string(&record).unwrap() + "{\"line\":\"cyc").unwrap();
    assert!(gpuvm(&["soak", "report", &record]).status.success());
    assert_eq!(fs::read(&beside).unwrap(), fs::read(path("other.html")).unwrap());
    for (words, code, said) in [
        (vec![path("none")], 64, "is no record of a soak: there is no such file"),
        (vec![path("other.html")], 64, "is no record of a soak: line 1: a record begins with"),
        (vec![record, "--out".to_owned(), path("no/where.html")], 64, "mkdir -p"),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = gpuvm(&[&["soak", "report"], words.as_slice()].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && stderr.contains(said), "{stderr}");
    }
}

/// The sample of a soak that went on: a cut cycle that left nothing behind is no fault, and one that did is the worst there is.
#[test]
fn a_cut_cycle_counts_by_what_it_left() {
    let made = || Made::new(40).healthy(14).killed_and_resumed(|_| {});
    let tally = soak::Tally::of(&made().healthy(25).ended(Why::Done));
    assert!(tally.is_all_healthy() && tally.cut == [15] && tally.resumed == 1);
    assert!(report::html(&made().healthy(25).ended(Why::Done)).contains("39 cycles, all healthy"));
    let mut left = made();
    for line in &mut left.lines {
        if let Line::Cut(cut) = line {
            cut.left = vec!["0000:82:00.0 is unreachable".to_owned()];
        }
    }
    let lines = left.ended(Why::Stopped { cycle: 15, reason: "0000:82:00.0 is unreachable".to_owned() });
    assert!(!soak::Tally::of(&lines).is_all_healthy());
    let html = report::html(&lines);
    assert!(
        html.contains("Stopped at cycle 15: 0000:82:00.0 is unreachable") && html.contains("(cut short)")
    );
}
