//! Waiting for what a killed router still holds.
//!
//! The kernel takes a process's locks, devices and ports back one after another, some of them after the process
//! is gone to the eye. So who launches a router right behind a `kill -9` would be told that one is running.
//! Invariant: only what is *taken* is waited for, and never longer than [`PATIENCE`]; any other error comes at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a process that is ending may keep what it holds. Longer means that somebody lives on with it.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Takes something as soon as nobody else has it.
///
/// # Errors
/// What `take` said: at once if that is not `taken`, else when the time is over.
pub(crate) async fn once_free<T, E>(
    taken: impl Fn(&E) -> bool,
    mut take: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match take() {
            Err(error) if taken(&error) && began.elapsed() < PATIENCE => sleep(POLL).await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Refusal {
        Taken,
        Other,
    }

    async fn after(refusals: usize, refusal: fn() -> Refusal) -> (Result<(), Refusal>, Duration) {
        let (began, mut left) = (Instant::now(), refusals);
        let take = || {
            let refused = left > 0;
            left = left.saturating_sub(1);
            if refused { Err(refusal()) } else { Ok(()) }
        };
        let done = once_free(|error| *error == Refusal::Taken, take).await;
        (done, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_taken_is_waited_for_and_not_for_ever() {
        assert_eq!(after(0, || Refusal::Taken).await, (Ok(()), Duration::ZERO));
        let (done, waited) = after(50, || Refusal::Taken).await;
        assert_eq!((done, waited), (Ok(()), 50 * POLL));
        let (done, waited) = after(1, || Refusal::Other).await;
        assert_eq!((done, waited), (Err(Refusal::Other), Duration::ZERO));
        let (done, waited) = after(usize::MAX, || Refusal::Taken).await;
        assert_eq!((done, waited), (Err(Refusal::Taken), PATIENCE));
    }
}
