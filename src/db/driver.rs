//! What differs between the databases, behind one trait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_core::{future::BoxFuture, stream::BoxStream};
use sqlx::{Database, Either, SqlStr, database::HasStatementCache};

use crate::db::{
    replay::Replay,
    timeouts::{ConnectOptions, Planned},
    transaction::{Isolation, TransactionOptions},
};

/// A database that [`Db`](super::Db) works with: `Postgres`, `MySql` or `Sqlite`.
///
/// Sealed: it is implemented for those whose feature is on.
///
/// ```
/// use steadfast::db::{Db, Driver};
///
/// /// Works with whichever.
/// fn report<DB: Driver>(db: &Db<DB>) -> String {
///     format!("{:?}", db.stats())
/// }
/// ```
pub trait Driver: Backend {}

/// What `Db` needs of a database. A connection's own `Executor` is reached through it, so that generic code needs no bounds on references.
pub trait Backend:
    Planned + HasStatementCache + Database<Arguments: Clone + Sync, Statement: Clone>
{
    /// Whether an error undoes the whole transaction, or what came after a savepoint.
    const ERROR_ABORTS: bool;

    /// Whether a COMMIT that met a rival can be sent again as it is.
    const COMMITS_AGAIN: bool;

    /// Whether somebody else than the connection's own client can stop what it runs.
    const CANCELS: bool;

    /// Whether a connection can be used again after a statement on it was dropped.
    const RESUMES: bool;

    fn execute(
        connection: &mut Self::Connection,
        query: Replay<Self>,
    ) -> BoxFuture<'_, Result<Self::QueryResult, sqlx::Error>>
    where
        Self: Driver;

    fn fetch_all(
        connection: &mut Self::Connection,
        query: Replay<Self>,
    ) -> BoxFuture<'_, Result<Vec<Self::Row>, sqlx::Error>>
    where
        Self: Driver;

    fn fetch_optional(
        connection: &mut Self::Connection,
        query: Replay<Self>,
    ) -> BoxFuture<'_, Result<Option<Self::Row>, sqlx::Error>>
    where
        Self: Driver;

    fn fetch_many(connection: &mut Self::Connection, query: Replay<Self>) -> Steps<'_, Self>
    where
        Self: Driver;

    fn prepare<'e>(
        connection: &'e mut Self::Connection,
        sql: SqlStr,
        parameters: &'e [Self::TypeInfo],
    ) -> BoxFuture<'e, Result<Self::Statement, sqlx::Error>>;

    fn describe(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> BoxFuture<'_, Result<sqlx::Describe<Self>, sqlx::Error>>;

    /// Who the connection is on the server; an error if it is no good. One round trip.
    ///
    /// What an earlier user left running is waited for, and a transaction left open is ended.
    fn identify<'e>(
        connection: &'e mut Self::Connection,
        flags: &'e Flags,
    ) -> BoxFuture<'e, Result<Identity, sqlx::Error>>;

    /// Stops what a session runs, through another connection.
    fn cancel<'e>(
        admin: &'e mut Self::Connection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<(), sqlx::Error>>;

    /// Ends a session, through another connection; whether the server is done with it.
    fn end<'e>(
        admin: &'e mut Self::Connection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>>;

    /// Begins a transaction whose statements the server ends by itself. One round trip.
    fn begin<'e>(
        connection: &'e mut Self::Connection,
        options: &'e TransactionOptions,
        limits: Limits,
        fates: &'e Fates,
    ) -> BoxFuture<'e, Result<Option<Trace>, sqlx::Error>>;

    /// Whether the settings in the options are in force on the connection; a pooler may have left them out.
    fn obeys<'e>(
        _connection: &'e mut Self::Connection,
        _options: &'e ConnectOptions<Self>,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>> {
        Box::pin(async { Ok(true) })
    }

    /// What begins a transaction around a single call, within its limits.
    fn around_call(_limits: Limits) -> SqlStr {
        SqlStr::from_static("BEGIN")
    }

    /// Commits; an error if the server turned that into a rollback. One round trip.
    fn commit(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Rolls back. One round trip.
    fn rollback(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Asks what became of a transaction, through another connection.
    fn fate<'e>(
        admin: &'e mut Self::Connection,
        trace: &'e Trace,
    ) -> BoxFuture<'e, Result<Outcome, sqlx::Error>>;
}

/// The rows and results of a query, one by one.
pub type Steps<'e, DB> = BoxStream<
    'e,
    Result<Either<<DB as Database>::QueryResult, <DB as Database>::Row>, sqlx::Error>,
>;

/// Who a connection is on its server.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The server's number for the session, where it has one and it can be relied on.
    pub(super) session: Option<i64>,
    /// When it had it. A server that started later knows another one by that number, or none.
    pub(super) since: Option<Instant>,
    /// What stops a statement of an embedded database.
    pub(super) stop: Option<Arc<AtomicBool>>,
}

/// Until when a transaction's statements may run, wait for locks, or let it lie.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle: Duration,
    /// How often the server looks whether its client is still there, where that was not said when connecting.
    pub(super) check: Option<Duration>,
}

/// How to ask for a transaction's fate later.
#[derive(Clone, Debug)]
pub struct Trace {
    pub(super) id: i64,
    pub(super) session: i32,
    /// The history that the server writes; another one after a failover.
    pub(super) timeline: String,
    /// When it began and when the server had been started, by the server's clock and in its words.
    pub(super) began: String,
    pub(super) started: String,
}

/// Whether the server can be asked for the fate of a transaction.
///
/// That is believed until it says no.
#[derive(Debug, Default)]
pub struct Fates {
    refused: AtomicBool,
}

impl Fates {
    pub(super) fn can_be_asked_for(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn are_refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    InProgress,
    /// The server can't say.
    Unknown,
}

/// The stop flags of an embedded database's connections, by the number that each carries.
#[derive(Debug, Default)]
pub struct Flags {
    next: AtomicI32,
    known: Mutex<HashMap<i32, Weak<AtomicBool>>>,
}

impl Flags {
    /// The flag of the connection with this number.
    pub(super) fn find(&self, number: i32) -> Option<Arc<AtomicBool>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&number)?.upgrade()
    }

    /// A number and a flag for a connection that has none.
    pub(super) fn assign(&self) -> (i32, Arc<AtomicBool>) {
        let number = 1 + self.next.fetch_add(1, Ordering::Relaxed);
        let flag = Arc::<AtomicBool>::default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, flag| flag.strong_count() > 0);
        known.insert(number, Arc::downgrade(&flag));
        (number, flag)
    }
}

/// Reaches a connection's own `Executor`.
macro_rules! through_executor {
    () => {
        fn execute(
            connection: &mut Self::Connection,
            query: Replay<Self>,
        ) -> BoxFuture<'_, Result<Self::QueryResult, sqlx::Error>> {
            sqlx::Executor::execute(connection, query)
        }

        fn fetch_all(
            connection: &mut Self::Connection,
            query: Replay<Self>,
        ) -> BoxFuture<'_, Result<Vec<Self::Row>, sqlx::Error>> {
            sqlx::Executor::fetch_all(connection, query)
        }

        fn fetch_optional(
            connection: &mut Self::Connection,
            query: Replay<Self>,
        ) -> BoxFuture<'_, Result<Option<Self::Row>, sqlx::Error>> {
            sqlx::Executor::fetch_optional(connection, query)
        }

        fn fetch_many(connection: &mut Self::Connection, query: Replay<Self>) -> Steps<'_, Self> {
            sqlx::Executor::fetch_many(connection, query)
        }

        fn prepare<'e>(
            connection: &'e mut Self::Connection,
            sql: SqlStr,
            parameters: &'e [Self::TypeInfo],
        ) -> BoxFuture<'e, Result<Self::Statement, sqlx::Error>> {
            sqlx::Executor::prepare_with(connection, sql, parameters)
        }

        fn describe(
            connection: &mut Self::Connection,
            sql: SqlStr,
        ) -> BoxFuture<'_, Result<sqlx::Describe<Self>, sqlx::Error>> {
            sqlx::Executor::describe(connection, sql)
        }
    };
}
pub(super) use through_executor;

/// The standard's words for an isolation level.
pub(super) fn isolation(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "READ UNCOMMITTED",
        Isolation::ReadCommitted => "READ COMMITTED",
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    }
}
