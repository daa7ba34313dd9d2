//! The whole stack by hand, with tower's `ServiceBuilder`: which layer goes where, and why.
//!
//! Run it: `cargo run --example service_builder`
//!
//! ```toml
//! [dependencies]
//! steadfast = "0.1"
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! tower = { version = "0.5", features = ["util"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "it shows how long the call took")]

use std::{
    error,
    future::pending,
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use steadfast::{Breaker, ConcurrencyLimiter, Deadline, Event, Observer, Retry, classify};
use tokio::time::Instant;
use tower::{Service, ServiceBuilder};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let total = Deadline::new(Duration::from_secs(10))?.observer(Print);
    // Reads: an attempt that was cut off may be made again.
    let retry = Retry::builder().idempotent(true).observer(Print).build()?;
    let attempt_deadline = Duration::from_secs(3);
    let breaker = Breaker::builder()
        .attempt_deadline(attempt_deadline)
        .observer(Print)
        .build()?;
    let limiter = ConcurrencyLimiter::new(20)?;
    let attempt = Deadline::new(attempt_deadline)?
        .name("attempt")
        .observer(Print);

    // `ServiceBuilder` begins with the outermost layer.
    let mut articles = ServiceBuilder::new()
        // Nothing outlives it: queueing, every attempt, and the time between them count.
        .layer(total.layer())
        // Outside the breaker, so that each attempt is judged.
        .layer(retry.layer(classify::Io))
        // Outside the limiter, so that an open circuit refuses at once instead of queueing.
        .layer(breaker.layer(classify::Io))
        // Outside the attempt's deadline, which should not run while a call queues.
        .layer(limiter.layer())
        // Innermost: a hang becomes a failure that the breaker sees.
        .layer(attempt.layer())
        .service_fn(title);

    let start = Instant::now();
    assert_eq!(articles.call(7).await?, "article 7");
    println!("answered after {:.2?}", start.elapsed());
    assert_eq!(CALLS.load(Ordering::Relaxed), 3);
    assert!(start.elapsed() >= attempt_deadline);
    Ok(())
}

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Nobody listens, then it hangs, then it answers.
async fn title(article: u32) -> io::Result<String> {
    match CALLS.fetch_add(1, Ordering::Relaxed) {
        0 => Err(io::ErrorKind::ConnectionRefused.into()),
        1 => pending().await,
        _ => Ok(format!("article {article}")),
    }
}

struct Print;

impl Observer for Print {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::Retry { name, kind, .. } => println!("{name}: was {kind}, will be repeated"),
            Event::Refused { name, rejected } => println!("{name}: {rejected}"),
            other => println!("{other:?}"),
        }
    }
}
