//! What is merged and what is not; whatever is, cut again, is what it was.

use proptest::prelude::*;

use super::super::Cut;
use super::super::testing::{Packet, naive_segments, packet};
use super::*;

/// What came out: header, frame, how many it is made of.
type Out = (VnetHeader, Vec<u8>, usize);

fn merged(frames: &[Vec<u8>]) -> Vec<Out> {
    let mut merge = Merge::new(true);
    let mut out = Vec::new();
    let mut sink = |m: Merged<'_>| out.push((m.header, m.frame.to_vec(), m.frames));
    for frame in frames {
        merge.push(frame, None, &mut sink);
    }
    merge.flush(&mut sink);
    assert!(!merge.is_waiting());
    out
}

fn cut_again(merged: &[Out]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (header, frame, count) in merged {
        let mut cut = Cut::new(*header, frame).unwrap();
        assert_eq!(cut.frames(), *count);
        while let Some(len) = cut.next_len() {
            let mut out = vec![0; len];
            cut.write_next(&mut out);
            frames.push(out);
        }
    }
    frames
}

/// One change to a frame of a run, after which it is not to be merged with those before it.
fn changed(packet: &Packet, how: usize) -> Vec<u8> {
    let mut p = packet.clone();
    match how {
        0 => p.sequence = p.sequence.wrapping_add(1),
        1 => p.sequence = p.sequence.wrapping_sub(1),
        2 => p.acknowledged ^= 1,
        3 => p.window ^= 1,
        4 => p.tos ^= 1,
        5 => p.ttl ^= 1,
        6 => p.ports[0] ^= 1,
        7 => p.ports[3] ^= 1,
        8 => p.flags |= 0x01,
        9 => p.flags |= 0x02,
        10 => p.flags |= 0x04,
        11 => p.flags |= 0x20,
        12 => p.flags |= 0x40,
        13 => p.flags |= 0x80,
        14 => p.flags = 0,
        15 => p.options[5] ^= 1,
        16 => p.options.truncate(8),
        17 => p.tags = 1,
        18 => p.payload.push(0),
        19 => p.payload.clear(),
        20 => p.flow ^= 1,
        21 => p.id = p.id.wrapping_add(2),
        22 => p.dont_fragment ^= true,
        _ => {}
    }
    let mut frame = p.frame();
    match how {
        23 => frame[0] ^= 4,
        24 => frame[11] ^= 1,
        // Padding behind the packet, a payload and a checksum that do not agree.
        25 => frame.push(0),
        26 => *frame.last_mut().unwrap() ^= 1,
        _ => {}
    }
    frame
}
const CHANGES: usize = 27;

fn second_of(packet: &Packet, by: usize) -> Packet {
    Packet {
        id: packet.id.wrapping_add(1),
        sequence: packet.sequence.wrapping_add(by as u32),
        ..packet.clone()
    }
}

#[test]
fn a_frame_that_differs_in_anything_is_not_merged() {
    for v6 in [false, true] {
        let first = Packet {
            v6,
            ..Packet::tcp(500)
        };
        let second = second_of(&first, 500);
        assert_eq!(merged(&[first.frame(), second.frame()]).len(), 1);
        for how in 0..CHANGES {
            let v4_only = how == 21 || how == 22;
            if v6 && v4_only || !v6 && how == 20 {
                continue;
            }
            let frames = [first.frame(), changed(&second, how)];
            let out = merged(&frames);
            let came: Vec<_> = out.iter().map(|(_, frame, _)| frame.clone()).collect();
            assert_eq!(came, frames, "change {how}, IPv6 {v6}");
            assert!(
                out.iter()
                    .all(|(header, ..)| *header == VnetHeader::default())
            );
        }
    }
}

#[test]
fn a_fragment_or_a_packet_with_ip_options_is_not_merged() {
    let first = Packet::udp(100);
    let second = second_of(&first, 0);
    for (at, byte) in [(14, 0x46), (20, 0x20), (20, 0x80), (21, 1), (23, 47)] {
        let frames = [&first, &second].map(|packet| {
            let mut frame = packet.frame();
            frame[at] = byte;
            frame[24..26].fill(0);
            let sum = !super::super::testing::naive_sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame
        });
        assert_eq!(merged(&frames).len(), 2, "byte {at}");
    }
}

#[test]
fn unfinished_frames_are_merged_with_their_like_only_and_stay_unfinished() {
    let first = Packet::tcp(500);
    let (header, unfinished) = first.left_undone(500);
    let second = second_of(&first, 500);
    let (_, continued) = second.left_undone(500);
    let at = header.checksum;
    let counts = |frames: [(&Vec<u8>, Option<Partial>); 2]| {
        let mut merge = Merge::new(true);
        let mut out = Vec::new();
        let mut sink = |m: Merged<'_>| out.push((m.frames, m.header.checksum));
        for (frame, at) in frames {
            merge.push(frame, at, &mut sink);
        }
        merge.flush(&mut sink);
        out
    };
    assert_eq!(counts([(&unfinished, at), (&continued, at)]), [(2, at)]);
    assert_eq!(
        counts([(&unfinished, at), (&second.frame(), None)]),
        [(1, at), (1, None)]
    );
    assert_eq!(
        counts([(&first.frame(), None), (&continued, at)]),
        [(1, None), (1, at)]
    );
}

#[test]
fn a_udp_packet_without_checksum_is_not_merged() {
    let first = Packet::udp(100);
    let frames = [first.clone(), second_of(&first, 0)].map(|packet| {
        let mut frame = packet.frame();
        frame[40..42].fill(0);
        frame
    });
    assert_eq!(merged(&frames).len(), 2);
}

#[test]
fn udp_is_left_alone_where_the_kernel_does_not_cut_it() {
    let first = Packet::udp(100);
    let mut merge = Merge::new(false);
    let mut count = 0;
    for packet in [first.clone(), second_of(&first, 0)] {
        merge.push(&packet.frame(), None, |_| count += 1);
        assert!(!merge.is_waiting());
    }
    assert_eq!(count, 2);
}

#[test]
fn a_pushed_or_short_frame_is_the_last_of_its_run() {
    let first = Packet::tcp(500);
    let pushed = Packet {
        flags: 0x18,
        ..second_of(&first, 500)
    };
    let third = second_of(&pushed, 500);
    let counts = |frames: &[Vec<u8>]| merged(frames).iter().map(|m| m.2).collect::<Vec<_>>();
    assert_eq!(
        counts(&[first.frame(), pushed.frame(), third.frame()]),
        [2, 1]
    );
    let mut short = second_of(&first, 500);
    short.payload.truncate(499);
    let third = second_of(&short, 499);
    assert_eq!(
        counts(&[first.frame(), short.frame(), third.frame()]),
        [2, 1]
    );
}

#[test]
fn an_identification_that_stays_is_merged_only_where_it_means_nothing() {
    for (dont_fragment, runs) in [(true, 1), (false, 3)] {
        let first = Packet {
            dont_fragment,
            ..Packet::tcp(500)
        };
        let next = |by: u32| Packet {
            sequence: first.sequence.wrapping_add(by),
            ..first.clone()
        };
        let frames = [first.frame(), next(500).frame(), next(1000).frame()];
        assert_eq!(merged(&frames).len(), runs);
    }
}

#[test]
fn a_super_frame_never_outgrows_what_a_link_takes() {
    let packet = Packet {
        v6: true,
        ..Packet::tcp(60_000)
    };
    let mut frames = naive_segments(&packet, 1000);
    let more = Packet {
        sequence: packet.sequence.wrapping_add(60_000),
        id: packet.id.wrapping_add(60),
        ..packet
    };
    frames.extend(naive_segments(&more, 1000));
    let out = merged(&frames);
    assert_eq!(out.len(), 2);
    assert!(out.iter().all(|(_, frame, _)| frame.len() <= MAX));
    let datagrams = naive_segments(&Packet::udp(6_500), 65);
    let counts: Vec<_> = merged(&datagrams).iter().map(|m| m.2).collect();
    assert_eq!(counts, [64, 36]);
    // A frame longer than any super-frame passes.
    let huge = vec![7; 80_000];
    assert_eq!(merged(std::slice::from_ref(&huge))[0].1, huge);
}

proptest! {
    #[test]
    fn what_was_cut_is_merged_to_what_it_was(mut packet in packet(100..30_000), size in 500_u16..3000) {
        packet.flags &= 0x18;
        packet.flags |= 0x10;
        let (header, frame) = packet.left_undone(size);
        let frames = naive_segments(&packet, size.into());
        let out = merged(&frames);
        prop_assert_eq!(out.len(), 1);
        if frames.len() > 1 {
            prop_assert_eq!(&out[0], &(header, frame.clone(), frames.len()));
        }
        let mut cut = Cut::new(header, &frame).unwrap();
        prop_assert!(cut.leave_unfinished());
        let mut merge = Merge::new(true);
        let mut whole = Vec::new();
        let mut sink = |m: Merged<'_>| whole.push((m.header.checksum, m.frame.to_vec(), m.frames));
        while let Some(len) = cut.next_len() {
            let mut part = vec![0; len];
            cut.write_next(&mut part);
            merge.push(&part, header.checksum, &mut sink);
        }
        merge.flush(&mut sink);
        prop_assert_eq!(whole, [(header.checksum, frame, frames.len())]);
        prop_assert!(cut_again(&out) == frames);
    }

    #[test]
    fn whatever_is_merged_is_cut_into_what_it_was(packets in prop::collection::vec((0_usize..3, 0_usize..60, 0_usize..4, 1_usize..2500), 1..40)) {
        // Three flows, now and then with a change, in any order, in trains of a few frames.
        let mut flows = [Packet::tcp(0), Packet { v6: true, ..Packet::tcp(0) }, Packet::udp(0)];
        flows[1].ports = [9; 4];
        let mut frames = Vec::new();
        for (which, how, count, len) in packets {
            let flow = &mut flows[which];
            let part = Packet { payload: vec![how as u8; len], ..flow.clone() };
            if which == 2 && matches!(how, 15 | 16) {
                continue;
            }
            if how < CHANGES && how != 22 {
                frames.push(changed(&part, how));
                flow.id = flow.id.wrapping_add(1);
            } else {
                for part in naive_segments(&part, 1 + len / (count + 1)) {
                    frames.push(part);
                    flow.id = flow.id.wrapping_add(1);
                }
                flow.sequence = flow.sequence.wrapping_add(len as u32);
            }
        }
        let out = merged(&frames);
        for (_, frame, count) in &out {
            prop_assert!(*count == 1 || frame.len() <= MAX);
        }
        prop_assert!(cut_again(&out) == frames);
    }

    #[test]
    fn any_bytes_pass_unchanged(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10)) {
        let out = merged(&frames);
        prop_assert_eq!(out.into_iter().map(|m| m.1).collect::<Vec<_>>(), frames);
    }
}
