//! `gpuvm unbind`: gives devices back to the drivers that they had.

use std::fmt::Write;

use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::plan::{self, UnbindPlan, WayBack};
use gpuvm_host::bound::{self, GivenBack, Step};
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use serde_json::json;

use super::super::up::Progress;
use super::{BindArgs, Changed, items, left_items, line, target, tell, tell_overruled};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{load, out};

pub(crate) fn run(cli: &Cli, args: &BindArgs) -> Result<Exit, Failure> {
    // What would be done is shown for a host's trees; a report lacks some of what it rests on.
    if !args.dry_run || cli.facts.is_some() {
        super::super::refuse_recorded(cli)?;
    }
    let (targets, asked) = target::resolve(cli, &args.targets, Changed::Taken)?;
    let facts = load::devices(cli, asked)?;
    let plan = plan::unbind(&targets, args.in_use(), &facts)?;
    tell_overruled(cli, &plan.overruled, "asked for");
    if args.dry_run {
        if cli.json {
            out::json(&json!({ "plan": plan, "overruled": items(&plan.overruled) }))?;
        } else {
            out::text(&would(&plan))?;
        }
        return Ok(Exit::Ok);
    }
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let mut progress = Progress::new(cli);
    let mut told = |step: Step<'_>| tell(&mut progress, step);
    let given = bound::unbind(&Kernel::running(root), &cli.places(), &boot_id, &plan, &mut told)?;
    let code = if given.left.is_empty() { Exit::Ok } else { Exit::NotGivenBack };
    if cli.json {
        let problems: Vec<_> = left_items(&given.left).iter().map(failure::Item::to_json).collect();
        let devices = given.devices.iter().map(|(bdf, driver)| json!({ "bdf": bdf, "driver": driver }));
        out::told(out::json(&json!({
            "exit_code": code, "devices": devices.collect::<Vec<_>>(), "already": already(&plan), "problems": problems,
            "overruled": items(&plan.overruled),
        })));
    } else {
        out::told(out::text(&done(&plan, &given)));
        left_items(&given.left).iter().for_each(|item| failure::print_item("error", item));
    }
    Ok(code)
}

fn already(plan: &UnbindPlan) -> Vec<serde_json::Value> {
    plan.already.iter().map(|(bdf, driver)| json!({ "bdf": bdf, "driver": driver })).collect()
}

fn done(plan: &UnbindPlan, given: &GivenBack) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        let Some(driver) = given.devices.get(&device.bdf) else {
            line!(text, "{} is NOT given back", device.bdf);
            continue;
        };
        let words = match (driver, &device.way) {
            (Some(driver), _) => format!("is on {driver}"),
            (None, WayBack::Record { .. }) => "has no driver, as before".to_owned(),
            (None, WayBack::Kernel { .. }) => "is free: no driver that is loaded takes it".to_owned(),
        };
        line!(text, "{} {words}", device.bdf);
    }
    not_bound(plan, &mut text);
    text
}

fn not_bound(plan: &UnbindPlan, text: &mut String) {
    let words = |driver: &Option<DriverName>| match driver {
        Some(driver) => format!("is on {driver}, not on VFIO: there is nothing to give back"),
        None => "has no driver: there is nothing to give back".to_owned(),
    };
    for (bdf, driver) in &plan.already {
        let bdf: &Bdf = bdf;
        line!(text, "{bdf} {}", words(driver));
    }
}

fn would(plan: &UnbindPlan) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        let back = match &device.way {
            WayBack::Record { was: Some(was) } => format!("would be given back to {was}"),
            WayBack::Record { was: None } => "would be taken from VFIO; it had no driver before".to_owned(),
            WayBack::Kernel { .. } => {
                "would be taken from VFIO and offered to the kernel's drivers: gpuvm hasn't bound it, and doesn't know what it had".to_owned()
            }
        };
        line!(text, "{} ({}): {back}", device.bdf, device.reason);
    }
    not_bound(plan, &mut text);
    text
}
