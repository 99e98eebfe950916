//! Links: bridges, veth pairs, and what is set on any of them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgePortState, In6AddrGenMode, InetDevConf,
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use weft_wire::MacAddr;

use crate::netlink::{Asked, attribute};
use crate::netns::NetNs;
use crate::{Netlink, NetlinkError};

impl Netlink {
    /// Makes a bridge that sends multicast everywhere and runs no spanning tree. It is down.
    ///
    /// # Errors
    /// If there is a link of this name, or bridges cannot be made.
    pub async fn add_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        let bridge = LinkMessageBuilder::<LinkBridge>::new(checked(name)?)
            .mcast_snooping(false)
            .build();
        let added = self.handle().link().add(bridge).execute().await;
        added.to(|| format!("add the bridge {name}"))
    }

    /// Makes a veth pair: what is sent into one end comes out of the other. Both are down.
    ///
    /// # Errors
    /// If there is a link of one of these names, or veth pairs cannot be made.
    pub async fn add_veth(&self, one: &str, other: &str) -> Result<(), NetlinkError> {
        let pair = LinkVeth::new(checked(one)?, checked(other)?).build();
        let added = self.handle().link().add(pair).execute().await;
        added.to(|| format!("add the veth pair {one} and {other}"))
    }

    /// Removes a link, and with one end of a veth pair the other. That there is none is fine.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn del_link(&self, name: &str) -> Result<(), NetlinkError> {
        let Some(link) = self.find_link(name).await? else {
            return Ok(());
        };
        let deleted = self.handle().link().del(link.header.index).execute().await;
        deleted.to_unless(Errno::ENODEV, || format!("delete the link {name}"))
    }

    /// Moves a link into another namespace, where it is down and without addresses.
    ///
    /// # Errors
    /// If there is no such link here, or one of the same name there.
    pub async fn set_ns(&self, name: &str, ns: &NetNs) -> Result<(), NetlinkError> {
        let fd = ns.as_fd().as_raw_fd();
        let change = self.change(name).await?.setns_by_fd(fd);
        self.apply(change, || {
            format!("move the link {name} to another network namespace")
        })
        .await
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// If there is no such link.
    pub async fn set_up(&self, name: &str) -> Result<(), NetlinkError> {
        let change = self.change(name).await?.up();
        self.apply(change, || format!("bring the link {name} up"))
            .await
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// If one of them is missing.
    pub async fn set_master(&self, name: &str, bridge: &str) -> Result<(), NetlinkError> {
        let bridge_index = self.link_index(bridge).await?;
        let change = self.change(name).await?.controller(bridge_index);
        self.apply(change, || {
            format!("make the link {name} a port of {bridge}")
        })
        .await
    }

    /// The names of all ports of a bridge.
    ///
    /// # Errors
    /// If there is no such bridge.
    pub async fn list_ports(&self, bridge: &str) -> Result<BTreeSet<String>, NetlinkError> {
        let bridge = self.link_index(bridge).await?;
        let links = self.all_links().await?;
        let ports = links.iter().filter(|link| master_of(link) == Some(bridge));
        Ok(ports.map(|link| name_of(link).to_owned()).collect())
    }

    /// Gives a link that is down another name.
    ///
    /// # Errors
    /// If there is no such link, or one of the new name.
    pub async fn rename(&self, name: &str, new: &str) -> Result<(), NetlinkError> {
        let change = self.change(name).await?.name(checked(new)?);
        self.apply(change, || format!("rename the link {name} to {new}"))
            .await
    }

    /// Sets a link's MAC, one of its own.
    ///
    /// # Errors
    /// If there is no such link, or it cannot have this one.
    pub async fn set_mac(&self, name: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let changed = self.change(name).await?.address(mac.to_bytes().to_vec());
        self.apply(changed, || format!("set the MAC of {name}"))
            .await
    }

    /// Sets the longest frame, in bytes without the Ethernet header, that a link sends.
    ///
    /// # Errors
    /// If there is no such link, or it cannot have this MTU.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let change = self.change(name).await?.mtu(mtu);
        self.apply(change, || format!("set the MTU of {name} to {mtu}"))
            .await
    }

    /// Writes a note at a link, of at most 255 bytes; the kernel keeps it and does nothing with it.
    ///
    /// # Errors
    /// If there is no such link, or the note is too long.
    pub async fn set_note(&self, name: &str, note: &str) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::IfAlias(note.to_owned());
        let change = self.change(name).await?.append_extra_attribute(attribute);
        self.apply(change, || format!("write a note at the link {name}"))
            .await
    }

    /// The note at a link, empty if there is none; `None` if there is no such link.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn note(&self, name: &str) -> Result<Option<String>, NetlinkError> {
        let link = self.find_link(name).await?;
        Ok(link.map(|link| note_at(&link).unwrap_or_default().to_owned()))
    }

    /// The names of all links whose notes begin like this.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn list_noted(&self, prefix: &str) -> Result<Vec<String>, NetlinkError> {
        let links = self.all_links().await?;
        let noted =
            |link: &&LinkMessage| note_at(link).is_some_and(|note| note.starts_with(prefix));
        Ok(links
            .iter()
            .filter(noted)
            .map(|link| name_of(link).to_owned())
            .collect())
    }

    /// The notes at all links whose names begin like this.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn list_notes(&self, prefix: &str) -> Result<Vec<String>, NetlinkError> {
        let links = self.all_links().await?;
        let links = links
            .iter()
            .filter(|link| name_of(link).starts_with(prefix));
        Ok(links.filter_map(note_at).map(str::to_owned).collect())
    }

    /// Keeps the kernel from giving a link IPv6 addresses of its own accord. A kernel without IPv6
    /// has none to give.
    ///
    /// # Errors
    /// If there is no such link.
    pub async fn set_no_own_addresses(&self, name: &str) -> Result<(), NetlinkError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let change = self.change(name).await?.append_extra_attribute(attribute);
        let set = self.handle().link().set(change.build()).execute().await;
        set.to_unless(Errno::EAFNOSUPPORT, || {
            format!("turn automatic IPv6 addresses of {name} off")
        })
    }

    /// Lets the other IPv4 addresses of a link stay when the first of a subnet is deleted.
    ///
    /// # Errors
    /// If there is no such link.
    pub(crate) async fn keep_secondary_addresses(&self, name: &str) -> Result<(), NetlinkError> {
        let mut conf = InetDevConf::default();
        conf.promote_secondaries = 1;
        self.set_ipv4(name, conf, || {
            format!("make the addresses of {name} independent")
        })
        .await
    }

    /// Sets what of `conf` is not 0 for IPv4 on a link.
    pub(crate) async fn set_ipv4(
        &self,
        name: &str,
        conf: InetDevConf,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
        let attribute = LinkAttribute::AfSpecUnspec(vec![inet]);
        let change = self.change(name).await?.append_extra_attribute(attribute);
        self.apply(change, action).await
    }

    /// The number of a link.
    ///
    /// # Errors
    /// [`NetlinkError::NoLink`] if there is none.
    pub async fn link_index(&self, name: &str) -> Result<u32, NetlinkError> {
        self.link(name).await.map(|link| link.header.index)
    }

    /// Whether there is a link of this name.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn exists(&self, name: &str) -> Result<bool, NetlinkError> {
        self.find_link(name).await.map(|link| link.is_some())
    }

    /// The names of all links that begin like this, in order.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn list_links(&self, prefix: &str) -> Result<Vec<String>, NetlinkError> {
        let links = self.all_links().await?;
        let names = links
            .iter()
            .map(name_of)
            .filter(|name| name.starts_with(prefix));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The number by which links of this namespace speak of another one, if they do.
    pub(crate) async fn namespace_id(&self, ns: &NetNs) -> Result<Option<i32>, NetlinkError> {
        let mut question = NsidMessage::default();
        let fd = NsidAttribute::Fd(ns.as_fd().as_raw_fd().cast_unsigned());
        question.attributes.push(fd);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        request.header.flags = NLM_F_REQUEST;
        let action = || "ask for the number of a network namespace".to_owned();
        let mut answers = self.handle().clone().request(request).to(action)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    let id = attribute!(answer.attributes, NsidAttribute::Id(id) => *id);
                    // -1 if it has none.
                    return Ok(id.filter(|id| *id >= 0));
                }
                NetlinkPayload::Error(message) => {
                    return Err(NetlinkError::new(
                        action(),
                        rtnetlink::Error::NetlinkError(message),
                    ));
                }
                NetlinkPayload::InnerMessage(_)
                | NetlinkPayload::Done(_)
                | NetlinkPayload::Noop
                | NetlinkPayload::Overrun(_)
                | _ => {}
            }
        }
        Ok(None)
    }

    pub(crate) async fn all_links(&self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let links = self.handle().link().get().execute();
        links.try_collect().await.to(|| "list the links".to_owned())
    }

    pub(crate) async fn link(&self, name: &str) -> Result<LinkMessage, NetlinkError> {
        let found = self.find_link(name).await?;
        found.ok_or_else(|| NetlinkError::NoLink(name.to_owned()))
    }

    pub(crate) async fn find_link(&self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let request = self.handle().link().get().match_name(checked(name)?);
        match request
            .execute()
            .try_next()
            .await
            .to(|| format!("look for the link {name}"))
        {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            other => other,
        }
    }

    /// Sets what a message says of an existing link.
    pub(crate) async fn apply<T>(
        &self,
        change: LinkMessageBuilder<T>,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        self.handle()
            .link()
            .set(change.build())
            .execute()
            .await
            .to(action)
    }

    pub(crate) async fn change(
        &self,
        name: &str,
    ) -> Result<LinkMessageBuilder<LinkUnspec>, NetlinkError> {
        Ok(LinkUnspec::new_with_index(self.link_index(name).await?))
    }
}

/// A name as the kernel would take it (`dev_valid_name`, and room for its final zero).
pub(crate) fn checked(name: &str) -> Result<&str, NetlinkError> {
    let length = (1..=MAX_NAME).contains(&name.len());
    let bytes = name
        .bytes()
        .all(|b| !b.is_ascii_whitespace() && !matches!(b, b'/' | b':' | 0));
    if length && bytes && name != "." && name != ".." {
        Ok(name)
    } else {
        Err(NetlinkError::BadName(name.to_owned()))
    }
}

fn note_at(link: &LinkMessage) -> Option<&str> {
    attribute!(link.attributes, LinkAttribute::IfAlias(note) => note.as_str())
}

/// The name of a link, empty if it says none.
pub(crate) fn name_of(link: &LinkMessage) -> &str {
    let name = attribute!(link.attributes, LinkAttribute::IfName(name) => name.as_str());
    name.unwrap_or_default()
}

/// The MAC of a link, if it has one.
pub(crate) fn mac_of(link: &LinkMessage) -> Option<MacAddr> {
    let bytes = attribute!(link.attributes, LinkAttribute::Address(bytes) => bytes.as_slice());
    Some(MacAddr::from_bytes(bytes?.try_into().ok()?))
}

/// The bridge a link is a port of, by number.
pub(crate) fn master_of(link: &LinkMessage) -> Option<u32> {
    attribute!(link.attributes, LinkAttribute::Controller(index) => *index)
}

/// The far end of a veth, by its number in its own namespace.
pub(crate) fn peer_of(link: &LinkMessage) -> Option<u32> {
    attribute!(link.attributes, LinkAttribute::Link(index) => *index)
}

/// The namespace of the far end of a veth, by its number in this one; `None` if it is this one.
pub(crate) fn peer_namespace_of(link: &LinkMessage) -> Option<i32> {
    attribute!(link.attributes, LinkAttribute::LinkNetNsId(id) => *id)
}

/// The MTU of a link.
pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    attribute!(link.attributes, LinkAttribute::Mtu(mtu) => *mtu)
}

/// What is particular to the kind of a link.
pub(crate) fn info_of(link: &LinkMessage) -> &[LinkInfo] {
    let info = attribute!(link.attributes, LinkAttribute::LinkInfo(info) => info.as_slice());
    info.unwrap_or_default()
}

/// Whether a link is of this kind.
pub(crate) fn is_kind(link: &LinkMessage, kind: &InfoKind) -> bool {
    let mut info = info_of(link).iter();
    info.any(|info| matches!(info, LinkInfo::Kind(found) if found == kind))
}

/// Waits until the bridge forwards what comes in by a port: the kernel says so to itself a moment
/// after the port is up. After a quarter of a second it is no matter of moments, so we go on.
pub(crate) async fn wait_until_forwarding(netlink: &Netlink, port: &str) {
    for _ in 0..125 {
        match netlink.link(port).await {
            Ok(link) if is_forwarding(&link) => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(_) => return,
        }
    }
}

fn is_forwarding(link: &LinkMessage) -> bool {
    info_of(link).iter().any(|info| {
        let LinkInfo::PortData(InfoPortData::BridgePort(options)) = info else {
            return false;
        };
        options.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
    })
}

/// `IFNAMSIZ` in linux/if.h, less the final zero.
const MAX_NAME: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn names_no_link_can_have_are_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a b", "a/b", "a:b", "sixteen-bytes-is"] {
            assert!(
                matches!(checked(name), Err(NetlinkError::BadName(_))),
                "{name:?}"
            );
        }
        assert_eq!(checked("fifteen-bytes-o").ok(), Some("fifteen-bytes-o"));
    }

    #[test]
    fn links_are_made_changed_and_removed() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_bridge("lan").await.unwrap();
            netlink.add_veth("a", "b").await.unwrap();
            netlink.set_master("a", "lan").await.unwrap();
            netlink.set_mtu("a", 1280).await.unwrap();
            netlink.rename("b", "c").await.unwrap();
            netlink.set_up("c").await.unwrap();
            assert_eq!(
                netlink.list_links("").await.unwrap(),
                ["a", "c", "lan", "lo"]
            );
            let port = netlink.link("a").await.unwrap();
            assert_eq!(
                master_of(&port),
                Some(netlink.link_index("lan").await.unwrap())
            );
            assert_eq!(mtu_of(&port), Some(1280));
            assert_eq!(peer_of(&port), Some(netlink.link_index("c").await.unwrap()));
            assert!(is_kind(&port, &InfoKind::Veth));
            netlink.del_link("a").await.unwrap();
            netlink.del_link("a").await.unwrap();
            assert_eq!(netlink.list_links("").await.unwrap(), ["lan", "lo"]);
        });
    }

    #[test]
    fn a_link_moves_to_another_namespace() {
        testing::in_namespace(async |netlink, _| {
            let other = NetNs::create().unwrap();
            netlink.add_veth("a", "b").await.unwrap();
            assert_eq!(peer_namespace_of(&netlink.link("a").await.unwrap()), None);
            assert_eq!(netlink.namespace_id(&other).await.unwrap(), None);
            netlink.set_ns("b", &other).await.unwrap();
            let id = peer_namespace_of(&netlink.link("a").await.unwrap());
            assert!(id.is_some());
            assert_eq!(netlink.namespace_id(&other).await.unwrap(), id);
            assert!(!netlink.exists("b").await.unwrap());
            let there =
                crate::netns::with_netlink(&other, async |_, there| there.exists("b").await);
            assert!(there.await.unwrap().unwrap());
        });
    }

    #[test]
    fn notes_stay_at_their_links() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_veth("a1", "b1").await.unwrap();
            netlink.set_note("a1", "10.32.0.1/12").await.unwrap();
            netlink.set_note("b1", "other").await.unwrap();
            assert_eq!(netlink.list_notes("a").await.unwrap(), ["10.32.0.1/12"]);
            let long = "x".repeat(256);
            assert!(netlink.set_note("a1", &long).await.is_err());
        });
    }

    #[test]
    fn a_missing_link_is_named() {
        testing::in_namespace(async |netlink, _| {
            let error = netlink.set_up("none-such").await.unwrap_err();
            assert_eq!(error.to_string(), "there is no link \"none-such\"");
            assert_eq!(error.errno(), Some(Errno::ENODEV));
        });
    }
}
