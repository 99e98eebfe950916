//! Puts together what the data plane forwards by, from what the machines know.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_ipam::Allocator;
use weft_router::ConnId;
use weft_router::bindings::BindingView;
use weft_wire::PeerName;

use super::Node;
use crate::dataplane::{ByPeer, Egress, Forwarding, Way};

impl Node {
    /// Replaces the data plane's snapshot. Only established neighbours take or get frames.
    pub(super) fn replace_forwarding(&mut self) {
        self.watch_demand();
        let links = self.router.own_links();
        let sessions: HashMap<ConnId, Arc<Egress>> = self
            .mesh
            .sessions
            .iter()
            .map(|(conn, session)| {
                let egress = Egress {
                    conn: *conn,
                    peer: session.peer,
                    session: session.send.clone(),
                    remote: session.remote,
                    limit: session.limit.into(),
                    activity: session.activity.clone(),
                };
                (*conn, Arc::new(egress))
            })
            .collect();
        let established = |egress: &&Arc<Egress>| {
            let link = links.get(&egress.peer);
            link.is_some_and(|link| link.established)
        };
        let neighbours: ByPeer<Arc<Egress>> = sessions
            .values()
            .filter(established)
            .map(|egress| (egress.peer, egress.clone()))
            .collect();
        let routes = self.router.routes();
        let way = |(peer, via): (&PeerName, &PeerName)| {
            let way = Way {
                egress: neighbours.get(via)?.clone(),
                demand: self.mesh.demand.get(peer).cloned(),
            };
            Some((*peer, way))
        };
        let ways = routes.unicast.iter().filter_map(way).collect();
        let flood = routes
            .flood()
            .iter()
            .map(|(origin, via)| {
                (
                    *origin,
                    via.iter()
                        .filter_map(|peer| neighbours.get(peer).cloned())
                        .collect(),
                )
            })
            .collect();
        self.data.set_forwarding(Forwarding {
            us: self.config.name,
            dns: self.config.dns_address(),
            conflicts: self.conflicts(),
            macs: self.macs.table.view(),
            bindings: self.answerable(),
            ways,
            flood,
            neighbours,
            sessions,
            taps: self.host.taps(),
        });
    }

    /// Where we are connected with some peers only, it matters to whom frames are sent.
    fn watch_demand(&mut self) {
        let watched = &mut self.mesh.demand;
        if !self.router.is_sparse() {
            return watched.clear();
        }
        let routes = &self.router.routes().unicast;
        watched.retain(|peer, _| routes.contains_key(peer));
        for peer in routes.keys() {
            watched.entry(*peer).or_default();
        }
    }

    /// Whose addresses questions are answered for.
    fn answerable(&self) -> BindingView {
        if self.config.mesh.arp_answers {
            self.macs.bindings.view()
        } else {
            BindingView::default()
        }
    }

    /// Addresses our containers must not speak from, because rings met and others hold them.
    pub(super) fn conflicts(&self) -> Vec<IpAddr> {
        let conflicts = self.ipam.iter().flat_map(Allocator::conflicts);
        let mut addresses: Vec<_> = conflicts.map(|conflict| conflict.addr.into()).collect();
        addresses.sort_unstable();
        addresses
    }
}
