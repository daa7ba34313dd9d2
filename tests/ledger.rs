//! What is committed is committed once: the fate of COMMITs that were lost, and transfers under fire.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{future::Future, time::Duration};

use sqlx::{PgConnection, postgres::PgPoolOptions};
use steadfast::{breaker::WhenOpen, db::PgDb};
use tokio::{
    task::{JoinHandle, block_in_place},
    time::{sleep, timeout},
};

use crate::{
    proxy::{Fault, Proxy},
    server::postgres::Postgres,
};

/// A crash forgets the numbers of the last transactions, and the server gives them out again. That of a lost one then belongs to another, and the other's fate
/// was taken for its own: a transaction that was gone was reported as committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_crash_forgot_is_repeated_although_its_number_was_used_again() {
    let Some(mut crash) = Crash::prepare().await else {
        return;
    };
    let (call, number) = crash.send_a_commit_that_does_not_arrive().await;
    crash.kill_and_restart();
    let mut other = crash.server.connect().await;
    let first = next_number(&mut other).await;
    assert!(first <= number, "{first} after {number}");
    while next_number(&mut other).await <= number {}
    crash.let_it_ask();
    in_time(call).await;
    assert_eq!(crash.rows().await, 1);
    assert_eq!(crash.fates(), (0, 1));
}

struct Crash {
    server: Postgres,
    proxy: std::sync::Arc<Proxy>,
    db: PgDb,
}

impl Crash {
    async fn prepare() -> Option<Self> {
        // What is not committed is not written for long.
        let durable = [
            "fsync=on",
            "synchronous_commit=on",
            "full_page_writes=on",
            "wal_writer_delay=10s",
        ];
        let server = Postgres::start_with(&durable)?;
        let mut connection = server.connect().await;
        sqlx::query("CREATE TABLE mark (id int)")
            .execute(&mut connection)
            .await
            .unwrap();
        let proxy = Proxy::start(server.port()).await;
        let options = server.options().port(proxy.port());
        let pool = PgPoolOptions::new().max_connections(2);
        let db = PgDb::builder(pool.connect_lazy_with(options))
            .when_open(WhenOpen::Wait { queue: 10 })
            .deadline(Duration::from_secs(30))
            .build()
            .unwrap();
        Some(Self {
            server,
            proxy: proxy.into(),
            db,
        })
    }

    /// From now on nothing comes through until [`let_it_ask`](Self::let_it_ask). Returns the transaction's number.
    async fn send_a_commit_that_does_not_arrive(&self) -> (JoinHandle<()>, i64) {
        let (db, proxy) = (self.db.clone(), std::sync::Arc::clone(&self.proxy));
        let (told, number) = std::sync::mpsc::channel();
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
                        proxy.set(Fault::BlackHole);
                    }
                    Ok::<_, sqlx::Error>(())
                }
            })
            .await
            .unwrap();
        });
        while self.proxy.counts().commit_request == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        (call, number.recv().unwrap())
    }

    fn kill_and_restart(&mut self) {
        block_in_place(|| {
            self.server.kill9();
            self.server.restart();
        });
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

    /// Those that were found committed, and aborted.
    fn fates(&self) -> (u64, u64) {
        let stats = self.db.stats();
        (stats.fates_committed, stats.fates_aborted)
    }
}

async fn next_number(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT txid_current()")
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn in_time(call: impl Future<Output = Result<(), tokio::task::JoinError>>) {
    timeout(Duration::from_secs(20), call)
        .await
        .expect("it has an end")
        .unwrap();
}
