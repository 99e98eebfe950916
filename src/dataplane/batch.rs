//! Datagrams on their way out, sealed one after another where they are sent from. A frame that is too long
//! for the path goes in pieces.
//!
//! Invariant: all are for one neighbour, and all but the last have the same length; whatever does not
//! go with them sends them first. So datagrams leave in the order they came, to whomever.

use std::sync::Arc;

use std::sync::atomic::Ordering;

use weft_net::datagrams::{MAX_TRAIN, MAX_TRAIN_BYTES, send_train};
use weft_router::drop_reason::DropReason;
use weft_router::fragment::Split;
use weft_wire::message::FRAGMENT_LEN;
use weft_wire::packet::{HEADER_LEN, OVERHEAD, TAG_LEN};

use super::{BUFFER, Egress, Report, Shared, add};

/// Datagrams that wait to be sent together.
pub(super) struct Batch {
    /// The datagrams; `len` bytes of it.
    buffer: Box<[u8]>,
    len: usize,
    count: usize,
    /// Length of the first one.
    size: usize,
    /// Whether the last one is shorter.
    closed: bool,
    to: Option<Arc<Egress>>,
    /// A message that goes in pieces.
    whole: Box<[u8]>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into(),
            len: 0,
            count: 0,
            size: 0,
            closed: false,
            to: None,
            whole: vec![0; BUFFER].into(),
        }
    }

    /// Seals one frame of `len` bytes, which `write` writes, behind its message header; in pieces, if one
    /// datagram would be too long for the path.
    pub(super) fn push(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        header: &[u8],
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let len = header.len() + len;
        let write = |room: &mut [u8]| {
            if let Some((head, frame)) = room.split_at_mut_checked(header.len()) {
                head.copy_from_slice(header);
                write(frame);
            }
        };
        if len + OVERHEAD > egress.limit {
            self.push_pieces(shared, egress, len, write);
        } else {
            self.put(shared, egress, len, write);
        }
    }

    fn push_pieces(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let room = egress.limit.saturating_sub(OVERHEAD + FRAGMENT_LEN);
        let mut buffer = std::mem::take(&mut self.whole);
        match (Split::new(len, room), buffer.get_mut(..len)) {
            (Some(split), Some(whole)) => {
                write(whole);
                add(&shared.counters.frames_split, 1);
                let number = shared.splits.fetch_add(1, Ordering::Relaxed);
                for (header, at) in split.pieces(number) {
                    let piece = whole.get(at).unwrap_or_default();
                    self.put(shared, egress, FRAGMENT_LEN + piece.len(), |room| {
                        if let Some((head, rest)) = room.split_at_mut_checked(FRAGMENT_LEN) {
                            head.copy_from_slice(&header.emit());
                            rest.copy_from_slice(piece);
                        }
                    });
                }
            }
            _ => shared.counters.drop(DropReason::MalformedFrame, 1),
        }
        self.whole = buffer;
    }

    /// Seals one message of `len` bytes, which `write` writes.
    fn put(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let datagram_len = len + OVERHEAD;
        if !self.takes(egress, datagram_len) {
            self.flush(shared);
        }
        let end = self.len + datagram_len;
        let Some(datagram) = self.buffer.get_mut(self.len..end) else {
            return shared.counters.drop(DropReason::MalformedFrame, 1);
        };
        if let Some(message) = datagram.get_mut(HEADER_LEN..datagram_len - TAG_LEN) {
            write(message);
        }
        if egress.session.seal(datagram).is_err() {
            return shared.counters.drop(DropReason::SessionExpired, 1);
        }
        if self.count == 0 {
            self.size = datagram_len;
            self.to = Some(egress.clone());
        }
        self.closed = datagram_len < self.size;
        self.count += 1;
        self.len = end;
    }

    /// Sends what waits. Never waits itself: what there is no room for is dropped.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let Some(egress) = self.to.take() else {
            return;
        };
        let train = self.buffer.get(..self.len).unwrap_or_default();
        let sent = send_train(&shared.socket, train, self.size, egress.remote);
        add(&shared.counters.datagrams_sent, sent.datagrams);
        if sent.singly {
            add(&shared.counters.trains_refused, 1);
        }
        if sent.too_long > 0 {
            let counters = &shared.counters;
            counters.drop(DropReason::DatagramTooLong, sent.too_long);
            shared.report(Report::TooLong {
                conn: egress.conn,
                size: self.size,
            });
        }
        let failed = self.count.saturating_sub(sent.datagrams + sent.too_long);
        shared.counters.drop(DropReason::SendFailed, failed);
        egress.activity.note_sent();
        if egress.session.needs_rekey() {
            shared.report(Report::RekeyDue { conn: egress.conn });
        }
        (self.len, self.count, self.size, self.closed) = (0, 0, 0, false);
    }

    fn takes(&self, egress: &Arc<Egress>, len: usize) -> bool {
        match &self.to {
            None => true,
            Some(to) => {
                Arc::ptr_eq(to, egress)
                    && !self.closed
                    && len <= self.size
                    && self.count < MAX_TRAIN
                    && self.len + len <= MAX_TRAIN_BYTES
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use arc_swap::ArcSwap;
    use dashmap::DashSet;
    use tokio::sync::mpsc;
    use weft_net::Netlink;
    use weft_net::bridge::add_address;
    use weft_net::netns::{NetNs, run_in};
    use weft_net::tap::Tap;
    use weft_net::taps::Waker;
    use weft_net::udp::bind_udp;
    use weft_router::ConnId;
    use weft_router::flood::FloodNumber;
    use weft_router::session::SendSession;
    use weft_wire::PeerName;
    use weft_wire::control::Suite;
    use weft_wire::packet::ReceiverIndex;

    use super::*;
    use crate::dataplane::{Activity, Counters, Forwarding};

    /// Nobody answers who has the neighbour's address, so what is sent there stays in the socket's buffer.
    #[test]
    fn what_a_full_socket_does_not_take_is_counted_and_waits_for_nobody() {
        in_namespace(|| {
            let socket = bind_udp("10.9.0.1:0".parse().unwrap()).unwrap();
            socket2::SockRef::from(&socket)
                .set_send_buffer_size(0)
                .unwrap();
            let (shared, _reports) = shared(socket);
            let egress = Arc::new(egress("10.9.0.2:6783"));
            let mut batch = Batch::new();
            let begin = Instant::now();
            for _ in 0..10 {
                for _ in 0..20 {
                    batch.push(&shared, &egress, &[1; 17], 1000, |room| room.fill(7));
                }
                batch.flush(&shared);
            }
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(1), "it took {took:?}");
            let sent = shared.counters.datagrams_sent.load(Ordering::Relaxed);
            let mut drops = shared.counters.drops();
            let (_, dropped) = drops
                .find(|(reason, _)| *reason == DropReason::SendFailed)
                .unwrap();
            assert_eq!((sent, dropped), (20, 180));
        });
    }

    fn in_namespace(test: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            return;
        }
        run_in(&NetNs::create().unwrap(), || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::new().unwrap();
                netlink.add_veth("u0", "u1").await.unwrap();
                let address = Ipv4Addr::new(10, 9, 0, 1).into();
                add_address(&netlink, "u0", address, 24).await.unwrap();
                for link in ["u0", "u1"] {
                    netlink.set_up(link).await.unwrap();
                }
            });
            test();
        })
        .unwrap();
    }

    fn shared(socket: UdpSocket) -> (Shared, mpsc::Receiver<Report>) {
        let us = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let first = Forwarding::empty(us, Ipv4Addr::LOCALHOST);
        let (reports, reported) = mpsc::channel(10);
        let shared = Shared {
            socket,
            tap: Tap::attach("weft-tap").unwrap(),
            waker: Waker::new().unwrap(),
            forwarding: ArcSwap::from_pointee(first),
            counters: Counters::default(),
            floods: FloodNumber::starting_at(0),
            splits: AtomicU32::new(0),
            reports,
            news: DashSet::new(),
        };
        (shared, reported)
    }

    fn egress(remote: &str) -> Egress {
        Egress {
            conn: ConnId(1),
            peer: PeerName::from_bytes([2, 0, 0, 0, 0, 2]),
            session: Arc::new(SendSession::new(
                Suite::Aes256Gcm,
                &[7; 32],
                ReceiverIndex(1),
            )),
            remote: remote.parse().unwrap(),
            limit: 1472,
            activity: Arc::new(Activity::default()),
        }
    }
}
