//! The wall: hundreds of clients on twenty connections, with steadfast and with sqlx's pool alone.
//!
//! It starts a PostgreSQL of its own. Every statement takes the server 10 ms. Each client makes its next call when the last one is over.
//! The contenders take turns of two seconds, of which the middle one counts, so that what else the machine does troubles all of them the same.
//!
//! | mode | the calls | bounds |
//! |---|---|---|
//! | basic | reads | none fails; 0.95 × the throughput of sqlx at its best; p99 at most 1.2 × clients ÷ throughput |
//! | stress | writes | the same |
//! | mixed | four reads to one transaction | the same |
//! | recovery | reads, while the server is stopped for half a second | only calls fail whose deadline passed meanwhile |
//!
//! How a bare pool does depends on its acquire timeout. It is measured with 2 s and 30 s, of which the better one counts, and with 0.5 s.
//!
//! Run it: `cargo run --example load --features postgres`, better with `--release`; then `-- --clients 1000 --mode all --seconds 20`.
//!
//! A copy needs the files of `tests/support` too, where the `path` below looks for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
//! fastrand = "2"
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio"] }
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
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

#[path = "../tests/support/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    env, fmt,
    iter::repeat_n,
    ops::Range,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use server::postgres::{Postgres, Stop};
use sqlx::{PgPool, postgres::PgPoolOptions};
use steadfast::{
    Rejected,
    breaker::WhenOpen,
    db::{PgDb, Preset},
};
use tokio::{task::JoinSet, time::sleep};

const CONNECTIONS: u32 = 20;
const DEADLINE: Duration = Duration::from_secs(2);
const OUTAGE: Duration = Duration::from_millis(500);
const ROWS: i32 = 100_000;
/// How long one contender has its turn.
const TURN: Duration = Duration::from_secs(2);
/// How long the server has between two modes to notice whom it has lost.
const SETTLE: Duration = Duration::from_secs(2);
const THROUGHPUT: f64 = 0.95;
const P99: f64 = 1.2;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(arguments) = Arguments::read() else {
        eprintln!(
            "usage: load [--clients n] [--mode basic|stress|mixed|recovery|all] [--seconds n]"
        );
        return ExitCode::from(2);
    };
    // More than the pools need: a pool that gives up too early opens connections faster than the server closes them.
    let Some(mut server) = Postgres::start_with(&["max_connections=400"]) else {
        return ExitCode::SUCCESS;
    };
    let mut broken = false;
    let mut results = Vec::new();
    for mode in &arguments.modes {
        let wall = Wall::run(*mode, &arguments, &mut server).await;
        println!("\n{wall}");
        results.push(wall.result());
        for bound in wall.broken() {
            eprintln!("{mode}: {bound}");
            broken = true;
        }
    }
    println!();
    for result in results {
        println!("{result}");
    }
    if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

struct Arguments {
    clients: usize,
    modes: Vec<Mode>,
    time: Duration,
}

impl Arguments {
    fn read() -> Option<Self> {
        let mut read = Self {
            clients: 500,
            modes: Mode::ALL.to_vec(),
            time: Duration::from_secs(20),
        };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next()?;
            match name.as_str() {
                "--clients" => read.clients = value.parse().ok().filter(|clients| *clients > 0)?,
                "--seconds" => {
                    let seconds: f64 = value.parse().ok()?;
                    read.time = Duration::try_from_secs_f64(seconds)
                        .ok()
                        .filter(|time| *time > OUTAGE)?;
                }
                "--mode" if value == "all" => {}
                "--mode" => {
                    let named = |mode: &Mode| mode.to_string() == value;
                    read.modes = vec![Mode::ALL.into_iter().find(named)?];
                }
                _ => return None,
            }
        }
        Some(read)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Basic,
    Stress,
    Mixed,
    Recovery,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Basic, Self::Stress, Self::Mixed, Self::Recovery];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Basic => "basic",
            Self::Stress => "stress",
            Self::Mixed => "mixed",
            Self::Recovery => "recovery",
        })
    }
}

/// One mode: what became of everybody's calls.
struct Wall {
    mode: Mode,
    clients: usize,
    tallies: Vec<(String, Tally)>,
}

impl Wall {
    async fn run(mode: Mode, arguments: &Arguments, server: &mut Postgres) -> Self {
        let clients = arguments.clients;
        prepare(server).await;
        let mut contenders = vec![Contender::steadfast(server, clients)];
        contenders.extend(ACQUIRE_TIMEOUTS.map(|timeout| Contender::bare(server, timeout)));
        let mut tallies: Vec<_> = contenders.iter().map(|_| Tally::default()).collect();
        // An outage can't be shared.
        let turns = match mode {
            Mode::Recovery => 1,
            Mode::Basic | Mode::Stress | Mode::Mixed => {
                arguments.time.div_duration_f64(TURN).ceil() as u32
            }
        };
        let time = arguments.time / turns;
        let turns = turns as usize;
        // Who gives up too early leaves a server that is busy with the connections of those who gave up: that one's turns are the last.
        let impatient = contenders.len() - 1;
        let rounds =
            (0..turns).flat_map(|turn| (0..impatient).map(move |place| (turn + place) % impatient));
        for which in rounds.chain(repeat_n(impatient, turns)) {
            let calls = load(&contenders[which], mode, clients, time);
            let tally = &mut tallies[which];
            let (turn, failures) = if mode == Mode::Recovery {
                let (calls, away) = tokio::join!(calls, outage(server, time / 2));
                tally.away = Some(away);
                calls
            } else {
                calls.await
            };
            tally.turns.push(turn);
            tally.failures.extend(failures);
        }
        let names = contenders.iter().map(Contender::name);
        let tallies = names.zip(tallies).collect();
        for contender in contenders {
            contender.close().await;
        }
        sleep(SETTLE).await;
        Self {
            mode,
            clients,
            tallies,
        }
    }

    fn ours(&self) -> &Tally {
        &self.tallies[0].1
    }

    /// sqlx at its best.
    fn best(&self) -> f64 {
        let patient = &self.tallies[1..ACQUIRE_TIMEOUTS.len()];
        let throughputs = patient.iter().map(|(_, tally)| tally.throughput());
        throughputs.fold(0.0, f64::max)
    }

    /// sqlx with half a second.
    fn impatient(&self) -> f64 {
        self.tallies[ACQUIRE_TIMEOUTS.len()].1.throughput()
    }

    /// The longest that a call in a hundred may take in milliseconds: when everybody waits for the turn of all others.
    fn most_p99(&self) -> f64 {
        P99 * 1_000.0 * self.clients as f64 / self.ours().throughput()
    }

    fn result(&self) -> String {
        let Self { mode, clients, .. } = self;
        let ours = self.ours();
        let (throughput, best, impatient) = (ours.throughput(), self.best(), self.impatient());
        let verdict = if self.broken().is_empty() {
            "ok"
        } else {
            "broken"
        };
        format!(
            "result: mode={mode} clients={clients} throughput={throughput:.0} sqlx={best:.0} ratio={:.3} sqlx_half_second={impatient:.0} \
             failed={} failed_unduly={} p99_ms={:.0} p99_bound_ms={:.0} {verdict}",
            throughput / best,
            ours.failures.len(),
            ours.undue(),
            ours.quantile(0.99),
            self.most_p99(),
        )
    }

    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (ours, best) = (self.ours(), self.best());
        if ours.undue() > 0 {
            broken.push(format!(
                "{} calls failed that should not have",
                ours.undue()
            ));
        }
        if ours.throughput() < THROUGHPUT * best {
            broken.push(format!(
                "{:.0} calls a second, but sqlx makes {best:.0}",
                ours.throughput()
            ));
        }
        let (p99, most) = (ours.quantile(0.99), self.most_p99());
        // An outage that lasts longer than the wait is in the hundredth.
        if self.mode != Mode::Recovery && p99 > most {
            broken.push(format!("p99 is {p99:.0} ms, but may be {most:.0} ms"));
        }
        broken
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mode,
            clients,
            tallies,
        } = self;
        let heading = format!("{mode}, {clients} clients");
        write!(
            f,
            "{heading:<24}{:>10}{:>9}{:>9}{:>9}{:>9}",
            "calls/s", "failed", "p50 ms", "p99 ms", "max ms"
        )?;
        for (name, tally) in tallies {
            write!(
                f,
                "\n{name:<24}{:>10.0}{:>9}{:>9.0}{:>9.0}{:>9.0}",
                tally.throughput(),
                tally.failures.len(),
                tally.quantile(0.50),
                tally.quantile(0.99),
                tally.longest(),
            )?;
            for (error, count) in tally.errors() {
                write!(f, "\n    {count} × {error}")?;
            }
        }
        Ok(())
    }
}

/// The bare pools; the last one is the impatient one.
const ACQUIRE_TIMEOUTS: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(30),
    Duration::from_millis(500),
];

#[derive(Clone)]
enum Contender {
    Steadfast { reads: PgDb, db: PgDb },
    Bare(PgPool),
}

impl Contender {
    fn steadfast(server: &Postgres, clients: usize) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .connect_lazy_with(server.options());
        let db = PgDb::builder(pool)
            .preset(Preset::web().deadline(DEADLINE).statement(DEADLINE))
            .when_open(WhenOpen::Wait { queue: clients })
            .build()
            .expect("the settings are in range");
        Self::Steadfast {
            reads: db.idempotent(),
            db,
        }
    }

    fn bare(server: &Postgres, acquire_timeout: Duration) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(acquire_timeout)
            .connect_lazy_with(server.options());
        Self::Bare(pool)
    }

    fn name(&self) -> String {
        match self {
            Self::Steadfast { .. } => "steadfast".to_owned(),
            Self::Bare(pool) => format!("sqlx, acquire {:?}", pool.options().get_acquire_timeout()),
        }
    }

    async fn call(&self, mode: Mode) -> Result<(), sqlx::Error> {
        let chance = fastrand::u32(..);
        match mode {
            Mode::Basic | Mode::Recovery => self.read().await,
            Mode::Stress if chance.is_multiple_of(2) => self.insert().await,
            Mode::Stress => self.update().await,
            Mode::Mixed if chance.is_multiple_of(5) => self.transfer().await,
            Mode::Mixed => self.read().await,
        }
    }

    async fn read(&self) -> Result<(), sqlx::Error> {
        let id = fastrand::i32(0..ROWS);
        let query =
            sqlx::query("SELECT balance, pg_sleep(0.01) FROM account WHERE id = $1").bind(id);
        match self {
            Self::Steadfast { reads, .. } => query.fetch_one(reads).await.map(drop),
            Self::Bare(pool) => query.fetch_one(pool).await.map(drop),
        }
    }

    async fn insert(&self) -> Result<(), sqlx::Error> {
        let query = sqlx::query("INSERT INTO entry (amount) SELECT $1 FROM pg_sleep(0.01)")
            .bind(fastrand::i32(..));
        match self {
            Self::Steadfast { db, .. } => query.execute(db).await.map(drop),
            Self::Bare(pool) => query.execute(pool).await.map(drop),
        }
    }

    async fn update(&self) -> Result<(), sqlx::Error> {
        let id = fastrand::i32(0..ROWS);
        let query = sqlx::query(
            "UPDATE account SET balance = balance + 1 WHERE id = $1 AND pg_sleep(0.01) IS NOT NULL",
        )
        .bind(id);
        match self {
            Self::Steadfast { db, .. } => query.execute(db).await.map(drop),
            Self::Bare(pool) => query.execute(pool).await.map(drop),
        }
    }

    async fn transfer(&self) -> Result<(), sqlx::Error> {
        const MOVE: &str = "UPDATE account SET balance = balance + $2 WHERE id = $1";
        const NOTE: &str = "INSERT INTO entry (amount) SELECT $1 FROM pg_sleep(0.01)";
        let (to, amount) = (fastrand::i32(0..ROWS), fastrand::i32(1..100));
        match self {
            Self::Steadfast { db, .. } => {
                db.transaction(|mut tx| async move {
                    sqlx::query(MOVE)
                        .bind(to)
                        .bind(amount)
                        .execute(&mut tx)
                        .await?;
                    sqlx::query(NOTE)
                        .bind(amount)
                        .execute(&mut tx)
                        .await
                        .map(drop)
                })
                .await
            }
            Self::Bare(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::query(MOVE)
                    .bind(to)
                    .bind(amount)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(NOTE).bind(amount).execute(&mut *tx).await?;
                tx.commit().await
            }
        }
    }

    async fn close(self) {
        match self {
            Self::Steadfast { db, .. } => db.close().await,
            Self::Bare(pool) => pool.close().await,
        }
    }
}

/// What became of a contender's calls.
#[derive(Default)]
struct Tally {
    turns: Vec<Turn>,
    failures: Vec<Failure>,
    /// When the server was away.
    away: Option<Range<Instant>>,
}

/// The calls of one turn that succeeded.
#[derive(Default)]
struct Turn {
    time: Duration,
    /// How many were over in time.
    in_time: usize,
    /// How long each took, the quickest first.
    took: Vec<Duration>,
}

struct Failure {
    began: Instant,
    error: String,
    of_deadline: bool,
}

impl Tally {
    /// Calls a second, in the middle one of the turns.
    fn throughput(&self) -> f64 {
        middle(
            self.turns
                .iter()
                .map(|turn| turn.in_time as f64 / turn.time.as_secs_f64()),
        )
    }

    /// In milliseconds, in the middle one of the turns.
    fn quantile(&self, share: f64) -> f64 {
        middle(self.turns.iter().map(|turn| turn.quantile(share)))
    }

    /// In milliseconds.
    fn longest(&self) -> f64 {
        let longest = self.turns.iter().filter_map(|turn| turn.took.last());
        longest
            .max()
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1_000.0)
    }

    /// How many failed, other than by a deadline that passed while the server was away.
    fn undue(&self) -> usize {
        let due = |failure: &&Failure| {
            let away = self.away.as_ref();
            failure.of_deadline
                && away.is_some_and(|away| away.contains(&(failure.began + DEADLINE)))
        };
        self.failures.len() - self.failures.iter().filter(due).count()
    }

    fn errors(&self) -> BTreeMap<&str, usize> {
        let mut errors = BTreeMap::new();
        for failure in &self.failures {
            *errors.entry(&*failure.error).or_default() += 1;
        }
        errors
    }
}

impl Turn {
    /// In milliseconds.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.took.len().saturating_sub(1);
        let took = self.took.get((last as f64 * share) as usize);
        took.map_or(f64::INFINITY, |took| took.as_secs_f64() * 1_000.0)
    }
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// So many clients, for so long.
async fn load(
    contender: &Contender,
    mode: Mode,
    clients: usize,
    time: Duration,
) -> (Turn, Vec<Failure>) {
    let contender = Arc::new(contender.clone());
    let until = Instant::now() + time;
    let mut running = JoinSet::new();
    for _ in 0..clients {
        running.spawn(client(Arc::clone(&contender), mode, until));
    }
    let (mut all, mut failures) = (Turn::default(), Vec::new());
    while let Some(ended) = running.join_next().await {
        let (turn, failed) = ended.expect("a client does not panic");
        all.in_time += turn.in_time;
        all.took.extend(turn.took);
        failures.extend(failed);
    }
    all.time = time;
    all.took.sort_unstable();
    (all, failures)
}

async fn client(contender: Arc<Contender>, mode: Mode, until: Instant) -> (Turn, Vec<Failure>) {
    let (mut turn, mut failures) = (Turn::default(), Vec::new());
    loop {
        let began = Instant::now();
        if began >= until {
            return (turn, failures);
        }
        match contender.call(mode).await {
            Ok(()) => {
                let now = Instant::now();
                turn.took.push(now - began);
                turn.in_time += usize::from(now <= until);
            }
            Err(error) => failures.push(Failure {
                began,
                of_deadline: matches!(
                    Rejected::of(&error),
                    Some(Rejected::DeadlineExceeded { .. })
                ),
                error: error.to_string(),
            }),
        }
    }
}

/// Stops the server after so long, and starts it again. Returns when it was away.
async fn outage(server: &mut Postgres, after: Duration) -> Range<Instant> {
    sleep(after).await;
    let began = Instant::now();
    tokio::task::block_in_place(|| server.stop(Stop::Fast));
    sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    tokio::task::block_in_place(|| server.restart());
    began..Instant::now()
}

async fn prepare(server: &Postgres) {
    let mut connection = server.connect().await;
    let tables = format!(
        "DROP TABLE IF EXISTS account, entry;
         CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
         CREATE TABLE entry (id bigserial PRIMARY KEY, amount int NOT NULL);
         INSERT INTO account SELECT id, 0 FROM generate_series(0, {ROWS}) id;
         ANALYZE account"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(tables))
        .execute(&mut connection)
        .await
        .expect("the superuser may make tables");
}
