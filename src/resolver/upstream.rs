//! The servers that know the rest of the world: which they are, and asking them.
//!
//! They are read from a file in the form of `resolv.conf`, again when it changes. They are asked in
//! its order, one after the other, with the client's own bytes; the first reply of any kind is passed
//! on unchanged. Nothing is cached.
//!
//! Invariant: none of our own addresses is among them, so that no query goes round in a circle.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use weft_dns::Transport;

use super::{MAX_MESSAGE, read_message, write_message};

/// The upstream servers.
#[derive(Debug)]
pub(super) struct Upstream {
    file: PathBuf,
    /// Where we listen ourselves.
    own: Vec<SocketAddr>,
    /// How long each server has.
    patience: Duration,
    list: Mutex<List>,
}

/// What was last read.
#[derive(Debug)]
struct List {
    looked: Instant,
    stamp: Option<Stamp>,
    servers: Arc<[SocketAddr]>,
}

/// What changes with a file's content: inode, length, time of modification in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

impl Upstream {
    /// Reads the servers from `file`, leaving out those among `own`.
    pub(super) fn new(file: PathBuf, own: Vec<SocketAddr>, patience: Duration) -> Self {
        let stamp = stamp(&file);
        let servers = read(&file, &own);
        let list = Mutex::new(List {
            looked: Instant::now(),
            stamp,
            servers,
        });
        Self {
            file,
            own,
            patience,
            list,
        }
    }

    /// The servers in the order they are asked; the file is looked at again every few seconds.
    pub(super) fn servers(&self) -> Arc<[SocketAddr]> {
        self.servers_at(Instant::now())
    }

    fn servers_at(&self, now: Instant) -> Arc<[SocketAddr]> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(list.looked) >= LOOK_AGAIN {
            list.looked = now;
            let stamp = stamp(&self.file);
            if stamp != list.stamp {
                list.stamp = stamp;
                list.servers = read(&self.file, &self.own);
            }
        }
        list.servers.clone()
    }

    /// The first reply any server gives; none if none does in its time.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for server in self.servers().iter().copied() {
            let reply = async {
                match transport {
                    Transport::Udp => by_datagram(query, server).await,
                    Transport::Tcp => by_connection(query, server).await,
                }
            };
            match timeout(self.patience, reply).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => debug!(%server, %error, "upstream server failed"),
                Err(_) => debug!(%server, "upstream server did not reply in time"),
            }
        }
        None
    }
}

/// A socket of its own for each query: the system gives it a random port, which a forger of replies
/// would have to guess, and lets through nothing but what comes from that server.
async fn by_datagram(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let len = socket.recv(&mut buffer).await?;
        buffer.truncate(len);
        if is_reply(&buffer, query) {
            return Ok(buffer);
        }
        buffer.resize(MAX_MESSAGE, 0);
    }
}

async fn by_connection(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    write_message(&mut stream, query).await?;
    let reply = read_message(&mut stream).await?;
    if is_reply(&reply, query) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Whether these bytes are a response with the query's id.
fn is_reply(bytes: &[u8], query: &[u8]) -> bool {
    let id = |message: &[u8]| message.first_chunk::<2>().copied();
    let response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
    bytes.len() >= HEADER && response && id(bytes) == id(query)
}

fn read(file: &Path, own: &[SocketAddr]) -> Arc<[SocketAddr]> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| {
        warn!(file = %file.display(), %error, "the list of upstream DNS servers cannot be read");
        String::new()
    });
    let servers: Vec<SocketAddr> = parse(&text)
        .filter(|server| !own.iter().any(|own| is_own(*server, *own)))
        .collect();
    if servers.is_empty() {
        let file = file.display();
        warn!(%file, "no upstream DNS server: names outside the domain are not found; name one in that file");
    } else {
        info!(?servers, "upstream DNS servers");
    }
    servers.into()
}

/// The servers a `resolv.conf` lists, each once. One may have a port (`10.0.0.1:5353`, `[::1]:5353`),
/// which C libraries do not know.
fn parse(text: &str) -> impl Iterator<Item = SocketAddr> {
    let mut seen = Vec::new();
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        let word = words.next().unwrap_or_default();
        let plain = word.parse().map(|ip| SocketAddr::new(ip, PORT));
        let Ok(server) = plain.or_else(|_| word.parse()) else {
            warn!(
                server = word,
                "upstream DNS server left out: not an IP address"
            );
            return None;
        };
        let new = !seen.contains(&server);
        seen.push(server);
        new.then_some(server)
    })
}

/// Whether what is sent to `server` would come back to where we listen.
fn is_own(server: SocketAddr, own: SocketAddr) -> bool {
    let everywhere = own.ip().is_unspecified() && server.ip().is_loopback();
    server.port() == own.port() && (server.ip() == own.ip() || everywhere)
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// Where DNS servers listen.
const PORT: u16 = 53;
/// Bytes of a message's header.
const HEADER: usize = 12;
/// How old our knowledge of the file may be.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_in_order_each_once_and_the_rest_is_left_out() {
        let text = "# comment\nsearch example.com\nnameserver 10.0.0.2\n  nameserver\t::1 # x\nnameserver 10.0.0.2\n\
                    nameserver\nnameserver dns.example.com\nnameservers 10.0.0.9\nnameserver 10.0.0.3:5353\noptions edns0";
        let servers: Vec<String> = parse(text).map(|s| s.to_string()).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[::1]:53", "10.0.0.3:5353"]);
    }

    #[test]
    fn our_own_addresses_are_never_asked() {
        let file = written("nameserver 169.254.67.83\nnameserver 127.0.0.1\nnameserver 10.0.0.1\n");
        let servers = |own: &str| {
            let upstream = Upstream::new(
                file.path().to_owned(),
                vec![own.parse().unwrap()],
                Duration::ZERO,
            );
            upstream
                .servers()
                .iter()
                .map(|s| s.ip().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(servers("169.254.67.83:53"), ["127.0.0.1", "10.0.0.1"]);
        assert_eq!(servers("0.0.0.0:53"), ["169.254.67.83", "10.0.0.1"]);
        assert_eq!(
            servers("127.0.0.1:5353").len(),
            3,
            "another port is another server"
        );
    }

    #[test]
    fn the_file_is_read_again_when_it_changed_and_some_seconds_went_by() {
        let file = written("nameserver 10.0.0.1\n");
        let upstream = Upstream::new(file.path().to_owned(), Vec::new(), Duration::ZERO);
        let start = Instant::now();
        fs::write(file.path(), "nameserver 10.0.0.22\n").unwrap();
        let first = |now| upstream.servers_at(now).first().map(|s| s.ip().to_string());
        assert_eq!(first(start + LOOK_AGAIN / 2).as_deref(), Some("10.0.0.1"));
        assert_eq!(first(start + LOOK_AGAIN).as_deref(), Some("10.0.0.22"));
        fs::remove_file(file.path()).unwrap();
        assert_eq!(first(start + LOOK_AGAIN * 2), None);
    }

    #[test]
    fn a_missing_file_means_no_servers() {
        let upstream = Upstream::new(
            "/nonexistent/resolv.conf".into(),
            Vec::new(),
            Duration::ZERO,
        );
        assert!(upstream.servers().is_empty());
    }

    #[test]
    fn only_a_response_with_the_same_id_is_a_reply() {
        let query = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let with = |at: usize, value: u8| {
            let mut bytes = query;
            bytes[2] = 0x80;
            bytes[at] = value;
            is_reply(&bytes, &query)
        };
        assert!(with(3, 0));
        assert!(!with(0, 8) && !with(1, 8) && !with(2, 1));
        assert!(!is_reply(&[7, 7, 0x80], &query));
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }
}
