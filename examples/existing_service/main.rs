//! A service with a pool in its state, guarded: `diff before.rs main.rs` is what that took.
//!
//! Run it: `cargo run --example existing_service --features http,sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["http", "sqlite"] }
//! axum = { version = "0.8", default-features = false, features = ["http1", "json", "tokio"] }
//! sqlx = { version = "0.9", default-features = false, features = ["runtime-tokio", "sqlite"] }
//! tokio = { version = "1.49", features = ["macros", "net", "rt-multi-thread"] }
//! ```

use std::{env, error};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use sqlx::{SqlitePool, sqlite::SqlitePoolOptions};
use steadfast::{
    Rejected,
    db::SqliteDb,
    http::{HttpLayer, refusal_response},
};
use tokio::net::TcpListener;

#[derive(Clone)]
struct App {
    db: SqliteDb,
    shop: &'static str,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let address = env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite://shop.db?mode=rwc".to_owned());
    let db = SqlitePoolOptions::new()
        .max_connections(10)
        .connect(&url)
        .await?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(db).await?).await?;
    Ok(())
}

/// With its tables.
pub(crate) async fn app(db: SqlitePool) -> Result<Router, Box<dyn error::Error>> {
    let db = SqliteDb::new(db);
    prepare(&db).await?;

    Ok(Router::new()
        .route("/stock", get(stock))
        .route("/stock/{item}", get(left))
        .route("/orders", get(orders))
        .route("/orders/{item}", post(order))
        .layer(HttpLayer::builder().build()?)
        .with_state(App { db, shop: "tea" }))
}

async fn prepare(db: &SqliteDb) -> Result<(), sqlx::Error> {
    for sql in [
        "CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, left_over BIGINT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)",
        "INSERT INTO stock VALUES ('assam', 100), ('sencha', 2) ON CONFLICT DO NOTHING",
    ] {
        sqlx::query(sql).execute(db).await?;
    }
    Ok(())
}

async fn stock(State(app): State<App>) -> Result<Json<Vec<(String, i64)>>, Failure> {
    let rows = sqlx::query_as("SELECT item, left_over FROM stock ORDER BY item")
        .fetch_all(&app.db)
        .await?;
    Ok(Json(rows))
}

async fn left(State(app): State<App>, Path(item): Path<String>) -> Result<String, Failure> {
    let left: Option<i64> = sqlx::query_scalar("SELECT left_over FROM stock WHERE item = $1")
        .bind(&item)
        .fetch_optional(&app.db)
        .await?;
    let left = left.ok_or(Failure::NoSuchItem(item))?;
    Ok(format!("{left} in the {} shop", app.shop))
}

async fn orders(State(app): State<App>) -> Result<String, Failure> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&app.db)
        .await?;
    Ok(format!("{count} orders"))
}

async fn order(State(app): State<App>, Path(item): Path<String>) -> Result<StatusCode, Failure> {
    let mut tx = app.db.begin().await?;
    let taken =
        sqlx::query("UPDATE stock SET left_over = left_over - 1 WHERE item = $1 AND left_over > 0")
            .bind(&item)
            .execute(&mut tx)
            .await?;
    if taken.rows_affected() == 0 {
        return Err(Failure::NoSuchItem(item));
    }
    sqlx::query("INSERT INTO orders (item) VALUES ($1)")
        .bind(&item)
        .execute(&mut tx)
        .await?;
    tx.commit().await?;
    Ok(StatusCode::CREATED)
}

enum Failure {
    NoSuchItem(String),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::NoSuchItem(item) => {
                (StatusCode::NOT_FOUND, format!("no {item} left")).into_response()
            }
            Self::Database(error) => {
                if let Some(rejected) = Rejected::of(&error) {
                    return refusal_response(rejected);
                }
                eprintln!("{error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}
