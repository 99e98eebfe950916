//! What the API asks of the node, and the answers.

use std::net::IpAddr;
use std::time::Instant;

use tracing::info;
use weft_api::Cidr;
use weft_api::types::{self as api, ContainerId};
use weft_dns::{Filter, Name};
use weft_ipam::{RequestError, RequestId};
use weft_router::Target;
use weft_wire::PeerName;

use super::Node;
use crate::convert;
use crate::event::{Failure, Reply, Request};
use crate::state::ExposedState;

/// A request to the allocator that has not been answered yet.
pub(super) enum Waiting {
    Address(Reply<api::Address>),
    Claim(Cidr, Reply<api::Address>),
    Prime(Reply<()>),
}

impl Node {
    pub(super) async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Report(reply) => send(reply, Ok(self.report())),
            Request::Metrics(reply) => send(reply, Ok(self.metrics())),
            Request::Network(reply) => send(reply, Ok(self.network())),
            Request::NetworkOf(key, reply) => send(reply, self.network_of(&key)),
            Request::JoinNetwork(key, user, body, reply) => {
                let joined = self.join_network(&key, &user, &body).await;
                send(reply, joined);
            }
            Request::LeaveNetwork(key, user, reply) => {
                self.leave_network(&key, user.as_str()).await;
                send(reply, Ok(()));
            }
            Request::NetworkUsers(reply) => send(reply, Ok(self.network_users())),
            Request::NetworksOf(user, reply) => send(reply, Ok(self.networks_of(&user))),
            Request::Connect(body, reply) => send(reply, self.connect(&body)),
            Request::Forget(body, reply) => {
                let forgotten =
                    targets(&body.targets).map(|t| self.router.forget(&t, Instant::now()));
                send(reply, forgotten);
            }
            Request::ResetPrepare(reply) => {
                let heir = self.ipam.hand_over(Instant::now());
                send(reply, Ok(api::HandedOver { heir }));
            }
            Request::RemovePeer(peer, reply) => send(reply, self.remove_peer(&peer)),
            Request::Allocate(id, container, body, reply) => {
                self.allocate(id, container, body.subnet, reply)
            }
            Request::Claim(id, container, body, reply) => {
                self.claim(id, container, body.cidr, reply)
            }
            Request::Prime(id, reply) => {
                self.waiting.insert(id, Waiting::Prime(reply));
                self.ipam.prime(id, Instant::now());
            }
            Request::AddPool(subnet, reply) => send(reply, self.add_pool(subnet)),
            Request::Cancel(id) => {
                if self.waiting.remove(&id).is_some() {
                    self.ipam.cancel(id);
                }
            }
            Request::Lookup(container, reply) => {
                let found = self.ipam.lookup(&convert::container(&container));
                send(reply, Ok(addresses(found)));
            }
            Request::Holders(addr, reply) => send(reply, self.holders(addr)),
            Request::Free(container, addr, reply) => {
                let freed = self.free(&container, addr).await;
                self.leave_if_bare(&container).await;
                send(reply, freed);
            }
            Request::FreeAll(container, reply) => {
                self.unbind(&container).await;
                let id = convert::container(&container);
                let freed = self.ipam.free_all(&id, Instant::now());
                self.leave_if_bare(&container).await;
                send(reply, Ok(addresses(freed)));
            }
            Request::AddName(body, reply) => {
                let added = self.add_name(body);
                send(reply, added);
            }
            Request::RemoveNames(body, reply) => {
                let removed = self.remove_names_like(body);
                send(reply, removed);
            }
            Request::FindName(name, reply) => send(reply, self.find_name(&name)),
            Request::Bind(body, reply) => {
                let bound = self.bind(body).await;
                send(reply, bound);
            }
            Request::Unbind(container, reply) => {
                self.unbind(&container).await;
                send(reply, Ok(()));
            }
            Request::Expose(body, reply) => {
                let exposed = self.expose(body).await;
                send(reply, exposed);
            }
            Request::Hide(cidr, reply) => {
                let hidden = self.hide(cidr).await;
                send(reply, hidden);
            }
        }
    }

    fn connect(&mut self, body: &api::Connect) -> Result<(), Failure> {
        let targets = targets(&body.targets)?;
        self.router.connect(&targets, body.replace, Instant::now());
        Ok(())
    }

    fn remove_peer(&mut self, peer: &str) -> Result<api::TakenOver, Failure> {
        let name = self.peer_called(peer)?;
        if name == self.config.name {
            return Err(Failure::bad("this is the peer itself")
                .hint("to give its own addresses up, use `weft reset`"));
        }
        if self.reachable().contains(&name) {
            let error = format!(
                "{peer} is alive: taking its addresses over would give them to two containers"
            );
            return Err(Failure::taken(error)
                .hint("stop it first, and run this only if it never comes back with its data"));
        }
        let addresses = convert::countable(self.ipam.take_over(name, Instant::now()));
        info!(peer = %name, addresses, "took over");
        Ok(api::TakenOver { addresses })
    }

    /// The peer with this name or nickname, among those known now and those that own addresses.
    fn peer_called(&self, text: &str) -> Result<PeerName, Failure> {
        if let Ok(name) = text.parse() {
            return Ok(name);
        }
        let mut called = self
            .nicknames()
            .into_iter()
            .filter(|(_, nick)| nick == text)
            .map(|(name, _)| name);
        match (called.next(), called.next()) {
            (Some(name), None) => Ok(name),
            (None, _) => Err(Failure::missing(format!("no peer is called {text:?}"))
                .hint("`weft status ipam` lists the peers; a name like 3a:01:02:03:04:05 always works")),
            (Some(_), Some(_)) => Err(Failure::bad(format!("several peers are called {text:?}")).hint("use the name instead")),
        }
    }

    fn allocate(
        &mut self,
        id: RequestId,
        container: ContainerId,
        subnet: Option<Cidr>,
        reply: Reply<api::Address>,
    ) {
        let subnet = match subnet.map(convert::subnet).transpose() {
            Ok(subnet) => subnet,
            Err(failure) => return send(reply, Err(failure)),
        };
        self.waiting.insert(id, Waiting::Address(reply));
        let container = convert::container(&container);
        self.ipam.allocate(id, container, subnet, Instant::now());
    }

    fn claim(
        &mut self,
        id: RequestId,
        container: ContainerId,
        cidr: Cidr,
        reply: Reply<api::Address>,
    ) {
        let addr = cidr.addr().into();
        self.waiting.insert(id, Waiting::Claim(cidr, reply));
        self.ipam.claim(
            id,
            convert::container(&container),
            addr,
            cidr.prefix(),
            Instant::now(),
        );
    }

    /// Passes the allocator's answer on, unless what it rests on could not be written to the disk.
    pub(super) fn answer(
        &mut self,
        id: RequestId,
        result: Result<weft_ipam::Answer, RequestError>,
    ) {
        let Some(waiting) = self.waiting.remove(&id) else {
            return;
        };
        let result = match &self.persisted.failure {
            Some(why) => Err(
                Failure::unavailable(format!("the state cannot be written: {why}"))
                    .hint("make room on the disk that holds the state directory"),
            ),
            None => result.map_err(convert::request_error),
        };
        match waiting {
            Waiting::Address(reply) => send(
                reply,
                result.and_then(|answer| match answer {
                    weft_ipam::Answer::Address { addr, prefix } => Ok(api::Address {
                        cidr: convert::cidr(addr, prefix),
                    }),
                    weft_ipam::Answer::Claimed | weft_ipam::Answer::Primed => Err(
                        Failure::unavailable("the allocator answered another question"),
                    ),
                }),
            ),
            Waiting::Claim(cidr, reply) => send(reply, result.map(|_| api::Address { cidr })),
            Waiting::Prime(reply) => send(reply, result.map(|_| ())),
        }
    }

    fn holders(&self, addr: IpAddr) -> Result<api::Holders, Failure> {
        let addr = addr.into();
        let holders = self.ipam.holders();
        let mut containers = Vec::new();
        for (id, _, _) in holders.filter(|(_, held, _)| *held == addr) {
            containers.push(ContainerId::new(id.as_str()).map_err(Failure::bad)?);
        }
        Ok(api::Holders { containers })
    }

    async fn free(&mut self, container: &ContainerId, addr: IpAddr) -> Result<(), Failure> {
        self.unbind_address(container, addr).await;
        let container = convert::container(container);
        let freed = self.ipam.free(&container, addr.into(), Instant::now());
        freed.map_err(Failure::missing)
    }

    fn add_pool(&mut self, subnet: Cidr) -> Result<api::Pool, Failure> {
        let subnet = convert::subnet(subnet)?;
        let pool = self
            .ipam
            .add(subnet, Instant::now())
            .map_err(convert::pool_error)?;
        Ok(api::Pool {
            pool: convert::api_cidr(&pool),
        })
    }

    fn add_name(&mut self, body: api::AddName) -> Result<(), Failure> {
        let domain = self
            .config
            .dns
            .as_ref()
            .map(|dns| &dns.domain)
            .ok_or_else(no_dns)?;
        let name = Name::new(&body.name, domain).map_err(Failure::bad)?;
        let added = self
            .names
            .table
            .add_own(name, body.container.as_str(), body.addr)
            .map_err(Failure::unavailable)?;
        if let Some(record) = added {
            self.names.share();
            self.save_names();
            self.publish(&convert::name_entry(&record));
        }
        Ok(())
    }

    fn remove_names_like(&mut self, body: api::RemoveNames) -> Result<api::RemovedNames, Failure> {
        let domain = self
            .config
            .dns
            .as_ref()
            .map(|dns| &dns.domain)
            .ok_or_else(no_dns)?;
        let name = body
            .name
            .map(|name| Name::new(&name, domain))
            .transpose()
            .map_err(Failure::bad)?;
        let container = body.container.map(|c| c.as_str().to_owned());
        let removed = self.remove_names(&Filter {
            name,
            container,
            addr: body.addr,
        });
        Ok(api::RemovedNames { removed })
    }

    fn find_name(&self, name: &str) -> Result<api::Found, Failure> {
        let domain = self
            .config
            .dns
            .as_ref()
            .map(|dns| &dns.domain)
            .ok_or_else(no_dns)?;
        let name = Name::new(name, domain).map_err(Failure::bad)?;
        let addresses = self.names.table.lookup(&name);
        if addresses.is_empty() {
            return Err(Failure::missing(format!("no container is called {name}")));
        }
        Ok(api::Found { addresses })
    }

    async fn expose(&mut self, body: api::Expose) -> Result<(), Failure> {
        let api::Expose { cidr, masquerade } = body;
        let mut exposed = self.persisted.state.exposed.clone();
        exposed.retain(|e| e.cidr != cidr.to_string());
        exposed.push(ExposedState {
            cidr: cidr.to_string(),
            masquerade,
        });
        self.host
            .expose(cidr, &exposed)
            .await
            .map_err(Failure::unavailable)?;
        self.persisted.state.exposed = exposed;
        self.persisted.save();
        self.bind_host().await;
        Ok(())
    }

    async fn hide(&mut self, cidr: Cidr) -> Result<(), Failure> {
        let mut exposed = self.persisted.state.exposed.clone();
        exposed.retain(|e| e.cidr != cidr.to_string());
        self.host
            .hide(cidr, &exposed)
            .await
            .map_err(Failure::unavailable)?;
        self.persisted.state.exposed = exposed;
        self.persisted.save();
        self.bind_host().await;
        Ok(())
    }
}

/// The caller may have gone away, which is no concern of ours.
fn send<T>(reply: Reply<T>, answer: Result<T, Failure>) {
    let _ = reply.send(answer);
}

fn targets(texts: &[String]) -> Result<Vec<Target>, Failure> {
    texts
        .iter()
        .map(|text| text.parse().map_err(Failure::bad))
        .collect()
}

fn addresses(found: Vec<(weft_ipam::Addr, u8)>) -> api::Addresses {
    api::Addresses {
        cidrs: found
            .into_iter()
            .map(|(addr, prefix)| convert::cidr(addr, prefix))
            .collect(),
    }
}

fn no_dns() -> Failure {
    Failure::missing("DNS is switched off (--no-dns)")
}
