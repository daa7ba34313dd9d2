//! Money between few accounts, by many at once: every transfer is serializable, and rivals are repeated.
//!
//! Twenty tasks move random amounts between four accounts. On a database whose isolation makes rivals fail, each failure is repeated as a whole; none is lost, and none is
//! done twice. A transfer that would overdraw an account is the user's own error: it is rolled back and not repeated.
//!
//! It runs on a SQLite file of its own. With `DATABASE_URL` it runs on that PostgreSQL: `docker run --rm -e POSTGRES_HOST_AUTH_METHOD=trust -p 5432:5432 postgres` starts one.
//!
//! Run it: `cargo run --example transfer --features postgres,sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres", "sqlite"] }
//! fastrand = "2"
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio", "sqlite"] }
//! tempfile = "3"
//! thiserror = "2"
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```

use std::{
    env, error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use steadfast::{
    Event, Kind, Observer,
    db::{Config, Isolation, PgDb, Preset, SqliteDb, TransactionOptions},
};
use tokio::task::JoinSet;

const ACCOUNTS: i64 = 4;
const OPENING: i64 = 1_000;
const TASKS: u64 = 20;
const TRANSFERS: u64 = 25;

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let rivals = Rivals::default();
    let preset = Preset::web()
        .lock(Duration::from_secs(5))
        .deadline(Duration::from_secs(60));
    let tally = match env::var("DATABASE_URL") {
        Ok(url) => {
            let db: PgDb = Config::new(url)
                .preset(preset)
                .builder()?
                .attempts(20)
                .observer(rivals.clone())
                .build()?;
            postgres::run(db).await?
        }
        Err(_) => {
            let folder = tempfile::tempdir()?;
            let options = SqliteConnectOptions::new()
                .filename(folder.path().join("bank.sqlite"))
                .journal_mode(SqliteJournalMode::Wal)
                .busy_timeout(Duration::from_millis(20))
                .create_if_missing(true);
            let pool = SqlitePoolOptions::new()
                .max_connections(8)
                .connect_with(options)
                .await?;
            let db = SqliteDb::builder(pool)
                .preset(preset)
                .attempts(20)
                .observer(rivals.clone())
                .build()?;
            sqlite::run(db).await?
        }
    };
    println!(
        "result: done={} overdrawn={} failed={} rivals={} total={}",
        tally.done,
        tally.overdrawn,
        tally.failed,
        rivals.0.load(Ordering::Relaxed),
        tally.total
    );
    if tally.total != ACCOUNTS * OPENING
        || tally.done + tally.overdrawn + tally.failed != TASKS * TRANSFERS
    {
        return Err("money was made or lost".into());
    }
    Ok(())
}

/// What a transfer can fail with.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("account {0} has too little")]
    Overdrawn(i64),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

#[derive(Default)]
struct Tally {
    done: u64,
    overdrawn: u64,
    failed: u64,
    total: i64,
}

/// How often somebody was faster.
#[derive(Clone, Default)]
struct Rivals(Arc<AtomicU64>);

impl Observer for Rivals {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Retry {
            kind: Kind::Conflict,
            ..
        } = event
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The same code for both databases, whose placeholders look alike.
macro_rules! bank {
    ($name:ident, $db:ty) => {
        mod $name {
            use super::*;

            pub async fn run(db: $db) -> Result<Tally, Box<dyn error::Error>> {
                sqlx::query("DROP TABLE IF EXISTS bank_account")
                    .execute(&db)
                    .await?;
                sqlx::query(
                    "CREATE TABLE bank_account (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL)",
                )
                .execute(&db)
                .await?;
                for id in 0..ACCOUNTS {
                    sqlx::query("INSERT INTO bank_account VALUES ($1, $2)")
                        .bind(id)
                        .bind(OPENING)
                        .execute(&db)
                        .await?;
                }
                let mut tasks = JoinSet::new();
                for _ in 0..TASKS {
                    let db = db.clone();
                    tasks.spawn(async move {
                        let mut tally = Tally::default();
                        for _ in 0..TRANSFERS {
                            let from = fastrand::i64(0..ACCOUNTS);
                            let to = (from + fastrand::i64(1..ACCOUNTS)) % ACCOUNTS;
                            match transfer(&db, from, to, fastrand::i64(1..400)).await {
                                Ok(()) => tally.done += 1,
                                Err(TransferError::Overdrawn(_)) => tally.overdrawn += 1,
                                Err(TransferError::Database(error)) => {
                                    eprintln!("{error}");
                                    tally.failed += 1;
                                }
                            }
                        }
                        tally
                    });
                }
                let mut total = Tally::default();
                while let Some(tally) = tasks.join_next().await {
                    let tally = tally?;
                    total.done += tally.done;
                    total.overdrawn += tally.overdrawn;
                    total.failed += tally.failed;
                }
                total.total =
                    sqlx::query_scalar("SELECT CAST(sum(balance) AS BIGINT) FROM bank_account")
                        .fetch_one(db.idempotent())
                        .await?;
                sqlx::query("DROP TABLE bank_account").execute(&db).await?;
                Ok(total)
            }

            async fn transfer(
                db: &$db,
                from: i64,
                to: i64,
                amount: i64,
            ) -> Result<(), TransferError> {
                let options = TransactionOptions::new().isolation(Isolation::Serializable);
                db.transaction_with(options, |mut tx| async move {
                    let balance: i64 =
                        sqlx::query_scalar("SELECT balance FROM bank_account WHERE id = $1")
                            .bind(from)
                            .fetch_one(&mut tx)
                            .await?;
                    if balance < amount {
                        // Ours, and not the database's: rolled back, and not repeated.
                        return Err(TransferError::Overdrawn(from));
                    }
                    for (id, change) in [(from, -amount), (to, amount)] {
                        sqlx::query("UPDATE bank_account SET balance = balance + $1 WHERE id = $2")
                            .bind(change)
                            .bind(id)
                            .execute(&mut tx)
                            .await?;
                    }
                    Ok(())
                })
                .await
            }
        }
    };
}

bank!(postgres, PgDb);
bank!(sqlite, SqliteDb);
