//! Which wall did a call hit? A full pool, an impatient client, a server that is down, full, silent or not to be found are told apart.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use steadfast::{
    Event, Kind, Observer, Overload, Rejected,
    breaker::{State, WhenOpen},
    db::{PgDb, PoolFull, Preset},
    deadline,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    proxy::{Fault, Proxy},
    server::postgres::{Postgres, Stop},
};

const MS: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_full_queue_in_front_of_the_pool_is_no_outage() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let (db, log) = db(pool(server.options(), 1), Preset::web().acquire(100 * MS));
    let lease = db.acquire().await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let db = db.clone();
        calls.spawn(async move { read(&db).await.unwrap_err() });
    }
    let (mut full, mut waited) = (0, 0);
    for error in calls.join_all().await {
        match Rejected::of(&error) {
            Some(Rejected::Overloaded {
                reason: Overload::QueueFull,
            }) => full += 1,
            Some(Rejected::Overloaded {
                reason: Overload::MaxWait,
            }) => waited += 1,
            _ => panic!("{error}"),
        }
    }
    assert_eq!((full, waited), (150, 50));
    assert_eq!(db.breaker().state(), State::Closed);
    assert_eq!(log.transitions(), 0);
    drop(lease);
    read(&db).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_others_have_emptied_is_saturated_and_no_outage() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let pool = pool(server.options(), 10);
    let mut raw = Vec::new();
    for _ in 0..10 {
        raw.push(pool.acquire().await.unwrap());
    }
    let (db, log) = db(pool, Preset::web().acquire(150 * MS));
    // Each of them has a slot, so that each finds out by itself.
    for _ in 0..6 {
        for error in many(&db.once(), 10).await {
            assert!(PoolFull::of(&error).is_some(), "{error}");
        }
    }
    assert_eq!(db.breaker().state(), State::Closed);
    assert_eq!(log.transitions(), 0);

    let error = read(&db).await.unwrap_err();
    let full = PoolFull::of(&error).unwrap();
    assert_eq!((full.max, full.ours), (10, 0));
    assert!(full.holder.is_none());
    assert_eq!(log.kinds(), [Kind::Saturated; 3]);
    assert_eq!(log.gave_up(), 1);
    drop(raw);
    read(&db).await.unwrap();
}

#[tokio::test]
async fn a_full_pool_names_who_has_held_a_connection_longest() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let pool = pool(server.options(), 3);
    let (db, _) = db(pool.clone(), Preset::web().acquire(150 * MS));
    let held = db.operation("report").acquire().await.unwrap();
    let line = line!() - 1;
    let _raw = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let error = read(&db.once()).await.unwrap_err();
    let full = PoolFull::of(&error).unwrap();
    assert_eq!((full.max, full.ours), (3, 1));
    let holder = full.holder.as_ref().unwrap();
    let location = holder.location.unwrap();
    assert_eq!((location.file(), location.line()), (file!(), line));
    assert_eq!(holder.operation.as_ref().unwrap().as_str(), "report");
    let text = error.to_string();
    assert!(text.contains(&format!("{}:{line}", file!())), "{text}");
    drop(held);
}

#[tokio::test]
async fn an_impatient_client_is_no_outage() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let (db, log) = db(pool(server.options(), 5), Preset::web());
    impatient(&db.once(), "SELECT pg_sleep(0.1)", 100 * MS).await;
    let mut sent = 0;
    for _ in 0..15 {
        while db.limiter().stats().in_flight > 0 {
            sleep(MS).await;
        }
        sent += impatient(&db.idempotent(), "SELECT pg_sleep(2)", 5 * MS).await;
    }
    assert!(sent >= 60, "{sent}");
    assert_eq!(db.breaker().state(), State::Closed);
    assert_eq!(log.transitions(), 0);
    // What they have left was stopped.
    let started = Instant::now();
    read(&db).await.unwrap();
    assert!(started.elapsed() < 1_000 * MS, "{:?}", started.elapsed());
}

#[tokio::test]
async fn connections_that_nobody_waits_for_any_more_are_made_all_the_same() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let proxy = Proxy::start(server.port()).await;
    proxy.set(Fault::Latency(5 * MS));
    let (db, log) = db(pool(server.options().port(proxy.port()), 5), Preset::web());
    // Making one takes longer than that.
    for _ in 0..30 {
        impatient(&db, "SELECT 1", 5 * MS).await;
    }
    assert_eq!(log.transitions(), 0);
    read(&db).await.unwrap();
    let connections = proxy.counts().connections;
    assert!(connections <= 7, "{connections}");
}

/// Calls with a deadline that is too short for them. How many were sent.
async fn impatient(db: &PgDb, sql: &'static str, within: Duration) -> usize {
    let mut running = JoinSet::new();
    for _ in 0..5 {
        let db = db.clone();
        let at = Instant::now() + within;
        running.spawn(deadline::scope(at, async move {
            sqlx::query(sql).execute(&db).await.unwrap_err()
        }));
    }
    let mut sent = 0;
    for error in running.join_all().await {
        match Rejected::of(&error) {
            Some(Rejected::DeadlineExceeded { sent: was_sent }) => sent += usize::from(*was_sent),
            Some(Rejected::Overloaded {
                reason: Overload::TooLittleTime,
            }) => {}
            _ => panic!("{error}"),
        }
    }
    sent
}

#[tokio::test]
async fn a_connection_may_be_given_back_outside_of_any_runtime() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let (db, _) = db(pool(server.options(), 1), Preset::web());
    for _ in 0..2 {
        let mut lease = db.acquire().await.unwrap();
        thread::spawn(move || drop(lease)).join().unwrap();
        lease = db.acquire().await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut *lease).await.unwrap();
        thread::spawn(move || drop(lease)).join().unwrap();
        read(&db).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_told_with_its_own_error_and_soon() {
    let Some(mut server) = Postgres::start() else {
        return;
    };
    let (db, log) = db(pool(server.options(), 5), Preset::web());
    read(&db).await.unwrap();
    server.stop(Stop::Fast);
    // A connection that was used a moment ago tells of its own end.
    read(&db.once()).await.unwrap_err();
    for _ in 0..2 {
        let started = Instant::now();
        let error = read(&db.once()).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(
            io_kind(&error),
            Some(io::ErrorKind::ConnectionRefused),
            "{error}"
        );
        assert!(took < 300 * MS, "{took:?}");
    }
    read(&db).await.unwrap_err();
    assert_eq!(log.kinds(), [Kind::Unavailable; 3]);
    // From now on it takes no time at all.
    for _ in 0..10 {
        many(&db.once(), 5).await;
    }
    assert_eq!(db.breaker().state(), State::Open);
    let started = Instant::now();
    let error = read(&db).await.unwrap_err();
    assert!(
        matches!(Rejected::of(&error), Some(Rejected::CircuitOpen { .. })),
        "{error}"
    );
    assert!(started.elapsed() < 50 * MS);
}

#[tokio::test]
async fn a_server_without_a_slot_is_told_with_its_own_error() {
    let Some(server) =
        Postgres::start_with(&["max_connections=6", "superuser_reserved_connections=0"])
    else {
        return;
    };
    let mut taken = vec![server.connect().await];
    sqlx::raw_sql("CREATE ROLE few LOGIN CONNECTION LIMIT 1")
        .execute(&mut taken[0])
        .await
        .unwrap();
    let few = server.options().username("few");
    taken.push(PgConnection::connect_with(&few).await.unwrap());
    refused_for_want_of_a_slot(few).await;
    while taken.len() < 6 {
        taken.push(server.connect().await);
    }
    refused_for_want_of_a_slot(server.options()).await;
}

async fn refused_for_want_of_a_slot(options: PgConnectOptions) {
    let (db, log) = db(pool(options, 3), Preset::web());
    let started = Instant::now();
    let error = read(&db.once()).await.unwrap_err();
    assert!(started.elapsed() < 300 * MS, "{:?}", started.elapsed());
    assert_eq!(code(&error).as_deref(), Some("53300"), "{error}");
    read(&db).await.unwrap_err();
    assert_eq!(log.kinds(), [Kind::Overloaded; 3]);
}

#[tokio::test]
async fn a_server_that_is_silent_costs_the_time_to_connect() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let proxy = Proxy::start(server.port()).await;
    proxy.set(Fault::BlackHole);
    let options = server.options().port(proxy.port());
    let (db, log) = db(
        pool(options, 3),
        Preset::web().connect(300 * MS).acquire(1_000 * MS),
    );
    let started = Instant::now();
    let error = read(&db.once()).await.unwrap_err();
    let took = started.elapsed();
    assert_eq!(io_kind(&error), Some(io::ErrorKind::TimedOut), "{error}");
    assert!(took < 700 * MS, "{took:?}");
    read(&db).await.unwrap_err();
    assert_eq!(log.kinds(), [Kind::Unavailable; 3]);
    proxy.set(Fault::Pass);
    read(&db).await.unwrap();
}

/// The look at the server that the call had begun meanwhile held the lock that its next look waited for.
#[tokio::test]
async fn a_call_whose_connect_is_cut_is_served_once_the_server_answers() {
    let Some(server) = Postgres::start() else {
        return;
    };
    for _ in 0..3 {
        let proxy = Proxy::start(server.port()).await;
        proxy.set(Fault::BlackHole);
        let pool = pool(server.options().port(proxy.port()), 3);
        let waits = Preset::web().when_open(WhenOpen::Wait { queue: 10 });
        let (db, _) = db(pool, waits);
        let call = tokio::spawn(async move { read(&db).await });
        // The pool's own connect, and the one that looks why it takes so long.
        while proxy.counts().connections < 2 {
            sleep(MS).await;
        }
        sleep(50 * MS).await;
        proxy.set(Fault::Pass);
        proxy.kill_all();
        let served = timeout(2_000 * MS, call).await;
        served
            .expect("it does not wait for itself")
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn connections_that_have_gone_silent_are_replaced() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port());
    let (db, _) = db(
        pool(options, 3),
        Preset::web()
            .connect(300 * MS)
            .acquire(1_000 * MS)
            .statement(300 * MS)
            .lock(300 * MS),
    );
    assert_eq!(many(&db, 3).await.len(), 0);
    proxy.set(Fault::BlackHole);
    let started = Instant::now();
    let error = read(&db.once()).await.unwrap_err();
    let took = started.elapsed();
    assert!(took < 1_200 * MS, "{took:?}");
    assert!(!matches!(error, sqlx::Error::PoolTimedOut), "{error}");
    // Those that are there stay silent: a firewall has forgotten them.
    proxy.set(Fault::Pass);
    let started = Instant::now();
    for _ in 0..10 {
        read(&db).await.unwrap();
    }
    assert!(started.elapsed() < 2_000 * MS, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_host_that_is_not_to_be_found_is_told_with_its_own_error() {
    if server::skipped() {
        return;
    }
    // A label may have 63 letters, so nobody is asked.
    let options = PgConnectOptions::new_without_pgpass().host(&"a".repeat(64));
    let (db, log) = db(pool(options, 3), Preset::web());
    let started = Instant::now();
    let error = read(&db.once()).await.unwrap_err();
    assert!(started.elapsed() < 1_000 * MS, "{:?}", started.elapsed());
    let text = error.to_string();
    assert!(text.contains("failed to lookup address"), "{text}");
    read(&db).await.unwrap_err();
    assert_eq!(log.kinds(), [Kind::Unavailable; 3]);
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn a_mariadb_without_a_slot_is_told_with_its_own_error() {
    use sqlx::mysql::{MySqlDatabaseError, MySqlPoolOptions};
    use steadfast::db::MySqlDb;

    use crate::server::mariadb::MariaDb;

    let Some(server) = MariaDb::start_with(&["--max-connections=10"]) else {
        return;
    };
    let mut taken = Vec::new();
    // One more is kept for the administrator.
    for _ in 0..11 {
        taken.push(server.connect().await);
    }
    let log = Log::default();
    let pool = MySqlPoolOptions::new()
        .max_connections(3)
        .connect_lazy_with(server.options());
    let db = MySqlDb::builder(pool)
        .observer(log.clone())
        .build()
        .unwrap();
    let started = Instant::now();
    let error = sqlx::query("SELECT 1")
        .execute(&db.once())
        .await
        .unwrap_err();
    assert!(started.elapsed() < 300 * MS, "{:?}", started.elapsed());
    let error = error.into_database_error().unwrap();
    assert_eq!(error.downcast_ref::<MySqlDatabaseError>().number(), 1040);
    sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
    assert_eq!(log.kinds(), [Kind::Overloaded; 3]);
    taken.clear();
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .connect_lazy_with(options)
}

fn db(pool: PgPool, preset: Preset) -> (PgDb, Log) {
    let log = Log::default();
    let db = PgDb::builder(pool)
        .preset(preset)
        .observer(log.clone())
        .build();
    (db.unwrap(), log)
}

async fn read(db: &PgDb) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(db).await.map(drop)
}

/// The errors of so many calls at a time.
async fn many(db: &PgDb, calls: usize) -> Vec<sqlx::Error> {
    let mut running = JoinSet::new();
    for _ in 0..calls {
        let db = db.clone();
        running.spawn(async move { read(&db).await });
    }
    let results = running.join_all().await;
    results.into_iter().filter_map(Result::err).collect()
}

fn io_kind(error: &sqlx::Error) -> Option<io::ErrorKind> {
    match error {
        sqlx::Error::Io(error) => Some(error.kind()),
        _ => None,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// What attempts meant that were repeated or given up, and the circuit's transitions.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    kinds: Vec<Kind>,
    gave_up: usize,
    transitions: usize,
}

impl Log {
    fn kinds(&self) -> Vec<Kind> {
        self.0.lock().unwrap().kinds.clone()
    }

    fn gave_up(&self) -> usize {
        self.0.lock().unwrap().gave_up
    }

    fn transitions(&self) -> usize {
        self.0.lock().unwrap().transitions
    }
}

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        let mut seen = self.0.lock().unwrap();
        match event {
            Event::Retry { kind, .. } => seen.kinds.push(*kind),
            Event::GaveUp { kind, .. } => {
                seen.kinds.push(*kind);
                seen.gave_up += 1;
            }
            Event::Transition { .. } => seen.transitions += 1,
            _ => {}
        }
    }
}
