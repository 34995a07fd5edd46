//! The sign of life of a cycle that takes its time.
//!
//! It comes from a thread of its own: gpuvm's own is held up by the very resets that one would like to know of.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether there is something to say.
const TICK: Duration = Duration::from_secs(1);
/// How often a line is written where none can be written over.
const LINE: Duration = Duration::from_secs(60);

/// How it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As a line that is written over, each second.
    WrittenOver,
    /// As a line a minute.
    Lines,
}

/// What is told of the cycle that runs.
pub(super) struct Beat(Mutex<State>);

struct State {
    way: Way,
    out: Box<dyn Write + Send>,
    /// The cycle that runs.
    cycle: Option<Cycle>,
    shown: Shown,
}

/// Whether the cursor stands behind the line that is written over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    Live,
}

struct Cycle {
    text: String,
    begun: Instant,
    /// What is done now, and since when.
    part: &'static str,
    since: Instant,
    /// The lines that were written of it.
    lines: u32,
}

impl Beat {
    pub(super) fn new(way: Way, out: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(State { way, out, cycle: None, shown: Shown::Nothing }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic has left there are whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cycle begins.
    pub(super) fn begins(&self, text: String) {
        let now = Instant::now();
        let mut state = self.lock();
        state.cycle = Some(Cycle { text, begun: now, part: "planning", since: now, lines: 0 });
        if state.way == Way::WrittenOver {
            state.show(now);
        }
    }

    /// A part of it begins.
    pub(super) fn is_at(&self, part: &'static str) {
        if let Some(cycle) = &mut self.lock().cycle
            && cycle.part != part
        {
            (cycle.part, cycle.since) = (part, Instant::now());
        }
    }

    /// It is over.
    pub(super) fn ends(&self) {
        self.lock().cycle = None;
    }

    /// Nothing runs any more, and nothing is shown.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.cycle = None;
        state.clear();
    }

    /// Has something written that stays.
    pub(super) fn between(&self, write: impl FnOnce()) {
        let mut state = self.lock();
        state.clear();
        write();
    }

    fn tick(&self, now: Instant) {
        self.lock().show(now);
    }
}

impl State {
    /// Shows what there is to be shown now. Nothing can be done about a terminal that is gone.
    fn show(&mut self, now: Instant) {
        let Some(cycle) = &mut self.cycle else { return };
        match self.way {
            Way::WrittenOver => {
                // Without wrapping, so that a narrow terminal shows its beginning and it can be written over.
                let line = format!("\r\x1b[2K\x1b[?7l{}\x1b[?7h", cycle.told(now));
                self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()).ok();
                self.shown = Shown::Live;
            }
            Way::Lines => {
                let due = LINE * (cycle.lines + 1);
                if now.saturating_duration_since(cycle.begun) >= due {
                    cycle.lines += 1;
                    writeln!(self.out, "gpuvm: {}", cycle.told(now)).ok();
                }
            }
        }
    }

    fn clear(&mut self) {
        if self.shown == Shown::Live {
            self.out.write_all(b"\r\x1b[2K").and_then(|()| self.out.flush()).ok();
            self.shown = Shown::Nothing;
        }
    }
}

impl Cycle {
    /// Spells it; what has lasted for a moment only isn't told.
    fn told(&self, now: Instant) -> String {
        match now.saturating_duration_since(self.since).as_secs() {
            0..=1 => self.text.clone(),
            seconds => format!("{} \u{b7} {} for {seconds} s", self.text, self.part),
        }
    }
}

/// The thread that tells, until this ends.
pub(super) struct Beating {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    beat: Arc<Beat>,
}

impl Beating {
    /// Starts it; nothing where there can be no thread, without which a soak runs as well.
    pub(super) fn start(beat: &Arc<Beat>) -> Option<Self> {
        Self::at(TICK, beat)
    }

    fn at(tick: Duration, beat: &Arc<Beat>) -> Option<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let shared = Arc::clone(beat);
        let ticks = move || {
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                shared.tick(Instant::now());
            }
        };
        let thread = std::thread::Builder::new().name("beat".to_owned()).spawn(ticks).ok()?;
        Some(Self { stop: Some(stop), thread: Some(thread), beat: Arc::clone(beat) })
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It only writes, and has panicked at worst.
        self.thread.take().and_then(|thread| thread.join().ok());
        self.beat.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Screen {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn where_no_line_is_written_over_a_long_cycle_is_told_once_a_minute_with_what_it_waits_for() {
        let screen = Screen::default();
        let beat = Beat::new(Way::Lines, Box::new(screen.clone()));
        beat.begins("cycle 1/9 clean".to_owned());
        beat.is_at("the guest runs");
        let begun = Instant::now();
        for second in [1, 30, 59, 61, 62, 119, 121] {
            beat.tick(begun + Duration::from_secs(second));
        }
        beat.ends();
        beat.tick(begun + Duration::from_secs(500));
        let text = screen.text();
        let told: Vec<&str> = text.lines().collect();
        assert_eq!(told.len(), 2, "{text}");
        assert_eq!(told[0], "gpuvm: cycle 1/9 clean \u{b7} the guest runs for 61 s");
    }

    #[test]
    fn the_line_that_is_written_over_goes_on_by_itself_and_makes_room_for_what_stays() {
        let screen = Screen::default();
        let beat = Arc::new(Beat::new(Way::WrittenOver, Box::new(screen.clone())));
        let beating = Beating::at(Duration::from_millis(20), &beat).unwrap();
        beat.begins("cycle 1".to_owned());
        let begun = Instant::now();
        while screen.text().matches("cycle 1").count() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", screen.text());
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut screen_too = screen.clone();
        beat.between(|| screen_too.write_all(b"stays\n").unwrap());
        assert!(screen.text().contains("\r\x1b[2Kstays\n"));
        drop(beating);
        assert!(
            screen.text().ends_with("\x1b[2K") || screen.text().ends_with("stays\n"),
            "{:?}",
            screen.text()
        );
    }
}
