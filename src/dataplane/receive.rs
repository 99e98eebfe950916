//! From the peers to the TAP, and on to other peers: trains received, each datagram opened and decided on by
//! itself, frames that came in pieces made whole, frames of one flow put together again for the TAP. Questions
//! about the path are answered here, so that no control side, however busy, makes a path look dead.
//!
//! As long as frames wait to be put together the socket is asked without waiting; when it is empty, they
//! go. So merging costs no time that there was anything else to do in. While short ones come one by one, each
//! goes before the socket is asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver as Commands;
use std::time::Instant;

use foldhash::fast::RandomState;
use weft_net::datagrams::recv_train;
use weft_net::priority;
use weft_net::tap::Tap;
use weft_router::ConnId;
use weft_router::drop_reason::DropReason;
use weft_router::flood::Seen;
use weft_router::fragment::Reassembly;
use weft_router::macs::Location;
use weft_router::offload::{Merge, Merged, Partial, checksum_place};
use weft_router::session::OpenError;
use weft_router::switch::{self, Flooded, Received};
use weft_wire::message::{FloodHeader, FragmentHeader, Heartbeat, Message, Probe, UnicastHeader};
use weft_wire::packet::{Header, ReceiverIndex};
use weft_wire::{Frame, Network, PeerName};

use super::batch::Batch;
use super::forwarding::{Egress, Forwarding};
use super::{BUFFER, Command, Receiver, Report, SHORT, Shared, Sighting, add};

/// What this loop alone owns.
struct Loop<'a> {
    shared: &'a Shared,
    commands: &'a Commands<Command>,
    receivers: HashMap<ReceiverIndex, Receiver, RandomState>,
    /// What has come of messages in pieces, of neighbours that have ever sent any.
    pieces: HashMap<ConnId, Reassembly>,
    whole: Whole<'a>,
}

/// Where messages go once they are whole.
struct Whole<'a> {
    shared: &'a Shared,
    seen: Seen,
    /// Frames for other peers.
    relay: Batch,
    /// Frames for the TAP of `network`.
    merge: Merge,
    network: Network,
}

pub(super) fn run(shared: &Shared, commands: &Commands<Command>) {
    // Not the capturing loop: what a sender gets written before it is stopped goes in one train.
    if let Err(error) = priority::go_first() {
        tracing::debug!(%error, "the receiving loop takes its turn with everybody else");
    }
    let mut buffer = vec![0; BUFFER];
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    let mut this = Loop {
        shared,
        commands,
        receivers: HashMap::default(),
        pieces: HashMap::new(),
        whole: Whole {
            shared,
            seen: Seen::new(),
            relay: Batch::new(),
            merge: Merge::new(shared.tap.cuts_udp()),
            network: Network::DEFAULT,
        },
    };
    // Whether what came last came alone, and whether it went on before that was known.
    let (mut alone, mut unlooked) = (false, false);
    loop {
        let waits = !unlooked && !this.whole.merge.is_waiting();
        let received = recv_train(&shared.socket, &mut buffer, waits);
        this.take_commands();
        // Nothing came within the read timeout, which is there so that commands are taken without
        // traffic too, or nothing waits there; or it is an ICMP answer to something we sent. The socket
        // goes on.
        let Ok(Some(train)) = received else {
            this.whole.flush(forwarding.load());
            this.expire();
            unlooked = false;
            continue;
        };
        let datagrams = buffer.get_mut(..train.len).unwrap_or_default();
        // An empty datagram is none that a peer sends.
        let datagrams = datagrams.chunks_mut(train.size.max(1));
        add(&shared.counters.datagrams_received, datagrams.len());
        for datagram in datagrams {
            if let Err(reason) = this.datagram(datagram, train.from, forwarding.load()) {
                shared.counters.drop(reason, 1);
            }
        }
        this.whole.relay.flush(shared);
        let short = train.len < SHORT && train.size == train.len;
        if alone && waits && short {
            this.whole.flush(forwarding.load());
            unlooked = true;
        }
        alone = waits && short;
    }
}

impl Loop<'_> {
    fn datagram(
        &mut self,
        bytes: &mut [u8],
        from: SocketAddr,
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let header = Header::parse(bytes).map_err(|_| DropReason::MalformedPacket)?;
        let receiver = self
            .receivers
            .get_mut(&header.receiver)
            .ok_or(DropReason::UnknownReceiver)?;
        let message = receiver
            .session
            .open(bytes)
            .map_err(OpenError::drop_reason)?;
        receiver.activity.note_heard();
        let (conn, peer) = (receiver.conn, receiver.peer);
        match Message::parse(message).map_err(|_| DropReason::MalformedPacket)? {
            message @ (Message::Unicast(..) | Message::Flood(..)) => {
                accepts(forwarding, peer)?;
                self.whole.message(message, peer, forwarding)
            }
            Message::Fragment(header, piece) => {
                accepts(forwarding, peer)?;
                self.piece(header, piece, (conn, peer), forwarding)
            }
            Message::Heartbeat(heartbeat) => {
                let answer = heartbeat.answer().map(Heartbeat::emit);
                self.answer(conn, from, answer.as_ref(), forwarding);
                self.shared.report(Report::Heartbeat {
                    conn,
                    from,
                    heartbeat,
                });
                Ok(())
            }
            Message::Probe(probe) => {
                let answer = probe.answer().map(Probe::emit);
                self.answer(conn, from, answer.as_ref(), forwarding);
                if probe.reply {
                    let answer = probe;
                    self.shared.report(Report::Probed { conn, answer });
                }
                Ok(())
            }
        }
    }

    /// Sends an answer to where the question came from. The peer may have our key before we have its:
    /// it asks again.
    fn answer<const N: usize>(
        &self,
        conn: ConnId,
        to: SocketAddr,
        answer: Option<&[u8; N]>,
        forwarding: &Forwarding,
    ) {
        if let (Some(answer), Some(egress)) = (answer, forwarding.sessions.get(&conn)) {
            self.shared.send_short(&egress.session, to, answer);
        }
    }

    fn piece(
        &mut self,
        header: FragmentHeader,
        piece: &[u8],
        (conn, peer): (ConnId, PeerName),
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let now = Instant::now();
        let pieces = self.pieces.entry(conn);
        let pieces = pieces.or_insert_with(|| Reassembly::new(now));
        let message = pieces.push(header, piece, now);
        let done = match message.map_err(|_| DropReason::MalformedPacket)? {
            None => Ok(()),
            Some(bytes) => {
                add(&self.shared.counters.frames_joined, 1);
                let message = Message::parse(bytes).map_err(|_| DropReason::MalformedPacket)?;
                self.whole.message(message, peer, forwarding)
            }
        };
        self.shared
            .counters
            .drop(DropReason::FragmentLost, pieces.take_lost());
        done
    }

    /// Gives up frames whose last piece does not come.
    fn expire(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        let now = Instant::now();
        for pieces in self.pieces.values_mut() {
            pieces.expire(now);
            let lost = pieces.take_lost();
            self.shared.counters.drop(DropReason::FragmentLost, lost);
        }
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Install(index, receiver) => {
                    self.receivers.insert(index, receiver);
                }
                Command::Retire(index) => {
                    self.receivers.remove(&index);
                }
                Command::Uninstall(conn) => {
                    self.receivers.retain(|_, r| r.conn != conn);
                    self.pieces.remove(&conn);
                }
            }
        }
    }
}

impl Whole<'_> {
    fn message(
        &mut self,
        message: Message<'_>,
        from: PeerName,
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        match message {
            Message::Unicast(header, frame) => self.unicast(header, frame, forwarding),
            Message::Flood(header, frame) => self.flood(header, frame, from, forwarding),
            // Nobody splits these.
            Message::Heartbeat(_) | Message::Fragment(..) | Message::Probe(_) => {
                Err(DropReason::MalformedPacket)
            }
        }
    }

    fn unicast(
        &mut self,
        header: UnicastHeader,
        bytes: &[u8],
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let frame = Frame::new_checked(bytes).map_err(|_| DropReason::MalformedFrame)?;
        match switch::decide_unicast(&header, &frame, &forwarding.view()) {
            Received::Drop(reason) => Err(reason),
            Received::Deliver => {
                let unfinished = if header.unfinished {
                    Some(checksum_place(bytes).ok_or(DropReason::MalformedFrame)?)
                } else {
                    None
                };
                let UnicastHeader {
                    network, source, ..
                } = header;
                self.deliver(&frame, unfinished, network, source, forwarding)
            }
            Received::Relay => {
                let way = forwarding.ways.get(&header.destination);
                let egress = &way.ok_or(DropReason::NoRoute)?.egress;
                let header = UnicastHeader {
                    hops: header.hops.saturating_sub(1),
                    ..header
                };
                self.pass(egress, &header.emit(), bytes);
                Ok(())
            }
        }
    }

    fn flood(
        &mut self,
        header: FloodHeader,
        bytes: &[u8],
        from: PeerName,
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let frame = Frame::new_checked(bytes).map_err(|_| DropReason::MalformedFrame)?;
        let (view, now) = (forwarding.view(), Instant::now());
        match switch::decide_flood(&header, &frame, &view, &mut self.seen, now) {
            Flooded::Drop(reason) => return Err(reason),
            Flooded::Deliver => {}
            Flooded::DeliverAndPassOn => self.pass_on(header, bytes, from, forwarding),
        }
        self.deliver(&frame, None, header.network, header.origin, forwarding)
    }

    fn pass_on(
        &mut self,
        header: FloodHeader,
        frame: &[u8],
        from: PeerName,
        forwarding: &Forwarding,
    ) {
        let onward = FloodHeader {
            hops: header.hops.saturating_sub(1),
            ..header
        };
        for egress in forwarding
            .flood_to(header.origin)
            .iter()
            .filter(|e| e.peer != from)
        {
            self.pass(egress, &onward.emit(), frame);
        }
    }

    fn pass(&mut self, egress: &Arc<Egress>, header: &[u8], frame: &[u8]) {
        add(&self.shared.counters.frames_relayed, 1);
        let write = |room: &mut [u8]| room.copy_from_slice(frame);
        self.relay
            .push(self.shared, egress, header, frame.len(), write);
    }

    fn deliver(
        &mut self,
        frame: &Frame<'_>,
        unfinished: Option<Partial>,
        network: Network,
        source: PeerName,
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let shared = self.shared;
        let tap = shared
            .tap_of(network, forwarding)
            .ok_or(DropReason::UnknownNetwork)?;
        let mac = frame.src();
        let at = Location::Peer(source);
        if forwarding.macs.is_news(network, mac, at) {
            self.shared.report_mac(Sighting { network, mac, at });
        }
        // A frame must not meet those of another network.
        if network != self.network {
            self.flush(forwarding);
            self.network = network;
        }
        self.merge.push(frame.bytes(), unfinished, |merged| {
            inject(shared, tap, &merged)
        });
        Ok(())
    }

    /// Hands on what waits to be put together with more.
    fn flush(&mut self, forwarding: &Forwarding) {
        let shared = self.shared;
        let tap = shared.tap_of(self.network, forwarding);
        self.merge.flush(|merged| match tap {
            Some(tap) => inject(shared, tap, &merged),
            // The host left the network meanwhile.
            None => shared
                .counters
                .drop(DropReason::UnknownNetwork, merged.frames),
        });
    }
}

/// Frames are taken only over established connections: before, the rings may still differ.
fn accepts(forwarding: &Forwarding, peer: PeerName) -> Result<(), DropReason> {
    if forwarding.neighbours.contains_key(&peer) {
        Ok(())
    } else {
        Err(DropReason::NotReady)
    }
}

fn inject(shared: &Shared, tap: &Tap, merged: &Merged<'_>) {
    match tap.send(&merged.header.emit(), merged.frame) {
        Ok(()) => {
            add(&shared.counters.frames_injected, merged.frames);
            add(&shared.counters.bytes_injected, merged.frame.len());
        }
        Err(_) => shared.counters.drop(DropReason::TapFull, merged.frames),
    }
}
