//! Why a guest stands still: STOP carries no reason, and QEMU's word for its state is one for all errors that it can't go on from.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use gpuvm_core::lifecycle::{Event, Fault};
use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::{Heard, Snapshot, judge};
use gpuvm_host::root::HostRoot;
use gpuvm_host::snapshot;
use gpuvm_qmp::{Error, Qmp};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::launch::{COMMAND, Words};

/// How long a look at the devices may take: each answers in microseconds, or not at all.
const LOOK: Duration = Duration::from_secs(2);

/// What a fault is told from.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) root: HostRoot,
    pub(crate) baselines: BTreeMap<Bdf, Snapshot>,
    pub(crate) words: Words,
}

/// Asks why the guest stands still. Nothing where it doesn't, or where QEMU is on its way out.
///
/// # Errors
/// Returns why that isn't known.
pub(crate) async fn why(qmp: Qmp, evidence: Evidence) -> Result<Option<Event>, Error> {
    match qmp.query_status(COMMAND).await {
        Ok(status) if status.status == "internal-error" => Ok(Some(Event::Failed(fault(evidence).await))),
        Ok(status) if status.running => Ok(None),
        Ok(status) => Ok(Some(Event::Halted { status: status.status })),
        // That it ends is told by its exit.
        Err(Error::Closed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks at QEMU's words and at the devices, on a thread that nobody waits for longer than [`LOOK`]: the read of a device that doesn't answer may
/// not come back.
async fn fault(evidence: Evidence) -> Fault {
    let words = evidence.words.clone();
    let (tell, told) = oneshot::channel();
    let look = move || {
        // Whoever asked may have stopped waiting.
        let _ = tell.send(tell_fault(&evidence));
    };
    let looked = match thread::Builder::new().name("look".to_owned()).spawn(look) {
        Ok(_) => timeout(LOOK, told).await.ok().and_then(Result::ok),
        Err(error) => {
            tracing::warn!("the devices are not looked at: {error}");
            None
        }
    };
    looked.unwrap_or_else(|| Fault::tell(&words.end(), &[]))
}

fn tell_fault(evidence: &Evidence) -> Fault {
    // What the kernel has said is for the verdict, which comes when QEMU is gone.
    let heard = Heard::Said(Vec::new());
    let look = |(bdf, before): (&Bdf, &Snapshot)| {
        judge(before, &snapshot::take(&evidence.root, *bdf), &heard).findings
    };
    let findings: Vec<_> = evidence.baselines.iter().flat_map(look).collect();
    Fault::tell(&evidence.words.end(), &findings)
}
