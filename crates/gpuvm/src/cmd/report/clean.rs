//! Takes out of a report what names a person, a place or a machine.

use std::path::Path;

use gpuvm_core::facts::file::FactsFile;
use gpuvm_core::facts::{Holder, HostFacts};
use gpuvm_core::redact::{Last, Redactor};
use gpuvm_host::archive::Member;
use serde_json::Value;

use super::{Given, Report};

/// Redacts all of a report: first all names are learnt, from all of it, then each file is rewritten.
pub(super) fn clean(report: &mut Report, host: &str, given: Option<&Given>) {
    let mut redactor = Redactor::new();
    redactor.host(host);
    let facts = serde_json::to_value(&report.facts);
    learn(&mut redactor, report, facts.as_ref().unwrap_or(&Value::Null), given);
    for member in &mut report.collected.members {
        member.content = content(&mut redactor, member).into_bytes();
    }
    for what in &mut report.collected.unread {
        *what = redactor.text(what);
    }
    // Were a host called as one of the facts' own words, its stand-in would be in that word's place.
    let clean = facts.and_then(|facts| serde_json::from_value::<FactsFile>(redactor.json(&facts)));
    report.facts = clean.unwrap_or_else(|error| {
        let told = format!("the facts: they make no sense without the names that were taken out ({error})");
        report.collected.unread.push(told);
        FactsFile::new(&report.facts.gpuvm, None, HostFacts::default())
    });
}

/// Tells the redactor of all names that have no form: users first, since folders of theirs are no other names.
fn learn(redactor: &mut Redactor, report: &Report, facts: &Value, given: Option<&Given>) {
    redactor.learn_json(facts);
    for member in &report.collected.members {
        redactor.learn(&String::from_utf8_lossy(&member.content));
        member_documents(member).iter().for_each(|document| disks_of(redactor, document));
    }
    report.collected.unread.iter().for_each(|what| redactor.learn(what));
    for device in report.facts.facts.devices.values() {
        device.holders.iter().for_each(|holder| holder_of(redactor, holder));
        if let Some(serial) = device.config.as_ref().and_then(|config| config.capabilities.serial) {
            redactor.serial(serial);
        }
    }
    people(redactor, &report.facts.facts);
    if let Some(given) = given {
        redactor.path(&given.base, Last::Folder);
        given.loaded.profile.disks.iter().for_each(|disk| redactor.path(&disk.path, Last::File));
    }
}

/// Tells the redactor who made the report, and who built the kernel: `Linux version 6.12.1 (kim@box) (gcc ...`.
fn people(redactor: &mut Redactor, facts: &HostFacts) {
    // Accounts below are the system's own, and their names are words of its.
    const FIRST_PERSON: u32 = 1000;
    if let Some(user) = facts.platform.user.as_ref().filter(|user| user.uid >= FIRST_PERSON) {
        redactor.user(&user.name);
    }
    let words = facts.kernel.build.split(['(', ')', ' ']);
    words.filter(|word| word.contains('@')).for_each(|word| redactor.user(word));
}

fn holder_of(redactor: &mut Redactor, holder: &Holder) {
    let mut block = |device: &str| redactor.path(Path::new(device), Last::Folder);
    match holder {
        Holder::Mount { device, target, .. } => {
            block(device);
            block(target);
        }
        Holder::Swap { device } | Holder::BlockInUse { device } => block(device),
        _ => {}
    }
}

/// Finds the paths of disks in what gpuvm keeps of its VMs: in plans, and behind overlays in journals.
fn disks_of(redactor: &mut Redactor, document: &Value) {
    match document {
        Value::Array(values) => values.iter().for_each(|value| disks_of(redactor, value)),
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("disks", Value::Array(disks)) => {
                        let paths = disks.iter().filter_map(|disk| disk.get("path")?.as_str());
                        paths.for_each(|path| redactor.path(Path::new(path), Last::File));
                    }
                    ("backing", Value::String(path)) => redactor.path(Path::new(path), Last::File),
                    _ => disks_of(redactor, value),
                }
            }
        }
        _ => {}
    }
}

/// Parses a file of documents: one, or one on each line as in journals.
fn member_documents(member: &Member) -> Vec<Value> {
    let whole = serde_json::from_slice(&member.content).ok();
    if let Some(document) = whole {
        return vec![document];
    }
    let lines = member.content.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Rewrites a file: documents by their values, so that nothing in them is hidden by how it is spelt.
fn content(redactor: &mut Redactor, member: &Member) -> String {
    if let Ok(document) = serde_json::from_slice::<Value>(&member.content) {
        return super::pretty(&redactor.json(&document));
    }
    let text = String::from_utf8_lossy(&member.content);
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(document @ (Value::Object(_) | Value::Array(_))) => redactor.json(&document).to_string(),
        _ => redactor.text(line),
    };
    let lines: Vec<_> = text.split('\n').map(line).collect();
    lines.join("\n")
}
