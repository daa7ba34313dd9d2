//! Testing a service of your own on its worst days: faults on purpose, on a clock that jumps.
//!
//! Run it: `cargo test --example testing_with_faults --features test-util`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["test-util"] } # test-util: the faults; you need them in tests only
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! tower = { version = "0.5", features = ["util"] }
//! ```

use std::{error, io};

use steadfast::{ConfigError, Shield, classify};
use tower::{Layer, Service, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let orders = Orders::new(tower::service_fn(async |Reserve(pieces): Reserve| {
        io::Result::Ok(100 - pieces)
    }))?;
    println!("{:?}", orders.place(3).await);
    println!("Now run: cargo test --example testing_with_faults --features test-util");
    Ok(())
}

/// What is tested: takes orders, and reserves the pieces in the warehouse `W`.
struct Orders<W> {
    warehouse: W,
    shield: Shield<classify::Io>,
}

/// Takes so many pieces off the shelf. Doing it twice takes twice as many.
#[derive(Clone, Copy)]
struct Reserve(u32);

#[derive(Debug, PartialEq)]
enum Placed {
    /// So many pieces are left.
    Reserved(u32),
    /// Somebody has to look.
    Unknown,
    Failed,
}

impl<W> Orders<W>
where
    W: Service<Reserve, Response = u32, Error = io::Error> + Clone,
{
    fn new(warehouse: W) -> Result<Self, ConfigError> {
        let shield = Shield::builder(classify::Io).name("warehouse").build()?;
        Ok(Self { warehouse, shield })
    }

    async fn place(&self, pieces: u32) -> Placed {
        let warehouse = self.shield.layer(self.warehouse.clone());
        match warehouse.oneshot(Reserve(pieces)).await {
            Ok(left) => Placed::Reserved(left),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Placed::Failed,
            Err(_) => Placed::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use steadfast::{
        Kind,
        fault::{Fault, Faults},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_goes_unnoticed() {
        let day = Day::with([Fault::Fail(Kind::Unavailable); 2]);
        assert_eq!(day.place(3).await, Placed::Reserved(97));
        assert_eq!(day.reserved(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_outage_is_a_failure_that_left_nothing_behind() {
        let day = Day::with([Fault::Fail(Kind::Unavailable); 3]);
        assert_eq!(day.place(3).await, Placed::Failed);
        assert_eq!(day.reserved(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_are_not_reserved_twice_when_the_answer_is_lost() {
        let day = Day::with([Fault::FailAfter(Kind::Ambiguous)]);
        assert_eq!(day.place(3).await, Placed::Unknown);
        assert_eq!(day.reserved(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_warehouse_that_hangs_does_not_hold_an_order_for_ever() {
        for (hang, reserved) in [(Fault::Hang, 0), (Fault::HangAfter, 3)] {
            let day = Day::with([hang]);
            assert_eq!(day.place(3).await, Placed::Unknown, "{hang:?}");
            assert_eq!(day.reserved(), reserved, "{hang:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_warehouse_is_waited_for() {
        let day = Day::with([Fault::Latency(Duration::from_secs(2))]);
        assert_eq!(day.place(3).await, Placed::Reserved(97));
    }

    /// A fake warehouse with a hundred pieces, and what goes wrong on the way to it.
    struct Day {
        faults: Faults<io::Error>,
        reserved: Arc<AtomicU32>,
    }

    impl Day {
        fn with(script: impl IntoIterator<Item = Fault>) -> Self {
            // Errors that `classify::Io` reads as the kind that they were made from.
            let error = |kind| match kind {
                Kind::Unavailable => io::ErrorKind::ConnectionRefused.into(),
                _ => io::ErrorKind::ConnectionReset.into(),
            };
            let faults = Faults::builder(error).script(script).build();
            Self {
                faults: faults.unwrap(),
                reserved: Arc::default(),
            }
        }

        async fn place(&self, pieces: u32) -> Placed {
            let reserved = self.reserved.clone();
            let warehouse = tower::service_fn(move |Reserve(pieces): Reserve| {
                let before = reserved.fetch_add(pieces, Ordering::Relaxed);
                async move { io::Result::Ok(100 - before - pieces) }
            });
            let orders = Orders::new(self.faults.layer().layer(warehouse)).unwrap();
            orders.place(pieces).await
        }

        fn reserved(&self) -> u32 {
            self.reserved.load(Ordering::Relaxed)
        }
    }
}
