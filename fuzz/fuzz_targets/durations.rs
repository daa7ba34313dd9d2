//! Times, rates and counts as a program's own settings may give them: refused when built, or good for every call.
//!
//! What was built is put to work on a clock that jumps: no call panics, and none outlives its deadline.
#![no_main]

use std::{io, time::Duration};

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use sqlx::Postgres;
use steadfast::{
    Breaker, ConcurrencyLimiter, ConfigError, Deadline, Kind, Retry, Shield, by_error,
    db::{Config, Preset},
    retry::{Backoff, Budget, Jitter},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep},
};

#[derive(Arbitrary, Debug)]
struct Input {
    deadline: Time,
    attempt: Time,
    first: Time,
    cap: Time,
    growth: u8,
    jitter: u8,
    attempts: u32,
    max_hint: Time,
    budget: Option<(f64, Time, f64, u32)>,
    window: Time,
    open_for: Time,
    max_open_for: Time,
    failure_rate: f64,
    minimum_calls: u32,
    slow: Option<(Time, f64)>,
    probes: u32,
    in_flight: u16,
    queue: u16,
    max_wait: Time,
    preset: [Time; 8],
    /// How long each attempt takes, and whether it fails.
    calls: Vec<(Time, bool)>,
}

/// Any time, and more often than not a usual one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Time {
    Any(Duration),
    Millis(u16),
    Seconds(u16),
    Zero,
    Most,
}

impl Time {
    fn get(self) -> Duration {
        match self {
            Self::Any(time) => time,
            Self::Millis(time) => Duration::from_millis(time.into()),
            Self::Seconds(time) => Duration::from_secs(time.into()),
            Self::Zero => Duration::ZERO,
            Self::Most => Duration::MAX,
        }
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
}

fuzz_target!(|input: Input| {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            preset(&input);
            match build(&input) {
                Ok(shield) => call(&shield, &input).await,
                Err(error) => says_what(&error),
            }
        });
    });
});

fn preset(input: &Input) {
    let [
        connect,
        acquire,
        statement,
        lock,
        idle,
        deadline,
        recycle,
        check,
    ] = input.preset;
    let preset = Preset::web()
        .connect(connect.get())
        .acquire(acquire.get())
        .statement(statement.get())
        .lock(lock.get())
        .idle_in_transaction(idle.get())
        .deadline(deadline.get())
        .recycle(recycle.get())
        .check_interval(check.get())
        .pool_size(input.attempts)
        .overflow(input.probes);
    let config = Config::new("postgres://app@db/shop").preset(preset);
    match config.connect_options::<Postgres>() {
        Ok(options) => {
            // What the server is told is in its range: whole milliseconds, that fit into its numbers.
            let told = options.get_options().unwrap_or_default();
            for setting in told.split(" -c ").flat_map(|rest| rest.split_whitespace()) {
                if let Some((_, value)) = setting.rsplit_once('=') {
                    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
                    let number = digits.parse::<u64>().unwrap_or(0);
                    assert!(number <= 2_147_483_647, "{told}");
                }
            }
        }
        Err(error) => says_what(&error),
    }
}

fn build(
    input: &Input,
) -> Result<Shield<impl steadfast::Classify<(), io::Error> + use<>>, ConfigError> {
    let (first, cap) = (input.first.get(), input.cap.get());
    let backoff = match input.growth % 3 {
        0 => Backoff::exponential(first, cap),
        1 => Backoff::linear(first, cap),
        _ => Backoff::fixed(first),
    };
    let backoff = backoff.jitter(match input.jitter % 4 {
        0 => Jitter::Full,
        1 => Jitter::Equal,
        2 => Jitter::Decorrelated,
        _ => Jitter::None,
    });
    let retry = Retry::builder()
        .attempts(input.attempts)
        .backoff(backoff)
        .idempotent(true)
        .max_hint(input.max_hint.get());
    let retry = match input.budget {
        None => retry.without_budget(),
        Some((ratio, window, per_second, burst)) => {
            let budget = Budget::builder()
                .ratio(ratio)
                .window(window.get())
                .floor(per_second, burst)
                .build()?;
            retry.budget(&budget)
        }
    };
    let breaker = Breaker::builder()
        .failure_rate(input.failure_rate)
        .minimum_calls(input.minimum_calls)
        .window(input.window.get())
        .open_for(input.open_for.get())
        .max_open_for(input.max_open_for.get())
        .probes(input.probes);
    let breaker = match input.slow {
        None => breaker,
        Some((after, rate)) => breaker.slow_calls(after.get(), rate),
    };
    let limiter = ConcurrencyLimiter::builder(input.in_flight.into())
        .queue(input.queue.into())
        .max_wait(input.max_wait.get());
    Deadline::new(input.deadline.get())?;
    Shield::builder(by_error(|_: &io::Error| Kind::Unavailable))
        .deadline(input.deadline.get())
        .attempt_deadline(input.attempt.get())
        .retry(retry.build()?)
        .breaker(&breaker.build()?)
        .limiter(&limiter.build()?)
        .build()
}

async fn call(shield: &Shield<impl steadfast::Classify<(), io::Error>>, input: &Input) {
    let mut attempts = input.calls.iter().take(8).cycle();
    for _ in 0..3 {
        let began = Instant::now();
        let result = shield
            .run(|| {
                let attempt = attempts.next();
                async move {
                    let Some((time, fails)) = attempt else {
                        return Ok(());
                    };
                    // No sleep of tokio's is longer.
                    sleep(time.get().min(YEAR)).await;
                    if *fails {
                        Err(io::Error::other("as planned"))
                    } else {
                        Ok(())
                    }
                }
            })
            .await;
        let (took, most) = (began.elapsed(), input.deadline.get() + TICK);
        assert!(took <= most, "{took:?} of {most:?}: {result:?}");
    }
}

/// It names what was wrong.
fn says_what(error: &ConfigError) {
    let said = error.to_string();
    assert!(said.contains(error.setting()), "{said}");
    assert!(said.contains(", but must be "), "{said}");
}

/// Timers are that coarse.
const TICK: Duration = Duration::from_millis(2);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
