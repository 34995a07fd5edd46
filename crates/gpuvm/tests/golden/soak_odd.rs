//! Records that nobody would write, and a crash, a guest or somebody's editor may: nothing that is drawn from them may fail.

use gpuvm_core::facts::{ErrorCounters, LinkSpeed};
use gpuvm_core::reset::{Check, Finding, Judgement, Method, Verdict};
use gpuvm_core::soak::compare::compare;
use gpuvm_core::soak::{
    Cycle, CycleKind, DeviceCycle, Ended, Fault, Line, OwnUse, Phase, PhaseTime, Polled, ResetTime, ResetWay,
    Tally, Why, report,
};
use gpuvm_testkit::soak::{Made, climbed};
use proptest::prelude::*;
use roxmltree::{Document, ParsingOptions};

/// A number, rather one at the edge of what there is.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX / 1000), 0u64..100_000, any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(u32::MAX), 0u32..50]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just("]]></script><!--\0\u{1b}[".to_owned()), Just(String::new())]
}

fn judgement() -> impl Strategy<Value = Judgement> {
    let weights = [None, Some(Verdict::Healthy), Some(Verdict::Degraded), Some(Verdict::Unreachable)];
    let finding = (prop::sample::select(weights.to_vec()), text(), text(), prop::option::of(text()))
        .prop_map(|(weight, register, meaning, before)| Finding {
            check: Check::Bars,
            weight,
            bdf: "0000:00:00.0".parse().unwrap(),
            register,
            before,
            after: meaning.clone(),
            meaning,
        });
    (prop::collection::vec(finding, 0..3), any::<bool>()).prop_map(|(findings, drawn)| match drawn {
        true => Judgement::new(findings),
        // A verdict that isn't drawn from what was found.
        false => Judgement { verdict: Verdict::Faulted, findings },
    })
}

fn device() -> impl Strategy<Value = DeviceCycle> {
    let reset = (
        any::<bool>(),
        prop::sample::select(vec![None, Some(Method::Flr), Some(Method::Hot)]),
        number(),
        any::<bool>(),
    )
        .prop_map(|(gpuvm, method, ms, failed)| ResetTime {
            by: if gpuvm { ResetWay::Gpuvm } else { ResetWay::Kernel },
            method,
            ms,
            failure: failed.then(|| "EIO".to_owned()),
        });
    let link = (prop::option::of(any::<u16>().prop_map(LinkSpeed)), prop::option::of(any::<u8>()));
    let judged = (judgement(), prop::option::of(judgement()), any::<bool>());
    let rest = (
        prop::collection::vec(reset, 0..4),
        prop::collection::vec(text(), 0..3),
        [number(), number(), number()],
    );
    (0u8..5, link, judged, rest).prop_map(|(at, (speed, width), (judgement, before_repair, climbs), rest)| {
        let (resets, kernel, [correctable, nonfatal, fatal]) = rest;
        DeviceCycle {
            bdf: format!("0000:{at:02x}:00.0").parse().unwrap(),
            drift: before_repair
                .iter()
                .flat_map(|judgement: &Judgement| judgement.findings.clone())
                .collect(),
            judgement,
            speed,
            width,
            errors: ErrorCounters { correctable, nonfatal, fatal },
            resets,
            repair: if climbs { climbed() } else { Vec::new() },
            before_repair,
            kernel,
        }
    })
}

fn cycle() -> impl Strategy<Value = Line> {
    let phase =
        (prop::sample::select(Phase::ALL.to_vec()), number()).prop_map(|(phase, ms)| PhaseTime { phase, ms });
    let fault = prop_oneof![
        (text(), number()).prop_map(|(waited_for, ms)| Fault::NotReady { waited_for, ms }),
        text().prop_map(|message| Fault::Job { message }),
        text().prop_map(|message| Fault::NotGivenBack { message }),
    ];
    let figure = prop_oneof![
        number().prop_map(|value| serde_json::json!(value)),
        any::<f64>().prop_map(|value| serde_json::json!(value)),
        text().prop_map(|value| serde_json::json!({ "nested": value })),
    ];
    let job = prop::option::of((any::<i32>(), text(), prop::collection::btree_map(text(), figure, 0..4)));
    let what = (small(), prop::sample::select(CycleKind::ALL.to_vec()), number(), number());
    let parts = (
        prop::collection::vec(phase, 0..6),
        prop::collection::vec(fault, 0..3),
        prop::collection::vec(device(), 0..3),
        job,
    );
    let rest = (prop::option::of((small(), small(), number(), any::<bool>())), number(), small());
    (what, parts, rest).prop_map(
        |((number, kind, at, ms), (phases, faults, devices, job), (polled, rss_kib, fds))| {
            Line::Cycle(Box::new(Cycle {
                number,
                kind,
                at,
                ms,
                phases,
                waited_ms: 0,
                outcome: None,
                faults,
                devices,
                job: job.map(|(exit, message, figures)| gpuvm_core::soak::JobReport {
                    exit,
                    message: Some(message),
                    figures: figures.into_iter().collect(),
                }),
                polled: polled.map(|(runs, failed, longest_ms, hangs)| Polled {
                    runs,
                    failed,
                    longest_ms,
                    said: Some("\u{1b}]0;x".to_owned()),
                    hangs,
                }),
                own: OwnUse { rss_kib, fds },
            }))
        },
    )
}

fn line() -> impl Strategy<Value = Line> {
    let made = Made::new(3).killed_and_resumed(|_| {}).lines;
    let begun = (prop::sample::select(made), number(), small(), text()).prop_map(
        |(line, at, number, text)| match line {
            Line::Begun(mut begun) => {
                (begun.at, begun.done_before, begun.settings.cycles) = (at, number, Some(number));
                (begun.settings.profile_text, begun.machine.qemu) = (text, None);
                begun.settings.seconds = Some(at);
                begun.settings.ready.timeout_seconds = at;
                begun.devices.truncate(usize::from(number == 1));
                Line::Begun(begun)
            }
            Line::Cut(mut cut) => {
                (cut.at, cut.number) = (at, number);
                cut.left = vec![text];
                Line::Cut(cut)
            }
            line => line,
        },
    );
    let why = prop_oneof![
        Just(Why::Done),
        Just(Why::Time),
        (small(), text()).prop_map(|(cycle, reason)| Why::Stopped { cycle, reason }),
        text().prop_map(|signal| Why::Interrupted { signal }),
    ];
    let ended = (number(), why).prop_map(|(at, why)| Line::Ended(Ended { at, why }));
    let newer =
        text().prop_map(|text| Line::Newer(serde_json::Map::from_iter([("line".to_owned(), text.into())])));
    prop_oneof![6 => cycle(), 1 => begun, 1 => ended, 1 => newer]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_a_record_holds_its_report_is_a_page(lines in prop::collection::vec(line(), 0..14)) {
        let html = report::html(&lines);
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        let page = Document::parse_with_options(&html, options);
        prop_assert!(page.is_ok(), "{page:?}");
        prop_assert!(!html.contains("couldn't be written"));
        // Of the numbers that charts are made of, none is no number.
        let page = page.unwrap();
        for attribute in page.descendants().flat_map(|node| node.attributes()) {
            if ["x", "y", "width", "height", "d", "x1", "y1", "x2", "y2"].contains(&attribute.name()) {
                prop_assert!(!attribute.value().contains("NaN") && !attribute.value().contains("inf"), "{attribute:?}");
            }
        }
    }

    #[test]
    fn whatever_two_records_hold_they_are_compared(
        a in prop::collection::vec(line(), 0..14),
        b in prop::collection::vec(line(), 0..14),
    ) {
        let comparison = compare(&a, &b);
        prop_assert!(serde_json::to_string(&comparison).is_ok());
        prop_assert!(comparison.times.iter().all(|row| row.p.is_none_or(|p| (0.0..=1.0).contains(&p))));
        let same = compare(&a, &a);
        prop_assert_eq!(same.worse.is_empty(), Tally::of(&a).done() > 0);
        prop_assert!(same.differences.is_empty() && same.only_in_a.is_empty() && same.only_in_b.is_empty());
    }
}

/// Many cycles, each otherwise than the one before: nothing grows beyond what a browser shows at ease.
#[test]
fn a_long_record_of_changing_devices_stays_small() {
    let mut made = Made::new(2000);
    for number in 0..2000u32 {
        made = made.cycle(|cycle| {
            for (at, device) in (0u32..).zip(&mut cycle.devices) {
                let width = u8::try_from(number % 17).unwrap();
                device.bdf = format!("{:04x}:{:02x}:00.0", at, number % 200).parse().unwrap();
                (device.speed, device.width) = (Some(LinkSpeed(25 + u16::from(width))), Some(width));
                device.errors.fatal = u64::from(number % 3);
                device.resets.iter_mut().for_each(|reset| reset.ms = 1 << (number % 40));
            }
            let job = cycle.job.as_mut().unwrap();
            job.figures.insert(format!("figure {}", number % 100), serde_json::json!(number));
        });
    }
    let html = report::html(&made.ended(Why::Done));
    assert!(html.len() < 2_000_000, "{}", html.len());
}
