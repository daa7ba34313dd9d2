//! What a request's end, by its deadline or because its client went away, means to the server's work under its handler: seen in `pg_stat_activity`.
#![cfg(all(feature = "http", feature = "postgres", feature = "mysql"))]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server lives by the real clock"
)]

#[path = "support/server.rs"]
mod server;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use sqlx::{PgConnection, Postgres as Pg};
use steadfast::{
    Classify, ConcurrencyLimiter, Kind, Rejected, classify,
    db::{Config, PgDb, TransactionError},
    http::{HttpLayer, refusal_response},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::server::postgres::Postgres;

/// How long the server has to notice that nobody waits any more: its connections look every 100 ms.
const NOTICES: Duration = Duration::from_secs(1);

/// What never comes by itself.
const GIVE_UP: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_in_the_requests_header_ends_the_query_on_the_server() {
    for path in ["/query", "/transaction"] {
        let Some(mut bench) = Bench::start().await else {
            return;
        };
        let start = Instant::now();
        let mut client = bench.ask(path, "x-request-timeout-ms: 300\r\n").await;
        let seen = bench.until_it_runs(true).await;
        assert!(seen - start < Duration::from_millis(300), "it runs by then");

        let answer = client.answer().await;
        let answered = start.elapsed();
        let head = "HTTP/1.1 504 Gateway Timeout\r\n";
        assert!(answer.starts_with(head), "{path}: {answer}");
        // In a transaction the server knows the deadline, and mostly says itself, a little earlier, that it is over.
        let (texts, least) = match path {
            "/query" => (&["\"reason\":\"deadline_exceeded\""][..], 290),
            _ => (
                &[
                    "canceling statement due to statement timeout",
                    "the deadline came before the transaction was committed",
                ][..],
                150,
            ),
        };
        let is_told = texts.iter().any(|text| answer.contains(text));
        assert!(is_told, "{path}: {answer}");
        let expected = Duration::from_millis(least)..Duration::from_millis(800);
        assert!(expected.contains(&answered), "{path}: after {answered:?}");

        let over = bench.until_it_runs(false).await - start;
        let most = Duration::from_millis(300) + NOTICES;
        assert!(over < most, "{path}: the query ran for {over:?}");
        bench.is_well().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_the_databases_work_under_its_handler() {
    for path in ["/query", "/transaction"] {
        let Some(mut bench) = Bench::start().await else {
            return;
        };
        let client = bench.ask(path, "").await;
        bench.until_it_runs(true).await;
        // It goes on as long as somebody is there.
        sleep(Duration::from_millis(500)).await;
        assert!(bench.runs().await, "{path}");

        let left = Instant::now();
        drop(client);
        let over = bench.until_it_runs(false).await - left;
        assert!(over < NOTICES, "{path}: the query ran for {over:?} more");
        bench.is_well().await;
    }
}

/// A service over a database, and somebody who watches the server.
struct Bench {
    address: SocketAddr,
    db: PgDb,
    limiter: ConcurrencyLimiter,
    watcher: PgConnection,
    server: Postgres,
}

impl Bench {
    /// `None` if tests are told to do without servers.
    async fn start() -> Option<Self> {
        let server = Postgres::start()?;
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
            server.port()
        );
        let db = Config::new(url).connect::<Pg>().await.unwrap();
        for sql in [
            "CREATE TABLE stock (item text PRIMARY KEY, left_over int NOT NULL)",
            "INSERT INTO stock VALUES ('tea', 7)",
        ] {
            sqlx::query(sql).execute(&db).await.unwrap();
        }
        let limiter = ConcurrencyLimiter::new(1).unwrap();
        let layer = HttpLayer::builder()
            .deadline(GIVE_UP)
            .limiter(&limiter)
            .build()
            .unwrap();
        let app = Router::new()
            .route("/query", get(query))
            .route("/transaction", get(transaction))
            .with_state(db.clone())
            .layer(layer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let watcher = server.connect().await;
        Some(Self {
            address,
            db,
            limiter,
            watcher,
            server,
        })
    }

    async fn ask(&self, path: &str, headers: &str) -> Client {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Client(stream)
    }

    /// Whether the handler's query is at work, as the server has it.
    async fn runs(&mut self) -> bool {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE state = 'active' AND query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()",
        )
        .fetch_one(&mut self.watcher)
        .await
        .unwrap();
        count > 0
    }

    /// Waits until the query is at work, or is no more; returns when that was seen.
    async fn until_it_runs(&mut self, expected: bool) -> Instant {
        let until = Instant::now() + GIVE_UP;
        while self.runs().await != expected {
            let log = || self.server.log();
            assert!(Instant::now() < until, "never {expected}:\n{}", log());
            sleep(Duration::from_millis(5)).await;
        }
        Instant::now()
    }

    /// Nothing is held any more, and what the query changed is undone.
    async fn is_well(&mut self) {
        let until = Instant::now() + NOTICES;
        let held = || {
            let (http, db) = (self.limiter.stats(), self.db.limiter().stats());
            http.in_flight + db.in_flight + self.db.leases().len()
        };
        while held() > 0 {
            assert!(Instant::now() < until, "{} are held", held());
            sleep(Duration::from_millis(5)).await;
        }
        // Its lock on the row is gone too, or this would wait for it.
        let left: i32 =
            sqlx::query_scalar("UPDATE stock SET left_over = left_over - 1 RETURNING left_over")
                .fetch_one(&self.db)
                .await
                .unwrap();
        assert_eq!(left, 6);
    }
}

/// One that reads its answer, or is dropped.
struct Client(TcpStream);

impl Client {
    async fn answer(&mut self) -> String {
        let mut text = String::new();
        let read = timeout(GIVE_UP, self.0.read_to_string(&mut text));
        read.await.expect("there is an answer").unwrap();
        text
    }
}

async fn query(State(db): State<PgDb>) -> Result<(), Failure> {
    let long = sqlx::query("UPDATE stock SET left_over = 0 WHERE pg_sleep(30) IS NOT NULL");
    long.execute(&db).await?;
    Ok(())
}

async fn transaction(State(db): State<PgDb>) -> Result<(), Failure> {
    db.transaction(|mut tx| async move {
        let taken = sqlx::query("UPDATE stock SET left_over = 0");
        taken.execute(&mut tx).await?;
        sqlx::query("SELECT pg_sleep(30)").execute(&mut tx).await?;
        Ok::<_, sqlx::Error>(())
    })
    .await?;
    Ok(())
}

struct Failure(sqlx::Error);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if let Some(rejected) = Rejected::of(&self.0) {
            return refusal_response(rejected);
        }
        let kind = classify::Sqlx.classify(Err::<&(), _>(&self.0)).kind;
        let status = match TransactionError::of(&self.0) {
            Some(TransactionError::DeadlineExceeded) => StatusCode::GATEWAY_TIMEOUT,
            _ if kind == Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}
