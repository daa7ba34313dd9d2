//! A deadline around a limiter: who can't be served in time is told so, at once where that is known at once.
//!
//! Run it: `cargo run --example deadline_and_limiter`
//!
//! ```toml
//! [dependencies]
//! steadfast = "0.1"
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! tower = { version = "0.5", features = ["util"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "it shows what comes when")]

use std::{error, io, time::Duration};

use steadfast::{ConcurrencyLimiter, Deadline, Overload, Rejected, deadline};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn error::Error>> {
    // The deadline is outside: the time in the queue counts.
    let limiter = ConcurrencyLimiter::builder(2).queue(3).build()?;
    let service = ServiceBuilder::new()
        .layer(Deadline::new(Duration::from_secs(1))?.layer())
        .layer(limiter.layer())
        .service_fn(work);

    // Seven at the same moment: two run, three wait, two find the queue full.
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for number in 1..=7 {
        let call = service.clone().oneshot(Duration::from_millis(400));
        calls.spawn(async move { (number, call.await) });
    }
    let mut ends = Vec::new();
    while let Some(end) = calls.join_next().await {
        let (number, result) = end?;
        let outcome = match &result {
            Ok(()) => "done".to_owned(),
            Err(error) => Rejected::of(error).expect("only we say no").to_string(),
        };
        let at = start.elapsed().as_millis();
        println!("{at:>4} ms  call {number}: {outcome}");
        ends.push((
            number,
            result.map_err(|error| Rejected::of(&error).cloned()),
        ));
    }
    ends.sort_by_key(|(number, _)| *number);
    let ends: Vec<_> = ends.into_iter().map(|(_, end)| end).collect();
    let overloaded = |reason| Err(Some(Rejected::Overloaded { reason }));
    assert_eq!(ends[..4], [Ok(()), Ok(()), Ok(()), Ok(())]);
    // It came to the front after 0.8 s: the 0.2 s that were left are less than a call takes.
    assert_eq!(ends[4], overloaded(Overload::TooLittleTime));
    let full = overloaded(Overload::QueueFull);
    assert_eq!(ends[5..], [full.clone(), full]);

    // A call that runs too long is cut off. It was sent, so it may have acted.
    let long = service.oneshot(Duration::from_secs(2)).await;
    let error = long.unwrap_err();
    let rejected = Rejected::of(&error).expect("the deadline struck");
    assert!(rejected.sent());
    println!("a long call: {rejected}");
    assert_eq!(limiter.stats().in_flight, 0);
    Ok(())
}

/// Sees the deadline of its call, and could give a query no more time than is left.
async fn work(time: Duration) -> io::Result<()> {
    assert!(deadline::current().is_some());
    sleep(time).await;
    Ok(())
}
