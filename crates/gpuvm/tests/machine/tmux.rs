//! Terminals that tmux holds.

use std::process::{Command, Output};

use super::{Bench, until};

/// A tmux of our own, with a shell in each of its two sessions, `first` and `second`; it ends with this.
pub(crate) struct Tmux<'a> {
    bench: &'a Bench,
}

impl<'a> Tmux<'a> {
    pub(crate) fn start(bench: &'a Bench) -> Self {
        let tmux = Self { bench };
        let shell = "exec env -u ENV PS1='$ ' sh";
        tmux.does(&["-f", "/dev/null", "new-session", "-d", "-s", "first", "-x", "150", "-y", "50", shell]);
        tmux.does(&["new-session", "-d", "-s", "second", "-x", "150", "-y", "50", shell]);
        tmux
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new("tmux").arg("-S").arg(self.bench.path("tmux")).args(words).output().unwrap()
    }

    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line, and the key that ends it.
    pub(crate) fn types(&self, session: &str, line: &str) {
        self.does(&["send-keys", "-t", session, "-l", line]);
        self.does(&["send-keys", "-t", session, "Enter"]);
    }

    /// Has its shell sit down at a VM's console.
    pub(crate) fn sits_down(&self, session: &str, words: &str) {
        let gpuvm = env!("CARGO_BIN_EXE_gpuvm");
        let prefix = self.bench.path("").display().to_string();
        self.types(session, &format!("'{gpuvm}' --prefix '{prefix}' console linux {words}"));
        self.until(session, "Ctrl-] leaves it, and the guest goes on");
    }

    /// What its terminal shows, with what has left it at the top; lines that were broken are whole.
    pub(crate) fn shows(&self, session: &str) -> String {
        self.does(&["capture-pane", "-p", "-J", "-S", "-", "-t", session])
    }

    pub(crate) fn until(&self, session: &str, what: &str) {
        until(what, || self.shows(session).contains(what));
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}
