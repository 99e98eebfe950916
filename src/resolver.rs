//! The resolver: DNS sockets around `weft_dns::answer`, and the way to upstream servers.
//!
//! Names of containers are answered from a copy of the name table that the node replaces; the rest is
//! passed on as it came and the reply passed back as it came. Nothing a client sends ends the service
//! or takes it from others: what a client may have under way is bounded, in total and for each client,
//! and one that does not go on is hung up on.
//!
//! [`upstream`] holds the servers to ask and asks them, [`quota`] the bounds.

mod quota;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use socket2::{Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;
use weft_dns::{Answer, Domain, NameTable, Transport, Verdict, View, answer, failure};

use self::quota::Quota;
use self::upstream::Upstream;

/// What a resolver is started with.
#[derive(Debug, Clone)]
pub(crate) struct ResolverConfig {
    /// Where to listen, over UDP and TCP each; the addresses must be on this host already.
    pub(crate) listen: Vec<SocketAddr>,
    /// The domain that is ours.
    pub(crate) domain: Domain,
    /// How long clients may keep an answer, in seconds.
    pub(crate) ttl: u32,
    /// The file that lists the upstream servers.
    pub(crate) resolv_conf: PathBuf,
    /// How long each upstream server has to reply.
    pub(crate) fallback_timeout: Duration,
}

/// The running service; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Resolver {
    service: Arc<Service>,
    /// Those that listen for whoever reaches the addresses; aborted when dropped.
    _tasks: JoinSet<()>,
    listen: Vec<SocketAddr>,
    /// Those that listen for the containers at one bridge, by its name.
    bridges: BTreeMap<String, JoinSet<()>>,
}

impl Resolver {
    /// Listens on all addresses and answers from what `table` holds at each query.
    pub(crate) fn start(
        config: ResolverConfig,
        table: Arc<ArcSwap<NameTable>>,
    ) -> Result<Self, StartError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(StartError::Randomness)?;
        let mut sockets = Vec::new();
        for address in &config.listen {
            sockets.push(bind(*address, None)?);
        }
        let listen = config.listen.clone();
        let service = Arc::new(Service {
            table,
            domain: config.domain,
            ttl: config.ttl,
            rng: Mutex::new(ChaCha20Rng::from_seed(seed)),
            upstream: Upstream::new(config.resolv_conf, config.listen, config.fallback_timeout),
            flights: Quota::new(MAX_FLIGHTS, MAX_FLIGHTS / 2),
            connections: Quota::new(MAX_CONNECTIONS, MAX_CONNECTIONS / 2),
            counters: Counters::default(),
        });
        let mut tasks = JoinSet::new();
        for (udp, tcp) in sockets {
            tasks.spawn(serve_datagrams(service.clone(), Arc::new(udp)));
            tasks.spawn(serve_connections(service.clone(), tcp));
        }
        Ok(Self {
            service,
            _tasks: tasks,
            listen,
            bridges: BTreeMap::new(),
        })
    }

    /// Listens at each of these bridges for itself, and no more at any other. So a question's answer
    /// leaves by the bridge the question came in by, where several networks have one subnet. Returns
    /// why it does not where it cannot.
    pub(crate) fn listen_at(&mut self, bridges: BTreeSet<String>) -> Vec<StartError> {
        self.bridges.retain(|bridge, _| bridges.contains(bridge));
        let mut failed = Vec::new();
        for bridge in bridges {
            if self.bridges.contains_key(&bridge) {
                continue;
            }
            let sockets = self
                .listen
                .iter()
                .map(|address| bind(*address, Some(&bridge)));
            match sockets.collect::<Result<Vec<_>, _>>() {
                Ok(sockets) => {
                    let mut tasks = JoinSet::new();
                    for (udp, tcp) in sockets {
                        tasks.spawn(serve_datagrams(self.service.clone(), Arc::new(udp)));
                        tasks.spawn(serve_connections(self.service.clone(), tcp));
                    }
                    self.bridges.insert(bridge, tasks);
                }
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    /// The servers that are asked what is not ours, in this order.
    pub(crate) fn upstream(&self) -> Vec<SocketAddr> {
        self.service.upstream.servers().to_vec()
    }

    /// How many queries ended in each way since the start.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().map(|outcome| {
            (
                outcome,
                self.service.counters.of(outcome).load(Ordering::Relaxed),
            )
        })
    }
}

/// Why the resolver does not run.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// An address that cannot be listened on.
    #[error(
        "DNS cannot listen on {address} ({transport}): {}, or start without names (--no-dns)",
        remedy(source)
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random numbers")]
    Randomness(#[source] getrandom::Error),
}

/// How a query ended; the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered from the name table.
    Found,
    /// A name of ours without a record of that type.
    NoData,
    /// A name that would be ours, but nobody has it.
    NoName,
    /// Not something we answer: malformed, a zone transfer.
    Refused,
    /// An upstream server replied.
    Forwarded,
    /// No upstream server replied.
    Unanswered,
    /// Not forwarded, because too many queries wait for upstream servers.
    Overload,
    /// Not a query.
    Ignored,
}

impl Outcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 8] = [
        Self::Found,
        Self::NoData,
        Self::NoName,
        Self::Refused,
        Self::Forwarded,
        Self::Unanswered,
        Self::Overload,
        Self::Ignored,
    ];

    /// As the metric has it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NoData => "no_data",
            Self::NoName => "no_name",
            Self::Refused => "refused",
            Self::Forwarded => "forwarded",
            Self::Unanswered => "unanswered",
            Self::Overload => "overload",
            Self::Ignored => "ignored",
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Found => Self::Found,
            Verdict::NoData => Self::NoData,
            Verdict::NoName => Self::NoName,
            Verdict::Refused => Self::Refused,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    found: AtomicU64,
    no_data: AtomicU64,
    no_name: AtomicU64,
    refused: AtomicU64,
    forwarded: AtomicU64,
    unanswered: AtomicU64,
    overload: AtomicU64,
    ignored: AtomicU64,
}

impl Counters {
    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::Found => &self.found,
            Outcome::NoData => &self.no_data,
            Outcome::NoName => &self.no_name,
            Outcome::Refused => &self.refused,
            Outcome::Forwarded => &self.forwarded,
            Outcome::Unanswered => &self.unanswered,
            Outcome::Overload => &self.overload,
            Outcome::Ignored => &self.ignored,
        }
    }

    fn add(&self, outcome: Outcome) {
        self.of(outcome).fetch_add(1, Ordering::Relaxed);
    }
}

/// What all tasks share.
struct Service {
    table: Arc<ArcSwap<NameTable>>,
    domain: Domain,
    ttl: u32,
    rng: Mutex<ChaCha20Rng>,
    upstream: Upstream,
    /// Queries on their way to an upstream server.
    flights: Quota,
    connections: Quota,
    counters: Counters,
}

impl Service {
    fn answer(&self, query: &[u8], transport: Transport) -> Answer {
        let table = self.table.load();
        let view = View {
            table: &table,
            domain: &self.domain,
            ttl: self.ttl,
        };
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answer(query, transport, &view, &mut *rng);
        match &answer {
            Answer::Reply { verdict, .. } => self.counters.add((*verdict).into()),
            Answer::Ignore => self.counters.add(Outcome::Ignored),
            // Counted when it is known what became of it.
            Answer::Forward => {}
        }
        answer
    }

    /// The reply of the first upstream server that gives one, else that there was none.
    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self.upstream.ask(query, transport).await {
            Some(reply) => {
                self.counters.add(Outcome::Forwarded);
                Some(reply)
            }
            None => {
                self.counters.add(Outcome::Unanswered);
                failure(query)
            }
        }
    }

    fn overload(&self, query: &[u8], client: IpAddr) -> Option<Vec<u8>> {
        debug!(%client, "too many queries wait for upstream servers: one more is refused");
        self.counters.add(Outcome::Overload);
        failure(query)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// Sockets for an address, for what comes in by one link or by any. Of those that would take a packet
/// the kernel prefers the one made last, so those of bridges come after the others.
fn bind(address: SocketAddr, link: Option<&str>) -> Result<(UdpSocket, TcpListener), StartError> {
    let failed = |transport| {
        move |source| StartError::Bind {
            address,
            transport,
            source,
        }
    };
    let udp = socket(address, link, Type::DGRAM).map_err(failed("UDP"))?;
    let udp = UdpSocket::from_std(udp.into()).map_err(failed("UDP"))?;
    // With port 0 the system chooses one, which must be the same for both.
    let chosen = udp.local_addr().map_err(failed("UDP"))?;
    let tcp = socket(chosen, link, Type::STREAM).map_err(failed("TCP"))?;
    tcp.listen(BACKLOG).map_err(failed("TCP"))?;
    let tcp = TcpListener::from_std(tcp.into()).map_err(failed("TCP"))?;
    Ok((udp, tcp))
}

fn socket(address: SocketAddr, link: Option<&str>, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(socket2::Domain::for_address(address), kind, None)?;
    if link.is_some() {
        socket.set_reuse_port(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if let Some(link) = link {
        socket.bind_device(Some(link.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // From here on more sockets of ours may have the address; before, one that is there would be
    // somebody else's.
    socket.set_reuse_port(true)?;
    Ok(socket)
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "another DNS server has that address: give a free one with --dns-listen-address"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "ports below 1024 need root or CAP_NET_BIND_SERVICE: run weft as root"
    } else {
        "give an address of this host with --dns-listen-address"
    }
}

async fn serve_datagrams(service: Arc<Service>, socket: Arc<UdpSocket>) {
    let mut flights = JoinSet::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        while flights.try_join_next().is_some() {}
        let (len, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "no query received");
                sleep(PAUSE).await;
                continue;
            }
        };
        let query = buffer.get(..len).unwrap_or_default();
        let reply = match service.answer(query, Transport::Udp) {
            Answer::Ignore => None,
            Answer::Reply { bytes, .. } => Some(bytes),
            Answer::Forward => match service.flights.enter(client.ip()) {
                None => service.overload(query, client.ip()),
                Some(place) => {
                    let (service, socket, query) =
                        (service.clone(), socket.clone(), query.to_owned());
                    flights.spawn(async move {
                        let _place = place;
                        let reply = service.forward(&query, Transport::Udp).await;
                        send(&socket, reply, client).await;
                    });
                    None
                }
            },
        };
        send(&socket, reply, client).await;
    }
}

async fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, client: SocketAddr) {
    let Some(reply) = reply else { return };
    if let Err(error) = socket.send_to(&reply, client).await {
        // The client asks again when it misses the reply; more cannot be done about it here.
        debug!(%client, %error, "reply not sent");
    }
}

async fn serve_connections(service: Arc<Service>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "no connection accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        // One too many is closed at once; its client may come again.
        if let Some(place) = service.connections.enter(client.ip()) {
            let service = service.clone();
            connections.spawn(async move {
                let _place = place;
                let end = serve_connection(&service, stream, client.ip()).await;
                debug!(%client, ?end, "connection closed");
            });
        }
    }
}

/// Answers one query after the other; a client that wants them at the same time opens another
/// connection, so no more than one query of each is under way.
async fn serve_connection(service: &Service, stream: TcpStream, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let query = timeout(IDLE, read_message(&mut stream)).await??;
        let reply = match service.answer(&query, Transport::Tcp) {
            Answer::Ignore => return Ok(()),
            Answer::Reply { bytes, .. } => Some(bytes),
            Answer::Forward => match service.flights.enter(client) {
                None => service.overload(&query, client),
                Some(_place) => service.forward(&query, Transport::Tcp).await,
            },
        };
        if let Some(reply) = reply {
            timeout(IDLE, write_message(&mut stream, &reply)).await??;
        }
    }
}

/// Reads one message with the two bytes of length before it.
async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message with the two bytes of length before it, all at once.
async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream
        .write_all(&[&len.to_be_bytes(), message].concat())
        .await?;
    stream.flush().await
}

/// The longest DNS message: its length on a connection has 16 bits.
const MAX_MESSAGE: usize = 65_535;
/// Queries under way to upstream servers; each over UDP takes a socket.
const MAX_FLIGHTS: usize = 256;
/// Connections that may wait to be accepted at one address.
const BACKLOG: i32 = 64;
/// Open connections of clients.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may rest before its next query, and how long a query or a reply may take on
/// it (RFC 7766 §6.2.3 leaves it to the server).
const IDLE: Duration = Duration::from_secs(10);
/// Rest after an error of a socket, so that one that lasts (no file descriptors left) is not asked for
/// again and again.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
