//! The program file's own pages in memory.
//!
//! Starting runs most of a program once: it reads settings, sets up links, asks Docker. The kernel keeps what
//! that touched mapped for as long as the process lives, though it is never needed again. Given back, it is
//! read from the file again, page by page, if it is needed after all.
//!
//! Invariant: only pages that are what the file says are given back, never one that was written to.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use nix::libc;

/// Gives back the pages of this program's code and constants.
///
/// # Errors
/// If the kernel does not say what is mapped, or keeps it.
pub fn give_back() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let program = fs::read_link("/proc/self/exe")?;
    for range in unwritten(&maps, &program) {
        let (start, len) = (range.start as *mut libc::c_void, range.len());
        // SAFETY: a private mapping of a file that nobody has written to through it; to drop its pages changes
        // nothing that is read there.
        if unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What of the program is mapped as it is in the file: its code, and what comes before that. What comes after
/// was written to while it was loaded, even if it is read-only now.
fn unwritten(maps: &str, program: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for line in maps.lines() {
        let Some((range, rest)) = line.split_once(' ') else {
            continue;
        };
        let path = rest.find('/').and_then(|at| rest.get(at..));
        let is_program = path.is_some_and(|path| Path::new(path) == program);
        let bounds = range.split_once('-').and_then(|(start, end)| {
            let bound = |hex| usize::from_str_radix(hex, 16).ok();
            Some(bound(start)?..bound(end)?)
        });
        let Some(bounds) = bounds.filter(|_| is_program) else {
            continue;
        };
        match rest.get(..4) {
            Some("r--p") => found.push(bounds),
            Some("r-xp") => {
                found.push(bounds);
                return found;
            }
            Some(_) | None => return Vec::new(),
        }
    }
    // Without code it is not what it is taken for.
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c04d9000 r--p 00000000 fe:00 1 /usr/bin/weft
55d0c04d9000-55d0c15ca000 r-xp 004d8000 fe:00 1 /usr/bin/weft
55d0c15ca000-55d0c1649000 r--p 015c8000 fe:00 1 /usr/bin/weft
55d0c1649000-55d0c164b000 rw-p 01646000 fe:00 1 /usr/bin/weft
55d0c2000000-55d0c2021000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000026000 r--p 00000000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000026000-7f000017c000 r-xp 00026000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6
";

    #[test]
    fn code_and_what_is_before_it_is_given_back_and_nothing_that_was_written_to() {
        let found = unwritten(MAPS, Path::new("/usr/bin/weft"));
        let expected = [
            0x55d0_c000_0000..0x55d0_c04d_9000,
            0x55d0_c04d_9000..0x55d0_c15c_a000,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_looks_otherwise_is_left_alone() {
        assert_eq!(unwritten(MAPS, Path::new("/usr/bin/other")), []);
        let one =
            "400000-500000 rwxp 00000000 fe:00 1 /w\n500000-600000 r-xp 00100000 fe:00 1 /w\n";
        assert_eq!(unwritten(one, Path::new("/w")), []);
        let data =
            "400000-500000 r--p 00000000 fe:00 1 /w\n500000-600000 rw-p 00100000 fe:00 1 /w\n";
        assert_eq!(unwritten(data, Path::new("/w")), []);
        assert_eq!(unwritten("rubbish\n\nx-y r-xp /w", Path::new("/w")), []);
    }

    #[test]
    fn the_program_goes_on_without_what_it_gave_back() {
        let own = |what: &str| {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with(what)).unwrap();
            let kilobytes = line.split_whitespace().nth(1).unwrap();
            kilobytes.parse::<u64>().unwrap()
        };
        let before = own("RssFile:");
        give_back().unwrap();
        assert!(own("RssFile:") < before);
        give_back().unwrap();
    }
}
