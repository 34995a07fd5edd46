//! The few parts of QEMU's command line that the fake goes by; all else is recorded and ignored.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// `-S`.
    pub(crate) paused: bool,
    /// `-version`.
    pub(crate) version: bool,
    /// `-no-shutdown` or `-action shutdown=pause`: a shutdown stops the machine and leaves the program.
    pub(crate) stay: bool,
    /// `-no-reboot` or `-action reboot=shutdown`: a reboot of the guest is the end of the program.
    pub(crate) no_reboot: bool,
    /// The first number of `-smp`.
    pub(crate) smp: Option<u32>,
    /// The listener that `-mon ...,mode=control` names.
    pub(crate) monitor: Option<Listen>,
    /// The listener that `-serial chardev:ID` or an isa-serial device names.
    pub(crate) console: Option<Listen>,
}

/// A chardev of type socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// A socket that listens already.
    Fd(RawFd),
    /// A path to listen at.
    Path(PathBuf),
    /// A socket that is connected already: it has no `server=on`.
    Connected(RawFd),
}

type Keys = BTreeMap<String, String>;

impl Args {
    /// Reads a command line, the program first.
    pub(crate) fn parse(argv: &[OsString]) -> Result<Self, String> {
        let words: Vec<String> = argv.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        let mut args = Self::default();
        let (mut chardevs, mut monitor, mut console) = (BTreeMap::new(), None, None);
        for (at, word) in words.iter().enumerate() {
            let value = || {
                words.get(at + 1).map(String::as_str).ok_or_else(|| format!("{word}: requires an argument"))
            };
            match word.trim_start_matches("--").trim_start_matches('-') {
                _ if !word.starts_with('-') => {}
                "S" => args.paused = true,
                "version" => args.version = true,
                "no-shutdown" => args.stay = true,
                "no-reboot" => args.no_reboot = true,
                "action" => {
                    let actions = keys(value()?, "");
                    args.stay |= actions.get("shutdown").is_some_and(|what| what == "pause");
                    args.no_reboot |= actions.get("reboot").is_some_and(|what| what == "shutdown");
                }
                "smp" => args.smp = cpus(&keys(value()?, "cpus")),
                "chardev" => {
                    let chardev = keys(value()?, "backend");
                    let id = chardev.get("id").cloned().ok_or("chardev: no id specified")?;
                    chardevs.insert(id, chardev);
                }
                "mon" => {
                    let mon = keys(value()?, "chardev");
                    if mon.get("mode").is_some_and(|mode| mode == "control") {
                        monitor = mon.get("chardev").cloned();
                    }
                }
                "serial" => console = value()?.strip_prefix("chardev:").map(str::to_owned).or(console),
                "device" => console = serial_chardev(value()?).or(console),
                _ => {}
            }
        }
        let listen = |id: Option<String>| id.map(|id| listener(&id, chardevs.get(&id))).transpose();
        args.monitor = listen(monitor)?;
        args.console = listen(console)?;
        Ok(args)
    }
}

/// The chardev of a device if it is an isa-serial one, in either form that QEMU takes.
fn serial_chardev(device: &str) -> Option<String> {
    let (driver, chardev) = if device.starts_with('{') {
        let value: Value = serde_json::from_str(device).ok()?;
        let text = |key| value.get(key).and_then(Value::as_str).map(str::to_owned);
        (text("driver"), text("chardev"))
    } else {
        let keys = keys(device, "driver");
        (keys.get("driver").cloned(), keys.get("chardev").cloned())
    };
    chardev.filter(|_| driver.as_deref() == Some("isa-serial"))
}

fn listener(id: &str, chardev: Option<&Keys>) -> Result<Listen, String> {
    let chardev = chardev.ok_or_else(|| format!("chardev \"{id}\" not found"))?;
    if chardev.get("backend").is_none_or(|backend| backend != "socket") {
        return Err(format!("chardev \"{id}\": the fake knows sockets only"));
    }
    let listens = chardev.get("server").is_some_and(|on| on == "on");
    match (chardev.get("fd"), chardev.get("path")) {
        (Some(fd), None) => {
            let number = fd.parse().map_err(|_| format!("chardev \"{id}\": bad fd '{fd}'"))?;
            Ok(if listens { Listen::Fd(number) } else { Listen::Connected(number) })
        }
        (None, Some(_)) if !listens => Err(format!("chardev \"{id}\": the fake connects to no path")),
        (None, Some(path)) => Ok(Listen::Path(path.into())),
        _ => Err(format!("chardev \"{id}\": one of fd and path is needed")),
    }
}

fn cpus(smp: &Keys) -> Option<u32> {
    smp.get("cpus").and_then(|count| count.parse().ok())
}

/// QEMU's `key=value` lists: a doubled comma is one in the value, and the first item may be a bare value for `implied`.
fn keys(text: &str, implied: &str) -> Keys {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_some() => push(&mut items, ','),
            ',' => items.push(String::new()),
            c => push(&mut items, c),
        }
    }
    let split = |(at, item): (usize, String)| match item.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None if at == 0 => (implied.to_owned(), item),
        None => (item, "on".to_owned()),
    };
    items.into_iter().enumerate().map(split).collect()
}

fn push(items: &mut [String], c: char) {
    if let Some(item) = items.last_mut() {
        item.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_usual_command_line_is_understood() {
        let args = parse(
            "qemu -S -smp 4,sockets=1 -chardev socket,id=mon,fd=7,server=on,wait=off -mon chardev=mon,mode=control \
             -chardev socket,id=con,path=/x,,y,server=on,wait=off -device {\"driver\":\"isa-serial\",\"chardev\":\"con\"} -no-shutdown",
        );
        let expected = Args {
            paused: true,
            version: false,
            stay: true,
            no_reboot: false,
            smp: Some(4),
            monitor: Some(Listen::Fd(7)),
            console: Some(Listen::Path("/x,y".into())),
        };
        assert_eq!(args.unwrap(), expected);
    }

    #[rstest]
    #[case("qemu -action reboot=shutdown", Args { no_reboot: true, ..Args::default() })]
    #[case("qemu -smp sockets=1,cpus=3 -action shutdown=pause", Args { smp: Some(3), stay: true, ..Args::default() })]
    #[case("qemu -chardev socket,id=c,fd=4,server=on -serial chardev:c", Args { console: Some(Listen::Fd(4)), ..Args::default() })]
    #[case("qemu -chardev socket,id=c,fd=4 -serial chardev:c", Args { console: Some(Listen::Connected(4)), ..Args::default() })]
    #[case("qemu -chardev socket,id=c,fd=4,server=on -device isa-serial,chardev=c", Args { console: Some(Listen::Fd(4)), ..Args::default() })]
    #[case("qemu -device virtio-rng-pci,chardev=c -mon chardev=m,mode=readline --version", Args { version: true, ..Args::default() })]
    fn other_forms_too(#[case] line: &str, #[case] expected: Args) {
        assert_eq!(parse(line).unwrap(), expected);
    }

    #[rstest]
    #[case("qemu -mon chardev=m,mode=control", "chardev \"m\" not found")]
    #[case(
        "qemu -chardev socket,id=m,server=on -mon m,mode=control",
        "chardev \"m\": one of fd and path is needed"
    )]
    #[case("qemu -chardev socket,id=m,fd=x,server=on -mon m,mode=control", "chardev \"m\": bad fd 'x'")]
    #[case("qemu -chardev null,id=m -mon m,mode=control", "chardev \"m\": the fake knows sockets only")]
    #[case("qemu -chardev null", "chardev: no id specified")]
    #[case("qemu -chardev", "-chardev: requires an argument")]
    fn mistakes_are_told(#[case] line: &str, #[case] text: &str) {
        assert_eq!(parse(line).unwrap_err(), text);
    }
}
