//! The peers: whole stacks, and the parts that come closest to ours.

use std::{
    future::{Future, Ready},
    sync::Arc,
    time::Duration,
};

use failsafe::{
    Config, Error as FailsafeError, FailurePolicy, StateMachine, backoff, failure_policy,
    futures::CircuitBreaker as _,
};
use layered::{Execute, Service as Native, Stack as _};
use recloser::{AsyncRecloser, Error as RecloserError, Recloser};
use seatbelt::{
    RecoveryInfo, ResilienceContext, breaker::Breaker, retry::Retry as SeatbeltRetry,
    timeout::Timeout,
};
use tick::Clock;
use tokio::{
    sync::Semaphore,
    time::{Sleep, timeout},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    limit::ConcurrencyLimitLayer,
    retry::{
        Policy, RetryLayer,
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
        budget::{Budget, TpsBudget},
    },
    timeout::TimeoutLayer,
    util::BoxCloneService,
};
use tower_resilience::{
    bulkhead::{BulkheadLayer, BulkheadServiceError},
    circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer},
    retry::{
        ExponentialRandomBackoff, RetryBudget, RetryBudgetBuilder,
        RetryLayer as ResilienceRetryLayer,
    },
    timelimiter::{TimeLimiterError, TimeLimiterLayer},
};

use super::{
    ATTEMPT, HOUR, SEATBELT, Settings, TOWER_RESILIENCE, YARDSTICK,
    candidate::{
        Bare, Candidate,
        Has::{self, Breaking, Cutting, ForgetsByTime, Limiting, OpensUnderFailures, Refusing},
        Path, Rank, Stack, Told, Tower,
    },
    inner::{Answer, Ask, Inner, Trouble},
};

pub fn all(settings: Settings) -> Vec<Candidate> {
    let whole = New(Rank::Whole, settings);
    let part = New(Rank::Part, settings);
    let slots = || Arc::new(Semaphore::new(settings.limit));
    let mut all = vec![
        yardstick(settings),
        whole.of("no stack", &[], Bare),
        budgeted(settings),
        resilience(settings),
        whole.of("tower, BoxCloneService", &[Limiting, Cutting], {
            Tower(BoxCloneService::new(tower(settings, Never)))
        }),
        whole.of(
            SEATBELT,
            &[Breaking, ForgetsByTime, Cutting],
            seatbelt(settings, None),
        ),
        whole.of(
            "seatbelt and a limit",
            &[Breaking, ForgetsByTime, Limiting, Cutting],
            seatbelt(settings, Some(slots())),
        ),
        whole.of("seatbelt as layers", &[Breaking, ForgetsByTime, Cutting], {
            seatbelt_layers(settings)
        }),
        part.of("tokio timeout", &[Cutting], TokioTimeout),
        part.of("tower Timeout", &[Cutting], {
            Tower(TimeoutLayer::new(ATTEMPT).layer(Inner))
        }),
        part.of("tower Retry", &[], {
            Tower(RetryLayer::new(Never).layer(Inner))
        }),
        part.of("tower Retry, TpsBudget", &[], {
            Tower(RetryLayer::new(Budgeted::new(Arc::default())).layer(Inner))
        }),
        part.of("seatbelt breaker", &[Breaking, ForgetsByTime], {
            let breaker = Breaker::layer("breaker", &context())
                .recovery_with(|result, _| failure(result))
                .rejected_input_error(|_, _| Trouble::Theirs)
                .failure_threshold(threshold(settings))
                .break_duration(HOUR);
            Belt(Arc::new((breaker, Execute::new(Answer::to)).into_service()))
        }),
        part.of("tower-resilience breaker", &[Breaking], {
            Tower(resilience_breaker(settings).layer(Inner))
        }),
        part.of("failsafe, by rate", &[Breaking, OpensUnderFailures], {
            let (window, backoff) = (Duration::from_secs(1), backoff::constant(HOUR));
            let by_rate = failure_policy::success_rate_over_time_window(0.5, 20, window, backoff);
            Failsafe(Config::new().failure_policy(by_rate).build())
        }),
        part.of("failsafe, in a row", &[Breaking], {
            let in_a_row = failure_policy::consecutive_failures(150, backoff::constant(HOUR));
            Failsafe(Config::new().failure_policy(in_a_row).build())
        }),
        part.of("recloser", &[Breaking], {
            let recloser = Recloser::custom().error_rate(threshold(settings));
            let recloser = recloser.closed_len(100).open_wait(HOUR);
            Reclosing(AsyncRecloser::from(recloser.build()))
        }),
        part.of("tower-resilience bulkhead", &[Limiting], {
            Tower(bulkhead(settings).layer(Inner))
        }),
    ];
    if settings.path == Path::Full {
        all.push(part.of("tower ConcurrencyLimit", &[Limiting, Refusing], {
            let layers = ServiceBuilder::new().load_shed();
            Tower(layers.concurrency_limit(settings.limit).service(Inner))
        }));
    } else {
        all.push(part.of("tower ConcurrencyLimit", &[Limiting], {
            Tower(ConcurrencyLimitLayer::new(settings.limit).layer(Inner))
        }));
        all.push(part.of("tokio Semaphore", &[Limiting], Slots(slots())));
    }
    all
}

struct New(Rank, Settings);

impl New {
    fn of(&self, name: &'static str, has: &'static [Has], stack: impl Stack) -> Candidate {
        Candidate::new(name, self.0, has, self.1, stack)
    }
}

/// `Timeout`, `Retry`, `ConcurrencyLimit`; where a queue is to be full, `LoadShed` besides.
fn yardstick(settings: Settings) -> Candidate {
    let whole = New(Rank::Whole, settings);
    if settings.path != Path::Full {
        return whole.of(YARDSTICK, &[Limiting, Cutting], {
            Tower(tower(settings, Never))
        });
    }
    let layers = ServiceBuilder::new()
        .timeout(ATTEMPT)
        .layer(RetryLayer::new(Never))
        .load_shed()
        .concurrency_limit(settings.limit);
    let stack = Tower(layers.service(Inner));
    whole.of(YARDSTICK, &[Limiting, Cutting, Refusing], stack)
}

fn tower<P>(
    settings: Settings,
    policy: P,
) -> impl Service<Ask, Response = u64, Error = BoxError, Future: Send> + Clone + Send
where
    P: Policy<Ask, u64, Trouble> + Clone + Send + 'static,
    P::Future: Send,
{
    ServiceBuilder::new()
        .timeout(ATTEMPT)
        .layer(RetryLayer::new(policy))
        .concurrency_limit(settings.limit)
        .service(Inner)
}

/// Repeats nothing: the failures here are none that a repeat could cure.
#[derive(Clone)]
struct Never;

impl<E> Policy<Ask, u64, E> for Never {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Ask, _: &mut Result<u64, E>) -> Option<Ready<()>> {
        None
    }

    fn clone_request(&mut self, ask: &Ask) -> Option<Ask> {
        Some(*ask)
    }
}

fn budgeted(settings: Settings) -> Candidate {
    let budget = Arc::new(TpsBudget::default());
    let stack = Tower(tower(settings, Budgeted::new(budget.clone())));
    let whole = New(Rank::Whole, settings);
    let candidate = whole.of("tower, TpsBudget and backoff", &[Limiting, Cutting], stack);
    candidate.check(move |_, _| assert_finite("TpsBudget", || budget.withdraw()))
}

/// Something is left in a budget, but not for ever.
fn assert_finite(name: &str, withdraw: impl Fn() -> bool) {
    const MANY: usize = 100_000_000;
    let withdrawn = (0..MANY).take_while(|_| withdraw()).count();
    assert!((1..MANY).contains(&withdrawn), "{name}: {withdrawn}");
}

/// The policy of the page of `tower::retry::budget`, with the crate's default budget and backoff.
#[derive(Clone)]
struct Budgeted {
    budget: Arc<TpsBudget>,
    repeats: u32,
    backoff: ExponentialBackoff,
}

impl Budgeted {
    fn new(budget: Arc<TpsBudget>) -> Self {
        Self {
            budget,
            repeats: 2,
            backoff: ExponentialBackoffMaker::default().make_backoff(),
        }
    }
}

impl Policy<Ask, u64, Trouble> for Budgeted {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Ask, result: &mut Result<u64, Trouble>) -> Option<Sleep> {
        match result {
            Ok(_) => {
                self.budget.deposit();
                None
            }
            Err(Trouble::Theirs) if self.repeats > 0 && self.budget.withdraw() => {
                self.repeats -= 1;
                Some(self.backoff.next_backoff())
            }
            Err(_) => None,
        }
    }

    fn clone_request(&mut self, ask: &Ask) -> Option<Ask> {
        Some(*ask)
    }
}

/// Retry, circuit breaker, bulkhead, time limit of an attempt: the order of its composition guide.
fn resilience(settings: Settings) -> Candidate {
    let budget = RetryBudgetBuilder::new().token_bucket();
    let budget = budget.tokens_per_second(10.0).max_tokens(100).build();
    let budget: Arc<dyn RetryBudget> = budget.expect("the budget is in range");
    let backoff = ExponentialRandomBackoff::new(Duration::from_millis(100), 0.5);
    let retry = ResilienceRetryLayer::<Ask, u64, Resilience>::builder()
        .max_attempts(3)
        .backoff(backoff.expect("the factor is in range"))
        .budget(budget.clone())
        .retry_on(|_| false)
        .build();
    let attempt = TimeLimiterLayer::builder()
        .timeout_duration(ATTEMPT)
        .build();
    let service = ServiceBuilder::new()
        .layer(retry)
        .layer(resilience_breaker(settings))
        .layer(bulkhead(settings))
        .layer(attempt)
        .service(Inner);
    let has = &[Breaking, Limiting, Cutting];
    let whole = New(Rank::Whole, settings);
    let candidate = whole.of(TOWER_RESILIENCE, has, Tower(service));
    candidate.check(move |_, _| assert_finite("token bucket", || budget.try_withdraw()))
}

type Resilience = CircuitBreakerError<BulkheadServiceError<TimeLimiterError<Trouble>>>;

fn resilience_breaker(
    settings: Settings,
) -> CircuitBreakerLayer<tower_resilience::circuitbreaker::DefaultClassifier> {
    let breaker = CircuitBreakerLayer::builder().wait_duration_in_open(HOUR);
    let breaker = match settings.path {
        // Its window does not forget: by rate it would never open after a long run.
        Path::Failure => breaker.consecutive_failures(150),
        _ => breaker
            .failure_rate_threshold(0.5)
            .minimum_number_of_calls(20)
            .sliding_window_size(100),
    };
    breaker.build().expect("the breaker is in range")
}

/// It refuses by a timer only, even where nobody may wait: that takes a millisecond, and is not measured.
fn bulkhead(settings: Settings) -> BulkheadLayer {
    let bulkhead = BulkheadLayer::builder()
        .max_concurrent_calls(settings.limit)
        .max_wait_duration(Duration::from_secs(1));
    bulkhead.build().expect("the bulkhead is in range")
}

/// The share of failures that opens a circuit; one call of fifty is good where all others fail.
fn threshold(settings: Settings) -> f32 {
    match settings.path {
        Path::Failure => 0.999,
        _ => 0.5,
    }
}

/// The order of its front page: retry, breaker, timeout. A limit is no part of it; `slots` are tokio's.
fn seatbelt(settings: Settings, slots: Option<Arc<Semaphore>>) -> impl Stack {
    let context = context();
    let inner = Execute::new(move |ask| {
        let slots = slots.clone();
        async move {
            let _slot = match &slots {
                Some(slots) => Some(slots.acquire().await.map_err(|_| Trouble::Theirs)?),
                None => None,
            };
            Answer::to(ask).await
        }
    });
    let stack = (
        SeatbeltRetry::layer("retry", &context)
            .clone_input()
            .max_retry_attempts(2)
            .recovery_with(|result, _| recovery(result)),
        Breaker::layer("breaker", &context)
            .recovery_with(|result, _| failure(result))
            .rejected_input_error(|_, _| Trouble::Theirs)
            .failure_threshold(threshold(settings))
            .break_duration(HOUR),
        Timeout::layer("timeout", &context)
            .timeout(ATTEMPT)
            .timeout_error(|_| Trouble::Theirs),
        inner,
    );
    Belt(Arc::new(stack.into_service()))
}

/// The same as tower layers.
fn seatbelt_layers(settings: Settings) -> impl Stack {
    let context = context();
    let retry = SeatbeltRetry::layer("retry", &context)
        .clone_input()
        .max_retry_attempts(2)
        .recovery_with(|result, _| recovery(result));
    let breaker = Breaker::layer("breaker", &context)
        .recovery_with(|result, _| failure(result))
        .rejected_input_error(|_, _| Trouble::Theirs)
        .failure_threshold(threshold(settings))
        .break_duration(HOUR);
    let attempt = Timeout::layer("timeout", &context)
        .timeout(ATTEMPT)
        .timeout_error(|_| Trouble::Theirs);
    let layers = ServiceBuilder::new()
        .layer(retry)
        .layer(breaker)
        .layer(attempt);
    Tower(layers.service(Inner))
}

fn context() -> ResilienceContext<Ask, Result<u64, Trouble>> {
    ResilienceContext::new(Clock::new_tokio())
}

/// Whether a repeat could cure it; none of the failures here.
fn recovery(_: &Result<u64, Trouble>) -> RecoveryInfo {
    RecoveryInfo::never()
}

/// Whether the circuit should count it.
fn failure(result: &Result<u64, Trouble>) -> RecoveryInfo {
    match result {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}

struct Belt<S>(Arc<S>);

impl<S> Clone for Belt<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Stack for Belt<S>
where
    S: Native<Ask, Out = Result<u64, Trouble>> + 'static,
{
    type Error = Trouble;

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Trouble>> + Send {
        self.0.execute(ask)
    }
}

#[derive(Clone)]
struct TokioTimeout;

impl Stack for TokioTimeout {
    type Error = Trouble;

    #[inline]
    async fn call(&mut self, ask: Ask) -> Result<u64, Trouble> {
        match timeout(ATTEMPT, Answer::to(ask)).await {
            Ok(result) => result,
            Err(_) => Err(Trouble::Theirs),
        }
    }
}

#[derive(Clone)]
struct Slots(Arc<Semaphore>);

impl Stack for Slots {
    type Error = Trouble;

    #[inline]
    async fn call(&mut self, ask: Ask) -> Result<u64, Trouble> {
        let _slot = self.0.acquire().await.map_err(|_| Trouble::Theirs)?;
        Answer::to(ask).await
    }
}

struct Failsafe<P>(StateMachine<P, ()>);

impl<P> Clone for Failsafe<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P> Stack for Failsafe<P>
where
    P: FailurePolicy + Send + Sync + 'static,
{
    type Error = FailsafeError<Trouble>;

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Self::Error>> + Send {
        self.0.call(Answer::to(ask))
    }
}

#[derive(Clone)]
struct Reclosing(AsyncRecloser);

impl Stack for Reclosing {
    type Error = RecloserError<Trouble>;

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Self::Error>> + Send {
        self.0.call(Answer::to(ask))
    }
}

impl<E: Told> Told for CircuitBreakerError<E> {
    fn is_refusal(&self) -> bool {
        match self {
            Self::OpenCircuit => true,
            Self::Inner(error) => error.is_refusal(),
        }
    }
}

impl<E: Told> Told for BulkheadServiceError<E> {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Bulkhead(_) => true,
            Self::Inner(error) => error.is_refusal(),
        }
    }
}

impl<E: Told> Told for TimeLimiterError<E> {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Inner(error) => error.is_refusal(),
        }
    }
}

impl<E: Told> Told for FailsafeError<E> {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Rejected => true,
            Self::Inner(error) => error.is_refusal(),
        }
    }
}

impl<E: Told> Told for RecloserError<E> {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Rejected => true,
            Self::Inner(error) => error.is_refusal(),
        }
    }
}
