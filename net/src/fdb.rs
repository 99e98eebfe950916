//! What the bridge knows of remote MACs.
//!
//! The router's port floods but does not learn, so without an entry every frame to a remote
//! container would be copied to every local one. The router programs an entry for each remote MAC
//! it knows. The kind is *externally learned*: it neither ages nor goes away with the router, and
//! yields to a local container that turns up with the MAC.
//!
//! What the bridge learned by itself, at the ports of local containers, can be read.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use weft_wire::MacAddr;

use crate::netlink::{Asked, attribute};
use crate::{Netlink, NetlinkError};

/// Has the bridge send frames for a MAC out of one of its ports.
///
/// # Errors
/// If there is no such link, or it is not a port of a bridge.
pub async fn fdb_replace(netlink: &Netlink, mac: MacAddr, port: &str) -> Result<(), NetlinkError> {
    let index = netlink.link_index(port).await?;
    let request = netlink
        .handle()
        .neighbours()
        .add_bridge(index, &mac.to_bytes())
        .flags(EXTERN)
        // Without a state the kernel says EINVAL; a permanent entry would not yield.
        .state(NeighbourState::Reachable)
        .replace();
    request
        .execute()
        .await
        .to(|| format!("add a bridge entry for {mac} at {port}"))
}

/// Takes such an entry back. That there is none is fine.
///
/// # Errors
/// If there is no such link.
pub async fn fdb_del(netlink: &Netlink, mac: MacAddr, port: &str) -> Result<(), NetlinkError> {
    let index = netlink.link_index(port).await?;
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    entry.header.flags = NeighbourFlags::Controller;
    let address = NeighbourAttribute::LinkLayerAddress(mac.to_bytes().to_vec());
    entry.attributes.push(address);
    let deleted = netlink.handle().neighbours().del(entry).execute().await;
    deleted.to_unless(Errno::ENOENT, || {
        format!("delete the bridge entry for {mac} at {port}")
    })
}

/// The MACs of all externally learned entries at a port: what we, or a router before us, put there.
///
/// # Errors
/// If there is no such link.
pub async fn fdb_dump_extern(netlink: &Netlink, port: &str) -> Result<Vec<MacAddr>, NetlinkError> {
    let index = netlink.link_index(port).await?;
    let entries = all(netlink).await?;
    let ours = entries.iter().filter(|entry| {
        entry.header.ifindex == index && entry.header.flags.contains(NeighbourFlags::ExtLearned)
    });
    let mut macs: Vec<MacAddr> = ours.filter_map(mac_of).collect();
    macs.sort_unstable();
    Ok(macs)
}

/// The MACs a bridge has learned by itself, and the numbers of the ports it has them at.
///
/// # Errors
/// If there is no such bridge.
pub async fn fdb_dump_learned(
    netlink: &Netlink,
    bridge: &str,
) -> Result<BTreeMap<MacAddr, u32>, NetlinkError> {
    let bridge = netlink.link_index(bridge).await?;
    let entries = all(netlink).await?;
    let learned = entries.iter().filter(|entry| {
        let master = attribute!(entry.attributes, NeighbourAttribute::Controller(index) => *index);
        master == Some(bridge)
            && entry.header.state != NeighbourState::Permanent
            && !entry.header.flags.contains(NeighbourFlags::ExtLearned)
    });
    let learned = learned.filter_map(|entry| Some((mac_of(entry)?, entry.header.ifindex)));
    Ok(learned.collect())
}

async fn all(netlink: &Netlink) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let request = netlink
        .handle()
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Bridge);
    let entries = request.execute().try_collect().await;
    entries.to(|| "list the bridges' entries".to_owned())
}

fn mac_of(entry: &NeighbourMessage) -> Option<MacAddr> {
    let bytes = attribute!(entry.attributes, NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice());
    Some(MacAddr::from_bytes(bytes?.try_into().ok()?))
}

const EXTERN: NeighbourFlags = NeighbourFlags::Controller.union(NeighbourFlags::ExtLearned);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::{BridgeConfig, enslave_tap, ensure_bridge};
    use crate::links::wait_until_forwarding;
    use crate::tap::{HEADER_LEN, Tap};
    use crate::testing;

    const NEAR: MacAddr = MacAddr::from_bytes([0x02, 0, 0, 0, 0, 1]);
    const FAR: MacAddr = MacAddr::from_bytes([0x02, 0, 0, 0, 0, 2]);

    async fn bridge_with_tap(netlink: &Netlink) -> Tap {
        let mac = MacAddr::from_bytes([0x7a, 0, 0, 0, 0, 9]);
        let config = BridgeConfig {
            name: "weft".to_owned(),
            mac,
            mtu: 1376,
        };
        ensure_bridge(netlink, &config).await.unwrap();
        let tap = Tap::attach("weft-tap").unwrap();
        enslave_tap(netlink, "weft-tap", "weft").await.unwrap();
        tap
    }

    #[test]
    fn entries_come_and_go() {
        testing::in_namespace(async |netlink, _| {
            let _tap = bridge_with_tap(&netlink).await;
            for mac in [FAR, NEAR, FAR] {
                fdb_replace(&netlink, mac, "weft-tap").await.unwrap();
            }
            assert_eq!(
                fdb_dump_extern(&netlink, "weft-tap").await.unwrap(),
                [NEAR, FAR]
            );
            fdb_del(&netlink, NEAR, "weft-tap").await.unwrap();
            fdb_del(&netlink, NEAR, "weft-tap").await.unwrap();
            assert_eq!(fdb_dump_extern(&netlink, "weft-tap").await.unwrap(), [FAR]);
            assert_eq!(fdb_dump_extern(&netlink, "weft").await.unwrap(), []);
        });
    }

    #[test]
    fn entries_outlive_the_router() {
        testing::in_namespace(async |netlink, _| {
            let tap = bridge_with_tap(&netlink).await;
            fdb_replace(&netlink, FAR, "weft-tap").await.unwrap();
            drop(tap);
            assert_eq!(fdb_dump_extern(&netlink, "weft-tap").await.unwrap(), [FAR]);
        });
    }

    #[test]
    fn an_entry_yields_to_a_local_container_with_the_mac() {
        testing::in_namespace(async |netlink, _| {
            let _tap = bridge_with_tap(&netlink).await;
            let container = Tap::attach("container").unwrap();
            netlink.set_master("container", "weft").await.unwrap();
            netlink.set_up("container").await.unwrap();
            wait_until_forwarding(&netlink, "container").await;
            fdb_replace(&netlink, FAR, "weft-tap").await.unwrap();
            let mut frame = vec![0xff; 60];
            frame[6..12].copy_from_slice(&FAR.to_bytes());
            assert_eq!(fdb_dump_learned(&netlink, "weft").await.unwrap(), [].into());
            container.send(&[0; HEADER_LEN], &frame).unwrap();
            assert_eq!(fdb_dump_extern(&netlink, "weft-tap").await.unwrap(), []);
            let port = netlink.link_index("container").await.unwrap();
            let learned = fdb_dump_learned(&netlink, "weft").await.unwrap();
            assert_eq!(learned, [(FAR, port)].into());
        });
    }

    #[test]
    fn a_link_that_is_no_port_is_refused() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_veth("a", "b").await.unwrap();
            let error = fdb_replace(&netlink, FAR, "a").await.unwrap_err();
            assert!(
                error.to_string().contains("cannot add a bridge entry"),
                "{error}"
            );
        });
    }
}
