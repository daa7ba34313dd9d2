//! How the defaults were chosen: ours with other settings, on the same days.

use std::{io, time::Duration};

use steadfast::{Breaker, ConcurrencyLimiter, Retry, Shield, classify, retry::Budget};

use crate::{
    model::Model,
    overload::{Clock, Database},
    stacks::{Call, Trouble},
};

/// Prints what each setting comes to over `seeds` seeds.
pub fn print(models: &[Model], seeds: u64) {
    println!("## The longest wait in the queue (limiter alone bounds it)\n");
    println!(
        "Goodput during the trigger as % of what was possible, and over the last 30 s as % of the arrivals; the worst seed.\n"
    );
    println!("| max_wait | {} |", names(models));
    println!("|---|{}", "--:|".repeat(models.len()));
    for wait in [250, 500, 1_000, 1_250, 1_500, 2_000, 10_000].map(Duration::from_millis) {
        let cells = models.iter().map(|model| {
            let limit = model.limit;
            let days = days(model, seeds, || call(queueing(limit, wait)));
            let worst = |of: fn(&Day) -> f64| days.iter().map(of).fold(f64::MAX, f64::min);
            let (during, late) = (worst(|day| day.during), worst(|day| day.late));
            format!("{:.0} / {:.0}", 100.0 * during, 100.0 * late)
        });
        println!("| {wait:?} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }

    println!("\n## The budget, with nothing but the retry\n");
    println!("Seconds until it is back, the median of the seeds.\n");
    let brownouts = &models[..2];
    println!("| successes of | {} |", names(brownouts));
    println!("|---|{}", "--:|".repeat(brownouts.len()));
    let windows = [1_000, 2_000, 3_000, 5_000, 10_000].map(Duration::from_millis);
    let budgets = windows.map(|window| {
        let budget = move || Budget::builder().window(window).build().expect("in range");
        (
            format!("{window:?}"),
            Box::new(move || with(budget())) as Box<dyn Fn() -> Retry>,
        )
    });
    let none = Box::new(|| Retry::builder().attempts(1).build().expect("in range"));
    let none = (String::from("no retries"), none as Box<dyn Fn() -> Retry>);
    for (name, retry) in [none].into_iter().chain(budgets) {
        let cells = brownouts.iter().map(|model| {
            let mut all: Vec<_> = days(model, seeds, || call(only(retry())))
                .into_iter()
                .map(|day| day.recovered.unwrap_or(usize::MAX))
                .collect();
            all.sort_unstable();
            all[all.len() / 2].to_string()
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    println!();
}

struct Day {
    during: f64,
    late: f64,
    recovered: Option<usize>,
}

fn days(model: &Model, seeds: u64, make: impl Fn() -> Call) -> Vec<Day> {
    let one = |seed| {
        let outcome = model.live(Clock::Virtual, seed, &make);
        Day {
            during: outcome.during,
            late: outcome.late,
            recovered: outcome.recovered,
        }
    };
    (0..seeds).map(one).collect()
}

fn call(shield: Shield<classify::Io>) -> Call {
    Box::new(move |database: Database| {
        let shield = shield.clone();
        Box::pin(async move {
            let query = || async {
                database.query().await;
                io::Result::Ok(())
            };
            shield.run(query).await.map_err(|_| Trouble::Other)
        })
    })
}

fn queueing(limit: usize, wait: Duration) -> Shield<classify::Io> {
    let limiter = ConcurrencyLimiter::builder(limit).max_wait(wait).build();
    Shield::builder(classify::Io)
        .retry(Retry::builder().idempotent(true).build().expect("in range"))
        .limiter(&limiter.expect("in range"))
        .breaker(&Breaker::default())
        .build()
        .expect("in range")
}

fn with(budget: Budget) -> Retry {
    let builder = Retry::builder().idempotent(true).budget(&budget);
    builder.build().expect("in range")
}

/// Nothing but the retry, and attempts that end when the caller's patience does.
fn only(retry: Retry) -> Shield<classify::Io> {
    Shield::builder(classify::Io)
        .deadline(Duration::from_secs(60))
        .attempt_deadline(Duration::from_secs(3))
        .without_breaker()
        .retry(retry)
        .build()
        .expect("in range")
}

fn names(models: &[Model]) -> String {
    let names: Vec<_> = models.iter().map(|model| model.name).collect();
    names.join(" | ")
}
