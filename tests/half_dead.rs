//! `Db` on networks that are neither up nor down: peers that are silent, and links that are slow.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "real servers live by the real clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::time::{Duration, Instant};

use sqlx::{PgPool, postgres::PgPoolOptions};
use steadfast::{
    Rejected,
    db::{Config, PgDb, Preset},
};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    proxy::{Fault, Proxy},
    server::postgres::Postgres,
};

#[tokio::test]
async fn of_frozen_connections_only_the_first_costs_time_where_a_plain_pool_fails_for_each()
-> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let db = connect(server.port(), web()).await?;
    with_all(|| async { db.acquire().await.unwrap() }).await;
    settle().await;
    let frozen = Frozen::of(&server).await;
    let took = three_calls(&db).await?;
    println!("Db with a pool of its own: {took:?}");
    assert!(took[0] >= DOUBTED && took[0] < 3 * DOUBTED, "{took:?}");
    assert!(took[1] + took[2] < DOUBTED, "{took:?}");
    drop(frozen);
    db.close().await;

    // One that pings by itself, as it does by default, and for as long as it likes.
    let db = PgDb::new(plain(&server));
    with_all(|| async { db.acquire().await.unwrap() }).await;
    settle().await;
    let frozen = Frozen::of(&server).await;
    let took = three_calls(&db).await?;
    println!("Db with a plain pool: {took:?}");
    assert!(took[0] >= DOUBTED && took[0] < 4 * DOUBTED, "{took:?}");
    assert!(took[1] + took[2] < DOUBTED, "{took:?}");
    drop(frozen);
    db.close().await;

    let pool = plain(&server);
    with_all(|| async { pool.acquire().await.unwrap() }).await;
    settle().await;
    let frozen = Frozen::of(&server).await;
    for _ in 0..3 {
        let begin = Instant::now();
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error:?}");
        assert!(begin.elapsed() >= ACQUIRE);
    }
    drop(frozen);
    Ok(())
}

#[tokio::test]
async fn while_the_whole_server_is_silent_no_connection_is_given_up() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let db = connect(server.port(), web()).await?;
    with_all(|| async { db.acquire().await.unwrap() }).await;
    settle().await;
    let mut frozen = Frozen::of(&server).await;
    let before = frozen.pids.clone();
    frozen.also(server.pid());
    let call = tokio::spawn({
        let db = db.clone();
        async move { sqlx::query("SELECT 1").execute(&db).await }
    });
    sleep(3 * DOUBTED).await;
    assert!(!call.is_finished());
    drop(frozen);
    call.await.unwrap()?;
    assert_eq!(db.stats().disconnects, 0);
    let after = server.backends().await;
    assert!(
        before.iter().all(|pid| after.contains(pid)),
        "{before:?} {after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_slow_is_not_taken_for_dead() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let proxy = Proxy::start(server.port()).await;
    let db = connect(proxy.port(), web()).await?;
    settle().await;
    proxy.take_counts();
    // A ping takes longer than what is waited before another connection is asked.
    proxy.set(Fault::Latency(DOUBTED.mul_f64(0.6)));
    for _ in 0..2 {
        sqlx::query("SELECT 1").execute(&db).await?;
        // To be given back, which asks once more, takes as long.
        settle().await;
        settle().await;
    }
    assert_eq!(db.stats().disconnects, 0);
    assert_eq!(db.pool().size(), 1);
    let counts = proxy.counts();
    assert!(counts.connections <= 2, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_falls_silent_in_a_statement_costs_one_attempt() -> Result<(), sqlx::Error>
{
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let proxy = Proxy::start(server.port()).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(server.options().port(proxy.port()));
    let attempt = Duration::from_millis(400);
    let db = PgDb::builder(pool).attempt_deadline(attempt).build()?;
    sqlx::query("SELECT 1").execute(&db).await?;
    let statement = "SELECT pg_sleep(0.1)";

    let begin = Instant::now();
    let mut calls = JoinSet::new();
    for view in [db.idempotent(), db.clone()] {
        calls.spawn(async move { sqlx::query(statement).execute(view).await.map(drop) });
    }
    sleep(Duration::from_millis(50)).await;
    proxy.set(Fault::BlackHole);
    sleep(attempt).await;
    proxy.set(Fault::Pass);
    let ends = calls.join_all().await;
    let took = begin.elapsed();
    println!("fell silent in a statement: {took:?}");
    let failed: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{ends:?}");
    let rejected = Rejected::of(failed[0]);
    assert_eq!(rejected, Some(&Rejected::DeadlineExceeded { sent: true }));
    assert!(took >= attempt && took < 3 * attempt, "{took:?}");
    comes_to_rest(&db).await;
    Ok(())
}

#[tokio::test]
async fn what_is_given_back_to_a_silent_peer_does_not_keep_its_slot() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let proxy = Proxy::start(server.port()).await;
    for db in [
        connect(proxy.port(), web()).await?,
        PgDb::new(
            PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .connect_lazy_with(server.options().port(proxy.port())),
        ),
    ] {
        with_all(|| async { db.acquire().await.unwrap() }).await;
        // Given back half a second after its use, to a peer that is silent by then.
        proxy.set(Fault::BlackHole);
        settle().await;
        assert_eq!(db.pool().size(), CONNECTIONS);
        sleep(3 * DOUBTED).await;
        assert_eq!(db.pool().size(), 0);
        proxy.set(Fault::Pass);
        proxy.kill_all();
        let begin = Instant::now();
        with_all(|| async { db.acquire().await.unwrap() }).await;
        assert!(begin.elapsed() < DOUBTED, "{:?}", begin.elapsed());
        db.close().await;
    }
    Ok(())
}

#[tokio::test]
async fn to_connect_to_a_black_hole_ends_with_an_error_that_says_so() -> Result<(), sqlx::Error> {
    let Some(server) = Postgres::start() else {
        return Ok(());
    };
    let proxy = Proxy::start(server.port()).await;
    proxy.set(Fault::BlackHole);
    let connect_limit = web()
        .connect(Duration::from_millis(300))
        .acquire(Duration::from_millis(700));
    let acquire_limit = web()
        .connect(Duration::from_millis(700))
        .acquire(Duration::from_millis(300));
    for (preset, limit, said) in [
        (connect_limit, 300, "the server did not answer within 300ms"),
        (
            acquire_limit,
            300,
            "no connection to the server was made within 300ms",
        ),
    ] {
        let db: PgDb = config(proxy.port(), preset).connect_lazy()?;
        let begin = Instant::now();
        let error = sqlx::query("SELECT 1")
            .execute(db.once())
            .await
            .unwrap_err();
        let took = begin.elapsed();
        println!("black hole: {error} after {took:?}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(took >= Duration::from_millis(limit), "{took:?}");
        assert!(took < Duration::from_millis(2 * limit), "{took:?}");
    }
    Ok(())
}

/// How long a connection may be silent before another one is asked.
const DOUBTED: Duration = Duration::from_millis(500);

/// The time of a plain pool.
const ACQUIRE: Duration = Duration::from_millis(2_500);

const CONNECTIONS: u32 = 3;

fn web() -> Preset {
    Preset::web().pool_size(CONNECTIONS)
}

fn config(port: u16, preset: Preset) -> Config {
    Config::new(format!(
        "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    ))
    .preset(preset)
}

async fn connect(port: u16, preset: Preset) -> Result<PgDb, sqlx::Error> {
    config(port, preset).connect().await
}

fn plain(server: &Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .connect_lazy_with(server.options())
}

async fn three_calls(db: &PgDb) -> Result<[Duration; 3], sqlx::Error> {
    let mut took = [Duration::ZERO; 3];
    for took in &mut took {
        let begin = Instant::now();
        sqlx::query("SELECT 1").execute(db).await?;
        *took = begin.elapsed();
    }
    Ok(took)
}

/// Has all connections in use at once.
async fn with_all<T, F: Future<Output = T>>(acquire: impl Fn() -> F) {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(acquire().await);
    }
}

/// Until what was in use a moment ago lies in the pool.
async fn settle() {
    sleep(2 * DOUBTED).await;
}

async fn comes_to_rest(db: &PgDb) {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let (stats, slots) = (db.stats(), db.limiter().stats());
        if stats.in_use == 0 && stats.reaping == 0 && slots.in_flight == 0 {
            return;
        }
        assert!(Instant::now() < until, "{stats} {slots:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Processes that do nothing until this is dropped.
struct Frozen {
    pids: Vec<u32>,
}

impl Frozen {
    /// The sessions of the server.
    async fn of(server: &Postgres) -> Self {
        let pids = server.backends().await;
        server::send("STOP", &pids);
        Self { pids }
    }

    fn also(&mut self, pid: u32) {
        server::send("STOP", &[pid]);
        self.pids.push(pid);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        server::send("CONT", &self.pids);
    }
}
