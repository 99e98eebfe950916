//! Cutting a super-frame into the frames it stands for.
//!
//! What the kernel's own segmentation would do, done by us, because each frame is to be sealed by itself.
//! A frame that is none of these passes as it is. A checksum that was left undone is made, or left so
//! ([`Cut::leave_unfinished`]).

use thiserror::Error;

use super::checksum::Sum;
use super::flow::{
    CWR, FIN, PSH, Protocol, TCP_CHECKSUM, TCP_FLAGS, TCP_LEN, UDP_CHECKSUM, UDP_LEN, V4_LEN,
    V6_LEN, Version, checksum_place, finish_network, network, pair, put, quad,
};
use super::{Kind, Partial, Segments, VnetHeader};

/// The frames of one super-frame (or the one frame of any other), written one after another into
/// buffers of the caller. A clone starts where the original stands.
#[derive(Debug, Clone)]
pub struct Cut<'a> {
    frame: &'a [u8],
    work: Work,
    next: usize,
    frames: usize,
    /// Checksums hold the sum of the pseudo-header.
    unfinished: bool,
}

/// A header that does not fit its frame, which the kernel does not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CutError {
    /// The headers end behind the frame, or lengths in them cannot be told.
    #[error("the headers of a super-frame do not fit it")]
    Headers,
    /// The checksum is where none is, or a super-frame comes without.
    #[error("the checksum of a frame is not where its protocol has it")]
    Checksum,
    /// A super-frame of a kind that was not asked for.
    #[error("a super-frame of a kind that was not asked for")]
    Kind,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
enum Work {
    Nothing,
    /// The sum from the first place on goes to the second.
    Checksum(usize, usize),
    Segments(Plan),
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    version: Version,
    protocol: Protocol,
    network: usize,
    transport: usize,
    payload: usize,
    size: usize,
    /// Where the checksum is.
    checksum: usize,
    /// Length of the one big segment, which is in the sum that is given.
    segment: u16,
}

impl<'a> Cut<'a> {
    /// Looks at a frame off the TAP.
    ///
    /// # Errors
    /// [`CutError`]: there is no way to make frames of it.
    pub fn new(header: VnetHeader, frame: &'a [u8]) -> Result<Self, CutError> {
        let (work, frames) = match (header.segments, header.checksum) {
            (None, None) => (Work::Nothing, 1),
            (None, Some(at)) => {
                let start = usize::from(at.start);
                let field = start + usize::from(at.offset);
                if field + 2 > frame.len() {
                    return Err(CutError::Checksum);
                }
                (Work::Checksum(start, field), 1)
            }
            (Some(segments), Some(at)) => {
                let plan = Plan::new(segments, at, frame)?;
                let payload = frame.len() - plan.payload;
                (Work::Segments(plan), payload.div_ceil(plan.size).max(1))
            }
            (Some(_), None) => return Err(CutError::Checksum),
        };
        Ok(Self {
            frame,
            work,
            next: 0,
            frames,
            unfinished: false,
        })
    }

    /// Has checksums that were left undone stay so, if whoever gets the frames will find them
    /// ([`checksum_place`]); answers whether they do.
    pub fn leave_unfinished(&mut self) -> bool {
        let undone = match &self.work {
            Work::Nothing => None,
            Work::Checksum(start, field) => Some((*start, *field)),
            Work::Segments(plan) => Some((plan.transport, plan.checksum)),
        };
        let place = |at: Partial| {
            let start = usize::from(at.start);
            (start, start + usize::from(at.offset))
        };
        self.unfinished = undone.is_some() && checksum_place(self.frame).map(place) == undone;
        self.unfinished
    }

    /// How many frames there are, those that are written among them.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Has no frame longer than `longest` bytes, if they can be cut smaller: those of TCP can, whose
    /// segments are nobody's affair but the network's. What is as short, or is not to be cut, stays
    /// as it is. To be called before the first frame is written.
    pub fn fit(&mut self, longest: usize) {
        if let Work::Segments(plan) = &mut self.work
            && plan.payload + plan.size > longest
            && plan.protocol == Protocol::Tcp
            && longest > plan.payload
        {
            plan.size = longest - plan.payload;
            let payload = self.frame.len().saturating_sub(plan.payload);
            self.frames = payload.div_ceil(plan.size).max(1);
        }
    }

    /// Length of the next frame; `None` when all are written.
    pub fn next_len(&self) -> Option<usize> {
        if self.next >= self.frames {
            return None;
        }
        Some(match &self.work {
            Work::Nothing | Work::Checksum(..) => self.frame.len(),
            Work::Segments(plan) => plan.payload + plan.part(self.frame, self.next).len(),
        })
    }

    /// Writes the next frame into `out`, which must be exactly as long as it.
    pub fn write_next(&mut self, out: &mut [u8]) {
        debug_assert_eq!(Some(out.len()), self.next_len());
        match &self.work {
            Work::Nothing => put(out, 0, self.frame),
            Work::Checksum(..) if self.unfinished => put(out, 0, self.frame),
            Work::Checksum(start, field) => {
                put(out, 0, self.frame);
                let sum = Sum::default().bytes(out.get(*start..).unwrap_or_default());
                put(out, *field, &never_zero(sum.complement()));
            }
            Work::Segments(plan) => {
                let pseudo = plan.write(self.frame, self.next, self.frames, out);
                let checksum = if self.unfinished {
                    pseudo.folded()
                } else {
                    put(out, plan.checksum, &[0; 2]);
                    let segment = out.get(plan.transport..).unwrap_or_default();
                    never_zero(pseudo.bytes(segment).complement())
                };
                put(out, plan.checksum, &checksum);
            }
        }
        self.next += 1;
    }
}

impl Plan {
    fn new(segments: Segments, at: Partial, frame: &[u8]) -> Result<Self, CutError> {
        let (network, version) = network(frame).ok_or(CutError::Headers)?;
        let (protocol, checksum) = match (segments.kind, version) {
            (Kind::Tcp4, Version::V4) | (Kind::Tcp6, Version::V6) => (Protocol::Tcp, TCP_CHECKSUM),
            (Kind::Udp, _) => (Protocol::Udp, UDP_CHECKSUM),
            (Kind::Tcp4 | Kind::Tcp6 | Kind::Other(_), _) => return Err(CutError::Kind),
        };
        if at.offset != checksum {
            return Err(CutError::Checksum);
        }
        let transport = usize::from(at.start);
        let first = frame.get(network).ok_or(CutError::Headers)?;
        let fits = match version {
            Version::V4 => transport == network + usize::from(first & 0xf) * 4,
            // Extension headers may stand between.
            Version::V6 => transport >= network + V6_LEN,
        };
        let headers = match protocol {
            Protocol::Udp => UDP_LEN,
            Protocol::Tcp => {
                let offset = frame.get(transport + 12).ok_or(CutError::Headers)?;
                usize::from(offset >> 4) * 4
            }
        };
        let least = match protocol {
            Protocol::Udp => UDP_LEN,
            Protocol::Tcp => TCP_LEN,
        };
        let (payload, size) = (transport + headers, usize::from(segments.size));
        let segment = frame.len().checked_sub(transport).map(u16::try_from);
        let Some(Ok(segment)) = segment else {
            return Err(CutError::Headers);
        };
        // What is written into 16 bits: each packet's length.
        let longest = payload - network + size.min(frame.len().saturating_sub(payload));
        let fits =
            fits && headers >= least && payload <= frame.len() && transport >= network + V4_LEN;
        if !fits || size == 0 || longest > usize::from(u16::MAX) {
            return Err(CutError::Headers);
        }
        Ok(Self {
            version,
            protocol,
            network,
            transport,
            payload,
            size,
            checksum: transport + usize::from(checksum),
            segment,
        })
    }

    /// The payload of one frame.
    fn part<'a>(&self, frame: &'a [u8], index: usize) -> &'a [u8] {
        let begin = self.payload + index * self.size;
        let end = frame.len().min(begin + self.size);
        frame.get(begin..end).unwrap_or_default()
    }

    /// Writes all but the checksum of the segment; answers the sum of its pseudo-header.
    fn write(&self, frame: &[u8], index: usize, frames: usize, out: &mut [u8]) -> Sum {
        put(out, 0, frame.get(..self.payload).unwrap_or_default());
        put(out, self.payload, self.part(frame, index));
        if self.version == Version::V4 {
            let at = self.network + 4;
            let first = pair(frame, at).unwrap_or_default();
            put(out, at, &first.wrapping_add(index as u16).to_be_bytes());
        }
        finish_network(out, self.network, self.version);
        // A part of a segment whose length has 16 bits.
        let len = out.len().saturating_sub(self.transport) as u16;
        match self.protocol {
            Protocol::Udp => put(out, self.transport + 4, &len.to_be_bytes()),
            Protocol::Tcp => self.count(index, frames, out),
        }
        // The field holds the pseudo-header's sum, which has the length of the whole in it.
        let given = out.get(self.checksum..).and_then(<[u8]>::first_chunk::<2>);
        Sum::default()
            .pair(given.copied().unwrap_or_default())
            .less(self.segment)
            .word(len)
    }

    /// Sequence number and flags: what ends the data stands on the last frame, CWR on the first.
    fn count(&self, index: usize, frames: usize, out: &mut [u8]) {
        let at = self.transport + 4;
        let first = quad(out, at).unwrap_or_default();
        let number = first.wrapping_add((index * self.size) as u32);
        put(out, at, &number.to_be_bytes());
        if let Some(flags) = out.get_mut(self.transport + TCP_FLAGS) {
            if index + 1 < frames {
                *flags &= !(FIN | PSH);
            }
            if index > 0 {
                *flags &= !CWR;
            }
        }
    }
}

/// Zero means "none" to UDP and the same as all ones to arithmetic.
fn never_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0; 2] {
        [0xff; 2]
    } else {
        checksum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, Packet, naive_segments};
    use super::*;

    fn frames(header: VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
        all_of(Cut::new(header, frame).unwrap())
    }

    fn all_of(mut cut: Cut<'_>) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(len) = cut.next_len() {
            let mut out = vec![0xee; len];
            cut.write_next(&mut out);
            frames.push(out);
        }
        assert_eq!(frames.len(), cut.frames());
        frames
    }

    proptest! {
        #[test]
        fn a_super_frame_is_cut_into_the_frames_it_stands_for(packet in testing::packet(1..20_000), size in 48_u16..3000) {
            let (header, frame) = packet.left_undone(size);
            let cut = frames(header, &frame);
            prop_assert!(cut == naive_segments(&packet, size.into()));
            for frame in &cut {
                prop_assert!(testing::is_valid(frame));
            }
        }

        #[test]
        fn frames_of_tcp_are_cut_as_small_as_the_path_needs_and_no_others(packet in testing::packet(1..20_000), size in 48_u16..3000, longest in 40_usize..2000) {
            let (header, frame) = packet.left_undone(size);
            let mut cut = Cut::new(header, &frame).unwrap();
            let headers = match cut.work {
                Work::Segments(plan) => plan.payload,
                Work::Nothing | Work::Checksum(..) => unreachable!("it is a super-frame"),
            };
            let is_tcp = header.segments.unwrap().kind != Kind::Udp;
            cut.fit(longest);
            let size = match usize::from(size).min(longest.saturating_sub(headers)) {
                smaller @ 1.. if is_tcp => smaller,
                _ => usize::from(size),
            };
            prop_assert!(all_of(cut) == naive_segments(&packet, size));
        }

        #[test]
        fn a_checksum_left_undone_is_made(packet in testing::packet(0..2000)) {
            let (header, frame) = packet.left_undone(0);
            let cut = frames(VnetHeader { segments: None, ..header }, &frame);
            prop_assert_eq!(cut.len(), 1);
            prop_assert!(testing::is_valid(&cut[0]));
        }

        #[test]
        fn what_is_left_unfinished_is_the_sum_of_the_pseudo_header(packet in testing::packet(1..20_000), size in 48_u16..3000) {
            let (header, frame) = packet.left_undone(size);
            let single = VnetHeader { segments: None, ..header };
            for header in [header, single] {
                let finished = frames(header, &frame);
                let mut cut = Cut::new(header, &frame).unwrap();
                prop_assert!(cut.leave_unfinished());
                let mut frames = finished.iter();
                while let Some(len) = cut.next_len() {
                    let mut out = vec![0xee; len];
                    cut.write_next(&mut out);
                    let at = checksum_place(&out).unwrap();
                    prop_assert_eq!(Some(at), header.checksum);
                    let start = usize::from(at.start);
                    let sum = !testing::naive_sum(&out[start..]);
                    let sum = if sum == 0 { 0xffff } else { sum };
                    put(&mut out, start + usize::from(at.offset), &sum.to_be_bytes());
                    prop_assert_eq!(Some(&out), frames.next());
                }
            }
        }

        #[test]
        fn any_other_frame_passes_as_it_is(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(frames(VnetHeader::default(), &frame), [frame]);
        }

        #[test]
        fn whatever_the_header_says_nothing_panics(header: [u8; 10], packet in testing::packet(0..300), at in 0_usize..100, byte: u8, keep in 0_usize..400) {
            let (right, mut frame) = packet.left_undone(100);
            if let Some(old) = frame.get_mut(at) {
                *old = byte;
            }
            frame.truncate(keep);
            for header in [VnetHeader::parse(&header), right] {
                if Cut::new(header, &frame).is_ok() {
                    frames(header, &frame);
                }
            }
        }
    }

    #[test]
    fn a_checksum_the_other_end_would_not_find_is_made() {
        let (header, frame) = Packet::tcp(100).left_undone(0);
        let single = VnetHeader {
            segments: None,
            ..header
        };
        // Somewhere else than TCP has it; in a fragment; in a protocol that has none.
        let elsewhere = VnetHeader {
            checksum: header.checksum.map(|at| Partial { offset: 6, ..at }),
            ..single
        };
        let (mut fragment, mut other) = (frame.clone(), frame.clone());
        fragment[20] |= 0x20;
        other[23] = 47;
        for (header, frame) in [
            (elsewhere, &frame),
            (single, &fragment),
            (single, &other),
            (VnetHeader::default(), &frame),
        ] {
            assert!(!Cut::new(header, frame).unwrap().leave_unfinished());
        }
        assert!(Cut::new(single, &frame).unwrap().leave_unfinished());
    }

    #[test]
    fn flags_stand_where_they_belong() {
        let packet = Packet {
            flags: FIN | PSH | CWR | 0x10,
            ..Packet::tcp(3000)
        };
        let (header, frame) = packet.left_undone(1000);
        let flags: Vec<u8> = frames(header, &frame)
            .iter()
            .map(|frame| frame[14 + 20 + TCP_FLAGS])
            .collect();
        assert_eq!(flags, [CWR | 0x10, 0x10, FIN | PSH | 0x10]);
    }

    #[test]
    fn a_super_frame_without_what_it_takes_is_refused() {
        let (header, frame) = Packet::tcp(3000).left_undone(1000);
        let segments = header.segments.unwrap();
        let with = |segments| VnetHeader {
            segments: Some(segments),
            ..header
        };
        let error = |header| Cut::new(header, &frame).unwrap_err();
        let bare = VnetHeader {
            checksum: None,
            ..header
        };
        assert_eq!(error(bare), CutError::Checksum);
        let none = with(Segments {
            size: 0,
            ..segments
        });
        assert_eq!(error(none), CutError::Headers);
        for kind in [Kind::Tcp6, Kind::Other(3)] {
            assert_eq!(error(with(Segments { kind, ..segments })), CutError::Kind);
        }
        let udp = with(Segments {
            kind: Kind::Udp,
            ..segments
        });
        assert_eq!(error(udp), CutError::Checksum);
        assert_eq!(
            Cut::new(header, &frame[..50]).unwrap_err(),
            CutError::Headers
        );
    }
}
