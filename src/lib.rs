//! Database and service calls that survive: deadlines, classified retries, a circuit breaker, a bounded queue.
//!
//! A call is a closure, or a request to a [`tower`](https://docs.rs/tower) service.
//!
//! ```text
//!  shield.run(f)
//!    │ deadline     at = min(outer deadline, now + total)       one instant for everything below
//!    │   retry      attempt 1..n, backoff, budget               sleeps only if the next attempt can start before `at`
//!    │     breaker  admit ─ refused ─► CircuitOpen              judges each attempt
//!    │       limiter  slot, or bounded queue ─► Overloaded
//!    │         attempt deadline  min(at, now + per attempt)     a hang is a failure the breaker sees
//!    │           your call                                      the only place where your code runs
//!    ◄─ Result<T, E>: the same error type at every hop; the caller gets the real last error
//! ```
//!
//! # A call
//! [`Shield`] is the usual stack as one value. It borrows; your error type stays.
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{ConcurrencyLimiter, Rejected, Shield, classify};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shield = Shield::builder(classify::Io)
//!     .deadline(Duration::from_secs(2))
//!     .limiter(&ConcurrencyLimiter::new(20)?)
//!     .build()?;
//!
//! match shield.run(|| async { io::Result::Ok("answer") }).await {
//!     Ok(answer) => assert_eq!(answer, "answer"),
//!     Err(error) => match Rejected::of(&error) {
//!         Some(rejected) => println!("we refused: {rejected}"),
//!         None => println!("it failed: {error}"),
//!     },
//! }
//! # Ok(()) }
//! ```
//!
//! # A service
//! The same stack is a tower layer, and so is each of its parts: [`Deadline`], [`Retry`], [`Breaker`], [`ConcurrencyLimiter`].
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{Breaker, ConcurrencyLimiter, Deadline, Retry, classify};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = ServiceBuilder::new()
//!     .layer(Deadline::new(Duration::from_secs(10))?.layer())
//!     .layer(Retry::default().layer(classify::Io))
//!     .layer(Breaker::default().layer(classify::Io))
//!     .layer(ConcurrencyLimiter::new(20)?.layer())
//!     .layer(Deadline::new(Duration::from_secs(3))?.name("attempt").layer())
//!     .service_fn(async |n: u32| io::Result::Ok(n + 1));
//! assert_eq!(service.oneshot(1).await?, 2);
//! # Ok(()) }
//! ```
//!
//! # What a failure means
//! One [`Classify`] is written per dependency. Breaker and retry read the same answer, a [`Kind`]: was the work undone, may it have been done, is
//! the dependency unwell? [`classify`] has classifiers for I/O and sqlx; yours is a closure.
//!
//! ```
//! use std::io;
//! use steadfast::{Kind, Shield, by_error};
//!
//! let shield = Shield::builder(by_error(|error: &io::Error| match error.kind() {
//!     io::ErrorKind::ConnectionRefused => Kind::Unavailable,
//!     io::ErrorKind::InvalidInput => Kind::Invalid,
//!     _ => Kind::Ambiguous,
//! }))
//! .build()?;
//! # Ok::<(), steadfast::ConfigError>(())
//! ```
//!
//! # Error types
//! A refusal of ours is returned as an error of the service, so that type has to be able to carry one: see [`Refusal`]. Where it can't be,
//! [`Shield::run_wrapped`] returns an [`Error`] around it; for services, [`error::WrapLayer`] goes innermost, and the layers above take
//! [`error::Wrapped`]`(classify)`.
//!
//! # A database
#![cfg_attr(
    feature = "sqlx",
    doc = "[`Db`](db::Db) stands wherever an `&Pool` of sqlx stood: see [`db`]."
)]
#![cfg_attr(
    not(feature = "sqlx"),
    doc = "With the feature `sqlx`, `db::Db` stands wherever an `&Pool` of sqlx stood."
)]
//!
//! # HTTP
#![cfg_attr(
    feature = "http",
    doc = "[`HttpLayer`](http::HttpLayer) guards handlers and answers for them where it refuses; clients are told what statuses mean: see [`http`]."
)]
#![cfg_attr(
    not(feature = "http"),
    doc = "With the feature `http`, `HttpLayer` guards handlers and answers for them where it refuses; clients are told what statuses mean."
)]
//!
//! # Where to look
#![cfg_attr(
    all(
        doc,
        feature = "http",
        feature = "postgres",
        feature = "sqlite",
        feature = "test-util"
    ),
    doc = "The [`guide`]: [getting started](guide::getting_started), [symptoms](guide::symptoms) and what to change, [pool sizing](guide::pool_sizing), \
           [the order of layers](guide::layers), [what to share](guide::sharing), [testing](guide::testing), [moving](guide::moving) from tower and backon, \
           [replicas](guide::replicas).\n"
)]
//!
//! Each part's module is its page, with its defaults and why they are what they are: [`shield`], [`deadline`], [`retry`], [`breaker`], [`limit`]. Refusals and
//! error types are in [`error`](mod@error), what is reported in [`event`].
//!
//! # Features
//! | feature | what it adds |
//! |---|---|
//! | `tower` (default) | the layers, the handles and the shield |
//! | `sqlx` | `db`; `classify::Sqlx`; refusals in `sqlx::Error` |
//! | `postgres`, `mysql`, `sqlite` | `sqlx`, that database's `Db`, and what its errors mean |
//! | `http` | `http`: deadlines, limits and breakers around handlers; `classify::HttpStatus` |
//! | `test-util` | `fault`: faults on purpose, for the tests of your own services |
//!
//! Without `tower` only what is pure remains: the vocabulary, and the tables of [`classify`].
//!
//! # Requirements
//! Calls that have to wait need a tokio runtime with time enabled. Rust 1.94.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "tower"),
    allow(
        dead_code,
        reason = "without `tower` only the pure cores are built, to show that they need nothing else"
    )
)]

mod bell;
pub mod classify;
pub mod error;
pub mod event;
mod fifo;
mod held;
mod kind;
mod ring;
mod shard;
mod stamp;
mod sync;
#[cfg(test)]
mod testing;

#[cfg(feature = "tower")]
mod ambient;
#[cfg(feature = "tower")]
pub mod breaker;
#[cfg(feature = "sqlx")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlx")))]
#[cfg_attr(
    not(all(feature = "postgres", feature = "mysql", feature = "sqlite")),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "each database uses a part of what they share"
    )
)]
pub mod db;
#[cfg(feature = "tower")]
pub mod deadline;
#[cfg(feature = "test-util")]
pub mod fault;
#[cfg(feature = "tower")]
mod gated;
// Pages, and nothing else: they are there where documentation is made or tested.
#[cfg(all(
    any(doc, doctest),
    feature = "http",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util"
))]
pub mod guide;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
#[cfg(feature = "tower")]
pub mod limit;
#[cfg(feature = "tower")]
mod owner;
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
mod db {
    mod lease;
    mod meter;
    mod sizing;
    mod stats;
    mod usage;
}
#[cfg(not(feature = "tower"))]
mod limit {
    mod estimate;
    mod gate;
    mod permits;
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

/// The README's code is compiled as a test.
#[cfg(all(doctest, feature = "http", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
