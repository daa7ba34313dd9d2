//! What the unit tests of the pure cores share.

use std::time::{Duration, Instant};

/// An instant to count from, with room before it.
#[allow(
    clippy::disallowed_methods,
    reason = "an arbitrary origin: the cores' tests only add to it"
)]
pub(crate) fn start() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// `start + seconds`.
pub(crate) fn at(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}
