//! What a soak was asked for: by the command line, and by the record that it goes on with.

use std::time::Duration;

use gpuvm_core::profile::VmName;
use gpuvm_core::soak::{Mix, Ready, Settings};

use super::args::RunArgs;
use super::texts;
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
pub(super) fn again(
    args: &RunArgs,
    profile_text: &str,
    (vm_was, vm): (&VmName, &VmName),
    was: Settings,
) -> Result<Settings, Vec<String>> {
    let mut differ = Vec::new();
    let mut hold = |what: &str, now: Option<String>, was: String| {
        if let Some(now) = now.filter(|now| *now != was) {
            differ.push(format!("{what} {was}, and now {now}"));
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
    if vm != vm_was {
        differ.push(format!("VM {vm_was}, and now VM {vm}"));
    }
    differ.extend(texts::differ(&was.profile_text, profile_text));
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use clap::Parser;
    use gpuvm_core::soak::StopOn;
    use rstest::rstest;

    use super::*;
    use crate::cmd::soak::SoakArgs;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        soak: SoakArgs,
    }

    fn args(words: &str) -> RunArgs {
        let words = ["soak", "vm.toml"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).unwrap().soak.run
    }

    fn was() -> Settings {
        asked(
            &args("--cycles 9 --mix clean:2,kill:1 --expect up: --after 500ms --set cpu.count=2 --poll true"),
            "text",
        )
        .unwrap()
    }

    #[test]
    fn what_is_not_asked_for_is_as_the_help_says() {
        let settings = asked(&args("--for 90s --job"), "text").unwrap();
        let ready = Ready { expect: None, job: true, after_ms: 0, timeout_seconds: 300 };
        assert_eq!((settings.ready, settings.seconds, settings.cycles), (ready, Some(90), None));
        assert_eq!((settings.mix.to_string(), settings.stop_on), ("clean:1".to_owned(), StopOn::Bad));
    }

    #[rstest]
    #[case::nothing("", |was: Settings| was)]
    #[case::the_same("--cycles 9 --mix kill:1,clean:2 --after 500ms --expect up:", |was: Settings| was)]
    #[case::more_cycles("--cycles 20", |was: Settings| Settings { cycles: Some(20), ..was })]
    #[case::a_time_instead_of_cycles("--for 1h", |was: Settings| Settings { cycles: None, seconds: Some(3600), ..was })]
    #[case::another_poll("--poll false", |was: Settings| Settings { poll: Some("false".to_owned()), ..was })]
    #[case::another_stop("--stop-on degraded", |was: Settings| Settings { stop_on: StopOn::Degraded, ..was })]
    #[case::another_patience("--shutdown-timeout 7", |was: Settings| Settings { shutdown_timeout: Some(7), ..was })]
    fn a_soak_goes_on_as_it_was_begun_but_for_what_may_change(
        #[case] words: &str,
        #[case] expected: fn(Settings) -> Settings,
    ) {
        let vm = VmName::new("vm1").unwrap();
        assert_eq!(again(&args(words), "text", (&vm, &vm), was()).unwrap(), expected(was()));
    }

    #[rstest]
    #[case::mix("--mix clean", "text", "--mix clean:2,kill:1, and now clean:1")]
    #[case::expect("--expect login:", "text", "--expect `up:`, and now `login:`")]
    #[case::job("--job", "text", "--job not given, and now given")]
    #[case::after("--after 1s", "text", "--after 500 ms, and now 1000 ms")]
    #[case::ready_timeout("--ready-timeout 1m", "text", "--ready-timeout 300 s, and now 60 s")]
    #[case::set("--set cpu.count=4", "text", "--set cpu.count=2, and now cpu.count=4")]
    #[case::text("", "another", "line 1 of the profile `text`, and now `another`")]
    fn what_would_make_other_cycles_is_refused(
        #[case] words: &str,
        #[case] text: &str,
        #[case] expected: &str,
    ) {
        let vm = VmName::new("vm1").unwrap();
        assert_eq!(again(&args(words), text, (&vm, &vm), was()).unwrap_err(), [expected]);
    }

    #[test]
    fn another_vm_is_told_with_both_names_and_the_line_that_names_it() {
        let [one, other] = ["vm1", "vm2"].map(|name| VmName::new(name).unwrap());
        let was = Settings { profile_text: "name = \"vm1\"\n".to_owned(), ..was() };
        let differ = again(&args(""), "name = \"vm2\"\n", (&one, &other), was).unwrap_err();
        let line = "line 1 of the profile `name = \"vm1\"`, and now `name = \"vm2\"`";
        assert_eq!(differ, ["VM vm1, and now VM vm2", line]);
    }
}
