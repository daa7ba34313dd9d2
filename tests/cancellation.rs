//! Futures that are dropped at random moments, and what they leave on a real server: nothing, and soon.
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
    collections::HashSet,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, Encode, Executor, IntoArguments, MySql, MySqlConnection, PgConnection, Postgres,
    Row, Sqlite, Type, postgres::PgPoolOptions,
};
use steadfast::db::{Config, Db, Driver, PgDb, Preset, SqliteDb};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    proxy::{Fault, Proxy},
    server::{mariadb::MariaDb, postgres, send},
};

/// As the issue has them: so many futures over so many connections.
const FUTURES: usize = 1_000;
const POOL: u32 = 5;

/// How many of them are there at a time, so that some are dropped in the queue and most at work.
const CALLERS: usize = 12;

const CHECK_INTERVAL: Duration = Duration::from_millis(100);

static POSTGRES: LazyLock<Option<postgres::Postgres>> = LazyLock::new(postgres::Postgres::start);
static MARIADB: LazyLock<Option<MariaDb>> = LazyLock::new(MariaDb::start);

/// What waits on MariaDB, waits for this lock. KILL can take two seconds for a `SLEEP()`, as all of these share one mutex of the server.
const LOCK: &str = "SELECT GET_LOCK('held', 0)";

/// Whoever measures time has the machine for itself.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_futures_leave_nothing_at_work_on_postgresql() {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let db = on_postgres(server.port(), "thousand")
        .connect_lazy()
        .unwrap();
    prepare_postgres(server).await;
    let watcher = Watcher::on_postgres(server, "thousand").await;
    drop_all::<Postgres>(&db, &ON_POSTGRES).await;
    watcher.assert_never_too_much_and_soon_nothing().await;
    all_is_back(&db).await;
    let mut other = server.connect().await;
    let idle: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'thousand' AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(&mut other)
    .await
    .unwrap();
    assert_eq!(idle, 0, "sessions left in a transaction");
    for id in 0..10 {
        sqlx::query("INSERT INTO cancelled.kept (id) VALUES ($1)")
            .bind(id)
            .execute(&db)
            .await
            .unwrap();
    }
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM cancelled.kept")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(kept, 10, "an INSERT went into somebody's open transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_futures_leave_nothing_at_work_on_mariadb() {
    let Some(server) = &*MARIADB else { return };
    let _alone = ALONE.lock().await;
    let db = on_mariadb(server).connect_lazy::<MySql>().unwrap();
    let mut other = server.connect().await;
    for table in ["cancelled", "kept"] {
        let sql =
            format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY AUTO_INCREMENT, slept DOUBLE)");
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut other)
            .await
            .unwrap();
    }
    sqlx::query(LOCK).execute(&mut other).await.unwrap();
    let watcher = Watcher::on_mariadb(server).await;
    drop_all::<MySql>(&db, &ON_MARIADB).await;
    watcher.assert_never_too_much_and_soon_nothing().await;
    drop(watcher);
    all_is_back(&db).await;
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM information_schema.innodb_trx")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(open, 0, "transactions left open");
    for _ in 0..10 {
        sqlx::query("INSERT INTO kept (slept) VALUES (0)")
            .execute(&db)
            .await
            .unwrap();
    }
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM kept")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(kept, 10, "an INSERT went into somebody's open transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_futures_leave_nothing_at_work_on_sqlite() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("db");
    let db = on_sqlite(&file).connect_lazy::<Sqlite>().unwrap();
    sqlx::raw_sql("PRAGMA journal_mode = WAL; CREATE TABLE cancelled (id INTEGER PRIMARY KEY, slept REAL); CREATE TABLE kept (id INTEGER PRIMARY KEY)")
        .execute(&db)
        .await
        .unwrap();
    drop_all::<Sqlite>(&db, &ON_SQLITE).await;
    // Nobody but itself can say whether it works: a slot is back when its connection has answered.
    let dropped = Instant::now();
    all_is_back(&db).await;
    println!(
        "SQLite: all is back {:?} after the last drop",
        dropped.elapsed()
    );
    for _ in 0..10 {
        sqlx::query("INSERT INTO kept DEFAULT VALUES")
            .execute(&db)
            .await
            .unwrap();
    }
    let other = SqliteDb::new(
        sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display()))
            .await
            .unwrap(),
    );
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM kept")
        .fetch_one(&other)
        .await
        .unwrap();
    assert_eq!(kept, 10, "an INSERT went into somebody's open transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_caller_is_served_soon_where_every_connection_was_dropped_at_work() {
    let (Some(postgres), Some(mariadb)) = (&*POSTGRES, &*MARIADB) else {
        return;
    };
    let _alone = ALONE.lock().await;
    let within = CHECK_INTERVAL + Duration::from_millis(50);
    let db = on_postgres(postgres.port(), "next")
        .connect_lazy::<Postgres>()
        .unwrap();
    let worst = worst_next(&db, "SELECT pg_sleep(2)").await;
    println!("PostgreSQL: the next caller after {worst:?}");
    assert!(worst < within, "{worst:?}");

    let db = on_mariadb(mariadb).connect_lazy::<MySql>().unwrap();
    let mut other = mariadb.connect().await;
    sqlx::query(LOCK).execute(&mut other).await.unwrap();
    let worst = worst_next(&db, "SELECT GET_LOCK('held', 2)").await;
    println!("MariaDB: the next caller after {worst:?}");
    assert!(worst < within, "{worst:?}");

    let folder = tempfile::tempdir().unwrap();
    let db = on_sqlite(&folder.path().join("db"))
        .connect_lazy::<Sqlite>()
        .unwrap();
    let worst = worst_next(&db, FOR_EVER).await;
    println!("SQLite: the next caller after {worst:?}");
    assert!(worst < within, "{worst:?}");
}

#[tokio::test]
async fn the_first_statement_of_a_pool_that_was_brought_along_is_stopped_too() {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let options = server.options().application_name("brought");
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(options);
    let db = PgDb::new(pool);
    let mut other = server.connect().await;
    for _ in 0..2 {
        let slow = sqlx::query("SELECT pg_sleep(2)").execute(&db);
        assert!(timeout(Duration::from_millis(100), slow).await.is_err());
    }
    let mut slots = 0;
    for _ in 0..200 {
        let stats = db.limiter().stats();
        let sessions = sessions_on_postgres(&mut other, "brought").await;
        let busy = sessions.iter().filter(|(_, at_work, _)| *at_work).count();
        slots = slots.max(2 - stats.in_flight);
        assert!(
            busy <= stats.in_flight,
            "{busy} at work behind {} slots",
            stats.in_flight
        );
        if stats.in_flight == 0 {
            break;
        }
    }
    assert_eq!(slots, 2, "the slots are not back");
}

#[tokio::test]
async fn what_a_dropped_insert_did_before_it_was_stopped_is_undone() {
    let (Some(postgres), Some(mariadb)) = (&*POSTGRES, &*MARIADB) else {
        return;
    };
    let _alone = ALONE.lock().await;
    let db = on_postgres(postgres.port(), "undone")
        .connect_lazy::<Postgres>()
        .unwrap();
    sqlx::query("CREATE TABLE undone (id int)")
        .execute(&db)
        .await
        .unwrap();
    let slow = sqlx::query("INSERT INTO undone SELECT 1 FROM pg_sleep(0.5)").execute(&db);
    assert!(timeout(Duration::from_millis(100), slow).await.is_err());
    let theirs = on_mariadb(mariadb).connect_lazy::<MySql>().unwrap();
    sqlx::query("CREATE TABLE undone (id int)")
        .execute(&theirs)
        .await
        .unwrap();
    let slow = sqlx::query("INSERT INTO undone SELECT SLEEP(0.5)").execute(&theirs);
    assert!(timeout(Duration::from_millis(100), slow).await.is_err());
    sleep(Duration::from_millis(700)).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM undone")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM undone")
        .fetch_one(&theirs)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn a_frozen_backend_keeps_its_slot_for_half_a_second_at_most() {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let config = on_postgres(server.port(), "frozen");
    let db = config
        .preset(preset().pool_size(1))
        .connect_lazy::<Postgres>()
        .unwrap();
    for released in [false, true] {
        let mut lease = db.acquire().await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut *lease)
            .await
            .unwrap();
        let frozen = Frozen::new(pid);
        if !released {
            let slow = sqlx::query("SELECT 1").execute(&mut *lease);
            assert!(timeout(Duration::from_millis(50), slow).await.is_err());
        }
        let dropped = Instant::now();
        drop(lease);
        let next: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&db)
            .await
            .unwrap();
        let waited = dropped.elapsed();
        println!("released: {released}, the next caller after {waited:?}");
        assert_ne!(next, pid);
        assert!(waited < Duration::from_millis(500), "{waited:?}");
        drop(frozen);
    }
    all_is_back(&db).await;
    assert!(
        db.pool().size() <= 1,
        "sqlx counts {} connections",
        db.pool().size()
    );
}

#[tokio::test]
async fn where_every_connection_went_silent_while_it_was_idle_there_is_another_within_about_a_second()
 {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let config = on_postgres(server.port(), "silent").preset(preset().pool_size(3));
    let brought = PgPoolOptions::new()
        .max_connections(3)
        .connect_lazy_with(server.options().application_name("silent"));
    for db in [
        config.connect_lazy::<Postgres>().unwrap(),
        PgDb::new(brought),
    ] {
        let busy = || sqlx::query("SELECT pg_sleep(0.1)").execute(&db);
        let (a, b, c) = tokio::join!(busy(), busy(), busy());
        a.and(b).and(c).unwrap();
        while db.pool().num_idle() < 3 {
            sleep(Duration::from_millis(20)).await;
        }
        let sessions = sessions_on_postgres(&mut server.connect().await, "silent").await;
        assert_eq!(sessions.len(), 3, "{sessions:?}");
        let frozen: Vec<_> = sessions
            .iter()
            .map(|(pid, ..)| Frozen::new((*pid).try_into().unwrap()))
            .collect();
        let asked = Instant::now();
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        let waited = asked.elapsed();
        println!("another connection after {waited:?}");
        assert!(waited < Duration::from_millis(1_400), "{waited:?}");
        drop(frozen);
        db.close().await;
    }
}

#[tokio::test]
async fn a_black_hole_keeps_no_slot_for_longer_than_it_takes_to_notice() {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let proxy = Proxy::start(server.port()).await;
    let db = on_postgres(proxy.port(), "hole")
        .connect_lazy::<Postgres>()
        .unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..POOL {
        let db = db.clone();
        calls.spawn(async move {
            timeout(
                Duration::from_millis(200),
                sqlx::query("SELECT pg_sleep(2)").execute(&db),
            )
            .await
            .is_err()
        });
    }
    sleep(Duration::from_millis(150)).await;
    proxy.set(Fault::BlackHole);
    while let Some(dropped) = calls.join_next().await {
        assert!(dropped.unwrap());
    }
    let dropped = Instant::now();
    while db.limiter().stats().in_flight > 0 {
        sleep(Duration::from_millis(5)).await;
        assert!(
            dropped.elapsed() < Duration::from_secs(2),
            "{} slots are not back",
            db.limiter().stats().in_flight
        );
    }
    println!("all slots are back after {:?}", dropped.elapsed());
    proxy.set(Fault::Pass);
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.unwrap();
    assert_eq!(one, 1);
    all_is_back(&db).await;
}

#[tokio::test]
async fn a_begin_that_is_dropped_poisons_nothing_where_sqlx_itself_poisons_its_pool() {
    let Some(server) = &*POSTGRES else { return };
    let _alone = ALONE.lock().await;
    let proxy = Proxy::start(server.port()).await;
    let config = on_postgres(proxy.port(), "begin").preset(preset().pool_size(1));
    let db = config.connect_lazy::<Postgres>().unwrap();
    assert!(is_outside(&db).await);
    proxy.set(Fault::Latency(Duration::from_millis(20)));
    for after in [5, 15, 25, 35] {
        let begun = timeout(Duration::from_millis(after), db.begin()).await;
        assert!(begun.is_err(), "it took less than {after} ms");
        assert!(is_outside(&db).await, "dropped after {after} ms");
    }

    let pool = PgPoolOptions::new().max_connections(1);
    let pool = pool.connect_lazy_with(config.connect_options::<Postgres>().unwrap());
    let mut poisoned = false;
    // It asks the connection whether it is alive for the first 40 ms.
    for after in [50, 60, 70] {
        assert!(is_outside(&pool).await);
        sleep(Duration::from_millis(80)).await;
        let _ = timeout(Duration::from_millis(after), pool.begin()).await;
        poisoned |= !is_outside(&pool).await;
        if poisoned {
            break;
        }
    }
    assert!(poisoned, "sqlx no longer needs us for this");
}

/// Whether a statement runs outside of every transaction.
async fn is_outside<'c>(executor: impl Executor<'c, Database = Postgres>) -> bool {
    let row = sqlx::raw_sql("SELECT now() = statement_timestamp()")
        .fetch_one(executor)
        .await;
    row.unwrap().get(0)
}

fn preset() -> Preset {
    Preset::web().pool_size(POOL).check_interval(CHECK_INTERVAL)
}

fn on_postgres(port: u16, name: &str) -> Config {
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    Config::new(url).application_name(name).preset(preset())
}

fn on_mariadb(server: &MariaDb) -> Config {
    let url = format!(
        "mysql://root@127.0.0.1:{}/test?ssl-mode=DISABLED",
        server.port()
    );
    Config::new(url).preset(preset())
}

fn on_sqlite(file: &std::path::Path) -> Config {
    let url = format!("sqlite:{}?mode=rwc", file.display());
    Config::new(url).preset(preset())
}

async fn prepare_postgres(server: &postgres::Postgres) {
    let mut connection = server.connect().await;
    sqlx::raw_sql(
        "CREATE SCHEMA cancelled; SET search_path = cancelled;
         CREATE TABLE cancelled (id bigserial PRIMARY KEY, slept float8);
         CREATE TABLE kept (id int);
         CREATE TABLE slow (slept float8);
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(NEW.slept); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .execute(&mut connection)
    .await
    .unwrap();
}

/// The texts of one database.
struct Texts {
    /// Takes so many seconds.
    sleep: &'static str,
    /// Inserts a row in so many seconds.
    insert: &'static str,
    /// Inserts a row whose COMMIT takes so many seconds.
    slow_commit: &'static str,
    /// More rows than anybody reads.
    rows: &'static str,
}

const ON_POSTGRES: Texts = Texts {
    sleep: "SELECT pg_sleep($1)",
    insert: "INSERT INTO cancelled.cancelled (slept) SELECT $1 FROM pg_sleep($1)",
    slow_commit: "INSERT INTO cancelled.slow VALUES ($1)",
    rows: "SELECT g FROM generate_series(1, 3000000) g",
};

const ON_MARIADB: Texts = Texts {
    sleep: "SELECT GET_LOCK('held', ?)",
    insert: "INSERT INTO cancelled (slept) SELECT GET_LOCK('held', ?)",
    slow_commit: "INSERT INTO cancelled (slept) VALUES (?)",
    rows: "SELECT seq FROM seq_1_to_3000000",
};

const ON_SQLITE: Texts = Texts {
    sleep: "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?1 * 5000000) SELECT max(n) FROM c",
    insert: "INSERT INTO cancelled (slept) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?1 * 5000000) SELECT max(n) FROM c",
    slow_commit: "INSERT INTO cancelled (slept) VALUES (?)",
    rows: "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000000) SELECT n FROM c",
};

const FOR_EVER: &str =
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c";

/// Every way to use a database.
#[derive(Clone, Copy, Debug)]
enum Form {
    Statement,
    Insert,
    Transaction,
    Commit,
    Begin,
    Rows,
    Call,
    Acquire,
}

const FORMS: [Form; 8] = [
    Form::Statement,
    Form::Insert,
    Form::Transaction,
    Form::Commit,
    Form::Begin,
    Form::Rows,
    Form::Call,
    Form::Acquire,
];

/// Makes the calls, and drops each after a random time.
async fn drop_all<DB>(db: &Db<DB>, texts: &'static Texts)
where
    DB: Driver<Arguments: IntoArguments<DB>>,
    for<'q> f64: Encode<'q, DB> + Type<DB>,
{
    let next = Arc::new(AtomicUsize::new(0));
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (db, next, dropped) = (db.clone(), Arc::clone(&next), Arc::clone(&dropped));
        callers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller as u64);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= FUTURES {
                    return;
                }
                // From 1 ms to 2 s, as many short ones as long ones.
                let seconds = 0.001 * 2_000_f64.powf(random.f64());
                let after = Duration::from_secs_f64(0.15 * random.f64() * random.f64());
                let form = FORMS[number % FORMS.len()];
                match timeout(after, call(&db, form, seconds, texts)).await {
                    Err(_) => _ = dropped.fetch_add(1, Ordering::Relaxed),
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => panic!("{form:?}: {error}"),
                }
            }
        });
    }
    while let Some(over) = callers.join_next().await {
        over.unwrap();
    }
    let dropped = dropped.load(Ordering::Relaxed);
    assert!(dropped > FUTURES / 2, "only {dropped} were dropped");
}

async fn call<DB>(
    db: &Db<DB>,
    form: Form,
    seconds: f64,
    texts: &'static Texts,
) -> Result<(), sqlx::Error>
where
    DB: Driver<Arguments: IntoArguments<DB>>,
    for<'q> f64: Encode<'q, DB> + Type<DB>,
{
    match form {
        Form::Statement => sqlx::query(texts.sleep)
            .bind(seconds)
            .execute(db)
            .await
            .map(drop),
        Form::Insert => sqlx::query(texts.insert)
            .bind(seconds)
            .execute(db.idempotent())
            .await
            .map(drop),
        Form::Transaction => {
            db.transaction(|mut tx| async move {
                sqlx::query(texts.slow_commit)
                    .bind(0.0)
                    .execute(&mut tx)
                    .await?;
                sqlx::query(texts.sleep)
                    .bind(seconds)
                    .execute(&mut tx)
                    .await?;
                Ok(())
            })
            .await
        }
        Form::Commit => {
            db.transaction(|mut tx| async move {
                sqlx::query(texts.slow_commit)
                    .bind(seconds)
                    .execute(&mut tx)
                    .await?;
                Ok(())
            })
            .await
        }
        Form::Begin => {
            let mut tx = db.begin().await?;
            sqlx::query(texts.insert)
                .bind(seconds)
                .execute(&mut tx)
                .await?;
            tx.rollback().await
        }
        Form::Rows => {
            let mut rows = sqlx::query(texts.rows).fetch(db);
            for _ in 0..3 {
                rows.try_next().await?;
            }
            sleep(Duration::from_secs_f64(seconds.min(0.05))).await;
            Ok(())
        }
        Form::Call => {
            db.call(|mut conn| async move {
                sqlx::query(texts.slow_commit)
                    .bind(0.0)
                    .execute(&mut conn)
                    .await?;
                sqlx::query(texts.sleep)
                    .bind(seconds)
                    .execute(&mut conn)
                    .await?;
                Ok(())
            })
            .await
        }
        Form::Acquire => {
            let mut lease = db.acquire().await?;
            sleep(Duration::from_secs_f64(seconds.min(0.02))).await;
            sqlx::query(texts.sleep)
                .bind(seconds)
                .execute(&mut lease)
                .await
                .map(drop)
        }
    }
}

/// The longest time that a caller waits when all connections were dropped at work just before.
async fn worst_next<DB>(db: &Db<DB>, slow: &'static str) -> Duration
where
    DB: Driver<Arguments: IntoArguments<DB>>,
    for<'q> f64: Encode<'q, DB> + Type<DB>,
{
    let mut worst = Duration::ZERO;
    for _ in 0..8 {
        let mut calls = JoinSet::new();
        for _ in 0..POOL {
            let db = db.clone();
            calls.spawn(async move { sqlx::query(slow).execute(&db).await.map(drop) });
        }
        sleep(Duration::from_millis(150)).await;
        assert_eq!(db.limiter().stats().in_flight, POOL as usize);
        calls.abort_all();
        let dropped = Instant::now();
        sqlx::query("SELECT 1").execute(db).await.unwrap();
        worst = worst.max(dropped.elapsed());
        while calls.join_next().await.is_some() {}
    }
    all_is_back(db).await;
    worst
}

/// Every slot and every lease comes back, and soon.
async fn all_is_back<DB: Driver>(db: &Db<DB>) {
    let is_back = async {
        loop {
            let stats = db.stats();
            if stats.in_use == 0 && stats.reaping == 0 && db.limiter().stats().in_flight == 0 {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = timeout(Duration::from_secs(1), is_back).await;
    assert!(in_time.is_ok(), "{} {:?}", db.stats(), db.limiter().stats());
    assert!(db.leases().is_empty());
}

/// Looks at the server every few milliseconds, on a connection of its own.
struct Watcher {
    seen: Arc<std::sync::Mutex<Seen>>,
    /// Dropped, it ends the task.
    _task: JoinSet<()>,
}

/// A session's id, whether it is at work, and at what.
type Session = (i64, bool, String);

/// What a watcher has seen.
#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    /// Of all sessions that there were.
    ids: HashSet<i64>,
    at_work: Vec<Session>,
    /// What was at work where it was most.
    most: Vec<Session>,
}

impl Watcher {
    async fn on_postgres(server: &postgres::Postgres, name: &'static str) -> Self {
        let mut connection = server.connect().await;
        let seen = Arc::<std::sync::Mutex<Seen>>::default();
        let (mut task, shared) = (JoinSet::new(), Arc::clone(&seen));
        task.spawn(async move {
            loop {
                let sessions = sessions_on_postgres(&mut connection, name).await;
                shared.lock().unwrap().saw(sessions);
                sleep(LOOK).await;
            }
        });
        Self { seen, _task: task }
    }

    async fn on_mariadb(server: &MariaDb) -> Self {
        let mut connection = server.connect().await;
        let seen = Arc::<std::sync::Mutex<Seen>>::default();
        let (mut task, shared) = (JoinSet::new(), Arc::clone(&seen));
        task.spawn(async move {
            loop {
                let sessions = sessions_on_mariadb(&mut connection).await;
                shared.lock().unwrap().saw(sessions);
                sleep(LOOK).await;
            }
        });
        Self { seen, _task: task }
    }

    /// Nothing is at work soon after the last drop, and never was more than there are slots.
    async fn assert_never_too_much_and_soon_nothing(&self) {
        let dropped = Instant::now();
        let before = self.seen().looks;
        // The look after this one may have begun before the last drop.
        while self.seen().looks < before + 2 || !self.seen().at_work.is_empty() {
            let at_work = self.seen().at_work.clone();
            assert!(
                dropped.elapsed() < Duration::from_millis(250),
                "{at_work:?}"
            );
            sleep(Duration::from_millis(1)).await;
        }
        let Seen {
            looks, ids, most, ..
        } = &*self.seen();
        println!(
            "at most {} at work, none {:?} after the last drop, {} connections in all",
            most.len(),
            dropped.elapsed(),
            ids.len()
        );
        assert!(
            *looks > 100 && most.len() >= 4,
            "{looks} looks saw {most:?}: they are not sharp enough"
        );
        assert!(most.len() <= POOL as usize, "{most:#?}");
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Seen {
    fn saw(&mut self, mut sessions: Vec<Session>) {
        self.looks += 1;
        self.ids.extend(sessions.iter().map(|(id, ..)| *id));
        sessions.retain(|(_, at_work, _)| *at_work);
        if sessions.len() > self.most.len() {
            self.most.clone_from(&sessions);
        }
        self.at_work = sessions;
    }
}

/// What stops others is not counted as work.
async fn sessions_on_postgres(connection: &mut PgConnection, name: &str) -> Vec<Session> {
    sqlx::query_as(
        "SELECT pid::bigint, coalesce(state = 'active' AND query NOT LIKE 'SELECT pg_cancel_backend%', false), left(query, 60)
         FROM pg_stat_activity WHERE application_name = $1",
    )
    .bind(name)
    .fetch_all(connection)
    .await
    .unwrap()
}

/// What stops others is not counted as work, nor is what sqlx says when it connects, nor a text that is still being read.
async fn sessions_on_mariadb(connection: &mut MySqlConnection) -> Vec<Session> {
    sqlx::query_as(
        "SELECT CAST(id AS SIGNED), command NOT IN ('Sleep', 'Connect', 'Quit')
         AND NOT (command = 'Query' AND info IS NULL)
         AND COALESCE(info, '') NOT REGEXP '^(KILL|SHOW GLOBAL STATUS|SET sql_mode)',
         CONCAT_WS(' ', command, time_ms, state, LEFT(info, 60))
         FROM information_schema.processlist WHERE user = 'root' AND id <> CONNECTION_ID()",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// A process that does nothing until this is dropped, and whose connection stands.
struct Frozen(u32);

impl Frozen {
    fn new(pid: i32) -> Self {
        let pid = pid.try_into().expect("a pid");
        send("STOP", &[pid]);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        send("CONT", &[self.0]);
    }
}

const LOOK: Duration = Duration::from_millis(3);
