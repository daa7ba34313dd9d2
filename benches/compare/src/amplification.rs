//! What a database has to bear of which a share of the calls fails at once, whatever one does.

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use steadfast::{Retry, Shield, classify};
use tokio::time::sleep;

use crate::{
    overload::{Clock, Database, Day, Record, Serves, Spike, Trigger, live_by},
    stacks::{Call, Trouble},
};

const RATES: [f64; 9] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0];
const ARRIVALS: [f64; 3] = [10.0, 100.0, 620.0];
const SECONDS: u64 = 60;

/// Prints load and success rate, means over `seeds` seeds.
pub fn print(seeds: u64) {
    println!(
        "Queries on the database for each call / calls that succeeded, %; means over a minute and {seeds} seeds.\n"
    );
    for arrivals in ARRIVALS {
        println!("### {arrivals} calls/s\n");
        println!(
            "| fail | no retry | 3 retries | 10 % bucket per request | ours, breaker off | ours |"
        );
        println!("|--:|--:|--:|--:|--:|--:|");
        for failing in RATES {
            let cell = |make: fn(f64) -> Call| {
                let (mut queries, mut ok, mut calls) = (0, 0, 0);
                for seed in 0..seeds {
                    let record = live_by(Clock::Virtual, day(arrivals), seed, || make(failing));
                    let sum =
                        |counts: fn(&Record) -> &Vec<u32>| counts(&record).iter().sum::<u32>();
                    queries += sum(|record| &record.load);
                    ok += sum(|record| &record.goodput);
                    calls += sum(|record| &record.offered);
                }
                let share = |count: u32| f64::from(count) / f64::from(calls);
                format!("{:.2} / {:.1}", share(queries), 100.0 * share(ok))
            };
            let cells = [no_retry, three_retries, bucket, ours_without_breaker, ours].map(cell);
            println!("| {:.0} % | {} |", 100.0 * failing, cells.join(" | "));
        }
        println!();
    }
}

fn day(arrivals: f64) -> Day {
    Day {
        serves: Serves::Everybody {
            base: 0.01,
            more: 0.0,
        },
        trigger: Trigger::NONE,
        arrivals,
        spike: Spike::NONE,
        seconds: SECONDS,
    }
}

async fn query(database: &Database, failing: f64) -> io::Result<()> {
    database.query().await;
    if fastrand::f64() < failing {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

fn no_retry(failing: f64) -> Call {
    by_hand(failing, || false)
}

fn three_retries(failing: f64) -> Call {
    by_hand(failing, || true)
}

/// A tenth of a retry for each request, of which ten seconds' worth at 100 calls/s can be saved.
fn bucket(failing: f64) -> Call {
    let tokens = Rc::new(RefCell::new(0.0_f64));
    let (earns, spends) = (tokens.clone(), tokens);
    let call = by_hand(failing, move || {
        let mut tokens = spends.borrow_mut();
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    });
    Box::new(move |database| {
        let mut tokens = earns.borrow_mut();
        *tokens = (*tokens + 0.1).min(100.0);
        call(database)
    })
}

/// Three retries at most, each if `may` says so, after 50, 100 and 200 ms by full jitter.
fn by_hand(failing: f64, may: impl Fn() -> bool + 'static) -> Call {
    let may = Rc::new(may);
    Box::new(move |database| {
        let may = may.clone();
        Box::pin(async move {
            for delay in [50.0, 100.0, 200.0] {
                if query(&database, failing).await.is_ok() {
                    return Ok(());
                }
                if !may() {
                    return Err(Trouble::Other);
                }
                sleep(Duration::from_secs_f64(fastrand::f64() * delay / 1e3)).await;
            }
            query(&database, failing).await.map_err(|_| Trouble::Other)
        })
    })
}

fn ours_without_breaker(failing: f64) -> Call {
    shielded(failing, Shield::builder(classify::Io).without_breaker())
}

fn ours(failing: f64) -> Call {
    shielded(failing, Shield::builder(classify::Io))
}

fn shielded(failing: f64, shield: steadfast::shield::Builder<classify::Io>) -> Call {
    let shield = shield.retry(Retry::default()).build().expect("in range");
    Box::new(move |database: Database| {
        let shield = shield.clone();
        Box::pin(async move {
            let attempt = || query(&database, failing);
            shield.run(attempt).await.map_err(|_| Trouble::Other)
        })
    })
}
