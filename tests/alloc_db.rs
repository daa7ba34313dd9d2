//! What a statement through `Db` allocates beside the same one through sqlx's pool, on both databases and in a transaction. Row E4 of the lessons.
//!
//! The counter replaces the allocator of this one test binary, and counts for each thread by itself: all of it runs on one.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/server.rs"]
mod server;

use allocation_counter::measure;
use server::postgres::Postgres;
use sqlx::{PgPool, SqlitePool, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use steadfast::db::{PgDb, SqliteDb};
use tokio::runtime::{Builder, Runtime};

/// Enough for whatever is bought once for many calls to be paid for.
const WARM_UP: usize = 100;

const CALLS: usize = 200;

/// Allocations of each of so many calls.
fn per_call(runtime: &Runtime, mut call: impl AsyncFnMut()) -> f64 {
    let mut calls = |count| {
        runtime.block_on(async {
            for _ in 0..count {
                call().await;
            }
        });
    };
    calls(WARM_UP);
    measure(|| calls(CALLS)).count_total as f64 / CALLS as f64
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_statement_on_sqlite_allocates_no_more_than_by_the_pool_alone() {
    let runtime = runtime();
    let pool: SqlitePool = runtime
        .block_on(
            SqlitePoolOptions::new()
                .max_connections(1)
                .connect("sqlite::memory:"),
        )
        .unwrap();
    let alone = per_call(&runtime, async || {
        sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
    });
    let db = SqliteDb::new(pool.clone());
    let guarded = per_call(&runtime, async || {
        sqlx::query("SELECT 1").fetch_one(&db).await.unwrap();
    });
    assert!(
        guarded <= alone,
        "{guarded} a call, {alone} by the pool alone"
    );
}

#[test]
fn a_statement_on_postgresql_allocates_no_more_than_by_the_pool_alone() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let runtime = runtime();
    let pool: PgPool = runtime
        .block_on(
            PgPoolOptions::new()
                .max_connections(1)
                .connect_with(server.options()),
        )
        .unwrap();
    let alone = per_call(&runtime, async || {
        sqlx::query("SELECT 1").fetch_one(&pool).await.unwrap();
    });
    let in_transaction = per_call(&runtime, async || {
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("SELECT 1").fetch_one(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    });
    let db = PgDb::new(pool.clone());
    let guarded = per_call(&runtime, async || {
        sqlx::query("SELECT 1").fetch_one(&db).await.unwrap();
    });
    let guarded_transaction = per_call(&runtime, async || {
        db.transaction(|mut tx| async move {
            sqlx::query("SELECT 1").fetch_one(&mut tx).await.map(drop)
        })
        .await
        .unwrap();
    });
    assert!(
        guarded <= alone,
        "{guarded} a call, {alone} by the pool alone"
    );
    // Its number is asked for, its limits are set, and what it may have to repeat is kept: 42 more when this was written.
    let more = guarded_transaction - in_transaction;
    assert!(more <= 46.0, "{more} more in a transaction");
}
