//! What PostgreSQL says of its sessions, and the end of idle ones, on real servers.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/server.rs"]
mod server;

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use steadfast::db::{self, Diagnosis, Session};
use tokio::time::sleep;

use crate::server::postgres::Postgres;

const SECOND: Duration = Duration::from_secs(1);

/// A name that has to be escaped.
const OURS: &str = "web's \\ own";

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn it_is_seen_who_blocks_whom() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut blocking = connect(application(&server, "blocking")).await;
    let mut blocked = connect(application(&server, "blocked")).await;
    execute(
        &mut blocking,
        "CREATE TABLE item (id int PRIMARY KEY, name text)",
    )
    .await;
    execute(&mut blocking, "INSERT INTO item VALUES (1, 'one')").await;
    execute(&mut blocking, "BEGIN").await;
    execute(&mut blocking, "UPDATE item SET name = 'two' WHERE id = 1").await;
    let (blocking_pid, blocked_pid) = (pid(&mut blocking).await, pid(&mut blocked).await);
    let update = tokio::spawn(async move {
        execute(&mut blocked, "UPDATE item SET name = 'three' WHERE id = 1").await;
    });

    let mut connection = server.connect().await;
    let diagnosis = diagnose_until(&mut connection, |diagnosis| !diagnosis.blocked.is_empty());
    let diagnosis = diagnosis.await;
    let [blocked] = &diagnosis.blocked[..] else {
        panic!("one is blocked:\n{diagnosis}");
    };
    assert_eq!(
        (blocked.session.pid, &blocked.by[..]),
        (blocked_pid, &[blocking_pid][..])
    );
    assert_eq!(blocked.waits_for, "transactionid");
    assert_eq!(blocked.session.application, "blocked");
    assert_eq!(
        blocked.session.statement,
        "UPDATE item SET name = 'three' WHERE id = 1"
    );
    assert_eq!(pids(&diagnosis.blocking), [blocking_pid]);
    assert_eq!(diagnosis.blocking[0].application, "blocking");

    execute(&mut blocking, "COMMIT").await;
    update.await.unwrap();
    let after = db::diagnose(&mut connection, HOUR).await.unwrap();
    assert!(
        after.blocked.is_empty() && after.blocking.is_empty(),
        "{after}"
    );
}

#[tokio::test]
async fn a_transaction_that_idles_and_a_statement_that_runs_long_are_listed() {
    let Some(server) = Postgres::start_with(&["max_connections=37"]) else {
        return;
    };
    let mut idle = connect(application(&server, "idle")).await;
    execute(&mut idle, "BEGIN").await;
    execute(&mut idle, "SELECT 'the last one'").await;
    let mut aborted = server.connect().await;
    execute(&mut aborted, "BEGIN").await;
    let error = sqlx::raw_sql("SELECT 1/0").execute(&mut aborted).await;
    assert!(error.is_err());
    let (idle_pid, aborted_pid) = (
        pid_of(&server, "'the last one'").await,
        pid_of(&server, "1/0").await,
    );
    let mut busy = connect(application(&server, "busy")).await;
    let busy_pid = pid(&mut busy).await;
    let running = tokio::spawn(async move {
        let _ = sqlx::raw_sql("SELECT pg_sleep(60)")
            .execute(&mut busy)
            .await;
    });

    let mut connection = server.connect().await;
    // The sessions that asked for the pids are gone by then.
    let is_seen = |diagnosis: &Diagnosis| !diagnosis.long_running.is_empty() && diagnosis.used == 4;
    let diagnosis = diagnose_until(&mut connection, is_seen).await;
    assert_eq!(pids(&diagnosis.long_running), [busy_pid]);
    assert_eq!(diagnosis.long_running[0].statement, "SELECT pg_sleep(60)");
    assert_eq!(
        pids(&diagnosis.idle_in_transaction),
        [idle_pid, aborted_pid]
    );
    let session = &diagnosis.idle_in_transaction[0];
    assert_eq!(session.application, "idle");
    assert_eq!(session.state, "idle in transaction");
    assert_eq!(session.statement, "SELECT 'the last one'");
    assert_eq!(
        (&session.role[..], &session.database[..]),
        ("postgres", "postgres")
    );
    assert_eq!(session.client.as_deref(), Some("127.0.0.1"));
    assert!(
        session.in_transaction_for >= Some(session.state_for),
        "{session:?}"
    );
    let aborted = &diagnosis.idle_in_transaction[1];
    assert_eq!(aborted.state, "idle in transaction (aborted)");
    assert_eq!((diagnosis.used, diagnosis.max_connections), (4, 37));
    let expected = [
        ("active", 2),
        ("idle in transaction", 1),
        ("idle in transaction (aborted)", 1),
    ];
    assert_eq!(
        diagnosis.by_state,
        expected.map(|(state, count)| (state.to_owned(), count))
    );

    // Its time goes on.
    sleep(SECOND / 10).await;
    let later = db::diagnose(&mut connection, HOUR).await.unwrap();
    assert!(later.long_running.is_empty(), "{later}");
    let waited = later.idle_in_transaction[0].state_for - session.state_for;
    assert!(waited >= SECOND / 10, "{waited:?}");
    running.abort();
}

#[tokio::test]
async fn the_workers_of_a_statement_are_no_sessions() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut busy = server.connect().await;
    for sql in [
        "CREATE TABLE item AS SELECT generate_series(1, 1000) AS id",
        "SET min_parallel_table_scan_size = 0",
        "SET parallel_setup_cost = 0",
        "SET parallel_tuple_cost = 0",
    ] {
        execute(&mut busy, sql).await;
    }
    let busy_pid = pid(&mut busy).await;
    let running = tokio::spawn(async move {
        let count = sqlx::raw_sql("SELECT count(*) FROM item WHERE pg_sleep(1) IS NULL");
        let _ = count.execute(&mut busy).await;
    });
    let mut connection = server.connect().await;
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker' AND datname IS NOT NULL";
    let until = Instant::now() + 30 * SECOND;
    loop {
        let workers: i64 = sqlx::query_scalar(workers)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if workers > 0 {
            break;
        }
        assert!(Instant::now() < until, "no worker was started");
        sleep(SECOND / 100).await;
    }
    let diagnosis = db::diagnose(&mut connection, Duration::ZERO).await.unwrap();
    assert_eq!(pids(&diagnosis.long_running), [busy_pid]);
    assert_eq!(diagnosis.used, 2);
    running.abort();
}

#[tokio::test]
async fn others_sessions_are_counted_though_they_are_not_visible() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut superuser = server.connect().await;
    execute(&mut superuser, "CREATE ROLE guest LOGIN").await;
    let mut guest = connect(server.options().username("guest")).await;
    let diagnosis = db::diagnose(&mut guest, Duration::ZERO).await.unwrap();
    let expected = [("active".to_owned(), 1), ("not visible".to_owned(), 1)];
    assert_eq!(diagnosis.by_state, expected);
    assert_eq!(diagnosis.used, 2);
    assert_eq!(diagnosis.long_running, []);
}

#[tokio::test]
async fn only_our_own_idle_sessions_are_ended() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut superuser = server.connect().await;
    for role in ["shop", "guest"] {
        execute(&mut superuser, &format!("CREATE ROLE {role} LOGIN")).await;
    }
    // So that another role's session could be ended.
    execute(&mut superuser, "GRANT guest TO shop").await;
    execute(&mut superuser, "CREATE DATABASE other").await;
    let shop = || application(&server, OURS).username("shop");
    let mut idle = connect(shop()).await;
    let mut idle_in_transaction = connect(shop()).await;
    execute(&mut idle_in_transaction, "BEGIN").await;
    let mut aborted = connect(shop()).await;
    execute(&mut aborted, "BEGIN").await;
    let error = sqlx::raw_sql("SELECT 1/0").execute(&mut aborted).await;
    assert!(error.is_err());
    let mut survivors = [
        (
            "another application",
            connect(shop().application_name("batch")).await,
        ),
        ("no application", connect(shop().application_name("")).await),
        ("another role", connect(shop().username("guest")).await),
        ("the superuser", connect(shop().username("postgres")).await),
        ("another database", connect(shop().database("other")).await),
    ];
    let mut busy = connect(shop()).await;
    let running = tokio::spawn(async move {
        let sleep = sqlx::raw_sql("SELECT pg_sleep(1.5)");
        sleep.execute(&mut busy).await.map(|_| ())
    });
    let is_running = |diagnosis: &Diagnosis| !diagnosis.long_running.is_empty();
    diagnose_until(&mut superuser, is_running).await;

    let mut connection = connect(shop()).await;
    assert_eq!(end_idle(&mut connection, HOUR).await, 0);
    assert_eq!(end_idle(&mut connection, Duration::MAX).await, 0);
    assert!(lives(&mut idle).await);
    assert_eq!(end_idle(&mut connection, Duration::ZERO).await, 3);
    for gone in [&mut idle, &mut idle_in_transaction, &mut aborted] {
        assert!(!lives(gone).await);
    }
    for (who, survivor) in &mut survivors {
        assert!(lives(survivor).await, "{who}");
    }
    assert!(lives(&mut connection).await);
    running.await.unwrap().expect("what runs is left alone");
}

#[tokio::test]
async fn a_long_application_name_is_cut_as_the_server_cuts_it() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let name = "x".repeat(100);
    let mut idle = connect(application(&server, &name)).await;
    let mut connection = server.connect().await;
    let ended = db::terminate_idle(&mut connection, &name, Duration::ZERO).await;
    assert_eq!(ended.unwrap(), 1);
    assert!(!lives(&mut idle).await);
}

#[tokio::test]
async fn a_name_that_finds_the_wrong_ones_or_none_is_refused() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut unnamed = server.connect().await;
    let mut connection = server.connect().await;
    for (name, said) in [("", "is empty"), ("büro", "\"büro\" is not ASCII")] {
        let error = db::terminate_idle(&mut connection, name, Duration::ZERO).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, sqlx::Error::InvalidArgument(_)),
            "{error:?}"
        );
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(lives(&mut unnamed).await);
}

fn application(server: &Postgres, name: &str) -> PgConnectOptions {
    server.options().application_name(name)
}

async fn connect(options: PgConnectOptions) -> PgConnection {
    PgConnection::connect_with(&options).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    let statement = sqlx::raw_sql(AssertSqlSafe(sql));
    statement.execute(connection).await.unwrap();
}

/// How many sessions of the application [`OURS`] were ended.
async fn end_idle(connection: &mut PgConnection, older_than: Duration) -> u64 {
    let ended = db::terminate_idle(connection, OURS, older_than).await;
    ended.unwrap()
}

async fn lives(connection: &mut PgConnection) -> bool {
    sqlx::raw_sql("SELECT 1").execute(connection).await.is_ok()
}

async fn pid(connection: &mut PgConnection) -> i32 {
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()");
    pid.fetch_one(connection).await.unwrap()
}

/// Of the session whose last statement ends so.
async fn pid_of(server: &Postgres, ending: &str) -> i32 {
    let mut connection = server.connect().await;
    let pid = sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%' || $1 AND pid <> pg_backend_pid()",
    );
    let pid = pid.bind(ending).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    pid
}

fn pids(sessions: &[Session]) -> Vec<i32> {
    sessions.iter().map(|session| session.pid).collect()
}

/// Asks until the answer is as wanted; what runs for no time at all is long-running.
async fn diagnose_until(
    connection: &mut PgConnection,
    is_wanted: impl Fn(&Diagnosis) -> bool,
) -> Diagnosis {
    let until = Instant::now() + 30 * SECOND;
    loop {
        let diagnosis = db::diagnose(connection, Duration::ZERO).await.unwrap();
        if is_wanted(&diagnosis) {
            return diagnosis;
        }
        assert!(Instant::now() < until, "it does not come:\n{diagnosis}");
        sleep(SECOND / 100).await;
    }
}
