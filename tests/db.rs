//! `Db` on the three databases: every form of call, and what becomes of connections.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use sqlx::{Executor, QueryBuilder, Row, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use steadfast::db::{PgDb, SqliteDb};

use crate::{proxy::Proxy, server::postgres::Postgres};

async fn generic<'e, E: Executor<'e, Database = sqlx::Postgres>>(
    executor: E,
) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("SELECT 5").fetch_one(executor).await
}

#[tokio::test]
async fn every_form_of_call_works_on_postgresql() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pool = PgPoolOptions::new()
        .max_connections(3)
        .connect_lazy_with(server.options());
    let db = PgDb::new(pool);
    sqlx::raw_sql(
        "CREATE TABLE t (id int primary key, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    )
    .execute(&db)
    .await?;
    assert_eq!(
        sqlx::query("SELECT v FROM t WHERE id = $1")
            .bind(2)
            .fetch_one(&db)
            .await?
            .get::<String, _>(0),
        "b"
    );
    let all: Vec<(i32, String)> = sqlx::query_as("SELECT id, v FROM t ORDER BY id")
        .fetch_all(db.idempotent())
        .await?;
    assert_eq!(all.len(), 2);
    let rows: Vec<i32> = sqlx::query_scalar::<_, i32>("SELECT g FROM generate_series(1, 1000) g")
        .fetch(&db)
        .try_collect()
        .await?;
    assert_eq!(rows.len(), 1000);
    let mut builder = QueryBuilder::new("INSERT INTO t (id, v) ");
    builder.push_values([(3, "c"), (4, "d")], |mut row, (id, v)| {
        row.push_bind(id).push_bind(v);
    });
    assert_eq!(
        builder.build().execute(&db.once()).await?.rows_affected(),
        2
    );
    assert_eq!(generic(&db).await?, 5);
    let spawned = {
        let db = db.clone();
        tokio::spawn(async move {
            let by = 7;
            let by = &by;
            db.transaction(|mut tx| async move {
                sqlx::query("UPDATE t SET v = v || $1::text WHERE id = 1")
                    .bind(*by)
                    .execute(&mut tx)
                    .await?;
                Ok::<_, sqlx::Error>(())
            })
            .await
        })
    };
    spawned.await.unwrap()?;
    let v: String = sqlx::query_scalar("SELECT v FROM t WHERE id = 1")
        .fetch_one(&db)
        .await?;
    assert_eq!(v, "a7");
    let n: i64 = db
        .call(|mut conn| async move {
            sqlx::query("SET work_mem = '5MB'")
                .execute(&mut *conn)
                .await?;
            sqlx::query_scalar("SELECT count(*) FROM t")
                .fetch_one(&mut *conn)
                .await
        })
        .await?;
    assert_eq!(n, 4);
    let mut tx = db.begin().await?;
    sqlx::query("DELETE FROM t").execute(&mut tx).await?;
    {
        let mut point = tx.savepoint().await?;
        sqlx::query("SELECT 1 / 0")
            .execute(&mut point)
            .await
            .unwrap_err();
    }
    tx.commit().await?;
    assert_eq!(
        sqlx::query("SELECT 1 FROM t").fetch_all(&db).await?.len(),
        0
    );
    println!("{}", db.stats());
    db.close().await;
    Ok(())
}

#[tokio::test]
async fn every_form_of_call_works_on_sqlite() -> Result<(), sqlx::Error> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect("sqlite::memory:")
        .await?;
    let db = SqliteDb::new(pool);
    sqlx::raw_sql(
        "CREATE TABLE t (id int primary key, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    )
    .execute(&db)
    .await?;
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&db)
        .await?;
    assert_eq!(n, 2);
    let started = Instant::now();
    let slow = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000000) SELECT max(n) FROM c";
    let cut =
        tokio::time::timeout(Duration::from_millis(100), sqlx::query(slow).fetch_one(&db)).await;
    assert!(cut.is_err());
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&db)
        .await?;
    assert_eq!(n, 2);
    assert!(
        started.elapsed() < Duration::from_millis(400),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_call_takes_one_round_trip_where_a_plain_pool_takes_three() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let proxy = Proxy::start(server.port()).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(server.options().port(proxy.port()));
    let db = PgDb::new(pool.clone());
    let calls = 50;
    sqlx::query("SELECT 1").execute(&db).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.take_counts();
    for _ in 0..calls {
        sqlx::query("SELECT 1").execute(&db).await?;
    }
    let ours = proxy.take_counts();
    db.recycle().await;
    sqlx::query("SELECT 1").execute(&pool).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.take_counts();
    for _ in 0..calls {
        sqlx::query("SELECT 1").execute(&pool).await?;
        // The ping that follows on the release.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let plain = proxy.take_counts();
    assert_eq!((ours.connections, ours.round_trips), (0, calls), "{ours:?}");
    assert!(plain.round_trips >= 3 * calls, "{plain:?}");
    Ok(())
}

/// What the macros need to know of these queries lies in `.sqlx`.
#[tokio::test]
async fn the_macros_work() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let db = PgDb::new(PgPoolOptions::new().connect_lazy_with(server.options()));
    let row = sqlx::query!("SELECT 1 + $1::int4 AS sum", 4)
        .fetch_one(&db)
        .await?;
    assert_eq!(row.sum, Some(5));
    let sums = db.transaction(|mut tx| async move {
        sqlx::query_scalar!("SELECT 1 + $1::int4 AS sum", 5)
            .fetch_all(&mut tx)
            .await
    });
    assert_eq!(sums.await?, [Some(6)]);
    Ok(())
}
