//! Whether anything was sent to a neighbour lately, and whether anything came from it: what tells a path that
//! is cut from one that nobody uses.
//!
//! Invariant: the loops write only what is not so already, so that a busy connection costs them a look.

use std::sync::atomic::{AtomicBool, Ordering};

/// What went on on one connection since it was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    sent: AtomicBool,
    heard: AtomicBool,
}

impl Activity {
    /// Frames were sent.
    pub(super) fn note_sent(&self) {
        note(&self.sent);
    }

    /// Something authentic came.
    pub(super) fn note_heard(&self) {
        note(&self.heard);
    }

    /// Whether frames were sent since this was asked last, and if so, whether anything came.
    pub(crate) fn take(&self) -> Option<Heard> {
        let heard = self.heard.swap(false, Ordering::Relaxed);
        let sent = self.sent.swap(false, Ordering::Relaxed);
        sent.then_some(Heard(heard))
    }
}

/// Whether anything came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard(pub(crate) bool);

fn note(flag: &AtomicBool) {
    if !flag.load(Ordering::Relaxed) {
        flag.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_what_was_since_the_last_one() {
        let activity = Activity::default();
        assert_eq!(activity.take(), None);
        activity.note_heard();
        assert_eq!(activity.take(), None, "nobody waits for an answer");
        activity.note_sent();
        assert_eq!(activity.take(), Some(Heard(false)));
        activity.note_sent();
        activity.note_heard();
        assert_eq!(activity.take(), Some(Heard(true)));
        assert_eq!(activity.take(), None);
    }
}
