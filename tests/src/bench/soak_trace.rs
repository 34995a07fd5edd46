//! What `strace -f -ttt -T -y` wrote down of a soak, and what the kernel said meanwhile, as events on one clock.
//!
//! Nothing here knows gpuvm's own code: paths, system calls and QEMU's command line are all it goes by.

use std::collections::BTreeMap;

/// A time in µs since 1970-01-01 UTC.
pub type Micros = i64;

/// A system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The thread.
    pub pid: u32,
    /// When it was entered.
    pub from: Micros,
    /// When it came back.
    pub to: Micros,
    /// Its name.
    pub name: String,
    /// Its arguments, as strace spells them.
    pub args: String,
}

/// The end of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The thread.
    pub pid: u32,
    /// When.
    pub at: Micros,
}

/// A trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The calls, in the order in which they were entered.
    pub calls: Vec<Call>,
    /// The ends.
    pub gone: Vec<Gone>,
}

impl Trace {
    /// Reads a log of `strace -f -ttt -T`.
    ///
    /// # Errors
    /// The line that makes no sense.
    pub fn parse(log: &str) -> Result<Self, String> {
        let mut trace = Self::default();
        let mut open: BTreeMap<u32, Call> = BTreeMap::new();
        for line in log.lines() {
            let told = || format!("not a line of strace -f -ttt -T: {line}");
            let (pid, at, rest) = head(line).ok_or_else(told)?;
            if rest.starts_with("+++ ") {
                trace.gone.push(Gone { pid, at });
            } else if rest.starts_with("--- ") || rest.starts_with("strace: ") {
                // A signal.
            } else if let Some(resumed) = rest.strip_prefix("<... ") {
                let (_, args) = resumed.split_once(" resumed>").ok_or_else(told)?;
                let mut call = open.remove(&pid).ok_or_else(told)?;
                call.args.push_str(args);
                trace.calls.push(call.back_after(duration(args)));
            } else {
                let (name, args) = rest.split_once('(').ok_or_else(told)?;
                let call = Call { pid, from: at, to: at, name: name.to_owned(), args: args.to_owned() };
                match args.strip_suffix(" <unfinished ...>") {
                    Some(args) => drop(open.insert(pid, Call { args: args.to_owned(), ..call })),
                    None => trace.calls.push(call.back_after(duration(args))),
                }
            }
        }
        trace.calls.sort_by_key(|call| call.from);
        Ok(trace)
    }
}

impl Call {
    fn back_after(self, duration: Micros) -> Self {
        Self { to: self.from + duration, ..self }
    }

    /// The file that its first argument names (`-y`).
    pub fn path(&self) -> Option<&str> {
        let (_, rest) = self.args.split_once('<')?;
        rest.split_once('>').map(|(path, _)| path)
    }
}

/// `PID  SECONDS.MICROS REST`.
fn head(line: &str) -> Option<(u32, Micros, &str)> {
    let (pid, rest) = line.trim_start().split_once(' ')?;
    let (at, rest) = rest.trim_start().split_once(' ')?;
    Some((pid.parse().ok()?, micros(at)?, rest))
}

/// `<SECONDS.MICROS>` at the end of a line; nothing for a call that never comes back.
fn duration(rest: &str) -> Micros {
    let last = rest.rsplit_once('<').and_then(|(_, last)| last.trim_end().strip_suffix('>'));
    last.and_then(micros).unwrap_or(0)
}

/// Reads `SECONDS.MICROS`, with six digits at most after the point.
pub fn micros(text: &str) -> Option<Micros> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = fraction.get(..fraction.len().min(6))?;
    let scale = 10_i64.pow(u32::try_from(6 - digits.len()).ok()?);
    let (seconds, fraction): (i64, i64) = (seconds.trim().parse().ok()?, digits.parse().ok()?);
    Some(seconds * 1_000_000 + fraction * scale)
}

/// A line of the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When.
    pub at: Micros,
    /// What.
    pub text: String,
}

/// What a line of the log begins with by which its clock is compared with the trace's: `soak-overhead: clock SECONDS.MICROS`.
const MARK: &str = "soak-overhead: clock ";
/// What two such comparisons may differ by.
const DRIFT: Micros = 20_000;

/// Reads `dmesg --raw`, on the trace's clock.
///
/// # Errors
/// That the two marks, one from before and one from after, aren't there, or don't agree.
pub fn kernel_log(log: &str) -> Result<Vec<Said>, String> {
    let stamped = |line: &str| {
        let (stamp, text) = line.split_once('[')?.1.split_once("] ")?;
        Some(Said { at: micros(stamp)?, text: text.to_owned() })
    };
    let mut said: Vec<Said> = log.lines().filter_map(stamped).collect();
    let offset = |said: &Said| Some(micros(said.text.strip_prefix(MARK)?)? - said.at);
    let offsets: Vec<Micros> = said.iter().filter_map(offset).collect();
    let [first, .., last] = offsets.as_slice() else {
        return Err(format!("the kernel's log needs `{MARK}` from before and from after"));
    };
    if (first - last).abs() > DRIFT {
        return Err(format!("the kernel's clock went {} µs away from the trace's", last - first));
    }
    said.iter_mut().for_each(|said| said.at += i64::midpoint(*first, *last));
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_from_their_lines() {
        let log = "\
471   100.000001 write(2</dev/null>, \"a <b>\", 5) = 5 <0.000122>
481   100.100000 execve(\"/usr/bin/qemu\", [\"qemu\", \"-name\", \"guest=x\"], 0x1 /* 2 vars */ <unfinished ...>
471   100.100500 wait4(481, NULL, WNOHANG, NULL) = 0 <0.000300>
481   100.200000 <... execve resumed>) = 0 <0.100000>
471   100.250000 --- SIGCHLD {si_signo=SIGCHLD} ---
481   100.300000 exit_group(0)   = ?
481   100.400000 +++ exited with 0 +++
";
        let trace = Trace::parse(log).unwrap();
        let calls: Vec<_> = trace.calls.iter().map(|c| (c.pid, c.name.as_str(), c.from, c.to)).collect();
        let expected = [
            (471, "write", 100_000_001, 100_000_123),
            (481, "execve", 100_100_000, 100_200_000),
            (471, "wait4", 100_100_500, 100_100_800),
            (481, "exit_group", 100_300_000, 100_300_000),
        ];
        assert_eq!(calls, expected);
        assert_eq!(trace.calls[0].path(), Some("/dev/null"));
        assert!(trace.calls[1].args.contains("guest=x"));
        assert_eq!(trace.gone, [Gone { pid: 481, at: 100_400_000 }]);
    }

    #[test]
    fn what_is_no_trace_is_told() {
        for log in ["hello", "471 100.0 <... write resumed>) = 1 <0.1>", "471 100.0 nothing"] {
            assert!(Trace::parse(log).is_err(), "{log}");
        }
    }

    #[test]
    fn the_kernels_log_is_brought_to_the_traces_clock() {
        let log = "<6>[    5.000000] soak-overhead: clock 105.000010\n<6>[    6.500000] nvme\n<6>[   10.0] soak-overhead: clock 110.000030\n";
        let said = kernel_log(log).unwrap();
        assert_eq!(said[1], Said { at: 106_500_020, text: "nvme".into() });
        assert!(kernel_log(&log.replace("110.0", "110.1")).unwrap_err().contains("went"));
        assert!(kernel_log("<6>[ 5.0] soak-overhead: clock 105.0").is_err());
    }
}
