//! The closed set of things that wake the node from outside, and what may be asked of it.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use weft_api::types::{self as api, ContainerId};
use weft_api::{Cidr, Report};
use weft_ipam::RequestId;
use weft_router::ConnId;
use weft_wire::NetworkKey;

/// Something from outside for the node's mailbox.
#[derive(Debug)]
pub(crate) enum Input {
    /// Somebody connected to the control port.
    Accepted {
        stream: TcpStream,
        remote: SocketAddr,
    },
    /// A dial ended.
    Dialed {
        conn: ConnId,
        outcome: Result<(TcpStream, SocketAddr), String>,
    },
    /// Bytes came over a control connection.
    Bytes { conn: ConnId, bytes: Vec<u8> },
    /// A control connection ended.
    Closed { conn: ConnId, why: String },
    /// A frame of the ethertype of beats came to the bridge.
    Beat(Vec<u8>),
    /// The API asks for something.
    Request(Request),
    /// A signal, or `weft stop`, ends the router.
    Stop,
}

/// An answer to be sent when it is there.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// One question of the API with the way back.
#[derive(Debug)]
pub(crate) enum Request {
    Report(Reply<Report>),
    Metrics(Reply<String>),
    Network(Reply<api::Network>),
    NetworkOf(NetworkKey, Reply<api::Network>),
    JoinNetwork(
        NetworkKey,
        ContainerId,
        api::JoinNetwork,
        Reply<api::Network>,
    ),
    LeaveNetwork(NetworkKey, ContainerId, Reply<()>),
    NetworkUsers(Reply<api::NetworkUsers>),
    NetworksOf(ContainerId, Reply<api::UsedNetworks>),
    Connect(api::Connect, Reply<()>),
    Forget(api::Forget, Reply<()>),
    ResetPrepare(Reply<api::HandedOver>),
    RemovePeer(String, Reply<api::TakenOver>),
    Allocate(RequestId, ContainerId, api::Allocate, Reply<api::Address>),
    Claim(RequestId, ContainerId, api::Claim, Reply<api::Address>),
    Prime(RequestId, Reply<()>),
    AddPool(Cidr, Reply<api::Pool>),
    /// The caller of that request went away.
    Cancel(RequestId),
    Lookup(ContainerId, Reply<api::Addresses>),
    Holders(IpAddr, Reply<api::Holders>),
    Free(ContainerId, IpAddr, Reply<()>),
    FreeAll(ContainerId, Reply<api::Addresses>),
    AddName(api::AddName, Reply<()>),
    RemoveNames(api::RemoveNames, Reply<api::RemovedNames>),
    FindName(String, Reply<api::Found>),
    Bind(api::Bind, Reply<()>),
    Unbind(ContainerId, Reply<()>),
    Expose(api::Expose, Reply<()>),
    Hide(Cidr, Reply<()>),
}

/// Why a request was not granted, in words, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) error: String,
    pub(crate) hint: Option<String>,
}

/// What sort of answer a failure is; becomes the HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The request itself is wrong.
    Bad,
    /// What it names is not there, or that part is switched off.
    Missing,
    /// Somebody else has what it asks for.
    Taken,
    /// It is right, but cannot be done at present.
    Unavailable,
}

impl Failure {
    fn new(kind: FailureKind, error: impl ToString) -> Self {
        Self {
            kind,
            error: error.to_string(),
            hint: None,
        }
    }

    pub(crate) fn bad(error: impl ToString) -> Self {
        Self::new(FailureKind::Bad, error)
    }

    pub(crate) fn missing(error: impl ToString) -> Self {
        Self::new(FailureKind::Missing, error)
    }

    pub(crate) fn taken(error: impl ToString) -> Self {
        Self::new(FailureKind::Taken, error)
    }

    pub(crate) fn unavailable(error: impl ToString) -> Self {
        Self::new(FailureKind::Unavailable, error)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
