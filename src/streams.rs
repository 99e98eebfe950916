//! The TCP streams under the control connections: accept, dial, read, write.
//!
//! Bytes only; what they mean is the router machine's affair. Each stream has a reading task, which
//! hands what it got to the node's mailbox and waits while that is full, and a writing task, fed by
//! a queue whose bytes are counted: a neighbour that does not read is cut off instead of filling the
//! memory, and never holds up another one.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;
use weft_router::ConnId;

use crate::event::Input;

/// How long a host name and then a TCP connection may take before the dial counts as failed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one host name that are tried at one dial.
const MAX_ADDRESSES: usize = 8;
/// What may wait to be written to one neighbour, in bytes: eight of the longest control messages.
const MAX_QUEUED: usize = 8 * weft_wire::control::MAX_CONTROL;
/// How long a closed stream may take to send what is queued (a refusal, a farewell).
const LINGER: Duration = Duration::from_secs(2);
/// How long sent bytes may stay unacknowledged before the kernel ends the stream (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest TCP segment, which every path carries (RFC 9293 §3.7.1): where longer packets are lost without
/// a word the control connection would stand still, and it is what finds out about the path.
const SEGMENT: u32 = 536;
const READ_BUFFER: usize = 16 * 1024;

/// All open streams of this router.
pub(crate) struct Streams {
    inputs: mpsc::Sender<Input>,
    /// Local address to dial from, where `--host` named one.
    source: Option<IpAddr>,
    open: BTreeMap<ConnId, Stream>,
    dialling: BTreeMap<ConnId, JoinHandle<()>>,
}

struct Stream {
    writer: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
    /// This host's address.
    local: Option<IpAddr>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The neighbour does not read what we send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not read: {MAX_QUEUED} bytes are waiting to be sent")]
pub(crate) struct QueueFull;

impl Streams {
    pub(crate) fn new(inputs: mpsc::Sender<Input>, source: Option<IpAddr>) -> Self {
        Self {
            inputs,
            source,
            open: BTreeMap::new(),
            dialling: BTreeMap::new(),
        }
    }

    /// Resolves `host` afresh and connects to it; the outcome arrives as [`Input::Dialed`].
    pub(crate) fn dial(&mut self, conn: ConnId, host: String, port: u16) {
        self.dialling.retain(|_, task| !task.is_finished());
        let inputs = self.inputs.clone();
        let source = self.source;
        let task = tokio::spawn(async move {
            let outcome = timeout(DIAL_TIMEOUT, connect(&host, port, source))
                .await
                .unwrap_or_else(|_| {
                    Err(format!(
                        "no answer from {host} port {port} within {} s",
                        DIAL_TIMEOUT.as_secs()
                    ))
                });
            let _ = inputs.send(Input::Dialed { conn, outcome }).await;
        });
        self.dialling.insert(conn, task);
    }

    /// Takes over a connected stream: its bytes arrive as [`Input::Bytes`], its end as [`Input::Closed`].
    pub(crate) fn open(&mut self, conn: ConnId, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        // Without it a writing task would wait for ever on a neighbour that went away silently.
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
        let local = stream.local_addr().ok();
        let local = local.map(|local| local.ip().to_canonical());
        let (read, write) = stream.into_split();
        let (writer, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn(read_all(conn, read, self.inputs.clone()));
        tokio::spawn(write_all(write, queue, queued.clone()));
        self.open.insert(
            conn,
            Stream {
                writer,
                queued,
                reader,
                local,
            },
        );
    }

    /// Queues bytes for a stream; for one that has ended they are dropped.
    ///
    /// # Errors
    /// [`QueueFull`]: the caller closes the connection.
    pub(crate) fn send(&mut self, conn: ConnId, bytes: Vec<u8>) -> Result<(), QueueFull> {
        let Some(stream) = self.open.get(&conn) else {
            return Ok(());
        };
        let len = bytes.len();
        if stream.queued.fetch_add(len, Ordering::Relaxed) + len > MAX_QUEUED {
            return Err(QueueFull);
        }
        let _ = stream.writer.send(bytes);
        Ok(())
    }

    /// Streams from an address that this host does not have any more: nothing will come by them.
    pub(crate) fn stranded(&self) -> Vec<(ConnId, IpAddr)> {
        let mut known = BTreeMap::new();
        let streams = self.open.iter();
        let local = streams.filter_map(|(conn, stream)| Some((*conn, stream.local?)));
        local
            .filter(|(_, ip)| !*known.entry(*ip).or_insert_with(|| is_here(*ip)))
            .collect()
    }

    /// Ends a stream or a dial; what is queued is still sent, for a short while.
    pub(crate) fn close(&mut self, conn: ConnId) {
        self.open.remove(&conn);
        if let Some(task) = self.dialling.remove(&conn) {
            task.abort();
        }
    }
}

/// Whether an address is this host's.
fn is_here(ip: IpAddr) -> bool {
    let bound = std::net::UdpSocket::bind((ip, 0));
    bound.map_or_else(|e| e.kind() != io::ErrorKind::AddrNotAvailable, |_| true)
}

/// Binds the control port.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket2::SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.set_reuseaddr(true)?;
    // Accepted streams have it from here.
    socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    socket.bind(addr)?;
    socket.listen(128)
}

/// Hands every accepted stream to the node.
pub(crate) async fn accept_all(listener: TcpListener, inputs: mpsc::Sender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let remote = weft_net::udp::canonical(remote);
                if inputs
                    .send(Input::Accepted { stream, remote })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                // Out of file descriptors, or a client that was gone before we came: neither is
                // mended by asking again at once.
                debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connect(
    host: &str,
    port: u16,
    source: Option<IpAddr>,
) -> Result<(TcpStream, SocketAddr), String> {
    let addresses = lookup_host((host, port))
        .await
        .map_err(|e| format!("cannot resolve {host}: {e}"))?;
    let mut why = format!("{host} has no address");
    let addresses: Vec<_> = addresses.take(MAX_ADDRESSES).collect();
    // One that is dead must leave time for the others.
    let share = DIAL_TIMEOUT / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    for address in addresses {
        match timeout(share, connect_one(address, source)).await {
            Ok(Ok(stream)) => return Ok((stream, weft_net::udp::canonical(address))),
            Ok(Err(e)) => why = format!("cannot connect to {address}: {e}"),
            Err(_) => why = format!("no answer from {address} within {share:?}"),
        }
    }
    Err(why)
}

async fn connect_one(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    if let Some(source) = source.filter(|s| s.is_ipv4() == address.is_ipv4() && !s.is_unspecified())
    {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

async fn read_all(conn: ConnId, mut stream: OwnedReadHalf, inputs: mpsc::Sender<Input>) {
    let mut buffer = vec![0; READ_BUFFER];
    let why = loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break "the other side closed the connection".to_owned(),
            Ok(n) => {
                let bytes = buffer.get(..n).unwrap_or_default().to_vec();
                if inputs.send(Input::Bytes { conn, bytes }).await.is_err() {
                    return;
                }
            }
            Err(e) => break e.to_string(),
        }
    };
    let _ = inputs.send(Input::Closed { conn, why }).await;
}

async fn write_all(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    queued: Arc<AtomicUsize>,
) {
    while let Some(bytes) = queue.recv().await {
        let written = if queue.is_closed() {
            timeout(LINGER, stream.write_all(&bytes))
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        } else {
            stream.write_all(&bytes).await
        };
        queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        if written.is_err() {
            // The reading task sees the same end and tells the node.
            return;
        }
    }
    let _ = timeout(LINGER, stream.shutdown()).await;
}
