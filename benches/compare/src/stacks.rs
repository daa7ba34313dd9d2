//! The stacks. Each gives an idempotent read 3 s an attempt, and the peers may repeat it four times.

use std::{cell::RefCell, future::Future, io, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use layered::{Execute, Service, Stack as _};
use seatbelt::{
    RecoveryInfo, ResilienceContext, breaker::Breaker, retry::Retry as SeatbeltRetry,
    timeout::Timeout,
};
use steadfast::{ConcurrencyLimiter, Retry, Shield, classify};
use tick::ClockControl;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::{
    BoxError, ServiceBuilder, ServiceExt,
    limit::ConcurrencyLimitLayer,
    retry::{
        Policy, RetryLayer,
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
        budget::{Budget, TpsBudget},
    },
};
use tower_resilience::{
    bulkhead::{BulkheadLayer, BulkheadServiceError},
    circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer},
    retry::{ExponentialRandomBackoff, RetryBudgetBuilder, RetryLayer as ResilienceRetryLayer},
    timelimiter::{TimeLimiterError, TimeLimiterLayer},
};

use crate::overload::{Clock, Database};

/// One of the stacks.
pub struct Stack {
    pub name: &'static str,
    pub color: &'static str,
    pub make: Make,
    pub clock: Clock,
    pub is_ours: bool,
    /// Its curve often lies exactly on another's.
    pub covers_another: bool,
}

/// Makes what one caller does, of the limit on the calls in flight.
pub type Make = fn(usize, Clock) -> Call;

pub type Call = Box<dyn Fn(Database) -> Answer>;

pub type Answer = Pin<Box<dyn Future<Output = Result<(), Trouble>>>>;

/// No answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The circuit is open.
    Open,
    Other,
}

impl Stack {
    /// All of them, in the order of the tables.
    pub fn all() -> Vec<Self> {
        let peer = |name, color, make| Self {
            name,
            color,
            make,
            clock: Clock::Virtual,
            is_ours: false,
            covers_another: false,
        };
        let twin = |name, color, make| Self {
            covers_another: true,
            ..peer(name, color, make)
        };
        let blue = "#0057e7";
        vec![
            Self {
                is_ours: true,
                ..peer("steadfast", blue, steadfast)
            },
            twin("timeout only", "#8a8a8a", timeout_only),
            twin("naive loop", "#d62728", naive),
            peer("naive, backoff", "#ff9d2e", naive_with_backoff),
            peer("tower", "#009e73", tower),
            peer("tower + buffer", "#9acd32", tower_with_buffer),
            twin("seatbelt", "#d66bb0", seatbelt),
            peer("seatbelt + limit", "#7a4a2b", seatbelt_and_limit),
            Self {
                is_ours: true,
                clock: Clock::Real,
                ..peer("steadfast, real time", blue, steadfast)
            },
            Self {
                clock: Clock::Real,
                ..peer("tower-resilience", "#7b3fbf", tower_resilience)
            },
        ]
    }
}

const ATTEMPT: Duration = Duration::from_secs(3);
const WHOLE: Duration = Duration::from_secs(10);
const REPEATS: u32 = 4;

/// The crate's defaults; nothing is set but the limit.
fn steadfast(limit: usize, _: Clock) -> Call {
    let shield = ConcurrencyLimiter::new(limit)
        .and_then(|limiter| {
            Shield::builder(classify::Io)
                .retry(Retry::builder().idempotent(true).build()?)
                .limiter(&limiter)
                .build()
        })
        .expect("the limit is in range");
    Box::new(move |database| {
        let shield = shield.clone();
        Box::pin(async move {
            let answer = shield.run(|| async {
                database.query().await;
                io::Result::Ok(())
            });
            answer.await.map_err(|_| Trouble::Other)
        })
    })
}

fn timeout_only(_: usize, _: Clock) -> Call {
    Box::new(|database| Box::pin(async move { attempt(&database).await }))
}

fn naive(_: usize, _: Clock) -> Call {
    Box::new(|database| {
        Box::pin(async move {
            for _ in 0..REPEATS {
                if attempt(&database).await.is_ok() {
                    return Ok(());
                }
            }
            attempt(&database).await
        })
    })
}

/// Between 0 and 100 ms, then 200 ms, and so on.
fn naive_with_backoff(_: usize, _: Clock) -> Call {
    Box::new(|database| {
        Box::pin(async move {
            for repeat in 0..REPEATS {
                if attempt(&database).await.is_ok() {
                    return Ok(());
                }
                let most = Duration::from_millis(100) * 2_u32.pow(repeat);
                sleep(most.mul_f64(fastrand::f64())).await;
            }
            attempt(&database).await
        })
    })
}

async fn attempt(database: &Database) -> Result<(), Trouble> {
    timeout(ATTEMPT, database.query())
        .await
        .map_err(|_| Trouble::Other)
}

/// Retry, limit, timeout of an attempt. A call waits in `poll_ready`, which no timeout of tower's bounds.
fn tower(limit: usize, _: Clock) -> Call {
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Budgeted::new()))
        .layer(ConcurrencyLimitLayer::new(limit))
        .timeout(ATTEMPT)
        .service_fn(|()| query_here());
    Box::new(move |database| {
        be_here(database);
        let service = service.clone();
        Box::pin(async move { service.oneshot(()).await.map_err(|_| Trouble::Other) })
    })
}

/// Retry, timeout of an attempt, buffer, limit. A call waits in the buffer, and the timeout counts that.
fn tower_with_buffer(limit: usize, _: Clock) -> Call {
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Budgeted::new()))
        .timeout(ATTEMPT)
        .buffer(50 * limit)
        .layer(ConcurrencyLimitLayer::new(limit))
        .service_fn(|()| query_here());
    Box::new(move |database| {
        be_here(database);
        let service = service.clone();
        Box::pin(async move { service.oneshot(()).await.map_err(|_| Trouble::Other) })
    })
}

/// The policy of the page of `tower::retry::budget`, with the crate's default budget and backoff.
#[derive(Clone)]
struct Budgeted {
    budget: Arc<TpsBudget>,
    repeats: u32,
    backoff: ExponentialBackoff,
}

impl Budgeted {
    fn new() -> Self {
        Self {
            budget: Arc::new(TpsBudget::default()),
            repeats: REPEATS,
            backoff: ExponentialBackoffMaker::default().make_backoff(),
        }
    }
}

impl Policy<(), (), BoxError> for Budgeted {
    type Future = tokio::time::Sleep;

    fn retry(&mut self, (): &mut (), result: &mut Result<(), BoxError>) -> Option<Self::Future> {
        match result {
            Ok(()) => {
                self.budget.deposit();
                None
            }
            Err(_) if self.repeats > 0 && self.budget.withdraw() => {
                self.repeats -= 1;
                Some(self.backoff.next_backoff())
            }
            Err(_) => None,
        }
    }

    fn clone_request(&mut self, (): &()) -> Option<()> {
        Some(())
    }
}

/// The order of its composition guide: total timeout, retry, circuit breaker, bulkhead, timeout of an attempt.
fn tower_resilience(limit: usize, _: Clock) -> Call {
    let budget = RetryBudgetBuilder::new().token_bucket();
    let budget = budget.tokens_per_second(10.0).max_tokens(100).build();
    let backoff = ExponentialRandomBackoff::new(Duration::from_millis(100), 0.5);
    let retry = ResilienceRetryLayer::<(), (), Trouble>::builder()
        .max_attempts(REPEATS as usize + 1)
        .backoff(backoff.expect("the factor is in range"))
        .budget(budget.expect("the budget is in range"))
        // The guide excludes the breaker's own refusals.
        .retry_on(|trouble| *trouble != Trouble::Open)
        .build();
    let breaker = CircuitBreakerLayer::builder()
        .failure_rate_threshold(0.5)
        .minimum_number_of_calls(20)
        .sliding_window_size(100)
        .wait_duration_in_open(Duration::from_secs(30))
        .build();
    let bulkhead = BulkheadLayer::builder()
        .max_concurrent_calls(limit)
        .max_wait_duration(Duration::from_secs(1))
        .build();
    let whole = TimeLimiterLayer::builder().timeout_duration(WHOLE).build();
    let attempt = TimeLimiterLayer::builder()
        .timeout_duration(ATTEMPT)
        .build();
    let service = ServiceBuilder::new()
        .layer(whole)
        .layer(retry)
        .map_err(|error: CircuitBreakerError<Trouble>| match error {
            CircuitBreakerError::OpenCircuit => Trouble::Open,
            CircuitBreakerError::Inner(trouble) => trouble,
        })
        .layer(breaker.expect("the breaker is in range"))
        .map_err(|_: BulkheadServiceError<Trouble>| Trouble::Other)
        .layer(bulkhead.expect("the bulkhead is in range"))
        .map_err(|_: TimeLimiterError<BoxError>| Trouble::Other)
        .layer(attempt)
        .service_fn(|()| query_here());
    Box::new(move |database| {
        be_here(database);
        let service = service.clone();
        Box::pin(async move { service.oneshot(()).await.map_err(|_| Trouble::Other) })
    })
}

/// The order of its front page: retry, breaker, timeout.
fn seatbelt(_: usize, _: Clock) -> Call {
    seatbelt_over(None)
}

/// It has no limit of its own; this one is tokio's semaphore within the timeout.
fn seatbelt_and_limit(limit: usize, _: Clock) -> Call {
    seatbelt_over(Some(Arc::new(Semaphore::new(limit))))
}

fn seatbelt_over(slots: Option<Arc<Semaphore>>) -> Call {
    let control = ClockControl::new();
    let context = ResilienceContext::new(control.to_clock());
    keep_pace(control);
    let recovery = |result: &Result<(), Trouble>| match result {
        Ok(()) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    };
    let stack = (
        SeatbeltRetry::layer("retry", &context)
            .clone_input()
            .max_retry_attempts(REPEATS)
            .recovery_with(move |result, _| recovery(result)),
        Breaker::layer("breaker", &context)
            .recovery_with(move |result, _| recovery(result))
            .rejected_input_error(|(), _| Trouble::Open),
        Timeout::layer("timeout", &context)
            .timeout(ATTEMPT)
            .timeout_error(|_| Trouble::Other),
        Execute::new(move |()| {
            let slots = slots.clone();
            async move {
                let _slot = match &slots {
                    Some(slots) => Some(slots.acquire().await.map_err(|_| Trouble::Other)?),
                    None => None,
                };
                query_here().await.map_err(|_| Trouble::Other)
            }
        }),
    );
    let service = Rc::new(stack.into_service());
    Box::new(move |database| {
        be_here(database);
        let service = service.clone();
        Box::pin(async move { service.execute(()).await })
    })
}

/// Moves a clock of seatbelt's with tokio's.
fn keep_pace(control: ClockControl) {
    tokio::task::spawn_local(async move {
        let step = Duration::from_millis(1);
        let mut next = Instant::now() + step;
        loop {
            sleep_until(next).await;
            control.advance(step);
            next += step;
        }
    });
}

thread_local! {
    // The peers' services must be `Send`, and the database can't be; but a day never leaves its thread.
    static HERE: RefCell<Option<Database>> = const { RefCell::new(None) };
}

fn be_here(database: Database) {
    HERE.replace(Some(database));
}

async fn query_here() -> Result<(), BoxError> {
    let answer = HERE.with_borrow(|here| here.as_ref().expect("a caller left it here").ask());
    answer.await.map_err(BoxError::from)
}
