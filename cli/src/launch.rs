//! The arguments of `weft launch`, as typed.
//!
//! What can be checked without knowing the host is checked while parsing, so that a mistake is
//! reported with its flag; what the values mean together is the router's `Config`.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the texts are help for people, who read [:PORT] as optional"
)]

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::{fs, io};

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use thiserror::Error;
use weft_api::Cidr;
use weft_wire::{ParsePeerNameError, PeerName};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Start the router on this host
///
/// Returns when the router answers, and prints its peer name. Containers can be attached from then
/// on, whether other peers are reached yet or not. A second router is refused with exit code 3.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Peers to connect to, as HOST[:PORT]; they are dialled until they answer
    #[arg(value_name = "PEER")]
    pub peers: Vec<String>,
    /// Stay in the foreground, log to standard error, tell the service manager when ready
    #[arg(long, env = "WEFT_FOREGROUND", value_parser = FalseyValueParser::new())]
    pub foreground: bool,
    /// Connect to the peers of the last run again
    #[arg(long, env = "WEFT_RESUME", conflicts_with = "peers", value_parser = FalseyValueParser::new())]
    pub resume: bool,
    /// What is logged
    #[arg(
        long,
        env = "WEFT_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: LogLevel,

    /// Who this peer is and who may join it.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Connections to other peers.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Addresses.
    #[command(flatten)]
    pub ipam: IpamArgs,
    /// Names.
    #[command(flatten)]
    pub dns: DnsArgs,
    /// What is used of this host.
    #[command(flatten)]
    pub host: HostArgs,
}

/// Who this peer is and who may join it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Identity")]
pub struct IdentityArgs {
    /// This peer's lasting name, six hex groups; made from its key if not given
    #[arg(long, env = "WEFT_NAME", value_name = "PEERNAME")]
    pub name: Option<PeerName>,
    /// This peer's name for people [default: the host name]
    #[arg(long, env = "WEFT_NICKNAME", value_name = "TEXT")]
    pub nickname: Option<String>,
    /// Name of the cluster; peers of another cluster are refused
    #[arg(
        long,
        env = "WEFT_CLUSTER",
        value_name = "NAME",
        default_value = "weft"
    )]
    pub cluster: String,
    /// The network's password, the same on all peers; `weft password` makes a good one
    ///
    /// Without one, traffic is sealed but anybody may join. On the command line it shows in this
    /// shell's history and, until the router is up, in `ps`: use WEFT_PASSWORD or --password-file.
    #[arg(
        long,
        env = "WEFT_PASSWORD",
        hide_env_values = true,
        value_name = "TEXT"
    )]
    pub password: Option<Password>,
    /// Read the password from the first line of this file; wins over --password
    #[arg(long, env = "WEFT_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Connections to other peers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connections")]
pub struct MeshArgs {
    /// Address to listen on [default: all]
    #[arg(long, env = "WEFT_HOST", value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// Port of control connections (TCP) and frames (UDP)
    #[arg(long, env = "WEFT_PORT", value_name = "PORT", default_value_t = 6783,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Address where others reach this peer, as IP[:PORT]; may be repeated
    ///
    /// For hosts whose own addresses are not what others see, such as behind a forwarded port. Others are
    /// tried after it.
    #[arg(
        long,
        env = "WEFT_ADVERTISE_ADDRESS",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub advertise_address: Vec<Advertised>,
    /// Connect only to the peers given, not to those they know
    #[arg(long, env = "WEFT_NO_DISCOVERY", value_parser = FalseyValueParser::new())]
    pub no_discovery: bool,
    /// How many connections there may be; 0 = one with each peer, however many there are
    ///
    /// With more peers than this, each is connected with a few, chosen so that nobody is far away, and with
    /// those that frames are sent to; the others are reached over these.
    #[arg(long, env = "WEFT_CONN_LIMIT", value_name = "N", default_value_t = 100)]
    pub conn_limit: usize,
    /// Subnets between hosts where frames may go in clear, comma separated
    #[arg(
        long,
        env = "WEFT_TRUSTED_SUBNETS",
        value_name = "CIDR,...",
        value_delimiter = ','
    )]
    pub trusted_subnets: Vec<Cidr>,
    /// Neither tell other peers which MACs are on this host nor believe what they tell
    ///
    /// Frames for containers that have not spoken lately are flooded then, and so is every ARP request.
    #[arg(long, env = "WEFT_NO_MAC_GOSSIP", value_parser = FalseyValueParser::new())]
    pub no_mac_gossip: bool,
    /// Answer no ARP requests and neighbour solicitations for containers of other hosts
    #[arg(long, env = "WEFT_NO_ARP_ANSWERS", value_parser = FalseyValueParser::new())]
    pub no_arp_answers: bool,
    /// Have all frames go sealed through the routers, over trusted subnets too
    #[arg(long, env = "WEFT_NO_FASTDP", value_parser = FalseyValueParser::new())]
    pub no_fastdp: bool,
    /// UDP port at which the kernel takes frames (VXLAN) from peers over trusted subnets
    #[arg(long, env = "WEFT_FASTDP_PORT", value_name = "PORT", default_value_t = 6784,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub fastdp_port: u16,
    /// MTU of the containers' interfaces in bytes, the same on all peers
    #[arg(long, env = "WEFT_MTU", value_name = "BYTES", default_value_t = 1376,
          value_parser = clap::value_parser!(u16).range(576..=65_000))]
    pub mtu: u16,
}

/// Addresses.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Addresses")]
pub struct IpamArgs {
    /// Addresses to give out, the same on all peers; may be repeated: a container gets one of the first range of IPv4 and one of the first of IPv6; "" switches giving out off
    #[arg(
        long,
        env = "WEFT_IPALLOC_RANGE",
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.32.0.0/12"
    )]
    pub ipalloc_range: Vec<OrOff<Cidr>>,
    /// Subnet of addresses that are asked for without one, in the first range of its family [default: the whole range]
    #[arg(long, env = "WEFT_IPALLOC_DEFAULT_SUBNET", value_name = "CIDR")]
    pub ipalloc_default_subnet: Option<Cidr>,
    /// How the range is first divided: consensus[=PEERS], seed=PEERNAME,... or observer
    #[arg(
        long,
        env = "WEFT_IPALLOC_INIT",
        value_name = "HOW",
        default_value = "consensus"
    )]
    pub ipalloc_init: IpallocInit,
}

/// Names.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Names")]
pub struct DnsArgs {
    /// Answer no DNS queries and keep no names
    #[arg(long, env = "WEFT_NO_DNS", value_parser = FalseyValueParser::new())]
    pub no_dns: bool,
    /// Domain the names are in
    #[arg(
        long,
        env = "WEFT_DNS_DOMAIN",
        value_name = "DOMAIN",
        default_value = "weft.local."
    )]
    pub dns_domain: String,
    /// Where the resolver listens, and containers reach it, as IP[:PORT]
    #[arg(
        long,
        env = "WEFT_DNS_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "169.254.67.83:53"
    )]
    pub dns_listen_address: DnsAddress,
}

/// What is used of this host.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "This host")]
pub struct HostArgs {
    /// Name of the bridge that containers are put on
    #[arg(long, env = "WEFT_BRIDGE", value_name = "NAME", default_value = "weft")]
    pub bridge: Ifname,
    /// Name of the router's own port of that bridge
    #[arg(
        long,
        env = "WEFT_TAP",
        value_name = "NAME",
        default_value = "weft-tap"
    )]
    pub tap: Ifname,
    /// Name of the kernel's own way to other hosts, where subnets are trusted
    #[arg(
        long,
        env = "WEFT_VXLAN",
        value_name = "NAME",
        default_value = "weft-vx"
    )]
    pub vxlan: Ifname,
    /// Directory of what survives a restart
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where status and metrics can be read by anybody on this host; "" = nowhere
    #[arg(
        long,
        env = "WEFT_STATUS_ADDR",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:6782"
    )]
    pub status_addr: OrOff<SocketAddr>,
    /// Start no network plugin for Docker
    ///
    /// Where there is Docker, `weft plugin` is started, which makes Docker's network `weft` and goes on
    /// when the router stops.
    #[arg(long, env = "WEFT_NO_PLUGIN", value_parser = FalseyValueParser::new())]
    pub no_plugin: bool,
    /// The plugin's socket; the file's name is what Docker calls the driver
    #[arg(long, env = "WEFT_PLUGIN_SOCKET", value_name = "PATH", default_value = DEFAULT_PLUGIN_SOCKET)]
    pub plugin_socket: PathBuf,
    /// Docker's socket, where the router hears what becomes of containers; "" = it does not ask
    ///
    /// Where there is no Docker this does nothing.
    #[arg(
        long,
        env = "WEFT_DOCKER_SOCKET",
        value_name = "PATH",
        default_value = "/var/run/docker.sock"
    )]
    pub docker_socket: OrOff<PathBuf>,
    /// Start no proxy for Docker's API; `weft env` needs it
    #[arg(long, env = "WEFT_NO_PROXY", value_parser = FalseyValueParser::new())]
    pub no_proxy: bool,
}

impl IdentityArgs {
    /// The password as given, from the file if one is named; none if the network is open.
    ///
    /// # Errors
    /// The file cannot be read, or holds no password.
    pub fn password(&self) -> Result<Option<Password>, PasswordError> {
        let Some(path) = &self.password_file else {
            return Ok(self.password.clone().filter(|p| !p.0.is_empty()));
        };
        let text = fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|source| PasswordError::Read {
            path: path.clone(),
            source,
        })?;
        match text.lines().next().filter(|line| !line.is_empty()) {
            Some(line) => Ok(Some(Password(line.to_owned()))),
            None => Err(PasswordError::Empty { path: path.clone() }),
        }
    }
}

/// Why there is no password in a file that was named.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// The file cannot be read.
    #[error("cannot read the password file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Its first line is empty.
    #[error("the first line of the password file {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A password that does not show in debug output and is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// As typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// What keeps weft from doing its work
    Error,
    /// What somebody should look at
    #[value(alias = "warn")]
    Warning,
    /// What changed: connections, routes, the ring
    Info,
    /// What is needed to find a fault
    Debug,
}

impl LogLevel {
    /// As typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// A value, or none for an empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrOff<T>(pub Option<T>);

impl<T: FromStr> FromStr for OrOff<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|value| Self(Some(value)))
    }
}

/// How the address range is first divided among peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpallocInit {
    /// By a majority of this many peers; none = of the peers given, and ourselves.
    Consensus(Option<usize>),
    /// Evenly among these.
    Seed(Vec<PeerName>),
    /// By others.
    Observer,
}

/// Text that says no such thing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseInitError {
    /// Not one of the three words.
    #[error("{0:?} is none of consensus, consensus=PEERS, seed=PEERNAME,... and observer")]
    Form(String),
    /// The number of peers is none.
    #[error("{0:?} is not a number of peers from 1 on")]
    Count(String),
    /// A seed is no peer name.
    #[error(transparent)]
    Peer(#[from] ParsePeerNameError),
}

impl FromStr for IpallocInit {
    type Err = ParseInitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "consensus" => Ok(Self::Consensus(None)),
            None if text == "observer" => Ok(Self::Observer),
            Some(("consensus", count)) => match count.parse() {
                Ok(count) if count > 0 => Ok(Self::Consensus(Some(count))),
                Ok(_) | Err(_) => Err(ParseInitError::Count(count.to_owned())),
            },
            Some(("seed", names)) => {
                let names: Result<_, _> = names.split(',').map(str::parse).collect();
                Ok(Self::Seed(names?))
            }
            None | Some(_) => Err(ParseInitError::Form(text.to_owned())),
        }
    }
}

/// An address where others reach this peer, and a port unless it is the one it listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertised {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

/// Text that is no address others could reach.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not IP or IP:PORT, [IPv6]:PORT, of a host that others can reach")]
pub struct ParseAdvertisedError(String);

impl FromStr for Advertised {
    type Err = ParseAdvertisedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_port = text.parse::<SocketAddr>().ok();
        let with_port = with_port.map(|addr| (addr.ip(), Some(addr.port())));
        let alone = || text.parse::<IpAddr>().ok().map(|ip| (ip, None));
        let found = with_port.or_else(alone);
        found
            .filter(|(ip, port)| !ip.is_unspecified() && !ip.is_multicast() && *port != Some(0))
            .map(|(ip, port)| Self { ip, port })
            .ok_or_else(|| ParseAdvertisedError(text.to_owned()))
    }
}

/// Where the resolver listens; port 53 unless another is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsAddress(pub SocketAddr);

/// Text that is no such address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not IP or IP:PORT")]
pub struct ParseDnsAddressError(String);

impl FromStr for DnsAddress {
    type Err = ParseDnsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_port = text.parse::<SocketAddr>().ok();
        let alone = || text.parse::<IpAddr>().ok().map(|ip| (ip, 53).into());
        with_port
            .or_else(alone)
            .map(Self)
            .ok_or_else(|| ParseDnsAddressError(text.to_owned()))
    }
}

/// The name of a network interface, as the kernel allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ifname(String);

/// Text that no interface can be called.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not an interface name: 1 to 15 bytes without '/', ':' and blanks")]
pub struct ParseIfnameError(String);

impl Ifname {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Ifname {
    type Err = ParseIfnameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let length = (1..=15).contains(&text.len());
        if !length || text == "." || text == ".." || text.contains(bad) {
            return Err(ParseIfnameError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where state is kept unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/weft";
/// Where dockerd looks for the plugin `weft`.
pub const DEFAULT_PLUGIN_SOCKET: &str = "/run/docker/plugins/weft.sock";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Launch {
        #[command(flatten)]
        args: LaunchArgs,
    }

    fn launch(args: &[&str]) -> Result<LaunchArgs, clap::Error> {
        let args = ["launch"].iter().chain(args);
        Launch::try_parse_from(args).map(|parsed| parsed.args)
    }

    #[test]
    fn nothing_need_be_given() {
        let args = launch(&[]).unwrap();
        assert_eq!(args.mesh.port, 6783);
        assert_eq!(
            args.ipam.ipalloc_range,
            [OrOff(Some("10.32.0.0/12".parse().unwrap()))]
        );
        assert_eq!(args.ipam.ipalloc_init, IpallocInit::Consensus(None));
        assert_eq!(args.dns.dns_listen_address.0.port(), 53);
        assert_eq!(args.host.bridge.as_str(), "weft");
        assert_eq!(args.identity.password().unwrap(), None);
    }

    #[test]
    fn what_is_typed_arrives() {
        let args = launch(&[
            "host1",
            "host2:6800",
            "--name",
            "::1",
            "--ipalloc-range",
            "",
            "--status-addr=",
            "--ipalloc-init=seed=::1,::2",
            "--trusted-subnets",
            "192.168.0.0/16,fd00::/8",
            "--dns-listen-address",
            "10.0.0.1",
            "--log-level=warn",
        ]);
        let args = args.unwrap();
        assert_eq!(args.peers, ["host1", "host2:6800"]);
        assert_eq!(args.identity.name, Some("::1".parse().unwrap()));
        assert_eq!(
            (args.ipam.ipalloc_range, args.host.status_addr.0),
            (vec![OrOff(None)], None)
        );
        let seeds = vec!["::1".parse().unwrap(), "::2".parse().unwrap()];
        assert_eq!(args.ipam.ipalloc_init, IpallocInit::Seed(seeds));
        assert_eq!(args.mesh.trusted_subnets.len(), 2);
        assert_eq!(
            args.dns.dns_listen_address.0,
            "10.0.0.1:53".parse().unwrap()
        );
        assert_eq!(args.log_level, LogLevel::Warning);
    }

    #[test]
    fn ranges_are_given_one_by_one_or_in_one_word() {
        let ranges = ["10.32.0.0/12", "172.30.0.0/16"].map(|range| OrOff(range.parse().ok()));
        let [first, second] = ["10.32.0.0/12", "172.30.0.0/16"];
        for given in [
            &["--ipalloc-range", first, "--ipalloc-range", second][..],
            &["--ipalloc-range", "10.32.0.0/12,172.30.0.0/16"],
        ] {
            assert_eq!(launch(given).unwrap().ipam.ipalloc_range, ranges);
        }
    }

    #[test]
    fn mistakes_name_their_flag() {
        for (args, flag) in [
            (&["--port", "0"][..], "--port"),
            (&["--mtu", "100"], "--mtu"),
            (&["--ipalloc-range", "10.32.0.0"], "--ipalloc-range"),
            (&["--ipalloc-init", "consensus=0"], "--ipalloc-init"),
            (&["--ipalloc-init", "seed="], "--ipalloc-init"),
            (&["--ipalloc-init", "quorum"], "--ipalloc-init"),
            (&["--bridge", "a-name-too-long-for-linux"], "--bridge"),
            (&["--dns-listen-address", "here"], "--dns-listen-address"),
            (&["--name", "host1"], "--name"),
            (&["--resume", "host1"], "--resume"),
        ] {
            let error = launch(args).unwrap_err().to_string();
            assert!(error.contains(flag), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_password_does_not_show_and_can_come_from_a_file() {
        let args = launch(&["--password", "hunter2"]).unwrap();
        assert!(!format!("{args:?}").contains("hunter2"));
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "s3cret\nmore\n").unwrap();
        let path = file.to_str().unwrap();
        let args = launch(&["--password", "hunter2", "--password-file", path]).unwrap();
        let password = args.identity.password().unwrap().unwrap();
        assert_eq!(password.as_str(), "s3cret");
        fs::write(&file, "\n").unwrap();
        assert!(matches!(
            args.identity.password(),
            Err(PasswordError::Empty { .. })
        ));
        fs::remove_file(&file).unwrap();
        assert!(matches!(
            args.identity.password(),
            Err(PasswordError::Read { .. })
        ));
    }
}
