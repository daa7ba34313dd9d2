//! The settings that a config sends are those that real servers then have.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/server.rs"]
mod server;

use std::{
    env,
    io::{Write, stdout},
    process::Command,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Executor, MySql, MySqlPool, PgPool, Postgres, Sqlite, SqlitePool,
    mysql::MySqlDatabaseError,
};
use steadfast::db::{Config, PoolerMode, Preset};
use tempfile::tempdir;
use tokio::time::{sleep, timeout};

use crate::server::{mariadb::MariaDb, postgres};

const MS: Duration = Duration::from_millis(1);

#[tokio::test]
async fn postgres_has_the_settings_of_the_preset() {
    let Some(server) = postgres::Postgres::start() else {
        return;
    };
    for (preset, expected) in [
        (Preset::web(), ["10s", "2s", "1min", "100ms"]),
        (
            Preset::batch().check_interval(None),
            ["10min", "30s", "5min", "0"],
        ),
        (
            Preset::web()
                .lock(1_500 * MS)
                .statement(2_500 * MS)
                .check_interval(250 * MS),
            ["2500ms", "1500ms", "1min", "250ms"],
        ),
    ] {
        let pool = of_postgres(&postgres_config(&server).preset(preset).name("shop"));
        let names = [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "client_connection_check_interval",
        ];
        for (name, expected) in names.into_iter().zip(expected) {
            assert_eq!(show(&pool, name).await, expected, "{name}");
        }
        assert_eq!(show(&pool, "tcp_keepalives_idle").await, "60");
        assert_eq!(show(&pool, "tcp_keepalives_interval").await, "10");
        assert_eq!(show(&pool, "tcp_keepalives_count").await, "3");
        assert_eq!(show(&pool, "application_name").await, "shop");
        pool.close().await;
    }
}

#[tokio::test]
async fn behind_a_pooler_postgres_has_its_own_settings() {
    let Some(server) = postgres::Postgres::start() else {
        return;
    };
    for mode in [
        PoolerMode::TransactionWithPrepared,
        PoolerMode::TransactionPlain,
    ] {
        let pool = of_postgres(&postgres_config(&server).pooler(mode));
        assert_eq!(show(&pool, "statement_timeout").await, "0");
        assert_eq!(show(&pool, "client_connection_check_interval").await, "0");
        assert_eq!(show(&pool, "application_name").await, "steadfast");
        pool.close().await;
    }
}

#[tokio::test]
async fn postgres_ends_what_takes_longer_than_a_statement_may() {
    let Some(server) = postgres::Postgres::start() else {
        return;
    };
    let preset = Preset::web().statement(50 * MS).lock(20 * MS);
    let pool = of_postgres(&postgres_config(&server).preset(preset));
    let slow = timeout(10_000 * MS, pool.execute("SELECT pg_sleep(60)")).await;
    assert_eq!(code(slow.expect("it is ended").unwrap_err()), "57014");

    pool.execute("CREATE TABLE item ()").await.unwrap();
    let mut holder = pool.begin().await.unwrap();
    holder.execute("LOCK TABLE item").await.unwrap();
    let locked = sqlx::query("SELECT * FROM item").execute(&pool).await;
    assert_eq!(code(locked.unwrap_err()), "55P03");
}

#[tokio::test]
async fn mariadb_has_the_settings_of_the_preset() {
    let Some(server) = MariaDb::start() else {
        return;
    };
    for (preset, expected) in [
        (Preset::web(), (2, 2, 10.0, 60)),
        (Preset::batch(), (30, 30, 600.0, 300)),
        (
            Preset::web().statement(2_500 * MS).lock(1_200 * MS),
            (2, 2, 2.5, 60),
        ),
    ] {
        let pool = of_mariadb(&mariadb_config(&server).preset(preset));
        assert_eq!(mariadb_settings(&pool).await, expected);
        pool.close().await;
    }
    let pool = of_mariadb(&mariadb_config(&server).pooler(PoolerMode::TransactionPlain));
    assert_eq!(mariadb_settings(&pool).await, (50, 86_400, 0.0, 0));
}

#[tokio::test]
async fn mariadb_ends_what_takes_longer_than_a_statement_may() {
    let Some(server) = MariaDb::start() else {
        return;
    };
    let preset = Preset::web().statement(50 * MS).lock(20 * MS);
    let pool = of_mariadb(&mariadb_config(&server).preset(preset));
    // `SLEEP` is woken by it and says so as a 1; this is ended.
    let slow = "SELECT COUNT(*) FROM seq_1_to_1000000 a, seq_1_to_1000000 b";
    let slow = timeout(10_000 * MS, pool.execute(slow)).await;
    let error = slow.expect("it is ended").unwrap_err();
    let error = error.into_database_error().expect("the server's own");
    assert_eq!(error.downcast_ref::<MySqlDatabaseError>().number(), 1969);
}

#[tokio::test]
async fn sqlite_waits_for_a_lock_as_long_as_the_preset_says() {
    let folder = tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("a.db").display());
    let config = Config::new(url).preset(Preset::web().lock(1_234 * MS));
    let options = config.connect_options::<Sqlite>().unwrap();
    let pool: SqlitePool = config
        .pool_options::<Sqlite>()
        .unwrap()
        .connect_lazy_with(options);
    let timeout: i64 = sqlx::query_scalar("PRAGMA busy_timeout")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(timeout, 1_234);
    let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(keys, 1);
}

#[tokio::test]
async fn a_connection_is_replaced_in_the_last_tenth_of_its_time() {
    let Some(server) = postgres::Postgres::start() else {
        return;
    };
    for (recycle, replaces) in [(Duration::from_secs(3_600), false), (1_000 * MS, true)] {
        let preset = Preset::web().pool_size(1).recycle(recycle);
        let pool = of_postgres(&postgres_config(&server).preset(preset));
        let first = backend(&pool).await;
        sleep(950 * MS).await;
        assert_eq!(backend(&pool).await != first, replaces, "{recycle:?}");
        pool.close().await;
    }
}

/// A process can't safely change its own, so a child of it reads what it was given.
#[test]
fn the_environment_of_the_process_is_read() {
    if env::var_os("STEADFAST_READS").is_some() {
        let options = Config::from_env().unwrap().pool_options::<Sqlite>();
        // Not `println!`, which a test's output may be taken from.
        writeln!(stdout(), "of {}", options.unwrap().get_max_connections()).unwrap();
        return;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "the_environment_of_the_process_is_read"]);
    child.env("STEADFAST_READS", "1");
    child.env("DATABASE_URL", "sqlite://shop.db");
    child.env("DB_POOL_SIZE", "7").env("DB_MAX_OVERFLOW", "2");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("of 9"), "{said}");
}

fn postgres_config(server: &postgres::Postgres) -> Config {
    let port = server.port();
    Config::new(format!(
        "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    ))
}

fn of_postgres(config: &Config) -> PgPool {
    let options = config.connect_options::<Postgres>().unwrap();
    config
        .pool_options::<Postgres>()
        .unwrap()
        .connect_lazy_with(options)
}

async fn show(pool: &PgPool, name: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(format!("SHOW {name}")))
        .fetch_one(pool)
        .await
        .unwrap()
}

async fn backend(pool: &PgPool) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(pool)
        .await
        .unwrap()
}

fn code(error: sqlx::Error) -> String {
    let error = error.into_database_error().expect("the server's own");
    error.code().expect("a SQLSTATE").into_owned()
}

fn mariadb_config(server: &MariaDb) -> Config {
    let port = server.port();
    Config::new(format!(
        "mariadb://root@127.0.0.1:{port}/test?ssl-mode=disabled"
    ))
}

fn of_mariadb(config: &Config) -> MySqlPool {
    let options = config.connect_options::<MySql>().unwrap();
    config
        .pool_options::<MySql>()
        .unwrap()
        .connect_lazy_with(options)
}

/// For a row's lock and a table's, a statement, and an idle transaction.
async fn mariadb_settings(pool: &MySqlPool) -> (u64, u64, f64, u64) {
    sqlx::query_as(
        "SELECT @@innodb_lock_wait_timeout, CAST(@@lock_wait_timeout AS UNSIGNED), CAST(@@max_statement_time AS DOUBLE), @@idle_transaction_timeout",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}
