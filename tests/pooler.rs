//! `Db` behind a real PgBouncer that hands out its connections by transaction: twenty clients over three connections.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real poolers live by the real clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Row, error::DatabaseError, postgres::PgPoolOptions,
};
use steadfast::{
    Event, Kind, Observer,
    db::{Config, PgDb, PoolerMode, Preset},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    proxy::Proxy,
    server::{pgbouncer::PgBouncer, postgres::Postgres},
};

#[tokio::test]
async fn two_thousand_calls_of_every_form_are_answered_right_where_plain_sqlx_gives_others_rows()
-> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    let begin = Instant::now();
    let ours = crowd(move |which, call| ask(db.clone(), which, call)).await;
    println!("through Db: {ours:?} in {:?}", begin.elapsed());
    assert_eq!(
        (ours.right, ours.wrong, ours.failed),
        (CLIENTS * CALLS, 0, 0)
    );
    assert_eq!(server.backends().await.len(), 3);

    let pool = PgPoolOptions::new()
        .max_connections(CLIENTS)
        .connect_with(pooler.options())
        .await?;
    let bare = crowd(move |which, call| ask_plainly(pool.clone(), which, call)).await;
    println!("plain sqlx: {bare:?}");
    assert!(bare.wrong > 0, "{bare:?}");
    Ok(())
}

/// Through one of the forms of call.
async fn ask(db: PgDb, which: u32, call: u32) -> Result<i64, sqlx::Error> {
    let query = sqlx::query_scalar(TEXTS[which as usize]).bind(i64::from(call));
    match call % 7 {
        0 => query.fetch_one(&db).await,
        1 => query.fetch_one(db.idempotent()).await,
        2 => Ok(query.fetch(&db).try_collect::<Vec<i64>>().await?[0]),
        3 => {
            let text = TEXTS[which as usize].replace("$1", &format!("{call}::bigint"));
            let row = sqlx::raw_sql(sqlx::AssertSqlSafe(text))
                .fetch_one(&db)
                .await?;
            row.try_get(0)
        }
        4 => {
            db.transaction(|mut tx| async move {
                sqlx::query_scalar(TEXTS[which as usize])
                    .bind(i64::from(call))
                    .fetch_one(&mut tx)
                    .await
            })
            .await
        }
        5 => {
            let mut tx = db.begin().await?;
            let answer = query.fetch_one(&mut tx).await?;
            tx.commit().await?;
            Ok(answer)
        }
        _ => {
            let statement = (&db)
                .prepare(sqlx::SqlStr::from_static(TEXTS[which as usize]))
                .await?;
            let query = sqlx::Statement::query(&statement).bind(i64::from(call));
            query.fetch_one(&db).await?.try_get(0)
        }
    }
}

async fn ask_plainly(pool: PgPool, which: u32, call: u32) -> Result<i64, sqlx::Error> {
    let query = sqlx::query_scalar(TEXTS[which as usize]).bind(i64::from(call));
    query.persistent(false).fetch_one(&pool).await
}

/// Has many clients at once ask what they know the answer to.
async fn crowd<F, Fut>(ask: F) -> Answers
where
    F: Fn(u32, u32) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<i64, sqlx::Error>> + Send,
{
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let ask = ask.clone();
        clients.spawn(async move {
            let mut answers = Answers::default();
            for call in 0..CALLS {
                let which = (client + call) % 3;
                let known = i64::from(call * 10 + which);
                match ask(which, call).await {
                    Ok(answer) if answer == known => answers.right += 1,
                    Ok(_) => answers.wrong += 1,
                    Err(error) => {
                        answers.failed += 1;
                        answers.first.get_or_insert(error.to_string());
                    }
                }
            }
            answers
        });
    }
    let mut all = Answers::default();
    while let Some(answers) = clients.join_next().await {
        let answers = answers.unwrap();
        all.right += answers.right;
        all.wrong += answers.wrong;
        all.failed += answers.failed;
        all.first = all.first.or(answers.first);
    }
    assert_eq!(all.right + all.wrong + all.failed, CLIENTS * CALLS);
    all
}

#[derive(Debug, Default)]
struct Answers {
    right: u32,
    wrong: u32,
    failed: u32,
    /// The first failure.
    first: Option<String>,
}

const TEXTS: [&str; 3] = [
    "SELECT $1 * 10::bigint",
    "SELECT $1 * 10::bigint + 1",
    "SELECT $1 * 10::bigint + 2",
];

const CLIENTS: u32 = 20;

/// Of each client.
const CALLS: u32 = 100;

#[tokio::test]
async fn a_call_takes_four_round_trips_and_a_text_one() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let proxy = Proxy::start(pooler.port()).await;
    let db = behind(proxy.port(), web().pool_size(1)).await?;
    let query = || sqlx::query("SELECT $1::int").bind(7);
    for _ in 0..3 {
        proxy.take_counts();
        query().execute(&db).await?;
        assert_eq!(proxy.take_counts().round_trips, 4);
        query().fetch(&db).try_collect::<Vec<_>>().await?;
        assert_eq!(proxy.take_counts().round_trips, 4);
        sqlx::raw_sql("SELECT 7; SELECT 8").execute(&db).await?;
        assert_eq!(proxy.take_counts().round_trips, 1);
        let mut tx = db.begin().await?;
        for _ in 0..3 {
            query().execute(&mut tx).await?;
        }
        tx.commit().await?;
        assert_eq!(proxy.take_counts().round_trips, 2 + 3 * 2);
    }
    Ok(())
}

#[tokio::test]
async fn what_stands_in_between_is_found_out_and_told_once() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let (log, _guard) = Log::start();
    let direct: PgDb = config(server.port(), web()).connect().await?;
    assert_eq!(direct.pooler(), PoolerMode::Direct);
    assert_eq!(log.take(), [""; 0]);

    let ignoring = |what: &str| format!("ignore_startup_parameters={what}");
    for (settings, why) in [
        (None, "it refuses settings when connecting"),
        (
            Some(ignoring("extra_float_digits")),
            "it refuses settings when connecting",
        ),
        (
            Some(ignoring("extra_float_digits,options")),
            "settings sent when connecting have no effect",
        ),
    ] {
        let settings: Vec<&str> = settings.as_deref().into_iter().collect();
        let pooler = PgBouncer::start_with(&server, &settings);
        let db: PgDb = config(pooler.port(), web()).connect().await?;
        assert_eq!(db.pooler(), PoolerMode::TransactionPlain, "{settings:?}");
        let shown = format!("{db:?}");
        assert!(shown.contains("pooler: TransactionPlain"), "{shown}");
        let lines = log.take();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("behind a pooler mode=TransactionPlain"),
            "{lines:?}"
        );
        assert!(lines[0].contains(why), "{lines:?}");
        sqlx::query("SELECT 1").execute(&db).await?;

        // Whoever says so knows better.
        let told = config(pooler.port(), web()).pooler(PoolerMode::TransactionWithPrepared);
        let told: PgDb = told.connect().await?;
        assert_eq!(told.pooler(), PoolerMode::TransactionWithPrepared);
        let lines = log.take();
        assert!(
            lines.len() == 1 && lines[0].contains("it was told"),
            "{lines:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_of_ones_own_is_refused_where_its_statements_could_be_strangers()
-> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    let lease = db.acquire().await.map(drop);
    let call = db.call(|_| async { Ok(()) }).await;
    let begun = sqlx::Acquire::begin(&db).await.map(drop);
    for refused in [lease, call, begun] {
        let error = refused.unwrap_err();
        assert!(matches!(error, sqlx::Error::Configuration(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("use `begin` or `transaction`"), "{said}");
    }
    let prepared = config(pooler.port(), web()).pooler(PoolerMode::TransactionWithPrepared);
    let prepared: PgDb = prepared.connect().await?;
    prepared.acquire().await?.ping().await?;
    Ok(())
}

#[tokio::test]
async fn a_pooler_that_had_no_server_in_time_is_overloaded() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let one = ["default_pool_size=1", "query_wait_timeout=1"];
    let pooler = PgBouncer::start_with(&server, &one);
    let preset = web().pool_size(1);
    // What waits: the question whether a new connection is well, the same of an old one, a BEGIN, a text.
    for (was_used, rest, text) in [
        (false, Duration::ZERO, false),
        (true, Duration::from_secs(1), false),
        (true, Duration::ZERO, false),
        (true, Duration::ZERO, true),
    ] {
        let kinds = Kinds::default();
        let config = config(pooler.port(), preset.clone()).pooler(PoolerMode::TransactionPlain);
        let db: PgDb = config.builder()?.observer(kinds.clone()).build()?;
        if was_used {
            sqlx::query("SELECT 1").execute(&db).await?;
        }
        sleep(rest).await;
        let hog = hog(&pooler).await;
        let begin = Instant::now();
        let error = if text {
            sqlx::raw_sql("SELECT 1").execute(&db).await.unwrap_err()
        } else {
            sqlx::query("SELECT 1").execute(&db).await.unwrap_err()
        };
        println!("no server: {error} after {:?}", begin.elapsed());
        let said = error.as_database_error().map(DatabaseError::message);
        assert_eq!(said, Some("query_wait_timeout"), "{error:?}");
        let kinds = kinds.take();
        assert!(kinds.len() >= 2, "{kinds:?}");
        assert!(
            kinds.iter().all(|kind| *kind == Kind::Overloaded),
            "{kinds:?}"
        );
        drop(hog);
    }
    Ok(())
}

#[tokio::test]
async fn while_a_pooler_is_full_nobody_loses_his_place() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start_with(&server, &["default_pool_size=1"]);
    let db = behind(pooler.port(), web().pool_size(5)).await?;
    let all = || {
        let mut calls = JoinSet::new();
        for _ in 0..5 {
            let db = db.clone();
            calls.spawn(async move {
                let query = sqlx::query("SELECT pg_sleep(0.01)");
                query.execute(db.once()).await.map(drop)
            });
        }
        calls.join_all()
    };
    all().await.into_iter().collect::<Result<(), _>>()?;
    // Now each will be asked first whether it is well.
    sleep(Duration::from_secs(1)).await;
    let size = db.pool().size();
    assert_eq!(size, 5);
    let hog = hog(&pooler).await;
    let calls = tokio::spawn(all());
    sleep(Duration::from_secs(2)).await;
    assert!(!calls.is_finished());
    drop(hog);
    calls
        .await
        .unwrap()
        .into_iter()
        .collect::<Result<(), _>>()?;
    assert_eq!((db.stats().disconnects, db.pool().size()), (0, 5));

    // Who has no time left hears why.
    let hurried = web().pool_size(1).acquire(Duration::from_millis(700));
    let kinds = Kinds::default();
    let config = config(pooler.port(), hurried).pooler(PoolerMode::TransactionPlain);
    let hurried: PgDb = config.builder()?.observer(kinds.clone()).build()?;
    let _hog = self::hog(&pooler).await;
    let error = sqlx::query("SELECT 1").execute(&hurried).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the connection did not answer within 70"),
        "{error}"
    );
    let kinds = kinds.take();
    assert!(kinds.contains(&Kind::Overloaded), "{kinds:?}");
    assert!(
        kinds.iter().all(|kind| *kind == Kind::Overloaded),
        "{kinds:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_session_that_an_operator_ended_is_ambiguous_behind_a_pooler_outside_of_transactions()
-> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    let direct: PgDb = config(server.port(), web()).connect().await?;
    for (view, text, succeeds) in [
        (direct.clone(), true, true),
        (direct, false, true),
        (db.clone(), true, false),
        (db.idempotent(), true, true),
        // It has a transaction around it, which was rolled back.
        (db, false, true),
    ] {
        let call = tokio::spawn({
            let view = view.clone();
            async move {
                if text {
                    sqlx::raw_sql("SELECT pg_sleep(0.5)").execute(view).await
                } else {
                    sqlx::query("SELECT pg_sleep(0.5)").execute(view).await
                }
            }
        });
        while terminate_sleepers(&server).await == 0 {
            assert!(!call.is_finished());
        }
        let result = call.await.unwrap();
        assert_eq!(result.is_ok(), succeeds, "text {text} {view:?}: {result:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_on_the_servers_of_a_pooler() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let db = db.clone();
        clients.spawn(async move {
            for call in 0..10 {
                leave_something(&db, client + call).await.unwrap();
            }
        });
    }
    clients.join_all().await;
    comes_to_rest(&db).await;

    let mut servers = Vec::new();
    for _ in 0..3 {
        let mut connection = pooler.connect().await;
        sqlx::raw_sql("BEGIN").execute(&mut connection).await?;
        servers.push(connection);
    }
    let mut pids = Vec::new();
    for server in &mut servers {
        // What PgBouncer itself sets when another client gets the connection is not ours.
        let left = sqlx::raw_sql(
            "SELECT pg_backend_pid()::text, \
             (SELECT coalesce(string_agg(name || ' = ' || setting, ', '), '') FROM pg_settings WHERE source = 'session' AND name NOT IN \
             ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')), \
             (SELECT coalesce(string_agg(statement, ', '), '') FROM pg_prepared_statements)",
        );
        let row = left.fetch_one(server).await?;
        assert_eq!((row.get(1), row.get(2)), ("", ""));
        pids.push(row.get::<String, _>(0));
    }
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 3);
    Ok(())
}

/// What leaves something behind on a session, if nobody looks after it.
async fn leave_something(db: &PgDb, which: u32) -> Result<(), sqlx::Error> {
    let text = TEXTS[(which % 3) as usize];
    match which % 6 {
        0 => sqlx::query(text).bind(1).execute(db).await.map(drop),
        1 => {
            let failed = sqlx::query("SELECT 1 / $1::int").bind(0).execute(db).await;
            assert!(failed.is_err());
            Ok(())
        }
        2 => {
            let slow = sqlx::query("SELECT pg_sleep(10)").execute(db);
            let _ = timeout(Duration::from_millis(5), slow).await;
            Ok(())
        }
        which => {
            let mut tx = db.begin().await?;
            let named = sqlx::query_scalar(text).bind(i64::from(which) * 100);
            let answer: i64 = named.fetch_one(tx.connection()).await?;
            assert_eq!(answer / 1_000, i64::from(which));
            match which {
                3 => tx.commit().await,
                4 => tx.rollback().await,
                _ => Ok(()),
            }
        }
    }
}

#[tokio::test]
async fn a_call_that_was_dropped_behind_a_pooler_ends_on_the_server_and_gives_its_slot_back()
-> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    let soon = Duration::from_millis(50);
    for form in 0..4 {
        let slow = async {
            match form {
                0 => sqlx::query(SLOW).execute(&db).await.map(drop),
                1 => sqlx::query(SLOW)
                    .fetch(&db)
                    .try_collect()
                    .await
                    .map(|_: Vec<_>| ()),
                2 => {
                    let slow = |mut tx| async move { sqlx::query(SLOW).execute(&mut tx).await };
                    db.transaction(slow).await.map(drop)
                }
                _ => {
                    let mut tx = db.begin().await?;
                    sqlx::query(SLOW).execute(&mut tx).await.map(drop)
                }
            }
        };
        assert!(timeout(soon, slow).await.is_err());
        let took = all_quiet(&server, &db).await;
        println!("form {form}: dropped and quiet within {took:?}");
    }

    // Without a transaction around it, it is the role that must have the server look after its clients.
    let watched = "ALTER ROLE postgres SET client_connection_check_interval = 100";
    sqlx::raw_sql(watched)
        .execute(&mut server.connect().await)
        .await?;
    let pooler = PgBouncer::start(&server);
    let db = behind(pooler.port(), web()).await?;
    assert!(
        timeout(soon, sqlx::raw_sql(SLOW).execute(&db))
            .await
            .is_err()
    );
    all_quiet(&server, &db).await;
    Ok(())
}

#[tokio::test]
async fn a_call_that_was_dropped_behind_a_pooler_stops_nobody_elses() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let pooler = PgBouncer::start(&server);
    // Nobody asks who its connections are, before they are cleaned for the first time.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(pooler.options());
    let db = PgDb::builder(pool)
        .pooler(PoolerMode::TransactionPlain)
        .build()?;
    let dropped = |sql| {
        let call = sqlx::query(sql).execute(&db);
        timeout(Duration::from_millis(100), call)
    };
    sqlx::query("SELECT 1").execute(&db).await?;
    assert!(dropped("SELECT pg_sleep(0.105)").await.is_err());
    comes_to_rest(&db).await;
    let connections = db.pool().size();
    assert_eq!(connections, 1, "it ended by itself, and was asked");

    // The server is another client's now, and the other two are taken.
    let mut other = pooler.connect().await;
    let theirs = tokio::spawn(async move {
        let query = sqlx::raw_sql("SELECT pg_sleep(0.7)");
        query.execute(&mut other).await
    });
    sleep(Duration::from_millis(50)).await;
    let hogs = [hog(&pooler).await, hog(&pooler).await];
    assert!(dropped("SELECT 1").await.is_err());
    sleep(Duration::from_millis(50)).await;
    // One is for the call that was dropped, and through one the first could be stopped.
    drop(hogs);
    comes_to_rest(&db).await;
    theirs.await.unwrap()?;
    Ok(())
}

/// Takes a server of the pooler's, until it is dropped.
async fn hog(pooler: &PgBouncer) -> PgConnection {
    let mut connection = pooler.connect().await;
    sqlx::raw_sql("BEGIN")
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

/// Ends the sessions that sleep, as an operator would; says how many.
async fn terminate_sleepers(server: &Postgres) -> usize {
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'";
    let mut operator = server.connect().await;
    let ended = sqlx::raw_sql(terminate).fetch_all(&mut operator).await;
    ended.unwrap().len()
}

/// Waits until nothing runs on the server and no slot is taken; says how long it was.
async fn all_quiet(server: &Postgres, db: &PgDb) -> Duration {
    let begin = Instant::now();
    let mut operator = server.connect().await;
    loop {
        let busy = "SELECT count(*) FROM pg_stat_activity \
             WHERE state <> 'idle' AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let busy: i64 = sqlx::query_scalar(busy)
            .fetch_one(&mut operator)
            .await
            .unwrap();
        if busy == 0 && is_at_rest(db) {
            return begin.elapsed();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{busy} {}",
            db.stats()
        );
        sleep(Duration::from_millis(5)).await;
    }
}

async fn comes_to_rest(db: &PgDb) {
    let until = Instant::now() + Duration::from_secs(3);
    while !is_at_rest(db) {
        assert!(Instant::now() < until, "{}", db.stats());
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_at_rest(db: &PgDb) -> bool {
    let stats = db.stats();
    stats.in_use == 0 && stats.reaping == 0 && db.limiter().stats().in_flight == 0
}

const SLOW: &str = "SELECT pg_sleep(30)";

/// The kinds of the attempts that failed.
#[derive(Clone, Default)]
struct Kinds(Arc<Mutex<Vec<Kind>>>);

impl Kinds {
    fn take(&self) -> Vec<Kind> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Kinds {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Retry { kind, .. } | Event::GaveUp { kind, .. } = event {
            self.0.lock().unwrap().push(*kind);
        }
    }
}

/// What is logged of poolers.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Of this thread.
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines since it was last asked.
    fn take(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(text).unwrap();
        let lines = text.lines().filter(|line| line.contains("pooler"));
        lines.map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn web() -> Preset {
    Preset::web().pool_size(CLIENTS)
}

/// In the mode that knows nothing of prepared statements.
async fn behind(port: u16, preset: Preset) -> Result<PgDb, sqlx::Error> {
    config(port, preset)
        .pooler(PoolerMode::TransactionPlain)
        .connect()
        .await
}

fn config(port: u16, preset: Preset) -> Config {
    Config::new(format!(
        "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    ))
    .preset(preset)
}
