//! The Linux side of the node: the bridges, their TAP ports, the resolver's address, exposed addresses,
//! and bridge entries for remote MACs.
//!
//! What cannot be done is said once in the log and stays in the status' warnings until it works;
//! the router goes on without it where that still makes sense.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{debug, warn};
use weft_api::Cidr;
use weft_net::Netlink;
use weft_net::bridge::{self, BridgeConfig};
use weft_net::fdb;
use weft_net::forward;
use weft_net::masquerade;
use weft_net::tap::{Tap, TapError};
use weft_router::{Subnet, nearness};
use weft_wire::{MacAddr, Network, NetworkKey};

use crate::config::Config;
use crate::convert;
use crate::dataplane::Taps;
use crate::handback::once_free;
use crate::state::{ExposedState, Links};

mod networks;

/// What the node does to the host.
pub(crate) struct Host {
    netlink: Netlink,
    /// The default network's bridge.
    bridge: String,
    /// The MAC and the MTU of every bridge.
    mac: MacAddr,
    mtu: u32,
    /// Each network this host has, by its number at present.
    networks: BTreeMap<Network, Place>,
    /// The TAPs of the networks beside the default one.
    taps: Arc<Taps>,
    warnings: Vec<String>,
    /// Bridge entries of an earlier run that nobody has confirmed in this one, and since when there are any.
    unconfirmed: (Instant, BTreeSet<(Network, MacAddr)>),
    /// Has frames pass the host's packet filter.
    filter: forward::Guard,
}

/// A network on this host.
#[derive(Debug)]
struct Place {
    key: NetworkKey,
    links: Links,
}

impl Host {
    /// Brings bridge, TAP and addresses into the state the configuration asks for.
    ///
    /// # Errors
    /// What is needed for any frame to pass cannot be had: no TUN device, no rights, the TAP is in
    /// use by another router.
    pub(crate) async fn set_up(
        config: &Config,
        exposed: &[ExposedState],
    ) -> anyhow::Result<(Self, Tap)> {
        let netlink = Netlink::new()?;
        let links = Links {
            bridge: config.host.bridge.clone(),
            tap: config.host.tap.clone(),
        };
        let mut host = Self {
            netlink,
            bridge: links.bridge.clone(),
            mac: config.name.to_mac(),
            mtu: config.mesh.mtu.into(),
            networks: BTreeMap::new(),
            taps: Arc::default(),
            warnings: Vec::new(),
            unconfirmed: (Instant::now(), BTreeSet::new()),
            filter: forward::Guard::start(config.host.bridge.as_str()),
        };
        let tap = host.bring_up(&links).await?;
        let key = NetworkKey::Default;
        host.networks.insert(Network::DEFAULT, Place { key, links });
        host.unconfirmed.1 = host.entries(Network::DEFAULT).await;
        if let Some(dns) = &config.dns {
            let pools: Vec<_> = config
                .pools()
                .map(|pool| convert::api_cidr(&pool))
                .collect();
            host.resolver_address(dns.address, &pools).await?;
        }
        for entry in exposed {
            let Ok(cidr) = entry.cidr.parse::<Cidr>() else {
                continue;
            };
            if let Err(error) = host.expose(cidr, exposed).await {
                host.warn(format!("{cidr} is not exposed as it was: {error:#}"));
            }
        }
        Ok((host, tap))
    }

    /// The subnets this host is in.
    pub(crate) async fn subnets(&self) -> Vec<Subnet> {
        match self.netlink.all_addresses().await {
            Ok(all) => all
                .into_iter()
                .filter_map(|(ip, len)| nearness::subnet_of(ip, len))
                .collect(),
            Err(error) => {
                debug!(%error, "the host's addresses cannot be read");
                Vec::new()
            }
        }
    }

    /// The way to the kernel that belongs to this host.
    pub(crate) fn netlink(&self) -> Netlink {
        self.netlink.clone()
    }

    /// What does not work, in words.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let filter = self.filter.trouble().map(|trouble| trouble.to_string());
        self.warnings.iter().cloned().chain(filter)
    }

    /// Notes something for the log and the status, once.
    pub(crate) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            warn!("{warning}");
            self.warnings.push(warning);
        }
    }

    /// Makes a network's links, or brings those that are there into the state they should be in.
    async fn bring_up(&self, links: &Links) -> anyhow::Result<Tap> {
        let config = BridgeConfig {
            name: links.bridge.clone(),
            mac: self.mac,
            mtu: self.mtu,
        };
        bridge::ensure_bridge(&self.netlink, &config).await?;
        let busy = |error: &_| matches!(error, TapError::Busy(_));
        let tap = once_free(busy, || Tap::attach(&links.tap)).await?;
        bridge::enslave_tap(&self.netlink, &links.tap, &links.bridge).await?;
        Ok(tap)
    }

    /// The TAPs of the networks beside the default one; the same map as long as they are the same.
    pub(crate) fn taps(&self) -> Arc<Taps> {
        self.taps.clone()
    }

    /// Has the network's bridge send frames for this MAC to us alone, instead of to every container.
    pub(crate) async fn add_remote_mac(&mut self, network: Network, mac: MacAddr) {
        self.unconfirmed.1.remove(&(network, mac));
        let Some(Place { links, .. }) = self.networks.get(&network) else {
            return;
        };
        if let Err(error) = fdb::fdb_replace(&self.netlink, mac, &links.tap).await {
            debug!(%mac, %network, %error, "no bridge entry");
        }
    }

    /// Takes such an entry back.
    pub(crate) async fn forget_remote_mac(&mut self, network: Network, mac: MacAddr) {
        self.unconfirmed.1.remove(&(network, mac));
        let Some(Place { links, .. }) = self.networks.get(&network) else {
            return;
        };
        if let Err(error) = fdb::fdb_del(&self.netlink, mac, &links.tap).await {
            debug!(%mac, %network, %error, "no bridge entry removed");
        }
    }

    /// Gives the host an address in the network. `all` is every exposed address, this one included.
    pub(crate) async fn expose(&mut self, cidr: Cidr, all: &[ExposedState]) -> anyhow::Result<()> {
        bridge::add_address(&self.netlink, &self.bridge, cidr.addr(), cidr.prefix()).await?;
        self.masquerade(all).await
    }

    /// Takes an address of the host back. `all` is every address that stays.
    pub(crate) async fn hide(&mut self, cidr: Cidr, all: &[ExposedState]) -> anyhow::Result<()> {
        bridge::del_address(&self.netlink, &self.bridge, cidr.addr(), cidr.prefix()).await?;
        self.masquerade(all).await
    }

    async fn masquerade(&self, all: &[ExposedState]) -> anyhow::Result<()> {
        let cidrs: Vec<(IpAddr, u8)> = all
            .iter()
            .filter(|e| e.masquerade)
            .filter_map(|e| e.cidr.parse::<Cidr>().ok())
            .map(|c| (c.addr(), c.prefix()))
            .collect();
        masquerade::apply(&cidrs).await?;
        Ok(())
    }

    /// Puts the resolver's address on every bridge, and has its answers to these pools leave by them. As it is
    /// an IPv4 address, containers of IPv6 pools do not ask there, or from another address.
    pub(crate) async fn resolver_address(
        &self,
        addr: Ipv4Addr,
        pools: &[Cidr],
    ) -> anyhow::Result<()> {
        let pools = pools.iter().map(|p| (p.addr(), p.prefix()));
        let pools: Vec<_> = pools.filter(|(first, _)| first.is_ipv4()).collect();
        let bridges: Vec<&str> = self.bridges().collect();
        bridge::dns_address(&self.netlink, &bridges, addr, &pools)
            .await
            .with_context(|| {
                let bridges = bridges.join(", ");
                format!("cannot put the resolver's address {addr} on {bridges}")
            })
    }

    /// Entries of an earlier run serve while the peers are found again; those that are not confirmed by then go.
    pub(crate) async fn drop_unconfirmed(&mut self, now: Instant) {
        let (since, macs) = &mut self.unconfirmed;
        if now.saturating_duration_since(*since) < CONFIRMED_WITHIN {
            return;
        }
        for (network, mac) in std::mem::take(macs) {
            self.forget_remote_mac(network, mac).await;
        }
    }

    /// The ports of all networks' bridges by name; none if that cannot be found out.
    pub(crate) async fn ports(&self) -> Option<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for Place { links, .. } in self.networks.values() {
            let ports = self.netlink.list_ports(&links.bridge).await;
            let unknown = |error: &_| debug!(%error, "a bridge's ports are not known");
            all.extend(ports.inspect_err(unknown).ok()?);
        }
        Some(all)
    }

    /// Which MACs the bridges have learned by themselves, and the numbers of their ports.
    pub(crate) async fn learned_ports(&self) -> BTreeMap<(Network, MacAddr), u32> {
        let mut all = BTreeMap::new();
        for (network, Place { links, .. }) in &self.networks {
            let learned = fdb::fdb_dump_learned(&self.netlink, &links.bridge).await;
            let unknown = |error: &_| debug!(%error, "what a bridge has learned is not known");
            let learned = learned.inspect_err(unknown).unwrap_or_default();
            all.extend(
                learned
                    .into_iter()
                    .map(|(mac, port)| ((*network, mac), port)),
            );
        }
        all
    }

    /// What we, or a router before us, had a network's bridge know.
    async fn entries(&self, network: Network) -> BTreeSet<(Network, MacAddr)> {
        let Some(Place { links, .. }) = self.networks.get(&network) else {
            return BTreeSet::new();
        };
        let entries = fdb::fdb_dump_extern(&self.netlink, &links.tap).await;
        let unknown = |error: &_| debug!(%error, "a bridge's entries are not known");
        let entries = entries.inspect_err(unknown).unwrap_or_default();
        entries.into_iter().map(|mac| (network, mac)).collect()
    }

    /// Warns of routes of the host that a pool would be in the way of.
    pub(crate) async fn check_overlap(&mut self, pool: Cidr) {
        match bridge::overlapping_routes(&self.netlink, (pool.addr(), pool.prefix()), &self.bridge)
            .await
        {
            Ok(routes) => {
                for route in routes {
                    self.warn(format!(
                        "the range {pool} overlaps the host's route {route}: containers cannot reach what is behind it; choose another --ipalloc-range on all peers"
                    ));
                }
            }
            Err(error) => debug!(%error, "the host's routes cannot be read"),
        }
    }
}

/// How long entries of an earlier run may wait to be confirmed.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
