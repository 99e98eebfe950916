//! The interfaces of our own containers: what whoever attaches them tells us of their MACs and addresses.
//!
//! A binding is there before the first frame, so that other peers know where the container is when it
//! begins to speak. It is in the state file, because whoever told us will not do so again after a restart.
//! Nobody may tell us that a container is gone; its port is gone then too, which is looked for.
//!
//! Invariant: each binding in the state, and the host's own interface while it is exposed, is registered in the
//! MAC table, the table of addresses and what we publish, and nothing else is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, warn};
use weft_api::Cidr;
use weft_api::types::{self as api, ContainerId};
use weft_router::home;
use weft_router::macs::{Kind, Location};
use weft_router::networks::Networks;
use weft_wire::{MacAddr, Network, NetworkKey};

use super::Node;
use super::macs::Macs;
use crate::config::Config;
use crate::event::Failure;
use crate::state::{BindingState, ExposedState, State};

/// How long after it was told of an interface's port may not be there: whoever attaches a container
/// first tells and then makes it.
const MAKING: Duration = Duration::from_secs(30);
/// The longest name of a link (`IFNAMSIZ` with its end).
const MAX_IFNAME: usize = 15;

impl Macs {
    /// What was registered before a restart, as far as it is there still; the rest is dropped from the state.
    pub(crate) fn restore(
        config: &Config,
        networks: &Networks,
        state: &mut State,
        ports: Option<&BTreeSet<String>>,
        now: Instant,
    ) -> Self {
        let is_there =
            |binding: &BindingState| ports.is_none_or(|ports| ports.contains(&binding.port));
        state.bindings.retain(is_there);
        let mut macs = Self::new();
        let bindings = state.bindings.iter();
        let bindings = bindings.filter_map(|b| Some((key(networks, b)?, b.addresses.clone())));
        let host = (Network::DEFAULT, config.name.to_mac());
        let host = Some((host, exposed(&state.exposed))).filter(|(_, a)| !a.is_empty());
        for (key, addresses) in bindings.chain(host) {
            macs.put(key, addresses, now);
        }
        // They are among what is said from the first moment on.
        while macs.home.poll_event().is_some() {}
        macs
    }

    /// Registers everywhere but on the host.
    fn put(&mut self, key: home::Key, addresses: Vec<IpAddr>, now: Instant) {
        let (network, mac) = key;
        self.bindings
            .bind(network, mac, Location::Local, &addresses);
        if self.home.register(key, addresses).is_ok() {
            let registered = Kind::Registered;
            self.table
                .claim(network, mac, Location::Local, registered, now);
        }
    }
}

impl Node {
    /// A container has, or is about to have, an interface.
    pub(super) async fn bind(&mut self, body: api::Bind) -> Result<(), Failure> {
        check(&body)?;
        let binding = BindingState {
            container: body.container.to_string(),
            network: body.network.to_string(),
            mac: body.mac.to_string(),
            port: body.port,
            addresses: body.addresses,
        };
        let mut bindings = self.persisted.state.bindings.clone();
        bindings.retain(|other| other.mac != binding.mac);
        bindings.push(binding);
        let number = self.networks.number(&body.network).ok_or_else(|| {
            Failure::missing(format!("this host is not in the network {}", body.network))
        })?;
        self.set_bindings(bindings).await?;
        let key = (number, body.mac);
        self.macs.making.insert(key, Instant::now());
        Ok(())
    }

    /// A container has no interface any more.
    pub(super) async fn unbind(&mut self, container: &ContainerId) {
        self.keep_bindings(|binding| binding.container != container.as_str())
            .await;
    }

    /// A container has no such address any more; with the last one, its interface goes.
    pub(super) async fn unbind_address(&mut self, container: &ContainerId, addr: IpAddr) {
        self.keep_bindings(|binding| {
            let has = binding.container == container.as_str() && binding.addresses.contains(&addr);
            binding.addresses.retain(|other| !has || *other != addr);
            !has || !binding.addresses.is_empty()
        })
        .await;
    }

    /// This host leaves a network, and so do its containers.
    pub(super) async fn unbind_network(&mut self, network: &NetworkKey) {
        let network = network.to_string();
        self.keep_bindings(|binding| binding.network != network)
            .await;
    }

    /// The keys of all bindings as they are at present.
    pub(super) fn binding_keys(&self) -> Vec<Option<home::Key>> {
        let bindings = self.persisted.state.bindings.iter();
        bindings
            .map(|binding| key(&self.networks, binding))
            .collect()
    }

    /// Registers all bindings whose networks have other numbers than when they had these keys.
    pub(super) async fn renumber_bindings(&mut self, before: Vec<Option<home::Key>>) {
        let bindings = self.persisted.state.bindings.clone();
        for (binding, before) in bindings.iter().zip(before) {
            let after = key(&self.networks, binding);
            if before == after {
                continue;
            }
            if let Some(before) = before {
                self.unregister(before).await;
            }
            if let Some(after) = after
                && let Err(failure) = self.register(after, &binding.addresses).await
            {
                warn!(
                    why = failure.error,
                    "other peers do not know a container's MAC"
                );
            }
        }
    }

    /// Bindings whose port is not there are of containers that are gone.
    pub(super) async fn prune_bindings(&mut self, now: Instant) {
        let is_new = |since: &Instant| now.saturating_duration_since(*since) < MAKING;
        self.macs.making.retain(|_, since| is_new(since));
        if self.persisted.state.bindings.is_empty() {
            return;
        }
        let Some(ports) = self.host.ports().await else {
            return;
        };
        let making: BTreeSet<home::Key> = self.macs.making.keys().copied().collect();
        self.keep_bindings(|binding| {
            let is_new = making.iter().any(|(_, mac)| binding.mac == mac.to_string());
            ports.contains(&binding.port) || is_new
        })
        .await;
    }

    /// The host's own interface is the bridge, while it is exposed.
    pub(super) async fn bind_host(&mut self) {
        let key = (Network::DEFAULT, self.config.name.to_mac());
        let addresses = exposed(&self.persisted.state.exposed);
        if addresses.is_empty() {
            self.unregister(key).await;
        } else if let Err(failure) = self.register(key, &addresses).await {
            warn!(
                why = failure.error,
                "other peers do not know the host's MAC"
            );
        }
    }

    /// Drops the bindings that are not to be kept; those that are may be changed.
    async fn keep_bindings(&mut self, keep: impl FnMut(&mut BindingState) -> bool) {
        let mut bindings = self.persisted.state.bindings.clone();
        bindings.retain_mut(keep);
        // There is room for what is registered already.
        if let Err(failure) = self.set_bindings(bindings).await {
            warn!(why = failure.error, "bindings stay as they were");
        }
    }

    /// Has all that is registered for containers follow this list.
    async fn set_bindings(&mut self, bindings: Vec<BindingState>) -> Result<(), Failure> {
        let old = self.persisted.state.bindings.clone();
        if bindings == old {
            return Ok(());
        }
        for binding in bindings.iter().filter(|binding| !old.contains(binding)) {
            if let Some(key) = key(&self.networks, binding) {
                self.register(key, &binding.addresses).await?;
            }
        }
        let stays = |gone: &BindingState| bindings.iter().any(|binding| binding.mac == gone.mac);
        for binding in old.iter().filter(|binding| !stays(binding)) {
            debug!(
                container = binding.container,
                mac = binding.mac,
                "its interface is gone"
            );
            if let Some(key) = key(&self.networks, binding) {
                self.unregister(key).await;
            }
        }
        self.persisted.state.bindings = bindings;
        self.persisted.save();
        Ok(())
    }

    async fn register(&mut self, key: home::Key, addresses: &[IpAddr]) -> Result<(), Failure> {
        let (network, mac) = key;
        self.macs
            .home
            .register(key, addresses.to_vec())
            .map_err(|full| {
                Failure::unavailable(full).hint(
                    "it can be reached all the same, once it has sent something; detach containers that are not needed",
                )
            })?;
        let now = Instant::now();
        let (table, at) = (&mut self.macs.table, Location::Local);
        let claimed = table.claim(network, mac, at, Kind::Registered, now);
        self.macs.bindings.bind(network, mac, at, addresses);
        self.mesh.stale = true;
        self.follow(key, claimed, now).await;
        Ok(())
    }

    async fn unregister(&mut self, key: home::Key) {
        let (network, mac) = key;
        self.macs.home.forget(key);
        self.macs.bindings.unbind(network, mac, Location::Local);
        self.mesh.stale = true;
        let withdrawn = self.macs.table.withdraw(network, mac, Location::Local);
        if let Some((network, mac, at)) = withdrawn {
            self.place_mac(network, mac, at, Instant::now()).await;
        }
    }
}

/// None if nobody is in its network any more.
fn key(networks: &Networks, binding: &BindingState) -> Option<home::Key> {
    let network = networks.number(&binding.network.parse().ok()?)?;
    Some((network, binding.mac.parse().ok()?))
}

fn check(body: &api::Bind) -> Result<(), Failure> {
    if body.port.is_empty() || body.port.len() > MAX_IFNAME {
        return Err(Failure::bad(format!("no link is called {:?}", body.port)));
    }
    if body.mac.is_multicast() || body.mac == MacAddr::from_bytes([0; 6]) {
        return Err(Failure::bad(format!(
            "no interface has the MAC {}",
            body.mac
        )));
    }
    let most = api::Bind::MAX_ADDRESSES;
    if body.addresses.len() > most {
        return Err(Failure::bad(format!(
            "{} addresses are more than the {most} of one interface that others are told of",
            body.addresses.len()
        )));
    }
    Ok(())
}

fn exposed(exposed: &[ExposedState]) -> Vec<IpAddr> {
    let cidrs = exposed.iter().filter_map(|e| e.cidr.parse::<Cidr>().ok());
    cidrs
        .map(|cidr| cidr.addr())
        .take(api::Bind::MAX_ADDRESSES)
        .collect()
}
