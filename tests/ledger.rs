//! What is committed is committed once: the fate of COMMITs that were lost, and transfers under fire.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use sqlx::postgres::PgPoolOptions;
use steadfast::{
    breaker::WhenOpen,
    db::{PgDb, TransactionError},
};
use tokio::{
    task::{JoinHandle, block_in_place},
    time::{sleep, timeout},
};

use crate::{
    ledger::{Settings, Way},
    proxy::{Fault, Proxy},
    server::{postgres::Postgres, send},
};

/// `examples/ledger_chaos.rs` does so for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_was_acknowledged_was_made_once_and_one_that_failed_was_not() {
    let settings = Settings {
        transfers: 300,
        workers: 16,
        kills: 20,
        cuts: 1,
        crashes: 1,
    };
    let Some(report) = ledger::run(Way::Steadfast, settings).await else {
        return;
    };
    let fates = 15;
    let broken = report.broken(settings, fates);
    let story = report.story();
    assert!(
        broken.is_empty(),
        "not seen: {broken:?}\n{report}\n{}\n{story}",
        report.fire
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_fire_makes_a_naive_loop_write_twice() {
    let settings = Settings {
        transfers: 100,
        workers: 16,
        kills: 0,
        cuts: 1,
        crashes: 0,
    };
    let Some(report) = ledger::run(Way::Naive, settings).await else {
        return;
    };
    assert!(report.duplicate > 0, "{report}\n{}", report.fire);
}

/// A crash forgets the numbers of the last transactions, and the server gives them out again. That of a lost one then belongs to another, and the other's fate
/// was taken for its own: a transaction that was gone was reported as committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_crash_forgot_is_repeated_although_its_number_was_used_again() {
    for (role, crash) in [
        ("postgres", Crash::Server),
        ("clerk", Crash::Server),
        ("clerk", Crash::Backend),
    ] {
        let Some(mut scene) = Scene::prepare(role).await else {
            return;
        };
        let (call, number) = scene.lose_a_commit(Commit::Stuck).await;
        scene.crash(crash).await;
        scene.use_numbers_up_to(number).await;
        scene.let_it_ask();
        in_time(call).await.unwrap();
        assert_eq!(scene.rows().await, 1, "{role}, {crash:?}");
        assert_eq!(scene.fates(), (0, 1), "{role}, {crash:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_a_number_that_no_other_has_had_since_the_crash_is_repeated() {
    let Some(mut scene) = Scene::prepare("clerk").await else {
        return;
    };
    let (call, _) = scene.lose_a_commit(Commit::Stuck).await;
    scene.crash(Crash::Server).await;
    scene.let_it_ask();
    in_time(call).await.unwrap();
    assert_eq!(scene.rows().await, 1);
    assert_eq!(scene.fates(), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_committed_before_a_crash_is_not_repeated() {
    for (role, crash) in [
        ("postgres", None),
        ("clerk", None),
        ("clerk", Some(Crash::Server)),
        ("clerk", Some(Crash::Backend)),
    ] {
        let Some(mut scene) = Scene::prepare(role).await else {
            return;
        };
        let (call, number) = scene.lose_a_commit(Commit::Done).await;
        if let Some(crash) = crash {
            scene.crash(crash).await;
        }
        scene.use_numbers_up_to(number + 3).await;
        scene.let_it_ask();
        in_time(call).await.unwrap();
        assert_eq!(scene.rows().await, 1, "{role}, {crash:?}");
        assert_eq!(scene.fates(), (1, 0), "{role}, {crash:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_no_longer_knows_which_numbers_are_from_before_the_crash_is_not_believed() {
    let Some(mut scene) = Scene::prepare("postgres").await else {
        return;
    };
    let (call, number) = scene.lose_a_commit(Commit::Done).await;
    scene.crash(Crash::Server).await;
    scene.use_numbers_up_to(number + 3).await;
    sqlx::query("CHECKPOINT")
        .execute(&mut scene.server.connect().await)
        .await
        .unwrap();
    scene.let_it_ask();
    let error = in_time(call).await.unwrap_err();
    let error = TransactionError::of(&error);
    assert!(
        matches!(error, Some(TransactionError::CommitUnknown(_))),
        "{error:?}"
    );
    assert_eq!(scene.fates(), (0, 0));
}

/// How far the COMMIT comes that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commit {
    /// The server never hears of it.
    Stuck,
    /// The server has carried it out; its answer is lost.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Server,
    /// The server ends all others when one crashes, and goes on.
    Backend,
}

/// A server, and a `Db` that can't reach it for a while.
struct Scene {
    server: Postgres,
    proxy: Arc<Proxy>,
    db: PgDb,
}

impl Scene {
    async fn prepare(role: &str) -> Option<Self> {
        // What is not committed is not written for long. What is written outlives the server without `fsync`, as the machine goes on.
        let settings = ["synchronous_commit=on", "wal_writer_delay=10s"];
        let server = Postgres::start_with(&settings)?;
        let sql = "CREATE TABLE mark (id int); CREATE ROLE clerk LOGIN; GRANT ALL ON mark TO clerk";
        sqlx::raw_sql(sql)
            .execute(&mut server.connect().await)
            .await
            .unwrap();
        let proxy = Proxy::start(server.port()).await;
        let options = server.options().port(proxy.port()).username(role);
        let pool = PgPoolOptions::new().max_connections(2);
        let db = PgDb::builder(pool.connect_lazy_with(options))
            .when_open(WhenOpen::Wait { queue: 10 })
            .deadline(Duration::from_secs(30))
            .build()
            .unwrap();
        let proxy = proxy.into();
        Some(Self { server, proxy, db })
    }

    /// Begins a transaction whose COMMIT has no answer. From then on nothing comes through until [`let_it_ask`](Self::let_it_ask). Also returns the
    /// transaction's number.
    async fn lose_a_commit(&self, commit: Commit) -> (JoinHandle<Result<(), sqlx::Error>>, i64) {
        let (db, proxy) = (self.db.clone(), Arc::clone(&self.proxy));
        let (told, number) = mpsc::channel();
        let call = tokio::spawn(async move {
            db.transaction(|mut tx| {
                let (proxy, told) = (&proxy, told.clone());
                async move {
                    sqlx::query("INSERT INTO mark VALUES (1)")
                        .execute(&mut tx)
                        .await?;
                    if tx.attempt() == 1 {
                        let number = sqlx::query_scalar("SELECT txid_current()");
                        told.send(number.fetch_one(&mut tx).await?).unwrap();
                        proxy.set(match commit {
                            Commit::Stuck => Fault::BlackHole,
                            Commit::Done => Fault::Latency(Duration::from_millis(500)),
                        });
                    }
                    Ok(())
                }
            })
            .await
        });
        while self.proxy.counts().commit_request == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        if commit == Commit::Done {
            while self.rows().await == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            // Its answer is on its way.
            self.proxy.set(Fault::BlackHole);
            self.proxy.kill_all();
        }
        (call, number.recv().unwrap())
    }

    async fn crash(&mut self, crash: Crash) {
        match crash {
            Crash::Server => block_in_place(|| {
                self.server.kill9();
                self.server.restart();
            }),
            Crash::Backend => {
                // The server notes the time of its recovery in seconds.
                sleep(Duration::from_millis(1_100)).await;
                let mut victim = self.server.connect().await;
                let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                    .fetch_one(&mut victim)
                    .await
                    .unwrap();
                send("KILL", &[pid as u32]);
                while self.server.log().matches(READY).count() < 2 {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    /// Others take all numbers up to this one, which is used again if the server has forgotten it.
    async fn use_numbers_up_to(&self, last: i64) {
        let mut connection = self.server.connect().await;
        loop {
            let number: i64 = sqlx::query_scalar("SELECT txid_current()")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            if number >= last {
                assert_eq!(number, last, "it was to be used");
                return;
            }
        }
    }

    fn let_it_ask(&self) {
        self.proxy.kill_all();
        self.proxy.set(Fault::Pass);
    }

    async fn rows(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM mark")
            .fetch_one(&mut self.server.connect().await)
            .await
            .unwrap()
    }

    /// How many COMMITs were found to have taken place, and how many not.
    fn fates(&self) -> (u64, u64) {
        let stats = self.db.stats();
        (stats.fates_committed, stats.fates_aborted)
    }
}

async fn in_time(call: JoinHandle<Result<(), sqlx::Error>>) -> Result<(), sqlx::Error> {
    let ended = timeout(Duration::from_secs(20), call);
    ended.await.expect("it has an end").expect("no panic")
}

/// What the server says when it was started, and again when it has recovered from a backend's crash.
const READY: &str = "database system is ready to accept connections";
