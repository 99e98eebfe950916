//! Which thread goes first.
//!
//! A thread that hands on what has come is woken for every frame, or train of them, and does little each
//! time. At the priority of everybody else it often waits for the end of somebody's time slice first, most
//! likely of whoever sent the frame.
//!
//! Invariant: only the calling thread is changed.
#![allow(unsafe_code)]

use std::io;

use nix::libc;

/// Ahead of whatever has the usual priority, behind what the host's operator puts first (−20).
const FIRST: libc::c_int = -10;
const SECOND: libc::c_int = FIRST + 1;

/// Has the calling thread go before others.
///
/// # Errors
/// Without the capability `CAP_SYS_NICE`. All works without, only slower.
pub fn go_first() -> io::Result<()> {
    set(FIRST)
}

/// Has the calling thread go before others, but for those that go first.
///
/// # Errors
/// As [`go_first`].
pub fn go_second() -> io::Result<()> {
    set(SECOND)
}

/// Has the calling thread take its turn as the process does, by its main thread.
///
/// # Errors
/// None are known.
pub fn go_in_turn() -> io::Result<()> {
    // SAFETY: no memory is handed over.
    let usual = unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) };
    set(usual)
}

fn set(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is handed over. On Linux 0 stands for the calling thread, not its whole process
    // (setpriority(2), "C library/kernel differences").
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::testing;

    fn nice() -> i64 {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, behind_name) = stat.rsplit_once(')').unwrap();
        behind_name
            .split_whitespace()
            .nth(16)
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn a_thread_goes_first_alone() {
        if !testing::privileged() {
            return;
        }
        let before = nice();
        let changed = thread::spawn(|| {
            [go_first, go_second, go_in_turn].map(|change| change().map(|()| nice()).unwrap())
        });
        let expected = [FIRST.into(), SECOND.into(), before];
        assert_eq!(changed.join().unwrap(), expected);
        assert_eq!(nice(), before);
    }
}
