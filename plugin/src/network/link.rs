//! An endpoint's interface: a veth pair made in the host's namespace, one end on the bridge; dockerd
//! moves the other into the container.
//!
//! Both names come from the endpoint's id, so that an end that a crash left is found again. The
//! host's begins as all host's ends of weft do, so that `weft reset` finds it too.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_api::Cidr;
use weft_net::{Netlink, NetlinkError};

use super::PluginError;
use crate::attach::HOST_PREFIX;

/// What the container's ends begin with while they are on the host.
const GUEST_PREFIX: &str = "weftpg";
/// How many digits of an endpoint's id are in the names: all that fit, 36 bits.
const DIGITS: usize = 9;

/// The names of both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) host: String,
    pub(super) guest: String,
}

impl Ends {
    /// Those of an endpoint.
    pub(super) fn of(endpoint: &str) -> Result<Self, PluginError> {
        let digits = endpoint.get(..DIGITS).unwrap_or(endpoint);
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(PluginError::Endpoint(endpoint.to_owned()));
        }
        Ok(Self {
            host: format!("{HOST_PREFIX}{digits}"),
            guest: format!("{GUEST_PREFIX}{digits}"),
        })
    }

    /// Makes the pair, in the place of one that may be there. The note at the host's end says which
    /// address is the endpoint's, as long as there is an interface that may have it.
    pub(super) async fn make(
        &self,
        bridge: &str,
        mtu: u16,
        address: &str,
    ) -> Result<(), PluginError> {
        let links = Netlink::new()?;
        if !links.exists(bridge).await? {
            return Err(PluginError::NoBridge(bridge.to_owned()));
        }
        links.del_link(&self.host).await?;
        links.add_veth(&self.host, &self.guest).await?;
        let done = self.furnish(&links, bridge, mtu, address).await;
        if done.is_err() {
            // What is left is replaced by the next try, or removed with the endpoint.
            let _ = links.del_link(&self.host).await;
        }
        Ok(done?)
    }

    async fn furnish(
        &self,
        links: &Netlink,
        bridge: &str,
        mtu: u16,
        address: &str,
    ) -> Result<(), NetlinkError> {
        links.set_note(&self.host, address).await?;
        for end in [&self.host, &self.guest] {
            links.set_mtu(end, mtu.into()).await?;
        }
        links.set_no_own_addresses(&self.host).await?;
        links.set_master(&self.host, bridge).await?;
        links.set_up(&self.host).await
    }

    /// Whether the pair is there.
    pub(super) async fn is_there(&self) -> Result<bool, PluginError> {
        Ok(Netlink::new()?.exists(&self.host).await?)
    }

    /// Takes the pair away, wherever the container's end is by then.
    pub(super) async fn remove(&self) -> Result<(), PluginError> {
        Ok(Netlink::new()?.del_link(&self.host).await?)
    }
}

/// What the host's end of an endpoint's interface is called; none if the id cannot be one.
pub(crate) fn host_end(endpoint: &str) -> Option<String> {
    Some(Ends::of(endpoint).ok()?.host)
}

/// The addresses of all endpoints there are, of whatever network.
pub(super) async fn addresses_in_use() -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let notes = Netlink::new()?.list_notes(HOST_PREFIX).await?;
    let address = |note: &String| Some(note.parse::<Cidr>().ok()?.addr());
    Ok(notes.iter().filter_map(address).collect())
}
