//! The arguments of every command but `launch`, as typed.
//!
//! Names and order of arguments are Weave Net's where it has the command. Texts here are the help
//! people read, so they are written for them.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the texts are help for people, who read [:PORT] as optional"
)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use thiserror::Error;
use weft_plugin::{AddressSpec, ParseAddressError, ParseTargetError, Target};
use weft_wire::NetworkKey;

use crate::launch::{DEFAULT_PLUGIN_SOCKET, DEFAULT_STATE_DIR, Ifname};

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// The router's control socket
    #[arg(long, global = true, env = "WEFT_SOCKET", value_name = "PATH",
          default_value = weft_api::routes::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print one JSON value instead of text
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
}

/// Commands that call a running router.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// Stop the router; containers of this host keep talking to each other
    Stop,
    /// Remove all that weft keeps and made on this host
    ///
    /// Hands this peer's addresses to another peer, stops the router, and deletes its state, its key
    /// included, and the bridge. Containers lose the network; the host is a new peer afterwards.
    Reset(ResetArgs),
    /// Print the version of this program, and of the router if that is another
    Version,
    /// Connect to further peers
    ///
    /// Success means that they will be dialled until they answer; `weft status connections` shows how
    /// that goes. They are kept until `weft forget`.
    Connect(ConnectArgs),
    /// Dial peers no more; connections that are there stay
    Forget(ForgetArgs),
    /// Wait until the address range is divided among the peers
    ///
    /// Run it once on a new cluster if the first container must not wait for that.
    Prime,
    /// Take over the addresses of peers that are gone for good
    ///
    /// You vouch that each of these peers is gone for good: that its router, its containers and its state
    /// directory never come back. Its addresses are this peer's from then on, at once, and it is no elector any
    /// more. If it does come back, its containers lose the addresses that were given out again. Without
    /// this the electors take a dead peer over by themselves, a day after they last heard of it.
    Rmpeer(RmpeerArgs),
    /// Put a container on the network, and print its addresses
    ///
    /// It gets an interface `ethwe`. Attaching again adds further addresses.
    #[command(after_help = ADDRESS_HELP, override_usage = "weft attach [OPTIONS] [ADDR]... <TARGET>")]
    Attach(AttachArgs),
    /// Take a container, or some of its addresses, off the network, and print them
    #[command(after_help = ADDRESS_HELP, override_usage = "weft detach [OPTIONS] [ADDR]... <TARGET>")]
    Detach(DetachArgs),
    /// Give the host itself an address on the network, and print it
    #[command(after_help = ADDRESS_HELP, disable_help_flag = true)]
    Expose(ExposeArgs),
    /// Take such an address back, and print it
    #[command(after_help = ADDRESS_HELP)]
    Hide(HideArgs),
    /// List what is on the network on this host: name, MAC, addresses
    Ps(PsArgs),
    /// Give a container or an address a name
    ///
    /// With a container: its addresses [default: all it holds] and its name [default: what Docker calls
    /// it]. Without: addresses outside the network, and --name.
    #[command(disable_help_flag = true)]
    DnsAdd(DnsNameArgs),
    /// Take names away from a container or an address
    ///
    /// Of those given at `dns-add` and by attaching, all go that match; what is left out matches all.
    #[command(disable_help_flag = true)]
    DnsRemove(DnsNameArgs),
    /// Print the addresses of a name, one a line; exit code 4 if there are none
    DnsLookup(DnsLookupArgs),
    /// Print the options that let `docker run` use weft's names: --dns and --dns-search
    DnsArgs,
    /// Have Docker's commands put what they start on the network: `eval $(weft env)`
    ///
    /// Prints what a shell needs to send them through weft's proxy. What they do otherwise stays the
    /// same; -e WEFT_CIDR=none keeps a container off the network.
    Env(EnvArgs),
    /// Make weft known to what runs containers on this host
    #[command(subcommand)]
    Setup(SetupCommand),
    /// Print how the router is, for people
    Status(StatusArgs),
    /// Print everything about the router as JSON
    Report(ReportArgs),
    /// Print a fresh password of 128 bits
    Password,
}

/// Arguments of `reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// Reset even if the router is not running
    ///
    /// Its addresses are not handed over then: run `weft rmpeer` with its name on another peer.
    #[arg(long)]
    pub force: bool,
    /// Give this host an identity of its own, because its state is a copy of another host's
    ///
    /// Nothing is handed over, for key and addresses are the other host's. The state is kept beside where
    /// it was, as cloned-SECONDS.json.
    #[arg(long)]
    pub identity: bool,
    /// Directory of what survives a restart, as given to `weft launch`
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Name of the bridge, as given to `weft launch`
    #[arg(long, env = "WEFT_BRIDGE", value_name = "NAME", default_value = "weft")]
    pub bridge: Ifname,
    /// Name of the router's port of that bridge, as given to `weft launch`
    #[arg(
        long,
        env = "WEFT_TAP",
        value_name = "NAME",
        default_value = "weft-tap"
    )]
    pub tap: Ifname,
    /// Name of the kernel's own way to other hosts
    #[arg(
        long,
        env = "WEFT_VXLAN",
        value_name = "NAME",
        default_value = "weft-vx"
    )]
    pub vxlan: Ifname,
    /// Socket of Docker's network plugin, as given to `weft launch`
    #[arg(long, env = "WEFT_PLUGIN_SOCKET", value_name = "PATH", default_value = DEFAULT_PLUGIN_SOCKET)]
    pub plugin_socket: PathBuf,
}

/// Arguments of `connect`.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Forget all other peers that were given before
    #[arg(long)]
    pub replace: bool,
    /// Peers, as HOST[:PORT]; a host name is looked up anew at every try
    #[arg(value_name = "PEER", required = true)]
    pub peers: Vec<String>,
}

/// Arguments of `forget`.
#[derive(Debug, Clone, Args)]
pub struct ForgetArgs {
    /// Peers, written as they were given to `launch` or `connect`
    #[arg(value_name = "PEER", required = true)]
    pub peers: Vec<String>,
}

/// Arguments of `rmpeer`.
#[derive(Debug, Clone, Args)]
pub struct RmpeerArgs {
    /// Names or nicknames of peers; see `weft status ipam`
    #[arg(value_name = "PEER", required = true)]
    pub peers: Vec<String>,
}

/// Arguments of `attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// Addresses wanted [default: net:default], then the container: Docker name or id, pid:N,
    /// netns:NAME or netns:/PATH
    #[arg(value_name = "ADDR|TARGET", required = true)]
    pub operands: Vec<AddressOrTarget>,
    /// Name it gets [default: what Docker calls it, if it is a Docker container]
    #[arg(short, long, value_name = "FQDN", conflicts_with = "without_dns")]
    pub name: Option<String>,
    /// Network it is put on: a name, or subnet:A.B.C.D/N for one of Docker's known by its subnet. The
    /// interface there is called `ethwe-NAME`
    #[arg(long, value_name = "NAME", value_parser = NetworkKey::typed, default_value = "default")]
    pub network: NetworkKey,
    /// Leave multicast to the container's other interfaces
    #[arg(long)]
    pub no_multicast_route: bool,
    /// Give it neither a name nor a route to the resolver
    #[arg(long)]
    pub without_dns: bool,
}

/// Arguments of `detach`.
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// Addresses to take away [default: net:default, all that are of the default subnet], then the
    /// container: Docker name or id, pid:N, netns:NAME or netns:/PATH; it need not run any more
    #[arg(value_name = "ADDR|TARGET", required = true)]
    pub operands: Vec<AddressOrTarget>,
}

/// Arguments of `expose`.
#[derive(Debug, Clone, Args)]
pub struct ExposeArgs {
    /// Addresses wanted [default: net:default]
    #[arg(value_name = "ADDR")]
    pub addresses: Vec<AddressSpec>,
    /// Name the host gets there
    #[arg(short, short_alias = 'h', long, value_name = "FQDN")]
    pub name: Option<String>,
    /// Do not masquerade traffic between the network and the rest of the world
    #[arg(long)]
    pub without_masquerade: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Arguments of `hide`.
#[derive(Debug, Clone, Args)]
pub struct HideArgs {
    /// Addresses to take back [default: net:default, all that are of the default subnet]
    #[arg(value_name = "ADDR")]
    pub addresses: Vec<AddressSpec>,
}

/// Arguments of `ps`.
#[derive(Debug, Clone, Args)]
pub struct PsArgs {
    /// Containers to show [default: all, and the host as weft:expose]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<Target>,
}

/// Arguments of `dns-add` and `dns-remove`.
#[derive(Debug, Clone, Args)]
pub struct DnsNameArgs {
    /// IP addresses, then the container: Docker name or id, pid:N, netns:NAME or netns:/PATH
    #[arg(value_name = "IP|TARGET", required = true)]
    pub operands: Vec<IpOrTarget>,
    /// The name, with or without the domain
    #[arg(short, short_alias = 'h', long, value_name = "FQDN")]
    pub name: Option<String>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Arguments of `dns-lookup`.
#[derive(Debug, Clone, Args)]
pub struct DnsLookupArgs {
    /// The name, with or without the domain
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Arguments of `env`.
#[derive(Debug, Clone, Args)]
pub struct EnvArgs {
    /// Print what takes it back: `eval $(weft env --restore)`
    #[arg(long)]
    pub restore: bool,
}

/// What `setup` makes weft known to.
#[derive(Debug, Clone, Subcommand)]
pub enum SetupCommand {
    /// Put the runtime `weft` into dockerd's configuration, and have dockerd read it
    ///
    /// From then on `docker run --runtime=weft` puts a container on the network before its first
    /// process runs. Running containers do not notice. The file as it was is kept beside it.
    Docker(SetupDockerArgs),
    /// Have Docker run weft's plugin for networks of a swarm
    ///
    /// On every node of the swarm, once, while the router runs. Then on a manager: `docker network create -d
    /// weft2:latest --ipam-driver weft2:latest --attachable NAME`.
    DockerPlugin(SetupDockerPluginArgs),
}

/// Arguments of `setup docker-plugin`.
#[derive(Debug, Clone, Args)]
pub struct SetupDockerPluginArgs {
    /// Have Docker end and forget it
    #[arg(long)]
    pub undo: bool,
    /// What it is called, on all nodes alike
    #[arg(long, value_name = "NAME", default_value = weft_plugin::managed::NAME)]
    pub name: String,
}

/// Arguments of `setup docker`.
#[derive(Debug, Clone, Args)]
pub struct SetupDockerArgs {
    /// Take it out again
    #[arg(long, conflicts_with = "default_runtime")]
    pub undo: bool,
    /// Make it the runtime of all new containers, where none is named
    #[arg(long)]
    pub default_runtime: bool,
    /// Have all containers ask weft's resolver for names; dockerd reads that when it starts
    #[arg(long, conflicts_with = "undo")]
    pub dns: bool,
    /// dockerd's configuration file
    #[arg(long, value_name = "FILE", default_value = weft_plugin::setup::DAEMON_JSON)]
    pub config: PathBuf,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The part to print in detail [default: an overview]
    #[arg(value_name = "PART")]
    pub part: Option<StatusPart>,
}

/// A part of the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusPart {
    /// Peers we were told to connect to
    Targets,
    /// Connections, and why some are missing
    Connections,
    /// All peers, with their connections
    Peers,
    /// Where each MAC is, how that is known, and the addresses it has
    Macs,
    /// All names
    Dns,
    /// Who owns how many addresses, and what waits for some
    Ipam,
    /// The networks there are, and who uses them
    Networks,
}

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Print this text instead, {{PATH}} replaced by what is there in the JSON
    ///
    /// A path is names and list positions with dots between, such as {{router.name}} or
    /// {{router.peers.0.nickname}}. Text is printed as it is, all else as JSON.
    #[arg(short, long, value_name = "TEXT")]
    pub format: Option<String>,
}

/// An operand of `attach` and `detach`.
///
/// One list for both kinds, because a parser that goes by position cannot tell a lone container from
/// a lone address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressOrTarget {
    /// An address.
    Address(AddressSpec),
    /// A container.
    Target(Target),
}

/// Text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseOperandError {
    /// Meant as an address.
    #[error("{0}")]
    Address(#[from] ParseAddressError),
    /// Meant as a container.
    #[error("{0}")]
    Target(#[from] ParseTargetError),
}

impl FromStr for AddressOrTarget {
    type Err = ParseOperandError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefixed = text.starts_with("ip:") || text.starts_with("net:");
        let addressed = text.contains('/') && !text.starts_with("netns:");
        if prefixed || addressed || text.parse::<IpAddr>().is_ok() {
            return Ok(Self::Address(text.parse()?));
        }
        Ok(Self::Target(text.parse()?))
    }
}

/// An operand of `dns-add` and `dns-remove`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpOrTarget {
    /// An address.
    Ip(IpAddr),
    /// A container.
    Target(Target),
}

impl FromStr for IpOrTarget {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(_) => text.parse().map(Self::Target),
        }
    }
}

const EVERYWHERE: &str = "With every command";
const ADDRESS_HELP: &str = "\
Addresses:
  [ip:]A.B.C.D/N  this address, of a subnet with a prefix of N bits
  net:A.B.C.D/N   any address of this subnet
  net:default     any address of the default subnet";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::LaunchArgs;
    use crate::testing::assert_kept;

    /// One Ethernet for containers on many hosts
    #[derive(Debug, Parser)]
    #[command(name = "weft")]
    struct Weft {
        #[command(flatten)]
        global: GlobalArgs,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, Subcommand)]
    enum Command {
        Launch(Box<LaunchArgs>),
        #[command(flatten)]
        Client(ClientCommand),
    }

    fn parse(args: &str) -> Result<ClientCommand, clap::Error> {
        let args = ["weft"].into_iter().chain(args.split_whitespace());
        match Weft::try_parse_from(args)?.command {
            Command::Client(command) => Ok(command),
            Command::Launch(_) => panic!("launch is no call"),
        }
    }

    #[test]
    fn the_help_texts() {
        // What is in the environment of the one who runs the test is not part of the text.
        let own = |command: clap::Command| {
            let command = command.term_width(100);
            command.mut_args(|arg| arg.hide_env_values(true))
        };
        let mut weft = own(Weft::command());
        weft.build();
        let mut text = weft.render_long_help().to_string();
        for sub in weft
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            text.push_str("\n----------------------------------------\n");
            text.push_str(&own(sub.clone()).render_long_help().to_string());
        }
        assert_kept("help.txt", &text);
    }

    #[test]
    fn addresses_and_containers_are_told_apart() {
        let Ok(ClientCommand::Attach(args)) =
            parse("attach net:default 10.2.1.7/24 --name www.weft.local netns:/run/c1")
        else {
            panic!("attach");
        };
        let address = |text: &str| AddressOrTarget::Address(text.parse().unwrap());
        let target = AddressOrTarget::Target("netns:/run/c1".parse().unwrap());
        let expected = [address("net:default"), address("10.2.1.7/24"), target];
        assert_eq!(args.operands, expected);
        assert_eq!(args.name.as_deref(), Some("www.weft.local"));
    }

    #[test]
    fn a_short_h_gives_a_name_where_weave_net_had_it() {
        let Ok(ClientCommand::Expose(args)) = parse("expose -h gw.weft.local") else {
            panic!("expose");
        };
        assert_eq!(args.name.as_deref(), Some("gw.weft.local"));
        let Ok(ClientCommand::DnsAdd(args)) = parse("dns-add 192.0.2.1 c1 -h db") else {
            panic!("dns-add");
        };
        assert_eq!(args.operands.len(), 2);
        assert_eq!(args.name.as_deref(), Some("db"));
        let help = parse("expose --help").unwrap_err();
        assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
    }

    #[test]
    fn mistakes_are_explained() {
        for (args, said) in [
            ("attach", "TARGET"),
            (
                "attach net:web c1",
                "is not an address with a prefix length",
            ),
            ("attach 10.2.1.7 c1", "has no prefix length"),
            ("attach pid:x", "is not a process number"),
            ("connect", "PEER"),
            (
                "status everything",
                "[possible values: targets, connections, peers, macs, dns, ipam, networks]",
            ),
            ("atach c1", "attach"),
            ("attach c1 --name x --without-dns", "cannot be used with"),
            ("dns-add", "IP|TARGET"),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(said), "{args}: {error}");
        }
    }

    #[test]
    fn json_and_socket_may_stand_anywhere() {
        for args in [
            "weft --json --socket /s status",
            "weft status --json --socket /s",
        ] {
            let weft = Weft::try_parse_from(args.split(' ')).unwrap();
            assert!(weft.global.json);
            assert_eq!(weft.global.socket, PathBuf::from("/s"));
        }
    }
}
