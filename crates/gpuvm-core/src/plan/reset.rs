//! What `gpuvm reset` does: which functions are reset, in which ways, and what is taken from its drivers meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::bind::functions_of;
use super::{BindPlan, InUse, Refusal, Target, bind};
use crate::facts::HostFacts;
use crate::pci::{Bdf, GroupId};
use crate::reset::plan::affected;
use crate::reset::repair::{Ladder, RepairPolicy, ladder};
use crate::reset::{Method, Rejected, ResetDomain, ResetPlan, ResetPolicy, ResetWish, reset_plan};

/// Which way is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MethodChoice {
    /// The best that there is, then the next; or as the profile says.
    #[default]
    Auto,
    /// This one, and no other.
    Only(Method),
}

impl std::str::FromStr for MethodChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "hot" => Ok(Self::Only(Method::Hot)),
            name => Method::of_kernel(name).map(Self::Only).ok_or_else(|| {
                "expected auto, flr, pm, bus, hot, or another of the kernel's names: device_specific, acpi, af_flr, cxl_bus"
                    .to_owned()
            }),
        }
    }
}

/// What is reset, and what is done for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetJob {
    /// Each function that is to be reset, with the ways to do it.
    pub resets: Vec<ResetPlan>,
    /// What is on a VFIO driver meanwhile, and is taken from its own for that.
    pub bind: BindPlan,
    /// What a bus reset of the functions reaches.
    pub reset_domains: Vec<ResetDomain>,
    /// What is tried with each function that a reset leaves sick; empty where nothing may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ladders: Vec<Ladder>,
}

impl ResetJob {
    /// Lists every function that nobody else may have meanwhile.
    pub fn devices(&self) -> Vec<Bdf> {
        let members = self.bind.groups.iter().flat_map(|group| &group.members).map(|member| member.bdf);
        let bound = self.bind.devices.iter().map(|device| device.bdf);
        let reached = self.resets.iter().flat_map(|plan| &plan.steps).flat_map(|step| &step.functions);
        let climbs = self.ladders.iter().flat_map(|ladder| &ladder.rungs).flat_map(|climb| &climb.functions);
        members
            .chain(bound)
            .chain(reached.chain(climbs).copied())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Lists every group that nobody else may have meanwhile.
    pub fn groups(&self) -> Vec<GroupId> {
        let bound = self.bind.groups.iter().map(|group| group.id);
        let needed = self.resets.iter().flat_map(|plan| &plan.steps).flat_map(|step| step.groups.clone());
        bound.chain(needed).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Decides how functions are reset.
///
/// A device in quarantine may be reset: that is the way out. Facts of devices' config space tell whether `pm` resets anything.
///
/// # Errors
/// Returns every reason why they can't be. That a device has no reset at all comes before who else has it.
pub fn reset(
    targets: &[Target],
    choice: MethodChoice,
    repair: RepairPolicy,
    facts: &HostFacts,
) -> Result<ResetJob, Vec<Refusal>> {
    let wanted = wanted(targets, facts);
    let ladder_of = |bdf: Bdf, in_hand: &BTreeSet<Bdf>| ladder(bdf, repair, in_hand, facts);
    let plans = |in_hand: &dyn Fn(Bdf) -> BTreeSet<Bdf>| -> Result<Vec<ResetPlan>, Vec<Refusal>> {
        let known = wanted.iter().filter(|(bdf, _)| takeable(**bdf, facts));
        let planned = |(bdf, wish): (&Bdf, &ResetWish)| plan(*bdf, *wish, choice, &in_hand(*bdf), facts);
        let made: Vec<ResetPlan> = known.map(planned).collect();
        let refusal = |plan: &ResetPlan| {
            // All reasons where all ways were open.
            let policy = wanted.get(&plan.bdf).map(|wish| wish.policy);
            let any = choice == MethodChoice::Auto && policy == Some(ResetPolicy::Auto);
            let reason = if any { reasons(plan, facts) } else { plan.reason.clone() };
            Refusal::NoReset { bdf: plan.bdf, reason }
        };
        // One that has no reset can be repaired all the same.
        let stands = |plan: &ResetPlan| {
            plan.steps.is_empty() && ladder_of(plan.bdf, &in_hand(plan.bdf)).rungs.is_empty()
        };
        let none: Vec<Refusal> = made.iter().filter(|plan| stands(plan)).map(refusal).collect();
        if none.is_empty() { Ok(made) } else { Err(none) }
    };
    // With everything in hand.
    plans(&|bdf| affected(bdf, facts).into_iter().filter(|bdf| takeable(*bdf, facts)).collect())?;
    let taken = HostFacts { quarantined: BTreeMap::new(), ..facts.clone() };
    let bind = bind(targets, InUse::Refused, &taken)?;
    let ours: BTreeSet<Bdf> = bind.devices.iter().map(|device| device.bdf).collect();
    let resets = plans(&|_| ours.clone())?;
    let domain = |plan: &ResetPlan| ResetDomain::of(plan.bdf, facts.devices.get(&plan.bdf)?);
    let reset_domains = resets.iter().filter_map(domain).collect();
    let ladders = match repair {
        RepairPolicy::Never => Vec::new(),
        _ => ours.iter().map(|bdf| ladder_of(*bdf, &ours)).collect(),
    };
    Ok(ResetJob { resets, bind, reset_domains, ladders })
}

fn takeable(bdf: Bdf, facts: &HostFacts) -> bool {
    facts.devices.get(&bdf).is_some_and(|device| !device.class.is_bridge())
}

/// Lists the functions that are named, with what a profile wishes of them.
fn wanted(targets: &[Target], facts: &HostFacts) -> BTreeMap<Bdf, ResetWish> {
    let one = |target: &Target| match target {
        Target::Function(bdf) => vec![(*bdf, ResetWish::default())],
        Target::Slot(slot) => {
            functions_of(*slot, facts).into_iter().map(|bdf| (bdf, ResetWish::default())).collect()
        }
        Target::Profile(devices) => devices.iter().map(|device| (device.bdf, device.reset)).collect(),
    };
    targets.iter().flat_map(one).collect()
}

fn plan(
    bdf: Bdf,
    wish: ResetWish,
    choice: MethodChoice,
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> ResetPlan {
    let MethodChoice::Only(method) = choice else { return reset_plan(bdf, wish, in_hand, facts) };
    let mut plan = reset_plan(bdf, ResetWish::default(), in_hand, facts);
    let (steps, others): (Vec<_>, Vec<_>) = plan.steps.into_iter().partition(|step| step.method == method);
    plan.steps = steps;
    let listed = others.iter().map(|step| step.method.name()).collect::<Vec<_>>();
    let rejected = plan.rejected.iter().find(|rejected| rejected.method == method.name());
    plan.reason = match (rejected, &plan.steps[..]) {
        (_, [_, ..]) => format!("by {method}, as asked for"),
        (Some(rejected), []) => format!("no {method}: {}", rejected.reason),
        (None, []) if listed.is_empty() => format!("no {method}: {}", plan.reason),
        (None, []) => format!("no {method}: the kernel doesn't list it; it has {}", listed.join(", ")),
    };
    let reason = format!("only {method} is asked for");
    let others =
        others.into_iter().map(|step| Rejected { method: step.method.to_string(), reason: reason.clone() });
    plan.rejected.extend(others);
    plan
}

/// Says of each way why it isn't open.
fn reasons(plan: &ResetPlan, facts: &HostFacts) -> String {
    let listed = facts.devices.get(&plan.bdf).is_some_and(|device| !device.reset_methods.is_empty());
    let none = (!listed).then(|| "the kernel lists no reset method for it".to_owned());
    let each = plan.rejected.iter().map(|Rejected { method, reason }| format!("no {method}: {reason}"));
    none.into_iter().chain(each).collect::<Vec<_>>().join("; ")
}
