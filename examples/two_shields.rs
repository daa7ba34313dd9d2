//! One database, two shields: reads may be done twice, writes may not. They share breaker, limiter and budget.
//!
//! Run it: `cargo run --example two_shields --features sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["sqlite"] }
//! sqlx = { version = "0.9", default-features = false, features = ["runtime-tokio", "sqlite"] }
//! tempfile = "3"
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```

use std::{
    error, io,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use steadfast::{
    Breaker, ConcurrencyLimiter, ConfigError, Kind, Rejected, Retry, Shield,
    classify::{self, Phase},
    retry::Budget,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let folder = tempfile::tempdir()?;
    let notes = Notes::open(&folder.path().join("notes.db")).await?;
    notes.add("buy milk").await?;
    assert_eq!(notes.count().await?, 1);

    // The answer of a read is lost: it is asked again, and nobody notices.
    notes.lose_answers(1);
    assert_eq!(notes.count().await?, 1);
    println!("a read whose answer was lost was repeated");

    // The answer of a write is lost: repeating it might write twice, so the program decides.
    notes.lose_answers(1);
    let error = notes.add("call home").await.unwrap_err();
    let kind = classify::database(&error, Phase::Statement).kind;
    assert_eq!(kind, Kind::Ambiguous);
    assert_eq!(notes.count().await?, 2);
    println!("a write whose answer was lost ({error}) was not repeated, and was done once");

    // One breaker: what the reads find out holds for the writes.
    notes.breaker.force_open();
    let error = notes.add("too late").await.unwrap_err();
    println!("{}", Rejected::of(&error).expect("the circuit is open"));
    Ok(())
}

/// What the rest of the program sees; no pool leaks out of it.
struct Notes {
    pool: SqlitePool,
    breaker: Breaker,
    reads: Shield<classify::Sqlx>,
    writes: Shield<classify::Sqlx>,
    answers_to_lose: AtomicU32,
}

impl Notes {
    async fn open(file: &Path) -> Result<Self, Box<dyn error::Error>> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .connect_with(options)
            .await?;
        sqlx::query("CREATE TABLE note (text TEXT NOT NULL)")
            .execute(&pool)
            .await?;
        let breaker = Breaker::default();
        let [reads, writes] = shields(&breaker)?;
        Ok(Self {
            pool,
            breaker,
            reads,
            writes,
            answers_to_lose: AtomicU32::new(0),
        })
    }

    async fn add(&self, text: &str) -> Result<(), sqlx::Error> {
        let insert = || async {
            let insert = sqlx::query("INSERT INTO note VALUES (?)").bind(text);
            self.answer(insert.execute(&self.pool).await.map(drop))
        };
        self.writes.run(insert).await
    }

    async fn count(&self) -> Result<i64, sqlx::Error> {
        let count = || async {
            let count = sqlx::query_scalar("SELECT COUNT(*) FROM note");
            self.answer(count.fetch_one(&self.pool).await)
        };
        self.reads.run(count).await
    }

    /// As if the network failed behind the next statements.
    fn lose_answers(&self, answers: u32) {
        self.answers_to_lose.store(answers, Ordering::Relaxed);
    }

    fn answer<T>(&self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let left = self.answers_to_lose.load(Ordering::Relaxed);
        if left == 0 {
            return answer;
        }
        self.answers_to_lose.store(left - 1, Ordering::Relaxed);
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

/// The shield of the reads, and that of the writes.
fn shields(breaker: &Breaker) -> Result<[Shield<classify::Sqlx>; 2], ConfigError> {
    // As many calls as there are connections: who waits, waits where its deadline is known.
    let limiter = ConcurrencyLimiter::new(CONNECTIONS as usize)?;
    let budget = Budget::default();
    let shield = |name, idempotent| {
        let retry = Retry::builder().name(name).budget(&budget);
        Shield::builder(classify::Sqlx)
            .name(name)
            .retry(retry.idempotent(idempotent).build()?)
            .breaker(breaker)
            .limiter(&limiter)
            .build()
    };
    Ok([shield("reads", true)?, shield("writes", false)?])
}

const CONNECTIONS: u32 = 5;
