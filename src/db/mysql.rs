//! MySQL and MariaDB.

use std::{
    fmt::Write,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, Row, SqlStr, mysql::MySqlRow};

use crate::{
    db::{
        driver::{
            Backend, Driver, Fates, Flags, Identity, Limits, Outcome, Steps, Trace, isolation,
            through_executor,
        },
        replay::Replay,
        transaction::TransactionOptions,
    },
    time,
};

impl Driver for MySql {}

impl Backend for MySql {
    const ERROR_ABORTS: bool = false;
    const COMMITS_AGAIN: bool = false;
    const CANCELS: bool = true;
    // sqlx forgets how far it had read the answer, and can take what is left of it for the next one's.
    const RESUMES: bool = false;

    through_executor!();

    fn identify<'e>(
        connection: &'e mut MySqlConnection,
        _flags: &'e Flags,
    ) -> BoxFuture<'e, Result<Identity, sqlx::Error>> {
        Box::pin(async move {
            // Nobody else's answer has this number in it.
            let number = fastrand::i64(..);
            let sql = format!(
                "ROLLBACK; {RESTORE}; SELECT CAST(CONNECTION_ID() AS SIGNED), CAST({number} AS SIGNED)"
            );
            let mut refused = no_answer();
            for _ in 0..LATE {
                let row = match caught(ask(connection, AssertSqlSafe(sql.clone()))).await {
                    Ok(row) => row.ok_or_else(no_answer)?,
                    // The answer of a statement that was stopped.
                    Err(error @ sqlx::Error::Database(_)) => {
                        refused = error;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if row.try_get::<i64, _>(1)? != number {
                    return Err(no_answer());
                }
                return Ok(Identity {
                    session: Some(row.try_get(0)?),
                    since: Some(time::now()),
                    ..Identity::default()
                });
            }
            Err(refused)
        })
    }

    fn cancel<'e>(
        admin: &'e mut MySqlConnection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let Some(session) = identity.session else {
                return Ok(());
            };
            if !is_ours(admin, identity).await? {
                return Ok(());
            }
            match ask(admin, AssertSqlSafe(format!("KILL QUERY {session}"))).await {
                Err(error) if number_of(&error) == Some(NO_SUCH_SESSION) => Ok(()),
                answer => answer.map(drop),
            }
        })
    }

    fn end<'e>(
        admin: &'e mut MySqlConnection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let Some(session) = identity.session else {
                return Ok(false);
            };
            if !is_ours(admin, identity).await? {
                return Ok(true);
            }
            match ask(admin, AssertSqlSafe(format!("KILL {session}"))).await {
                Err(error) if number_of(&error) == Some(NO_SUCH_SESSION) => Ok(true),
                answer => answer.map(|_| false),
            }
        })
    }

    fn begin<'e>(
        connection: &'e mut MySqlConnection,
        options: &'e TransactionOptions,
        limits: Limits,
        _fates: &'e Fates,
    ) -> BoxFuture<'e, Result<Option<Trace>, sqlx::Error>> {
        Box::pin(async move {
            let mut sql = shorten(limits);
            if let Some(level) = options.isolation {
                let level = isolation(level);
                let _ = write!(sql, "; SET TRANSACTION ISOLATION LEVEL {level}");
            }
            sql.push_str("; START TRANSACTION");
            if options.read_only {
                sql.push_str(" READ ONLY");
            }
            ask(connection, AssertSqlSafe(sql)).await?;
            Ok(None)
        })
    }

    fn commit(connection: &mut MySqlConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let sql = format!("COMMIT; {RESTORE}");
            ask(connection, AssertSqlSafe(sql)).await.map(drop)
        })
    }

    fn rollback(connection: &mut MySqlConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let sql = format!("ROLLBACK; {RESTORE}");
            ask(connection, AssertSqlSafe(sql)).await.map(drop)
        })
    }

    fn fate<'e>(
        _admin: &'e mut MySqlConnection,
        _trace: &'e Trace,
    ) -> BoxFuture<'e, Result<Outcome, sqlx::Error>> {
        // It keeps no record of what it has committed.
        Box::pin(std::future::ready(Ok(Outcome::Unknown)))
    }
}

/// The session's own limits are kept in variables of the session while a transaction has others.
///
/// MariaDB reads what stands behind `M!`, MySQL what stands behind `!50708`, and neither what is for the other.
fn shorten(limits: Limits) -> String {
    let lock = limits.lock.max(Duration::from_secs(1)).as_secs();
    let statement = limits.statement.as_secs_f64().max(0.001);
    let milliseconds = limits.statement.as_millis().clamp(1, i32::MAX as u128);
    format!(
        "SET @steadfast_lock = @@SESSION.innodb_lock_wait_timeout, \
         SESSION innodb_lock_wait_timeout = {lock} \
         /*M!100108 , @steadfast_statement = @@SESSION.max_statement_time, \
         SESSION max_statement_time = {statement:.3} */ \
         /*!50708 , @steadfast_statement = @@SESSION.max_execution_time, \
         SESSION max_execution_time = {milliseconds} */"
    )
}

/// Undoes [`shorten`]; without effect where there is nothing to undo.
///
/// A variable that was never set counts as a text, which no limit can be set to without a cast.
const RESTORE: &str = "SET SESSION innodb_lock_wait_timeout = \
     CAST(COALESCE(@steadfast_lock, @@SESSION.innodb_lock_wait_timeout) AS UNSIGNED) \
     /*M!100108 , SESSION max_statement_time = \
     CAST(COALESCE(@steadfast_statement, @@SESSION.max_statement_time) AS DOUBLE) */ \
     /*!50708 , SESSION max_execution_time = \
     CAST(COALESCE(@steadfast_statement, @@SESSION.max_execution_time) AS UNSIGNED) */, \
     @steadfast_lock = NULL, @steadfast_statement = NULL";

/// Sends a text as it is, and reads its last row.
async fn ask(
    connection: &mut MySqlConnection,
    sql: impl sqlx::SqlSafeStr,
) -> Result<Option<MySqlRow>, sqlx::Error> {
    let rows = MySql::fetch_all(connection, Replay::raw(sql)).await?;
    Ok(rows.into_iter().next_back())
}

/// Whether the server's number for the session is that session's; a server that has started since counts from the beginning.
async fn is_ours(admin: &mut MySqlConnection, identity: &Identity) -> Result<bool, sqlx::Error> {
    let Some(since) = identity.since else {
        return Ok(false);
    };
    let row = ask(admin, "SHOW GLOBAL STATUS LIKE 'Uptime'").await?;
    let up: String = row.ok_or_else(no_answer)?.try_get(1)?;
    let known = time::now().saturating_duration_since(since);
    Ok(up.parse().is_ok_and(|up: u64| up >= known.as_secs()))
}

/// What `future` returns, or an error where it panics.
///
/// Reading on where a dropped statement left off, sqlx can meet the midst of a packet.
async fn caught<T>(future: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(no_answer())))
    })
    .await
}

fn number_of(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    let error = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?;
    Some(error.number())
}

const NO_SUCH_SESSION: u16 = 1094;

/// An order to stop that comes late may meet one or two of our own.
const LATE: usize = 4;

fn no_answer() -> sqlx::Error {
    sqlx::Error::Protocol("the server did not answer as asked".to_owned())
}
