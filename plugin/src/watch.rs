//! What must follow what Docker does, for containers nothing of weft is called for in time: names of those
//! on Docker's networks, a restart of those attached by hand, and whatever is left of those that are gone.
//!
//! Docker's events say only that it is time to look. A look compares what Docker has with what the router
//! has, and makes the differences good; so it does not matter what was missed while one of us was away,
//! and the first look is like any other.
//!
//! It runs in the plugin's process: that one is there whenever Docker is, lives on when the router stops,
//! and may wait for Docker as long as it takes, which the router may not.
//!
//! Invariant: what somebody else attached or named is not touched. A container is Docker's only if Docker
//! says so, or if it has Docker's form of id and no interface on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};
use weft_api::report::Report;
use weft_api::types::{AddName, RemoveNames};
use weft_api::{CallError, Cidr, Client, ContainerId, ContainerIdError};
use weft_net::{Netlink, NetlinkError};

use crate::attach::{AttachError, AttachOptions, HOST_PREFIX, attach_found};
use crate::docker::{Docker, DockerError, Seen};
use crate::find::FindError;
use crate::names::of_container;
use crate::network::host_end;
use crate::{AddressSpec, Container, DockerNames, Target};

/// What the ids begin with under which names of containers on Docker's networks are registered.
pub const NAMES_PREFIX: &str = "docker-endpoint:";

/// Why a look failed.
#[derive(Debug, Error)]
enum WatchError {
    #[error("{0}")]
    Docker(#[from] DockerError),
    #[error("{0}")]
    Router(#[from] CallError),
    #[error("{0}")]
    Links(#[from] NetlinkError),
    #[error("{0}")]
    Id(#[from] ContainerIdError),
    #[error("Docker tells of no more events")]
    Ended,
}

/// Looks again and again, as long as the process runs: at the start, when Docker says that something
/// happened, and from time to time; and waits for Docker where there is none.
pub async fn watch(router: Client) {
    let mut watch = Watch::new(router);
    let mut wait = RETRY.0;
    let mut told = String::new();
    loop {
        let begin = Instant::now();
        let error = watch.until_docker_ends().await;
        let why = error.to_string();
        if why != told {
            info!(why, "Docker's containers are not watched for now");
            told = why;
        }
        wait = if begin.elapsed() > RETRY.1 {
            RETRY.0
        } else {
            (wait * 2).min(RETRY.1)
        };
        sleep(wait).await;
    }
}

/// A name as the router keeps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    /// With the domain, without a dot behind.
    name: String,
    holder: ContainerId,
    addr: IpAddr,
}

/// What is amiss with a container that has no interface.
enum Amiss<'a> {
    /// It runs and holds these addresses: Docker has started it anew.
    Loose(&'a [Cidr]),
    /// It does not run, but has names.
    Named,
    /// Docker does not have it.
    Gone,
}

struct Watch {
    router: Client,
    /// What running containers with these endpoints are called, to be asked for once.
    called: BTreeMap<Seen, DockerNames>,
    /// What has something and should not, and since when.
    suspects: BTreeMap<ContainerId, Instant>,
}

impl Watch {
    const fn new(router: Client) -> Self {
        Self {
            router,
            called: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    async fn until_docker_ends(&mut self) -> WatchError {
        match Docker::open().await {
            Ok(docker) => self.until_events_end(&docker).await,
            Err(error) => error.into(),
        }
    }

    /// Looks at each event; comes back when there are no more.
    async fn until_events_end(&mut self, docker: &Docker) -> WatchError {
        // Rung any number of times while a look goes on, it leads to one more.
        let bell = Notify::new();
        let ended = docker.listen(|| bell.notify_one());
        tokio::select! {
            ended = ended => ended.map_or_else(WatchError::from, |()| WatchError::Ended),
            never = self.keep_looking(docker, &bell) => never,
        }
    }

    async fn keep_looking(&mut self, docker: &Docker, bell: &Notify) -> WatchError {
        info!("Docker's containers are watched");
        let mut told = String::new();
        let mut rung = false;
        loop {
            let until = match self.look(docker).await {
                Ok(()) if rung => ECHO,
                Ok(()) if self.suspects.is_empty() => IDLE,
                Ok(()) => GRACE,
                // A daemon that is away ends its events; nothing else here lasts.
                Err(error) => {
                    let why = error.to_string();
                    if why != told {
                        debug!(
                            why,
                            "what Docker has cannot be compared with what the router has"
                        );
                        told = why;
                    }
                    self.suspects.clear();
                    GRACE
                }
            };
            sleep(PAUSE).await;
            rung = timeout(until, bell.notified()).await.is_ok();
        }
    }

    /// Compares, and makes good.
    async fn look(&mut self, docker: &Docker) -> Result<(), WatchError> {
        // In this order: what came up meanwhile is in the later ones only, and nothing is amiss with it.
        let report = self.router.status().await?;
        let links = Netlink::new()?;
        let ends = links.list_links(HOST_PREFIX).await?.into_iter().collect();
        let attached = links.list_notes(HOST_PREFIX).await?.into_iter().collect();
        let seen = docker.containers().await?;
        if let Some(dns) = &report.dns {
            let wanted = self.wanted(docker, &seen, &ends, &dns.domain).await?;
            self.correct_names(&wanted, &registered(&report)).await?;
        }
        self.settle(&report, &seen, &attached).await
    }

    /// The names of all containers on Docker's networks that are ours: those with our interfaces.
    async fn wanted(
        &mut self,
        docker: &Docker,
        seen: &[Seen],
        ends: &BTreeSet<String>,
        domain: &str,
    ) -> Result<BTreeSet<Record>, WatchError> {
        let mut called = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        for container in seen.iter().filter(|container| container.running) {
            let ours = |id: &str| host_end(id).is_some_and(|end| ends.contains(&end));
            let ours: Vec<_> = { container.endpoints.iter() }
                .filter(|e| ours(&e.id))
                .collect();
            if ours.is_empty() {
                continue;
            }
            let names = match self.called.remove(container) {
                Some(names) => names,
                None => match docker.inspect(container.id.as_str()).await {
                    Ok(found) => found.names,
                    // It ended meanwhile.
                    Err(DockerError::NoContainer(_)) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            for name in of_container(&names, domain) {
                for endpoint in &ours {
                    let short = endpoint.id.get(..SHORT).unwrap_or(&endpoint.id);
                    let holder = ContainerId::new(format!("{NAMES_PREFIX}{short}"))?;
                    let record = |addr: &IpAddr| Record {
                        name: name.clone(),
                        holder: holder.clone(),
                        addr: *addr,
                    };
                    wanted.extend(endpoint.addresses.iter().map(record));
                }
            }
            called.insert(container.clone(), names);
        }
        self.called = called;
        Ok(wanted)
    }

    async fn correct_names(
        &self,
        wanted: &BTreeSet<Record>,
        registered: &BTreeSet<Record>,
    ) -> Result<(), WatchError> {
        for gone in registered.difference(wanted) {
            let filter = RemoveNames {
                name: Some(gone.name.clone()),
                container: Some(gone.holder.clone()),
                addr: Some(gone.addr),
            };
            self.router.remove_names(&filter).await?;
        }
        for new in wanted.difference(registered) {
            let record = AddName {
                name: new.name.clone(),
                container: new.holder.clone(),
                addr: new.addr,
            };
            match self.router.add_name(&record).await {
                // What Docker allows is not always a name.
                Err(CallError::Refused { refusal, .. }) => {
                    debug!(
                        name = new.name,
                        why = refusal.error,
                        "a name is not registered"
                    );
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Makes good what is amiss with containers that have something and no interface. Each is looked at
    /// twice: somebody else may just be about to make the interface.
    async fn settle(
        &mut self,
        report: &Report,
        seen: &[Seen],
        attached: &BTreeSet<String>,
    ) -> Result<(), WatchError> {
        let known: BTreeMap<_, _> = seen.iter().map(|c| (&c.id, c.running)).collect();
        let named = own_names(report).map(|name| &name.container);
        let named: BTreeSet<_> = named.filter(|id| is_dockers(id)).collect();
        let held = held(report);
        let mut suspects = BTreeMap::new();
        let all: BTreeSet<&ContainerId> = named.iter().copied().chain(held.keys()).collect();
        for id in all.into_iter().filter(|id| !attached.contains(id.as_str())) {
            let amiss = match (known.get(id), held.get(id)) {
                (Some(true), Some(cidrs)) => Amiss::Loose(cidrs),
                (Some(false), _) if named.contains(id) => Amiss::Named,
                // Named by hand, or it will want its addresses again.
                (Some(_), _) => continue,
                (None, _) => Amiss::Gone,
            };
            let since = self.suspects.get(id).copied().unwrap_or_else(Instant::now);
            if since.elapsed() < GRACE {
                suspects.insert(id.clone(), since);
                continue;
            }
            self.make_good(id, amiss).await?;
        }
        self.suspects = suspects;
        Ok(())
    }

    async fn make_good(&self, id: &ContainerId, amiss: Amiss<'_>) -> Result<(), WatchError> {
        let container = id.short();
        match amiss {
            Amiss::Loose(cidrs) => match self.attach(id, cidrs).await {
                Ok(()) => info!(container, "it was started anew: it is attached again"),
                Err(error) => {
                    warn!(container, %error, "it was started anew, but is not attached again")
                }
            },
            Amiss::Named => {
                info!(container, "it does not run: its names are taken back");
                self.take_names(id).await?;
            }
            Amiss::Gone => {
                info!(container, "it is gone: what it had is taken back");
                self.take_names(id).await?;
                self.router.free_all(id).await?;
            }
        }
        Ok(())
    }

    async fn attach(&self, id: &ContainerId, cidrs: &[Cidr]) -> Result<(), AttachError> {
        let target = Target::Docker(id.as_str().to_owned());
        let container = Container::find(&target).await?;
        let addresses: Vec<_> = cidrs.iter().map(|cidr| AddressSpec::Exact(*cidr)).collect();
        let options = AttachOptions {
            patience: Some(PATIENCE),
            ..AttachOptions::default()
        };
        match attach_found(&self.router, &target, &container, &addresses, &options).await {
            // It ended meanwhile.
            Err(AttachError::NotRunning(_)) => Ok(()),
            Err(AttachError::Find(FindError::Docker(DockerError::NoContainer(_)))) => Ok(()),
            done => done.map(drop),
        }
    }

    async fn take_names(&self, id: &ContainerId) -> Result<(), CallError> {
        let names = RemoveNames {
            container: Some(id.clone()),
            ..RemoveNames::default()
        };
        match self.router.remove_names(&names).await {
            // Names are switched off.
            Err(CallError::Refused { .. }) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// The names we have registered.
fn registered(report: &Report) -> BTreeSet<Record> {
    let ours = own_names(report).filter(|name| name.container.as_str().starts_with(NAMES_PREFIX));
    let record = |name: &weft_api::report::Name| Record {
        name: name.name.trim_end_matches('.').to_owned(),
        holder: name.container.clone(),
        addr: name.address,
    };
    ours.map(record).collect()
}

/// All names registered on this host.
fn own_names(report: &Report) -> impl Iterator<Item = &weft_api::report::Name> {
    let own = report.router.name;
    let all = report.dns.iter().flat_map(|dns| &dns.entries);
    all.filter(move |name| name.origin == own)
}

/// What each of Docker's containers holds.
fn held(report: &Report) -> BTreeMap<ContainerId, Vec<Cidr>> {
    let mut held: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for holder in report
        .holders()
        .filter(|holder| is_dockers(&holder.container))
    {
        held.entry(holder.container.clone())
            .or_default()
            .push(holder.cidr);
    }
    held
}

/// Whether an id has the form of Docker's. Other engines have such ids too.
fn is_dockers(id: &ContainerId) -> bool {
    id.as_str().len() == 64 && id.as_str().bytes().all(|c| c.is_ascii_hexdigit())
}

/// How much of an endpoint's id is in the id of its names' holder.
const SHORT: usize = 12;
/// How long no look happens if Docker says nothing.
const IDLE: Duration = Duration::from_secs(60);
/// After how long what is amiss is not on its way any more.
const GRACE: Duration = Duration::from_secs(5);
/// How long after an event another look follows: Docker's list of containers trails its events.
const ECHO: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the address of a container that is attached again may take; it is its own already.
const PATIENCE: Duration = Duration::from_secs(5);
/// The shortest and the longest wait for Docker.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

#[cfg(test)]
mod tests;
