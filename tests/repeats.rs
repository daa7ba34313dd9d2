//! What is repeated after which failure, on a real server, and what never is.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{sync::LazyLock, time::Duration};

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, postgres::PgPoolOptions};
use steadfast::db::PgDb;
use tokio::time::sleep;

use crate::proxy::{Fault, Proxy};

static SERVER: LazyLock<Option<server::postgres::Postgres>> =
    LazyLock::new(server::postgres::Postgres::start);

#[tokio::test]
async fn an_insert_whose_answer_was_lost_is_repeated_only_where_it_is_said_to_do_no_harm() {
    let Some(here) = Here::start("answers").await else {
        return;
    };
    let db = &here.db;
    let insert = || sqlx::query("INSERT INTO answers VALUES (1)");
    for (db, repeats) in [
        (db.clone(), false),
        (db.once(), false),
        (db.idempotent(), true),
    ] {
        sqlx::query("DELETE FROM answers")
            .execute(&db)
            .await
            .unwrap();
        // It is prepared now, so that the next answer is that of the statement itself.
        insert().execute(&db).await.unwrap();
        here.proxy.set(Fault::CutReply(0));
        let ended = insert().execute(&db).await;
        assert_eq!(here.proxy.fault(), Fault::Pass, "nothing was cut");
        assert_eq!(ended.is_ok(), repeats, "{ended:?}");
        // The one whose answer was lost is there in any case.
        assert_eq!(here.rows().await, if repeats { 3 } else { 2 });
    }
}

#[tokio::test]
async fn a_statement_whose_backend_was_told_to_stop_is_repeated() {
    let Some(here) = Here::start("stopped").await else {
        return;
    };
    let insert = || sqlx::query("INSERT INTO stopped SELECT 1 FROM pg_sleep(0.4)");
    let (ended, stopped) = tokio::join!(insert().execute(&here.db), here.stop_backend("INSERT%"));
    ended.unwrap();
    assert_eq!((stopped, here.rows().await), (1, 1));

    let once = here.db.once();
    let (ended, stopped) = tokio::join!(insert().execute(&once), here.stop_backend("INSERT%"));
    let error = ended.unwrap_err();
    let code = error.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("57P01"), "{error:?}");
    assert_eq!((stopped, here.rows().await), (1, 1));
}

#[tokio::test]
async fn a_conflict_is_repeated_unless_it_must_not_be() {
    let Some(here) = Here::start("conflicts").await else {
        return;
    };
    // A sequence counts every attempt.
    sqlx::raw_sql(
        "CREATE SEQUENCE tries; CREATE FUNCTION fails(times int) RETURNS bigint LANGUAGE plpgsql AS $$
         DECLARE try bigint := nextval('tries');
         BEGIN IF try <= times THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF; RETURN try; END $$",
    )
    .execute(&here.db)
    .await
    .unwrap();
    let tried: i64 = sqlx::query_scalar("SELECT fails(2)")
        .fetch_one(&here.db)
        .await
        .unwrap();
    assert_eq!(tried, 3);
    sqlx::query_scalar::<_, i64>("SELECT fails(4)")
        .fetch_one(here.db.once())
        .await
        .unwrap_err();
    let tried: i64 = sqlx::query_scalar("SELECT nextval('tries')")
        .fetch_one(&here.db)
        .await
        .unwrap();
    assert_eq!(tried, 5);
}

#[tokio::test]
async fn several_statements_in_one_text_are_repeated_only_where_no_connection_was_had() {
    let Some(here) = Here::start("several").await else {
        return;
    };
    let both = || {
        sqlx::raw_sql(
            "INSERT INTO several VALUES (1); COMMIT; INSERT INTO several SELECT 2 FROM pg_sleep(0.4)",
        )
    };
    let (ended, stopped) = tokio::join!(both().execute(&here.db), here.stop_backend("INSERT%"));
    ended.unwrap_err();
    assert_eq!((stopped, here.rows().await), (1, 1));

    here.db.recycle().await;
    here.proxy.set(Fault::CutRequest(0));
    both().execute(&here.db).await.unwrap();
    assert_eq!(here.proxy.fault(), Fault::Pass, "nothing was cut");
    assert_eq!(here.rows().await, 3);
}

#[tokio::test]
async fn rows_are_fetched_anew_until_the_first_was_delivered_and_not_after_that() {
    let Some(here) = Here::start("fetched").await else {
        return;
    };
    let late = "SELECT g FROM (SELECT pg_sleep(0.4)) s, generate_series(1, 3) g";
    let fetch = sqlx::query_scalar::<_, i32>(late)
        .fetch(&here.db)
        .try_collect::<Vec<_>>();
    let (fetched, stopped) = tokio::join!(fetch, here.stop_backend("SELECT g FROM%"));
    assert_eq!((fetched.unwrap(), stopped), (vec![1, 2, 3], 1));

    // Rows so large that the server can't keep them back.
    let slow =
        "SELECT g, repeat('x', 20000), pg_sleep(0.02) IS NULL FROM generate_series(1, 100) g";
    let mut rows = sqlx::query_as::<_, (i32, String, bool)>(slow).fetch(&here.db);
    let mut delivered = vec![rows.try_next().await.unwrap().unwrap().0];
    assert_eq!(here.stop_backend("SELECT g, repeat%").await, 1);
    let error = loop {
        match rows.try_next().await {
            Ok(Some(row)) => delivered.push(row.0),
            Ok(None) => panic!("all of them: {delivered:?}"),
            Err(error) => break error,
        }
    };
    let code = error.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("57P01"), "{error:?}");
    let expected: Vec<_> = (1..=delivered.len() as i32).collect();
    assert_eq!(delivered, expected, "a row came twice");
}

/// A database behind a proxy, with a table of the test's own.
struct Here {
    db: PgDb,
    proxy: Proxy,
    table: &'static str,
}

impl Here {
    async fn start(table: &'static str) -> Option<Self> {
        let server = SERVER.as_ref()?;
        let proxy = Proxy::start(server.port()).await;
        let options = server.options().port(proxy.port()).application_name(table);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(options);
        let db = PgDb::new(pool);
        let sql = format!("CREATE TABLE {table} (id int)");
        sqlx::query(AssertSqlSafe(sql)).execute(&db).await.unwrap();
        Some(Self { db, proxy, table })
    }

    async fn rows(&self) -> usize {
        let mut direct = SERVER.as_ref().unwrap().connect().await;
        let sql = format!("SELECT 1 FROM {}", self.table);
        sqlx::query(AssertSqlSafe(sql))
            .fetch_all(&mut direct)
            .await
            .unwrap()
            .len()
    }

    /// Ends the backend that runs this, once it does so; how many there were.
    async fn stop_backend(&self, statement: &str) -> usize {
        let mut direct = SERVER.as_ref().unwrap().connect().await;
        for _ in 0..100 {
            let stopped = sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND state = 'active' AND query LIKE $2",
            )
            .bind(self.table)
            .bind(statement)
            .fetch_all(&mut direct)
            .await
            .unwrap();
            if !stopped.is_empty() {
                return stopped.len();
            }
            sleep(Duration::from_millis(10)).await;
        }
        0
    }
}
