//! Keeping the router's account of Docker's networks true.
//!
//! The plugin tells the router of a network when Docker makes or removes it. If one of the two was away,
//! or lost what it knew, the account is wrong: then what Docker has and the router does not know is told
//! again, and what Docker does not have is withdrawn. A network is in Docker's list only some time after it
//! was made, so one is withdrawn when it was missing twice, a minute apart.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::models::Network;
use thiserror::Error;
use tokio::time::sleep;
use tracing::{debug, info, warn};
use weft_api::types::JoinNetwork;
use weft_api::{CallError, Cidr, Client, ContainerId};

use super::options::{NetworkOptions, USER_PREFIX, user};
use super::{DRIVER, PluginError, Role};
use crate::docker::{Docker, DockerError};

/// How often the account is looked through, and how soon again when somebody was away.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
enum LookError {
    #[error("{0}")]
    Docker(#[from] DockerError),
    #[error("{0}")]
    Router(#[from] CallError),
}

/// Looks again and again.
pub async fn keep_networks_known(router: Client) {
    let mut missing = BTreeSet::new();
    loop {
        match look(&router, &missing).await {
            Ok(found) => {
                missing = found;
                sleep(LOOK).await;
            }
            Err(error) => {
                debug!(%error, "Docker's networks are not looked through");
                missing.clear();
                sleep(RETRY).await;
            }
        }
    }
}

async fn look(
    router: &Client,
    missing: &BTreeSet<ContainerId>,
) -> Result<BTreeSet<ContainerId>, LookError> {
    let known = router.network_users().await?;
    let default = router.network().await?.default_subnet;
    let mut there = BTreeSet::new();
    for network in Docker::open().await?.networks(DRIVER).await? {
        let Ok(id) = user(network.id.as_deref().unwrap_or_default(), Role::Host) else {
            continue;
        };
        if !known.contains(&id) {
            match tell(router, &network, &id, default).await {
                Ok(()) => info!(network = %id, "the router knows of a network of Docker's again"),
                Err(error) => warn!(network = %id, %error, "a network of Docker's is not on weft"),
            }
        }
        there.insert(id);
    }
    let gone = known.into_iter();
    let gone = gone.filter(|id| id.as_str().starts_with(USER_PREFIX) && !there.contains(id));
    let mut left = BTreeSet::new();
    for id in gone {
        if !missing.contains(&id) {
            left.insert(id);
            continue;
        }
        info!(network = %id, "Docker does not have this network any more");
        for used in router.networks_of(&id).await? {
            router.leave_network(&used.network.key, &id).await?;
        }
    }
    Ok(left)
}

async fn tell(
    router: &Client,
    network: &Network,
    id: &ContainerId,
    default: Option<Cidr>,
) -> Result<(), PluginError> {
    let options = network.options.iter().flatten();
    let options = NetworkOptions::read(options.map(|(name, value)| (&**name, &**value)))?;
    let subnets = network
        .ipam
        .iter()
        .flat_map(|ipam| ipam.config.iter().flatten());
    let subnets = subnets.filter_map(|config| config.subnet.as_deref()?.parse::<Cidr>().ok());
    // As dockerd told of them when it made the network: those of IPv4 first.
    let first = subnets.min_by_key(|subnet| subnet.addr().is_ipv6());
    let key = options.key(first.filter(|first| Some(*first) != default))?;
    let multicast = options.multicast;
    router
        .join_network(&key, id, &JoinNetwork { multicast })
        .await?;
    Ok(())
}
