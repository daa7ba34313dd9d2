//! An hour of ordinary life: changing load, a fault every quarter of a minute, and nothing that piles up.
//!
//! It starts a PostgreSQL of its own, and clients that reach it through a proxy. The server is restarted and killed, connections are cut, frozen, slowed and
//! reset. Each client has an account, and knows what is in it: every answer is held against that, so that a write that was lost or done twice, and an
//! answer to somebody else's question, would be noticed.
//!
//! | what | bound |
//! |---|---|
//! | resident memory | the median of the last quarter over that of the second: less than half of the least that one allocation lost per call would come to, or 2 MiB in short runs; the slope of a line through all samples after the first quarter: the same |
//! | slots, leases, connections of the pool | at no time more than the pool's maximum; at the end none in use |
//! | connections on the server | the pool's maximum and the one with which statements are stopped; during an outage and just after it twice that, until the server has noticed whom it has lost |
//! | answers | none is wrong; what was acknowledged was done once, what failed was not done |
//! | failures | none of a call that does not overlap with an outage |
//! | tasks | at the end as many as before |
//!
//! Run it: `cargo run --example soak --features postgres`, better with `--release`; then `-- --minutes 60`.
//!
//! A copy needs the files of `tests/support` too, where the `path`s below look for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
//! fastrand = "2"
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio"] }
//! tokio = { version = "1.49", features = ["io-util", "macros", "net", "rt-multi-thread", "sync", "time"] }
//! ```
//!
//! Those files ask which servers are wanted:
//!
//! ```toml
//! [features]
//! default = ["postgres"]
//! mysql = []
//! postgres = []
//! ```
#![allow(clippy::disallowed_methods, reason = "a real database, the real clock")]

#[path = "../tests/support/proxy.rs"]
mod proxy;
#[path = "../tests/support/server.rs"]
mod server;

use std::{
    collections::VecDeque,
    env, f64, fs,
    process::{self, Command, ExitCode},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use proxy::{Fault, Proxy};
use server::postgres::{Postgres, Stop};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use steadfast::{
    Event, Observer, Rejected,
    breaker::{State, WhenOpen},
    db::{Config, PgDb, Preset, TransactionError},
};
use tokio::{
    runtime::Handle,
    task::{JoinSet, block_in_place},
    time::{sleep, timeout},
};

const CLIENTS: i32 = 120;
const CONNECTIONS: u32 = 10;
/// The load swings between these, in calls a second.
const RATES: (f64, f64) = (60.0, 260.0);
/// How long one swing takes.
const SWING: Duration = Duration::from_secs(4 * 60);
/// So many calls come at once, now and then.
const BURST: usize = 100;
const BURST_EVERY: Duration = Duration::from_secs(20);
const FAULT_EVERY: Duration = Duration::from_secs(15);
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// So long after an outage a call may still fail that began in it, and a connection be counted that the server has lost.
const AFTERMATH: Duration = Duration::from_secs(3);
/// The least that the usual allocator of Linux hands out.
const ALLOCATION: f64 = 32.0;
const MIB: f64 = 1024.0 * 1024.0;
/// What a short run is allowed: its program has not yet been everywhere.
const SHORT: f64 = 2.0;
const TALLIES: i32 = 16;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(minutes) = minutes(env::args().skip(1)) else {
        eprintln!("usage: soak [--minutes n]");
        return ExitCode::from(2);
    };
    // What was acknowledged must outlive the server, but not the machine.
    let Some(server) = Postgres::start_with(&["synchronous_commit=on", "autovacuum=on"]) else {
        return ExitCode::SUCCESS;
    };
    let verdict = soak(server, Duration::from_secs_f64(60.0 * minutes)).await;
    for line in &verdict.story {
        println!("{line}");
    }
    for bound in &verdict.broken {
        eprintln!("broken: {bound}");
    }
    let word = if verdict.broken.is_empty() {
        "ok"
    } else {
        "broken"
    };
    println!("result: minutes={minutes} {} {word}", verdict.figures);
    ExitCode::from(u8::from(!verdict.broken.is_empty()))
}

fn minutes(mut arguments: impl Iterator<Item = String>) -> Option<f64> {
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Some(2.0),
        (Some("--minutes"), Some(value)) => {
            let minutes: f64 = value.parse().ok()?;
            (1.0..=10_000.0).contains(&minutes).then_some(minutes)
        }
        _ => None,
    }
}

struct Verdict {
    story: Vec<String>,
    broken: Vec<String>,
    figures: String,
}

async fn soak(server: Postgres, time: Duration) -> Verdict {
    let mut direct = server.connect().await;
    for sql in TABLES {
        run(&mut direct, sql).await.expect("the tables are made");
    }
    let proxy = Proxy::start(server.port()).await;
    let tasks_before = tasks();
    let counts = Arc::new(Counts::default());
    let soak = Arc::new(Soak {
        db: open(proxy.port(), &counts),
        counts,
        outages: Mutex::default(),
        broken: Mutex::default(),
        began: Instant::now(),
        time,
    });
    let mut clients = JoinSet::new();
    for id in 0..CLIENTS {
        clients.spawn(client(Arc::clone(&soak), id));
    }
    let bursts = tokio::spawn(bursts(Arc::clone(&soak)));
    let sampling = tokio::spawn(sample(Arc::clone(&soak), server.options()));
    let mut saboteur = Saboteur { server, proxy };
    let mut faults = 0;
    for fault in ACTS.into_iter().cycle() {
        if soak.left() < 2 * FAULT_EVERY {
            break;
        }
        sleep(FAULT_EVERY).await;
        soak.begin_outage(fault.name());
        saboteur.strike(fault).await;
        soak.end_outage();
        faults += 1;
    }
    let mut accounts = clients.join_all().await;
    bursts.await.expect("it does not panic");
    let samples = sampling.await.expect("it does not panic");

    soak.comes_to_rest().await;
    soak.balance(&mut accounts, &mut saboteur.server.connect().await)
        .await;
    soak.db.close().await;
    saboteur.proxy.kill_all();
    soak.is_gone(tasks_before, &saboteur.server).await;
    soak.verdict(&samples, faults)
}

/// An account for each client, and tallies that several clients share.
const TABLES: [&str; 4] = [
    "CREATE TABLE account (id int PRIMARY KEY, done bigint NOT NULL) WITH (fillfactor = 50)",
    "INSERT INTO account SELECT id, 0 FROM generate_series(0, 119) AS id",
    "CREATE TABLE tally (id int PRIMARY KEY, done bigint NOT NULL) WITH (fillfactor = 50)",
    "INSERT INTO tally SELECT id, 0 FROM generate_series(0, 15) AS id",
];

/// The calls wait for the server, as there is nobody to whom a refusal would be of use.
fn open(port: u16, counts: &Arc<Counts>) -> PgDb {
    let preset = Preset::web()
        .pool_size(CONNECTIONS)
        .connect(Duration::from_secs(2))
        .statement(Duration::from_secs(3))
        .deadline(Duration::from_secs(12))
        // So that some are replaced in a short run, too.
        .recycle(Duration::from_secs(40))
        .when_open(WhenOpen::Wait {
            queue: CLIENTS as usize + BURST,
        });
    Config::new(format!(
        "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    ))
    .preset(preset)
    .name(APPLICATION)
    .builder()
    .expect("a URL")
    .observer(Arc::clone(counts))
    .build()
    .expect("the settings are in range")
}

const APPLICATION: &str = "soak";

/// What everybody shares.
struct Soak {
    db: PgDb,
    counts: Arc<Counts>,
    /// The last few.
    outages: Mutex<VecDeque<Outage>>,
    broken: Mutex<Vec<String>>,
    began: Instant,
    time: Duration,
}

struct Outage {
    name: &'static str,
    began: Instant,
    ended: Option<Instant>,
}

/// All since the beginning, but for the last two.
#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    writes: AtomicU64,
    /// Futures that were dropped.
    abandoned: AtomicU64,
    /// Calls that failed and overlapped with an outage.
    failed: AtomicU64,
    undue: AtomicU64,
    wrong: AtomicU64,
    retries: AtomicU64,
    opened: AtomicU64,
    resolved: AtomicU64,
    /// The longest call of this minute, in milliseconds.
    slowest: AtomicU64,
}

impl Observer for Counts {
    fn on_event(&self, event: &Event<'_>) {
        let count = match event {
            Event::Retry { .. } => &self.retries,
            Event::Transition {
                to: State::Open, ..
            } => &self.opened,
            Event::CommitResolved { .. } => &self.resolved,
            _ => return,
        };
        count.fetch_add(1, Relaxed);
    }
}

impl Soak {
    fn left(&self) -> Duration {
        self.time.saturating_sub(self.began.elapsed())
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// In calls a second.
    fn rate(&self) -> f64 {
        let swing = self.began.elapsed().div_duration_f64(SWING);
        let (low, high) = RATES;
        low + (high - low) * (0.5 - 0.5 * (f64::consts::TAU * swing).cos())
    }

    fn begin_outage(&self, name: &'static str) {
        let mut outages = self.outages.lock().expect(PLAIN);
        if outages.len() == 8 {
            outages.pop_front();
        }
        outages.push_back(Outage {
            name,
            began: Instant::now(),
            ended: None,
        });
    }

    fn end_outage(&self) {
        let mut outages = self.outages.lock().expect(PLAIN);
        outages.back_mut().expect("one has begun").ended = Some(Instant::now());
    }

    /// Whether there was an outage, or its aftermath, since then.
    fn had_outage(&self, since: Instant) -> bool {
        let outages = self.outages.lock().expect(PLAIN);
        let mut ends = outages.iter().map(|outage| outage.ended);
        ends.any(|ended| ended.is_none_or(|ended| ended + AFTERMATH >= since))
    }

    fn break_bound(&self, bound: String) {
        let mut broken = self.broken.lock().expect(PLAIN);
        let after = self.began.elapsed();
        if broken.len() < 20 {
            eprintln!("after {after:.1?}: {bound}");
            broken.push(format!("after {after:.1?}: {bound}"));
        }
    }

    /// Counts what became of a call.
    fn settle(&self, what: &str, began: Instant, result: Result<bool, sqlx::Error>) {
        let counts = &self.counts;
        counts.calls.fetch_add(1, Relaxed);
        let took = began.elapsed();
        counts.slowest.fetch_max(took.as_millis() as u64, Relaxed);
        match result {
            Ok(true) => {}
            Ok(false) => {
                counts.wrong.fetch_add(1, Relaxed);
                self.break_bound(format!("{what}: a wrong answer"));
            }
            Err(_) if self.had_outage(began) => {
                counts.failed.fetch_add(1, Relaxed);
            }
            Err(error) => {
                counts.undue.fetch_add(1, Relaxed);
                self.break_bound(format!("{what}: failed after {took:.1?}: {error}"));
            }
        }
    }

    /// Waits until nothing is in use.
    async fn comes_to_rest(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let (stats, slots) = (self.db.stats(), self.db.limiter().stats());
            let busy = stats.in_use as usize + stats.reaping + slots.in_flight + slots.waiting;
            if busy == 0 && self.db.leases().is_empty() {
                return;
            }
            if Instant::now() > until {
                return self.break_bound(format!("at the end: {stats} {slots:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Holds what the clients know against what is in the tables.
    async fn balance(&self, accounts: &mut [Account], connection: &mut PgConnection) {
        let mut sum = 0;
        for account in accounts {
            let done = sqlx::query_scalar("SELECT done FROM account WHERE id = $1")
                .bind(account.id)
                .fetch_one(&mut *connection)
                .await
                .expect("the account is there");
            if !account.is(done) {
                let Account {
                    id, done: known, ..
                } = account;
                self.break_bound(format!(
                    "account {id} has {done}, its owner knows of {known}"
                ));
            }
            sum += done;
        }
        let tallied: i64 = sqlx::query_scalar("SELECT sum(done)::bigint FROM tally")
            .fetch_one(connection)
            .await
            .expect("the tallies are there");
        if tallied != sum {
            self.break_bound(format!("{sum} in the accounts, {tallied} in the tallies"));
        }
    }

    /// Waits until nobody is left of us.
    async fn is_gone(&self, tasks_before: usize, server: &Postgres) {
        // The connection with which statements are stopped is closed after ten seconds.
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let (tasks, sessions) = (tasks(), server.backends().await.len());
            if tasks <= tasks_before && sessions == 0 {
                return;
            }
            if Instant::now() > until {
                return self.break_bound(format!(
                    "closed: {tasks} tasks, {tasks_before} before; {sessions} sessions"
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn verdict(&self, samples: &[Sample], faults: usize) -> Verdict {
        let counts = &self.counts;
        let calls = counts.calls.load(Relaxed);
        let of_quarter = |quarter: usize| {
            let share = samples.len() / 4;
            let of_it = samples[(quarter - 1) * share..quarter * share].iter();
            middle(of_it.map(|sample| sample.resident))
        };
        let (second, last) = (of_quarter(2), of_quarter(4));
        let slope = slope(&samples[samples.len() / 4..]);
        // Between the middle of the second quarter and the middle of the last one lies half of the time.
        let bound = (calls as f64 / 2.0 * ALLOCATION / MIB / 2.0).max(SHORT);
        let half = self.time.as_secs_f64() / 3_600.0 / 2.0;
        let most = |figure: fn(&Sample) -> usize| samples.iter().map(figure).max().unwrap_or(0);
        let calm = |sample: &&Sample| !sample.outage;
        let server_calm = samples
            .iter()
            .filter(calm)
            .filter_map(|sample| sample.server);
        let server_calm = server_calm.max().unwrap_or(0);
        let server = most(|sample| sample.server.unwrap_or(0));

        if last - second > bound {
            self.break_bound(format!("memory grew by {:.2} MiB", last - second));
        }
        if slope * half > bound {
            self.break_bound(format!("memory grows by {slope:.2} MiB an hour"));
        }
        let (retries, opened) = (counts.retries.load(Relaxed), counts.opened.load(Relaxed));
        if retries == 0 {
            self.break_bound("the faults were not noticed".to_owned());
        }
        let story = vec![
            format!(
                "memory: {second:.2} MiB in the second quarter, {last:.2} MiB in the last one, bound +{bound:.2} MiB; \
                 a line through the last three quarters rises by {slope:+.2} MiB an hour"
            ),
            format!(
                "connections on the server: at most {server_calm}, {server} about an outage; in the pool {}; slots in use {}, \
                 calls waiting {}, leases {}, tasks {}",
                most(|sample| sample.pool),
                most(|sample| sample.in_flight),
                most(|sample| sample.waiting),
                most(|sample| sample.leases),
                most(|sample| sample.tasks),
            ),
        ];
        let load = |count: &AtomicU64| count.load(Relaxed);
        let figures = format!(
            "calls={calls} writes={} abandoned={} failed_in_outages={} failed_unduly={} wrong={} faults={faults} retries={retries} \
             opened={opened} commits_resolved={} memory_second_quarter_mib={second:.2} memory_last_quarter_mib={last:.2} \
             memory_bound_mib={bound:.2} slope_mib_per_hour={slope:.2} server_most={server_calm} server_most_in_outages={server}",
            load(&counts.writes),
            load(&counts.abandoned),
            load(&counts.failed),
            load(&counts.undue),
            load(&counts.wrong),
            load(&counts.resolved),
        );
        Verdict {
            story,
            broken: self.broken.lock().expect(PLAIN).clone(),
            figures,
        }
    }
}

/// What a client knows of his account.
struct Account {
    id: i32,
    done: i64,
    /// The last write may have been done.
    unsure: bool,
}

impl Account {
    /// Whether that may be in it; then it is what is known.
    fn is(&mut self, done: i64) -> bool {
        let right = done == self.done || self.unsure && done == self.done + 1;
        (self.done, self.unsure) = (done, false);
        right
    }
}

/// One call after the other, as quickly as the load wants it.
async fn client(soak: Arc<Soak>, id: i32) -> Account {
    let mut account = Account {
        id,
        done: 0,
        unsure: false,
    };
    loop {
        let mean = f64::from(CLIENTS) / soak.rate();
        let pause = -mean * (1.0 - fastrand::f64()).ln();
        sleep(Duration::from_secs_f64(pause.min(10.0))).await;
        if soak.is_over() {
            return account;
        }
        let began = Instant::now();
        let (what, result) = call(&soak, &mut account).await;
        soak.settle(what, began, result);
    }
}

async fn call(soak: &Soak, account: &mut Account) -> (&'static str, Result<bool, sqlx::Error>) {
    match fastrand::u32(..100) {
        _ if account.unsure => ("count", count(&soak.db, account, LOCKED).await),
        0..40 => ("count", count(&soak.db.idempotent(), account, COUNT).await),
        40..62 => ("echo", echo(&soak.db).await),
        62..80 => {
            soak.counts.writes.fetch_add(1, Relaxed);
            ("write", write(&soak.db, account).await)
        }
        80..86 => ("rows", rows(&soak.db.idempotent()).await),
        86..90 => ("lease", lease(&soak.db, account).await),
        90..94 => ("rollback", rollback(&soak.db, account.id).await),
        _ => ("abandon", abandon(soak).await),
    }
}

/// Something takes its time, or hardly anybody would be met by a fault.
const COUNT: &str = "SELECT done FROM account, pg_sleep(0.03) WHERE id = $1";

/// Waits for a write that nobody waits for any more.
const LOCKED: &str = "SELECT done FROM account WHERE id = $1 FOR UPDATE";

async fn count(db: &PgDb, account: &mut Account, sql: &'static str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query_scalar(sql)
        .bind(account.id)
        .fetch_one(db)
        .await?;
    Ok(account.is(done))
}

/// Nobody else's answer.
async fn echo(db: &PgDb) -> Result<bool, sqlx::Error> {
    let said = fastrand::i64(..);
    let heard: i64 = sqlx::query_scalar("SELECT $1::bigint FROM pg_sleep(0.04)")
        .bind(said)
        .fetch_one(db)
        .await?;
    Ok(said == heard)
}

async fn write(db: &PgDb, account: &mut Account) -> Result<bool, sqlx::Error> {
    let id = account.id;
    let written = db
        .transaction(|mut tx| async move {
            let done: i64 = sqlx::query_scalar(ADD).bind(id).fetch_one(&mut tx).await?;
            sqlx::query(TALLY)
                .bind(id % TALLIES)
                .execute(&mut tx)
                .await?;
            Ok::<_, sqlx::Error>(done)
        })
        .await;
    match written {
        Ok(done) => {
            let right = account.is(done - 1);
            account.done = done;
            Ok(right)
        }
        Err(error) => {
            account.unsure = is_unknown(&error);
            Err(error)
        }
    }
}

const ADD: &str = "UPDATE account SET done = done + 1 WHERE id = $1 RETURNING done";

const TALLY: &str = "UPDATE tally SET done = done + 1 WHERE id = $1 AND pg_sleep(0.02) IS NOT NULL";

/// Every other failure says that nothing was done.
fn is_unknown(error: &sqlx::Error) -> bool {
    let commit = TransactionError::of(error);
    let rejected = Rejected::of(error);
    matches!(commit, Some(TransactionError::CommitUnknown(_)))
        || matches!(rejected, Some(Rejected::DeadlineExceeded { sent: true }))
}

async fn rows(db: &PgDb) -> Result<bool, sqlx::Error> {
    let rows: Vec<i32> = sqlx::query_scalar("SELECT generate_series(1, 100)")
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().eq(1..=100))
}

async fn lease(db: &PgDb, account: &mut Account) -> Result<bool, sqlx::Error> {
    let mut lease = db.acquire().await?;
    sqlx::query("SELECT pg_sleep(0.03)")
        .execute(&mut lease)
        .await?;
    let done = sqlx::query_scalar(COUNT)
        .bind(account.id)
        .fetch_one(&mut lease)
        .await?;
    Ok(account.is(done))
}

/// A transaction that its owner drops.
async fn rollback(db: &PgDb, id: i32) -> Result<bool, sqlx::Error> {
    let mut tx = db.begin().await?;
    sqlx::query(ADD).bind(id).execute(&mut tx).await?;
    Ok(true)
}

/// Somebody loses his patience.
async fn abandon(soak: &Soak) -> Result<bool, sqlx::Error> {
    let patience = Duration::from_millis(fastrand::u64(1..60));
    let query = sqlx::query("SELECT pg_sleep(0.05)").execute(&soak.db);
    match timeout(patience, query).await {
        Ok(result) => result.map(|_| true),
        Err(_) => {
            soak.counts.abandoned.fetch_add(1, Relaxed);
            Ok(true)
        }
    }
}

/// More calls at once than there are connections.
async fn bursts(soak: Arc<Soak>) {
    while soak.left() > BURST_EVERY {
        sleep(BURST_EVERY).await;
        let mut calls = JoinSet::new();
        for _ in 0..BURST {
            let soak = Arc::clone(&soak);
            calls.spawn(async move {
                let began = Instant::now();
                let result = sqlx::query("SELECT pg_sleep(0.01)").execute(&soak.db).await;
                soak.settle("burst", began, result.map(|_| true));
            });
        }
        calls.join_all().await;
    }
}

/// What goes wrong, in turn.
#[derive(Clone, Copy, Debug)]
enum Act {
    Restart,
    HangUp,
    Crash,
    Freeze,
    KillBackends,
    Slow,
    Reset,
    Cut,
}

const ACTS: [Act; 8] = [
    Act::Restart,
    Act::HangUp,
    Act::Crash,
    Act::Freeze,
    Act::KillBackends,
    Act::Slow,
    Act::Reset,
    Act::Cut,
];

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::HangUp => "hang up",
            Self::Crash => "crash",
            Self::Freeze => "freeze",
            Self::KillBackends => "kill backends",
            Self::Slow => "slow",
            Self::Reset => "reset",
            Self::Cut => "cut",
        }
    }
}

struct Saboteur {
    server: Postgres,
    proxy: Proxy,
}

impl Saboteur {
    async fn strike(&mut self, act: Act) {
        match act {
            Act::Restart => {
                block_in_place(|| self.server.stop(Stop::Fast));
                sleep(Duration::from_millis(500)).await;
                block_in_place(|| self.server.restart());
            }
            Act::HangUp => self.proxy.kill_all(),
            Act::Crash => {
                block_in_place(|| self.server.kill9());
                sleep(Duration::from_millis(200)).await;
                block_in_place(|| self.server.restart());
            }
            Act::Freeze => self.while_it(Fault::BlackHole, 1_500).await,
            Act::KillBackends => {
                let mut connection = self.server.connect().await;
                run(&mut connection, KILL).await.expect("a superuser may");
            }
            Act::Slow => {
                let latency = Fault::Latency(Duration::from_millis(20));
                self.while_it(latency, 3_000).await;
            }
            Act::Reset => self.while_it(Fault::Reset, 500).await,
            Act::Cut => {
                for bytes in 0..20 {
                    self.proxy.set(if bytes % 2 == 0 {
                        Fault::CutReply(4 * bytes)
                    } else {
                        Fault::CutRequest(4 * bytes)
                    });
                    sleep(Duration::from_millis(100)).await;
                }
                self.proxy.set(Fault::Pass);
            }
        }
    }

    async fn while_it(&self, fault: Fault, milliseconds: u64) {
        self.proxy.set(fault);
        sleep(Duration::from_millis(milliseconds)).await;
        self.proxy.set(Fault::Pass);
    }
}

const KILL: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'soak'";

/// How it was at one moment.
struct Sample {
    /// In hours.
    at: f64,
    /// In MiB.
    resident: f64,
    tasks: usize,
    pool: usize,
    in_flight: usize,
    waiting: usize,
    leases: usize,
    /// Sessions, if the server can be asked.
    server: Option<usize>,
    /// Whether there was one a moment ago.
    outage: bool,
}

/// Looks every few seconds, and tells of it every minute.
async fn sample(soak: Arc<Soak>, options: PgConnectOptions) -> Vec<Sample> {
    // All of the room at once: what is sampled is the rest.
    let most = soak.time.div_duration_f64(SAMPLE_EVERY) as usize + 2;
    let mut samples: Vec<Sample> = Vec::with_capacity(most);
    let (mut asker, mut minute, mut told) = (None, 1, 0);
    let mut before = (0, 0, 0);
    while !soak.is_over() {
        sleep(SAMPLE_EVERY).await;
        let asked = Instant::now();
        let server = sessions(&mut asker, &options).await;
        let slots = soak.db.limiter().stats();
        let sample = Sample {
            at: soak.began.elapsed().as_secs_f64() / 3_600.0,
            resident: resident(),
            tasks: tasks(),
            pool: soak.db.pool().size() as usize,
            in_flight: slots.in_flight,
            waiting: slots.waiting,
            leases: soak.db.leases().len(),
            server,
            outage: soak.had_outage(asked),
        };
        for (figure, what) in [
            (sample.pool, "connections in the pool"),
            (sample.in_flight, "slots in use"),
            (sample.leases, "leases"),
        ] {
            if figure > CONNECTIONS as usize {
                soak.break_bound(format!("{figure} {what}"));
            }
        }
        let most = (CONNECTIONS as usize + 1) * if sample.outage { 2 } else { 1 };
        if let Some(sessions) = sample.server.filter(|sessions| *sessions > most) {
            soak.break_bound(format!("{sessions} connections on the server"));
        }
        samples.push(sample);
        if soak.began.elapsed() >= 60 * minute * Duration::from_secs(1) {
            before = tell(&soak, minute, &samples[told..], before);
            (told, minute) = (samples.len(), minute + 1);
        }
    }
    samples
}

/// One line.
fn tell(soak: &Soak, minute: u32, samples: &[Sample], before: (u64, u64, u64)) -> (u64, u64, u64) {
    let counts = &soak.counts;
    let load = |count: &AtomicU64| count.load(Relaxed);
    let (calls, failed, retries) = (
        load(&counts.calls),
        load(&counts.failed),
        load(&counts.retries),
    );
    let range = |figure: fn(&Sample) -> usize| {
        let figures = samples.iter().map(figure);
        let (least, most) = (figures.clone().min(), figures.max());
        format!("{}..{}", least.unwrap_or(0), most.unwrap_or(0))
    };
    let since = Instant::now() - Duration::from_secs(60);
    let outages = soak.outages.lock().expect(PLAIN);
    let names = outages.iter().filter(|outage| outage.began >= since);
    let names: Vec<_> = names.map(|outage| outage.name).collect();
    println!(
        "minute {minute}: {} calls, {} failed in outages, {} unduly, {} wrong; slowest {} ms; {} retries; memory {:.2} MiB; server {}, pool {}, \
         slots {}, waiting {}, leases {}, tasks {}; {}",
        calls - before.0,
        failed - before.1,
        load(&counts.undue),
        load(&counts.wrong),
        counts.slowest.swap(0, Relaxed),
        retries - before.2,
        middle(samples.iter().map(|sample| sample.resident)),
        range(|sample| sample.server.unwrap_or(0)),
        range(|sample| sample.pool),
        range(|sample| sample.in_flight),
        range(|sample| sample.waiting),
        range(|sample| sample.leases),
        range(|sample| sample.tasks),
        names.join(", "),
    );
    (calls, failed, retries)
}

/// Our sessions on the server; `None` while it can't be asked.
async fn sessions(asker: &mut Option<PgConnection>, options: &PgConnectOptions) -> Option<usize> {
    const ASK: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'soak'";
    let ask = async {
        if asker.is_none() {
            *asker = Some(PgConnection::connect_with(options).await?);
        }
        let connection = asker.as_mut().expect("it was just made");
        sqlx::query_scalar::<_, i64>(ASK)
            .fetch_one(connection)
            .await
    };
    match timeout(Duration::from_secs(1), ask).await {
        Ok(Ok(sessions)) => Some(sessions as usize),
        _ => {
            *asker = None;
            None
        }
    }
}

/// The memory of this process that is in the machine's, in MiB.
fn resident() -> f64 {
    let of_linux = || {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let of_others = || {
        let pid = process::id().to_string();
        let output = Command::new("ps").args(["-o", "rss=", "-p", &pid]).output();
        String::from_utf8(output.ok()?.stdout)
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let kibibytes: f64 = of_linux().or_else(of_others).expect("either /proc or ps");
    kibibytes / 1024.0
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of the line with the least squares, in MiB an hour.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |figure: fn(&Sample) -> f64| samples.iter().map(figure).sum::<f64>() / count;
    let (at, resident) = (mean(|sample| sample.at), mean(|sample| sample.resident));
    let rise = |sample: &Sample| (sample.at - at) * (sample.resident - resident);
    let run = |sample: &Sample| (sample.at - at).powi(2);
    samples.iter().map(rise).sum::<f64>() / samples.iter().map(run).sum::<f64>()
}

async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

const PLAIN: &str = "nobody panics with it";
