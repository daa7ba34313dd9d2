//! What tower asks of a service, and what we promise besides, of every layer over every kind of inner service.
//!
//! The layers stand in [`rows`], set as tightly as can be, so that whatever one of them leaks is missed at once.
#![cfg(feature = "tower")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    cell::Cell,
    collections::VecDeque,
    error, fmt,
    future::{Future, pending},
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

#[cfg(feature = "test-util")]
use steadfast::fault::{Fault, Faults};
use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, Deadline, Error, Event, Kind, Observer, Refusal,
    Rejected, Retry, Shield,
    breaker::{State, WhenOpen},
    by_error, deadline,
    error::WrapLayer,
    retry::{Backoff, Budget, Jitter},
};
use tokio::{
    task::yield_now,
    time::{Sleep, advance, sleep, timeout},
};
use tokio_test::task::{Spawn, spawn};
use tower::{
    BoxError, Layer, Service, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit,
    util::BoxCloneService,
};

type Boxed = BoxCloneService<u32, u32, BoxError>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A deadline around everything, longer than that of any row.
const OUTER: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_layer_is_ready_when_the_inner_service_is_not() {
    for case in cases() {
        let Ready {
            desk, mut service, ..
        } = case.set_up().await;
        for readiness in [Readiness::Blocked, Readiness::Fails] {
            desk.set_readiness(readiness);
            let polled = service.poll_ready(&mut Context::from_waker(Waker::noop()));
            assert!(
                matches!(polled, Poll::Ready(Ok(()))),
                "{case}: {readiness:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_idle_readied_clones_hold_nothing() {
    for case in cases() {
        let Ready { desk, service, .. } = case.set_up().await;
        let mut idle: Vec<_> = (0..100).map(|_| service.clone()).collect();
        for readiness in [Readiness::Blocked, Readiness::Ready] {
            desk.set_readiness(readiness);
            for clone in &mut idle {
                let ready = timeout(SECOND, clone.ready()).await;
                ready.expect("always ready").expect("never fails");
            }
        }
        assert_eq!(finish(service).await.unwrap(), 2, "{case}");
        assert_eq!(idle.len(), 100);
    }
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_readied_is_the_one_that_is_called() {
    for case in cases() {
        let Ready {
            row,
            desk,
            mut service,
        } = case.set_up().await;
        row.close_circuit();
        // The probe panics in `call` where it is not.
        for _ in 0..3 {
            let called = service.ready().await.expect("always ready").call(1);
            assert_eq!(soon(called).await.unwrap(), 2, "{case}");
        }
        desk.block();
        let mut call = spawn(service.ready().await.expect("always ready").call(1));
        assert!(progress(&mut call).await.is_pending(), "{case}");
        desk.unblock();
        assert_eq!(soon(call).await.unwrap(), 2, "{case}");
        assert_eq!(desk.calls(), 4, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_is_readied_before_every_attempt() {
    for case in cases() {
        let Ready { row, desk, service } = case.set_up().await;
        if !row.retries {
            continue;
        }
        row.close_circuit();
        desk.answer(Answer::Fails);
        assert_eq!(finish(service).await.unwrap(), 2, "{case}");
        assert_eq!(desk.calls(), 2, "{case}");
    }
}

#[test]
fn the_probe_panics_when_it_is_called_without_having_been_readied() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut readied = Probe::new(&Desk::default());
    assert!(readied.poll_ready(&mut cx).is_ready());
    let mut clone = readied.clone();
    let panics = |probe: &mut Probe| {
        let called = AssertUnwindSafe(|| drop(probe.call(1)));
        catch_unwind(called).is_err()
    };
    assert!(panics(&mut clone), "another instance was readied");
    assert!(!panics(&mut readied));
    assert!(panics(&mut readied), "called twice");
}

#[tokio::test(start_paused = true)]
async fn clones_share_circuit_and_slots() {
    fn breaker() -> Breaker {
        Breaker::consecutive(1).build().unwrap()
    }
    fn limiter() -> ConcurrencyLimiter {
        ConcurrencyLimiter::builder(1).queue(0).build().unwrap()
    }
    let layers: [(_, fn() -> Boxing, _, _); 4] = [
        (
            "breaker",
            || boxing(breaker().layer(classify())),
            Answer::Fails,
            "circuit open",
        ),
        (
            "limiter",
            || boxing(limiter().layer()),
            Answer::Hangs,
            "overloaded",
        ),
        (
            "shield's breaker",
            || {
                let shield = Shield::builder(classify()).breaker(&breaker());
                boxing(shield.without_retry().build().unwrap())
            },
            Answer::Fails,
            "circuit open",
        ),
        (
            "shield's limiter",
            || {
                boxing(
                    Shield::builder(classify())
                        .limiter(&limiter())
                        .build()
                        .unwrap(),
                )
            },
            Answer::Hangs,
            "overloaded",
        ),
    ];
    for (layer, make, answer, refusal) in layers {
        for inner in INNER {
            let desk = Desk::default();
            let one = make()((inner.make)(Probe::new(&desk)));
            let other = one.clone();
            desk.answer(answer);
            let mut first = spawn(one.oneshot(1));
            let _ = progress(&mut first).await;
            let error = finish(other).await.unwrap_err().to_string();
            assert!(
                error.starts_with(refusal),
                "{layer} over {}: {error}",
                inner.name
            );
            assert_eq!(desk.calls(), 1, "{layer} over {}", inner.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clones_share_the_retry_budget() {
    for case in cases() {
        let Ready { row, desk, service } = case.set_up().await;
        if !row.retries {
            continue;
        }
        row.close_circuit();
        for _ in 0..4 {
            desk.answer(Answer::Fails);
        }
        let clone = service.clone();
        finish(service).await.unwrap_err();
        assert_eq!(desk.calls(), 2, "{case}: the only repeat there is");
        finish(clone).await.unwrap_err();
        assert_eq!(desk.calls(), 3, "{case}: nothing is left for the clone");
    }
}

#[cfg(feature = "test-util")]
#[tokio::test(start_paused = true)]
async fn clones_share_the_script_of_faults() {
    for inner in INNER {
        let desk = Desk::default();
        let faults = faults([Fault::Fail(Kind::Broken)]);
        let one = faults.layer().layer((inner.make)(Probe::new(&desk)));
        let other = one.clone();
        assert!(finish(one).await.is_err(), "{}", inner.name);
        assert_eq!(finish(other).await.unwrap(), 2, "{}", inner.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_before_it_is_polled_gives_everything_back() {
    for case in cases() {
        let mut ready = case.set_up().await;
        drop(ready.begin());
        ready.has_everything_back(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_in_the_queue_gives_its_place_back() {
    for case in cases() {
        let mut ready = case.set_up().await;
        let Some(occupied) = ready.row.occupy() else {
            continue;
        };
        for _ in 0..3 {
            let mut call = ready.begin();
            assert!(progress(&mut call).await.is_pending(), "{case}: queued");
            assert_eq!(ready.desk.calls(), 0, "{case}");
        }
        drop(occupied);
        ready.has_everything_back(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_it_readies_gives_everything_back() {
    for case in cases() {
        let mut ready = case.set_up().await;
        ready.desk.block();
        let mut call = ready.begin();
        assert!(progress(&mut call).await.is_pending(), "{case}");
        assert_eq!(ready.desk.calls(), 0, "{case}");
        let holds_the_instance = case.inner.name != "buffer";
        ready.drop_within_its_deadline(call, holds_the_instance, &case);
        ready.desk.unblock();
        ready.has_everything_back(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_under_way_gives_everything_back() {
    for case in cases() {
        let mut ready = case.set_up().await;
        ready.desk.answer(Answer::Hangs);
        let mut call = ready.begin();
        assert!(progress(&mut call).await.is_pending(), "{case}");
        assert_eq!(ready.desk.calls(), 1, "{case}");
        ready.drop_within_its_deadline(call, true, &case);
        ready.has_everything_back(&case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_between_two_attempts_gives_everything_back() {
    for case in cases() {
        let mut ready = case.set_up().await;
        if !ready.row.retries {
            continue;
        }
        ready.row.close_circuit();
        ready.desk.answer(Answer::Fails);
        let mut call = ready.begin();
        assert!(progress(&mut call).await.is_pending(), "{case}");
        assert_eq!(ready.desk.calls(), 1, "{case}");
        drop(call);
        ready.has_everything_back(&case).await;
        assert_eq!(ready.desk.calls(), 2, "{case}: it was not repeated");
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_is_a_failure() {
    for case in cases() {
        let Ready { row, desk, service } = case.set_up().await;
        desk.set_readiness(Readiness::Fails);
        let result = finish(service).await;
        // A buffer whose service failed stays failed.
        let curable = case.inner.name != "buffer";
        if row.retries && curable {
            assert_eq!(result.unwrap(), 2, "{case}: it is repeated");
        } else {
            let error = result.unwrap_err();
            assert!(unwell(&*error).is_some(), "{case}: {error}");
        }
        if let Some((_, opened)) = &row.breaker {
            assert!(opened.load(Ordering::Relaxed) >= 2, "{case}: it counts");
        }
    }
}

#[test]
fn the_error_type_is_kept_and_everything_is_send() {
    every_layer::<io::Error>();
    every_layer::<BoxError>();
    every_layer::<Error<Unwell>>();
    every_layer::<Own>();
    wraps::<Unwell>();
    wraps::<std::convert::Infallible>();
}

#[test]
fn the_future_of_a_shield_is_send_when_the_calls_is() {
    fn send<F: Future<Output = Result<Cell<u32>, E>> + Send, E>(_: F) {}
    let shield = Shield::builder(by_error(|_: &io::Error| Kind::Broken))
        .build()
        .unwrap();
    let cell = Cell::new(1);
    send(shield.run(move || {
        let cell = cell.clone();
        async move {
            std::future::ready(()).await;
            io::Result::Ok(cell)
        }
    }));
    send(shield.run_wrapped(|| async { io::Result::Ok(Cell::new(1)) }));
}

/// Neither request, response, service nor future is `Sync`: being `Send` has to be enough.
fn every_layer<E: Refusal + Send + Sync + 'static>() {
    fn lawful<L, E>(layer: L)
    where
        L: Layer<BoxCloneService<Cell<u32>, Cell<u32>, E>> + Clone + Send + 'static,
        L::Service: Service<Cell<u32>, Response = Cell<u32>, Error = E> + Clone + Send + 'static,
        <L::Service as Service<Cell<u32>>>::Future: Send + 'static,
    {
        let inner = BoxCloneService::new(tower::service_fn(async |n| Ok::<_, E>(n)));
        let _service = layer.layer(inner);
    }
    let classify = by_error(|_: &E| Kind::Broken);
    lawful::<_, E>(Deadline::new(SECOND).unwrap().layer());
    lawful::<_, E>(Retry::default().layer(classify));
    lawful::<_, E>(Breaker::default().layer(classify));
    lawful::<_, E>(ConcurrencyLimiter::new(1).unwrap().layer());
    lawful::<_, E>(Shield::builder(classify).build().unwrap());
    #[cfg(feature = "test-util")]
    lawful::<_, E>(
        Faults::builder(|_| -> E { unreachable!() })
            .build()
            .unwrap()
            .layer(),
    );
}

fn wraps<E: 'static>() {
    fn lawful<S, E>(_: S)
    where
        S: Service<Cell<u32>, Response = Cell<u32>, Error = Error<E>> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
    }
    let inner = BoxCloneService::new(tower::service_fn(async |n: Cell<u32>| Ok::<_, E>(n)));
    lawful::<_, E>(WrapLayer.layer(inner));
}

/// A user's own error.
#[derive(Debug)]
struct Own;

impl From<Rejected> for Own {
    fn from(_: Rejected) -> Self {
        Self
    }
}

impl Refusal for Own {
    fn rejected(&self) -> Option<&Rejected> {
        None
    }
}

/// A layer over an inner service.
struct Case {
    make: fn() -> Row,
    layer: &'static str,
    inner: &'static Inner,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for make in rows() {
        for inner in INNER {
            let layer = make().name;
            cases.push(Case { make, layer, inner });
        }
    }
    assert!(cases.len() >= 7 * INNER.len());
    cases
}

impl Case {
    /// The circuit, where there is one, is ready for its one probe.
    async fn set_up(&self) -> Ready {
        let row = (self.make)();
        let desk = Desk::default();
        let service = (row.boxing)((self.inner.make)(Probe::new(&desk)));
        if let Some((breaker, _)) = &row.breaker {
            for _ in 0..FAILURES {
                breaker.admit().unwrap().settle(Kind::Unavailable);
            }
            assert_eq!(breaker.state(), State::Open);
            advance(OPEN_FOR).await;
        }
        Ready { row, desk, service }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}", self.layer, self.inner.name)
    }
}

struct Ready {
    row: Row,
    desk: Desk,
    service: Boxed,
}

type Call = Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;

impl Ready {
    /// One call, with a deadline around it.
    fn begin(&mut self) -> Spawn<Call> {
        let layer = Deadline::new(OUTER).unwrap().layer();
        let mut service = layer.layer(self.service.clone());
        let _ = service.poll_ready(&mut Context::from_waker(Waker::noop()));
        spawn(Box::pin(service.call(1)))
    }

    /// Whatever is dropped in the probe sees the deadline that it runs under.
    fn drop_within_its_deadline(&self, call: Spawn<Call>, something: bool, case: &Case) {
        self.desk.take_dropped();
        drop(call);
        let dropped = self.desk.take_dropped();
        assert!(!something || !dropped.is_empty(), "{case}: still there");
        let latest = tokio::time::Instant::now().into_std() + self.row.within;
        for deadline in dropped {
            let seen = deadline.expect("a deadline is around the drop");
            assert!(seen <= latest, "{case}: {:?} too late", seen - latest);
        }
        assert_eq!(deadline::current(), None, "{case}");
    }

    /// Slot, place, probe: with any of them missing the call would wait, or be refused.
    async fn has_everything_back(&self, case: &Case) {
        let called = finish(self.service.clone()).await;
        assert_eq!(called.unwrap_or_else(|e| panic!("{case}: {e}")), 2);
        if let Some(limiter) = &self.row.limiter {
            let stats = limiter.stats();
            assert_eq!((stats.in_flight, stats.waiting), (0, 0), "{case}");
        }
        if let Some((breaker, _)) = &self.row.breaker {
            assert_eq!(breaker.state(), State::Closed, "{case}");
        }
    }
}

/// One layer, or a stack of them, with the tightest settings.
struct Row {
    name: &'static str,
    boxing: Boxing,
    limiter: Option<ConcurrencyLimiter>,
    /// And how often it opened.
    breaker: Option<(Breaker, Arc<Opened>)>,
    /// Two attempts, and a budget for one repeat.
    retries: bool,
    /// The deadline of an attempt.
    within: Duration,
}

type Boxing = Box<dyn Fn(Boxed) -> Boxed>;

const FAILURES: u32 = 5;
const OPEN_FOR: Duration = Duration::from_millis(100);
const OWN: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(3);

fn rows() -> Vec<fn() -> Row> {
    vec![
        || Row {
            within: OWN,
            ..Row::new("deadline", Deadline::new(OWN).unwrap().layer())
        },
        || Row {
            retries: true,
            ..Row::new("retry", retry().layer(classify()))
        },
        || {
            let (breaker, opened) = breaker();
            let row = Row::new("breaker", breaker.layer(classify()));
            Row {
                breaker: Some((breaker, opened)),
                ..row
            }
        },
        || {
            let limiter = limiter();
            Row {
                limiter: Some(limiter.clone()),
                ..Row::new("limiter", limiter.layer())
            }
        },
        || {
            let (breaker, opened) = breaker();
            let limiter = limiter();
            let shield = Shield::builder(classify())
                .deadline(OWN)
                .attempt_deadline(ATTEMPT)
                .retry(retry())
                .breaker(&breaker)
                .limiter(&limiter)
                .build()
                .unwrap();
            Row {
                breaker: Some((breaker, opened)),
                limiter: Some(limiter),
                retries: true,
                within: ATTEMPT,
                ..Row::new("shield", shield)
            }
        },
        || {
            let (breaker, opened) = breaker();
            let limiter = limiter();
            let layers = (
                Deadline::new(OWN).unwrap().layer(),
                retry().layer(classify()),
                breaker.layer(classify()),
                limiter.layer(),
                Deadline::new(ATTEMPT).unwrap().layer(),
            );
            Row {
                breaker: Some((breaker, opened)),
                limiter: Some(limiter),
                retries: true,
                within: ATTEMPT,
                ..Row::new("stack", layers)
            }
        },
        || {
            let limiter = limiter();
            let layer = limiter.layer();
            let boxing = move |inner| {
                let flat = |error| match error {
                    Error::Inner(error) => error,
                    Error::Rejected(rejected) => rejected.into(),
                };
                let wrapped = layer.layer(WrapLayer.layer(inner));
                BoxCloneService::new(wrapped.map_err(flat))
            };
            Row {
                limiter: Some(limiter),
                boxing: Box::new(boxing),
                ..Row::new("limiter over wrap", WithoutLayer)
            }
        },
        #[cfg(feature = "test-util")]
        || Row::new("fault", faults([]).layer()),
        #[cfg(feature = "test-util")]
        || Row::new("latency", faults([Fault::Latency(MS); 8]).layer()),
        #[cfg(feature = "test-util")]
        || Row::new("late answer", faults([Fault::LatencyAfter(MS); 8]).layer()),
    ]
}

impl Row {
    fn new<L>(name: &'static str, layer: L) -> Self
    where
        L: Layer<Boxed> + 'static,
        L::Service: Service<u32, Response = u32, Error = BoxError> + Clone + Send + 'static,
        <L::Service as Service<u32>>::Future: Send + 'static,
    {
        Self {
            name,
            boxing: boxing(layer),
            limiter: None,
            breaker: None,
            retries: false,
            within: OUTER,
        }
    }

    /// From here on a single failure does not open it.
    fn close_circuit(&self) {
        if let Some((breaker, _)) = &self.breaker {
            breaker.reset();
        }
    }

    /// Takes the only slot, or else the only probe, so that calls have to queue; `None` where nothing queues.
    fn occupy(&self) -> Option<Box<dyn std::any::Any>> {
        if let Some(limiter) = &self.limiter {
            Some(Box::new(limiter.try_acquire().expect("a free slot")))
        } else if let Some((breaker, _)) = &self.breaker {
            Some(Box::new(breaker.admit().expect("a free probe")))
        } else {
            None
        }
    }
}

fn boxing<L>(layer: L) -> Boxing
where
    L: Layer<Boxed> + 'static,
    L::Service: Service<u32, Response = u32, Error = BoxError> + Clone + Send + 'static,
    <L::Service as Service<u32>>::Future: Send + 'static,
{
    Box::new(move |inner| BoxCloneService::new(layer.layer(inner)))
}

/// Leaves the service as it is.
struct WithoutLayer;

impl<S> Layer<S> for WithoutLayer {
    type Service = S;

    fn layer(&self, inner: S) -> S {
        inner
    }
}

fn retry() -> Retry {
    let budget = Budget::builder().floor(0.0, 1).build().unwrap();
    Retry::builder()
        .attempts(2)
        .backoff(Backoff::fixed(400 * MS).jitter(Jitter::None))
        .budget(&budget)
        .build()
        .unwrap()
}

fn breaker() -> (Breaker, Arc<Opened>) {
    let opened = Arc::new(Opened::default());
    let breaker = Breaker::consecutive(FAILURES)
        .open_for(OPEN_FOR)
        .when_open(WhenOpen::Wait { queue: 1 })
        .observer(opened.clone())
        .build();
    (breaker.unwrap(), opened)
}

fn limiter() -> ConcurrencyLimiter {
    ConcurrencyLimiter::builder(1).queue(1).build().unwrap()
}

#[cfg(feature = "test-util")]
fn faults(script: impl IntoIterator<Item = Fault>) -> Faults<BoxError> {
    let fail = |kind| Unwell(kind).into();
    Faults::builder(fail).script(script).build().unwrap()
}

fn classify() -> impl Classify<u32, BoxError> + Copy + Send + Sync + 'static {
    by_error(|error: &BoxError| unwell(&**error).map_or(Kind::Broken, |unwell| unwell.0))
}

/// Counts how often a circuit opened.
#[derive(Default)]
struct Opened(AtomicU32);

impl Opened {
    fn load(&self, ordering: Ordering) -> u32 {
        self.0.load(ordering)
    }
}

impl Observer for Opened {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Transition {
            to: State::Open, ..
        } = event
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A kind of service that may stand inside.
struct Inner {
    name: &'static str,
    make: fn(Probe) -> Boxed,
}

const INNER: &[Inner] = &[
    Inner {
        name: "boxed",
        make: BoxCloneService::new,
    },
    Inner {
        name: "concurrency limit",
        make: |probe| BoxCloneService::new(ConcurrencyLimit::new(probe, 1)),
    },
    Inner {
        name: "buffer",
        make: |probe| BoxCloneService::new(Buffer::new(probe, 1)),
    },
    Inner {
        name: "slow to get ready",
        make: |probe| {
            let readied_after = 20 * MS;
            BoxCloneService::new(Probe {
                readied_after,
                ..probe
            })
        },
    },
];

/// An inner service that panics when it is called without having been readied; its [`Desk`] tells it what to do.
struct Probe {
    desk: Desk,
    /// Only this instance is, and only for one call.
    readied: bool,
    readied_after: Duration,
    readies: Option<Pin<Box<Sleep>>>,
    mark: Option<Mark>,
}

impl Probe {
    fn new(desk: &Desk) -> Self {
        Self {
            desk: desk.clone(),
            readied: false,
            readied_after: Duration::ZERO,
            readies: None,
            mark: None,
        }
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self {
            readied_after: self.readied_after,
            ..Self::new(&self.desk)
        }
    }
}

impl Service<u32> for Probe {
    type Response = u32;
    type Error = BoxError;
    type Future = Call;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.mark.get_or_insert_with(|| Mark(self.desk.clone()));
        let mut state = self.desk.0.lock().unwrap();
        match state.readiness {
            Readiness::Ready => {}
            Readiness::Blocked => {
                state.wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            Readiness::Fails => {
                state.readiness = Readiness::Ready;
                return Poll::Ready(Err(Unwell(Kind::Unavailable).into()));
            }
        }
        drop(state);
        if self.readied_after > Duration::ZERO && !self.readied {
            let after = self.readied_after;
            let readies = self.readies.get_or_insert_with(|| Box::pin(sleep(after)));
            ready!(readies.as_mut().poll(cx));
            self.readies = None;
        }
        self.readied = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Call {
        let readied = mem::take(&mut self.readied);
        assert!(readied, "this instance was not readied for this call");
        let mark = self.mark.take();
        let answer = {
            let mut state = self.desk.0.lock().unwrap();
            state.calls += 1;
            state.answers.pop_front()
        };
        Box::pin(async move {
            let _mark = mark;
            match answer {
                None => Ok(request + 1),
                Some(Answer::Fails) => Err(Unwell(Kind::Unavailable).into()),
                Some(Answer::Hangs) => pending().await,
            }
        })
    }
}

/// What a probe and all its clones do, and what was done to them.
#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    readiness: Readiness,
    wakers: Vec<Waker>,
    answers: VecDeque<Answer>,
    calls: u32,
    dropped: Vec<Option<Instant>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Readiness {
    #[default]
    Ready,
    Blocked,
    /// Once.
    Fails,
}

#[derive(Clone, Copy)]
enum Answer {
    Fails,
    Hangs,
}

impl Desk {
    fn set_readiness(&self, readiness: Readiness) {
        let wakers = {
            let mut book = self.0.lock().unwrap();
            book.readiness = readiness;
            mem::take(&mut book.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn block(&self) {
        self.set_readiness(Readiness::Blocked);
    }

    fn unblock(&self) {
        self.set_readiness(Readiness::Ready);
    }

    /// The next call's; after the last of them, calls succeed.
    fn answer(&self, answer: Answer) {
        self.0.lock().unwrap().answers.push_back(answer);
    }

    fn calls(&self) -> u32 {
        self.0.lock().unwrap().calls
    }

    fn take_dropped(&self) -> Vec<Option<Instant>> {
        mem::take(&mut self.0.lock().unwrap().dropped)
    }
}

/// Notes the deadline that surrounds its drop.
struct Mark(Desk);

impl Drop for Mark {
    fn drop(&mut self) {
        let deadline = deadline::current();
        self.0.0.lock().unwrap().dropped.push(deadline);
    }
}

/// The probe's own error.
#[derive(Clone, Copy, Debug)]
struct Unwell(Kind);

impl fmt::Display for Unwell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unwell: {}", self.0)
    }
}

impl error::Error for Unwell {}

fn unwell<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a Unwell> {
    match error.downcast_ref() {
        Some(unwell) => Some(unwell),
        None => unwell(error.source()?),
    }
}

/// Makes one call; what hangs is an error.
async fn finish<S>(service: S) -> Result<u32, BoxError>
where
    S: Service<u32, Response = u32, Error = BoxError>,
{
    soon(service.oneshot(1)).await
}

async fn soon(call: impl Future<Output = Result<u32, BoxError>>) -> Result<u32, BoxError> {
    timeout(SECOND, call).await?
}

/// Polls until nothing more happens by itself: whatever runs elsewhere has run, and whatever is slow to get ready is.
async fn progress<F: Future>(call: &mut Spawn<F>) -> Poll<F::Output> {
    for _ in 0..3 {
        if let Poll::Ready(output) = call.poll() {
            return Poll::Ready(output);
        }
        for _ in 0..8 {
            yield_now().await;
        }
        advance(20 * MS).await;
    }
    call.poll()
}
