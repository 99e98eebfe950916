//! What the plugin does without being asked: Docker's network `weft`, and addresses that were left over.
//!
//! An address is left over when dockerd could not give it back, because one of us was away. It is known
//! by there being no interface for it; Docker need not be asked, which may be away itself. Between the
//! request for an address and its interface lie milliseconds, so one found without twice, a minute
//! apart, is no container's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use bollard::models::{Ipam, NetworkCreateRequest};
use thiserror::Error;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{debug, info, warn};
use weft_api::{CallError, Client, ContainerId};
use weft_net::NetlinkError;

use super::link::addresses_in_use;
use super::{DRIVER, HOLDER_PREFIX};
use crate::docker::{Docker, DockerError};

/// Docker's network that is made without anybody asking for it.
pub const DOCKER_NETWORK: &str = "weft";
/// How often addresses are looked through.
const LOOK: Duration = Duration::from_secs(60);
/// How long Docker may take to remove a network.
const REMOVING: Duration = Duration::from_secs(10);
/// How long the first and the later waits for Docker are.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Makes Docker's network `weft` once there is a Docker and a router, unless there is a network of that
/// name. It asks the router for nothing but its range.
pub async fn make_docker_network() {
    let mut wait = RETRY.0;
    let mut told = String::new();
    loop {
        match try_to_make().await {
            Ok(true) => return info!(network = DOCKER_NETWORK, "Docker has the network"),
            Ok(false) => return,
            Err(error) => {
                let why = error.to_string();
                if why != told {
                    info!(
                        why,
                        "Docker's network {DOCKER_NETWORK} cannot be made so far"
                    );
                    told = why;
                }
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Has Docker forget that network, if it is there and this plugin's.
///
/// # Errors
/// Docker does not answer in time, or refuses: containers are on the network.
pub async fn remove_docker_network() -> Result<(), RemoveError> {
    let remove = async {
        let docker = match Docker::open().await {
            Err(DockerError::Absent { .. }) => return Ok(()),
            opened => opened?,
        };
        match docker.driver_of_network(DOCKER_NETWORK).await? {
            Some(driver) if driver == DRIVER => docker.remove_network(DOCKER_NETWORK).await,
            Some(_) | None => Ok(()),
        }
    };
    match timeout(REMOVING, remove).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(RemoveError::Silent),
    }
}

/// Why Docker's network stays.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// Docker refuses.
    #[error("{0}")]
    Docker(#[from] DockerError),
    /// Docker does not answer.
    #[error("Docker does not answer within {REMOVING:?}")]
    Silent,
}

/// Whether it was made; it may be there already.
async fn try_to_make() -> Result<bool, DockerError> {
    let docker = Docker::open().await?;
    if docker.driver_of_network(DOCKER_NETWORK).await?.is_some() {
        return Ok(false);
    }
    let request = NetworkCreateRequest {
        name: DOCKER_NETWORK.to_owned(),
        driver: Some(DRIVER.to_owned()),
        ipam: Some(Ipam {
            driver: Some(DRIVER.to_owned()),
            ..Ipam::default()
        }),
        ..NetworkCreateRequest::default()
    };
    docker.create_network(request).await?;
    Ok(true)
}

/// Frees addresses that were left over, again and again.
pub async fn free_leftovers(router: Client) {
    let mut suspects = BTreeSet::new();
    let start = Instant::now();
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        match look(&router, &suspects).await {
            Ok(found) => suspects = found,
            // Nobody to ask, nothing to find out: what was suspected is suspected anew.
            Err(error) => {
                debug!(%error, after = ?start.elapsed(), "addresses are not looked through");
                suspects.clear();
            }
        }
    }
}

/// An address, and under which id it is held.
type Held = (ContainerId, IpAddr);

#[derive(Debug, Error)]
pub(super) enum LookError {
    #[error("{0}")]
    Router(#[from] CallError),
    #[error("{0}")]
    Links(#[from] NetlinkError),
}

/// Frees what was suspected before and has no interface still; says what is to be suspected next.
pub(super) async fn look(
    router: &Client,
    suspects: &BTreeSet<Held>,
) -> Result<BTreeSet<Held>, LookError> {
    // In this order: an interface made meanwhile is of an address not seen yet.
    let report = router.status().await?;
    let used = addresses_in_use().await?;
    let held = report
        .holders()
        .map(|h| (h.container.clone(), h.cidr.addr()));
    let mut left = BTreeSet::new();
    for (id, addr) in held.filter(|(id, addr)| is_endpoints(id) && !used.contains(addr)) {
        if !suspects.contains(&(id.clone(), addr)) {
            left.insert((id, addr));
            continue;
        }
        warn!(%addr, "no interface has the address Docker asked for: it is freed");
        match router.free(&id, addr).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(left)
}

fn is_endpoints(id: &ContainerId) -> bool {
    id.as_str().starts_with(HOLDER_PREFIX)
}
