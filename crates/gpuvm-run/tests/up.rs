//! A VM's whole way on a fake host with a fake QEMU: every way to begin, to end, and to fail.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gpuvm_core::lifecycle::{Exit, Outcome, Patience, Stage};
use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Sources, VmName, parse};
use gpuvm_core::reset::Verdict;
use gpuvm_host::errno::EBUSY;
use gpuvm_host::places::Places;
use gpuvm_host::{HostError, facts};
use gpuvm_run::{Cause, Cleaned, LaunchError, Launched, Note, Observer, Phase, Run, Signals, cleanup, up};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, Fault, GroupFault, gpu};
use gpuvm_testkit::fake_qemu::{
    Action, ExitAtStart, Greeting, OnPowerdown, OnQuit, Recording, Reply, Script, TimedAction,
};
use rstest::rstest;

use bench::{AUDIO, Bench, GPU, Told, action, nobody, shutdown_after};

#[tokio::test]
async fn a_guest_that_powers_off_gives_the_host_back() {
    let bench = Bench::new(&Script { after_cont: shutdown_after(20), ..Script::default() });
    let mut told = Told::default();
    let report = bench.up_told(&mut told).await.unwrap();
    assert_eq!(report.outcome, Outcome::PoweredOff);
    assert!(report.all_well() && report.left.is_empty());
    assert_eq!(report.devices.len(), 2, "the audio function came along");
    bench.assert_given_back();
    let commands = Recording::load(&bench.record).unwrap();
    assert_eq!(commands.names(), ["qmp_capabilities", "query-cpus-fast", "cont"]);
    assert!(commands.argv.iter().any(|word| word == "-S"));
    assert!(told.0.iter().any(|line| line.contains("GivingBack")), "{:?}", told.0);
}

/// Whoever waits for the word that the guest runs may ask for something that only one that runs can do.
#[tokio::test]
async fn it_is_told_that_the_guest_runs_once_it_is_known_to() {
    let bench = Bench::new(&Script { after_cont: shutdown_after(20), ..Script::default() });
    let mut told = Told::default();
    bench.up_told(&mut told).await.unwrap();
    let at = |what: &str| told.0.iter().position(|line| line.starts_with(what)).unwrap();
    assert!(at("state running") < at("Running {"), "{:?}", told.0);
}

#[tokio::test]
async fn what_was_preferred_and_not_had_is_in_the_report() {
    let script = Script { after_cont: shutdown_after(20), ..Script::default() };
    let bench = Bench::with_profile(&script, "pin = [8191]\npin-policy = \"prefer\"");
    let report = serde_json::to_value(bench.up().await.unwrap()).unwrap();
    assert_eq!(report["warnings"][0]["about"], "pinning", "{report}");
}

#[tokio::test]
async fn the_console_goes_to_the_sink_and_to_the_log() {
    let script = Script {
        console_output: "hello from the guest\n".to_owned(),
        after_cont: shutdown_after(100),
        ..Script::default()
    };
    let bench = Bench::new(&script);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let copy = move |bytes: &[u8]| {
        sink.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    };
    up(&bench.run(), &mut nobody(), Some(Box::new(copy)), &mut Told::default()).await.unwrap();
    assert_eq!(seen.lock().unwrap().as_slice(), b"hello from the guest\n");
    let log = std::fs::read_to_string(bench.places.logs(&bench.plan.name).join("console.log")).unwrap();
    assert_eq!(log, "hello from the guest\n");
}

#[tokio::test]
async fn vcpus_are_pinned_before_the_guest_runs() {
    let bench = Bench::with_profile(
        &Script { after_cont: shutdown_after(400), ..Script::default() },
        "pin = \"auto\"",
    );
    let planned = bench.plan.placement.vcpus[0].cpu;
    let affinity = async {
        bench.runs().await;
        let records = gpuvm_host::reservation::all(&bench.places, &bench.boot_id).unwrap();
        let qemu = records[0].qemu.unwrap().pid;
        let mut masks = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{qemu}/task")).unwrap().flatten() {
            let tid = task.file_name().to_string_lossy().parse().unwrap();
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap();
            masks.push((name.trim().to_owned(), gpuvm_sys::sched::affinity(tid).unwrap()));
        }
        masks
    };
    let (report, masks) = tokio::join!(bench.up(), affinity);
    report.unwrap();
    let emulator: Vec<u32> = bench.plan.placement.emulator.iter().collect();
    let (vcpus, others): (Vec<_>, Vec<_>) = masks.iter().partition(|(_, mask)| *mask == [planned]);
    // One vCPU, and on a machine with more than one CPU nothing else beside it.
    assert!(!vcpus.is_empty() && others.iter().all(|(_, mask)| *mask == emulator), "{masks:?}");
    assert!(emulator == [planned] || vcpus.len() == 1, "{masks:?}");
}

#[rstest]
#[case::obeys(Script::default(), 1, Stage::Acpi)]
#[case::ignores_the_button(Script { on_powerdown: OnPowerdown::Ignore, ..Script::default() }, 1, Stage::Quit)]
#[case::hurried(Script { on_powerdown: OnPowerdown::Ignore, ..Script::default() }, 2, Stage::Quit)]
#[case::ignores_everything(
    Script { on_powerdown: OnPowerdown::Ignore, on_quit: OnQuit::Ignore, ..Script::default() }, 1, Stage::Kill
)]
#[case::lingers_after_quit(
    Script { on_powerdown: OnPowerdown::Ignore, on_quit: OnQuit::Linger, ..Script::default() }, 1, Stage::Kill
)]
#[case::monitor_refuses(
    Script {
        replies: [("system_powerdown".to_owned(), Reply::Error { class: "GenericError".into(), desc: "no".into() })].into(),
        ..Script::default()
    },
    1,
    Stage::Quit
)]
#[tokio::test]
async fn a_signal_ends_the_guest_and_the_stage_that_it_took_is_told(
    #[case] script: Script,
    #[case] signals: u32,
    #[case] stage: Stage,
) {
    let bench = Bench::new(&script);
    let report = bench.up_asked_to_stop(signals).await.unwrap();
    assert_eq!(report.outcome, Outcome::Stopped { stage });
    bench.assert_given_back();
}

#[rstest]
#[case::crashes(Action::Die { signal: 6 }, Outcome::QemuDied { exit: Exit::Signal(6) })]
#[case::exits_with_an_error(Action::Exit { code: 3 }, Outcome::QemuDied { exit: Exit::Code(3) })]
#[case::panics(
    Action::Event { name: "GUEST_PANICKED".into(), data: serde_json::json!({"action": "pause", "info": {"type": "tdx"}}) },
    Outcome::Panicked
)]
#[tokio::test]
async fn a_bad_end_is_told_and_the_host_is_given_back(#[case] what: Action, #[case] outcome: Outcome) {
    let bench = Bench::new(&Script { after_cont: action(what), ..Script::default() });
    let report = bench.up().await.unwrap();
    assert_eq!(report.outcome, outcome);
    bench.assert_given_back();
}

#[tokio::test]
async fn an_unknown_event_and_a_plain_stop_end_nothing() {
    let event = |after_ms, name: &str| TimedAction {
        after_ms,
        action: Action::Event { name: name.to_owned(), data: serde_json::json!({"new": [1]}) },
    };
    let mut after_cont = vec![event(5, "BRAND_NEW"), event(10, "STOP")];
    after_cont.extend(shutdown_after(100));
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    assert_eq!(bench.up().await.unwrap().outcome, Outcome::PoweredOff);
}

#[tokio::test]
async fn a_monitor_that_closes_under_a_running_guest_ends_it() {
    let bench = Bench::new(&Script { after_cont: action(Action::CloseMonitor), ..Script::default() });
    let report = bench.up().await.unwrap();
    assert_eq!(report.outcome, Outcome::QemuDied { exit: Exit::Signal(9) });
    bench.assert_given_back();
}

#[tokio::test]
async fn qemu_that_refuses_its_arguments_is_quoted() {
    let exit_at_start = Some(ExitAtStart { code: 1, stderr: "qemu: -device vfio-pci: no\n".to_owned() });
    let bench = Bench::new(&Script { exit_at_start, ..Script::default() });
    let error = bench.up().await.unwrap_err();
    let text = error.cause.to_string();
    assert!(text.contains("status 1") && text.contains("-device vfio-pci: no"), "{text}");
    assert!(matches!(*error.cause, Cause::Launch(LaunchError::Died { .. })), "{text}");
    bench.assert_given_back();
}

/// Has the kernel say a line of each kind when a phase comes: about the VM's device, about another, about none.
struct KernelSpeaks<'a> {
    fake: &'a FakeHost,
    at: &'static str,
}

const OF_OURS: &str = "vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting";

impl Observer for KernelSpeaks<'_> {
    fn phase(&mut self, phase: &Phase) {
        if format!("{phase:?}").starts_with(self.at) {
            for line in
                [OF_OURS, "nvme 0000:02:00.0: not ready 1023ms after FLR; waiting", "usb 1-1: new device"]
            {
                self.fake.says_now(line).unwrap();
            }
        }
    }

    fn note(&mut self, _note: &Note) {}
}

#[tokio::test]
async fn what_the_kernel_said_is_told_of_a_qemu_that_dies_before_the_guest_runs() {
    let bench = Bench::new(&Script {
        replies: [("cont".to_owned(), Reply::Die { code: 1 })].into(),
        ..Script::default()
    });
    bench.fake.says_now("vfio-pci 0000:81:00.0: long before").unwrap();
    let mut speaks = KernelSpeaks { fake: &bench.fake, at: "Pinning" };
    let error = up(&bench.run(), &mut nobody(), None, &mut speaks).await.unwrap_err();
    match &*error.cause {
        Cause::Launch(LaunchError::Died { said, .. }) => assert_eq!(said.0, [OF_OURS]),
        other => panic!("{other}"),
    }
    assert!(error.cause.to_string().contains(OF_OURS), "{}", error.cause);
    bench.assert_given_back();
}

#[tokio::test]
async fn what_the_kernel_said_is_in_the_report_of_a_guest_that_ends_badly() {
    let bench = Bench::new(&Script { after_cont: action(Action::Die { signal: 6 }), ..Script::default() });
    bench.fake.says_now("vfio-pci 0000:81:00.0: long before").unwrap();
    let mut speaks = KernelSpeaks { fake: &bench.fake, at: "Running" };
    let report = up(&bench.run(), &mut nobody(), None, &mut speaks).await.unwrap();
    assert_eq!(report.last_words.unwrap().kernel.0, [OF_OURS]);
    bench.assert_given_back();
}

#[tokio::test]
async fn an_old_qemu_is_refused_by_its_own_word() {
    let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 7}, "package": ""}, "capabilities": []}}"#;
    let bench = Bench::new(&Script { greeting: Greeting::Custom(greeting.to_owned()), ..Script::default() });
    let error = bench.up().await.unwrap_err();
    assert!(error.cause.to_string().contains("QEMU 7.1.0"), "{}", error.cause);
    bench.assert_given_back();
}

#[tokio::test]
async fn another_number_of_vcpus_than_planned_is_refused() {
    let bench = Bench::with_profile(&Script { vcpus: Some(3), ..Script::default() }, "pin = \"auto\"");
    let error = bench.up().await.unwrap_err();
    assert!(
        matches!(*error.cause, Cause::Launch(LaunchError::Vcpus { found: 3, planned: 1 })),
        "{}",
        error.cause
    );
    bench.assert_given_back();
}

#[tokio::test]
async fn a_signal_while_qemu_is_silent_gives_the_host_back() {
    let bench = Bench::new(&Script { greeting: Greeting::Silent, ..Script::default() });
    let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut signals = Signals::from_channel(requests);
    let (run, mut told) = (bench.run(), Told::default());
    let interrupt = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        ask.send("SIGINT").unwrap();
    };
    let (result, ()) = tokio::join!(up(&run, &mut signals, None, &mut told), interrupt);
    assert!(matches!(*result.unwrap_err().cause, Cause::Interrupted { signal: "SIGINT" }));
    bench.assert_given_back();
}

#[rstest]
#[case::intremap(GroupFault::NoInterruptRemapping, "interrupt remapping")]
#[case::busy(GroupFault::Busy, "1234 (qemu)")]
#[tokio::test]
async fn a_group_that_the_kernel_refuses_is_named_and_the_host_given_back(
    #[case] fault: GroupFault,
    #[case] says: &str,
) {
    let bench = Bench::new(&Script::default());
    bench.fake.refuse_group(7, fault);
    let error = bench.up().await.unwrap_err();
    let text = error.cause.to_string();
    assert!(text.contains("group 7") && text.contains(says), "{text}");
    assert!(error.left.is_empty());
    bench.assert_given_back();
}

#[tokio::test]
async fn an_operation_that_fails_half_way_gives_back_what_was_done() {
    let bench = Bench::new(&Script::default());
    bench.fake.fault("snd_hda_intel/unbind", Fault::Errno(EBUSY));
    let error = bench.up().await.unwrap_err();
    assert!(error.cause.to_string().contains(AUDIO), "{}", error.cause);
    bench.assert_given_back();
}

#[tokio::test]
async fn an_unbind_that_hangs_keeps_the_reservation_until_cleanup_can_finish() {
    let bench = Bench::new(&Script::default());
    bench.fake.fault("nvidia/unbind", Fault::Hang);
    let error = bench.up().await.unwrap_err();
    assert!(matches!(*error.cause, Cause::Host(HostError::InFlight { .. })), "{}", error.cause);
    assert_eq!(error.left.len(), 1);
    // As if the launcher were dead: the child that hangs alone keeps everybody off.
    let mut record = gpuvm_host::reservation::all(&bench.places, &bench.boot_id).unwrap().remove(0);
    record.supervisor = gpuvm_host::process::ProcessId { pid: 1, start_time: 1 };
    gpuvm_host::reservation::update(&bench.places, &record).unwrap();
    let again = bench.up().await.unwrap_err();
    assert!(again.cause.to_string().contains("in-flight process"), "{}", again.cause);
    let early = cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(early[0].result, Cleaned::Left, "{early:?}");
    bench.fake.release();
    let late = cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(late[0].result, Cleaned::Done, "{late:?}");
    bench.assert_given_back();
}

#[tokio::test]
async fn a_vm_that_is_up_is_left_alone_by_cleanup() {
    let bench = Bench::new(&Script { after_cont: shutdown_after(600), ..Script::default() });
    let meanwhile = async {
        bench.runs().await;
        // This process is the launcher; another one would find it alive.
        let record = gpuvm_host::reservation::all(&bench.places, &bench.boot_id).unwrap().remove(0);
        let other = gpuvm_host::reservation::Reservation {
            supervisor: gpuvm_host::process::ProcessId::of(record.qemu.unwrap().pid).unwrap(),
            ..record.clone()
        };
        gpuvm_host::reservation::update(&bench.places, &other).unwrap();
        let reports =
            cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
        gpuvm_host::reservation::update(&bench.places, &record).unwrap();
        reports
    };
    let (report, cleaned) = tokio::join!(bench.up(), meanwhile);
    assert_eq!(cleaned[0].result, Cleaned::Running, "{cleaned:?}");
    assert_eq!(report.unwrap().outcome, Outcome::PoweredOff);
    bench.assert_given_back();
}

#[tokio::test]
async fn a_device_that_changed_hands_since_the_plan_is_not_taken() {
    let bench = Bench::new(&Script::default());
    bench.fake.remove(&format!("/sys/bus/pci/devices/{GPU}/driver"));
    let error = bench.up().await.unwrap_err();
    assert!(matches!(*error.cause, Cause::Host(HostError::Stale { .. })), "{}", error.cause);
    assert_eq!(bench.fake.writes(), [""; 0]);
}

#[tokio::test]
async fn a_journal_that_makes_no_sense_stops_no_other_vms_cleanup() {
    let bench = Bench::new(&Script::default());
    for (name, journal) in [("a-broken", "{}\n"), ("b-fine", "")] {
        let vm = VmName::new(name).unwrap();
        gpuvm_host::lock::make_dir(&bench.places.vm(&vm)).unwrap();
        std::fs::write(bench.places.journal(&vm), journal).unwrap();
    }
    let reports = cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    let results: Vec<_> = reports.iter().map(|report| report.result).collect();
    assert_eq!(results, [Cleaned::Left, Cleaned::Done], "{reports:?}");
}

#[tokio::test]
async fn a_device_that_dies_under_the_guest_is_judged_sick_and_kept_from_its_driver() {
    let bench = Bench::new(&Script { after_cont: shutdown_after(300), ..Script::default() });
    let config = bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/config"));
    let dies = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::write(&config, [0xff; 256]).unwrap();
    };
    let (report, ()) = tokio::join!(bench.up(), dies);
    let report = report.unwrap();
    assert!(report.devices[0].judgement.verdict == Verdict::Unreachable, "{:?}", report.devices);
    assert_eq!(report.devices[1].judgement.verdict, Verdict::Healthy);
    assert!(report.left.iter().any(|error| matches!(error, HostError::Sick { .. })));
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.fake.driver(AUDIO).unwrap().as_deref(), Some("snd_hda_intel"));
}

#[tokio::test]
async fn a_device_that_is_off_the_bus_is_refused_before_anything_is_touched() {
    let bench = Bench::new(&Script::default());
    bench.fake.file(&format!("/sys/bus/pci/devices/{GPU}/config"), [0xff; 256]);
    let error = bench.up().await.unwrap_err();
    assert!(matches!(*error.cause, Cause::SickBefore { .. }), "{}", error.cause);
    assert_eq!(bench.fake.writes(), [""; 0]);
}

#[tokio::test]
async fn a_second_vm_that_wants_the_same_device_is_told_who_has_it() {
    let bench = Bench::new(&Script { after_cont: shutdown_after(600), ..Script::default() });
    let mut other = bench.plan.clone();
    other.name = VmName::new("other").unwrap();
    let second = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        up(&Run { plan: &other, ..bench.run() }, &mut nobody(), None, &mut Told::default()).await
    };
    let (first, second) = tokio::join!(bench.up(), second);
    first.unwrap();
    let text = second.unwrap_err().cause.to_string();
    assert!(text.contains(GPU) && text.contains("VM vm"), "{text}");
    bench.assert_given_back();
}

#[tokio::test]
async fn cleanup_gives_back_what_a_dead_launcher_left() {
    let bench = Bench::new(&Script::default());
    // What is left when a launcher is killed after its last operation: journal and record, and nobody alive.
    let mut record = gpuvm_host::reservation::Reservation::new(&bench.plan, &bench.boot_id);
    record.supervisor = gpuvm_host::process::ProcessId { pid: 1, start_time: 1 };
    gpuvm_host::reservation::reserve(&bench.places, &record).unwrap();
    gpuvm_host::lock::make_dir(&bench.places.vm(&bench.plan.name)).unwrap();
    let path = bench.places.journal(&bench.plan.name);
    let mut journal = gpuvm_host::journal::Journal::begin(&path, &bench.boot_id).unwrap();
    let host = gpuvm_host::apply::Host {
        kernel: &bench.kernel,
        places: &bench.places,
        boot_id: &bench.boot_id,
        vm: &bench.plan.name,
        baselines: &std::collections::BTreeMap::new(),
    };
    for planned in &bench.plan.operations {
        gpuvm_host::apply::apply(&host, &mut journal, &planned.op).unwrap();
    }
    let again = bench.up().await.unwrap_err();
    assert!(matches!(*again.cause, Cause::Host(HostError::LeftBehind { .. })), "{}", again.cause);
    let reports = cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].result, Cleaned::Done, "{:?}", reports[0].not_given_back);
    bench.assert_given_back();
    assert!(
        cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap().is_empty()
    );
}

/// Two functions of one bus whose groups differ: each could be had alone, and a bus reset of one would hit the other's guest.
#[tokio::test]
async fn a_second_vm_on_the_same_bus_is_told_who_has_it_though_the_groups_differ() {
    let fake = FakeHost::new();
    let port = Some("0000:80:02.0");
    for (bdf, group) in [("0000:83:00.0", 8), ("0000:83:00.1", 9)] {
        fake.device(&FakeDevice { port, class: 0x01_0802, ..gpu(bdf, group, 1) });
    }
    fake.qemu(Path::new("/bin/true"));
    let planned = |name: &str, bdf: &str| {
        let text = format!(
            "version = 1\nname = \"{name}\"\nfirmware = \"bios\"\n[memory]\nsize = \"64M\"\n\
             [cpu]\ncount = 1\npin = \"off\"\n[[device]]\nbdf = \"{bdf}\"\n"
        );
        let profile = parse(&Sources::new("vm.toml", text), Path::new("/")).unwrap();
        plan(&profile, &facts::read(&fake.root(), &profile).unwrap()).unwrap()
    };
    let (kernel, places) = (fake.kernel(), Places::below(&fake.prefix()));
    let first = gpuvm_host::reservation::Reservation::new(&planned("first", "0000:83:00.0"), "boot");
    gpuvm_host::reservation::reserve(&places, &first).unwrap();
    let second = planned("second", "0000:83:00.1");
    let patience = Patience::default();
    let launched = Launched::Foreground;
    let run = Run {
        plan: &second,
        profile: "",
        kernel: &kernel,
        places: &places,
        boot_id: "boot",
        patience,
        launched,
    };
    let error = up(&run, &mut nobody(), None, &mut Told::default()).await.unwrap_err();
    let text = error.cause.to_string();
    assert!(matches!(*error.cause, Cause::Host(HostError::Reserved { .. })), "{text}");
    assert!(text.contains("bus 0000:83") && text.contains("VM first"), "{text}");
    assert_eq!(fake.writes(), [""; 0]);
}
