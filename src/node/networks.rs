//! The networks beside the default one: which this host has and why, and which others have.
//!
//! A host has a network as long as somebody uses it here: a container, or a network of Docker's. That is
//! kept in the state, so that the networks are there again when the router is, before any container
//! asks. Every peer says which networks it has; all numbers follow from that.
//!
//! Invariant: a network is in the state if it is on this host, and is published if it is on this host.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::{info, warn};
use weft_api::ContainerId;
use weft_api::report as out;
use weft_api::types as api;
use weft_gossip::{Entry, Topic};
use weft_router::home;
use weft_router::macs::Location;
use weft_wire::{Network, NetworkKey, PeerName};

use super::Node;
use crate::event::Failure;
use crate::state::{NetworkState, UserState};

impl Node {
    /// Somebody uses a network here from now on.
    pub(super) async fn join_network(
        &mut self,
        key: &NetworkKey,
        user: &ContainerId,
        how: &api::JoinNetwork,
    ) -> Result<api::Network, Failure> {
        if self.host.network(key).is_none() {
            self.bring_network_up(key).await?;
        }
        let state = self.network_state(key);
        let multicast = how.multicast;
        let said = UserState { multicast };
        if state.users.insert(user.as_str().to_owned(), said) != Some(said) {
            self.persisted.save();
        }
        if let Some(why) = &self.persisted.failure {
            let error = format!("the state cannot be written: {why}");
            return Err(Failure::unavailable(error)
                .hint("make room on the disk that holds the state directory"));
        }
        self.network_of(key)
    }

    async fn bring_network_up(&mut self, key: &NetworkKey) -> Result<(), Failure> {
        let us = self.config.name;
        let before = self.binding_keys();
        self.networks.add(us, key).map_err(Failure::unavailable)?;
        let made = self.make_network(key).await;
        if made.is_err() {
            self.networks.remove(us, key);
        }
        self.networks_changed(before).await;
        made.map_err(|error| Failure::unavailable(format!("{error:#}")))?;
        info!(network = %key, "this host is in a network");
        self.publish(&Entry::Network(key.clone()));
        if let Some((number, _)) = self.host.network(key) {
            // Others may have said long ago what is there.
            self.place_macs_of(number).await;
        }
        Ok(())
    }

    async fn make_network(&mut self, key: &NetworkKey) -> anyhow::Result<()> {
        let known = self.persisted.state.networks.get(&key.to_string());
        let links = match known.and_then(|known| known.links.clone()) {
            Some(links) => links,
            None => self.host.fresh_links(key).await?,
        };
        // The default network is there always, and every other has a number once it is added.
        let number = self.networks.number(key).unwrap_or_default();
        self.host.join(key, number, links.clone()).await?;
        self.network_state(key).links = Some(links);
        self.persisted.save();
        Ok(())
    }

    fn network_state(&mut self, key: &NetworkKey) -> &mut NetworkState {
        let networks = &mut self.persisted.state.networks;
        networks.entry(key.to_string()).or_default()
    }

    /// Somebody does not use a network here any more. The last one takes it down.
    pub(super) async fn leave_network(&mut self, key: &NetworkKey, user: &str) {
        let text = key.to_string();
        let Some(state) = self.persisted.state.networks.get_mut(&text) else {
            return;
        };
        if state.users.remove(user).is_none() {
            return;
        }
        if state.users.is_empty() {
            self.persisted.state.networks.remove(&text);
            self.take_network_down(key).await;
        }
        self.persisted.save();
    }

    async fn take_network_down(&mut self, key: &NetworkKey) {
        let Some((number, _)) = self.host.network(key) else {
            return;
        };
        if number == Network::DEFAULT {
            return;
        }
        info!(network = %key, "nobody uses a network here any more");
        self.unbind_network(key).await;
        self.mesh
            .gossip
            .withdraw(&Topic::Network(key.clone()), Instant::now());
        // The routes of the resolver's answers go before the bridge they lead through, which would take
        // them all with it.
        let links = self.host.forget(number);
        let before = self.binding_keys();
        self.networks.remove(self.config.name, key);
        self.networks_changed(before).await;
        if let Some(links) = links {
            self.host.unmake(&links).await;
        }
    }

    /// A container that holds no address uses no network.
    pub(super) async fn leave_if_bare(&mut self, container: &ContainerId) {
        let id = crate::convert::container(container);
        if !self.ipam.lookup(&id).is_empty() {
            return;
        }
        for key in self.networks_used_by(container.as_str()) {
            self.leave_network(&key, container.as_str()).await;
        }
    }

    fn networks_used_by(&self, user: &str) -> Vec<NetworkKey> {
        let networks = self.persisted.state.networks.iter();
        let used = networks.filter(|(_, state)| state.users.contains_key(user));
        used.filter_map(|(key, _)| key.parse().ok()).collect()
    }

    /// What attaching a container to a network needs to know.
    pub(super) fn network_of(&self, key: &NetworkKey) -> Result<api::Network, Failure> {
        let (number, links) = self.host.network(key).ok_or_else(|| {
            let error = format!("this host is not in the network {key}");
            Failure::missing(error).hint("it is as soon as a container uses it: `weft attach --network`, or a network of Docker's")
        })?;
        Ok(api::Network {
            key: key.clone(),
            number: number.into(),
            bridge: links.bridge.clone(),
            // Only the default network has a VXLAN.
            fast: false,
            ..self.network()
        })
    }

    /// The networks somebody uses.
    pub(super) fn networks_of(&self, user: &ContainerId) -> api::UsedNetworks {
        let used = self.networks_used_by(user.as_str()).into_iter();
        let networks = used.filter_map(|key| {
            let state = self.persisted.state.networks.get(&key.to_string())?;
            let said = state.users.get(user.as_str())?;
            Some(api::UsedNetwork {
                network: self.network_of(&key).ok()?,
                multicast: said.multicast,
            })
        });
        api::UsedNetworks {
            networks: networks.collect(),
        }
    }

    /// Everybody who uses a network here.
    pub(super) fn network_users(&self) -> api::NetworkUsers {
        let networks = self.persisted.state.networks.values();
        let users: BTreeSet<&String> = networks.flat_map(|state| state.users.keys()).collect();
        let users = users
            .into_iter()
            .filter_map(|user| ContainerId::new(user).ok());
        api::NetworkUsers {
            users: users.collect(),
        }
    }

    /// Another peer has a network, or has it no more.
    pub(super) async fn on_network(&mut self, peer: PeerName, key: &NetworkKey, has_it: bool) {
        let before = self.binding_keys();
        let changed = if has_it {
            self.networks.add(peer, key).unwrap_or_else(|error| {
                warn!(%peer, network = %key, %error, "a network of a peer is not kept account of");
                false
            })
        } else {
            self.networks.remove(peer, key)
        };
        if changed {
            self.networks_changed(before).await;
        }
    }

    /// A peer is gone, and with it what it said of networks.
    pub(super) async fn forget_networks_of(&mut self, peer: PeerName) {
        let before = self.binding_keys();
        if self.networks.remove_peer(peer) {
            self.networks_changed(before).await;
        }
    }

    /// Has host, resolver, bindings and data plane follow what networks there are. `before` is what the
    /// bindings' keys were.
    async fn networks_changed(&mut self, before: Vec<Option<home::Key>>) {
        let moved = self.host.renumber(|key| self.networks.number(key));
        for (key, number) in &moved {
            info!(network = %key, %number, "a network has another number, because another key comes before it");
        }
        self.mesh.stale = true;
        self.route_answers().await;
        self.renumber_bindings(before).await;
        for (_, number) in moved {
            self.place_macs_of(number).await;
        }
    }

    /// What is known of the MACs in a network, for a bridge that is new.
    async fn place_macs_of(&mut self, network: Network) {
        let macs = self
            .macs
            .table
            .iter()
            .filter(|entry| entry.network == network);
        let macs: Vec<_> = macs.map(|entry| (entry.mac, entry.location)).collect();
        for (mac, location) in macs {
            if matches!(location, Location::Peer(_)) {
                self.host.add_remote_mac(network, mac).await;
            }
        }
    }

    /// All networks that this host or another has.
    pub(super) fn network_report(&self) -> Vec<out::Network> {
        let default = [NetworkKey::Default];
        let others = self.networks.keys().cloned();
        let keys = default.into_iter().chain(others);
        keys.map(|key| {
            let state = self.persisted.state.networks.get(&key.to_string());
            let users = state.into_iter().flat_map(|state| state.users.keys());
            out::Network {
                number: self.networks.number(&key).unwrap_or_default().into(),
                bridge: self
                    .host
                    .network(&key)
                    .map(|(_, links)| links.bridge.clone()),
                users: users.cloned().collect(),
                peers: self.networks.users(&key).collect(),
                key,
            }
        })
        .collect()
    }
}
