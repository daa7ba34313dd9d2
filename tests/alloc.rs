//! What a call allocates, well or refused or repeated: nothing. Row E4 of the lessons, and of E5 that an event nobody hears costs nothing.
//!
//! The counter replaces the allocator of this one test binary, and counts for each thread by itself.
#![cfg(feature = "tower")]

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
#[cfg(feature = "test-util")]
use steadfast::fault::Faults;
use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, Deadline, Error, Event, Kind, Observer, Rejected, Retry,
    Shield, by_error, deadline, error::WrapLayer, event::Name, retry::Backoff, shield,
};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service};

type Failure = Error<Infallible>;

const SECOND: Duration = Duration::from_secs(1);

/// Enough for whatever is bought once for many calls to be paid for.
const WARM_UP: usize = 100;

const CALLS: usize = 1_000;

/// How an inner call goes.
#[derive(Clone, Copy, Debug)]
enum Answers {
    AtOnce,
    AfterOneWait,
}

const ANSWERS: [Answers; 2] = [Answers::AtOnce, Answers::AfterOneWait];

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| drop(black_box(Box::new(1)))).count_total, 1);
}

#[test]
fn a_call_without_layers_allocates_nothing() {
    assert_free("nothing", Inner);
}

#[test]
fn a_call_through_a_deadline_allocates_nothing() {
    assert_free("deadline", deadline().layer().layer(Inner));
    let named = deadline().name(String::from("a name that is shared"));
    assert_free("named deadline", named.layer().layer(Inner));
}

#[test]
fn a_call_through_a_retry_allocates_nothing() {
    let layer = Retry::default().layer(classify());
    assert_free("retry", layer.layer(Inner));
}

#[test]
fn a_call_through_a_breaker_allocates_nothing() {
    let plain = Breaker::default();
    assert_free("breaker", plain.layer(classify()).layer(Inner));
    let timed = Breaker::builder()
        .slow_calls(SECOND, 0.5)
        .attempt_deadline(SECOND)
        .consecutive(5)
        .build()
        .unwrap();
    assert_free("timed breaker", timed.layer(classify()).layer(Inner));
}

#[test]
fn a_call_through_a_limiter_allocates_nothing() {
    for limit in [1, 1_000] {
        let limiter = ConcurrencyLimiter::new(limit).unwrap();
        assert_free("limiter", limiter.layer().layer(Inner));
    }
}

#[test]
fn a_call_through_wrap_allocates_nothing() {
    assert_free("wrap", WrapLayer.layer(Bare));
}

#[cfg(feature = "test-util")]
#[test]
fn a_call_through_the_fault_layer_allocates_nothing() {
    let faults = Faults::builder(|_| -> Failure { unreachable!() })
        .build()
        .unwrap();
    assert_free("fault", faults.layer().layer(Inner));
}

#[test]
fn a_call_through_a_stack_of_layers_allocates_nothing() {
    let layers = (
        deadline().layer(),
        Retry::default().layer(classify()),
        Breaker::default().layer(classify()),
        ConcurrencyLimiter::new(1).unwrap().layer(),
        deadline().layer(),
    );
    assert_free("stack", layers.layer(Inner));
}

#[test]
fn a_call_through_a_shield_as_a_layer_allocates_nothing() {
    for shield in shields() {
        assert_free("shield", shield.layer(Inner));
    }
}

#[test]
fn a_run_of_a_shield_allocates_nothing() {
    for shield in shields() {
        for answers in ANSWERS {
            let run = || shield.run(|| answer(answers));
            assert_free_calls("run", answers, run);
            let run_wrapped = || shield.run_wrapped(|| bare_answer(answers));
            assert_free_calls("run_wrapped", answers, run_wrapped);
        }
    }
}

#[test]
fn permits_by_hand_allocate_nothing() {
    let breaker = Breaker::default();
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    for answers in ANSWERS {
        assert_free_calls("by hand", answers, || async {
            let slot = limiter.acquire().await?;
            let permit = breaker.admit()?;
            let answer = answer(answers).await;
            permit.settle(Kind::Success);
            drop(slot);
            answer
        });
    }
}

#[test]
fn a_refusal_by_an_open_circuit_allocates_nothing() {
    let breaker = Breaker::default();
    breaker.force_open();
    for heard in HEARD {
        let refused = Shield::builder(classify()).name("a name").breaker(&breaker);
        let refused = heard.shield(refused.without_retry());
        let runtime = runtime();
        let _entered = runtime.enter();
        assert_nothing_allocated(|| {
            let error = finish(refused.run(|| answer(Answers::AtOnce))).unwrap_err();
            assert!(matches!(
                error,
                Error::Rejected(Rejected::CircuitOpen { .. })
            ));
        });
    }
}

#[test]
fn a_refusal_by_a_full_queue_allocates_nothing() {
    for heard in HEARD {
        let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
        let refused = heard.shield(Shield::builder(classify()).limiter(&limiter));
        let slot = limiter.try_acquire();
        let runtime = runtime();
        let _entered = runtime.enter();
        assert_nothing_allocated(|| {
            let error = finish(refused.run(|| answer(Answers::AtOnce))).unwrap_err();
            assert!(matches!(
                error,
                Error::Rejected(Rejected::Overloaded { .. })
            ));
        });
        drop(slot);
    }
}

#[test]
fn whoever_stands_in_line_pays_for_its_place_only() {
    let limiter = ConcurrencyLimiter::builder(1).queue(9).build().unwrap();
    let shield = Shield::builder(ByNobody).limiter(&limiter).build().unwrap();
    let runtime = runtime();
    let _entered = runtime.enter();
    assert_allocated(1, || {
        let slot = limiter.try_acquire();
        let mut waiting = pin!(shield.run(|| answer(Answers::AfterOneWait)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(slot);
        assert_eq!(finish(waiting).unwrap(), 42);
    });
}

#[test]
fn a_failure_that_is_repeated_allocates_nothing() {
    for heard in HEARD {
        let retry = Retry::builder()
            .attempts(3)
            .backoff(Backoff::fixed(Duration::ZERO))
            .without_budget()
            .observer(heard)
            .build();
        let repeated = Shield::builder(by_error(|_: &Error<Down>| Kind::Unavailable))
            .retry(retry.unwrap())
            .without_breaker();
        let repeated = heard.shield(repeated);
        // Its clock jumps to the end of each pause.
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        assert_nothing_allocated(|| {
            let mut attempts = 0;
            let error = runtime.block_on(repeated.run(|| {
                attempts += 1;
                async { Err::<u32, _>(Error::Inner(Down)) }
            }));
            assert_eq!((attempts, error.is_err()), (3, true));
        });
    }
}

#[test]
fn a_failure_that_is_counted_allocates_nothing() {
    let breaker = Breaker::builder().minimum_calls(1_000_000).build().unwrap();
    let fails = Shield::builder(by_error(|_: &Error<Down>| Kind::Unavailable))
        .breaker(&breaker)
        .without_retry()
        .build()
        .unwrap();
    let runtime = runtime();
    let _entered = runtime.enter();
    assert_nothing_allocated(|| {
        let failed = finish(fails.run(|| async { Err::<u32, _>(Error::Inner(Down)) }));
        assert!(failed.is_err());
    });
}

/// Who hears the events: nobody, or an observer.
#[derive(Clone, Copy)]
enum Heard {
    ByNobody,
    ByOne,
}

const HEARD: [Heard; 2] = [Heard::ByNobody, Heard::ByOne];

impl Observer for Heard {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(self, Self::ByOne) {
            black_box(event);
        }
    }
}

impl Heard {
    fn shield<C>(self, builder: shield::Builder<C>) -> Shield<C> {
        match self {
            Self::ByNobody => builder.build(),
            Self::ByOne => builder.observer(self).build(),
        }
        .unwrap()
    }
}

/// The dependency's error.
struct Down;

fn assert_nothing_allocated(call: impl FnMut()) {
    assert_allocated(0, call);
}

/// So many times by each call.
fn assert_allocated(times: u64, mut call: impl FnMut()) {
    for _ in 0..WARM_UP {
        call();
    }
    let allocated = measure(|| (0..CALLS).for_each(|_| call()));
    assert_eq!(allocated.count_total, times * CALLS as u64);
}

#[test]
fn a_shared_name_is_not_copied() {
    let name = Name::from(String::from("a name of one tenant of many"));
    let deadline = deadline().name(name.clone());
    let allocated = measure(|| drop((name.clone(), deadline.clone())));
    assert_eq!(allocated.count_total, 0);
}

/// With every part, and with none of those that can be left out.
fn shields() -> [Shield<impl Classify<u32, Failure> + Classify<u32, Infallible> + Copy>; 2] {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let full = Shield::builder(ByNobody).limiter(&limiter).build();
    let bare = Shield::builder(ByNobody)
        .without_retry()
        .without_breaker()
        .build();
    [full.unwrap(), bare.unwrap()]
}

fn deadline() -> Deadline {
    Deadline::new(SECOND).unwrap()
}

fn classify() -> impl Classify<u32, Failure> + Copy {
    by_error(|_: &Failure| Kind::Broken)
}

/// For errors that never come.
#[derive(Clone, Copy)]
struct ByNobody;

impl<E> Classify<u32, E> for ByNobody {
    fn classify(&self, result: Result<&u32, &E>) -> steadfast::Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(_) => Kind::Broken.into(),
        }
    }
}

/// Calls `service` again and again and counts.
fn assert_free<S>(name: &str, mut service: S)
where
    S: Service<Answers, Response = u32, Error = Failure>,
{
    for answers in ANSWERS {
        assert_free_calls(name, answers, || {
            let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
            assert!(ready.is_ready());
            service.call(answers)
        });
    }
}

fn assert_free_calls<F>(name: &str, answers: Answers, mut call: impl FnMut() -> F)
where
    F: Future<Output = Result<u32, Failure>>,
{
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut calls = |count| {
        for _ in 0..count {
            // Within a deadline that somebody else set, too.
            let at = far_away();
            assert_eq!(finish(call()).unwrap(), 42);
            assert_eq!(finish(deadline::scope(at, call())).unwrap(), 42);
        }
    };
    calls(WARM_UP);
    let allocated = measure(|| calls(CALLS));
    assert_eq!(
        allocated.count_total,
        0,
        "{name}, {answers:?}: {} bytes in {} calls",
        allocated.bytes_total,
        2 * CALLS
    );
}

#[allow(clippy::disallowed_methods, reason = "a deadline that never comes")]
fn far_away() -> std::time::Instant {
    std::time::Instant::now() + 3_600 * SECOND
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Polls until the end; nothing here waits for a waker.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

fn answer(answers: Answers) -> Answer<Failure> {
    Answer::new(answers)
}

fn bare_answer(answers: Answers) -> Answer<Infallible> {
    Answer::new(answers)
}

/// The answer to everything.
struct Answer<E> {
    waits: bool,
    error: std::marker::PhantomData<E>,
}

impl<E> Answer<E> {
    fn new(answers: Answers) -> Self {
        Self {
            waits: matches!(answers, Answers::AfterOneWait),
            error: std::marker::PhantomData,
        }
    }
}

impl<E: Unpin> Future for Answer<E> {
    type Output = Result<u32, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.waits {
            self.waits = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(42))
    }
}

#[derive(Clone)]
struct Inner;

impl Service<Answers> for Inner {
    type Response = u32;
    type Error = Failure;
    type Future = Answer<Failure>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, answers: Answers) -> Answer<Failure> {
        answer(answers)
    }
}

/// A service whose error can't carry a refusal.
#[derive(Clone)]
struct Bare;

impl Service<Answers> for Bare {
    type Response = u32;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, answers: Answers) -> Answer<Infallible> {
        bare_answer(answers)
    }
}
