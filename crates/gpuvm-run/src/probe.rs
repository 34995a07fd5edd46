//! Asks a QEMU what it can do, once: it takes a tenth of a second, and the answer stays as long as the program and the host do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpuvm_core::facts::{Access, HostFacts, Presence, QemuFacts, QemuProbe};
use gpuvm_core::qemu::abilities::{NeededType, TYPES, TypeKind};
use gpuvm_core::qemu::probe_argv;
use gpuvm_host::places::Places;
use gpuvm_qmp::{Error, Qmp, verbs::Property};
use gpuvm_sys::process::{self, Child, Signal, SpawnSpec};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// How long QEMU may take to answer everything.
const WITHIN: Duration = Duration::from_secs(5);
/// What each question is given: the time for all of them is what counts.
const EACH: Duration = Duration::from_secs(10);
/// How long it may take to end when told to.
const ENDING: Duration = Duration::from_secs(1);
/// Where distributions put the modules of QEMU; a new one there is a new ability of the same program.
const MODULES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu-kvm", "/usr/lib64/qemu", "/usr/lib/qemu"];

/// What an answer holds for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    binary: PathBuf,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Folders of modules, with the time of their last change.
    modules: Vec<(PathBuf, (i64, i64))>,
    kernel: String,
    kvm: Access,
    /// What is asked: another gpuvm may ask more.
    types: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    key: Key,
    facts: QemuFacts,
}

/// Asks the host's QEMU what it can do, or recalls what it said. To be called on the main thread and outside of any runtime: QEMU
/// dies with the thread that started it.
pub fn probe(facts: &HostFacts, places: &Places) -> QemuProbe {
    let Some(binary) = &facts.qemu else { return QemuProbe::NotAsked };
    let key = match Key::of(binary, facts) {
        Ok(key) => key,
        Err(error) => return QemuProbe::Failed { why: format!("{}: {error}", binary.display()) },
    };
    let file = places.probes().join(file_name(binary));
    if let Some(facts) = recalled(&file, &key) {
        return QemuProbe::Answered(facts);
    }
    match ask(binary) {
        Ok(facts) => {
            // An answer that can't be kept is asked for again; only who may run VMs may write there.
            if let Err(error) = keep(&file, Cached { key, facts: facts.clone() }) {
                tracing::debug!("{} can't be written: {error}", file.display());
            }
            QemuProbe::Answered(facts)
        }
        Err(NoAnswer::Late) => QemuProbe::Late { seconds: WITHIN.as_secs() },
        Err(NoAnswer::Failed(why)) => QemuProbe::Failed { why },
    }
}

/// Why there is no answer.
enum NoAnswer {
    /// The deadline has come.
    Late,
    /// Something else, in words.
    Failed(String),
}

impl From<String> for NoAnswer {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Key {
    fn of(binary: &Path, facts: &HostFacts) -> io::Result<Self> {
        let data = fs::metadata(binary)?;
        let own = std::env::var_os("QEMU_MODULE_DIR").map(PathBuf::from);
        let folders = own.into_iter().chain(MODULES.into_iter().map(PathBuf::from));
        let times = |path: PathBuf| {
            let data = fs::metadata(&path).ok()?;
            Some((path, (data.mtime(), data.mtime_nsec())))
        };
        Ok(Self {
            binary: binary.to_owned(),
            inode: data.ino(),
            bytes: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
            modules: folders.filter_map(times).collect(),
            kernel: facts.kernel.release.clone(),
            kvm: facts.kvm,
            types: TYPES.iter().map(|needed| needed.name.to_owned()).collect(),
        })
    }
}

/// Names the file of a program's answer; programs that come to one name take turns in it, since the key has the path.
fn file_name(binary: &Path) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = binary.to_string_lossy().chars().map(plain).collect();
    // All of it is ASCII now.
    let end = name.get(name.len().saturating_sub(200)..).unwrap_or_default();
    format!("{}.json", end.trim_start_matches('-'))
}

fn recalled(file: &Path, key: &Key) -> Option<QemuFacts> {
    let cached: Cached = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (cached.key == *key).then_some(cached.facts)
}

fn keep(file: &Path, cached: Cached) -> io::Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
    let partial = file.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, serde_json::to_vec(&cached)?)?;
    fs::rename(&partial, file)
}

/// Starts QEMU without a machine, asks it, and sees to its end.
fn ask(binary: &Path) -> Result<QemuFacts, NoAnswer> {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start tokio: {error}"))?;
    let (monitor, theirs) = StdStream::pair().map_err(|error| format!("make a socket: {error}"))?;
    let (mut said, tells) = StdStream::pair().map_err(|error| format!("make a socket: {error}"))?;
    let mut child = start(binary, theirs.into(), tells).map_err(|error| error.to_string())?;
    let answer = runtime.block_on(async {
        let asked = async {
            monitor.set_nonblocking(true).map_err(|error| error.to_string())?;
            let monitor = UnixStream::from_std(monitor).map_err(|error| error.to_string())?;
            let (qmp, _events) = Qmp::handshake(monitor, EACH).await.map_err(|error| error.to_string())?;
            let facts = questions(&qmp).await.map_err(|error| error.to_string())?;
            qmp.quit(ENDING).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(facts)
        };
        let asked = tokio::time::timeout(WITHIN.saturating_sub(begun.elapsed()), asked).await;
        asked.map_or(Err(NoAnswer::Late), |asked| asked.map_err(NoAnswer::Failed))
    });
    end(&mut child, answer.is_ok());
    answer.map_err(|no_answer| match (no_answer, words(&mut said)) {
        (NoAnswer::Failed(why), said) if !said.is_empty() => {
            NoAnswer::Failed(format!("{why}; it said: {said}"))
        }
        (no_answer, _) => no_answer,
    })
}

fn start(binary: &Path, monitor: OwnedFd, stderr: StdStream) -> Result<Child, process::SpawnError> {
    let source = |source| process::SpawnError { step: process::SpawnStep::Prepare, source };
    let stdout = stderr.try_clone().map_err(source)?;
    let mut argv = vec![binary.as_os_str().to_owned()];
    argv.extend(probe_argv(monitor.as_raw_fd()));
    process::spawn(SpawnSpec {
        argv,
        env: Vec::new(),
        fds: vec![monitor],
        stdout: stdout.into(),
        stderr: stderr.into(),
        death_signal: Some(Signal::SIGKILL),
        memlock: None,
        record: None,
    })
}

async fn questions(qmp: &Qmp) -> Result<QemuFacts, Error> {
    let version = qmp.version();
    let kvm = qmp.query_kvm(EACH).await?;
    let mut types = BTreeMap::new();
    for needed in &TYPES {
        if let Some(properties) = properties(qmp, needed).await? {
            types.insert(needed.name.to_owned(), properties);
        }
    }
    Ok(QemuFacts {
        version: (version.major, version.minor, version.micro),
        package: version.package.clone(),
        kvm: if kvm.present { Presence::Present } else { Presence::Absent },
        types,
    })
}

/// Asks for a type's properties, which also loads the module that has it; nothing where QEMU doesn't know it.
async fn properties(qmp: &Qmp, needed: &NeededType) -> Result<Option<BTreeSet<String>>, Error> {
    let listed = match needed.kind {
        TypeKind::Device => qmp.device_list_properties(needed.name, EACH).await,
        TypeKind::Object => {
            let arguments = serde_json::json!({ "typename": needed.name });
            qmp.execute_as::<Vec<Property>>("qom-list-properties", arguments, EACH).await
        }
    };
    match listed {
        Ok(properties) => Ok(Some(properties.into_iter().map(|property| property.name).collect())),
        Err(Error::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sees to it that nothing of QEMU is left.
fn end(child: &mut Child, told: bool) {
    if told && matches!(child.wait_deadline(ENDING), Ok(Some(_))) {
        return;
    }
    // One that has ended but wasn't collected takes the signal too, and then there is nothing to end.
    if let Err(error) = child.kill_group(Signal::SIGKILL) {
        tracing::debug!("ending the QEMU that was asked: {error}");
    }
    match child.wait_deadline(ENDING) {
        Ok(Some(_)) => {}
        left => tracing::warn!("QEMU {} was killed and hasn't ended: {left:?}", child.pid()),
    }
}

/// Returns the first line of what QEMU said. What it says later is for nobody.
fn words(said: &mut StdStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = said.set_nonblocking(true).and_then(|()| said.read(&mut bytes)).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned()
}
