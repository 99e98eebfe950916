//! The one look at the clock that tests need: an instant to count from.

use std::time::Instant;

/// Some instant; what it is does not matter.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made any other way"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}
