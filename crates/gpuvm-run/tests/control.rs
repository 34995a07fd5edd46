//! A VM's control socket, while the VM runs on a fake host with a fake QEMU.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bench::{Bench, GPU, Told, nobody};
use gpuvm_core::control::{Answer, Entry, Finale, Lines, Live, MAX_LINE, State, Told as Happened, Why};
use gpuvm_core::lifecycle::{NotAgain, Outcome, Stage};
use gpuvm_core::reset::RebootPolicy;
use gpuvm_host::HostError;
use gpuvm_host::process::ProcessId;
use gpuvm_run::control::SOCKET;
use gpuvm_run::{Cause, Cleaned, Control, Launched, Report, Run, UpError, cleanup, up_served};
use gpuvm_testkit::fake_qemu::{Action, OnPowerdown, Recording, Reply, Script, TimedAction};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// A client that speaks the protocol by hand.
struct Client {
    stream: UnixStream,
    lines: Lines,
}

impl Client {
    async fn connect(bench: &Bench) -> Self {
        let mut client = Self::silent(bench).await;
        client.say("{\"gpuvm-control\":1}\n").await;
        let hello: Value = serde_json::from_slice(&client.line().await.unwrap()).unwrap();
        assert_eq!(hello, json!({ "gpuvm-control": 1, "gpuvm": "1.2.3" }));
        client
    }

    async fn silent(bench: &Bench) -> Self {
        let path = socket(bench);
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Self { stream, lines: Lines::default() },
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next line; nothing once the other side has hung up.
    async fn line(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(line) = self.lines.next() {
                return Some(line.unwrap());
            }
            let read = self.stream.read(&mut buffer);
            let count = tokio::time::timeout(LONG, read).await.unwrap().unwrap_or(0);
            if count == 0 {
                return None;
            }
            self.lines.push(&buffer[..count]);
        }
    }

    async fn answer(&mut self) -> Answer {
        Answer::parse(&self.line().await.unwrap()).unwrap()
    }

    async fn ask(&mut self, request: &str) -> Answer {
        self.say(&format!("{{\"id\":1,\"do\":{request}}}\n")).await;
        let answer = self.answer().await;
        assert_eq!(answer.id, 1);
        answer
    }

    async fn live(&mut self) -> Live {
        self.ask("\"status\"").await.take().unwrap()
    }

    async fn until(&mut self, state: State) -> Live {
        loop {
            let live = self.live().await;
            if live.state == state {
                return live;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn socket(bench: &Bench) -> PathBuf {
    bench.places.vm(&bench.plan.name).join(SOCKET)
}

/// Runs the VM with its socket while somebody does something, and says a last word with code 7.
async fn served<T>(bench: &Bench, meanwhile: impl Future<Output = T>) -> (Result<Report, UpError>, T) {
    let up = async {
        let mut control = Control::new("1.2.3", Launched::Foreground);
        let run = Run { patience: gpuvm_core::lifecycle::Patience::default(), ..bench.run() };
        let result = up_served(&run, &mut nobody(), &mut control, None, &mut Told::default()).await;
        let outcome = result.as_ref().ok().map(|report| report.outcome.clone());
        // It waits for those who are there, who are driven by this thread.
        let last =
            Finale { outcome, failure: None, not_given_back: Vec::new(), devices: Vec::new(), exit_code: 7 };
        tokio::task::spawn_blocking(move || control.finish(last)).await.unwrap();
        result
    };
    tokio::time::timeout(LONG * 2, async { tokio::join!(up, meanwhile) }).await.unwrap()
}

#[tokio::test]
async fn a_status_tells_what_is_known_and_nothing_is_left_of_the_socket() {
    let bench = Bench::with_profile(&Script::default(), "pin = \"auto\"");
    let (report, (live, mode)) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        let live = client.until(State::Running).await;
        let mode = std::fs::metadata(socket(&bench)).unwrap().permissions().mode() & 0o777;
        let folder =
            std::fs::metadata(socket(&bench).parent().unwrap()).unwrap().permissions().mode() & 0o777;
        client.ask("\"stop\"").await.take::<Value>().unwrap();
        (live, (mode, folder))
    })
    .await;
    assert_eq!(mode, (0o600, 0o700));
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage: Stage::Acpi });
    assert_eq!((live.name, live.boot_id.as_str()), (bench.plan.name.clone(), bench.boot_id.as_str()));
    assert_eq!(live.supervisor.pid, ProcessId::own().pid);
    let qemu = live.qemu.unwrap();
    assert!(qemu.pid > 0 && qemu.version.is_some(), "{qemu:?}");
    let pinned: Vec<_> = live.vcpus.iter().map(|vcpu| (vcpu.vcpu, vcpu.cpu)).collect();
    assert_eq!(pinned, [(0, Some(bench.plan.placement.vcpus[0].cpu))]);
    let parts: Vec<_> = live.timings.iter().map(|part| part.phase.as_str()).collect();
    assert_eq!(parts, ["prepare", "start"]);
    assert_eq!(live.devices[0].bdf.to_string(), GPU);
    assert_eq!(live.devices[0].driver.as_deref(), Some("vfio-pci"));
    assert_eq!(live.memory[0].pages, "2M");
    bench.assert_given_back();
}

#[tokio::test]
async fn a_guest_is_paused_and_goes_on_and_what_does_not_fit_its_state_is_refused() {
    let bench = Bench::new(&Script::default());
    let (report, ()) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        let refused = client.ask("\"resume\"").await.take::<Value>().unwrap_err();
        assert_eq!(
            (refused.kind, refused.message.as_str()),
            (Why::NotNow, "it can't be resumed: it is running")
        );
        client.ask("\"pause\"").await.take::<Value>().unwrap();
        let live = client.live().await;
        assert_eq!((live.state, live.why.as_deref()), (State::Paused, Some("as asked")));
        assert_eq!(client.ask("\"reset\"").await.take::<Value>().unwrap_err().kind, Why::NotNow);
        client.ask("\"resume\"").await.take::<Value>().unwrap();
        assert_eq!(client.live().await.state, State::Running);
        client.ask("\"reset\"").await.take::<Value>().unwrap();
        while client.live().await.reboots == 0 {}
        client.ask("\"stop\"").await.take::<Value>().unwrap();
    })
    .await;
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage: Stage::Acpi });
    bench.assert_given_back();
}

#[rstest]
#[case::gently(r#""stop""#, Stage::Acpi, true)]
#[case::by_force(r#""stop","force":true"#, Stage::Quit, false)]
#[case::in_a_short_time(r#""stop","timeout_ms":200"#, Stage::Quit, true)]
#[tokio::test]
async fn a_guest_is_ended_as_asked_and_who_waits_hears_the_last_word(
    #[case] request: &str,
    #[case] stage: Stage,
    #[case] pressed: bool,
) {
    let on_powerdown = if stage == Stage::Quit { OnPowerdown::Ignore } else { OnPowerdown::Shutdown };
    let bench = Bench::new(&Script { on_powerdown, ..Script::default() });
    let (report, finale) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        client.say("{\"id\":9,\"do\":\"wait\"}\n").await;
        assert_eq!(client.ask(request).await.take::<Value>().unwrap(), json!({}));
        // A second wish hurries nothing.
        client.say("{\"id\":2,\"do\":\"stop\"}\n").await;
        let mut answers = vec![client.answer().await, client.answer().await];
        answers.retain(|answer| answer.id == 9);
        answers.remove(0).take::<Finale>().unwrap()
    })
    .await;
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage });
    assert_eq!((finale.outcome, finale.exit_code), (Some(Outcome::Stopped { stage }), 7));
    let commands = Recording::load(&bench.record).unwrap();
    assert_eq!(commands.names().contains(&"system_powerdown"), pressed, "{:?}", commands.names());
    bench.assert_given_back();
}

/// A guest that stands still has nothing to hear, and one that is to end at once is not to run before.
#[tokio::test]
async fn a_paused_guest_that_is_ended_by_force_does_not_run_again() {
    let bench = Bench::new(&Script::default());
    let (report, ()) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        client.ask("\"pause\"").await.take::<Value>().unwrap();
        client.ask(r#""stop","force":true"#).await.take::<Value>().unwrap();
    })
    .await;
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage: Stage::Quit });
    let recording = Recording::load(&bench.record).unwrap();
    assert_eq!(
        recording.names().iter().filter(|name| **name == "cont").count(),
        1,
        "{:?}",
        recording.names()
    );
    bench.assert_given_back();
}

/// QEMU says at a reboot that it goes, and takes its time: whoever asks for the guest's end then doesn't want it started again.
#[tokio::test]
async fn a_guest_that_is_to_end_while_it_reboots_is_not_started_again() {
    let reboot = TimedAction { after_ms: 5, action: Action::Reboot };
    let script = Script { after_cont: vec![reboot], leaves_ms: 400, ..Script::default() };
    let mut bench = Bench::new(&Script { next: Some(Box::new(script.clone())), ..script });
    bench.plan.reboot = RebootPolicy::Relaunch;
    let (report, ()) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Quitting).await;
        client.ask("\"stop\"").await.take::<Value>().unwrap();
    })
    .await;
    let asked = Outcome::Rebooted { not_again: Some(NotAgain::Asked) };
    assert_eq!(report.unwrap().outcome, asked);
    bench.assert_given_back();
}

#[tokio::test]
async fn a_client_that_goes_leaves_no_request_behind_that_waits_for_ever() {
    let bench = Bench::new(&Script::default());
    let (report, held) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        for _ in 0..3 {
            let mut waits = Client::connect(&bench).await;
            waits.say("{\"id\":1,\"do\":\"wait\"}\n").await;
            // It says nothing more, and still hears the answer.
            waits.stream.shutdown().await.unwrap();
            client.ask("\"status\"").await.take::<Value>().unwrap();
        }
        let mut listens = Client::connect(&bench).await;
        listens.say("{\"id\":4,\"do\":\"wait\"}\n").await;
        listens.stream.shutdown().await.unwrap();
        client.ask(r#""stop","force":true"#).await.take::<Value>().unwrap();
        listens.answer().await
    })
    .await;
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage: Stage::Quit });
    assert_eq!((held.id, held.take::<Finale>().unwrap().exit_code), (4, 7));
    bench.assert_given_back();
}

#[tokio::test]
async fn odd_clients_are_answered_or_dropped_and_the_others_are_served() {
    let bench = Bench::new(&Script::default());
    let (report, ()) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        // One that never says anything, one that hangs up in the middle of a line, one of another version.
        let _silent = Client::silent(&bench).await;
        Client::connect(&bench).await.say("{\"id\":1,\"do\":\"sta").await;
        let mut newer = Client::silent(&bench).await;
        newer.say("{\"gpuvm-control\":2}\n").await;
        newer.line().await.unwrap();
        assert_eq!(newer.answer().await.take::<Value>().unwrap_err().kind, Why::Version);
        assert_eq!(newer.line().await, None);
        for (line, id, kind) in [
            ("garbage", 0, Why::BadRequest),
            ("{\"id\":5,\"do\":\"fly\"}", 5, Why::UnknownRequest),
            ("{\"id\":6,\"do\":\"stop\",\"force\":3}", 6, Why::BadRequest),
            ("{\"id\":7,\"do\":\"screenshot\"}", 7, Why::NotThere),
            ("{\"id\":8,\"do\":\"qmp\",\"execute\":\"x\",\"arguments\":[1]}", 8, Why::BadRequest),
        ] {
            client.say(&format!("{line}\n")).await;
            let answer = client.answer().await;
            assert_eq!((answer.id, answer.take::<Value>().unwrap_err().kind), (id, kind), "{line}");
        }
        client.say(&"x".repeat(MAX_LINE + 10)).await;
        assert_eq!(client.answer().await.take::<Value>().unwrap_err().kind, Why::TooLong);
        client.say("\n").await;
        assert_eq!(client.live().await.state, State::Running);
        client.ask("\"stop\"").await.take::<Value>().unwrap();
    })
    .await;
    assert_eq!(report.unwrap().outcome, Outcome::Stopped { stage: Stage::Acpi });
    bench.assert_given_back();
}

#[tokio::test]
async fn a_qmp_command_is_passed_on_and_its_error_comes_back() {
    let reply = Reply::Error { class: "GenericError".into(), desc: "no such thing".into() };
    let bench =
        Bench::new(&Script { replies: [("query-odd".to_owned(), reply)].into(), ..Script::default() });
    let (_, ()) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        let status: Value = client.ask(r#""qmp","execute":"query-status""#).await.take().unwrap();
        assert_eq!(status["running"], true, "{status}");
        let refused = client.ask(r#""qmp","execute":"query-odd""#).await.take::<Value>().unwrap_err();
        assert!(refused.kind == Why::Qemu && refused.message.contains("no such thing"), "{refused:?}");
        client.ask(r#""stop","force":true"#).await.take::<Value>().unwrap();
    })
    .await;
    bench.assert_given_back();
}

#[tokio::test]
async fn events_are_told_in_order_to_the_end_and_are_in_the_file() {
    let odd = TimedAction {
        after_ms: 50,
        action: Action::Event { name: "WEATHER".to_owned(), data: json!({ "sky": "blue" }) },
    };
    let bench = Bench::new(&Script { after_cont: vec![odd], ..Script::default() });
    let (_, entries) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        let mut reader = Client::connect(&bench).await;
        reader.ask(r#""events","last":1000,"follow":true"#).await.take::<Value>().unwrap();
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(line) = reader.line().await {
            entries.push(serde_json::from_slice(&line).unwrap());
            if matches!(&entries.last().unwrap().what, Happened::Qmp { event, .. } if event == "WEATHER") {
                client.ask("\"stop\"").await.take::<Value>().unwrap();
            }
        }
        entries
    })
    .await;
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(entries.last().unwrap().what, Happened::State { state: State::Over });
    let file = std::fs::read_to_string(bench.places.logs(&bench.plan.name).join("events.jsonl")).unwrap();
    let kept: Vec<Entry> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // What came before the VM was reserved has no file yet.
    assert!(entries.ends_with(&kept) && kept.len() + 3 > entries.len(), "{kept:?}");
    assert!(file.contains(r#""event":"WEATHER","data":{"sky":"blue"}"#), "{file}");
    bench.assert_given_back();
}

#[tokio::test]
async fn a_console_has_several_readers_and_what_was_said_before() {
    let says =
        |after_ms, text: &str| TimedAction { after_ms, action: Action::Console { text: text.to_owned() } };
    let script = Script {
        console_output: "booting\n".to_owned(),
        after_cont: vec![says(1500, "login: ")],
        ..Script::default()
    };
    let bench = Bench::new(&script);
    let (_, heard) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut readers = [Client::connect(&bench).await, Client::connect(&bench).await];
        for (reader, scrollback) in readers.iter_mut().zip([100, 3]) {
            let request = format!(r#""console","scrollback":{scrollback}"#);
            reader.ask(&request).await.take::<Value>().unwrap();
        }
        readers[0].say("root\n").await;
        tokio::time::sleep(Duration::from_millis(2000)).await;
        client.ask("\"stop\"").await.take::<Value>().unwrap();
        let mut heard = Vec::new();
        for reader in readers {
            let Client { mut stream, lines } = reader;
            let mut bytes = lines.into_rest();
            stream.read_to_end(&mut bytes).await.unwrap();
            heard.push(String::from_utf8(bytes).unwrap());
        }
        heard
    })
    .await;
    assert_eq!(heard, ["booting\nlogin: ", "ng\nlogin: "]);
    bench.assert_given_back();
}

#[tokio::test]
async fn a_socket_of_a_dead_gpuvm_is_replaced_by_whoever_has_the_reservation() {
    let bench = Bench::new(&Script::default());
    let folder = socket(&bench);
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&folder).unwrap());
    let (report, second) = served(&bench, async {
        let mut client = Client::connect(&bench).await;
        client.until(State::Running).await;
        // Another `up` of it is refused before it comes near the socket.
        let mut control = Control::new("1.2.3", Launched::Foreground);
        let second = up_served(&bench.run(), &mut nobody(), &mut control, None, &mut Told::default())
            .await
            .unwrap_err();
        assert_eq!(client.live().await.state, State::Running);
        client.ask("\"stop\"").await.take::<Value>().unwrap();
        second
    })
    .await;
    report.unwrap();
    assert!(matches!(*second.cause, Cause::Host(HostError::AlreadyUp { .. })), "{}", second.cause);
    bench.assert_given_back();
}

#[rstest]
#[case::detached(true, Cleaned::Unsupervised)]
#[case::in_the_foreground(false, Cleaned::Done)]
#[tokio::test]
async fn a_guest_that_was_to_go_on_without_gpuvm_is_not_ended_by_a_cleanup(
    #[case] detached: bool,
    #[case] expected: Cleaned,
) {
    let bench = Bench::new(&Script::default());
    // As a killed launcher leaves it: QEMU, here any process that runs, and the record.
    let mut qemu = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut record = gpuvm_host::reservation::Reservation::new(&bench.plan, &bench.boot_id);
    record.supervisor = ProcessId { pid: 1, start_time: 1 };
    record.qemu = ProcessId::of(i32::try_from(qemu.id()).unwrap());
    record.detached = detached;
    gpuvm_host::reservation::reserve(&bench.places, &record).unwrap();
    let reports = cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(reports[0].result, expected, "{reports:?}");
    assert_eq!(qemu.try_wait().unwrap().is_none(), detached);
    if detached {
        let words = &reports[0].not_given_back[0];
        assert!(words.contains("unsupervised") && words.contains(&qemu.id().to_string()), "{words}");
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        let reports =
            cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
        assert_eq!(reports[0].result, Cleaned::Done, "{reports:?}");
    }
    bench.assert_given_back();
}
