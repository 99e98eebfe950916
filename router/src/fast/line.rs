//! What one connection shows of the kernel's way to a peer: what both ends have said, and which beats were
//! answered.

use std::fmt;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use weft_wire::PeerName;
use weft_wire::fast::{Beat, TAG_LEN};
use zeroize::Zeroizing;

use crate::ConnId;

/// What is known over one connection.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) conn: ConnId,
    pub(super) established: bool,
    /// What we said last, if anything.
    pub(super) said: Option<Said>,
    /// Of the newest beat that came.
    pub(super) newest: u64,
    /// Where beats go and how they are signed, if the peer is open.
    pub(super) theirs: Option<(u16, BeatKey)>,
    /// Why it is not, if it said so.
    pub(super) refused: Option<String>,
    /// Of the last beat sent, and of the last one that was answered.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// So many were answered in a row, and when the first of them was.
    pub(super) answers: u32,
    pub(super) row_began: Instant,
    pub(super) due: Instant,
}

#[derive(Debug)]
pub(super) enum Said {
    /// Beats to us are signed with this.
    Open(BeatKey),
    Shut(String),
}

/// What the tags of beats one way are made with.
#[derive(Clone)]
pub(super) struct BeatKey(Zeroizing<[u8; 32]>);

impl Line {
    pub(super) fn new(conn: ConnId, now: Instant) -> Self {
        Self {
            conn,
            established: false,
            said: None,
            newest: 0,
            theirs: None,
            refused: None,
            asked: 0,
            answered: 0,
            answers: 0,
            row_began: now,
            due: now,
        }
    }

    /// Nothing is known of the way there.
    pub(super) fn begin(&mut self, now: Instant) {
        self.answered = self.asked;
        self.answers = 0;
        self.due = now;
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    pub(super) fn unanswered(&self) -> u64 {
        self.asked - self.answered
    }

    pub(super) fn came(&mut self, number: u64, carries: bool, now: Instant) {
        if number <= self.answered || number > self.asked {
            return;
        }
        if number > self.answered + 1 || self.answers == 0 {
            (self.answers, self.row_began) = (0, now);
        }
        self.answers = self.answers.saturating_add(1);
        self.answered = number;
        if !carries {
            // They had become rare.
            self.due = self.due.min(now + URGENTLY);
        }
    }

    pub(super) fn ask(&mut self, us: PeerName, mtu: u16, carries: bool, now: Instant) -> Beat {
        let unanswered = self.unanswered();
        let pause = match (carries, unanswered) {
            (true, 0) => STEADILY,
            (true, _) => URGENTLY,
            (false, 0..FIRST) if self.answers < ANSWERS => AT_FIRST,
            (false, 0..MANY) => URGENTLY * 2,
            (false, MANY..) => SELDOM,
        };
        self.asked += 1;
        self.due = now + pause;
        Beat {
            sender: us,
            number: self.asked,
            len: Beat::len_for(mtu),
        }
    }
}

impl BeatKey {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    pub(super) fn sign(&self, beat: &Beat) -> [u8; TAG_LEN] {
        let tag = hmac::sign(&self.key(), &beat.signed());
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }

    pub(super) fn made(&self, beat: &Beat, tag: &[u8; TAG_LEN]) -> bool {
        hmac::verify(&self.key(), &beat.signed(), tag).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, self.0.as_slice())
    }
}

impl fmt::Debug for BeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeatKey(..)")
    }
}

/// Between two beats while the kernel carries frames and all were answered.
pub(super) const STEADILY: Duration = Duration::from_secs(1);
/// Between two while an answer is missing.
const URGENTLY: Duration = Duration::from_millis(250);
/// Between the first ones, and how many these are.
const AT_FIRST: Duration = Duration::from_millis(100);
const FIRST: u64 = 5;
/// After so many without an answer they become rare.
const MANY: u64 = 40;
const SELDOM: Duration = Duration::from_secs(5);
/// After so many without an answer the kernel is not used: by chance alone, where one datagram in five
/// is lost, once in days.
pub(super) const MISSED: u64 = 8;
/// After so many answers in a row it is.
pub(super) const ANSWERS: u32 = 3;
