//! Who holds the connections, what becomes of those that are held for too long, and of what a connection remembers.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/server.rs"]
mod server;

use std::{
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use sqlx::{PgPool, Row, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use steadfast::{
    Event, Observer,
    db::{PgDb, SqliteDb},
    event::{Activity, LeaseReport},
};
use tokio::time::sleep;

use crate::server::postgres::Postgres;

static SERVER: LazyLock<Option<Postgres>> = LazyLock::new(Postgres::start);

#[tokio::test]
async fn a_connection_that_is_held_for_too_long_is_told_of_once_and_once_more_when_it_comes_back() {
    let told = Told::default();
    let db = on_sqlite(&told);
    let line = line!() + 1;
    let lease = db.operation("nightly").acquire().await.unwrap();
    let short = db.acquire().await.unwrap();
    drop(short);
    sleep(LONG).await;

    let leases = db.leases();
    assert_eq!(leases.len(), 1);
    assert_eq!(
        leases[0].location.map(|location| location.line()),
        Some(line)
    );
    assert_eq!(db.stats().leaks, 1);
    let leak = told.only("leak");
    let location = leak.location.expect("it was taken by a method of ours");
    assert!(location.file().ends_with("leases.rs"), "{location}");
    assert_eq!(location.line(), line);
    assert_eq!(
        leak.operation.as_ref().map(|name| name.as_str()),
        Some("nightly")
    );
    assert!(leak.age >= LEAK_AFTER && leak.age < LONG, "{:?}", leak.age);
    assert!(told.of("returned").is_empty());

    drop(lease);
    let returned = told.only("returned");
    assert_eq!(returned.id, leak.id);
    assert!(returned.age >= LONG, "{:?}", returned.age);
    sleep(LONG).await;
    assert_eq!(told.all(), ["leak", "returned"]);
    assert!(db.leases().is_empty());
}

#[tokio::test]
async fn a_transaction_that_runs_nothing_for_too_long_is_told_of() {
    let told = Told::default();
    let db = on_sqlite(&told);
    let mut tx = db.begin().await.unwrap();
    sqlx::query("SELECT 1").execute(&mut tx).await.unwrap();
    sleep(LONG).await;
    let idle = told.only("idle");
    assert_eq!(idle.activity, Activity::InTransaction);
    assert!(
        idle.idle_for().is_some_and(|idle| idle >= LEAK_AFTER),
        "{idle}"
    );
    assert_eq!(
        idle.statement.as_ref().map(|name| name.as_str()),
        Some("SELECT 1")
    );
    tx.commit().await.unwrap();
    assert_eq!(told.of("returned").len(), 1);
}

#[tokio::test]
async fn what_is_held_is_listed_with_what_it_does() {
    let Some(server) = &*SERVER else { return };
    let db = PgDb::new(pool(server));
    let slow = {
        let db = db.operation("report");
        tokio::spawn(async move {
            sqlx::query("SELECT pg_sleep(0.4)")
                .execute(&db)
                .await
                .map(drop)
        })
    };
    let dropped = {
        let db = db.clone();
        tokio::spawn(async move {
            sqlx::query("SELECT pg_sleep(30)")
                .execute(&db)
                .await
                .map(drop)
        })
    };
    sleep(Duration::from_millis(200)).await;
    let held = db.leases();
    let report = held.iter().find(|lease| lease.operation.is_some()).unwrap();
    assert_eq!(report.activity, Activity::Running);
    assert_eq!(
        report.statement.as_ref().map(|name| name.as_str()),
        Some("SELECT pg_sleep(0.4)")
    );
    assert_eq!((held.len(), db.stats().in_use), (2, 2));
    dropped.abort();
    slow.await.unwrap().unwrap();
    assert!(dropped.await.is_err());
    assert!(db.leases().is_empty(), "{:?}", db.leases());
}

#[tokio::test]
async fn a_statement_that_a_migration_made_stale_is_prepared_anew() {
    let Some(server) = &*SERVER else { return };
    let mut migration = server.connect().await;
    sqlx::raw_sql("CREATE TABLE stale (id int); INSERT INTO stale VALUES (1)")
        .execute(&mut migration)
        .await
        .unwrap();
    let db = PgDb::new(single(server));
    let select = || sqlx::query("SELECT * FROM stale");
    assert_eq!(select().fetch_one(&db).await.unwrap().len(), 1);
    for columns in 2..5 {
        let sql = format!("ALTER TABLE stale ADD COLUMN more_{columns} int");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&mut migration)
            .await
            .unwrap();
        let row = match columns {
            2 => select().fetch_one(&db).await,
            3 => {
                db.transaction(|mut tx| async move { select().fetch_one(&mut tx).await })
                    .await
            }
            _ => {
                db.once()
                    .call(|mut conn| async move {
                        // Once it has failed, the connection forgets.
                        select().fetch_one(&mut conn).await.unwrap_err();
                        select().fetch_one(&mut conn).await
                    })
                    .await
            }
        };
        assert_eq!(row.unwrap().len(), columns);
    }
}

#[tokio::test]
async fn statements_that_the_server_forgot_are_prepared_anew() {
    let Some(server) = &*SERVER else { return };
    let db = PgDb::new(single(server));
    let select = || sqlx::query_scalar::<_, i32>("SELECT 2").fetch_one(&db);
    assert_eq!(select().await.unwrap(), 2);
    sqlx::raw_sql("DEALLOCATE ALL").execute(&db).await.unwrap();
    assert_eq!(select().await.unwrap(), 2);
    sqlx::raw_sql("DEALLOCATE ALL").execute(&db).await.unwrap();
    let in_transaction = db.transaction(|mut tx| async move {
        sqlx::query_scalar::<_, i32>("SELECT 2")
            .fetch_one(&mut tx)
            .await
    });
    assert_eq!(in_transaction.await.unwrap(), 2);
}

#[tokio::test]
async fn sqlx_alone_fails_on_what_it_remembers_for_ever() {
    let Some(server) = &*SERVER else { return };
    let pool = single(server);
    sqlx::raw_sql("CREATE TABLE bare (id int); INSERT INTO bare VALUES (1)")
        .execute(&pool)
        .await
        .unwrap();
    let select = || sqlx::query("SELECT * FROM bare").fetch_one(&pool);
    select().await.unwrap();
    sqlx::raw_sql("ALTER TABLE bare ADD COLUMN more int")
        .execute(&pool)
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(code(select().await.unwrap_err()), "0A000");
    }
    sqlx::raw_sql("DEALLOCATE ALL")
        .execute(&pool)
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(code(select().await.unwrap_err()), "26000");
    }
}

#[tokio::test]
async fn recycling_replaces_what_is_idle_at_once_and_what_is_in_use_when_it_comes_back() {
    let Some(server) = &*SERVER else { return };
    let db = PgDb::new(pool(server));
    let pid = async |db: &PgDb| {
        let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(db).await;
        row.unwrap().get::<i32, _>(0)
    };
    let mut held = db.acquire().await.unwrap();
    let row = sqlx::raw_sql("SELECT pg_backend_pid()")
        .fetch_one(&mut held)
        .await;
    let in_use: i32 = row.unwrap().get(0);
    let idle = pid(&db).await;
    assert_ne!(in_use, idle);
    db.recycle().await;
    let new = pid(&db).await;
    assert_ne!(new, idle);
    // What is held goes on.
    sqlx::query("SELECT 1").execute(&mut held).await.unwrap();
    drop(held);
    sleep(Duration::from_millis(100)).await;
    let mut other = server.connect().await;
    let old: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE pid IN ($1, $2)")
            .bind(in_use)
            .bind(idle)
            .fetch_one(&mut other)
            .await
            .unwrap();
    assert_eq!(old, 0);
    assert_eq!(pid(&db).await, new, "what is new is kept");
}

/// Everything that was told of leases.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(&'static str, LeaseReport)>>>);

impl Observer for Told {
    fn on_event(&self, event: &Event<'_>) {
        let told = match event {
            Event::Leak { lease, .. } => ("leak", (*lease).clone()),
            Event::LeakReturned { lease, .. } => ("returned", (*lease).clone()),
            Event::IdleInTransaction { lease, .. } => ("idle", (*lease).clone()),
            _ => return,
        };
        self.0.lock().unwrap().push(told);
    }
}

impl Told {
    fn of(&self, what: &str) -> Vec<LeaseReport> {
        let told = self.0.lock().unwrap();
        told.iter()
            .filter(|told| told.0 == what)
            .map(|told| told.1.clone())
            .collect()
    }

    fn only(&self, what: &str) -> LeaseReport {
        let mut of = self.of(what);
        assert_eq!(of.len(), 1, "{what}: {of:#?}");
        of.remove(0)
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|told| told.0).collect()
    }
}

fn on_sqlite(told: &Told) -> SqliteDb {
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .connect_lazy("sqlite::memory:")
        .unwrap();
    let db = SqliteDb::builder(pool)
        .leak_after(LEAK_AFTER)
        .observer(told.clone());
    db.build().unwrap()
}

fn pool(server: &Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(server.options())
}

/// Its only connection remembers what was done on it.
fn single(server: &Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(server.options())
}

fn code(error: sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.unwrap_or_else(|| panic!("{error:?}")).into_owned()
}

const LEAK_AFTER: Duration = Duration::from_millis(100);

/// So long that whoever looks after leaks has looked twice.
const LONG: Duration = Duration::from_millis(600);
