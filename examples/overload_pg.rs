//! Overload on a real PostgreSQL: ten slow seconds, and what is left of them afterwards, for sqlx alone, for a naive loop and for `Db`.
//!
//! It starts a PostgreSQL of its own for each. The callers are an open loop: 500 come every second, whether others wait or not, and an answer is worth something
//! within 3 s of the first arrival: that is *goodput*. A statement takes the server 20 ms, so that twenty connections can bear 1,000 a second. For ten seconds it takes
//! 200 ms, as with a cold cache or a bad plan: a tenth of the capacity. That is shown because it is what a full pool looks like from outside: the server
//! answers, the statements are well, and only the queue grows. What a lock or a dead network does is the same with no goodput at all in between.
//!
//! | who | the calls | bound |
//! |---|---|---|
//! | sqlx | `fetch_one(&pool)`, as sqlx comes | comes back later than `Db`, or the trouble was too mild |
//! | naive loop | the same with 3 s for each attempt and four repeats at once | shown as it is |
//! | steadfast | `fetch_one(&db)` with `Preset::web()`, a deadline of 3 s, of which 1 s is for the queue | 90 % of the offered load, from a second on that is at most the third |
//!
//! Run it: `cargo run --example overload_pg --features postgres`, better with `--release`; then `-- --svg docs/overload_pg.svg`, which draws it.
//!
//! A copy needs the files of `tests/support` too, where the `path` below looks for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
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
    env,
    fmt::Write,
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use server::postgres::Postgres;
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use steadfast::db::{Config, PgDb, Preset};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

const CONNECTIONS: u32 = 20;
/// Calls a second.
const RATE: u32 = 500;
const QUICK: f64 = 0.02;
const SLOW: f64 = 0.2;
const PATIENCE: Duration = Duration::from_secs(3);
/// When the slow seconds begin and end.
const TRIGGER: (usize, usize) = (10, 20);
/// How long it goes on afterwards.
const AFTER: usize = 40;
const REPEATS: u32 = 4;
/// Of the offered load.
const BACK: f64 = 0.9;
/// In seconds.
const SOON: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let svg = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--svg"), Some(file)) => Some(file),
        _ => {
            eprintln!("usage: overload_pg [--svg file]");
            return ExitCode::from(2);
        }
    };
    let mut days = Vec::new();
    for who in [Who::Sqlx, Who::Naive, Who::Steadfast] {
        let Some(server) = Postgres::start_with(&["max_connections=200"]) else {
            return ExitCode::SUCCESS;
        };
        eprintln!("{}: {} s", who.name(), TRIGGER.1 + AFTER);
        days.push(Day::live(who, &server).await);
    }
    println!("{}", table(&days));
    if let Some(file) = svg {
        fs::write(&file, draw(&days)).expect("the file can be written");
    }

    let [sqlx, _, ours] = &days[..] else {
        unreachable!("three lived through it");
    };
    let mut broken = Vec::new();
    match ours.back_after() {
        Some(seconds) if seconds <= SOON => {}
        Some(seconds) => broken.push(format!("steadfast was back after {seconds} s")),
        None => broken.push("steadfast was never back".to_owned()),
    }
    if sqlx
        .back_after()
        .is_some_and(|theirs| Some(theirs) <= ours.back_after())
    {
        broken.push("the trouble was too mild: sqlx was back as soon".to_owned());
    }
    for day in &days {
        if day.mean(0, TRIGGER.0) < BACK * f64::from(RATE) {
            broken.push(format!("{} had not enough before, either", day.who.name()));
        }
    }
    for bound in &broken {
        eprintln!("broken: {bound}");
    }
    let figures: Vec<_> = days.iter().map(Day::figures).collect();
    let word = if broken.is_empty() { "ok" } else { "broken" };
    println!("result: offered={RATE} {} {word}", figures.join(" "));
    ExitCode::from(u8::from(!broken.is_empty()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Sqlx,
    Naive,
    Steadfast,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlx => "sqlx",
            Self::Naive => "naive loop",
            Self::Steadfast => "steadfast",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Sqlx => "#7f7f7f",
            Self::Naive => "#d62728",
            Self::Steadfast => "#1f5fb4",
        }
    }
}

#[derive(Clone)]
enum Caller {
    Sqlx(PgPool),
    Naive(PgPool),
    Steadfast(PgDb),
}

impl Caller {
    fn new(who: Who, server: &Postgres) -> Self {
        let pool = || {
            PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .connect_lazy_with(server.options())
        };
        match who {
            Who::Sqlx => Self::Sqlx(pool()),
            Who::Naive => Self::Naive(pool()),
            Who::Steadfast => {
                let url = format!(
                    "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
                    server.port()
                );
                let preset = Preset::web()
                    .pool_size(CONNECTIONS)
                    .acquire(PATIENCE / 3)
                    .statement(PATIENCE)
                    .deadline(PATIENCE);
                let db: Result<PgDb, _> = Config::new(url).preset(preset).connect_lazy();
                Self::Steadfast(db.expect("the settings are in range").idempotent())
            }
        }
    }

    async fn call(&self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlx(pool) => read(pool).await,
            Self::Naive(pool) => {
                for _ in 0..REPEATS {
                    if let Ok(Ok(())) = timeout(PATIENCE, read(pool)).await {
                        return Ok(());
                    }
                }
                timeout(PATIENCE, read(pool))
                    .await
                    .map_err(|_| sqlx::Error::PoolTimedOut)?
            }
            Self::Steadfast(db) => sqlx::query(READ).fetch_one(db).await.map(drop),
        }
    }
}

async fn read(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(READ).fetch_one(pool).await.map(drop)
}

/// How long it takes is in a table, so that it is the same statement all the time.
const READ: &str = "SELECT pg_sleep(seconds) FROM pace";

/// What came of a minute, second by second.
struct Day {
    who: Who,
    offered: Vec<f64>,
    /// Calls that were answered in that second, within their patience.
    goodput: Vec<f64>,
    /// Calls that were answered when nobody waited any more.
    late: u32,
    failed: u32,
}

impl Day {
    async fn live(who: Who, server: &Postgres) -> Self {
        let mut direct = server.connect().await;
        run(&mut direct, "CREATE TABLE pace (seconds float8 NOT NULL)").await;
        run(&mut direct, "INSERT INTO pace VALUES (0)").await;
        set_pace(&mut direct, QUICK).await;
        let caller = Caller::new(who, server);
        // All have their connections before it begins.
        let mut first: JoinSet<_> = (0..CONNECTIONS)
            .map(|_| {
                let caller = caller.clone();
                async move { caller.call().await }
            })
            .collect();
        while let Some(ended) = first.join_next().await {
            ended.expect("it does not panic").expect("all is well yet");
        }

        let seconds = TRIGGER.1 + AFTER;
        let counts = Arc::new(Counts::new(seconds));
        let began = Instant::now();
        let trigger = tokio::spawn(async move {
            sleep(Duration::from_secs(TRIGGER.0 as u64)).await;
            set_pace(&mut direct, SLOW).await;
            sleep(Duration::from_secs((TRIGGER.1 - TRIGGER.0) as u64)).await;
            set_pace(&mut direct, QUICK).await;
        });
        let mut arrivals = interval(Duration::from_secs(1) / RATE);
        arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut calls = JoinSet::new();
        loop {
            arrivals.tick().await;
            let arrived = Instant::now();
            let Some(offered) = counts.offered.get((arrived - began).as_secs() as usize) else {
                break;
            };
            offered.fetch_add(1, Relaxed);
            let (caller, counts) = (caller.clone(), Arc::clone(&counts));
            calls.spawn(async move {
                let result = caller.call().await;
                counts.settle(result.is_ok(), arrived.elapsed(), began.elapsed());
            });
            while calls.try_join_next().is_some() {}
        }
        // Who is still there has come too late to count.
        calls.shutdown().await;
        trigger.await.expect("it does not panic");
        let read = |counts: &[AtomicU32]| {
            let counts = counts.iter();
            counts.map(|count| f64::from(count.load(Relaxed))).collect()
        };
        Self {
            who,
            offered: read(&counts.offered),
            goodput: read(&counts.goodput),
            late: counts.late.load(Relaxed),
            failed: counts.failed.load(Relaxed),
        }
    }

    fn mean(&self, from: usize, until: usize) -> f64 {
        self.goodput[from..until].iter().sum::<f64>() / (until - from) as f64
    }

    /// How many seconds after the slow ones three seconds on average have nine tenths of the offered load; `None`: never.
    fn back_after(&self) -> Option<usize> {
        let mut seconds = TRIGGER.1..self.goodput.len() - 2;
        let back = seconds.find(|from| self.mean(*from, from + 3) >= BACK * f64::from(RATE));
        back.map(|second| second - TRIGGER.1)
    }

    fn back(&self) -> String {
        let back = self.back_after();
        back.map_or_else(|| "never".to_owned(), |seconds| seconds.to_string())
    }

    /// As a share of what was offered.
    fn last(&self) -> f64 {
        let until = self.goodput.len();
        self.mean(until - 10, until) / f64::from(RATE)
    }

    fn figures(&self) -> String {
        let name = match self.who {
            Who::Sqlx => "sqlx",
            Who::Naive => "naive",
            Who::Steadfast => "steadfast",
        };
        format!(
            "{name}_during={:.0} {name}_back_after={} {name}_last={:.2} {name}_late={} {name}_failed={}",
            self.mean(TRIGGER.0, TRIGGER.1),
            self.back(),
            self.last(),
            self.late,
            self.failed,
        )
    }
}

struct Counts {
    offered: Vec<AtomicU32>,
    goodput: Vec<AtomicU32>,
    late: AtomicU32,
    failed: AtomicU32,
}

impl Counts {
    fn new(seconds: usize) -> Self {
        let counts = || (0..seconds).map(|_| AtomicU32::new(0)).collect();
        Self {
            offered: counts(),
            goodput: counts(),
            late: AtomicU32::new(0),
            failed: AtomicU32::new(0),
        }
    }

    /// A call that took so long ended so long after the beginning.
    fn settle(&self, succeeded: bool, took: Duration, at: Duration) {
        let count = if !succeeded {
            &self.failed
        } else if took > PATIENCE {
            &self.late
        } else if let Some(second) = self.goodput.get(at.as_secs() as usize) {
            second
        } else {
            return;
        };
        count.fetch_add(1, Relaxed);
    }
}

async fn run(connection: &mut PgConnection, sql: &'static str) {
    let done = sqlx::query(sql).execute(connection).await;
    done.expect("the superuser may do anything");
}

async fn set_pace(connection: &mut PgConnection, seconds: f64) {
    let set = sqlx::query("UPDATE pace SET seconds = $1").bind(seconds);
    let done = set.execute(connection).await;
    done.expect("the superuser may do anything");
}

/// Goodput second by second, and what it comes to.
fn table(days: &[Day]) -> String {
    let mut table = format!("{:>24}{:>10}", "second", "offered");
    for day in days {
        let _ = write!(table, "{:>12}", day.who.name());
    }
    for second in TRIGGER.0 - 3..days[0].offered.len() {
        let since = second as i64 - TRIGGER.0 as i64;
        let slow = (TRIGGER.0..TRIGGER.1).contains(&second);
        let mark = if slow { "slow" } else { "" };
        let _ = write!(
            table,
            "\n{mark:<12}{since:>12}{:>10}",
            days[0].offered[second]
        );
        for day in days {
            let _ = write!(table, "{:>12}", day.goodput[second]);
        }
    }
    let mut line = |what: &str, figure: &dyn Fn(&Day) -> String| {
        let _ = write!(table, "\n{what:<34}");
        for day in days {
            let _ = write!(table, "{:>12}", figure(day));
        }
    };
    line("during, calls/s", &|day| {
        format!("{:.0}", day.mean(TRIGGER.0, TRIGGER.1))
    });
    line("back after, s", &Day::back);
    line("last 10 s, % of what was offered", &|day| {
        format!("{:.0}", 100.0 * day.last())
    });
    line("answered too late", &|day| day.late.to_string());
    line("failed or refused", &|day| day.failed.to_string());
    table
}

const WIDTH: f64 = 1_080.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 896.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 456.0;

fn draw(days: &[Day]) -> String {
    let seconds = days[0].offered.len();
    let curves = days.iter().flat_map(|day| &day.goodput);
    let most = curves.fold(f64::from(RATE), |most, n| n.max(most)) * 1.05;
    let x = |second: f64| LEFT + (RIGHT - LEFT) * second / seconds as f64;
    let y = |calls: f64| BOTTOM - (BOTTOM - TOP) * calls / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let mut put = |element: String| {
        svg.push_str(&element);
        svg.push('\n');
    };
    let text = |x: f64, y: f64, how: &str, words: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {how}>{words}</text>")
    };
    put(text(
        LEFT,
        30.0,
        "font-size=\"18\" font-weight=\"600\"",
        "A real PostgreSQL that is ten times as slow for ten seconds",
    ));
    put(text(
        LEFT,
        52.0,
        "fill=\"#666\"",
        &format!(
            "{RATE} calls a second on {CONNECTIONS} connections, which can bear {:.0}, and {:.0} in the shaded seconds. One run each.",
            f64::from(CONNECTIONS) / QUICK,
            f64::from(CONNECTIONS) / SLOW,
        ),
    ));
    let (from, until) = (x(TRIGGER.0 as f64), x(TRIGGER.1 as f64));
    put(format!(
        "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f3dede\"/>",
        until - from,
        BOTTOM - TOP
    ));
    for calls in (0..=most as u32).step_by(100) {
        let y = y(f64::from(calls));
        put(format!(
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>"
        ));
        put(text(
            LEFT - 8.0,
            y + 4.0,
            "text-anchor=\"end\"",
            &calls.to_string(),
        ));
    }
    for second in (TRIGGER.0..=seconds).step_by(10) {
        let (x, since) = (x(second as f64), second - TRIGGER.0);
        put(format!("<path d=\"M{x:.1} {BOTTOM}v5\" stroke=\"#222\"/>"));
        put(text(
            x,
            BOTTOM + 20.0,
            "text-anchor=\"middle\"",
            &since.to_string(),
        ));
    }
    put(format!(
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#222\"/>"
    ));
    put(text(
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 44.0,
        "text-anchor=\"middle\"",
        "seconds since the slow ones began",
    ));
    let middle = (TOP + BOTTOM) / 2.0;
    put(text(
        20.0,
        middle,
        &format!("text-anchor=\"middle\" transform=\"rotate(-90 20 {middle})\""),
        "calls answered within 3 s, per second",
    ));
    let offered = (
        "offered",
        "#222",
        "1.5\" stroke-dasharray=\"6 4",
        &days[0].offered,
    );
    let curves = days.iter().map(|day| {
        let width = if day.who == Who::Steadfast {
            "3.5"
        } else {
            "2"
        };
        (day.who.name(), day.who.color(), width, &day.goodput)
    });
    for (n, (name, color, width, counts)) in curves.chain([offered]).enumerate() {
        let stroke = format!(
            "fill=\"none\" stroke=\"{color}\" stroke-linejoin=\"round\" stroke-width=\"{width}\""
        );
        // A second stands at its middle.
        let points = counts.iter().enumerate();
        let points =
            points.map(|(second, calls)| format!("{:.1} {:.1}", x(second as f64 + 0.5), y(*calls)));
        let points: Vec<_> = points.collect();
        put(format!("<path d=\"M{}\" {stroke}/>", points.join("L")));
        let (x, y) = (RIGHT + 24.0, TOP + 12.0 + 24.0 * n as f64);
        put(format!("<path d=\"M{x} {y}h32\" {stroke}/>"));
        put(text(x + 40.0, y + 4.0, "", name));
    }
    svg.push_str("</svg>\n");
    svg
}
