//! Exactly once under fire: transfers between accounts, while PostgreSQL, its backends and the network fail.
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
