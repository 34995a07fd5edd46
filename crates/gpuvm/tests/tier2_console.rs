//! Tier 2: people at a guest's serial port, in terminals that tmux holds, and pictures of its display.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod machine;

use std::collections::HashMap;
use std::fs::{self, File};
use std::time::Duration;

use machine::tmux::Tmux;
use machine::{Bench, LINGERS, pid, until, until_gone};
use serde_json::json;

#[test]
#[ignore = "tier 2: needs QEMU and tmux; scripts/test runs it"]
fn tier2_people_sit_at_a_guests_console_and_leave_it() {
    let bench = Bench::new();
    bench.linux("linux", "");
    let up = bench.up_linux("linux");
    let tmux = Tmux::start(&bench);
    tmux.types("first", &format!("stty -g > '{}'", bench.path("before").display()));
    tmux.sits_down("first", "");
    // What the guest has said before.
    tmux.until("first", LINGERS);
    tmux.types("first", "hello \u{e4}");
    tmux.until("first", "gpuvm-guest: heard \"hello \u{e4}\"");

    // Somebody else, who sees nothing of before, and what both type from now on.
    tmux.sits_down("second", "--scrollback 0");
    tmux.types("second", "uptime");
    for session in ["first", "second"] {
        tmux.until(session, "gpuvm-guest: up ");
    }
    assert!(!tmux.shows("second").contains(LINGERS), "{}", tmux.shows("second"));
    let watched = bench.path("watched");
    let mut watcher = bench.command(&["console", "linux"]);
    let mut watcher = watcher.stdout(File::create(&watched).unwrap()).spawn().unwrap();

    // A key that would end a program is the guest's; the one that leaves isn't.
    tmux.does(&["send-keys", "-t", "first", "C-c"]);
    tmux.types("first", "still here");
    tmux.until("second", "gpuvm-guest: heard \"still here\"");
    tmux.does(&["send-keys", "-t", "first", "C-]"]);
    tmux.until("first", "gpuvm: left the console; VM linux goes on");
    tmux.types("first", &format!("echo left with $?; stty -g > '{}'", bench.path("after").display()));
    tmux.until("first", "left with 0");
    until("a terminal as it was", || {
        let settings = |name| fs::read_to_string(bench.path(name)).unwrap_or_default();
        !settings("after").is_empty() && settings("before") == settings("after")
    });
    // A terminal that is closed costs nobody else anything.
    tmux.types("second", "one more");
    tmux.until("second", "gpuvm-guest: heard \"one more\"");
    tmux.does(&["kill-session", "-t", "second"]);
    tmux.sits_down("first", "");
    tmux.types("first", "and one more");
    tmux.until("first", "gpuvm-guest: heard \"and one more\"");

    assert_eq!(bench.gpuvm(&["down", "linux"]).code, 0);
    tmux.until("first", "gpuvm: the console of VM linux has ended");
    assert!(watcher.wait().unwrap().success());
    let watched = fs::read_to_string(&watched).unwrap();
    assert!(watched.contains("and one more") && watched.contains("gpuvm-guest: power button"), "{watched}");
    until_gone(pid(&up["supervisor"]));
    bench.assert_nothing_left();
}

/// Somebody who scrolls back in a terminal stops reading for longer than any line of a protocol may take.
#[test]
#[ignore = "tier 2: needs QEMU and tmux; scripts/test runs it"]
fn tier2_a_terminal_that_stands_still_for_a_while_misses_nothing() {
    const LINES: usize = 150;
    let bench = Bench::new();
    bench.linux("linux", "");
    bench.up_linux("linux");
    let watched = bench.path("watched");
    let mut reader = bench.command(&["console", "linux", "--scrollback", "0"]);
    let mut reader = reader.stdout(File::create(&watched).unwrap()).spawn().unwrap();
    let tmux = Tmux::start(&bench);
    tmux.sits_down("first", "--scrollback 0");
    tmux.types("first", "begin");
    until("the beginning", || fs::read_to_string(&watched).unwrap().contains("heard \"begin\""));
    let process = i32::try_from(reader.id()).unwrap();
    machine::send(process, gpuvm_sys::process::Signal::SIGSTOP);
    for number in 0..LINES {
        tmux.types("first", &format!("line {number}"));
    }
    bench.until_said("linux", &format!("heard \"line {}\"", LINES - 1), 1);
    std::thread::sleep(Duration::from_secs(6));
    machine::send(process, gpuvm_sys::process::Signal::SIGCONT);
    until("all lines", || {
        let seen = fs::read_to_string(&watched).unwrap();
        (0..LINES).all(|number| seen.matches(&format!("heard \"line {number}\"")).count() == 1)
    });
    assert_eq!(bench.gpuvm(&["down", "linux", "--force"]).code, 0);
    assert!(reader.wait().unwrap().success());
}

/// A decoded picture.
struct Picture {
    width: u32,
    height: u32,
    /// Three bytes each.
    pixels: Vec<u8>,
}

impl Picture {
    fn read(bench: &Bench, name: &str) -> Self {
        let file = std::io::BufReader::new(File::open(bench.path(name)).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        Self { width: info.width, height: info.height, pixels }
    }

    /// How many pixels there are of each colour.
    fn colours(&self) -> HashMap<&[u8], usize> {
        let mut colours = HashMap::new();
        self.pixels.chunks_exact(3).for_each(|pixel| *colours.entry(pixel).or_default() += 1);
        colours
    }
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_screenshot_shows_the_guests_display() {
    let bench = Bench::new();
    bench.linux_with_display("linux");
    bench.up_linux("linux");
    let told = bench.json(&["screenshot", "linux", "screen.png"]);
    let picture = Picture::read(&bench, "screen.png");
    assert_eq!((&told["width"], &told["height"]), (&json!(picture.width), &json!(picture.height)));
    assert_eq!((picture.width, picture.height), (720, 400));
    // A text console: black, and the grey of some thousand letters, of which there are 80 in each of 25 lines.
    let colours = picture.colours();
    let (black, grey) = (colours[&[0, 0, 0][..]], colours.get(&[168, 168, 168][..]).copied().unwrap_or(0));
    assert!(black > 150_000 && grey > 8_000, "{colours:?}");
    // Nothing of it stays in the VM's folder, and another one replaces it.
    let left = fs::read_dir(bench.path("run/vm/linux")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.contains("screenshot")), "{left:?}");
    let text = bench.says(&["screenshot", "linux", "screen.png"]);
    assert_eq!(text, "screen.png: 720 x 400 pixels\n");
    assert_eq!(bench.gpuvm(&["down", "linux", "--force"]).code, 0);
    bench.assert_nothing_left();
}
