//! Telling the neighbours who has an address now (gratuitous ARP, RFC 5227 §3): a container that
//! comes with an address another one had before would else not be heard until old entries expire.
//!
//! The kernel announces the addresses of a link that it was asked to notify of, whenever the link's MAC is
//! set, be it to what it was. A packet socket could say the same, but closing one waits until every
//! processor has been through the scheduler, some 15 ms in which a container does not start.

use rtnetlink::packet_route::link::InetDevConf;
use weft_wire::MacAddr;

use crate::{Netlink, NetlinkError};

impl Netlink {
    /// Announces all IPv4 addresses of a link that is up, and whose MAC this is. From here on the kernel
    /// does so by itself when the link comes up again.
    ///
    /// # Errors
    /// If there is no such link.
    pub(crate) async fn announce(&self, name: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let action = || format!("announce the addresses of {name}");
        let mut conf = InetDevConf::default();
        conf.arp_notify = 1;
        self.set_ipv4(name, conf, action).await?;
        let again = self.change(name).await?.address(mac.to_bytes().to_vec());
        self.apply(again, action).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::links::mac_of;
    use crate::tap::{HEADER_LEN, Tap};
    use crate::testing;

    /// ```text
    ///  0                   6                   12        14
    /// | broadcast         | mac               | 08 06   |          Ethernet
    /// | 00 01 | 08 00 | 6 | 4 | 00 01 |                            Ethernet, IPv4, request
    /// | mac                   | addr          |                    sender
    /// | anything              | addr          |                    target
    /// ```
    fn announced(frame: &[u8], mac: MacAddr) -> Option<[u8; 4]> {
        let mac = &mac.to_bytes()[..];
        let begin = [&[0xff; 6], mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], mac].concat();
        let sender = frame.strip_prefix(&begin[..])?.first_chunk()?;
        (frame.get(38..42) == Some(&sender[..])).then_some(*sender)
    }

    #[test]
    fn all_addresses_of_a_link_are_announced_as_often_as_wanted() {
        testing::in_namespace(async |netlink, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            netlink.set_no_own_addresses("weft-tap").await.unwrap();
            let addresses = [[10, 32, 0, 1], [10, 32, 0, 2], [10, 99, 0, 1]];
            for addr in addresses {
                netlink
                    .add_address("weft-tap", addr.into(), 16)
                    .await
                    .unwrap();
            }
            netlink.set_up("weft-tap").await.unwrap();
            let mac = mac_of(&netlink.link("weft-tap").await.unwrap()).unwrap();
            for _ in 0..2 {
                netlink.announce("weft-tap", mac).await.unwrap();
                // Those that are not the first of their subnet come last.
                let heard = addresses.map(|_| {
                    let mut buf = [0; 128];
                    let len = tap.recv(&mut buf).unwrap();
                    announced(&buf[HEADER_LEN..len], mac)
                });
                let heard: BTreeSet<_> = heard.into_iter().collect();
                assert_eq!(heard, addresses.map(Some).into());
            }
        });
    }

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        testing::in_namespace(async |netlink, _| {
            assert!(netlink.announce("none", MacAddr::default()).await.is_err());
        });
    }
}
