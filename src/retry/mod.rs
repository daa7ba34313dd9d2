//! Retries of those failures that may be repeated, within what the dependency can bear.
//!
//! ```text
//!  attempt 1 ── fails ──► its kind may be repeated? attempts left? would the next start before the deadline? budget?
//!                           │ all yes                                     │ one no
//!                           ▼                                             ▼
//!               sleep: 0 to 50 ms, then attempt 2                the error itself, at once
//! ```
//!
//! ```
//! use std::{io, sync::atomic::{AtomicU32, Ordering}};
//! use steadfast::{Retry, classify};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//! let service = ServiceBuilder::new()
//!     .layer(Retry::default().layer(classify::Io))
//!     .service_fn(async |_: ()| match CALLS.fetch_add(1, Ordering::Relaxed) {
//!         0 => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
//!         _ => Ok("second attempt"),
//!     });
//! assert_eq!(service.oneshot(()).await?, "second attempt");
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! Around single calls of a dependency that fails now and then. Not around a call that retries by itself (three times three attempts are nine), not around
//! a statement inside a transaction (repeat the whole transaction), and not with [`idempotent`](Builder::idempotent) where a repeat would do the work twice.
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `attempts` | 3 | what three attempts do not cure, more rarely do, and each one is load on the dependency |
//! | `Conflict` | 8 attempts, 5 ms to 500 ms, off the budget | a rival is gone within milliseconds, and a loser always means that somebody won |
//! | `backoff` | 50 ms doubling to 2 s, full jitter | a restart takes some 100 ms; full jitter spreads a crowd best |
//! | `Saturated`, `Overloaded` | 250 ms doubling to 5 s | what is full needs time, not more calls |
//! | `TimedOut` | not repeated | it would time out again |
//! | `Ambiguous` | repeated only if `idempotent` | it may have acted |
//! | `max_hint` | 30 s | the longest that a dependency's hint is believed (`Verdict::retry_after`): a longer one is cut to this; the backoff comes on top, so that not everybody returns at the same moment |
//! | budget | 10 % of the successes of 3 s, 1 per second, saved up to 5 | bounds the extra load at a tenth, however many calls fail; the floor is for services with little traffic; for the 3 s see the [model of overload](https://github.com/steadfast-rs/steadfast/blob/main/docs/overload.md) |
//!
//! # What it reports
//! [`Event::Retry`]: `DEBUG attempt failed, will be repeated name=db attempt=1 kind=unavailable delay_ms=31`; and
//! [`Event::GaveUp`]: `WARN gave up name=db attempts=3 kind=unavailable reason="attempts used up"`.
//!
//! A `Retry` that is given to a [`Shield`](crate::Shield) keeps its own name.
//!
//! # Its place in the stack
//! Inside the deadline, which bounds all attempts; outside the breaker, which judges each one.
//!
//! # What a clone shares
//! A [`Retry`] is plain data; its clones share the [`Budget`].
//!
//! # Cancel safety
//! Dropping the future ends the attempt under way, or the sleep before the next. What was withdrawn from the budget stays withdrawn.
//!
//! # Limits
//! - Request and service must be `Clone`. Both are cloned for each attempt that another one may have to follow; the last possible one takes them.
//! - A call that we refused before it was sent is not repeated. Where an earlier attempt failed with an error, that error is returned in place of the refusal.
//! - Only an error is kept of earlier attempts. An `Ok` that was classified as a failure is dropped before the pause, as it may hold a slot.

mod backoff;
mod balance;
mod budget;
mod schedule;
mod service;

use std::time::{Duration, Instant};

use self::schedule::{Failed, Next, Plan, Schedule};
pub(crate) use self::service::unless_refused;
pub use self::{
    backoff::{Backoff, Jitter},
    budget::{Budget, BudgetBuilder},
    service::{ResponseFuture, RetryLayer, RetryService},
};
use crate::{
    ambient,
    error::ConfigError,
    event::{Event, Name, Observer, Reporter},
    kind::{Kind, Verdict},
    time,
};

/// Which failures are repeated, when, and how often; see the [module](self).
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Kind, Retry, retry::Backoff};
///
/// let retry = Retry::builder()
///     .attempts(5)
///     .on(Kind::TimedOut, 2, Backoff::fixed(Duration::from_secs(1)))
///     .never(Kind::Saturated)
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    schedule: Schedule,
    most_attempts: u32,
    budget: Option<Budget>,
    reporter: Reporter,
}

impl Retry {
    /// A retry with the defaults of the [module](self).
    pub fn builder() -> Builder {
        Builder {
            attempts: 3,
            backoff: Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2)),
            plans: [None; Kind::ALL.len()],
            misplaced: None,
            idempotent: false,
            max_hint: Duration::from_secs(30),
            budget: Some(None),
            reporter: Reporter::new("retry"),
        }
    }

    /// A tower layer that repeats by this plan.
    ///
    /// `classify` says what the results of the service mean.
    pub fn layer<C>(&self, classify: C) -> RetryLayer<C> {
        RetryLayer::new(self.clone(), classify)
    }

    /// The most attempts that any call can make.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.most_attempts
    }

    /// Takes the success of a call.
    #[inline(always)]
    pub(crate) fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// Takes the verdict of an attempt: when the next one starts, with the delay before it, or that none follows.
    #[inline]
    pub(crate) fn next(&self, attempt: u32, verdict: Verdict, previous: Duration) -> Option<Pause> {
        if verdict.kind == Kind::Success {
            self.deposit();
            return None;
        }
        self.after_failure(Failed {
            attempt,
            verdict,
            previous,
        })
    }

    #[cold]
    fn after_failure(&self, failed: Failed) -> Option<Pause> {
        let now = time::now();
        let withdraw = || match &self.budget {
            Some(budget) => budget.withdraw_at(now),
            None => true,
        };
        let deadline = ambient::current();
        let random = fastrand::u64(..);
        let next = self.schedule.next(failed, deadline, withdraw, random, now);
        let (attempt, kind) = (failed.attempt, failed.verdict.kind);
        match next {
            Next::Retry(delay) => {
                self.reporter.emit(|name| Event::Retry {
                    name,
                    attempt,
                    kind,
                    delay,
                });
                Some(Pause {
                    until: now + delay,
                    delay,
                })
            }
            Next::GiveUp(reason) => {
                self.reporter.emit(|name| Event::GaveUp {
                    name,
                    attempts: attempt,
                    kind,
                    reason,
                });
                None
            }
            Next::Done => None,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::builder().build().expect("the defaults are in range")
    }
}

/// The time between two attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pause {
    pub(crate) until: Instant,
    pub(crate) delay: Duration,
}

/// The settings of a [`Retry`]; their defaults stand in the [module](self).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    attempts: u32,
    backoff: Backoff,
    // What was asked for a kind: `Some(None)` is never.
    plans: [Option<Option<(u32, Backoff)>>; Kind::ALL.len()],
    misplaced: Option<Kind>,
    idempotent: bool,
    max_hint: Duration,
    // `Some(None)` is a budget of its own.
    budget: Option<Option<Budget>>,
    reporter: Reporter,
}

impl Builder {
    /// Its name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// The number of attempts in all, the first one included.
    ///
    /// 1 repeats nothing. Otherwise [`Conflict`](Kind::Conflict) keeps its own number.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The delays for [`Unavailable`](Kind::Unavailable) and [`Ambiguous`](Kind::Ambiguous).
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The number of attempts in all, and the delays, after failures of `kind`.
    pub fn on(mut self, kind: Kind, attempts: u32, backoff: Backoff) -> Self {
        if is_repeatable(kind) {
            self.plans[kind as usize] = Some(Some((attempts, backoff)));
        } else {
            self.misplaced = Some(kind);
        }
        self
    }

    /// The kind of failure that is not repeated; may be called for several.
    pub fn never(mut self, kind: Kind) -> Self {
        self.plans[kind as usize] = Some(None);
        self
    }

    /// Whether doing the work twice does no harm: then [`Ambiguous`](Kind::Ambiguous) failures are repeated too.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// The longest that a dependency's hint of when to come back is believed.
    ///
    /// A longer one is cut to this. The backoff comes on top.
    pub fn max_hint(mut self, most: Duration) -> Self {
        self.max_hint = most;
        self
    }

    /// The budget to share with other retries of the same dependency.
    ///
    /// Without this the retry has one of its own.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(Some(budget.clone()));
        self
    }

    /// Repeats without a budget.
    ///
    /// This multiplies the load on a dependency that is down by `attempts`. It is for tests, and for callers so few that it does not matter.
    pub fn without_budget(mut self) -> Self {
        self.budget = None;
        self
    }

    /// Name and observer at once.
    pub(crate) fn reporter(mut self, reporter: Reporter) -> Self {
        self.reporter = reporter;
        self
    }

    /// Who hears of its events, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The retry.
    ///
    /// # Errors
    /// Where a setting is out of range; the error names it, its value and the range.
    pub fn build(self) -> Result<Retry, ConfigError> {
        const PART: &str = "retry";
        if let Some(kind) = self.misplaced {
            let allowed = "a kind that a repeat can cure: conflict, saturated, overloaded, unavailable, timed out or ambiguous";
            return Err(ConfigError::new(PART, "on", kind, allowed));
        }
        ConfigError::check_count(PART, "attempts", self.attempts as usize, 1, MOST)?;
        self.backoff.check("backoff")?;
        ConfigError::check_time(PART, "max_hint", self.max_hint, Duration::ZERO)?;
        let slower = Backoff::exponential(Duration::from_millis(250), Duration::from_secs(5));
        let conflict = Backoff::exponential(Duration::from_millis(5), Duration::from_millis(500));
        let mut plans = [None; Kind::ALL.len()];
        for kind in Kind::ALL {
            let usual = match kind {
                Kind::Conflict if self.attempts == 1 => Some((1, conflict)),
                Kind::Conflict => Some((CONFLICT_ATTEMPTS, conflict)),
                Kind::Saturated | Kind::Overloaded => Some((self.attempts, slower)),
                Kind::Unavailable | Kind::Ambiguous => Some((self.attempts, self.backoff)),
                Kind::TimedOut | Kind::Success | Kind::Invalid | Kind::Broken | Kind::Ignored => {
                    None
                }
            };
            let Some((attempts, backoff)) = self.plans[kind as usize].unwrap_or(usual) else {
                continue;
            };
            ConfigError::check_count(PART, "on attempts", attempts as usize, 1, MOST)?;
            backoff.check("on backoff")?;
            plans[kind as usize] = Some(Plan {
                attempts,
                backoff,
                charged: kind != Kind::Conflict,
            });
        }
        let schedule = Schedule {
            plans,
            idempotent: self.idempotent,
            max_hint: self.max_hint,
        };
        Ok(Retry {
            most_attempts: schedule.most_attempts(),
            schedule,
            budget: self.budget.map(Option::unwrap_or_default),
            reporter: self.reporter,
        })
    }
}

fn is_repeatable(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Conflict
            | Kind::Saturated
            | Kind::Overloaded
            | Kind::Unavailable
            | Kind::TimedOut
            | Kind::Ambiguous
    )
}

const CONFLICT_ATTEMPTS: u32 = 8;
const MOST: usize = 1_000;
