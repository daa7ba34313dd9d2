//! Exactly once under fire: transfers between accounts, while PostgreSQL, its backends and the network fail.
//!
//! It starts a PostgreSQL of its own, with fsync on, and a proxy in front of it. Each transfer is one `db.transaction`: two accounts and two rows of a ledger without a unique
//! key. Meanwhile backends are ended in the middle of statements, sockets are cut, each COMMIT's reply is cut at every one of its bytes, requests are cut, and the server crashes and is
//! started again. Then the rows are counted. The same fire on a plain pool with a loop around it shows that it was hot enough.
//!
//! Run it: `cargo run --example ledger_chaos --features postgres`, better with `--release`; then `-- --transfers 5000 --workers 32 --kills 300 --cuts 5`.
//!
//! A copy needs the files of `tests/support` too, where the `path` below looks for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
//! sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio"] }
//! tokio = { version = "1.47", features = ["io-util", "macros", "net", "rt-multi-thread", "sync", "time"] }
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
#![allow(clippy::disallowed_methods, reason = "a real server, a real clock")]

#[path = "../tests/support/ledger.rs"]
mod ledger;
#[path = "../tests/support/proxy.rs"]
mod proxy;
#[path = "../tests/support/server.rs"]
mod server;

use std::{env, process::ExitCode};

use crate::ledger::{Settings, Way};

#[tokio::main]
async fn main() -> Result<ExitCode, sqlx::Error> {
    let mut settings = Settings {
        transfers: 500,
        workers: 16,
        kills: 30,
        cuts: 1,
        crashes: 3,
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value: usize = arguments.next().unwrap().parse().unwrap();
        match name.as_str() {
            "--transfers" => settings.transfers = value as u64,
            "--workers" => settings.workers = value,
            "--kills" => settings.kills = value,
            "--cuts" => settings.cuts = value,
            "--crashes" => settings.crashes = value,
            _ => panic!("{name}"),
        }
    }
    for way in [Way::Steadfast, Way::Naive] {
        if env::var("ONLY").is_ok_and(|only| only != format!("{way:?}")) {
            continue;
        }
        let report = ledger::run(way, settings).await.unwrap();
        println!("{way:?}: {}", report.fire);
        println!(
            "{:#?} {:#?} {:?} {:?}",
            report.events, report.errors, report.took, report.slowest
        );
        println!("result: {report}");
        println!("{:?}", report.broken(settings, 20));
    }
    Ok(ExitCode::SUCCESS)
}
