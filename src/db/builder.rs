//! How a `Db` is put together.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use sqlx::Pool;

use super::{Db, PoolerMode, Preset, Repeat};
use crate::{
    breaker::{Breaker, WhenOpen},
    db::{
        book::Book,
        checkout::{Admin, Inner, Settings, Shields},
        driver::{Driver, Fates, Flags},
        lease::Patience,
        session::AtHand,
        timeouts::Plan,
        verdict::Told,
    },
    error::{ConfigError, Wrapped},
    event::{Name, Observer, Reporter},
    limit::ConcurrencyLimiter,
    retry::{Budget, Retry},
    shield::Shield,
    time,
};

/// The settings of a [`Db`]; their defaults stand in [`Preset::web`].
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use std::time::Duration;
/// use sqlx::sqlite::SqlitePoolOptions;
/// use steadfast::db::{Preset, SqliteDb};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = SqlitePoolOptions::new().connect_lazy("sqlite::memory:")?;
/// let db = SqliteDb::builder(pool)
///     .name("orders")
///     .preset(Preset::web().statement(Duration::from_secs(2)))
///     .leak_after(Duration::from_secs(10))
///     .build()?;
/// # Ok(()) }
/// # }
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<DB: Driver> {
    pool: Pool<DB>,
    preset: Preset,
    attempt_deadline: Option<Duration>,
    attempts: Option<u32>,
    leak_after: Duration,
    pooler: PoolerMode,
    pool_pings: bool,
    base_size: u32,
    breaker: Option<Breaker>,
    budget: Option<Budget>,
    reporter: Reporter,
}

impl<DB: Driver> Builder<DB> {
    /// In front of a pool that is there.
    pub(super) fn new(pool: Pool<DB>) -> Self {
        let mut preset = Preset::web();
        // Whoever gave the pool less patience means it.
        preset.acquire = preset.acquire.min(pool.options().get_acquire_timeout());
        Self {
            preset,
            pool_pings: pool.options().get_test_before_acquire(),
            base_size: pool.options().get_max_connections(),
            pool,
            attempt_deadline: None,
            attempts: None,
            leak_after: Duration::from_secs(30),
            pooler: PoolerMode::Direct,
            breaker: None,
            budget: None,
            reporter: Reporter::new("db"),
        }
    }

    /// In front of a pool that is made as planned, which pings nothing by itself.
    pub(super) fn planned(plan: Plan<DB>) -> Self {
        let pool = plan.pool.connect_lazy_with(plan.connect);
        Self {
            pool_pings: false,
            base_size: plan.preset.pool_size,
            pooler: plan.mode,
            preset: plan.preset,
            ..Self::new(pool)
        }
    }

    /// Its name in events, and that of its parts.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// Time limits and habits. What concerns the pool itself was settled when that was made.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// How long a call may take in all, queueing and every attempt included.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.preset.deadline = Some(time);
        self
    }

    /// How long one attempt of a statement may take.
    ///
    /// By default the preset's `statement` and a quarter of a second, so that the server, which has the former, answers first.
    pub fn attempt_deadline(mut self, time: Duration) -> Self {
        self.attempt_deadline = Some(time);
        self
    }

    /// How many attempts a call may make in all, if more than one.
    ///
    /// By default the 3 of [`Retry`], or 10 where calls wait for the server ([`when_open`](Self::when_open)), as one that comes back may go again. After a
    /// conflict there may always be 8. More of them want a larger [`budget`](Self::budget), too.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// What happens to a call while the server is away.
    pub fn when_open(mut self, when_open: WhenOpen) -> Self {
        self.preset.when_open = when_open;
        self
    }

    /// How long a connection may be held before it is told of.
    pub fn leak_after(mut self, time: Duration) -> Self {
        self.leak_after = time;
        self
    }

    /// What stands between us and the server.
    pub fn pooler(mut self, mode: PoolerMode) -> Self {
        self.pooler = mode;
        self
    }

    /// The breaker to share, in place of one of its own.
    pub fn breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Some(breaker.clone());
        self
    }

    /// The retry budget to share, in place of one of its own.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Who hears of its events and those of its parts, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The database.
    ///
    /// # Errors
    /// Where a setting is out of range; the error names it, its value and the range.
    pub fn build(self) -> Result<Db<DB>, ConfigError> {
        const LEAST: Duration = Duration::from_millis(1);
        let preset = &self.preset;
        let deadline = preset.longest_call();
        ConfigError::check_time("db", "deadline", deadline, LEAST)?;
        ConfigError::check_time("db", "leak_after", self.leak_after, LEAST)?;
        let attempt_deadline = self
            .attempt_deadline
            .unwrap_or(preset.statement + GRACE)
            .min(deadline);
        ConfigError::check_time("db", "attempt_deadline", attempt_deadline, LEAST)?;
        // Getting a connection is over before the attempt is, so that what was not sent is known as such.
        let acquire = preset.acquire.min(attempt_deadline.mul_f64(0.9));
        ConfigError::check_time("db", "acquire", acquire, Duration::from_micros(1))?;
        let slots = self.pool.options().get_max_connections();
        let limiter = ConcurrencyLimiter::builder(slots as usize)
            .max_wait(preset.acquire)
            .reporter(self.reporter.clone())
            .build()?;
        let waits = matches!(preset.when_open, WhenOpen::Wait { .. });
        let breaker = match self.breaker {
            Some(breaker) => breaker,
            None => {
                let breaker = Breaker::builder()
                    .when_open(preset.when_open)
                    .reporter(self.reporter.clone());
                // Whoever waits wants to know soon, and one connect a second harms nobody.
                let breaker = if waits {
                    breaker.open_for(SOON).max_open_for(10 * SOON)
                } else {
                    breaker
                };
                breaker.build()?
            }
        };
        let budget = match self.budget {
            Some(budget) => budget,
            // A restart of the server fails what runs on every connection, once; or as often as it goes again, where calls wait for it.
            None => {
                let times = if waits { WHILE_WAITING } else { 1 };
                let burst = slots.saturating_mul(times).max(5);
                Budget::builder().floor(1.0, burst).build()?
            }
        };
        let retry = |idempotent| {
            let retry = Retry::builder()
                .idempotent(idempotent)
                .budget(&budget)
                .reporter(self.reporter.clone());
            match self.attempts {
                Some(attempts) => retry.attempts(attempts).build(),
                None if waits => retry.attempts(WHILE_WAITING).build(),
                None => retry.build(),
            }
        };
        let shield = |retry: Option<Retry>, attempt_deadline| {
            let shield = Shield::builder(Wrapped(Told))
                .deadline(deadline)
                .attempt_deadline(attempt_deadline)
                .breaker(&breaker)
                .limiter(&limiter)
                .reporter(self.reporter.clone());
            match retry {
                Some(retry) => shield.retry(retry).build(),
                None => shield.without_retry().build(),
            }
        };
        let shields = Shields {
            cautious: shield(Some(retry(false)?), attempt_deadline)?,
            idempotent: shield(Some(retry(true)?), attempt_deadline)?,
            once: shield(None, attempt_deadline)?,
            transaction: shield(Some(retry(false)?), deadline)?,
            transaction_once: shield(None, deadline)?,
        };
        let settings = Settings {
            deadline,
            attempt_deadline,
            acquire,
            connect: preset.connect,
            statement: preset.statement,
            lock: preset.lock,
            idle_in_transaction: preset.idle_in_transaction,
            check_interval: preset.check_interval.unwrap_or(preset.statement),
            check_behind: match self.pooler {
                PoolerMode::Direct => None,
                PoolerMode::TransactionWithPrepared | PoolerMode::TransactionPlain => {
                    preset.check_interval
                }
            },
            waits,
            pool_pings: self.pool_pings,
            pre_ping: preset.pre_ping,
            pooler: self.pooler,
            base_size: self.base_size,
            patience: Patience {
                leak_after: self.leak_after,
                idle_in_transaction_after: self.leak_after.min(preset.idle_in_transaction / 2),
            },
        };
        let inner = Inner {
            pool: self.pool,
            limiter,
            breaker,
            shields,
            settings,
            reporter: self.reporter,
            book: Book::new(time::now()),
            flags: Flags::default(),
            fates: Fates::default(),
            at_hand: AtHand::new(),
            admin: Admin::new(),
            keeping: AtomicBool::new(false),
        };
        Ok(Db {
            inner: Arc::new(inner),
            repeat: Repeat::Cautious,
            operation: None,
            location: None,
        })
    }
}

impl<DB: Driver> fmt::Debug for Builder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("preset", &self.preset)
            .field("pooler", &self.pooler)
            .field("leak_after", &self.leak_after)
            .finish_non_exhaustive()
    }
}

/// The server ends a statement so much earlier than we would.
const GRACE: Duration = Duration::from_millis(250);

/// How soon a database that waits for its server looks again.
const SOON: Duration = Duration::from_millis(100);

/// Attempts of a call that would rather wait than fail: with their delays they take several seconds in which the server was there, and lost them.
const WHILE_WAITING: u32 = 10;
