//! What a process keeps in memory without need.

use std::fs;
use std::io;
use std::ops::Range;

/// Gives back what a process that will be quiet for a while has no use for: the heap's free pages (malloc_trim(3)), and the pages of its own code, of which
/// each comes back from the kernel's cache of the file when it is next executed.
///
/// # Errors
/// What of /proc can't be read or isn't as it should be; the errno of madvise(2).
pub fn settle() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and glibc locks each arena that it looks at.
    unsafe {
        libc::malloc_trim(0)
    };
    let here = settle as fn() -> io::Result<()> as usize;
    let code = code_at(&fs::read_to_string("/proc/self/maps")?, here);
    let code = code.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/maps: no code"))?;
    let start = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: the range is one mapping of a file that nobody has written to in this process: it was never writable, so whoever touches it again finds
    // what was there.
    match unsafe { libc::madvise(start, code.end - code.start, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the mapping of code that an address is in, by lines of proc_pid_maps(5); nothing where it could be written to or belongs to no file.
fn code_at(maps: &str, address: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let is_code = fields.next()? == "r-xp" && fields.nth(2)? != "0";
        (is_code && range.contains(&address)).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_dropped_and_comes_back() {
        let resident = || {
            let maps = fs::read_to_string("/proc/self/smaps").unwrap();
            let code = code_at(
                &fs::read_to_string("/proc/self/maps").unwrap(),
                settle as fn() -> io::Result<()> as usize,
            );
            let head = format!("{:x}-", code.unwrap().start);
            let (_, own) = maps.split_once(&format!("\n{head}")).unwrap();
            let rss = own.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
        };
        let sorted = |mut words: Vec<String>| {
            words.sort();
            words.join(",")
        };
        let words = || ["c", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(sorted(words()), "a,b,c");
        let before = resident();
        settle().unwrap();
        let after = resident();
        assert!(after < before, "{before} KiB, then {after}");
        assert_eq!(sorted(words()), "a,b,c");
    }

    #[test]
    fn what_could_be_written_to_is_no_code_and_what_has_no_file_neither() {
        let maps = "1000-2000 r--p 00000000 fe:00 12 /bin/a\n2000-4000 r-xp 00001000 fe:00 12 /bin/a b\n\
                    4000-5000 rwxp 00000000 fe:00 12 /bin/a\n6000-7000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(code_at(maps, 0x3fff), Some(0x2000..0x4000));
        for address in [0x1000, 0x4000, 0x5000, 0x6000] {
            assert_eq!(code_at(maps, address), None, "{address:#x}");
        }
    }
}
