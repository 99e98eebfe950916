//! The report: what the machines know, turned into the API's types.
//!
//! Built when somebody asks, in one go, so that its parts fit each other. Nothing here changes
//! anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use weft_api::report as out;
use weft_api::types::Network;
use weft_api::{ContainerId, Report};
use weft_ipam::Allocator;
use weft_router::macs::{Kind, MacEntry};
use weft_wire::{NetworkKey, PeerName};

use super::Node;
use crate::convert;
use crate::metrics::{self, Counts};

impl Node {
    pub(super) fn report(&self) -> Report {
        Report {
            version: self.config.version.to_owned(),
            router: self.router_report(),
            ipam: self.ipam.default_allocator().map(|a| self.ipam_report(a)),
            pools: self.further_pools(),
            dns: self.dns_report(),
            network: self.network(),
            copied_state: self
                .persisted
                .set_aside
                .as_ref()
                .map(|p| p.display().to_string()),
            networks: self.network_report(),
            warnings: self.warnings(),
        }
    }

    pub(super) fn metrics(&self) -> String {
        let resolver = self.names.resolver.as_ref();
        let counts = Counts {
            data: self.data.counters(),
            terminations: self.mesh.terminations,
            relayed_dropped: self.router.relayed_dropped(),
            gossip: self.mesh.gossip.counters(),
            left_out: self.left_out(),
            carriers: self.fast.changes,
            queries: resolver.map(|r| r.counters().collect()).unwrap_or_default(),
        };
        metrics::render(&self.report(), &counts)
    }

    pub(super) fn network(&self) -> Network {
        let ipam = self.config.ipam.iter();
        let mut subnets = ipam.flat_map(|ipam| ipam.default_subnets.iter().map(convert::api_cidr));
        Network {
            key: NetworkKey::Default,
            number: 0,
            bridge: self.config.host.bridge.clone(),
            mtu: self.config.mesh.mtu,
            fast: self.config.fast().off.is_none(),
            dns: self.config.dns.as_ref().map(|dns| dns.address),
            domain: self.config.dns.as_ref().map(|dns| dns.domain.to_string()),
            default_subnet: subnets.next(),
            default_subnet6: subnets.next(),
            pool: self
                .config
                .ipam
                .as_ref()
                .and_then(|ipam| ipam.pools.first())
                .map(convert::api_cidr),
        }
    }

    fn router_report(&self) -> out::Router {
        let routes = self.router.routes();
        out::Router {
            protocol: format!("weft {}", weft_wire::control::PROTOCOL),
            name: self.config.name,
            nickname: self.config.nickname.to_string(),
            encryption: if self.config.mesh.password {
                out::Encryption::Enabled
            } else {
                out::Encryption::Open
            },
            discovery: self.config.mesh.discovery,
            cluster: self.config.mesh.cluster.clone(),
            port: self.config.mesh.port,
            targets: self
                .router
                .targets()
                .iter()
                .map(|t| t.target.to_string())
                .collect(),
            connections: self.connections(),
            peers: self.peers(),
            trusted_subnets: self.config.mesh.trusted.clone(),
            unicast_routes: routes
                .unicast
                .iter()
                .map(|(&destination, &via)| out::UnicastRoute { destination, via })
                .collect(),
            flood_routes: routes
                .flood()
                .iter()
                .map(|(&origin, via)| out::FloodRoute {
                    origin,
                    via: via.clone(),
                })
                .collect(),
            macs: self.mac_report(),
            drops: self.drops(),
        }
    }

    fn connections(&self) -> Vec<out::Connection> {
        let now = Instant::now();
        self.router
            .connections()
            .into_iter()
            .map(|c| convert::connection(c, now))
            .collect()
    }

    fn peers(&self) -> Vec<out::Peer> {
        let topology = self.router.topology();
        let known: BTreeSet<PeerName> = topology
            .peers()
            .into_iter()
            .chain(self.mesh.info.keys().copied())
            .chain([self.config.name])
            .collect();
        let nicknames = self.nicknames();
        let nick = |name: &PeerName| nicknames.get(name).cloned().unwrap_or_default();
        known
            .iter()
            .map(|name| {
                let info = self.mesh.info.get(name);
                let us = *name == self.config.name;
                let links: Vec<_> = match us {
                    true => self.mesh.published.iter().map(|(to, l)| (*to, l)).collect(),
                    false => self.mesh.links.of(*name).collect(),
                };
                let links = links.into_iter().map(|(to, link)| out::Link {
                    peer: to,
                    nickname: nick(&to),
                    address: link.address.to_string(),
                    outbound: link.outbound,
                    established: link.established,
                });
                out::Peer {
                    name: *name,
                    nickname: nick(name),
                    uid: if us {
                        self.config.uid.to_string()
                    } else {
                        info.map(|i| i.uid.to_string()).unwrap_or_default()
                    },
                    version: if us {
                        Some(self.config.version.to_owned())
                    } else {
                        info.map(|i| i.version.clone())
                    },
                    links: links.collect(),
                    reachable: self.reach(*name),
                }
            })
            .collect()
    }

    fn reach(&self, peer: PeerName) -> out::Reach {
        if peer == self.config.name {
            return out::Reach::Us;
        }
        match self.router.routes().unicast.get(&peer) {
            None => out::Reach::Unreachable,
            Some(via) if *via == peer => out::Reach::Direct,
            Some(via) => out::Reach::Via(*via),
        }
    }

    /// What people call the peers we know, ourselves among them.
    pub(super) fn nicknames(&self) -> BTreeMap<PeerName, String> {
        let others = self
            .mesh
            .info
            .iter()
            .map(|(name, info)| (*name, info.nickname.to_string()));
        let neighbours = self
            .router
            .connections()
            .into_iter()
            .filter_map(|c| c.peer)
            .map(|(name, nick)| (name, nick.to_string()));
        let us = (self.config.name, self.config.nickname.to_string());
        neighbours.chain(others).chain([us]).collect()
    }

    fn mac_report(&self) -> Vec<out::Mac> {
        let now = Instant::now();
        let nicknames = self.nicknames();
        let macs = &self.macs;
        macs.table
            .iter()
            .map(|entry| {
                let MacEntry {
                    network,
                    mac,
                    location,
                    ..
                } = entry;
                let peer = entry.location.peer().unwrap_or(self.config.name);
                out::Mac {
                    mac,
                    peer,
                    nickname: nicknames.get(&peer).cloned().unwrap_or_default(),
                    known: match entry.claim {
                        Some(Kind::Registered) => out::Known::Registered,
                        Some(Kind::Learned) => out::Known::Told,
                        None => out::Known::Seen,
                    },
                    addresses: macs.bindings.addresses(network, mac, location).collect(),
                    age_s: now.saturating_duration_since(entry.last_seen).as_secs(),
                }
            })
            .collect()
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let counted = self.data.counters().drops().filter(|(_, count)| *count > 0);
        counted
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect()
    }

    fn ipam_report(&self, allocator: &Allocator) -> out::Ipam {
        convert::ipam(allocator, &allocator.status(), &self.nicknames())
    }

    fn further_pools(&self) -> Vec<out::Ipam> {
        let default = self.ipam.default_allocator().map(Allocator::pool);
        let pools = self.ipam.iter().filter(|a| Some(a.pool()) != default);
        pools.map(|a| self.ipam_report(a)).collect()
    }

    fn dns_report(&self) -> Option<out::Dns> {
        let dns = self.config.dns.as_ref()?;
        let entries = self.names.table.records().filter_map(|record| {
            Some(out::Name {
                name: record.name.to_string(),
                container: ContainerId::new(record.container.clone()).ok()?,
                origin: record.origin,
                address: record.addr,
            })
        });
        Some(out::Dns {
            domain: dns.domain.to_string(),
            addresses: dns.listen.clone(),
            upstream: self
                .names
                .resolver
                .as_ref()
                .map(|r| r.upstream())
                .unwrap_or_default(),
            ttl: dns.ttl,
            entries: entries.collect(),
        })
    }

    /// What somebody should look at.
    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.host.warnings().collect();
        if !self.config.mesh.password {
            warnings.push("anybody who reaches this port can join: give all peers the same --password (`weft password` makes one)".to_owned());
        }
        if let Some(kept) = &self.persisted.set_aside {
            warnings.push(format!(
                "the state found at the start is another host's, copied with its disk: this is a new peer that owns nothing. The copy is kept as {}",
                kept.display()
            ));
        }
        warnings.extend(self.clash_warning());
        if let Some(why) = &self.persisted.failure {
            warnings.push(format!(
                "the state cannot be written, so no address is given out: {why}"
            ));
        }
        for (peer, info) in self
            .mesh
            .info
            .iter()
            .filter(|(_, info)| info.mtu != self.config.mesh.mtu)
        {
            warnings.push(format!(
                "{peer} ({}) has MTU {} and we have {}: large frames between us are lost; give all peers the same --mtu",
                info.nickname, info.mtu, self.config.mesh.mtu
            ));
        }
        for conflict in self.ipam.iter().flat_map(Allocator::conflicts) {
            warnings.push(format!(
                "{} is cut off: {} belongs to a container of {}; `weft status ipam` has the command that gives it a new address",
                conflict.container, conflict.addr, conflict.holder
            ));
        }
        for (pool, peer, why) in self.ipam.strange() {
            warnings.push(format!(
                "{peer} takes part in the address range {pool}, and no frames flow to its neighbours: {why}; give all peers ranges that are the same or apart"
            ));
        }
        warnings
    }
}
