//! A small REST service on axum and sqlx that bears its bad days: accounts, and transfers between them.
//!
//! | request | answer |
//! |---|---|
//! | `GET /accounts` | all accounts |
//! | `POST /accounts` with `{"owner":"ann","balance":100}` | 201, and the account |
//! | `GET /accounts/1` | the account, or 404 |
//! | `POST /transfers` with `{"from":1,"to":2,"amount":30}` | 204; 404 without such an account, 409 without so much money |
//! | `GET /health` | 200; 503 while 90 % of the connections are in use for seconds, or the database is away |
//!
//! A caller may say how much time he has: `curl -H 'x-request-timeout-ms: 300' http://127.0.0.1:3000/accounts`. What is over by then ends on the server too.
//! An overload is a 503 with `Retry-After`. Ctrl-C lets the requests under way finish.
//!
//! It keeps its accounts in `accounts.db`, a SQLite file. With `DATABASE_URL=postgres://..` it uses that PostgreSQL; `DB_POOL_SIZE` and its siblings count.
//! `ADDRESS` says where it listens, in place of `127.0.0.1:3000`.
//!
//! Run it: `cargo run --example axum_sqlx_service --features http,postgres,sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["http", "postgres", "sqlite"] }
//! axum = { version = "0.8", default-features = false, features = ["http1", "json", "tokio"] }
//! serde = { version = "1", features = ["derive"] }
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio", "sqlite"] }
//! tokio = { version = "1.49", features = ["macros", "net", "rt-multi-thread", "signal"] }
//! tracing-subscriber = { version = "0.3", default-features = false, features = ["fmt", "std"] }
//! ```

use std::{env, error, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use steadfast::{
    Classify, ConcurrencyLimiter, ConfigError, Kind, Rejected, classify,
    db::{Config, Db, Driver, PgDb, SqliteDb, TransactionError},
    http::{HttpLayer, refusal_response},
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    tracing_subscriber::fmt::init();
    let address = env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite://accounts.db?mode=rwc".into());
    let is_postgres = url.starts_with("postgres");
    let config = Config::from_vars(|name| match name {
        "DATABASE_URL" => Some(url.clone()),
        name => env::var(name).ok(),
    })?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    if is_postgres {
        let db: PgDb = config.connect().await?;
        serve(listener, postgres::app(&db).await?, db).await
    } else {
        let db: SqliteDb = config.connect().await?;
        serve(listener, sqlite::app(&db).await?, db).await
    }
}

/// Serves until it is told to stop, then finishes what is under way.
pub(crate) async fn serve<DB: Driver>(
    listener: TcpListener,
    app: Router,
    db: Db<DB>,
) -> Result<(), Box<dyn error::Error>> {
    let server = axum::serve(listener, app).with_graceful_shutdown(told_to_stop());
    server.await?;
    db.close().await;
    println!("stopped");
    Ok(())
}

/// By Ctrl-C, or by a process manager's SIGTERM.
async fn told_to_stop() {
    let ctrl_c = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).expect("a handler can be set");
        tokio::select! {
            _ = ctrl_c => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = ctrl_c.await;
}

/// Around all routes that use the database.
///
/// Its queue comes before that of the `Db`, which is as long as the pool needs it: this one bounds how many requests there are in memory.
fn guard() -> Result<HttpLayer, ConfigError> {
    HttpLayer::builder()
        .deadline(Duration::from_secs(5))
        .max_deadline(Duration::from_secs(30))
        .limiter(&ConcurrencyLimiter::new(200)?)
        .build()
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Account {
    id: i64,
    owner: String,
    balance: i64,
}

impl From<(i64, String, i64)> for Account {
    fn from((id, owner, balance): (i64, String, i64)) -> Self {
        Self { id, owner, balance }
    }
}

#[derive(Deserialize)]
struct NewAccount {
    owner: String,
    balance: u32,
}

#[derive(Deserialize)]
struct Transfer {
    from: i64,
    to: i64,
    amount: u32,
}

/// Why there is no answer.
enum Failure {
    NoSuchAccount(i64),
    TooLittle(i64),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NoSuchAccount(id) => (StatusCode::NOT_FOUND, format!("no account {id}")),
            Self::TooLittle(id) => (
                StatusCode::CONFLICT,
                format!("too little money in account {id}"),
            ),
            Self::Database(error) => {
                // A refusal of ours: 503 with `Retry-After` if nothing was done, 504 if something may have been.
                if let Some(rejected) = Rejected::of(&error) {
                    return refusal_response(rejected);
                }
                eprintln!("{error}");
                // Its text is for us, not for the caller.
                let kind = classify::Sqlx.classify(Err::<&(), _>(&error)).kind;
                let (status, text) = match (TransactionError::of(&error), kind) {
                    // Rolled back by the deadline, or stopped by the server, which knew how much time there was.
                    (Some(TransactionError::DeadlineExceeded), _) | (_, Kind::TimedOut) => {
                        (StatusCode::GATEWAY_TIMEOUT, "it took too long")
                    }
                    (_, Kind::Unavailable | Kind::Overloaded | Kind::Saturated) => {
                        (StatusCode::SERVICE_UNAVAILABLE, "the database is away")
                    }
                    _ => (StatusCode::INTERNAL_SERVER_ERROR, "it failed"),
                };
                (status, text.to_owned())
            }
        };
        (status, Json(text)).into_response()
    }
}

/// The same code for both databases. A service with one needs no macro: what stands in it, with its own type for `$db`, is all.
macro_rules! service {
    ($name:ident, $db:ty, $id:literal) => {
        pub(crate) mod $name {
            use axum::{
                extract::{Path, State},
                routing::{get, post},
            };
            use steadfast::db::Health;

            use super::*;

            pub(crate) async fn app(db: &$db) -> Result<Router, Box<dyn error::Error>> {
                let table = concat!(
                    "CREATE TABLE IF NOT EXISTS account (id ",
                    $id,
                    " PRIMARY KEY, owner TEXT NOT NULL, balance BIGINT NOT NULL)"
                );
                sqlx::query(table).execute(db).await?;
                let guarded = Router::new()
                    .route("/accounts", get(list).post(create))
                    .route("/accounts/{id}", get(read))
                    .route("/transfers", post(transfer))
                    .layer(guard()?);
                // Whoever asks how we are gets an answer, however full it is.
                let app = guarded.route("/health", get(health));
                Ok(app.with_state(db.clone()))
            }

            async fn list(State(db): State<$db>) -> Result<Json<Vec<Account>>, Failure> {
                let rows: Vec<(i64, String, i64)> =
                    sqlx::query_as("SELECT id, owner, balance FROM account ORDER BY id")
                        // A read may be repeated even where nobody knows what became of it.
                        .fetch_all(db.idempotent())
                        .await?;
                Ok(Json(rows.into_iter().map(Account::from).collect()))
            }

            async fn read(
                State(db): State<$db>,
                Path(id): Path<i64>,
            ) -> Result<Json<Account>, Failure> {
                let row: Option<(i64, String, i64)> =
                    sqlx::query_as("SELECT id, owner, balance FROM account WHERE id = $1")
                        .bind(id)
                        .fetch_optional(db.idempotent())
                        .await?;
                let row = row.ok_or(Failure::NoSuchAccount(id))?;
                Ok(Json(row.into()))
            }

            async fn create(
                State(db): State<$db>,
                Json(new): Json<NewAccount>,
            ) -> Result<(StatusCode, Json<Account>), Failure> {
                let row: (i64, String, i64) = sqlx::query_as(
                    "INSERT INTO account (owner, balance) VALUES ($1, $2) RETURNING id, owner, balance",
                )
                .bind(new.owner)
                .bind(i64::from(new.balance))
                // Repeated only where it surely did not happen.
                .fetch_one(&db)
                .await?;
                Ok((StatusCode::CREATED, Json(row.into())))
            }

            async fn transfer(
                State(db): State<$db>,
                Json(Transfer { from, to, amount }): Json<Transfer>,
            ) -> Result<StatusCode, Failure> {
                let amount = i64::from(amount);
                // One unit: repeated as a whole where a rival won, or the connection was lost before COMMIT was sent.
                db.transaction(|mut tx| async move {
                    let balance: Option<i64> = sqlx::query_scalar(
                        "UPDATE account SET balance = balance - $1 WHERE id = $2 RETURNING balance",
                    )
                    .bind(amount)
                    .bind(from)
                    .fetch_optional(&mut tx)
                    .await?;
                    // Errors of our own roll it back, and are not repeated.
                    if balance.ok_or(Failure::NoSuchAccount(from))? < 0 {
                        return Err(Failure::TooLittle(from));
                    }
                    let given = sqlx::query("UPDATE account SET balance = balance + $1 WHERE id = $2")
                        .bind(amount)
                        .bind(to)
                        .execute(&mut tx)
                        .await?;
                    if given.rows_affected() == 0 {
                        return Err(Failure::NoSuchAccount(to));
                    }
                    Ok(())
                })
                .await?;
                Ok(StatusCode::NO_CONTENT)
            }

            async fn health(State(db): State<$db>) -> (StatusCode, String) {
                let health: Health = db.health();
                let status = if health.ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                (status, health.to_string())
            }
        }
    };
}

service!(postgres, PgDb, "BIGINT GENERATED BY DEFAULT AS IDENTITY");
service!(sqlite, SqliteDb, "INTEGER");
