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
#[cfg(feature = "test-util")]
pub mod fault;
mod kind;

#[cfg(feature = "tower")]
mod ready;
#[cfg(feature = "tower")]
mod time;
#[cfg(feature = "tower")]
mod wrap;

pub use error::{ConfigError, Error, Overload, Refusal, Rejected};
pub use event::{Event, Observer};
pub use kind::{ByError, Classify, Effect, Kind, Verdict, by_error};
