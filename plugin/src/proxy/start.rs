//! Starting a container that was marked when it was created: where dockerd does not know our runtime,
//! the proxy attaches it, right after its first process started and before the caller hears of it.

use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use thiserror::Error;
use tracing::{debug, warn};
use weft_net::netns::NetNs;
use weft_wire::NetworkKeyError;

use super::create::MARK;
use super::{Body, Proxy, ProxyError};
use crate::attach::{AttachError, AttachOptions, attach_found};
use crate::docker::{self, DockerError};
use crate::runtime::bundle::{addresses, network, network_wanted_by, wanted_by};
use crate::{Container, ParseAddressError, Target};

/// Why a container that runs is not on the network.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error("{0}")]
    Docker(#[from] DockerError),
    #[error("WEFT_CIDR: {0}")]
    Address(#[from] ParseAddressError),
    #[error("WEFT_NETWORK: {0}")]
    Network(#[from] NetworkKeyError),
    #[error("{0}")]
    Attach(#[from] AttachError),
}

impl Proxy {
    pub(super) async fn start(
        &self,
        request: Request<Incoming>,
        name: &str,
    ) -> Result<Response<Body>, ProxyError> {
        // Most are not marked. Asked before, since while a container starts Docker says nothing of it; if it
        // says nothing now, it is asked again afterwards.
        let marked = match self.look_for_mark(name).await {
            Ok(found) => found.is_some(),
            Err(error) => {
                debug!(container = name, %error, "whether it is to be attached is seen later");
                true
            }
        };
        let answer = self.pass(request.map(BodyExt::boxed)).await?;
        if marked && answer.status() == StatusCode::NO_CONTENT {
            self.attach_marked(name).await?;
        }
        Ok(answer)
    }

    /// What Docker says of a container, if it is there and was marked.
    async fn look_for_mark(
        &self,
        name: &str,
    ) -> Result<Option<ContainerInspectResponse>, ProxyError> {
        let path = format!("/containers/{name}/json");
        let (status, found) = self.daemon.ask(Method::GET, &path).await?;
        if !status.is_success() {
            return Ok(None);
        }
        let found: ContainerInspectResponse =
            serde_json::from_value(found).map_err(ProxyError::Answer)?;
        let config = found.config.as_ref();
        let labels = config.and_then(|c| c.labels.as_ref());
        let marked = labels.is_some_and(|labels| labels.contains_key(MARK));
        Ok(marked.then_some(found))
    }

    async fn attach_marked(&self, name: &str) -> Result<(), ProxyError> {
        // It may be gone already, as one that was run with --rm and was quick.
        let Some(found) = self.look_for_mark(name).await? else {
            return Ok(());
        };
        if let Err(error) = self.attach(name, found).await {
            let kill = format!("/containers/{name}/kill");
            if let Err(error) = self.daemon.ask(Method::POST, &kill).await {
                warn!(container = name, %error, "a container runs without its network");
            }
            return Err(error.into());
        }
        Ok(())
    }

    async fn attach(&self, name: &str, found: ContainerInspectResponse) -> Result<(), StartError> {
        let env = found.config.as_ref().and_then(|c| c.env.clone());
        let wanted = env
            .iter()
            .flatten()
            .filter_map(|entry| wanted_by(entry))
            .next_back();
        let addresses = addresses(wanted)?;
        let entries = env.iter().flatten();
        let mut wanted = entries.filter_map(|entry| network_wanted_by(entry));
        let network = network(wanted.next_back())?;
        let found = docker::container(name, found)?;
        let Some(ns) = found.pid.and_then(|pid| NetNs::of_pid(pid).ok()) else {
            // It has ended already.
            return Ok(());
        };
        let target = Target::Docker(found.names.name.clone());
        let container = Container {
            id: found.id,
            ns: Some(ns),
            docker: Some(found.names),
        };
        let options = AttachOptions {
            patience: Some(PATIENCE),
            network,
            ..AttachOptions::default()
        };
        attach_found(&self.router, &target, &container, &addresses, &options).await?;
        Ok(())
    }
}

/// How long an address may take, as for the hook of the runtime.
const PATIENCE: Duration = Duration::from_secs(30);
