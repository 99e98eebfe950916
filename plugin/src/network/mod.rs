//! The Docker network plugin: `docker run --net weft`, `docker network create -d weft`.
//!
//! dockerd calls us over a unix socket, by the protocol in `protocol`; whoever serves the socket hands each
//! call to [`Plugin::answer`]. Addresses and names are the router's, which is asked over its API;
//! interfaces are made here, in the host's namespace, and dockerd moves them into the container.
//!
//! ```text
//!   network create   RequestPool, RequestAddress (gateway, aux addresses), CreateNetwork
//!   run, connect     RequestAddress, CreateEndpoint, Join
//!   stop, disconnect Leave, DeleteEndpoint, ReleaseAddress
//!   network rm       ReleaseAddress..., ReleasePool, DeleteNetwork
//! ```
//! dockerd waits for each answer as long as it takes, and a container whose call hangs can never be
//! removed. So every call has an answer within [`PATIENCE`], an error with its reason if need be; and since
//! dockerd makes several calls one after another before it serves anybody, those that follow one to a router
//! that is stuck have theirs in a fifth of that. Calls
//! come again after crashes of either side, or in an order nobody meant, so each brings about a state,
//! whatever was before; what the plugin must know of a pool or an endpoint stands in the ids.
//!
//! Nothing here may ask Docker about the container a call is for: it would wait for itself.

mod call;
mod driver;
mod ipam;
mod known;
mod link;
mod options;
mod pool;
mod protocol;
mod swarm;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::time::timeout;
use weft_api::{CallError, Client};
use weft_net::NetlinkError;

pub use known::keep_networks_known;
pub(crate) use link::host_end;
use pool::{Pool, PoolError};
pub use swarm::Role;
pub use upkeep::{
    DOCKER_NETWORK, RemoveError, free_leftovers, make_docker_network, remove_docker_network,
};

/// How long dockerd waits for an answer at most.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The part of it that a router which let a call wait in vain has to show that it answers again.
const PART: u32 = 5;
/// What this driver is called, in `docker network create -d weft`: the name of its socket.
pub const DRIVER: &str = "weft";
/// What the ids begin with under which the router keeps addresses of Docker's networks.
pub const HOLDER_PREFIX: &str = "docker:";
/// The same for addresses that are set aside in a network and no container's.
pub const RESERVED_PREFIX: &str = "docker-reserved:";

/// The same for addresses that a swarm's manager has given to tasks, wherever they run.
pub const SWARM_PREFIX: &str = "docker-swarm:";

/// The plugin. It remembers nothing that a crash could not take.
#[derive(Debug)]
pub struct Plugin {
    router: Client,
    role: Role,
    patience: Duration,
    /// Whether the last call that wanted the router waited for it in vain.
    silent: AtomicBool,
    /// Pools of networks that are being made: since when. An address that is asked for there is no
    /// container's.
    fresh: Mutex<BTreeMap<String, Instant>>,
}

/// An answer to dockerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status. Errors have 200 too: only then dockerd shows their text without ornament.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
}

/// Why a call was refused. dockerd shows it to whoever typed the command.
#[derive(Debug, Error)]
pub(crate) enum PluginError {
    #[error("weft: the request cannot be read: {0}")]
    Request(#[from] serde_json::Error),
    #[error("weft: {call} took longer than {limit:?}: see `weft status` and the router's log")]
    Slow { call: String, limit: Duration },
    #[error(
        "weft: the router does not answer, in {0:?} now and for longer before: see `weft status` and the router's log"
    )]
    Silent(Duration),
    #[error(
        "weft: there was no address in {range} within {limit:?}: `weft status ipam` says what is waited for"
    )]
    NoAddress { range: String, limit: Duration },
    #[error("weft: {0}{hint}", hint = hint(.0))]
    Router(#[from] CallError),
    #[error("weft: {0}")]
    Pool(#[from] PoolError),
    #[error("weft: {0:?} is not an address")]
    Address(String),
    #[error("weft: {addr} is not in the network's subnet {}", .pool.subnet)]
    Elsewhere {
        addr: std::net::IpAddr,
        pool: Box<Pool>,
    },
    #[error(
        "weft: no range of IPv4 addresses is set (--ipalloc-range): name the subnet with --subnet"
    )]
    NoPool,
    #[error(
        "weft: no range of IPv6 addresses is set (--ipalloc-range): name an IPv6 subnet with --subnet, such as fd57:1::/64"
    )]
    NoPool6,
    #[error(
        "weft: Docker's own IPAM would give the same addresses on every host: add `--ipam-driver weft`"
    )]
    ForeignIpam,
    #[error("weft: the option {name} must be {wanted}")]
    Option { name: String, wanted: &'static str },
    #[error(
        "weft: -o com.docker.network.driver.mtu={asked} is not the MTU of all weft's networks, {ours}: leave it out, or start every router with --mtu {asked}"
    )]
    Mtu { asked: String, ours: u16 },
    #[error("weft: -o weft.network: {0}")]
    Key(#[from] weft_wire::NetworkKeyError),
    #[error("weft: {0:?} cannot be the id of a network")]
    Network(String),
    #[error(
        "weft: the router does not know this network of Docker's ({0}): it does within a minute, unless the plugin's log says why not"
    )]
    UnknownNetwork(String),
    #[error("weft: {0}")]
    Link(#[from] NetlinkError),
    #[error("weft: there is no bridge {0}: is the router running? start it with `weft launch`")]
    NoBridge(String),
    #[error("weft: there is no interface for the endpoint {0}: start the container again")]
    NoEndpoint(String),
    #[error("weft: {0:?} cannot be the id of an endpoint")]
    Endpoint(String),
    #[error("weft: {0:?} is not a MAC")]
    Mac(String),
    #[error("weft: the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

fn hint(error: &CallError) -> String {
    error
        .hint()
        .map_or_else(String::new, |hint| format!(" ({hint})"))
}

impl Plugin {
    /// A plugin for the router behind this client.
    pub fn new(router: Client, role: Role) -> Self {
        Self::with_patience(router, role, PATIENCE)
    }

    fn with_patience(router: Client, role: Role, patience: Duration) -> Self {
        Self {
            router,
            role,
            patience,
            silent: AtomicBool::new(false),
            fresh: Mutex::default(),
        }
    }

    /// The router, for a call that needs it. One that was silent is asked first whether it is there again.
    async fn router(&self) -> Result<&Client, PluginError> {
        if self.silent.load(Ordering::Relaxed) {
            // Any answer will do, an error too: it comes again, in a moment, to the call itself.
            let limit = self.patience / PART;
            let answered = timeout(limit, self.router.network()).await;
            answered.map_err(|_| PluginError::Silent(limit)).map(drop)?;
            self.silent.store(false, Ordering::Relaxed);
        }
        Ok(&self.router)
    }
}

#[cfg(test)]
mod tests;
