//! Who holds the connections: leaks are told of, and what made a connection useless is healed.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/server.rs"]
mod server;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::{PgPool, Row, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use steadfast::{
    Event, Observer,
    db::{Activity, Config, LeaseReport, PgDb, SqliteDb},
};
use tokio::time::{sleep, timeout};

use crate::server::postgres::Postgres;

const MS: Duration = Duration::from_millis(1);

/// What was told of leases.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(&'static str, LeaseReport)>>>);

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        let (what, lease) = match event {
            Event::Leak { lease, .. } => ("leak", *lease),
            Event::LeakReturned { lease, .. } => ("returned", *lease),
            Event::IdleInTransaction { lease, .. } => ("idle in transaction", *lease),
            _ => return,
        };
        self.0.lock().unwrap().push((what, lease.clone()));
    }
}

impl Log {
    fn told(&self) -> Vec<&'static str> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .map(|(what, _)| *what)
            .collect()
    }

    fn last(&self) -> LeaseReport {
        self.0
            .lock()
            .unwrap()
            .last()
            .expect("somebody was told of")
            .1
            .clone()
    }
}

async fn sqlite() -> (SqliteDb, Log) {
    let log = Log::default();
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .connect("sqlite::memory:")
        .await
        .unwrap();
    let db = SqliteDb::builder(pool)
        .leak_after(300 * MS)
        .observer(log.clone())
        .build()
        .unwrap();
    (db, log)
}

#[tokio::test]
async fn a_connection_held_too_long_is_told_of_once_with_its_place_and_once_more_when_it_comes_back()
 {
    let (db, log) = sqlite().await;
    let line = line!() + 1;
    let lease = db.operation("report").acquire().await.unwrap();
    assert_eq!(log.told(), Vec::<&str>::new());
    sleep(1_200 * MS).await;
    assert_eq!(log.told(), ["leak"]);
    let report = log.last();
    let location = report.location.unwrap();
    assert_eq!((location.file(), location.line()), (file!(), line));
    assert_eq!(report.operation.as_ref().unwrap().as_str(), "report");
    assert!(report.age >= 300 * MS, "{report}");
    assert_eq!(db.stats().leaks, 1);
    let text = report.to_string();
    assert!(text.contains(&format!("{}:{line}", file!())), "{text}");

    drop(lease);
    assert_eq!(log.told(), ["leak", "returned"]);
    assert!(log.last().age >= 1_200 * MS);
    sleep(600 * MS).await;
    assert_eq!(log.told(), ["leak", "returned"]);
}

#[tokio::test]
async fn a_transaction_that_idles_is_told_of_as_such() {
    let (db, log) = sqlite().await;
    let mut tx = db.begin().await.unwrap();
    sqlx::query("SELECT 1").execute(&mut tx).await.unwrap();
    sleep(1_200 * MS).await;
    let mut told = log.told();
    told.sort_unstable();
    assert_eq!(told, ["idle in transaction", "leak"]);
    let report = log.last();
    assert_eq!(report.activity, Activity::InTransaction);
    assert_eq!(report.statement.as_ref().unwrap().as_str(), "SELECT 1");
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_quick_is_told_of_to_nobody() {
    let (db, log) = sqlite().await;
    for _ in 0..100 {
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        sleep(10 * MS).await;
    }
    assert_eq!(log.told(), Vec::<&str>::new());
}

#[tokio::test]
async fn the_leases_are_listed_the_longest_first_with_what_they_do() {
    let (db, _log) = sqlite().await;
    let _idle = db.operation("idle").acquire().await.unwrap();
    sleep(20 * MS).await;
    let mut busy = db.operation("busy").begin().await.unwrap();
    sqlx::query("SELECT 2").execute(&mut busy).await.unwrap();
    let leases = db.leases();
    let shown: Vec<_> = leases
        .iter()
        .map(|lease| (lease.operation.as_ref().unwrap().as_str(), lease.activity))
        .collect();
    assert_eq!(
        shown,
        [("idle", Activity::Idle), ("busy", Activity::InTransaction)]
    );
    assert_eq!((db.stats().in_use, db.stats().available), (2, 0));
    drop(busy);
    assert_eq!(db.leases().len(), 1);
}

#[tokio::test]
async fn a_statement_through_the_executor_carries_its_span_and_its_view_s_place() {
    let (db, _log) = sqlite().await;
    sqlx::query("CREATE TABLE t (n int)")
        .execute(&db)
        .await
        .unwrap();
    let line = line!() + 1;
    let view = db.operation("slow");
    let slow = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 100000000) SELECT max(n) FROM c";
    let call = tokio::spawn(async move { sqlx::query(slow).execute(&view).await });
    sleep(100 * MS).await;
    let leases = db.leases();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].activity, Activity::Running);
    assert_eq!(leases[0].statement.as_ref().unwrap().as_str(), slow);
    assert_eq!(leases[0].location.unwrap().line(), line);
    call.abort();
    let _ = call.await;
}

async fn postgres() -> Option<(Postgres, PgPool, PgDb)> {
    let server = Postgres::start()?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(server.options());
    let db = PgDb::new(pool.clone());
    Some((server, pool, db))
}

#[tokio::test]
async fn a_statement_that_a_migration_made_stale_is_healed_where_the_pool_alone_fails() {
    let Some((server, pool, db)) = postgres().await else {
        return;
    };
    sqlx::query("CREATE TABLE stale (a int)")
        .execute(&db)
        .await
        .unwrap();
    sqlx::query("INSERT INTO stale VALUES (1)")
        .execute(&db)
        .await
        .unwrap();
    let read = || sqlx::query("SELECT * FROM stale");
    assert_eq!(read().fetch_one(&db).await.unwrap().len(), 1);
    let mut other = server.connect().await;
    let migrate = |column: &'static str| sqlx::query(column);
    migrate("ALTER TABLE stale ADD COLUMN b int")
        .execute(&mut other)
        .await
        .unwrap();
    assert_eq!(read().fetch_one(&db).await.unwrap().len(), 2);

    // The same connection, without us.
    db.recycle().await;
    read().fetch_one(&pool).await.unwrap();
    migrate("ALTER TABLE stale ADD COLUMN c int")
        .execute(&mut other)
        .await
        .unwrap();
    let error = read().fetch_one(&pool).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "0A000");
}

#[tokio::test]
async fn statements_that_were_forgotten_behind_our_back_are_healed() {
    let Some((_server, _pool, db)) = postgres().await else {
        return;
    };
    let read = || sqlx::query_scalar::<_, i32>("SELECT 1 + $1").bind(1);
    assert_eq!(read().fetch_one(&db).await.unwrap(), 2);
    sqlx::raw_sql("DEALLOCATE ALL").execute(&db).await.unwrap();
    assert_eq!(read().fetch_one(&db).await.unwrap(), 2);
}

#[tokio::test]
async fn recycling_replaces_the_connections_that_are_idle_and_then_those_that_come_back() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port());
    let db: PgDb = Config::new(url).connect().await.unwrap();
    let pid = || sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
    let mut held = db.acquire().await.unwrap();
    let old: i32 = pid().fetch_one(&mut *held).await.unwrap();
    let idle = pid().fetch_one(&db).await.unwrap();
    db.recycle().await;
    let new = pid().fetch_one(&db).await.unwrap();
    assert_ne!(new, idle);
    drop(held);
    let gone = async {
        let lives = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
        while sqlx::query_scalar::<_, i64>(lives)
            .bind(old)
            .fetch_one(&db)
            .await
            .unwrap()
            > 0
        {
            sleep(20 * MS).await;
        }
    };
    timeout(Duration::from_secs(5), gone)
        .await
        .expect("it is closed");
}
