//! The caller's side of the API: one method for each line of the table in [`crate::routes`].
//!
//! Each call is a connection of its own, driven by the future the caller holds: dropping the
//! future closes the connection, and the router withdraws the request. Calls that only the router
//! itself answers have a time limit; those that wait for other peers have none.

use std::future::Future;
use std::io::{Error as IoError, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use weft_wire::NetworkKey;

use crate::types::{
    AddName, AddPool, Address, Addresses, Allocate, Bind, Claim, Connect, Expose, Forget, Found,
    HandedOver, Hide, Holders, JoinNetwork, Network, NetworkUsers, Pool, Refusal, RemoveNames,
    RemovedNames, TakenOver, Unbind, UsedNetwork, UsedNetworks,
};
use crate::{Cidr, ContainerId, Report, routes};

/// A router to call, by its socket. Making one opens nothing.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call came back without what was asked for.
#[derive(Debug, Error)]
pub enum CallError {
    /// No socket, or nobody behind it.
    #[error("weft is not running (no router answers on {}): start it with `weft launch`", socket.display())]
    NotRunning {
        /// The socket tried.
        socket: PathBuf,
    },
    /// The socket is not ours to open.
    #[error("no permission to open {}: run this as root", socket.display())]
    Permission {
        /// The socket tried.
        socket: PathBuf,
    },
    /// The socket could not be opened for another reason.
    #[error("cannot open {}: {source}", socket.display())]
    Connect {
        /// The socket tried.
        socket: PathBuf,
        /// What the system says.
        source: IoError,
    },
    /// The router did not answer in time.
    #[error("the router on {} does not answer within {limit:?}: look at its log", socket.display())]
    Silent {
        /// The socket tried.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection ended before the answer did.
    #[error("the router ended the connection before it answered: is it stopping? ({source})")]
    Broken {
        /// What happened to the connection.
        source: hyper::Error,
    },
    /// The answer is longer than any answer should be.
    #[error("the answer to {path} is longer than {MAX_ANSWER} bytes")]
    TooLong {
        /// The path called.
        path: String,
    },
    /// The answer is not in the form this version expects.
    #[error(
        "the router's answer to {path} cannot be read ({source}): do `weft version` and the router agree?"
    )]
    Unreadable {
        /// The path called.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The router says no.
    #[error("{}", refusal.error)]
    Refused {
        /// HTTP status, 400 or above.
        status: u16,
        /// Why, and what to do.
        refusal: Refusal,
    },
}

impl CallError {
    /// Whether the router says that there is no such thing.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// What to do about it, where the message does not say so itself.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { refusal, .. } => refusal.hint.as_deref(),
            Self::NotRunning { .. }
            | Self::Permission { .. }
            | Self::Connect { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::TooLong { .. }
            | Self::Unreadable { .. } => None,
        }
    }
}

/// The result of a call.
pub type Called<T> = Result<T, CallError>;

/// Whom an answer may depend on.
#[derive(Clone, Copy)]
enum Waits {
    /// The router alone: it answers within [`ANSWER_TIMEOUT`].
    Router,
    /// Other peers: it takes as long as it takes.
    Peers,
}

impl Client {
    /// The router that listens on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket called.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything about the router.
    ///
    /// # Errors
    /// See [`CallError`]; so for all calls below.
    pub async fn status(&self) -> Called<Report> {
        self.ask(Method::GET, routes::STATUS, NOTHING).await
    }

    /// Prometheus metrics as text.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn metrics(&self) -> Called<String> {
        let bytes = self
            .call(Method::GET, routes::METRICS, Bytes::new(), Waits::Router)
            .await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Dial these peers until they answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn connect(&self, request: &Connect) -> Called<()> {
        self.tell(Method::POST, routes::CONNECT, Some(request))
            .await
    }

    /// Stop dialling these.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn forget(&self, targets: Vec<String>) -> Called<()> {
        self.tell(Method::POST, routes::FORGET, Some(&Forget { targets }))
            .await
    }

    /// End the router; containers keep their interfaces.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn stop(&self) -> Called<()> {
        self.tell(Method::POST, routes::STOP, NOTHING).await
    }

    /// Hand the router's address space to another peer, for good.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn reset_prepare(&self) -> Called<HandedOver> {
        self.ask(Method::POST, routes::RESET_PREPARE, NOTHING).await
    }

    /// Take over the address space of a peer that will not come back.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn take_over(&self, peer: &str) -> Called<TakenOver> {
        self.ask(Method::DELETE, &routes::peer(peer), NOTHING).await
    }

    /// An address for a container, from the default subnet if none is named. Waits for one.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn allocate(&self, container: &ContainerId, subnet: Option<Cidr>) -> Called<Cidr> {
        let path = routes::ip(container);
        let answer: Address = self
            .ask_peers(Method::POST, &path, &Allocate { subnet })
            .await?;
        Ok(answer.cidr)
    }

    /// Exactly this address for a container. Waits until it is known to be free.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn claim(&self, container: &ContainerId, cidr: Cidr) -> Called<Cidr> {
        let path = routes::ip(container);
        let answer: Address = self.ask_peers(Method::PUT, &path, &Claim { cidr }).await?;
        Ok(answer.cidr)
    }

    /// The addresses a container holds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn addresses(&self, container: &ContainerId) -> Called<Vec<Cidr>> {
        let answer: Addresses = self
            .ask(Method::GET, &routes::ip(container), NOTHING)
            .await?;
        Ok(answer.cidrs)
    }

    /// The containers of this host that hold an address.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn holders(&self, addr: IpAddr) -> Called<Vec<ContainerId>> {
        let path = routes::holders(addr);
        let answer: Holders = self.ask(Method::GET, &path, NOTHING).await?;
        Ok(answer.containers)
    }

    /// Free one address of a container.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn free(&self, container: &ContainerId, addr: IpAddr) -> Called<()> {
        let path = routes::ip_addr(container, addr);
        self.tell(Method::DELETE, &path, NOTHING).await
    }

    /// Free all addresses of a container; says which they were.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn free_all(&self, container: &ContainerId) -> Called<Vec<Cidr>> {
        let path = routes::ip(container);
        let answer: Addresses = self.ask(Method::DELETE, &path, NOTHING).await?;
        Ok(answer.cidrs)
    }

    /// Wait until the address ring exists.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn prime(&self) -> Called<()> {
        let path = routes::PRIME;
        self.call(Method::POST, path, Bytes::new(), Waits::Peers)
            .await
            .map(drop)
    }

    /// See to it that addresses of a subnet can be had; the pool it is in.
    ///
    /// # Errors
    /// See [`CallError`]; 409 if a pool lies inside the subnet.
    pub async fn add_pool(&self, subnet: Cidr) -> Called<Cidr> {
        let request = AddPool { subnet };
        let answer: Pool = self.ask(Method::PUT, routes::POOL, Some(&request)).await?;
        Ok(answer.pool)
    }

    /// What attaching a container needs to know.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn network(&self) -> Called<Network> {
        self.ask(Method::GET, routes::NETWORK, NOTHING).await
    }

    /// The same for another network of this host.
    ///
    /// # Errors
    /// See [`CallError`]; one this host does not have is a refusal for which
    /// [`is_not_found`](CallError::is_not_found) holds.
    pub async fn network_of(&self, network: &NetworkKey) -> Called<Network> {
        let path = routes::network_of(network);
        self.ask(Method::GET, &path, NOTHING).await
    }

    /// Have this host be in a network, for a user. Idempotent.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn join_network(
        &self,
        network: &NetworkKey,
        user: &ContainerId,
        how: &JoinNetwork,
    ) -> Called<Network> {
        let path = routes::network_user(network, user);
        self.ask(Method::PUT, &path, Some(how)).await
    }

    /// A user does not use a network any more. That it did not is fine.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn leave_network(&self, network: &NetworkKey, user: &ContainerId) -> Called<()> {
        let path = routes::network_user(network, user);
        self.tell(Method::DELETE, &path, NOTHING).await
    }

    /// All users of networks on this host.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn network_users(&self) -> Called<Vec<ContainerId>> {
        let answer: NetworkUsers = self.ask(Method::GET, routes::NETWORKS, NOTHING).await?;
        Ok(answer.users)
    }

    /// The networks somebody uses.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn networks_of(&self, user: &ContainerId) -> Called<Vec<UsedNetwork>> {
        let path = routes::networks_of(user);
        let answer: UsedNetworks = self.ask(Method::GET, &path, NOTHING).await?;
        Ok(answer.networks)
    }

    /// Add a record.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn add_name(&self, record: &AddName) -> Called<()> {
        self.tell(Method::PUT, routes::NAME, Some(record)).await
    }

    /// Remove own records that match; says how many there were.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn remove_names(&self, filter: &RemoveNames) -> Called<u64> {
        let answer: RemovedNames = self.ask(Method::DELETE, routes::NAME, Some(filter)).await?;
        Ok(answer.removed)
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// See [`CallError`]; an unknown name is a refusal for which
    /// [`is_not_found`](CallError::is_not_found) holds.
    pub async fn lookup(&self, name: &str) -> Called<Vec<IpAddr>> {
        let path = routes::name_lookup(name);
        let answer: Found = self.ask(Method::GET, &path, NOTHING).await?;
        Ok(answer.addresses)
    }

    /// Tell which MAC and addresses a container's interface has, or is about to have.
    ///
    /// # Errors
    /// See [`CallError`]; the container can be reached without it, only not at once by everybody.
    pub async fn bind(&self, binding: &Bind) -> Called<()> {
        self.tell(Method::PUT, routes::BINDING, Some(binding)).await
    }

    /// Tell that a container has no interface any more.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn unbind(&self, container: &ContainerId) -> Called<()> {
        let container = container.clone();
        let request = Some(&Unbind { container });
        self.tell(Method::DELETE, routes::BINDING, request).await
    }

    /// Give the host an address on the network.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn expose(&self, request: &Expose) -> Called<()> {
        self.tell(Method::POST, routes::EXPOSE, Some(request)).await
    }

    /// Take such an address back.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn hide(&self, cidr: Cidr) -> Called<()> {
        self.tell(Method::DELETE, routes::EXPOSE, Some(&Hide { cidr }))
            .await
    }

    async fn tell(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Called<()> {
        let body = emit(path, body)?;
        self.call(method, path, body, Waits::Router).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Called<T> {
        let body = emit(path, body)?;
        let answer = self.call(method, path, body, Waits::Router).await?;
        parse(path, &answer)
    }

    async fn ask_peers<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Called<T> {
        let body = emit(path, Some(body))?;
        let answer = self.call(method, path, body, Waits::Peers).await?;
        parse(path, &answer)
    }

    async fn call(&self, method: Method, path: &str, body: Bytes, waits: Waits) -> Called<Bytes> {
        let stream = self
            .within(CONNECT_TIMEOUT, UnixStream::connect(&self.socket))
            .await?
            .map_err(|source| self.connect_error(source))?;
        let exchange = exchange(stream, method, path, body);
        match waits {
            Waits::Router => self.within(ANSWER_TIMEOUT, exchange).await?,
            Waits::Peers => exchange.await,
        }
    }

    async fn within<T>(&self, limit: Duration, what: impl Future<Output = T>) -> Called<T> {
        timeout(limit, what).await.map_err(|_| CallError::Silent {
            socket: self.socket.clone(),
            limit,
        })
    }

    fn connect_error(&self, source: IoError) -> CallError {
        let socket = self.socket.clone();
        let kind = source.kind();
        if matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            return CallError::NotRunning { socket };
        }
        if kind == ErrorKind::PermissionDenied {
            return CallError::Permission { socket };
        }
        CallError::Connect { socket, source }
    }
}

/// One request and its answer on a fresh connection; the body of the answer if it is a good one.
async fn exchange(stream: UnixStream, method: Method, path: &str, body: Bytes) -> Called<Bytes> {
    let broken = |source| CallError::Broken { source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let ask = async {
        let request = request(method, path, body);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let bytes = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(body_error(error, path)),
        };
        if status.is_success() {
            return Ok(bytes);
        }
        Err(CallError::Refused {
            status: status.as_u16(),
            refusal: refusal(status, &bytes),
        })
    };
    // The connection is driven here and not by a task of its own, so that it ends with this future.
    // What went wrong with it, `ask` is told too.
    let drive = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = ask => result,
        never = drive => never,
    }
}

fn request(method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    // Paths are constants with percent-encoded segments, which always parse; were one not to, the
    // root path stays and the router answers 404.
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    headers.insert("host", hyper::header::HeaderValue::from_static("weft"));
    let json = hyper::header::HeaderValue::from_static("application/json");
    headers.insert("content-type", json);
    request
}

fn body_error(error: Box<dyn std::error::Error + Send + Sync>, path: &str) -> CallError {
    let too_long = || CallError::TooLong {
        path: path.to_owned(),
    };
    if error.is::<LengthLimitError>() {
        return too_long();
    }
    match error.downcast::<hyper::Error>() {
        Ok(source) => CallError::Broken { source: *source },
        Err(_) => too_long(),
    }
}

/// What a refusal says; a body in another form (a proxy's, an older router's) is shown as it is.
fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let text: String = text.trim().chars().take(512).collect();
        let error = if text.is_empty() {
            format!("the router answers {status}")
        } else {
            format!("the router answers {status}: {text}")
        };
        Refusal { error, hint: None }
    })
}

fn emit(path: &str, body: Option<&impl Serialize>) -> Called<Bytes> {
    let Some(body) = body else {
        return Ok(Bytes::new());
    };
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|source| unreadable(path, source))
}

fn parse<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Called<T> {
    serde_json::from_slice(bytes).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &str, source: serde_json::Error) -> CallError {
    CallError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

/// The body of a request that has none.
const NOTHING: Option<&()> = None;
/// How long the socket may take to accept: Weave Net's callers waited as long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the router may take where it alone decides; far more than it needs on a busy host.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer read: a report of a thousand peers with their links is a few megabytes.
const MAX_ANSWER: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use axum::extract::{Json, Path as Segments};
    use axum::http::StatusCode;
    use axum::routing::{any, get, post};
    use tempfile::TempDir;
    use tokio::net::UnixListener;
    use tokio::sync::Notify;

    use super::*;

    /// A socket in a directory of its own, with these routes behind it.
    fn serve(router: Router) -> (TempDir, Client) {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (dir, Client::new(socket))
    }

    #[tokio::test]
    async fn a_missing_or_dead_socket_means_not_running() {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        let client = Client::new(&socket);
        let error = client.status().await.unwrap_err();
        assert!(
            error.to_string().contains("start it with `weft launch`"),
            "{error}"
        );
        drop(UnixListener::bind(&socket).unwrap());
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, CallError::NotRunning { .. }), "{error}");
    }

    #[tokio::test]
    async fn ids_and_bodies_arrive_as_they_were() {
        let router = Router::new().route(
            routes::IP,
            any(
                |Segments(id): Segments<String>, Json(claim): Json<Claim>| async move {
                    assert_eq!(id, "netns:/run/netns/ä b".replace(' ', "_"));
                    Json(Address { cidr: claim.cidr })
                },
            ),
        );
        let (_dir, client) = serve(router);
        let id = ContainerId::new("netns:/run/netns/ä_b").unwrap();
        let cidr = "10.32.0.9/12".parse().unwrap();
        assert_eq!(client.claim(&id, cidr).await.unwrap(), cidr);
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_words_status_and_hint() {
        let refusal = Refusal {
            error: "no peer is called host9".to_owned(),
            hint: Some("see `weft status peers`".to_owned()),
        };
        let answer = (StatusCode::NOT_FOUND, Json(refusal));
        let router = Router::new()
            .route(routes::PEER, any(|| async move { answer }))
            .route(
                routes::STATUS,
                get(|| async { (StatusCode::BAD_GATEWAY, "oh\n") }),
            );
        let (_dir, client) = serve(router);
        let error = client.take_over("host9").await.unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no peer is called host9");
        assert_eq!(error.hint(), Some("see `weft status peers`"));
        let error = client.status().await.unwrap_err();
        assert_eq!(error.to_string(), "the router answers 502 Bad Gateway: oh");
    }

    #[tokio::test]
    async fn an_answer_of_another_form_is_told_from_a_refusal() {
        let router = Router::new().route(routes::STATUS, get(|| async { "{}" }));
        let (_dir, client) = serve(router);
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, CallError::Unreadable { .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_hangs_is_given_up_but_peers_are_waited_for() {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket);
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, CallError::Silent { .. }), "{error}");
        let minute = timeout(Duration::from_secs(60), client.prime()).await;
        assert!(minute.is_err(), "prime waits on");
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_closes_its_connection() {
        struct OnDrop(Arc<Notify>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let gone = Arc::new(Notify::new());
        let theirs = Arc::clone(&gone);
        let wait = move || async move {
            let _guard = OnDrop(theirs);
            std::future::pending::<()>().await;
        };
        let (_dir, client) = serve(Router::new().route(routes::PRIME, post(wait)));
        let call = timeout(Duration::from_millis(50), client.prime()).await;
        assert!(call.is_err());
        let seen = timeout(Duration::from_secs(5), gone.notified()).await;
        assert!(seen.is_ok(), "the router learns that nobody waits");
    }
}
