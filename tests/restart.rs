//! A server that is restarted under load: no call that may be repeated fails, and nobody waits much longer than with sqlx's pool alone.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/server.rs"]
mod server;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{PgPool, postgres::PgPoolOptions};
use steadfast::{
    breaker::WhenOpen,
    db::{PgDb, Preset},
};
use tokio::{task::JoinSet, time::sleep};

use crate::server::postgres::{Postgres, Stop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_half_a_second_fails_no_call() {
    for how in [Stop::Fast, Stop::Immediate] {
        restart(how, Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_three_seconds_fails_no_call() {
    for how in [Stop::Fast, Stop::Immediate] {
        restart(how, Duration::from_secs(3)).await;
    }
}

/// Fifty clients on a `Db` and fifty on a bare pool go through the same outage.
async fn restart(how: Stop, downtime: Duration) {
    let Some(mut server) = Postgres::start() else {
        return;
    };
    let pool = || PgPoolOptions::new().max_connections(20);
    let bare = pool()
        .acquire_timeout(Duration::from_secs(30))
        .connect_lazy_with(server.options());
    // Starting takes the server up to a second.
    let deadline = downtime + Duration::from_secs(2);
    let db = PgDb::builder(pool().connect_lazy_with(server.options()))
        .preset(Preset::web().deadline(deadline).statement(deadline))
        .when_open(WhenOpen::Wait { queue: CLIENTS })
        .build()
        .unwrap();
    let time = BEFORE + downtime + Duration::from_secs(2);
    let ours = load(time, move || read_ours(db.idempotent()));
    let theirs = load(time, move || read_theirs(bare.clone()));
    let outage = async {
        sleep(BEFORE).await;
        let stopped = Instant::now();
        tokio::task::block_in_place(|| server.stop(how));
        sleep(downtime.saturating_sub(stopped.elapsed())).await;
        tokio::task::block_in_place(|| server.restart());
        (stopped, Instant::now())
    };
    let (ours, theirs, (stopped, ready)) = tokio::join!(ours, theirs, outage);

    let away = ready - stopped;
    let case = format!("{how:?}, away for {away:?}");
    assert!(
        away >= downtime && away + Duration::from_secs(1) < deadline,
        "{case}"
    );
    // Otherwise nobody noticed anything.
    assert!(!theirs.failures.is_empty(), "{case}");
    assert!(ours.took.iter().max() >= Some(&(downtime / 2)), "{case}");
    assert_eq!(ours.failures, Vec::<String>::new(), "{case}");
    let (gap, their_gap) = (ours.gap(), theirs.gap());
    println!(
        "{case}: {} calls, silent for {gap:?}, {:?} after it was ready; bare: {} calls, {} failed, silent for {their_gap:?}, {:?} after it was ready",
        ours.took.len(),
        ours.first_after(ready),
        theirs.took.len(),
        theirs.failures.len(),
        theirs.first_after(ready),
    );
    let most = Duration::from_millis(250);
    assert!(
        gap <= their_gap + most,
        "{case}: silent for {gap:?}, sqlx for {their_gap:?}"
    );
    let (first, their_first) = (ours.first_after(ready), theirs.first_after(ready));
    assert!(
        first <= their_first + most,
        "{case}: {first:?}, sqlx {their_first:?}"
    );
}

const READ: &str = "SELECT pg_sleep(0.01)";

async fn read_ours(db: PgDb) -> Result<(), sqlx::Error> {
    sqlx::query(READ).execute(&db).await.map(drop)
}

async fn read_theirs(pool: PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(READ).execute(&pool).await.map(drop)
}

const CLIENTS: usize = 50;

/// How long all is well first.
const BEFORE: Duration = Duration::from_millis(500);

/// What became of the calls.
#[derive(Default)]
struct Tally {
    /// When calls succeeded, and how long they took.
    ended: Vec<Instant>,
    took: Vec<Duration>,
    failures: Vec<String>,
}

impl Tally {
    /// The longest time without any success.
    fn gap(&self) -> Duration {
        let mut ended = self.ended.clone();
        ended.sort_unstable();
        let gaps = ended.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().expect("calls that succeed")
    }

    /// How long after that the first call succeeded.
    fn first_after(&self, ready: Instant) -> Duration {
        let after = self.ended.iter().filter(|ended| **ended >= ready);
        *after.min().expect("calls that succeed afterwards") - ready
    }
}

/// Clients each of whom makes its next call when the last one is over.
async fn load<F, Fut>(time: Duration, call: F) -> Tally
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), sqlx::Error>> + Send,
{
    let (call, until) = (Arc::new(call), Instant::now() + time);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let call = Arc::clone(&call);
        clients.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < until {
                let began = Instant::now();
                match call().await {
                    Ok(()) => {
                        tally.ended.push(Instant::now());
                        tally.took.push(began.elapsed());
                    }
                    Err(error) => tally.failures.push(error.to_string()),
                }
            }
            tally
        });
    }
    let mut all = Tally::default();
    for tally in clients.join_all().await {
        all.ended.extend(tally.ended);
        all.took.extend(tally.took);
        all.failures.extend(tally.failures);
    }
    all
}
