//! `scripts/install` below a folder that stands for the root: nothing of this machine is touched.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rstest::rstest;

/// Files below a folder: mode, inode and content by path.
type Files = BTreeMap<PathBuf, (u32, u64, Vec<u8>)>;

struct Install {
    root: tempfile::TempDir,
    program: PathBuf,
    outside: tempfile::TempDir,
}

impl Install {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        let program = outside.path().join("gpuvm");
        fs::write(&program, "first version").unwrap();
        Self { root: tempfile::tempdir().unwrap(), program, outside }
    }

    fn run(&self, args: &[&str]) -> Output {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut install = Command::new(repository.join("scripts/install"));
        install.env_remove("PREFIX").env_remove("DESTDIR").arg("--destdir").arg(self.root.path());
        let output = install.arg("--bin").arg(&self.program).args(args).output().unwrap();
        assert!(self.outside.path().read_dir().unwrap().count() == 1, "a file beside the program");
        output
    }

    fn runs(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let metadata = fs::metadata(&path).unwrap();
                let name = path.strip_prefix(self.root.path()).unwrap().to_owned();
                let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
                files.insert(name, (metadata.permissions().mode() & 0o7777, inode, fs::read(&path).unwrap()));
            }
        }
        files
    }
}

#[rstest]
#[case::usual(&[], "usr/local/bin/gpuvm", "usr/local/lib/systemd/system")]
#[case::package(&["--prefix", "/usr"], "usr/bin/gpuvm", "usr/lib/systemd/system")]
#[case::elsewhere(&["--prefix", "/opt/gpuvm/"], "opt/gpuvm/bin/gpuvm", "etc/systemd/system")]
fn install_puts_program_and_units_where_the_prefix_says(
    #[case] args: &[&str],
    #[case] program: &str,
    #[case] units: &str,
) {
    let install = Install::new();
    install.runs(args);
    let files = install.files();
    let unit = Path::new(units).join("gpuvm-cleanup.service");
    assert_eq!(files.keys().cloned().collect::<Vec<_>>(), {
        let mut expected = vec![PathBuf::from(program), unit.clone()];
        expected.sort();
        expected
    });
    assert_eq!((files[Path::new(program)].0, files[&unit].0), (0o755, 0o644));
    let text = String::from_utf8(files[&unit].2.clone()).unwrap();
    assert!(text.contains(&format!("\nExecStart=/{program} cleanup\n")), "{text}");
    assert!(!text.contains("/usr/local") || program.starts_with("usr/local"), "{text}");
}

#[test]
fn install_again_touches_nothing_and_a_new_program_replaces_the_old_one() {
    let install = Install::new();
    install.runs(&[]);
    let first = install.files();
    install.runs(&[]);
    assert_eq!(install.files(), first);

    let kept = fs::File::open(install.root.path().join("usr/local/bin/gpuvm")).unwrap();
    fs::write(&install.program, "second version").unwrap();
    install.runs(&[]);
    let second = install.files();
    assert_eq!(second.len(), first.len());
    assert_eq!(second[Path::new("usr/local/bin/gpuvm")].2, b"second version");
    // Whoever runs the old one keeps it.
    assert_eq!(std::io::read_to_string(kept).unwrap(), "first version");
}

#[test]
fn install_uninstall_removes_what_was_installed_and_nothing_else() {
    let install = Install::new();
    let state = install.root.path().join("var/lib/gpuvm/vm/one/vars.fd");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    fs::write(&state, "variables").unwrap();
    install.runs(&[]);
    install.runs(&["--uninstall"]);
    assert_eq!(
        install.files().into_keys().collect::<Vec<_>>(),
        [PathBuf::from("var/lib/gpuvm/vm/one/vars.fd")]
    );
    install.runs(&["--uninstall"]);
}

#[rstest]
#[case::relative(&["--prefix", "opt"], "doesn't begin with /")]
#[case::unspeakable(&["--prefix", "/opt/my programs"], "can't name plainly")]
#[case::no_value(&["--prefix"], "needs a value")]
#[case::unknown(&["--force"], "unknown option")]
fn install_refuses_what_it_cannot_do_with_a_reason(#[case] args: &[&str], #[case] reason: &str) {
    let install = Install::new();
    let output = install.run(args);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(reason), "{output:?}");
    assert!(install.files().is_empty());
}

#[test]
fn install_without_a_program_says_how_to_build_one() {
    let install = Install::new();
    fs::remove_file(&install.program).unwrap();
    fs::write(install.outside.path().join("other"), "").unwrap();
    let output = install.run(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo build --release -p gpuvm"), "{output:?}");
    assert!(install.files().is_empty());
}
