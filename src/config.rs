//! What the router was told, as meant: the arguments of `launch` parsed into meaning, once.
//!
//! Whatever can be found wrong with the arguments alone is found here, before anything on the host
//! is touched. Nothing behind this file sees an argument.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use weft_api::Cidr as ApiCidr;
use weft_cli::LaunchArgs;
use weft_cli::launch::IpallocInit;
use weft_dns::Domain;
use weft_gossip::PeerInfo;
use weft_ipam::{Cidr, Init, MAX_POOLS};
use weft_router::{Identity, ParseTargetError, Psk, Target};
use weft_wire::{Nickname, PeerName, PeerUid};

use crate::convert;
use crate::fast::FastConfig;

/// Seconds an answer of the resolver may be kept; Weave Net's value, so that changes show at once.
const DNS_TTL: u32 = 1;
const DNS_FALLBACK_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Everything about one run of the router that does not change while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) name: PeerName,
    pub(crate) nickname: Nickname,
    pub(crate) uid: PeerUid,
    /// Unix seconds.
    pub(crate) started: u64,
    pub(crate) version: &'static str,
    pub(crate) mesh: MeshConfig,
    pub(crate) ipam: Option<IpamConfig>,
    pub(crate) dns: Option<DnsConfig>,
    pub(crate) host: HostConfig,
}

/// How we connect.
#[derive(Debug, Clone)]
pub(crate) struct MeshConfig {
    pub(crate) cluster: String,
    pub(crate) password: bool,
    pub(crate) host: Option<IpAddr>,
    pub(crate) port: u16,
    /// Where others reach us, as far as the operator says.
    pub(crate) advertised: Vec<SocketAddr>,
    pub(crate) discovery: bool,
    pub(crate) conn_limit: usize,
    pub(crate) trusted: Vec<ApiCidr>,
    /// The port of the fast datapath, unless it is switched off.
    pub(crate) fast_port: Option<u16>,
    pub(crate) mtu: u16,
    /// Whether MACs are told to others, and what others tell is believed.
    pub(crate) mac_gossip: bool,
    /// Whether we answer who has an address, in place of its owner.
    pub(crate) arp_answers: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) resume: bool,
}

/// Which addresses we give out.
#[derive(Debug, Clone)]
pub(crate) struct IpamConfig {
    /// At least one, those of IPv4 first; the first of each family is the default one.
    pub(crate) pools: Vec<Cidr>,
    /// Where containers get their addresses from: one of each family there are pools of, IPv4 first.
    pub(crate) default_subnets: Vec<Cidr>,
    pub(crate) init: Init,
}

/// How we answer questions about names.
#[derive(Debug, Clone)]
pub(crate) struct DnsConfig {
    pub(crate) domain: Domain,
    /// The address containers ask, on every host's bridge.
    pub(crate) address: Ipv4Addr,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) ttl: u32,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) fallback_timeout: Duration,
}

/// What we are called on this host.
#[derive(Debug, Clone)]
pub(crate) struct HostConfig {
    pub(crate) bridge: String,
    pub(crate) tap: String,
    pub(crate) vxlan: String,
    pub(crate) socket: PathBuf,
    pub(crate) status_addr: Option<SocketAddr>,
}

/// Arguments that do not fit each other, or are not what they should be.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Target(#[from] ParseTargetError),
    #[error("--ipalloc-range {range}: {reason}")]
    Range { range: ApiCidr, reason: String },
    #[error("--ipalloc-default-subnet {subnet}: {reason}")]
    DefaultSubnet { subnet: ApiCidr, reason: String },
    #[error(
        "--ipalloc-default-subnet {subnet} and --ipalloc-range {range} have no address in common"
    )]
    Apart { subnet: Cidr, range: Cidr },
    #[error(
        "--ipalloc-default-subnet {0} is of a family that no --ipalloc-range is of: give a range around it"
    )]
    NoRangeFor(Cidr),
    #[error("--ipalloc-range {0} and {1} overlap: give the larger one only")]
    Overlap(Cidr, Cidr),
    #[error(
        "there may be {MAX_POOLS} address ranges in all, some of them made later: give fewer --ipalloc-range"
    )]
    TooMany,
    #[error("--ipalloc-default-subnet without --ipalloc-range: there is nothing to allocate from")]
    NoRange,
    #[error("--dns-domain {0:?}: {1}")]
    Domain(String, String),
    #[error("--fastdp-port {0} is the --port of sealed frames: give another one")]
    SamePort(u16),
    #[error("--dns-listen-address {0}: the bridge carries an IPv4 address only")]
    DnsAddress(IpAddr),
}

/// What is known of this run before the arguments are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// The name that goes with our key.
    pub(crate) own: PeerName,
    pub(crate) uid: PeerUid,
    /// Unix seconds.
    pub(crate) started: u64,
    pub(crate) password: bool,
}

impl Config {
    /// Parses the arguments.
    ///
    /// # Errors
    /// [`ConfigError`], naming the flag.
    pub(crate) fn new(args: &LaunchArgs, socket: &Path, run: Run) -> Result<Self, ConfigError> {
        let nickname = args.identity.nickname.clone().unwrap_or_else(host_name);
        Ok(Self {
            name: args.identity.name.unwrap_or(run.own),
            nickname: Nickname::new(&nickname),
            uid: run.uid,
            started: run.started,
            version: env!("CARGO_PKG_VERSION"),
            mesh: mesh(args, run.password)?,
            ipam: ipam(args)?,
            dns: dns(args)?,
            host: HostConfig {
                bridge: args.host.bridge.as_str().to_owned(),
                tap: args.host.tap.as_str().to_owned(),
                vxlan: args.host.vxlan.as_str().to_owned(),
                socket: socket.to_owned(),
                status_addr: args.host.status_addr.0,
            },
        })
    }

    /// The address pools we were told of, the default one first.
    pub(crate) fn pools(&self) -> impl Iterator<Item = Cidr> {
        self.ipam.iter().flat_map(|ipam| ipam.pools.iter().copied())
    }

    /// The address no ARP packet may speak of across hosts, because every bridge has it.
    pub(crate) fn dns_address(&self) -> Ipv4Addr {
        self.dns
            .as_ref()
            .map_or(Ipv4Addr::UNSPECIFIED, |dns| dns.address)
    }

    /// The fast datapath's part.
    pub(crate) fn fast(&self) -> FastConfig {
        let off = match self.mesh.fast_port {
            None => Some("switched off (--no-fastdp)"),
            Some(_) if !self.mesh.mac_gossip => Some("switched off (--no-mac-gossip)"),
            Some(_) if self.mesh.trusted.is_empty() => Some("no subnet is trusted"),
            Some(_) => None,
        };
        FastConfig {
            port: self.mesh.fast_port.unwrap_or_default(),
            device: self.host.vxlan.clone(),
            bridge: self.host.bridge.clone(),
            off: off.map(str::to_owned),
        }
    }

    /// The router machine's part.
    pub(crate) fn router(&self, identity: Identity, psk: Option<Psk>) -> weft_router::Config {
        weft_router::Config {
            identity,
            name: self.name,
            nickname: self.nickname.clone(),
            uid: self.uid,
            started: self.started,
            psk,
            cluster: self.mesh.cluster.clone(),
            port: self.mesh.port,
            mtu: self.mesh.mtu,
            version: self.version.to_owned(),
            pools: self.pools().map(|pool| pool.to_string()).collect(),
            conn_limit: self.mesh.conn_limit,
            discovery: self.mesh.discovery,
            trusted: self
                .mesh
                .trusted
                .iter()
                .filter_map(|cidr| cidr.to_string().parse().ok())
                .collect(),
            aes: aes_in_hardware(),
        }
    }
}

fn mesh(args: &LaunchArgs, password: bool) -> Result<MeshConfig, ConfigError> {
    let args_mesh = &args.mesh;
    let advertised = args_mesh.advertise_address.iter();
    let advertised = advertised.map(|at| SocketAddr::new(at.ip, at.port.unwrap_or(args_mesh.port)));
    if args_mesh.fastdp_port == args_mesh.port {
        return Err(ConfigError::SamePort(args_mesh.port));
    }
    Ok(MeshConfig {
        advertised: advertised.take(PeerInfo::MAX_ADDRESSES).collect(),
        cluster: args.identity.cluster.clone(),
        password,
        host: args_mesh.host,
        port: args_mesh.port,
        discovery: !args_mesh.no_discovery,
        conn_limit: args_mesh.conn_limit,
        trusted: args_mesh.trusted_subnets.clone(),
        fast_port: (!args_mesh.no_fastdp).then_some(args_mesh.fastdp_port),
        mtu: args_mesh.mtu,
        mac_gossip: !args_mesh.no_mac_gossip,
        arp_answers: !args_mesh.no_arp_answers,
        targets: args
            .peers
            .iter()
            .map(|peer| peer.parse())
            .collect::<Result<_, _>>()?,
        resume: args.resume,
    })
}

fn ipam(args: &LaunchArgs) -> Result<Option<IpamConfig>, ConfigError> {
    let ranges = args.ipam.ipalloc_range.iter().filter_map(|range| range.0);
    let ranges: Vec<ApiCidr> = ranges.collect();
    if ranges.is_empty() {
        return match args.ipam.ipalloc_default_subnet {
            Some(_) => Err(ConfigError::NoRange),
            None => Ok(None),
        };
    }
    let mut pools = Vec::new();
    for range in &ranges {
        pools.push(pool(*range, &pools)?);
    }
    pools.sort_by_key(|pool| pool.is_ipv6());
    let default_subnets = default_subnets(args.ipam.ipalloc_default_subnet, &pools)?;
    let init = match &args.ipam.ipalloc_init {
        IpallocInit::Consensus(count) => Init::Consensus(*count),
        IpallocInit::Seed(peers) => Init::Seed(peers.clone()),
        IpallocInit::Observer => Init::Observer,
    };
    Ok(Some(IpamConfig {
        pools,
        default_subnets,
        init,
    }))
}

/// One more pool beside those there are.
fn pool(range: ApiCidr, pools: &[Cidr]) -> Result<Cidr, ConfigError> {
    let pool = convert::subnet(range).map_err(|failure| ConfigError::Range {
        range,
        reason: failure.error,
    })?;
    if let Some(why) = pool.unfit() {
        let reason = why.to_string();
        return Err(ConfigError::Range { range, reason });
    }
    if let Some(other) = pools.iter().find(|other| other.overlaps(pool)) {
        return Err(ConfigError::Overlap(*other, pool));
    }
    if pools.len() == MAX_POOLS {
        return Err(ConfigError::TooMany);
    }
    Ok(pool)
}

/// Of each family its first pool, or the subnet that was named.
fn default_subnets(named: Option<ApiCidr>, pools: &[Cidr]) -> Result<Vec<Cidr>, ConfigError> {
    let mut subnets = Cidr::first_of_each_family(pools);
    let Some(subnet) = named else {
        return Ok(subnets);
    };
    let named = convert::subnet(subnet).map_err(|failure| ConfigError::DefaultSubnet {
        subnet,
        reason: failure.error,
    })?;
    let of_family = |pool: &&mut Cidr| pool.is_ipv6() == named.is_ipv6();
    let Some(pool) = subnets.iter_mut().find(of_family) else {
        return Err(ConfigError::NoRangeFor(named));
    };
    if !pool.overlaps(named) {
        let (subnet, range) = (named, *pool);
        return Err(ConfigError::Apart { subnet, range });
    }
    *pool = named;
    Ok(subnets)
}

fn dns(args: &LaunchArgs) -> Result<Option<DnsConfig>, ConfigError> {
    if args.dns.no_dns {
        return Ok(None);
    }
    let text = &args.dns.dns_domain;
    let domain = text
        .parse::<Domain>()
        .map_err(|e| ConfigError::Domain(text.clone(), e.to_string()))?;
    let listen = args.dns.dns_listen_address.0;
    let IpAddr::V4(address) = listen.ip() else {
        return Err(ConfigError::DnsAddress(listen.ip()));
    };
    Ok(Some(DnsConfig {
        domain,
        address,
        listen: vec![listen],
        ttl: DNS_TTL,
        resolv_conf: RESOLV_CONF.into(),
        fallback_timeout: DNS_FALLBACK_TIMEOUT,
    }))
}

/// What the host calls itself.
fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether AES-256-GCM is faster here than ChaCha20-Poly1305, which needs no help of the processor.
fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
