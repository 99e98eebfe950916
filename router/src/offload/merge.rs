//! Putting consecutive frames of one flow together to a super-frame.
//!
//! One run of frames is under way at a time. A frame that continues it is added; any other ends it, so
//! that frames come out in the order they went in. When nothing more is to come for now, the caller
//! flushes.
//!
//! What may be merged is what is whole, valid and says nothing of its own (`flow::mergeable`), and continues
//! the run in every field. Checksums are verified before they are dropped: what was sent broken is delivered
//! broken. Those that came unfinished are left to the kernel.

use super::flow::{
    DONT_FRAGMENT, Layout, PSH, Protocol, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, Version,
    finish_network, mergeable, pair, pseudo_header, put, quad,
};
use super::{Kind, Partial, Segments, VnetHeader};

/// Merges frames; its one buffer is allocated once.
#[derive(Debug)]
pub struct Merge {
    /// The run's frame, or super-frame in the making; `len` bytes of it.
    buffer: Box<[u8]>,
    run: Option<Run>,
    /// Whether UDP is merged too.
    udp: bool,
}

/// A frame or super-frame for the TAP.
#[derive(Debug, PartialEq, Eq)]
pub struct Merged<'a> {
    /// What stands before it.
    pub header: VnetHeader,
    /// The frame.
    pub frame: &'a [u8],
    /// How many frames it is made of.
    pub frames: usize,
}

/// The frames merged so far. Invariant: all but the last have `size` bytes of payload.
#[derive(Debug)]
struct Run {
    layout: Layout,
    size: usize,
    len: usize,
    frames: usize,
    /// Where the checksum is that the frames came without.
    unfinished: Option<Partial>,
    /// TCP's number of the next byte.
    sequence: u32,
    /// How the identification of IPv4 packets goes on, once two are there.
    step: Option<u16>,
}

/// What may follow a frame in its run.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    /// It was short or pushed.
    Nothing,
}

impl Merge {
    /// Nothing yet. `udp` says whether the kernel cuts UDP super-frames.
    pub fn new(udp: bool) -> Self {
        Self {
            buffer: vec![0; MAX].into(),
            run: None,
            udp,
        }
    }

    /// Takes a frame, and where its checksum is if that is unfinished. Whatever cannot wait for more goes to
    /// `sink` at once, in order.
    pub fn push(
        &mut self,
        frame: &[u8],
        unfinished: Option<Partial>,
        mut sink: impl FnMut(Merged<'_>),
    ) {
        let single = Merged {
            header: VnetHeader {
                checksum: unfinished,
                segments: None,
            },
            frame,
            frames: 1,
        };
        let layout = mergeable(frame, unfinished.is_some());
        let Some(layout) = layout.filter(|l| self.udp || l.protocol == Protocol::Tcp) else {
            self.flush(&mut sink);
            return sink(single);
        };
        if let Some(run) = &mut self.run
            && run.unfinished == unfinished
            && run.is_continued_by(&self.buffer, frame, &layout)
        {
            if run.add(&mut self.buffer, frame) == Next::Nothing {
                self.flush(sink);
            }
            return;
        }
        self.flush(&mut sink);
        match Run::begin(&mut self.buffer, frame, layout, unfinished) {
            Some(run) => self.run = Some(run),
            None => sink(single),
        }
    }

    /// Whether something waits for more.
    pub fn is_waiting(&self) -> bool {
        self.run.is_some()
    }

    /// Gives to `sink` what waits for more.
    pub fn flush(&mut self, mut sink: impl FnMut(Merged<'_>)) {
        let Some(run) = self.run.take() else {
            return;
        };
        let Some(frame) = self.buffer.get_mut(..run.len) else {
            return;
        };
        let header = run.finish(frame);
        sink(Merged {
            header,
            frame,
            frames: run.frames,
        });
    }
}

impl Run {
    /// `None` if nothing may follow the frame.
    fn begin(
        buffer: &mut [u8],
        frame: &[u8],
        layout: Layout,
        unfinished: Option<Partial>,
    ) -> Option<Self> {
        if pushes(frame, &layout) {
            return None;
        }
        buffer.get_mut(..frame.len())?.copy_from_slice(frame);
        let size = frame.len().checked_sub(layout.payload)?;
        let sequence = quad(frame, layout.transport + 4)?;
        Some(Self {
            layout,
            size,
            len: frame.len(),
            frames: 1,
            unfinished,
            sequence: sequence.wrapping_add(size as u32),
            step: None,
        })
    }

    /// Whether a mergeable frame goes on where the run ends, and is like it in all else.
    fn is_continued_by(&self, run: &[u8], frame: &[u8], layout: &Layout) -> bool {
        let size = frame.len().saturating_sub(layout.payload);
        let most = match layout.protocol {
            Protocol::Tcp => usize::MAX,
            Protocol::Udp => MAX_DATAGRAMS,
        };
        let same = |from: usize, to: usize| run.get(from..to) == frame.get(from..to);
        let (network, transport) = (layout.network, layout.transport);
        *layout == self.layout
            && size <= self.size
            && self.len + size <= MAX
            && self.frames < most
            && same(0, network)
            && match layout.version {
                Version::V4 => {
                    same(network, network + 2)
                        && same(network + 6, network + 10)
                        && same(network + 12, network + 20)
                        && self.counts_on(run, frame)
                }
                Version::V6 => same(network, network + 4) && same(network + 6, network + 40),
            }
            && same(transport, transport + 4)
            && match layout.protocol {
                Protocol::Udp => true,
                // All but the sequence number, the flags and the checksum; the flags of mergeable
                // frames differ in PSH at the most.
                Protocol::Tcp => {
                    quad(frame, transport + 4) == Some(self.sequence)
                        && same(transport + 8, transport + TCP_FLAGS)
                        && same(transport + TCP_FLAGS + 1, transport + 16)
                        && same(transport + 18, layout.payload)
                }
            }
    }

    /// Whether the identification goes on as cutting would count it: by one. For packets that may not
    /// be fragmented it means nothing (RFC 6864), and some senders leave it as it is.
    fn counts_on(&self, run: &[u8], frame: &[u8]) -> bool {
        let network = self.layout.network;
        match self.step_to(run, frame) {
            Some(1) => self.step != Some(0),
            Some(0) => {
                self.step != Some(1)
                    && pair(frame, network + 6).is_some_and(|word| word & DONT_FRAGMENT != 0)
            }
            Some(_) | None => false,
        }
    }

    /// By how much each identification of the run is more than the one before, this one included.
    fn step_to(&self, run: &[u8], frame: &[u8]) -> Option<u16> {
        let at = self.layout.network + 4;
        let since = pair(frame, at)?.wrapping_sub(pair(run, at)?);
        match since {
            0 => Some(0),
            // The number of frames is far below 65,536: each has a byte at least.
            since if usize::from(since) == self.frames => Some(1),
            _ => None,
        }
    }

    fn add(&mut self, run: &mut [u8], frame: &[u8]) -> Next {
        if self.layout.version == Version::V4 {
            self.step = self.step_to(run, frame);
        }
        let payload = frame.get(self.layout.payload..).unwrap_or_default();
        put(run, self.len, payload);
        self.len += payload.len();
        self.frames += 1;
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        if pushes(frame, &self.layout) {
            if let Some(flags) = run.get_mut(self.layout.transport + TCP_FLAGS) {
                *flags |= PSH;
            }
            return Next::Nothing;
        }
        if payload.len() < self.size {
            Next::Nothing
        } else {
            Next::More
        }
    }

    /// Makes the headers those of the super-frame; a single frame stays as it came.
    fn finish(&self, frame: &mut [u8]) -> VnetHeader {
        if self.frames == 1 {
            return VnetHeader {
                checksum: self.unfinished,
                segments: None,
            };
        }
        let Layout {
            version,
            protocol,
            network,
            transport,
            payload,
        } = self.layout;
        finish_network(frame, network, version);
        let segment = frame.len() - transport;
        let (kind, offset) = match (protocol, version) {
            (Protocol::Tcp, Version::V4) => (Kind::Tcp4, TCP_CHECKSUM),
            (Protocol::Tcp, Version::V6) => (Kind::Tcp6, TCP_CHECKSUM),
            (Protocol::Udp, _) => {
                // Below 64 KiB, as the whole is.
                put(frame, transport + 4, &(segment as u16).to_be_bytes());
                (Kind::Udp, UDP_CHECKSUM)
            }
        };
        if let Some(pseudo) = pseudo_header(frame, &self.layout, segment) {
            put(frame, transport + usize::from(offset), &pseudo.folded());
        }
        // Places in a frame below 64 KiB.
        VnetHeader {
            checksum: Some(Partial {
                start: transport as u16,
                offset,
            }),
            segments: Some(Segments {
                kind,
                headers: payload as u16,
                size: self.size as u16,
            }),
        }
    }
}

fn pushes(frame: &[u8], layout: &Layout) -> bool {
    let flags = frame.get(layout.transport + TCP_FLAGS);
    layout.protocol == Protocol::Tcp && flags.is_some_and(|flags| flags & PSH != 0)
}

/// The longest super-frame, Ethernet header included: the length of its packet has 16 bits, and links
/// count the header too when they compare with their own limit of 64 KiB.
const MAX: usize = 65_535;
/// Datagrams of one super-frame, by the kernel's `UDP_MAX_SEGMENTS` of old.
const MAX_DATAGRAMS: usize = 64;

#[cfg(test)]
mod tests;
