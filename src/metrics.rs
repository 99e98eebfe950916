//! What Prometheus is told: every metric's name, help and labels in one table.
//!
//! The numbers are read when somebody asks, from the same report that `weft status` shows and from
//! the data plane's counters; nothing is counted twice, and the hot path knows nothing of this file.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use weft_api::Report;
use weft_api::report::{ConnectionState, Ipam, Known, Overlay, Reach};

use crate::dataplane::Counters;
use crate::node::fast::Changes;
use crate::resolver::Outcome;

type Labels = Vec<(&'static str, String)>;

/// What is counted outside of the report.
pub(crate) struct Counts<'a> {
    pub(crate) data: &'a Counters,
    /// Connections that ended after they were established.
    pub(crate) terminations: u64,
    /// Pieces of relayed connections that neighbours sent too many of.
    pub(crate) relayed_dropped: u64,
    pub(crate) gossip: weft_gossip::Counters,
    /// Peers and words of theirs that there was no room for, by which bound.
    pub(crate) left_out: [(&'static str, u64); 3],
    /// How often frames to a peer began to be carried by somebody else.
    pub(crate) carriers: Changes,
    /// How DNS queries ended; none without a resolver.
    pub(crate) queries: Vec<(Outcome, u64)>,
}

/// All metrics in OpenMetrics text.
pub(crate) fn render(report: &Report, counts: &Counts<'_>) -> String {
    let mut registry = Registry::with_prefix("weft");
    mesh(&mut registry, report, counts.terminations);
    counter(
        &mut registry,
        "relayed_dropped",
        "Pieces of control connections between others that were not handed on, because too many came",
        counts.relayed_dropped,
    );
    gossip(&mut registry, &counts.gossip, counts.left_out);
    fastdp(&mut registry, report, counts.carriers);
    data_path(&mut registry, counts.data);
    services(&mut registry, report);
    let queries = counts
        .queries
        .iter()
        .map(|(outcome, count)| (outcome.label(), *count));
    by_label(
        &mut registry,
        "dns_queries",
        "DNS queries, by how they ended",
        "outcome",
        queries,
    );
    process(&mut registry);
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        // Writing to a String does not fail; should it ever, say so rather than show half a page.
        text.clear();
        let _ = text.write_str("# EOF\n");
    }
    text
}

fn mesh(registry: &mut Registry, report: &Report, terminations: u64) {
    let connections = Family::<Labels, Gauge>::default();
    for state in ConnectionState::ALL {
        let count = report
            .router
            .connections
            .iter()
            .filter(|c| c.state == state)
            .count();
        connections
            .get_or_create(&vec![("state", state.to_string())])
            .set(number(count));
    }
    registry.register(
        "connections",
        "Connections to other peers by state",
        connections,
    );
    counter(
        registry,
        "connection_terminations",
        "Connections that ended after they were established",
        terminations,
    );
    let peers = Family::<Labels, Gauge>::default();
    for (label, reachable) in [("reachable", true), ("unreachable", false)] {
        let is = |reach: Reach| (reach != Reach::Unreachable) == reachable;
        let count = report
            .router
            .peers
            .iter()
            .filter(|p| is(p.reachable))
            .count();
        peers
            .get_or_create(&vec![("state", label.to_owned())])
            .set(number(count));
    }
    registry.register("peers", "Known peers, ourselves among them", peers);
    let macs = Family::<Labels, Gauge>::default();
    for known in Known::ALL {
        let count = report.router.macs.iter().filter(|m| m.known == known);
        macs.get_or_create(&vec![("known", known.to_string())])
            .set(number(count.count()));
    }
    registry.register(
        "macs",
        "Entries of the MAC table, by how they are known",
        macs,
    );
    gauge(
        registry,
        "warnings",
        "Things somebody should look at, as `weft status` lists them",
        report.warnings.len(),
    );
}

fn gossip(
    registry: &mut Registry,
    counters: &weft_gossip::Counters,
    beyond: [(&'static str, u64); 3],
) {
    counter(
        registry,
        "gossip_sent_bytes",
        "Bytes of gossip messages to neighbours",
        counters.bytes,
    );
    let messages = [
        ("sent", counters.sent),
        ("received", counters.received),
        ("throttled", counters.throttled),
        ("undecodable", counters.undecodable),
    ];
    by_label(
        registry,
        "gossip_messages",
        "Gossip messages, by what became of them",
        "outcome",
        messages.into_iter(),
    );
    let left_out = [("refused", counters.refused), ("ignored", counters.ignored)];
    by_label(
        registry,
        "gossip_entries_left_out",
        "Parts of gossip not taken over, by why",
        "reason",
        left_out.into_iter().chain(beyond),
    );
}

fn fastdp(registry: &mut Registry, report: &Report, changes: Changes) {
    let connections = report.router.connections.iter();
    gauge(
        registry,
        "fastdp_connections",
        "Connections whose frames the kernel carries",
        connections
            .filter(|c| c.overlay == Some(Overlay::Fastdp))
            .count(),
    );
    by_label(
        registry,
        "carrier_changes",
        "Times that frames to a peer began to go by the kernel, or sealed again, by which of the two",
        "carrier",
        [("fastdp", changes.to_kernel), ("sealed", changes.to_router)].into_iter(),
    );
}

fn data_path(registry: &mut Registry, counters: &Counters) {
    let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
    for (name, help, value) in [
        (
            "frames_captured",
            "Frames taken from local containers",
            &counters.frames_captured,
        ),
        (
            "frames_injected",
            "Frames given to local containers",
            &counters.frames_injected,
        ),
        (
            "frames_relayed",
            "Frames passed on for other peers",
            &counters.frames_relayed,
        ),
        (
            "questions_answered",
            "ARP requests and neighbour solicitations answered for containers of other hosts",
            &counters.questions_answered,
        ),
        (
            "datagrams_sent",
            "Sealed datagrams sent",
            &counters.datagrams_sent,
        ),
        (
            "datagrams_received",
            "Datagrams received, whatever was in them",
            &counters.datagrams_received,
        ),
        (
            "frames_split",
            "Frames that went in pieces, being too long for a path",
            &counters.frames_split,
        ),
        (
            "frames_joined",
            "Frames that came in pieces",
            &counters.frames_joined,
        ),
        (
            "trains_refused",
            "Times datagrams meant for one system call had to be sent one by one",
            &counters.trains_refused,
        ),
    ] {
        counter(registry, name, help, read(value));
    }
    for (name, help, value) in [
        (
            "captured",
            "Bytes of frames taken from local containers",
            &counters.bytes_captured,
        ),
        (
            "injected",
            "Bytes of frames given to local containers",
            &counters.bytes_injected,
        ),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, ConstCounter::new(read(value)));
    }
    let drops = counters
        .drops()
        .map(|(reason, count)| (reason.label(), count));
    by_label(
        registry,
        "drops",
        "Frames and datagrams dropped, by reason",
        "reason",
        drops,
    );
}

/// One counter for each value of one label.
fn by_label<'a>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    counts: impl Iterator<Item = (&'a str, u64)>,
) {
    let family = Family::<Labels, Counter>::default();
    for (value, count) in counts {
        family
            .get_or_create(&vec![(label, value.to_owned())])
            .inc_by(count);
    }
    registry.register(name, help, family);
}

fn services(registry: &mut Registry, report: &Report) {
    if report.all_pools().next().is_some() {
        let sum = |of: fn(&Ipam) -> u64| {
            let all = report.all_pools().map(of).sum::<u64>();
            usize::try_from(all).unwrap_or(usize::MAX)
        };
        gauge(
            registry,
            "ipam_active_addresses",
            "Addresses given to containers of this host",
            sum(|ipam| ipam.active),
        );
        gauge(
            registry,
            "ipam_pending_requests",
            "Address requests that wait",
            sum(|ipam| ipam.pending.len() as u64),
        );
        gauge(
            registry,
            "ipam_conflicts",
            "Containers cut off because another holds their address",
            sum(|ipam| ipam.conflicts.len() as u64),
        );
        gauge(
            registry,
            "ipam_unreachable_addresses",
            "Addresses owned by peers that cannot be reached",
            sum(|ipam| {
                let gone = ipam.owners.iter().filter(|owner| !owner.reachable);
                gone.map(|owner| owner.addresses).sum()
            }),
        );
    }
    if let Some(dns) = &report.dns {
        let own = dns
            .entries
            .iter()
            .filter(|e| e.origin == report.router.name)
            .count();
        gauge(
            registry,
            "dns_entries",
            "Names of containers of this host",
            own,
        );
    }
}

/// What the kernel says of this process; absent where it says nothing.
fn process(registry: &mut Registry) {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else {
        return;
    };
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse::<usize>().ok());
    if let Some(pages) = pages {
        gauge(
            registry,
            "process_resident_memory_bytes",
            "Memory in use",
            pages * PAGE,
        );
    }
}

/// Bytes of a page on the platforms weft runs on.
const PAGE: usize = 4096;

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(number(value));
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
