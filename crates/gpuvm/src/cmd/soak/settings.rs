//! What a soak was asked for: by the command line, and by the record that it goes on with.

use std::time::Duration;

use gpuvm_core::soak::{Mix, Ready, Settings};

use super::args::RunArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hints;

/// How long a guest may take to get ready, in seconds, where nothing else is asked for.
const READY_SECONDS: u64 = 300;

/// Makes the settings of a soak that begins.
pub(super) fn asked(args: &RunArgs, profile_text: &str) -> Result<Settings, Failure> {
    if args.expect.is_none() && !args.job && args.after.is_none() {
        let message = "nobody knows when the guest is ready: none of --expect, --job and --after is given";
        return Err(Failure::one(Exit::Usage, message, Some(hints::never_ready())));
    }
    if args.cycles.is_none() && args.time.is_none() {
        let message = "nobody knows when the soak is over: neither --cycles nor --for is given";
        return Err(Failure::one(Exit::Usage, message, None));
    }
    let timeout = args.ready_timeout.unwrap_or(Duration::from_secs(READY_SECONDS));
    let ready = Ready {
        expect: args.expect.clone(),
        job: args.job,
        after_ms: args.after.map_or(0, millis),
        timeout_seconds: timeout.as_secs(),
    };
    Ok(Settings {
        profile: args.profile().profile.display().to_string(),
        profile_text: profile_text.to_owned(),
        set: args.profile().set,
        cycles: args.cycles,
        seconds: args.time.map(|time| time.as_secs()),
        mix: args.mix.clone().unwrap_or_default(),
        ready,
        poll: args.poll.clone(),
        stop_on: args.stop_on.unwrap_or_default(),
        shutdown_timeout: args.shutdown_timeout,
    })
}

/// Makes the settings of a soak that goes on: as they were, but for what may be asked for anew. Returns also what can't be had, since
/// cycles of two kinds in one record would tell nothing.
pub(super) fn again(args: &RunArgs, profile_text: &str, was: Settings) -> Result<Settings, Vec<String>> {
    let mut differ = Vec::new();
    let mut hold = |what: &str, now: Option<String>, was: String| {
        if let Some(now) = now.filter(|now| *now != was) {
            differ.push(format!("{what} {was}, not {now}"));
        }
    };
    let seconds = |time: Duration| format!("{} s", time.as_secs());
    let or_none =
        |text: &Option<String>| text.as_ref().map_or("nothing".to_owned(), |text| format!("`{text}`"));
    let given = |text: &Option<String>| text.as_ref().map(|_| or_none(text));
    let set = |set: &[String]| if set.is_empty() { "nothing".to_owned() } else { set.join(" ") };
    let ready = &was.ready;
    hold("--set", (!args.profile().set.is_empty()).then(|| set(&args.profile().set)), set(&was.set));
    hold("--mix", args.mix.as_ref().map(Mix::to_string), was.mix.to_string());
    hold("--expect", given(&args.expect), or_none(&ready.expect));
    hold(
        "--job",
        args.job.then(|| "given".to_owned()),
        if ready.job { "given" } else { "not given" }.to_owned(),
    );
    hold("--after", args.after.map(|time| format!("{} ms", millis(time))), format!("{} ms", ready.after_ms));
    hold("--ready-timeout", args.ready_timeout.map(seconds), format!("{} s", ready.timeout_seconds));
    if profile_text != was.profile_text {
        differ.push("another text of the profile".to_owned());
    }
    if !differ.is_empty() {
        return Err(differ);
    }
    // Whoever names a new end means that one alone.
    let (cycles, seconds) = match (args.cycles, args.time) {
        (None, None) => (was.cycles, was.seconds),
        (cycles, time) => (cycles, time.map(|time| time.as_secs())),
    };
    Ok(Settings {
        profile: args.profile().profile.display().to_string(),
        cycles,
        seconds,
        poll: args.poll.clone().or(was.poll),
        stop_on: args.stop_on.unwrap_or(was.stop_on),
        shutdown_timeout: args.shutdown_timeout.or(was.shutdown_timeout),
        ..was
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
