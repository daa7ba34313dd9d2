//! Transfers between accounts while the server, its backends and the network fail, and the count of what was written in the end.
//!
//! ```text
//!   workers ──► Db, or a plain pool ──► proxy ──► PostgreSQL with fsync on
//!      ▲                                  │ COMMITs and their answers are cut, sockets are cut
//!      └── so many transfers to an act ── fire ── backends are killed, the server crashes
//! ```
//!
//! The acts follow each other, and the workers keep step with them, so that no act meets an idle server and the last one comes before the last transfer.
#![allow(dead_code, reason = "the test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "a real server, a real clock")]

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    PgConnection, PgPool, Postgres as Pg,
    postgres::{PgArguments, PgPoolOptions},
    query::Query,
};
use steadfast::{
    Event, Observer, Rejected,
    db::{PgDb, Preset, TransactionError},
    retry::Budget,
};
use tokio::{
    task::{JoinSet, block_in_place},
    time::sleep,
};

use crate::{
    proxy::{Counts, Fault, Proxy},
    server::postgres::Postgres,
};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub transfers: u64,
    pub workers: usize,
    /// Backends that are ended in the middle of a statement.
    pub kills: usize,
    /// How often the answer to a COMMIT is cut at each of its bytes.
    pub cuts: usize,
    /// How often the server crashes.
    pub crashes: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub transfers: u64,
    /// Transfers that returned `Ok`.
    pub acked: u64,
    /// Transfers that returned an error which says that nothing was done.
    pub failed: u64,
    /// Transfers that returned an error which says that nobody knows.
    pub unresolved: u64,
    /// Transfers with rows in the ledger.
    pub applied: u64,
    /// Transfers that returned `Ok` and have not all of their rows.
    pub lost: u64,
    /// Transfers with more rows than they should have.
    pub duplicate: u64,
    /// Transfers with rows that returned an error which says that nothing was done.
    pub phantom: u64,
    /// Accounts whose balance is not what the ledger says.
    pub unbalanced: u64,
    pub fates_committed: u64,
    pub fates_aborted: u64,
    pub fire: Fire,
    /// What the `Db` told, and the errors that the callers got, by their texts.
    pub events: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
    pub slowest: Duration,
    pub took: Duration,
}

/// What was done to it.
#[derive(Clone, Debug, Default)]
pub struct Fire {
    pub kills: usize,
    /// Kills that came too late for their statement.
    pub missed_kills: usize,
    /// The times that the answer to a COMMIT was cut before its n-th byte; one more entry than it has bytes.
    pub cut_replies: Vec<usize>,
    pub cut_requests: Vec<usize>,
    pub cut_sockets: usize,
    pub crashes: usize,
}

impl Report {
    /// How it went, for whoever wonders about the numbers.
    pub fn story(&self) -> String {
        let slowest = format!("slowest transfer {:.1?}", self.slowest);
        let rest = self.events.iter().chain(&self.errors);
        let rest = rest.map(|(text, count)| format!("{count} × {text}"));
        let parts: Vec<_> = [slowest].into_iter().chain(rest).collect();
        parts.join("; ")
    }

    /// What is not as it should be.
    pub fn broken(&self, settings: Settings, fates: u64) -> Vec<String> {
        let Self {
            transfers, fire, ..
        } = self;
        let least = |cuts: &[usize]| cuts.iter().copied().min().unwrap_or(0);
        let bounds = [
            (*transfers == settings.transfers, "every transfer was made"),
            (
                self.acked + self.failed == *transfers,
                "every transfer was acknowledged or failed",
            ),
            (self.unresolved == 0, "the end of every transfer is known"),
            (self.lost == 0, "nothing acknowledged was lost"),
            (self.duplicate == 0, "nothing was done twice"),
            (self.phantom == 0, "nothing was done that had failed"),
            (
                self.applied == self.acked,
                "what was done is what was acknowledged",
            ),
            (self.unbalanced == 0, "the balances are those of the ledger"),
            (fire.kills >= settings.kills, "as many kills as asked for"),
            (
                fire.cut_replies.len() > 1 && least(&fire.cut_replies) >= settings.cuts,
                "answers to COMMIT cut at every byte",
            ),
            (
                fire.cut_requests.len() > 1 && least(&fire.cut_requests) > 0,
                "COMMITs cut at every byte",
            ),
            (fire.crashes >= settings.crashes, "as many crashes as asked"),
            (
                self.fates_committed >= fates,
                "COMMITs that were found to have taken place",
            ),
            (
                self.fates_aborted >= fates,
                "COMMITs that were found not to have taken place",
            ),
        ];
        let broken = bounds.into_iter().filter(|(holds, _)| !holds);
        broken.map(|(_, bound)| bound.to_owned()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "transfers={} acked={} failed={} applied={} lost={} duplicate={} unresolved={} fates_committed={} fates_aborted={}",
            self.transfers,
            self.acked,
            self.failed,
            self.applied,
            self.lost,
            self.duplicate,
            self.unresolved,
            self.fates_committed,
            self.fates_aborted,
        )
    }
}

impl fmt::Display for Fire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (replies, requests) = (&self.cut_replies, &self.cut_requests);
        write!(
            f,
            "{} backends killed in a statement ({} more beside it), {} answers to COMMIT cut at {} places, {} COMMITs cut at {}, \
             {} times sockets cut, {} crashes",
            self.kills,
            self.missed_kills,
            replies.iter().sum::<usize>(),
            replies.len(),
            requests.iter().sum::<usize>(),
            requests.len(),
            self.cut_sockets,
            self.crashes,
        )
    }
}

/// Who makes the transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A `Db`.
    Steadfast,
    /// A plain pool, and a loop that repeats whatever failed.
    Naive,
}

/// Makes the transfers under fire; `None` if tests are told to do without servers.
pub async fn run(way: Way, settings: Settings) -> Option<Report> {
    let server = Postgres::start_with(&SERVER)?;
    let started = Instant::now();
    let mut connection = server.connect().await;
    for sql in TABLES {
        sqlx::query(sql)
            .execute(&mut connection)
            .await
            .expect("the tables are made");
    }
    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port());
    let options = options.application_name(APPLICATION);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect_lazy_with(options);
    let log = Arc::new(Log::default());
    let bank = match way {
        Way::Steadfast => Bank::Steadfast(open(&pool, &log)),
        Way::Naive => Bank::Naive(pool),
    };
    // One transfer in peace, which shows how long a COMMIT and its answer are.
    let transfers = Arc::new(Transfers::default());
    transfers.make(&bank).await;
    let counts = proxy.counts();
    let acts = acts(settings, counts.commit_reply, counts.commit_request);

    transfers
        .last
        .store(settings.transfers - 1, Ordering::Relaxed);
    let mut workers = JoinSet::new();
    for _ in 0..settings.workers {
        let (bank, transfers) = (bank.clone(), Arc::clone(&transfers));
        workers.spawn(async move { while transfers.make(&bank).await {} });
    }
    let mut saboteur = Saboteur {
        connection,
        server,
        proxy,
        transfers: Arc::clone(&transfers),
        fire: Fire {
            cut_replies: vec![0; counts.commit_reply + 1],
            cut_requests: vec![0; counts.commit_request + 1],
            ..Fire::default()
        },
    };
    for (done, act) in acts.iter().enumerate() {
        // The last act comes when nineteen of twenty transfers have begun.
        let step = settings.transfers * 19 / 20 * done as u64 / acts.len() as u64;
        transfers.keep_step(step + 2 * settings.workers as u64);
        transfers.reach(step).await;
        saboteur.act(*act).await;
    }
    transfers.keep_step(u64::MAX);
    while let Some(worker) = workers.join_next().await {
        worker.expect("no worker panics");
    }
    saboteur.let_it_rest().await;
    if settings.crashes > 0 {
        // What was acknowledged is on disk.
        saboteur.act(Act::Crash).await;
    }
    let mut report = transfers.count(&mut saboteur.connection).await;
    if let Bank::Steadfast(db) = &bank {
        let stats = db.stats();
        report.fates_committed = stats.fates_committed;
        report.fates_aborted = stats.fates_aborted;
    }
    report.fire = saboteur.fire;
    report.events = std::mem::take(&mut log.0.lock().expect(COUNTS));
    report.took = started.elapsed();
    Some(report)
}

/// A transfer would rather take a minute than fail, and there are few that could make a crowd of retries.
fn open(pool: &PgPool, log: &Arc<Log>) -> PgDb {
    let budget = Budget::builder().ratio(1.0).floor(100.0, 1_000);
    PgDb::builder(pool.clone())
        .name("ledger")
        .preset(Preset::batch())
        .deadline(DEADLINE)
        .attempts(20)
        .budget(&budget.build().expect(IN_RANGE))
        .observer(Arc::clone(log))
        .build()
        .expect(IN_RANGE)
}

#[derive(Clone)]
enum Bank {
    Steadfast(PgDb),
    Naive(PgPool),
}

impl Bank {
    /// Moves the money once, whatever happens; or says why not.
    async fn make(&self, transfer: Transfer) -> Result<(), sqlx::Error> {
        match self {
            Self::Steadfast(db) => {
                db.transaction(|mut tx| async move {
                    for query in transfer.queries() {
                        query.execute(&mut tx).await?;
                    }
                    Ok(())
                })
                .await
            }
            Self::Naive(pool) => {
                let until = Instant::now() + DEADLINE;
                loop {
                    match naive(pool, transfer).await {
                        Err(_) if Instant::now() < until => sleep(PAUSE).await,
                        result => return result,
                    }
                }
            }
        }
    }
}

async fn naive(pool: &PgPool, transfer: Transfer) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    for query in transfer.queries() {
        query.execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Money that moves from one account to another.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    id: i64,
    from: i32,
    to: i32,
    amount: i64,
}

impl Transfer {
    fn new(id: u64) -> Self {
        let mut random = Random(id);
        let from = random.below(ACCOUNTS);
        let to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS;
        Self {
            id: id as i64,
            from: from as i32,
            to: to as i32,
            amount: 1 + random.below(100) as i64,
        }
    }

    fn queries(self) -> [Query<'static, Pg, PgArguments>; 4] {
        let change = |account: i32, amount: i64| {
            sqlx::query("UPDATE account SET balance = balance + $2 WHERE id = $1")
                .bind(account)
                .bind(amount)
        };
        let note = |sql: &'static str, account: i32, amount: i64| {
            sqlx::query(sql).bind(self.id).bind(account).bind(amount)
        };
        let first = "INSERT INTO ledger (transfer, account, amount) VALUES ($1, $2, $3)";
        // Something takes its time, or hardly anybody would be met in a statement.
        let last =
            "INSERT INTO ledger (transfer, account, amount) SELECT $1, $2, $3 FROM pg_sleep(0.01)";
        [
            change(self.from, -self.amount),
            note(first, self.from, -self.amount),
            change(self.to, self.amount),
            note(last, self.to, self.amount),
        ]
    }
}

/// All transfers: which is the next, and what the caller was told of each.
#[derive(Default)]
struct Transfers {
    next: AtomicU64,
    last: AtomicU64,
    /// No transfer from this one on begins, for some time at least.
    step: AtomicU64,
    ended: AtomicU64,
    told: Mutex<BTreeMap<i64, Told>>,
    errors: Mutex<BTreeMap<String, u64>>,
    slowest: Mutex<Duration>,
}

/// What a caller knows of his transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Acked,
    Failed,
    Unknown,
}

impl Transfers {
    /// Makes the next one; `false` if there is none.
    async fn make(&self, bank: &Bank) -> bool {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if id > self.last.load(Ordering::Relaxed) {
            return false;
        }
        let waited = Instant::now();
        while id > self.step.load(Ordering::Relaxed) && waited.elapsed() < OUT_OF_STEP {
            sleep(Duration::from_millis(1)).await;
        }
        let transfer = Transfer::new(id);
        let started = Instant::now();
        let result = bank.make(transfer).await;
        let told = match &result {
            Ok(()) => Told::Acked,
            Err(error) => {
                let unknown = is_unknown(error);
                let text = format!("{}{error}", if unknown { "unknown: " } else { "" });
                *self.errors.lock().expect(COUNTS).entry(text).or_default() += 1;
                if unknown { Told::Unknown } else { Told::Failed }
            }
        };
        self.told.lock().expect(COUNTS).insert(transfer.id, told);
        let mut slowest = self.slowest.lock().expect(COUNTS);
        *slowest = started.elapsed().max(*slowest);
        self.ended.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Lets no transfer from this one on begin yet.
    fn keep_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn are_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) > self.last.load(Ordering::Relaxed)
    }

    /// Waits until so many have ended.
    async fn reach(&self, step: u64) {
        while self.ended.load(Ordering::Relaxed) < step {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Compares what was told with what is in the tables.
    async fn count(&self, connection: &mut PgConnection) -> Report {
        let rows: Vec<(i64, i64)> =
            sqlx::query_as("SELECT transfer, count(*) FROM ledger GROUP BY transfer")
                .fetch_all(&mut *connection)
                .await
                .expect("the ledger can be read");
        let rows: BTreeMap<_, _> = rows.into_iter().collect();
        let unbalanced: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM account WHERE balance <> \
             (SELECT coalesce(sum(amount), 0) FROM ledger WHERE account = account.id)",
        )
        .fetch_one(connection)
        .await
        .expect("the accounts can be read");
        let told = self.told.lock().expect(COUNTS);
        let count = |is: &dyn Fn(Told, i64) -> bool| {
            let rows = |id| rows.get(id).copied().unwrap_or(0);
            told.iter()
                .filter(|(id, told)| is(**told, rows(id)))
                .count() as u64
        };
        Report {
            transfers: told.len() as u64,
            acked: count(&|told, _| told == Told::Acked),
            failed: count(&|told, _| told == Told::Failed),
            unresolved: count(&|told, _| told == Told::Unknown),
            applied: rows.len() as u64,
            lost: count(&|told, rows| told == Told::Acked && rows < ROWS),
            duplicate: count(&|_, rows| rows > ROWS),
            phantom: count(&|told, rows| told == Told::Failed && rows > 0),
            unbalanced: unbalanced as u64,
            errors: self.errors.lock().expect(COUNTS).clone(),
            slowest: *self.slowest.lock().expect(COUNTS),
            ..Report::default()
        }
    }
}

fn is_unknown(error: &sqlx::Error) -> bool {
    let commit = TransactionError::of(error);
    let rejected = Rejected::of(error);
    matches!(commit, Some(TransactionError::CommitUnknown(_)))
        || matches!(rejected, Some(Rejected::DeadlineExceeded { sent: true }))
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// A backend is ended in the middle of a statement.
    Kill,
    /// The answer to a COMMIT is cut after so many bytes.
    CutReply(usize),
    /// A COMMIT is cut after so many bytes.
    CutRequest(usize),
    /// A connection is cut somewhere.
    CutSocket(Fault),
    /// All connections are cut.
    HangUp,
    /// The server dies with all its backends, and is started again.
    Crash,
}

/// Who does it.
struct Saboteur {
    connection: PgConnection,
    server: Postgres,
    proxy: Proxy,
    transfers: Arc<Transfers>,
    fire: Fire,
}

impl Saboteur {
    async fn act(&mut self, act: Act) {
        match act {
            Act::Kill => {
                let until = Instant::now() + GIVE_UP;
                while !self.transfers.are_over() && Instant::now() < until {
                    match self.kill().await {
                        Kill::Met => {
                            self.fire.kills += 1;
                            break;
                        }
                        Kill::Missed => self.fire.missed_kills += 1,
                        Kill::Nobody => {}
                    }
                }
            }
            Act::CutReply(bytes) => {
                let fault = Fault::CutCommitReply(bytes);
                let happened = self.until_counted(fault, |counts| counts.cut_commit_replies);
                self.fire.cut_replies[bytes] += usize::from(happened.await);
            }
            Act::CutRequest(bytes) => {
                let fault = Fault::CutCommitRequest(bytes);
                let happened = self.until_counted(fault, |counts| counts.cut_commit_requests);
                self.fire.cut_requests[bytes] += usize::from(happened.await);
            }
            Act::CutSocket(fault) => {
                self.proxy.set(fault);
                sleep(Duration::from_millis(5)).await;
                self.proxy.set(Fault::Pass);
                self.fire.cut_sockets += 1;
            }
            Act::HangUp => {
                self.proxy.kill_all();
                self.fire.cut_sockets += 1;
            }
            Act::Crash => {
                block_in_place(|| {
                    self.server.kill9();
                    self.server.restart();
                });
                self.connection = self.server.connect().await;
                self.fire.crashes += 1;
            }
        }
    }

    /// Cuts all connections, and waits until the server has noticed: what has not happened by then never will.
    async fn let_it_rest(&mut self) {
        self.proxy.kill_all();
        loop {
            let sessions: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1",
            )
            .bind(APPLICATION)
            .fetch_one(&mut self.connection)
            .await
            .expect("a superuser may see them");
            if sessions == 0 {
                return;
            }
            // The `Db` may look after its connections once more.
            self.proxy.kill_all();
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Repeats a fault until it has happened to a COMMIT; `false` if there is none any more.
    async fn until_counted(&self, fault: Fault, count: fn(&Counts) -> usize) -> bool {
        let before = count(&self.proxy.counts());
        let happened = || count(&self.proxy.counts()) > before;
        let give_up = Instant::now() + GIVE_UP;
        while !happened() && !self.transfers.are_over() && Instant::now() < give_up {
            self.proxy.set(fault);
            let until = Instant::now() + PATIENCE;
            // The connection that took it may be lost before its answer comes.
            while !happened() && Instant::now() < until {
                sleep(Duration::from_micros(500)).await;
            }
        }
        self.proxy.set(Fault::Pass);
        happened()
    }

    /// Ends a backend that is at work. The server's own log says whether that met a statement.
    async fn kill(&mut self) -> Kill {
        let killed: Option<i32> = sqlx::query_scalar(
            "SELECT pid FROM (SELECT pid FROM pg_stat_activity \
             WHERE application_name = $1 AND state = 'active' ORDER BY random() LIMIT 1) AS one \
             WHERE pg_terminate_backend(pid)",
        )
        .bind(APPLICATION)
        .fetch_optional(&mut self.connection)
        .await
        .expect("a superuser may do so");
        let Some(pid) = killed else {
            sleep(Duration::from_micros(500)).await;
            return Kill::Nobody;
        };
        let ended = format!("[{pid}] FATAL:  terminating connection due to administrator");
        let statement = format!("[{pid}] STATEMENT:");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let log = self.server.log();
            // The last one, as pids come again.
            if let Some((_, said)) = log.rsplit_once(&ended) {
                let next = said.lines().nth(1).unwrap_or_default();
                return if next.starts_with(&statement) {
                    Kill::Met
                } else {
                    Kill::Missed
                };
            }
            sleep(Duration::from_millis(1)).await;
        }
        Kill::Missed
    }
}

/// What a kill came to.
enum Kill {
    Met,
    /// The backend's statement was over.
    Missed,
    Nobody,
}

/// All acts, in an order that is the same each time.
fn acts(settings: Settings, reply: usize, request: usize) -> Vec<Act> {
    let mut random = Random(1);
    let mut acts = vec![Act::Kill; settings.kills];
    for bytes in 0..=reply {
        acts.extend(vec![Act::CutReply(bytes); settings.cuts]);
    }
    for bytes in 0..=request {
        acts.extend(vec![Act::CutRequest(bytes); settings.cuts.min(2)]);
    }
    for number in 0..settings.kills / 5 {
        acts.push(match number % 8 {
            0 => Act::HangUp,
            1..4 => Act::CutSocket(Fault::CutReply(random.below(500) as usize)),
            4..7 => Act::CutSocket(Fault::CutRequest(random.below(200) as usize)),
            _ => Act::CutSocket(Fault::Reset),
        });
    }
    for last in (1..acts.len()).rev() {
        acts.swap(last, random.below(last as u64 + 1) as usize);
    }
    for crash in 0..settings.crashes {
        let at = acts.len() * (crash + 1) / (settings.crashes + 1);
        acts.insert(at, Act::Crash);
    }
    acts
}

/// Counts what a `Db` tells.
#[derive(Default)]
struct Log(Mutex<BTreeMap<String, u64>>);

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        let text = match event {
            Event::Retry { kind, .. } => format!("repeated after {kind}"),
            Event::GaveUp { kind, reason, .. } => {
                format!("gave up after {kind}: {}", reason.as_str())
            }
            Event::Transition { to, .. } => format!("circuit {to}"),
            Event::Refused { rejected, .. } => format!("refused: {rejected}"),
            Event::CommitResolved {
                committed: true, ..
            } => "commit resolved: committed".to_owned(),
            Event::CommitResolved { .. } => "commit resolved: aborted".to_owned(),
            _ => "other".to_owned(),
        };
        *self.0.lock().expect(COUNTS).entry(text).or_default() += 1;
    }
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Nothing is lost but what is told to be; rivals are found out soon, so that there are deadlocks too.
const SERVER: [&str; 5] = [
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "deadlock_timeout=50ms",
    "log_line_prefix=[%p] ",
];

/// No key keeps a transfer from being written down twice.
const TABLES: [&str; 3] = [
    "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)",
    "INSERT INTO account SELECT id, 0 FROM generate_series(0, 49) AS id",
    "CREATE TABLE ledger (transfer bigint NOT NULL, account int NOT NULL, amount bigint NOT NULL)",
];

const ACCOUNTS: u64 = 50;

/// How many rows a transfer has in the ledger.
const ROWS: i64 = 2;

const CONNECTIONS: u32 = 16;

/// Of one transfer.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long the naive loop rests.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a worker waits for an act that takes its time.
const OUT_OF_STEP: Duration = Duration::from_millis(50);

/// How long one try of an act may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an act may take; then the fire was too mild.
const GIVE_UP: Duration = Duration::from_secs(30);

const IN_RANGE: &str = "the settings are in range";

const APPLICATION: &str = "ledger";

const COUNTS: &str = "counting does not panic";
