//! The virtual LAN: process number 1 of a lab. Its network namespace holds a bridge and a port for
//! every host; it bears the hosts.
//!
//! It ends when told to, by a kill from outside, or when its *leash* breaks: its standard input is a
//! pipe from the command that brings the lab up, and if that ends before it said `stay`, the lab
//! ends too. With its process number 1 the kernel ends every process of the lab, and with the
//! processes all namespaces, links and mounts: nothing can stay behind, whatever crashed.

use std::io::{self, BufRead};
use std::process::{Stdio, exit};
use std::thread;

use anyhow::Result;
use weft_net::sandbox;

use super::birth::Born;
use super::layout::{Layout, Place};
use super::links::Links;

/// The bridge that is the virtual LAN.
const BRIDGE: &str = "lan";
/// What the leash carries when the lab may outlive the command that brought it up.
pub(crate) const STAY: &str = "stay";

/// Makes the LAN and bears its hosts; returns when all of them are ready.
pub(crate) fn set_up(layout: Layout) -> Result<()> {
    sandbox::cut_off_mounts()?;
    sandbox::mount_proc()?;
    sandbox::mount_sys()?;
    sandbox::set_hostname(&Place::Lan.to_string())?;
    let links = Links::open()?;
    links.loopback()?;
    links.add_bridge(BRIDGE)?;
    let mut hosts = Vec::new();
    for host in layout.hosts() {
        hosts.push(bear(&links, host, layout)?);
    }
    for born in hosts {
        born.ready()?;
    }
    Ok(())
}

fn bear(links: &Links, host: Place, layout: Layout) -> Result<Born> {
    let mut born = Born::bear(host, layout, Stdio::inherit())?;
    let port = host.to_string();
    let far = far_end(host);
    links.add_port(&port, BRIDGE, &far)?;
    links.give_away(&far, born.pid)?;
    born.go()?;
    Ok(born)
}

/// The name a host's link has until the host takes it.
pub(crate) fn far_end(host: Place) -> String {
    format!("{host}-eth0")
}

/// Ends this process, and with it the lab, as soon as the leash breaks.
pub(crate) fn end_with_leash() {
    thread::spawn(|| {
        for line in io::stdin().lock().lines() {
            if line.is_ok_and(|line| line == STAY) {
                return;
            }
        }
        exit(0);
    });
}
