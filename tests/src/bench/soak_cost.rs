//! What gpuvm adds to a cycle of a soak on top of QEMU, the guest and the kernel's own work, recomputed from outside.
//!
//! A cycle is the time from one QEMU's `execve` to the next one's. Not gpuvm's are:
//! - the life of that QEMU: from its `execve` until the last of its threads is gone, which is when the kernel has closed (and reset) its devices;
//! - between two QEMUs, the time in which some process of gpuvm's is inside a `write` by which the kernel does a driver's work: [`WORK`].
//!
//! All else is gpuvm's, whatever it waits for, its helpers' start and end too. It is longer than without the tracing, which stops gpuvm at each
//! call and at each child's start and end: what that costs is measured apart ([`Tracer`]) and taken off. To that comes, of QEMU's life, the time from when the guest's job line had reached gpuvm's log until the guest's end (or reset) was asked for.
//!
//! Two witnesses are heard: what the kernel's log says of the devices must have been said in a time that isn't held for gpuvm's, and the
//! phases that gpuvm's own record tells must be the same times.

use serde_json::Value;

use super::soak_trace::{Call, Micros, Said, Trace};

/// Attributes below /sys whose writing is work of a driver, of a reset or of the memory management.
pub const WORK: [&str; 9] = [
    "bind",
    "unbind",
    "drivers_probe",
    "reset",
    "reset_subordinate",
    "remove",
    "rescan",
    "nr_hugepages",
    "control",
];

/// What a witness's time may differ by.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Of a line of the kernel's log.
    pub log: Micros,
    /// Of a phase in the record.
    pub record: Micros,
}

/// What the tracing itself costs, in µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracer {
    /// A call that is traced.
    pub call: Micros,
    /// A child that makes one such call and ends.
    pub child: Micros,
}

/// A cycle, in µs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The cycle's number.
    pub number: usize,
    /// From QEMU's start to the next one's.
    pub wall: Micros,
    /// QEMU's life.
    pub life: Micros,
    /// The kernel's work between the two QEMUs.
    pub kernel: Micros,
    /// The rest between the two.
    pub between: Micros,
    /// What of that is the tracing's.
    pub tracing: Micros,
    /// From when the guest was ready until its end or reset was asked for, less what was to be waited.
    pub answer: Micros,
}

impl Cost {
    /// What is gpuvm's.
    pub fn own(&self) -> Micros {
        self.between - self.tracing + self.answer
    }
}

/// A QEMU of the soak's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    pid: u32,
    from: Micros,
    to: Micros,
}

/// Finds the QEMUs: a process that became one with `-name guest=`, and what its last thread's end is.
fn lives(trace: &Trace) -> Vec<Life> {
    let starts = trace.calls.iter().filter(|call| call.name == "execve" && call.args.contains("\"guest="));
    let life = |call: &Call| {
        let gone = trace.gone.iter().find(|gone| gone.pid == call.pid && gone.at > call.from)?;
        Some(Life { pid: call.pid, from: call.from, to: gone.at })
    };
    starts.filter_map(life).collect()
}

fn is_work(call: &Call) -> bool {
    let is_one = |path: &str| {
        path.starts_with("/sys/") && path.rsplit('/').next().is_some_and(|name| WORK.contains(&name))
    };
    matches!(call.name.as_str(), "write" | "pwrite64") && call.path().is_some_and(is_one)
}

/// Sums up how much of a time some of these calls cover; where two run side by side it counts once.
fn covered<'a>(calls: impl Iterator<Item = &'a Call>, from: Micros, to: Micros) -> Micros {
    let mut until = from;
    let mut sum = 0;
    for call in calls {
        let (start, end) = (call.from.max(until), call.to.min(to));
        sum += (end - start).max(0);
        until = until.max(end);
    }
    sum
}

/// Sums up what the tracing has cost between two QEMUs: children are known by their end, and their call isn't counted once more.
fn tracing(trace: &Trace, tracer: Tracer, from: Micros, to: Micros) -> Micros {
    let between = |at: Micros| (from..to).contains(&at);
    let children: Vec<u32> =
        trace.gone.iter().filter(|gone| between(gone.at) && gone.at > from).map(|gone| gone.pid).collect();
    let own = trace.calls.iter().filter(|call| between(call.from) && !children.contains(&call.pid));
    let count = |number: usize| Micros::try_from(number).unwrap_or(0);
    count(own.count()) * tracer.call + count(children.len()) * tracer.child
}

/// Finds how long gpuvm took each time to answer the guest's job line with a power button, a reset or a signal.
fn answers(trace: &Trace, life: Life) -> Vec<Micros> {
    let within = |call: &&Call| call.from >= life.from && call.from < life.to && call.pid != life.pid;
    let mut line = String::new();
    let mut ready = None;
    let mut answers = Vec::new();
    for call in trace.calls.iter().filter(within) {
        let asked = match call.name.as_str() {
            "sendto" => ["system_powerdown", "system_reset"].iter().any(|verb| call.args.contains(verb)),
            "pidfd_send_signal" | "kill" => call.args.contains("SIGKILL"),
            _ => false,
        };
        if asked && let Some(since) = ready.take() {
            answers.push(call.from - since);
        }
        if call.name == "write" && call.path().is_some_and(|path| path.ends_with("/console.log")) {
            let text = call.args.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
            for part in text.map_or("", |(text, _)| text).split_inclusive("\\n") {
                line.push_str(part);
                if part.ends_with("\\n") && std::mem::take(&mut line).contains("gpuvm-job:") {
                    ready = Some(call.to);
                }
            }
        }
    }
    answers
}

/// Accounts for the cycles, from the first QEMU to the last; the last one has no next, so that its end isn't known.
///
/// `wait` is what each answer was told to wait (`--after`).
///
/// # Errors
/// That there are no two QEMUs, or a guest of which the answer to its job isn't seen.
pub fn account(trace: &Trace, wait: Micros, tracer: Tracer) -> Result<Vec<Cost>, String> {
    let lives = lives(trace);
    if lives.len() < 2 {
        return Err(format!("{} QEMUs in the trace: at least two are needed", lives.len()));
    }
    let cost = |(number, pair): (usize, &[Life])| {
        let [life, next] = pair else { return Err("no pair".to_owned()) };
        let kernel = covered(trace.calls.iter().filter(|call| is_work(call)), life.to, next.from);
        let answers = answers(trace, *life);
        if answers.is_empty() {
            return Err(format!("cycle {}: no answer to the guest's job in the trace", number + 1));
        }
        Ok(Cost {
            number: number + 1,
            wall: next.from - life.from,
            life: life.to - life.from,
            kernel,
            between: next.from - life.to - kernel,
            tracing: tracing(trace, tracer, life.to, next.from),
            answer: answers.iter().map(|answer| answer - wait).sum(),
        })
    };
    lives.windows(2).enumerate().map(cost).collect()
}

/// Checks that the kernel said what it said of the devices while QEMU lived or a driver's work was being done.
///
/// # Errors
/// The lines that fall into gpuvm's own time; a cycle in which nothing was said.
pub fn check_log(
    trace: &Trace,
    log: &[Said],
    devices: &[String],
    tolerance: Tolerance,
) -> Result<usize, String> {
    let lives = lives(trace);
    let (first, last) = match lives.as_slice() {
        [first, .., last] => (first.from, last.from),
        _ => return Err("fewer than two QEMUs in the trace".to_owned()),
    };
    let spans: Vec<(Micros, Micros)> = lives
        .iter()
        .map(|life| (life.from, life.to))
        .chain(trace.calls.iter().filter(|call| is_work(call)).map(|call| (call.from, call.to)))
        .collect();
    let of_devices = |said: &&Said| {
        (first..last).contains(&said.at) && devices.iter().any(|device| said.text.contains(device.as_str()))
    };
    let heard: Vec<&Said> = log.iter().filter(of_devices).collect();
    let outside = |said: &&&Said| {
        !spans.iter().any(|(from, to)| (from - tolerance.log..=to + tolerance.log).contains(&said.at))
    };
    if let Some(said) = heard.iter().find(outside) {
        return Err(format!("the kernel said `{}` in a time that is held for gpuvm's", said.text));
    }
    for (number, pair) in lives.windows(2).enumerate() {
        if !heard.iter().any(|said| (pair[0].from..pair[1].from).contains(&said.at)) {
            return Err(format!("cycle {}: the kernel said nothing of {devices:?}", number + 1));
        }
    }
    Ok(heard.len())
}

/// Checks the phases of the record against what was seen from outside, and returns what the record has no phase for, by cycle.
///
/// # Errors
/// The cycle and the times that differ.
pub fn check_record(costs: &[Cost], record: &str, tolerance: Tolerance) -> Result<Vec<Micros>, String> {
    let lines: Vec<Value> = record.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let cycles: Vec<&Value> = lines.iter().filter(|line| line["line"] == "cycle").collect();
    let differs = |number: usize, what: &str, seen: Micros, told: Micros| {
        format!("cycle {number}: {what} took {} ms, and {} ms by the record", seen / 1000, told / 1000)
    };
    let mut unrecorded = Vec::new();
    for cost in costs {
        let told = |number: usize, phases: &[&str]| {
            let cycle = cycles.iter().find(|cycle| cycle["number"].as_u64() == u64::try_from(number).ok());
            let cycle = cycle.ok_or_else(|| format!("cycle {number} isn't in the record"))?;
            let phases = cycle["phases"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|phase| phase["phase"].as_str().is_some_and(|name| phases.contains(&name)));
            Ok::<Micros, String>(phases.filter_map(|phase| phase["ms"].as_i64()).sum::<i64>() * 1000)
        };
        let life = told(cost.number, &["start", "boot", "work", "reboot", "stop"])?;
        if (cost.life - life).abs() > tolerance.record {
            return Err(differs(cost.number, "QEMU's life", cost.life, life));
        }
        let after = told(cost.number, &["reset", "judge", "repair", "give-back"])?;
        let before = told(cost.number + 1, &["plan", "prepare"])?;
        let seen = cost.between + cost.kernel;
        let rest = seen - after - before;
        // What was seen is longer by what lies between two cycles; it can't be shorter.
        if rest < -tolerance.record || rest > tolerance.record {
            return Err(differs(cost.number, "what came before the next QEMU", seen, after + before));
        }
        unrecorded.push(rest);
    }
    Ok(unrecorded)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TOLERANCE: Tolerance = Tolerance { log: 1000, record: 20_000 };

    /// Two cycles' worth of a trace, by hand: QEMU lives from 100.0 to 105.0, and the next one begins at 105.5.
    const LOG: &str = r#"
10 99.900000 write(9</sys/bus/pci/drivers/vfio-pci/bind>, "0000:83:00.0", 12) = 12 <0.050000>
20 100.000000 execve("/usr/bin/qemu-system-x86_64", ["qemu", "-name", "guest=x,debug-threads=on"], 0x1) = 0 <0.001000>
10 103.000000 write(8</var/log/gpuvm/x/console.log>, "{}\ngpuvm-job: {\"exit\"", 22) = 22 <0.000100>
10 103.100000 write(8</var/log/gpuvm/x/console.log>, ":0}\nmore", 8) = 8 <0.000100>
10 103.150000 sendto(7<socket:[1]>, "{\"execute\":\"system_powerdown\"}", 30, 0, NULL, 0) = 30 <0.000100>
10 104.000000 write(8</sys/bus/pci/drivers/other/bind>, "1", 1) = 1 <0.100000>
21 104.900000 +++ exited with 0 +++
20 105.000000 +++ exited with 0 +++
30 105.010000 write(0</sys/bus/pci/drivers/vfio-pci/unbind>, "0000:83:00.0", 12) = 12 <0.010000>
30 105.022000 +++ exited with 0 +++
10 105.050000 write(0</sys/bus/pci/devices/0000:83:00.0/driver_override>, "1", 1) = 1 <0.010000>
31 105.100000 write(0</sys/bus/pci/drivers/nvme/bind>, "0000:83:00.0", 12 <unfinished ...>
32 105.150000 write(0</sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages>, "0", 1) = 1 <0.100000>
31 105.200000 <... write resumed>) = 12 <0.100000>
40 105.500000 execve("/usr/bin/qemu-system-x86_64", ["qemu", "-name", "guest=x,debug-threads=on"], 0x1) = 0 <0.001000>
40 109.000000 +++ killed by SIGKILL +++
"#;

    fn trace() -> Trace {
        Trace::parse(LOG.trim_start()).unwrap()
    }

    #[test]
    fn a_cycle_is_accounted_for() {
        let costs = account(&trace(), 20_000, Tracer { call: 1_000, child: 5_000 }).unwrap();
        let expected = Cost {
            number: 1,
            wall: 5_500_000,
            life: 5_000_000,
            // 10 ms, and 150 ms that two calls cover together; not driver_override.
            kernel: 160_000,
            between: 340_000,
            // Three calls of processes that live on, and one child.
            tracing: 8_000,
            answer: 29_900,
        };
        assert_eq!(costs, [expected]);
        assert_eq!(costs[0].own(), 361_900);
    }

    #[test]
    fn without_two_qemus_or_an_answer_there_is_no_account() {
        let cut = LOG.split("40 105.5").next().unwrap();
        assert!(
            account(&Trace::parse(cut.trim_start()).unwrap(), 0, Tracer::default())
                .unwrap_err()
                .contains("1 QEMUs")
        );
        let silent = LOG.replace("gpuvm-job", "else");
        assert!(
            account(&Trace::parse(silent.trim_start()).unwrap(), 0, Tracer::default())
                .unwrap_err()
                .contains("no answer")
        );
    }

    fn said(at: Micros, text: &str) -> Said {
        Said { at, text: text.into() }
    }

    #[rstest]
    #[case::while_qemu_lives(104_000_000, None)]
    #[case::in_a_drivers_work(105_199_000, None)]
    #[case::within_the_tolerance(105_020_900, None)]
    #[case::in_gpuvms_time(105_040_000, Some("held for gpuvm's"))]
    #[case::in_a_write_that_isnt_work(105_055_000, Some("held for gpuvm's"))]
    #[case::before_it_all(99_000_000, Some("said nothing"))]
    fn the_kernels_log_bears_witness(#[case] at: Micros, #[case] complaint: Option<&str>) {
        let log = [said(at, "nvme nvme0: pci function 0000:83:00.0"), said(105_300_000, "eth0: up")];
        let checked = check_log(&trace(), &log, &["0000:83:00.0".to_owned()], TOLERANCE);
        match complaint {
            None => assert_eq!(checked, Ok(1)),
            Some(words) => assert!(checked.unwrap_err().contains(words)),
        }
    }

    fn record(life: i64, after: i64, before: i64) -> String {
        let phase = |phase: &str, ms: i64| format!(r#"{{"phase":"{phase}","ms":{ms}}}"#);
        let line = |number: u32, phases: &[String]| {
            format!(r#"{{"line":"cycle","number":{number},"phases":[{}]}}"#, phases.join(","))
        };
        let first = [phase("prepare", 7000), phase("boot", life - 30), phase("stop", 30)];
        let first = [&first[..], &[phase("judge", after - 10), phase("give-back", 10)]].concat();
        [line(1, &first), line(2, &[phase("plan", 3), phase("prepare", before - 3)])].join("\n")
    }

    #[rstest]
    #[case::the_same(record(5000, 200, 300), Ok(0))]
    #[case::a_little_between_cycles(record(4990, 200, 290), Ok(10_000))]
    #[case::another_life(record(4900, 200, 300), Err("QEMU's life took 5000 ms, and 4900"))]
    #[case::more_than_was_seen(record(5000, 300, 300), Err("next QEMU took 500 ms, and 600"))]
    #[case::too_little(record(5000, 200, 200), Err("next QEMU took 500 ms, and 400"))]
    #[case::cut(record(5000, 200, 300).lines().next().unwrap().to_owned(), Err("cycle 2 isn't"))]
    fn the_record_bears_witness(#[case] record: String, #[case] expected: Result<Micros, &str>) {
        let checked = check_record(&account(&trace(), 0, Tracer::default()).unwrap(), &record, TOLERANCE);
        match expected {
            Ok(rest) => assert_eq!(checked, Ok(vec![rest])),
            Err(words) => assert!(checked.clone().unwrap_err().contains(words), "{checked:?}"),
        }
    }
}
