//! Whether a capturing loop should go before whatever has the usual priority.
//!
//! One that is far behind should: whoever sends waits for it, and if it waits for its turn among all others, the
//! sender's processor time is gone before the frames are. One that keeps up should not: it would be woken for each
//! frame, and take from the sender the time in which the next would have come, to go with it in one train. So it
//! goes first from when it is far behind until it finds little at each wake, and not again for a while.
//! Short frames count for nothing: of those a train holds as many as their sender was let write.
//!
//! Pure: the caller counts, and changes the priority.
//!
//! Invariant: the priority changes at most once in [`WINDOW`] frames, and is raised at most once in [`REST`] windows.

/// Frames, short ones too, after which it is decided anew.
const WINDOW: u32 = 1024;
/// So many long frames for each wait mean that the loop is far behind.
const BEHIND: u32 = 20;
/// So many mean that it keeps up.
const KEEPS_UP: u32 = 3;
/// Windows before it may go first again.
const REST: u32 = 16;

/// What the loop has found of late.
#[derive(Debug, Default)]
pub(super) struct Haste {
    frames: u32,
    long: u32,
    waits: u32,
    first: bool,
    rest: u32,
}

impl Haste {
    /// So many frames were taken in one go, so many of them long, and then there were no more, or there were.
    /// Answers whether the loop is to go first from now on, if that is otherwise than before.
    pub(super) fn note(&mut self, frames: u32, long: u32, no_more: bool) -> Option<bool> {
        self.frames += frames;
        self.long += long;
        self.waits += u32::from(no_more);
        if self.frames < WINDOW {
            return None;
        }
        let each = self.long / self.waits.max(1);
        (self.frames, self.long, self.waits) = (0, 0, 0);
        self.rest = self.rest.saturating_sub(1);
        let first = match self.first {
            false => each >= BEHIND && self.rest == 0,
            true => each >= KEEPS_UP,
        };
        if first == self.first {
            return None;
        }
        if !first {
            self.rest = REST;
        }
        self.first = first;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one window of bursts like this comes to.
    fn window(haste: &mut Haste, frames: u32, long: u32, no_more: bool) -> Option<bool> {
        let bursts = WINDOW / frames;
        let changes = (0..bursts).map(|_| haste.note(frames, long, no_more));
        let changes: Vec<_> = changes.collect();
        let (last, before) = changes.split_last().unwrap();
        assert!(before.iter().all(Option::is_none), "{changes:?}");
        *last
    }

    #[test]
    fn a_loop_that_is_far_behind_goes_first_until_it_keeps_up() {
        let mut haste = Haste::default();
        assert_eq!(window(&mut haste, 1, 1, true), None);
        assert_eq!(window(&mut haste, 16, 16, true), None);
        assert_eq!(window(&mut haste, 64, 64, false), Some(true));
        assert_eq!(window(&mut haste, 4, 4, true), None);
        assert_eq!(window(&mut haste, 64, 64, false), None);
        assert_eq!(window(&mut haste, 2, 2, true), Some(false));
    }

    #[test]
    fn it_does_not_go_first_for_short_frames() {
        let mut haste = Haste::default();
        assert_eq!(window(&mut haste, 64, 0, true), None);
        assert_eq!(window(&mut haste, 64, 32, true), Some(true));
        assert_eq!(window(&mut haste, 64, 0, false), Some(false));
    }

    #[test]
    fn it_does_not_go_first_again_at_once() {
        let mut haste = Haste::default();
        assert_eq!(window(&mut haste, 32, 32, true), Some(true));
        assert_eq!(window(&mut haste, 1, 1, true), Some(false));
        for _ in 1..REST {
            assert_eq!(window(&mut haste, 64, 64, false), None);
        }
        assert_eq!(window(&mut haste, 64, 64, false), Some(true));
    }
}
