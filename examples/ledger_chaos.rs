//! Exactly once under fire: transfers between accounts, while PostgreSQL, its backends and the network fail.
//!
//! It starts a PostgreSQL of its own, which writes to disk what it says is written. Workers move money through a proxy. Each transfer writes two rows into a
//! ledger, where no key keeps it from doing so twice. Meanwhile backends are killed in the middle of statements, sockets are cut, COMMITs and their answers are
//! cut at every byte, and the server crashes. In the end the ledger is held against what the callers were told.
//!
//! Then the same is done to a plain pool and a loop that repeats whatever failed. If that writes nothing twice, the fire was too mild.
//!
//! Run it: `cargo run --example ledger_chaos --features postgres`, better with `--release`; then `-- --transfers 5000 --workers 32 --kills 300`.
//!
//! A copy needs the files of `tests/support` too, where the `path`s below look for them.
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["postgres"] }
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

#[path = "../tests/support/ledger.rs"]
mod ledger;
#[path = "../tests/support/proxy.rs"]
mod proxy;
#[path = "../tests/support/server.rs"]
mod server;

use std::{env, process::ExitCode};

use crate::ledger::{Settings, Way};

/// So many COMMITs without an answer must turn out to have taken place, and as many not to.
const FATES: u64 = 20;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match settings(env::args().skip(1)) {
        Ok(settings) => settings,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Some(ours) = ledger::run(Way::Steadfast, settings).await else {
        return ExitCode::SUCCESS;
    };
    println!("steadfast: {} in {:.1?}", ours.fire, ours.took);
    println!("           {}", ours.story());
    // Fewer will do: all that is wanted of it is that it goes wrong.
    let fewer = Settings {
        transfers: settings.transfers.div_ceil(2),
        kills: settings.kills.div_ceil(2),
        crashes: settings.crashes.min(1),
        ..settings
    };
    let Some(naive) = ledger::run(Way::Naive, fewer).await else {
        return ExitCode::SUCCESS;
    };
    println!("naive:     {} in {:.1?}", naive.fire, naive.took);
    println!("           {}", naive.story());
    println!("result: {ours} naive_duplicate={}", naive.duplicate);

    let mut broken = ours.broken(settings, FATES);
    if naive.duplicate == 0 {
        broken.push("a naive loop that writes twice".to_owned());
    }
    for bound in &broken {
        eprintln!("not seen: {bound}");
    }
    ExitCode::from(u8::from(!broken.is_empty()))
}

fn settings(arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
    let mut settings = Settings {
        transfers: 600,
        workers: 16,
        kills: 30,
        cuts: 2,
        crashes: 3,
    };
    let (mut arguments, mut cuts) = (arguments, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let value: u32 = value
            .parse()
            .map_err(|_| format!("{name} {value}: a number was expected"))?;
        let count = value as usize;
        match name.as_str() {
            "--transfers" if value > 0 => settings.transfers = value.into(),
            "--workers" if value > 0 => settings.workers = count,
            "--kills" => settings.kills = count,
            "--cuts" => cuts = Some(count),
            "--crashes" => settings.crashes = count,
            _ => return Err(format!("{name} {value}: not known, or too small")),
        }
    }
    let usual = if settings.transfers < 2_000 { 2 } else { 5 };
    settings.cuts = cuts.unwrap_or(usual);
    Ok(settings)
}

const USAGE: &str = "\
--transfers  how many are made; the acts are spread over them        600
--workers    how many are made at once                               16
--kills      backends ended in the middle of a statement             30
--cuts       times that COMMIT's answer is cut at each of its bytes  2, or 5 for 2000 transfers and more
--crashes    times that the server crashes                           3";
