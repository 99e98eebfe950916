//! What each step of a frame's way through the router costs by itself: the decision, the seal, cutting a
//! super-frame, merging frames, pieces. `cargo xtask bench` runs it.
//!
//! The super-frame is what a container sends in bulk at weft's own MTU: 45 segments of TCP over IPv4.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench that cannot set itself up has nothing to measure, and has a clock"
)]

use std::time::Instant;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use weft_router::fragment::{Reassembly, Split};
use weft_router::macs::{Location, MacTable, MacView};
use weft_router::offload::{Cut, Kind, Merge, Partial, Segments, VnetHeader, checksum_place};
use weft_router::session::{RecvSession, SendSession};
use weft_router::switch::{View, decide_captured, decide_unicast};
use weft_wire::control::Suite;
use weft_wire::message::{FragmentHeader, HOP_LIMIT, UNICAST_LEN, UnicastHeader};
use weft_wire::packet::{OVERHEAD, ReceiverIndex};
use weft_wire::{Frame, MacAddr, Network, PeerName};

fn main() {
    divan::main();
}

#[divan::bench]
fn decide_captured_frame(bencher: Bencher<'_, '_>) {
    let macs = macs();
    let (_, frame) = super_frame();
    bencher.bench_local(|| {
        let frame = Frame::new_checked(black_box(&frame)).unwrap();
        decide_captured(&frame, Network::DEFAULT, &view(&macs))
    });
}

#[divan::bench]
fn decide_received_frame(bencher: Bencher<'_, '_>) {
    let macs = macs();
    let (_, frame) = super_frame();
    let header = UnicastHeader {
        hops: HOP_LIMIT,
        unfinished: true,
        network: Network::DEFAULT,
        source: PEER,
        destination: US,
    };
    bencher.bench_local(|| {
        let frame = Frame::new_checked(black_box(&frame)).unwrap();
        decide_unicast(black_box(&header), &frame, &view(&macs))
    });
}

#[divan::bench(args = LENGTHS)]
fn seal_aes(bencher: Bencher<'_, '_>, len: usize) {
    seal(bencher, len, Suite::Aes256Gcm);
}

#[divan::bench(args = LENGTHS)]
fn seal_chacha(bencher: Bencher<'_, '_>, len: usize) {
    seal(bencher, len, Suite::ChaCha20Poly1305);
}

#[divan::bench(args = LENGTHS)]
fn open_aes(bencher: Bencher<'_, '_>, len: usize) {
    open(bencher, len, Suite::Aes256Gcm);
}

#[divan::bench(args = LENGTHS)]
fn open_chacha(bencher: Bencher<'_, '_>, len: usize) {
    open(bencher, len, Suite::ChaCha20Poly1305);
}

/// A super-frame, checksums left to the receiver's kernel, which is how it goes between two peers.
#[divan::bench]
fn cut_unfinished(bencher: Bencher<'_, '_>) {
    cut(bencher, true);
}

/// The same with every checksum made, as flooded frames have it.
#[divan::bench]
fn cut_with_checksums(bencher: Bencher<'_, '_>) {
    cut(bencher, false);
}

#[divan::bench]
fn merge_unfinished(bencher: Bencher<'_, '_>) {
    merge(bencher, true);
}

#[divan::bench]
fn merge_with_checksums(bencher: Bencher<'_, '_>) {
    merge(bencher, false);
}

/// A full frame in two pieces and whole again.
#[divan::bench]
fn fragment_and_reassemble(bencher: Bencher<'_, '_>) {
    let message = vec![7; UNICAST_LEN + FRAME];
    let now = Instant::now();
    let mut reassembly = Reassembly::new(now);
    let mut number = 0_u32;
    bencher
        .counter(BytesCount::new(message.len()))
        .bench_local(|| {
            number = number.wrapping_add(1);
            let split = Split::new(message.len(), 1000).unwrap();
            let mut whole = 0;
            for (header, at) in split.pieces(number) {
                let header: FragmentHeader = black_box(header);
                let joined = reassembly.push(header, &message[at], now).unwrap();
                whole += joined.map_or(0, <[u8]>::len);
            }
            assert_eq!(whole, message.len());
        });
}

fn seal(bencher: Bencher<'_, '_>, len: usize, suite: Suite) {
    let session = SendSession::new(suite, &[7; 32], ReceiverIndex(1));
    let mut datagram = vec![0; len + OVERHEAD];
    bencher
        .counter(BytesCount::new(len))
        .bench_local(|| session.seal(black_box(&mut datagram)).unwrap());
}

/// A packet opens once only, so each round has one of its own; making it is not counted.
fn open(bencher: Bencher<'_, '_>, len: usize, suite: Suite) {
    let send = SendSession::new(suite, &[7; 32], ReceiverIndex(1));
    let mut receive = RecvSession::new(suite, &[7; 32]);
    bencher
        .counter(BytesCount::new(len))
        .with_inputs(|| {
            let mut datagram = vec![0; len + OVERHEAD];
            send.seal(&mut datagram).unwrap();
            datagram
        })
        .bench_local_refs(|datagram| receive.open(black_box(datagram)).unwrap().len());
}

fn cut(bencher: Bencher<'_, '_>, unfinished: bool) {
    let (header, frame) = super_frame();
    let mut out = vec![0; 2048];
    bencher
        .counter(BytesCount::new(frame.len()))
        .bench_local(|| {
            let mut cut = Cut::new(header, black_box(&frame)).unwrap();
            assert_eq!(unfinished && cut.leave_unfinished(), unfinished);
            while let Some(len) = cut.next_len() {
                cut.write_next(black_box(&mut out[..len]));
            }
        });
}

fn merge(bencher: Bencher<'_, '_>, unfinished: bool) {
    let (header, frame) = super_frame();
    let mut cut = Cut::new(header, &frame).unwrap();
    let unfinished =
        (unfinished && cut.leave_unfinished()).then(|| checksum_place(&frame).unwrap());
    let mut frames = Vec::new();
    while let Some(len) = cut.next_len() {
        frames.push(vec![0; len]);
        cut.write_next(frames.last_mut().unwrap());
    }
    let mut merge = Merge::new(true);
    bencher
        .counter(BytesCount::new(frame.len()))
        .bench_local(|| {
            let mut merged = 0;
            for frame in &frames {
                merge.push(black_box(frame), unfinished, |m| merged += m.frames);
            }
            merge.flush(|m| merged += m.frames);
            assert_eq!(merged, frames.len());
        });
}

/// A message with the smallest frame, and with the longest at weft's own MTU.
const LENGTHS: [usize; 2] = [UNICAST_LEN + 60, UNICAST_LEN + FRAME];
/// Ethernet header and weft's own MTU.
const FRAME: usize = 14 + 1376;
const SEGMENT: usize = FRAME - HEADERS;
const SEGMENTS: usize = 45;
/// Ethernet, IPv4, TCP with time stamps.
const HEADERS: usize = TRANSPORT + 32;
const TRANSPORT: usize = 14 + 20;

const US: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
const PEER: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);

/// As the kernel hands it over.
fn super_frame() -> (VnetHeader, Vec<u8>) {
    let mut frame = vec![2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 8, 0];
    let packet = HEADERS - 14 + SEGMENTS * SEGMENT;
    let [high, low] = u16::try_from(packet).unwrap().to_be_bytes();
    frame.extend([0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 32, 0, 1, 10, 32, 0, 2]);
    // Ports, sequence number, acknowledgement; data offset, ACK, window, checksum; time stamps.
    frame.extend([0x80, 1, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1]);
    let pseudo = [0x0a20, 1, 0x0a20, 2, 6, packet - 20];
    let sum: usize = pseudo.iter().sum();
    let [s0, s1] = u16::try_from(sum % 0xffff).unwrap().to_be_bytes();
    frame.extend([0x80, 0x10, 1, 0xf6, s0, s1, 0, 0]);
    frame.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(frame.len(), HEADERS);
    frame.extend((0..SEGMENTS * SEGMENT).map(|n| (n * 7 / 3) as u8));
    let header = VnetHeader {
        checksum: Some(Partial {
            start: TRANSPORT as u16,
            offset: 16,
        }),
        segments: Some(Segments {
            kind: Kind::Tcp4,
            headers: HEADERS as u16,
            size: SEGMENT as u16,
        }),
    };
    (header, frame)
}

/// A table of a mesh with a thousand containers; the destination of [`super_frame`] is with a peer.
fn macs() -> MacView {
    let now = Instant::now();
    let mut table = MacTable::new();
    for n in 0..1000_u16 {
        let [high, low] = n.to_be_bytes();
        let mac = MacAddr::from_bytes([2, 0, 0, 1, high, low]);
        table.learn(Network::DEFAULT, mac, Location::Local, now);
    }
    let mac = MacAddr::from_bytes([2, 0, 0, 0, 1, 2]);
    table.learn(Network::DEFAULT, mac, Location::Peer(PEER), now);
    table.view()
}

fn view(macs: &MacView) -> View<'_> {
    View {
        us: US,
        macs,
        dns: [169, 254, 67, 83].into(),
        conflicts: &[],
    }
}
