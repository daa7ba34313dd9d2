//! `&db` wherever sqlx takes an `Executor`, and how such a call runs.

use std::{borrow::Borrow, pin::Pin};

use futures_core::{Stream, future::BoxFuture, stream::BoxStream};
use sqlx::{Acquire, Database, Either, Execute, Executor, SqlStr, Transaction};

use crate::{
    classify::Phase,
    db::{
        Db,
        driver::{Driver, Steps},
        generate::{Generated, generate},
        guard::{Lease, RunOn},
        replay::Replay,
        verdict::{Failed, Judged, run},
    },
    error::Rejected,
    kind::Kind,
    time,
};

impl<'c, DB: Driver> Executor<'c> for &'c Db<DB> {
    type Database = DB;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<DB::QueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::execute))
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e, DB>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(rows(self, Replay::of(query)))
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::fetch_all))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::fetch_optional))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(prepare(self, sql, parameters))
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<DB>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(describe(self, sql))
    }
}

/// By value, for the views: `query.fetch_one(db.idempotent())`.
impl<'c, DB: Driver> Executor<'c> for Db<DB> {
    type Database = DB;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<DB::QueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::execute))
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e, DB>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(rows(self, Replay::of(query)))
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::fetch_all))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(statement(self, Replay::of(query), DB::fetch_optional))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(prepare(self, sql, parameters))
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<DB>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(describe(self, sql))
    }
}

impl<'c, DB: Driver> Acquire<'c> for &'c Db<DB> {
    type Database = DB;
    type Connection = Lease<DB>;

    fn acquire(self) -> BoxFuture<'c, Result<Lease<DB>, sqlx::Error>> {
        Box::pin(Db::acquire(self))
    }

    /// A transaction of sqlx's own, which nobody tracks: it is in no list of leases, has no slot, and is not ended by a deadline.
    ///
    /// It begins in a task of its own, so that a caller who leaves meanwhile leaves nothing open. Use [`Db::begin`] or [`Db::transaction`] where the type
    /// of the transaction is yours to choose.
    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, sqlx::Error>> {
        Box::pin(async move {
            let lease = Db::acquire(self).await?;
            let begun = tokio::spawn(Transaction::begin(lease.into_inner(), None));
            begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
        })
    }
}

/// Runs one statement, as often as that is safe and helps.
async fn statement<D, DB, T>(
    db: D,
    query: Result<Replay<DB>, sqlx::Error>,
    run_on: RunOn<DB, T>,
) -> Result<T, sqlx::Error>
where
    D: Borrow<Db<DB>> + Send,
    DB: Driver,
    T: Send,
{
    let db = db.borrow();
    let query = query?;
    let attempt = || {
        let query = query.clone();
        async move {
            let several = query.may_be_several();
            let mut lease = db.checkout().await?;
            let result = lease.statement(query, run_on).await;
            Ok(result.map_err(|judged| db.judge_part(judged, several))?)
        }
    };
    run(db.shield(), attempt).await
}

async fn prepare<D, DB>(
    db: D,
    sql: SqlStr,
    parameters: &[DB::TypeInfo],
) -> Result<DB::Statement, sqlx::Error>
where
    D: Borrow<Db<DB>> + Send,
    DB: Driver,
{
    let db = db.borrow();
    let attempt = || {
        let sql = sql.clone();
        async move {
            let mut lease = db.checkout().await?;
            let wraps = lease.is_plain();
            if wraps {
                lease.enter().await?;
            }
            // It changes nothing on the server.
            lease.begins(Some(&sql));
            let prepared = DB::prepare(lease.connection(), sql, parameters).await;
            let prepared = lease.ended(prepared, Phase::Transaction).await;
            if wraps {
                lease.leave(prepared.is_ok()).await?;
            }
            Ok(prepared?)
        }
    };
    run(db.shield(), attempt).await
}

async fn describe<D, DB>(db: D, sql: SqlStr) -> Result<sqlx::Describe<DB>, sqlx::Error>
where
    D: Borrow<Db<DB>> + Send,
    DB: Driver,
{
    let db = db.borrow();
    let attempt = || {
        let sql = sql.clone();
        async move {
            let mut lease = db.checkout().await?;
            let wraps = lease.is_plain();
            if wraps {
                lease.enter().await?;
            }
            lease.begins(Some(&sql));
            let described = DB::describe(lease.connection(), sql).await;
            let described = lease.ended(described, Phase::Transaction).await;
            if wraps {
                lease.leave(described.is_ok()).await?;
            }
            Ok(described?)
        }
    };
    run(db.shield(), attempt).await
}

type Step<DB> = Either<<DB as Database>::QueryResult, <DB as Database>::Row>;

/// Rows as they come. Whatever fails before the first of them is repeated like any statement; what fails later is not.
fn rows<'e, D, DB>(
    db: D,
    query: Result<Replay<DB>, sqlx::Error>,
) -> impl Stream<Item = Result<Step<DB>, sqlx::Error>> + Send + 'e
where
    D: Borrow<Db<DB>> + Send + 'e,
    DB: Driver,
{
    generate(move |mut out| async move {
        let db = db.borrow();
        let query = query?;
        let attempt = || {
            let query = query.clone();
            async move {
                let lease = db.checkout().await?;
                let several = query.may_be_several();
                let mut cursor = cursor(lease, query);
                let first = cursor.next().await;
                let first = first.map_err(|judged| db.judge_part(judged, several))?;
                Ok::<_, Failed>((cursor, first))
            }
        };
        let (mut cursor, mut next) = run(db.shield(), attempt).await?;
        // The consumer takes its time; the server has so much for each row.
        let patience = db.inner.settings.attempt_deadline;
        while let Some(step) = next {
            out.put(step).await;
            next = match time::within(patience, cursor.next()).await {
                Some(step) => step.map_err(|judged| judged.error)?,
                None => return Err(Rejected::DeadlineExceeded { sent: true }.into()),
            };
        }
        Ok(())
    })
}

/// The rows of one attempt, with the connection that they come from.
fn cursor<DB: Driver>(
    mut lease: Lease<DB>,
    query: Replay<DB>,
) -> Generated<'static, Step<DB>, Judged<sqlx::Error>> {
    generate(move |mut out| async move {
        let wraps = lease.wraps(&query);
        let (query, phase) = if wraps {
            lease.enter().await?;
            (query.unprepared(), Phase::Transaction)
        } else {
            (query, Phase::Statement)
        };
        lease.begins(Some(query.text()));
        let mut delivered = false;
        let result = {
            let mut steps = DB::fetch_many(lease.connection(), query);
            loop {
                match next(&mut steps).await {
                    Some(Ok(step)) => {
                        delivered |= step.is_right();
                        out.put(step).await;
                    }
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                }
            }
        };
        let phase = if delivered { Phase::Commit } else { phase };
        let result = lease.ended(result, phase).await;
        if wraps {
            let left = lease.leave(result.is_ok()).await;
            if result.is_ok() {
                left?;
            }
        }
        let kind = result
            .as_ref()
            .map_or_else(|judged| judged.kind, |()| Kind::Success);
        lease.settled(kind);
        result
    })
}

async fn next<T>(stream: &mut BoxStream<'_, T>) -> Option<T> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
