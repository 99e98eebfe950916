//! The host itself on the network: addresses on its bridge.
//!
//! The router puts them there, since it also has to put them back when it starts anew; only the
//! obtaining and freeing is ours, as for any other container.

use thiserror::Error;
use weft_api::types::{AddName, Expose, RemoveNames};
use weft_api::{CallError, Cidr, Client, ContainerId};

use crate::AddressSpec;
use crate::detach::{free, selected};
use crate::obtain::{ObtainError, Obtained};

/// Why the host is not exposed, or not hidden.
#[derive(Debug, Error)]
pub enum ExposeError {
    /// The router refused, or is not there.
    #[error("{0}")]
    Call(#[from] CallError),
    /// There is no address for the host.
    #[error("{0}")]
    Obtain(#[from] ObtainError),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted: nothing was exposed")]
    Interrupted,
}

/// Gives the host addresses on the network, and perhaps a name. Doing it again changes nothing and
/// says the same.
///
/// # Errors
/// See [`ExposeError`]; whatever was made on the way is undone.
pub async fn expose(
    client: &Client,
    addresses: &[AddressSpec],
    name: Option<&str>,
    masquerade: bool,
) -> Result<Vec<Cidr>, ExposeError> {
    let id = ContainerId::expose();
    let mut obtained = Obtained::begin(client, &id).await?;
    if let Err(error) = run(client, &mut obtained, addresses, name, masquerade).await {
        for cidr in obtained.fresh() {
            let _ = client.remove_names(&records(cidr)).await;
            let _ = client.hide(cidr).await;
        }
        obtained.give_back().await;
        return Err(error);
    }
    Ok(obtained.all)
}

async fn run(
    client: &Client,
    obtained: &mut Obtained<'_>,
    addresses: &[AddressSpec],
    name: Option<&str>,
    masquerade: bool,
) -> Result<(), ExposeError> {
    let network = client.network().await?;
    tokio::select! {
        done = obtained.obtain(addresses, &network) => done?,
        _ = tokio::signal::ctrl_c() => return Err(ExposeError::Interrupted),
    }
    for cidr in obtained.all.iter().copied() {
        client.expose(&Expose { cidr, masquerade }).await?;
        if let Some(name) = name {
            let record = AddName {
                name: name.to_owned(),
                container: ContainerId::expose(),
                addr: cidr.addr(),
            };
            client.add_name(&record).await?;
        }
    }
    Ok(())
}

/// Takes such addresses back; none named means those of the default subnet. Says which they were;
/// none at all is no error.
///
/// # Errors
/// The router refused, or is not there. What was done so far stays done; hiding again goes on.
pub async fn hide(client: &Client, addresses: &[AddressSpec]) -> Result<Vec<Cidr>, ExposeError> {
    let id = ContainerId::expose();
    let network = client.network().await?;
    let held = client.addresses(&id).await?;
    let meant = selected(addresses, &held, &network);
    for cidr in &meant {
        if network.domain.is_some() {
            client.remove_names(&records(*cidr)).await?;
        }
        match client.hide(*cidr).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        free(client, &id, *cidr).await?;
    }
    Ok(meant)
}

/// All records of the host for one of its addresses.
fn records(cidr: Cidr) -> RemoveNames {
    RemoveNames {
        container: Some(ContainerId::expose()),
        addr: Some(cidr.addr()),
        name: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRouter, cidr};

    #[tokio::test]
    async fn exposing_twice_is_exposing_once_and_hiding_takes_all_back() {
        let router = FakeRouter::start();
        let first = expose(&router.client, &[], Some("gw"), true).await.unwrap();
        assert_eq!(first, [cidr("10.32.0.1/16")]);
        let again = expose(&router.client, &[], Some("gw"), true).await.unwrap();
        assert_eq!(again, first);
        assert_eq!((router.exposed(), router.names().len()), (first.clone(), 1));
        assert_eq!(hide(&router.client, &[]).await.unwrap(), first);
        assert_eq!((router.held(), router.names()), (vec![], vec![]));
        assert_eq!(router.exposed(), []);
        assert_eq!(hide(&router.client, &[]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_host_that_cannot_be_exposed_holds_nothing() {
        let router = FakeRouter::start();
        router.books().refuse_exposing = true;
        let error = expose(&router.client, &[], Some("gw"), true)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "there is no nft");
        assert_eq!((router.held(), router.names()), (vec![], vec![]));

        router.books().refuse_exposing = false;
        let first = expose(&router.client, &[], None, true).await.unwrap();
        router.books().refuse_names = true;
        let both = ["net:default", "10.99.0.1/24"].map(|text| text.parse().unwrap());
        expose(&router.client, &both, Some("gw"), true)
            .await
            .unwrap_err();
        assert_eq!((router.held(), router.exposed()), (first.clone(), first));
    }
}
