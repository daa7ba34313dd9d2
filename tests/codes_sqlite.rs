//! Errors of a real SQLite database, as `classify::Sqlx` reads them. Each is provoked.
#![cfg(feature = "sqlite")]

use std::{fs, path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use steadfast::{
    Classify, Kind,
    classify::{self, Fate, Phase, Sqlx},
};
use tempfile::TempDir;

#[tokio::test]
async fn a_write_beside_a_writer_is_a_conflict() {
    let (dir, mut rival) = database().await;
    execute(&mut rival, "BEGIN IMMEDIATE").await.unwrap();
    let mut ours = open(options(&dir)).await.unwrap();
    let result = execute(&mut ours, "INSERT INTO item VALUES (1, 'a')").await;
    assert_eq!(code(&result), "5");
    assert_eq!(kind(&result), Kind::Conflict);
}

/// The transaction is still there: the same COMMIT succeeds when the reader is gone.
#[tokio::test]
async fn a_commit_beside_a_reader_is_a_conflict_and_can_be_repeated() {
    let (dir, mut reader) = database().await;
    let mut ours = open(options(&dir)).await.unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    execute(&mut reader, "BEGIN").await.unwrap();
    execute(&mut reader, "SELECT * FROM item").await.unwrap();

    let result = execute(&mut ours, "COMMIT").await;
    assert_eq!(code(&result), "5");
    let verdict = classify::database(result.as_ref().unwrap_err(), Phase::Commit);
    assert_eq!((verdict.kind, verdict.fate), (Kind::Conflict, Fate::Keep));

    execute(&mut reader, "COMMIT").await.unwrap();
    execute(&mut ours, "COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_a_rival_has_overtaken_is_a_conflict() {
    let (dir, _setup) = database().await;
    let wal = options(&dir).journal_mode(SqliteJournalMode::Wal);
    let mut rival = open(wal.clone()).await.unwrap();
    let mut ours = open(wal).await.unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "SELECT * FROM item").await.unwrap();
    execute(&mut rival, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();

    let result = execute(&mut ours, "INSERT INTO item VALUES (2, 'b')").await;
    assert_eq!(code(&result), "517");
    assert_eq!(kind(&result), Kind::Conflict);
}

#[tokio::test]
async fn a_violated_constraint_is_the_callers_fault() {
    let (_dir, mut ours) = database().await;
    execute(&mut ours, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    for (expected, statement) in [
        ("1555", "INSERT INTO item VALUES (1, 'b')"),
        ("2067", "INSERT INTO item VALUES (2, 'a')"),
        ("1299", "INSERT INTO item VALUES (2, NULL)"),
        ("275", "INSERT INTO item VALUES (-2, 'b')"),
    ] {
        let result = execute(&mut ours, statement).await;
        assert_eq!(code(&result), expected, "{statement}");
        assert_eq!(kind(&result), Kind::Invalid, "{statement}");
    }
}

#[tokio::test]
async fn a_fault_in_the_syntax_is_the_callers() {
    let (_dir, mut ours) = database().await;
    let result = execute(&mut ours, "SELEKT 1").await;
    assert_eq!(code(&result), "1");
    assert_eq!(kind(&result), Kind::Invalid);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_broken() {
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("items.db"),
        "plain text, long enough to be read as a header".repeat(4),
    )
    .unwrap();
    let result = open_and_read(options(&dir)).await;
    assert_eq!(code(&result), "26");
    assert_eq!(kind(&result), Kind::Broken);
}

#[tokio::test]
async fn a_file_that_can_not_be_opened_is_broken() {
    let dir = TempDir::new().unwrap();
    let nowhere = options_at(&dir.path().join("nowhere").join("items.db"));
    let result = open_and_read(nowhere).await;
    assert_eq!(code(&result), "14");
    assert_eq!(kind(&result), Kind::Broken);
}

#[tokio::test]
async fn a_write_to_a_read_only_database_is_broken() {
    let (dir, _setup) = database().await;
    let mut ours = open(options(&dir).read_only(true)).await.unwrap();
    let result = execute(&mut ours, "INSERT INTO item VALUES (1, 'a')").await;
    assert_eq!(code(&result), "8");
    assert_eq!(kind(&result), Kind::Broken);
    let verdict = classify::database(result.as_ref().unwrap_err(), Phase::Statement);
    assert_eq!(verdict.fate, Fate::Discard);
}

#[tokio::test]
async fn a_full_database_is_broken() {
    let (_dir, mut ours) = database().await;
    execute(&mut ours, "PRAGMA max_page_count = 1")
        .await
        .unwrap();
    let result = execute(
        &mut ours,
        "INSERT INTO item SELECT 1, hex(randomblob(100000))",
    )
    .await;
    assert_eq!(code(&result), "13");
    assert_eq!(kind(&result), Kind::Broken);
}

#[tokio::test]
async fn a_missing_row_is_the_answer_of_a_healthy_database() {
    let (_dir, mut ours) = database().await;
    let result = sqlx::query("SELECT * FROM item WHERE id = 7")
        .fetch_one(&mut ours)
        .await;
    assert!(matches!(result, Err(sqlx::Error::RowNotFound)));
    assert_eq!(Sqlx.classify(result.as_ref()).kind, Kind::Invalid);
}

#[tokio::test]
async fn an_exhausted_pool_is_saturated_and_a_closed_one_says_nothing() {
    let pool: SqlitePool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(50))
        .connect("sqlite::memory:")
        .await
        .unwrap();
    let held = pool.acquire().await.unwrap();
    let exhausted = pool.acquire().await;
    assert!(matches!(exhausted, Err(sqlx::Error::PoolTimedOut)));
    assert_eq!(Sqlx.classify(exhausted.as_ref()).kind, Kind::Saturated);
    drop(held);

    pool.close().await;
    let closed = pool.acquire().await;
    assert!(matches!(closed, Err(sqlx::Error::PoolClosed)));
    assert_eq!(Sqlx.classify(closed.as_ref()).kind, Kind::Ignored);
}

/// A file with one empty table, in a directory of its own, and the connection that made it.
async fn database() -> (TempDir, SqliteConnection) {
    let dir = TempDir::new().unwrap();
    let mut setup = open(options(&dir).create_if_missing(true)).await.unwrap();
    let table =
        "CREATE TABLE item (id INTEGER PRIMARY KEY CHECK (id > 0), name TEXT NOT NULL UNIQUE)";
    execute(&mut setup, table).await.unwrap();
    (dir, setup)
}

fn options(dir: &TempDir) -> SqliteConnectOptions {
    options_at(&dir.path().join("items.db"))
}

fn options_at(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::ZERO)
}

async fn open(options: SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnection::connect_with(&options).await
}

async fn open_and_read(options: SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = open(options).await?;
    execute(&mut connection, "SELECT * FROM item").await
}

/// Runs a statement, and to its end if it reads.
async fn execute(connection: &mut SqliteConnection, statement: &str) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(statement))
        .execute(connection)
        .await
        .map(drop)
}

fn code(result: &Result<(), sqlx::Error>) -> String {
    let error = result.as_ref().expect_err("it was provoked");
    let error = error.as_database_error().expect("SQLite reported it");
    error.code().expect("SQLite gives a code").into_owned()
}

fn kind(result: &Result<(), sqlx::Error>) -> Kind {
    Sqlx.classify(result.as_ref()).kind
}
