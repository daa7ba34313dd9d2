//! A circuit breaker alone: around a service as a layer, and by hand around any code.
//!
//! Run it: `cargo run --example breaker_alone`
//!
//! ```toml
//! [dependencies]
//! steadfast = "0.1"
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! tower = { version = "0.5", features = ["util"] }
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "it sleeps until the open time is over"
)]

use std::{
    error, io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use steadfast::{Breaker, Event, Kind, Observer, Rejected, breaker::State, classify};
use tokio::time::sleep;
use tower::{Service, ServiceBuilder};

static IS_DOWN: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU32 = AtomicU32::new(0);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let breaker = Breaker::consecutive(5)
        .name("prices")
        .open_for(Duration::from_secs(60))
        .observer(Print)
        .build()?;
    let mut prices = ServiceBuilder::new()
        .layer(breaker.layer(classify::Io))
        .service_fn(async |article: u32| price(article));

    assert_eq!(prices.call(7).await?, 700);

    // Five failures in a row open the circuit; from then on nobody bothers the server.
    IS_DOWN.store(true, Ordering::Relaxed);
    for _ in 0..100 {
        prices.call(7).await.unwrap_err();
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 1 + 5);
    let error = prices.call(7).await.unwrap_err();
    let rejected = Rejected::of(&error).expect("the circuit is open");
    println!("refused: {rejected}");

    // Its time is over: one call goes through, and answers for all.
    IS_DOWN.store(false, Ordering::Relaxed);
    sleep(rejected.retry_after().expect("an open circuit knows")).await;
    assert_eq!(prices.call(7).await?, 700);
    assert_eq!(breaker.state(), State::Closed);

    // The same circuit by hand: ask for leave, then say how it went.
    let permit = breaker.admit()?;
    let result = price(8);
    permit.settle(match &result {
        Ok(_) => Kind::Success,
        Err(_) => Kind::Unavailable,
    });
    assert_eq!(result?, 800);

    // Before a planned restart.
    breaker.force_open();
    assert!(breaker.admit().is_err());
    breaker.reset();
    assert!(breaker.admit().is_ok());
    Ok(())
}

fn price(article: u32) -> io::Result<u32> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    if IS_DOWN.load(Ordering::Relaxed) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(article * 100)
}

struct Print;

impl Observer for Print {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Transition {
            name,
            from,
            to,
            cause,
        } = event
        {
            println!("{name}: {from} -> {to}, {}", cause.as_str());
        }
    }
}
