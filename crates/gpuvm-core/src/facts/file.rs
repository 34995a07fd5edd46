//! Facts as a file: what `gpuvm report` writes, and `--facts` reads on another machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::HostFacts;
use crate::units::ByteSize;

/// The version of the form below. It grows when a reader of an older form would misunderstand; new fields of facts are none of that.
pub const FORMAT: u32 = 1;

/// More than any machine has: sums of sizes up to it stay far below 64 bits.
const SIZE_MAX: ByteSize = ByteSize::bytes(1 << 52);

/// Facts with what a reader must know of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsFile {
    /// [`FORMAT`] of whoever wrote it.
    #[serde(rename = "gpuvm-facts")]
    pub format: u32,
    /// The version of the gpuvm that wrote it.
    pub gpuvm: String,
    /// The folder that relative paths of the profile start from, where a profile was given.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// The facts.
    pub facts: HostFacts,
}

/// What is read first, whatever else there is.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "gpuvm-facts")]
    format: Option<u32>,
    #[serde(default)]
    gpuvm: Option<String>,
}

/// Why a text is no file of facts that this gpuvm can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsFileError {
    /// Not JSON at all.
    #[error("it isn't JSON: {problem}")]
    NotJson {
        /// Where it ends to be JSON.
        problem: String,
    },
    /// JSON of something else.
    #[error("it is JSON, but no facts of gpuvm: there is no `gpuvm-facts` in it")]
    Foreign,
    /// Of a gpuvm that is newer than this.
    #[error("gpuvm {gpuvm} has written it in format {format}, and this one reads formats up to {FORMAT}")]
    Newer {
        /// Its format.
        format: u32,
        /// Who wrote it.
        gpuvm: String,
    },
    /// Facts that make no sense.
    #[error("its facts are damaged: {problem}")]
    Damaged {
        /// What is wrong with them.
        problem: String,
    },
}

impl FactsFile {
    /// Makes the file's content.
    pub fn new(gpuvm: &str, base: Option<PathBuf>, facts: HostFacts) -> Self {
        Self { format: FORMAT, gpuvm: gpuvm.to_owned(), base, facts }
    }

    /// Reads a file's bytes, which may come from anywhere.
    ///
    /// # Errors
    /// Says what it is instead.
    pub fn parse(bytes: &[u8]) -> Result<Self, FactsFileError> {
        let damaged = |problem: String| FactsFileError::Damaged { problem };
        let header: Header = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => FactsFileError::Foreign,
            _ => FactsFileError::NotJson { problem: error.to_string() },
        })?;
        match header.format {
            None | Some(0) => return Err(FactsFileError::Foreign),
            Some(format @ FORMAT..) if format > FORMAT => {
                let gpuvm = header.gpuvm.unwrap_or_else(|| "of an unknown version".to_owned());
                return Err(FactsFileError::Newer { format, gpuvm });
            }
            Some(_) => {}
        }
        let file: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        match absurd(&file.facts) {
            Some(problem) => Err(damaged(problem)),
            None => Ok(file),
        }
    }
}

/// Finds a figure that no machine has. What is read from a kernel needs no such look: it has no such figures.
fn absurd(facts: &HostFacts) -> Option<String> {
    let too_large = |size: &ByteSize| *size > SIZE_MAX;
    for (node, known) in &facts.nodes {
        if let Some(size) = [known.memory, known.memory_free].iter().find(|size| too_large(size)) {
            return Some(format!("node {node} has {size} of memory"));
        }
        let pages = |(page, pool): (&crate::units::PageSize, &super::HugepagePool)| {
            pool.total.max(pool.free).saturating_mul(page.as_bytes()) > SIZE_MAX.as_bytes()
        };
        if known.hugepages.iter().any(pages) {
            return Some(format!("node {node} has more hugepages than any machine"));
        }
    }
    let odd = |size: &ByteSize| too_large(size) || *size == ByteSize::bytes(0);
    for (bdf, device) in &facts.devices {
        let bars = device.bars.iter().map(|bar| (bar.index, bar.size));
        let sizes = device.resizable.iter().flat_map(|bar| bar.sizes.iter().map(|size| (bar.index, *size)));
        if let Some((index, size)) = bars.chain(sizes).find(|(_, size)| odd(size)) {
            return Some(format!("BAR {index} of {bdf} has {size} bytes"));
        }
        let ends = |bar: &super::BarFacts| {
            bar.address.is_none_or(|at| at.checked_add(bar.size.as_bytes()).is_some())
        };
        if let Some(bar) = device.bars.iter().find(|bar| !ends(bar)) {
            return Some(format!("BAR {} of {bdf} reaches beyond all addresses", bar.index));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::facts::{BarFacts, BarKind, DeviceFacts, HugepagePool, NodeFacts};
    use crate::units::PageSize;

    fn facts() -> HostFacts {
        let mut facts = HostFacts::default();
        facts.kernel.release = "6.12.0".into();
        let mut device =
            DeviceFacts::new("10de:2330".parse().unwrap(), crate::pci::ClassCode::new(0x03_0200).unwrap());
        let size = ByteSize::bytes(1 << 37);
        device.bars = vec![BarFacts { index: 1, size, address: Some(1 << 40), kind: BarKind::High }];
        facts.devices.insert("0000:81:00.0".parse().unwrap(), device);
        let pool = HugepagePool { total: 4, free: 4 };
        let node = NodeFacts {
            cpus: "0-3".parse().unwrap(),
            memory: ByteSize::bytes(64 << 30),
            hugepages: [(PageSize::M2, pool), (PageSize::G1, pool)].into(),
            ..NodeFacts::default()
        };
        facts.nodes.insert(0, node);
        facts
    }

    fn text() -> String {
        serde_json::to_string(&FactsFile::new("0.1.0", Some("/srv".into()), facts())).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(FactsFile::parse(text().as_bytes()).unwrap().facts, facts());
    }

    #[rstest]
    #[case::empty("", "isn't JSON")]
    #[case::text("hello", "isn't JSON")]
    #[case::cut_short("{\"gpuvm-facts\": 1, \"gpuvm\": \"0.1", "isn't JSON")]
    #[case::deep(&"{\"a\":".repeat(100_000), "isn't JSON")]
    #[case::a_list("[1, 2]", "no facts of gpuvm")]
    #[case::another_document("{\"plan\": {}}", "no facts of gpuvm")]
    #[case::format_of_words("{\"gpuvm-facts\": \"one\"}", "no facts of gpuvm")]
    #[case::newer(
        "{\"gpuvm-facts\": 2, \"gpuvm\": \"9.0.0\", \"facts\": []}",
        "gpuvm 9.0.0 has written it in format 2"
    )]
    #[case::without_facts("{\"gpuvm-facts\": 1, \"gpuvm\": \"0.1.0\"}", "missing field `facts`")]
    fn what_is_no_file_of_facts_is_refused_by_what_it_is(#[case] text: &str, #[case] says: &str) {
        let error = FactsFile::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case::bar("\"size\":\"128G\"", "\"size\":\"8388608T\"", "BAR 1 of 0000:81:00.0")]
    #[case::bar_of_nothing("\"size\":\"128G\"", "\"size\":\"0\"", "BAR 1 of 0000:81:00.0")]
    #[case::bar_beyond_the_end(
        "\"address\":1099511627776",
        "\"address\":18446744073709551615",
        "beyond all addresses"
    )]
    #[case::memory("\"memory\":\"64G\"", "\"memory\":\"16777215T\"", "node 0 has 16777215T")]
    #[case::pages("\"total\":4", "\"total\":18446744073709551615", "more hugepages")]
    #[case::cpus("\"0-3\"", "\"0-4294967295\"", "no list like")]
    #[case::address("0000:81:00.0", "0000:81:99.0", "no PCI address")]
    fn figures_that_no_machine_has_are_refused(#[case] was: &str, #[case] now: &str, #[case] says: &str) {
        let text = text();
        assert!(text.contains(was), "{was} isn't in {text}");
        let error = FactsFile::parse(text.replace(was, now).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    proptest! {
        #[test]
        fn mutilated_files_are_errors_or_facts_and_never_panics(
            at in any::<proptest::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 0..4), cut: bool
        ) {
            let mut text = text().into_bytes();
            let at = at.index(text.len());
            if cut { text.truncate(at) } else { text.splice(at..at, bytes); }
            let _ = FactsFile::parse(&text);
        }
    }
}
