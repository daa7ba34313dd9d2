//! Database calls and HTTP handlers that survive.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "tower"),
    allow(
        dead_code,
        reason = "without `tower` only the pure cores are built, to show that they need nothing else"
    )
)]

pub mod classify;
pub mod error;
pub mod event;
mod fifo;
mod kind;
mod ring;
mod shard;
mod sync;
#[cfg(test)]
mod testing;

#[cfg(feature = "tower")]
mod ambient;
#[cfg(feature = "tower")]
pub mod breaker;
#[cfg(feature = "tower")]
pub mod deadline;
#[cfg(feature = "test-util")]
pub mod fault;
#[cfg(feature = "tower")]
mod gated;
#[cfg(feature = "tower")]
pub mod limit;
#[cfg(feature = "tower")]
mod ready;
#[cfg(feature = "tower")]
pub mod retry;
#[cfg(feature = "tower")]
pub mod shield;
#[cfg(feature = "tower")]
mod time;
#[cfg(feature = "tower")]
mod wrap;

#[cfg(not(feature = "tower"))]
mod breaker {
    mod circuit;
    mod gate;
    mod window;
}
#[cfg(not(feature = "tower"))]
mod limit {
    mod estimate;
    mod gate;
}
#[cfg(not(feature = "tower"))]
mod retry {
    mod backoff;
    mod balance;
    mod schedule;
}

#[cfg(feature = "tower")]
pub use breaker::Breaker;
#[cfg(feature = "tower")]
pub use deadline::Deadline;
pub use error::{ConfigError, Error, Overload, Refusal, Rejected};
pub use event::{Event, Observer};
pub use kind::{ByError, Classify, Effect, Kind, Verdict, by_error};
#[cfg(feature = "tower")]
pub use limit::ConcurrencyLimiter;
#[cfg(feature = "tower")]
pub use retry::Retry;
#[cfg(feature = "tower")]
pub use shield::Shield;
