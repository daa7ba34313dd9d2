//! What must not be told: passwords of URLs, and the values that are bound to statements.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

use std::{
    io::{self, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::{Postgres, sqlite::SqlitePoolOptions};
use steadfast::{
    Event, Observer,
    db::{Config, Db, Driver, PgDb, PoolFull, PoolerMode, Preset, SqliteDb, TransactionError},
    event::Tracing,
};
use tokio::time::sleep;
use tracing::subscriber::DefaultGuard;

const SECRET: &str = "hunter2";

#[tokio::test]
async fn a_value_that_is_bound_to_a_statement_is_in_no_report() {
    let (told, _listens) = Told::listen();
    let pool = SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let db = SqliteDb::builder(pool.clone())
        .preset(Preset::web().acquire(300 * MS))
        .leak_after(50 * MS)
        .observer((Tracing, told.clone()))
        .build()
        .unwrap();
    let create = "CREATE TABLE account (token TEXT UNIQUE)";
    sqlx::query(create).execute(&db).await.unwrap();
    insert().execute(&db).await.unwrap();
    let twice = insert().execute(&db).await.unwrap_err();
    told.keep(&twice.to_string());

    // One that swallows a failure, and is rolled back for it.
    let swallowed = db.transaction(|mut tx| async move {
        let twice = insert().execute(&mut tx).await;
        drop(twice);
        Ok::<_, sqlx::Error>(())
    });
    if let Err(error) = swallowed.await {
        assert!(TransactionError::of(&error).is_some(), "{error}");
        told.keep(&format!("{error} {error:?}"));
    }

    // One that is kept for too long, and stands in the way of others.
    let mut tx = db.operation("login").begin().await.unwrap();
    let other = "INSERT INTO account (token) VALUES (? || 'x')";
    let other = sqlx::query(other).bind(SECRET);
    other.execute(&mut tx).await.unwrap();
    told.keep(&format!("{tx:?}"));
    sleep(200 * MS).await;
    let refused = insert().execute(&db).await.unwrap_err();
    told.keep(&format!("{refused} {refused:?}"));
    told.keep(&format!("{:?}", db.leases()));
    told.keep(&db.leases()[0].to_string());
    told.numbers(&db);
    tx.rollback().await.unwrap();

    let raw = pool.acquire().await;
    let full = insert().execute(&db.once()).await.unwrap_err();
    assert!(PoolFull::of(&full).is_some(), "{full}");
    told.keep(&format!("{full} {full:?}"));
    drop(raw);

    let text = told.text();
    for expected in ["INSERT INTO account", "connection not given back", "login"] {
        assert!(text.contains(expected), "nobody listened: {text}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn the_password_of_a_url_is_in_no_report() {
    let (told, _listens) = Told::listen();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let preset = Preset::web()
        .acquire(200 * MS)
        .statement(500 * MS)
        .lock(500 * MS);
    let config = Config::new(format!("postgres://app:{SECRET}@127.0.0.1:{port}/shop"))
        .preset(preset)
        .name("shop");
    told.keep(&format!("{config:?}"));
    let error = config.connect::<Postgres>().await.unwrap_err();
    told.keep(&format!("{error} {error:?}"));
    let error = config.connect_lazy::<sqlx::Sqlite>().unwrap_err();
    told.keep(&format!("{error} {error:?}"));

    let behind = config.clone().pooler(PoolerMode::TransactionPlain);
    let builder = behind.builder::<Postgres>().unwrap();
    told.keep(&format!("{builder:?}"));
    let db: PgDb = builder.observer((Tracing, told.clone())).build().unwrap();
    for _ in 0..3 {
        let error = sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
        told.keep(&format!("{error} {error:?}"));
    }
    let error = db.diagnose(Duration::ZERO).await.unwrap_err();
    told.keep(&format!("{error} {error:?}"));
    told.numbers(&db);

    let text = told.text();
    let place = format!("app:***@127.0.0.1:{port}/shop");
    for expected in [&place, "behind a pooler", "will be repeated", "refused"] {
        assert!(text.contains(expected), "nobody listened: {text}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

const MS: Duration = Duration::from_millis(1);

fn insert() -> sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
    sqlx::query("INSERT INTO account (token) VALUES (?)").bind(SECRET)
}

/// All that was said: logged by anybody at any level, handed to the observer, or shown.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Told {
    fn listen() -> (Self, DefaultGuard) {
        let told = Self::default();
        let writer = told.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        (told, tracing::subscriber::set_default(subscriber))
    }

    fn keep(&self, text: &str) {
        let mut told = self.0.lock().unwrap();
        told.extend_from_slice(text.as_bytes());
        told.push(b'\n');
    }

    fn numbers<DB: Driver>(&self, db: &Db<DB>) {
        let (stats, health) = (db.stats(), db.health());
        self.keep(&format!("{db:?} {stats} {stats:?} {health} {health:?}"));
        self.keep(&format!("{:?} {:?}", db.breaker(), db.limiter()));
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Observer for Told {
    fn on_event(&self, event: &Event<'_>) {
        self.keep(&format!("{event:?}"));
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
