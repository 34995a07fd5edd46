//! Reservations: which VM has which devices, from before they are bound until they are given back.
//!
//! A group can be opened once, and gpuvm has it open only for a moment before QEMU does; the reservation covers the gap.
//! It is a record, not a lock: it outlives a launcher that was killed, and is free when supervisor, QEMU and children
//! that still wait for the kernel are dead and the journal is closed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::ResetDomain;
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::bound;
use crate::journal;
use crate::lock;
use crate::orphans;
use crate::places::Places;
use crate::process::ProcessId;
use crate::root::{HostRoot, read_text};
use crate::soak;

/// What a process is to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessRole {
    /// Its launcher.
    Gpuvm,
    /// Its QEMU.
    Qemu,
    /// A write to the kernel that has not come back.
    InFlight,
}

impl std::fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gpuvm => "gpuvm",
            Self::Qemu => "QEMU",
            Self::InFlight => "in-flight",
        })
    }
}

/// Whom a reservation belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A VM.
    Vm(VmName),
    /// A `gpuvm bind` or `unbind` that is under way, named by its first function.
    Bind(Bdf),
    /// A `gpuvm reset` that is under way, named by its first function.
    Reset(Bdf),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "VM {vm}"),
            Self::Bind(bdf) => write!(f, "a bind or unbind of {bdf}"),
            Self::Reset(bdf) => write!(f, "a reset of {bdf}"),
        }
    }
}

/// What is to become of a guest that goes on without a launcher, as a detached one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It goes on: nothing of it is touched.
    Spared,
    /// It is ended.
    Ended,
}

/// What one VM has, or what is being bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The VM.
    pub vm: VmName,
    /// The boot that the record belongs to.
    pub boot_id: String,
    /// The groups.
    pub groups: Vec<GroupId>,
    /// All functions of those groups.
    pub devices: Vec<Bdf>,
    /// The launcher.
    pub supervisor: ProcessId,
    /// QEMU, once it is started.
    pub qemu: Option<ProcessId>,
    /// Children that wait for the kernel.
    pub in_flight: Vec<ProcessId>,
    /// The CPUs that its vCPUs are pinned to.
    #[serde(default)]
    pub cpus: CpuSet,
    /// What a bus reset of its devices reaches.
    #[serde(default)]
    pub reset_domains: Vec<ResetDomain>,
    /// The first function, where it belongs to no VM: its devices are being bound or given back, and `vm` stands for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<Bdf>,
    /// Whether its QEMU is to go on when its launcher dies.
    #[serde(default, skip_serializing_if = "is_false")]
    pub detached: bool,
    /// Whether that is for the time of a reset.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reset: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Reservation {
    /// Makes the record for a plan, with this process as its supervisor.
    pub fn new(plan: &Plan, boot_id: &str) -> Self {
        let groups = plan.groups.iter();
        Self {
            vm: plan.name.clone(),
            boot_id: boot_id.to_owned(),
            groups: groups.clone().map(|group| group.id).collect(),
            devices: groups.flat_map(|group| group.members.iter().map(|member| member.bdf)).collect(),
            supervisor: ProcessId::own(),
            qemu: None,
            in_flight: Vec::new(),
            cpus: plan.placement.vcpus.iter().map(|pin| pin.cpu).collect(),
            reset_domains: plan.devices.iter().filter_map(|device| device.reset_domain.clone()).collect(),
            bind: None,
            detached: false,
            reset: false,
        }
    }

    /// Makes the record for functions that are bound or given back by this process.
    pub fn of_bind(first: Bdf, boot_id: &str, groups: Vec<GroupId>, devices: Vec<Bdf>) -> Self {
        Self {
            vm: bound::name(first),
            boot_id: boot_id.to_owned(),
            groups,
            devices,
            supervisor: ProcessId::own(),
            qemu: None,
            in_flight: Vec::new(),
            cpus: CpuSet::default(),
            reset_domains: Vec::new(),
            bind: Some(first),
            detached: false,
            reset: false,
        }
    }

    /// Makes the record for functions that are reset by this process, with what a bus reset of them reaches.
    pub fn of_reset(
        first: Bdf,
        boot_id: &str,
        groups: Vec<GroupId>,
        devices: Vec<Bdf>,
        reset_domains: Vec<ResetDomain>,
    ) -> Self {
        Self { reset: true, reset_domains, ..Self::of_bind(first, boot_id, groups, devices) }
    }

    /// Adds what another record has, with the children that still wait for the kernel.
    fn absorb(&mut self, other: &Self) {
        let new = |bdf: &&Bdf| !self.devices.contains(bdf);
        let devices: Vec<Bdf> = other.devices.iter().filter(new).copied().collect();
        self.devices.extend(devices);
        let groups: Vec<GroupId> =
            other.groups.iter().filter(|group| !self.groups.contains(group)).copied().collect();
        self.groups.extend(groups);
        self.in_flight.extend(other.in_flight.iter().filter(|child| child.is_alive()));
    }

    /// Tells whom it belongs to.
    pub fn owner(&self) -> Owner {
        match self.bind {
            Some(bdf) if self.reset => Owner::Reset(bdf),
            Some(bdf) => Owner::Bind(bdf),
            None => Owner::Vm(self.vm.clone()),
        }
    }

    /// Returns the QEMU of a detached VM that is alive, which is to go on without its launcher; not one that was killed and is not gone yet.
    fn lone_qemu(&self) -> Option<ProcessId> {
        self.qemu.filter(|qemu| self.detached && qemu.goes_on())
    }

    /// Counts what its journal has left to undo. One that can't be read holds its owner's devices, and nobody else's.
    fn left(&self, places: &Places) -> usize {
        match self.owner() {
            Owner::Vm(vm) => journal::left(&places.journal(&vm), &self.boot_id),
            Owner::Bind(_) | Owner::Reset(_) => bound::left(places, &self.boot_id, &self.devices),
        }
        .unwrap_or(usize::MAX)
    }

    /// Names a process of this VM that is alive, the launcher first.
    fn alive(&self) -> Option<(ProcessRole, ProcessId)> {
        let supervisor = (ProcessRole::Gpuvm, self.supervisor);
        let qemu = self.qemu.map(|qemu| (ProcessRole::Qemu, qemu));
        let in_flight = self.in_flight.iter().map(|child| (ProcessRole::InFlight, *child));
        let mut processes = [supervisor].into_iter().chain(qemu).chain(in_flight);
        processes.find(|(_, process)| process.is_alive())
    }

    fn conflict(&self, other: &Self) -> Option<String> {
        let device = self.devices.iter().find(|bdf| other.devices.contains(bdf)).map(ToString::to_string);
        let group =
            || self.groups.iter().find(|id| other.groups.contains(id)).map(|id| format!("group {id}"));
        let bus = || {
            let pairs =
                self.reset_domains.iter().flat_map(|ours| other.reset_domains.iter().map(move |o| (ours, o)));
            pairs.filter_map(|(ours, theirs)| ours.shared_with(theirs)).next()
        };
        let bus = || bus().map(|bus| format!("bus {bus}, whose reset reaches devices of both,"));
        // Its threads are what a VM has of a CPU: there is nothing of it to give back.
        let cpus = self.cpus.intersection(&other.cpus);
        let cpu = || (!cpus.is_empty() && self.alive().is_some()).then(|| format!("CPU {cpus}"));
        device.or_else(group).or_else(bus).or_else(cpu)
    }
}

/// Reserves what a plan needs.
///
/// # Errors
/// Returns the VM that has one of the devices, that this VM is up already, or that its last run was never given back.
pub fn reserve(places: &Places, wanted: &Reservation) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    for over in check(places, wanted)? {
        lock::remove(&over)?;
    }
    store(places, wanted)
}

/// Looks whether what a plan needs could be reserved, and returns the records that are over.
///
/// # Errors
/// As [`reserve`]; nothing is changed.
pub fn check(places: &Places, wanted: &Reservation) -> Result<Vec<PathBuf>, HostError> {
    bound::intact(places, &wanted.devices)?;
    not_soaked(places, wanted)?;
    let mut over = Vec::new();
    for held in all(places, &wanted.boot_id)? {
        let alive = held.alive();
        if alive.is_none() && held.left(places) == 0 {
            over.push(file(places, &held));
            continue;
        }
        if let Owner::Vm(vm) = held.owner()
            && held.owner() == wanted.owner()
        {
            return Err(match alive {
                Some((role, process)) => HostError::AlreadyUp { vm: vm.to_string(), role, pid: process.pid },
                None => HostError::LeftBehind { vm: vm.to_string() },
            });
        }
        // What a dead VM has left behind may be reset before it is given back: a sick device isn't otherwise made well.
        let left_behind = held.bind.is_none() && alive.is_none();
        if !(wanted.reset && left_behind) {
            conflicts(&held, wanted)?;
        }
    }
    Ok(over)
}

/// Checks that no other process soaks the VM: between two cycles a soak has no record here.
fn not_soaked(places: &Places, wanted: &Reservation) -> Result<(), HostError> {
    let Owner::Vm(vm) = wanted.owner() else { return Ok(()) };
    match soak::holder(places, &vm)?.filter(|holder| *holder != ProcessId::own()) {
        Some(holder) => Err(HostError::Soaked { vm: vm.to_string(), pid: holder.pid }),
        None => Ok(()),
    }
}

fn conflicts(held: &Reservation, wanted: &Reservation) -> Result<(), HostError> {
    let Some(what) = held.conflict(wanted) else { return Ok(()) };
    let state = match held.alive() {
        Some((role, process)) => format!("{role} process {} is alive", process.pid),
        None => "ended without giving the host back".to_owned(),
    };
    Err(HostError::Reserved { what, owner: held.owner(), state })
}

/// Reserves functions that are to be given back, and takes over what a bind or unbind that died has left of them: its devices are
/// added to the record, which is returned.
///
/// # Errors
/// Returns who has one of them and is alive, or is a VM.
pub fn reserve_return(places: &Places, mut wanted: Reservation) -> Result<Reservation, HostError> {
    let _guard = lock::tables(places)?;
    bound::intact(places, &wanted.devices)?;
    let mut over = Vec::new();
    for held in all(places, &wanted.boot_id)? {
        let own = held.supervisor == ProcessId::own();
        let given_up = held.bind.is_some() && (own || !held.supervisor.is_alive());
        if held.alive().is_none() && held.left(places) == 0 {
            over.push(file(places, &held));
        } else if given_up && held.conflict(&wanted).is_some() {
            over.push(file(places, &held));
            wanted.absorb(&held);
        } else if !(wanted.reset && held.bind.is_none() && held.alive().is_none()) {
            // The repair of what a dead VM has left behind is finished before that is given back.
            conflicts(&held, &wanted)?;
        }
    }
    store(places, &wanted)?;
    for path in over.iter().filter(|path| **path != file(places, &wanted)) {
        lock::remove(path)?;
    }
    Ok(wanted)
}

/// Makes this process the supervisor of a VM whose launcher is dead, so that nobody else gives it back or brings it up.
///
/// Returns the record; one is made up where there is none, for a folder that was left behind without it. No other VM's record
/// is read: one that makes no sense is in the way of its own VM alone.
///
/// # Errors
/// Returns that a launcher or another cleanup is at it, that the guest of a detached VM runs on without one and is to be spared, and failures to
/// read or write.
pub fn take_over(
    places: &Places,
    boot_id: &str,
    vm: &VmName,
    guest: Guest,
) -> Result<Reservation, HostError> {
    let _guard = lock::tables(places)?;
    let known = of(places, vm)?.filter(|record| record.boot_id == boot_id);
    let mut record = known.unwrap_or_else(|| Reservation {
        vm: vm.clone(),
        boot_id: boot_id.to_owned(),
        groups: Vec::new(),
        devices: Vec::new(),
        supervisor: ProcessId { pid: 0, start_time: 0 },
        qemu: None,
        in_flight: Vec::new(),
        cpus: CpuSet::default(),
        reset_domains: Vec::new(),
        bind: None,
        detached: false,
        reset: false,
    });
    unattended(&record)?;
    // Its guest was to go on without us: it is in use, and nobody's to end unasked.
    if guest == Guest::Spared
        && let Some(qemu) = record.lone_qemu()
    {
        return Err(HostError::Unsupervised { vm: vm.to_string(), pid: qemu.pid });
    }
    not_being_reset(places, &record)?;
    record.supervisor = ProcessId::own();
    store(places, &record)?;
    Ok(record)
}

/// Makes this process the supervisor of a VM whose guest goes on without one. Returns the record; nothing, and nothing is changed, where there is
/// no such guest: what is left of such a VM is for [`take_over`].
///
/// # Errors
/// Returns that a launcher or a cleanup is at it, and failures to read or write.
pub fn adopt(places: &Places, boot_id: &str, vm: &VmName) -> Result<Option<Reservation>, HostError> {
    let _guard = lock::tables(places)?;
    let Some(mut record) = of(places, vm)?.filter(|record| record.boot_id == boot_id) else {
        return Ok(None);
    };
    unattended(&record)?;
    if record.lone_qemu().is_none() {
        return Ok(None);
    }
    record.supervisor = ProcessId::own();
    store(places, &record)?;
    Ok(Some(record))
}

/// Checks that no other process sees to a VM.
fn unattended(record: &Reservation) -> Result<(), HostError> {
    match record.supervisor {
        other if other != ProcessId::own() && other.is_alive() => {
            let vm = record.vm.to_string();
            Err(HostError::AlreadyUp { vm, role: ProcessRole::Gpuvm, pid: other.pid })
        }
        _ => Ok(()),
    }
}

/// Checks that none of a dead VM's devices is being reset: that is allowed before it is given back.
fn not_being_reset(places: &Places, record: &Reservation) -> Result<(), HostError> {
    let folder = places.reservations();
    for name in crate::root::list(&folder)?.iter().filter(|name| is_of_bind(name)) {
        match read(&folder.join(name)) {
            Ok(Some(held)) if held.reset && held.boot_id == record.boot_id && held.alive().is_some() => {
                conflicts(&held, record)?;
            }
            Ok(_) => {}
            // It is in the way of its own devices.
            Err(error) => tracing::warn!("whether anything is being reset isn't known: {error}"),
        }
    }
    Ok(())
}

/// Returns the CPUs that running VMs have pinned.
///
/// # Errors
/// Returns failures to read the records.
pub fn pinned_cpus(places: &Places, boot_id: &str, but: &VmName) -> Result<CpuSet, HostError> {
    let records = all(places, boot_id)?;
    let others = records.iter().filter(|record| record.vm != *but && record.alive().is_some());
    Ok(others.flat_map(|record| record.cpus.iter().collect::<Vec<_>>()).collect())
}

/// Replaces a VM's record, to add QEMU or a child that waits.
///
/// # Errors
/// Returns failures to write.
pub fn update(places: &Places, reservation: &Reservation) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    store(places, reservation)
}

/// Gives a VM's devices free.
///
/// # Errors
/// Returns failures to remove the record.
pub fn release(places: &Places, vm: &VmName) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    lock::remove(&file_of(places, vm))
}

/// Gives free what a bind or unbind had.
///
/// # Errors
/// Returns failures to remove the record.
pub fn release_bind(places: &Places, reservation: &Reservation) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    lock::remove(&file(places, reservation))
}

/// Removes the records of binds and unbinds that are over, and of those before a reboot. Where none is under way, `then` is done
/// before any can begin; nothing is returned where one is.
///
/// # Errors
/// Returns failures to read or remove.
pub fn clear_binds<T>(
    places: &Places,
    boot_id: &str,
    then: impl FnOnce() -> Result<T, HostError>,
) -> Result<Option<T>, HostError> {
    let mut under_way = false;
    let _guard = lock::tables(places)?;
    let folder = places.reservations();
    for name in crate::root::list(&folder)?.iter().filter(|name| is_of_bind(name)) {
        let path = folder.join(name);
        if let Some(partial) = name.strip_suffix(".partial") {
            // A replacement that was cut short; the record itself is looked at by its own name.
            tracing::debug!("removing what is left of writing {partial}");
            std::fs::remove_file(&path).map_err(HostError::file("remove", &path))?;
            continue;
        }
        let over = |record: &Reservation| {
            record.boot_id != boot_id || (record.alive().is_none() && record.left(places) == 0)
        };
        match read(&path)? {
            Some(record) if over(&record) => lock::remove(&path)?,
            Some(record) if record.supervisor.is_alive() && record.supervisor != ProcessId::own() => {
                under_way = true;
            }
            _ => {}
        }
    }
    if under_way { Ok(None) } else { then().map(Some) }
}

/// Tells the files of binds from those of VMs, one of which may be called `bind-1`.
fn is_of_bind(name: &str) -> bool {
    let address = name.strip_prefix("bind-").and_then(|rest| rest.split_once(".json"));
    address.is_some_and(|(address, _)| address.parse::<Bdf>().is_ok())
}

/// Returns the functions that a write to the kernel has not come back for, with the process that waits in it: whatever takes their
/// lock hangs too. Those that nobody had time to note are among them: their launcher still waits, or was killed.
///
/// # Errors
/// Returns failures to read the records, and that processes can't be listed.
pub fn in_flight(root: &HostRoot, places: &Places, boot_id: &str) -> Result<BTreeMap<Bdf, i32>, HostError> {
    let records = all(places, boot_id)?;
    // Nothing is written for nobody; most hosts have no record, and no process is looked at.
    let mut found = if records.is_empty() { BTreeMap::new() } else { orphans::lasting_writers(root)? };
    for record in records {
        if let Some(child) = record.in_flight.iter().find(|child| child.is_alive()) {
            // One that binds or unbinds is called as what it writes: the other functions of its record may be given back already.
            match crate::process::name(child.pid).parse() {
                Ok(bdf) => found.extend([(bdf, child.pid)]),
                Err(_) => found.extend(record.devices.iter().map(|bdf| (*bdf, child.pid))),
            }
        }
    }
    Ok(found)
}

/// Lists the VMs that have a record, of whatever boot.
///
/// # Errors
/// Returns failures to read the folder.
pub fn names(places: &Places) -> Result<Vec<VmName>, HostError> {
    let files = crate::root::list(&places.reservations())?;
    Ok(files.iter().filter_map(|name| VmName::new(name.strip_suffix(".json")?)).collect())
}

/// Reads all records of this boot.
///
/// # Errors
/// Returns failures to read, and a record that makes no sense: it can't be known what it holds.
pub fn all(places: &Places, boot_id: &str) -> Result<Vec<Reservation>, HostError> {
    let folder = places.reservations();
    let mut records = Vec::new();
    for name in crate::root::list(&folder)?.iter().filter(|name| name.ends_with(".json")) {
        let record = read(&folder.join(name))?.filter(|record| record.boot_id == boot_id);
        records.extend(record.map(|record| with_qemu(places, record)));
    }
    Ok(records)
}

/// Reads a VM's record, of whatever boot.
///
/// # Errors
/// Returns failures to read, and a record that makes no sense.
pub fn of(places: &Places, vm: &VmName) -> Result<Option<Reservation>, HostError> {
    Ok(read(&file_of(places, vm))?.map(|record| with_qemu(places, record)))
}

/// Adds the QEMU that has put itself on record: a launcher that was killed right after it had started one had no time to.
fn with_qemu(places: &Places, mut record: Reservation) -> Reservation {
    if record.bind.is_none() {
        // What can't be read leaves what the launcher has recorded.
        let text = read_text(&places.qemu(&record.vm)).ok().flatten().unwrap_or_default();
        record.qemu = ProcessId::from_stat(&text).or(record.qemu);
    }
    record
}

fn read(path: &Path) -> Result<Option<Reservation>, HostError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| HostError::content(path, &text, error))
}

fn file_of(places: &Places, vm: &VmName) -> PathBuf {
    places.reservations().join(format!("{vm}.json"))
}

/// Names a record's file; that of a bind is no VM's name.
fn file(places: &Places, reservation: &Reservation) -> PathBuf {
    match reservation.owner() {
        Owner::Vm(vm) => file_of(places, &vm),
        Owner::Bind(bdf) | Owner::Reset(bdf) => places.reservations().join(format!("bind-{bdf}.json")),
    }
}

fn store(places: &Places, reservation: &Reservation) -> Result<(), HostError> {
    let path = file(places, reservation);
    let text =
        serde_json::to_vec_pretty(reservation).map_err(|error| HostError::content(&path, "", error))?;
    lock::replace(&path, &text)
}
