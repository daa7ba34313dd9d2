//! HTTP over a slow database, at three times its capacity: with steadfast, and without.
//!
//! It starts a PostgreSQL of its own, and a server in a process of its own. Each request takes the database 50 ms on one of twenty connections, so 400 a second are
//! all that it can do. 1,200 a second are sent over 1,000 connections, whether the answers come or not, and each says in its header that it has one second.
//!
//! | what | bound |
//! |---|---|
//! | the longest wait of any request, seen by the client | the deadline and 50 ms |
//! | how much the server's resident memory grows | 64 MiB |
//! | a refusal, measured right outside of the layer | 5 ms at p99 |
//! | what was let in, measured there | 2 × p99 without load, and `max_wait`, at p99 |
//!
//! The same is done to the same handlers over a plain pool. Its clients give up after three seconds.
//!
//! Run it: `cargo run --example http_load --features http,postgres`, better with `--release`; then `-- --seconds 20`.
//!
//! A copy needs the files of `tests/support` too, where the `path` below looks for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["http", "postgres"] }
//! axum = { version = "0.8", default-features = false, features = ["http1", "tokio"] }
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

#[path = "../tests/support/server.rs"]
mod server;

use std::{
    collections::VecDeque,
    env, error, fmt, fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    pin::pin,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use server::postgres::Postgres;
use sqlx::{PgPool, Postgres as Pg, postgres::PgPoolOptions};
use steadfast::{
    ConcurrencyLimiter, Rejected,
    db::{Config, PgDb},
    http::{HttpLayer, refusal_response},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{interval, sleep, timeout},
};

type BoxError = Box<dyn error::Error + Send + Sync>;

const CONNECTIONS: usize = 1_000;
const POOL: u32 = 20;
const QUERY: &str = "SELECT pg_sleep(0.05)";
/// Requests a second: what the pool can do, three times.
const OFFERED: u32 = 1_200;
/// Requests a second that nobody has to wait for.
const UNLOADED: u32 = 60;
const DEADLINE: Duration = Duration::from_secs(1);
/// The longest wait in the layer's queue. So many places as are served in half of it, so that hardly anybody takes one in vain.
const MAX_WAIT: Duration = Duration::from_millis(300);
const QUEUE: usize = 60;
/// How long the clients of the plain pool wait.
const PATIENCE: Duration = Duration::from_secs(3);

const MOST_LATE: Duration = Duration::from_millis(50);
const MOST_MEMORY: u64 = 64 << 20;
const MOST_REFUSAL: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seconds = match arguments[..] {
        ["serve", way, url] => {
            serve(way == Way::Steadfast.name(), url).await?;
            return Ok(ExitCode::SUCCESS);
        }
        [] => Some(15),
        ["--seconds", seconds] => seconds.parse().ok().filter(|seconds| *seconds > 0),
        _ => None,
    };
    let Some(seconds) = seconds else {
        eprintln!("usage: http_load [--seconds n]");
        return Ok(ExitCode::from(2));
    };
    let Some(database) = Postgres::start() else {
        return Ok(ExitCode::SUCCESS);
    };
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
        database.port()
    );
    let time = Duration::from_secs(seconds);
    let ours = measure(Way::Steadfast, &url, time).await?;
    let bare = measure(Way::Bare, &url, time).await?;

    println!("{ours}\n{bare}");
    let broken = ours.broken();
    for bound in &broken {
        eprintln!("{bound}");
    }
    println!(
        "result: offered={} in_time={} refused={} failed={} longest_ms={} memory_mib={:.1} refused_p99_ms={:.2} admitted_p99_ms={:.0} \
         unloaded_p99_ms={:.0} bare_in_time={} bare_longest_ms={} bare_memory_mib={:.1} {}",
        ours.load.offered,
        ours.load.in_time,
        ours.load.refused,
        ours.load.failed,
        ours.load.longest.as_millis(),
        mib(ours.grown),
        millis(ours.loaded.refused.p99),
        millis(ours.loaded.admitted.p99),
        millis(ours.unloaded.admitted.p99),
        bare.load.in_time,
        bare.load.longest.as_millis(),
        mib(bare.grown),
        if broken.is_empty() { "ok" } else { "broken" },
    );
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Steadfast,
    Bare,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Steadfast => "steadfast",
            Self::Bare => "bare",
        }
    }
}

/// What one server made of it.
struct Measured {
    way: Way,
    load: Load,
    unloaded: Report,
    loaded: Report,
    /// By how many bytes it grew.
    grown: u64,
}

async fn measure(way: Way, url: &str, time: Duration) -> Result<Measured, BoxError> {
    let server = Serving::start(way, url)?;
    let client = Arc::new(Client::connect(server.address).await?);
    client.send(UNLOADED, Duration::from_secs(3)).await;
    let unloaded = client.report().await?;

    let before = server.memory();
    let mut most = before;
    let mut load = pin!(client.send(OFFERED, time));
    let load = loop {
        tokio::select! {
            load = &mut load => break load,
            () = sleep(Duration::from_millis(100)) => most = most.max(server.memory()),
        }
    };
    let loaded = client.report().await?;
    Ok(Measured {
        way,
        load,
        unloaded,
        loaded,
        grown: most - before,
    })
}

impl Measured {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let most = DEADLINE + MOST_LATE;
        if self.load.longest > most {
            let longest = self.load.longest;
            broken.push(format!("a request waited {longest:.0?}, over {most:?}"));
        }
        if self.load.failed > 0 {
            let failed = self.load.failed;
            broken.push(format!("{failed} requests were neither served nor refused"));
        }
        if self.grown > MOST_MEMORY {
            let grown = mib(self.grown);
            broken.push(format!("the server grew by {grown:.1} MiB"));
        }
        let refused = self.loaded.refused.p99;
        if refused >= MOST_REFUSAL {
            broken.push(format!("refusals take {refused:.1?} at p99"));
        }
        let admitted = self.loaded.admitted.p99;
        let most = 2 * self.unloaded.admitted.p99 + MAX_WAIT;
        if admitted > most {
            broken.push(format!("p99 is {admitted:.0?}, over {most:.0?}"));
        }
        // Or nothing was measured.
        if self.loaded.refused.count == 0 || self.load.in_time == 0 {
            broken.push("it was no overload".to_owned());
        }
        broken
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.way.name())?;
        writeln!(f, "  seen by the client: {}", self.load)?;
        writeln!(f, "  without load:       {}", self.unloaded)?;
        writeln!(f, "  under load:         {}", self.loaded)?;
        write!(f, "  memory:             {:.1} MiB more", mib(self.grown))
    }
}

/// A server in a process of its own, which ends when its input does.
struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(way: Way, url: &str) -> Result<Self, BoxError> {
        // A shell often allows fewer files than there are connections, but lets that be changed.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 4096 2>/dev/null; exec \"$0\" \"$@\""]);
        command.arg(env::current_exe()?);
        command.args(["serve", way.name(), url]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse()?;
        Ok(Self { child, address })
    }

    /// Its resident memory in bytes; 0 where the system does not say.
    fn memory(&self) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(file).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or(0) << 10
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Many connections that are kept open, and requests that are sent when it is time for them.
struct Client {
    address: SocketAddr,
    free: Semaphore,
    idle: Mutex<VecDeque<TcpStream>>,
}

impl Client {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut idle = VecDeque::new();
        for _ in 0..CONNECTIONS {
            idle.push_back(TcpStream::connect(address).await?);
        }
        Ok(Self {
            address,
            free: Semaphore::new(CONNECTIONS),
            idle: Mutex::new(idle),
        })
    }

    /// Sends so many requests a second for this time, and waits for their answers.
    async fn send(self: &Arc<Self>, rate: u32, time: Duration) -> Load {
        let mut requests = JoinSet::new();
        let pause = Duration::from_millis(5);
        let (mut ticks, start) = (interval(pause), Instant::now());
        let mut load = Load::default();
        while start.elapsed() < time {
            // Ticks that come too late come all the same, and what is sent then was to be sent before.
            let due = ticks.tick().await.into_std();
            let until_now = (due - start).as_secs_f64() * f64::from(rate);
            while f64::from(load.offered) < until_now {
                load.offered += 1;
                let client = Arc::clone(self);
                requests.spawn(async move {
                    let answer = timeout(PATIENCE, client.request("/work")).await;
                    (answer, due.elapsed())
                });
            }
        }
        while let Some(answered) = requests.join_next().await {
            let (answer, took) = answered.expect(NO_PANIC);
            load.count(answer.ok().and_then(Result::ok), took);
        }
        load
    }

    /// The answer's status and its body.
    async fn request(&self, path: &str) -> io::Result<(u16, String)> {
        let _one = self.free.acquire().await.expect("it is never closed");
        let idle = self.idle.lock().expect(NO_PANIC).pop_front();
        // One whose request was given up is gone.
        let mut connection = match idle {
            Some(connection) => connection,
            None => TcpStream::connect(self.address).await?,
        };
        let millis = DEADLINE.as_millis();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: load\r\nx-request-timeout-ms: {millis}\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let answer = answer(&mut connection).await?;
        self.idle.lock().expect(NO_PANIC).push_back(connection);
        Ok(answer)
    }

    /// What the server has measured since it was asked last.
    async fn report(&self) -> Result<Report, BoxError> {
        let (_, text) = self.request("/report").await?;
        Report::read(&text).ok_or_else(|| format!("not a report: {text}").into())
    }
}

async fn answer(connection: &mut TcpStream) -> io::Result<(u16, String)> {
    let mut read = Vec::new();
    loop {
        if connection.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_it = name.eq_ignore_ascii_case("content-length");
            is_it.then(|| value.parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
            return Ok((status.unwrap_or(0), body.to_owned()));
        }
    }
}

/// What became of the requests, as their senders saw it.
#[derive(Default)]
struct Load {
    offered: u32,
    /// Served within the deadline.
    in_time: u32,
    /// Served later.
    late: u32,
    refused: u32,
    failed: u32,
    longest: Duration,
}

impl Load {
    fn count(&mut self, answer: Option<(u16, String)>, took: Duration) {
        let counted = match answer {
            Some((200, _)) if took <= DEADLINE => &mut self.in_time,
            Some((200, _)) => &mut self.late,
            Some((503 | 504, _)) => &mut self.refused,
            _ => &mut self.failed,
        };
        *counted += 1;
        self.longest = self.longest.max(took);
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offered,
            in_time,
            late,
            refused,
            failed,
            longest,
        } = self;
        write!(
            f,
            "{offered} sent, {in_time} served in time, {late} too late, {refused} refused, {failed} given up or failed; \
             the longest waited {longest:.0?}"
        )
    }
}

/// What the server measured.
#[derive(Default)]
struct Report {
    admitted: Part,
    refused: Part,
}

/// How many, and how long the hundredth took that took longest.
#[derive(Clone, Copy, Default)]
struct Part {
    count: usize,
    p99: Duration,
}

impl Part {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let count = times.len();
        let at = (count * 99).div_ceil(100).saturating_sub(1);
        let p99 = times.get(at).copied().unwrap_or_default();
        Self { count, p99 }
    }
}

impl Report {
    fn write(&self) -> String {
        let parts = [self.admitted, self.refused];
        let parts = parts.map(|part| format!("{} {}", part.count, part.p99.as_micros()));
        parts.join(" ")
    }

    fn read(text: &str) -> Option<Self> {
        let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        let [admitted, admitted_p99, refused, refused_p99] = numbers.ok()?[..] else {
            return None;
        };
        let part = |count: u64, p99| Part {
            count: count as usize,
            p99: Duration::from_micros(p99),
        };
        Some(Self {
            admitted: part(admitted, admitted_p99),
            refused: part(refused, refused_p99),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { admitted, refused } = self;
        write!(
            f,
            "{} let in, p99 {:.0?}; {} refused, p99 {:.1?}",
            admitted.count, admitted.p99, refused.count, refused.p99
        )
    }
}

/// The server.
async fn serve(is_guarded: bool, url: &str) -> Result<(), BoxError> {
    let times = Times::default();
    let work = if is_guarded {
        let db: PgDb = Config::new(url).connect::<Pg>().await?;
        let limiter = ConcurrencyLimiter::builder(POOL as usize)
            .queue(QUEUE)
            .max_wait(MAX_WAIT)
            .build()?;
        let layer = HttpLayer::builder().limiter(&limiter).build()?;
        let work = Router::new().route("/work", get(guarded)).with_state(db);
        work.layer(layer)
    } else {
        let pool = PgPoolOptions::new().max_connections(POOL).connect(url);
        let work = Router::new().route("/work", get(bare));
        work.with_state(pool.await?)
    };
    let app = work
        .layer(from_fn_with_state(times.clone(), timed))
        .route("/report", get(report).with_state(times));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let input_ends = async {
        let _ = tokio::task::spawn_blocking(|| io::stdin().lines().count()).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => served?,
        () = input_ends => {}
    }
    Ok(())
}

async fn guarded(State(db): State<PgDb>) -> Result<&'static str, Failure> {
    sqlx::query(QUERY).execute(&db).await?;
    Ok("done")
}

async fn bare(State(pool): State<PgPool>) -> Result<&'static str, Failure> {
    sqlx::query(QUERY).execute(&pool).await?;
    Ok("done")
}

struct Failure(sqlx::Error);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match Rejected::of(&self.0) {
            Some(rejected) => refusal_response(rejected),
            None => (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response(),
        }
    }
}

/// How long requests took: what was let in, and what was refused.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<(Vec<Duration>, Vec<Duration>)>>);

/// Stands right outside of the layer.
async fn timed(State(times): State<Times>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let response = next.run(request).await;
    let took = start.elapsed();
    let rejected = response.extensions().get::<Rejected>();
    let is_refused = rejected.is_some_and(|rejected| !rejected.sent());
    let mut times = times.0.lock().expect(NO_PANIC);
    if is_refused {
        times.1.push(took);
    } else {
        times.0.push(took);
    }
    drop(times);
    response
}

async fn report(State(times): State<Times>) -> String {
    let (admitted, refused) = std::mem::take(&mut *times.0.lock().expect(NO_PANIC));
    let report = Report {
        admitted: Part::of(admitted),
        refused: Part::of(refused),
    };
    report.write()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

const NO_PANIC: &str = "no task panics";
