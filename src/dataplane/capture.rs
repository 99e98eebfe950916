//! From the TAP to the peers: super-frames read and decided on as one, cut, sealed and sent in trains.

use std::thread;
use std::time::Duration;

use weft_router::drop_reason::DropReason;
use weft_router::flood::FloodNumber;
use weft_router::macs::Location;
use weft_router::offload::{Cut, VnetHeader};
use weft_router::switch::{self, Captured};
use weft_wire::message::{FloodHeader, HOP_LIMIT, UNICAST_LEN, UnicastHeader};
use weft_wire::packet::OVERHEAD;
use weft_wire::{Frame, Network};

use super::batch::Batch;
use super::forwarding::Forwarding;
use super::{BUFFER, Shared, Sighting, add};

/// Reads after which datagrams that wait for more of their kind are sent, however busy the TAP is with others.
const MAX_READS: usize = 64;

/// What this loop alone owns.
struct Loop<'a> {
    shared: &'a Shared,
    numbers: FloodNumber,
    batch: Batch,
    /// A flooded frame, of which each neighbour gets a copy.
    flooded: Vec<u8>,
}

pub(super) fn run(shared: &Shared, flood_start: u32) {
    let mut buffer = vec![0; BUFFER];
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    let mut this = Loop {
        shared,
        numbers: FloodNumber::starting_at(flood_start),
        batch: Batch::new(),
        flooded: vec![0; BUFFER],
    };
    loop {
        if let Err(error) = this.burst(&mut buffer, &mut forwarding) {
            // The bridge was taken down, or the device removed under us. It may come back.
            tracing::debug!(%error, "reading the TAP failed");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

type Snapshot<'a> = arc_swap::Cache<&'a arc_swap::ArcSwap<Forwarding>, std::sync::Arc<Forwarding>>;

impl Loop<'_> {
    /// Waits for a frame, and takes with it what others there are.
    fn burst(&mut self, buffer: &mut [u8], forwarding: &mut Snapshot<'_>) -> std::io::Result<()> {
        let tap = &self.shared.tap;
        let mut read = tap.recv(buffer).map(Some);
        for reads in 1..=MAX_READS {
            let Ok(Some(len)) = read else {
                break;
            };
            self.capture(forwarding.load(), buffer.get(..len).unwrap_or_default());
            read = match reads {
                MAX_READS => Ok(None),
                _ => tap.recv_now(buffer),
            };
        }
        self.batch.flush(self.shared);
        read.map(|_| ())
    }

    fn capture(&mut self, forwarding: &Forwarding, bytes: &[u8]) {
        let counters = &self.shared.counters;
        let network = Network::DEFAULT;
        let Some((header, bytes)) = bytes.split_first_chunk() else {
            return counters.drop(DropReason::MalformedFrame, 1);
        };
        let (Ok(frame), Ok(mut cut)) = (
            Frame::new_checked(bytes),
            Cut::new(VnetHeader::parse(header), bytes),
        ) else {
            return counters.drop(DropReason::MalformedFrame, 1);
        };
        add(&counters.frames_captured, cut.frames());
        add(&counters.bytes_captured, bytes.len());
        let (mac, at) = (frame.src(), Location::Local);
        if forwarding.macs.is_news(network, mac, at) {
            self.shared.report_mac(Sighting { network, mac, at });
        }
        match switch::decide_captured(&frame, network, &forwarding.view()) {
            Captured::Drop(reason) => counters.drop(reason, cut.frames()),
            Captured::Forward(destination) => {
                let header = UnicastHeader {
                    hops: HOP_LIMIT,
                    unfinished: cut.leave_unfinished(),
                    network,
                    source: forwarding.us,
                    destination,
                };
                self.forward(forwarding, header, cut);
            }
            Captured::Flood => self.flood(forwarding, network, cut),
        }
    }

    fn forward(&mut self, forwarding: &Forwarding, header: UnicastHeader, mut cut: Cut<'_>) {
        let Some(egress) = forwarding.next_hops.get(&header.destination) else {
            let counters = &self.shared.counters;
            return counters.drop(DropReason::NoRoute, cut.frames());
        };
        cut.fit(egress.limit.saturating_sub(OVERHEAD + UNICAST_LEN));
        let header = header.emit();
        while let Some(len) = cut.next_len() {
            let write = |room: &mut [u8]| cut.write_next(room);
            self.batch.push(self.shared, egress, &header, len, write);
        }
    }

    fn flood(&mut self, forwarding: &Forwarding, network: Network, mut cut: Cut<'_>) {
        while let Some(len) = cut.next_len() {
            let Some(frame) = self.flooded.get_mut(..len) else {
                return self.shared.counters.drop(DropReason::MalformedFrame, 1);
            };
            cut.write_next(frame);
            let header = FloodHeader {
                hops: HOP_LIMIT,
                network,
                origin: forwarding.us,
                number: self.numbers.next(),
            };
            let header = header.emit();
            for egress in forwarding.flood_to(forwarding.us) {
                let write = |room: &mut [u8]| room.copy_from_slice(frame);
                self.batch.push(self.shared, egress, &header, len, write);
            }
        }
    }
}
