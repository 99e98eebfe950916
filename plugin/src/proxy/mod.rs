//! `weft proxy`: Docker's API on a socket of ours, the same in all but one thing: what is created
//! there is put on the network.
//!
//! ```text
//!   docker (DOCKER_HOST, from `weft env`) -> proxy -> dockerd
//!                                             |
//!             POST containers/create: runtime, resolver put in
//!             POST containers/ID/start: where dockerd does not know the runtime, attached afterwards
//! ```
//! Everything else is passed on as it comes, both ways and without waiting for its end: bodies of any
//! length, streams that never end, connections that are upgraded to something else. Each request has
//! a connection to dockerd of its own, which ends with it; a caller that goes away takes his along.
//!
//! It is a process of its own, so that a router that is stopped or stuck is in nobody's way: only
//! creating a container that wants the network needs the router, and says so within seconds.

mod create;
mod daemon;
pub mod place;
mod start;

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};
use weft_api::{CallError, Client};

pub use daemon::{Daemon, DaemonError};

/// What goes through in either direction.
type Body = BoxBody<Bytes, hyper::Error>;

/// Why a request is not passed on.
#[derive(Debug, Error)]
enum ProxyError {
    #[error("{0}")]
    Daemon(#[from] DaemonError),
    #[error("Docker broke off: {0}")]
    Broken(#[source] hyper::Error),
    #[error(
        "the request to create a container is longer than {} bytes, or was not sent to its end",
        create::MAX_BODY
    )]
    TooLong,
    #[error("an answer of Docker's cannot be read: {0}")]
    Answer(#[source] serde_json::Error),
    #[error(
        "the container cannot be put on the network: {0}. `eval $(weft env --restore)` leaves weft out, and so does -e WEFT_CIDR=none"
    )]
    Router(#[source] CallError),
    #[error("the container was started, but could not be put on the network, and was killed: {0}")]
    Attach(#[from] start::StartError),
}

impl ProxyError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Daemon(_) | Self::Broken(_) | Self::Answer(_) => StatusCode::BAD_GATEWAY,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Router(_) | Self::Attach(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    daemon: Daemon,
    router: Client,
    resolv_conf: PathBuf,
}

impl Proxy {
    /// A proxy for this daemon, with the router that attaches.
    pub fn new(daemon: Daemon, router: Client) -> Self {
        let resolv_conf = PathBuf::from("/etc/resolv.conf");
        Self {
            daemon,
            router,
            resolv_conf,
        }
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, listener: UnixListener) {
        let proxy = Arc::new(self);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let proxy = Arc::clone(&proxy);
                    tokio::spawn(async move {
                        proxy.converse(stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first.
                    warn!(%error, "cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse(self: Arc<Self>, stream: UnixStream) {
        let answer = service_fn(move |request| {
            let proxy = Arc::clone(&self);
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        let connection = server
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), answer)
            .with_upgrades();
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let what = Call::of(request.method(), request.uri().path());
        let done = match what {
            Call::Create => self.create(request).await,
            Call::Start(container) => self.start(request, &container).await,
            Call::Other => self.pass(request.map(BodyExt::boxed)).await,
        };
        done.unwrap_or_else(|error| {
            info!(%error, "a request was refused");
            refusal(&error)
        })
    }

    /// Passes a request on, and its answer back; an upgraded connection too.
    async fn pass(&self, mut request: Request<Body>) -> Result<Response<Body>, ProxyError> {
        let wants_upgrade = request.headers().contains_key(UPGRADE);
        let caller = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let mut response = self.daemon.send(request).await?;
        if let (Some(caller), StatusCode::SWITCHING_PROTOCOLS) = (caller, response.status()) {
            let daemon = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                if let Err(error) = join(caller, daemon).await {
                    debug!(%error, "an upgraded connection ended");
                }
            });
        }
        Ok(response.map(BodyExt::boxed))
    }
}

/// What a request asks for, as far as it is our business.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Create,
    /// Start or restart of this container.
    Start(String),
    Other,
}

impl Call {
    fn of(method: &Method, path: &str) -> Self {
        if method != Method::POST {
            return Self::Other;
        }
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let unversioned = match segments.as_slice() {
            [version, rest @ ..] if is_version(version) => rest,
            all => all,
        };
        match unversioned {
            ["containers", "create"] => Self::Create,
            ["containers", id, "start" | "restart"] => Self::Start((*id).to_owned()),
            _ => Self::Other,
        }
    }
}

fn is_version(segment: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = segment.strip_prefix('v');
    number.is_some_and(|number| number.split('.').all(digits))
}

/// Bytes both ways until both ends have ended.
async fn join(
    caller: hyper::upgrade::OnUpgrade,
    daemon: hyper::upgrade::OnUpgrade,
) -> io::Result<()> {
    let (caller, daemon) = tokio::try_join!(caller, daemon).map_err(io::Error::other)?;
    let (mut caller, mut daemon) = (TokioIo::new(caller), TokioIo::new(daemon));
    copy_bidirectional(&mut caller, &mut daemon).await?;
    Ok(())
}

/// A body that is here already.
fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// Says no in the way dockerd does, which clients show.
fn refusal(error: &ProxyError) -> Response<Body> {
    let message = serde_json::json!({ "message": format!("weft: {error}") });
    let mut response = Response::new(full(message.to_string()));
    *response.status_mut() = error.status();
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The runtime in Docker's configuration.
pub const RUNTIME: &str = "weft";
/// Where the proxy listens if the router listens here.
pub fn socket_beside(router: &Path) -> PathBuf {
    router.with_file_name("docker.sock")
}

/// Callers at a time; each costs two file descriptors.
const MAX_CONNECTIONS: usize = 480;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(test)]
mod tests;
