//! `devices` and `topology` on recorded hosts and on those that nobody here owns.

use std::path::Path;

use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::{hosts, recorded};

use crate::shared::golden::{compare, compare_as};
use crate::{gpuvm, transcript};

/// Runs a verb on a host in files.
fn run(root: &Path, args: &[&str]) -> String {
    let root = root.display().to_string();
    let root = root.trim_end_matches('/');
    transcript(&gpuvm(&[&["--host-root", root], args].concat()), root)
}

/// Makes up a host whose devices have names.
fn named(make: hosts::MakeHost) -> FakeHost {
    let host = make();
    host.file("/usr/share/misc/pci.ids", include_str!("../shared/pci.ids"));
    host
}

/// What is asked of recorded hosts beyond the list of devices: name, host, words.
const ASKED: &[(&str, &str, &[&str])] = &[
    ("all", "default", &["devices", "--all"]),
    ("json", "default", &["devices", "--json"]),
    ("one-function-of-a-card", "default", &["devices", "0000:81:00.0"]),
    ("one-function-of-a-card-json", "default", &["devices", "81:00.0", "--json"]),
    ("one-member-of-a-group-of-three", "default", &["devices", "04:01.0"]),
    ("one-mounted-disk", "default", &["devices", "02:00.0"]),
    ("one-root-port", "default", &["devices", "80:00.0"]),
    ("none-there", "default", &["devices", "99:00.0"]),
    ("neither-address-nor-file", "default", &["devices", "99:00"]),
    ("of-a-profile", "default", &["devices", "profiles/lab-compute.toml"]),
    ("of-a-profile-whose-devices-are-elsewhere", "workstation", &["devices", "profiles/two-gpus.toml"]),
];

/// Two mistakes.
const WRONG_QUIRKS: &str = "[[quirk]]\nname = \"mine\"\nvendr = \"10de\"\nbehaviour = \"it hangs\"\neffects = [\"explodes\"]\n\
                            advice = \"wait\"\nsource = \"us\"\nconfidence = \"one-report\"\n";

/// A profile may describe its devices: those that fit are listed, as if it named them.
#[test]
fn devices_of_a_profile_are_those_that_it_describes() {
    let host = hosts::two_identical();
    let folder = tempfile::tempdir().unwrap();
    let list = |device: &str| {
        let profile = folder.path().join("vm.toml");
        let text = format!(
            "version = 1\nname = \"x\"\nfirmware = \"bios\"\nmemory.size = \"1G\"\ncpu.count = 1\n[[device]]\n{device}\n"
        );
        std::fs::write(&profile, text).unwrap();
        run(&host.path("/"), &["devices", &profile.display().to_string()])
    };
    for bdf in ["0000:0b:00.0", "0000:0c:00.0"] {
        let named = list(&format!("bdf = \"{bdf}\""));
        assert!(named.contains(bdf), "{named}");
        let slot = bdf.strip_suffix(".0").unwrap();
        assert_eq!(list(&format!("select = {{ slot = \"{slot}\", class = \"0300\" }}")), named);
    }
}

#[test]
fn devices_are_listed_as_they_were() {
    let mut cases = Vec::new();
    for name in recorded::names().unwrap() {
        let host = recorded::lay_out(&name).unwrap();
        cases.push((name.clone(), run(host.path(), &["devices"])));
        for (case, _, args) in ASKED.iter().filter(|(_, host, _)| *host == name) {
            cases.push((format!("{name}-{case}"), run(host.path(), args)));
        }
    }
    for (name, make) in hosts::ALL {
        cases.push((name.replace('_', "-"), run(&named(*make).path("/"), &["devices"])));
    }
    let host = named(hosts::sriov);
    let ask = |words: &[&str]| run(&host.path("/"), words);
    cases.push(("sriov-all".to_owned(), ask(&["devices", "--all"])));
    cases.push(("sriov-physical-function".to_owned(), ask(&["devices", "3b:00.0"])));
    let host = named(hosts::known_quirks);
    let ask = |words: &[&str]| run(&host.path("/"), words);
    cases.push(("known-quirks-of-the-kernel".to_owned(), ask(&["devices", "41:00.0"])));
    cases.push(("known-quirks-reported".to_owned(), ask(&["devices", "61:00.0"])));
    cases.push(("known-quirks-json".to_owned(), ask(&["devices", "81:00.0", "--json"])));
    host.file("/etc/gpuvm/quirks.d/10-wrong.toml", WRONG_QUIRKS);
    cases.push(("known-quirks-that-cant-be-read".to_owned(), ask(&["devices"])));
    compare("devices", cases);
}

#[test]
fn trees_are_as_they_were() {
    let mut cases = Vec::new();
    for name in recorded::names().unwrap() {
        cases.push((name.clone(), run(recorded::lay_out(&name).unwrap().path(), &["topology"])));
    }
    for (name, make) in hosts::ALL {
        cases.push((name.replace('_', "-"), run(&named(*make).path("/"), &["topology"])));
    }
    let host = recorded::lay_out("workstation").unwrap();
    cases.push(("workstation-json".to_owned(), run(host.path(), &["topology", "--json"])));
    let nowhere = ["topology", "--svg", "/proc/no/such/folder.svg"];
    cases.push(("picture-to-nowhere".to_owned(), run(host.path(), &nowhere)));
    compare("topology", cases);
}

/// README shows one of these.
#[test]
fn pictures_are_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.svg").display().to_string();
    let draw = |name: String| {
        let host = recorded::lay_out(&name).unwrap();
        assert_eq!(run(host.path(), &["topology", "--svg", &file]), "exit 0\n");
        (name, std::fs::read_to_string(&file).unwrap())
    };
    compare_as("svg", "topology-svg", recorded::names().unwrap().into_iter().map(draw));
}
