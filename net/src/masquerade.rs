//! Address translation between exposed subnets and the rest of the world.
//!
//! For each subnet C that the host is exposed in, in a table of its own, `inet weft_expose`:
//!
//! ```text
//!   from C to multicast     as it is: its receivers are in C, or want to see who sends
//!   from C to elsewhere     masquerade: the world cannot answer an address of C
//!   from elsewhere to C     masquerade: containers have no way back to the world
//! ```
//!
//! What is forwarded at all is not decided here: `net.ipv4.ip_forward` and the rules of other
//! firewalls on the host stay as they are.
//!
//! Invariant: each change is one transaction of `nft`; at no time is only a part of the rules there.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::ExitStatus;

use thiserror::Error;

use crate::addresses::{masked_v4, masked_v6};
use crate::nft::{self, NftError};

/// Why addresses are not translated.
#[derive(Debug, Error)]
pub enum MasqueradeError {
    /// There is no tool to do it with.
    #[error(
        "cannot masquerade: there is no `nft` on this host; install it with `apt-get install nftables`, or expose with --without-masquerade"
    )]
    NoTool,
    /// The tool cannot be run.
    #[error("cannot run `nft`: {0}")]
    Run(#[source] io::Error),
    /// The tool or the kernel refused.
    #[error("cannot masquerade: `nft` ended with {status}: {said}")]
    Refused {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
}

/// Translates addresses between these subnets and everything else, and between no others. With no
/// subnet all is taken back.
///
/// # Errors
/// [`MasqueradeError`]; then everything is as it was.
pub async fn apply(subnets: &[(IpAddr, u8)]) -> Result<(), MasqueradeError> {
    if subnets.is_empty() {
        return remove().await;
    }
    Ok(nft::apply(rules(subnets)).await?)
}

/// Takes all translation back. Where there is no `nft` there is nothing to take back.
///
/// # Errors
/// [`MasqueradeError`]; then everything is as it was.
pub async fn remove() -> Result<(), MasqueradeError> {
    match nft::apply(NOTHING.to_owned()).await {
        Err(NftError::NoTool) => Ok(()),
        other => Ok(other?),
    }
}

fn rules(subnets: &[(IpAddr, u8)]) -> String {
    let mut script = format!("{NOTHING}{CHAIN}");
    for (addr, prefix) in subnets {
        let (family, subnet, multicast) = match addr {
            IpAddr::V4(addr) => (
                "ip",
                format!("{}/{prefix}", masked_v4(*addr, *prefix)),
                "224.0.0.0/4",
            ),
            IpAddr::V6(addr) => (
                "ip6",
                format!("{}/{prefix}", masked_v6(*addr, *prefix)),
                "ff00::/8",
            ),
        };
        for rule in [
            format!("{family} saddr {subnet} {family} daddr {multicast} return"),
            format!("{family} saddr {subnet} {family} daddr != {subnet} masquerade"),
            format!("{family} saddr != {subnet} {family} daddr {subnet} masquerade"),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(script, "add rule inet weft_expose expose {rule}");
        }
    }
    script
}

impl From<NftError> for MasqueradeError {
    fn from(error: NftError) -> Self {
        match error {
            NftError::NoTool => Self::NoTool,
            NftError::Run(source) => Self::Run(source),
            NftError::Refused { status, said } => Self::Refused { status, said },
        }
    }
}

/// Leaves no table. It is added first, because what is not there cannot be deleted.
const NOTHING: &str = "\
add table inet weft_expose
delete table inet weft_expose
";
/// Makes the chain. 100 is where source addresses are translated (`srcnat`).
const CHAIN: &str = "\
add table inet weft_expose
add chain inet weft_expose expose { type nat hook postrouting priority 100; policy accept; }
";

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::netns::{NetNs, run_in, with_netlink};
    use crate::testing;
    use crate::{Netlink, NetlinkError};

    fn subnet(text: &str) -> (IpAddr, u8) {
        let (addr, prefix) = text.split_once('/').unwrap();
        (addr.parse().unwrap(), prefix.parse().unwrap())
    }

    /// All rules as `nft` tells them, in the namespace of this thread.
    fn listed() -> String {
        let output = Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn rules_replace_each_other_and_go() {
        testing::in_namespace(async |_, _| {
            apply(&[subnet("10.32.0.9/12"), subnet("fd00::7/64")])
                .await
                .unwrap();
            let first = listed();
            assert_eq!(first.matches("masquerade").count(), 4, "{first}");
            assert!(
                first.contains("ip saddr 10.32.0.0/12 ip daddr 224.0.0.0/4 return"),
                "{first}"
            );
            assert!(
                first.contains("ip6 saddr fd00::/64 ip6 daddr ff00::/8 return"),
                "{first}"
            );
            apply(&[subnet("10.32.0.9/12"), subnet("fd00::7/64")])
                .await
                .unwrap();
            assert_eq!(listed(), first);
            apply(&[subnet("10.99.0.1/16")]).await.unwrap();
            let second = listed();
            assert_eq!(second.matches("masquerade").count(), 2, "{second}");
            assert!(!second.contains("10.32"), "{second}");
            for _ in 0..2 {
                apply(&[]).await.unwrap();
                assert_eq!(listed(), "");
            }
        });
    }

    #[test]
    fn what_the_tool_refuses_is_told() {
        testing::in_namespace(async |_, _| {
            let error: MasqueradeError = nft::apply("add nonsense\n".to_owned())
                .await
                .unwrap_err()
                .into();
            assert!(error.to_string().contains("syntax error"), "{error}");
        });
    }

    /// world (192.0.2.2) — host (192.0.2.1, 10.32.0.1) — container (10.32.0.2, no default route).
    async fn wire(
        host: &Netlink,
        ns: &NetNs,
        link: &'static str,
        addr: &'static str,
        own: &str,
    ) -> Result<(), NetlinkError> {
        host.add_veth(link, "far").await?;
        host.set_ns("far", ns).await?;
        host.set_up(link).await?;
        let (own, prefix) = subnet(own);
        host.add_address(link, own, prefix).await?;
        let configured = with_netlink(ns, async move |_, there| {
            let (addr, prefix) = subnet(addr);
            there.add_address("far", addr, prefix).await?;
            there.set_up("far").await
        });
        configured.await.unwrap()
    }

    #[test]
    fn an_exposed_host_forwards_under_its_own_address() {
        testing::in_namespace(async |host, _| {
            let (world, container) = (NetNs::create().unwrap(), NetNs::create().unwrap());
            wire(&host, &world, "eth0", "192.0.2.2/24", "192.0.2.1/24")
                .await
                .unwrap();
            wire(&host, &container, "weft", "10.32.0.2/12", "10.32.0.1/12")
                .await
                .unwrap();
            with_netlink(&world, async |_, there| {
                let gateway = "192.0.2.1".parse().unwrap();
                there
                    .add_route(subnet("10.32.0.0/12"), Some(gateway), "far")
                    .await
                    .unwrap();
            })
            .await
            .unwrap();
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            apply(&[subnet("10.32.0.1/12")]).await.unwrap();
            let bind = |ns: &NetNs, addr: &str| {
                let socket = run_in(ns, || UdpSocket::bind(addr)).unwrap().unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                socket
            };
            let (server, client) = (
                bind(&container, "10.32.0.2:7000"),
                bind(&world, "192.0.2.2:7000"),
            );
            client.send_to(b"there", "10.32.0.2:7000").unwrap();
            let mut buf = [0; 16];
            let (_, from) = server.recv_from(&mut buf).unwrap();
            assert_eq!(from.ip(), "10.32.0.1".parse::<IpAddr>().unwrap());
            server.send_to(b"back", from).unwrap();
            let (len, _) = client.recv_from(&mut buf).unwrap();
            assert_eq!(&buf[..len], b"back");
        });
    }
}
