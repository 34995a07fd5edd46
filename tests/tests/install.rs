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

/// A program that makes its completions and its manual as gpuvm does, and says its version in them.
fn write_program(path: &Path, version: &str) {
    let script = format!(
        "#!/bin/sh\ncase $1 in\n    completions) echo \"$2 of the {version}\" ;;\n    man)\n        mkdir -p \"$2\"\n        \
         for page in gpuvm gpuvm-up gpuvm-soak-report; do echo \"page of the {version}\" > \"$2/$page.1\"; done ;;\n    \
         *) exit 64 ;;\nesac\n"
    );
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Install {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        let program = outside.path().join("gpuvm");
        write_program(&program, "first version");
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
    let share = Path::new(program).parent().unwrap().parent().unwrap().join("share");
    let shared = [
        "bash-completion/completions/gpuvm",
        "zsh/site-functions/_gpuvm",
        "fish/vendor_completions.d/gpuvm.fish",
        "man/man1/gpuvm.1",
        "man/man1/gpuvm-up.1",
        "man/man1/gpuvm-soak-report.1",
    ];
    let cleanup = Path::new(units).join("gpuvm-cleanup.service");
    let template = Path::new(units).join("gpuvm@.service");
    assert_eq!(files.keys().cloned().collect::<Vec<_>>(), {
        let mut expected = vec![PathBuf::from(program), cleanup.clone(), template.clone()];
        expected.extend(shared.iter().map(|name| share.join(name)));
        expected.sort();
        expected
    });
    for (path, (mode, ..)) in &files {
        assert_eq!(*mode, if path == Path::new(program) { 0o755 } else { 0o644 }, "{}", path.display());
    }
    for (unit, line) in [
        (&cleanup, format!("\nExecStart=/{program} cleanup\n")),
        (&template, format!("\nExecStart=/{program} up /etc/gpuvm/profiles/%i.toml\n")),
        (&template, format!("\nExecStopPost=-/{program} cleanup %i\n")),
    ] {
        let text = String::from_utf8(files[unit].2.clone()).unwrap();
        assert!(text.contains(&line), "{text}");
        assert!(!text.contains("/usr/local") || program.starts_with("usr/local"), "{text}");
    }
    for (shell, name) in ["bash", "zsh", "fish"].iter().zip(shared) {
        assert_eq!(files[&share.join(name)].2, format!("{shell} of the first version\n").into_bytes());
    }
    assert!(install.root.path().join("etc/gpuvm/profiles").is_dir());
}

#[test]
fn install_again_touches_nothing_and_a_new_program_replaces_the_old_one() {
    let install = Install::new();
    install.runs(&[]);
    let first = install.files();
    install.runs(&[]);
    assert_eq!(install.files(), first);

    let kept = fs::File::open(install.root.path().join("usr/local/bin/gpuvm")).unwrap();
    write_program(&install.program, "second version");
    install.runs(&[]);
    let second = install.files();
    assert_eq!(second.len(), first.len());
    for name in ["bin/gpuvm", "share/man/man1/gpuvm-up.1", "share/zsh/site-functions/_gpuvm"] {
        let (_, _, bytes) = &second[&Path::new("usr/local").join(name)];
        assert!(String::from_utf8_lossy(bytes).contains("of the second version"), "{name}");
    }
    // Whoever runs the old one keeps it.
    assert!(std::io::read_to_string(kept).unwrap().contains("of the first version"));
}

#[test]
fn install_uninstall_removes_what_was_installed_and_nothing_else() {
    let install = Install::new();
    let state = install.root.path().join("var/lib/gpuvm/vm/one/vars.fd");
    let page = install.root.path().join("usr/local/share/man/man1/gpu-viewer.1");
    let profile = install.root.path().join("etc/gpuvm/profiles/one.toml");
    for path in [&state, &page, &profile] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "somebody's").unwrap();
    }
    install.runs(&[]);
    assert!(install.files().len() > 3);
    install.runs(&["--uninstall"]);
    assert_eq!(
        install.files().into_keys().collect::<Vec<_>>(),
        [
            PathBuf::from("etc/gpuvm/profiles/one.toml"),
            PathBuf::from("usr/local/share/man/man1/gpu-viewer.1"),
            PathBuf::from("var/lib/gpuvm/vm/one/vars.fd"),
        ]
    );
    fs::remove_file(profile).unwrap();
    install.runs(&["--uninstall"]);
    assert!(!install.root.path().join("etc/gpuvm").exists());
}

#[test]
fn install_of_a_program_that_is_for_another_machine_puts_nothing_anywhere() {
    let install = Install::new();
    fs::write(&install.program, "\x7fELF and what no kernel runs").unwrap();
    let output = install.run(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it for this machine?"), "{output:?}");
    assert!(install.files().is_empty());
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
