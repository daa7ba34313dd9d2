//! The worst day, lived through by the real layers in virtual time.
//!
//! What collapses and why, and the same days with other stacks: `docs/overload.md`. The days are those of the model in `support/overload.rs`; each figure
//! is the worst of twenty seeds. The trigger comes after 15 s instead of a minute: nothing in our layers remembers more than ten.
#![allow(
    clippy::disallowed_methods,
    reason = "the model sets the paused clock's pace"
)]

#[path = "support/overload.rs"]
mod overload;

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use overload::{Cache, Database, Day, PATIENCE, Record, Serves, Spike, Trigger, live, mean};
use steadfast::{Breaker, ConcurrencyLimiter, Event, Observer, Retry, Shield, classify};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

const SEEDS: u64 = 20;
const TRIGGER: usize = 15;
const TRIGGER_ENDS: usize = 25;

/// 620 calls/s on 16 workers, whose capacity falls to a fifth for ten seconds.
fn day_a(capacity: f64, seconds: u64) -> Day {
    Day {
        serves: Serves::Workers {
            workers: 16,
            capacity,
        },
        trigger: Trigger {
            from: TRIGGER as f64,
            until: TRIGGER_ENDS as f64,
            share: 0.2,
        },
        arrivals: 620.0,
        spike: Spike::NONE,
        seconds,
    }
}

/// Utilisations of 69 % and 85 %.
const CAPACITIES: [f64; 2] = [900.0, 730.0];

/// 40 calls/s on a database that slows down with each call in flight; twice as many for five seconds.
fn day_b(seconds: u64) -> Day {
    Day {
        serves: Serves::Everybody {
            base: 1.0,
            more: 0.01,
        },
        trigger: Trigger::NONE,
        arrivals: 40.0,
        spike: Spike {
            from: TRIGGER as f64,
            until: TRIGGER as f64 + 5.0,
            arrivals: 80.0,
        },
        seconds,
    }
}

#[test]
fn nine_tenths_of_what_is_left_are_served_during_the_trigger_and_of_the_offer_right_after() {
    for capacity in CAPACITIES {
        for seed in 0..SEEDS {
            let record = shielded(day_a(capacity, 32), seed, || shield(16));
            let served = record.mean_goodput(TRIGGER, TRIGGER_ENDS);
            let left = 0.2 * capacity;
            assert!(
                served >= 0.9 * left,
                "seed {seed}: {served} of {left}/s served"
            );
            assert_recovered(&record, TRIGGER_ENDS, 2, seed);
        }
    }
}

#[test]
fn a_database_that_slows_down_under_load_recovers_from_a_spike() {
    for seed in 0..SEEDS {
        let record = shielded(day_b(60), seed, || shield(60));
        assert_recovered(&record, TRIGGER + 5, 5, seed);
    }
}

/// A thousand calls/s over 500 keys that a cache holds, until it is emptied; the database serves 200 a second.
#[test]
fn an_emptied_cache_is_filled_again() {
    let day = Day {
        serves: Serves::Workers {
            workers: 16,
            capacity: 200.0,
        },
        trigger: Trigger::NONE,
        arrivals: 1_000.0,
        spike: Spike::NONE,
        seconds: 30,
    };
    for seed in 0..SEEDS {
        let record = live(day, seed, move || {
            let (shield, cache) = (shield(16), Cache::new(500, TRIGGER as f64, seed));
            move |database: Database| {
                let (shield, cache) = (shield.clone(), cache.clone());
                async move { cache.look_aside(query(&shield, &database)).await }
            }
        });
        // At the very best, all keys are back after 2.5 s.
        assert_recovered(&record, TRIGGER, 5, seed);
    }
}

#[test]
fn retries_by_the_default_budget_alone_delay_the_recovery_by_a_seventh_at_most() {
    for (capacity, seconds) in CAPACITIES.into_iter().zip([45, 75]) {
        let median = |retry: fn() -> Retry| {
            let recovered = |seed| {
                let record = shielded(day_a(capacity, seconds), seed, || only(retry()));
                recovered(&record, TRIGGER_ENDS).unwrap_or(usize::MAX)
            };
            let mut all: Vec<usize> = (0..SEEDS).map(recovered).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let without = median(|| Retry::builder().attempts(1).build().unwrap());
        let with = median(|| Retry::builder().idempotent(true).build().unwrap());
        assert!(
            with as f64 <= 1.15 * without as f64,
            "capacity {capacity}/s: recovered after {with} s with retries, {without} s without"
        );
    }
}

/// The control groups: if these recover, the model is too mild to show anything.
mod never_recovers {
    use super::*;

    /// A collapse that lasts for two minutes lasts.
    const SECONDS: u64 = TRIGGER_ENDS as u64 + 120;
    const SEEDS: u64 = 3;

    #[test]
    fn four_retries_without_a_budget() {
        for (seed, capacity) in both() {
            let four = || {
                Retry::builder()
                    .attempts(5)
                    .idempotent(true)
                    .without_budget()
            };
            let record = shielded(day_a(capacity, SECONDS), seed, || {
                only(four().build().unwrap())
            });
            assert_never(&record, seed);
        }
    }

    #[test]
    fn a_plain_fifo_in_front_that_only_skips_those_who_have_left() {
        for (seed, capacity) in both() {
            let record = live(day_a(capacity, SECONDS), seed, || {
                let slots = Rc::new(Semaphore::new(16));
                move |database: Database| {
                    let slots = slots.clone();
                    async move {
                        for _ in 0..5 {
                            let attempt = async {
                                let _slot = slots.acquire().await.expect("never closed");
                                database.query().await;
                            };
                            if timeout(PATIENCE, attempt).await.is_ok() {
                                return Ok(());
                            }
                        }
                        Err(())
                    }
                }
            });
            assert_never(&record, seed);
        }
    }

    /// Finagle's default, and that of others who count requests rather than successes.
    #[test]
    fn a_budget_of_a_fifth_of_the_requests_and_ten_a_second_at_85_percent() {
        for seed in 0..SEEDS {
            let record = live(day_a(CAPACITIES[1], SECONDS), seed, || {
                let tokens = Rc::new(RequestTokens {
                    start: Instant::now(),
                    seconds: RefCell::default(),
                });
                move |database: Database| {
                    let tokens = tokens.clone();
                    async move {
                        tokens.deposit();
                        for _ in 0..5 {
                            if timeout(PATIENCE, database.query()).await.is_ok() {
                                return Ok(());
                            }
                            if !tokens.withdraw() {
                                break;
                            }
                        }
                        Err(())
                    }
                }
            });
            assert_never(&record, seed);
        }
    }

    fn both() -> impl Iterator<Item = (u64, f64)> {
        (0..SEEDS).flat_map(|seed| CAPACITIES.map(|capacity| (seed, capacity)))
    }

    fn assert_never(record: &Record, seed: u64) {
        let recovered = recovered(record, TRIGGER_ENDS);
        assert_eq!(
            recovered, None,
            "seed {seed} recovered, {:?}",
            record.goodput
        );
    }

    /// A fifth of a retry for each request of the last ten seconds, and ten retries a second besides.
    struct RequestTokens {
        start: Instant,
        seconds: RefCell<VecDeque<(u64, f64)>>,
    }

    impl RequestTokens {
        fn deposit(&self) {
            self.now().back_mut().expect("the present second").1 += 0.2;
        }

        fn withdraw(&self) -> bool {
            let mut seconds = self.now();
            let Some((_, left)) = seconds.iter_mut().find(|(_, left)| *left >= 1.0) else {
                return false;
            };
            *left -= 1.0;
            true
        }

        fn now(&self) -> RefMut<'_, VecDeque<(u64, f64)>> {
            let now = self.start.elapsed().as_secs();
            let mut seconds = self.seconds.borrow_mut();
            seconds.retain(|(second, _)| now - second < 10);
            if seconds.back().is_none_or(|(second, _)| *second < now) {
                seconds.push_back((now, 10.0));
            }
            seconds
        }
    }
}

/// What happens to a database where some calls fail at once, whatever one does.
mod amplification {
    use super::*;

    const SECONDS: u64 = 30;
    const FAILURE_RATES: [f64; 10] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0];
    const ARRIVALS: [f64; 3] = [10.0, 100.0, 620.0];

    #[test]
    fn retries_stay_within_a_tenth_of_the_successes_and_the_floor_at_every_failure_rate() {
        for arrivals in ARRIVALS {
            for failures in FAILURE_RATES {
                for breaker in [false, true] {
                    let day = lived(arrivals, failures, breaker, Retry::builder());
                    // Burst, and one a second; a success that comes in pays for later.
                    let most = 0.1 * f64::from(day.ok) + 5.0 + SECONDS as f64;
                    let retries = f64::from(day.retries);
                    assert!(
                        retries <= most,
                        "{arrivals}/s, {failures} fail, breaker {breaker}: {retries} retries, at most {most}"
                    );
                }
            }
        }
    }

    #[test]
    fn few_failures_are_cured_almost_as_well_as_by_three_unlimited_retries() {
        for arrivals in ARRIVALS {
            for failures in FAILURE_RATES.into_iter().filter(|rate| *rate <= 0.1) {
                let unlimited = Retry::builder().attempts(4).without_budget();
                let unlimited = lived(arrivals, failures, false, unlimited).success_rate();
                let ours = lived(arrivals, failures, true, Retry::builder()).success_rate();
                assert!(
                    ours >= unlimited - 0.02,
                    "{arrivals}/s, {failures} fail: {ours} succeed, {unlimited} with three retries"
                );
            }
        }
    }

    #[test]
    fn unlimited_retries_multiply_the_load_of_a_dead_database() {
        let unlimited = Retry::builder().attempts(4).without_budget();
        let day = lived(100.0, 1.0, false, unlimited);
        assert!(day.retries > 2 * day.calls, "the control group: {day:?}");
    }

    #[derive(Clone, Copy, Debug)]
    struct Lived {
        calls: u32,
        ok: u32,
        retries: u32,
    }

    impl Lived {
        fn success_rate(&self) -> f64 {
            f64::from(self.ok) / f64::from(self.calls)
        }
    }

    #[derive(Default)]
    struct CountRetries(AtomicU32);

    impl Observer for CountRetries {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::Retry { .. } = event {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Half a minute of `arrivals` a second, of which a share of `failures` is refused by the database after ten milliseconds.
    fn lived(
        arrivals: f64,
        failures: f64,
        breaker: bool,
        retry: steadfast::retry::Builder,
    ) -> Lived {
        let serves = Serves::Everybody {
            base: 0.01,
            more: 0.0,
        };
        let day = Day {
            serves,
            trigger: Trigger::NONE,
            arrivals,
            spike: Spike::NONE,
            // Time for the last ones to end.
            seconds: SECONDS,
        };
        let count = Arc::new(CountRetries::default());
        let retries = count.clone();
        let record = live(day, 1, move || {
            let shield =
                Shield::builder(classify::Io).retry(retry.observer(count).build().unwrap());
            let shield = if breaker {
                shield.breaker(&Breaker::default())
            } else {
                shield.without_breaker()
            };
            let shield = shield.build().unwrap();
            move |database: Database| {
                let shield = shield.clone();
                async move {
                    let attempt = || async {
                        database.query().await;
                        if fastrand::f64() < failures {
                            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                        }
                        Ok(())
                    };
                    shield.run(attempt).await
                }
            }
        });
        Lived {
            calls: record.offered.iter().sum(),
            ok: record.goodput.iter().sum(),
            retries: retries.0.load(Ordering::Relaxed),
        }
    }
}

/// The defaults; only the limit is set, and that reads are idempotent.
fn shield(limit: usize) -> Shield<classify::Io> {
    let limiter = ConcurrencyLimiter::new(limit).unwrap();
    Shield::builder(classify::Io)
        .retry(Retry::builder().idempotent(true).build().unwrap())
        .limiter(&limiter)
        .build()
        .unwrap()
}

/// Nothing but the retry, and an attempt that ends when the caller's patience does.
fn only(retry: Retry) -> Shield<classify::Io> {
    Shield::builder(classify::Io)
        .deadline(Duration::from_secs(60))
        .attempt_deadline(PATIENCE)
        .without_breaker()
        .retry(retry)
        .build()
        .unwrap()
}

fn shielded(day: Day, seed: u64, make: impl FnOnce() -> Shield<classify::Io>) -> Record {
    live(day, seed, || {
        let shield = make();
        move |database: Database| {
            let shield = shield.clone();
            async move { query(&shield, &database).await }
        }
    })
}

async fn query(shield: &Shield<classify::Io>, database: &Database) -> io::Result<()> {
    let attempt = || async {
        database.query().await;
        Ok(())
    };
    shield.run(attempt).await
}

fn recovered(record: &Record, end: usize) -> Option<usize> {
    record.recovered_after(end, 0.9 * mean(&record.offered[end..]))
}

fn assert_recovered(record: &Record, end: usize, within: usize, seed: u64) {
    let recovered = recovered(record, end);
    assert!(
        recovered.is_some_and(|seconds| seconds <= within),
        "seed {seed}: recovered after {recovered:?} s, {:?}",
        &record.goodput[end..]
    );
}
