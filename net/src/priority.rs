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
const NICE: libc::c_int = -10;

/// Has the calling thread go before others.
///
/// # Errors
/// Without the capability `CAP_SYS_NICE`. All works without, only slower.
pub fn go_first() -> io::Result<()> {
    // SAFETY: no memory is handed over. On Linux 0 stands for the calling thread, not its whole process
    // (setpriority(2), "C library/kernel differences").
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } {
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
        let changed = thread::spawn(|| go_first().map(|()| nice()));
        assert_eq!(changed.join().unwrap().unwrap(), i64::from(NICE));
        assert_eq!(nice(), before);
    }
}
