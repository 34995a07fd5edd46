//! fake-qemu started as gpuvm starts QEMU, and driven by gpuvm-qmp; and the same with the real QEMU, to see that the fake does not lie.

// The helpers here are of a test too, which clippy sees only in functions with the attribute.
#![allow(clippy::unwrap_used)]

use gpuvm_qmp::{Error, Events, Known, Qmp};
use gpuvm_sys::process::{Child, Signal, SpawnSpec, spawn};
use gpuvm_sys::sched::{affinity, set_affinity};
use gpuvm_sys::socket::listen_unix;
use gpuvm_testkit::fake_qemu::{
    Action, ExitAtStart, Greeting, OnPowerdown, OnQuit, OnSignal, Recording, Reply, SCRIPT_ENV, Script,
    TimedAction,
};
use rstest::rstest;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixStream;

const SOON: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(150);

/// A started program with its sockets.
struct Vm {
    dir: TempDir,
    child: Child,
}

impl Vm {
    /// Starts the fake with `-S`, monitor and console on inherited sockets.
    fn fake(script: Script, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Script { record: Some(dir.path().join("record")), life_ms: 30_000, ..script };
        let env = vec![(SCRIPT_ENV.into(), script.save(dir.path()).unwrap().into())];
        Self::start(dir, env!("CARGO_BIN_EXE_fake-qemu"), env, extra)
    }

    fn start(dir: TempDir, program: &str, env: Vec<(OsString, OsString)>, extra: &[&str]) -> Self {
        let monitor = listen_unix(&dir.path().join("qmp")).unwrap();
        let console = listen_unix(&dir.path().join("console")).unwrap();
        let chardev =
            |id: &str, fd: &OwnedFd| format!("socket,id={id},fd={},server=on,wait=off", fd.as_raw_fd());
        let (mon, con) = (chardev("mon", &monitor), chardev("con", &console));
        let args = ["-S", "-chardev", &mon, "-mon", "chardev=mon,mode=control", "-chardev", &con];
        let argv =
            std::iter::once(program).chain(args).chain(extra.iter().copied()).map(OsString::from).collect();
        let spec = SpawnSpec {
            argv,
            env,
            fds: vec![monitor, console],
            stdout: File::create(dir.path().join("stdout")).unwrap().into(),
            stderr: File::create(dir.path().join("stderr")).unwrap().into(),
            death_signal: Some(Signal::SIGKILL),
            memlock: None,
            record: None,
        };
        Self { child: spawn(spec).unwrap(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn connect(&self, within: Duration) -> Result<(Qmp, Events), Error> {
        Qmp::handshake(UnixStream::connect(self.path("qmp")).await.unwrap(), within).await
    }

    async fn qmp(&self) -> (Qmp, Events) {
        self.connect(SOON).await.unwrap()
    }

    /// The exit code, or the signal below zero.
    fn end(&mut self) -> i32 {
        let status = self.child.wait_deadline(SOON).unwrap().unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    fn recording(&self) -> Recording {
        Recording::load(&self.path("record")).unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A test that failed half-way; one that ended it is gone already.
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill(Signal::SIGKILL).unwrap();
            self.child.wait_deadline(SOON).unwrap();
        }
    }
}

async fn names_to_the_end(mut events: Events) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(event) = events.next().await {
        names.push(event.name);
    }
    names
}

#[tokio::test]
async fn a_life_from_greeting_to_exit() {
    let script = Script { console_output: "login: ".to_owned(), ..Script::default() };
    let mut vm = Vm::fake(script, &["-smp", "3", "-serial", "chardev:con"]);
    let (qmp, mut events) = vm.qmp().await;
    assert_eq!(qmp.version().to_string(), "7.2.22 (fake)");
    let status = qmp.query_status(SOON).await.unwrap();
    assert_eq!((status.running, status.status.as_str()), (false, "prelaunch"));

    let threads = qmp.vcpu_threads(SOON).await.unwrap();
    assert_eq!(threads.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [0, 1, 2]);
    let last = *affinity(0).unwrap().last().unwrap();
    for vcpu in &threads {
        set_affinity(vcpu.thread_id, &[last]).unwrap();
        assert_eq!(affinity(vcpu.thread_id).unwrap(), [last]);
    }
    let task = format!("/proc/{}/task/{}/comm", vm.child.pid(), threads[2].thread_id);
    assert_eq!(std::fs::read_to_string(task).unwrap(), "CPU 2/KVM\n");

    qmp.cont(SOON).await.unwrap();
    assert_eq!(events.next().await.unwrap().known(), Some(Known::Resume));
    let mut console = std::os::unix::net::UnixStream::connect(vm.path("console")).unwrap();
    let mut text = [0; 7];
    console.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"login: ");

    qmp.system_powerdown(SOON).await.unwrap();
    assert_eq!(events.next().await.unwrap().known(), Some(Known::Powerdown));
    let shutdown = Known::Shutdown { guest: true, reason: Some("guest-shutdown".to_owned()) };
    assert_eq!(events.next().await.unwrap().known(), Some(shutdown));
    assert_eq!(events.next().await, None);
    assert_eq!(vm.end(), 0);

    let recording = vm.recording();
    let expected = ["qmp_capabilities", "query-status", "query-cpus-fast", "cont", "system_powerdown"];
    assert_eq!(recording.names(), expected);
    assert!(recording.commands.is_sorted_by_key(|command| command.ms));
    assert_eq!(recording.argv[1], "-S");
    assert_eq!(recording.exit.unwrap().code, 0);
}

#[tokio::test]
async fn an_end_at_the_start_closes_the_monitor() {
    let exit_at_start = Some(ExitAtStart { code: 1, stderr: "qemu: no such device\n".to_owned() });
    let mut vm = Vm::fake(Script { exit_at_start, ..Script::default() }, &[]);
    assert_eq!(vm.end(), 1);
    assert_eq!(std::fs::read_to_string(vm.path("stderr")).unwrap(), "qemu: no such device\n");
    // Our copies of the listeners are closed, so nothing pretends to be there.
    assert_eq!(
        UnixStream::connect(vm.path("qmp")).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}

#[rstest]
#[case::slow(Script { greeting_after_ms: 400, ..Script::default() }, "QMP greeting: no answer within 150ms")]
#[case::silent(Script { greeting: Greeting::Silent, ..Script::default() }, "QMP greeting: no answer within 150ms")]
#[case::never(Script { greeting: Greeting::Never, ..Script::default() }, "QMP greeting: no answer within 150ms")]
#[case::custom(Script { greeting: Greeting::Custom("{\"QMP\":3}".into()), ..Script::default() }, "QMP greeting: unexpected answer 3")]
#[tokio::test]
async fn greetings_can_go_wrong(#[case] script: Script, #[case] text: &str) {
    let vm = Vm::fake(script, &[]);
    let error = vm.connect(BRIEF).await.unwrap_err();
    assert!(error.to_string().starts_with(text), "{error}");
}

#[tokio::test]
async fn a_slow_greeting_comes_and_clients_follow_one_another() {
    let vm = Vm::fake(Script { greeting_after_ms: 200, ..Script::default() }, &[]);
    drop(vm.qmp().await);
    let (qmp, _events) = vm.qmp().await;
    assert_eq!(qmp.vcpu_threads(SOON).await.unwrap().len(), 1);
}

#[tokio::test]
async fn replies_can_be_scripted() {
    let error = Reply::Error { class: "GenericError".to_owned(), desc: "no".to_owned() };
    let replies = [
        ("query-pci", Reply::Value(json!([{"bus": 7}]))),
        ("cont", error),
        ("stop", Reply::Silence),
        ("system_reset", Reply::Die { code: 5 }),
    ];
    let replies = replies.map(|(name, reply)| (name.to_owned(), reply)).into();
    let mut vm = Vm::fake(Script { replies, vcpus: Some(2), ..Script::default() }, &[]);
    let (qmp, _events) = vm.qmp().await;
    assert_eq!(qmp.query_pci(SOON).await.unwrap(), json!([{"bus": 7}]));
    assert_eq!(qmp.cont(SOON).await.unwrap_err().to_string(), "QMP cont: no (GenericError)");
    assert!(!qmp.query_status(SOON).await.unwrap().running);
    assert!(matches!(qmp.stop(BRIEF).await, Err(Error::Timeout { .. })));
    let unknown = qmp.execute_value("fly", json!({}), SOON).await.unwrap_err();
    assert_eq!(unknown.to_string(), "QMP fly: The command fly has not been found (CommandNotFound)");
    assert_eq!(qmp.vcpu_threads(SOON).await.unwrap().len(), 2);
    assert!(qmp.execute_value("system_reset", json!({}), SOON).await.unwrap_err().is_final());
    assert_eq!(vm.end(), 5);
}

#[rstest]
#[case::event(Action::Event { name: "GUEST_PANICKED".into(), data: json!({"action": "pause"}) }, &["RESUME", "GUEST_PANICKED"], None)]
#[case::exit(Action::Exit { code: 3 }, &["RESUME"], Some(3))]
#[case::die(Action::Die { signal: 11 }, &["RESUME"], Some(-11))]
#[case::reboot(Action::Shutdown { reason: "guest-reset".into() }, &["RESUME", "SHUTDOWN"], Some(0))]
#[case::close(Action::CloseMonitor, &["RESUME"], None)]
#[tokio::test]
async fn things_happen_after_cont(#[case] action: Action, #[case] events: &[&str], #[case] end: Option<i32>) {
    let after_cont = vec![
        TimedAction { after_ms: 120, action: Action::CloseMonitor },
        TimedAction { after_ms: 60, action },
    ];
    let mut vm = Vm::fake(Script { after_cont, ..Script::default() }, &[]);
    let (qmp, stream) = vm.qmp().await;
    qmp.cont(SOON).await.unwrap();
    assert_eq!(names_to_the_end(stream).await, events);
    if let Some(end) = end {
        assert_eq!(vm.end(), end);
    } else {
        assert!(vm.child.try_wait().unwrap().is_none());
        UnixStream::connect(vm.path("qmp")).await.unwrap_err();
    }
}

/// As a real QEMU 7.2 does, whose firmware may reset the machine once more.
#[rstest]
#[case::goes_on(&[], &["RESUME", "RESET", "BACK"], None)]
#[case::is_the_end(&["-action", "reboot=shutdown"], &["RESUME", "SHUTDOWN"], Some(0))]
#[tokio::test]
async fn a_reset_is_what_argv_makes_of_it(
    #[case] args: &[&str],
    #[case] names: &[&str],
    #[case] end: Option<i32>,
) {
    let back = Action::Event { name: "BACK".to_owned(), data: Value::Null };
    let after_reset = vec![
        TimedAction { after_ms: 60, action: Action::CloseMonitor },
        TimedAction { after_ms: 20, action: back },
    ];
    let mut vm = Vm::fake(Script { after_reset, ..Script::default() }, args);
    let (qmp, mut events) = vm.qmp().await;
    qmp.cont(SOON).await.unwrap();
    qmp.system_reset(SOON).await.unwrap();
    assert_eq!(events.next().await.unwrap().known(), Some(Known::Resume));
    let reset = events.next().await.unwrap();
    assert_eq!(reset.data, json!({"guest": false, "reason": "host-qmp-system-reset"}));
    let rest = names_to_the_end(events).await;
    let heard: Vec<String> = ["RESUME".to_owned(), reset.name].into_iter().chain(rest).collect();
    assert_eq!(heard, names);
    match end {
        Some(code) => assert_eq!(vm.end(), code),
        None => assert!(vm.child.try_wait().unwrap().is_none()),
    }
}

#[rstest]
#[case::exit(OnQuit::Exit, Some(0))]
#[case::ignore(OnQuit::Ignore, None)]
#[case::linger(OnQuit::Linger, None)]
#[tokio::test]
async fn quit_can_be_refused(#[case] on_quit: OnQuit, #[case] end: Option<i32>) {
    let mut vm = Vm::fake(Script { on_quit, ..Script::default() }, &[]);
    let (qmp, events) = vm.qmp().await;
    qmp.quit(SOON).await.unwrap();
    if on_quit == OnQuit::Ignore {
        qmp.query_status(SOON).await.unwrap();
    } else {
        assert_eq!(names_to_the_end(events).await, ["SHUTDOWN"]);
    }
    match end {
        Some(code) => assert_eq!(vm.end(), code),
        None => assert!(vm.child.wait_deadline(BRIEF).unwrap().is_none()),
    }
}

#[rstest]
#[case::exit(OnSignal::Exit, Some(0))]
#[case::ignore(OnSignal::Ignore, None)]
#[tokio::test]
async fn a_signal_ends_it_as_it_ends_qemu(#[case] on_signal: OnSignal, #[case] end: Option<i32>) {
    let mut vm = Vm::fake(Script { on_signal, ..Script::default() }, &[]);
    let (_qmp, mut events) = vm.qmp().await;
    vm.child.kill(Signal::SIGTERM).unwrap();
    if let Some(code) = end {
        let known = Known::Shutdown { guest: false, reason: Some("host-signal".to_owned()) };
        assert_eq!(events.next().await.unwrap().known(), Some(known));
        assert_eq!(vm.end(), code);
    } else {
        assert!(vm.child.wait_deadline(BRIEF).unwrap().is_none());
    }
}

#[tokio::test]
async fn a_guest_can_ignore_its_power_button_and_a_shutdown_can_stay() {
    let script = Script { on_powerdown: OnPowerdown::Ignore, ..Script::default() };
    let mut vm = Vm::fake(script, &[]);
    let (qmp, _events) = vm.qmp().await;
    qmp.cont(SOON).await.unwrap();
    qmp.system_powerdown(SOON).await.unwrap();
    assert!(vm.child.wait_deadline(BRIEF).unwrap().is_none());

    let vm = Vm::fake(Script::default(), &["-action", "shutdown=pause"]);
    let (qmp, mut events) = vm.qmp().await;
    qmp.cont(SOON).await.unwrap();
    qmp.system_powerdown(SOON).await.unwrap();
    while events.next().await.unwrap().known() != Some(Known::Stop) {}
    assert_eq!(qmp.query_status(SOON).await.unwrap().status, "shutdown");
}

#[test]
fn a_bad_command_line_or_script_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        std::fs::write(dir.path().join("s"), script).unwrap();
        let mut fake = std::process::Command::new(env!("CARGO_BIN_EXE_fake-qemu"));
        let output =
            fake.env(SCRIPT_ENV, dir.path().join("s")).args(["-mon", "m,mode=control"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run("{}"), (Some(1), "fake-qemu: chardev \"m\" not found\n".to_owned()));
    let mut fake = std::process::Command::new(env!("CARGO_BIN_EXE_fake-qemu"));
    std::fs::write(dir.path().join("s"), "{\"surprise\": 1}").unwrap();
    let output = fake.env(SCRIPT_ENV, dir.path().join("s")).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("unknown field `surprise`"));
}

#[test]
fn the_program_is_found_beside_the_tests() {
    assert!(gpuvm_testkit::fake_qemu::binary().unwrap().is_file());
}

fn qemu() -> String {
    std::env::var("GPUVM_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned())
}

#[tokio::test]
#[ignore = "needs QEMU; scripts/test runs it"]
async fn tier2_a_real_qemu_without_a_machine_answers() {
    let mut vm = Vm::start(
        tempfile::tempdir().unwrap(),
        &qemu(),
        vec![],
        &["-machine", "none", "-nodefaults", "-display", "none"],
    );
    let (qmp, events) = vm.qmp().await;
    assert!(qmp.version().major >= 7, "{}", qmp.version());
    assert_eq!(&qmp.query_version(SOON).await.unwrap(), qmp.version());
    assert_eq!(qmp.query_status(SOON).await.unwrap().status, "prelaunch");
    assert!(qmp.query_kvm(SOON).await.unwrap().present);
    let properties = qmp.device_list_properties("vfio-pci", SOON).await.unwrap();
    assert!(properties.iter().any(|property| property.name == "host"));
    let error = qmp.device_list_properties("flux-capacitor", SOON).await.unwrap_err();
    assert!(matches!(&error, Error::Command { class, .. } if class == "DeviceNotFound"), "{error}");
    let types = qmp.qom_list_types(Some("pci-device"), SOON).await.unwrap();
    assert!(types.iter().any(|kind| kind.name == "vfio-pci") && !types.iter().any(|kind| kind.is_abstract));
    let schema = qmp.execute_value("query-qmp-schema", json!({}), SOON).await.unwrap();
    assert!(schema.as_array().unwrap().len() > 900);
    qmp.quit(SOON).await.unwrap();
    assert_eq!(names_to_the_end(events).await, ["SHUTDOWN"]);
    assert_eq!(vm.end(), 0);
}

#[tokio::test]
#[ignore = "needs QEMU; scripts/test runs it"]
async fn tier2_a_real_machine_pauses_resumes_and_ends_on_a_signal() {
    let extra =
        "-machine q35,accel=tcg -m 64 -smp 2 -nodefaults -display none -device isa-serial,chardev=con";
    let mut vm =
        Vm::start(tempfile::tempdir().unwrap(), &qemu(), vec![], &extra.split(' ').collect::<Vec<_>>());
    let (qmp, mut events) = vm.qmp().await;
    let threads = qmp.vcpu_threads(SOON).await.unwrap();
    assert_eq!(threads.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [0, 1]);
    let last = *affinity(0).unwrap().last().unwrap();
    for vcpu in &threads {
        set_affinity(vcpu.thread_id, &[last]).unwrap();
    }
    assert_eq!(affinity(threads[1].thread_id).unwrap(), [last]);
    qmp.cont(SOON).await.unwrap();
    assert_eq!(events.next().await.unwrap().known(), Some(Known::Resume));
    assert!(qmp.query_status(SOON).await.unwrap().running);
    qmp.stop(SOON).await.unwrap();
    let stop = events.next().await.unwrap();
    assert_eq!(stop.known(), Some(Known::Stop));
    assert!(stop.timestamp.unwrap().seconds > 1_600_000_000);
    assert!(qmp.query_pci(SOON).await.unwrap().as_array().is_some_and(|buses| !buses.is_empty()));
    vm.child.kill(Signal::SIGTERM).unwrap();
    let known = Known::Shutdown { guest: false, reason: Some("host-signal".to_owned()) };
    assert_eq!(events.next().await.unwrap().known(), Some(known));
    assert_eq!(events.next().await, None);
    assert_eq!(vm.end(), 0);
}
