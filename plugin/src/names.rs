//! What a container is called, and adding and removing names by hand.

use std::net::IpAddr;

use thiserror::Error;
use weft_api::types::{AddName, RemoveNames};
use weft_api::{CallError, Client, ContainerId};

use crate::find::FindError;
use crate::{Container, DockerNames, Target};

/// All names of a Docker container, with the domain behind: its name, its host name, its aliases,
/// each once. A host name in another domain is not ours to answer for.
pub fn of_container(docker: &DockerNames, domain: &str) -> Vec<String> {
    let domain = domain.trim_matches('.').to_ascii_lowercase();
    let full = |name: &String| {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let label = name.strip_suffix(&domain).and_then(|n| n.strip_suffix('.'));
        let label = label.unwrap_or(&name);
        format!("{label}.{domain}")
    };
    let in_domain = |host: &&String| {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        !host.is_empty() && (!host.contains('.') || is_below(&host, &domain))
    };
    let hostname = docker.hostname.iter().filter(in_domain);
    let mut names: Vec<String> = Vec::new();
    for name in [&docker.name]
        .into_iter()
        .chain(hostname)
        .chain(&docker.aliases)
    {
        let name = full(name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn is_below(host: &str, domain: &str) -> bool {
    let label = host.strip_suffix(domain).and_then(|n| n.strip_suffix('.'));
    label.is_some_and(|label| !label.is_empty())
}

/// Whose names, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameArgs {
    /// The addresses meant; none = all that the container holds.
    pub addresses: Vec<IpAddr>,
    /// The container meant; none = something outside the network.
    pub container: Option<Target>,
    /// The name meant; none = the container's own.
    pub name: Option<String>,
}

/// Why names are not added or removed.
#[derive(Debug, Error)]
pub enum NamesError {
    /// The container is not found.
    #[error("{0}")]
    Find(#[from] FindError),
    /// The router refused, or is not there.
    #[error("{0}")]
    Call(#[from] CallError),
    /// It does not run.
    #[error("{0} is not running: start it, then name it")]
    NotRunning(Target),
    /// It has no address to name.
    #[error("{0} holds no address: attach it first, or name addresses")]
    NoAddresses(Target),
    /// Nothing says what the name is.
    #[error("no name is given: add `--name NAME`")]
    NoName,
    /// There is no name table.
    #[error("DNS is switched off on this router")]
    NoDns,
}

/// Adds records; says how many.
///
/// # Errors
/// See [`NamesError`]. Records added before the failure stay.
pub async fn add(client: &Client, args: &NameArgs) -> Result<u64, NamesError> {
    let domain = client.network().await?.domain.ok_or(NamesError::NoDns)?;
    let found = find(args).await?;
    let (id, docker) = match found {
        Some(found) if found.ns.is_none() => {
            let target = args.container.clone();
            return Err(target.map_or(NamesError::NoName, NamesError::NotRunning));
        }
        Some(found) => (found.id, found.docker),
        None => (ContainerId::external(), None),
    };
    let own = || docker.map(|names| of_container(&names, &domain));
    let asked = args.name.clone().map(|name| vec![name]);
    let names = asked.or_else(own).ok_or(NamesError::NoName)?;
    let addresses = addresses(client, &id, args).await?;
    let mut added = 0;
    for name in names {
        for addr in &addresses {
            let record = AddName {
                name: name.clone(),
                container: id.clone(),
                addr: *addr,
            };
            client.add_name(&record).await?;
            added += 1;
        }
    }
    Ok(added)
}

/// Removes the records that match all that is given; says how many.
///
/// # Errors
/// See [`NamesError`].
pub async fn remove(client: &Client, args: &NameArgs) -> Result<u64, NamesError> {
    let id = match find(args).await? {
        Some(found) => found.id,
        None => ContainerId::external(),
    };
    let filter = |addr| RemoveNames {
        name: args.name.clone(),
        container: Some(id.clone()),
        addr,
    };
    if args.addresses.is_empty() {
        return Ok(client.remove_names(&filter(None)).await?);
    }
    let mut removed = 0;
    for addr in &args.addresses {
        removed += client.remove_names(&filter(Some(*addr))).await?;
    }
    Ok(removed)
}

async fn find(args: &NameArgs) -> Result<Option<Container>, NamesError> {
    match &args.container {
        Some(target) => Ok(Some(Container::find(target).await?)),
        None => Ok(None),
    }
}

async fn addresses(
    client: &Client,
    id: &ContainerId,
    args: &NameArgs,
) -> Result<Vec<IpAddr>, NamesError> {
    let Some(target) = args
        .container
        .as_ref()
        .filter(|_| args.addresses.is_empty())
    else {
        return Ok(args.addresses.clone());
    };
    let held = client.addresses(id).await?;
    if held.is_empty() {
        return Err(NamesError::NoAddresses(target.clone()));
    }
    Ok(held.into_iter().map(weft_api::Cidr::addr).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRouter, cidr};

    fn outside(addresses: &[&str], name: Option<&str>) -> NameArgs {
        NameArgs {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            container: None,
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn a_docker_container_is_called_by_all_its_names_in_our_domain() {
        let named = |hostname: Option<&str>, aliases: &[&str]| {
            let names = DockerNames {
                name: "web".to_owned(),
                hostname: hostname.map(str::to_owned),
                aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            };
            of_container(&names, "Weft.local.")
        };
        let web = "web.weft.local";
        assert_eq!(named(None, &[]), [web]);
        assert_eq!(named(Some("www.Weft.Local."), &[]), [web, "www.weft.local"]);
        assert_eq!(
            named(Some("www"), &["db"]),
            [web, "www.weft.local", "db.weft.local"]
        );
        assert_eq!(
            named(Some("www.example.org"), &["web", "WEB.weft.local"]),
            [web]
        );
        assert_eq!(named(Some(".weft.local"), &[]), [web]);
        assert_eq!(named(Some("."), &[]), [web]);
    }

    #[tokio::test]
    async fn something_outside_gets_a_name_and_loses_it() {
        let router = FakeRouter::start();
        let both = outside(&["192.0.2.1", "192.0.2.2"], Some("db"));
        assert_eq!(add(&router.client, &both).await.unwrap(), 2);
        assert_eq!(router.books().names[0].container, ContainerId::external());
        let one = outside(&["192.0.2.1"], None);
        assert_eq!(remove(&router.client, &one).await.unwrap(), 1);
        assert_eq!(remove(&router.client, &one).await.unwrap(), 0);
        assert_eq!(router.names().len(), 1);
        let error = add(&router.client, &one).await.unwrap_err();
        assert!(matches!(error, NamesError::NoName), "{error}");
    }

    #[tokio::test]
    async fn a_container_is_named_by_what_it_holds() {
        let router = FakeRouter::start();
        let us = Target::Pid(std::process::id());
        let args = NameArgs {
            container: Some(us.clone()),
            ..outside(&[], Some("us"))
        };
        let error = add(&router.client, &args).await.unwrap_err();
        assert!(matches!(error, NamesError::NoAddresses(_)), "{error}");
        let id = Container::find(&us).await.unwrap().id;
        router.books().held.insert(id, vec![cidr("10.32.0.9/16")]);
        assert_eq!(add(&router.client, &args).await.unwrap(), 1);
        assert_eq!(router.names(), [("us".to_owned(), [10, 32, 0, 9].into())]);
        assert_eq!(remove(&router.client, &args).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn without_a_name_table_nothing_is_named() {
        let router = FakeRouter::start();
        router.books().network.domain = None;
        let args = outside(&["192.0.2.1"], Some("db"));
        let error = add(&router.client, &args).await.unwrap_err();
        assert_eq!(error.to_string(), "DNS is switched off on this router");
    }
}
