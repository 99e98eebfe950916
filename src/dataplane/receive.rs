//! From the peers to the TAP, and on to other peers: one datagram opened and decided at a time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver as Commands;

use weft_router::drop_reason::DropReason;
use weft_router::flood::Seen;
use weft_router::macs::Location;
use weft_router::session::OpenError;
use weft_router::switch::{self, Flooded, Received};
use weft_wire::message::{FloodHeader, Message, UnicastHeader};
use weft_wire::packet::{HEADER_LEN, Header, OVERHEAD, ReceiverIndex, TAG_LEN};
use weft_wire::{Frame, PeerName};

use super::capture::with_header;
use super::forwarding::Forwarding;
use super::{BUFFER, Command, Receiver, Report, Shared, Sighting, add};

/// What this loop alone owns.
struct Loop<'a> {
    shared: &'a Shared,
    commands: &'a Commands<Command>,
    receivers: HashMap<ReceiverIndex, Receiver>,
    seen: Seen,
    relay: Vec<u8>,
}

pub(super) fn run(shared: &Shared, commands: &Commands<Command>) {
    let mut datagram = vec![0; BUFFER];
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    let mut this = Loop {
        shared,
        commands,
        receivers: HashMap::new(),
        seen: Seen::new(),
        relay: vec![0; BUFFER],
    };
    loop {
        let received = shared.socket.recv_from(&mut datagram);
        this.take_commands();
        // An error is the read timeout, which is there so that commands are taken without traffic
        // too, or an ICMP answer to something we sent; the socket goes on.
        let Ok((len, from)) = received else {
            continue;
        };
        add(&shared.counters.datagrams_received, 1);
        let bytes = datagram.get_mut(..len).unwrap_or_default();
        if let Err(reason) = this.datagram(bytes, weft_net::udp::canonical(from), forwarding.load())
        {
            shared.counters.drop(reason);
        }
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
        let (conn, peer) = (receiver.conn, receiver.peer);
        match Message::parse(message).map_err(|_| DropReason::MalformedPacket)? {
            Message::Heartbeat(heartbeat) => {
                self.shared.report(Report::Heartbeat {
                    conn,
                    from,
                    heartbeat,
                });
                Ok(())
            }
            Message::Unicast(header, frame) => {
                accepts(forwarding, peer)?;
                self.unicast(header, frame, forwarding)
            }
            Message::Flood(header, frame) => {
                accepts(forwarding, peer)?;
                self.flood(header, frame, peer, forwarding)
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
            Received::Deliver => self.inject(&frame, header.network, header.source, forwarding),
            Received::Relay => {
                let egress = forwarding
                    .next_hops
                    .get(&header.destination)
                    .ok_or(DropReason::NoRoute)?;
                let header = UnicastHeader {
                    hops: header.hops.saturating_sub(1),
                    ..header
                };
                let datagram = lay_out(&mut self.relay, &header.emit(), bytes)
                    .ok_or(DropReason::MalformedFrame)?;
                add(&self.shared.counters.frames_relayed, 1);
                self.shared.send_frame(egress, datagram);
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
        match switch::decide_flood(&header, &frame, &forwarding.view(), &mut self.seen) {
            Flooded::Drop(reason) => return Err(reason),
            Flooded::Deliver => {}
            Flooded::DeliverAndPassOn => self.pass_on(header, bytes, from, forwarding),
        }
        self.inject(&frame, header.network, header.origin, forwarding)
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
            if let Some(datagram) = lay_out(&mut self.relay, &onward.emit(), frame) {
                add(&self.shared.counters.frames_relayed, 1);
                self.shared.send_frame(egress, datagram);
            }
        }
    }

    fn inject(
        &self,
        frame: &Frame<'_>,
        network: weft_wire::Network,
        source: PeerName,
        forwarding: &Forwarding,
    ) -> Result<(), DropReason> {
        let mac = frame.src();
        let at = Location::Peer(source);
        if forwarding.macs.is_news(network, mac, at) {
            self.shared.report_mac(Sighting { network, mac, at });
        }
        let bytes = frame.bytes();
        self.shared
            .tap
            .send(bytes)
            .map_err(|_| DropReason::TapFull)?;
        add(&self.shared.counters.frames_injected, 1);
        add(&self.shared.counters.bytes_injected, bytes.len());
        Ok(())
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
                Command::Uninstall(conn) => self.receivers.retain(|_, r| r.conn != conn),
            }
        }
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

/// Lays a frame out for sealing: room for the packet header, the message header, the frame, the tag.
fn lay_out<'a>(buffer: &'a mut [u8], header: &[u8], frame: &[u8]) -> Option<&'a mut [u8]> {
    let message = header.len() + frame.len();
    let start = HEADER_LEN + header.len();
    buffer
        .get_mut(start..start + frame.len())?
        .copy_from_slice(frame);
    let end = message + OVERHEAD;
    debug_assert_eq!(end, start + frame.len() + TAG_LEN);
    with_header(buffer, HEADER_LEN, end, header)
}
