//! Retries, as a layer and in a shield, on tokio's paused clock. `R1` .. name the faults of peers that we must not have.
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    collections::{HashSet, VecDeque},
    future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use steadfast::{
    Breaker, Classify, Deadline, Event, Kind, Observer, Refusal, Rejected, Retry, Shield, Verdict,
    event::GaveUp,
    retry::{Backoff, Budget, Builder, Jitter},
};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit, service_fn,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A dependency's error, or a refusal of ours.
#[derive(Clone, Debug, PartialEq)]
enum Failure {
    Rejected(Rejected),
    /// The answer to attempt number `.0`.
    Answer(u32, Verdict),
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl Refusal for Failure {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Answer(..) => None,
        }
    }
}

/// Every `Ok` is a success, and every failure says itself what it is.
#[derive(Clone, Copy)]
struct Frank;

impl<T> Classify<T, Failure> for Frank {
    fn classify(&self, result: Result<&T, &Failure>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(Failure::Answer(_, verdict)) => *verdict,
            Err(Failure::Rejected(_)) => panic!("a refusal of ours is not for the classifier"),
        }
    }
}

#[derive(Clone)]
enum Step {
    Succeed,
    Fail(Verdict),
    /// Another stack, further in, refuses the call.
    Refuse,
    Hang,
}

fn fail(kind: Kind) -> Step {
    Step::Fail(kind.into())
}

/// Answers by its script, whose last step is repeated, and knows when it was called.
#[derive(Clone)]
struct Dependency {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    script: VecDeque<Step>,
    called: Vec<Instant>,
}

impl Dependency {
    fn new(script: impl IntoIterator<Item = Step>) -> Self {
        let shared = Shared {
            script: script.into_iter().collect(),
            called: Vec::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    fn failing(kind: Kind) -> Self {
        Self::new([fail(kind)])
    }

    /// Succeeds with the number of the attempt.
    async fn call(&self) -> Result<u32, Failure> {
        let (attempt, step) = {
            let shared = &mut *self.shared.lock().unwrap();
            shared.called.push(Instant::now());
            let step = if shared.script.len() > 1 {
                shared.script.pop_front()
            } else {
                shared.script.front().cloned()
            };
            (shared.called.len() as u32, step.expect("there is a script"))
        };
        match step {
            Step::Succeed => Ok(attempt),
            Step::Fail(verdict) => Err(Failure::Answer(attempt, verdict)),
            Step::Refuse => Err(Rejected::DeadlineExceeded { sent: false }.into()),
            Step::Hang => future::pending().await,
        }
    }

    fn calls(&self) -> u32 {
        self.shared.lock().unwrap().called.len() as u32
    }

    /// The time between one attempt and the next.
    fn pauses(&self) -> Vec<Duration> {
        let shared = self.shared.lock().unwrap();
        let pairs = shared.called.windows(2);
        pairs.map(|pair| pair[1] - pair[0]).collect()
    }

    fn service(
        &self,
    ) -> impl Service<(), Response = u32, Error = Failure, Future: Send> + Clone + use<> {
        let dependency = self.clone();
        service_fn(move |()| {
            let dependency = dependency.clone();
            async move { dependency.call().await }
        })
    }
}

/// The ways by which a call can get to a retry.
#[derive(Clone, Copy, Debug)]
enum Way {
    Layers,
    Run,
    ShieldLayer,
}

const WAYS: [Way; 3] = [Way::Layers, Way::Run, Way::ShieldLayer];

/// A deadline, a retry and a deadline for each attempt.
struct Stack {
    deadline: Duration,
    attempt_deadline: Duration,
    retry: Retry,
}

fn stack(retry: Builder) -> Stack {
    Stack {
        deadline: 300 * DAY,
        attempt_deadline: 300 * DAY,
        retry: retry.build().unwrap(),
    }
}

impl Stack {
    fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self.attempt_deadline = self.attempt_deadline.min(deadline);
        self
    }

    fn each_within(mut self, deadline: Duration) -> Self {
        self.attempt_deadline = deadline;
        self
    }

    async fn call(&self, way: Way, dependency: &Dependency) -> Result<u32, Failure> {
        let shield = Shield::builder(Frank)
            .deadline(self.deadline)
            .attempt_deadline(self.attempt_deadline)
            .retry(self.retry.clone())
            .without_breaker()
            .build()
            .unwrap();
        match way {
            Way::Layers => {
                let service = ServiceBuilder::new()
                    .layer(Deadline::new(self.deadline).unwrap().layer())
                    .layer(self.retry.layer(Frank))
                    .layer(Deadline::new(self.attempt_deadline).unwrap().layer())
                    .service(dependency.service());
                service.oneshot(()).await
            }
            Way::Run => shield.run(|| dependency.call()).await,
            Way::ShieldLayer => shield.layer(dependency.service()).oneshot(()).await,
        }
    }
}

/// Retries without jitter, 100 ms apart, whose number no budget bounds.
fn plain() -> Builder {
    Retry::builder()
        .backoff(Backoff::fixed(100 * MS).jitter(Jitter::None))
        .without_budget()
}

/// What a retry reported.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<Report>>>);

#[derive(Clone, Debug, PartialEq)]
enum Report {
    Retry(u32, Kind, Duration),
    GaveUp(u32, Kind, GaveUp),
}

impl Reports {
    fn take(&self) -> Vec<Report> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// The delay before each attempt of that number.
    fn delays(&self, attempt: u32) -> Vec<Duration> {
        let reports = self.0.lock().unwrap();
        let delays = reports.iter().filter_map(|report| match report {
            Report::Retry(failed, _, delay) if failed + 1 == attempt => Some(*delay),
            _ => None,
        });
        delays.collect()
    }
}

impl Observer for Reports {
    fn on_event(&self, event: &Event<'_>) {
        let report = match *event {
            Event::Retry {
                attempt,
                kind,
                delay,
                ..
            } => Report::Retry(attempt, kind, delay),
            Event::GaveUp {
                attempts,
                kind,
                reason,
                ..
            } => Report::GaveUp(attempts, kind, reason),
            _ => return,
        };
        self.0.lock().unwrap().push(report);
    }
}

/// How many of `delays` fall into the fullest 5 ms.
fn fullest_5_ms(delays: &[Duration]) -> usize {
    let within = |start: &Duration| {
        let window = *start..*start + 5 * MS;
        delays.iter().filter(|delay| window.contains(delay)).count()
    };
    delays.iter().map(within).max().unwrap()
}

// R1
#[tokio::test(start_paused = true)]
async fn each_call_has_a_jitter_of_its_own() {
    for way in WAYS {
        let reports = Reports::default();
        let stack = stack(Retry::builder().without_budget().observer(reports.clone()));
        for _ in 0..50 {
            let dependency = Dependency::new([fail(Kind::Unavailable), Step::Succeed]);
            stack.call(way, &dependency).await.unwrap();
        }
        let delays = reports.delays(2);
        let different: HashSet<_> = delays.iter().collect();
        assert_eq!((delays.len(), different.len()), (50, 50), "{way:?}");
    }
}

// R1
#[tokio::test(start_paused = true)]
async fn clones_of_one_service_do_not_share_their_jitter() {
    let reports = Reports::default();
    let retry = Retry::builder().without_budget().observer(reports.clone());
    let service = retry
        .build()
        .unwrap()
        .layer(Frank)
        .layer(Dependency::failing(Kind::Unavailable).service());
    for _ in 0..50 {
        service.clone().oneshot(()).await.unwrap_err();
    }
    let different: HashSet<_> = reports.delays(2).into_iter().collect();
    assert_eq!(different.len(), 50);
}

// R2
#[tokio::test(start_paused = true)]
async fn a_crowd_that_failed_together_does_not_come_back_together() {
    for way in WAYS {
        let reports = Reports::default();
        let stack = stack(Retry::builder().without_budget().observer(reports.clone()));
        for _ in 0..500 {
            let dependency = Dependency::failing(Kind::Unavailable);
            stack.call(way, &dependency).await.unwrap_err();
        }
        let delays = reports.delays(2);
        assert_eq!(delays.len(), 500);
        // An even spread over 50 ms is a tenth.
        let together = fullest_5_ms(&delays);
        assert!(together < 100, "{way:?}: {together} of 500 within 5 ms");
    }
}

// R3
#[tokio::test(start_paused = true)]
async fn late_retries_are_spread_although_their_delay_is_capped() {
    let jitters = [Jitter::Full, Jitter::Equal, Jitter::Decorrelated];
    for (way, jitter) in WAYS.into_iter().zip(jitters) {
        let reports = Reports::default();
        let retry = Retry::builder()
            .attempts(12)
            .backoff(Backoff::exponential(MS, 100 * MS).jitter(jitter))
            .without_budget()
            .observer(reports.clone());
        let stack = stack(retry);
        for _ in 0..200 {
            let dependency = Dependency::failing(Kind::Unavailable);
            stack.call(way, &dependency).await.unwrap_err();
        }
        let delays = reports.delays(12);
        assert_eq!(delays.len(), 200);
        let together = fullest_5_ms(&delays);
        assert!(
            together < 70,
            "{way:?}, {jitter:?}: {together} of 200 within 5 ms"
        );
        assert!(delays.iter().all(|delay| *delay <= 100 * MS), "{jitter:?}");
    }
}

// R4
#[tokio::test(start_paused = true)]
async fn where_the_next_attempt_cannot_start_before_the_deadline_the_error_comes_at_once() {
    for way in WAYS {
        // At 0, 100 and 200 ms; the next would start at the deadline itself.
        let reports = Reports::default();
        let retry = plain().attempts(9).observer(reports.clone());
        let stack = stack(retry).within(300 * MS);
        let dependency = Dependency::failing(Kind::Unavailable);
        let start = Instant::now();
        let error = stack.call(way, &dependency).await.unwrap_err();
        assert_eq!(
            error,
            Failure::Answer(3, Kind::Unavailable.into()),
            "{way:?}"
        );
        assert_eq!(start.elapsed(), 200 * MS, "{way:?}");
        let last = reports.take().pop();
        let expected = Report::GaveUp(3, Kind::Unavailable, GaveUp::Deadline);
        assert_eq!(last, Some(expected), "{way:?}");
    }
}

// R4: the task can be woken late, by a runtime that is busy.
#[tokio::test(start_paused = true)]
async fn a_pause_that_ends_only_after_the_deadline_is_followed_by_no_attempt() {
    for way in WAYS {
        let stack = stack(plain()).within(150 * MS);
        let dependency = Dependency::failing(Kind::Unavailable);
        let mut call = task::spawn(stack.call(way, &dependency));
        assert_pending!(call.poll());
        advance(200 * MS).await;
        let error = assert_ready!(call.poll()).unwrap_err();
        assert_eq!(
            error,
            Failure::Answer(1, Kind::Unavailable.into()),
            "{way:?}"
        );
        assert_eq!(dependency.calls(), 1, "{way:?}");
    }
}

// R5
#[tokio::test(start_paused = true)]
async fn a_hint_of_a_day_is_believed_for_no_longer_than_max_hint() {
    for way in WAYS {
        let hint = Verdict::from(Kind::Overloaded).retry_after(DAY);
        let dependency = Dependency::new([Step::Fail(hint), Step::Succeed]);
        let plain = || plain().on(Kind::Overloaded, 2, Backoff::fixed(Duration::ZERO));
        let answer = stack(plain()).call(way, &dependency).await;
        assert_eq!(answer, Ok(2));
        assert_eq!(dependency.pauses(), [30 * SECOND], "{way:?}");

        let dependency = Dependency::new([Step::Fail(hint), Step::Succeed]);
        let shorter = stack(plain().max_hint(7 * SECOND));
        shorter.call(way, &dependency).await.unwrap();
        assert_eq!(dependency.pauses(), [7 * SECOND], "{way:?}");
    }
}

// R5
#[tokio::test(start_paused = true)]
async fn a_hint_beyond_the_deadline_gives_the_error_at_once() {
    for way in WAYS {
        let hint = Verdict::from(Kind::Overloaded).retry_after(12 * SECOND);
        let dependency = Dependency::new([Step::Fail(hint), Step::Succeed]);
        let start = Instant::now();
        let error = stack(plain())
            .within(10 * SECOND)
            .call(way, &dependency)
            .await;
        assert_eq!(error, Err(Failure::Answer(1, hint)), "{way:?}");
        assert_eq!(start.elapsed(), Duration::ZERO, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_comes_on_top_of_the_delay_that_spreads_the_crowd() {
    for way in WAYS {
        for (hint, expected) in [(40 * MS, 140 * MS), (400 * MS, 500 * MS)] {
            let verdict = Verdict::from(Kind::Unavailable).retry_after(hint);
            let dependency = Dependency::new([Step::Fail(verdict), Step::Succeed]);
            stack(plain()).call(way, &dependency).await.unwrap();
            assert_eq!(dependency.pauses(), [expected], "{way:?}");
        }
    }
}

/// How many attempts so many failing calls make.
async fn attempts_of(calls: u32, way: Way, stack: &Stack) -> u32 {
    let dependency = Dependency::failing(Kind::Unavailable);
    for _ in 0..calls {
        stack.call(way, &dependency).await.unwrap_err();
    }
    dependency.calls()
}

async fn succeed(calls: u32, way: Way, stack: &Stack) {
    let dependency = Dependency::new([Step::Succeed]);
    for _ in 0..calls {
        stack.call(way, &dependency).await.unwrap();
    }
}

/// One retry for each failure, without a pause, so that no time passes; it lives on `budget`.
fn living_on(budget: &Budget) -> Builder {
    Retry::builder()
        .attempts(2)
        .backoff(Backoff::fixed(Duration::ZERO))
        .budget(budget)
}

// R6
#[tokio::test(start_paused = true)]
async fn a_ratio_of_a_fifth_pays_for_one_retry_in_five_successes_and_no_more() {
    for way in WAYS {
        let budget = Budget::builder().ratio(0.2).floor(0.0, 0).build().unwrap();
        let stack = stack(living_on(&budget));
        assert_eq!(
            attempts_of(100, way, &stack).await,
            100,
            "{way:?}: nothing is saved"
        );
        succeed(104, way, &stack).await;
        // 20.8 retries are paid for.
        assert_eq!(attempts_of(100, way, &stack).await, 120, "{way:?}");
        assert_eq!(
            attempts_of(100, way, &stack).await,
            100,
            "{way:?}: all is spent"
        );
    }
}

// R7
#[tokio::test(start_paused = true)]
async fn only_successes_pay_into_the_budget_and_a_tenth_of_them_by_default() {
    for way in WAYS {
        let stack = stack(living_on(&Budget::default()));
        // The burst is 5. Failures, and calls that are not repeated, pay nothing.
        assert_eq!(attempts_of(1_000, way, &stack).await, 1_005, "{way:?}");
        let invalid = Dependency::failing(Kind::Invalid);
        for _ in 0..1_000 {
            stack.call(way, &invalid).await.unwrap_err();
        }
        assert_eq!(attempts_of(1_000, way, &stack).await, 1_000, "{way:?}");
        succeed(1_000, way, &stack).await;
        assert_eq!(attempts_of(1_000, way, &stack).await, 1_100, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_pays_for_three_seconds() {
    for way in WAYS {
        let budget = Budget::builder().floor(0.0, 0).build().unwrap();
        let stack = stack(living_on(&budget));
        succeed(20, way, &stack).await;
        advance(2_600 * MS).await;
        assert_eq!(attempts_of(1, way, &stack).await, 2, "{way:?}");
        advance(400 * MS).await;
        assert_eq!(attempts_of(1, way, &stack).await, 1, "{way:?}");
    }
}

// R8
#[tokio::test(start_paused = true)]
async fn a_refusal_of_ours_is_neither_repeated_nor_charged() {
    let breaker = Breaker::default();
    breaker.force_open();
    let budget = Budget::builder().floor(0.0, 1).build().unwrap();
    let reports = Reports::default();
    let retry = living_on(&budget)
        .attempts(9)
        .idempotent(true)
        .observer(reports.clone())
        .build()
        .unwrap();
    let dependency = Dependency::new([Step::Succeed]);
    let shield = Shield::builder(Frank).retry(retry.clone());
    let shield = shield.breaker(&breaker).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(retry.layer(Frank))
        .layer(breaker.layer(Frank))
        .service(dependency.service());

    for _ in 0..100 {
        for error in [
            shield.run(|| dependency.call()).await.unwrap_err(),
            layers.clone().oneshot(()).await.unwrap_err(),
        ] {
            let refused = error.rejected();
            assert!(
                matches!(refused, Some(Rejected::CircuitOpen { .. })),
                "{error:?}"
            );
        }
    }
    assert_eq!(dependency.calls(), 0);
    assert_eq!(reports.take(), []);
    assert!(budget.withdraw(), "the budget is untouched");
    assert!(!budget.withdraw());
}

// R8
#[tokio::test(start_paused = true)]
async fn where_a_stack_further_in_refuses_a_later_attempt_the_answer_before_stands() {
    for way in WAYS {
        let dependency = Dependency::new([fail(Kind::Unavailable), Step::Refuse]);
        let answer = stack(plain()).call(way, &dependency).await;
        let first = Failure::Answer(1, Kind::Unavailable.into());
        assert_eq!(answer, Err(first), "{way:?}");
        assert_eq!(dependency.calls(), 2, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_we_refuse_a_later_attempt_the_answer_of_the_one_before_stands() {
    for layers in [true, false] {
        let breaker = Breaker::consecutive(2).open_for(DAY).build().unwrap();
        let retry = plain().attempts(9).build().unwrap();
        let dependency = Dependency::failing(Kind::Unavailable);
        let error = if layers {
            let service = ServiceBuilder::new()
                .layer(retry.layer(Frank))
                .layer(breaker.layer(Frank))
                .service(dependency.service());
            service.oneshot(()).await
        } else {
            let shield = Shield::builder(Frank).retry(retry).breaker(&breaker);
            let shield = shield.build().unwrap();
            shield.run(|| dependency.call()).await
        };
        // The second failure opens the circuit, which refuses the third attempt.
        let expected = Failure::Answer(2, Kind::Unavailable.into());
        assert_eq!(error, Err(expected));
        assert_eq!(dependency.calls(), 2);
    }
}

// R8: an attempt that was sent and ran out of time is no refusal, but ambiguous.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_ran_out_of_time_is_repeated_only_if_that_does_no_harm() {
    for way in WAYS {
        for (idempotent, calls) in [(false, 1), (true, 2)] {
            let stack = stack(plain().idempotent(idempotent)).each_within(SECOND);
            let dependency = Dependency::new([Step::Hang, Step::Succeed]);
            let answer = stack.call(way, &dependency).await;
            let cut_off = Failure::Rejected(Rejected::DeadlineExceeded { sent: true });
            let expected = if idempotent { Ok(2) } else { Err(cut_off) };
            assert_eq!(answer, expected, "{way:?}");
            assert_eq!(dependency.calls(), calls, "{way:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_that_was_cut_off_is_not_hidden_behind_the_answer_before() {
    for way in WAYS {
        let stack = stack(plain()).each_within(SECOND);
        let dependency = Dependency::new([fail(Kind::Unavailable), Step::Hang]);
        let cut_off = Failure::Rejected(Rejected::DeadlineExceeded { sent: true });
        assert_eq!(
            stack.call(way, &dependency).await,
            Err(cut_off),
            "{way:?}: it may have acted"
        );
    }
}

// R9
#[tokio::test(start_paused = true)]
async fn each_attempt_readies_the_service_that_it_calls() {
    let retry = plain().attempts(5).build().unwrap();
    let shield = Shield::builder(Frank).retry(retry.clone());
    let shield = shield.without_breaker().build().unwrap();

    // Both of them panic when they are called without having been readied.
    let dependency = Dependency::failing(Kind::Unavailable);
    let limited = ConcurrencyLimit::new(dependency.service(), 1);
    let mut layers = retry.layer(Frank).layer(limited.clone());
    layers.call(()).await.unwrap_err();
    layers.call(()).await.unwrap_err();
    let mut shielded = shield.layer(limited);
    shielded.call(()).await.unwrap_err();
    shielded.call(()).await.unwrap_err();
    assert_eq!(dependency.calls(), 20);

    let dependency = Dependency::failing(Kind::Unavailable);
    let erased = dependency.service().map_err(tower::BoxError::from);
    let buffered = Buffer::new(erased, 1).map_err(|error: tower::BoxError| {
        let failure = error.downcast_ref::<Failure>();
        failure.expect("the buffer hands the error on").clone()
    });
    let mut layers = retry.layer(Frank).layer(buffered.clone());
    layers.call(()).await.unwrap_err();
    let mut shielded = shield.layer(buffered);
    shielded.call(()).await.unwrap_err();
    assert_eq!(dependency.calls(), 10);
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failure {}

/// A request that knows how often it was cloned.
#[derive(Debug, Default)]
struct Counted(Arc<AtomicU32>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

/// How often a request is cloned for as many failing attempts as `retry` makes, as a layer and as a shield.
async fn clones(retry: Builder, kind: Kind) -> [(u32, u32); 2] {
    let retry = retry.build().unwrap();
    let attempts = Arc::new(AtomicU32::new(0));
    let service = {
        let attempts = attempts.clone();
        service_fn(move |_: Counted| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
            future::ready(Err::<(), _>(Failure::Answer(attempt, kind.into())))
        })
    };
    let clones = Arc::new(AtomicU32::new(0));
    let layer = retry.layer(Frank).layer(service.clone());
    layer.oneshot(Counted(clones.clone())).await.unwrap_err();
    let layer = (
        attempts.swap(0, Ordering::Relaxed),
        clones.swap(0, Ordering::Relaxed),
    );
    let shield = Shield::builder(Frank).retry(retry);
    let shield = shield.without_breaker().build().unwrap();
    let request = Counted(clones.clone());
    shield.layer(service).oneshot(request).await.unwrap_err();
    let shield = (
        attempts.load(Ordering::Relaxed),
        clones.load(Ordering::Relaxed),
    );
    [layer, shield]
}

// R10
#[tokio::test(start_paused = true)]
async fn the_last_possible_attempt_moves_the_request() {
    let three = plain().never(Kind::Conflict);
    assert_eq!(clones(three, Kind::Unavailable).await, [(3, 2); 2]);
    let eight = plain();
    assert_eq!(clones(eight, Kind::Conflict).await, [(8, 7); 2]);
}

// R10
#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_repeated_is_never_cloned() {
    for kind in [Kind::Unavailable, Kind::Conflict] {
        assert_eq!(clones(plain().attempts(1), kind).await, [(1, 0); 2]);
    }
    let without = Shield::builder(Frank)
        .without_retry()
        .without_breaker()
        .build()
        .unwrap();
    let clones = Arc::new(AtomicU32::new(0));
    let service = service_fn(async |_: Counted| Ok::<_, Failure>(()));
    let request = Counted(clones.clone());
    without.layer(service).oneshot(request).await.unwrap();
    assert_eq!(clones.load(Ordering::Relaxed), 0);
}

// R11
#[tokio::test(start_paused = true)]
async fn what_may_have_acted_is_repeated_only_if_the_call_is_idempotent() {
    for way in WAYS {
        for (idempotent, calls) in [(false, 1), (true, 3)] {
            let dependency = Dependency::failing(Kind::Ambiguous);
            let stack = stack(plain().idempotent(idempotent));
            stack.call(way, &dependency).await.unwrap_err();
            assert_eq!(dependency.calls(), calls, "{way:?}");
        }
    }
}

// R11
#[tokio::test(start_paused = true)]
async fn a_plan_for_ambiguous_failures_does_not_make_the_call_idempotent() {
    for way in WAYS {
        let dependency = Dependency::failing(Kind::Ambiguous);
        let retry = plain().on(Kind::Ambiguous, 5, Backoff::fixed(MS));
        stack(retry).call(way, &dependency).await.unwrap_err();
        assert_eq!(dependency.calls(), 1, "{way:?}");
    }
}

// R12
#[tokio::test(start_paused = true)]
async fn a_budget_that_was_drained_refills() {
    for way in WAYS {
        let stack = stack(living_on(&Budget::default()));
        assert_eq!(attempts_of(100, way, &stack).await, 105, "{way:?}");
        assert_eq!(attempts_of(100, way, &stack).await, 100, "{way:?}");
        advance(3 * SECOND).await;
        assert_eq!(attempts_of(100, way, &stack).await, 103, "{way:?}");
        advance(DAY).await;
        assert_eq!(
            attempts_of(100, way, &stack).await,
            105,
            "{way:?}: no more than the burst"
        );
        succeed(100, way, &stack).await;
        assert_eq!(attempts_of(100, way, &stack).await, 110, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_gives_the_error_at_once_and_says_so() {
    for way in WAYS {
        let reports = Reports::default();
        let budget = Budget::builder().floor(0.0, 0).build().unwrap();
        let retry = plain().budget(&budget).observer(reports.clone());
        let start = Instant::now();
        let dependency = Dependency::failing(Kind::Unavailable);
        let error = stack(retry).call(way, &dependency).await;
        assert_eq!(error, Err(Failure::Answer(1, Kind::Unavailable.into())));
        assert_eq!(start.elapsed(), Duration::ZERO, "{way:?}");
        let expected = Report::GaveUp(1, Kind::Unavailable, GaveUp::Budget);
        assert_eq!(reports.take(), [expected], "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_that_share_a_budget_live_on_one_balance() {
    let budget = Budget::builder().floor(0.0, 0).build().unwrap();
    let reads = stack(living_on(&budget).idempotent(true));
    let writes = stack(living_on(&budget));
    succeed(20, Way::Layers, &reads).await;
    assert_eq!(attempts_of(1, Way::Run, &writes).await, 2);
    assert_eq!(attempts_of(9, Way::Layers, &reads).await, 10);
    assert_eq!(attempts_of(9, Way::Run, &writes).await, 9);
    for _ in 0..10 {
        budget.deposit();
    }
    assert!(budget.clone().withdraw());
    assert!(!budget.withdraw());
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_cannot_start_in_time_is_not_charged() {
    for way in WAYS {
        let budget = Budget::builder().floor(0.0, 1).build().unwrap();
        let late = stack(plain().budget(&budget)).within(50 * MS);
        assert_eq!(attempts_of(10, way, &late).await, 10, "{way:?}");
        assert!(budget.withdraw(), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_tried_eight_times_off_the_budget() {
    for way in WAYS {
        let reports = Reports::default();
        let budget = Budget::builder().floor(0.0, 1).build().unwrap();
        let retry = Retry::builder().budget(&budget).observer(reports.clone());
        let dependency = Dependency::failing(Kind::Conflict);
        stack(retry).call(way, &dependency).await.unwrap_err();
        assert_eq!(dependency.calls(), 8, "{way:?}");
        assert!(budget.withdraw(), "{way:?}");
        let expected = Report::GaveUp(8, Kind::Conflict, GaveUp::Attempts);
        assert_eq!(reports.take().pop(), Some(expected), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_each_kind_is_tried_as_often_as_the_table_says() {
    for way in WAYS {
        let stack = stack(Retry::builder().without_budget());
        for kind in Kind::ALL {
            let expected = match kind {
                Kind::Conflict => 8,
                Kind::Saturated | Kind::Overloaded | Kind::Unavailable => 3,
                _ => 1,
            };
            let dependency = Dependency::failing(kind);
            stack.call(way, &dependency).await.unwrap_err();
            assert_eq!(dependency.calls(), expected, "{way:?}, {kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_the_delays_are_those_of_the_table() {
    let table = [
        (Kind::Unavailable, 50 * MS, 2_000 * MS),
        (Kind::Saturated, 250 * MS, 5_000 * MS),
        (Kind::Overloaded, 250 * MS, 5_000 * MS),
        (Kind::Conflict, 5 * MS, 500 * MS),
    ];
    for (kind, first, cap) in table {
        let reports = Reports::default();
        let retry = Retry::builder()
            .attempts(9)
            .without_budget()
            .observer(reports.clone());
        let stack = stack(retry);
        for _ in 0..300 {
            let dependency = Dependency::failing(kind);
            stack.call(Way::Run, &dependency).await.unwrap_err();
        }
        for attempt in 2..=8 {
            let most = (first * 2_u32.pow(attempt - 2)).min(cap);
            let delays = reports.delays(attempt);
            let longest = delays.iter().max().unwrap();
            let shortest = delays.iter().min().unwrap();
            // By chance it could fail once in 10^13 runs.
            assert!(
                *longest <= most && *longest > most * 9 / 10,
                "{kind}: {longest:?} before attempt {attempt}"
            );
            assert!(
                *shortest < most / 10,
                "{kind}: {shortest:?} before attempt {attempt}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_can_be_given_attempts_and_delays_of_its_own() {
    for way in WAYS {
        let steps = Backoff::linear(10 * MS, 25 * MS).jitter(Jitter::None);
        let retry = || plain().on(Kind::TimedOut, 4, steps);
        let dependency = Dependency::failing(Kind::TimedOut);
        stack(retry()).call(way, &dependency).await.unwrap_err();
        assert_eq!(dependency.pauses(), [10 * MS, 20 * MS, 25 * MS], "{way:?}");
        let dependency = Dependency::failing(Kind::Unavailable);
        stack(retry()).call(way, &dependency).await.unwrap_err();
        assert_eq!(dependency.pauses(), [100 * MS; 2], "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_bounded_by_the_attempts_of_its_own_kind() {
    for way in WAYS {
        let quick = Backoff::fixed(MS).jitter(Jitter::None);
        let retry = plain()
            .attempts(2)
            .on(Kind::Conflict, 4, quick)
            .on(Kind::Saturated, 9, quick);
        let script = [Kind::Conflict, Kind::Conflict, Kind::Unavailable];
        let dependency = Dependency::new(script.map(fail));
        let error = stack(retry).call(way, &dependency).await.unwrap_err();
        // Two attempts may be made after an unavailable one, and this was the third.
        assert_eq!(error, Failure::Answer(3, Kind::Unavailable.into()));
        assert_eq!(dependency.pauses(), [MS; 2], "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_can_be_left_out() {
    for way in WAYS {
        for kind in [Kind::Unavailable, Kind::Conflict] {
            let dependency = Dependency::failing(kind);
            let retry = plain().idempotent(true).never(kind);
            stack(retry).call(way, &dependency).await.unwrap_err();
            assert_eq!(dependency.calls(), 1, "{way:?}, {kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_attempt_repeats_nothing() {
    for way in WAYS {
        for kind in Kind::ALL {
            let dependency = Dependency::failing(kind);
            let retry = plain().attempts(1).idempotent(true);
            stack(retry).call(way, &dependency).await.unwrap_err();
            assert_eq!(dependency.calls(), 1, "{way:?}, {kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_nothing_takes_no_time() {
    for way in WAYS {
        let retry = plain()
            .attempts(100)
            .backoff(Backoff::fixed(Duration::ZERO));
        let dependency = Dependency::failing(Kind::Unavailable);
        let start = Instant::now();
        stack(retry).call(way, &dependency).await.unwrap_err();
        assert_eq!(dependency.calls(), 100, "{way:?}");
        assert_eq!(start.elapsed(), Duration::ZERO, "{way:?}");
    }
}

/// Even numbers are no answer.
#[derive(Clone, Copy)]
struct Odd;

impl Classify<u32, Failure> for Odd {
    fn classify(&self, result: Result<&u32, &Failure>) -> Verdict {
        match result {
            Ok(n) if n % 2 == 0 => Kind::Unavailable.into(),
            _ => Kind::Success.into(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_means_a_failure_is_repeated_and_returned_at_the_end() {
    let retry = plain().build().unwrap();
    let shield = Shield::builder(Odd).retry(retry.clone());
    let shield = shield.without_breaker().build().unwrap();
    for (answers, expected) in [(vec![2, 4, 6, 8], 6), (vec![2, 3, 4, 6], 3)] {
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let next = {
            let answers = answers.clone();
            move |()| {
                let answer = answers.lock().unwrap().pop_front();
                future::ready(Ok::<_, Failure>(answer.expect("at most three attempts")))
            }
        };
        let rest = answers.lock().unwrap().clone();
        let service = service_fn(next.clone());
        let layer = retry.layer(Odd).layer(service.clone());
        assert_eq!(layer.oneshot(()).await, Ok(expected));
        answers.lock().unwrap().clone_from(&rest);
        assert_eq!(shield.run(|| next(())).await, Ok(expected));
        answers.lock().unwrap().clone_from(&rest);
        assert_eq!(shield.layer(service).oneshot(()).await, Ok(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_in_its_pause_makes_no_further_attempt() {
    for way in WAYS {
        let stack = stack(plain());
        let dependency = Dependency::failing(Kind::Unavailable);
        let mut call = task::spawn(stack.call(way, &dependency));
        assert_pending!(call.poll());
        drop(call);
        sleep(SECOND).await;
        assert_eq!(dependency.calls(), 1, "{way:?}");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let shrinking = Backoff::exponential(SECOND, MS);
    let refused = [
        (Retry::builder().attempts(0), "attempts"),
        (Retry::builder().attempts(1_001), "attempts"),
        (Retry::builder().backoff(shrinking), "backoff"),
        (Retry::builder().max_hint(400 * DAY), "max_hint"),
        (
            Retry::builder().on(Kind::Unavailable, 0, Backoff::fixed(MS)),
            "on attempts",
        ),
        (
            Retry::builder().on(Kind::Conflict, 3, shrinking),
            "on backoff",
        ),
        (
            Retry::builder().on(Kind::Success, 3, Backoff::fixed(MS)),
            "on",
        ),
        (
            Retry::builder().on(Kind::Ignored, 3, Backoff::fixed(MS)),
            "on",
        ),
    ];
    for (builder, setting) in refused {
        assert_eq!(builder.build().unwrap_err().setting(), setting);
    }
    let refused = [
        (Budget::builder().ratio(0.0), "ratio"),
        (Budget::builder().ratio(f64::NAN), "ratio"),
        (Budget::builder().ratio(1.1), "ratio"),
        (Budget::builder().window(Duration::ZERO), "window"),
        (Budget::builder().floor(f64::NAN, 1), "floor"),
        (Budget::builder().floor(-1.0, 1), "floor"),
        (Budget::builder().floor(1.0, u32::MAX), "floor burst"),
    ];
    for (builder, setting) in refused {
        assert_eq!(builder.build().unwrap_err().setting(), setting);
    }
}
