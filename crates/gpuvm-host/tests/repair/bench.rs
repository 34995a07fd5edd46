//! The bench of these tests.

use std::collections::BTreeMap;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{Ladder, RepairPolicy, ladder};
use gpuvm_core::reset::{Method, Snapshot as Baseline};
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::repair::{Repaired, finish, repair};
use gpuvm_host::undo::undo_all;
use gpuvm_host::{HostError, facts, snapshot};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, PowerAttributes, Snapshot, gpu};

pub(crate) const BOOT: &str = "boot-1";
pub(crate) const PORT: &str = "0000:80:01.0";
pub(crate) const CARD: [&str; 2] = ["0000:81:00.0", "0000:81:00.1"];
pub(crate) const AUTOPROBE: &str = "/sys/bus/pci/drivers_autoprobe";

/// A card of two functions below a port, which a VM has taken from its drivers.
pub(crate) struct Bench {
    pub(crate) fake: FakeHost,
    pub(crate) kernel: Kernel,
    pub(crate) places: Places,
    pub(crate) vm: VmName,
    pub(crate) baselines: BTreeMap<Bdf, Baseline>,
    pub(crate) before: Snapshot,
}

/// What a kernel does with a device that it finds while `drivers_autoprobe` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It leaves it alone: Linux 6.19 and newer.
    Leaves,
    /// It gives it to its driver all the same.
    Probes,
}

impl Finding {
    pub(crate) fn of(self, fake: &FakeHost) {
        if self == Self::Probes {
            fake.probes_what_it_finds();
        }
    }
}

pub(crate) fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

pub(crate) fn driver(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(PowerAttributes { control: "auto", d3cold_allowed: Some("1") }, None)
    }

    /// Makes the card with these attributes, and with an override that somebody has set.
    pub(crate) fn with(power: PowerAttributes, set: Option<&str>) -> Self {
        let fake = FakeHost::new();
        let port = Some(PORT);
        fake.device(&FakeDevice { port, power, ..gpu(CARD[0], 7, 1) });
        let audio = FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..gpu(CARD[1], 8, 1) };
        fake.device(&FakeDevice { port, ..audio });
        // A bus reset that never was one isn't put back: see reset_methods.rs.
        for at in CARD {
            fake.file(&format!("/sys/bus/pci/devices/{at}/reset_method"), "flr pm\n");
        }
        if let Some(set) = set {
            fake.file(&format!("/sys/bus/pci/devices/{}/driver_override", CARD[0]), format!("{set}\n"));
        }
        let before = fake.snapshot().unwrap().of_host();
        let baselines = CARD.map(|at| (bdf(at), snapshot::take(&fake.root(), bdf(at)))).into();
        let places = Places::below(&fake.prefix());
        Self { kernel: fake.kernel(), places, vm: VmName::new("vm").unwrap(), baselines, before, fake }
    }

    pub(crate) fn host<'a>(&'a self, kernel: &'a Kernel) -> Host<'a> {
        Host { kernel, places: &self.places, boot_id: BOOT, vm: &self.vm, baselines: &self.baselines }
    }

    pub(crate) fn journal(&self) -> Journal {
        make_dir(&self.places.vm(&self.vm)).unwrap();
        Journal::begin(&self.places.journal(&self.vm), BOOT).unwrap()
    }

    /// Opens the journal as a cleanup does; none where nothing was written.
    pub(crate) fn reopen(&self) -> Option<Journal> {
        Journal::reopen(&self.places.journal(&self.vm), BOOT).unwrap()
    }

    /// Takes the card, as a VM does.
    pub(crate) fn taken(&self) -> Journal {
        let mut journal = self.journal();
        for (at, native) in CARD.into_iter().zip(["nvidia", "snd_hda_intel"]) {
            let (bdf, vfio) = (bdf(at), driver("vfio-pci"));
            for op in [
                HostOp::KeepAwake { bdf },
                HostOp::SetResetMethods { bdf, methods: vec![Method::Flr] },
                HostOp::Unbind { bdf, driver: driver(native) },
                HostOp::SetDriverOverride { bdf, driver: vfio.clone() },
                HostOp::Bind { bdf, driver: vfio },
            ] {
                apply(&self.host(&self.kernel), &mut journal, &op).unwrap();
            }
        }
        journal
    }

    pub(crate) fn facts(&self) -> HostFacts {
        facts::read_devices(&self.fake.root(), CARD.map(bdf).into()).unwrap()
    }

    pub(crate) fn ladders(&self, policy: RepairPolicy) -> Vec<Ladder> {
        let facts = self.facts();
        CARD.map(|at| ladder(bdf(at), policy, &CARD.map(bdf).into(), &facts)).into()
    }

    pub(crate) fn sick(&self) -> BTreeMap<Bdf, Baseline> {
        [(bdf(CARD[0]), snapshot::take(&self.fake.root(), bdf(CARD[0])))].into()
    }

    pub(crate) fn repair(&self, journal: &mut Journal, policy: RepairPolicy) -> Repaired {
        let ladders = self.ladders(policy);
        repair(&self.host(&self.kernel), journal, &ladders, &self.sick(), &|| false, &mut |_| {})
    }

    /// Ends a VM, or what is left of it.
    pub(crate) fn give_back(&self, journal: &mut Journal) -> Vec<HostError> {
        let host = self.host(&self.kernel);
        let mut left = finish(&host, journal, &mut |_| {});
        left.extend(undo_all(&host, journal, &mut |_| {}));
        left
    }

    /// Lists what of the host is not as it was, but for what is wrong with the card itself.
    pub(crate) fn changes(&self) -> Vec<String> {
        let mut changes = self.before.differences(&self.fake.snapshot().unwrap().of_host());
        changes.retain(|change| !change.starts_with("fake-kernel/") && !change.contains("/config:"));
        changes
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.fake.path(path)).unwrap().trim().to_owned()
    }

    pub(crate) fn writes_to(&self, part: &str) -> usize {
        self.fake.writes().iter().filter(|write| write.contains(part)).count()
    }
}
