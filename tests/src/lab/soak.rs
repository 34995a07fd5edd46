//! Soaks on a real kernel: one that is killed and goes on, and one that a device falls ill under.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::faults::{EDU_PORT, Illness, names, quarantined, told};
use super::scenarios::{CYCLE, EDU, NVME, driver_of, leaving_no_trace};
use super::sick::{OffTheBus, wait_until};
use super::{Outcome, doing, ensure};

const PROFILE: &str = "tests/lab/soak/lab-soak.toml";
const CONSOLE: &str = "/var/log/gpuvm/lab-soak/console.log";
const CYCLES: usize = 10;
/// gpuvm is killed in the cycle after this one, which is neither the one in which QEMU is killed (4) nor that of the reboot (7).
const KILLED_AFTER: usize = 4;
/// The cycle in which a device falls.
const FALLS_IN: usize = 3;
/// What gpuvm may use more at its end than after its first cycles: memory in KiB, and open files.
const MORE: (i64, i64) = (1024, 3);

/// Ten cycles of all kinds; gpuvm is killed while the guest of one runs, and goes on.
pub(super) fn soak() -> Outcome {
    leaving_no_trace(|| {
        let mix = ["--mix", "clean:8,kill:1,reboot:1", "--cycles", "10"];
        let ready = ["--job", "--expect", "gpuvm-guest: lingering"];
        let mut soak = Soak::begin("killed", &[&mix[..], &ready[..]].concat())?;
        soak.has_cycles(KILLED_AFTER)?;
        soak.guest_prints("gpuvm_guest")?;
        soak.kill()?;

        soak.go_on(&[])?;
        soak.has_cycles(KILLED_AFTER + 2)?;
        let early = soak.uses()?;
        soak.has_cycles(CYCLES - 2)?;
        let late = soak.uses()?;
        let ended = soak.ends()?;
        // A cycle whose end gpuvm didn't see is none that went wrong.
        ensure(ended.code == Some(0), || format!("exit {:?}:\n{}", ended.code, ended.told))?;

        let cycles = soak.lines("cycle")?;
        let numbers: Vec<u64> = cycles.iter().filter_map(|cycle| cycle["number"].as_u64()).collect();
        ensure(numbers == [1, 2, 3, 4, 6, 7, 8, 9, 10], || format!("cycles {numbers:?}"))?;
        let cut = soak.lines("cut")?;
        let given_back = cut.first().is_some_and(|cut| cut["found"].to_string().contains("given back"));
        ensure(cut.len() == 1 && cut[0]["number"] == 5 && given_back, || format!("cut: {cut:?}"))?;
        ensure(soak.lines("begun")?.len() == 2 && soak.lines("ended")?.len() == 1, || soak.text())?;
        for cycle in &cycles {
            is_healthy(cycle)?;
        }
        let kinds: Vec<&str> = cycles.iter().filter_map(|cycle| cycle["kind"].as_str()).collect();
        ensure(kinds.contains(&"kill") && kinds.contains(&"reboot"), || format!("{kinds:?}"))?;

        // As gpuvm says of itself, and as the kernel says of it.
        let own = |at: usize| {
            let own = cycles.get(at).map(|cycle| &cycle["own"]);
            let field = |name: &str| own.and_then(|own| own[name].as_i64()).unwrap_or(0);
            (field("rss_kib"), field("fds"))
        };
        grows_little("by its record", own(KILLED_AFTER + 1), own(cycles.len() - 1))?;
        grows_little("by /proc", early, late)?;
        let report = soak.report()?;
        ensure(report.heading.contains("9 cycles, all healthy"), || report.heading.clone())?;
        names(&report.verdict, &["number 5", "went on once"])
    })
}

/// A device falls off the bus in the third cycle: the soak stops, and tells what was found; repaired, it goes on.
pub(super) fn soak_fault() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        // Time to fall in, between the job and the power button.
        let mut soak = Soak::begin("fallen", &["--job", "--after", "3s", "--cycles", "5"])?;
        soak.has_cycles(FALLS_IN - 1)?;
        soak.guest_prints("gpuvm-job:")?;
        let fallen = OffTheBus::below(EDU_PORT)?;
        let ended = soak.ends()?;
        ensure(ended.code == Some(74), || format!("exit {:?}:\n{}", ended.code, ended.told))?;
        names(&ended.told, &[EDU, "unreachable"])?;
        quarantined(Some(ill))?;
        let cycles = soak.lines("cycle")?;
        ensure(cycles.len() == FALLS_IN, || format!("{} cycles", cycles.len()))?;
        let device = device(&cycles[FALLS_IN - 1], EDU)?;
        ensure(device["verdict"] == "unreachable" && device.to_string().contains("all ones"), || {
            device.to_string()
        })?;
        ensure(soak.ended_because()? == "stopped", || soak.text())?;
        let report = soak.report()?;
        names(&report.heading, &["Stopped at cycle 3", EDU, "unreachable"])?;
        names(&report.verdict, &["all ones", "cycle 3 (bad)"])?;
        ensure(soak.folder.join("console/cycle-3.log").exists(), || "no console of cycle 3".to_owned())?;

        // Nobody goes on with a device that is away.
        let still = soak.resumed_to_its_end(&[])?;
        ensure(still.code == Some(69), || format!("exit {:?}:\n{}", still.code, still.told))?;
        names(&still.told, &[EDU, "quarantine"])?;
        std::thread::sleep(Duration::from_millis(2500));
        fallen.put_back()?;
        // The kernel's reset of it has reached the card meanwhile, and took its registers.
        let repaired = told(&["reset", EDU, "--repair", "rescan"], 0)?;
        names(&repaired, &[EDU, "repaired by rescan"])?;
        told(&["cleanup"], 0)?;
        quarantined(None)?;
        let ended = soak.resumed_to_its_end(&[])?;
        // All that was asked for was run, and one cycle was bad.
        ensure(ended.code == Some(1), || format!("exit {:?}:\n{}", ended.code, ended.told))?;
        let cycles = soak.lines("cycle")?;
        ensure(cycles.len() == 5 && soak.ended_because()? == "done", || soak.text())?;
        cycles[FALLS_IN..].iter().try_for_each(is_healthy)?;
        ensure(driver_of(NVME).as_deref() == Some("nvme"), || format!("{NVME}: {:?}", driver_of(NVME)))
    })
}

/// A soak, its folder and, while it runs, its process.
struct Soak {
    folder: PathBuf,
    child: Option<Child>,
}

/// How a soak ended.
struct Ended {
    code: Option<i32>,
    told: String,
}

/// What a person sees of a report first.
struct Report {
    /// Its heading.
    heading: String,
    /// All of its first section.
    verdict: String,
}

impl Soak {
    fn begin(name: &str, args: &[&str]) -> Result<Self, String> {
        let mut soak = Self { folder: PathBuf::from(format!("/tmp/soak-{name}")), child: None };
        soak.start(args)?;
        Ok(soak)
    }

    fn start(&mut self, args: &[&str]) -> Outcome {
        let told = fs::File::create(self.told()).map_err(doing("make a file"))?;
        let child = Command::new("gpuvm")
            .args(["soak", PROFILE, "--out"])
            .arg(&self.folder)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(told)
            .spawn()
            .map_err(doing("start gpuvm soak"))?;
        self.child = Some(child);
        Ok(())
    }

    fn go_on(&mut self, args: &[&str]) -> Outcome {
        self.start(&[&["--resume"], args].concat())
    }

    fn resumed_to_its_end(&mut self, args: &[&str]) -> Result<Ended, String> {
        self.go_on(args)?;
        self.ends()
    }

    fn told(&self) -> PathBuf {
        self.folder.with_extension("told")
    }

    fn text(&self) -> String {
        let told = fs::read_to_string(self.told()).unwrap_or_default();
        format!("{told}\n{}", fs::read_to_string(self.folder.join("record.jsonl")).unwrap_or_default())
    }

    /// Returns the record's lines of a kind.
    fn lines(&self, kind: &str) -> Result<Vec<Value>, String> {
        let path = self.folder.join("record.jsonl");
        let text = fs::read_to_string(&path).map_err(doing(&path.display().to_string()))?;
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).map_err(doing(line)));
        let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line["line"] == kind).collect())
    }

    fn ended_because(&self) -> Result<String, String> {
        let ended = self.lines("ended")?;
        Ok(ended.last().and_then(|line| line["why"].as_str()).unwrap_or_default().to_owned())
    }

    /// Waits until so many cycles are over.
    fn has_cycles(&mut self, count: usize) -> Outcome {
        let begun = Instant::now();
        let limit = CYCLE * u32::try_from(count + 1).unwrap_or(1);
        while self.lines("cycle").map_or(0, |lines| lines.len()) < count {
            let over = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            ensure(!over && begun.elapsed() < limit, || format!("no {count} cycles:\n{}", self.text()))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until the guest of the cycle that has just begun has printed something. The last guest's console is there until it is started.
    fn guest_prints(&self, what: &str) -> Outcome {
        let has = || fs::read(CONSOLE).is_ok_and(|text| String::from_utf8_lossy(&text).contains(what));
        wait_until("the next guest's console", CYCLE, || !has())?;
        wait_until(what, CYCLE, has)
    }

    fn pid(&self) -> Result<Pid, String> {
        let id = self.child.as_ref().ok_or("it doesn't run")?.id();
        i32::try_from(id).map(Pid::from_raw).map_err(doing("gpuvm's pid"))
    }

    /// Kills gpuvm, as nothing that it could catch.
    fn kill(&mut self) -> Outcome {
        kill(self.pid()?, Signal::SIGKILL).map_err(doing("kill gpuvm"))?;
        self.ends().map(drop)
    }

    fn ends(&mut self) -> Result<Ended, String> {
        let status = self.child.take().ok_or("it doesn't run")?.wait().map_err(doing("wait for gpuvm"))?;
        Ok(Ended {
            code: status.code(),
            told: fs::read_to_string(self.told()).map_err(doing("read what gpuvm told"))?,
        })
    }

    /// Asks the kernel for gpuvm's memory in KiB and its open files.
    fn uses(&self) -> Result<(i64, i64), String> {
        let folder = format!("/proc/{}", self.pid()?);
        let status = fs::read_to_string(format!("{folder}/status")).map_err(doing(&folder))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.trim().strip_suffix(" kB")?.parse().ok()).ok_or("no VmRSS")?;
        let files = super::snapshot::names(&Path::new(&folder).join("fd")).len();
        Ok((rss, i64::try_from(files).map_err(doing("count files"))?))
    }

    fn report(&self) -> Result<Report, String> {
        let path = self.folder.join("report.html");
        let text = fs::read_to_string(&path).map_err(doing(&path.display().to_string()))?;
        let inside = |begin: &str, end: &str| {
            let inside = text.split_once("<body").and_then(|(_, body)| body.split_once(begin));
            let inside = inside.and_then(|(_, rest)| rest.split_once(end)).map(|(inside, _)| shown(inside));
            inside.ok_or_else(|| format!("no {begin} in {}", path.display()))
        };
        Ok(Report { heading: inside("<h1", "</h1>")?, verdict: inside("<section", "</section>")? })
    }
}

impl Drop for Soak {
    /// Ends what a scenario that failed left running, so that the next one finds the host free.
    fn drop(&mut self) {
        if let (Ok(pid), Some(mut child)) = (self.pid(), self.child.take()) {
            kill(pid, Signal::SIGTERM).ok();
            child.wait().ok();
        }
    }
}

/// Takes the tags out of HTML.
fn shown(html: &str) -> String {
    let mut text = String::new();
    for (number, part) in html.split('<').enumerate() {
        let part = part.split_once('>').map_or(if number == 0 { "" } else { part }, |(_, text)| text);
        text.push_str(part);
    }
    text.replace("&#x27;", "'").replace("&quot;", "\"").replace("&amp;", "&")
}

fn is_healthy(cycle: &Value) -> Outcome {
    let devices = cycle["devices"].as_array().map_or(&[][..], Vec::as_slice);
    let well = devices.len() == 2
        && devices.iter().all(|device| device["verdict"] == "healthy" && device["drift"].is_null())
        && cycle["faults"].is_null()
        && cycle["job"]["exit"] == 0;
    ensure(well, || format!("not healthy: {cycle}"))
}

fn device<'a>(cycle: &'a Value, bdf: &str) -> Result<&'a Value, String> {
    let mut devices = cycle["devices"].as_array().into_iter().flatten();
    devices.find(|device| device["bdf"] == bdf).ok_or_else(|| format!("{bdf} isn't in {cycle}"))
}

fn grows_little(by: &str, early: (i64, i64), late: (i64, i64)) -> Outcome {
    let more = (late.0 - early.0, late.1 - early.1);
    let known = early.0 > 0 && early.1 > 0 && late.0 > 0 && late.1 > 0;
    ensure(known && more.0 <= MORE.0 && more.1 <= MORE.1, || {
        format!("memory in KiB and open files {by}: {early:?}, and {late:?} later")
    })
}
