//! Every shipped profile on every recorded host, as it is and, where the host is too small for it, with less.

use std::fs;

use gpuvm_testkit::recorded;

use super::golden::repository;
use super::hosts::{kernel, qcow2};
use super::{Case, Host};

/// What fits a profile to a recorded host that is too small for it: profile, host, settings.
type Fitted = (&'static str, &'static str, &'static [&'static str]);

const FITTED: &[Fitted] = &[
    ("first-install", "default", &["memory.size=2G"]),
    ("headless-compute", "default", &["memory.size=2G", "cpu.count=2"]),
    ("two-gpus", "default", &["memory.size=4G", "cpu.count=4"]),
];

/// Returns the names of the shipped profiles.
pub(crate) fn profiles() -> Vec<String> {
    let folder = fs::read_dir(repository().join("profiles")).unwrap();
    let mut names: Vec<String> = folder
        .filter_map(|entry| {
            Some(entry.unwrap().file_name().to_string_lossy().strip_suffix(".toml")?.to_owned())
        })
        .collect();
    names.sort();
    names
}

/// Returns every case.
pub(crate) fn all() -> Vec<Case> {
    let hosts = recorded::names().unwrap();
    assert!(hosts.len() >= 3, "{hosts:?}");
    let mut cases = Vec::new();
    for (profile, host) in profiles().iter().flat_map(|profile| hosts.iter().map(move |host| (profile, host)))
    {
        cases.push(case(profile, host, &[]));
        let fitted = FITTED.iter().filter(|fitted| fitted.0 == profile && fitted.1 == host);
        cases.extend(fitted.map(|(_, _, set)| case(profile, host, set)));
    }
    cases
}

fn case(profile: &str, host: &str, set: &[&str]) -> Case {
    let laid_out = recorded::lay_out(host).unwrap();
    // What the profiles name, as a user of that host would have made it.
    let files = [
        ("/lab/guest/kernel", kernel()),
        ("/lab/guest/initrd", b"x".to_vec()),
        ("/var/lib/gpuvm/disks/headless-compute.qcow2", qcow2()),
        ("/var/lib/gpuvm/disks/two-gpus.qcow2", qcow2()),
        ("/var/lib/gpuvm/disks/new.qcow2", qcow2()),
        ("/var/lib/gpuvm/disks/installer.iso", vec![0; 2048]),
    ];
    for (path, content) in files {
        let path = laid_out.root().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let with = if set.is_empty() { String::new() } else { format!("-with-{}", set.join(",")) };
    Case {
        name: format!("{profile}-on-{host}{with}"),
        host: Host::Recorded(laid_out),
        profile: format!("profiles/{profile}.toml"),
        set: set.iter().map(|set| (*set).to_owned()).collect(),
    }
}
