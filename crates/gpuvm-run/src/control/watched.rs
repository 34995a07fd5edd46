//! An observer that tells the board before it tells another one.

use gpuvm_core::control::Told;
use gpuvm_core::lifecycle::{Halt, State};
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Judgement;
use gpuvm_host::places::Places;
use gpuvm_qmp::verbs::VcpuThread;
use serde_json::Value;

use super::{Arrival, Control};
use crate::report::{Note, Observer, Phase};

/// What of a run goes to a VM's control socket.
pub(crate) struct Watched<'a> {
    pub(crate) control: &'a mut Control,
    pub(crate) inner: &'a mut dyn Observer,
    pub(crate) places: &'a Places,
    pub(crate) vm: &'a VmName,
    pub(crate) arrival: Arrival,
}

impl Observer for Watched<'_> {
    fn phase(&mut self, phase: &Phase) {
        let board = &self.control.board;
        match phase {
            Phase::Running { pid, qemu } | Phase::Adopted { pid, qemu } => board.qemu(*pid, Some(qemu)),
            Phase::Rebooting { .. } | Phase::Relaunching { .. } => board.rebooted(),
            Phase::GivingBack => board.gives_back(),
            _ => {}
        }
        board.happened(Told::Phase { phase: phase.name().to_owned(), text: phase.to_string() });
        self.inner.phase(phase);
    }

    fn note(&mut self, note: &Note) {
        self.control.board.happened(Told::Note { text: note.0.clone() });
        self.inner.note(note);
    }

    fn state(&mut self, state: State, halt: Option<&Halt>) {
        self.control.board.life(state, halt);
        self.inner.state(state, halt);
    }

    fn reserved(&mut self) {
        self.control.board.log_to(&self.places.logs(self.vm).join("events.jsonl"), self.arrival);
        // A VM that can't be asked is run all the same: what it was started for is the guest.
        if let Err(error) = self.control.open(self.places, self.vm) {
            let folder = self.places.vm(self.vm);
            self.note(&Note(format!(
                "this VM can't be asked for anything: {}: {error}",
                folder.join(super::SOCKET).display()
            )));
        }
        self.inner.reserved();
    }

    fn started(&mut self, pid: i32) {
        self.control.board.qemu(pid, None);
        self.inner.started(pid);
    }

    fn threads(&mut self, threads: &[VcpuThread]) {
        self.control.board.threads(threads);
        self.inner.threads(threads);
    }

    fn judged(&mut self, bdf: Bdf, judgement: &Judgement) {
        self.control.board.judged(bdf, judgement);
        self.inner.judged(bdf, judgement);
    }

    fn qmp(&mut self, event: &gpuvm_qmp::Event) {
        let told = Told::Qmp { event: shortened(event.name.clone()), data: data_of(event) };
        self.control.board.happened(told);
        self.inner.qmp(event);
    }
}

/// What is kept of an event: QEMU's have some hundred bytes, and 200 are kept, ten of them in each status.
const MAX_EVENT: usize = 16 << 10;

fn shortened(mut name: String) -> String {
    name.truncate(name.floor_char_boundary(MAX_EVENT));
    name
}

/// Returns what an event says, or how much that is.
fn data_of(event: &gpuvm_qmp::Event) -> Value {
    match event.data.to_string().len() {
        length if length > MAX_EVENT => Value::String(format!("{length} bytes, which are left out")),
        _ => event.data.clone(),
    }
}
