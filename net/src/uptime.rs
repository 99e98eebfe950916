//! How long this host has been up.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time since the host's start, times of sleep included: CLOCK_BOOTTIME, which nobody can set.
///
/// Zero if the kernel has no such clock, which Linux has had since 2.6.39.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_grows() {
        let first = uptime();
        assert!(first > Duration::ZERO);
        assert!(uptime() >= first);
    }
}
