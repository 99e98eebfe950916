//! Attaching a container: addresses from the router, an interface on the bridge, names.
//!
//! ```text
//!   find the container -> addresses -> binding -> interface -> names
//!                            |                       |          |
//!       on a failure, freed <-             removed <-  removed <-
//! ```
//! The binding (which MAC and addresses the interface will have) goes with the addresses.
//! Ctrl-C while addresses are waited for, which may be long, counts as a failure.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use thiserror::Error;
use weft_api::types::{AddName, Bind, JoinNetwork, Network, RemoveNames};
use weft_api::{CallError, Cidr, Client, ContainerId};
use weft_net::Netlink;
use weft_net::attach::{AttachError as InterfaceError, AttachSpec};
use weft_net::netns::NetNs;
use weft_wire::{MacAddr, NetworkKey};

use crate::binding::{foresee, tell};
use crate::find::FindError;
use crate::names;
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
    /// How long to wait for addresses; none = as long as the caller's patience lasts.
    pub patience: Option<Duration>,
    /// The network it is put on.
    pub network: NetworkKey,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            name: None,
            multicast_route: true,
            dns: true,
            patience: None,
            network: NetworkKey::Default,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The addresses asked for, in that order.
    pub addresses: Vec<Cidr>,
    /// The names registered.
    pub names: Vec<String>,
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
    /// There is no MAC for it.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
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
    /// It would not know by which of two interfaces to reach others.
    #[error(
        "{wanted} and its interface {ifname} on another network are in one subnet, so it could reach only one of them: choose another subnet, as in `net:10.50.0.0/16`"
    )]
    SameSubnet {
        /// The address it was to get.
        wanted: Cidr,
        /// The interface that is there.
        ifname: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted: nothing was attached")]
    Interrupted,
    /// There was no address in time.
    #[error("no address within {} s: `weft status ipam` on this host says what is waited for", .0.as_secs())]
    NoAddressYet(Duration),
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
    attach_found(client, target, &container, addresses, options).await
}

/// [`attach`] for a container that is found already; the target is what errors call it.
///
/// # Errors
/// See [`AttachError`]; whatever was made on the way is undone.
pub async fn attach_found(
    client: &Client,
    target: &Target,
    container: &Container,
    addresses: &[AddressSpec],
    options: &AttachOptions,
) -> Result<Attached, AttachError> {
    let ns = foreign_namespace(target, container)?;
    let network = client.network().await?;
    if let (Some(name), None, true) = (&options.name, &network.domain, options.dns) {
        return Err(AttachError::NoDns(name.clone()));
    }
    let inode = inode(ns).map_err(AttachError::Namespace)?;
    let obtained = Obtained::begin(client, &container.id).await?;
    let (network, joined) = match &options.network {
        NetworkKey::Default => (network, false),
        key @ (NetworkKey::Name(_) | NetworkKey::Subnet(..) | NetworkKey::Swarm(_)) => {
            join(client, key, &container.id).await?
        }
    };
    let mut attempt = Attempt {
        client,
        container,
        ns,
        inode,
        network,
        joined,
        options,
        obtained,
        interface: false,
        names: Vec::new(),
    };
    match attempt.run(addresses).await {
        Ok(notes) => Ok(Attached {
            addresses: attempt.obtained.all,
            names: attempt.names,
            notes,
        }),
        Err(error) => {
            attempt.undo().await;
            Err(error)
        }
    }
}

/// Has the host be in a network for a container; answers whether the container was not there before.
async fn join(
    client: &Client,
    key: &NetworkKey,
    id: &ContainerId,
) -> Result<(Network, bool), CallError> {
    let used = client.networks_of(id).await?;
    let was_there = used.iter().any(|used| used.network.key == *key);
    let network = client
        .join_network(key, id, &JoinNetwork::default())
        .await?;
    Ok((network, !was_there))
}

/// One attempt, and how far it got.
struct Attempt<'a> {
    client: &'a Client,
    container: &'a Container,
    ns: &'a NetNs,
    /// The number of that namespace.
    inode: u64,
    network: Network,
    /// Whether the container was not in the network before.
    joined: bool,
    options: &'a AttachOptions,
    obtained: Obtained<'a>,
    /// Whether there is an interface that may have our addresses on it.
    interface: bool,
    /// The names that were registered, at least for some addresses.
    names: Vec<String>,
}

impl Attempt<'_> {
    async fn run(&mut self, addresses: &[AddressSpec]) -> Result<Vec<String>, AttachError> {
        // The one step that may take long; what follows is brief, and whole or not at all.
        tokio::select! {
            done = self.obtained.obtain(addresses, &self.network) => done?,
            _ = tokio::signal::ctrl_c() => return Err(AttachError::Interrupted),
            patience = at_most(self.options.patience) => return Err(AttachError::NoAddressYet(patience)),
        }
        self.refuse_same_subnet().await?;
        let (mac, has) = foresee(self.ns, &ifname(&self.options.network)).await?;
        let spec = self.interface_spec(mac);
        let binding = self.binding(mac, &spec.host_ifname, has);
        let note = tell(self.client, &binding).await;
        let attached = weft_net::attach::attach(self.ns, &spec).await;
        // One that is not ours has nothing of us on it, and is not ours to touch.
        self.interface = !matches!(attached, Err(InterfaceError::Foreign { .. }));
        let attached = attached?;
        // Whoever looks after containers that are gone sees by this that one is not.
        let links = Netlink::new().map_err(InterfaceError::from)?;
        let noted = links.set_note(&attached.host_ifname, self.container.id.as_str());
        noted.await.map_err(InterfaceError::from)?;
        if attached.host_ifname != binding.port {
            // It was attached under another id before.
            let port = attached.host_ifname;
            tell(self.client, &Bind { port, ..binding }).await;
        }
        let notes = self.register().await?;
        Ok(note.into_iter().chain(notes).collect())
    }

    fn binding(&self, mac: MacAddr, port: &str, has: Vec<IpAddr>) -> Bind {
        let mut addresses: Vec<IpAddr> = self.obtained.all.iter().map(|cidr| cidr.addr()).collect();
        addresses.extend(has);
        addresses.sort_unstable();
        addresses.dedup();
        Bind {
            container: self.container.id.clone(),
            network: self.options.network.clone(),
            mac,
            port: port.to_owned(),
            addresses,
        }
    }

    /// Two interfaces in one subnet, but on two networks, would leave one of them without use.
    async fn refuse_same_subnet(&self) -> Result<(), AttachError> {
        let ours = ifname(&self.options.network);
        let views = weft_net::attach::inspect(self.ns, IFNAME).await?;
        for view in views.into_iter().filter(|view| is_ifname(&view.name)) {
            let there = view.addresses.iter();
            let mut there = there.filter_map(|(addr, prefix)| Cidr::new(*addr, *prefix).ok());
            let meets = |wanted: &&Cidr| {
                there.any(|there| wanted.contains(there.addr()) || there.contains(wanted.addr()))
            };
            if view.name == ours {
                continue;
            }
            if let Some(wanted) = self.obtained.all.iter().find(meets) {
                return Err(AttachError::SameSubnet {
                    wanted: *wanted,
                    ifname: view.name,
                });
            }
        }
        Ok(())
    }

    fn interface_spec(&self, mac: MacAddr) -> AttachSpec {
        let pair = |cidr: &Cidr| (cidr.addr(), cidr.prefix());
        AttachSpec {
            bridge: self.network.bridge.clone(),
            host_ifname: host_ifname(&self.container.id, &self.options.network, self.inode),
            ifname: ifname(&self.options.network),
            mac,
            addresses: self.obtained.all.iter().map(pair).collect(),
            mtu: self.network.mtu.into(),
            trains: !self.network.fast,
            multicast_route: self.options.multicast_route,
            dns: self.network.dns.filter(|_| self.options.dns),
        }
    }

    /// Registers the name asked for, or Docker's. If one of Docker's cannot be a name here, that is a
    /// note; nobody asked for it.
    async fn register(&mut self) -> Result<Vec<String>, AttachError> {
        let Some(domain) = self.network.domain.clone().filter(|_| self.options.dns) else {
            return Ok(Vec::new());
        };
        let docker = self.container.docker.as_ref();
        let own = || docker.map(|docker| names::of_container(docker, &domain));
        let asked = self.options.name.clone().map(|name| vec![name]);
        let mut notes = Vec::new();
        for name in asked.or_else(own).unwrap_or_default() {
            match self.register_one(&name).await {
                Ok(()) => self.names.push(name),
                Err(CallError::Refused { refusal, .. }) if self.options.name.is_none() => {
                    notes.push(format!("a name was not registered: {}", refusal.error));
                }
                Err(source) => {
                    self.names.push(name.clone());
                    return Err(AttachError::Name { name, source });
                }
            }
        }
        Ok(notes)
    }

    async fn register_one(&self, name: &str) -> Result<(), CallError> {
        for cidr in &self.obtained.all {
            let record = AddName {
                name: name.to_owned(),
                container: self.container.id.clone(),
                addr: cidr.addr(),
            };
            self.client.add_name(&record).await?;
        }
        Ok(())
    }

    /// Takes back what this attempt made. Each step is tried whatever came of the others; what is left
    /// over for want of a router shows in `weft status ipam`.
    async fn undo(&self) {
        let fresh = self.obtained.fresh();
        for name in &self.names {
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
            let _ = weft_net::attach::detach(self.ns, &ifname(&self.options.network), Some(&pairs))
                .await;
        }
        self.obtained.give_back().await;
        if self.joined {
            let (key, id) = (&self.options.network, &self.container.id);
            let _ = self.client.leave_network(key, id).await;
        }
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

/// Never ends without a limit; else says what the limit was when it is over.
async fn at_most(patience: Option<Duration>) -> Duration {
    match patience {
        Some(patience) => {
            tokio::time::sleep(patience).await;
            patience
        }
        None => std::future::pending().await,
    }
}

/// The name of the host's end of a container's interface: 15 bytes, what Linux allows at most.
///
/// The namespace's number is in it, because the kernel removes the interfaces of a namespace some time
/// after it ended: one made anew under the same id must not meet the old name. 36 bits of a hash:
/// two among a thousand containers of one host are the same with a chance of one in 10⁵, and then
/// attaching says that the link exists.
fn host_ifname(id: &ContainerId, network: &NetworkKey, inode: u64) -> String {
    let bytes = id.as_str().bytes().chain(inode.to_be_bytes());
    let of_network = match network {
        NetworkKey::Default => String::new(),
        key @ (NetworkKey::Name(_) | NetworkKey::Subnet(..) | NetworkKey::Swarm(_)) => {
            key.to_string()
        }
    };
    format!("{HOST_PREFIX}{}", hashed(bytes.chain(of_network.bytes())))
}

/// What a container's interface on a network is called: `ethwe` on the default one, `ethwe-blue` on one of
/// that name, with a hash in place of what would be too long.
pub fn ifname(network: &NetworkKey) -> String {
    match network {
        NetworkKey::Default => IFNAME.to_owned(),
        NetworkKey::Name(name) if name.as_str().len() <= HASHED => format!("{IFNAME}-{name}"),
        key @ (NetworkKey::Name(_) | NetworkKey::Subnet(..) | NetworkKey::Swarm(_)) => {
            format!("{IFNAME}-{}", hashed(key.to_string().bytes()))
        }
    }
}

/// Whether attaching makes interfaces of this name.
pub(crate) fn is_ifname(name: &str) -> bool {
    name.strip_prefix(IFNAME)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// 36 bits of a hash, as many digits as there is room for.
fn hashed(bytes: impl Iterator<Item = u8>) -> String {
    // FNV-1a, 64 bits.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{:09x}", hash >> 28)
}

/// Digits of such a hash.
const HASHED: usize = 9;
/// The interface in every container on the default network; what those on others begin with.
pub const IFNAME: &str = "ethwe";
/// What the host's ends of containers' interfaces begin with.
pub const HOST_PREFIX: &str = "weftpl";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRouter, Netns, cidr, container, on_a_host, on_interface};

    fn specs(texts: &[&str]) -> Vec<AddressSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn named(name: Option<&str>) -> AttachOptions {
        AttachOptions {
            name: name.map(str::to_owned),
            ..AttachOptions::default()
        }
    }

    #[test]
    fn a_container_gets_addresses_an_interface_and_a_name() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let Netns { ns, target, .. } = &container();
            let wanted = specs(&["net:default", "10.99.0.5/24"]);
            let options = named(Some("c1"));
            let done = attach(&router.client, target, &wanted, &options).await;
            let attached = done.unwrap();
            assert_eq!(
                attached.addresses,
                [cidr("10.32.0.1/16"), cidr("10.99.0.5/24")]
            );
            assert_eq!(on_interface(ns).await.unwrap(), attached.addresses);
            let [one, other] = ["10.32.0.1", "10.99.0.5"].map(|a| a.parse().unwrap());
            assert_eq!(
                router.names(),
                [("c1".to_owned(), one), ("c1".to_owned(), other)]
            );
            let interface = &weft_net::attach::inspect(ns, IFNAME).await.unwrap()[0];
            let [binding] = &router.bindings()[..] else {
                panic!("{:?}", router.bindings());
            };
            assert_eq!(
                (binding.mac, &binding.addresses[..]),
                (interface.mac, &[one, other][..])
            );
            assert!(
                weft_net::Netlink::new()
                    .unwrap()
                    .exists(&binding.port)
                    .await
                    .unwrap()
            );
            let again = attach(&router.client, target, &wanted, &options).await;
            assert_eq!(again.unwrap(), attached);
            assert_eq!(router.bindings(), std::slice::from_ref(binding));
        });
    }

    #[test]
    fn a_container_is_attached_though_the_router_takes_no_binding() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            router.books().refuse_bindings = true;
            let Netns { ns, target, .. } = &container();
            let done = attach(&router.client, target, &[], &named(None)).await;
            let note = "other hosts do not know its MAC until it sends something: that is too much";
            assert_eq!(done.unwrap().notes, [note]);
            assert!(on_interface(ns).await.is_some());
        });
    }

    #[test]
    fn a_name_that_is_refused_undoes_all() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            router.books().refuse_names = true;
            let Netns { ns, target, .. } = &container();
            let done = attach(&router.client, target, &[], &named(Some("c_1"))).await;
            let error = done.unwrap_err().to_string();
            assert_eq!(error, "the name c_1 is not registered: that is no name");
            assert_eq!(router.bindings(), []);
            assert_eq!((router.held(), on_interface(ns).await), (vec![], None));
        });
    }

    #[test]
    fn a_missing_bridge_undoes_all() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            router.books().network.bridge = "other".to_owned();
            let Netns { ns, target, .. } = &container();
            let done = attach(&router.client, target, &[], &named(None)).await;
            assert!(matches!(done, Err(AttachError::Interface(_))), "{done:?}");
            assert_eq!((router.held(), on_interface(ns).await), (vec![], None));
        });
    }

    #[test]
    fn a_claim_that_is_refused_gives_back_what_was_got_before_it() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            router.books().refuse_claims = true;
            let Netns { ns, target, .. } = &container();
            let wanted = specs(&["net:default", "10.32.7.7/16"]);
            let done = attach(&router.client, target, &wanted, &named(None)).await;
            assert_eq!(
                done.unwrap_err().to_string(),
                "ip:10.32.7.7/16: host2 owns it"
            );
            assert_eq!((router.held(), on_interface(ns).await), (vec![], None));
        });
    }

    #[test]
    fn undoing_a_second_attach_leaves_the_first() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let Netns { ns, target, .. } = &container();
            let first = attach(&router.client, target, &[], &named(Some("c1"))).await;
            let first = first.unwrap().addresses;
            router.books().refuse_names = true;
            let wanted = specs(&["net:default", "net:10.40.0.0/24"]);
            let done = attach(&router.client, target, &wanted, &named(Some("c2"))).await;
            assert!(matches!(done, Err(AttachError::Name { .. })), "{done:?}");
            assert_eq!(router.held(), first);
            assert_eq!(on_interface(ns).await, Some(first));
            assert_eq!(router.names().len(), 1);
        });
    }

    #[test]
    fn a_foreign_interface_of_our_name_is_left_alone() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let Netns { ns, target, .. } = &container();
            let links = weft_net::Netlink::new().unwrap();
            links.add_veth("theirs", IFNAME).await.unwrap();
            links.add_bridge("docker0").await.unwrap();
            links.set_master("theirs", "docker0").await.unwrap();
            links.set_ns(IFNAME, ns).await.unwrap();
            let done = attach(&router.client, target, &[], &named(None)).await;
            assert!(matches!(done, Err(AttachError::Interface(_))), "{done:?}");
            assert_eq!(
                (router.held(), on_interface(ns).await),
                (vec![], Some(vec![]))
            );
        });
    }

    #[test]
    fn the_host_itself_is_not_attached() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let target: Target = "netns:/proc/thread-self/ns/net".parse().unwrap();
            let done = attach(&router.client, &target, &[], &named(None)).await;
            let error = done.unwrap_err().to_string();
            assert!(error.contains("weft expose"), "{error}");
            let gone: Target = "netns:none-such".parse().unwrap();
            let done = attach(&router.client, &gone, &[], &named(None)).await;
            assert!(matches!(done, Err(AttachError::NotRunning(_))), "{done:?}");
        });
    }

    #[test]
    fn what_is_switched_off_is_said() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            router.books().network.pool = None;
            router.books().network.domain = None;
            let Netns { target, .. } = &container();
            let done = attach(&router.client, target, &[], &named(None)).await;
            let error = done.unwrap_err().to_string();
            assert!(
                error.contains("address allocation is switched off"),
                "{error}"
            );
            let done = attach(&router.client, target, &[], &named(Some("c1"))).await;
            assert!(matches!(done, Err(AttachError::NoDns(_))), "{done:?}");
        });
    }

    #[test]
    fn host_ends_have_names_linux_takes_that_differ() {
        let [one, other] = ["c1", "c2"].map(|id| ContainerId::new(id).unwrap());
        let (net, blue) = (NetworkKey::Default, NetworkKey::named("blue").unwrap());
        let name = host_ifname(&one, &net, 1);
        assert_eq!(name.len(), 15);
        assert_eq!(name, host_ifname(&one, &net, 1));
        for another in [
            host_ifname(&other, &net, 1),
            host_ifname(&one, &net, 2),
            host_ifname(&one, &blue, 1),
        ] {
            assert_ne!(name, another);
        }
    }

    #[test]
    fn interfaces_are_called_after_their_networks() {
        let long = "name:a-name-that-is-long";
        for (key, wanted) in [("default", "ethwe"), ("name:blue", "ethwe-blue")] {
            assert_eq!(ifname(&key.parse().unwrap()), wanted);
        }
        let [long, subnet] = [long, "subnet:10.50.0.0/16"].map(|key| ifname(&key.parse().unwrap()));
        assert_eq!((long.len(), subnet.len()), (15, 15));
        assert!(is_ifname("ethwe") && is_ifname(&long) && !is_ifname("ethwe0"));
    }

    #[test]
    fn a_container_is_on_two_networks_unless_they_have_one_subnet() {
        on_a_host(|| async {
            let links = weft_net::Netlink::new().unwrap();
            links.add_bridge("weft-other").await.unwrap();
            let router = FakeRouter::start();
            let Netns { ns, target, .. } = &container();
            let on_blue = AttachOptions {
                network: NetworkKey::named("blue").unwrap(),
                ..AttachOptions::default()
            };
            attach(&router.client, target, &[], &named(None))
                .await
                .unwrap();
            let same = specs(&["10.32.7.7/16"]);
            let refused = attach(&router.client, target, &same, &on_blue).await;
            let said = refused.unwrap_err().to_string();
            assert!(
                said.contains("interface ethwe on another network"),
                "{said}"
            );
            assert_eq!((router.held().len(), router.books().users.len()), (1, 0));

            let apart = specs(&["10.50.0.7/16"]);
            attach(&router.client, target, &apart, &on_blue)
                .await
                .unwrap();
            let views = weft_net::attach::inspect(ns, IFNAME).await.unwrap();
            let names: Vec<_> = views.iter().map(|view| &*view.name).collect();
            assert_eq!(names, ["ethwe", "ethwe-blue"]);
            assert_eq!(router.books().users.len(), 1);

            let taken = crate::detach::detach(&router.client, target, &apart).await;
            assert_eq!(taken.unwrap(), [cidr("10.50.0.7/16")]);
            assert_eq!(router.books().users.len(), 0);
            assert_eq!(on_interface(ns).await.unwrap().len(), 1);
        });
    }
}
