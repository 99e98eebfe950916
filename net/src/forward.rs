//! Lets frames between two ports of the bridge past the host's packet filter.
//!
//! Where the kernel shows bridged frames to iptables (`bridge-nf-call-iptables`, which Docker turns
//! on), they run through the FORWARD chain, whose policy Docker makes DROP: containers on two hosts
//! would not hear each other, without a word. One rule accepts what comes from the bridge and goes
//! to the same bridge; nothing else is let through, and no setting of the host is changed.
//!
//! Invariant: the rule is there once, and only where it is needed.

use std::fs;
use std::io;
use std::process::{Command, Output};

use thiserror::Error;
use tokio::task::spawn_blocking;

/// Why frames may be held back by the host's packet filter.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// The kernel shows frames to iptables, and there is no iptables to let them pass.
    #[error(
        "the host's packet filter sees frames between containers, and without `iptables` weft cannot have them accepted: install it with `apt-get install iptables`"
    )]
    NoTool,
    /// iptables cannot be run, or refused.
    #[error(
        "frames between containers may be dropped by the host's packet filter: `iptables`: {0}"
    )]
    Refused(String),
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// Bridged frames do not meet iptables here.
    NotFiltered,
    /// The rule was there.
    Accepted,
    /// The rule was missing and is there now.
    NowAccepted,
}

/// Has the host's packet filter accept frames that cross `bridge`, where it sees them at all.
///
/// # Errors
/// [`ForwardError`]; whether frames pass depends on the host's other rules then.
pub async fn accept(bridge: &str) -> Result<Forwarding, ForwardError> {
    if !is_filtered() {
        return Ok(Forwarding::NotFiltered);
    }
    if iptables("-C", bridge).await?.status.success() {
        return Ok(Forwarding::Accepted);
    }
    let inserted = iptables("-I", bridge).await?;
    if inserted.status.success() {
        return Ok(Forwarding::NowAccepted);
    }
    let said = String::from_utf8_lossy(&inserted.stderr);
    let said = said.lines().next().unwrap_or_default().to_owned();
    Err(ForwardError::Refused(said))
}

/// Takes the rule back. Where there is none, or no iptables, there is nothing to take back.
pub async fn remove(bridge: &str) {
    while let Ok(output) = iptables("-D", bridge).await {
        if !output.status.success() {
            break;
        }
    }
}

/// Whether the kernel shows bridged frames to iptables in this network namespace.
fn is_filtered() -> bool {
    let setting = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
    setting.is_ok_and(|text| text.trim() == "1")
}

async fn iptables(action: &'static str, bridge: &str) -> Result<Output, ForwardError> {
    let bridge = bridge.to_owned();
    let ran = spawn_blocking(move || {
        // Another program may hold the lock of the tables; it is waited for, but not for ever.
        Command::new("iptables")
            .args(["-w", "5", action, "FORWARD", "-i", &bridge, "-o", &bridge])
            .args(["-m", "comment", "--comment", "weft", "-j", "ACCEPT"])
            .output()
    });
    match ran.await.map_err(io::Error::other).flatten() {
        Ok(output) => Ok(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ForwardError::NoTool),
        Err(error) => Err(ForwardError::Refused(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    #[test]
    fn the_rule_is_made_once_where_it_is_needed_and_taken_back() {
        in_namespace(async |_, _| {
            let first = accept("weft").await.unwrap();
            if !is_filtered() {
                assert_eq!(first, Forwarding::NotFiltered);
                return;
            }
            assert_eq!(first, Forwarding::NowAccepted);
            assert_eq!(accept("weft").await.unwrap(), Forwarding::Accepted);
            assert_eq!(accept("other").await.unwrap(), Forwarding::NowAccepted);
            remove("weft").await;
            assert_eq!(accept("weft").await.unwrap(), Forwarding::NowAccepted);
            assert_eq!(accept("other").await.unwrap(), Forwarding::Accepted);
        });
    }
}
