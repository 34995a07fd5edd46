//! Decides which rungs a device has.

use std::collections::BTreeSet;

use super::{Climb, Ladder, RepairPolicy, Rung};
use crate::facts::{DeviceFacts, HostFacts, Presence};
use crate::pci::Bdf;
use crate::reset::plan::{affected, domain, whose, words};
use crate::reset::quirks::against_bus_reset;
use crate::reset::{Rejected, ResetPolicy, ResetWish, reset_plan};

/// Decides what can be tried with a device that comes back sick.
///
/// `in_hand` are the functions that whoever asks has, or will have, on a VFIO driver in groups of its own.
pub fn ladder(bdf: Bdf, policy: RepairPolicy, in_hand: &BTreeSet<Bdf>, facts: &HostFacts) -> Ladder {
    let (mut rungs, mut left_out) = (Vec::new(), Vec::new());
    for rung in Rung::ALL {
        let climb = match facts.devices.get(&bdf) {
            None => Err("there is no such device".to_owned()),
            Some(_) if !policy.allows(rung) => Err(format!("repair = \"{policy}\" doesn't allow it")),
            Some(device) => match rung {
                Rung::Hot => hot(bdf, device, in_hand, facts),
                Rung::Subordinate => subordinate(bdf, device, in_hand, facts),
                Rung::Rescan => rescan(bdf, device, in_hand, facts),
            },
        };
        match climb {
            Ok(climb) => rungs.push(climb),
            Err(reason) => left_out.push(Rejected { method: rung.to_string(), reason }),
        }
    }
    Ladder { bdf, rungs, left_out }
}

/// Lists what is climbed at one rung for all that is sick: a climb that reaches several of them is made once.
pub fn climbs(rung: Rung, ladders: &[Ladder], sick: &BTreeSet<Bdf>) -> Vec<(Bdf, Climb)> {
    let mut climbs: Vec<(Bdf, Climb)> = Vec::new();
    for ladder in ladders.iter().filter(|ladder| sick.contains(&ladder.bdf)) {
        let Some(climb) = ladder.rungs.iter().find(|climb| climb.rung == rung) else { continue };
        if !climbs.iter().any(|(_, made)| made.functions.contains(&ladder.bdf)) {
            climbs.push((ladder.bdf, climb.clone()));
        }
    }
    climbs
}

/// VFIO's reset of the bus, by the rules of any hot reset.
fn hot(bdf: Bdf, device: &DeviceFacts, in_hand: &BTreeSet<Bdf>, facts: &HostFacts) -> Result<Climb, String> {
    let wish = ResetWish { policy: ResetPolicy::Hot, avoid_flr: false };
    let plan = reset_plan(bdf, wish, in_hand, facts);
    let Some(step) = plan.steps.into_iter().next() else {
        let rejected = plan.rejected.into_iter().find(|rejected| rejected.method == Rung::Hot.name());
        return Err(rejected.map_or(plan.reason, |rejected| rejected.reason));
    };
    Ok(Climb {
        rung: Rung::Hot,
        functions: step.functions,
        groups: step.groups,
        port: device.upstream.last().copied(),
        reason: step.reason,
    })
}

/// The reset of everything below the bridge above: the kernel asks nobody whose that is, so all of it must be in hand.
fn subordinate(
    bdf: Bdf,
    device: &DeviceFacts,
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> Result<Climb, String> {
    let bus = domain(bdf, device)?.bus;
    let Some(port) = device.upstream.last().copied() else {
        return Err(format!("bus {bus} is a root bus, which can't be reset"));
    };
    let reach = affected(bdf, facts);
    // What the kernel doesn't reset by its bus isn't to be reset so by way of the port either.
    against_bus_reset(bdf, &reach, facts).map_or(Ok(()), Err)?;
    ours(&reach, in_hand, facts, Bridges::Allowed)
        .map_err(|foreign| format!("it resets everything below {port}, and {foreign}"))?;
    if device.subordinate_reset == Presence::Absent {
        return Err(format!(
            "there is no reset_subordinate of {port}, which kernels have since Linux 6.12.5 and 6.13"
        ));
    }
    let reason = match &reach[..] {
        [_] => format!("{bdf} is all that is below {port}"),
        _ => format!("all that is below {port} is in hand: {}", words(&reach)),
    };
    let (rung, port) = (Rung::Subordinate, Some(port));
    Ok(Climb { rung, functions: reach, groups: Vec::new(), port, reason })
}

/// Removing the card and having its bus scanned anew: all functions of its slot go, so all must be in hand.
fn rescan(
    bdf: Bdf,
    device: &DeviceFacts,
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
) -> Result<Climb, String> {
    if device.virtual_function == Presence::Present {
        return Err("it is a virtual function: the kernel finds none of them by a scan".to_owned());
    }
    let card: Vec<Bdf> = facts.devices.range(bdf.slot().functions()).map(|(other, _)| *other).collect();
    ours(&card, in_hand, facts, Bridges::Foreign)
        .map_err(|foreign| format!("the whole card is removed, and {foreign}"))?;
    let port = device.upstream.last().copied();
    let card_of = match &card[..] {
        [_] => format!("{bdf} is removed by itself"),
        _ => format!("the card is removed as a whole: {}", words(&card)),
    };
    let reason = format!("{card_of}; bus {} is scanned anew, and no other", bdf.bus());
    Ok(Climb { rung: Rung::Rescan, functions: card, groups: Vec::new(), port, reason })
}

/// What bridges among the functions that are reached come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bridges {
    /// They may be reached where all below them is in hand.
    Allowed,
    /// They stay with the kernel, and are in the way.
    Foreign,
}

/// Checks that functions are in hand, or says who has the others. The virtual functions of a physical one go with it, and are never
/// made anew.
fn ours(
    functions: &[Bdf],
    in_hand: &BTreeSet<Bdf>,
    facts: &HostFacts,
    bridges: Bridges,
) -> Result<(), String> {
    let device = |bdf: &Bdf| facts.devices.get(bdf);
    let passes = |bdf: &Bdf| {
        let is_bridge = device(bdf).is_some_and(|device| device.class.is_pci_bridge());
        in_hand.contains(bdf) || (is_bridge && bridges == Bridges::Allowed)
    };
    let foreign = functions.iter().filter(|bdf| !passes(bdf)).map(|bdf| whose(*bdf, facts));
    let with_virtual = functions.iter().filter_map(|bdf| {
        let count = device(bdf).map(|device| device.virtual_functions).filter(|count| *count > 0)?;
        let functions = if count == 1 { "virtual function" } else { "virtual functions" };
        Some(format!("{bdf} has {count} {functions}, which would be lost"))
    });
    let in_the_way: Vec<String> = foreign.chain(with_virtual).collect();
    if in_the_way.is_empty() { Ok(()) } else { Err(in_the_way.join("; ")) }
}
