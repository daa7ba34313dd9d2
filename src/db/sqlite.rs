//! SQLite.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, Row, SqlStr, Sqlite, SqliteConnection, sqlite::SqliteRow};

use crate::{
    db::{
        driver::{
            Backend, Driver, Fates, Flags, Identity, Limits, Outcome, Steps, Trace,
            through_executor,
        },
        replay::Replay,
        transaction::TransactionOptions,
    },
    time,
};

impl Driver for Sqlite {}

impl Backend for Sqlite {
    const ERROR_ABORTS: bool = false;
    const COMMITS_AGAIN: bool = true;
    const CANCELS: bool = false;
    const RESUMES: bool = true;

    through_executor!();

    fn identify<'e>(
        connection: &'e mut SqliteConnection,
        flags: &'e Flags,
    ) -> BoxFuture<'e, Result<Identity, sqlx::Error>> {
        Box::pin(async move {
            // It fails where no transaction was left open, which is the rule.
            match ask(connection, "ROLLBACK").await {
                Ok(_) | Err(sqlx::Error::Database(_)) => {}
                Err(error) => return Err(error),
            }
            // A number that nobody else sees, and that the connection carries with it.
            let row = ask(connection, "PRAGMA temp.user_version").await?;
            let number: i32 = row.map_or(Ok(0), |row| row.try_get(0))?;
            let stop = match flags.find(number) {
                Some(stop) => stop,
                None => {
                    let (number, stop) = flags.assign();
                    let sql = format!("PRAGMA temp.user_version = {number}");
                    ask(connection, AssertSqlSafe(sql)).await?;
                    watch(connection, &stop).await?;
                    stop
                }
            };
            stop.store(false, Ordering::Relaxed);
            Ok(Identity {
                stop: Some(stop),
                ..Identity::default()
            })
        })
    }

    fn cancel<'e>(
        _admin: &'e mut SqliteConnection,
        _identity: &'e Identity,
    ) -> BoxFuture<'e, Result<(), sqlx::Error>> {
        // Its flag stops it.
        Box::pin(std::future::ready(Ok(())))
    }

    fn end<'e>(
        _admin: &'e mut SqliteConnection,
        _identity: &'e Identity,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn begin<'e>(
        connection: &'e mut SqliteConnection,
        options: &'e TransactionOptions,
        _limits: Limits,
        _fates: &'e Fates,
    ) -> BoxFuture<'e, Result<Option<Trace>, sqlx::Error>> {
        Box::pin(async move {
            // Whoever reads first and writes later could meet a rival in between, where waiting does not help.
            let sql = if options.read_only {
                "BEGIN DEFERRED"
            } else {
                "BEGIN IMMEDIATE"
            };
            ask(connection, sql).await?;
            Ok(None)
        })
    }

    fn commit(connection: &mut SqliteConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move { ask(connection, "COMMIT").await.map(drop) })
    }

    fn rollback(connection: &mut SqliteConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move { ask(connection, "ROLLBACK").await.map(drop) })
    }

    fn fate<'e>(
        _admin: &'e mut SqliteConnection,
        _trace: &'e Trace,
    ) -> BoxFuture<'e, Result<Outcome, sqlx::Error>> {
        Box::pin(std::future::ready(Ok(Outcome::Unknown)))
    }
}

/// Lets the flag stop whatever the connection runs.
async fn watch(
    connection: &mut SqliteConnection,
    stop: &Arc<std::sync::atomic::AtomicBool>,
) -> Result<(), sqlx::Error> {
    // sqlx can lose the wake-up of whoever waits for the handle; asking again brings it.
    for _ in 0..3 {
        let Some(locked) = time::within(HANDLE, connection.lock_handle()).await else {
            continue;
        };
        let stop = Arc::clone(stop);
        locked?.set_progress_handler(STEPS, move || !stop.load(Ordering::Relaxed));
        return Ok(());
    }
    Err(sqlx::Error::WorkerCrashed)
}

/// Sends a text as it is, and reads its last row.
async fn ask(
    connection: &mut SqliteConnection,
    sql: impl sqlx::SqlSafeStr,
) -> Result<Option<SqliteRow>, sqlx::Error> {
    let rows = Sqlite::fetch_all(connection, Replay::raw(sql)).await?;
    Ok(rows.into_iter().next_back())
}

const HANDLE: Duration = Duration::from_millis(300);

/// So many steps of its machine SQLite makes between two looks at the flag: some tens of microseconds.
const STEPS: i32 = 1_000;
