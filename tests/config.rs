//! What can't be used is refused when a part is built, by a message that names part, setting, value and range.
#![cfg(feature = "tower")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{io, time::Duration};

#[cfg(feature = "test-util")]
use steadfast::fault::{Fault, Faults};
use steadfast::{
    Breaker, ConcurrencyLimiter, ConfigError, Deadline, Kind, Rejected, Retry, Shield, Verdict,
    breaker::{self, State, WhenOpen},
    by_error, classify,
    retry::{self, Backoff, Budget, BudgetBuilder, Jitter},
    shield,
};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
const OVER: Duration = YEAR.saturating_add(Duration::from_nanos(1));
const MS: Duration = Duration::from_millis(1);
const ZERO: Duration = Duration::ZERO;

/// What was set, and what is said of it.
type Table<B> = [(fn(B) -> B, &'static str)];

fn assert_refused<B, P>(
    builder: impl Fn() -> B,
    build: impl Fn(B) -> Result<P, ConfigError>,
    table: &Table<B>,
) {
    assert!(build(builder()).is_ok(), "the defaults are in range");
    for (set, message) in table {
        match build(set(builder())) {
            Ok(_) => panic!("accepted: {message}"),
            Err(error) => {
                assert_eq!(error.to_string(), *message);
                assert!(message.contains(&format!(": {} is ", error.setting())));
            }
        }
    }
}

#[test]
fn a_breaker_refuses_bad_settings() {
    let table: &Table<breaker::Builder> = &[
        (
            |b| b.failure_rate(1.1),
            "breaker: failure_rate is 1.1, but must be over 0 and at most 1",
        ),
        (
            |b| b.failure_rate(0.0),
            "breaker: failure_rate is 0.0, but must be over 0 and at most 1",
        ),
        (
            |b| b.failure_rate(-0.5),
            "breaker: failure_rate is -0.5, but must be over 0 and at most 1",
        ),
        (
            |b| b.failure_rate(f64::NAN),
            "breaker: failure_rate is NaN, but must be over 0 and at most 1",
        ),
        (
            |b| b.slow_calls(MS, 1.1),
            "breaker: slow_calls rate is 1.1, but must be over 0 and at most 1",
        ),
        (
            |b| b.slow_calls(MS, 0.0),
            "breaker: slow_calls rate is 0.0, but must be over 0 and at most 1",
        ),
        (
            |b| b.slow_calls(MS, f64::NAN),
            "breaker: slow_calls rate is NaN, but must be over 0 and at most 1",
        ),
        (
            |b| b.slow_calls(ZERO, 0.5),
            "breaker: slow_calls after is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.slow_calls(OVER, 0.5),
            "breaker: slow_calls after is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.minimum_calls(0),
            "breaker: minimum_calls is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.minimum_calls(1_000_001),
            "breaker: minimum_calls is 1000001, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.probes(0),
            "breaker: probes is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.probes(u32::MAX),
            "breaker: probes is 4294967295, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.required_successes(0),
            "breaker: required_successes is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.required_successes(u32::MAX),
            "breaker: required_successes is 4294967295, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.consecutive(0),
            "breaker: consecutive is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |_| Breaker::consecutive(0),
            "breaker: consecutive is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.consecutive(u32::MAX),
            "breaker: consecutive is 4294967295, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.window(ZERO),
            "breaker: window is 0ns, but must be at least 10ms and at most 365 days",
        ),
        (
            |b| b.window(OVER),
            "breaker: window is 31536000.000000001s, but must be at least 10ms and at most 365 days",
        ),
        (
            |b| b.open_for(ZERO),
            "breaker: open_for is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.open_for(OVER),
            "breaker: open_for is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.max_open_for(MS),
            "breaker: max_open_for is 1ms, but must be at least 500ms and at most 365 days",
        ),
        (
            |b| b.max_open_for(OVER),
            "breaker: max_open_for is 31536000.000000001s, but must be at least 500ms and at most 365 days",
        ),
        (
            |b| b.attempt_deadline(ZERO),
            "breaker: attempt_deadline is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.attempt_deadline(OVER),
            "breaker: attempt_deadline is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.when_open(WhenOpen::Wait { queue: 0 }),
            "breaker: when_open queue is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.when_open(WhenOpen::Wait { queue: 1_000_001 }),
            "breaker: when_open queue is 1000001, but must be at least 1 and at most 1000000",
        ),
    ];
    assert_refused(Breaker::builder, |b| b.build(), table);
}

#[test]
fn a_retry_refuses_bad_settings_and_bad_backoffs() {
    let table: &Table<retry::Builder> = &[
        (
            |b| b.attempts(0),
            "retry: attempts is 0, but must be at least 1 and at most 1000",
        ),
        (
            |b| b.attempts(1_001),
            "retry: attempts is 1001, but must be at least 1 and at most 1000",
        ),
        (
            |b| b.max_hint(OVER),
            "retry: max_hint is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| b.backoff(Backoff::fixed(OVER)),
            "retry: backoff is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| b.backoff(Backoff::exponential(2 * MS, MS)),
            "retry: backoff is 1ms, but must be at least the first delay, 2ms, and at most 365 days",
        ),
        (
            |b| b.backoff(Backoff::linear(2 * MS, MS)),
            "retry: backoff is 1ms, but must be at least the first delay, 2ms, and at most 365 days",
        ),
        (
            |b| b.backoff(Backoff::exponential(MS, OVER)),
            "retry: backoff is 31536000.000000001s, but must be at least the first delay, 1ms, and at most 365 days",
        ),
        (
            |b| b.on(Kind::TimedOut, 0, Backoff::fixed(MS)),
            "retry: on attempts is 0, but must be at least 1 and at most 1000",
        ),
        (
            |b| b.on(Kind::TimedOut, 1_001, Backoff::fixed(MS)),
            "retry: on attempts is 1001, but must be at least 1 and at most 1000",
        ),
        (
            |b| b.on(Kind::TimedOut, 2, Backoff::linear(2 * MS, MS)),
            "retry: on backoff is 1ms, but must be at least the first delay, 2ms, and at most 365 days",
        ),
        (
            |b| b.on(Kind::TimedOut, 2, Backoff::fixed(OVER)),
            "retry: on backoff is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| b.on(Kind::Broken, 2, Backoff::fixed(MS)),
            "retry: on is Broken, but must be a kind that a repeat can cure: conflict, saturated, overloaded, unavailable, timed out or ambiguous",
        ),
        (
            |b| b.on(Kind::Success, 2, Backoff::fixed(MS)),
            "retry: on is Success, but must be a kind that a repeat can cure: conflict, saturated, overloaded, unavailable, timed out or ambiguous",
        ),
    ];
    assert_refused(Retry::builder, |b| b.build(), table);
}

#[test]
fn a_budget_refuses_bad_settings() {
    let table: &Table<BudgetBuilder> = &[
        (
            |b| b.ratio(0.0),
            "budget: ratio is 0.0, but must be at least 0.000001 and at most 1",
        ),
        (
            |b| b.ratio(1.1),
            "budget: ratio is 1.1, but must be at least 0.000001 and at most 1",
        ),
        (
            |b| b.ratio(f64::NAN),
            "budget: ratio is NaN, but must be at least 0.000001 and at most 1",
        ),
        (
            |b| b.window(ZERO),
            "budget: window is 0ns, but must be at least 10ms and at most 365 days",
        ),
        (
            |b| b.window(OVER),
            "budget: window is 31536000.000000001s, but must be at least 10ms and at most 365 days",
        ),
        (
            |b| b.floor(-1.0, 1),
            "budget: floor is -1.0, but must be at least 0 and at most 1000000 per second",
        ),
        (
            |b| b.floor(f64::NAN, 1),
            "budget: floor is NaN, but must be at least 0 and at most 1000000 per second",
        ),
        (
            |b| b.floor(f64::INFINITY, 1),
            "budget: floor is inf, but must be at least 0 and at most 1000000 per second",
        ),
        (
            |b| b.floor(1.0, 1_000_001),
            "budget: floor burst is 1000001, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.floor(1.0, 0),
            "budget: floor burst is 0, but must be at least 1 and at most 1000000",
        ),
    ];
    assert_refused(Budget::builder, |b| b.build(), table);
}

#[test]
fn a_limiter_refuses_bad_settings() {
    type Builder = steadfast::limit::Builder;
    let table: &Table<Builder> = &[
        (
            |_| ConcurrencyLimiter::builder(0),
            "limiter: in_flight is 0, but must be at least 1 and at most 1000000",
        ),
        (
            |_| ConcurrencyLimiter::builder(usize::MAX),
            "limiter: in_flight is 18446744073709551615, but must be at least 1 and at most 1000000",
        ),
        (
            |b| b.queue(1_000_001),
            "limiter: queue is 1000001, but must be at least 0 and at most 1000000",
        ),
        (
            |b| b.max_wait(ZERO),
            "limiter: max_wait is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.max_wait(OVER),
            "limiter: max_wait is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.queue(0).max_wait(MS),
            "limiter: max_wait is 1ms, but must be left out where the queue is 0: nobody can wait",
        ),
    ];
    assert_refused(|| ConcurrencyLimiter::builder(1), |b| b.build(), table);
}

#[test]
fn a_deadline_refuses_bad_lengths() {
    let table: &Table<Duration> = &[
        (
            |_| ZERO,
            "deadline: within is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |_| OVER,
            "deadline: within is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
    ];
    assert_refused(|| YEAR, Deadline::new, table);
}

#[test]
fn a_shield_refuses_bad_settings() {
    let table: &Table<shield::Builder<classify::Io>> = &[
        (
            |b| b.deadline(ZERO),
            "shield: deadline is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.deadline(OVER),
            "shield: deadline is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.attempt_deadline(ZERO),
            "shield: attempt_deadline is 0ns, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.attempt_deadline(OVER),
            "shield: attempt_deadline is 31536000.000000001s, but must be at least 1ms and at most 365 days",
        ),
        (
            |b| b.attempt_deadline(11_000 * MS),
            "shield: attempt_deadline is 11s, but must be at most the deadline, 10s",
        ),
    ];
    assert_refused(|| Shield::builder(classify::Io), |b| b.build(), table);
}

#[cfg(feature = "test-util")]
#[test]
fn faults_refuse_bad_settings() {
    type Builder = steadfast::fault::FaultsBuilder<Kind>;
    let table: &Table<Builder> = &[
        (
            |b| b.rate(0.0, Fault::Hang),
            "faults: rate is 0.0, but must be over 0 and at most 1",
        ),
        (
            |b| b.rate(1.1, Fault::Hang),
            "faults: rate is 1.1, but must be over 0 and at most 1",
        ),
        (
            |b| b.rate(f64::NAN, Fault::Hang),
            "faults: rate is NaN, but must be over 0 and at most 1",
        ),
        (
            |b| b.rate(0.5, Fault::Hang).rate(0.75, Fault::Hang),
            "faults: rate is 1.25, but must be at most 1 in sum",
        ),
        (
            |b| b.rate(0.5, Fault::Latency(OVER)),
            "faults: rate is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| b.script([Fault::LatencyAfter(OVER)]),
            "faults: script is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| {
                b.script([Fault::Drop {
                    after: OVER,
                    kind: Kind::Broken,
                }])
            },
            "faults: script is 31536000.000000001s, but must be at least 0ns and at most 365 days",
        ),
        (
            |b| b.script([Fault::Fail(Kind::Success)]),
            "faults: script is Fail(Success), but must be a failure, not a success",
        ),
    ];
    assert_refused(|| Faults::builder(|kind| kind), |b| b.build(), table);
    let faults = Faults::builder(|kind| kind).build().unwrap();
    let error = faults.append([Fault::Latency(OVER)]).unwrap_err();
    let message =
        "faults: append is 31536000.000000001s, but must be at least 0ns and at most 365 days";
    assert_eq!(error.to_string(), message);
}

#[tokio::test(start_paused = true)]
async fn the_longest_times_and_hints_can_be_used() {
    let busy = |_: &io::Error| Verdict::from(Kind::Overloaded).retry_after(Duration::MAX);
    let breaker = Breaker::consecutive(1)
        .window(YEAR)
        .slow_calls(YEAR, 1.0)
        .open_for(YEAR)
        .max_open_for(YEAR)
        .attempt_deadline(YEAR)
        .when_open(WhenOpen::Wait { queue: 1 })
        .build()
        .unwrap();
    let longest = Backoff::exponential(YEAR, YEAR).jitter(Jitter::None);
    let retry = Retry::builder()
        .attempts(2)
        .backoff(longest)
        .on(Kind::Overloaded, 2, longest.jitter(Jitter::Decorrelated))
        .max_hint(YEAR)
        .build()
        .unwrap();
    let limiter = ConcurrencyLimiter::builder(1).max_wait(YEAR).build();
    let shield = Shield::builder(by_error(busy))
        .deadline(YEAR)
        .attempt_deadline(YEAR)
        .retry(retry.clone())
        .breaker(&breaker)
        .limiter(&limiter.unwrap())
        .build()
        .unwrap();
    let start = Instant::now();
    let fail = async || io::Result::<()>::Err(io::ErrorKind::ResourceBusy.into());
    // The next attempt could not start before the deadline: the error comes at once.
    shield.run(fail).await.unwrap_err();
    assert_eq!(start.elapsed(), ZERO);
    // By the hint the circuit is open for a year, and then the deadline is over.
    assert_eq!(breaker.state(), State::Open);
    let error = shield.run(fail).await.unwrap_err();
    let late = Rejected::DeadlineExceeded { sent: false };
    assert_eq!(Rejected::of(&error), Some(&late), "{error}");
    assert_eq!(start.elapsed(), YEAR);
    // Without a deadline, the hint is believed for a year, and the backoff comes on top.
    let layered = Layer::layer(
        &retry.layer(by_error(busy)),
        service_fn(async |(): ()| fail().await),
    );
    ServiceExt::oneshot(layered, ()).await.unwrap_err();
    assert_eq!(start.elapsed(), 3 * YEAR);
    let deadline = Deadline::new(YEAR).unwrap().layer();
    let hangs = service_fn(async |(): ()| {
        sleep(2 * YEAR).await;
        io::Result::Ok(())
    });
    let hangs = Layer::layer(&deadline, hangs);
    ServiceExt::oneshot(hangs, ()).await.unwrap_err();
    assert_eq!(start.elapsed(), 4 * YEAR);
}
