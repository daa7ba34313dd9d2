//! From a pool to a database that survives: one line, and `&db` where `&pool` stood.
//!
//! It reads `DATABASE_URL`. A server to try it with: `docker run --rm -e POSTGRES_HOST_AUTH_METHOD=trust -p 5432:5432 postgres`; restart it meanwhile.
//!
//! Run it: `cargo run --example postgres_pool --features postgres`, with `DATABASE_URL=postgres://postgres@localhost/postgres` before it.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio"] }
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "it shows what comes when")]

use std::{env, process::ExitCode, time::Duration};

use sqlx::{PgExecutor, postgres::PgPoolOptions};
use steadfast::{Rejected, db::PgDb};
use tokio::time::{Instant, sleep};

#[tokio::main]
async fn main() -> Result<ExitCode, sqlx::Error> {
    let Ok(url) = env::var("DATABASE_URL") else {
        eprintln!("DATABASE_URL is not set. The head of this file says how to start a server.");
        return Ok(ExitCode::from(2));
    };
    let pool = PgPoolOptions::new()
        .max_connections(5)
        .acquire_timeout(Duration::from_secs(3))
        .connect_lazy(&url)?;

    // Before: every restart of the server is an error in every call under way.
    println!("with &pool: {}", greeting(&pool).await?);

    // After: this line, and `&db` in place of `&pool`.
    let db = PgDb::new(pool);
    println!("with &db: {}", greeting(&db).await?);

    // Code that is generic over executors takes either. Closures run as a whole, and are run again where a rival won or the connection was lost.
    let sum: i64 = db
        .transaction(|mut tx| async move {
            sqlx::query("CREATE TEMPORARY TABLE item (price bigint) ON COMMIT DROP")
                .execute(&mut tx)
                .await?;
            for price in [3_i64, 4] {
                let insert = sqlx::query("INSERT INTO item VALUES ($1)").bind(price);
                insert.execute(&mut tx).await?;
            }
            let sum = sqlx::query_scalar("SELECT sum(price)::bigint FROM item");
            sum.fetch_one(&mut tx).await
        })
        .await?;
    assert_eq!(sum, 7);

    // A read may be repeated even where nobody knows what became of it.
    let reads = db.idempotent();
    let start = Instant::now();
    for second in 1..=5 {
        let call = Instant::now();
        match greeting(&reads).await {
            Ok(_) => println!("{second}: answered after {:.1?}", call.elapsed()),
            Err(error) if Rejected::of(&error).is_some() => println!("{second}: not sent, {error}"),
            Err(error) => println!("{second}: {error}"),
        }
        sleep(Duration::from_secs(second).saturating_sub(start.elapsed())).await;
    }
    println!("{}", db.stats());
    db.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn greeting(executor: impl PgExecutor<'_>) -> Result<String, sqlx::Error> {
    let greeting = sqlx::query_scalar("SELECT 'hello from ' || current_database()");
    greeting.fetch_one(executor).await
}
