//! CPU affinity of threads, without the limit of 1024 CPUs that a fixed `cpu_set_t` has.

use nix::errno::Errno;
use std::io;

/// More CPUs than any kernel can be built for (`NR_CPUS` ends at 8192 on x86): a number from there on is a mistake, not a machine.
const MAX_CPUS: u32 = 65_536;
const WORD_BITS: u32 = u64::BITS;

/// Lets thread `tid` (0: the calling one) run on `cpus` only.
///
/// The kernel takes the part of the set that the thread's cpuset allows and reports success if that is not empty: read [`affinity`] back where
/// every CPU counts.
///
/// # Errors
/// `InvalidInput` for an empty set or a CPU number of 65536 or more; ESRCH when the thread is gone, EINVAL when none of the CPUs is usable, EPERM for
/// somebody else's thread (sched_setaffinity(2)).
pub fn set_affinity(tid: i32, cpus: &[u32]) -> io::Result<()> {
    let mask = mask_of(cpus)?;
    // SAFETY: the pointer and the length describe `mask`, which the kernel only reads and which outlives the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            libc::c_long::from(tid),
            size_of_val(mask.as_slice()),
            mask.as_ptr(),
        )
    };
    Errno::result(rc)?;
    Ok(())
}

/// The CPUs that thread `tid` (0: the calling one) may run on, ascending.
///
/// # Errors
/// ESRCH when the thread is gone (sched_getaffinity(2)).
pub fn affinity(tid: i32) -> io::Result<Vec<u32>> {
    // EINVAL means that the kernel's own mask is longer than the buffer, so the buffer grows.
    let mut words = 16;
    loop {
        let mut mask = vec![0_u64; words];
        // SAFETY: the pointer and the length describe `mask`, which outlives the call; the kernel writes no more than the length.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                libc::c_long::from(tid),
                size_of_val(mask.as_slice()),
                mask.as_mut_ptr(),
            )
        };
        match Errno::result(rc) {
            Ok(_) => return Ok(cpus_of(&mask)),
            Err(Errno::EINVAL) if mask_bits(words) < u64::from(MAX_CPUS) => words *= 2,
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn mask_bits(words: usize) -> u64 {
    u64::try_from(words).unwrap_or(u64::MAX).saturating_mul(u64::from(WORD_BITS))
}

fn mask_of(cpus: &[u32]) -> io::Result<Vec<u64>> {
    let Some(&highest) = cpus.iter().max() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the CPU set is empty"));
    };
    if highest >= MAX_CPUS {
        let text = format!("CPU {highest} is beyond the highest number that is taken, {}", MAX_CPUS - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut mask = vec![0_u64; highest as usize / WORD_BITS as usize + 1];
    for &cpu in cpus {
        mask[cpu as usize / WORD_BITS as usize] |= 1 << (cpu % WORD_BITS);
    }
    Ok(mask)
}

fn cpus_of(mask: &[u64]) -> Vec<u32> {
    let bits = (0_u32..).step_by(WORD_BITS as usize).zip(mask);
    bits.flat_map(|(base, word)| {
        (0..WORD_BITS).filter(move |bit| word >> bit & 1 == 1).map(move |bit| base + bit)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[0], &[1])]
    #[case(&[1, 0, 1], &[3])]
    #[case(&[63, 64, 1024], &[1 << 63, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]
    fn masks_hold_the_cpus_that_were_put_in(#[case] cpus: &[u32], #[case] mask: &[u64]) {
        assert_eq!(mask_of(cpus).unwrap(), mask);
        let mut sorted = cpus.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(cpus_of(mask), sorted);
    }

    #[rstest]
    #[case(&[])]
    #[case(&[65_536])]
    #[case(&[0, u32::MAX])]
    fn senseless_sets_are_refused_before_the_kernel_sees_them(#[case] cpus: &[u32]) {
        assert_eq!(set_affinity(0, cpus).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_thread_can_be_pinned_and_the_pin_read_back() {
        std::thread::spawn(|| {
            let all = affinity(0).unwrap();
            let last = *all.last().unwrap();
            set_affinity(0, &[last]).unwrap();
            assert_eq!(affinity(0).unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn errors_carry_the_errno() {
        assert_eq!(affinity(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(set_affinity(i32::MAX, &[0]).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(set_affinity(0, &[60_000]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
