//! Transactions on real servers: what is committed, what is repeated, and what nobody is told wrongly.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgPool, SqliteConnection, postgres::PgPoolOptions};
use steadfast::db::{
    Config, Db, Driver, Isolation, MySqlDb, PgDb, Preset, SqliteDb, Stats, TransactionError,
    TransactionOptions, Tx,
};
use tokio::time::{sleep, timeout};

use crate::{
    proxy::{Fault, Proxy},
    server::{mariadb::MariaDb, postgres},
};

static POSTGRES: LazyLock<Option<postgres::Postgres>> = LazyLock::new(postgres::Postgres::start);
static MARIADB: LazyLock<Option<MariaDb>> = LazyLock::new(MariaDb::start);

/// Runs a text; as a function over every executor it would not be `Send`.
macro_rules! text {
    ($on:ident, $sql:expr $(,)?) => {
        async { sqlx::raw_sql($sql).execute(&mut $on).await.map(drop) }
    };
}

/// What a closure of a user's fails with.
#[derive(Debug)]
enum Failure {
    /// On purpose.
    Planned,
    Database {
        _error: sqlx::Error,
    },
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database { _error: error }
    }
}

#[tokio::test]
async fn a_transaction_is_committed_where_its_closure_is_well_and_rolled_back_where_it_is_not() {
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE ended (id int primary key)").await;
        let attempts = AtomicU32::new(0);
        for (id, fails) in [(1, false), (2, true)] {
            let attempts = &attempts;
            let ended = db
                .transaction(|mut tx| async move {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    insert(&mut tx, "ended", id).await?;
                    if fails { Err(Failure::Planned) } else { Ok(id) }
                })
                .await;
            match ended {
                Ok(of) => assert_eq!((of, fails), (id, false)),
                Err(error) => assert!(fails && matches!(error, Failure::Planned), "{error:?}"),
            }
        }
        assert_eq!(attempts.into_inner(), 2);
        assert_eq!(rows(&db, "ended").await, 1);
        // One that is ended by hand, and one that is only dropped.
        let mut tx = db.begin().await.unwrap();
        insert(&mut tx, "ended", 3).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = db.begin().await.unwrap();
        insert(&mut tx, "ended", 4).await.unwrap();
        tx.rollback().await.unwrap();
        let mut tx = db.begin().await.unwrap();
        insert(&mut tx, "ended", 5).await.unwrap();
        drop(tx);
        assert_eq!(rows(&db, "ended").await, 2);
    }
    let Some(all) = All::start() else { return };
    check(all.postgres).await;
    check(all.mariadb).await;
    check(all.sqlite).await;
}

#[tokio::test]
async fn a_savepoint_that_is_dropped_or_rolled_back_undoes_what_came_after_it() {
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE points (id int primary key)").await;
        db.transaction(|mut tx| async move {
            insert(&mut tx, "points", 1).await?;
            {
                let mut dropped = tx.savepoint().await?;
                text!(dropped, "INSERT INTO points VALUES (2)").await?;
                // A failure goes with it.
                text!(dropped, "INSERT INTO points VALUES (1)")
                    .await
                    .unwrap_err();
            }
            let mut kept = tx.savepoint().await?;
            text!(kept, "INSERT INTO points VALUES (3)").await?;
            let mut inner = kept.savepoint().await?;
            text!(inner, "INSERT INTO points VALUES (4)").await?;
            inner.rollback().await?;
            let mut inner = kept.savepoint().await?;
            text!(inner, "INSERT INTO points VALUES (4)").await?;
            inner.release().await?;
            kept.release().await?;
            let mut last = tx.savepoint().await?;
            text!(last, "INSERT INTO points VALUES (5)").await?;
            // Nothing but the COMMIT comes after it.
            drop(last);
            Ok::<_, sqlx::Error>(())
        })
        .await
        .unwrap();
        assert_eq!(rows(&db, "points").await, 3);
        assert_eq!(rows(&db, "points WHERE id IN (1, 3, 4)").await, 3);
    }
    let Some(all) = All::start() else { return };
    check(all.postgres).await;
    check(all.mariadb).await;
    check(all.sqlite).await;
}

#[tokio::test]
async fn a_rivals_victory_repeats_the_whole_whatever_the_closure_makes_of_it() {
    let Some(all) = All::start() else { return };
    let db = all.postgres;
    make(&db, "CREATE TABLE rivals (id int)").await;
    let serializable = TransactionOptions::new().isolation(Isolation::Serializable);
    let last = AtomicU32::new(0);
    db.transaction_with(serializable, |mut tx| {
        let last = &last;
        async move {
            last.store(tx.attempt(), Ordering::Relaxed);
            sqlx::query("SELECT count(*) FROM rivals").execute(&mut tx).await?;
            if tx.attempt() == 1 {
                let mut rival = POSTGRES.as_ref().unwrap().connect().await;
                let wins = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM rivals; INSERT INTO rivals VALUES (0); COMMIT";
                sqlx::raw_sql(wins).execute(&mut rival).await?;
            }
            let attempt = tx.attempt();
            let _ = sqlx::query("INSERT INTO rivals VALUES ($1)").bind(attempt as i32).execute(&mut tx).await;
            Ok::<_, sqlx::Error>(())
        }
    })
    .await
    .unwrap();
    assert_eq!(last.into_inner(), 2);
    assert_eq!(rows(&db, "rivals WHERE id = 1").await, 0);
    assert_eq!(rows(&db, "rivals WHERE id = 2").await, 1);

    // And a deadlock that is swallowed in the middle.
    let attempts = AtomicU32::new(0);
    let ended: Result<(), Failure> = db
        .transaction(|mut tx| {
            let attempts = &attempts;
            async move {
                if attempts.fetch_add(1, Ordering::Relaxed) < 2 {
                    let deadlock = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$";
                    sqlx::raw_sql(deadlock).execute(&mut tx).await.unwrap_err();
                    // An own error in place of it hides nothing.
                    return Err(Failure::Planned);
                }
                Ok(())
            }
        })
        .await;
    ended.unwrap();
    assert_eq!(attempts.into_inner(), 3);
}

#[tokio::test]
async fn a_savepoint_that_went_back_behind_a_conflict_makes_good_for_it_on_postgresql() {
    let Some(all) = All::start() else { return };
    let attempts = AtomicU32::new(0);
    all.postgres
        .transaction(|mut tx| {
            attempts.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut point = tx.savepoint().await?;
                let busy = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '55P03'; END $$";
                text!(point, busy).await.unwrap_err();
                point.rollback().await?;
                Ok::<_, sqlx::Error>(())
            }
        })
        .await
        .unwrap();
    assert_eq!(attempts.into_inner(), 1);
}

#[tokio::test]
async fn nothing_of_an_attempt_that_met_a_lock_or_a_deadlock_on_mariadb_survives() {
    let Some(all) = All::start() else { return };
    let db = all.mariadb;
    make(
        &db,
        "CREATE TABLE locks (id int primary key, n int); INSERT INTO locks VALUES (1, 0), (2, 0)",
    )
    .await;
    make(&db, "CREATE TABLE marks (id int)").await;
    make(&db, "CREATE TABLE weight (id int)").await;
    let server = MARIADB.as_ref().unwrap();
    // 1205 rolls back its statement only.
    let mut rival = server.connect().await;
    sqlx::raw_sql("BEGIN; UPDATE locks SET n = 7 WHERE id = 1")
        .execute(&mut rival)
        .await
        .unwrap();
    let rival = Mutex::new(Some(rival));
    db.transaction(|mut tx| {
        let rival = rival.lock().unwrap().take();
        async move {
            let attempt = tx.attempt();
            insert(&mut tx, "marks", attempt).await?;
            if let Some(rival) = rival {
                text!(tx, "SELECT n FROM locks WHERE id = 1 FOR UPDATE NOWAIT",)
                    .await
                    .unwrap_err();
                insert(&mut tx, "marks", 10).await.unwrap_err();
                rival.close().await?;
            }
            Ok::<_, sqlx::Error>(())
        }
    })
    .await
    .unwrap();
    assert_eq!(rows(&db, "marks").await, 1);
    assert_eq!(rows(&db, "marks WHERE id = 2").await, 1);

    // 1213 rolls back all, and what comes after it would be committed at once.
    make(&db, "DELETE FROM marks").await;
    let attempts = AtomicU32::new(0);
    let refused = AtomicBool::new(false);
    db.transaction(|mut tx| {
        let first = attempts.fetch_add(1, Ordering::Relaxed) == 0;
        let refused = &refused;
        async move {
            let attempt = tx.attempt();
            insert(&mut tx, "marks", attempt).await?;
            text!(tx, "UPDATE locks SET n = n + 1 WHERE id = 1").await?;
            if !first {
                return Ok(());
            }
            // The rival has done more, so that it wins.
            let mut rival = server.connect().await;
            sqlx::raw_sql("BEGIN; INSERT INTO weight SELECT seq FROM seq_1_to_1000; UPDATE locks SET n = 8 WHERE id = 2").execute(&mut rival).await?;
            let rival = tokio::spawn(async move {
                sqlx::raw_sql("UPDATE locks SET n = 8 WHERE id = 1; COMMIT").execute(&mut rival).await
            });
            sleep(Duration::from_millis(100)).await;
            let lost = text!(tx, "UPDATE locks SET n = n + 1 WHERE id = 2").await.unwrap_err();
            assert!(lost.to_string().contains("1213"), "{lost}");
            refused.store(insert(&mut tx, "marks", 20).await.is_err(), Ordering::Relaxed);
            rival.await.unwrap()?;
            Ok::<_, sqlx::Error>(())
        }
    })
    .await
    .unwrap();
    assert!(
        refused.into_inner(),
        "a statement was let through after the deadlock"
    );
    assert_eq!(attempts.into_inner(), 2);
    assert_eq!(rows(&db, "marks").await, 1);
    assert_eq!(rows(&db, "marks WHERE id = 2").await, 1);
}

#[tokio::test]
async fn a_failure_that_the_closure_swallowed_is_never_a_commit_on_postgresql() {
    let Some(all) = All::start() else { return };
    let db = all.postgres;
    make(&db, "CREATE TABLE swallowed (id int primary key)").await;
    for unseen in [false, true] {
        let attempts = AtomicU32::new(0);
        let ended = db
            .transaction(|mut tx| {
                attempts.fetch_add(1, Ordering::Relaxed);
                async move {
                    insert(&mut tx, "swallowed", 1).await?;
                    let again = sqlx::query("INSERT INTO swallowed VALUES (1)");
                    let _ = if unseen {
                        again.execute(tx.connection()).await
                    } else {
                        again.execute(&mut tx).await
                    };
                    Ok::<_, sqlx::Error>(())
                }
            })
            .await;
        let error = ended.unwrap_err();
        let whole = TransactionError::of(&error);
        assert!(
            matches!(whole, Some(TransactionError::RolledBack(_))),
            "{error:?}"
        );
        assert_eq!(
            error.to_string().contains("duplicate key"),
            !unseen,
            "{error}"
        );
        assert_eq!(attempts.into_inner(), 1);
        assert_eq!(rows(&db, "swallowed").await, 0);
    }
    let mut tx = db.begin().await.unwrap();
    let _ = text!(tx, "SELECT 1 / 0").await;
    let error = tx.commit().await.unwrap_err();
    assert!(
        matches!(
            TransactionError::of(&error),
            Some(TransactionError::RolledBack(_))
        ),
        "{error:?}"
    );

    // What sqlx says of the same.
    let mut tx = db.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO swallowed VALUES (1)")
        .execute(&mut *tx)
        .await
        .unwrap();
    let _ = sqlx::query("INSERT INTO swallowed VALUES (1)")
        .execute(&mut *tx)
        .await;
    tx.commit().await.unwrap();
    assert_eq!(rows(&db, "swallowed").await, 0);
}

#[tokio::test]
async fn a_failure_that_took_only_its_statement_along_does_not_keep_the_rest_from_being_committed()
{
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE rest (id int primary key)").await;
        db.transaction(|mut tx| async move {
            insert(&mut tx, "rest", 1).await?;
            insert(&mut tx, "rest", 1).await.unwrap_err();
            insert(&mut tx, "rest", 2).await
        })
        .await
        .unwrap();
        assert_eq!(rows(&db, "rest").await, 2);
    }
    let Some(all) = All::start() else { return };
    check(all.mariadb).await;
    check(all.sqlite).await;
}

#[tokio::test]
async fn a_connection_that_was_lost_before_commit_repeats_the_whole() {
    let Some(all) = All::start() else { return };
    make(&all.postgres, "CREATE TABLE lost (id int)").await;
    all.postgres
        .transaction(|mut tx| async move {
            let attempt = tx.attempt();
            insert(&mut tx, "lost", attempt).await?;
            if tx.attempt() == 1 {
                let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                    .fetch_one(&mut tx)
                    .await?;
                let mut other = POSTGRES.as_ref().unwrap().connect().await;
                sqlx::query("SELECT pg_terminate_backend($1, 1000)")
                    .bind(pid)
                    .execute(&mut other)
                    .await?;
            }
            insert(&mut tx, "lost", 10).await
        })
        .await
        .unwrap();
    assert_eq!(rows(&all.postgres, "lost").await, 2);
    assert_eq!(rows(&all.postgres, "lost WHERE id IN (2, 10)").await, 2);

    make(&all.mariadb, "CREATE TABLE lost (id int)").await;
    all.mariadb
        .transaction(|mut tx| async move {
            let attempt = tx.attempt();
            insert(&mut tx, "lost", attempt).await?;
            if tx.attempt() == 1 {
                let id: i64 = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)")
                    .fetch_one(&mut tx)
                    .await?;
                let mut other = MARIADB.as_ref().unwrap().connect().await;
                sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")))
                    .execute(&mut other)
                    .await?;
            }
            insert(&mut tx, "lost", 10).await
        })
        .await
        .unwrap();
    assert_eq!(rows(&all.mariadb, "lost").await, 2);
    assert_eq!(rows(&all.mariadb, "lost WHERE id IN (2, 10)").await, 2);
}

#[tokio::test]
async fn a_transaction_past_its_deadline_is_rolled_back_and_says_so() {
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE late (id int)").await;
        let started = Instant::now();
        let ended: Result<(), sqlx::Error> = db
            .transaction(|mut tx| async move {
                insert(&mut tx, "late", 1).await?;
                sleep(Duration::from_secs(5)).await;
                Ok(())
            })
            .await;
        let error = ended.unwrap_err();
        assert!(
            matches!(
                TransactionError::of(&error),
                Some(TransactionError::DeadlineExceeded)
            ),
            "{error:?}"
        );
        assert!(
            started.elapsed() < Duration::from_millis(900),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(rows(&db, "late").await, 0);
    }
    let Some(all) = All::with(|preset| {
        preset
            .statement(Duration::from_millis(500))
            .lock(Duration::from_millis(500))
            .deadline(Duration::from_millis(500))
    }) else {
        return;
    };
    check(all.postgres).await;
    check(all.mariadb).await;
    check(all.sqlite).await;
}

#[tokio::test]
async fn the_server_ends_a_statement_before_the_transactions_deadline() {
    let Some(all) = All::with(|preset| {
        preset
            .deadline(Duration::from_millis(700))
            .statement(Duration::from_millis(700))
            .lock(Duration::from_millis(700))
    }) else {
        return;
    };
    let started = Instant::now();
    let ended: Result<(), sqlx::Error> = all
        .postgres
        .transaction(|mut tx| async move { text!(tx, "SELECT pg_sleep(5)").await })
        .await;
    let error = ended.unwrap_err();
    assert_eq!(
        error.as_database_error().and_then(|e| e.code()).as_deref(),
        Some("57014"),
        "{error:?}"
    );
    assert!(
        started.elapsed() < Duration::from_millis(700),
        "{:?}",
        started.elapsed()
    );
    let started = Instant::now();
    let ended: Result<(), sqlx::Error> = all
        .mariadb
        .transaction(|mut tx| async move {
            text!(
                tx,
                "SELECT count(*) FROM seq_1_to_1000000 a, seq_1_to_1000000 b",
            )
            .await
        })
        .await;
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("1969"), "{error:?}");
    assert!(
        started.elapsed() < Duration::from_millis(700),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn the_servers_limits_are_the_time_that_is_left_and_then_the_sessions_own_again() {
    const ON_POSTGRES: &str = "SELECT setting::float8 / 1000 FROM pg_settings \
        WHERE name IN ('statement_timeout', 'lock_timeout') ORDER BY name";
    const ON_MARIADB: &str = "SELECT CAST(@@innodb_lock_wait_timeout AS DOUBLE) UNION ALL SELECT CAST(@@max_statement_time AS DOUBLE)";
    let Some(all) = All::with(|preset| {
        preset
            .pool_size(1)
            .statement(Duration::from_secs(8))
            .lock(Duration::from_secs(7))
    }) else {
        return;
    };
    let left = |seconds| Instant::now() + Duration::from_secs(seconds);

    let db = all.postgres;
    let asked = || sqlx::query_scalar::<_, f64>(ON_POSTGRES);
    for rolls_back in [false, true] {
        let transaction = db.transaction(|mut tx| async move {
            let limits = asked().fetch_all(&mut tx).await?;
            if rolls_back {
                Err(sqlx::Error::RowNotFound)
            } else {
                Ok(limits)
            }
        });
        if let Ok(limits) = steadfast::deadline::scope(left(4), transaction).await {
            assert!(
                limits.iter().all(|limit| (3.0..4.0).contains(limit)),
                "{limits:?}"
            );
        }
        assert_eq!(asked().fetch_all(&db).await.unwrap(), [7.0, 8.0]);
    }

    let db = all.mariadb;
    let asked = || sqlx::query_scalar::<_, f64>(ON_MARIADB);
    for rolls_back in [false, true] {
        let transaction = db.transaction(|mut tx| async move {
            let limits = asked().fetch_all(&mut tx).await?;
            if rolls_back {
                Err(sqlx::Error::RowNotFound)
            } else {
                Ok(limits)
            }
        });
        if let Ok(limits) = steadfast::deadline::scope(left(4), transaction).await {
            assert!(
                limits.iter().all(|limit| (3.0..4.0).contains(limit)),
                "{limits:?}"
            );
        }
        assert_eq!(asked().fetch_all(&db).await.unwrap(), [7.0, 8.0]);
    }
    // One that was only dropped leaves nothing behind either.
    let mut tx = steadfast::deadline::scope(left(4), db.begin())
        .await
        .unwrap();
    let limits = asked().fetch_all(&mut tx).await.unwrap();
    assert!(limits.iter().all(|limit| *limit < 4.0), "{limits:?}");
    drop(tx);
    assert_eq!(asked().fetch_all(&db).await.unwrap(), [7.0, 8.0]);
}

#[tokio::test]
async fn a_transaction_has_the_isolation_that_it_asked_for() {
    let Some(all) = All::start() else { return };
    let levels = [
        (Isolation::ReadCommitted, "read committed"),
        (Isolation::RepeatableRead, "repeatable read"),
        (Isolation::Serializable, "serializable"),
    ];
    for (isolation, name) in levels {
        let options = TransactionOptions::new().isolation(isolation);
        let level: String = all
            .postgres
            .transaction_with(options.clone(), |mut tx| async move {
                sqlx::query_scalar("SHOW transaction_isolation")
                    .fetch_one(&mut tx)
                    .await
            })
            .await
            .unwrap();
        assert_eq!(level, name);
        let level: String = all
            .mariadb
            .transaction_with(options, |mut tx| async move {
                // What is listed is at most a tenth of a second old, and only what has done something.
                sleep(Duration::from_millis(150)).await;
                sqlx::raw_sql("CREATE TEMPORARY TABLE IF NOT EXISTS isolated (id int); SELECT * FROM mysql.innodb_table_stats FOR UPDATE")
                    .execute(&mut tx)
                    .await?;
                sqlx::query_scalar("SELECT LOWER(trx_isolation_level) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()")
                    .fetch_one(&mut tx)
                    .await
            })
            .await
            .unwrap();
        assert_eq!(level, name);
    }
}

#[tokio::test]
async fn a_transaction_that_only_reads_writes_nothing_and_is_not_repeated_for_trying() {
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE readings (id int)").await;
        let attempts = AtomicU32::new(0);
        let ended = db
            .transaction_with(TransactionOptions::new().read_only(), |mut tx| {
                attempts.fetch_add(1, Ordering::Relaxed);
                async move {
                    sqlx::raw_sql("SELECT id FROM readings")
                        .execute(&mut tx)
                        .await?;
                    insert(&mut tx, "readings", 1).await
                }
            })
            .await;
        ended.unwrap_err();
        assert_eq!(attempts.into_inner(), 1);
        assert_eq!(rows(&db, "readings").await, 0);
    }
    let Some(all) = All::start() else { return };
    check(all.postgres).await;
    check(all.mariadb).await;
}

#[tokio::test]
async fn a_handle_that_was_moved_out_of_its_closure_commits_nothing() {
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE gone (id int)").await;
        let outside: Mutex<Option<Tx<DB>>> = Mutex::new(None);
        let ended = db
            .transaction(|mut tx| {
                let outside = &outside;
                async move {
                    insert(&mut tx, "gone", 1).await?;
                    *outside.lock().unwrap() = Some(tx);
                    Ok::<_, sqlx::Error>(())
                }
            })
            .await;
        let error = ended.unwrap_err();
        assert!(
            matches!(
                TransactionError::of(&error),
                Some(TransactionError::Escaped)
            ),
            "{error:?}"
        );
        drop(outside);
        assert_eq!(rows(&db, "gone").await, 0);
    }
    let Some(all) = All::start() else { return };
    check(all.postgres).await;
    check(all.mariadb).await;
    check(all.sqlite).await;
}

#[tokio::test]
async fn the_database_in_its_own_transaction_is_an_error_that_names_both_places() {
    let Some(all) = All::start() else { return };
    let db = all.postgres;
    let begun = line!() + 1;
    let ended = db.transaction(|_tx| async {
        let used = line!() + 1;
        let error = db.acquire().await.unwrap_err();
        let Some(TransactionError::Nested { used: named, begun }) = TransactionError::of(&error)
        else {
            panic!("{error:?}");
        };
        assert!(
            named.contains(file!()) && named.contains(&format!(":{used}:")),
            "{named}"
        );
        assert!(error.to_string().contains(&begun.to_string()), "{error}");
        let error = sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
        assert!(
            matches!(
                TransactionError::of(&error),
                Some(TransactionError::Nested { .. })
            ),
            "{error:?}"
        );
        let error = db
            .transaction(|_tx| async { Ok::<_, sqlx::Error>(()) })
            .await
            .unwrap_err();
        assert!(
            matches!(
                TransactionError::of(&error),
                Some(TransactionError::Nested { .. })
            ),
            "{error:?}"
        );
        // A task of its own is not inside.
        let spawned = db.clone();
        let spawned = tokio::spawn(async move { sqlx::query("SELECT 1").execute(&spawned).await });
        spawned.await.unwrap().unwrap();
        Ok::<_, sqlx::Error>(begun.line())
    });
    assert_eq!(ended.await.unwrap(), begun);
    sqlx::query("SELECT 1").execute(&db).await.unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_looked_up_on_postgresql() {
    let Some(server) = &*POSTGRES else { return };
    let proxy = Proxy::start(server.port()).await;
    let db: PgDb = on_postgres(proxy.port())
        .preset(Preset::web())
        .connect_lazy()
        .unwrap();
    make(&db, "CREATE TABLE fates (id int)").await;
    let stats = lose_two_commits(&db, &proxy, "fates").await;
    assert_eq!((stats.fates_committed, stats.fates_aborted), (1, 1));
}

#[tokio::test]
async fn a_commit_is_looked_up_in_sessions_that_write_dates_their_own_way() {
    let Some(server) = &*POSTGRES else { return };
    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port());
    make(
        &PgDb::new(PgPool::connect_lazy_with(options.clone())),
        "CREATE TABLE styled_fates (id int)",
    )
    .await;
    for (style, zone) in [
        ("ISO, DMY", "Asia/Kolkata"),
        ("German", "Europe/Berlin"),
        ("SQL, MDY", "America/St_Johns"),
        ("Postgres", "UTC"),
    ] {
        let set = format!("SET DateStyle = '{style}'; SET TimeZone = '{zone}'");
        let pool = PgPoolOptions::new().after_connect(move |connection, _| {
            let set = sqlx::raw_sql(AssertSqlSafe(set.clone()));
            Box::pin(async move { set.execute(connection).await.map(drop) })
        });
        let db = PgDb::new(pool.connect_lazy_with(options.clone()));
        let stats = lose_two_commits(&db, &proxy, "styled_fates").await;
        let fates = (stats.fates_committed, stats.fates_aborted);
        assert_eq!(fates, (1, 1), "{style}");
    }
}

#[tokio::test]
async fn a_server_that_keeps_fates_to_itself_is_told_so_and_a_lost_answer_is_unknown() {
    let Some(server) = &*POSTGRES else { return };
    let owner = PgDb::new(PgPool::connect_lazy_with(server.options()));
    make(
        &owner,
        "CREATE TABLE kept_fates (id int); CREATE ROLE hosted LOGIN; GRANT ALL ON kept_fates TO hosted; \
         REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM PUBLIC",
    )
    .await;
    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port()).username("hosted");
    let db = PgDb::new(PgPool::connect_lazy_with(options));
    let proxy = &proxy;
    let commit = async |id: u32, fault: Fault| {
        db.transaction(|mut tx| async move {
            insert(&mut tx, "kept_fates", id).await?;
            proxy.set(fault);
            Ok::<_, sqlx::Error>(())
        })
        .await
    };
    for id in 0..2 {
        commit(id, Fault::Pass).await.unwrap();
    }
    let lost = commit(2, Fault::CutCommitReply(0)).await.unwrap_err();
    let unknown = TransactionError::of(&lost);
    assert!(
        matches!(unknown, Some(TransactionError::CommitUnknown(_))),
        "{lost:?}"
    );
    assert_eq!(rows(&db, "kept_fates").await, 3);
}

#[tokio::test]
async fn a_server_that_follows_another_one_takes_transactions_that_read() {
    let Some(mut server) = postgres::Postgres::start() else {
        return;
    };
    server.stop(postgres::Stop::Fast);
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    server.restart();
    let db = PgDb::new(PgPool::connect_lazy_with(server.options()));
    let follows = db.transaction(|mut tx| async move {
        let follows = sqlx::query_scalar("SELECT pg_is_in_recovery()");
        follows.fetch_one(&mut tx).await
    });
    let follows: Result<bool, sqlx::Error> = follows.await;
    assert!(follows.unwrap());
}

/// Commits two transactions, of which the first loses the answer and the second the request.
async fn lose_two_commits(db: &PgDb, proxy: &Proxy, table: &str) -> Stats {
    let before = rows(db, table).await;
    for (cut, attempts_needed) in [
        (Fault::CutCommitReply(0), 1),
        (Fault::CutCommitRequest(0), 2),
    ] {
        let attempts = AtomicU32::new(0);
        db.transaction(|mut tx| {
            let attempts = &attempts;
            async move {
                insert(&mut tx, table, attempts_needed).await?;
                if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                    proxy.set(cut);
                }
                Ok::<_, sqlx::Error>(())
            }
        })
        .await
        .unwrap();
        assert_eq!(proxy.fault(), Fault::Pass, "nothing was cut");
        assert_eq!(attempts.into_inner(), attempts_needed);
    }
    assert_eq!(rows(db, table).await, before + 2);
    db.stats()
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_on_mariadb_is_what_the_user_finds() {
    let Some(server) = &*MARIADB else { return };
    let proxy = Proxy::start(server.port()).await;
    let db: MySqlDb = on_mariadb(proxy.port()).connect_lazy().unwrap();
    let direct: MySqlDb = on_mariadb(server.port()).connect_lazy().unwrap();
    make(&direct, "CREATE TABLE found (id int)").await;
    let is_there = |id: i32| {
        let direct = direct.clone();
        move || {
            let direct = direct.clone();
            async move { Ok(rows(&direct, &format!("found WHERE id = {id}")).await > 0) }
        }
    };
    let options = TransactionOptions::new;
    let cases = [
        (1, Fault::CutReply(0), options().verify(is_there(1))),
        (2, Fault::CutRequest(0), options().verify(is_there(2))),
        (3, Fault::CutReply(0), options()),
        (
            4,
            Fault::CutRequest(0),
            options().verify(|| async { Err(sqlx::Error::RowNotFound) }),
        ),
    ];
    for (id, cut, options) in cases {
        let attempts = AtomicU32::new(0);
        let ended = db
            .transaction_with(options, |mut tx| {
                let (attempts, proxy) = (&attempts, &proxy);
                async move {
                    insert(&mut tx, "found", id).await?;
                    if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                        // What comes next is the COMMIT.
                        proxy.set(cut);
                    }
                    Ok::<_, sqlx::Error>(())
                }
            })
            .await;
        assert_eq!(proxy.fault(), Fault::Pass, "nothing was cut");
        assert_eq!(attempts.into_inner(), if id == 2 { 2 } else { 1 });
        match ended {
            Ok(()) => assert!(id <= 2),
            Err(error) => {
                let unknown = TransactionError::of(&error);
                assert!(
                    id > 2 && matches!(unknown, Some(TransactionError::CommitUnknown(_))),
                    "{id}: {error:?}"
                );
            }
        }
    }
    for (id, there) in [(1, 1), (2, 1), (3, 1), (4, 0)] {
        assert_eq!(
            rows(&direct, &format!("found WHERE id = {id}")).await,
            there,
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_commit_that_met_a_reader_is_sent_again_on_sqlite() {
    let Some(all) = All::with(|preset| preset.lock(Duration::from_millis(20))) else {
        return;
    };
    let db = all.sqlite;
    make(
        &db,
        "PRAGMA journal_mode = DELETE; CREATE TABLE met (id int); INSERT INTO met VALUES (0)",
    )
    .await;
    let mut reader = SqliteConnection::connect(&all.file).await.unwrap();
    let attempts = AtomicU32::new(0);
    let (release, released) = tokio::sync::oneshot::channel();
    let reading = tokio::spawn(async move {
        sqlx::raw_sql("BEGIN; SELECT * FROM met")
            .execute(&mut reader)
            .await
            .unwrap();
        release.send(()).unwrap();
        sleep(Duration::from_millis(300)).await;
        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    });
    released.await.unwrap();
    let started = Instant::now();
    db.transaction(|mut tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        async move { insert(&mut tx, "met", 1).await }
    })
    .await
    .unwrap();
    assert!(
        started.elapsed() > Duration::from_millis(200),
        "the reader was not met"
    );
    assert_eq!(attempts.into_inner(), 1);
    assert_eq!(rows(&db, "met").await, 2);
    reading.await.unwrap();
}

#[tokio::test]
async fn a_statement_that_was_dropped_in_a_transaction_harms_nothing_after_it() {
    let Some(all) = All::start() else { return };
    make(&all.postgres, "CREATE TABLE astray (id int)").await;
    all.postgres
        .transaction(|mut tx| async move {
            insert(&mut tx, "astray", 1).await?;
            let slow = text!(tx, "SELECT pg_sleep(0.2)");
            assert!(timeout(Duration::from_millis(50), slow).await.is_err());
            insert(&mut tx, "astray", 2).await
        })
        .await
        .unwrap();
    assert_eq!(rows(&all.postgres, "astray").await, 2);

    // sqlx can't tell how much of the answer is still to come, so there is no way on.
    make(&all.mariadb, "CREATE TABLE astray (id int)").await;
    let ended = all
        .mariadb
        .transaction(|mut tx| async move {
            insert(&mut tx, "astray", 1).await?;
            let slow = text!(tx, "SELECT SLEEP(0.2)");
            assert!(timeout(Duration::from_millis(50), slow).await.is_err());
            insert(&mut tx, "astray", 2).await.unwrap_err();
            Ok::<_, sqlx::Error>(())
        })
        .await;
    let error = ended.unwrap_err();
    assert!(
        matches!(
            TransactionError::of(&error),
            Some(TransactionError::RolledBack(_))
        ),
        "{error:?}"
    );
    assert_eq!(rows(&all.mariadb, "astray").await, 0);
}

#[tokio::test]
async fn a_constraint_that_is_checked_at_commit_says_what_is_wrong() {
    let Some(all) = All::start() else { return };
    let db = all.postgres;
    make(&db, "CREATE TABLE checked (id int primary key, other int REFERENCES checked DEFERRABLE INITIALLY DEFERRED)").await;
    let ended = db
        .transaction(|mut tx| async move { text!(tx, "INSERT INTO checked VALUES (1, 2)").await })
        .await;
    let error = ended.unwrap_err();
    assert_eq!(
        error.as_database_error().and_then(|e| e.code()).as_deref(),
        Some("23503"),
        "{error:?}"
    );
    assert_eq!(rows(&db, "checked").await, 0);
}

#[tokio::test]
async fn a_closure_may_borrow_in_a_spawned_task_and_know_its_database_only_by_its_trait() {
    async fn transfer<DB: Driver>(db: &Db<DB>, amounts: &[i32]) -> Result<usize, sqlx::Error> {
        db.transaction(|mut tx| async move {
            for amount in amounts {
                insert(&mut tx, "borrowed", *amount).await?;
            }
            Ok(amounts.len())
        })
        .await
    }
    async fn check<DB: Driver>(db: Db<DB>) {
        make(&db, "CREATE TABLE borrowed (id int)").await;
        let spawned = db.clone();
        let amounts = vec![1, 2, 3];
        let moved = tokio::spawn(async move { transfer(&spawned, &amounts).await });
        assert_eq!(moved.await.unwrap().unwrap(), 3);
        assert_eq!(rows(&db, "borrowed").await, 3);
    }
    let Some(all) = All::start() else { return };
    check(all.postgres).await;
    check(all.mariadb).await;
    check(all.sqlite).await;
}

/// A database on each of the servers.
struct All {
    postgres: PgDb,
    mariadb: MySqlDb,
    sqlite: SqliteDb,
    /// The SQLite's address.
    file: String,
    _folder: tempfile::TempDir,
}

impl All {
    fn start() -> Option<Self> {
        Self::with(|preset| preset)
    }

    fn with(change: impl Fn(Preset) -> Preset) -> Option<Self> {
        let (postgres, mariadb) = (POSTGRES.as_ref()?, MARIADB.as_ref()?);
        let preset = change(Preset::web().pool_size(4));
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
        Some(Self {
            postgres: on_postgres(postgres.port())
                .preset(preset.clone())
                .connect_lazy()
                .unwrap(),
            mariadb: on_mariadb(mariadb.port())
                .preset(preset.clone())
                .connect_lazy()
                .unwrap(),
            sqlite: Config::new(&file).preset(preset).connect_lazy().unwrap(),
            file,
            _folder: folder,
        })
    }
}

fn on_postgres(port: u16) -> Config {
    Config::new(format!(
        "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    ))
}

fn on_mariadb(port: u16) -> Config {
    Config::new(format!(
        "mysql://root@127.0.0.1:{port}/test?ssl-mode=DISABLED"
    ))
}

async fn make<DB: Driver>(db: &Db<DB>, sql: &'static str) {
    sqlx::raw_sql(sql).execute(db).await.unwrap();
}

async fn insert<DB: Driver>(
    tx: &mut Tx<DB>,
    table: &str,
    id: impl std::fmt::Display,
) -> Result<(), sqlx::Error> {
    let sql = format!("INSERT INTO {table} VALUES ({id})");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(tx)
        .await
        .map(drop)
}

/// How many rows there are behind `FROM`.
async fn rows<DB: Driver>(db: &Db<DB>, from: &str) -> usize {
    let sql = format!("SELECT 1 FROM {from}");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(db)
        .await
        .unwrap()
        .len()
}
