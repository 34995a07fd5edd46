//! `gpuvm soak`: the same VM again and again, and how its devices come back.

mod args;
mod begin;
mod book;
mod compare;
mod course;
mod guest;
mod machine;
mod progress;
mod report;
mod settings;
mod summary;
mod texts;

use gpuvm_run::Signals;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;

pub(crate) use args::SoakArgs;

use args::{RunArgs, SoakCommand};
use begin::Begun;
use course::run as run_course;
use guest::Guest;
use progress::Progress;

pub(super) fn run(cli: &Cli, args: &SoakArgs) -> Result<Exit, Failure> {
    match &args.command {
        Some(SoakCommand::Report(args)) => report::run(cli, args),
        Some(SoakCommand::Compare(args)) => compare::run(cli, args),
        None => soak(cli, &args.run),
    }
}

fn soak(cli: &Cli, args: &RunArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let mut progress = Progress::new(cli);
    // Asks QEMU what it is, which must not be done inside a runtime.
    let mut begun = match args.resume {
        true => begin::again(cli, args, &mut progress)?,
        false => begin::anew(cli, args, &mut progress)?,
    };
    if !begun.book.is_over() {
        // The timer and the signals live in a runtime on this thread: QEMU dies with the thread that starts it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::one(Exit::Internal, format!("start tokio: {error}"), None))?;
        runtime.block_on(cycles(cli, &mut begun, &mut progress))?;
    }
    progress.clear();
    let exit = summary::exit(begun.book.headway.standing());
    match report::write_of(begun.book.record.folder()) {
        Ok(path) if !cli.json => summary::tell(&begun.book, &path),
        Ok(_) => {}
        // What the cycles came to matters more.
        Err(failure) if exit != Exit::Ok => failure.print(),
        Err(failure) => return Err(failure),
    }
    Ok(exit)
}

async fn cycles(cli: &Cli, begun: &mut Begun, progress: &mut Progress) -> Result<(), Failure> {
    // Caught before anything is changed, so that no signal can end gpuvm between a change and its undoing.
    let signals = Signals::catch()
        .map_err(|error| Failure::one(Exit::Internal, format!("catch signals: {error}"), None))?;
    let mut guest = Guest::new(cli, begun, signals)?;
    run_course(&mut begun.book, &mut guest, progress).await
}
