//! `weft lab status`: what a lab that is up consists of, and how it is.

use anyhow::Result;
use serde::Serialize;
use weft_api::report::{ConnectionState, Report};

use super::layout::Place;
use super::running::Lab;
use super::up::report;
use super::{DOMAIN, NameArgs, say, wires};

/// Show what a lab consists of: hosts, routers, containers, wires that are cut
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Status {
    lab: String,
    pid: u32,
    hosts: Vec<Host>,
    cuts: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
struct Host {
    name: String,
    address: String,
    router: Option<Router>,
    containers: Vec<Container>,
}

#[derive(Debug, Serialize)]
struct Router {
    peer: String,
    established: usize,
    connections: usize,
}

#[derive(Debug, Serialize)]
struct Container {
    name: String,
    addresses: Vec<String>,
}

/// Runs `weft lab status`.
pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let lab = Lab::find(&args.lab.name)?;
    let status = Status {
        lab: args.lab.name.to_string(),
        pid: lab.pid(),
        hosts: lab
            .layout()
            .hosts()
            .map(|place| host(&lab, place))
            .collect(),
        // Without nft nothing can have been cut.
        cuts: wires::cuts(&lab)
            .unwrap_or_default()
            .iter()
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .collect(),
    };
    let text = if args.json {
        serde_json::to_string_pretty(&status)?
    } else {
        describe(&status)
    };
    Ok(say::line(&text)?)
}

fn host(lab: &Lab, place: Place) -> Host {
    let report = report(lab, place).ok();
    let containers = match place {
        Place::Host(number) => lab.layout().containers_of(number).collect(),
        Place::Lan | Place::Container(_) => Vec::new(),
    };
    Host {
        name: place.to_string(),
        address: place
            .address()
            .map(|address| address.to_string())
            .unwrap_or_default(),
        router: report.as_ref().map(router),
        containers: containers
            .into_iter()
            .map(|container| describe_container(container, report.as_ref()))
            .collect(),
    }
}

fn router(report: &Report) -> Router {
    let connections = &report.router.connections;
    let established = connections
        .iter()
        .filter(|connection| connection.state == ConnectionState::Established);
    Router {
        peer: report.router.name.to_string(),
        established: established.count(),
        connections: connections.len(),
    }
}

fn describe_container(container: Place, report: Option<&Report>) -> Container {
    let name = format!("{container}.{DOMAIN}.");
    let entries = report
        .and_then(|report| report.dns.as_ref())
        .map(|dns| dns.entries.as_slice())
        .unwrap_or_default();
    let ours = entries.iter().filter(|entry| entry.name == name);
    Container {
        name: container.to_string(),
        addresses: ours.map(|entry| entry.address.to_string()).collect(),
    }
}

fn describe(status: &Status) -> String {
    let mut lines = vec![format!("lab {} is up (process {})", status.lab, status.pid)];
    for host in &status.hosts {
        let router = match &host.router {
            Some(router) => {
                format!(
                    "router {}, {} of {} connections established",
                    router.peer, router.established, router.connections
                )
            }
            None => "no router".to_owned(),
        };
        lines.push(format!("{:<8} {:<13} {router}", host.name, host.address));
        for container in &host.containers {
            let addresses = if container.addresses.is_empty() {
                "-".to_owned()
            } else {
                container.addresses.join(" ")
            };
            lines.push(format!("  {:<6} {addresses}", container.name));
        }
    }
    for (one, other) in &status.cuts {
        lines.push(format!("cut: {one} and {other}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_shows_hosts_containers_and_cuts() {
        let router = Router {
            peer: "3a:01:02:03:04:05".to_owned(),
            established: 1,
            connections: 2,
        };
        let container = |name: &str, addresses: &[&str]| Container {
            name: name.to_owned(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let host = |name: &str, router, containers| Host {
            name: name.to_owned(),
            address: "198.18.0.1".to_owned(),
            router,
            containers,
        };
        let status = Status {
            lab: "lab".to_owned(),
            pid: 42,
            hosts: vec![
                host("host1", Some(router), vec![container("c1", &["10.32.0.1"])]),
                host("host2", None, vec![container("c2", &[])]),
            ],
            cuts: vec![("host1".to_owned(), "host2".to_owned())],
        };
        let expected = "\
lab lab is up (process 42)
host1    198.18.0.1    router 3a:01:02:03:04:05, 1 of 2 connections established
  c1     10.32.0.1
host2    198.18.0.1    no router
  c2     -
cut: host1 and host2";
        assert_eq!(describe(&status), expected);
    }
}
