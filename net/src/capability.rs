//! Which rights this process holds, asked before something fails for want of them.

use std::fs;

/// Whether we may change links, addresses and routes of our network namespace.
pub fn has_net_admin() -> bool {
    holds(NET_ADMIN)
}

/// Whether this thread holds a capability, by its number in linux/capability.h.
pub(crate) fn holds(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status");
    status.is_ok_and(|status| effective(&status) >> capability & 1 == 1)
}

fn effective(status: &str) -> u64 {
    let mut lines = status.lines();
    let hex = lines.find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// `CAP_NET_ADMIN` in linux/capability.h.
const NET_ADMIN: u32 = 12;
/// `CAP_SYS_ADMIN` there.
pub(crate) const SYS_ADMIN: u32 = 21;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapEff:\t0000000000001000\n";
        assert_eq!(effective(status) >> NET_ADMIN & 1, 1);
        assert_eq!(effective("nothing"), 0);
    }

    #[test]
    fn root_in_a_full_system_may_administer_the_network() {
        if crate::testing::privileged() {
            assert!(has_net_admin());
        }
    }
}
