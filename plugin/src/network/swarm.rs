//! What is different on the networks of a swarm, which its managers make for all its nodes.
//!
//! ```text
//!   manager   RequestPool, RequestAddress (gateway), AllocateNetwork, RequestAddress for each task
//!   node      RequestPool, RequestAddress (that one), CreateNetwork, CreateEndpoint, Join
//! ```
//! The manager asks in the global space, each node in its own for an address the manager has been given: it
//! is one address, held in the ring by the manager's host, and the node's request takes nothing. A manager that
//! follows another asks for all of them again; what the one before holds is as good as its own.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// For whom the plugin works, which Docker is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// For the daemon of this host, which makes networks of its own: a plugin of the first kind, found by
    /// its socket.
    Host,
    /// For a swarm: Docker takes only a plugin that it runs itself.
    Swarm,
}

impl Role {
    /// How far a network of this driver reaches, in Docker's word.
    pub(super) const fn scope(self) -> &'static str {
        match self {
            Self::Host => "local",
            Self::Swarm => "global",
        }
    }
}

/// `NetworkDriver.AllocateNetwork`, as far as it is ours.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct AllocateNetwork {
    /// What the user said with `-o`.
    options: Option<Map<String, Value>>,
}

/// The answer to it: the options all nodes get in `CreateNetwork`, and no others.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AllocatedNetwork {
    options: Map<String, Value>,
}

/// A network costs nothing until a node makes it. What the user said must reach the nodes.
pub(super) fn allocate_network(asked: AllocateNetwork) -> AllocatedNetwork {
    let mut options = asked.options.unwrap_or_default();
    options.retain(|_, value| value.is_string());
    AllocatedNetwork { options }
}
