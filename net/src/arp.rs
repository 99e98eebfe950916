//! Telling the neighbours who has an address now (gratuitous ARP, RFC 5227 §3): a container that
//! comes with an address another one had before would else not be heard until old entries expire.

use std::io;
use std::net::Ipv4Addr;

use weft_wire::MacAddr;

use crate::packet::PacketSender;

/// Announces an address from a link of this thread's network namespace.
///
/// # Errors
/// If packet sockets are not allowed here, or the link is down.
pub(crate) fn announce(index: u32, mac: MacAddr, addr: Ipv4Addr) -> io::Result<()> {
    PacketSender::new()?.send(index, &announcement(mac, addr))
}

/// ```text
///  0                   6                   12        14
/// | broadcast         | mac               | 08 06   |          Ethernet
/// | 00 01 | 08 00 | 6 | 4 | 00 01 |                            Ethernet, IPv4, request
/// | mac                   | addr          |                    sender
/// | 00 00 00 00 00 00     | addr          |                    target
/// ```
fn announcement(mac: MacAddr, addr: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(MacAddr::BROADCAST.to_bytes());
    frame.extend(mac.to_bytes());
    frame.extend([0x08, 0x06]);
    frame.extend([0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01]);
    frame.extend(mac.to_bytes());
    frame.extend(addr.octets());
    frame.extend([0; 6]);
    frame.extend(addr.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::mac_of;
    use crate::tap::{HEADER_LEN, Tap};
    use crate::testing;

    #[test]
    fn an_announcement_says_the_address_twice() {
        let mac = MacAddr::from_bytes([2, 0, 0, 0, 0, 7]);
        let frame = announcement(mac, Ipv4Addr::new(10, 32, 0, 1));
        assert_eq!(frame.len(), 42);
        assert_eq!(&frame[..6], [0xff; 6]);
        assert_eq!(&frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(&frame[28..32], [10, 32, 0, 1]);
        assert_eq!(&frame[38..42], [10, 32, 0, 1]);
    }

    #[test]
    fn an_announcement_leaves_by_its_link() {
        testing::in_namespace(async |netlink, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            netlink.set_no_own_addresses("weft-tap").await.unwrap();
            netlink.set_up("weft-tap").await.unwrap();
            let link = netlink.link("weft-tap").await.unwrap();
            let mac = mac_of(&link).unwrap();
            let addr = Ipv4Addr::new(10, 32, 0, 1);
            announce(link.header.index, mac, addr).unwrap();
            let mut buf = [0; 128];
            let len = tap.recv(&mut buf).unwrap();
            assert_eq!(&buf[HEADER_LEN..len], announcement(mac, addr));
        });
    }

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        testing::in_namespace(async |_, _| {
            assert!(announce(4711, MacAddr::default(), Ipv4Addr::LOCALHOST).is_err());
            assert!(announce(u32::MAX, MacAddr::default(), Ipv4Addr::LOCALHOST).is_err());
        });
    }
}
