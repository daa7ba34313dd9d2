//! An error type of your own: how it carries our refusals, and what each of its variants means.
//!
//! Run it: `cargo run --example own_error`
//!
//! ```toml
//! [dependencies]
//! steadfast = "0.1"
//! thiserror = "2"
//! tokio = { version = "1.49", features = ["macros", "rt", "test-util"] } # test-util: the paused clock
//! ```

use std::{cell::Cell, error, future::pending, time::Duration};

use steadfast::{Classify, ConcurrencyLimiter, Kind, Refusal, Rejected, Shield, Verdict, by_error};

/// Whatever can go wrong with a payment. `#[from]` is how a refusal of ours gets in.
#[derive(Debug, thiserror::Error)]
enum PaymentError {
    #[error("not asked: {0}")]
    Rejected(#[from] Rejected),
    #[error("the card was declined")]
    Declined,
    #[error("the bank is busy, come back in {0:?}")]
    Busy(Duration),
    #[error("the line was cut before the bank answered")]
    Cut,
}

/// How we find it again.
impl Refusal for PaymentError {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            _ => None,
        }
    }
}

/// What each failure means. No wildcard: a new variant has to be thought about.
fn means(error: &PaymentError) -> Verdict {
    match error {
        PaymentError::Declined => Kind::Invalid.into(),
        PaymentError::Busy(hint) => Verdict::from(Kind::Overloaded).retry_after(*hint),
        PaymentError::Cut => Kind::Ambiguous.into(),
        // Never asked for: we know our own refusals.
        PaymentError::Rejected(_) => Kind::Ignored.into(),
    }
}

/// For when an `Ok` can be a failure too: a classifier as a type, which has a name besides.
#[derive(Clone, Copy, Debug)]
struct Payments;

impl Classify<Receipt, PaymentError> for Payments {
    fn classify(&self, result: Result<&Receipt, &PaymentError>) -> Verdict {
        match result {
            Ok(Receipt { number: 0 }) => Kind::Unavailable.into(),
            Ok(_) => Kind::Success.into(),
            Err(error) => means(error),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Receipt {
    number: u32,
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let shield = Shield::builder(by_error(means))
        .name("bank")
        .limiter(&ConcurrencyLimiter::new(10)?)
        .build()?;

    // Busy: asked again, no sooner than the bank wants.
    let attempts = Cell::new(0);
    let pay = || async {
        attempts.set(attempts.get() + 1);
        match attempts.get() {
            1 => Err(PaymentError::Busy(Duration::from_secs(1))),
            number => Ok(Receipt { number }),
        }
    };
    assert_eq!(shield.run(pay).await?.number, 2);

    // Declined, or cut off: the caller gets that very error, after one attempt.
    for fail in [|| PaymentError::Declined, || PaymentError::Cut] {
        let attempts = Cell::new(0);
        let pay = || async {
            attempts.set(attempts.get() + 1);
            Err::<Receipt, _>(fail())
        };
        let error = shield.run(pay).await.unwrap_err();
        assert_eq!(error.to_string(), fail().to_string());
        assert_eq!(attempts.get(), 1);
        println!("{error}");
    }

    // The bank never answers: the shield's deadline strikes, in the caller's own error type.
    let error = shield.run(pending::<Result<Receipt, PaymentError>>).await;
    let error = error.unwrap_err();
    assert!(matches!(&error, PaymentError::Rejected(rejected) if rejected.sent()));
    println!("{error}");

    // An `Ok` that is none.
    let strict = Shield::builder(Payments).build()?;
    let attempts = Cell::new(0);
    let pay = || async {
        let number = attempts.replace(attempts.get() + 1);
        Ok(Receipt { number })
    };
    assert_eq!(strict.run(pay).await?, Receipt { number: 1 });
    Ok(())
}
