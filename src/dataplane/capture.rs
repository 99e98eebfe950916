//! From the TAP to the peers: one frame read, decided, sealed and sent at a time.

use std::thread;
use std::time::Duration;

use weft_router::drop_reason::DropReason;
use weft_router::flood::FloodNumber;
use weft_router::macs::Location;
use weft_router::switch::{self, Captured};
use weft_wire::message::{
    FLOOD_LEN, FloodHeader, HOP_LIMIT, MAX_FRAME_HEADER, UNICAST_LEN, UnicastHeader,
};
use weft_wire::packet::{HEADER_LEN, TAG_LEN};
use weft_wire::{Frame, Network};

use super::forwarding::Forwarding;
use super::{BUFFER, Shared, Sighting, add};

/// Where a frame is read to, so that the longest headers fit before it without a copy.
const FRAME_AT: usize = HEADER_LEN + MAX_FRAME_HEADER;

pub(super) fn run(shared: &Shared, flood_start: u32) {
    let mut buffer = vec![0; BUFFER];
    let mut copy = vec![0; BUFFER];
    let numbers = FloodNumber::starting_at(flood_start);
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    loop {
        let room = buffer
            .get_mut(FRAME_AT..BUFFER - TAG_LEN)
            .unwrap_or_default();
        match shared.tap.recv(room) {
            Ok(len) => capture(
                shared,
                forwarding.load(),
                &numbers,
                &mut buffer,
                &mut copy,
                len,
            ),
            Err(error) => {
                // The bridge was taken down, or the device removed under us. It may come back.
                tracing::debug!(%error, "reading the TAP failed");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn capture(
    shared: &Shared,
    forwarding: &Forwarding,
    numbers: &FloodNumber,
    buffer: &mut [u8],
    copy: &mut [u8],
    len: usize,
) {
    let network = Network::DEFAULT;
    let us = forwarding.us;
    let Some(Ok(frame)) = buffer.get(FRAME_AT..FRAME_AT + len).map(Frame::new_checked) else {
        return shared.counters.drop(DropReason::MalformedFrame);
    };
    add(&shared.counters.frames_captured, 1);
    add(&shared.counters.bytes_captured, len);
    if forwarding
        .macs
        .is_news(network, frame.src(), Location::Local)
    {
        let (mac, at) = (frame.src(), Location::Local);
        shared.report_mac(Sighting { network, mac, at });
    }
    let end = FRAME_AT + len + TAG_LEN;
    match switch::decide_captured(&frame, network, &forwarding.view()) {
        Captured::Drop(reason) => shared.counters.drop(reason),
        Captured::Forward(destination) => {
            let Some(egress) = forwarding.next_hops.get(&destination) else {
                return shared.counters.drop(DropReason::NoRoute);
            };
            let header = UnicastHeader {
                hops: HOP_LIMIT,
                network,
                source: us,
                destination,
            };
            let at = FRAME_AT - UNICAST_LEN;
            if let Some(datagram) = with_header(buffer, at, end, &header.emit()) {
                shared.send_frame(egress, datagram);
            }
        }
        Captured::Flood => {
            let header = FloodHeader {
                hops: HOP_LIMIT,
                network,
                origin: us,
                number: numbers.next(),
            };
            let at = FRAME_AT - FLOOD_LEN;
            let Some(datagram) = with_header(buffer, at, end, &header.emit()) else {
                return;
            };
            // Sealing is in place, so all but the last neighbour get a copy.
            if let Some((last, others)) = forwarding.flood_to(us).split_last() {
                for egress in others {
                    if let Some(copy) = copy.get_mut(..datagram.len()) {
                        copy.copy_from_slice(datagram);
                        shared.send_frame(egress, copy);
                    }
                }
                shared.send_frame(last, datagram);
            }
        }
    }
}

/// Writes a message header before the frame and returns the datagram from its (empty) packet header
/// to its (empty) tag. `at` is where the message begins, `end` where the datagram ends.
pub(super) fn with_header<'a>(
    buffer: &'a mut [u8],
    at: usize,
    end: usize,
    header: &[u8],
) -> Option<&'a mut [u8]> {
    let datagram = buffer.get_mut(at.checked_sub(HEADER_LEN)?..end)?;
    datagram
        .get_mut(HEADER_LEN..HEADER_LEN + header.len())?
        .copy_from_slice(header);
    Some(datagram)
}
