//! A QEMU whose monitor floods, babbles or goes silent: the VM goes on, or ends with the reason, and the host is given back.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::time::Duration;

use bench::{Bench, Told};
use gpuvm_core::control::{Answer, Finale, Live};
use gpuvm_core::lifecycle::{Outcome, Patience, Stage};
use gpuvm_run::control::SOCKET;
use gpuvm_run::{Control, Launched, Report, Run, Signals, up_served};
use gpuvm_testkit::fake_qemu::{Action, OnPowerdown, Reply, Script, TimedAction};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Far more than anything here may take.
const LONG: Duration = Duration::from_secs(50);

fn says(after_ms: u64, text: &str, times: u32) -> TimedAction {
    TimedAction { after_ms, action: Action::Say { text: text.to_owned(), times } }
}

/// Asks a VM's supervisor over a connection of its own, and returns the answer's line.
async fn ask(bench: &Bench, request: &str) -> Answer {
    let stream = UnixStream::connect(bench.places.vm(&bench.plan.name).join(SOCKET)).await.unwrap();
    let (from, mut to) = stream.into_split();
    to.write_all(format!("{{\"gpuvm-control\":1}}\n{{\"id\":1,\"do\":{request}}}\n").as_bytes())
        .await
        .unwrap();
    let mut lines = BufReader::new(from).lines();
    lines.next_line().await.unwrap().unwrap();
    Answer::parse(lines.next_line().await.unwrap().unwrap().as_bytes()).unwrap()
}

/// Runs the VM with its socket; once it has gone on for a while it is asked for its status and then for its end.
async fn lives_on(bench: &Bench, meanwhile: Duration) -> (Report, Live) {
    let (_nobody, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut signals = Signals::from_channel(requests);
    let mut told = Told::default();
    let mut control = Control::new("1.2.3", Launched::Foreground);
    let run = Run { patience: Patience::default(), ..bench.run() };
    let running = up_served(&run, &mut signals, &mut control, None, &mut told);
    let asking = async {
        bench.runs().await;
        tokio::time::sleep(meanwhile).await;
        let live = ask(bench, "\"status\"").await.take::<Live>().unwrap();
        ask(bench, r#""stop","timeout_ms":2000"#).await.take::<Value>().unwrap();
        live
    };
    let both = async { tokio::join!(running, asking) };
    let (report, live) = tokio::time::timeout(LONG, both).await.expect("it hangs");
    let report = report.unwrap();
    let outcome = Some(report.outcome.clone());
    let last =
        Finale { outcome, failure: None, not_given_back: Vec::new(), devices: Vec::new(), exit_code: 0 };
    tokio::task::spawn_blocking(move || control.finish(last)).await.unwrap();
    (report, live)
}

const ODD: [&str; 12] = [
    r#"{"event":"SINGS","data":{"song":[1,2,{"a":null}]}}"#,
    r#"{"event":"STOP","data":7}"#,
    r#"{"event":"RESET","data":{"guest":false,"reason":"cosmic-ray"}}"#,
    r#"{"event":"WATCHDOG","data":{"action":"sing"}}"#,
    r#"{"event":"MEMORY_FAILURE","data":{"recipient":"neighbour","action":"sing","flags":7}}"#,
    r#"{"event":"BLOCK_IO_ERROR","data":{"device":7,"operation":"sing","action":"sing"}}"#,
    r#"{"event":"DEVICE_DELETED","data":[]}"#,
    r#"{"event":"RTC_CHANGE"}"#,
    r#"{"return":{},"id":"nobody's"}"#,
    r#"{"error":{"class":"Odd","desc":"of nothing"}}"#,
    "{{{{ no JSON \u{fffd}",
    "[[[[[[[[",
];

#[rstest]
#[case::what_nobody_knows(ODD.iter().map(|line| says(20, &format!("{line}\n"), 1)).collect())]
#[case::half_a_line_and_later_the_rest(vec![says(20, "{\"event\":\"SI", 1), says(200, "NGS\"}\n", 1)])]
#[case::garbage_without_an_end(vec![says(20, "x", 100_000)])]
#[case::ten_megabytes_of_garbage(vec![says(20, &"z".repeat(10 << 10), 1 << 10), says(21, "\n", 1)])]
#[case::an_event_of_ten_megabytes(vec![
    says(20, "{\"event\":\"LONG\",\"data\":\"", 1), says(21, &"z".repeat(10 << 10), 1 << 10), says(22, "\"}\n", 1),
])]
#[case::a_thousand_events_of_ten_kilobytes(vec![says(20, &format!("{{\"event\":\"E\",\"data\":{:?}}}\n", "z".repeat(10 << 10)), 1 << 10)])]
#[case::a_flood_of_events(vec![says(20, "{\"event\":\"E\",\"data\":{\"n\":1}}\n", 50_000)])]
#[tokio::test]
async fn a_monitor_that_babbles_is_survived(#[case] after_cont: Vec<TimedAction>) {
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    let (report, live) = lives_on(&bench, Duration::from_millis(600)).await;
    // Half a line swallows the answer after it: whoever waits for that has the next stage.
    assert!(matches!(report.outcome, Outcome::Stopped { .. }), "{:?}", report.outcome);
    assert_eq!((live.state.name(), live.reboots), ("running", 0));
    bench.assert_given_back();
}

#[rstest]
#[case::to_the_power_button(&["system_powerdown"], Stage::Quit)]
#[case::to_anything(&["system_powerdown", "quit", "query-status"], Stage::Kill)]
#[tokio::test]
async fn a_monitor_that_answers_no_more_is_waited_for_as_long_as_was_said(
    #[case] silent: &[&str],
    #[case] stage: Stage,
) {
    let replies = silent.iter().map(|name| ((*name).to_owned(), Reply::Silence)).collect();
    let on_powerdown = OnPowerdown::Ignore;
    let after_cont = vec![says(20, "{\"event\":\"STOP\"}\n{\"event\":\"RESUME\"}\n", 1)];
    let bench = Bench::new(&Script { replies, on_powerdown, after_cont, ..Script::default() });
    let (report, _) = lives_on(&bench, Duration::from_millis(100)).await;
    assert_eq!(report.outcome, Outcome::Stopped { stage });
    bench.assert_given_back();
}

/// An answer that doesn't fit a line of gpuvm's own protocol is refused, and not left out.
#[tokio::test]
async fn an_answer_that_is_too_long_to_be_passed_on_is_refused() {
    let replies = [("query-long".to_owned(), Reply::Value(json!("z".repeat(2 << 20))))].into();
    let bench = Bench::new(&Script { replies, ..Script::default() });
    let asking = async {
        bench.runs().await;
        ask(&bench, r#""qmp","execute":"query-long""#).await.take::<Value>().unwrap_err()
    };
    let (refusal, (report, _)) =
        tokio::join!(asking, async { lives_on(&bench, Duration::from_millis(800)).await });
    assert!(refusal.message.contains("longer than a line may be"), "{refusal}");
    assert_eq!(report.outcome, Outcome::Stopped { stage: Stage::Acpi });
}
