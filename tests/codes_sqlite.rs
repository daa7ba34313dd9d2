//! The codes of SQLite, provoked in every phase in which they can be had, and what else sqlx says of its databases.
//!
//! Each error is judged by `classify::database`, and its line in `codes.tsv` has to agree and to say that it was provoked.
#![cfg(feature = "sqlite")]

#[path = "support/codes.rs"]
mod codes;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use sqlx::{
    Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use steadfast::{
    Classify, Kind,
    classify::{Phase, Sqlx},
};
use tempfile::TempDir;

use crate::codes::{assert_in_both_phases, execute, provoked};

#[tokio::test]
async fn a_write_beside_a_writer_is_a_conflict() {
    let (dir, mut rival) = database().await;
    let mut ours = open(options(&dir)).await.unwrap();
    execute(&mut rival, "BEGIN IMMEDIATE").await.unwrap();
    assert_in_both_phases(&mut ours, 5, "INSERT INTO item VALUES (1, 'a')").await;
    execute(&mut rival, "ROLLBACK; BEGIN EXCLUSIVE")
        .await
        .unwrap();
    let error = open(options(&dir).journal_mode(SqliteJournalMode::Wal))
        .await
        .unwrap_err();
    provoked(5, &error, Phase::Connect);
}

/// The transaction is still there: the same COMMIT succeeds when the reader is gone.
#[tokio::test]
async fn a_commit_beside_a_reader_is_a_conflict_and_can_be_repeated() {
    let (dir, mut reader) = database().await;
    let mut ours = open(options(&dir)).await.unwrap();
    execute(&mut ours, "BEGIN; INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    execute(&mut reader, "BEGIN; SELECT * FROM item")
        .await
        .unwrap();

    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(5, &error, Phase::Commit);

    execute(&mut reader, "COMMIT").await.unwrap();
    execute(&mut ours, "COMMIT").await.unwrap();
    assert_eq!(rows(&mut reader).await, 1);
}

#[tokio::test]
async fn a_snapshot_that_a_rival_has_overtaken_is_a_conflict() {
    let (dir, _setup) = database().await;
    let wal = options(&dir).journal_mode(SqliteJournalMode::Wal);
    let mut rival = open(wal.clone()).await.unwrap();
    let mut ours = open(wal).await.unwrap();
    execute(&mut ours, "BEGIN; SELECT * FROM item")
        .await
        .unwrap();
    execute(&mut rival, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();

    let error = execute(&mut ours, "INSERT INTO item VALUES (2, 'b')")
        .await
        .unwrap_err();
    provoked(517, &error, Phase::Transaction);
}

#[tokio::test]
async fn connections_that_share_a_cache_conflict_over_its_tables() {
    let (dir, mut setup) = database().await;
    execute(&mut setup, "PRAGMA journal_mode = wal")
        .await
        .unwrap();
    let shared = options(&dir).shared_cache(true);
    let mut rival = open(shared.clone()).await.unwrap();
    let mut ours = open(shared).await.unwrap();
    execute(&mut rival, "BEGIN; INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    let error = execute(&mut ours, "PRAGMA wal_checkpoint")
        .await
        .unwrap_err();
    provoked(6, &error, Phase::Statement);
    execute(&mut ours, "BEGIN").await.unwrap();
    let error = execute(&mut ours, "PRAGMA wal_checkpoint")
        .await
        .unwrap_err();
    provoked(6, &error, Phase::Transaction);
}

#[tokio::test]
async fn what_the_call_itself_is_at_fault_for_is_invalid() {
    let (_dir, mut ours) = database().await;
    let tables = "
        INSERT INTO item VALUES (1, 'a');
        CREATE TABLE part (item REFERENCES item);
        CREATE VIRTUAL TABLE box USING rtree(id, low, high)";
    execute(&mut ours, tables).await.unwrap();
    for (code, statement) in [
        (1, "SELEKT 1"),
        (1555, "INSERT INTO item VALUES (1, 'b')"),
        (2067, "INSERT INTO item VALUES (2, 'a')"),
        (1299, "INSERT INTO item VALUES (2, NULL)"),
        (275, "INSERT INTO item VALUES (-2, 'b')"),
        (787, "INSERT INTO part VALUES (7)"),
        // The table is not SQLite's own, and knows no code more exact.
        (19, "INSERT INTO box VALUES (1, 5, 1)"),
        (20, "INSERT INTO item VALUES ('one', 'b')"),
        // In no table.
        (18, "SELECT zeroblob(2000000000)"),
    ] {
        assert_in_both_phases(&mut ours, code, statement).await;
    }
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(1, &error, Phase::Commit);
}

#[tokio::test]
async fn what_is_found_wrong_at_commit_is_invalid_and_was_not_committed() {
    let (_dir, mut ours) = database().await;
    let table = "CREATE TABLE part (item REFERENCES item DEFERRABLE INITIALLY DEFERRED)";
    execute(&mut ours, table).await.unwrap();
    execute(
        &mut ours,
        "BEGIN; INSERT INTO item VALUES (1, 'a'); INSERT INTO part VALUES (7)",
    )
    .await
    .unwrap();
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(787, &error, Phase::Commit);
    execute(&mut ours, "ROLLBACK").await.unwrap();
    assert_eq!(rows(&mut ours).await, 0);

    let mut handle = ours.lock_handle().await.unwrap();
    handle.set_commit_hook(|| false);
    drop(handle);
    execute(&mut ours, "BEGIN; INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(531, &error, Phase::Commit);
    assert_eq!(rows(&mut ours).await, 0);
}

/// The handler is asked once more when all is done, and its no comes too late then.
#[tokio::test]
async fn what_was_interrupted_may_have_been_committed() {
    let (dir, mut observer) = database().await;
    for (begin, statement, phase) in [
        (
            "SELECT 1",
            "INSERT INTO item VALUES (1, 'a')",
            Phase::Statement,
        ),
        (
            "BEGIN; INSERT INTO item VALUES (1, 'a')",
            "COMMIT",
            Phase::Commit,
        ),
    ] {
        let mut undone = 0;
        // Interrupted after ever more steps, until it gets through.
        let committed = loop {
            let mut ours = open(options(&dir)).await.unwrap();
            execute(&mut ours, begin).await.unwrap();
            interrupt_after(&mut ours, undone + 1).await;
            let error = execute(&mut ours, statement).await.unwrap_err();
            provoked(9, &error, phase);
            ours.close().await.unwrap();
            let committed = rows(&mut observer).await;
            if committed > 0 {
                break committed;
            }
            undone += 1;
        };
        assert!(undone > 0, "{statement}");
        assert_eq!(committed, 1, "{statement}");
        execute(&mut observer, "DELETE FROM item").await.unwrap();
    }
    let mut ours = open(options(&dir)).await.unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    interrupt_after(&mut ours, 1).await;
    let error = execute(&mut ours, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap_err();
    provoked(9, &error, Phase::Transaction);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_broken() {
    let (dir, mut ours) = database().await;
    let text = dir.path().join("text");
    fs::write(
        &text,
        "plain text, long enough to be read as a header".repeat(4),
    )
    .unwrap();
    let attach = format!("ATTACH '{}' AS text", text.display());
    assert_in_both_phases(&mut ours, 26, &attach).await;
    let wal = options_at(&text).journal_mode(SqliteJournalMode::Wal);
    provoked(26, &open(wal).await.unwrap_err(), Phase::Connect);
}

#[tokio::test]
async fn a_file_that_can_not_be_opened_is_broken() {
    let (dir, mut ours) = database().await;
    let nowhere = dir.path().join("nowhere").join("items.db");
    let error = open(options_at(&nowhere)).await.unwrap_err();
    provoked(14, &error, Phase::Connect);
    let attach = format!("ATTACH '{}' AS nowhere", nowhere.display());
    assert_in_both_phases(&mut ours, 14, &attach).await;

    // A COMMIT of two files writes a third one, beside the first.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let first = options_at(&folder.join("items.db")).create_if_missing(true);
    let mut first = open(first).await.unwrap();
    let both = format!(
        "CREATE TABLE first (id); ATTACH '{}' AS second;
        BEGIN; INSERT INTO first VALUES (1); INSERT INTO second.item VALUES (1, 'a')",
        dir.path().join("items.db").display()
    );
    execute(&mut first, &both).await.unwrap();
    fs::rename(&folder, dir.path().join("moved")).unwrap();
    let error = execute(&mut first, "COMMIT").await.unwrap_err();
    provoked(14, &error, Phase::Commit);
    assert_eq!(rows(&mut ours).await, 0);
}

#[tokio::test]
async fn a_write_to_a_read_only_database_is_broken() {
    let (dir, _setup) = database().await;
    let insert = "INSERT INTO item VALUES (1, 'a')";
    let read_only = options(&dir).read_only(true);
    let mut ours = open(read_only.clone()).await.unwrap();
    assert_in_both_phases(&mut ours, 8, insert).await;
    let error = open(read_only.pragma("user_version", "1"))
        .await
        .unwrap_err();
    provoked(8, &error, Phase::Connect);

    let mut ours = open(options(&dir)).await.unwrap();
    fs::rename(dir.path().join("items.db"), dir.path().join("moved.db")).unwrap();
    assert_in_both_phases(&mut ours, 1032, insert).await;
}

#[tokio::test]
async fn a_full_database_is_broken() {
    let (dir, mut ours) = database().await;
    execute(&mut ours, "CREATE VIRTUAL TABLE words USING fts5(text)")
        .await
        .unwrap();
    ours.close().await.unwrap();
    let mut ours = open(options(&dir).pragma("max_page_count", "1"))
        .await
        .unwrap();
    let insert = "INSERT INTO item SELECT 1, hex(randomblob(100000))";
    assert_in_both_phases(&mut ours, 13, insert).await;

    #[cfg(target_os = "linux")]
    {
        let full = options_at(Path::new("/dev/full")).journal_mode(SqliteJournalMode::Memory);
        let error = open(full.clone().pragma("user_version", "1"))
            .await
            .unwrap_err();
        provoked(13, &error, Phase::Connect);
        let mut ours = open(full).await.unwrap();
        execute(&mut ours, "BEGIN; CREATE TABLE item (id)")
            .await
            .unwrap();
        let error = execute(&mut ours, "COMMIT").await.unwrap_err();
        provoked(13, &error, Phase::Commit);
    }
}

#[tokio::test]
async fn a_garbled_database_is_broken() {
    let (dir, mut setup) = database().await;
    execute(&mut setup, "INSERT INTO item VALUES (1, 'a')")
        .await
        .unwrap();
    let page = "SELECT rootpage FROM sqlite_schema WHERE name = 'item'";
    let page: u32 = sqlx::query_scalar(page)
        .fetch_one(&mut setup)
        .await
        .unwrap();
    setup.close().await.unwrap();
    garble(&dir, (page as usize - 1) * PAGE);
    let mut ours = open(options(&dir)).await.unwrap();
    assert_in_both_phases(&mut ours, 11, "SELECT * FROM item").await;
    // Behind the header.
    garble(&dir, 100);
    let wal = options(&dir).journal_mode(SqliteJournalMode::Wal);
    provoked(11, &open(wal).await.unwrap_err(), Phase::Connect);

    // A COMMIT that makes the file shorter reads its second page, which says what points where.
    let dir = TempDir::new().unwrap();
    let shrinking = options(&dir).auto_vacuum(SqliteAutoVacuum::Full);
    let mut setup = open(shrinking.create_if_missing(true)).await.unwrap();
    let table = "
        CREATE TABLE item (id INTEGER PRIMARY KEY, name);
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 50)
        INSERT INTO item SELECT n, randomblob(3000) FROM n";
    execute(&mut setup, table).await.unwrap();
    setup.close().await.unwrap();
    garble(&dir, PAGE);
    let mut ours = open(options(&dir)).await.unwrap();
    execute(&mut ours, "BEGIN; DELETE FROM item WHERE id % 2 = 0")
        .await
        .unwrap();
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(11, &error, Phase::Commit);
}

#[tokio::test]
async fn a_garbled_index_of_words_is_broken() {
    let (dir, mut setup) = database().await;
    let words = "CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('one')";
    execute(&mut setup, words).await.unwrap();
    let garble = |block| format!("UPDATE words_data SET block = x'{block}' WHERE id = 10");
    // What looks like an empty index, and what looks like none.
    for (code, block) in [(1555, "00"), (267, "a5a5a5a5a5")] {
        let mut ours = open(options(&dir)).await.unwrap();
        let begin = format!("BEGIN; INSERT INTO words VALUES ('two'); {}", garble(block));
        execute(&mut ours, &begin).await.unwrap();
        let error = execute(&mut ours, "COMMIT").await.unwrap_err();
        provoked(code, &error, Phase::Commit);
    }

    execute(&mut setup, &garble("a5a5a5a5a5")).await.unwrap();
    let mut ours = open(options(&dir)).await.unwrap();
    assert_in_both_phases(&mut ours, 267, "SELECT * FROM words('one')").await;
}

#[tokio::test]
async fn what_can_not_be_read_is_broken_and_ambiguous_where_something_may_have_been_committed() {
    let (dir, mut ours) = database().await;
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let error = open(options_at(&folder).read_only(true)).await.unwrap_err();
    provoked(266, &error, Phase::Connect);
    let attach = format!("ATTACH 'file:{}?mode=ro' AS folder", folder.display());
    assert_in_both_phases(&mut ours, 266, &attach).await;
    #[cfg(target_os = "linux")]
    {
        let memory = options_at(Path::new("/proc/self/mem"));
        provoked(8458, &open(memory).await.unwrap_err(), Phase::Connect);
    }
}

/// What is in the file then is in force as soon as the journal is out of the way.
#[tokio::test]
async fn a_commit_whose_journal_can_not_be_deleted_is_ambiguous_and_was_executed() {
    for phase in [Phase::Statement, Phase::Commit] {
        let (dir, mut observer) = database().await;
        let mut ours = open(options(&dir)).await.unwrap();
        let insert = "INSERT INTO item SELECT 1, 'a' UNION ALL SELECT 2, 'b'";
        let journal = dir.path().join("items.db-journal");
        let theirs = journal.clone();
        let replace = move || {
            if theirs.is_file() {
                fs::remove_file(&theirs).unwrap();
                fs::create_dir(&theirs).unwrap();
            }
            true
        };
        let error = if phase == Phase::Commit {
            execute(&mut ours, "BEGIN").await.unwrap();
            execute(&mut ours, insert).await.unwrap();
            replace();
            execute(&mut ours, "COMMIT").await.unwrap_err()
        } else {
            let mut handle = ours.lock_handle().await.unwrap();
            handle.set_progress_handler(1, replace);
            drop(handle);
            execute(&mut ours, insert).await.unwrap_err()
        };
        provoked(2570, &error, phase);
        fs::remove_dir(&journal).unwrap();
        assert_eq!(rows(&mut observer).await, 2, "{phase:?}");
    }
}

/// In a process of its own, whose limit is for all its connections.
#[tokio::test]
async fn without_memory_a_statement_is_overloaded() {
    const NAME: &str = "without_memory_a_statement_is_overloaded";
    if !is_inner() {
        run_inner("exec \"$@\"", NAME);
        return;
    }
    let (_dir, mut ours) = database().await;
    execute(&mut ours, "PRAGMA hard_heap_limit = 4000000")
        .await
        .unwrap();
    assert_in_both_phases(&mut ours, 7, "SELECT hex(randomblob(4000000))").await;
}

/// In a process of its own, whose files can't grow past a megabyte or two.
#[tokio::test]
async fn what_can_not_be_written_is_ambiguous_where_something_may_have_been_committed() {
    const NAME: &str =
        "what_can_not_be_written_is_ambiguous_where_something_may_have_been_committed";
    if !is_inner() {
        run_inner("trap '' XFSZ; ulimit -f 2048; exec \"$@\"", NAME);
        return;
    }
    let (dir, _setup) = database().await;
    let insert = "INSERT INTO item SELECT 1, hex(randomblob(2000000))";
    let mut ours = open(options(&dir).pragma("cache_size", "10"))
        .await
        .unwrap();
    for (begin, phase) in [
        ("SELECT 1", Phase::Statement),
        ("BEGIN", Phase::Transaction),
    ] {
        execute(&mut ours, begin).await.unwrap();
        let error = execute(&mut ours, insert).await.unwrap_err();
        provoked(778, &error, phase);
        // SQLite has already rolled back, and what came next would commit by itself.
        execute(&mut ours, "ROLLBACK").await.unwrap_err();
    }

    let mut ours = open(options(&dir).pragma("cache_size", "10000"))
        .await
        .unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, insert).await.unwrap();
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked(778, &error, Phase::Commit);
    assert_eq!(rows(&mut ours).await, 0);
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

async fn rows(connection: &mut SqliteConnection) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM item");
    count.fetch_one(connection).await.unwrap()
}

/// Lets SQLite go on this many times when it asks, and then stops it.
async fn interrupt_after(connection: &mut SqliteConnection, steps: i32) {
    let mut handle = connection.lock_handle().await.unwrap();
    handle.set_progress_handler(steps, || false);
}

/// Overwrites some of the database's file.
fn garble(dir: &TempDir, at: usize) {
    let file = dir.path().join("items.db");
    let mut bytes = fs::read(&file).unwrap();
    bytes[at..at + 500].fill(0xa5);
    fs::write(&file, bytes).unwrap();
}

/// Of a database's file, as long as nothing else is asked for.
const PAGE: usize = 4096;

fn is_inner() -> bool {
    env::var_os(INNER).is_some()
}

/// Runs the test of this name in a process of its own, which the shell's commands start.
fn run_inner(commands: &str, test: &str) {
    let output = Command::new("sh")
        .args(["-c", commands, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(INNER, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const INNER: &str = "STEADFAST_TEST_INNER";
