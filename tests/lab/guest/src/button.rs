//! The ACPI power button, as the kernel's input devices show it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::system::load_modules;

/// `struct input_event` on 64 bits: two words of time, type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const STEP_MS: u16 = 1000;

/// Waits for `time`; true if the power button ended it early. `ready` is called once the button is listened to: whoever presses it before
/// may not be heard.
pub(crate) fn linger(time: Duration, ignore: bool, ready: impl FnOnce()) -> Result<bool, String> {
    if ignore {
        ready();
        sleep(time);
        return Ok(false);
    }
    let start = Instant::now();
    let inputs = load_modules("button").and_then(|()| load_modules("evdev")).and_then(|()| open_inputs());
    ready();
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(error) => {
            sleep(time);
            return Err(error);
        }
    };
    while start.elapsed() < time {
        if pressed(&inputs)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_inputs() -> Result<Vec<File>, String> {
    let entries = fs::read_dir("/dev/input").map_err(|error| format!("/dev/input: {error}"))?;
    let events = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
    let files: Vec<File> = events.filter_map(|entry| File::open(entry.path()).ok()).collect();
    if files.is_empty() { Err("/dev/input: no event devices".into()) } else { Ok(files) }
}

/// Waits a second at most for an event that says "power".
fn pressed(inputs: &[File]) -> Result<bool, String> {
    let mut fds: Vec<PollFd> =
        inputs.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::from(STEP_MS)).map_err(|error| format!("poll: {error}"))?;
    let ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
    for (mut file, _) in inputs.iter().zip(ready).filter(|(_, ready)| *ready) {
        let mut bytes = [0; EVENT * 16];
        let count = file.read(&mut bytes).map_err(|error| format!("/dev/input: {error}"))?;
        if bytes[..count].chunks_exact(EVENT).any(is_power_press) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an input event is the power key going down.
fn is_power_press(event: &[u8]) -> bool {
    let wanted = [EV_KEY.to_ne_bytes(), KEY_POWER.to_ne_bytes()].concat();
    event.get(16..20) == Some(&wanted[..]) && event.get(20..24) == Some(&1i32.to_ne_bytes()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        [&[0u8; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_press(&event(EV_KEY, 28, 1)));
        assert!(!is_power_press(&event(0, 0, 0)));
        assert!(!is_power_press(&[]));
    }
}
