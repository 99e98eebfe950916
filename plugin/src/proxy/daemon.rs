//! The way to dockerd: one connection for each request.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Body, RUNTIME, full};

/// Where dockerd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// On a unix socket.
    Unix(PathBuf),
}

/// Why dockerd does not answer.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Its address is none that we understand.
    #[error("{0:?} is no address of Docker: give unix:///PATH")]
    Address(String),
    /// It is not there.
    #[error("cannot reach Docker on {daemon}: {source}: is dockerd running?")]
    Connect {
        /// Where it should be.
        daemon: String,
        /// What the system says.
        source: io::Error,
    },
    /// It broke off.
    #[error("Docker on {daemon} broke off: {source}")]
    Broken {
        /// Where it is.
        daemon: String,
        /// What happened.
        source: hyper::Error,
    },
    /// It did not answer a question of ours.
    #[error("Docker on {daemon} does not answer {path}: {reason}")]
    Asked {
        /// Where it is.
        daemon: String,
        /// What was asked.
        path: String,
        /// Why there is no answer.
        reason: String,
    },
}

impl Daemon {
    /// Sends a request and waits for the head of the answer. Dropping the answer ends the connection.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, DaemonError> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                self.exchange(stream.map_err(self.unreachable())?, request)
                    .await
            }
        }
    }

    /// Its socket, if it is a local one.
    pub fn local_socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
        }
    }

    /// Whether dockerd knows our runtime.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn knows_runtime(&self) -> Result<bool, DaemonError> {
        let (_, info) = self.ask(Method::GET, "/info").await?;
        Ok(info["Runtimes"].get(RUNTIME).is_some())
    }

    /// What dockerd says to a question of ours: a bounded answer, within seconds.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Value), DaemonError> {
        let failed = |reason: String| DaemonError::Asked {
            daemon: self.to_string(),
            path: path.to_owned(),
            reason,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker");
        let request = request.body(full(Bytes::new()));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let asked = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
            let value = if body.is_empty() {
                Ok(Value::Null)
            } else {
                serde_json::from_slice(&body)
            };
            Ok((status, value.map_err(|error| failed(error.to_string()))?))
        };
        let late = |_| failed(format!("no answer within {} s", ANSWER.as_secs()));
        timeout(ANSWER, asked).await.map_err(late)?
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, DaemonError> {
        let broken = |source| DaemonError::Broken {
            daemon: self.to_string(),
            source,
        };
        let mut client = http1::Builder::new();
        let handshake = client
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to Docker ended");
            }
        });
        sender.send_request(request).await.map_err(broken)
    }

    fn unreachable(&self) -> impl FnOnce(io::Error) -> DaemonError {
        let daemon = self.to_string();
        move |source| DaemonError::Connect { daemon, source }
    }
}

impl FromStr for Daemon {
    type Err = DaemonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text
            .strip_prefix("unix://")
            .filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| DaemonError::Address(text.to_owned()))?;
        Ok(Self::Unix(PathBuf::from(path)))
    }
}

impl From<&Path> for Daemon {
    fn from(socket: &Path) -> Self {
        Self::Unix(socket.to_owned())
    }
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How long dockerd may take to answer a question of ours.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest answer to such a question, in bytes.
const MAX_ANSWER: usize = 4 << 20;
