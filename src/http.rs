//! The API's server side: paths to requests, answers to JSON. No logic.
//!
//! All of it on the unix socket, which only root may open; the report and the metrics, which change
//! nothing, also on the status address. A request that waits (for an address, for the ring) is
//! withdrawn when its caller goes away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{FromRequestParts, Path as Segment, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router, middleware};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use weft_api::types::{self as api, ContainerId};
use weft_api::{Report, routes};
use weft_ipam::RequestId;

use crate::event::{Failure, FailureKind, Input, Reply, Request};

/// The way from a handler to the node.
#[derive(Clone)]
struct Node {
    inputs: mpsc::Sender<Input>,
    requests: Arc<AtomicU64>,
}

type Answer<T> = Result<T, Failure>;

impl Node {
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Failure::unavailable("the router is stopping");
        self.inputs
            .send(Input::Request(request(reply)))
            .await
            .map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Asks what may take its time; the question is withdrawn if this future is dropped before.
    async fn ask_patiently<T>(
        &self,
        request: impl FnOnce(RequestId, Reply<T>) -> Request,
    ) -> Answer<T> {
        let id = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let _withdraw = Withdraw {
            id,
            inputs: self.inputs.clone(),
        };
        self.ask(|reply| request(id, reply)).await
    }
}

/// Cancels a request when dropped; for one that was answered that means nothing.
struct Withdraw {
    id: RequestId,
    inputs: mpsc::Sender<Input>,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        let inputs = self.inputs.clone();
        let cancel = Input::Request(Request::Cancel(self.id));
        if let Err(mpsc::error::TrySendError::Full(cancel)) = inputs.try_send(cancel) {
            tokio::spawn(async move { inputs.send(cancel).await });
        }
    }
}

/// Serves the whole API on a unix socket made for root alone.
///
/// # Errors
/// The socket's directory or the socket cannot be made.
pub(crate) fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers on the control socket until the router ends.
pub(crate) async fn serve(listener: UnixListener, inputs: mpsc::Sender<Input>) {
    let node = Node {
        inputs,
        requests: Arc::default(),
    };
    let _ = axum::serve(listener, control(node)).await;
}

/// Answers what may be read by anybody on the host, until the router ends.
pub(crate) async fn serve_status(
    listener: TcpListener,
    inputs: mpsc::Sender<Input>,
    addr: SocketAddr,
) {
    let node = Node {
        inputs,
        requests: Arc::default(),
    };
    let routes = readable()
        .with_state(node)
        .layer(middleware::from_fn(move |request, next| {
            same_host(addr, request, next)
        }));
    let _ = axum::serve(listener, routes).await;
}

/// Refuses requests that name another host: a web page must not read the status through a browser
/// by a name that resolves here (DNS rebinding).
async fn same_host(
    addr: SocketAddr,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let by_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if by_address || name == "localhost" {
        return next.run(request).await;
    }
    let error = format!("ask for this by address (http://{addr}), not as {host:?}");
    Failure::bad(error).into_response()
}

fn readable() -> Router<Node> {
    Router::new()
        .route(routes::STATUS, get(report))
        .route(routes::METRICS, get(metrics))
}

fn control(node: Node) -> Router {
    readable()
        .route(routes::CONNECT, post(connect))
        .route(routes::FORGET, post(forget))
        .route(routes::STOP, post(stop))
        .route(routes::RESET_PREPARE, post(reset_prepare))
        .route(routes::PEER, delete(remove_peer))
        .route(
            routes::IP,
            post(allocate).put(claim).get(lookup).delete(free_all),
        )
        .route(routes::IP_ADDR, delete(free))
        .route(routes::HOLDERS, get(holders))
        .route(routes::PRIME, post(prime))
        .route(routes::POOL, put(add_pool))
        .route(routes::NETWORK, get(network))
        .route(routes::NETWORK_OF, get(network_of))
        .route(
            routes::NETWORK_USER,
            put(join_network).delete(leave_network),
        )
        .route(routes::NETWORKS, get(network_users))
        .route(routes::NETWORKS_OF, get(networks_of))
        .route(routes::NAME, put(add_name).delete(remove_names))
        .route(routes::NAME_LOOKUP, get(find_name))
        .route(routes::BINDING, put(bind).delete(unbind))
        .route(routes::EXPOSE, post(expose).delete(hide))
        .fallback(async || Failure::missing("no such path or method"))
        .with_state(node)
}

async fn report(State(node): State<Node>) -> Answer<Json<Report>> {
    node.ask(Request::Report).await.map(Json)
}

async fn metrics(State(node): State<Node>) -> Answer<Response> {
    let text = node.ask(Request::Metrics).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn network(State(node): State<Node>) -> Answer<Json<api::Network>> {
    node.ask(Request::Network).await.map(Json)
}

async fn network_of(
    State(node): State<Node>,
    Segment(network): Segment<String>,
) -> Answer<Json<api::Network>> {
    let network = network.parse().map_err(Failure::bad)?;
    node.ask(|reply| Request::NetworkOf(network, reply))
        .await
        .map(Json)
}

async fn join_network(
    State(node): State<Node>,
    Segment((network, user)): Segment<(String, String)>,
    Body(body): Body<api::JoinNetwork>,
) -> Answer<Json<api::Network>> {
    let network = network.parse().map_err(Failure::bad)?;
    let user = ContainerId::new(user).map_err(Failure::bad)?;
    node.ask(|reply| Request::JoinNetwork(network, user, body, reply))
        .await
        .map(Json)
}

async fn leave_network(
    State(node): State<Node>,
    Segment((network, user)): Segment<(String, String)>,
) -> Answer<StatusCode> {
    let network = network.parse().map_err(Failure::bad)?;
    let user = ContainerId::new(user).map_err(Failure::bad)?;
    node.ask(|reply| Request::LeaveNetwork(network, user, reply))
        .await
        .map(nothing)
}

async fn network_users(State(node): State<Node>) -> Answer<Json<api::NetworkUsers>> {
    node.ask(Request::NetworkUsers).await.map(Json)
}

async fn networks_of(State(node): State<Node>, user: Container) -> Answer<Json<api::UsedNetworks>> {
    node.ask(|reply| Request::NetworksOf(user.0, reply))
        .await
        .map(Json)
}

async fn connect(State(node): State<Node>, Body(body): Body<api::Connect>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Connect(body, reply))
        .await
        .map(nothing)
}

async fn forget(State(node): State<Node>, Body(body): Body<api::Forget>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Forget(body, reply))
        .await
        .map(nothing)
}

async fn stop(State(node): State<Node>) -> StatusCode {
    let _ = node.inputs.send(Input::Stop).await;
    StatusCode::NO_CONTENT
}

async fn reset_prepare(State(node): State<Node>) -> Answer<Json<api::HandedOver>> {
    node.ask(Request::ResetPrepare).await.map(Json)
}

async fn remove_peer(
    State(node): State<Node>,
    Segment(peer): Segment<String>,
) -> Answer<Json<api::TakenOver>> {
    node.ask(|reply| Request::RemovePeer(peer, reply))
        .await
        .map(Json)
}

async fn allocate(
    State(node): State<Node>,
    container: Container,
    Body(body): Body<api::Allocate>,
) -> Answer<Json<api::Address>> {
    node.ask_patiently(|id, reply| Request::Allocate(id, container.0, body, reply))
        .await
        .map(Json)
}

async fn claim(
    State(node): State<Node>,
    container: Container,
    Body(body): Body<api::Claim>,
) -> Answer<Json<api::Address>> {
    node.ask_patiently(|id, reply| Request::Claim(id, container.0, body, reply))
        .await
        .map(Json)
}

async fn prime(State(node): State<Node>) -> Answer<StatusCode> {
    node.ask_patiently(Request::Prime).await.map(nothing)
}

async fn add_pool(
    State(node): State<Node>,
    Body(body): Body<api::AddPool>,
) -> Answer<Json<api::Pool>> {
    node.ask(|reply| Request::AddPool(body.subnet, reply))
        .await
        .map(Json)
}

async fn lookup(State(node): State<Node>, container: Container) -> Answer<Json<api::Addresses>> {
    node.ask(|reply| Request::Lookup(container.0, reply))
        .await
        .map(Json)
}

async fn free_all(State(node): State<Node>, container: Container) -> Answer<Json<api::Addresses>> {
    node.ask(|reply| Request::FreeAll(container.0, reply))
        .await
        .map(Json)
}

async fn free(
    State(node): State<Node>,
    Segment((container, ip)): Segment<(String, String)>,
) -> Answer<StatusCode> {
    let container = ContainerId::new(container).map_err(Failure::bad)?;
    let ip = address(&ip)?;
    node.ask(|reply| Request::Free(container, ip, reply))
        .await
        .map(nothing)
}

async fn holders(
    State(node): State<Node>,
    Segment(ip): Segment<String>,
) -> Answer<Json<api::Holders>> {
    let ip = address(&ip)?;
    node.ask(|reply| Request::Holders(ip, reply))
        .await
        .map(Json)
}

/// The `{ip}` of a path.
fn address(text: &str) -> Answer<IpAddr> {
    text.parse()
        .map_err(|_| Failure::bad(format!("{text:?} is not an address")))
}

async fn add_name(State(node): State<Node>, Body(body): Body<api::AddName>) -> Answer<StatusCode> {
    node.ask(|reply| Request::AddName(body, reply))
        .await
        .map(nothing)
}

async fn remove_names(
    State(node): State<Node>,
    Body(body): Body<api::RemoveNames>,
) -> Answer<Json<api::RemovedNames>> {
    node.ask(|reply| Request::RemoveNames(body, reply))
        .await
        .map(Json)
}

async fn find_name(
    State(node): State<Node>,
    Segment(name): Segment<String>,
) -> Answer<Json<api::Found>> {
    node.ask(|reply| Request::FindName(name, reply))
        .await
        .map(Json)
}

async fn bind(State(node): State<Node>, Body(body): Body<api::Bind>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Bind(body, reply))
        .await
        .map(nothing)
}

async fn unbind(State(node): State<Node>, Body(body): Body<api::Unbind>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Unbind(body.container, reply))
        .await
        .map(nothing)
}

async fn expose(State(node): State<Node>, Body(body): Body<api::Expose>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Expose(body, reply))
        .await
        .map(nothing)
}

async fn hide(State(node): State<Node>, Body(body): Body<api::Hide>) -> Answer<StatusCode> {
    node.ask(|reply| Request::Hide(body.cidr, reply))
        .await
        .map(nothing)
}

fn nothing((): ()) -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The `{container}` of a path.
struct Container(ContainerId);

impl<S: Send + Sync> FromRequestParts<S> for Container {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Segment(id) = Segment::<String>::from_request_parts(parts, state)
            .await
            .map_err(Failure::bad)?;
        ContainerId::new(id).map(Self).map_err(Failure::bad)
    }
}

/// A JSON body; what is wrong with it is said in JSON too. No body counts as `{}`.
struct Body<T>(T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> axum::extract::FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
            .await
            .map_err(Failure::bad)?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes)
            .map(Self)
            .map_err(|e| Failure::bad(format!("the request's body: {e}")))
    }
}

/// The longest request body, in bytes; the longest real one is a list of targets.
const MAX_BODY: usize = 256 * 1024;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            FailureKind::Bad => StatusCode::BAD_REQUEST,
            FailureKind::Missing => StatusCode::NOT_FOUND,
            FailureKind::Taken => StatusCode::CONFLICT,
            FailureKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        let Self { error, hint, .. } = self;
        (status, Json(api::Refusal { error, hint })).into_response()
    }
}
