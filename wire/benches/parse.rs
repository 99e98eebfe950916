//! What reading costs that is done for every datagram: the clear header, the message inside, the frame in
//! that. `cargo xtask bench` runs it.
#![allow(
    clippy::unwrap_used,
    reason = "a bench that cannot set itself up has nothing to measure"
)]

use divan::{Bencher, black_box};
use weft_wire::message::{HOP_LIMIT, Message, UnicastHeader};
use weft_wire::packet::{Counter, Header, ReceiverIndex, TAG_LEN};
use weft_wire::{Frame, Network, PeerName};

fn main() {
    divan::main();
}

#[divan::bench]
fn packet_header(bencher: Bencher<'_, '_>) {
    let header = Header {
        receiver: ReceiverIndex(3),
        counter: Counter(5),
    };
    let datagram = [&header.emit()[..], &[0; TAG_LEN]].concat();
    bencher.bench_local(|| Header::parse(black_box(&datagram)).unwrap());
}

#[divan::bench]
fn message_header(bencher: Bencher<'_, '_>) {
    let header = UnicastHeader {
        hops: HOP_LIMIT,
        unfinished: true,
        network: Network::DEFAULT,
        source: PeerName::from_bytes([2, 0, 0, 0, 0, 1]),
        destination: PeerName::from_bytes([2, 0, 0, 0, 0, 2]),
    };
    let message = [&header.emit()[..], &frame()].concat();
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&message)).unwrap();
        assert!(matches!(message, Message::Unicast(..)));
    });
}

#[divan::bench]
fn frame_header(bencher: Bencher<'_, '_>) {
    let frame = frame();
    bencher.bench_local(|| {
        let frame = Frame::new_checked(black_box(&frame)).unwrap();
        (frame.src(), frame.dst())
    });
}

/// IPv4, of which nothing is read.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45];
    frame.resize(1390, 0);
    frame
}
