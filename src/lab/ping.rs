//! `weft lab ping`: the round trip to others, by name, for places that have no `ping` of their own.
//!
//! Names go the way every program's names go, through the system's resolver. An echo is sent on a
//! raw socket (in a lab we are root) and only an answer that brings back the same bytes counts.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use super::say;

/// Ping by name from where this runs: `weft lab exec c1 -- weft lab ping c2`
#[derive(Debug, clap::Args)]
pub(crate) struct PingArgs {
    /// Names or addresses
    #[arg(required = true)]
    names: Vec<String>,
    /// How many echoes to each
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// How long to wait for each answer, in milliseconds
    #[arg(long, short, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
    /// How many bytes to send along
    #[arg(long, short, value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u16).range(0..=65_507))]
    size: u16,
    /// Use the IPv6 address of each name, and not that of IPv4
    #[arg(long, short = '6')]
    ipv6: bool,
    /// Print one line of JSON for each name
    #[arg(long)]
    json: bool,
}

/// What came of the echoes to one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The name as given.
    pub(crate) name: String,
    /// What it stands for, once known.
    pub(crate) address: Option<IpAddr>,
    /// How many echoes were sent.
    pub(crate) sent: u16,
    /// How many came back.
    pub(crate) received: u16,
    /// The shortest round trip, in microseconds.
    pub(crate) best_us: Option<u64>,
    /// Why the last echo that failed did.
    pub(crate) error: Option<String>,
}

/// Runs `weft lab ping`: success if every name answered at least once.
pub(crate) fn run(args: &PingArgs) -> Result<ExitCode> {
    let mut all = true;
    for name in &args.names {
        let answer = ask(name, args);
        all &= answer.received > 0;
        if args.json {
            say::line(&serde_json::to_string(&answer)?)?;
        } else {
            say::line(&describe(&answer))?;
        }
    }
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(answer: &Answer) -> String {
    let address = answer
        .address
        .map(|address| format!(" ({address})"))
        .unwrap_or_default();
    let mut text = format!(
        "{}{address}: {}/{} answers",
        answer.name, answer.received, answer.sent
    );
    if let Some(best) = answer.best_us {
        text += &format!(", best round trip {} ms", milliseconds(best));
    }
    if let Some(error) = &answer.error {
        text += &format!(", {error}");
    }
    text
}

/// Microseconds as milliseconds, with as many digits as say something.
pub(crate) fn milliseconds(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

fn ask(name: &str, args: &PingArgs) -> Answer {
    let mut answer = Answer {
        name: name.to_owned(),
        address: None,
        sent: 0,
        received: 0,
        best_us: None,
        error: None,
    };
    let address = match look_up(name, args.ipv6) {
        Ok(address) => address,
        Err(error) => {
            answer.error = Some(error.to_string());
            return answer;
        }
    };
    answer.address = Some(address);
    for sequence in 0..args.count {
        if sequence > 0 {
            thread::sleep(BETWEEN);
        }
        answer.sent += 1;
        match echo(address, sequence, args) {
            Ok(time) => {
                let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                answer.received += 1;
                answer.best_us = Some(answer.best_us.map_or(us, |best| best.min(us)));
            }
            Err(error) => answer.error = Some(error.to_string()),
        }
    }
    answer
}

/// Pause between two echoes to one name: short, because labs with many containers ping all pairs.
const BETWEEN: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
enum PingError {
    #[error("the name cannot be resolved: {0}")]
    Lookup(io::Error),
    #[error("the name has no such address")]
    NoAddress,
    #[error("cannot send: {0}")]
    Send(io::Error),
    #[error("the network says: {0}")]
    Receive(io::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the answer brought back other bytes")]
    Altered,
}

/// The first IPv4 address, or IPv6 one if there is none or it is asked for.
fn look_up(name: &str, ipv6: bool) -> Result<IpAddr, PingError> {
    let found = (name, 0).to_socket_addrs().map_err(PingError::Lookup)?;
    let found = found.map(|address| address.ip());
    let mut found: Vec<_> = found.filter(|ip| ip.is_ipv6() || !ipv6).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied().ok_or(PingError::NoAddress)
}

fn echo(address: IpAddr, sequence: u16, args: &PingArgs) -> Result<Duration, PingError> {
    let timeout = Duration::from_millis(args.timeout);
    // Each place has a network of its own, so the low half of our number is ours alone.
    let identifier = (process::id() & 0xffff) as u16;
    let payload = pattern(args.size);
    let protocol = match address {
        IpAddr::V4(_) => ICMP,
        IpAddr::V6(_) => ICMPV6,
    };
    let mut socket =
        Socket::new(protocol.domain, Type::RAW, Some(protocol.number)).map_err(PingError::Send)?;
    socket
        .connect(&SocketAddr::from((address, 0)).into())
        .map_err(PingError::Send)?;
    let start = Instant::now();
    socket
        .send(&request(&protocol, identifier, sequence, &payload))
        .map_err(PingError::Send)?;
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(PingError::Timeout(timeout));
        }
        socket
            .set_read_timeout(Some(left))
            .map_err(PingError::Receive)?;
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(PingError::Receive(error)),
        };
        match buffer
            .get(..length)
            .and_then(|packet| reply(&protocol, packet, identifier, sequence))
        {
            Some(back) if back == payload => return Ok(start.elapsed()),
            Some(_) => return Err(PingError::Altered),
            None => {}
        }
    }
}

/// How echoes are said in a family of addresses.
struct Echoes {
    domain: Domain,
    number: Protocol,
    /// The type of a request, and of its answer.
    request: u8,
    reply: u8,
    /// Whether answers come with their IP header.
    with_header: bool,
}

/// RFC 792.
const ICMP: Echoes = Echoes {
    domain: Domain::IPV4,
    number: Protocol::ICMPV4,
    request: 8,
    reply: 0,
    with_header: true,
};
/// RFC 4443; the kernel makes the checksum anew, since IP's addresses are in it.
const ICMPV6: Echoes = Echoes {
    domain: Domain::IPV6,
    number: Protocol::ICMPV6,
    request: 128,
    reply: 129,
    with_header: false,
};

/// The largest packet.
const MAX_PACKET: usize = 65_535;

fn pattern(size: u16) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(size.into()).collect()
}

/// An echo request: type, code 0, checksum, identifier, sequence number, data.
fn request(protocol: &Echoes, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let header = |checksum: u16| {
        let [a, b] = checksum.to_be_bytes();
        let [c, d] = identifier.to_be_bytes();
        let [e, f] = sequence.to_be_bytes();
        [protocol.request, 0, a, b, c, d, e, f]
    };
    let mut packet = [header(0).as_slice(), payload].concat();
    let sum = checksum(&packet);
    packet.splice(..8, header(sum));
    packet
}

/// The data of an echo reply of ours, in what the socket gives.
fn reply<'a>(
    protocol: &Echoes,
    packet: &'a [u8],
    identifier: u16,
    sequence: u16,
) -> Option<&'a [u8]> {
    let header_length = match protocol.with_header {
        true => usize::from(packet.first()? & 0xf) * 4,
        false => 0,
    };
    let (header, data) = packet.get(header_length..)?.split_first_chunk::<8>()?;
    let [kind, code, _, _, a, b, c, d] = *header;
    let ours = kind == protocol.reply
        && code == 0
        && u16::from_be_bytes([a, b]) == identifier
        && u16::from_be_bytes([c, d]) == sequence;
    ours.then_some(data)
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let (high, low) = (
            pair.first().copied().unwrap_or(0),
            pair.get(1).copied().unwrap_or(0),
        );
        sum += u32::from(u16::from_be_bytes([high, low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(size: u16) -> PingArgs {
        PingArgs {
            names: Vec::new(),
            count: 1,
            timeout: 500,
            size,
            ipv6: false,
            json: false,
        }
    }

    #[test]
    fn the_checksum_over_a_checked_packet_is_nothing() {
        for payload in [b"".as_slice(), b"abc", b"abcd"] {
            assert_eq!(checksum(&request(&ICMP, 7, 9, payload)), 0);
        }
        assert_eq!(checksum(&vec![0xff; 65_535]), 0xff);
    }

    #[test]
    fn only_our_own_reply_counts() {
        let ip = [vec![0x45], vec![0; 19]].concat();
        let echo = |kind: u8, identifier: u8| {
            [ip.clone(), vec![kind, 0, 0, 0, 0, identifier, 0, 3, b'x']].concat()
        };
        assert_eq!(reply(&ICMP, &echo(0, 7), 7, 3), Some(b"x".as_slice()));
        assert_eq!(reply(&ICMP, &echo(8, 7), 7, 3), None, "our own request");
        assert_eq!(
            reply(&ICMP, &echo(0, 8), 7, 3),
            None,
            "an answer to another"
        );
        let echo6 = [129, 0, 0, 0, 0, 7, 0, 3, b'x'];
        assert_eq!(reply(&ICMPV6, &echo6, 7, 3), Some(b"x".as_slice()));
        for length in 0..28 {
            assert_eq!(reply(&ICMP, &echo(0, 7)[..length], 7, 3), None);
        }
        assert_eq!(
            reply(&ICMP, &[0x4f; 30], 7, 3),
            None,
            "a header longer than the packet"
        );
    }

    #[test]
    fn a_name_nobody_has_is_said_to_be_the_reason() {
        let answer = ask("nobody.invalid", &args(0));
        assert_eq!((answer.received, answer.sent), (0, 0));
        assert!(answer.error.unwrap().contains("cannot be resolved"));
    }

    #[test]
    fn times_are_told_in_milliseconds() {
        assert_eq!(milliseconds(1234), "1.23");
        assert_eq!(milliseconds(45), "0.04");
        assert_eq!(milliseconds(12_000_999), "12000.99");
    }

    #[test]
    fn answers_are_told_in_a_line() {
        let answer = Answer {
            name: "c2".to_owned(),
            address: Some([10, 32, 0, 1].into()),
            sent: 2,
            received: 1,
            best_us: Some(840),
            error: Some("no answer within 1000 ms".to_owned()),
        };
        let text = "c2 (10.32.0.1): 1/2 answers, best round trip 0.84 ms, no answer within 1000 ms";
        assert_eq!(describe(&answer), text);
    }
}
