//! The breaker by hand, as a layer and in a shield, on tokio's paused clock. `B1` to `B20` are faults of other libraries.
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

#[path = "support/blocked.rs"]
mod blocked;

use std::{
    future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use blocked::without_blocking;
use futures_util::{FutureExt, future::BoxFuture};
use proptest::prelude::*;
use steadfast::{
    Breaker, ByError, ConcurrencyLimiter, Deadline, Event, Kind, Observer, Refusal, Rejected,
    Shield, Verdict,
    breaker::{Builder, Permit, State, WhenOpen},
    by_error, deadline,
    event::Cause,
};
use tokio::time::{self, advance, sleep, timeout};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, util::BoxCloneService};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The attempt deadline of every stack.
const ATTEMPT: Duration = Duration::from_secs(3);

/// An error of the dependency's, or a refusal of ours.
#[derive(Clone, Debug, PartialEq)]
enum Failure {
    Rejected(Rejected),
    Kind(Kind),
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
            Self::Kind(_) => None,
        }
    }
}

fn classify() -> ByError<fn(&Failure) -> Kind> {
    by_error(|failure| match failure {
        Failure::Kind(kind) => *kind,
        Failure::Rejected(_) => unreachable!("a refusal is recognised before"),
    })
}

/// What the dependency does with a call.
#[derive(Clone, Copy, Debug)]
enum Do {
    Answer,
    Take(Duration),
    Fail(Kind),
    Hang,
    PanicInCall,
    PanicInPoll,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Readiness {
    Ready,
    Never,
    Failed,
}

/// What is called; clones share its counts.
#[derive(Clone)]
struct Dependency {
    calls: Arc<AtomicU32>,
    /// How often it was asked whether it is ready.
    asked: Arc<AtomicU32>,
    readiness: Readiness,
}

impl Dependency {
    fn new() -> Self {
        Self::that_is(Readiness::Ready)
    }

    fn that_is(readiness: Readiness) -> Self {
        Self {
            calls: Arc::default(),
            asked: Arc::default(),
            readiness,
        }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Service<Do> for Dependency {
    type Response = ();
    type Error = Failure;
    type Future = BoxFuture<'static, Result<(), Failure>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.readiness {
            Readiness::Ready => Poll::Ready(Ok(())),
            Readiness::Never => Poll::Pending,
            Readiness::Failed => Poll::Ready(Err(Failure::Kind(Kind::Unavailable))),
        }
    }

    fn call(&mut self, request: Do) -> Self::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match request {
            Do::PanicInCall => panic!("the dependency panics in call"),
            Do::PanicInPoll => async { panic!("the dependency panics in poll") }.boxed(),
            Do::Answer => future::ready(Ok(())).boxed(),
            Do::Take(time) => sleep(time).map(Ok).boxed(),
            Do::Fail(kind) => future::ready(Err(Failure::Kind(kind))).boxed(),
            Do::Hang => future::pending().boxed(),
        }
    }
}

/// The ways to put a breaker around calls.
#[derive(Clone, Copy, Debug)]
enum Stack {
    /// The layer alone.
    Bare,
    /// The layer, with an attempt deadline inside: that one is always ready.
    Layer,
    Shield,
}

type Stacked = BoxCloneService<Do, (), Failure>;

impl Stack {
    const ALL: [Self; 3] = [Self::Bare, Self::Layer, Self::Shield];
    /// Those that end an attempt by themselves.
    const ENDING: [Self; 2] = [Self::Layer, Self::Shield];

    fn over(self, breaker: &Breaker, dependency: &Dependency) -> Stacked {
        let dependency = dependency.clone();
        match self {
            Self::Bare => BoxCloneService::new(breaker.layer(classify()).layer(dependency)),
            Self::Layer => {
                let inner = Deadline::new(ATTEMPT).unwrap().layer().layer(dependency);
                BoxCloneService::new(breaker.layer(classify()).layer(inner))
            }
            Self::Shield => {
                let shield = Shield::builder(classify())
                    .deadline(3_600 * SECOND)
                    .attempt_deadline(ATTEMPT)
                    .without_retry()
                    .breaker(breaker)
                    .build();
                BoxCloneService::new(shield.unwrap().layer(dependency))
            }
        }
    }
}

async fn call(service: &Stacked, request: Do) -> Result<(), Failure> {
    service.clone().oneshot(request).await
}

/// In a task of its own, so that a panic ends only that.
fn spawn(service: &Stacked, request: Do) -> tokio::task::JoinHandle<Result<(), Failure>> {
    tokio::spawn(service.clone().oneshot(request))
}

/// A breaker that the first failure opens.
fn brittle() -> Builder {
    Breaker::consecutive(1).attempt_deadline(ATTEMPT)
}

fn trip(breaker: &Breaker) {
    breaker.admit().unwrap().settle(Kind::Unavailable);
    assert_eq!(breaker.state(), State::Open);
}

/// A breaker that was opened and whose open time is over; nobody has called since.
async fn ripe(builder: Builder) -> Breaker {
    let breaker = builder.build().unwrap();
    trip(&breaker);
    let again = refusal(&breaker);
    advance(again + MS).await;
    breaker
}

fn refusal(breaker: &Breaker) -> Duration {
    match breaker.admit().unwrap_err() {
        Rejected::CircuitOpen { retry_after } => retry_after,
        other => panic!("{other}"),
    }
}

fn settle(breaker: &Breaker, kind: Kind, times: u32) {
    for _ in 0..times {
        breaker.admit().unwrap().settle(kind);
    }
}

fn is_open(result: &Result<(), Failure>) -> bool {
    matches!(result, Err(Failure::Rejected(Rejected::CircuitOpen { .. })))
}

/// Remembers the transitions that it was told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(State, State, Cause)>>>);

impl Log {
    fn take(&self) -> Vec<(State, State, Cause)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Transition {
            from, to, cause, ..
        } = event
        {
            self.0.lock().unwrap().push((*from, *to, *cause));
        }
    }
}

/// An observer from a closure that hears of transitions: of the state that it is now.
struct OnChange<F>(F);

impl<F: Fn(State) + Send + Sync + 'static> Observer for OnChange<F> {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Transition { to, .. } = event {
            (self.0)(*to);
        }
    }
}

// B1
#[tokio::test(start_paused = true)]
async fn an_outage_opens_it_after_a_day_of_health_as_soon_as_after_a_minute() {
    let mut failures = Vec::new();
    for health in [60, 24 * 3_600] {
        let breaker = Breaker::builder().build().unwrap();
        for _ in 0..health {
            settle(&breaker, Kind::Success, 2);
            advance(SECOND).await;
        }
        let mut failed = 0;
        while breaker.state() == State::Closed && failed < 1_000 {
            settle(&breaker, Kind::Unavailable, 1);
            failed += 1;
            advance(500 * MS).await;
        }
        failures.push(failed);
    }
    assert_eq!(failures[0], failures[1]);
    assert!(failures[0] <= 20, "{failures:?}");
}

// B2
#[tokio::test(start_paused = true)]
async fn a_failure_costs_the_same_however_many_calls_the_window_holds() {
    // One success in the window, so that not all have failed.
    let builder = Breaker::builder().failure_rate(1.0);
    let breaker = builder.consecutive(1_000_000).build().unwrap();
    settle(&breaker, Kind::Success, 1);
    let fastest_of_many = || {
        let batch = |_| {
            let start = Instant::now();
            settle(&breaker, Kind::Unavailable, 50);
            start.elapsed()
        };
        (0..20).map(batch).min().unwrap()
    };
    let with_few = fastest_of_many();
    settle(&breaker, Kind::Unavailable, 20_000);
    let with_many = fastest_of_many();
    assert_eq!(breaker.state(), State::Closed);
    assert!(
        with_many < 10 * with_few + MS,
        "{with_few:?}, then {with_many:?}"
    );
}

// B3
#[tokio::test(start_paused = true)]
async fn a_call_from_before_the_trip_neither_closes_nor_reopens_the_circuit() {
    for late in [Kind::Success, Kind::Unavailable] {
        let breaker = brittle().build().unwrap();
        let before = breaker.admit().unwrap();
        let (before_too, dropped) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        trip(&breaker);
        before_too.settle(late);
        assert_eq!(breaker.state(), State::Open);
        advance(500 * MS).await;
        let probe = breaker.admit().unwrap();
        before.settle(late);
        assert_eq!(breaker.state(), State::HalfOpen, "a late {late}");
        drop(dropped);
        refusal(&breaker);
        probe.settle(Kind::Success);
        assert_eq!(breaker.state(), State::Closed, "a late {late}");
    }
}

// B3
#[tokio::test(start_paused = true)]
async fn a_late_result_is_no_part_of_the_circuit_that_was_closed_again() {
    let breaker = Breaker::consecutive(2).build().unwrap();
    let late = breaker.admit().unwrap();
    settle(&breaker, Kind::Unavailable, 2);
    advance(500 * MS).await;
    settle(&breaker, Kind::Success, 1);
    late.settle(Kind::Unavailable);
    settle(&breaker, Kind::Unavailable, 1);
    assert_eq!(breaker.state(), State::Closed);
}

// B4
#[tokio::test(start_paused = true)]
async fn a_half_open_circuit_lets_no_more_than_its_probes_through() {
    for stack in Stack::ALL {
        let breaker = ripe(brittle().probes(3).required_successes(3)).await;
        let dependency = Dependency::new();
        let service = stack.over(&breaker, &dependency);
        let calls: Vec<_> = (0..1_000)
            .map(|_| spawn(&service, Do::Take(SECOND)))
            .collect();
        let mut refused = 0;
        for call in calls {
            refused += u32::from(is_open(&call.await.unwrap()));
        }
        assert_eq!((dependency.calls(), refused), (3, 997), "{stack:?}");
        assert_eq!(breaker.state(), State::Closed);
    }
}

// B5
#[tokio::test(start_paused = true)]
async fn a_dropped_probe_gives_its_slot_back() {
    let breaker = ripe(brittle()).await;
    for _ in 0..100 {
        drop(breaker.admit().unwrap());
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    settle(&breaker, Kind::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

// B6
#[tokio::test(start_paused = true)]
async fn a_hung_probe_has_failed_when_its_slot_expires_and_counts_for_nothing_after() {
    for late in [Some(Kind::Success), Some(Kind::Unavailable), None] {
        let log = Log::default();
        let breaker = ripe(brittle().observer(log.clone())).await;
        let hung = breaker.admit().unwrap();
        assert_eq!(refusal(&breaker), 500 * MS, "time for the probe to answer");
        advance(2 * ATTEMPT).await;
        let open_for = refusal(&breaker);
        assert!(open_for >= 800 * MS && open_for <= SECOND, "{open_for:?}");
        advance(open_for).await;
        let probe = breaker.admit().unwrap();
        match late {
            Some(kind) => hung.settle(kind),
            None => drop(hung),
        }
        assert_eq!(breaker.state(), State::HalfOpen);
        refusal(&breaker);
        probe.settle(Kind::Success);
        assert_eq!(breaker.state(), State::Closed);
        let expired = (State::HalfOpen, State::Open, Cause::ProbeExpired);
        assert_eq!(log.take()[2], expired);
    }
}

// B7
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_says_nothing_unless_it_had_run_for_the_attempt_deadline() {
    for stack in Stack::ALL {
        for (ran, probe_too) in [(Duration::ZERO, true), (2 * SECOND, true), (ATTEMPT, false)] {
            let breaker = brittle().build().unwrap();
            let service = stack.over(&breaker, &Dependency::new());
            let mut cancelled = task::spawn(call(&service, Do::Hang));
            assert_pending!(cancelled.poll());
            advance(ran).await;
            drop(cancelled);
            let expected = if probe_too {
                State::Closed
            } else {
                State::Open
            };
            assert_eq!(breaker.state(), expected, "{stack:?} {ran:?}");

            let breaker = ripe(brittle()).await;
            let service = stack.over(&breaker, &Dependency::new());
            let mut cancelled = task::spawn(call(&service, Do::Hang));
            assert_pending!(cancelled.poll());
            advance(ran).await;
            drop(cancelled);
            let expected = if probe_too {
                State::HalfOpen
            } else {
                State::Open
            };
            assert_eq!(breaker.state(), expected, "a probe: {stack:?} {ran:?}");
            assert_eq!(call(&service, Do::Answer).await.is_ok(), probe_too);
        }
    }
}

// B8
#[tokio::test(start_paused = true)]
async fn an_outer_timeout_does_not_hide_a_dependency_that_hangs() {
    for stack in Stack::ENDING {
        // Within 3 % of the attempt deadline, so that this timeout is the one that strikes.
        for outer in [ATTEMPT - 50 * MS, 2 * ATTEMPT] {
            let breaker = Breaker::consecutive(5)
                .attempt_deadline(ATTEMPT)
                .build()
                .unwrap();
            let service = stack.over(&breaker, &Dependency::new());
            for _ in 0..5 {
                assert_eq!(breaker.state(), State::Closed);
                let ended = timeout(outer, call(&service, Do::Hang)).await;
                assert_eq!(ended.is_err(), outer < ATTEMPT);
            }
            assert_eq!(breaker.state(), State::Open, "{stack:?} {outer:?}");
        }
    }
}

// B8
#[tokio::test(start_paused = true)]
async fn a_callers_own_shorter_deadline_opens_nothing() {
    for stack in Stack::ENDING {
        let breaker = brittle().build().unwrap();
        let service = stack.over(&breaker, &Dependency::new());
        for patience in [MS, SECOND, 2 * SECOND] {
            let at = time::Instant::now() + patience;
            let scope = deadline::scope(at.into_std(), call(&service, Do::Hang));
            let refused = Rejected::DeadlineExceeded { sent: true };
            assert_eq!(scope.await, Err(Failure::Rejected(refused)));
            timeout(patience, call(&service, Do::Hang))
                .await
                .unwrap_err();
            assert_eq!(breaker.state(), State::Closed, "{stack:?} {patience:?}");
        }
        let longer = time::Instant::now() + ATTEMPT;
        let scope = deadline::scope(longer.into_std(), call(&service, Do::Hang));
        scope.await.unwrap_err();
        assert_eq!(breaker.state(), State::Open, "{stack:?}");
    }
}

// B9
#[tokio::test(start_paused = true)]
async fn panics_and_failed_readiness_are_failures() {
    for stack in Stack::ALL {
        for request in [Do::PanicInCall, Do::PanicInPoll] {
            let breaker = brittle().build().unwrap();
            let service = stack.over(&breaker, &Dependency::new());
            assert!(spawn(&service, request).await.unwrap_err().is_panic());
            assert_eq!(breaker.state(), State::Open, "{stack:?} {request:?}");
        }
        let breaker = brittle().build().unwrap();
        let service = stack.over(&breaker, &Dependency::that_is(Readiness::Failed));
        let failure = call(&service, Do::Answer).await.unwrap_err();
        assert_eq!(failure, Failure::Kind(Kind::Unavailable));
        assert_eq!(breaker.state(), State::Open, "{stack:?}: readiness");
    }
}

// B9, B10
#[tokio::test(start_paused = true)]
async fn a_call_that_panicked_and_is_polled_again_is_counted_once() {
    let failing = Breaker::consecutive(2).build().unwrap();
    for again in [
        Poll::Ready(Ok(())),
        Poll::Ready(Err(Failure::Kind(Kind::Broken))),
    ] {
        let first = AtomicU32::new(0);
        let again = Arc::new(again);
        let first = Arc::new(first);
        let service = tower::service_fn(move |()| {
            let (first, again) = (first.clone(), again.clone());
            future::poll_fn(move |_| match first.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("the first poll panics"),
                _ => (*again).clone(),
            })
        });
        failing.reset();
        let mut service = failing.layer(classify()).layer(service);
        let mut call = Box::pin(service.call(()));
        let mut cx = Context::from_waker(Waker::noop());
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx))).unwrap_err();
        assert!(call.as_mut().poll(&mut cx).is_ready());
        assert_eq!(failing.state(), State::Closed);
        settle(&failing, Kind::Unavailable, 1);
        assert_eq!(
            failing.state(),
            State::Open,
            "the panic is the first of two"
        );
    }
}

// B10
#[tokio::test(start_paused = true)]
async fn stale_permits_free_no_slot_of_others() {
    let breaker = ripe(brittle().probes(2).required_successes(100)).await;
    let stale = [breaker.admit().unwrap(), breaker.admit().unwrap()];
    advance(2 * ATTEMPT).await;
    let again = refusal(&breaker);
    advance(again).await;
    let mut under_way: Vec<Permit> = Vec::new();
    for permit in stale {
        under_way.extend(breaker.admit());
        permit.settle(Kind::Success);
        under_way.extend(breaker.admit());
    }
    under_way.extend(breaker.admit());
    assert_eq!(under_way.len(), 2);
}

// B11
#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_at_once_and_leaves_an_unready_service_alone() {
    for stack in Stack::ALL {
        let breaker = brittle().build().unwrap();
        let dependency = Dependency::that_is(Readiness::Never);
        let mut service = stack.over(&breaker, &dependency);
        trip(&breaker);
        for _ in 0..10 {
            assert_ready!(task::spawn(service.ready()).poll()).unwrap();
            let mut call = task::spawn(service.call(Do::Answer));
            assert!(is_open(&assert_ready!(call.poll())), "{stack:?}");
        }
        assert_eq!(dependency.asked.load(Ordering::Relaxed), 0, "{stack:?}");
    }
}

// B11
#[tokio::test(start_paused = true)]
async fn a_probe_whose_service_is_not_ready_gives_its_slot_back() {
    for stack in Stack::ALL {
        let breaker = ripe(brittle()).await;
        let service = stack.over(&breaker, &Dependency::that_is(Readiness::Never));
        let mut call = task::spawn(call(&service, Do::Answer));
        assert_pending!(call.poll());
        refusal(&breaker);
        drop(call);
        assert!(breaker.admit().is_ok(), "{stack:?}");
    }
}

// B12
#[tokio::test(start_paused = true)]
async fn a_forced_state_holds_until_it_is_undone() {
    let breaker = brittle().build().unwrap();
    breaker.force_open();
    for _ in 0..48 {
        advance(1_800 * SECOND).await;
        refusal(&breaker);
        assert_eq!(breaker.state(), State::ForcedOpen);
    }
    breaker.force_closed();
    for _ in 0..48 {
        settle(&breaker, Kind::Unavailable, 100);
        advance(1_800 * SECOND).await;
        assert_eq!(breaker.state(), State::ForcedClosed);
    }
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed);
    trip(&breaker);
    breaker.reset();
    settle(&breaker, Kind::Success, 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_any_more_when_an_open_circuit_is_reset_forced_closed_or_only_observed() {
    let opens: [fn(&Breaker); 2] = [Breaker::force_open, trip];
    let undoes: [fn(&Breaker); 3] = [Breaker::reset, Breaker::force_closed, Breaker::observe_only];
    for stack in Stack::ALL {
        for (open, undo) in opens
            .into_iter()
            .flat_map(|open| undoes.map(|undo| (open, undo)))
        {
            let breaker = brittle().build().unwrap();
            let service = stack.over(&breaker, &Dependency::new());
            open(&breaker);
            assert!(is_open(&call(&service, Do::Answer).await), "{stack:?}");
            undo(&breaker);
            let state = breaker.state();
            let answer = call(&service, Do::Answer).await;
            assert_eq!(answer, Ok(()), "{stack:?} {state:?}");
            // Nor when the next open time is over.
            breaker.reset();
            trip(&breaker);
            advance(refusal(&breaker)).await;
            assert_eq!(call(&service, Do::Answer).await, Ok(()), "{stack:?}");
            assert_eq!(breaker.state(), State::Closed, "{stack:?}");
        }
    }
}

// B13
#[tokio::test(start_paused = true)]
async fn the_minimum_of_calls_is_kept_to_exactly() {
    for minimum in [1, 7, 20, 100] {
        let breaker = Breaker::builder().minimum_calls(minimum).build().unwrap();
        settle(&breaker, Kind::Unavailable, minimum - 1);
        assert_eq!(breaker.state(), State::Closed, "{minimum}");
        settle(&breaker, Kind::Unavailable, 1);
        assert_eq!(breaker.state(), State::Open, "{minimum}");
    }
}

// B14
#[tokio::test(start_paused = true)]
async fn a_slow_probe_does_not_close_what_slow_calls_opened() {
    for stack in Stack::ALL {
        let breaker = brittle()
            .minimum_calls(4)
            .slow_calls(SECOND, 0.5)
            .build()
            .unwrap();
        let service = stack.over(&breaker, &Dependency::new());
        for _ in 0..4 {
            assert_eq!(breaker.state(), State::Closed);
            call(&service, Do::Take(SECOND)).await.unwrap();
        }
        for _ in 0..3 {
            assert_eq!(breaker.state(), State::Open, "{stack:?}");
            let again = refusal(&breaker);
            advance(again + MS).await;
            call(&service, Do::Take(SECOND)).await.unwrap();
        }
        let again = refusal(&breaker);
        advance(again + MS).await;
        call(&service, Do::Take(900 * MS)).await.unwrap();
        assert_eq!(breaker.state(), State::Closed, "{stack:?}");
    }
}

// B15
#[tokio::test(start_paused = true)]
async fn a_paused_clock_moves_it_and_nothing_else_does() {
    let breaker = brittle().open_for(3_600 * SECOND).build().unwrap();
    trip(&breaker);
    let again = refusal(&breaker);
    assert_eq!(refusal(&breaker), again, "real time passed in between");
    advance(3_600 * SECOND).await;
    settle(&breaker, Kind::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

// B16
#[test]
fn calls_go_on_while_an_observer_takes_its_time() {
    let (finish, finished) = mpsc::channel();
    let finished = Mutex::new(finished);
    let in_time = Arc::new(Mutex::new(None));
    let (told, heard) = mpsc::channel();
    let observer = {
        let in_time = in_time.clone();
        OnChange(move |_| {
            told.send(()).unwrap();
            let finished = finished.lock().unwrap();
            *in_time.lock().unwrap() = Some(finished.recv_timeout(3 * SECOND).is_ok());
        })
    };
    let breaker = brittle().observer(observer).build().unwrap();
    let caller = {
        let breaker = breaker.clone();
        thread::spawn(move || {
            heard.recv().unwrap();
            breaker.admit().unwrap_err();
            breaker.state();
            // Nobody listens any more where the observer waited in vain.
            let _ = finish.send(());
        })
    };
    trip(&breaker);
    caller.join().unwrap();
    assert_eq!(*in_time.lock().unwrap(), Some(true));
}

// B17
#[tokio::test(start_paused = true)]
async fn one_good_probe_closes_it_and_each_outage_begins_with_the_first_open_time() {
    let breaker = brittle().build().unwrap();
    for _ in 0..20 {
        trip(&breaker);
        advance(500 * MS).await;
        // Every one of them passes: the dependency is well.
        settle(&breaker, Kind::Success, 1_000);
    }
    let mut longest = Vec::new();
    for round in 0..8 {
        if round == 0 {
            trip(&breaker);
        } else {
            settle(&breaker, Kind::Unavailable, 1);
        }
        let again = refusal(&breaker);
        longest.push(again);
        advance(again).await;
    }
    for (round, again) in longest.into_iter().enumerate() {
        let most = (500 * MS * (1 << round)).min(30 * SECOND);
        assert!(again >= most * 4 / 5 && again <= most, "{round}: {again:?}");
    }
    settle(&breaker, Kind::Success, 1);
    trip(&breaker);
    assert!(refusal(&breaker) <= 500 * MS);
}

// B18
#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_to_come_back() {
    for stack in Stack::ALL {
        let breaker = brittle().open_for(5 * SECOND).build().unwrap();
        let service = stack.over(&breaker, &Dependency::new());
        call(&service, Do::Fail(Kind::Unavailable))
            .await
            .unwrap_err();
        let first = call(&service, Do::Answer).await.unwrap_err();
        let first = first.rejected().and_then(Rejected::retry_after).unwrap();
        assert!(first >= 4 * SECOND && first <= 5 * SECOND, "{first:?}");
        advance(SECOND).await;
        let second = call(&service, Do::Answer).await.unwrap_err();
        let second = second.rejected().and_then(Rejected::retry_after).unwrap();
        assert_eq!(second, first - SECOND);
        advance(second).await;
        assert_eq!(call(&service, Do::Answer).await, Ok(()));
    }
}

// B19
#[tokio::test(start_paused = true)]
async fn all_services_and_layers_of_one_handle_are_one_circuit() {
    for stack in Stack::ALL {
        let breaker = brittle().build().unwrap();
        let dependency = Dependency::new();
        let services = [
            stack.over(&breaker, &dependency),
            stack.over(&breaker.clone(), &dependency),
        ];
        call(&services[0], Do::Fail(Kind::Unavailable))
            .await
            .unwrap_err();
        for service in &services {
            assert!(is_open(&call(service, Do::Answer).await), "{stack:?}");
        }
    }
    let breaker = brittle().build().unwrap();
    let layer = breaker.layer(classify());
    let [mut first, mut second] = [
        layer.layer(Dependency::new()),
        layer.layer(Dependency::new()),
    ];
    first.call(Do::Fail(Kind::Unavailable)).await.unwrap_err();
    assert!(is_open(&second.call(Do::Answer).await));
}

// B20
#[tokio::test(start_paused = true)]
async fn a_burst_of_successes_does_not_hide_an_outage() {
    let breaker = Breaker::builder().minimum_calls(100).build().unwrap();
    settle(&breaker, Kind::Unavailable, 55);
    settle(&breaker, Kind::Success, 44);
    assert_eq!(breaker.state(), State::Closed);
    settle(&breaker, Kind::Unavailable, 1);
    assert_eq!(breaker.state(), State::Open);
}

// B20
#[tokio::test(start_paused = true)]
async fn a_window_of_a_tenth_of_a_second_holds_a_tenth_of_a_second() {
    for (apart, expected) in [(90 * MS, State::Open), (100 * MS, State::Closed)] {
        let breaker = Breaker::builder().window(100 * MS).build().unwrap();
        settle(&breaker, Kind::Unavailable, 19);
        advance(apart).await;
        settle(&breaker, Kind::Unavailable, 1);
        assert_eq!(breaker.state(), expected, "{apart:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_is_good_bad_or_neutral_for_calls_and_for_probes() {
    for kind in Kind::ALL {
        let bad = matches!(
            kind,
            Kind::Overloaded | Kind::Unavailable | Kind::Ambiguous | Kind::Broken
        );
        let neutral = matches!(kind, Kind::Saturated | Kind::Ignored);

        let breaker = Breaker::consecutive(2).build().unwrap();
        settle(&breaker, Kind::Unavailable, 1);
        settle(&breaker, kind, 1);
        let expected = if bad { State::Open } else { State::Closed };
        assert_eq!(breaker.state(), expected, "a call: {kind}");
        if !bad {
            // What is neutral does not end a row of failures.
            settle(&breaker, Kind::Unavailable, 1);
            let expected = if neutral { State::Open } else { State::Closed };
            assert_eq!(breaker.state(), expected, "between failures: {kind}");
        }

        let breaker = ripe(brittle()).await;
        settle(&breaker, kind, 1);
        let expected = match (bad, neutral) {
            (true, _) => State::Open,
            (_, true) => State::HalfOpen,
            _ => State::Closed,
        };
        assert_eq!(breaker.state(), expected, "a probe: {kind}");
        if neutral {
            assert!(breaker.admit().is_ok(), "its slot is free: {kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_the_server_stopped_are_slow_calls() {
    let breaker = Breaker::builder()
        .slow_calls(60 * SECOND, 0.5)
        .build()
        .unwrap();
    settle(&breaker, Kind::Success, 10);
    settle(&breaker, Kind::TimedOut, 9);
    assert_eq!(breaker.state(), State::Closed);
    settle(&breaker, Kind::TimedOut, 1);
    assert_eq!(breaker.state(), State::Open);
    advance(500 * MS).await;
    settle(&breaker, Kind::TimedOut, 1);
    assert_eq!(breaker.state(), State::Open, "a probe that was stopped");
    let unjudged = Breaker::builder().build().unwrap();
    settle(&unjudged, Kind::TimedOut, 100);
    assert_eq!(unjudged.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_servers_hint_is_honoured_up_to_the_longest_open_time() {
    for (hint, least, most) in [
        (MS, 400 * MS, 500 * MS),
        (7 * SECOND, 7 * SECOND, 7 * SECOND),
        (24 * 3_600 * SECOND, 10 * SECOND, 10 * SECOND),
        (Duration::MAX, 10 * SECOND, 10 * SECOND),
    ] {
        let breaker = brittle().max_open_for(10 * SECOND).build().unwrap();
        let verdict = Verdict::from(Kind::Overloaded).retry_after(hint);
        breaker.admit().unwrap().settle(verdict);
        let again = refusal(&breaker);
        assert!(again >= least && again <= most, "{hint:?}: {again:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn open_times_differ_by_chance_also_at_their_cap() {
    let mut times = Vec::new();
    for _ in 0..50 {
        let breaker = brittle().max_open_for(500 * MS).build().unwrap();
        trip(&breaker);
        times.push(refusal(&breaker));
    }
    assert!(
        times
            .iter()
            .all(|time| *time >= 400 * MS && *time <= 500 * MS)
    );
    times.sort();
    times.dedup();
    assert!(times.len() > 40, "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_held_for_too_long_is_slow_and_one_dropped_too_late_has_failed() {
    let slow = Breaker::builder()
        .minimum_calls(1)
        .slow_calls(SECOND, 1.0)
        .build()
        .unwrap();
    let permit = slow.admit().unwrap();
    advance(SECOND).await;
    permit.settle(Kind::Success);
    assert_eq!(slow.state(), State::Open);

    let breaker = brittle().build().unwrap();
    let permits = [breaker.admit().unwrap(), breaker.admit().unwrap()];
    advance(ATTEMPT / 2).await;
    let [early, late] = permits;
    drop(early);
    assert_eq!(breaker.state(), State::Closed);
    advance(ATTEMPT / 2).await;
    drop(late);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_observing_breaker_tells_what_it_would_do_and_refuses_nobody() {
    for stack in Stack::ALL {
        let log = Log::default();
        let breaker = brittle().observer(log.clone()).build().unwrap();
        let service = stack.over(&breaker, &Dependency::new());
        breaker.observe_only();
        for _ in 0..3 {
            let failure = call(&service, Do::Fail(Kind::Broken)).await.unwrap_err();
            assert_eq!(failure, Failure::Kind(Kind::Broken), "{stack:?}");
        }
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(call(&service, Do::Answer).await, Ok(()));
        advance(500 * MS).await;
        // The first is the probe; the other passes beside it.
        let [probe, other] = [(); 2].map(|()| spawn(&service, Do::Take(SECOND)));
        assert_eq!(probe.await.unwrap(), Ok(()));
        assert_eq!(other.await.unwrap(), Ok(()));
        let expected = [
            (State::Closed, State::Open, Cause::Consecutive),
            (State::Open, State::HalfOpen, Cause::OpenTimeOver),
            (State::HalfOpen, State::Closed, Cause::ProbesSucceeded),
        ];
        assert_eq!(log.take(), expected, "{stack:?}");
        breaker.reset();
        trip(&breaker);
        assert!(is_open(&call(&service, Do::Answer).await), "{stack:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_when_a_state_is_forced_count_for_nothing() {
    let changes: [fn(&Breaker); 3] = [Breaker::observe_only, Breaker::reset, |breaker| {
        breaker.force_open();
        breaker.reset();
    }];
    for change in changes {
        let breaker = brittle().build().unwrap();
        let under_way = breaker.admit().unwrap();
        change(&breaker);
        under_way.settle(Kind::Unavailable);
        assert_eq!(breaker.state(), State::Closed);
        breaker.admit().unwrap().settle(Kind::Unavailable);
        assert_eq!(breaker.state(), State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn observing_from_now_on_forgets_no_success() {
    let breaker = Breaker::builder().build().unwrap();
    settle(&breaker, Kind::Success, 30);
    settle(&breaker, Kind::Unavailable, 10);
    settle(&breaker, Kind::Success, 30);
    breaker.observe_only();
    settle(&breaker, Kind::Unavailable, 49);
    assert_eq!(breaker.state(), State::Closed, "59 of 119");
    settle(&breaker, Kind::Unavailable, 1);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_probe_under_way_when_observing_begins_does_not_open_a_healthy_circuit() {
    let breaker = ripe(brittle()).await;
    let probe = breaker.admit().unwrap();
    breaker.observe_only();
    probe.settle(Kind::Success);
    advance(2 * ATTEMPT).await;
    settle(&breaker, Kind::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_every_result_and_the_grown_open_time() {
    let breaker = ripe(brittle()).await;
    settle(&breaker, Kind::Unavailable, 1);
    assert!(refusal(&breaker) > 500 * MS);
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed);
    trip(&breaker);
    assert!(refusal(&breaker) <= 500 * MS);

    let counting = Breaker::builder().build().unwrap();
    settle(&counting, Kind::Unavailable, 19);
    counting.reset();
    settle(&counting, Kind::Unavailable, 19);
    assert_eq!(counting.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn subscribers_see_each_state_that_lasts() {
    let breaker = brittle().build().unwrap();
    let mut states = breaker.subscribe();
    assert_eq!(states.state(), State::Closed);
    assert_eq!(states.changed().now_or_never(), None);
    trip(&breaker);
    assert_eq!(states.changed().now_or_never(), Some(Some(State::Open)));
    advance(500 * MS).await;
    let probe = breaker.admit().unwrap();
    let half_open = states.changed().now_or_never();
    assert_eq!(half_open, Some(Some(State::HalfOpen)));
    probe.settle(Kind::Success);
    assert_eq!(states.changed().now_or_never(), Some(Some(State::Closed)));
    settle(&breaker, Kind::Success, 100);
    assert_eq!(states.changed().now_or_never(), None);
    drop(breaker);
    assert_eq!(states.changed().await, None);
}

#[tokio::test(start_paused = true)]
async fn whoever_looks_at_a_state_may_call_the_breaker_meanwhile() {
    let breaker = Breaker::default();
    let states = breaker.subscribe();
    breaker.force_open();
    match states.state() {
        State::ForcedOpen => breaker.reset(),
        other => panic!("{other}"),
    }
    assert_eq!(states.state(), State::Closed);
}

// B8
#[tokio::test(start_paused = true)]
async fn a_dependency_that_hangs_opens_the_circuit_however_the_deadlines_stand() {
    for deadline in [2, 3, 10].map(Duration::from_secs) {
        let shield = Shield::builder(by_error(|_: &Failure| Kind::Unavailable))
            .deadline(deadline)
            .limiter(&ConcurrencyLimiter::new(10).unwrap())
            .build()
            .unwrap();
        let sent = Arc::new(AtomicU32::new(0));
        for _ in 0..2_000 {
            let (shield, sent) = (shield.clone(), sent.clone());
            tokio::spawn(async move {
                let hang = || {
                    sent.fetch_add(1, Ordering::Relaxed);
                    future::pending::<Result<(), Failure>>()
                };
                shield.run(hang).await
            });
            advance(10 * MS).await;
        }
        let state = shield.breaker().unwrap().state();
        assert_ne!(state, State::Closed, "{deadline:?}");
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < 60, "{deadline:?}: {sent} calls sent");
    }
}

// E8
#[tokio::test(start_paused = true)]
async fn time_in_the_queue_of_a_limiter_further_in_is_not_the_dependencys() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let builder = brittle().attempt_deadline(100 * MS).minimum_calls(5);
    let breaker = builder.slow_calls(100 * MS, 0.5).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(breaker.layer(classify()))
        .layer(limiter.layer())
        .service_fn(async |_: ()| Ok::<_, Failure>(()));
    let running = limiter.try_acquire().unwrap();
    let waiting = || tokio::spawn(service.clone().oneshot(()));
    let (leaving, staying): (Vec<_>, Vec<_>) = (0..5).map(|_| (waiting(), waiting())).unzip();
    sleep(150 * MS).await;
    for call in leaving {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    assert_eq!(breaker.state(), State::Closed, "callers left the queue");
    drop(running);
    for call in staying {
        call.await.unwrap().unwrap();
    }
    assert_eq!(breaker.state(), State::Closed, "none was slow");
}

// B9
#[tokio::test(start_paused = true)]
async fn a_service_that_never_gets_ready_has_failed_whoever_cuts_it_off() {
    #[derive(Clone)]
    struct NeverReady;
    impl Service<()> for NeverReady {
        type Response = ();
        type Error = Failure;
        type Future = future::Pending<Result<(), Failure>>;
        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            Poll::Pending
        }
        fn call(&mut self, (): ()) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let breaker = brittle().attempt_deadline(100 * MS).build().unwrap();
    let inner = breaker.layer(classify()).layer(NeverReady);
    let layered = Deadline::new(100 * MS).unwrap().layer().layer(inner);
    layered.oneshot(()).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open, "layers");
    breaker.reset();
    let shield = Shield::builder(classify())
        .deadline(SECOND)
        .attempt_deadline(100 * MS)
        .breaker(&breaker)
        .build()
        .unwrap();
    shield.layer(NeverReady).oneshot(()).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open, "shield");
}

#[tokio::test(start_paused = true)]
async fn transitions_are_told_in_order_though_an_observer_calls_the_breaker_back() {
    let log = Log::default();
    let handle: Arc<OnceLock<Breaker>> = Arc::default();
    let back = {
        let handle = handle.clone();
        OnChange(move |to| {
            let breaker = handle.get().unwrap();
            match to {
                State::Open => breaker.force_closed(),
                State::ForcedClosed => breaker.reset(),
                _ => drop(breaker.admit()),
            }
        })
    };
    // It calls back before the log is told.
    let breaker = brittle().observer((back, log.clone())).build().unwrap();
    handle.set(breaker.clone()).unwrap();
    breaker.admit().unwrap().settle(Kind::Unavailable);
    let expected = [
        (State::Closed, State::Open, Cause::Consecutive),
        (State::Open, State::ForcedClosed, Cause::Asked),
        (State::ForcedClosed, State::Closed, Cause::Asked),
    ];
    assert_eq!(log.take(), expected);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_silences_nobody_else() {
    let log = Log::default();
    let panics = OnChange(|to| assert_ne!(to, State::Open, "the observer panics"));
    let when_open = WhenOpen::Wait { queue: 9 };
    let builder = brittle()
        .when_open(when_open)
        .observer((log.clone(), panics));
    let breaker = builder.build().unwrap();
    let states = breaker.subscribe();
    breaker.force_open();
    let service = Stack::Layer.over(&breaker, &Dependency::new());
    let mut waiting = task::spawn(call(&service, Do::Answer));
    assert_pending!(waiting.poll());
    breaker.reset();
    assert!(waiting.is_woken());
    drop(waiting);

    let permit = breaker.admit().unwrap();
    let settled = catch_unwind(AssertUnwindSafe(|| permit.settle(Kind::Unavailable)));
    settled.unwrap_err();
    assert_eq!(
        (breaker.state(), states.state()),
        (State::Open, State::Open)
    );
    breaker.force_closed();
    let expected = [
        (State::Closed, State::ForcedOpen, Cause::Asked),
        (State::ForcedOpen, State::Closed, Cause::Asked),
        (State::Closed, State::Open, Cause::Consecutive),
        (State::Open, State::ForcedClosed, Cause::Asked),
    ];
    assert_eq!(log.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn waiters_are_woken_and_subscribers_told_before_an_observer_can_panic() {
    let panics = OnChange(|to| assert_ne!(to, State::Closed, "the observer panics"));
    let breaker = brittle()
        .when_open(WhenOpen::Wait { queue: 9 })
        .observer(panics);
    let breaker = breaker.build().unwrap();
    let states = breaker.subscribe();
    breaker.force_open();
    let service = Stack::Layer.over(&breaker, &Dependency::new());
    let mut waiting = task::spawn(call(&service, Do::Answer));
    assert_pending!(waiting.poll());
    catch_unwind(AssertUnwindSafe(|| breaker.reset())).unwrap_err();
    assert_eq!(states.state(), State::Closed);
    assert!(waiting.is_woken());
    assert_eq!(assert_ready!(waiting.poll()), Ok(()));
}

fn patient(queue: usize) -> Builder {
    brittle().when_open(WhenOpen::Wait { queue })
}

#[tokio::test(start_paused = true)]
async fn waiters_wait_until_a_probe_succeeds() {
    for stack in Stack::ALL {
        let breaker = patient(9).build().unwrap();
        let dependency = Dependency::new();
        let service = stack.over(&breaker, &dependency);
        trip(&breaker);
        let calls = [(); 5].map(|()| spawn(&service, Do::Take(SECOND)));
        sleep(399 * MS).await;
        assert_eq!(dependency.calls(), 0, "{stack:?}: the circuit is open");
        sleep(900 * MS).await;
        assert_eq!(dependency.calls(), 1, "{stack:?}: one of them probes");
        sleep(300 * MS).await;
        assert_eq!(dependency.calls(), 5, "{stack:?}: the circuit is closed");
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_wait_than_may_and_a_dropped_one_gives_up_its_place() {
    for stack in Stack::ALL {
        let breaker = patient(2).build().unwrap();
        let service = stack.over(&breaker, &Dependency::new());
        breaker.force_open();
        let wait = || {
            let mut call = task::spawn(call(&service, Do::Answer));
            let polled = call.poll();
            (call, polled)
        };
        let (first, polled) = wait();
        assert_pending!(polled);
        let (mut second, polled) = wait();
        assert_pending!(polled);
        assert!(is_open(&assert_ready!(wait().1)), "{stack:?}");
        drop(first);
        let (mut third, polled) = wait();
        assert_pending!(polled);
        assert!(is_open(&assert_ready!(wait().1)), "{stack:?}");
        breaker.reset();
        assert!(second.is_woken() && third.is_woken(), "{stack:?}");
        assert_eq!(assert_ready!(second.poll()), Ok(()));
        assert_eq!(assert_ready!(third.poll()), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_comes_while_a_call_waits_refuses_it_as_not_sent() {
    for stack in Stack::ALL {
        let breaker = patient(9).build().unwrap();
        let dependency = Dependency::new();
        let service = stack.over(&breaker, &dependency);
        trip(&breaker);
        let start = time::Instant::now();
        // The second comes just when the open time is over.
        for patience in [300 * MS, refusal(&breaker)] {
            let at = start + patience;
            let scope = deadline::scope(at.into_std(), call(&service, Do::Answer));
            let refused = Rejected::DeadlineExceeded { sent: false };
            assert_eq!(scope.await, Err(Failure::Rejected(refused)), "{stack:?}");
            // A timer's milliseconds are whole ones.
            assert!(start.elapsed() >= patience && start.elapsed() < patience + 2 * MS);
            // It takes no probe's slot either.
            assert_eq!(breaker.state(), State::Open, "{stack:?}");
        }
        assert_eq!(dependency.calls(), 0, "{stack:?}");
        assert_eq!(call(&service, Do::Answer).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_waiter_probes_when_a_probe_was_dropped_or_has_expired() {
    for stack in Stack::ALL {
        for expires in [false, true] {
            let breaker = ripe(patient(9)).await;
            let dependency = Dependency::new();
            let service = stack.over(&breaker, &dependency);
            let probe = breaker.admit().unwrap();
            let start = time::Instant::now();
            let waiting = spawn(&service, Do::Answer);
            sleep(SECOND).await;
            assert_eq!(dependency.calls(), 0);
            if expires {
                assert_eq!(waiting.await.unwrap(), Ok(()));
                // 6 s for the slot, 1 s for the doubled open time, shortened by up to a fifth.
                let waited = start.elapsed();
                assert!(waited >= 6_800 * MS && waited <= 7_002 * MS, "{waited:?}");
                probe.settle(Kind::Unavailable);
            } else {
                let waited = start.elapsed();
                drop(probe);
                assert_eq!(waiting.await.unwrap(), Ok(()));
                assert_eq!(start.elapsed(), waited, "{stack:?}");
            }
            assert_eq!(breaker.state(), State::Closed, "{stack:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_can_be_dropped_by_the_waker_that_another_task_replaces() {
    /// A task that is kept alive by its waker only.
    struct Task(Mutex<Option<BoxFuture<'static, Result<(), Failure>>>>);
    impl std::task::Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let breaker = patient(9).build().unwrap();
    breaker.force_open();
    let service = Stack::Layer.over(&breaker, &Dependency::new());
    let service = move || service.clone().oneshot(Do::Answer).boxed();
    let owner = Arc::new(Task(Mutex::new(Some(service()))));
    if let Some(own) = &mut *owner.0.lock().unwrap() {
        assert_pending!(own.as_mut().poll(&mut Context::from_waker(Waker::noop())));
    }
    let mut waiting = service();
    let waker = Waker::from(owner);
    assert_pending!(waiting.as_mut().poll(&mut Context::from_waker(&waker)));
    drop(waker);
    // The timer goes off and lets go of the waker: now only the line owns that task, which waits in the same line.
    advance(SECOND).await;
    without_blocking(move || {
        let mut cx = Context::from_waker(Waker::noop());
        assert_pending!(waiting.as_mut().poll(&mut cx));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    /// Threads have shards of their own; they take turns here, so that what came before a failure is known.
    #[test]
    fn a_failure_is_judged_by_all_successes_that_were_settled_before(
        rounds in prop::collection::vec((0..5_usize, 0..300_u32, any::<bool>()), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _entered = runtime.enter();
        let breaker = Breaker::builder().failure_rate(0.4).minimum_calls(50).consecutive(1_000_000).build().unwrap();
        let workers: Vec<_> = (0..5).map(|_| Worker::new(&breaker, runtime.handle())).collect();
        let (mut good, mut bad) = (0, 0);
        for (worker, times, failing) in rounds {
            for _ in 0..times {
                workers[worker].settle(if failing { Kind::Unavailable } else { Kind::Success }, 1);
                if failing { bad += 1 } else { good += 1 }
                let opens = failing && good + bad >= 50 && bad * 10 >= 4 * (good + bad);
                let expected = if opens { State::Open } else { State::Closed };
                prop_assert_eq!(breaker.state(), expected, "{} good, {} bad", good, bad);
                if opens {
                    breaker.reset();
                    (good, bad) = (0, 0);
                }
            }
        }
    }
}

/// A thread that settles calls when told to.
struct Worker {
    ask: mpsc::Sender<(Kind, u32)>,
    done: mpsc::Receiver<()>,
}

impl Worker {
    fn new(breaker: &Breaker, runtime: &tokio::runtime::Handle) -> Self {
        let (ask, asked) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        let (breaker, runtime) = (breaker.clone(), runtime.clone());
        thread::spawn(move || {
            let _entered = runtime.enter();
            for (kind, times) in asked {
                settle(&breaker, kind, times);
                tell.send(()).unwrap();
            }
        });
        Self { ask, done }
    }

    fn settle(&self, kind: Kind, times: u32) {
        self.ask.send((kind, times)).unwrap();
        self.done.recv().unwrap();
    }
}
