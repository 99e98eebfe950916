//! Datagrams on their way out, sealed one after another where they are sent from.
//!
//! Invariant: all are for one neighbour, and all but the last have the same length; whatever does not
//! go with them sends them first. So datagrams leave in the order they came, to whomever.

use std::sync::Arc;

use weft_net::datagrams::{MAX_TRAIN, MAX_TRAIN_BYTES, send_train};
use weft_router::drop_reason::DropReason;
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
        }
    }

    /// Seals one frame of `len` bytes, which `write` writes, behind its message header.
    pub(super) fn push(
        &mut self,
        shared: &Shared,
        egress: &Arc<Egress>,
        header: &[u8],
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let datagram_len = header.len() + len + OVERHEAD;
        if !self.takes(egress, datagram_len) {
            self.flush(shared);
        }
        let end = self.len + datagram_len;
        let Some(datagram) = self.buffer.get_mut(self.len..end) else {
            return shared.counters.drop(DropReason::MalformedFrame, 1);
        };
        let (message, frame) = (HEADER_LEN, HEADER_LEN + header.len());
        if let Some(room) = datagram.get_mut(message..frame) {
            room.copy_from_slice(header);
        }
        if let Some(room) = datagram.get_mut(frame..datagram_len - TAG_LEN) {
            write(room);
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
        let failed = self.count.saturating_sub(sent.datagrams);
        shared.counters.drop(DropReason::SendFailed, failed);
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
