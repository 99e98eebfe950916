//! Taking addresses back from a container, and the interface with the last one.
//!
//! Nothing here waits for other peers, so that a container can always be taken down; and nothing
//! needs the container to run still, so that what a dead one held can be freed.

use thiserror::Error;
use weft_api::types::{Network, RemoveNames};
use weft_api::{CallError, Cidr, Client, ContainerId};
use weft_net::netns::NetNs;

use crate::attach::{IFNAME, ifname, is_ifname};
use crate::find::FindError;
use crate::obtain::or_default;
use crate::{AddressSpec, Container, Target};

/// Why a container was not, or not wholly, detached.
#[derive(Debug, Error)]
pub enum DetachError {
    /// It is not found.
    #[error("{0}")]
    Find(#[from] FindError),
    /// The router refused, or is not there.
    #[error("{0}")]
    Call(#[from] CallError),
    /// None of its addresses is meant.
    #[error(
        "{target} holds no such address; it holds {}: name the one to take back",
        list(held)
    )]
    OtherAddresses {
        /// The container.
        target: Target,
        /// What it holds.
        held: Vec<Cidr>,
    },
    /// The interface cannot be changed.
    #[error("{0}")]
    Interface(#[from] weft_net::attach::AttachError),
}

/// Takes the addresses that are meant from a container; none named means those of the default
/// subnet. Says which they were; none at all is no error.
///
/// # Errors
/// See [`DetachError`]. What was done so far stays done; detaching again goes on.
pub async fn detach(
    client: &Client,
    target: &Target,
    addresses: &[AddressSpec],
) -> Result<Vec<Cidr>, DetachError> {
    let network = client.network().await?;
    let mut taken = Vec::new();
    for container in found(client, target).await? {
        taken.extend(detach_one(client, target, &container, addresses, &network).await?);
    }
    Ok(taken)
}

/// The container; for a process that is gone, all that were filed under its number.
async fn found(client: &Client, target: &Target) -> Result<Vec<Container>, DetachError> {
    let (error, pid) = match (Container::find(target).await, target) {
        (Ok(container), _) => return Ok(vec![container]),
        (Err(error @ FindError::NoProcess(_)), Target::Pid(pid)) => (error, *pid),
        (Err(error), Target::Pid(_) | Target::NetNs(_) | Target::Docker(_)) => {
            return Err(error.into());
        }
    };
    let report = client.status().await?;
    let mut ids: Vec<ContainerId> = report.holders().map(|h| h.container.clone()).collect();
    ids.retain(|id| Container::is_of_pid(id, pid));
    ids.dedup();
    if ids.is_empty() {
        return Err(error.into());
    }
    let gone = |id| Container {
        id,
        ns: None,
        docker: None,
    };
    Ok(ids.into_iter().map(gone).collect())
}

async fn detach_one(
    client: &Client,
    target: &Target,
    container: &Container,
    addresses: &[AddressSpec],
    network: &Network,
) -> Result<Vec<Cidr>, DetachError> {
    let held = client.addresses(&container.id).await?;
    let mut meant = selected(addresses, &held, network);
    // An address the router forgot, by a reset say, may still be on the interface.
    for spec in addresses {
        if let AddressSpec::Exact(cidr) = spec
            && !meant.iter().any(|held| held.addr() == cidr.addr())
        {
            meant.push(*cidr);
        }
    }
    if meant.is_empty() && !held.is_empty() {
        let target = target.clone();
        return Err(DetachError::OtherAddresses { target, held });
    }
    for cidr in &meant {
        if network.domain.is_some() {
            let filter = RemoveNames {
                container: Some(container.id.clone()),
                addr: Some(cidr.addr()),
                name: None,
            };
            client.remove_names(&filter).await?;
        }
    }
    if let Some(ns) = container.ns.as_ref().filter(|_| !meant.is_empty()) {
        let pairs: Vec<_> = meant.iter().map(|c| (c.addr(), c.prefix())).collect();
        let views = weft_net::attach::inspect(ns, IFNAME).await?;
        for view in views.iter().filter(|view| is_ifname(&view.name)) {
            weft_net::attach::detach(ns, &view.name, Some(&pairs)).await?;
        }
        leave(client, &container.id, ns).await?;
    }
    // The router has a container leave its networks with its last address, which counts where there is
    // no interface to look at any more.
    for cidr in &meant {
        free(client, &container.id, *cidr).await?;
    }
    Ok(meant)
}

/// Leaves the networks that the container has no interface on any more.
async fn leave(client: &Client, id: &ContainerId, ns: &NetNs) -> Result<(), DetachError> {
    let views = weft_net::attach::inspect(ns, IFNAME).await?;
    for used in client.networks_of(id).await? {
        let name = ifname(&used.network.key);
        if !views.iter().any(|view| view.name == name) {
            client.leave_network(&used.network.key, id).await?;
        }
    }
    Ok(())
}

/// Frees an address; that nobody holds it is as good.
pub(crate) async fn free(client: &Client, id: &ContainerId, cidr: Cidr) -> Result<(), CallError> {
    match client.free(id, cidr.addr()).await {
        Err(error) if error.is_not_found() => Ok(()),
        done => done,
    }
}

/// The held addresses that are meant.
pub(crate) fn selected(specs: &[AddressSpec], held: &[Cidr], network: &Network) -> Vec<Cidr> {
    let meant = |held: &&Cidr| {
        let selects = |spec: &AddressSpec| spec.selects(**held, network.default_subnets());
        or_default(specs).iter().any(selects)
    };
    held.iter().filter(meant).copied().collect()
}

fn list(cidrs: &[Cidr]) -> String {
    let texts: Vec<String> = cidrs.iter().map(Cidr::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::{AttachOptions, attach};
    use crate::testing::{FakeRouter, Netns, cidr, container, on_a_host, on_interface};

    fn specs(texts: &[&str]) -> Vec<AddressSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    async fn attached(router: &FakeRouter, target: &Target, addresses: &[&str]) {
        let options = AttachOptions {
            name: Some("c1".to_owned()),
            ..AttachOptions::default()
        };
        let done = attach(&router.client, target, &specs(addresses), &options).await;
        done.unwrap();
    }

    #[test]
    fn addresses_go_one_by_one_and_the_interface_with_the_last() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let Netns { ns, target, .. } = &container();
            attached(&router, target, &["net:default", "10.99.0.5/24"]).await;
            let taken = detach(&router.client, target, &[]).await.unwrap();
            assert_eq!(taken, [cidr("10.32.0.1/16")]);
            assert_eq!(on_interface(ns).await, Some(vec![cidr("10.99.0.5/24")]));
            assert_eq!(router.names().len(), 1);
            let [binding] = &router.bindings()[..] else {
                panic!("{:?}", router.bindings());
            };
            assert_eq!(binding.addresses, [cidr("10.99.0.5/24").addr()]);

            let error = detach(&router.client, target, &[]).await.unwrap_err();
            let expected = format!(
                "{target} holds no such address; it holds 10.99.0.5/24: name the one to take back"
            );
            assert_eq!(error.to_string(), expected);

            let last = specs(&["10.99.0.5/24"]);
            detach(&router.client, target, &last).await.unwrap();
            assert_eq!((router.held(), on_interface(ns).await), (vec![], None));
            assert_eq!((router.names(), router.bindings()), (vec![], vec![]));
            assert_eq!(detach(&router.client, target, &[]).await.unwrap(), []);
        });
    }

    #[test]
    fn what_a_dead_container_held_is_freed() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let container = container();
            attached(&router, &container.target, &[]).await;
            container.end();
            let taken = detach(&router.client, &container.target, &[])
                .await
                .unwrap();
            assert_eq!((taken.len(), router.held()), (1, vec![]));
        });
    }

    #[tokio::test]
    async fn what_a_dead_process_held_is_freed_by_its_number() {
        let router = FakeRouter::start();
        let held = |id: &str| (ContainerId::new(id).unwrap(), vec![cidr("10.32.0.9/16")]);
        let number = 4_000_000_001_u32;
        router
            .books()
            .held
            .extend([held(&format!("pid-{number}-5")), held("pid-40-5")]);
        let target = Target::Pid(number);
        assert_eq!(detach(&router.client, &target, &[]).await.unwrap().len(), 1);
        assert_eq!(router.held().len(), 1);
        let error = detach(&router.client, &Target::Pid(number - 1), &[]).await;
        assert!(matches!(
            error,
            Err(DetachError::Find(FindError::NoProcess(_)))
        ));
    }
}
