//! Retries alone: which failures are repeated, and why a lost answer is repeated for a read and not for a write.
//!
//! Run it: `cargo run --example retry_alone`
//!
//! ```toml
//! [dependencies]
//! steadfast = "0.1"
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! tower = { version = "0.5", features = ["util"] }
//! ```

use std::{
    error, io,
    sync::{Arc, Mutex},
};

use steadfast::{Event, Observer, Retry, classify, retry::Budget};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn error::Error>> {
    // What both do to the server is bounded together.
    let budget = Budget::default();
    let reads = Retry::builder()
        .name("reads")
        .idempotent(true)
        .budget(&budget)
        .observer(Print)
        .build()?;
    let writes = Retry::builder()
        .name("writes")
        .budget(&budget)
        .observer(Print)
        .build()?;

    // Nobody listened: nothing was done, so both are repeated.
    let refused = || Server::failing_with([io::ErrorKind::ConnectionRefused; 2]);
    assert_eq!(call(&reads, refused()).await?, "answer 3");
    assert_eq!(call(&writes, refused()).await?, "answer 3");

    // The connection was lost: the server may have acted, so only the read is repeated.
    let reset = || Server::failing_with([io::ErrorKind::ConnectionReset]);
    assert_eq!(call(&reads, reset()).await?, "answer 2");
    let error = call(&writes, reset()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    println!("a write whose answer was lost ends with its own error: {error}");

    // The server understood and said no: another attempt would get the same answer.
    let missing = Server::failing_with([io::ErrorKind::NotFound]);
    let error = call(&reads, missing).await.unwrap_err();
    println!("what was asked for is not there, however often one asks: {error}");
    Ok(())
}

async fn call(retry: &Retry, server: Server) -> io::Result<String> {
    let service = ServiceBuilder::new()
        .layer(retry.layer(classify::Io))
        .service_fn(move |()| {
            let server = server.clone();
            async move { server.answer() }
        });
    service.oneshot(()).await
}

/// Fails as it was told to, then answers.
#[derive(Clone)]
struct Server {
    failures: Arc<[io::ErrorKind]>,
    calls: Arc<Mutex<usize>>,
}

impl Server {
    fn failing_with<const N: usize>(failures: [io::ErrorKind; N]) -> Self {
        Self {
            failures: failures.into(),
            calls: Arc::default(),
        }
    }

    fn answer(&self) -> io::Result<String> {
        let mut calls = self.calls.lock().unwrap();
        let failure = self.failures.get(*calls);
        *calls += 1;
        match failure {
            Some(kind) => Err((*kind).into()),
            None => Ok(format!("answer {calls}")),
        }
    }
}

struct Print;

impl Observer for Print {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Retry {
            name,
            attempt,
            kind,
            delay,
        } = event
        {
            println!("{name}: attempt {attempt} was {kind}, the next one comes after {delay:.0?}");
        }
    }
}
