//! `Db` beside sqlx's pool, alone and with a retry loop written by hand.
//!
//! `cargo bench --bench database --all-features [-- --quick]` starts a private PostgreSQL. Each row is a workload on a database: blocks of calls of the three, interleaved in an order
//! that changes, of which the ratio to the pool alone is taken round by round. Shown are its median and the bounds in which the true median lies in 95 of 100 cases, and the
//! round trips of one call where a proxy counts them.
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "../tests/support/proxy.rs"]
mod proxy;
#[path = "../tests/support/server.rs"]
mod server;

use std::{
    env,
    time::{Duration, Instant},
};

use sqlx::{
    PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use steadfast::db::{PgDb, SqliteDb};
use tokio::time::sleep;

use crate::{
    proxy::{Fault, Proxy},
    server::postgres::Postgres,
};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), sqlx::Error> {
    let rounds = if env::args().any(|argument| argument == "--quick") {
        20
    } else {
        200
    };
    let server = Postgres::start().expect("this bench is about a server");
    println!("{rounds} rounds; ratios to sqlx's pool alone: median [95 % bounds]");
    println!(
        "| database | workload | sqlx + loop | Db | round trips: sqlx | Db |\n|---|---|---|---|---|---|"
    );

    let options = server.socket_options();
    let pools = Postgresql::new(&options).await?;
    let mut worst = Ratio {
        median: 0.0,
        low: 0.0,
        high: 0.0,
    };
    for workload in Workload::ALL {
        let row = pools.compare(workload, 20, rounds).await?;
        println!(
            "| PostgreSQL, socket | {} | {} | {} | | |",
            workload.name(),
            row.looped,
            row.db
        );
        worst = worst.max(row.db);
    }

    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port());
    let pools = Postgresql::new(&options).await?;
    for workload in Workload::ALL {
        let (sqlx, db) = pools.count(&proxy, workload).await?;
        proxy.set(Fault::Latency(Duration::from_millis(5)));
        let row = pools.compare(workload, 2, rounds).await?;
        proxy.set(Fault::Pass);
        println!(
            "| PostgreSQL, 5 ms each way | {} | {} | {} | {sqlx:.1} | {db:.1} |",
            workload.name(),
            row.looped,
            row.db
        );
    }

    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("bench.sqlite"))
        .journal_mode(SqliteJournalMode::Wal)
        .create_if_missing(true);
    let pools = Sqlite::new(&options).await?;
    for workload in Workload::ALL {
        let row = pools.compare(workload, 20, rounds).await?;
        println!(
            "| SQLite, file | {} | {} | {} | | |",
            workload.name(),
            row.looped,
            row.db
        );
    }
    println!(
        "result: socket_median={:.3} socket_upper={:.3}",
        worst.median, worst.high
    );
    Ok(())
}

#[derive(Clone, Copy)]
enum Workload {
    Select,
    Insert,
    Transaction,
}

impl Workload {
    const ALL: [Self; 3] = [Self::Select, Self::Insert, Self::Transaction];

    fn name(self) -> &'static str {
        match self {
            Self::Select => "SELECT 1",
            Self::Insert => "INSERT",
            Self::Transaction => "transaction of 3",
        }
    }
}

/// What the three take beside the first of them.
struct Row {
    looped: Ratio,
    db: Ratio,
}

#[derive(Clone, Copy)]
struct Ratio {
    median: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    fn of(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        let count = ratios.len() as f64;
        // The order statistics between which the median lies, by the normal approximation of the binomial distribution.
        let half = 0.98 * count.sqrt();
        let at = |place: f64| ratios[place.clamp(0.0, count - 1.0) as usize];
        Self {
            median: at(count / 2.0),
            low: at(count / 2.0 - half),
            high: at(count / 2.0 + half),
        }
    }

    fn max(self, other: Self) -> Self {
        if other.median > self.median {
            other
        } else {
            self
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.median, self.low, self.high)
    }
}

const CONNECTIONS: u32 = 4;

/// The same contenders for each database, whose types differ.
macro_rules! contenders {
    ($name:ident, $pool:ty, $db:ty, $pool_options:ty, $options:ty, $create:literal, $insert:literal) => {
        struct $name {
            bare: $pool,
            looped: $pool,
            db: $db,
        }

        impl $name {
            async fn new(options: &$options) -> Result<Self, sqlx::Error> {
                let pool = || {
                    <$pool_options>::new()
                        .max_connections(CONNECTIONS)
                        .connect_lazy_with(options.clone())
                };
                let bare = pool();
                sqlx::query($create).execute(&bare).await?;
                Ok(Self {
                    bare,
                    looped: pool(),
                    db: <$db>::new(pool()),
                })
            }

            async fn bare(&self, workload: Workload) -> Result<(), sqlx::Error> {
                Self::plain(&self.bare, workload).await
            }

            async fn looped(&self, workload: Workload) -> Result<(), sqlx::Error> {
                for attempt in 0.. {
                    match Self::plain(&self.looped, workload).await {
                        Err(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) if attempt < 3 => {
                            sleep(Duration::from_millis(50 << attempt)).await;
                        }
                        result => return result,
                    }
                }
                Ok(())
            }

            async fn plain(pool: &$pool, workload: Workload) -> Result<(), sqlx::Error> {
                match workload {
                    Workload::Select => {
                        sqlx::query("SELECT 1").fetch_one(pool).await?;
                    }
                    Workload::Insert => {
                        sqlx::query($insert).bind(1).execute(pool).await?;
                    }
                    Workload::Transaction => {
                        let mut tx = pool.begin().await?;
                        for value in 0..3 {
                            sqlx::query($insert).bind(value).execute(&mut *tx).await?;
                        }
                        tx.commit().await?;
                    }
                }
                Ok(())
            }

            async fn ours(&self, workload: Workload) -> Result<(), sqlx::Error> {
                let db = &self.db;
                match workload {
                    Workload::Select => {
                        sqlx::query("SELECT 1").fetch_one(db).await?;
                    }
                    Workload::Insert => {
                        sqlx::query($insert).bind(1).execute(db).await?;
                    }
                    Workload::Transaction => {
                        let three = db.transaction(|mut tx| async move {
                            for value in 0..3 {
                                sqlx::query($insert).bind(value).execute(&mut tx).await?;
                            }
                            Ok::<_, sqlx::Error>(())
                        });
                        three.await?;
                    }
                }
                Ok(())
            }

            /// Blocks of `calls` calls, in another order each round.
            async fn compare(
                &self,
                workload: Workload,
                calls: u32,
                rounds: usize,
            ) -> Result<Row, sqlx::Error> {
                let (mut looped, mut db) = (Vec::new(), Vec::new());
                // The first rounds open the connections and prepare the statements.
                for round in 0..rounds + WARM_UP {
                    let mut took = [0.0; 3];
                    for turn in 0..3 {
                        let contender = (round + turn) % 3;
                        let started = Instant::now();
                        for _ in 0..calls {
                            match contender {
                                0 => self.bare(workload).await?,
                                1 => self.looped(workload).await?,
                                _ => self.ours(workload).await?,
                            }
                        }
                        took[contender] = started.elapsed().as_secs_f64();
                    }
                    if round >= WARM_UP {
                        looped.push(took[1] / took[0]);
                        db.push(took[2] / took[0]);
                    }
                }
                Ok(Row {
                    looped: Ratio::of(looped),
                    db: Ratio::of(db),
                })
            }
        }
    };
}

contenders!(
    Postgresql,
    PgPool,
    PgDb,
    PgPoolOptions,
    PgConnectOptions,
    "CREATE TABLE IF NOT EXISTS entry (value int)",
    "INSERT INTO entry VALUES ($1)"
);
contenders!(
    Sqlite,
    SqlitePool,
    SqliteDb,
    SqlitePoolOptions,
    SqliteConnectOptions,
    "CREATE TABLE IF NOT EXISTS entry (value int)",
    "INSERT INTO entry VALUES ($1)"
);

impl Postgresql {
    /// The round trips that a call of sqlx's and one of ours take, when all is warm.
    async fn count(&self, proxy: &Proxy, workload: Workload) -> Result<(f64, f64), sqlx::Error> {
        const CALLS: usize = 20;
        for _ in 0..2 * WARM_UP {
            self.bare(workload).await?;
            self.ours(workload).await?;
        }
        let settle = || sleep(Duration::from_millis(20));
        settle().await;
        proxy.take_counts();
        for _ in 0..CALLS {
            self.bare(workload).await?;
            settle().await;
        }
        let sqlx = proxy.take_counts().round_trips;
        for _ in 0..CALLS {
            self.ours(workload).await?;
            settle().await;
        }
        let ours = proxy.take_counts().round_trips;
        Ok((sqlx as f64 / CALLS as f64, ours as f64 / CALLS as f64))
    }
}

const WARM_UP: usize = 5;
