//! Hugepages of a node: undo drops a VM's claim; the last claim's end restores the pool.

use std::time::Duration;

use gpuvm_core::facts::HugepagePool;
use gpuvm_core::host_ops::{HostOp, PoolClaims};
use gpuvm_core::profile::VmName;
use gpuvm_core::units::{ByteSize, PageSize};

use crate::HostError;
use crate::apply::Host;
use crate::claims;
use crate::facts::memory;
use crate::kernel::Kernel;
use crate::lock::{self, Guard};
use crate::root::{HostRoot, read_parsed};

/// A claim on hugepages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolClaim<'a> {
    /// The VM that claims.
    pub(crate) vm: &'a VmName,
    /// The node.
    pub(crate) node: u32,
    /// The page size.
    pub(crate) page: PageSize,
    /// How many pages.
    pub(crate) pages: u64,
}

impl PoolClaim<'_> {
    fn key(&self) -> String {
        format!("{}-{}", self.node, self.page)
    }

    fn doing(&self) -> String {
        HostOp::ClaimHugepages { node: self.node, page: self.page, pages: self.pages }.to_string()
    }

    fn deadline(&self) -> Duration {
        resize_deadline(ByteSize::bytes(self.pages.saturating_mul(self.page.as_bytes())))
    }
}

/// How long the kernel may take to make so much of a pool. It zeroes no page here, but it may have to move others out of the
/// way; a minute and 1 s per GiB.
fn resize_deadline(size: ByteSize) -> Duration {
    Duration::from_secs(60 + (size.as_bytes() >> 30))
}

/// How long a pool's lock is waited for. Whoever has it may claim as much as the node has, and resizes the pool twice where the
/// kernel finds too little: to grow it, and to give back what it found.
fn patience(node: ByteSize) -> Duration {
    // A quarter of a minute more for the tables, which are edited in between.
    resize_deadline(node) * 2 + Duration::from_secs(15)
}

/// Takes the lock of a claim's pool.
fn lock_pool(host: &Host<'_>, claim: &PoolClaim<'_>) -> Result<Guard, HostError> {
    let node = memory::of_node(&host.kernel.root, claim.node)?;
    lock::pool(host.places, &claim.key(), patience(node))
}

/// Claims pages and grows the pool where it has too few.
///
/// # Errors
/// Returns the figure that is missing when the kernel finds too few pages, and then gives back those that it did find.
pub(crate) fn apply(host: &Host<'_>, claim: &PoolClaim<'_>) -> Result<(), HostError> {
    let _pool = lock_pool(host, claim)?;
    let pool = read_pool(&host.kernel.root, claim.node, claim.page)?;
    let mut want = 0;
    edit(host, claim, |entry| {
        let mut entry = entry.unwrap_or_else(|| PoolClaims::new(pool));
        if !entry.is_ours(pool.total) {
            entry.adopt(pool.total);
        }
        entry.written = pool.total;
        entry.claims.insert(claim.vm.to_string(), claim.pages);
        want = entry.target();
        // Written down before it is done: after a crash, cleanup finds the claim and knows which sizes are ours.
        entry.pending = (want > pool.total).then_some(want);
        Some(entry)
    })?;
    if want <= pool.total {
        return Ok(());
    }
    let have = resize(host.kernel, claim, want)?;
    settle(host, claim, have)?;
    if have >= want {
        return Ok(());
    }
    // Pages that the kernel did find are of no use to anybody now.
    give_back(host, claim)?;
    Err(HostError::Hugepages { node: claim.node, page: claim.page, need: claim.pages, want, have })
}

/// Drops a claim and shrinks the pool to what the other claims need; the last one's end restores the former size.
///
/// # Errors
/// Returns that somebody else has resized the pool since: then it is left as it is, and the claim is dropped all the same.
pub(crate) fn undo(host: &Host<'_>, claim: &PoolClaim<'_>) -> Result<(), HostError> {
    let _pool = lock_pool(host, claim)?;
    give_back(host, claim)
}

/// Drops a claim, with the pool's lock held.
fn give_back(host: &Host<'_>, claim: &PoolClaim<'_>) -> Result<(), HostError> {
    let pool = read_pool(&host.kernel.root, claim.node, claim.page)?;
    let mut ours = None;
    let mut target = None;
    edit(host, claim, |entry| {
        let mut entry = entry?;
        // A claim that was noted and never made: the pool, whatever its size, is none of this VM's business. A claim that is gone
        // while a write is pending is one whose end was cut short.
        if !entry.claims.contains_key(claim.vm.as_str()) && entry.pending.is_none() {
            return Some(entry);
        }
        if entry.is_ours(pool.total) {
            entry.claims.remove(claim.vm.as_str());
            target = Some(entry.target());
            entry.written = pool.total;
            entry.pending = target;
        } else {
            ours = Some(entry.written);
            entry.claims.remove(claim.vm.as_str());
            entry.adopt(pool.total);
        }
        Some(entry)
    })?;
    if let Some(ours) = ours {
        forget_if_unclaimed(host, claim)?;
        return Err(HostError::ChangedByOthers {
            doing: format!("give back {} hugepages of {} on node {}", claim.pages, claim.page, claim.node),
            what: format!("the pool of node {}", claim.node),
            ours: format!("{ours} pages"),
            now: format!("{} pages", pool.total),
        });
    }
    let Some(target) = target else { return Ok(()) };
    let have = if pool.total == target { target } else { resize(host.kernel, claim, target)? };
    settle(host, claim, have)?;
    if have != target {
        return Err(HostError::PoolNotRestored { node: claim.node, page: claim.page, want: target, have });
    }
    Ok(())
}

/// Notes the size that a write has led to. An entry that nobody claims anything by goes, once the pool has the size that it came with; until
/// then that is what is still to be written, and the next try finds it so.
fn settle(host: &Host<'_>, claim: &PoolClaim<'_>, have: u64) -> Result<(), HostError> {
    edit(host, claim, |entry| {
        let mut entry = entry?;
        entry.written = have;
        let settled = !entry.claims.is_empty() || entry.target() == have;
        entry.pending = (!settled).then_some(entry.target());
        Some(entry).filter(|entry| !entry.claims.is_empty() || !settled)
    })
}

fn forget_if_unclaimed(host: &Host<'_>, claim: &PoolClaim<'_>) -> Result<(), HostError> {
    edit(host, claim, |entry| entry.filter(|entry| !entry.claims.is_empty()))
}

/// Replaces a pool's entry in the table.
fn edit(
    host: &Host<'_>,
    claim: &PoolClaim<'_>,
    change: impl FnOnce(Option<PoolClaims>) -> Option<PoolClaims>,
) -> Result<(), HostError> {
    claims::edit(host.places, host.boot_id, |table| {
        let entry = change(table.hugepages.remove(&claim.key()));
        table.hugepages.extend(entry.map(|entry| (claim.key(), entry)));
    })
}

fn resize(kernel: &Kernel, claim: &PoolClaim<'_>, pages: u64) -> Result<u64, HostError> {
    let path = kernel.root.hugepage_pool(claim.node, claim.page).join("nr_hugepages");
    kernel.write(&claim.doing(), &path, &pages.to_string(), claim.deadline())?;
    Ok(read_pool(&kernel.root, claim.node, claim.page)?.total)
}

/// Reads a node's pool.
///
/// # Errors
/// Returns failures to read, a node without such a pool among them.
pub(crate) fn read_pool(root: &HostRoot, node: u32, page: PageSize) -> Result<HugepagePool, HostError> {
    let folder = root.hugepage_pool(node, page);
    let read = |name: &str| {
        let path = folder.join(name);
        read_parsed(&path)?.ok_or_else(|| HostError::content(&path, "", "there is no such pool"))
    };
    Ok(HugepagePool { total: read("nr_hugepages")?, free: read("free_hugepages")? })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::desktop(PageSize::M2, 32)]
    #[case::server(PageSize::M2, 512)]
    #[case::large_server(PageSize::G1, 3 << 10)]
    fn a_claim_of_all_that_a_node_has_ends_before_the_next_in_line_gives_up(
        #[case] page: PageSize,
        #[case] gib: u64,
    ) {
        let node = ByteSize::bytes(gib << 30);
        let vm = VmName::new("vm").unwrap();
        let claim = PoolClaim { vm: &vm, node: 0, page, pages: node.as_bytes() / page.as_bytes() };
        assert!(patience(node) > claim.deadline() * 2, "{:?}", patience(node));
    }
}
