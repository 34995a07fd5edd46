//! Which resets a device truly has, in which order, and why; and what `up` does about them.
//!
//! The kernel's list of methods is where this starts and not where it ends: it holds a bus reset that always fails, it leaves out
//! VFIO's hot reset, and it can be switched off. QEMU has no say here: what it does goes by the same list.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::method::{Method, Standing, methods};
use super::quirks::against_bus_reset;
use super::{ResetDomain, what_it_does};
use crate::facts::{DeviceFacts, HostFacts, Presence};
use crate::pci::{Bdf, GroupId};
use crate::plan::is_vfio_driver;

/// How a device is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetPolicy {
    /// By what it has, the best first.
    #[default]
    Auto,
    /// By function level reset alone.
    Flr,
    /// Through D3hot and back alone.
    Pm,
    /// By the kernel's reset of its bus alone, which a function has that is alone there.
    Bus,
    /// By VFIO's reset of its bus with everything on it alone.
    Hot,
    /// Not at all.
    None,
}

impl std::fmt::Display for ResetPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Flr => "flr",
            Self::Pm => "pm",
            Self::Bus => "bus",
            Self::Hot => "hot",
            Self::None => "none",
        })
    }
}

/// What happens when the guest reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootPolicy {
    /// QEMU resets the machine and its devices, and goes on.
    #[default]
    InPlace,
    /// QEMU ends, the devices are reset and looked at, and the VM is started again.
    Relaunch,
    /// The VM ends.
    Stop,
}

impl std::fmt::Display for RebootPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InPlace => "in-place",
            Self::Relaunch => "relaunch",
            Self::Stop => "stop",
        })
    }
}

/// What is asked for of a device's resets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResetWish {
    /// How it is to be reset.
    pub policy: ResetPolicy,
    /// Whether function level resets are kept from it, which some cards don't survive.
    pub avoid_flr: bool,
}

impl std::fmt::Display for ResetWish {
    /// Spells it as in a profile.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reset = \"{}\"", self.policy)?;
        if self.avoid_flr { f.write_str(", avoid-flr = true") } else { Ok(()) }
    }
}

/// Which resets a device has, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetPlan {
    /// The device.
    pub bdf: Bdf,
    /// The resets that it has and that were asked for, the first to be tried first; empty where there is none.
    pub steps: Vec<Step>,
    /// Those that it hasn't, or that weren't asked for.
    pub rejected: Vec<Rejected>,
    /// What that comes to, in words.
    pub reason: String,
}

impl ResetPlan {
    /// Says why there is no reset, with what speaks against each method.
    pub fn objections(&self) -> String {
        let rejected =
            self.rejected.iter().map(|Rejected { method, reason }| format!("no {method}: {reason}"));
        std::iter::once(self.reason.clone()).chain(rejected).collect::<Vec<_>>().join("; ")
    }
}

/// One way to reset a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// How.
    pub method: Method,
    /// What is reset: the device, and everything else on its bus where that is reset.
    pub functions: Vec<Bdf>,
    /// The groups that must be held open for it: those of all its functions for [`Method::Hot`], and none otherwise.
    pub groups: Vec<GroupId>,
    /// Why it is there, and in this place.
    pub reason: String,
}

/// A way to reset a device that isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The method, under the kernel's name or `hot`; the kernel may list one that this gpuvm doesn't know.
    pub method: String,
    /// Why not.
    pub reason: String,
}

/// What `up` does about the resets of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedReset {
    /// What was asked for.
    #[serde(flatten)]
    pub wish: ResetWish,
    /// What there is.
    pub plan: ResetPlan,
    /// What the kernel's list is cut down to while the VM owns the device; nothing where it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<Method>>,
    /// The reset that gpuvm does itself when QEMU has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_run: Option<Step>,
    /// Why.
    pub reason: String,
}

/// Lists the functions of these groups that are on a VFIO driver: those that are in hand, for whoever has the groups.
pub fn in_hand(groups: &BTreeSet<GroupId>, facts: &HostFacts) -> BTreeSet<Bdf> {
    let ours = |device: &DeviceFacts| device.group.is_some_and(|group| groups.contains(&group));
    let on_vfio = |device: &DeviceFacts| device.driver.as_ref().is_some_and(is_vfio_driver);
    facts.devices.iter().filter(|(_, device)| ours(device) && on_vfio(device)).map(|(bdf, _)| *bdf).collect()
}

/// Lists what a bus reset of a device reaches: all functions on its bus and on the buses below. Empty where no bus reset reaches it.
pub fn affected(bdf: Bdf, facts: &HostFacts) -> Vec<Bdf> {
    let domain = facts.devices.get(&bdf).and_then(|device| ResetDomain::of(bdf, device));
    let Some(ResetDomain { bus, .. }) = domain else { return Vec::new() };
    let reached = |(other, device): &(&Bdf, &DeviceFacts)| {
        other.bus() == bus || device.upstream.iter().any(|bridge| bridge.bus() == bus)
    };
    facts.devices.iter().filter(reached).map(|(other, _)| *other).collect()
}

/// Decides how a device is reset.
///
/// `in_hand` are the functions that whoever asks has, or will have, on a VFIO driver in groups of its own. Facts of a device's config
/// space tell whether `pm` resets anything; without them the kernel's word is taken.
pub fn reset_plan(bdf: Bdf, wish: ResetWish, in_hand: &BTreeSet<Bdf>, facts: &HostFacts) -> ResetPlan {
    let Some(device) = facts.devices.get(&bdf) else {
        let reason = "there is no such device".to_owned();
        return ResetPlan { bdf, steps: Vec::new(), rejected: Vec::new(), reason };
    };
    let reach = affected(bdf, facts);
    let no_bus = against_bus_reset(bdf, &reach, facts);
    let mut steps = Vec::new();
    let mut rejected = Vec::new();
    for listed in methods(bdf, facts) {
        match of_kernel(bdf, device, &listed.name, &listed.standing, no_bus.as_deref()) {
            Ok(step) => steps.push(step),
            Err(reason) => rejected.push(Rejected { method: listed.name, reason }),
        }
    }
    let hot = match no_bus.filter(|_| domain(bdf, device).is_ok()) {
        Some(why) => Err(why),
        None => hot(bdf, device, &reach, in_hand, facts),
    };
    match hot {
        Ok(step) => steps.insert(place_of_hot(&steps, &reach), step),
        Err(reason) => rejected.push(Rejected { method: Method::Hot.to_string(), reason }),
    }
    let (steps, unwanted): (Vec<_>, Vec<_>) =
        steps.into_iter().partition(|step| wish.allows(step.method).is_ok());
    let unwanted = unwanted.into_iter().filter_map(|step| {
        let reason = wish.allows(step.method).err()?;
        Some(Rejected { method: step.method.to_string(), reason })
    });
    rejected.extend(unwanted);
    let reason = if steps.is_empty() {
        why_none(wish, device, &rejected)
    } else {
        let names: Vec<_> = steps.iter().map(|step| step.method.name()).collect();
        format!("by {}", names.join(", then "))
    };
    ResetPlan { bdf, steps, rejected, reason }
}

impl ResetWish {
    /// Tells whether a method may be used, or why not.
    fn allows(self, method: Method) -> Result<(), String> {
        let only = match self.policy {
            ResetPolicy::Auto => true,
            ResetPolicy::Flr => method.is_flr(),
            ResetPolicy::Pm => method == Method::Pm,
            ResetPolicy::Bus => matches!(method, Method::Bus | Method::CxlBus),
            ResetPolicy::Hot => method == Method::Hot,
            ResetPolicy::None => return Err("no reset is asked for".to_owned()),
        };
        match only {
            false => Err(format!("only {} is asked for", self.policy)),
            true if self.avoid_flr && method.is_flr() => Err("avoid-flr keeps it from the device".to_owned()),
            true => Ok(()),
        }
    }
}

/// Makes a step of a method that the kernel lists, or says why it is none.
fn of_kernel(
    bdf: Bdf,
    device: &DeviceFacts,
    name: &str,
    standing: &Standing,
    no_bus: Option<&str>,
) -> Result<Step, String> {
    let Some(method) = Method::of_kernel(name) else {
        return Err("this gpuvm doesn't know it".to_owned());
    };
    match standing {
        Standing::Stale { others } => {
            let be = if others.len() == 1 { "is" } else { "are" };
            return Err(format!("listed, but the kernel refuses it: {} {be} on its bus too", words(others)));
        }
        Standing::KeepsState => {
            return Err("listed, but the device says that it keeps its state over D3hot".to_owned());
        }
        Standing::Usable => {}
    }
    let mut reason = what_it_does(name).to_owned();
    if matches!(method, Method::Bus | Method::CxlBus) {
        let ResetDomain { bus, .. } = domain(bdf, device)?;
        no_bus.map_or(Ok(()), |why| Err(why.to_owned()))?;
        reason = format!("{reason}; it is alone on {bus}");
    }
    Ok(Step { method, functions: vec![bdf], groups: Vec::new(), reason })
}

/// Finds what a bus reset of a device starts from, or says why there is none.
pub(super) fn domain(bdf: Bdf, device: &DeviceFacts) -> Result<ResetDomain, String> {
    ResetDomain::of(bdf, device).ok_or_else(|| match device.virtual_function {
        Presence::Present => "it is a virtual function: its bus is its physical function's".to_owned(),
        Presence::Absent => format!("bus {} is a root bus, which can't be reset", bdf.bus()),
    })
}

/// Makes the step of VFIO's bus reset, or says why it can't be: everything that it reaches must be on a VFIO driver, and its groups
/// must be held by whoever asks (vfio_pci_ioctl_pci_hot_reset of drivers/vfio/pci/vfio_pci_core.c).
fn hot(
    bdf: Bdf,
    device: &DeviceFacts,
    reach: &[Bdf],
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> Result<Step, String> {
    let ResetDomain { bus, .. } = domain(bdf, device)?;
    let foreign: Vec<String> =
        reach.iter().filter(|other| !in_hand.contains(other)).map(|other| whose(*other, facts)).collect();
    if !foreign.is_empty() {
        return Err(format!("it resets all of bus {bus}, and {}", foreign.join("; ")));
    }
    let group = |other: &Bdf| facts.devices.get(other).and_then(|device| device.group);
    if let Some(other) = reach.iter().find(|other| group(other).is_none()) {
        return Err(format!("it resets all of bus {bus}, and {other} has no IOMMU group"));
    }
    let groups: BTreeSet<GroupId> = reach.iter().filter_map(group).collect();
    let what = match reach {
        [_] => format!("{bdf} is alone on bus {bus}"),
        _ => format!("all of bus {bus} is in hand: {}", words(reach)),
    };
    let reason = format!("{what}; only the kernel knows whether that bus may be reset (ENODEV if not)");
    Ok(Step { method: Method::Hot, functions: reach.to_vec(), groups: groups.into_iter().collect(), reason })
}

/// Says who has a function that isn't in hand.
pub(super) fn whose(bdf: Bdf, facts: &HostFacts) -> String {
    let device = facts.devices.get(&bdf);
    match device.and_then(|device| device.driver.as_ref()) {
        _ if device.is_some_and(|device| device.class.is_pci_bridge()) => {
            format!("{bdf} is a bridge, which stays with the kernel")
        }
        Some(driver) if is_vfio_driver(driver) => {
            let group = device.and_then(|device| device.group);
            let group = group.map_or_else(String::new, |group| format!(", in IOMMU group {group}"));
            format!("{bdf} is on {driver}{group}, and not in hand")
        }
        Some(driver) => format!("{bdf} is on {driver}, not on a vfio driver"),
        None => format!("{bdf} has no driver, and needs a vfio driver"),
    }
}

/// Finds the place of hot reset: before `pm` on a card of several functions, as QEMU has it, since D3hot resets but one function of
/// the card, and often little of that; at the end otherwise, where the kernel's own way to the same bus comes first.
fn place_of_hot(steps: &[Step], reach: &[Bdf]) -> usize {
    let pm = steps.iter().position(|step| step.method == Method::Pm);
    pm.filter(|_| reach.len() > 1).unwrap_or(steps.len())
}

/// Says why a device has no reset that is asked for.
fn why_none(wish: ResetWish, device: &DeviceFacts, rejected: &[Rejected]) -> String {
    let listed = match (&device.reset_methods[..], device.reset_method_file) {
        ([], Presence::Present) => {
            "its list of reset methods is empty: somebody has switched them off (reset_method)".to_owned()
        }
        ([], Presence::Absent) => "the kernel lists no reset method for it".to_owned(),
        (names, _) => format!("the kernel lists only {}", names.join(", ")),
    };
    let of = |method: Method| {
        let found = rejected.iter().find(|rejected| rejected.method == method.name());
        found.map_or_else(|| listed.clone(), |rejected| rejected.reason.clone())
    };
    match wish.policy {
        ResetPolicy::None => "no reset is asked for".to_owned(),
        ResetPolicy::Flr => format!("no flr: {}", of(Method::Flr)),
        ResetPolicy::Pm => format!("no pm: {}", of(Method::Pm)),
        ResetPolicy::Bus => format!("no bus: {}", of(Method::Bus)),
        ResetPolicy::Hot => format!("no hot: {}", of(Method::Hot)),
        ResetPolicy::Auto if device.reset_methods.is_empty() => format!("it can't be reset: {listed}"),
        ResetPolicy::Auto => "it can't be reset by any method".to_owned(),
    }
}

/// A device of a VM, and what is asked for of its resets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The device.
    pub bdf: Bdf,
    /// What is asked for.
    pub wish: ResetWish,
    /// Who asks.
    pub by: Asker,
}

/// Who asks for a device's resets to be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The profile, of this very device.
    Profile,
    /// The profile, of another function of the card that it came along with: it gets as much of that as it can have.
    CardOf(Bdf),
}

/// A reset that is asked for and can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// The device.
    pub bdf: Bdf,
    /// What is asked for.
    pub policy: ResetPolicy,
    /// Why it can't be.
    pub reason: String,
}

/// Decides what `up` does about the resets of all its devices.
///
/// # Errors
/// Returns each device that can't have what is asked for.
pub fn planned_resets(
    asked: &[Asked],
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> Result<Vec<PlannedReset>, Vec<Unavailable>> {
    let mut unavailable = Vec::new();
    let mut planned: Vec<PlannedReset> = Vec::new();
    for asked in asked {
        let mut wish = asked.wish;
        let mut plan = reset_plan(asked.bdf, wish, in_hand, facts);
        let mut reason = String::new();
        if let (true, false, Asker::CardOf(other)) =
            (plan.steps.is_empty(), wish.asks_for_nothing(), asked.by)
        {
            reason = format!("it can't be by {}, as {other} is; ", wish.policy);
            wish.policy = ResetPolicy::Auto;
            plan = reset_plan(asked.bdf, wish, in_hand, facts);
        }
        if plan.steps.is_empty() && !wish.asks_for_nothing() {
            let (bdf, reason) = (asked.bdf, plan.reason.clone());
            unavailable.push(Unavailable { bdf, policy: wish.policy, reason });
        }
        planned.push(planned_reset(wish, plan, reason, in_hand, facts));
    }
    once_per_bus(&mut planned);
    unavailable.extend(at_odds(&planned));
    if unavailable.is_empty() { Ok(planned) } else { Err(unavailable) }
}

impl ResetWish {
    /// Tells whether a device without any reset is no less than what was asked for.
    fn asks_for_nothing(self) -> bool {
        matches!(self.policy, ResetPolicy::Auto | ResetPolicy::None)
    }
}

fn planned_reset(
    wish: ResetWish,
    plan: ResetPlan,
    prefix: String,
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> PlannedReset {
    // An entry that never worked is none that must be taken away: a list is written only where that changes something.
    let all = reset_plan(plan.bdf, ResetWish::default(), in_hand, facts);
    let hot = all.steps.iter().any(|step| step.method == Method::Hot);
    let real: Vec<Method> =
        all.steps.iter().map(|step| step.method).filter(|method| *method != Method::Hot).collect();
    let left: Vec<Method> = real.iter().copied().filter(|method| wish.allows(*method).is_ok()).collect();
    // QEMU resets the bus where the kernel has nothing for the function, and rather than through D3hot where that has no FLR
    // (vfio_pci_reset of hw/vfio/pci.c).
    let by_bus = hot
        && match left.first() {
            None => true,
            Some(first) => *first == Method::Pm && !real.contains(&Method::Flr),
        };
    let reason = prefix + &what_happens(wish, &left, left != real, by_bus);
    let step = plan.steps.iter().find(|step| step.method == Method::Hot);
    let after_run = step.filter(|_| wish.policy == ResetPolicy::Hot).cloned();
    PlannedReset { wish, methods: (left != real).then_some(left), after_run, plan, reason }
}

/// Says who resets a device, when and how: with what the kernel is left, and whether QEMU goes by the bus.
fn what_happens(wish: ResetWish, left: &[Method], cut: bool, by_bus: bool) -> String {
    let names = || left.iter().map(|method| method.name()).collect::<Vec<_>>().join(" ");
    let list = match (cut, left) {
        (false, _) => String::new(),
        (true, []) => "the kernel's list of its methods is emptied while the VM has it; ".to_owned(),
        (true, _) => {
            format!("the kernel's list of its methods is cut down to {} while the VM has it; ", names())
        }
    };
    let what = match (left.first(), by_bus) {
        (Some(method), false) => {
            format!(
                "the kernel resets it by {method} when QEMU opens it, when the guest reboots and when QEMU ends"
            )
        }
        (Some(method), true) => format!(
            "the kernel resets it by {method} when QEMU opens it and when QEMU ends, and QEMU resets the bus at its start and when the \
             guest reboots"
        ),
        (None, true) => {
            "QEMU resets the bus at its start and when the guest reboots, and the kernel when QEMU ends"
                .to_owned()
        }
        (None, false) => "nothing resets it".to_owned(),
    };
    let end = match (wish.policy, by_bus) {
        (ResetPolicy::Hot, _) => "; gpuvm does so once more when QEMU has ended",
        (ResetPolicy::None, true) => "; nobody can turn that off",
        _ => "",
    };
    format!("{list}{what}{end}")
}

/// Leaves one reset of each bus after the run: it is of all that is on the bus.
fn once_per_bus(planned: &mut [PlannedReset]) {
    let mut reached = BTreeSet::new();
    for reset in planned {
        match &reset.after_run {
            Some(_) if reached.contains(&reset.plan.bdf) => reset.after_run = None,
            Some(step) => reached.extend(step.functions.iter().copied()),
            None => {}
        }
    }
}

/// Finds the functions that are to be reset otherwise, or not at all, and that a reset of their bus after the run would reach.
fn at_odds(planned: &[PlannedReset]) -> Vec<Unavailable> {
    let mut found = Vec::new();
    for (first, step) in planned.iter().filter_map(|first| Some((first, first.after_run.as_ref()?))) {
        let other = planned.iter().find(|other| {
            let otherwise = !matches!(other.wish.policy, ResetPolicy::Auto | ResetPolicy::Hot);
            otherwise && step.functions.contains(&other.plan.bdf)
        });
        if let Some(other) = other {
            let reason =
                format!("it resets {} too, whose reset is to be {}", other.plan.bdf, other.wish.policy);
            found.push(Unavailable { bdf: first.plan.bdf, policy: first.wish.policy, reason });
        }
    }
    found
}

/// The most functions that are named in one reason.
const NAMED: usize = 8;

pub(super) fn words(functions: &[Bdf]) -> String {
    let mut words: Vec<String> = functions.iter().take(NAMED).map(ToString::to_string).collect();
    if let Some(more) = functions.len().checked_sub(NAMED).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}
