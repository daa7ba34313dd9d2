//! PostgreSQL.

use std::fmt::Write;

use futures_core::future::BoxFuture;
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Row, SqlSafeStr, SqlStr,
    error::DatabaseError,
    postgres::{PgConnectOptions, PgRow},
};

use crate::db::{
    driver::{
        Backend, Driver, Fates, Flags, Identity, Limits, Outcome, Steps, Trace, isolation,
        through_executor,
    },
    replay::Replay,
    transaction::TransactionOptions,
};

impl Driver for Postgres {}

impl Backend for Postgres {
    const ERROR_ABORTS: bool = true;
    const COMMITS_AGAIN: bool = false;
    const CANCELS: bool = true;
    const RESUMES: bool = true;

    through_executor!();

    fn identify<'e>(
        connection: &'e mut PgConnection,
        _flags: &'e Flags,
    ) -> BoxFuture<'e, Result<Identity, sqlx::Error>> {
        Box::pin(async move {
            // Outside of a transaction the two are the same instant.
            const WHO: &str = "SELECT pg_backend_pid(), now() = statement_timestamp()";
            let mut refused = None;
            for _ in 0..4 {
                let row = match ask(connection, WHO).await {
                    Ok(Some(row)) => row,
                    Ok(None) => return Err(no_answer()),
                    // The answer of a statement that was stopped; or one in an aborted transaction.
                    Err(sqlx::Error::Database(error)) => {
                        if error.code().as_deref() == Some("25P02") {
                            ask(connection, "ROLLBACK").await?;
                        }
                        refused = Some(sqlx::Error::Database(error));
                        continue;
                    }
                    // After its last word there is only silence.
                    Err(error) => return Err(refused.unwrap_or(error)),
                };
                let (pid, outside): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
                if outside {
                    return Ok(Identity {
                        session: Some(pid.into()),
                        ..Identity::default()
                    });
                }
                ask(connection, "ROLLBACK").await?;
            }
            Err(refused.unwrap_or_else(no_answer))
        })
    }

    fn cancel<'e>(
        admin: &'e mut PgConnection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let Some(pid) = identity.session else {
                return Ok(());
            };
            // When it returns, the signal is ahead of whatever that session is sent from now on.
            let sql = format!("SELECT pg_cancel_backend({pid})");
            ask(admin, AssertSqlSafe(sql)).await.map(drop)
        })
    }

    fn end<'e>(
        admin: &'e mut PgConnection,
        identity: &'e Identity,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let Some(pid) = identity.session else {
                return Ok(false);
            };
            let sql =
                format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid}");
            Ok(ask(admin, AssertSqlSafe(sql)).await?.is_none())
        })
    }

    fn begin<'e>(
        connection: &'e mut PgConnection,
        options: &'e TransactionOptions,
        limits: Limits,
        fates: &'e Fates,
    ) -> BoxFuture<'e, Result<Option<Trace>, sqlx::Error>> {
        Box::pin(async move {
            let mut begin = String::from("BEGIN");
            if let Some(level) = options.isolation {
                let _ = write!(begin, " ISOLATION LEVEL {}", isolation(level));
            }
            if options.read_only {
                begin.push_str(" READ ONLY");
            }
            if options.deferrable {
                begin.push_str(" DEFERRABLE");
            }
            push_limits(&mut begin, limits);
            // Of what only reads nothing can be lost, and an id would cost the server a write.
            if !options.read_only && fates.can_be_asked_for() {
                match begin_traced(connection, &begin).await {
                    Err(sqlx::Error::Database(error)) if is_not_for_us(&*error) => {
                        fates.are_refused();
                        ask(connection, "ROLLBACK").await?;
                    }
                    begun => return begun,
                }
            }
            ask(connection, AssertSqlSafe(begin)).await?;
            Ok(None)
        })
    }

    fn obeys<'e>(
        connection: &'e mut PgConnection,
        options: &'e PgConnectOptions,
    ) -> BoxFuture<'e, Result<bool, sqlx::Error>> {
        // One of ours says enough. As a number it is what the server shows.
        let options = options.get_options().unwrap_or_default();
        let asked = TIMES.iter().find_map(|name| {
            let (_, after) = options.split_once(&format!("-c {name}="))?;
            let value = after.split_whitespace().next()?;
            let is_number = value.bytes().all(|digit| digit.is_ascii_digit());
            is_number.then(|| {
                format!("SELECT setting = '{value}' FROM pg_settings WHERE name = '{name}'")
            })
        });
        Box::pin(async move {
            let Some(asked) = asked else {
                return Ok(true);
            };
            let row = ask(connection, AssertSqlSafe(asked)).await?;
            row.map_or(Ok(true), |row| row.try_get(0))
        })
    }

    fn around_call(limits: Limits) -> SqlStr {
        let mut sql = String::from("BEGIN");
        push_limits(&mut sql, limits);
        AssertSqlSafe(sql).into_sql_str()
    }

    fn commit(connection: &mut PgConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        // In an aborted transaction the first fails, where the second would pass for a success.
        Box::pin(async move { ask(connection, "SELECT; COMMIT").await.map(drop) })
    }

    fn rollback(connection: &mut PgConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move { ask(connection, "ROLLBACK").await.map(drop) })
    }

    fn fate<'e>(
        admin: &'e mut PgConnection,
        trace: &'e Trace,
    ) -> BoxFuture<'e, Result<Outcome, sqlx::Error>> {
        Box::pin(async move {
            let fate = fate(admin, trace).await;
            match fate {
                // A server that is only a copy of ours.
                Err(sqlx::Error::Database(error))
                    if matches!(error.code().as_deref(), Some("55000" | "25006")) =>
                {
                    Ok(Outcome::Unknown)
                }
                fate => fate,
            }
        })
    }
}

/// Begins a transaction and asks how to find out its fate; a server that only follows another one has nothing to lose.
async fn begin_traced(
    connection: &mut PgConnection,
    begin: &str,
) -> Result<Option<Trace>, sqlx::Error> {
    let sql = format!(
        "{begin}; SELECT txid_current(), pg_backend_pid(), \
         pg_walfile_name(pg_current_wal_insert_lsn()), now(), pg_postmaster_start_time() \
         WHERE NOT pg_is_in_recovery()"
    );
    let Some(row) = ask(connection, AssertSqlSafe(sql)).await? else {
        return Ok(None);
    };
    let (mut began, mut started) = (moment(&row, 3)?, moment(&row, 4)?);
    if !(is_iso(&began) && is_iso(&started)) {
        (began, started) = moments(connection).await?;
    }
    let file: &str = row.try_get(2)?;
    Ok(Some(Trace {
        id: row.try_get(0)?,
        session: row.try_get(1)?,
        timeline: file.chars().take(TIMELINE).collect(),
        began,
        started,
    }))
}

/// Whether the server has no such function, or not for this role. Some hosted ones have not.
fn is_not_for_us(error: &dyn DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("42883" | "0A000" | "42501"))
}

/// The settings of one transaction, which end with it. Numbers of ours, so that none of these can fail and leave an aborted transaction.
fn push_limits(sql: &mut String, limits: Limits) {
    let _ = write!(
        sql,
        "; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}",
        milliseconds(limits.statement),
        milliseconds(limits.lock),
        milliseconds(limits.idle),
    );
    if let Some(check) = limits.check {
        // Servers before 14 do not know it.
        const CHECK: &str = "'client_connection_check_interval'";
        let _ = write!(
            sql,
            "; SELECT CASE WHEN current_setting({CHECK}, true) IS NOT NULL \
             THEN set_config({CHECK}, '{}', true) END",
            milliseconds(check),
        );
    }
}

/// What became of a transaction.
///
/// A number alone does not say: a crash forgets the last ones, as far as nothing of theirs was on disk, and the server gives them out again. So it matters
/// whether the server has crashed since the transaction began; and if it has, which numbers are from before.
async fn fate(admin: &mut PgConnection, trace: &Trace) -> Result<Outcome, sqlx::Error> {
    let Some(since) = since(admin, trace).await? else {
        return Ok(Outcome::Unknown);
    };
    // A backend that does not notice that its client is gone would keep us waiting.
    let sql = format!(
        "SELECT txid_status({id}), \
         (SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
          WHERE pid = {pid} AND usename = current_user \
          AND backend_xid::text = ({id}::bigint & 4294967295)::text)",
        id = trace.id,
        pid = trace.session,
    );
    let status: Option<String> = match ask(admin, AssertSqlSafe(sql)).await {
        Ok(row) => row.ok_or_else(no_answer)?.try_get(0)?,
        // No transaction has had this number, or none of which the server knows.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => {
            return Ok(match since {
                Since::Nothing => Outcome::Unknown,
                Since::Crash | Since::PerhapsCrash => Outcome::Aborted,
            });
        }
        Err(error) => return Err(error),
    };
    match (status.as_deref(), since) {
        (Some("aborted"), _) => Ok(Outcome::Aborted),
        (Some("committed"), Since::Nothing) => Ok(Outcome::Committed),
        (Some("committed"), since) => whose(admin, trace, since).await,
        // Another one has its number.
        (Some("in progress"), Since::Crash) => Ok(Outcome::Aborted),
        (Some("in progress"), _) => Ok(Outcome::InProgress),
        _ => Ok(Outcome::Unknown),
    }
}

/// What may have happened to the server since a transaction began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Nothing,
    /// It was started anew.
    Crash,
    /// It is not known whether a backend has crashed, which ends all others and forgets as much.
    PerhapsCrash,
}

/// What happened to the server; `None` if it is another one.
async fn since(admin: &mut PgConnection, trace: &Trace) -> Result<Option<Since>, sqlx::Error> {
    // No session survives a crash. Those of others, and the server's own, are seen by some roles only; so there is a second sign: it forgets statistics.
    let sql = format!(
        "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), {TIMELINE}) = '{timeline}', \
         pg_postmaster_start_time() = '{started}', \
         pg_postmaster_start_time() > '{began}', \
         EXISTS (SELECT FROM pg_stat_activity WHERE backend_start <= '{began}') \
         OR pg_stat_get_bgwriter_stat_reset_time() <= '{began}'",
        timeline = trace.timeline,
        started = trace.started,
        began = trace.began,
    );
    let row = ask(admin, AssertSqlSafe(sql)).await?;
    let row = row.ok_or_else(no_answer)?;
    let (same_history, same_start): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (started_since, witness): (bool, Option<bool>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(match (same_history, same_start) {
        (false, _) => None,
        (true, true) if witness == Some(true) => Some(Since::Nothing),
        (true, true) => Some(Since::PerhapsCrash),
        (true, false) => started_since.then_some(Since::Crash),
    })
}

/// Whether a number that was committed is still that of our transaction.
async fn whose(
    admin: &mut PgConnection,
    trace: &Trace,
    since: Since,
) -> Result<Outcome, sqlx::Error> {
    // After a crash, and after an orderly stop, the server writes down which number is the next. Such a checkpoint follows on nothing, others on what was
    // written while they were made.
    let sql = format!(
        "SELECT redo_lsn = checkpoint_lsn AND current_setting('wal_level') <> 'minimal', \
         (split_part(next_xid, ':', 1)::bigint << 32) + split_part(next_xid, ':', 2)::bigint > {id}, \
         checkpoint_time > '{began}' FROM pg_control_checkpoint()",
        id = trace.id,
        began = trace.began,
    );
    let row = match ask(admin, AssertSqlSafe(sql)).await {
        Ok(row) => row.ok_or_else(no_answer)?,
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => {
            return Ok(Outcome::Unknown);
        }
        Err(error) => return Err(error),
    };
    let (of_start, from_before): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let since_began: bool = row.try_get(2)?;
    Ok(match (of_start, from_before) {
        (true, true) => Outcome::Committed,
        (true, false) if since == Since::Crash || since_began => Outcome::Aborted,
        _ => Outcome::Unknown,
    })
}

/// Sends a text as it is, and reads its last row.
async fn ask(
    connection: &mut PgConnection,
    sql: impl sqlx::SqlSafeStr,
) -> Result<Option<PgRow>, sqlx::Error> {
    let rows = Postgres::fetch_all(connection, Replay::raw(sql)).await?;
    Ok(rows.into_iter().next_back())
}

fn no_answer() -> sqlx::Error {
    sqlx::Error::Protocol("the server did not answer as asked".to_owned())
}

/// Settings of a session that are always sent, unless the user sends his own.
const TIMES: [&str; 3] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

fn milliseconds(time: std::time::Duration) -> u128 {
    // 0 would mean no limit.
    time.as_millis().clamp(1, i32::MAX as u128)
}

/// A point in time as the server writes it.
fn moment(row: &PgRow, column: usize) -> Result<String, sqlx::Error> {
    // sqlx has no type for it, but takes its text.
    row.try_get_unchecked(column)
}

/// Whether a point in time is written as the standard has it, with its distance from UTC: whoever reads that takes it for what was meant.
fn is_iso(moment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_digit() || b"-:.+ ".contains(&byte);
    moment.bytes().all(plain)
        && moment.as_bytes().get(4) == Some(&b'-')
        && moment
            .get(10..)
            .is_some_and(|time| time.contains(['+', '-']))
}

/// When the transaction began and the server was started, for a session that writes them in another way.
async fn moments(connection: &mut PgConnection) -> Result<(String, String), sqlx::Error> {
    let iso = |moment| {
        format!("to_char({moment} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
    };
    let sql = format!(
        "SELECT {}, {}",
        iso("now()"),
        iso("pg_postmaster_start_time()")
    );
    let row = ask(connection, AssertSqlSafe(sql)).await?;
    let row = row.ok_or_else(no_answer)?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// So many letters of a log file's name say to which history it belongs.
const TIMELINE: usize = 8;
