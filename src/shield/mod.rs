//! The usual stack as one type.
//!
//! Deadline, retry, breaker, limiter and attempt deadline, around one call:
//!
//! ```text
//!  shield.run(f)
//!    │ deadline    at = min(outer deadline, now + 10 s)        one instant for everything below
//!    │   retry     attempt 1..3, backoff, budget               sleeps only if the next attempt can start before `at`
//!    │     breaker admit ─ refused ─► CircuitOpen              judges each attempt
//!    │       limiter  slot, or bounded queue ─► Overloaded
//!    │         attempt deadline  min(at, now + 3 s)            a hang is a failure the breaker sees
//!    │           your call                                     the only place where your code runs
//!    ◄─ Result<T, E>: your error type; you get the real last error
//! ```
//!
//! ```
//! use std::io;
//! use steadfast::{ConcurrencyLimiter, Shield, classify};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shield = Shield::builder(classify::Io)
//!     .name("orders")
//!     .limiter(&ConcurrencyLimiter::new(20)?)
//!     .build()?;
//!
//! let answer = shield.run(|| async { io::Result::Ok(42) }).await?;
//! assert_eq!(answer, 42);
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! One for each dependency and way of using it. Reads and writes of one database want two shields (only reads are idempotent) over one
//! breaker, one limiter and one budget. Where you need another order or other parts, stack the layers yourself.
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `deadline` | 10 s | the longest that most callers in front of it wait |
//! | `attempt_deadline` | 3 s, or a third of the deadline where that is shorter | leaves room for three attempts within the whole, and for a whole one after a wait in the queue, so that a hang counts as a failure |
//! | `retry`, `breaker` | as in [`retry`](crate::retry), [`breaker`](crate::breaker) | |
//! | `limiter` | none | only you know how many calls your dependency serves at a time |
//!
//! # What it reports
//! The events of its parts, and those of its own deadline. A breaker and a retry that it makes itself report under its name; those that are given to
//! it keep their own. The deadline's is [`Event::Refused`](crate::Event::Refused):
//! `DEBUG call refused name=orders rejected=deadline exceeded while the call was under way`.
//!
//! # Its place in the stack
//! It is the stack. Around a service it is a layer: `ServiceBuilder::new().layer(shield)`.
//!
//! # What a clone shares
//! Everything.
//!
//! # Cancel safety
//! Dropping the future drops your call, with its deadline still around it, then gives its slot and probe back. A call that was dropped after it had run
//! for its attempt deadline counts as a failure; one that was dropped earlier counts for nothing.
//!
//! # Limits
//! - The deadline counts from the first time that a call has to wait.
//! - What was sent goes on in the dependency, unless somebody tells it to stop.
//! - Only an error is kept of earlier attempts. An `Ok` that was classified as a failure is dropped before the pause, as it may hold a slot.
//! - As a layer it clones the service and the request for a possible next attempt: both must be `Clone`.

mod run;
mod service;

use std::{fmt, time::Duration};

#[cfg(feature = "http")]
pub(crate) use self::run::{Attempts, Engine};
pub use self::{
    run::Run,
    service::{ResponseFuture, ShieldService},
};
use crate::{
    breaker::Breaker,
    error::{ConfigError, Refusal, Wrapped},
    event::{Name, Observer, Reporter},
    kind::Classify,
    limit::ConcurrencyLimiter,
    owner::Owners,
    retry::Retry,
    wrap::WrapFuture,
};

/// The usual stack as one handle; see the [module](self). Clones share everything.
#[derive(Clone)]
pub struct Shield<C> {
    policy: Owners<Policy>,
    classify: C,
}

impl<C> Shield<C> {
    /// A shield with the defaults of the [module](self); `classify` says what the results mean.
    ///
    /// A closure goes through [`by_error`](crate::by_error): `Shield::builder(by_error(|error: &io::Error| ..))`.
    pub fn builder(classify: C) -> Builder<C> {
        Builder {
            classify,
            deadline: Duration::from_secs(10),
            attempt_deadline: None,
            retry: Part::Usual,
            breaker: Part::Usual,
            limiter: None,
            reporter: Reporter::new("shield"),
        }
    }

    /// Runs `call` once for each attempt, and returns what the last one returned.
    ///
    /// `call` runs when the future is polled and admitted, never before.
    ///
    /// # Errors
    /// The last attempt's own error; or a refusal of ours, as `E` from [`Rejected`](crate::Rejected).
    ///
    /// # Panics
    /// The future, where it has to wait outside of a tokio runtime with time enabled; and where `call` panics, which counts as a failure.
    ///
    /// # Cancel safety
    /// See the [module](self).
    pub fn run<T, E, F, Fut>(&self, call: F) -> Run<'_, &C, F, Fut>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        C: Classify<T, E>,
        E: Refusal,
    {
        Run::new(&self.policy, &self.classify, call)
    }

    /// [`run`](Self::run) for errors that can't carry a refusal of ours.
    ///
    /// It returns [`Error<E>`](crate::Error).
    ///
    /// ```
    /// use std::fmt;
    /// use steadfast::{Error, Kind, Shield, by_error};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shield = Shield::builder(by_error(|_: &fmt::Error| Kind::Broken)).build()?;
    /// let result = shield.run_wrapped(|| async { Err::<(), _>(fmt::Error) }).await;
    /// assert!(matches!(result, Err(Error::Inner(fmt::Error))));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_wrapped<T, E, F, Fut>(
        &self,
        mut call: F,
    ) -> Run<'_, Wrapped<&C>, impl FnMut() -> WrapFuture<Fut>, WrapFuture<Fut>>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        C: Classify<T, E>,
    {
        let call = move || WrapFuture::new(call());
        Run::new(&self.policy, Wrapped(&self.classify), call)
    }

    /// Its breaker, unless it was built without.
    pub fn breaker(&self) -> Option<&Breaker> {
        self.policy.breaker.as_ref()
    }

    /// Its limiter, if it has one.
    pub fn limiter(&self) -> Option<&ConcurrencyLimiter> {
        self.policy.limiter.as_ref()
    }
}

impl<C> fmt::Debug for Shield<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shield")
            .field("name", &self.policy.reporter.name())
            .field("deadline", &self.policy.deadline)
            .field("attempt_deadline", &self.policy.attempt_deadline)
            .field("breaker", &self.policy.breaker)
            .field("limiter", &self.policy.limiter)
            .finish_non_exhaustive()
    }
}

/// What a stack does with a call.
pub(crate) struct Policy {
    pub(crate) deadline: Duration,
    pub(crate) attempt_deadline: Duration,
    /// An attempt that ran for so long and was then cut off has failed; the breaker's own attempt deadline where it is `None`.
    pub(crate) hang_after: Option<Duration>,
    pub(crate) retry: Option<Retry>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) limiter: Option<ConcurrencyLimiter>,
    pub(crate) reporter: Reporter,
}

impl Policy {
    /// The most attempts that any call can make.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.retry.as_ref().map_or(1, Retry::most_attempts)
    }
}

/// The settings of a [`Shield`]; their defaults stand in the [module](self).
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Breaker, ConcurrencyLimiter, Retry, Shield, classify};
///
/// let shield = Shield::builder(classify::Io)
///     .name("reads")
///     .deadline(Duration::from_secs(2))
///     .attempt_deadline(Duration::from_millis(500))
///     .retry(Retry::builder().idempotent(true).build()?)
///     .breaker(&Breaker::default())
///     .limiter(&ConcurrencyLimiter::new(20)?)
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<C> {
    classify: C,
    deadline: Duration,
    attempt_deadline: Option<Duration>,
    retry: Part<Retry>,
    breaker: Part<Breaker>,
    limiter: Option<ConcurrencyLimiter>,
    reporter: Reporter,
}

#[derive(Clone, Debug)]
enum Part<P> {
    Usual,
    Given(P),
    None,
}

impl<C> Builder<C> {
    /// Its name in events, and that of the breaker and retry that it makes itself.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// How long a call may take in all.
    ///
    /// Queueing, every attempt, and the time between them count.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }

    /// How long one attempt may take, not counting the queue.
    pub fn attempt_deadline(mut self, time: Duration) -> Self {
        self.attempt_deadline = Some(time);
        self
    }

    /// Which failures are repeated; it keeps its own name and observer.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Part::Given(retry);
        self
    }

    /// Repeats nothing.
    pub fn without_retry(mut self) -> Self {
        self.retry = Part::None;
        self
    }

    /// The breaker to share.
    pub fn breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Part::Given(breaker.clone());
        self
    }

    /// Calls whatever the results.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = Part::None;
        self
    }

    /// The limiter to share.
    pub fn limiter(mut self, limiter: &ConcurrencyLimiter) -> Self {
        self.limiter = Some(limiter.clone());
        self
    }

    /// Name and observer at once.
    #[cfg(feature = "sqlx")]
    pub(crate) fn reporter(mut self, reporter: Reporter) -> Self {
        self.reporter = reporter;
        self
    }

    /// Who hears of its events, in place of [`Tracing`](crate::event::Tracing).
    ///
    /// They are those of its deadline, and of the breaker and retry that it makes itself.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The shield.
    ///
    /// # Errors
    /// Where a setting is out of range, or the attempt deadline is longer than the deadline; the error names it, its value and the range.
    pub fn build(self) -> Result<Shield<C>, ConfigError> {
        const PART: &str = "shield";
        const LEAST: Duration = Duration::from_millis(1);
        let deadline = self.deadline;
        ConfigError::check_time(PART, "deadline", deadline, LEAST)?;
        let attempt_deadline = match self.attempt_deadline {
            Some(time) => time,
            None => Duration::from_secs(3).min(deadline / 3),
        };
        ConfigError::check_time(PART, "attempt_deadline", attempt_deadline, LEAST)?;
        if attempt_deadline > deadline {
            let allowed = format!("at most the deadline, {deadline:?}");
            return Err(ConfigError::new(
                PART,
                "attempt_deadline",
                attempt_deadline,
                allowed,
            ));
        }
        let retry = match self.retry {
            Part::Usual => Some(Retry::builder().reporter(self.reporter.clone()).build()?),
            Part::Given(retry) => Some(retry),
            Part::None => None,
        };
        let breaker = match self.breaker {
            Part::Usual => Some(Breaker::builder().reporter(self.reporter.clone()).build()?),
            Part::Given(breaker) => Some(breaker),
            Part::None => None,
        };
        let policy = Policy {
            deadline,
            attempt_deadline,
            hang_after: Some(attempt_deadline),
            retry,
            breaker,
            limiter: self.limiter,
            reporter: self.reporter,
        };
        Ok(Shield {
            policy: Owners::new(policy),
            classify: self.classify,
        })
    }
}
