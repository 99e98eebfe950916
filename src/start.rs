//! Puts a router together and runs it: the order in which its parts come up, and why it may fail.
//!
//! What can be refused is refused before anything on the host is touched: arguments, rights, a
//! second router. The control socket comes up last, so that whoever can talk to the router finds it
//! complete.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use weft_cli::LaunchArgs;
use weft_cli::launch::Password;
use weft_dns::NameTable;
use weft_gossip::{Entry, Gossip, PeerInfo};
use weft_ipam::{Init, Pools, PoolsConfig, Rules, Times};
use weft_router::networks::Networks;
use weft_router::{Identity, Psk, Router, Target};
use weft_wire::{NetworkKey, PeerUid};

use crate::config::{Config, Run};
use crate::convert;
use crate::dataplane::{DataPlane, Forwarding};
use crate::event::Input;
use crate::fast::FastPath;
use crate::handback::once_free;
use crate::host::Host;
use crate::machine::Machine;
use crate::node::{Macs, Names, Node, Parts, Persisted, Sources};
use crate::resolver::{Resolver, ResolverConfig};
use crate::state::{Links, PoolState, State, StateError, Store};
use crate::{http, plugin, proxy, streams};

/// Inputs that may wait for the node; a sender waits when there are more.
const MAX_INPUTS: usize = 1024;
/// How long after the start nothing of it goes on any more.
const STARTED: Duration = Duration::from_secs(10);

/// Another router runs here.
#[derive(Debug, thiserror::Error)]
#[error("weft is already running ({0}); you can stop it with `weft stop`")]
pub struct AlreadyRunning(pub String);

/// Runs the router in this process until it is told to stop.
///
/// # Errors
/// Something it needs is wrong, missing or taken; the error says what and what to do.
pub fn run(args: &LaunchArgs, socket: &Path, password: Option<&Password>) -> anyhow::Result<()> {
    if !weft_net::has_net_admin() {
        bail!(
            "weft needs the right to change the network (CAP_NET_ADMIN): run it as root, or give the container `--cap-add NET_ADMIN`"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (node, up) = start(args, socket, password).await?;
        let done = node.run().await;
        up.clean_up();
        done
    })
}

/// What is there only while the router runs.
struct Up {
    socket: PathBuf,
    pid_file: PathBuf,
}

impl Up {
    fn clean_up(&self) {
        for path in [&self.socket, &self.pid_file] {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn start(
    args: &LaunchArgs,
    socket: &Path,
    password: Option<&Password>,
) -> anyhow::Result<(Node, Up)> {
    let started = unix_seconds();
    let (identity, mut persisted) = open_state(&args.host.state_dir, started).await?;
    let generation = generation(started, random_u64()?, persisted.state.generation);
    let run = Run {
        own: identity.peer_name(),
        uid: PeerUid(random_u64()?),
        started,
        password: password.is_some(),
    };
    let config = Config::new(args, socket, run)?;
    let targets = targets(&config, &persisted.state);
    persisted.state.generation = generation;
    persisted.state.stopped_cleanly = false;
    persisted.state.targets = targets.iter().map(ToString::to_string).collect();
    persisted.store.save(&persisted.state)?;

    let (mut host, tap) = Host::set_up(&config, &persisted.state.exposed).await?;
    let networks = networks(&config, &persisted.state, &mut host).await;
    let listen_on = listen_address(config.mesh.host, config.mesh.port);
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let listener = once_free(in_use, || streams::listen(listen_on))
        .await
        .with_context(|| port_taken("TCP", listen_on.port()))?;
    let udp = once_free(in_use, || weft_net::udp::bind_udp(listen_on))
        .await
        .with_context(|| port_taken("UDP", listen_on.port()))?;
    let psk = password
        .map(|password| Psk::derive(password.as_str(), &config.mesh.cluster))
        .transpose()?;
    let (inputs_in, inputs) = mpsc::channel(MAX_INPUTS);

    let now = Instant::now();
    let mut router = Router::new(config.router(identity, psk), random_seed()?, now);
    router.connect(&targets, true, now);
    let ipam = pools(&config, &persisted.state, targets.len(), now)?;
    let names = names(&config, &persisted.state)?;
    let ports = host.ports().await;
    let macs = Macs::restore(
        &config,
        &networks,
        &mut persisted.state,
        ports.as_ref(),
        now,
    );
    let gossip = gossip(&config, generation, &names.table, &macs, &networks)?;
    let fast = FastPath::start(config.fast(), host.netlink(), inputs_in.clone(), now).await;
    let forwarding = Forwarding::empty(config.name, config.dns_address());
    let (data, reports) = DataPlane::start(tap, udp, forwarding, random_u64()? as u32)?;
    let streams = streams::Streams::new(inputs_in.clone(), config.mesh.host);
    tokio::spawn(streams::accept_all(listener, inputs_in.clone()));

    let up = announce(&config, &inputs_in).await?;
    start_plugin(args, socket);
    proxy::keep_running(socket, &args.host);
    info!(name = %config.name, nickname = %config.nickname, port = config.mesh.port, "weft {} is up", config.version);
    tokio::spawn(shed_starting_weight());
    let sources = Sources { inputs, reports };
    let node = Node::new(Parts {
        config,
        persisted,
        router,
        ipam,
        names,
        gossip,
        macs,
        networks,
        host,
        fast,
        streams,
        data,
        sources,
    });
    Ok((node, up))
}

async fn open_state(dir: &Path, now: u64) -> anyhow::Result<(Identity, Persisted)> {
    let held = |error: &_| matches!(error, StateError::Locked(_));
    let store = match once_free(held, || Store::open(dir)).await {
        Err(StateError::Locked(dir)) => {
            return Err(AlreadyRunning(format!("its state is in {}", dir.display())).into());
        }
        opened => opened?,
    };
    let new = || anyhow::Ok(State::new(&Identity::generate(&mut seeded()?)?));
    let (here, mut set_aside) = (Machine::read(), None);
    let mut state = match store.load()? {
        Some(state) if state.machine.as_ref().is_some_and(|m| m.is_another(&here)) => {
            set_aside = Some(store.set_aside(now)?);
            // Where the others are is no secret of the one we were copied from.
            let (targets, stopped_cleanly) = (state.targets, state.stopped_cleanly);
            State {
                targets,
                stopped_cleanly,
                ..new()?
            }
        }
        Some(state) => state,
        None => new()?,
    };
    state.machine = Some(here.or(state.machine.unwrap_or_default()));
    let identity = state.identity().with_context(|| {
        format!(
            "the key in the state directory {} is damaged",
            dir.display()
        )
    })?;
    if let Some(kept) = &set_aside {
        warn!(name = %identity.peer_name(), kept = %kept.display(), "the state is a copy of another host's: this one starts as a new peer");
    }
    Ok((identity, Persisted::new(store, state, set_aside)))
}

/// Whom to dial: what was given, and what was known before if the last run did not end in order or
/// the caller asks for it.
fn targets(config: &Config, state: &State) -> Vec<Target> {
    let mut targets = config.mesh.targets.clone();
    if config.mesh.resume || !state.stopped_cleanly {
        let known = state.targets.iter().filter_map(|text| text.parse().ok());
        for target in known {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
    targets
}

fn pools(config: &Config, state: &State, targets: usize, now: Instant) -> anyhow::Result<Pools> {
    let saved: Result<Vec<_>, _> = state.pools.values().map(PoolState::saved).collect();
    let saved = saved?;
    let settings = PoolsConfig {
        us: config.name,
        pools: config.pools().collect(),
        default_subnets: config
            .ipam
            .as_ref()
            .map_or_else(Vec::new, |ipam| ipam.default_subnets.clone()),
        init: config
            .ipam
            .as_ref()
            .map_or(Init::Observer, |ipam| ipam.init.clone()),
        targets,
        reserved: Vec::new(),
        times: Times::DEFAULT,
        rules: Rules::KEPT,
        uptime: weft_net::uptime(),
    };
    Ok(Pools::new(settings, saved, random_seed()?, now)?)
}

/// The networks this host was in, brought up again. One that cannot be is tried again when somebody
/// uses it anew.
async fn networks(config: &Config, state: &State, host: &mut Host) -> Networks {
    let mut networks = Networks::new();
    let kept = state.networks.iter();
    let kept = kept.filter_map(|(key, kept)| Some((key.parse().ok()?, kept.links.clone()?)));
    let kept: Vec<(NetworkKey, Links)> = kept.collect();
    for (key, _) in &kept {
        // As many were there before.
        let _ = networks.add(config.name, key);
    }
    for (key, links) in kept {
        let number = networks.number(&key).unwrap_or_default();
        if let Err(error) = host.join(&key, number, links).await {
            host.warn(format!("{error:#}"));
            networks.remove(config.name, &key);
        }
    }
    host.renumber(|key| networks.number(key));
    networks
}

fn names(config: &Config, state: &State) -> anyhow::Result<Names> {
    let mut table = NameTable::new(config.name);
    let Some(dns) = &config.dns else {
        let shared = Arc::new(ArcSwap::from_pointee(table.clone()));
        return Ok(Names::new(table, shared, None));
    };
    for saved in &state.names {
        if let Ok(name) = weft_dns::Name::new(&saved.name, &dns.domain) {
            let _ = table.add_own(name, &saved.container, saved.addr);
        }
    }
    let shared = Arc::new(ArcSwap::from_pointee(table.clone()));
    let settings = ResolverConfig {
        listen: dns.listen.clone(),
        domain: dns.domain.clone(),
        ttl: dns.ttl,
        resolv_conf: dns.resolv_conf.clone(),
        fallback_timeout: dns.fallback_timeout,
    };
    let resolver = Resolver::start(settings, shared.clone())?;
    Ok(Names::new(table, shared, Some(resolver)))
}

/// What tells this run from others of our name: greater than before, later if it started later, and another
/// one than a copy of this host has that starts in the same second.
fn generation(started: u64, random: u64, before: u64) -> u64 {
    ((started << 16) | (random & 0xffff)).max(before.saturating_add(1))
}

/// Begins to gossip, with what we say of ourselves from the first moment on.
pub(crate) fn gossip(
    config: &Config,
    generation: u64,
    names: &NameTable,
    macs: &Macs,
    networks: &Networks,
) -> anyhow::Result<Gossip> {
    let info = PeerInfo {
        nickname: config.nickname.clone(),
        uid: config.uid,
        port: config.mesh.port,
        addresses: config.mesh.advertised.clone(),
        mtu: config.mesh.mtu,
        version: config.version.to_owned(),
        started: config.started,
    };
    let own = names.own().map(convert::name_entry);
    let told = config.mesh.mac_gossip.then(|| macs.entries());
    let networks = networks.of(config.name).cloned().map(Entry::Network);
    let initial = [Entry::Peer(info)].into_iter().chain(own).chain(networks);
    let initial = initial.chain(told.into_iter().flatten());
    let now = Instant::now();
    Ok(Gossip::new(
        config.name,
        generation,
        initial.collect(),
        now,
    )?)
}

/// Opens the doors: status address, control socket, pid file, signals; then tells whoever started us.
async fn announce(config: &Config, inputs: &mpsc::Sender<Input>) -> anyhow::Result<Up> {
    if let Some(addr) = config.host.status_addr {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("cannot listen for status requests on {addr}: choose another --status-addr (empty: none)"))?;
        tokio::spawn(http::serve_status(listener, inputs.clone(), addr));
    }
    let socket = config.host.socket.clone();
    let listener = http::listen(&socket)
        .with_context(|| format!("cannot make the control socket {}", socket.display()))?;
    tokio::spawn(http::serve(listener, inputs.clone()));
    let pid_file = socket.with_file_name("weft.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))
        .with_context(|| format!("cannot write {}", pid_file.display()))?;
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let inputs = inputs.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = inputs.send(Input::Stop).await;
            }
        });
    }
    // No service manager is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(Up { socket, pid_file })
}

fn start_plugin(args: &LaunchArgs, socket: &Path) {
    let host = &args.host;
    if host.no_plugin {
        return;
    }
    if plugin::docker_is_here() {
        let (socket, plugin) = (socket.to_owned(), host.plugin_socket.clone());
        plugin::keep_running(socket, plugin, args.log_level);
    } else {
        info!("no Docker on this host: its network plugin is not started; `weft plugin` does it");
    }
}

/// Gives back what of the program only starting has used, once all that begins with it has begun.
async fn shed_starting_weight() {
    tokio::time::sleep(STARTED).await;
    if let Err(error) = weft_net::program::give_back() {
        debug!(%error, "the program's pages stay in memory");
    }
}

fn port_taken(protocol: &str, port: u16) -> String {
    format!(
        "cannot listen on {protocol} port {port}: is another router (or Weave Net) running? Choose another --port on all peers if so"
    )
}

/// Where the router listens when nothing else is said: every address of either family.
fn listen_address(host: Option<IpAddr>, port: u16) -> SocketAddr {
    let any = if has_ipv6() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(host.unwrap_or(any), port)
}

/// Whether the kernel has IPv6 at all.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

fn random_seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|e| anyhow::anyhow!("the kernel gives no random numbers: {e}"))?;
    Ok(seed)
}

fn random_u64() -> anyhow::Result<u64> {
    let [a, b, c, d, e, f, g, h, ..] = random_seed()?;
    Ok(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

fn seeded() -> anyhow::Result<rand_chacha::ChaCha20Rng> {
    use rand_core::SeedableRng;
    Ok(rand_chacha::ChaCha20Rng::from_seed(random_seed()?))
}
