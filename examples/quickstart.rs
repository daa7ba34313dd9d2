//! A real database on a bad day: with steadfast, with nothing, and with a naive retry loop.
//!
//! Fifty tasks read and write one SQLite file over five connections. A rival grabs the write lock, connections are lost
//! before and after the commit, and for two seconds nobody answers. At the end the rows of the file are counted.
//!
//! Run it: `cargo run --example quickstart --features sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["sqlite"] }
//! sqlx = { version = "0.9", default-features = false, features = ["runtime-tokio", "sqlite"] }
//! tempfile = "3"
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "a real database, a real clock")]

use std::{
    collections::HashMap,
    error, io,
    ops::Range,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use sqlx::{
    Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use steadfast::{
    Breaker, ConcurrencyLimiter, ConfigError, Event, Kind, Observer, Rejected, Retry, Shield,
    breaker::State,
    classify::{self, Phase},
    retry::Budget,
};
use tokio::{task::JoinSet, time::sleep};

const TASKS: i64 = 50;
const CONNECTIONS: u32 = 5;
const LOAD: Duration = Duration::from_millis(5_500);
const OUTAGE: Range<Duration> = Duration::from_millis(1_500)..Duration::from_millis(3_500);
/// On a slow machine the load goes on until each task has had so many successes.
const ENOUGH: u32 = 100;
/// How long a task rests between two calls.
const REST: Duration = Duration::from_millis(25);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn error::Error>> {
    let log = Arc::<Log>::default();
    let shields = Shields::new(&log)?;
    let ours = run("steadfast", Way::Shields(shields), log).await?;
    let bare = run("unprotected", Way::Once, Arc::default()).await?;
    let naive = run("naive loop", Way::Naive, Arc::default()).await?;

    println!("\n{HEADING}");
    ours.print("steadfast");
    bare.print("unprotected");
    naive.print("naive loop");
    let (lost, duplicate) = (ours.lost, ours.duplicate);
    let (opened, closed) = (ours.opened, ours.closed);
    let retries: u64 = ours.retries.values().sum();
    println!(
        "\nresult: calls={} ok={} lost={lost} duplicate={duplicate} opened={opened} closed={closed} \
         retries={retries} naive_duplicate={}",
        ours.calls, ours.ok, naive.duplicate
    );
    let mut code = ExitCode::SUCCESS;
    for (seen, wanted) in [
        (ours.calls >= 5_000, "5000 calls"),
        (ours.late >= 200, "200 commits with a lost answer"),
        (lost + duplicate == 0, "every write done once"),
        (ours.bad_outside * 10 <= ours.outside, "9 of 10 calls ok"),
        (opened > 0 && closed > 0, "an open and a closed circuit"),
        (ours.retries.contains_key(&Kind::Conflict), "a rival"),
        (naive.duplicate > 0, "a naive loop that writes twice"),
    ] {
        if !seen {
            eprintln!("not seen: {wanted}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// All that a program needs: one shield for what may be done twice and one for what may not, over one breaker, limiter and budget.
struct Shields {
    reads: Shield<classify::Sqlx>,
    writes: Shield<classify::Sqlx>,
}

impl Shields {
    fn new(log: &Arc<Log>) -> Result<Self, ConfigError> {
        // A database fails as a whole: so many failures in a row are no accident.
        let breaker = Breaker::builder()
            .consecutive(20)
            .max_open_for(Duration::from_millis(500))
            .observer(log.clone())
            .build()?;
        let limiter = ConcurrencyLimiter::new(CONNECTIONS as usize)?;
        let budget = Budget::default();
        let shield = |name, idempotent| {
            let retry = Retry::builder().idempotent(idempotent).budget(&budget);
            Shield::builder(classify::Sqlx)
                .name(name)
                .retry(retry.observer(log.clone()).build()?)
                .breaker(&breaker)
                .limiter(&limiter)
                .build()
        };
        let (reads, writes) = (shield("reads", true)?, shield("writes", false)?);
        Ok(Self { reads, writes })
    }

    async fn find(&self, notes: &Notes, id: i64) -> Result<bool, sqlx::Error> {
        self.reads.run(|| notes.find(id)).await
    }

    /// Nobody knows whether an ambiguous write was done. So look, and write again only if it was not.
    ///
    /// Looking is enough where the lost statement is over, as it is here. Where it may still be running, as after a
    /// deadline, only a unique key makes it safe to write again.
    async fn save(&self, notes: &Notes, id: i64) -> Result<(), sqlx::Error> {
        loop {
            let Err(error) = self.writes.run(|| notes.insert(id)).await else {
                return Ok(());
            };
            if Rejected::of(&error).is_some() || kind(&error) != Kind::Ambiguous {
                return Err(error);
            }
            match self.find(notes, id).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => return Err(error),
            }
        }
    }
}

/// What is found in many programs: five attempts, whatever went wrong.
async fn insist<T, F>(log: &Log, call: impl Fn() -> F) -> Result<T, sqlx::Error>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    for _ in 1..5 {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) => log.lock().retried(kind(&error)),
        }
        sleep(Duration::from_millis(20)).await;
    }
    call().await
}

fn kind(error: &sqlx::Error) -> Kind {
    classify::database(error, Phase::Statement).kind
}

/// How a task makes its calls.
enum Way {
    Shields(Shields),
    Once,
    Naive,
}

/// One task: saves a note, finds it, and so on.
async fn work(task: i64, way: Arc<Way>, notes: Arc<Notes>) {
    let mut successes = 0;
    for number in 0.. {
        let at = notes.opened.elapsed();
        if at > LOAD && (successes >= ENOUGH || at > 4 * LOAD) {
            return;
        }
        let id = task * 1_000_000 + number / 2;
        let is_write = number % 2 == 0;
        let result = match (&*way, is_write) {
            (Way::Shields(shields), true) => shields.save(&notes, id).await,
            (Way::Shields(shields), false) => shields.find(&notes, id).await.map(drop),
            (Way::Once, true) => notes.insert(id).await,
            (Way::Once, false) => notes.find(id).await.map(drop),
            (Way::Naive, true) => insist(&notes.log, || notes.insert(id)).await,
            (Way::Naive, false) => insist(&notes.log, || notes.find(id)).await.map(drop),
        };
        let took = notes.opened.elapsed() - at;
        successes += u32::from(result.is_ok());
        let saved = is_write.then_some(id);
        let refused = notes.log.lock().called(result, saved, at, took);
        sleep(if refused { 10 * REST } else { REST }).await;
    }
}

/// Puts the whole load on a fresh file, and compares what the calls were told with its rows.
async fn run(name: &str, way: Way, log: Arc<Log>) -> Result<Counts, sqlx::Error> {
    println!("\n{name}");
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("notes.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let rival = SqliteConnection::connect_with(&options).await?;
    let (way, notes) = (Arc::new(way), Arc::new(Notes::open(options, log).await?));
    let mut background = JoinSet::new();
    background.spawn(grab_the_lock(rival));
    background.spawn(print_progress(notes.clone()));
    let tasks = (0..TASKS).map(|task| work(task, way.clone(), notes.clone()));
    tasks.collect::<JoinSet<_>>().join_all().await;
    background.shutdown().await;

    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT id, COUNT(*) FROM note GROUP BY id")
        .fetch_all(&notes.pool)
        .await?;
    notes.pool.close().await;
    let rows: HashMap<_, _> = rows.into_iter().collect();
    let mut counts = std::mem::take(&mut *notes.log.lock());
    let has_row = |id: &&i64| rows.contains_key(*id);
    counts.lost = counts.saved.len() - counts.saved.iter().filter(has_row).count();
    counts.duplicate = rows.values().filter(|count| **count > 1).count();
    Ok(counts)
}

/// Takes the write lock, again and again, for longer than the others wait for it.
async fn grab_the_lock(mut rival: SqliteConnection) -> Result<(), sqlx::Error> {
    loop {
        let lock = rival.begin_with("BEGIN IMMEDIATE").await?;
        sleep(Duration::from_millis(15)).await;
        lock.commit().await?;
        sleep(Duration::from_millis(45)).await;
    }
}

async fn print_progress(notes: Arc<Notes>) -> Result<(), sqlx::Error> {
    loop {
        sleep(Duration::from_millis(500)).await;
        let at = notes.opened.elapsed();
        let outage = if OUTAGE.contains(&at) { "OUTAGE" } else { "" };
        let Counts {
            calls, ok, refused, ..
        } = *notes.log.lock();
        let at = at.as_secs_f64();
        println!("  {at:>4.1} s  {calls:>6} calls  {ok:>6} ok  {refused:>5} refused  {outage}");
    }
}

/// The database as a program sees it: over a network that fails.
struct Notes {
    pool: SqlitePool,
    opened: Instant,
    log: Arc<Log>,
}

impl Notes {
    async fn open(options: SqliteConnectOptions, log: Arc<Log>) -> Result<Self, sqlx::Error> {
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .connect_with(options.busy_timeout(Duration::from_millis(2)))
            .await?;
        // No unique key: a write that is done twice is there twice.
        sqlx::query("CREATE TABLE note (id INTEGER NOT NULL)")
            .execute(&pool)
            .await?;
        sqlx::query("CREATE INDEX by_id ON note (id)")
            .execute(&pool)
            .await?;
        let opened = Instant::now();
        Ok(Self { pool, opened, log })
    }

    async fn find(&self, id: i64) -> Result<bool, sqlx::Error> {
        let number = self.connect()?;
        let row = sqlx::query("SELECT 1 FROM note WHERE id = ? LIMIT 1").bind(id);
        let found = row.fetch_optional(&self.pool).await?.is_some();
        match number % 20 {
            0 => Err(lost()),
            _ => Ok(found),
        }
    }

    /// The error tells nobody whether the connection was lost before the statement or after its commit.
    async fn insert(&self, id: i64) -> Result<(), sqlx::Error> {
        let number = self.connect()?;
        if number % 20 == 1 {
            return Err(lost());
        }
        let row = sqlx::query("INSERT INTO note VALUES (?)").bind(id);
        row.execute(&self.pool).await?;
        if number % 8 == 2 {
            self.log.lock().late += 1;
            return Err(lost());
        }
        Ok(())
    }

    /// The number of the call; or nobody listens.
    fn connect(&self) -> Result<u64, sqlx::Error> {
        let mut counts = self.log.lock();
        if OUTAGE.contains(&self.opened.elapsed()) {
            counts.in_vain += 1;
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        counts.reached += 1;
        Ok(counts.reached)
    }
}

fn lost() -> sqlx::Error {
    io::Error::from(io::ErrorKind::ConnectionReset).into()
}

/// Hears of everything that happens, and counts it.
#[derive(Default)]
struct Log(Mutex<Counts>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("counting does not panic")
    }
}

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::Retry { kind, .. } => self.lock().retried(*kind),
            Event::Transition {
                from, to, cause, ..
            } => {
                println!("          circuit {from} -> {to}: {}", cause.as_str());
                self.lock().opened += u64::from(*to == State::Open);
                self.lock().closed += u64::from(*to == State::Closed);
            }
            _ => {}
        }
    }
}

#[derive(Default)]
struct Counts {
    calls: u64,
    ok: u64,
    refused: u64,
    /// Failed, and may have been done.
    unknown: u64,
    /// Begun outside of the outage: all, and those that were not ok.
    outside: u64,
    bad_outside: u64,
    saved: Vec<i64>,
    took: Vec<Duration>,
    retries: HashMap<Kind, u64>,
    opened: u64,
    closed: u64,
    /// Attempts that reached the database, those that came while nobody listened, and commits whose answer was lost.
    reached: u64,
    in_vain: u64,
    late: u64,
    /// Writes that were called done and have no row, and those that have more than one.
    lost: usize,
    duplicate: usize,
}

const HEADING: &str = "              calls     ok  refused  unknown  failed  lost  duplicate  sent while down     p50    p99  retries";

impl Counts {
    /// Whether the call was refused.
    fn called(
        &mut self,
        result: Result<(), sqlx::Error>,
        saved: Option<i64>,
        at: Duration,
        took: Duration,
    ) -> bool {
        let error = result.as_ref().err();
        let rejected = error.and_then(|error| Rejected::of(error));
        let refused = rejected.is_some_and(|rejected| !rejected.sent());
        let unknown = !refused && error.is_some_and(|error| kind(error) == Kind::Ambiguous);
        self.calls += 1;
        self.ok += u64::from(result.is_ok());
        self.refused += u64::from(refused);
        self.unknown += u64::from(unknown);
        self.saved.extend(saved.filter(|_| result.is_ok()));
        self.took.push(took);
        if !OUTAGE.contains(&at) {
            self.outside += 1;
            self.bad_outside += u64::from(result.is_err());
        }
        refused
    }

    fn retried(&mut self, kind: Kind) {
        *self.retries.entry(kind).or_default() += 1;
    }

    fn print(&self, name: &str) {
        let failed = self.calls - self.ok - self.refused - self.unknown;
        let mut took = self.took.clone();
        took.sort_unstable();
        let percentile =
            |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        print!(
            "{name:<12} {:>6} {:>6}  {:>7}  ",
            self.calls, self.ok, self.refused
        );
        print!(
            "{:>7}  {failed:>6}  {:>4}  {:>9}  ",
            self.unknown, self.lost, self.duplicate
        );
        print!(
            "{:>15}  {:>4.1}ms {:>4.0}ms  ",
            self.in_vain,
            percentile(50),
            percentile(99)
        );
        let count = |kind| Some(format!("{kind} {}", self.retries.get(kind)?));
        let retries: Vec<_> = Kind::ALL.iter().filter_map(count).collect();
        println!("{}", retries.join(", "));
    }
}
