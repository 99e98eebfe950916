//! `weft lab`: a network of many hosts on one machine, to try weft and to test it.
//!
//! Every host is a set of Linux namespaces (network, mounts, process numbers, host name), so its
//! router is a real one that knows nothing of the lab. Hosts hang on a virtual LAN, a bridge in a
//! network namespace of its own; containers are namespaces within a host. It needs no Docker and no
//! tool but this program, and no root where the system gives user namespaces to everybody.
//!
//! ```text
//! weft lab be lan         process number 1: bridge "lan" with ports host1, host2, …; ends with all
//!  +- weft lab be host1   eth0 198.18.0.1, own /run /etc /var/lib; a router runs here
//!  |   +- weft lab be c1  a container, known to its host as netns:c1
//!  +- weft lab be host2
//!      +- weft lab be c2
//! ```
//!
//! Begin with `layout` (what there is), `birth` (how a place comes to be) and `up` (the steps).
//! Everything a lab is made of ends with one process, see `lan`; what is on disk is in `state`.
//!
//! Invariant: this module is entered before any thread or runtime is started, because only a process
//! of one thread can move into a user namespace.

mod birth;
mod container;
mod exec;
mod furnish;
mod host;
mod interrupt;
mod lan;
mod layout;
mod links;
mod matrix;
mod ping;
mod process;
mod running;
mod say;
mod state;
mod status;
mod trial;
mod tun;
mod up;
mod wires;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use self::state::LabName;

/// The domain names of containers are in, as routers have it unless told otherwise.
const DOMAIN: &str = "weft.local";
const DEFAULT_NAME: &str = "default";

/// Emulate a network of several hosts on this machine
///
/// Alone it brings a lab up, shows every container pinging every other by name and the status of a
/// router, and takes the lab down; it succeeds if all pings do.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LabArgs {
    #[command(subcommand)]
    command: Option<LabCommand>,
    #[command(flatten)]
    lab: NameArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    wishes: up::Wishes,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// Which lab, where several are up at once
    #[arg(long, value_name = "LAB", env = "WEFT_LAB", default_value = DEFAULT_NAME)]
    name: LabName,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    Up(trial::UpArgs),
    Down(trial::DownArgs),
    Status(status::StatusArgs),
    Exec(exec::ExecArgs),
    Ping(ping::PingArgs),
    /// Cut two hosts off from each other on the virtual LAN
    Cut(wires::WireArgs),
    /// Undo a cut
    Mend(wires::WireArgs),
    #[command(hide = true)]
    Be(birth::BeArgs),
}

/// Runs `weft lab` and says how it ended: 0 if well, 1 if not, 3 if the lab to bring up is up
/// already; `exec` as its command ended.
pub fn run(args: LabArgs) -> ExitCode {
    let LabArgs {
        command,
        lab,
        json,
        wishes,
    } = args;
    let result = match command {
        None => trial::try_out(&lab.name, &wishes, json),
        Some(LabCommand::Up(args)) => trial::up(&args),
        Some(LabCommand::Down(args)) => succeed(trial::down(&args)),
        Some(LabCommand::Status(args)) => succeed(status::run(&args)),
        Some(LabCommand::Exec(args)) => return exec::run(&args),
        Some(LabCommand::Ping(args)) => ping::run(&args),
        Some(LabCommand::Cut(args)) => succeed(wires::cut(&args)),
        Some(LabCommand::Mend(args)) => succeed(wires::mend(&args)),
        Some(LabCommand::Be(args)) => succeed(birth::be(&args)),
    };
    result.unwrap_or_else(|error| {
        say::progress(&format!("weft lab: {error:#}"));
        ExitCode::FAILURE
    })
}

fn succeed(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        lab: LabArgs,
    }

    fn parse(line: &str) -> Result<LabArgs, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.lab)
    }

    #[test]
    fn alone_it_tries_weft_out_on_three_hosts() {
        let args = parse("lab").unwrap();
        assert!(args.command.is_none() && args.lab.name.is_default());
        assert_eq!(args.wishes.layout.to_string(), "host1 to host3, c1 to c3");
    }

    #[test]
    fn what_follows_two_dashes_is_for_the_routers() {
        let args = parse("lab --hosts 2 -- --mtu 1300").unwrap();
        assert_eq!(args.wishes.launch, ["--mtu", "1300"]);
        let args = parse("lab up --name a -- --no-discovery").unwrap();
        assert!(matches!(args.command, Some(LabCommand::Up(_))));
    }

    #[test]
    fn a_command_to_run_keeps_its_own_arguments() {
        for line in [
            "lab exec host1 ls --json -- x",
            "lab exec host1 -- ls --json -- x",
        ] {
            let Some(LabCommand::Exec(args)) = parse(line).unwrap().command else {
                panic!("{line}")
            };
            assert_eq!(args.command, ["ls", "--json", "--", "x"], "{line}");
        }
    }

    #[test]
    fn what_makes_no_lab_is_refused() {
        for line in [
            "lab --hosts 0",
            "lab --hosts 65",
            "lab up --containers 17",
            "lab up --name a/b",
            "lab --hosts 2 up",
            "lab up --no-router -- --mtu 1300",
            "lab exec host0 true",
            "lab cut host1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
