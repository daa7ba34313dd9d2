//! Databases: sqlx pools that survive.
//!
//! A [`Db`] stands wherever an `&Pool` stood.
//!
//! ```text
//!   query.fetch_one(&db)              db.transaction(|mut tx| async move { .. })
//!     │ deadline, retry, breaker        the whole of it is one attempt
//!     │   limiter: as many slots as the pool has connections, and a bounded queue
//!     │     a connection that is alive ── or why there is none
//!     │       your statement ── its error judged by what had been sent
//!     ◄─ sqlx::Error, as ever
//! ```
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use sqlx::sqlite::SqlitePoolOptions;
//! use steadfast::db::SqliteDb;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
//! let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! let db = SqliteDb::new(pool);
//!
//! sqlx::query("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)").execute(&db).await?;
//! let moved = db
//!     .transaction(|mut tx| async move {
//!         sqlx::query("INSERT INTO account (balance) VALUES (?)").bind(70).execute(&mut tx).await?;
//!         sqlx::query_scalar::<_, i64>("SELECT sum(balance) FROM account").fetch_one(&mut tx).await
//!     })
//!     .await?;
//! assert_eq!(moved, 70);
//! # Ok(()) }
//! # }
//! ```
//!
//! # What is repeated
//! | you write | repeated after |
//! |---|---|
//! | `query.fetch_one(&db)` | what surely did not happen: no connection, a rival won, the server refused or shut down first |
//! | `query.fetch_one(db.idempotent())` | that, and what may have happened: the connection was lost, the attempt's time was over |
//! | `query.fetch_one(db.once())` | nothing |
//! | [`db.transaction`](Db::transaction) | the whole of it: a rival won, or the connection was lost before COMMIT was sent |
//! | [`db.transaction_once`](Db::transaction_once) | nothing; a COMMIT whose reply was lost is looked up all the same |
//!
//! No SQL is read to guess. A text with several statements ([`sqlx::raw_sql`]) is repeated only if no connection was had. Rows of `fetch` are repeated
//! until the first one was delivered.
//!
//! # When to use it, and when not
//! One for each database, made when the program starts, cloned wherever it is needed. `COPY`, `LISTEN` and advisory locks of a session want a connection
//! of their own: [`Db::acquire`], or the [`pool`](Db::pool) itself.
//!
//! # Defaults
//! Those of [`Preset::web`]; its page says why. [`Db::new`] takes a pool as it is: what belongs to the connections (the server's own time limits) it
//! can't set, a [`Config`] can.
//!
//! # What it reports
//! The events of its breaker, retries and limiter under its own name, and [`Leak`](crate::Event::Leak), [`LeakReturned`](crate::Event::LeakReturned),
//! [`IdleInTransaction`](crate::Event::IdleInTransaction), [`CommitResolved`](crate::Event::CommitResolved):
//! `WARN connection not given back name=db report=held for 31.2s, taken at src/orders.rs:12 ..`. Besides [`Db::stats`], [`Db::health`], [`Db::leases`].
//!
//! # Its place in the stack
//! Innermost: it is what a service calls. An outer [deadline](crate::deadline) reaches into it, and from there to the server.
//!
//! # What a clone shares
//! Everything. So do the views that [`Db::idempotent`], [`Db::once`] and [`Db::operation`] return.
//!
//! # Cancel safety
//! Any future may be dropped at any time. What the server still runs for it is stopped there, an open transaction is rolled back, and the slot is free when
//! the server is done. What was dropped may have been done.
//!
//! # Limits
//! - A statement that commits inside (`CALL`, `DO`) can't be told from one that does not: use [`Db::once`].
//! - `BEGIN` through `&db` opens a transaction that nobody ends. Use [`Db::begin`].
//! - The pool may be used beside it. Its calls then compete for the connections that are left, without a queue.
//! - Stopping statements, and asking what became of a COMMIT, takes a connection beside the pool's. It is closed after ten seconds without use.
//! - Connections that were used in the last half second are kept at hand, so the pool counts them as in use.

mod book;
mod builder;
mod checkout;
mod config;
#[cfg(feature = "postgres")]
mod diagnose;
mod driver;
mod executor;
mod generate;
mod guard;
mod lease;
mod meter;
#[cfg(feature = "mysql")]
mod mysql;
mod pooler;
#[cfg(feature = "postgres")]
mod postgres;
mod preset;
mod reaper;
mod replay;
mod session;
mod sizing;
#[cfg(feature = "sqlite")]
mod sqlite;
mod stats;
mod timeouts;
mod transaction;
mod usage;
mod verdict;

use std::{
    fmt,
    panic::Location,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

#[cfg(feature = "postgres")]
use futures_core::future::BoxFuture;
use sqlx::Pool;

#[cfg(feature = "postgres")]
pub use self::diagnose::{Blocked, Diagnosis, Session, diagnose, terminate_idle};
pub use self::{
    builder::Builder,
    checkout::PoolFull,
    config::Config,
    driver::Driver,
    guard::Lease,
    pooler::PoolerMode,
    preset::Preset,
    sizing::{PoolPlan, PoolPlanBuilder},
    stats::{Health, Level, Reason, Stats},
    transaction::{Isolation, Savepoint, TransactionError, TransactionOptions, Tx},
};
use self::{
    checkout::Inner,
    lease::Taken,
    transaction::transact,
    verdict::{Failed, Guarded, Judged, run},
};
pub use crate::event::{Activity, LeaseReport};
use crate::{
    breaker::Breaker,
    classify::{self, Phase},
    event::{Name, State},
    kind::Kind,
    limit::ConcurrencyLimiter,
    time,
};

/// A [`Db`] on PostgreSQL.
#[cfg(feature = "postgres")]
pub type PgDb = Db<sqlx::Postgres>;

/// A [`Db`] on MySQL or MariaDB.
#[cfg(feature = "mysql")]
pub type MySqlDb = Db<sqlx::MySql>;

/// A [`Db`] on SQLite.
#[cfg(feature = "sqlite")]
pub type SqliteDb = Db<sqlx::Sqlite>;

/// A database that calls can rely on; see the [module](self). Clones share everything.
///
/// `&db`, and `db` by value, are sqlx `Executor`s.
pub struct Db<DB: Driver> {
    inner: Arc<Inner<DB>>,
    repeat: Repeat,
    operation: Option<Name>,
    location: Option<&'static Location<'static>>,
}

/// Which failures of a statement are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Of what surely did not happen.
    Cautious,
    /// Of what may have happened, too.
    Idempotent,
    /// None.
    Once,
}

impl<DB: Driver> Db<DB> {
    /// Stands in front of a pool, with the defaults of [`Preset::web`].
    ///
    /// The pool stays as it is. Its size is the number of slots. A connection that was not used for half a second is asked whether it is alive; where the pool
    /// asks too (`test_before_acquire`), that is one round trip more than is needed. A [`Config`] makes a pool that does not.
    ///
    /// # Panics
    /// Where the pool's maximum is 0 or over a million connections.
    pub fn new(pool: Pool<DB>) -> Self {
        let built = Self::builder(pool).build();
        built.unwrap_or_else(|error| panic!("the pool can't be used: {error}"))
    }

    /// The settings of a `Db` in front of a pool.
    pub fn builder(pool: Pool<DB>) -> Builder<DB> {
        Builder::new(pool)
    }

    /// This database, for calls that do no harm when they are done twice.
    ///
    /// Failures after which nobody knows whether the call took effect are repeated too. An upsert is such a call, or a read that only reads.
    #[track_caller]
    pub fn idempotent(&self) -> Self {
        self.view(Repeat::Idempotent, Location::caller())
    }

    /// This database, for calls of which none is repeated.
    #[track_caller]
    pub fn once(&self) -> Self {
        self.view(Repeat::Once, Location::caller())
    }

    /// This database, for calls that go by this name in reports.
    #[track_caller]
    pub fn operation(&self, name: impl Into<Name>) -> Self {
        Self {
            operation: Some(name.into()),
            location: Some(Location::caller()),
            ..self.clone()
        }
    }

    /// Runs several statements on one connection, outside of a transaction.
    ///
    /// The closure is called again where no connection was had; by [`idempotent`](Self::idempotent) databases also where it fails with an error that says that
    /// a repeat may help. A connection that it leaves in the middle of something is cleaned.
    ///
    /// # Errors
    /// The closure's own, or why there was no connection; there is none in [`PoolerMode::TransactionPlain`], see there.
    ///
    /// # Panics
    /// The future, outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// See the [module](self).
    #[track_caller]
    pub fn call<T, F, Fut>(
        &self,
        call: F,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send + use<'_, DB, T, F, Fut>
    where
        F: FnMut(Lease<DB>) -> Fut + Send,
        Fut: Future<Output = Result<T, sqlx::Error>> + Send,
        T: Send,
    {
        let taken = self.taken(Some(Location::caller()));
        let call = std::sync::Mutex::new(call);
        async move {
            self.inner.has_sessions()?;
            let attempt = || {
                let (taken, call) = (taken.clone(), &call);
                async move {
                    let lease = self.inner.checkout(taken).await?;
                    let started = lease.started();
                    let future = {
                        let mut call = call
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                        call(lease)
                    };
                    let result = future.await;
                    let kind = result
                        .as_ref()
                        .map_or_else(|error| self.judge_call(error), |_| Kind::Success);
                    let now = time::now();
                    self.inner
                        .book
                        .settled(now.saturating_duration_since(started), kind, now);
                    result.map_err(|error| Failed::from(Judged::new(error, kind)))
                }
            };
            run(self.shield(), attempt).await
        }
    }

    /// A connection, for as long as it is wanted.
    ///
    /// It is listed in [`leases`](Self::leases), and told of as a leak if it is kept for too long.
    ///
    /// # Errors
    /// Why there was none: a refusal of ours, [`PoolFull`], or the error with which connecting fails. There is none in
    /// [`PoolerMode::TransactionPlain`], see there.
    ///
    /// # Panics
    /// The future, outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// See the [module](self).
    #[track_caller]
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Result<Lease<DB>, sqlx::Error>> + Send + use<'_, DB> {
        let taken = self.taken(Some(Location::caller()));
        async move {
            self.inner.has_sessions()?;
            let attempt = || self.inner.checkout(taken.clone());
            run(self.shield(), attempt).await
        }
    }

    /// Begins a transaction that you end yourself.
    ///
    /// [`transaction`](Self::transaction) is safer: it repeats what can be repeated.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); beginning is repeated.
    ///
    /// # Panics
    /// The future, outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// Nothing is left open where the future is dropped.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Tx<DB>, sqlx::Error>> + Send + use<'_, DB> {
        let taken = self.taken(Some(Location::caller()));
        async move {
            let shields = &self.inner.shields;
            let shield = if self.repeat == Repeat::Once {
                &shields.transaction_once
            } else {
                &shields.transaction
            };
            transaction::begin(&self.inner, shield, &TransactionOptions::new(), taken).await
        }
    }

    /// Runs a transaction as one unit, which is repeated where that is safe.
    ///
    /// `closure` gets a handle that is an `Executor` as `&mut tx`. Where it returns `Ok`, the transaction is committed; where it returns an error, rolled back.
    /// It is called again after a statement failed because a rival won, whatever the closure made of that failure, and where the connection was lost before
    /// COMMIT was sent. So what it does outside of the transaction may be done several times; [`Tx::attempt`] counts. Lost replies to COMMIT are looked up:
    /// see [`TransactionOptions::verify`].
    ///
    /// ```no_run
    /// # async fn example(db: steadfast::db::PgDb) -> Result<(), sqlx::Error> {
    /// let (from, to) = (1, 2);
    /// db.transaction(|mut tx| async move {
    ///     sqlx::query("UPDATE account SET balance = balance - 5 WHERE id = $1").bind(from).execute(&mut tx).await?;
    ///     sqlx::query("UPDATE account SET balance = balance + 5 WHERE id = $1").bind(to).execute(&mut tx).await?;
    ///     Ok::<_, sqlx::Error>(())
    /// })
    /// .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The closure's own; why there was no connection; or a [`TransactionError`].
    ///
    /// # Panics
    /// The future, outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// Dropped before COMMIT was sent, it is rolled back. Dropped later, it may be committed.
    #[track_caller]
    pub fn transaction<T, E, F, Fut>(
        &self,
        closure: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'_, DB, T, E, F, Fut>
    where
        F: FnMut(Tx<DB>) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: From<sqlx::Error> + Send,
    {
        self.transaction_with(TransactionOptions::new(), closure)
    }

    /// [`transaction`](Self::transaction) with options.
    ///
    /// ```no_run
    /// use steadfast::db::{Isolation, TransactionOptions};
    ///
    /// # async fn example(db: steadfast::db::PgDb) -> Result<(), sqlx::Error> {
    /// let options = TransactionOptions::new().isolation(Isolation::Serializable);
    /// let total: i64 = db
    ///     .transaction_with(options, |mut tx| async move {
    ///         sqlx::query_scalar("SELECT sum(balance)::bigint FROM account").fetch_one(&mut tx).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`transaction`](Self::transaction).
    ///
    /// # Panics
    /// As [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    /// As [`transaction`](Self::transaction).
    #[track_caller]
    pub fn transaction_with<T, E, F, Fut>(
        &self,
        options: TransactionOptions,
        closure: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'_, DB, T, E, F, Fut>
    where
        F: FnMut(Tx<DB>) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: From<sqlx::Error> + Send,
    {
        let taken = self.taken(Some(Location::caller()));
        let once = self.repeat == Repeat::Once;
        async move {
            let shields = &self.inner.shields;
            let shield = if once {
                &shields.transaction_once
            } else {
                &shields.transaction
            };
            transact(&self.inner, shield, &options, taken, closure).await
        }
    }

    /// [`transaction`](Self::transaction) for a closure that can be called only once.
    ///
    /// # Errors
    /// As [`transaction`](Self::transaction).
    ///
    /// # Panics
    /// As [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    /// As [`transaction`](Self::transaction).
    #[track_caller]
    pub fn transaction_once<T, E, F, Fut>(
        &self,
        options: TransactionOptions,
        closure: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'_, DB, T, E, F, Fut>
    where
        F: FnOnce(Tx<DB>) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: From<sqlx::Error> + Send,
    {
        let taken = self.taken(Some(Location::caller()));
        async move {
            let mut closure = Some(closure);
            let only = |tx| (closure.take().expect("it is not repeated"))(tx);
            let shield = &self.inner.shields.transaction_once;
            transact(&self.inner, shield, &options, taken, only).await
        }
    }

    /// The pool behind it.
    pub fn pool(&self) -> &Pool<DB> {
        &self.inner.pool
    }

    /// What stands between us and the server, as it was told or found out.
    pub fn pooler(&self) -> PoolerMode {
        self.inner.settings.pooler
    }

    /// The circuit in front of the database.
    pub fn breaker(&self) -> &Breaker {
        &self.inner.breaker
    }

    /// The slots and the queue in front of the pool.
    pub fn limiter(&self) -> &ConcurrencyLimiter {
        &self.inner.limiter
    }

    /// Who holds a connection now, the longest first.
    pub fn leases(&self) -> Vec<LeaseReport> {
        let now = time::now();
        self.inner.book.leases().registry.list(now)
    }

    /// The numbers of this moment and of the last minute.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Whether to send calls here, and what is the matter.
    pub fn health(&self) -> Health {
        let mut stats = self.inner.stats();
        if self.inner.breaker.is_due() {
            // Without calls nobody would find out that the database is back.
            stats.circuit = State::HalfOpen;
        }
        let sustained =
            self.inner
                .book
                .leases()
                .usage
                .sustained(stats::SUSTAINED, stats.max, time::now());
        Health::judge(&stats, sustained)
    }

    /// Replaces every connection: those that are idle now, those in use when they come back.
    ///
    /// For when the server behind the address is another one than before.
    pub async fn recycle(&self) {
        self.inner.at_hand.retire_all();
        for session in self.inner.at_hand.drain() {
            session.close();
        }
        self.inner.drop_idle(time::now());
    }

    /// Closes the pool, once what is in use has come back.
    pub async fn close(&self) {
        for session in self.inner.at_hand.drain() {
            session.give_back().await;
        }
        self.inner.pool.close().await;
    }

    /// Connects, and says whether the settings of the connection are in force.
    async fn reach(&self) -> Result<bool, sqlx::Error> {
        let attempt = || async {
            let mut lease = self.checkout().await?;
            if self.pooler() != PoolerMode::Direct {
                return Ok(true);
            }
            let options = self.inner.pool.connect_options();
            lease.begins(None);
            let obeys = DB::obeys(lease.connection(), &options).await;
            Ok(lease.ended(obeys, Phase::Transaction).await?)
        };
        run(self.shield(), attempt).await
    }

    fn view(&self, repeat: Repeat, location: &'static Location<'static>) -> Self {
        Self {
            repeat,
            location: Some(location),
            ..self.clone()
        }
    }

    fn shield(&self) -> &Guarded {
        match self.repeat {
            Repeat::Cautious => &self.inner.shields.cautious,
            Repeat::Idempotent => &self.inner.shields.idempotent,
            Repeat::Once => &self.inner.shields.once,
        }
    }

    fn taken(&self, location: Option<&'static Location<'static>>) -> Taken {
        let span = tracing::Span::current();
        Taken {
            location: location.or(self.location),
            operation: self.operation.clone(),
            span: span.metadata().map(|span| span.name()),
        }
    }

    async fn checkout(&self) -> Result<Lease<DB>, Failed> {
        self.inner.checkout(self.taken(None)).await
    }

    /// What an error of a closure with several statements means.
    fn judge_call(&self, error: &sqlx::Error) -> Kind {
        self.of_part(classify::database(error, Phase::Statement).kind)
    }

    /// A failure of what may have been one of several statements, if it was.
    fn judge_part(&self, mut judged: Judged<sqlx::Error>, several: bool) -> Judged<sqlx::Error> {
        if several {
            judged.kind = self.of_part(judged.kind);
        }
        judged
    }

    /// What a failure means for the whole of which it is a part: what came before it may have been done.
    fn of_part(&self, kind: Kind) -> Kind {
        match kind {
            kind if self.repeat == Repeat::Idempotent => kind,
            // The database is well, but the whole can't be repeated.
            Kind::Conflict => Kind::Invalid,
            Kind::Unavailable | Kind::Overloaded | Kind::Saturated | Kind::TimedOut => {
                Kind::Ambiguous
            }
            kind => kind,
        }
    }
}

#[cfg(feature = "postgres")]
impl Db<sqlx::Postgres> {
    /// Asks the server who is connected, who is slow, and who blocks whom.
    ///
    /// It does so beside the pool, so that it works while the pool is full. Long-running is what has run for so long. See [`diagnose()`].
    ///
    /// # Errors
    /// What connecting or the server says.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn diagnose(&self, long_running: Duration) -> Result<Diagnosis, sqlx::Error> {
        fn ask<'e>(
            connection: &'e mut sqlx::PgConnection,
            long_running: &'e Duration,
        ) -> BoxFuture<'e, Result<Diagnosis, sqlx::Error>> {
            Box::pin(diagnose(connection, *long_running))
        }
        self.inner.with_admin(ADMIN, &long_running, ask).await
    }

    /// Ends the idle sessions of this role and application on the server, for emergencies; says how many.
    ///
    /// A session is idle, in a transaction or not, if it has run nothing for longer than `older_than`. The application's name is the pool's. See
    /// [`terminate_idle()`] for what is spared.
    ///
    /// # Errors
    /// `InvalidArgument` if the pool's connections have no application name; else what connecting or the server says.
    ///
    /// # Cancel safety
    /// Once it was polled, sessions may have been ended.
    pub async fn terminate_idle(&self, older_than: Duration) -> Result<u64, sqlx::Error> {
        let options = self.inner.pool.connect_options();
        let application = options
            .get_application_name()
            .unwrap_or_default()
            .to_owned();
        let about = (application, older_than);
        fn ask<'e>(
            connection: &'e mut sqlx::PgConnection,
            (application, older_than): &'e (String, Duration),
        ) -> BoxFuture<'e, Result<u64, sqlx::Error>> {
            Box::pin(terminate_idle(connection, application, *older_than))
        }
        self.inner.with_admin(ADMIN, &about, ask).await
    }
}

impl<DB: Driver> Clone for Db<DB> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            repeat: self.repeat,
            operation: self.operation.clone(),
            location: self.location,
        }
    }
}

impl<DB: Driver> fmt::Debug for Db<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("name", &self.inner.reporter.name())
            .field("repeat", &self.repeat)
            .field("pooler", &self.pooler())
            .field("limiter", &self.inner.limiter)
            .field("breaker", &self.inner.breaker)
            .finish_non_exhaustive()
    }
}

impl<DB: Driver> Inner<DB> {
    fn stats(&self) -> Stats {
        let now = time::now();
        let options = self.pool.options();
        let max = options.get_max_connections();
        let size = self.pool.size();
        let (in_use, mean_use, leaks) = {
            let mut leases = self.book.leases();
            let in_use = leases.registry.len();
            (
                in_use,
                leases.usage.mean(now),
                leases
                    .registry
                    .leaks(self.settings.patience.leak_after, now),
            )
        };
        let reaping = self.book.reaping.load(Ordering::Relaxed);
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let mut meters = self.book.meters();
        Stats {
            max,
            size,
            in_use,
            idle: size.saturating_sub(in_use),
            waiting: self.limiter.stats().waiting,
            available: max.saturating_sub(in_use),
            utilization: mean_use / f64::from(max.max(1)),
            leaks,
            reaping,
            wait_mean: meters.waits.mean(now),
            wait_p99: meters.waits.quantile(0.99, now),
            calls: meters.calls.calls(now),
            mean: meters.calls.mean(now),
            p99: meters.calls.quantile(0.99, now),
            error_rate: meters.calls.error_rate(now),
            disconnects: meters.calls.disconnects(now),
            fates_committed: self.book.committed.load(Ordering::Relaxed),
            fates_aborted: self.book.aborted.load(Ordering::Relaxed),
            circuit: self.breaker.state(),
        }
    }
}

/// A question about all sessions of a server.
#[cfg(feature = "postgres")]
const ADMIN: Duration = Duration::from_secs(10);
