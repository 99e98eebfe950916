//! From a TAP to the peers: super-frames read and decided on as one, cut, sealed and sent in trains.

use std::thread;
use std::time::Duration;

use weft_net::priority;
use weft_net::tap::{HEADER_LEN, Tap};
use weft_net::taps::Taps;
use weft_router::drop_reason::DropReason;
use weft_router::macs::Location;
use weft_router::offload::{Cut, VnetHeader};
use weft_router::switch::{self, Captured};
use weft_wire::message::{FloodHeader, HOP_LIMIT, UNICAST_LEN, UnicastHeader};
use weft_wire::packet::OVERHEAD;
use weft_wire::resolution::Answer;
use weft_wire::{Frame, Network};

use super::batch::Batch;
use super::forwarding::Forwarding;
use super::haste::Haste;
use super::{BUFFER, SHORT, Shared, Sighting, add};

/// Reads after which datagrams that wait for more of their kind are sent, however busy the TAP is with others.
const MAX_READS: u32 = 64;

/// The header of a frame that is complete as it is.
const NO_OFFLOAD: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// What this loop alone owns.
struct Loop<'a> {
    shared: &'a Shared,
    batch: Batch,
    /// A flooded frame, of which each neighbour gets a copy.
    flooded: Vec<u8>,
    /// Whether the last frame came alone.
    alone: bool,
    haste: Haste,
}

/// Serves the default network.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    let mut this = Loop::new(shared);
    loop {
        let read = shared.tap.recv(&mut buffer).map(Some);
        let from = (Network::DEFAULT, &shared.tap);
        if let Err(error) = this.burst(from, read, &mut buffer, &mut forwarding) {
            // The bridge was taken down, or the device removed under us. It may come back.
            tracing::debug!(%error, "reading the TAP failed");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Serves all other networks, as they come and go.
pub(super) fn run_further(shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut forwarding = arc_swap::Cache::new(&shared.forwarding);
    let mut this = Loop::new(shared);
    let mut gone = Vec::new();
    loop {
        let networks = forwarding.load().taps.clone();
        let there = networks.iter().filter(|(of, _)| !gone.contains(*of));
        let there: Vec<(Network, &Tap)> = there.map(|(of, tap)| (*of, &**tap)).collect();
        match this.serve(&there, &mut buffer, &mut forwarding) {
            // Others may have come under the same name.
            Ended::Changed => gone.clear(),
            Ended::Gone(network) => gone.push(network),
        }
    }
}

/// Has this thread go before others, or in its turn.
fn hurry(first: bool) {
    let done = match first {
        true => priority::go_second(),
        false => priority::go_in_turn(),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "the capturing loop takes its turn with everybody else");
    }
}

/// Why a set of TAPs is not served any more.
enum Ended {
    /// There is another set.
    Changed,
    /// This network's is no more.
    Gone(Network),
}

type Snapshot<'a> = arc_swap::Cache<&'a arc_swap::ArcSwap<Forwarding>, std::sync::Arc<Forwarding>>;

impl<'a> Loop<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            batch: Batch::new(),
            flooded: vec![0; BUFFER],
            alone: false,
            haste: Haste::default(),
        }
    }

    /// Captures what comes from any of these TAPs, until there are others.
    fn serve(
        &mut self,
        networks: &[(Network, &Tap)],
        buffer: &mut [u8],
        forwarding: &mut Snapshot<'_>,
    ) -> Ended {
        let taps = networks.iter().map(|(_, tap)| *tap);
        let mut taps = Taps::new(taps, &self.shared.waker);
        loop {
            let woken = taps.wait();
            for (_, from) in taps.ready().zip(networks).filter(|(ready, _)| *ready) {
                let read = from.1.recv_now(buffer);
                if let Err(error) = self.burst(*from, read, buffer, forwarding) {
                    tracing::debug!(%error, network = %from.0, "reading a TAP failed");
                    return Ended::Gone(from.0);
                }
            }
            if woken {
                return Ended::Changed;
            }
        }
    }

    /// Captures a frame that was read, and takes with it what others there are.
    fn burst(
        &mut self,
        from: (Network, &Tap),
        mut read: std::io::Result<Option<usize>>,
        buffer: &mut [u8],
        forwarding: &mut Snapshot<'_>,
    ) -> std::io::Result<()> {
        let (mut reads, mut long) = (0, 0);
        while let Ok(Some(len)) = read {
            reads += 1;
            long += u32::from(len >= SHORT);
            let bytes = buffer.get(..len).unwrap_or_default();
            self.capture(forwarding.load(), from, bytes);
            if self.alone && reads == 1 && len < SHORT {
                self.batch.flush(self.shared);
            }
            self.alone = reads == 1;
            if reads == MAX_READS {
                break;
            }
            read = from.1.recv_now(buffer);
        }
        self.batch.flush(self.shared);
        if let Some(first) = self.haste.note(reads, long, reads < MAX_READS) {
            hurry(first);
        }
        read.map(|_| ())
    }

    fn capture(&mut self, forwarding: &Forwarding, from: (Network, &Tap), bytes: &[u8]) {
        let (network, tap) = from;
        let counters = &self.shared.counters;
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
            Captured::Flood => match forwarding.answer(&frame, network) {
                Some(answer) => self.answer(tap, &answer),
                None => self.flood(forwarding, network, cut),
            },
        }
    }

    /// Tells a container who has an address, as if the one who has it did.
    fn answer(&self, tap: &Tap, answer: &Answer) {
        let counters = &self.shared.counters;
        match tap.send(&NO_OFFLOAD, answer.bytes()) {
            Ok(()) => add(&counters.questions_answered, 1),
            Err(_) => counters.drop(DropReason::TapFull, 1),
        }
    }

    fn forward(&mut self, forwarding: &Forwarding, header: UnicastHeader, mut cut: Cut<'_>) {
        let Some(way) = forwarding.ways.get(&header.destination) else {
            let counters = &self.shared.counters;
            return counters.drop(DropReason::NoRoute, cut.frames());
        };
        if let Some(demand) = &way.demand {
            demand.note_sent();
        }
        let egress = &way.egress;
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
                number: self.shared.floods.next(),
            };
            let header = header.emit();
            for egress in forwarding.flood_to(forwarding.us) {
                let write = |room: &mut [u8]| room.copy_from_slice(frame);
                self.batch.push(self.shared, egress, &header, len, write);
            }
        }
    }
}
