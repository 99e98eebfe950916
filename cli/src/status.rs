//! The text of `weft status` and its parts: pure functions of the report.
//!
//! Labels, columns and words are Weave Net's where it has them, since scripts cut them apart; what
//! weft says beyond that stands in lines or behind columns of its own.

use std::fmt::{Display, Write};

use weft_api::ContainerId;
use weft_api::report::{
    Connection, ConnectionState, Dns, Encryption, Ipam, Link, Mac, Network, Peer, Reach, Reclaim,
    Report, Router,
};
use weft_plugin::Target;
use weft_wire::NetworkKey;

use crate::output::Paint;

/// The overview, with an empty line around it.
pub fn overview(report: &Report, paint: Paint) -> String {
    let mut text = Lines::default();
    text.blank();
    text.line("Version", &report.version);
    router(&mut text, &report.router, paint);
    for ipam in report.all_pools() {
        ipam_section(&mut text, ipam, paint);
    }
    if let Some(dns) = &report.dns {
        dns_section(&mut text, dns);
    }
    text.blank();
    text.line("Service", "network");
    text.line("Bridge", &report.network.bridge);
    text.line("MTU", report.network.mtu);
    if !report.warnings.is_empty() {
        text.blank();
    }
    for warning in &report.warnings {
        text.line("Warning", paint.fair(warning));
    }
    text.blank();
    text.0
}

/// One target a line, as it was given.
pub fn targets(targets: &[String]) -> String {
    lines(targets.iter().cloned())
}

/// One connection a line.
pub fn connections(connections: &[Connection], paint: Paint) -> String {
    lines(connections.iter().map(|c| connection(c, paint)))
}

/// Each peer, and under it its connections.
pub fn peers(peers: &[Peer], paint: Paint) -> String {
    let mut text = String::new();
    for peer in peers {
        let links = peer
            .links
            .iter()
            .map(|link| format!("   {}", self::link(link)));
        text.push_str(&head(peer, peers, paint));
        text.push('\n');
        text.push_str(&lines(links));
    }
    text
}

/// One MAC a line: where it is, how that is known, seconds since it was seen, its addresses.
pub fn macs(macs: &[Mac]) -> String {
    lines(macs.iter().map(|entry| {
        let who = named(&entry.peer, &entry.nickname);
        let age = format!("{}s", entry.age_s);
        let addresses = entry.addresses.iter().map(ToString::to_string);
        let addresses = addresses.collect::<Vec<_>>().join(" ");
        let line = format!(
            "{} {who:<37} {:<10} {age:>5} {addresses}",
            entry.mac, entry.known
        );
        line.trim_end().to_owned()
    }))
}

/// One record a line: name without the domain, address, container, origin.
pub fn names(dns: &Dns) -> String {
    let domain = format!(".{}", dns.domain);
    lines(dns.entries.iter().map(|entry| {
        let name = entry.name.strip_suffix(&domain).unwrap_or(&entry.name);
        let address = entry.address.to_string();
        let container = entry.container.short();
        format!("{name:<12} {address:<15} {container:<12} {}", entry.origin)
    }))
}

/// One network a line: key, number on the wire, bridge on this host, who uses it.
pub fn networks(networks: &[Network]) -> String {
    lines(networks.iter().map(|network| {
        let key = network.key.to_string();
        let bridge = network.bridge.as_deref().unwrap_or("-");
        let number = network.number;
        let peers = match network.key {
            NetworkKey::Default => "all peers".to_owned(),
            NetworkKey::Name(_) | NetworkKey::Subnet(..) | NetworkKey::Swarm(_) => {
                format!("{} peers", network.peers.len())
            }
        };
        let users = network.users.len();
        format!("{key:<28} {number:>8} {bridge:<15} {users} users here, {peers}")
    }))
}

/// Each pool's owners and what waits there; a pool that is not the default one below its own name.
pub fn pools(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    for ipam in report.all_pools() {
        if report.ipam.as_ref() != Some(ipam) {
            let _ = writeln!(text, "{}: {}", ipam.range, ipam.status);
        }
        text.push_str(&addresses(ipam, paint));
    }
    text
}

/// Each owner's share, then what waits, then what is in conflict.
pub fn addresses(ipam: &Ipam, paint: Paint) -> String {
    let owners = ipam.owners.iter().enumerate().map(|(i, owner)| {
        let who = named(&owner.peer, &owner.nickname);
        let share = percent(owner.permille);
        let info = match (i, owner.reachable) {
            (0, _) => format!("({} active)", ipam.active),
            (_, true) => String::new(),
            (_, false) => paint.bad("- unreachable!"),
        };
        let count = count(owner.addresses);
        let line = format!("{who:<37} {count:>8} IPs ({share} of total) {info}");
        line.trim_end().to_owned()
    });
    let pending = ipam.pending.iter().map(|pending| {
        let label = paint.fair("pending:");
        let who = pending.container.short();
        format!(
            "{label} {who} wants {}: {}",
            pending.wants, pending.waits_for
        )
    });
    let conflicts = ipam.conflicts.iter().map(|conflict| {
        let label = paint.bad("conflict:");
        let (who, cidr) = (conflict.container.short(), conflict.cidr);
        let holder = named(&conflict.holder, &conflict.nickname);
        let remedy = new_address(&conflict.container, &cidr);
        format!("{label} {who} is cut off, its address {cidr} belongs to a container at {holder}: {remedy}")
    });
    let electors = electors(ipam, paint).into_iter();
    let reclaims = ipam.reclaims.iter().map(|gone| reclaim(gone, paint));
    lines(
        owners
            .chain(pending)
            .chain(conflicts)
            .chain(electors)
            .chain(reclaims),
    )
}

/// Who decides about dead peers, and whether enough of them know what this peer owns.
fn electors(ipam: &Ipam, paint: Paint) -> Vec<String> {
    if ipam.electors.is_empty() {
        return Vec::new();
    }
    let electors = ipam.electors.iter().map(|elector| {
        let who = named(&elector.peer, &elector.nickname);
        match (elector.reachable, elector.refuses, elector.acked_s) {
            (false, _, _) => format!("{who} {}", paint.bad("unreachable")),
            (true, true, _) => format!("{who} {}", paint.bad("refuses")),
            (true, false, Some(age)) => format!("{who} acknowledged {} ago", span(age)),
            (true, false, None) => who,
        }
    });
    let electors: Vec<String> = electors.collect();
    let mut text = vec![format!("electors: {}", electors.join(", "))];
    if ipam.fenced {
        let fence = "fenced: too few electors acknowledged what this peer owns, so it gives out no new \
                     address (`weft rmpeer` for electors that are gone for good)";
        text.push(paint.fair(fence));
    }
    text
}

fn reclaim(reclaim: &Reclaim, paint: Paint) -> String {
    let who = named(&reclaim.peer, &reclaim.nickname);
    let label = paint.fair("reclaim:");
    let silent = span(reclaim.silent_s);
    let when = match (reclaim.quorum, reclaim.left_s) {
        (true, 0) => "its addresses are being taken over".to_owned(),
        (true, left) => format!("its addresses are taken over in {}", span(left)),
        (false, _) => {
            "too few electors are here to take it over: `weft rmpeer` if it is gone for good"
                .to_owned()
        }
    };
    format!("{label} {who} silent for {silent}, {when}")
}

/// A time in its two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{}s", seconds % 60),
        (_, _) => format!("{hours}h{}m", minutes % 60),
    }
}

fn router(text: &mut Lines, router: &Router, paint: Paint) {
    let discovery = if router.discovery {
        "enabled"
    } else {
        "disabled"
    };
    let encryption = match router.encryption {
        Encryption::Enabled => router.encryption.to_string(),
        Encryption::Open => paint.bad(&router.encryption.to_string()),
    };
    text.blank();
    text.line("Service", "router");
    text.line("Protocol", &router.protocol);
    text.line("Name", named(&router.name, &router.nickname));
    text.line("Encryption", encryption);
    text.line("Cluster", &router.cluster);
    text.line("PeerDiscovery", discovery);
    text.line("Targets", router.targets.len());
    text.line("Connections", counted_connections(&router.connections));
    text.line("Peers", counted_peers(&router.peers));
    text.line("TrustedSubnets", or_none(&router.trusted_subnets));
}

fn ipam_section(text: &mut Lines, ipam: &Ipam, paint: Paint) {
    text.blank();
    text.line("Service", "ipam");
    text.line("Status", &ipam.status);
    text.line("Range", ipam.range);
    text.line("DefaultSubnet", ipam.default_subnet);
    if !ipam.pending.is_empty() {
        let pending = format!("{} (see `weft status ipam`)", ipam.pending.len());
        text.line("Pending", paint.fair(&pending));
    }
    if !ipam.conflicts.is_empty() {
        let conflicts = format!("{} (see `weft status ipam`)", ipam.conflicts.len());
        text.line("Conflicts", paint.bad(&conflicts));
    }
}

fn dns_section(text: &mut Lines, dns: &Dns) {
    let upstream: Vec<String> = dns.upstream.iter().map(server).collect();
    text.blank();
    text.line("Service", "dns");
    text.line("Domain", &dns.domain);
    text.line("Address", or_none(&dns.addresses));
    text.line("Upstream", or_none(&upstream));
    text.line("TTL", dns.ttl);
    text.line("Entries", dns.entries.len());
}

/// A server of the usual port is its address alone.
fn server(addr: &std::net::SocketAddr) -> String {
    if addr.port() == 53 {
        addr.ip().to_string()
    } else {
        addr.to_string()
    }
}

/// `3 (2 established, 1 failed)`; what there is none of is left out.
fn counted_connections(connections: &[Connection]) -> String {
    let count = |state| connections.iter().filter(|c| c.state == state).count();
    let counts = ConnectionState::ALL.map(|state| (count(state), state));
    let counts = counts.iter().filter(|(n, _)| *n > 0);
    let counts: Vec<String> = counts.map(|(n, state)| format!("{n} {state}")).collect();
    if counts.is_empty() {
        return "0".to_owned();
    }
    format!("{} ({})", connections.len(), counts.join(", "))
}

/// `3 (with 6 established, 1 pending connections)`, counted over all peers' own words.
fn counted_peers(peers: &[Peer]) -> String {
    let links = || peers.iter().flat_map(|peer| &peer.links);
    let established = links().filter(|link| link.established).count();
    let pending = links().count() - established;
    let counts = [(established, "established"), (pending, "pending")];
    let counts = counts.iter().filter(|(n, _)| *n > 0);
    let counts: Vec<String> = counts.map(|(n, word)| format!("{n} {word}")).collect();
    if counts.is_empty() {
        return peers.len().to_string();
    }
    format!("{} (with {} connections)", peers.len(), counts.join(", "))
}

fn connection(connection: &Connection, paint: Paint) -> String {
    let arrow = arrow(connection.outbound);
    let padded = format!("{:<11}", connection.state);
    let state = match connection.state {
        ConnectionState::Established => paint.good(&padded),
        ConnectionState::Pending | ConnectionState::Connecting => paint.fair(&padded),
        ConnectionState::Failed | ConnectionState::Retrying => paint.bad(&padded),
    };
    let info = match connection.state {
        ConnectionState::Established | ConnectionState::Pending => live(connection),
        ConnectionState::Failed | ConnectionState::Retrying => ended(connection),
        ConnectionState::Connecting => connection.info.clone(),
    };
    let line = format!("{arrow} {:<21} {state} {info}", connection.address);
    line.trim_end().to_owned()
}

/// `encrypted   udp    name(nickname) mtu=1376 rtt=0.4ms cipher=aes-256-gcm`
fn live(connection: &Connection) -> String {
    let mut text = String::new();
    // Before there are keys nothing can be said of either.
    let carries =
        connection.state == ConnectionState::Established || connection.encrypted.is_some();
    if let Some(overlay) = connection.overlay.filter(|_| carries) {
        let sealed = if connection.encrypted.is_some() {
            "encrypted"
        } else {
            "unencrypted"
        };
        text.push_str(&format!("{sealed:<11} {overlay:<6} "));
    }
    if let Some(peer) = &connection.peer {
        text.push_str(&named(
            peer,
            connection.nickname.as_deref().unwrap_or_default(),
        ));
    }
    if let Some(mtu) = connection.mtu {
        text.push_str(&format!(" mtu={mtu}"));
    }
    if let Some(rtt) = connection.rtt_us {
        text.push_str(&format!(" rtt={}.{:03}ms", rtt / 1000, rtt % 1000));
    }
    if let Some(suite) = connection.encrypted {
        text.push_str(&format!(" cipher={suite}"));
    }
    if !connection.info.is_empty() {
        text.push_str(&format!(" {}", connection.info));
    }
    text.trim_start().to_owned()
}

/// Why it ended, whose it was, and when it is tried again.
fn ended(connection: &Connection) -> String {
    let retry = match (connection.retry_in_s, connection.outbound, connection.state) {
        (Some(seconds), _, _) => format!(", retry: in {seconds}s"),
        (None, true, ConnectionState::Failed) => ", retry: never".to_owned(),
        // It is being dialled just now.
        (None, true, _) => ", retry: now".to_owned(),
        // Whoever dialled us may come back; we do not know where it is.
        (None, false, _) => String::new(),
    };
    let peer = connection.peer.as_ref();
    let peer = peer.map(|peer| named(peer, connection.nickname.as_deref().unwrap_or_default()));
    let peer = peer.map(|peer| format!("{peer} ")).unwrap_or_default();
    format!("{peer}{}{retry}", connection.info)
}

fn head(peer: &Peer, peers: &[Peer], paint: Paint) -> String {
    let who = named(&peer.name, &peer.nickname);
    match peer.reachable {
        Reach::Us | Reach::Direct => who,
        Reach::Via(hop) => {
            let known = peers.iter().find(|peer| peer.name == hop);
            let nickname = known.map(|peer| peer.nickname.as_str()).unwrap_or_default();
            format!("{who} via {}", named(&hop, nickname))
        }
        Reach::Unreachable => format!("{who} {}", paint.bad("unreachable")),
    }
}

fn link(link: &Link) -> String {
    let arrow = arrow(link.outbound);
    let who = named(&link.peer, &link.nickname);
    let state = if link.established {
        "established"
    } else {
        "pending"
    };
    format!("{arrow} {:<21} {who:<37} {state}", link.address)
}

const fn arrow(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

fn named(peer: &impl Display, nickname: &str) -> String {
    format!("{peer}({nickname})")
}

/// How a container whose address went to another gets one of its own.
fn new_address(container: &ContainerId, cidr: &impl Display) -> String {
    if container.as_str() == ContainerId::EXPOSE {
        return format!("weft hide {cidr}; weft expose");
    }
    match Target::of_id(container) {
        Some(target) => format!("weft detach {cidr} {target}; weft attach {target}"),
        None => format!("free {cidr} of {container}"),
    }
}

/// A share with one digit behind the point, as Weave Net printed it: `05.3%`.
fn percent(permille: u16) -> String {
    format!("{:02}.{}%", permille / 10, permille % 10)
}

/// A number of addresses: of more than anybody counts, such as there are in IPv6 ranges, how large it is.
/// The router says no more than there are in 64 bits.
pub(crate) fn count(addresses: u64) -> String {
    match addresses {
        u64::MAX => "2^64+".to_owned(),
        0..1_000_000_000_000 => addresses.to_string(),
        _ => format!("{:.2e}", addresses as f64),
    }
}

fn or_none<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Labelled lines, the labels ending in one column.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, label: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{label:>LABEL$}: {value}");
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }
}

/// The longest label, `TrustedSubnets`, and the blank Weave Net put before it.
const LABEL: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_kept, busy, fresh};

    #[test]
    fn the_overview_of_a_fresh_router() {
        assert_kept("status-fresh.txt", &overview(&fresh(), Paint::Plain));
    }

    #[test]
    fn the_overview_of_a_busy_router() {
        assert_kept("status-busy.txt", &overview(&busy(), Paint::Plain));
    }

    #[test]
    fn the_parts_of_a_busy_router() {
        let Report {
            router, ipam, dns, ..
        } = busy();
        assert_kept("status-targets.txt", &targets(&router.targets));
        let shown = connections(&router.connections, Paint::Plain);
        assert_kept("status-connections.txt", &shown);
        assert_kept("status-peers.txt", &peers(&router.peers, Paint::Plain));
        assert_kept("status-macs.txt", &macs(&router.macs));
        assert_kept("status-ipam.txt", &addresses(&ipam.unwrap(), Paint::Plain));
        assert_kept("status-dns.txt", &names(&dns.unwrap()));
    }

    #[test]
    fn colour_adds_marks_and_nothing_else() {
        let report = busy();
        let coloured = overview(&report, Paint::Colour)
            + &connections(&report.router.connections, Paint::Colour)
            + &peers(&report.router.peers, Paint::Colour);
        let plain = overview(&report, Paint::Plain)
            + &connections(&report.router.connections, Paint::Plain)
            + &peers(&report.router.peers, Paint::Plain);
        assert_ne!(coloured, plain);
        let mut bare = coloured;
        for mark in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
            bare = bare.replace(mark, "");
        }
        assert_eq!(bare, plain);
    }

    #[test]
    fn shares_have_one_digit_and_large_numbers_three() {
        assert_eq!(percent(333), "33.3%");
        assert_eq!(percent(1000), "100.0%");
        assert_eq!(percent(50), "05.0%");
        assert_eq!(percent(0), "00.0%");
        assert_eq!(count(1 << 32), "4294967296");
        assert_eq!(count(1 << 63), "9.22e18");
        assert_eq!(count(u64::MAX), "2^64+");
    }
}
