//! What the tests share: a router that keeps books and nothing else, and namespaces to attach.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixListener;
use weft_api::types::{
    AddName, AddPool, Address, Addresses, Allocate, Bind, Claim, Expose, Hide, Holders,
    JoinNetwork, Network, NetworkUsers, Pool, RemoveNames, RemovedNames, Unbind, UsedNetwork,
    UsedNetworks,
};
use weft_api::{Cidr, Client, ContainerId, routes};
use weft_net::Netlink;
use weft_net::netns::{NetNs, run_in};
use weft_wire::NetworkKey;

use crate::Target;

/// What the fake router knows.
pub(crate) struct Books {
    pub(crate) held: BTreeMap<ContainerId, Vec<Cidr>>,
    pub(crate) names: Vec<AddName>,
    pub(crate) exposed: Vec<Cidr>,
    pub(crate) bindings: Vec<Bind>,
    pub(crate) network: Network,
    /// Who uses which networks beside it, and whether for multicast.
    pub(crate) users: BTreeMap<(ContainerId, NetworkKey), bool>,
    /// The subnets somebody asked for.
    pub(crate) pools: Vec<Cidr>,
    /// Whether names are refused.
    pub(crate) refuse_names: bool,
    /// Whether claims are refused.
    pub(crate) refuse_claims: bool,
    /// Whether bindings are refused.
    pub(crate) refuse_bindings: bool,
    /// Whether exposing is refused.
    pub(crate) refuse_exposing: bool,
    next: u8,
}

/// A router on a socket of its own.
pub(crate) struct FakeRouter {
    books: Shared,
    pub(crate) client: Client,
    _dir: TempDir,
}

type Shared = Arc<Mutex<Books>>;

impl FakeRouter {
    pub(crate) fn start() -> Self {
        let books = Books {
            held: BTreeMap::new(),
            names: Vec::new(),
            exposed: Vec::new(),
            bindings: Vec::new(),
            network: Network {
                key: NetworkKey::Default,
                number: 0,
                bridge: "weft".to_owned(),
                mtu: 1376,
                fast: false,
                dns: Some([169, 254, 67, 83].into()),
                domain: Some("weft.local.".to_owned()),
                default_subnet: Some(cidr("10.32.0.0/16")),
                default_subnet6: None,
                pool: Some(cidr("10.32.0.0/12")),
            },
            users: BTreeMap::new(),
            pools: Vec::new(),
            refuse_names: false,
            refuse_claims: false,
            refuse_bindings: false,
            refuse_exposing: false,
            next: 1,
        };
        let books = Arc::new(Mutex::new(books));
        let ip = get(held).post(allocate).put(claim).delete(free_all);
        let name = axum::routing::put(add_name).delete(remove_names);
        let router = axum::Router::new()
            .route(routes::NETWORK, get(network))
            .route(routes::NETWORK_USER, axum::routing::put(join).delete(leave))
            .route(routes::NETWORKS, get(network_users))
            .route(routes::NETWORKS_OF, get(networks_of))
            .route(routes::POOL, axum::routing::put(add_pool))
            .route(routes::STATUS, get(status))
            .route(routes::IP, ip)
            .route(routes::IP_ADDR, any(free))
            .route(routes::HOLDERS, get(holders))
            .route(routes::NAME, name)
            .route(routes::BINDING, axum::routing::put(bind).delete(unbind))
            .route(routes::EXPOSE, axum::routing::post(expose).delete(hide))
            .with_state(Arc::clone(&books));
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            books,
            client: Client::new(socket),
            _dir: dir,
        }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Every address anybody holds.
    pub(crate) fn held(&self) -> Vec<Cidr> {
        self.books().held.values().flatten().copied().collect()
    }

    /// Every address the host has.
    pub(crate) fn exposed(&self) -> Vec<Cidr> {
        self.books().exposed.clone()
    }

    /// Every interface.
    pub(crate) fn bindings(&self) -> Vec<Bind> {
        self.books().bindings.clone()
    }

    /// Every name with its address.
    pub(crate) fn names(&self) -> Vec<(String, IpAddr)> {
        let books = self.books();
        let pair = |name: &AddName| (name.name.clone(), name.addr);
        books.names.iter().map(pair).collect()
    }
}

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Runs a test in a fresh namespace that stands for the host, with a bridge `weft` in it.
///
/// Without the rights for that the test is skipped, but never in CI.
pub(crate) fn on_a_host<F: Future>(test: impl FnOnce() -> F + Send) {
    if !weft_net::has_net_admin() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs these tests as root"
        );
        eprintln!("skipped: needs CAP_NET_ADMIN");
        return;
    }
    let host = NetNs::create().unwrap();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let links = Netlink::new().unwrap();
            links.add_bridge("weft").await.unwrap();
            links.set_up("weft").await.unwrap();
            test().await;
        });
    };
    run_in(&host, run).unwrap();
}

/// A container: a namespace at a path.
pub(crate) struct Netns {
    pub(crate) ns: NetNs,
    pub(crate) target: Target,
    path: PathBuf,
    _dir: TempDir,
}

/// A container that runs until the test ends it, or ends.
pub(crate) fn container() -> Netns {
    let ns = NetNs::create().unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c1");
    let fd = format!("/proc/self/fd/{}", ns.as_fd().as_raw_fd());
    symlink(fd, &path).unwrap();
    Netns {
        ns,
        target: Target::NetNs(path.clone()),
        path,
        _dir: dir,
    }
}

impl Netns {
    /// As when what runs in it ends.
    pub(crate) fn end(&self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// The addresses of a container's interface; none if it has no interface.
pub(crate) async fn on_interface(ns: &NetNs) -> Option<Vec<Cidr>> {
    let views = weft_net::attach::inspect(ns, "ethwe").await.unwrap();
    let view = views.into_iter().next()?;
    let cidr = |(addr, prefix)| Cidr::new(addr, prefix).unwrap();
    Some(view.addresses.into_iter().map(cidr).collect())
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

async fn network(State(books): State<Shared>) -> Json<Network> {
    Json(books.lock().unwrap().network.clone())
}

/// No more of a report than what is read of it here.
async fn status(State(books): State<Shared>) -> Response {
    let books = books.lock().unwrap();
    let holder = |(container, cidrs): (&ContainerId, &Vec<Cidr>)| {
        let one = |cidr: &Cidr| json!({ "container": container, "cidr": cidr });
        cidrs.iter().map(one).collect::<Vec<_>>()
    };
    let holders: Vec<_> = books.held.iter().flat_map(holder).collect();
    let router = json!({
        "protocol": "1", "name": "02:00:00:00:00:01", "nickname": "host1", "encryption": "open",
        "discovery": true, "cluster": "weft", "port": 6783, "targets": [], "connections": [],
        "peers": [], "trusted_subnets": [], "unicast_routes": [], "flood_routes": [], "macs": [],
        "drops": {},
    });
    let ipam = json!({
        "status": "ready", "range": "10.32.0.0/12", "default_subnet": "10.32.0.0/16",
        "owners": [], "active": holders.len(), "holders": holders, "pending": [], "conflicts": [],
    });
    let entry = |name: &AddName| {
        json!({ "name": format!("{}.", name.name), "container": name.container,
            "origin": "02:00:00:00:00:01", "address": name.addr })
    };
    let entries: Vec<_> = books.names.iter().map(entry).collect();
    let dns = books.network.domain.as_ref().map(|domain| {
        json!({ "domain": domain, "addresses": [], "upstream": [], "ttl": 1, "entries": entries })
    });
    Json(json!({
        "version": "0.1.0", "router": router, "ipam": ipam, "dns": dns,
        "network": books.network, "warnings": [],
    }))
    .into_response()
}

async fn held(State(books): State<Shared>, Path(id): Path<ContainerId>) -> Json<Addresses> {
    let cidrs = books.lock().unwrap().held.get(&id).cloned();
    let cidrs = cidrs.unwrap_or_default();
    Json(Addresses { cidrs })
}

async fn allocate(
    State(books): State<Shared>,
    Path(id): Path<ContainerId>,
    Json(wanted): Json<Allocate>,
) -> Json<Address> {
    let mut books = books.lock().unwrap();
    let default = books.network.default_subnet.unwrap();
    let subnet = wanted.subnet.unwrap_or(default);
    let next = books.next;
    let held = books.held.entry(id).or_default();
    let has = held.iter().find(|held| subnet.contains(held.addr()));
    if let Some(cidr) = has.copied() {
        return Json(Address { cidr });
    }
    let addr: IpAddr = match subnet.addr() {
        IpAddr::V4(base) => (base | std::net::Ipv4Addr::from([0, 0, 0, next])).into(),
        IpAddr::V6(base) => (base | std::net::Ipv6Addr::from_bits(next.into())).into(),
    };
    let cidr = Cidr::new(addr, subnet.prefix()).unwrap();
    held.push(cidr);
    books.next += 1;
    Json(Address { cidr })
}

/// Every network but the default one is at the bridge `weft-other`.
fn network_as(books: &Books, key: &NetworkKey) -> Network {
    let mut network = books.network.clone();
    if *key != NetworkKey::Default {
        "weft-other".clone_into(&mut network.bridge);
        network.key = key.clone();
    }
    network
}

async fn join(
    State(books): State<Shared>,
    Path((key, user)): Path<(String, ContainerId)>,
    Json(JoinNetwork { multicast }): Json<JoinNetwork>,
) -> Json<Network> {
    let mut books = books.lock().unwrap();
    let key: NetworkKey = key.parse().unwrap();
    books.users.insert((user, key.clone()), multicast);
    Json(network_as(&books, &key))
}

async fn leave(
    State(books): State<Shared>,
    Path((key, user)): Path<(String, ContainerId)>,
) -> StatusCode {
    let key: NetworkKey = key.parse().unwrap();
    books.lock().unwrap().users.remove(&(user, key));
    StatusCode::NO_CONTENT
}

async fn network_users(State(books): State<Shared>) -> Json<NetworkUsers> {
    let books = books.lock().unwrap();
    let users = books.users.keys().map(|(user, _)| user.clone()).collect();
    Json(NetworkUsers { users })
}

async fn networks_of(
    State(books): State<Shared>,
    Path(user): Path<ContainerId>,
) -> Json<UsedNetworks> {
    let books = books.lock().unwrap();
    let used = books.users.iter().filter(|((by, _), _)| *by == user);
    let networks = used.map(|((_, key), multicast)| UsedNetwork {
        network: network_as(&books, key),
        multicast: *multicast,
    });
    Json(UsedNetworks {
        networks: networks.collect(),
    })
}

async fn add_pool(
    State(books): State<Shared>,
    Json(AddPool { subnet }): Json<AddPool>,
) -> Json<Pool> {
    books.lock().unwrap().pools.push(subnet);
    Json(Pool { pool: subnet })
}

async fn claim(
    State(books): State<Shared>,
    Path(id): Path<ContainerId>,
    Json(Claim { cidr }): Json<Claim>,
) -> Response {
    let mut books = books.lock().unwrap();
    if books.refuse_claims {
        return refused(StatusCode::CONFLICT, "host2 owns it");
    }
    let others = books.held.iter().filter(|(holder, _)| **holder != id);
    let holds = |cidrs: &Vec<Cidr>| cidrs.iter().any(|held| held.addr() == cidr.addr());
    if others.into_iter().any(|(_, cidrs)| holds(cidrs)) {
        return refused(StatusCode::CONFLICT, "another container has it");
    }
    let held = books.held.entry(id).or_default();
    if !held.contains(&cidr) {
        held.push(cidr);
    }
    Json(Address { cidr }).into_response()
}

async fn free(
    State(books): State<Shared>,
    Path((id, addr)): Path<(ContainerId, IpAddr)>,
) -> Response {
    let mut books = books.lock().unwrap();
    for binding in &mut books.bindings {
        binding
            .addresses
            .retain(|bound| binding.container != id || *bound != addr);
    }
    books
        .bindings
        .retain(|binding| !binding.addresses.is_empty());
    let held = books.held.entry(id).or_default();
    let before = held.len();
    held.retain(|cidr| cidr.addr() != addr);
    if held.len() == before {
        return refused(StatusCode::NOT_FOUND, "nobody holds it");
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn free_all(State(books): State<Shared>, Path(id): Path<ContainerId>) -> Json<Addresses> {
    let mut books = books.lock().unwrap();
    books.bindings.retain(|binding| binding.container != id);
    let cidrs = books.held.remove(&id).unwrap_or_default();
    Json(Addresses { cidrs })
}

async fn holders(State(books): State<Shared>, Path(addr): Path<IpAddr>) -> Json<Holders> {
    let books = books.lock().unwrap();
    let holds = |cidrs: &Vec<Cidr>| cidrs.iter().any(|cidr| cidr.addr() == addr);
    let held = books.held.iter().filter(|(_, cidrs)| holds(cidrs));
    let containers = held.map(|(id, _)| id.clone()).collect();
    Json(Holders { containers })
}

async fn add_name(State(books): State<Shared>, Json(name): Json<AddName>) -> Response {
    let mut books = books.lock().unwrap();
    if books.refuse_names {
        return refused(StatusCode::BAD_REQUEST, "that is no name");
    }
    if !books.names.contains(&name) {
        books.names.push(name);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn remove_names(
    State(books): State<Shared>,
    Json(filter): Json<RemoveNames>,
) -> Json<RemovedNames> {
    let mut books = books.lock().unwrap();
    let before = books.names.len();
    books.names.retain(|name| {
        filter
            .name
            .as_ref()
            .is_some_and(|wanted| *wanted != name.name)
            || filter
                .container
                .as_ref()
                .is_some_and(|wanted| *wanted != name.container)
            || filter.addr.is_some_and(|wanted| wanted != name.addr)
    });
    let removed = u64::try_from(before - books.names.len()).unwrap();
    Json(RemovedNames { removed })
}

async fn bind(State(books): State<Shared>, Json(binding): Json<Bind>) -> Response {
    let mut books = books.lock().unwrap();
    if books.refuse_bindings {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "that is too much");
    }
    books.bindings.retain(|other| other.mac != binding.mac);
    books.bindings.push(binding);
    StatusCode::NO_CONTENT.into_response()
}

async fn unbind(State(books): State<Shared>, Json(gone): Json<Unbind>) -> StatusCode {
    let mut books = books.lock().unwrap();
    books
        .bindings
        .retain(|binding| binding.container != gone.container);
    StatusCode::NO_CONTENT
}

async fn expose(State(books): State<Shared>, Json(Expose { cidr, .. }): Json<Expose>) -> Response {
    let mut books = books.lock().unwrap();
    if books.refuse_exposing {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "there is no nft");
    }
    if !books.exposed.contains(&cidr) {
        books.exposed.push(cidr);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn hide(State(books): State<Shared>, Json(Hide { cidr }): Json<Hide>) -> Response {
    let mut books = books.lock().unwrap();
    let before = books.exposed.len();
    books.exposed.retain(|exposed| *exposed != cidr);
    if books.exposed.len() == before {
        return refused(StatusCode::NOT_FOUND, "it is not exposed");
    }
    StatusCode::NO_CONTENT.into_response()
}
