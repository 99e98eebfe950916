//! Answering one query: what is ours we answer, and only that.
//!
//! Ours are the names in the domain, bare labels, and the reverse names of addresses that have a name
//! in the table. Nothing of these ever leaves the host, whatever the answer; everything else is for an
//! upstream server. A reply is never larger than what the client takes.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, ResponseCode, emit_message_parts};
use hickory_proto::rr::rdata::{HINFO, PTR, SOA};
use hickory_proto::rr::{self, DNSClass, RData, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use rand_core::Rng;

use crate::query::{Query, QueryError};
use crate::{Domain, Name, NameTable};

/// What a query came over, which bounds the size of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram: 512 bytes, or what the client's EDNS says up to 1232.
    Udp,
    /// A connection: 65,535 bytes.
    Tcp,
}

/// What answers are made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Who is called what.
    pub table: &'a NameTable,
    /// The domain that is ours.
    pub domain: &'a Domain,
    /// How long a client may keep an answer, in seconds; it holds for "no such name" too.
    pub ttl: u32,
}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply {
        /// The whole message, without the length that goes before it on a connection.
        bytes: Vec<u8>,
        /// What the reply says, for the counters.
        verdict: Verdict,
    },
    /// Ask an upstream server.
    Forward,
    /// Not a query: say nothing, for a reply might be replied to.
    Ignore,
}

/// What a reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// These records.
    Found,
    /// The name exists, but has no record of that type (NODATA).
    NoData,
    /// There is no such name (NXDOMAIN).
    NoName,
    /// Not a query we answer: malformed, another operation, a zone transfer.
    Refused,
}

/// Says what to do with the bytes of a query.
///
/// Addresses come in an order drawn from `rng`, so that clients that take the first spread.
pub fn answer(query: &[u8], transport: Transport, view: &View<'_>, rng: &mut impl Rng) -> Answer {
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(QueryError::NotAQuery) => return Answer::Ignore,
        Err(QueryError::Operation(metadata)) => return rejection(&metadata, ResponseCode::NotImp),
        Err(QueryError::Malformed(metadata)) => return rejection(&metadata, ResponseCode::FormErr),
    };
    let Some(finding) = find(&query, view) else {
        return Answer::Forward;
    };
    let limit = match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_UDP,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP, MAX_UDP),
    };
    let (message, verdict) = reply(&query, finding, view, limit, rng);
    encoded(message, limit).map_or(Answer::Ignore, |bytes| Answer::Reply { bytes, verdict })
}

/// The reply to a query that no upstream server answered (SERVFAIL); none if it is not a query.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let message = match Query::parse(query) {
        Ok(query) => response(&query, ResponseCode::ServFail),
        Err(QueryError::NotAQuery) => return None,
        Err(QueryError::Operation(metadata) | QueryError::Malformed(metadata)) => {
            error(&metadata, ResponseCode::ServFail)
        }
    };
    encoded(message, PLAIN_UDP)
}

/// What the table says to a question.
enum Finding {
    Addresses(Vec<IpAddr>),
    Names(Vec<Name>),
    /// The record that says how the domain is run.
    Authority,
    /// All types were asked for, of a name that has some (RFC 8482 §4.2).
    Any,
    NoData,
    NoName,
    Refused(ResponseCode),
}

/// Whose name a question is about.
enum Place {
    /// The domain itself.
    Apex,
    /// A name in the domain; none if it breaks the rules for names, so nobody can have it.
    Inside(Option<Name>),
    /// The reverse name of an address somebody has a name for.
    Reverse(Vec<Name>),
}

/// None if an upstream server is to be asked.
fn find(query: &Query, view: &View<'_>) -> Option<Finding> {
    let kind = query.question.query_type();
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        // Not ours to give, and a transfer from upstream would be more than one reply.
        return Some(Finding::Refused(ResponseCode::Refused));
    }
    let place = place(query.question.name(), view)?;
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(Finding::Refused(ResponseCode::BADVERS));
    }
    if !matches!(query.question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Some(Finding::Refused(ResponseCode::Refused));
    }
    Some(match place {
        Place::Apex if kind == RecordType::SOA => Finding::Authority,
        Place::Apex if kind == RecordType::ANY => Finding::Any,
        Place::Apex => Finding::NoData,
        Place::Inside(None) => Finding::NoName,
        Place::Inside(Some(name)) => addresses(&name, kind, view.table),
        Place::Reverse(names) if kind == RecordType::PTR => Finding::Names(names),
        Place::Reverse(_) if kind == RecordType::ANY => Finding::Any,
        Place::Reverse(_) => Finding::NoData,
    })
}

fn place(asked: &rr::Name, view: &View<'_>) -> Option<Place> {
    let ours = view.domain.holds(asked);
    let labels = asked.iter().len();
    if ours && labels == view.domain.wire().iter().len() {
        return Some(Place::Apex);
    }
    if ours || labels == 1 {
        return Some(Place::Inside(name_asked(asked, view.domain)));
    }
    let net = asked
        .parse_arpa_name()
        .ok()
        .filter(|net| net.prefix_len() == net.max_prefix_len())?;
    let names = view.table.reverse(net.addr());
    (!names.is_empty()).then_some(Place::Reverse(names))
}

fn name_asked(asked: &rr::Name, domain: &Domain) -> Option<Name> {
    let mut labels = asked.iter().map(|label| {
        std::str::from_utf8(label)
            .ok()
            .filter(|text| !text.contains('.'))
    });
    let text = labels.try_fold(String::new(), |text, label| Some(text + label? + "."))?;
    Name::new(&text, domain).ok()
}

fn addresses(name: &Name, kind: RecordType, table: &NameTable) -> Finding {
    let mut found = table.lookup(name);
    if found.is_empty() {
        return if table.exists(name) {
            Finding::NoData
        } else {
            Finding::NoName
        };
    }
    if kind == RecordType::ANY {
        return Finding::Any;
    }
    found.retain(|addr| {
        kind == if addr.is_ipv4() {
            RecordType::A
        } else {
            RecordType::AAAA
        }
    });
    if found.is_empty() {
        Finding::NoData
    } else {
        Finding::Addresses(found)
    }
}

fn reply(
    query: &Query,
    finding: Finding,
    view: &View<'_>,
    limit: u16,
    rng: &mut impl Rng,
) -> (Message, Verdict) {
    let code = match &finding {
        Finding::Refused(code) => *code,
        Finding::NoName => ResponseCode::NXDomain,
        Finding::Addresses(_)
        | Finding::Names(_)
        | Finding::Authority
        | Finding::Any
        | Finding::NoData => ResponseCode::NoError,
    };
    let mut message = response(query, code);
    message.metadata.authoritative = !matches!(finding, Finding::Refused(_));
    let asked = query.question.name();
    let record = |data| rr::Record::from_rdata(asked.clone(), view.ttl, data);
    let verdict = match finding {
        Finding::Addresses(mut found) => {
            shuffle(&mut found, rng);
            found.truncate(most_records(limit));
            message.add_answers(found.into_iter().map(|addr| record(address(addr))));
            Verdict::Found
        }
        Finding::Names(mut found) => {
            shuffle(&mut found, rng);
            found.truncate(most_records(limit));
            message.add_answers(
                found
                    .iter()
                    .filter_map(Name::wire)
                    .map(|name| record(RData::PTR(PTR(name)))),
            );
            Verdict::Found
        }
        Finding::Authority => {
            message.add_answer(authority(view));
            Verdict::Found
        }
        Finding::Any => {
            message.add_answer(record(RData::HINFO(HINFO::new(
                "RFC8482".into(),
                String::new(),
            ))));
            Verdict::Found
        }
        Finding::NoData => {
            message.add_authority(authority(view));
            Verdict::NoData
        }
        Finding::NoName => {
            message.add_authority(authority(view));
            Verdict::NoName
        }
        Finding::Refused(_) => Verdict::Refused,
    };
    (message, verdict)
}

fn address(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(addr) => RData::A(addr.into()),
        IpAddr::V6(addr) => RData::AAAA(addr.into()),
    }
}

/// How many records are worth making: this many do not fit with the header before them, so that what
/// is left out here shows as a cut all the same.
fn most_records(limit: u16) -> usize {
    usize::from(limit) / SMALLEST_RECORD
}

/// The record that goes with "no such name", so that clients know how long that holds (RFC 2308 §3).
/// There are no secondary servers, so its other numbers mean nothing.
fn authority(view: &View<'_>) -> rr::Record {
    let zone = view.domain.wire();
    let hour = 3600;
    let data = SOA::new(zone.clone(), zone.clone(), 1, hour, hour, hour, view.ttl);
    rr::Record::from_rdata(zone.clone(), view.ttl, RData::SOA(data))
}

/// A reply without records.
fn response(query: &Query, code: ResponseCode) -> Message {
    let mut message = error(&query.metadata, code);
    message.add_query(query.question.clone());
    if let Some(theirs) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_UDP)
            .set_dnssec_ok(theirs.flags().dnssec_ok);
        message.set_edns(ours);
    }
    message
}

/// A reply that repeats nothing but what the header said.
fn error(metadata: &Metadata, code: ResponseCode) -> Message {
    let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message
}

fn rejection(metadata: &Metadata, code: ResponseCode) -> Answer {
    let bytes = encoded(error(metadata, code), PLAIN_UDP);
    bytes.map_or(Answer::Ignore, |bytes| Answer::Reply {
        bytes,
        verdict: Verdict::Refused,
    })
}

/// The bytes of a message with as many of its answers as fit; TC says that some did not.
fn encoded(mut message: Message, limit: u16) -> Option<Vec<u8>> {
    if let Some(bytes) = fitting(&message, limit) {
        return Some(bytes);
    }
    // Names near the bound of DNS leave no room for it, and clients do without.
    message.authorities.clear();
    let all = std::mem::take(&mut message.answers);
    message.metadata.truncation = !all.is_empty();
    let (mut untried, mut too_many) = (0, all.len().max(1));
    let mut best = None;
    while untried < too_many {
        let middle = untried + (too_many - untried) / 2;
        message.answers = all.iter().take(middle).cloned().collect();
        match fitting(&message, limit) {
            Some(bytes) => {
                best = Some(bytes);
                untried = middle + 1;
            }
            None => too_many = middle,
        }
    }
    best
}

/// The bytes of a message; none if they are more than `limit`.
fn fitting(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(PLAIN_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    let header = emit_message_parts(
        &message.metadata,
        &mut message.queries.iter(),
        &mut message.answers.iter(),
        &mut message.authorities.iter(),
        &mut message.additionals.iter(),
        message.edns.as_ref(),
        None,
        &mut encoder,
    );
    // The encoder leaves out records that have no room.
    let counts = header.ok()?.counts;
    let written = [counts.answers, counts.authorities, counts.additionals].map(usize::from);
    let edns = usize::from(message.edns.is_some());
    (written == [message.answers.len(), message.authorities.len(), edns]).then_some(bytes)
}

/// Puts the values into a random order, each order as likely as any other.
fn shuffle<T>(values: &mut [T], rng: &mut impl Rng) {
    for last in (1..values.len()).rev() {
        let choices = last as u64 + 1;
        // The product of 32 random bits and the number of choices is below that number shifted by 32.
        let chosen = (u64::from(rng.next_u32()) * choices) >> 32;
        values.swap(last, chosen as usize);
    }
}

/// What any client takes over UDP (RFC 1035 §2.3.4).
const PLAIN_UDP: u16 = 512;
/// What we send over UDP at most, whatever the client takes: it passes every link without being
/// fragmented, for IPv6 asks for 1280 bytes of each.
const MAX_UDP: u16 = 1232;
/// Bytes of the smallest record in an answer: an IPv4 address whose name was written before.
const SMALLEST_RECORD: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use hickory_proto::op::{self, OpCode};
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use weft_wire::PeerName;

    use super::*;
    use crate::Record;

    #[test]
    fn a_name_in_whatever_case_gives_its_addresses_and_keeps_the_case() {
        let reply = asked("wEb.WEFT.local.", RecordType::A);
        assert_eq!(reply.queries[0].name().to_string(), "wEb.WEFT.local.");
        assert!(reply.authoritative && reply.recursion_available && !reply.truncation);
        assert_eq!(
            (reply.id, reply.message_type, reply.recursion_desired),
            (7, MessageType::Response, true)
        );
        assert_eq!(addresses_in(&reply), set(["10.32.0.1", "10.32.0.2"]));
        assert!(
            reply
                .answers
                .iter()
                .all(|r| r.ttl == 1 && r.name.to_string() == "wEb.WEFT.local.")
        );
        assert_eq!(
            addresses_in(&asked("web.weft.local.", RecordType::AAAA)),
            set(["fd00::1"])
        );
    }

    #[test]
    fn a_bare_label_is_a_name_in_the_domain_and_answered_as_asked() {
        let reply = asked("WEB.", RecordType::A);
        assert_eq!(addresses_in(&reply), set(["10.32.0.1", "10.32.0.2"]));
        assert_eq!(reply.answers[0].name.to_string(), "WEB.");
        let unknown = asked("nobody.", RecordType::A);
        assert_eq!(
            unknown.response_code,
            ResponseCode::NXDomain,
            "and is not sent upstream"
        );
    }

    #[test]
    fn a_name_without_that_type_of_record_exists_all_the_same() {
        for (name, kind) in [
            ("db.weft.local.", RecordType::AAAA),
            ("db.weft.local.", RecordType::MX),
            ("sub.weft.local.", RecordType::A),
            ("weft.local.", RecordType::A),
            ("1.0.32.10.in-addr.arpa.", RecordType::A),
        ] {
            let reply = asked(name, kind);
            assert_eq!(
                (reply.response_code, reply.answers.len()),
                (ResponseCode::NoError, 0),
                "{name}"
            );
            assert_eq!(
                reply.authorities[0].record_type(),
                RecordType::SOA,
                "{name}"
            );
            assert!(reply.authoritative, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_of_the_domain_is_denied_with_how_long_that_holds() {
        for name in [
            "nobody.weft.local.",
            "x.web.weft.local.",
            "*.weft.local.",
            "example.com.weft.local.",
        ] {
            let reply = asked(name, RecordType::A);
            assert_eq!(reply.response_code, ResponseCode::NXDomain, "{name}");
            let RData::SOA(soa) = &reply.authorities[0].data else {
                panic!("{reply:?}")
            };
            assert_eq!((soa.minimum, reply.authorities[0].ttl), (1, 1));
            assert_eq!(reply.authorities[0].name.to_string(), "weft.local.");
        }
    }

    #[test]
    fn a_label_with_a_dot_inside_is_not_taken_for_two_labels() {
        let name = rr::Name::from_labels([&b"a.sub"[..], b"weft", b"local"]).unwrap();
        let reply = answered(&bytes(&message(name, RecordType::A)), Transport::Udp);
        assert_eq!(reply.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn the_reverse_of_a_known_address_gives_its_names() {
        let reply = asked("1.0.32.10.IN-ADDR.arpa.", RecordType::PTR);
        let names: BTreeSet<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
        assert_eq!(names, set(["web.weft.local.", "db.weft.local."]));
        let six = format!("1.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
        assert_eq!(
            asked(&six, RecordType::PTR).answers[0].data.to_string(),
            "web.weft.local."
        );
    }

    #[test]
    fn what_is_not_ours_is_for_an_upstream_server() {
        for (name, kind) in [
            ("example.com.", RecordType::A),
            ("notweft.local.", RecordType::A),
            ("local.weft.", RecordType::A),
            (".", RecordType::NS),
            ("9.0.32.10.in-addr.arpa.", RecordType::PTR),
            ("0.32.10.in-addr.arpa.", RecordType::PTR),
            ("x.1.0.32.10.in-addr.arpa.", RecordType::PTR),
            ("1.0.0.0.ip6.arpa.", RecordType::PTR),
        ] {
            let query = bytes(&question(name, kind));
            assert_eq!(run(&query, Transport::Udp, 0), Answer::Forward, "{name}");
        }
    }

    #[test]
    fn all_types_at_once_get_the_short_answer() {
        let reply = asked("web.weft.local.", RecordType::ANY);
        assert_eq!(reply.answers.len(), 1);
        assert_eq!(reply.answers[0].record_type(), RecordType::HINFO);
        assert_eq!(
            asked("nobody.weft.local.", RecordType::ANY).response_code,
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn the_domain_itself_has_a_record_of_authority() {
        let reply = asked("weft.local.", RecordType::SOA);
        assert_eq!(reply.answers[0].record_type(), RecordType::SOA);
    }

    #[test]
    fn zone_transfers_and_other_classes_are_refused() {
        assert_eq!(
            asked("weft.local.", RecordType::AXFR).response_code,
            ResponseCode::Refused
        );
        assert_eq!(
            asked("example.com.", RecordType::IXFR).response_code,
            ResponseCode::Refused
        );
        let mut chaos = question("web.weft.local.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        let reply = answered(&bytes(&chaos), Transport::Udp);
        assert_eq!(
            (reply.response_code, reply.authoritative),
            (ResponseCode::Refused, false)
        );
    }

    #[test]
    fn a_query_with_no_question_or_two_is_malformed() {
        let mut two = question("web.weft.local.", RecordType::A);
        two.queries.push(two.queries[0].clone());
        let mut none = two.clone();
        none.queries.clear();
        for message in [two, none] {
            let reply = answered(&bytes(&message), Transport::Udp);
            assert_eq!((reply.response_code, reply.id), (ResponseCode::FormErr, 7));
        }
    }

    #[test]
    fn other_operations_are_not_implemented() {
        for code in [
            OpCode::Status,
            OpCode::Notify,
            OpCode::Update,
            OpCode::Unknown(9),
        ] {
            let mut message = question("web.weft.local.", RecordType::A);
            message.metadata.op_code = code;
            let reply = answered(&bytes(&message), Transport::Udp);
            assert_eq!(
                (reply.response_code, reply.op_code),
                (ResponseCode::NotImp, code)
            );
        }
    }

    #[test]
    fn responses_and_what_is_shorter_than_a_header_get_no_reply() {
        let query = bytes(&question("web.weft.local.", RecordType::A));
        let mut response = query.clone();
        response[2] |= 0x80;
        assert_eq!(run(&response, Transport::Udp, 0), Answer::Ignore);
        assert_eq!(run(&query[..11], Transport::Udp, 0), Answer::Ignore);
        assert_eq!(run(&[], Transport::Tcp, 0), Answer::Ignore);
        assert_eq!(failure(&response), None);
    }

    #[test]
    fn a_client_that_speaks_edns_is_answered_in_kind() {
        assert!(asked("web.weft.local.", RecordType::A).edns.is_none());
        let mut query = question("web.weft.local.", RecordType::A);
        query.set_edns(edns(4096));
        let reply = answered(&bytes(&query), Transport::Udp);
        let ours = reply.edns.unwrap();
        assert_eq!(
            (ours.version(), ours.max_payload(), ours.flags().dnssec_ok),
            (0, 1232, true)
        );
        query.edns.as_mut().unwrap().set_version(1);
        let reply = answered(&bytes(&query), Transport::Udp);
        assert_eq!(
            (
                u16::from(reply.response_code),
                reply.edns.unwrap().version()
            ),
            (16, 0),
            "BADVERS"
        );
    }

    #[test]
    fn every_order_of_addresses_comes_up_about_equally_often() {
        let query = bytes(&question("three.weft.local.", RecordType::A));
        let mut orders: BTreeMap<Vec<String>, u32> = BTreeMap::new();
        for seed in 0..600 {
            let Answer::Reply { bytes, .. } = run(&query, Transport::Udp, seed) else {
                panic!("no reply")
            };
            let reply = Message::from_vec(&bytes).unwrap();
            *orders
                .entry(reply.answers.iter().map(|r| r.data.to_string()).collect())
                .or_default() += 1;
        }
        assert_eq!(orders.len(), 6);
        assert!(
            orders.values().all(|count| (60..140).contains(count)),
            "{orders:?}"
        );
    }

    #[test]
    fn fifty_addresses_are_cut_over_udp_and_whole_over_tcp() {
        let query = bytes(&question("fifty.weft.local.", RecordType::A));
        let over_udp = reply_to(&query, Transport::Udp);
        assert!(
            over_udp.len() <= 512 && over_udp.len() > 512 - 16,
            "{}",
            over_udp.len()
        );
        let cut = Message::from_vec(&over_udp).unwrap();
        assert!(cut.truncation);
        assert_eq!(cut.answers.len(), (512 - 12 - 22) / 16);
        let whole = answered(&query, Transport::Tcp);
        assert_eq!((whole.truncation, addresses_in(&whole).len()), (false, 50));
        let mut large = question("fifty.weft.local.", RecordType::A);
        large.set_edns(edns(1232));
        let whole = answered(&bytes(&large), Transport::Udp);
        assert_eq!(
            (whole.truncation, whole.answers.len(), whole.edns.is_some()),
            (false, 50, true)
        );
    }

    #[test]
    fn what_does_not_even_fit_tcp_is_cut_and_says_so() {
        let mut table = NameTable::new(peer());
        for n in 0..5000_u32 {
            table
                .add_own(name("many"), "c", IpAddr::V4((0x0a00_0000 + n).into()))
                .unwrap();
        }
        let view = View {
            table: &table,
            domain: &domain(),
            ttl: 1,
        };
        let query = bytes(&question("many.weft.local.", RecordType::A));
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for (transport, limit) in [(Transport::Tcp, 65_535), (Transport::Udp, 512)] {
            let Answer::Reply { bytes, .. } = answer(&query, transport, &view, &mut rng) else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert!(reply.truncation && addresses_in(&reply).len() == reply.answers.len());
            assert!(
                (limit - 40..=limit).contains(&bytes.len()),
                "{}",
                bytes.len()
            );
        }
    }

    #[test]
    fn names_at_the_bound_of_dns_are_answered_within_512_bytes() {
        let domain: Domain = format!("{0}.{0}.{0}", "d".repeat(60)).parse().unwrap();
        let mut table = NameTable::new(peer());
        let longest = Name::new(&"n".repeat(63), &domain).unwrap();
        table
            .add_own(longest.clone(), "c", "10.32.0.1".parse().unwrap())
            .unwrap();
        let view = View {
            table: &table,
            domain: &domain,
            ttl: 1,
        };
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for (kind, answers) in [(RecordType::A, 1), (RecordType::AAAA, 0)] {
            let mut query = question(&longest.as_str().to_uppercase(), kind);
            query.set_edns(edns(512));
            let Answer::Reply { bytes, .. } =
                answer(&bytes(&query), Transport::Udp, &view, &mut rng)
            else {
                panic!()
            };
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!((reply.answers.len(), reply.truncation), (answers, false));
            assert!(bytes.len() <= 512);
        }
    }

    #[test]
    fn a_failure_repeats_the_question() {
        let query = bytes(&question("example.com.", RecordType::A));
        let reply = Message::from_vec(&failure(&query).unwrap()).unwrap();
        assert_eq!((reply.response_code, reply.id), (ResponseCode::ServFail, 7));
        assert_eq!(reply.queries[0].name().to_string(), "example.com.");
        assert!(reply.recursion_available && !reply.authoritative);
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_proper_reply_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..80), over_tcp: bool, seed: u64,
        ) {
            proper(&bytes, over_tcp, seed)?;
        }

        #[test]
        fn damaged_queries_get_a_proper_reply_or_none(
            which in 0_usize..5,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            len: prop::sample::Index, over_tcp: bool, seed: u64,
        ) {
            let names = ["web.weft.local.", "fifty.", "1.0.32.10.in-addr.arpa.", "weft.local.", "example.com."];
            let mut query = question(names[which], RecordType::A);
            query.set_edns(edns(700));
            let mut query = bytes(&query);
            for (at, value) in damage {
                let at = at.index(query.len());
                query[at] = value;
            }
            query.truncate(len.index(query.len() * 2));
            proper(&query, over_tcp, seed)?;
        }
    }

    fn proper(query: &[u8], over_tcp: bool, seed: u64) -> Result<(), TestCaseError> {
        let transport = if over_tcp {
            Transport::Tcp
        } else {
            Transport::Udp
        };
        let failed = failure(query);
        match run(query, transport, seed) {
            Answer::Reply { bytes, .. } => {
                prop_assert_eq!(&bytes[..2], &query[..2]);
                prop_assert!(over_tcp || bytes.len() <= 1232);
                let reply = Message::from_vec(&bytes);
                prop_assert!(reply.is_ok_and(|r| r.message_type == MessageType::Response));
                prop_assert!(failed.is_some());
            }
            Answer::Forward => {
                prop_assert!(failed.is_some_and(|bytes| Message::from_vec(&bytes).is_ok()))
            }
            Answer::Ignore => prop_assert!(query.len() < 12 || query[2] & 0x80 != 0),
        }
        Ok(())
    }

    fn asked(name: &str, kind: RecordType) -> Message {
        answered(&bytes(&question(name, kind)), Transport::Udp)
    }

    fn answered(query: &[u8], transport: Transport) -> Message {
        Message::from_vec(&reply_to(query, transport)).unwrap()
    }

    fn reply_to(query: &[u8], transport: Transport) -> Vec<u8> {
        match run(query, transport, 1) {
            Answer::Reply { bytes, .. } => bytes,
            Answer::Forward | Answer::Ignore => panic!("no reply"),
        }
    }

    fn run(query: &[u8], transport: Transport, seed: u64) -> Answer {
        let mut table = NameTable::new(peer());
        let mut add = |text: &str, addr: &str| {
            table
                .add_own(name(text), "c", addr.parse().unwrap())
                .unwrap()
        };
        for (text, addr) in [
            ("web", "10.32.0.1"),
            ("web", "fd00::1"),
            ("db", "10.32.0.1"),
            ("a.sub.weft.local", "10.32.0.3"),
            ("three", "10.32.1.1"),
            ("three", "10.32.1.2"),
            ("three", "10.32.1.3"),
        ] {
            add(text, addr);
        }
        for n in 1..=50 {
            add("fifty", &format!("10.32.2.{n}"));
        }
        let origin = PeerName::from_bytes([9; 6]);
        let theirs = Record {
            name: name("web"),
            container: "d".into(),
            origin,
            addr: "10.32.0.2".parse().unwrap(),
        };
        table.set(theirs).unwrap();
        let view = View {
            table: &table,
            domain: &domain(),
            ttl: 1,
        };
        answer(
            query,
            transport,
            &view,
            &mut ChaCha20Rng::seed_from_u64(seed),
        )
    }

    fn question(name: &str, kind: RecordType) -> Message {
        message(rr::Name::from_ascii(name).unwrap(), kind)
    }

    fn message(name: rr::Name, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(op::Query::query(name, kind));
        message
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().unwrap()
    }

    fn edns(size: u16) -> Edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_dnssec_ok(true);
        edns
    }

    fn addresses_in(reply: &Message) -> BTreeSet<String> {
        reply
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect()
    }

    fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
        texts.map(str::to_owned).into()
    }

    fn domain() -> Domain {
        "weft.local".parse().unwrap()
    }

    fn name(text: &str) -> Name {
        Name::new(text, &domain()).unwrap()
    }

    fn peer() -> PeerName {
        PeerName::from_bytes([2; 6])
    }
}
