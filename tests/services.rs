//! The examples that are services, asked as their callers would.
#![cfg(all(
    feature = "http",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite"
))]
#![allow(
    clippy::disallowed_methods,
    reason = "real databases live by the real clock"
)]

#[path = "../examples/existing_service/main.rs"]
#[allow(dead_code, reason = "the example has a main function")]
mod after;
#[path = "../examples/axum_sqlx_service.rs"]
#[allow(dead_code, reason = "the example has a main function")]
mod axum_sqlx_service;
#[path = "../examples/existing_service/before.rs"]
#[allow(dead_code, reason = "the example has a main function")]
mod before;
#[path = "support/server.rs"]
mod server;

use std::{
    process::{self, Command},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{Request, header::CONTENT_TYPE},
};
use http_body_util::BodyExt;
use sqlx::{Connection, Postgres as Pg, Sqlite, SqliteConnection, SqlitePool};
use steadfast::db::{Config, Preset};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tower::ServiceExt;

use self::server::postgres::Postgres;

/// A file in a folder that is gone with the test.
fn sqlite_url(folder: &TempDir) -> String {
    format!("sqlite://{}?mode=rwc", folder.path().join("db").display())
}

/// The status and the text of an answer.
async fn ask(app: &Router, method: &str, path: &str, json: &str) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(json.to_owned()));
    let response = app.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.into()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_keeps_accounts_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let db = Config::new(sqlite_url(&folder)).connect::<Sqlite>().await;
    let app = axum_sqlx_service::sqlite::app(&db.unwrap()).await.unwrap();
    keeps_accounts(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_keeps_accounts_on_postgres() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let port = server.port();
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let db = Config::new(url).connect::<Pg>().await.unwrap();
    let app = axum_sqlx_service::postgres::app(&db).await.unwrap();
    keeps_accounts(&app).await;
}

async fn keeps_accounts(app: &Router) {
    for (id, owner, balance) in [(1, "ann", 100), (2, "bob", 0)] {
        let json = format!(r#"{{"owner":"{owner}","balance":{balance}}}"#);
        let created = ask(app, "POST", "/accounts", &json).await;
        let account = format!(r#"{{"id":{id},"owner":"{owner}","balance":{balance}}}"#);
        assert_eq!(created, (201, account));
    }
    let transfer = async |from, to, amount| {
        let json = format!(r#"{{"from":{from},"to":{to},"amount":{amount}}}"#);
        ask(app, "POST", "/transfers", &json).await.0
    };
    assert_eq!(transfer(1, 2, 30).await, 204);
    // What they had taken before they failed is given back.
    assert_eq!(transfer(1, 2, 71).await, 409);
    assert_eq!(transfer(7, 2, 1).await, 404);
    assert_eq!(transfer(1, 7, 1).await, 404);

    let list = r#"[{"id":1,"owner":"ann","balance":70},{"id":2,"owner":"bob","balance":30}]"#;
    let listed = ask(app, "GET", "/accounts", "").await;
    assert_eq!(listed, (200, list.to_owned()));
    assert_eq!(ask(app, "GET", "/accounts/1", "").await.0, 200);
    assert_eq!(ask(app, "GET", "/accounts/7", "").await.0, 404);
    let wrong = ask(app, "POST", "/accounts", r#"{"owner":"ann","balance":-1}"#);
    assert_eq!(wrong.await.0, 422);
    assert_eq!(ask(app, "GET", "/health", "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_healthy_while_nine_tenths_of_the_connections_are_in_use_for_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(sqlite_url(&folder)).preset(Preset::web().pool_size(10));
    let db = config.connect::<Sqlite>().await.unwrap();
    let app = axum_sqlx_service::sqlite::app(&db).await.unwrap();
    let health = async || ask(&app, "GET", "/health", "").await;

    let mut leases = Vec::new();
    for _ in 0..9 {
        leases.push(db.acquire().await.unwrap());
    }
    // For a moment is no reason.
    assert_eq!(health().await.0, 200);
    sleep(Duration::from_secs(11)).await;
    let (status, text) = health().await;
    assert_eq!(status, 503, "{text}");
    assert!(
        text.contains("90.0 % of the connections in use for seconds"),
        "{text}"
    );

    drop(leases);
    let until = Instant::now() + Duration::from_secs(5);
    while health().await.0 != 200 {
        assert!(Instant::now() < until, "{:?}", health().await);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_told_to_stop_finishes_what_is_under_way() {
    // From here on the signal does not end the tests.
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = sqlite_url(&folder);
    let db = Config::new(&url).connect::<Sqlite>().await.unwrap();
    let app = axum_sqlx_service::sqlite::app(&db).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let served = axum_sqlx_service::serve(listener, app, db).await;
        served.map_err(|error| error.to_string())
    });

    // Somebody else writes, so that the request has to wait.
    let mut rival = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut rival)
        .await
        .unwrap();
    let mut caller = TcpStream::connect(address).await.unwrap();
    let json = r#"{"owner":"ann","balance":1}"#;
    let request = format!(
        "POST /accounts HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
    caller.write_all(request.as_bytes()).await.unwrap();
    sleep(Duration::from_millis(200)).await;

    let until = Instant::now() + Duration::from_secs(10);
    // It may have to be told twice, should it not have listened yet.
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < until, "it takes connections");
        let told = Command::new("kill").arg(process::id().to_string()).status();
        assert!(told.unwrap().success());
        terminated.recv().await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!serving.is_finished());
    sqlx::query("ROLLBACK").execute(&mut rival).await.unwrap();
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(10), caller.read_to_string(&mut answer));
    read.await.expect("it is answered").unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    let served = timeout(Duration::from_secs(10), serving).await;
    assert_eq!(served.expect("it ends").unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_as_it_did_before_it_was_guarded() {
    let mut answers = Vec::new();
    for is_guarded in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let pool = SqlitePool::connect(&sqlite_url(&folder)).await.unwrap();
        let app = if is_guarded {
            after::app(pool).await.unwrap()
        } else {
            before::app(pool).await.unwrap()
        };
        let mut told = Vec::new();
        for (method, path) in [
            ("GET", "/stock"),
            ("POST", "/orders/sencha"),
            ("POST", "/orders/sencha"),
            ("POST", "/orders/sencha"),
            ("POST", "/orders/rooibos"),
            ("GET", "/orders"),
            ("GET", "/stock/sencha"),
            ("GET", "/stock/rooibos"),
        ] {
            told.push(ask(&app, method, path, "").await);
        }
        answers.push(told);
    }
    let statuses: Vec<_> = answers[0].iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 201, 201, 404, 404, 200, 200, 404]);
    assert_eq!(answers[0][5].1, "2 orders");
    assert_eq!(answers[0], answers[1]);
}
