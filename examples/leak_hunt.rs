//! Who holds the connections? A leak is made, told of with its file and line, and found in the list of leases.
//!
//! Run it: `cargo run --example leak_hunt --features sqlite`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["sqlite"] }
//! sqlx = { version = "0.9", default-features = false, features = ["runtime-tokio", "sqlite"] }
//! tempfile = "3"
//! tokio = { version = "1.49", features = ["macros", "rt-multi-thread", "time"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "a leak takes its time")]

use std::{error, time::Duration};

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use steadfast::{
    Event, Observer,
    db::{Lease, PoolFull, Preset, SqliteDb},
};
use tokio::{sync::mpsc, time::timeout};

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("shop.db"))
        .create_if_missing(true);
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await?;
    let (told, mut tellings) = mpsc::unbounded_channel();
    // What a real program would not do: wait so little.
    let db = SqliteDb::builder(pool.clone())
        .name("shop")
        .leak_after(Duration::from_millis(200))
        .preset(Preset::web().acquire(Duration::from_millis(500)))
        .observer(Teller(told))
        .build()?;
    sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        .execute(&db)
        .await?;

    let forgotten = take_and_forget(&db).await?;
    let here = forgotten.line;

    // The observer is told once.
    let leak = timeout(Duration::from_secs(5), tellings.recv()).await?;
    let leak = leak.expect("the database has its observer");
    println!("told of:   {leak}");
    assert!(leak.starts_with("leak in shop: held for "));
    assert!(leak.contains(&format!("{}:{here}, operation report, idle", file!())));

    // The list says the same at any time, and what was run last.
    let leases = db.leases();
    println!("listed:    {}", leases[0]);
    assert_eq!(leases.len(), 1);
    assert_eq!(
        leases[0].location.map(|place| (place.file(), place.line())),
        Some((file!(), here))
    );
    assert_eq!(leases[0].statements, 1);
    assert_eq!(db.stats().leaks, 1);

    // And so does the error of those whom the leak keeps waiting.
    let beside = pool.acquire().await?;
    let error = sqlx::query("SELECT 1")
        .execute(&db.once())
        .await
        .unwrap_err();
    println!("full pool: {error}");
    let full = PoolFull::of(&error).expect("one is leaked, one is held beside it");
    assert_eq!(
        full.holder.as_ref().map(|holder| holder.id),
        Some(leases[0].id)
    );

    drop((forgotten, beside));
    let returned = timeout(Duration::from_secs(5), tellings.recv()).await?;
    println!(
        "told of:   {}",
        returned.expect("the database has its observer")
    );
    assert_eq!((db.leases().len(), db.stats().leaks), (0, 0));
    sqlx::query("SELECT 1").execute(&db).await?;
    db.close().await;
    Ok(())
}

/// The leak: it takes a connection, runs something, and puts the connection where nobody will look.
async fn take_and_forget(db: &SqliteDb) -> Result<Forgotten, sqlx::Error> {
    let (line, mut lease) = (line!(), db.operation("report").acquire().await?);
    let count = sqlx::query("SELECT count(*) FROM orders");
    count.fetch_one(&mut lease).await?;
    Ok(Forgotten {
        line,
        _lease: lease,
    })
}

struct Forgotten {
    line: u32,
    _lease: Lease<sqlx::Sqlite>,
}

/// Hands on what a program would log or count.
struct Teller(mpsc::UnboundedSender<String>);

impl Observer for Teller {
    fn on_event(&self, event: &Event<'_>) {
        let telling = match event {
            Event::Leak { name, lease } => format!("leak in {name}: {lease}"),
            Event::LeakReturned { name, lease } => format!("back in {name}: {lease}"),
            _ => return,
        };
        // Who no longer listens does not want to know.
        let _ = self.0.send(telling);
    }
}
