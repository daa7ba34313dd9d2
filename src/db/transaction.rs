//! Transactions that are run as one unit, and whose end is known.
//!
//! ```text
//!   BEGIN + limits ──► your closure ──► COMMIT ──► Ok
//!        ▲                 │              │ the reply is lost
//!        │                 │              ▼
//!        │                 │           ask the server for its fate ── committed ──► Ok
//!        │                 │              │ aborted            └── not known ─────► CommitUnknown
//!        └── a rival won, or the connection was lost: nothing is done yet
//! ```

use std::{
    cell::Cell,
    fmt, io,
    panic::Location,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_core::future::BoxFuture;
use pin_project_lite::pin_project;
use sqlx::{AssertSqlSafe, Execute, Executor, SqlStr};
use thiserror::Error;

use crate::{
    ambient,
    classify::{DbVerdict, Fate, Phase, lost},
    db::{
        book::Taken,
        checkout::Inner,
        driver::{Driver, Outcome, Steps, Trace},
        generate::generate,
        guard::{Lease, RunOn, State, Tracked},
        replay::Replay,
        verdict::{Failed, Guarded, Judged, into, run},
    },
    kind::Kind,
    time,
};

/// How a transaction sees those of others.
///
/// Each database keeps at least what is asked for; SQLite knows only [`Serializable`](Self::Serializable).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// It may see what others have not committed.
    ReadUncommitted,
    /// Each statement sees what was committed before it began.
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}

/// How a transaction is run; see [`Db::transaction_with`](super::Db::transaction_with).
///
/// ```
/// use steadfast::db::{Isolation, TransactionOptions};
///
/// let options = TransactionOptions::new().isolation(Isolation::Serializable);
/// ```
#[derive(Clone, Default)]
pub struct TransactionOptions {
    pub(super) isolation: Option<Isolation>,
    pub(super) read_only: bool,
    pub(super) deferrable: bool,
    verify: Option<Verify>,
}

type Verify = Arc<dyn Fn() -> BoxFuture<'static, Result<bool, sqlx::Error>> + Send + Sync>;

impl TransactionOptions {
    /// What the database does by itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// The isolation level, in place of the session's.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// It changes nothing. Its COMMIT can't be in doubt.
    ///
    /// SQLite does not see to it that it doesn't; the others do.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Waits for a moment without conflicts, where it is serializable and read only.
    ///
    /// PostgreSQL only.
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// Says whether the transaction was committed, where nobody else can.
    ///
    /// It is asked when the COMMIT's reply was lost. PostgreSQL knows by itself; for the others this is the way to know. It looks for something that only this transaction can have written, such as a row with an
    /// id of its own.
    pub fn verify<F, Fut>(mut self, verify: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<bool, sqlx::Error>> + Send + 'static,
    {
        self.verify = Some(Arc::new(move || Box::pin(verify())));
        self
    }
}

impl fmt::Debug for TransactionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionOptions")
            .field("isolation", &self.isolation)
            .field("read_only", &self.read_only)
            .field("deferrable", &self.deferrable)
            .field("verify", &self.verify.is_some())
            .finish()
    }
}

/// What went wrong with a transaction as a whole.
///
/// It travels inside of an `sqlx::Error`; [`of`](Self::of) finds it there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// The COMMIT's reply was lost, and nobody can say whether it took place.
    #[error("it is not known whether the transaction was committed: {0}")]
    CommitUnknown(
        /// How the reply was lost.
        #[source]
        sqlx::Error,
    ),
    /// The closure returned `Ok`, but a statement in it had failed. Nothing was committed.
    #[error("the transaction was rolled back, as a statement in it had failed: {0}")]
    RolledBack(
        /// What the statement had failed with.
        String,
    ),
    /// The deadline came before COMMIT was sent. Nothing was committed.
    #[error("the deadline came before the transaction was committed: it was rolled back")]
    DeadlineExceeded,
    /// The transaction's handle was moved out of its closure. Nothing was committed.
    #[error(
        "the transaction's handle was still in use when its closure had returned: it was rolled back"
    )]
    Escaped,
    /// The database was used inside of its own transaction, in place of its handle.
    #[error(
        "the database was used at {used} inside of its own transaction, which began at {begun}: \
         use the transaction's handle there"
    )]
    Nested {
        /// Where it was used.
        used: String,
        /// Where the transaction began.
        begun: &'static Location<'static>,
    },
}

impl TransactionError {
    /// The one inside of an error, if there is one.
    pub fn of<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut error = Some(error);
        while let Some(inner) = error {
            if let Some(found) = inner.downcast_ref() {
                return Some(found);
            }
            error = match inner
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
            {
                Some(carried) => Some(carried),
                None => inner.source(),
            };
        }
        None
    }

    /// In the variant whose kind says as much as the error does.
    fn into_sqlx(self) -> sqlx::Error {
        match self {
            Self::CommitUnknown(_) => sqlx::Error::Io(io::Error::other(self)),
            Self::DeadlineExceeded => {
                sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, self))
            }
            Self::RolledBack(_) => sqlx::Error::AnyDriverError(Box::new(self)),
            Self::Escaped | Self::Nested { .. } => sqlx::Error::Configuration(Box::new(self)),
        }
    }
}

/// A transaction of a [`Db`](super::Db).
///
/// `&mut tx` is an sqlx `Executor`. Dropped, it is rolled back, and what still runs is stopped on the server.
///
/// It sees how each of its statements ends. [`connection`](Self::connection) hands out sqlx's own for functions that take nothing else; what fails there is not
/// seen.
///
/// ```no_run
/// # async fn example(db: steadfast::db::PgDb) -> Result<(), sqlx::Error> {
/// let mut tx = db.begin().await?;
/// sqlx::query("UPDATE stock SET left = left - 1").execute(&mut tx).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
pub struct Tx<DB: Driver> {
    // `None` once it is over.
    open: Option<Open<DB>>,
    home: Option<Home<DB>>,
}

/// Where a closure's transaction goes when its handle is dropped.
type Home<DB> = Arc<Mutex<Option<Open<DB>>>>;

/// A transaction that has begun.
struct Open<DB: Driver> {
    lease: Lease<DB>,
    trace: Option<Trace>,
    read_only: bool,
    verify: Option<Verify>,
    attempt: u32,
    fault: Option<Fault>,
    depth: u32,
    /// A savepoint that was dropped: what came after it is rolled back before anything else is done.
    unwind: Option<u32>,
}

/// A failure that stands between the transaction and its COMMIT.
struct Fault {
    verdict: DbVerdict,
    message: String,
    depth: u32,
}

impl<DB: Driver> Tx<DB> {
    /// How many times the closure was called for this transaction; the first is 1.
    ///
    /// What it does outside of the transaction it does so many times.
    pub fn attempt(&self) -> u32 {
        self.open.as_ref().map_or(1, |open| open.attempt)
    }

    /// A point to which the transaction can go back.
    ///
    /// # Errors
    /// As any statement.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, DB>, sqlx::Error> {
        let open = self.open()?;
        let depth = open.depth + 1;
        open.text(format!("SAVEPOINT {}", name(depth))).await?;
        open.depth = depth;
        Ok(Savepoint {
            open,
            depth,
            over: false,
        })
    }

    /// sqlx's connection, for functions that take nothing else.
    ///
    /// What fails there is not seen: it is not repeated, and not known before COMMIT.
    pub fn connection(&mut self) -> &mut DB::Connection {
        let open = self.open.as_mut().expect("it is open until it is dropped");
        open.lease.untracked()
    }

    /// Commits.
    ///
    /// # Errors
    /// [`TransactionError::CommitUnknown`] if nobody knows whether it was committed; with any other error it was not.
    ///
    /// # Cancel safety
    /// Once it was polled, the transaction may be committed although the future is dropped.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let mut open = self.open.take().ok_or_else(escaped)?;
        self.home = None;
        open.finish().await.map_err(|judged| judged.error)
    }

    /// Rolls back.
    ///
    /// # Errors
    /// Where the connection was lost, with which the transaction went.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        let mut open = self.open.take().ok_or_else(escaped)?;
        self.home = None;
        open.roll_back().await.map_err(|judged| judged.error)
    }

    fn open(&mut self) -> Result<&mut Open<DB>, sqlx::Error> {
        self.open.as_mut().ok_or_else(escaped)
    }
}

impl<DB: Driver> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            *home.lock().unwrap_or_else(PoisonError::into_inner) = self.open.take();
        }
    }
}

impl<DB: Driver> fmt::Debug for Tx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("attempt", &self.attempt())
            .field("lease", &self.open.as_ref().map(|open| &open.lease))
            .finish_non_exhaustive()
    }
}

/// A point to which a [`Tx`] can go back; made by [`Tx::savepoint`].
///
/// `&mut savepoint` is an sqlx `Executor`. Dropped, it goes back.
#[must_use = "dropping a savepoint undoes what came after it"]
pub struct Savepoint<'t, DB: Driver> {
    open: &'t mut Open<DB>,
    depth: u32,
    over: bool,
}

impl<DB: Driver> Savepoint<'_, DB> {
    /// A point within this one.
    ///
    /// # Errors
    /// As any statement.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, DB>, sqlx::Error> {
        let depth = self.open.depth + 1;
        self.open.text(format!("SAVEPOINT {}", name(depth))).await?;
        self.open.depth = depth;
        Ok(Savepoint {
            open: self.open,
            depth,
            over: false,
        })
    }

    /// Keeps what came after it.
    ///
    /// # Errors
    /// As any statement.
    pub async fn release(mut self) -> Result<(), sqlx::Error> {
        self.open
            .text(format!("RELEASE SAVEPOINT {}", name(self.depth)))
            .await?;
        self.over = true;
        self.open.depth = self.depth - 1;
        Ok(())
    }

    /// Undoes what came after it, its failures included.
    ///
    /// # Errors
    /// As any statement.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.over = true;
        self.open.unwind_to(self.depth);
        self.open.unwind().await.map_err(|judged| judged.error)
    }
}

impl<DB: Driver> Drop for Savepoint<'_, DB> {
    fn drop(&mut self) {
        if !self.over {
            self.open.unwind_to(self.depth);
        }
    }
}

impl<DB: Driver> fmt::Debug for Savepoint<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Savepoint")
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

macro_rules! executor_for_open {
    ($type:ty, $self:ident, $open:expr) => {
        impl<'c, DB: Driver> Executor<'c> for $type {
            type Database = DB;

            fn execute<'e, 'q: 'e, E>(
                $self,
                query: E,
            ) -> BoxFuture<'e, Result<DB::QueryResult, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let query = Replay::of(query);
                Box::pin(async move { $open.statement(query?, DB::execute).await })
            }

            fn fetch_many<'e, 'q: 'e, E>($self, query: E) -> Steps<'e, DB>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let query = Replay::of(query);
                Box::pin(generate(move |mut out| async move {
                    let open = $open;
                    let query = open.ready(query?).await?;
                    open.lease.begins(Some(query.text()));
                    let result = {
                        let mut steps = DB::fetch_many(open.lease.connection(), query);
                        loop {
                            let step = std::future::poll_fn(|cx| steps.as_mut().poll_next(cx));
                            match step.await {
                                Some(Ok(step)) => out.put(step).await,
                                Some(Err(error)) => break Err(error),
                                None => break Ok(()),
                            }
                        }
                    };
                    open.saw(result).await
                }))
            }

            fn fetch_all<'e, 'q: 'e, E>(
                $self,
                query: E,
            ) -> BoxFuture<'e, Result<Vec<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let query = Replay::of(query);
                Box::pin(async move { $open.statement(query?, DB::fetch_all).await })
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                $self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let query = Replay::of(query);
                Box::pin(async move { $open.statement(query?, DB::fetch_optional).await })
            }

            fn prepare_with<'e>(
                $self,
                sql: SqlStr,
                parameters: &'e [DB::TypeInfo],
            ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(async move {
                    let open = $open;
                    open.ready(Replay::raw(sql.clone())).await?;
                    open.lease.begins(Some(&sql));
                    let prepared = DB::prepare(open.lease.connection(), sql, parameters).await;
                    open.saw(prepared).await
                })
            }

            #[doc(hidden)]
            fn describe<'e>(
                $self,
                sql: SqlStr,
            ) -> BoxFuture<'e, Result<sqlx::Describe<DB>, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(async move {
                    let open = $open;
                    open.ready(Replay::raw(sql.clone())).await?;
                    open.lease.begins(Some(&sql));
                    let described = DB::describe(open.lease.connection(), sql).await;
                    open.saw(described).await
                })
            }
        }
    };
}

executor_for_open!(&'c mut Tx<DB>, self, self.open()?);
executor_for_open!(&'c mut Savepoint<'_, DB>, self, &mut *self.open);
executor_for_open!(&'c mut Lease<DB>, self, &mut Tracked { lease: self });

impl<DB: Driver> Open<DB> {
    async fn begin(
        mut lease: Lease<DB>,
        options: &TransactionOptions,
        attempt: u32,
    ) -> Result<Self, Judged<sqlx::Error>> {
        let limits = lease.inner().limits(time::now());
        lease.read_only = options.read_only;
        lease.begins(None);
        let inner = Arc::clone(lease.inner());
        let begun = DB::begin(lease.connection(), options, limits, &inner.fates).await;
        let begun = lease.ended(begun, Phase::Transaction).await;
        if begun.is_err() && lease.state() == State::Clean {
            // How much of it was done is not known.
            lease.set_in_transaction(true);
        }
        let trace = begun?;
        lease.set_in_transaction(true);
        Ok(Self {
            lease,
            trace,
            read_only: options.read_only,
            verify: options.verify.clone(),
            attempt,
            fault: None,
            depth: 0,
            unwind: None,
        })
    }

    /// Runs a statement of the user's.
    async fn statement<T>(
        &mut self,
        query: Replay<DB>,
        run_on: RunOn<DB, T>,
    ) -> Result<T, sqlx::Error> {
        let query = self.ready(query).await?;
        self.lease.begins(Some(query.text()));
        let result = run_on(self.lease.connection(), query).await;
        self.saw(result).await
    }

    /// A statement of ours.
    async fn text(&mut self, sql: String) -> Result<(), sqlx::Error> {
        self.statement(Replay::raw(AssertSqlSafe(sql)), DB::execute)
            .await
            .map(drop)
    }

    /// The query, if the transaction can take one.
    async fn ready(&mut self, query: Replay<DB>) -> Result<Replay<DB>, sqlx::Error> {
        self.miss_dropped();
        if let Some(fault) = &self.fault
            && (self.lease.state() == State::Lost || !DB::ERROR_ABORTS)
        {
            // The session is no longer in a transaction: what it were sent would be done for good.
            return Err(TransactionError::RolledBack(fault.message.clone()).into_sqlx());
        }
        self.unwind().await.map_err(|judged| judged.error)?;
        Ok(if self.lease.is_plain() {
            query.unprepared()
        } else {
            query
        })
    }

    /// Whether nothing can be sent any more, as it is not known how much of a dropped statement's answer was read.
    fn is_astray(&self) -> bool {
        self.lease.state() == State::Busy && !DB::RESUMES
    }

    /// Takes note of a statement that was dropped, where that can't be made good.
    fn miss_dropped(&mut self) {
        if self.is_astray() && self.fault.is_none() {
            self.fault = Some(Fault {
                verdict: DbVerdict {
                    kind: Kind::Invalid,
                    ..lost(Phase::Transaction)
                },
                message: "it was dropped before it had ended".to_owned(),
                depth: 0,
            });
        }
    }

    /// Takes note of how a statement ended.
    async fn saw<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let ended = self.lease.ended_with(result, Phase::Transaction).await;
        ended.map_err(|(error, verdict)| {
            // What never reached the database has not hurt the transaction; nor has an answer that can't be read.
            let hurts = error.as_database_error().is_some() || verdict.fate == Fate::Discard;
            let stands =
                verdict.fate == Fate::Discard || DB::ERROR_ABORTS || verdict.kind == Kind::Conflict;
            if hurts && stands && self.fault.is_none() {
                self.fault = Some(Fault {
                    verdict,
                    message: error.to_string(),
                    depth: self.depth,
                });
            }
            error
        })
    }

    fn unwind_to(&mut self, depth: u32) {
        self.depth = depth - 1;
        self.unwind = Some(self.unwind.map_or(depth, |other| other.min(depth)));
    }

    /// Goes back to the savepoint that was dropped, if one was.
    async fn unwind(&mut self) -> Result<(), Judged<sqlx::Error>> {
        let Some(depth) = self.unwind.take() else {
            return Ok(());
        };
        if self.is_astray() {
            return Ok(());
        }
        let name = name(depth);
        let sql = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        let query = Replay::raw(AssertSqlSafe(sql));
        self.lease
            .run(query, Phase::Transaction, DB::execute)
            .await?;
        self.fault.take_if(|fault| {
            fault.depth >= depth && fault.verdict.fate == Fate::Keep && DB::ERROR_ABORTS
        });
        Ok(())
    }

    /// Commits, unless a failure stands in the way.
    async fn finish(&mut self) -> Result<(), Judged<sqlx::Error>> {
        self.miss_dropped();
        if self.lease.state() != State::Lost {
            self.unwind().await?;
        }
        let Some(fault) = self.fault.take() else {
            self.lease.forget_statements().await?;
            return self.commit().await;
        };
        let _ = self.roll_back().await;
        let error = TransactionError::RolledBack(fault.message).into_sqlx();
        Err(Judged::new(error, fault.verdict.kind))
    }

    async fn commit(&mut self) -> Result<(), Judged<sqlx::Error>> {
        let mut pause = COMMIT_AGAIN;
        let judged = loop {
            match self.lease.run_with(Phase::Commit, DB::commit).await {
                Ok(()) => {
                    self.lease.set_in_transaction(false);
                    return Ok(());
                }
                Err(judged) if judged.kind == Kind::Conflict && DB::COMMITS_AGAIN => {
                    let again = time::now() + pause;
                    if ambient::current().is_some_and(|at| again >= at) {
                        break judged;
                    }
                    time::sleep_until(again).await;
                    pause = (2 * pause).min(COMMIT_AGAIN_AT_MOST);
                }
                Err(judged) => break judged,
            }
        };
        if judged.kind != Kind::Ambiguous {
            let failed_before = judged.error.as_database_error().and_then(|e| e.code());
            let failed_before = failed_before.as_deref() == Some("25P02");
            let _ = self.roll_back().await;
            if failed_before {
                let unseen = "one that was run on its connection directly".to_owned();
                let error = TransactionError::RolledBack(unseen).into_sqlx();
                return Err(Judged::new(error, Kind::Invalid));
            }
            return Err(judged);
        }
        if self.read_only {
            return Ok(());
        }
        let inner = Arc::clone(self.lease.inner());
        let (trace, verify) = (self.trace.take(), self.verify.take());
        match fate(&inner, trace.as_ref(), verify.as_ref()).await {
            Some(true) => {
                inner.book.fate(true, &inner.reporter);
                Ok(())
            }
            Some(false) => {
                inner.book.fate(false, &inner.reporter);
                Err(Judged::new(judged.error, Kind::Unavailable))
            }
            None => {
                let unknown = TransactionError::CommitUnknown(judged.error).into_sqlx();
                Err(Judged::new(unknown, Kind::Ambiguous))
            }
        }
    }

    async fn roll_back(&mut self) -> Result<(), Judged<sqlx::Error>> {
        if self.lease.state() == State::Lost || self.is_astray() {
            // The server does it by itself, or the reaper sees to it.
            return Ok(());
        }
        let lease = &mut self.lease;
        let rolled_back = async {
            lease.forget_statements().await?;
            lease.run_with(Phase::Transaction, DB::rollback).await
        };
        match time::within(ASK, rolled_back).await {
            Some(Ok(())) => {
                self.lease.set_in_transaction(false);
                Ok(())
            }
            Some(Err(judged)) => Err(judged),
            // The reaper goes on.
            None => Ok(()),
        }
    }
}

/// Whether it was committed, if there is somebody who knows.
async fn fate<DB: Driver>(
    inner: &Arc<Inner<DB>>,
    trace: Option<&Trace>,
    verify: Option<&Verify>,
) -> Option<bool> {
    let by = ambient::current().unwrap_or_else(|| time::now() + inner.settings.deadline);
    if let Some(trace) = trace {
        let mut pause = ASK_AGAIN;
        loop {
            let limit = ASK.min(by.saturating_duration_since(time::now()));
            let asked = inner.with_admin(limit, trace, DB::fate);
            match time::until(by, asked).await? {
                Ok(Outcome::Committed) => return Some(true),
                Ok(Outcome::Aborted) => return Some(false),
                Ok(Outcome::Unknown) => break,
                // It has not noticed yet, or is away.
                Ok(Outcome::InProgress) | Err(_) => {}
            }
            let again = time::now() + pause;
            if again >= by {
                break;
            }
            time::sleep_until(again).await;
            pause = (2 * pause).min(ASK_AGAIN_AT_MOST);
        }
    }
    time::until(by, verify?()).await?.ok()
}

/// Begins a transaction for somebody who ends it himself.
pub(super) async fn begin<DB: Driver>(
    inner: &Arc<Inner<DB>>,
    shield: &Guarded,
    options: &TransactionOptions,
    taken: Taken,
) -> Result<Tx<DB>, sqlx::Error> {
    let attempt = || {
        let taken = taken.clone();
        async move {
            let lease = inner.checkout(taken).await?;
            Ok(Tx {
                open: Some(Open::begin(lease, options, 1).await?),
                home: None,
            })
        }
    };
    run(shield, attempt).await
}

/// Runs the whole of a transaction, as often as that is safe and helps.
pub(super) async fn transact<DB, T, E, F, Fut>(
    inner: &Arc<Inner<DB>>,
    shield: &Guarded,
    options: &TransactionOptions,
    taken: Taken,
    closure: F,
) -> Result<T, E>
where
    DB: Driver,
    E: From<sqlx::Error> + Send,
    T: Send,
    F: FnMut(Tx<DB>) -> Fut + Send,
    Fut: Future<Output = Result<T, E>> + Send,
{
    // Attempts follow each other, so that nobody ever waits for it.
    let closure = Mutex::new((closure, 0));
    let attempt = || {
        let taken = taken.clone();
        let closure = &closure;
        async move {
            let begun = taken.location;
            let started = time::now();
            let lease = inner.checkout(taken).await.map_err(into)?;
            let attempt = {
                let mut closure = closure.lock().unwrap_or_else(PoisonError::into_inner);
                closure.1 += 1;
                closure.1
            };
            let open = Open::begin(lease, options, attempt).await;
            let open = open.map_err(|judged| into(judged.into()))?;
            let home = Home::default();
            let tx = Tx {
                open: Some(open),
                home: Some(Arc::clone(&home)),
            };
            let future = {
                let mut closure = closure.lock().unwrap_or_else(PoisonError::into_inner);
                (closure.0)(tx)
            };
            let inside = Inside {
                whose: Arc::as_ptr(inner).addr(),
                begun,
                future: Some(future),
            };
            let result = match ambient::current() {
                Some(at) => time::until(at, inside).await,
                None => Some(inside.await),
            };
            let open = home.lock().unwrap_or_else(PoisonError::into_inner).take();
            end(inner, open, result, started).await
        }
    };
    run(shield, attempt).await
}

/// The end of one attempt: `result` is what the closure returned, if it did so in time.
async fn end<DB: Driver, T, E: From<sqlx::Error>>(
    inner: &Arc<Inner<DB>>,
    open: Option<Open<DB>>,
    result: Option<Result<T, E>>,
    started: Instant,
) -> Result<T, Failed<E>> {
    let Some(result) = result else {
        // Dropped, it is rolled back. Only a deadline of our own speaks against the server.
        let ran = time::now().saturating_duration_since(started);
        let ours = ran >= inner.settings.deadline.mul_f64(NEARLY);
        let kind = if ours {
            Kind::Unavailable
        } else {
            Kind::Ignored
        };
        let error = TransactionError::DeadlineExceeded.into_sqlx();
        return Err(into(Judged::new(error, kind).into()));
    };
    let Some(mut open) = open else {
        return match result {
            Ok(_) => Err(into(Judged::new(escaped(), Kind::Ignored).into())),
            Err(error) => Err(Failed::Inner(Judged {
                error,
                kind: Kind::Invalid,
            })),
        };
    };
    let took = open.lease.started();
    let result = match result {
        Ok(value) => match open.finish().await {
            Ok(()) => Ok(value),
            Err(judged) => Err(into(judged.into())),
        },
        Err(error) => {
            let kind = open
                .fault
                .as_ref()
                .map_or(Kind::Invalid, |fault| fault.verdict.kind);
            let _ = open.roll_back().await;
            Err(Failed::Inner(Judged { error, kind }))
        }
    };
    let kind = match &result {
        Ok(_) => Kind::Success,
        Err(Failed::Inner(judged)) => judged.kind,
        Err(Failed::Rejected(_)) => Kind::Ignored,
    };
    let now = time::now();
    inner
        .book
        .settled(now.saturating_duration_since(took), kind, now);
    result
}

/// What to say to a call that would leave the transaction around it, if there is one of the same database.
pub(super) fn nested<DB: Driver>(inner: &Arc<Inner<DB>>, taken: &Taken) -> Option<sqlx::Error> {
    let (whose, begun) = INSIDE.get()?;
    (whose == Arc::as_ptr(inner).addr()).then(|| {
        let used = match (taken.location, &taken.operation, taken.span) {
            (Some(location), ..) => location.to_string(),
            (None, Some(operation), _) => format!("operation {operation}"),
            (None, None, Some(span)) => format!("a statement in the span {span}"),
            (None, None, None) => "a statement".to_owned(),
        };
        TransactionError::Nested { used, begun }.into_sqlx()
    })
}

pin_project! {
    /// A closure's future, during which the database knows that it is inside of its own transaction.
    struct Inside<F> {
        whose: usize,
        begun: Option<&'static Location<'static>>,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Inside<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _left = enter(*this.whose, *this.begun);
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _left = enter(*this.whose, *this.begun);
        this.future
            .as_pin_mut()
            .expect("set until it is dropped")
            .poll(cx)
    }
}

fn enter(whose: usize, begun: Option<&'static Location<'static>>) -> Left {
    Left {
        outer: INSIDE.replace(begun.map(|begun| (whose, begun))),
    }
}

/// Restores what surrounded us, even by a panic.
struct Left {
    outer: Option<(usize, &'static Location<'static>)>,
}

impl Drop for Left {
    fn drop(&mut self) {
        INSIDE.set(self.outer);
    }
}

thread_local! {
    static INSIDE: Cell<Option<(usize, &'static Location<'static>)>> = const { Cell::new(None) };
}

fn name(depth: u32) -> String {
    format!("steadfast_{depth}")
}

fn escaped() -> sqlx::Error {
    TransactionError::Escaped.into_sqlx()
}

/// A question about a transaction takes one round trip, and perhaps a connect.
const ASK: Duration = Duration::from_secs(5);

/// The pauses between two questions about a fate that is not decided yet.
const ASK_AGAIN: Duration = Duration::from_millis(10);
const ASK_AGAIN_AT_MOST: Duration = Duration::from_millis(500);

/// The pauses between two COMMITs of which the first met a reader.
const COMMIT_AGAIN: Duration = Duration::from_millis(2);
const COMMIT_AGAIN_AT_MOST: Duration = Duration::from_millis(50);

/// Timers are not exact.
const NEARLY: f64 = 0.97;
