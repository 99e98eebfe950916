//! An emulated host: process number 1 of its own pid namespace, with its own network, mounts, host
//! name, `/etc`, `/run` and `/var/lib`. It bears its containers, and leaves each one's network
//! namespace under its name in `/run/netns`, where `weft attach netns:c1` looks.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use weft_net::sandbox;
use weft_wire::MacAddr;

use super::birth::Born;
use super::furnish::{self, Names};
use super::lan;
use super::layout::{LAN_PREFIX, Layout, Place};
use super::links::Links;

const LINK: &str = "eth0";
/// So many hosts ask for each other's MACs. The kernel has room for 1,024 such answers in all its network
/// namespaces together; hosts of a larger lab know the others from the start.
const ASKING: u16 = 30;

/// Makes the host and its containers; returns when all of them are ready.
pub(crate) fn set_up(number: u16, layout: Layout) -> Result<()> {
    let host = Place::Host(number);
    sandbox::cut_off_mounts()?;
    sandbox::mount_proc()?;
    sandbox::mount_sys()?;
    sandbox::set_hostname(&host.to_string())?;
    let hosts: Vec<_> = layout
        .hosts()
        .filter_map(|peer| Some((peer.address()?, peer.to_string())))
        .collect();
    furnish::host(&Names {
        own: &host.to_string(),
        hosts: &hosts,
        resolver: None,
    })?;
    let links = Links::open()?;
    links.loopback()?;
    if let Some(address) = host.address() {
        links.take(&lan::far_end(host), LINK, address, LAN_PREFIX)?;
        if layout.hosts > ASKING {
            let others = layout.hosts().filter(|other| *other != host);
            let others = others.filter_map(|other| Some((other.address()?, mac(other.address()?))));
            links.introduce(LINK, mac(address), others)?;
        }
    }
    let mut containers = Vec::new();
    for container in layout.containers_of(number) {
        containers.push(bear(container, layout)?);
    }
    for born in containers {
        born.ready()?;
    }
    Ok(())
}

/// The MAC of the host with this address, in a lab where they are known from the start.
fn mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    MacAddr::from_bytes([2, 0, a, b, c, d])
}

fn bear(container: Place, layout: Layout) -> Result<Born> {
    let mut born = Born::bear(container, layout, Stdio::inherit())?;
    let folder = Path::new("/run/netns");
    let file = folder.join(container.to_string());
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    File::create(&file).with_context(|| format!("cannot make {}", file.display()))?;
    sandbox::bind_mount(Path::new(&format!("/proc/{}/ns/net", born.pid)), &file)?;
    born.go()?;
    Ok(born)
}
