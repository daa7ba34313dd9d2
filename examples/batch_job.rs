//! A job in the background that may be killed at any moment: it goes on where it stopped, and does nothing twice.
//!
//! It adds up 20,000 readings by meter, 500 at a time. Each chunk is one transaction, in which the row with the job's progress is written, too: either both
//! are done or none. So the job is simply started again, whatever has happened. Here it is killed again and again, wherever it is.
//!
//! [`Preset::batch`] waits while the database is away, be it for a restart or for a failover. A chunk that has waited or run for longer than its deadline
//! ends the job with an error, for whoever starts it again.
//!
//! It uses a temporary SQLite file, or the database in `DATABASE_URL`, where it makes three tables and removes them when it is done:
//! `DATABASE_URL=postgres://postgres@localhost/postgres`
//!
//! Run it: `cargo run --example batch_job --features postgres,sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres", "sqlite"] }
//! sqlx = { version = "0.9", default-features = false, features = ["runtime-tokio", "postgres", "sqlite"] }
//! tempfile = "3"
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "a real database, a real clock")]

use std::{env, error, ops::ControlFlow, time::Duration};

use sqlx::{ColumnIndex, Decode, Encode, IntoArguments, Postgres, Sqlite, Type};
use steadfast::db::{Config, Db, Driver, Preset};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    match env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => {
            work(config(url).connect::<Postgres>().await?).await?
        }
        Ok(url) => work(config(url).connect::<Sqlite>().await?).await?,
        Err(_) => {
            let folder = tempfile::tempdir()?;
            let file = folder.path().join("readings.db");
            let url = format!("sqlite://{}?mode=rwc", file.display());
            work(config(url).connect::<Sqlite>().await?).await?;
        }
    }
    Ok(())
}

pub(crate) fn config(url: String) -> Config {
    let preset = Preset::batch()
        .pool_size(2)
        // A chunk takes milliseconds. This is what is wrong with the database at most before somebody is to hear of it.
        .statement(Duration::from_secs(20))
        .lock(Duration::from_secs(10))
        .deadline(Duration::from_secs(60));
    Config::new(url).preset(preset).name("batch")
}

/// Runs the job, kills it, and runs it again until it is done.
pub(crate) async fn work<DB: Store>(db: Db<DB>) -> Result<(), sqlx::Error>
where
    i64: Value<DB>,
    usize: ColumnIndex<DB::Row>,
{
    prepare(&db).await?;
    let mut patience = Duration::from_millis(10);
    let mut killed = 0;
    loop {
        // What is dropped at its end may be in the middle of anything.
        match timeout(patience, job(&db)).await {
            Ok(result) => break result?,
            Err(_) => killed += 1,
        }
        println!(
            "killed after {patience:?}: {} readings are added up",
            progress(&db).await?
        );
        patience *= 2;
    }
    let added: i64 = sqlx::query_scalar("SELECT CAST(sum(amount) AS bigint) FROM batch_total")
        .fetch_one(db.idempotent())
        .await?;
    println!(
        "done: killed {killed} times, {} readings add up to {added}",
        progress(&db).await?
    );
    assert_eq!(added, (1..=READINGS).sum::<i64>(), "each counts once");
    // What can be done twice says so: an answer that is lost costs nothing then.
    for table in [
        "DROP TABLE IF EXISTS batch_reading",
        "DROP TABLE IF EXISTS batch_total",
        "DROP TABLE IF EXISTS batch_job",
    ] {
        sqlx::query(table).execute(db.idempotent()).await?;
    }
    db.close().await;
    Ok(())
}

/// The job: from where it stopped to the end.
async fn job<DB: Store>(db: &Db<DB>) -> Result<(), sqlx::Error>
where
    i64: Value<DB>,
    usize: ColumnIndex<DB::Row>,
{
    while chunk(db).await?.is_continue() {}
    Ok(())
}

/// Adds up the next readings, if there are more.
async fn chunk<DB: Store>(db: &Db<DB>) -> Result<ControlFlow<()>, sqlx::Error>
where
    i64: Value<DB>,
    usize: ColumnIndex<DB::Row>,
{
    db.transaction(|mut tx| async move {
        // Whoever writes the row has it: should the job run twice at once, the other one waits here.
        let done: i64 = sqlx::query_scalar("UPDATE batch_job SET done = done RETURNING done")
            .fetch_one(&mut tx)
            .await?;
        let last: Option<i64> = sqlx::query_scalar(
            "SELECT max(id) FROM (SELECT id FROM batch_reading WHERE id > $1 ORDER BY id LIMIT $2) AS chunk",
        )
        .bind(done)
        .bind(CHUNK)
        .fetch_one(&mut tx)
        .await?;
        let Some(last) = last else {
            return Ok(ControlFlow::Break(()));
        };
        sqlx::query(
            "INSERT INTO batch_total (meter, amount) \
             SELECT meter, sum(amount) FROM batch_reading WHERE id > $1 AND id <= $2 GROUP BY meter \
             ON CONFLICT (meter) DO UPDATE SET amount = batch_total.amount + excluded.amount",
        )
        .bind(done)
        .bind(last)
        .execute(&mut tx)
        .await?;
        sqlx::query("UPDATE batch_job SET done = $1")
            .bind(last)
            .execute(&mut tx)
            .await?;
        Ok::<_, sqlx::Error>(ControlFlow::Continue(()))
    })
    .await
}

/// Makes tables and readings, unless they are there.
async fn prepare<DB: Store>(db: &Db<DB>) -> Result<(), sqlx::Error>
where
    i64: Value<DB>,
{
    db.transaction(|mut tx| async move {
        for table in [
            "CREATE TABLE IF NOT EXISTS batch_reading \
             (id bigint PRIMARY KEY, meter bigint NOT NULL, amount bigint NOT NULL)",
            "CREATE TABLE IF NOT EXISTS batch_total (meter bigint PRIMARY KEY, amount bigint NOT NULL)",
            "CREATE TABLE IF NOT EXISTS batch_job (id bigint PRIMARY KEY, done bigint NOT NULL)",
            "INSERT INTO batch_job (id, done) VALUES (1, 0) ON CONFLICT DO NOTHING",
        ] {
            sqlx::query(table).execute(&mut tx).await?;
        }
        sqlx::query(
            "INSERT INTO batch_reading (id, meter, amount) \
             WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < $1) \
             SELECT n, n % 50, n FROM number WHERE true ON CONFLICT DO NOTHING",
        )
        .bind(READINGS)
        .execute(&mut tx)
        .await?;
        Ok(())
    })
    .await
}

/// How many readings are added up.
async fn progress<DB: Store>(db: &Db<DB>) -> Result<i64, sqlx::Error>
where
    i64: Value<DB>,
    usize: ColumnIndex<DB::Row>,
{
    sqlx::query_scalar("SELECT done FROM batch_job")
        .fetch_one(db.idempotent())
        .await
}

const READINGS: i64 = 20_000;

/// So many at a time: little is lost with a chunk that is killed, and the row of progress is not written too often.
const CHUNK: i64 = 500;

/// What the job needs of a database: sqlx spells it out where the database is not named.
pub(crate) trait Store: Driver<Arguments: IntoArguments<Self>> {}

impl<DB: Driver<Arguments: IntoArguments<Self>>> Store for DB {}

pub(crate) trait Value<DB: Driver>:
    Type<DB> + for<'a> Encode<'a, DB> + for<'a> Decode<'a, DB>
{
}

impl<T, DB: Driver> Value<DB> for T where
    T: Type<DB> + for<'a> Encode<'a, DB> + for<'a> Decode<'a, DB>
{
}
