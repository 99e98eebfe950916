//! Who is on the network on this host: what `weft ps` shows.
//!
//! Addresses are read off the interfaces themselves, not out of the router's books, because this is
//! the command one looks with when the two disagree.

use std::collections::BTreeSet;

use thiserror::Error;
use weft_api::report::Report;
use weft_api::{CallError, Cidr, Client, ContainerId, ParseCidrError};
use weft_net::attach::InterfaceView;
use weft_net::netns::NetNs;
use weft_wire::MacAddr;

use crate::attach::IFNAME;
use crate::docker::{Docker, DockerError};
use crate::find::FindError;
use crate::{Container, Target};

/// One interface on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The container as it was named; by its short id if it was not.
    pub container: String,
    /// The interface's address.
    pub mac: MacAddr,
    /// Its IP addresses.
    pub addresses: Vec<Cidr>,
}

/// Why the list cannot be had.
#[derive(Debug, Error)]
pub enum ListError {
    /// A container that was named is not found.
    #[error("{0}")]
    Find(#[from] FindError),
    /// The router refused, or is not there.
    #[error("{0}")]
    Call(#[from] CallError),
    /// Docker is there, but does not tell.
    #[error("{0}")]
    Docker(#[from] DockerError),
    /// An interface cannot be looked at.
    #[error("{0}")]
    Interface(#[from] weft_net::attach::AttachError),
    /// An interface has an address that is none.
    #[error("{0}")]
    Address(#[from] ParseCidrError),
}

/// The interfaces of these containers, or of all that run on this host. A container that is not on
/// the network is left out.
///
/// # Errors
/// See [`ListError`].
pub async fn list(client: &Client, targets: &[Target]) -> Result<Vec<Listed>, ListError> {
    if targets.is_empty() {
        return all(client).await;
    }
    let mut listed = Vec::new();
    for target in targets {
        let found = Container::find(target).await?;
        if let Some(ns) = &found.ns {
            listed.extend(interfaces(&target.to_string(), ns).await?);
        }
    }
    Ok(listed)
}

/// The host, then every container that Docker runs or that holds an address.
async fn all(client: &Client) -> Result<Vec<Listed>, ListError> {
    let report = client.status().await?;
    match Docker::open().await {
        Ok(docker) => of_holders(&report, Some(&docker)).await,
        Err(DockerError::Absent { .. }) => of_holders(&report, None).await,
        Err(error) => Err(error.into()),
    }
}

async fn of_holders(report: &Report, docker: Option<&Docker>) -> Result<Vec<Listed>, ListError> {
    let mut ids: BTreeSet<ContainerId> = holders(report);
    if let Some(docker) = docker {
        ids.extend(docker.running().await?);
    }
    let mut listed = vec![host(report)];
    for id in &ids {
        // One that ended since, or is the host's own, has nothing to show.
        if let Some(Container { ns: Some(ns), .. }) = Container::of_id(id, docker).await {
            listed.extend(interfaces(id.short(), &ns).await?);
        }
    }
    Ok(listed)
}

fn holders(report: &Report) -> BTreeSet<ContainerId> {
    let holders = report.holders();
    holders.map(|holder| holder.container.clone()).collect()
}

/// The host: its bridge has the address made from the router's name.
fn host(report: &Report) -> Listed {
    let exposed = report
        .holders()
        .filter(|holder| holder.container.as_str() == ContainerId::EXPOSE);
    Listed {
        container: ContainerId::EXPOSE.to_owned(),
        mac: report.router.name.to_mac(),
        addresses: exposed.map(|holder| holder.cidr).collect(),
    }
}

async fn interfaces(container: &str, ns: &NetNs) -> Result<Vec<Listed>, ListError> {
    let views = weft_net::attach::inspect(ns, IFNAME).await?;
    let listed = |view: InterfaceView| {
        let cidr = |(addr, prefix)| Cidr::new(addr, prefix);
        Ok(Listed {
            container: container.to_owned(),
            mac: view.mac,
            addresses: view
                .addresses
                .into_iter()
                .map(cidr)
                .collect::<Result<_, ParseCidrError>>()?,
        })
    };
    views.into_iter().map(listed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::{AttachOptions, attach};
    use crate::testing::{FakeRouter, Netns, cidr, container, on_a_host};

    #[test]
    fn the_host_comes_first_and_then_whoever_has_an_interface() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let Netns { target, .. } = &container();
            let unattached = container();
            let options = AttachOptions {
                name: None,
                multicast_route: false,
                dns: false,
                ..AttachOptions::default()
            };
            let done = attach(&router.client, target, &[], &options).await;
            let addresses = done.unwrap().addresses;
            let exposed = vec![cidr("10.32.0.200/16")];
            router
                .books()
                .held
                .insert(ContainerId::expose(), exposed.clone());

            let listed = of_holders(&router.client.status().await.unwrap(), None).await;
            let [host, one] = &listed.unwrap()[..] else {
                panic!("two are on the network");
            };
            assert_eq!(host.container, "weft:expose");
            assert_eq!(
                (host.mac.to_string().as_str(), &host.addresses),
                ("02:00:00:00:00:01", &exposed)
            );
            assert_eq!(one.addresses, addresses);

            let listed = list(&router.client, &[target.clone(), unattached.target.clone()])
                .await
                .unwrap();
            assert_eq!(listed.len(), 1);
            assert_eq!(
                (&listed[0].container, listed[0].mac),
                (&target.to_string(), one.mac)
            );
        });
    }
}
