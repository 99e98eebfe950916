//! Attaching a container: addresses from the router, an interface on the bridge, names.
//!
//! ```text
//!   find the container -> addresses -> interface -> names
//!                            |             |          |
//!       on a failure, freed <-   removed <-  removed <-
//! ```
//! Ctrl-C while addresses are waited for, which may be long, counts as a failure.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use thiserror::Error;
use weft_api::types::{AddName, Network, RemoveNames};
use weft_api::{CallError, Cidr, Client, ContainerId};
use weft_net::attach::{AttachError as InterfaceError, AttachSpec};
use weft_net::netns::NetNs;

use crate::find::{DockerNames, FindError};
use crate::obtain::{ObtainError, Obtained};
use crate::{AddressSpec, Container, Target};

/// How a container is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachOptions {
    /// The name it gets; none = what Docker calls it.
    pub name: Option<String>,
    /// Whether multicast goes over the network.
    pub multicast_route: bool,
    /// Whether it gets a name and a way to the resolver.
    pub dns: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The addresses asked for, in that order.
    pub addresses: Vec<Cidr>,
    /// The name registered.
    pub name: Option<String>,
    /// What went otherwise than might be expected.
    pub notes: Vec<String>,
}

/// Why a container is not attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// It is not found.
    #[error("{0}")]
    Find(#[from] FindError),
    /// It is found, but does not run.
    #[error("{0} is not running: start it, then attach it")]
    NotRunning(Target),
    /// It is this host itself.
    #[error("{0} has the host's own network: give the host an address with `weft expose` instead")]
    HostNetwork(Target),
    /// A network namespace, the host's or the container's, cannot be looked at.
    #[error("cannot look at a network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// The router refused, or is not there.
    #[error("{0}")]
    Call(#[from] CallError),
    /// There is no address for it.
    #[error("{0}")]
    Obtain(#[from] ObtainError),
    /// The interface cannot be made.
    #[error("{0}")]
    Interface(#[from] InterfaceError),
    /// The name is not taken.
    #[error("the name {name} is not registered: {source}")]
    Name {
        /// The name.
        name: String,
        /// What the router says.
        source: CallError,
    },
    /// A name was asked for where there are none.
    #[error("the name {0} cannot be registered: DNS is switched off")]
    NoDns(String),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted: nothing was attached")]
    Interrupted,
}

/// Puts a container on the network, or gives it further addresses.
///
/// # Errors
/// See [`AttachError`]; whatever was made on the way is undone.
pub async fn attach(
    client: &Client,
    target: &Target,
    addresses: &[AddressSpec],
    options: &AttachOptions,
) -> Result<Attached, AttachError> {
    let container = Container::find(target).await?;
    let ns = foreign_namespace(target, &container)?;
    let network = client.network().await?;
    if let (Some(name), None, true) = (&options.name, &network.domain, options.dns) {
        return Err(AttachError::NoDns(name.clone()));
    }
    let mut attempt = Attempt {
        client,
        container: &container,
        ns,
        inode: inode(ns).map_err(AttachError::Namespace)?,
        network,
        options,
        obtained: Obtained::begin(client, &container.id).await?,
        interface: false,
        name: None,
    };
    match attempt.run(addresses).await {
        Ok(notes) => Ok(Attached {
            addresses: attempt.obtained.all,
            name: attempt.name,
            notes,
        }),
        Err(error) => {
            attempt.undo().await;
            Err(error)
        }
    }
}

/// One attempt, and how far it got.
struct Attempt<'a> {
    client: &'a Client,
    container: &'a Container,
    ns: &'a NetNs,
    /// The number of that namespace.
    inode: u64,
    network: Network,
    options: &'a AttachOptions,
    obtained: Obtained<'a>,
    /// Whether there is an interface that may have our addresses on it.
    interface: bool,
    /// The name that was registered, at least for some addresses.
    name: Option<String>,
}

impl Attempt<'_> {
    async fn run(&mut self, addresses: &[AddressSpec]) -> Result<Vec<String>, AttachError> {
        // The one step that may take long; what follows is brief, and whole or not at all.
        tokio::select! {
            done = self.obtained.obtain(addresses, &self.network) => done?,
            _ = tokio::signal::ctrl_c() => return Err(AttachError::Interrupted),
        }
        let spec = self.interface_spec();
        let attached = weft_net::attach::attach(self.ns, &spec).await;
        // One that is not ours has nothing of us on it, and is not ours to touch.
        self.interface = !matches!(attached, Err(InterfaceError::Foreign { .. }));
        attached?;
        self.register().await
    }

    fn interface_spec(&self) -> AttachSpec {
        let pair = |cidr: &Cidr| (cidr.addr(), cidr.prefix());
        AttachSpec {
            bridge: self.network.bridge.clone(),
            host_ifname: host_ifname(&self.container.id, self.inode),
            ifname: IFNAME.to_owned(),
            addresses: self.obtained.all.iter().map(pair).collect(),
            mtu: self.network.mtu.into(),
            multicast_route: self.options.multicast_route,
            dns: self.network.dns.filter(|_| self.options.dns),
        }
    }

    /// Registers the name asked for, or Docker's. If Docker's cannot be a name here, that is a note;
    /// nobody asked for it.
    async fn register(&mut self) -> Result<Vec<String>, AttachError> {
        let Some(domain) = self.network.domain.clone().filter(|_| self.options.dns) else {
            return Ok(Vec::new());
        };
        let docker = self.container.docker.as_ref();
        let asked = self.options.name.clone();
        let Some(name) = asked.or_else(|| docker.map(|d| docker_name(d, &domain))) else {
            return Ok(Vec::new());
        };
        for cidr in self.obtained.all.clone() {
            let record = AddName {
                name: name.clone(),
                container: self.container.id.clone(),
                addr: cidr.addr(),
            };
            match self.client.add_name(&record).await {
                Ok(()) => self.name = Some(name.clone()),
                Err(CallError::Refused { refusal, .. }) if self.options.name.is_none() => {
                    let note = format!("no name was registered: {}", refusal.error);
                    return Ok(vec![note]);
                }
                Err(source) => return Err(AttachError::Name { name, source }),
            }
        }
        Ok(Vec::new())
    }

    /// Takes back what this attempt made. Each step is tried whatever came of the others; what is left
    /// over for want of a router shows in `weft status ipam`.
    async fn undo(&self) {
        let fresh = self.obtained.fresh();
        if let Some(name) = &self.name {
            for cidr in &fresh {
                let filter = RemoveNames {
                    name: Some(name.clone()),
                    container: Some(self.container.id.clone()),
                    addr: Some(cidr.addr()),
                };
                let _ = self.client.remove_names(&filter).await;
            }
        }
        if self.interface {
            let pairs: Vec<(IpAddr, u8)> = fresh.iter().map(|c| (c.addr(), c.prefix())).collect();
            let _ = weft_net::attach::detach(self.ns, IFNAME, Some(&pairs)).await;
        }
        self.obtained.give_back().await;
    }
}

/// The namespace of a running container that is not the host itself.
fn foreign_namespace<'a>(target: &Target, found: &'a Container) -> Result<&'a NetNs, AttachError> {
    let not_running = || AttachError::NotRunning(target.clone());
    let ns = found.ns.as_ref().ok_or_else(not_running)?;
    let own = NetNs::current().map_err(AttachError::Namespace)?;
    if ns.is_same(&own) {
        return Err(AttachError::HostNetwork(target.clone()));
    }
    Ok(ns)
}

/// The number the kernel knows a namespace by.
fn inode(ns: &NetNs) -> io::Result<u64> {
    let file = File::from(ns.as_fd().try_clone_to_owned()?);
    Ok(file.metadata()?.ino())
}

/// Its host name if that is in our domain, else its name with the domain behind.
pub(crate) fn docker_name(docker: &DockerNames, domain: &str) -> String {
    let dotted = format!(".{}", domain.trim_matches('.')).to_ascii_lowercase();
    let in_domain = |host: &&String| {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        host.len() > dotted.len() && host.ends_with(&dotted)
    };
    match docker.hostname.as_ref().filter(in_domain) {
        Some(hostname) => hostname.clone(),
        None => format!("{}{dotted}", docker.name),
    }
}

/// The name of the host's end of a container's interface: 15 bytes, what Linux allows at most.
///
/// The namespace's number is in it, because the kernel removes the interfaces of a namespace some time
/// after it ended: one made anew under the same id must not meet the old name. 36 bits of a hash:
/// two among a thousand containers of one host are the same with a chance of one in 10⁵, and then
/// attaching says that the link exists.
fn host_ifname(id: &ContainerId, inode: u64) -> String {
    // FNV-1a, 64 bits.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = id.as_str().bytes().chain(inode.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{HOST_PREFIX}{:09x}", hash >> 28)
}

/// The interface in every container.
pub const IFNAME: &str = "ethwe";
/// What the host's ends of containers' interfaces begin with.
pub const HOST_PREFIX: &str = "weftpl";
