//! Datagrams on their way out, sealed one after another where they are sent from. A frame that is too long
//! for the path goes in pieces.
//!
//! Invariant: all are for one neighbour, and all but the last have the same length; whatever does not
//! go with them sends them first. So datagrams leave in the order they came, to whomever.

use std::sync::Arc;

use std::sync::atomic::Ordering;

use weft_net::datagrams::{MAX_TRAIN, MAX_TRAIN_BYTES, send_train};
use weft_router::drop_reason::DropReason;
use weft_router::fragment::Split;
use weft_wire::message::FRAGMENT_LEN;
use weft_wire::packet::{HEADER_LEN, OVERHEAD, TAG_LEN};

use super::{BUFFER, Egress, Report, Shared, add};

/// Datagrams that wait to be sent together.
pub(super) struct Batch {
    /// The datagrams; `len` bytes of it.
    buffer: Box<[u8]>,
    len: usize,
    count: usize,
    /// Length of the first one.
    size: usize,
    /// Whether the last one is shorter.
    closed: bool,
    to: Option<Arc<Egress>>,
    /// A message that goes in pieces.
    whole: Box<[u8]>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into(),
            len: 0,
            count: 0,
            size: 0,
            closed: false,
            to: None,
            whole: vec![0; BUFFER].into(),
        }
    }

    /// Seals one frame of `len` bytes, which `write` writes, behind its message header; in pieces, if one
    /// datagram would be too long for the path.
    pub(super) fn push(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        header: &[u8],
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let len = header.len() + len;
        let write = |room: &mut [u8]| {
            if let Some((head, frame)) = room.split_at_mut_checked(header.len()) {
                head.copy_from_slice(header);
                write(frame);
            }
        };
        if len + OVERHEAD > egress.limit {
            self.push_pieces(shared, egress, len, write);
        } else {
            self.put(shared, egress, len, write);
        }
    }

    fn push_pieces(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let room = egress.limit.saturating_sub(OVERHEAD + FRAGMENT_LEN);
        let mut buffer = std::mem::take(&mut self.whole);
        match (Split::new(len, room), buffer.get_mut(..len)) {
            (Some(split), Some(whole)) => {
                write(whole);
                add(&shared.counters.frames_split, 1);
                let number = shared.splits.fetch_add(1, Ordering::Relaxed);
                for (header, at) in split.pieces(number) {
                    let piece = whole.get(at).unwrap_or_default();
                    self.put(shared, egress, FRAGMENT_LEN + piece.len(), |room| {
                        if let Some((head, rest)) = room.split_at_mut_checked(FRAGMENT_LEN) {
                            head.copy_from_slice(&header.emit());
                            rest.copy_from_slice(piece);
                        }
                    });
                }
            }
            _ => shared.counters.drop(DropReason::MalformedFrame, 1),
        }
        self.whole = buffer;
    }

    /// Seals one message of `len` bytes, which `write` writes.
    fn put(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let datagram_len = len + OVERHEAD;
        if !self.takes(egress, datagram_len) {
            self.flush(shared);
        }
        let end = self.len + datagram_len;
        let Some(datagram) = self.buffer.get_mut(self.len..end) else {
            return shared.counters.drop(DropReason::MalformedFrame, 1);
        };
        if let Some(message) = datagram.get_mut(HEADER_LEN..datagram_len - TAG_LEN) {
            write(message);
        }
        if egress.session.seal(datagram).is_err() {
            return shared.counters.drop(DropReason::SessionExpired, 1);
        }
        if self.count == 0 {
            self.size = datagram_len;
            self.to = Some(egress.clone());
        }
        self.closed = datagram_len < self.size;
        self.count += 1;
        self.len = end;
    }

    /// Sends what waits. Never waits itself: what there is no room for is dropped.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let Some(egress) = self.to.take() else {
            return;
        };
        let train = self.buffer.get(..self.len).unwrap_or_default();
        let sent = send_train(&shared.socket, train, self.size, egress.remote);
        add(&shared.counters.datagrams_sent, sent.datagrams);
        if sent.singly {
            add(&shared.counters.trains_refused, 1);
        }
        if sent.too_long > 0 {
            let counters = &shared.counters;
            counters.drop(DropReason::DatagramTooLong, sent.too_long);
            shared.report(Report::TooLong {
                conn: egress.conn,
                size: self.size,
            });
        }
        let failed = self.count.saturating_sub(sent.datagrams + sent.too_long);
        shared.counters.drop(DropReason::SendFailed, failed);
        egress.activity.note_sent();
        if egress.session.needs_rekey() {
            shared.report(Report::RekeyDue { conn: egress.conn });
        }
        (self.len, self.count, self.size, self.closed) = (0, 0, 0, false);
    }

    fn takes(&self, egress: &Arc<Egress>, len: usize) -> bool {
        match &self.to {
            None => true,
            Some(to) => {
                Arc::ptr_eq(to, egress)
                    && !self.closed
                    && len <= self.size
                    && self.count < MAX_TRAIN
                    && self.len + len <= MAX_TRAIN_BYTES
            }
        }
    }
}
