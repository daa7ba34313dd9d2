//! The limiter, as a layer, in a shield and by hand, on tokio's paused clock. `L1` .. name the faults of peers that we
//! must not have.
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

#[path = "support/blocked.rs"]
mod blocked;

use std::{
    future::{self, Future},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use blocked::without_blocking;
use steadfast::{
    ConcurrencyLimiter, Deadline, Event, Kind, Observer, Overload, Rejected, Shield, by_error,
    deadline, limit, limit::Hold,
};
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3_600);

const QUEUE_FULL: Rejected = Rejected::Overloaded {
    reason: Overload::QueueFull,
};
const TOO_LITTLE_TIME: Rejected = Rejected::Overloaded {
    reason: Overload::TooLittleTime,
};
const NOT_SENT: Rejected = Rejected::DeadlineExceeded { sent: false };

/// The ways by which a call can get to a limiter.
#[derive(Clone, Copy, Debug)]
enum Way {
    Layer,
    Run,
    ShieldLayer,
    Acquire,
}

const WAYS: [Way; 4] = [Way::Layer, Way::Run, Way::ShieldLayer, Way::Acquire];

/// The ways in which the limiter calls a service of ours.
const SERVICES: [Way; 3] = [Way::Layer, Way::Run, Way::ShieldLayer];

type Call<T = ()> = Pin<Box<dyn Future<Output = Result<T, Rejected>> + Send>>;

/// What runs in a slot: it says that it was begun, and works as long as it is told.
#[derive(Clone, Default)]
struct Worker {
    begun: Arc<AtomicU32>,
}

impl Worker {
    async fn work(self, time: Duration) -> Result<(), Rejected> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        sleep(time).await;
        Ok(())
    }

    fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// A call that works for `time` and has `within` in all; nothing happens before it is polled.
    fn call(
        &self,
        way: Way,
        limiter: &ConcurrencyLimiter,
        within: Duration,
        time: Duration,
    ) -> Call {
        let worker = self.clone();
        if let Way::Acquire = way {
            let limiter = limiter.clone();
            return Box::pin(async move {
                let at = std::time::Instant::from(Instant::now() + within);
                let _permit = deadline::scope(at, limiter.acquire()).await?;
                worker.work(time).await
            });
        }
        let work = move || worker.clone().work(time);
        call(way, limiter, within, work)
    }
}

/// A call of `work` through `limiter`.
fn call<T, F, Fut>(way: Way, limiter: &ConcurrencyLimiter, within: Duration, work: F) -> Call<T>
where
    T: Send + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<T, Rejected>> + Send + 'static,
{
    let shield = Shield::builder(by_error(|_: &Rejected| Kind::Ignored))
        .deadline(within)
        .attempt_deadline(within)
        .without_retry()
        .without_breaker()
        .limiter(limiter)
        .build()
        .unwrap();
    let service = {
        let work = work.clone();
        service_fn(move |()| work())
    };
    match way {
        Way::Layer => {
            let service = ServiceBuilder::new()
                .layer(Deadline::new(within).unwrap().layer())
                .layer(limiter.layer())
                .service(service);
            Box::pin(service.oneshot(()))
        }
        Way::Run => Box::pin(async move { shield.run(work).await }),
        Way::ShieldLayer => Box::pin(shield.layer(service).oneshot(())),
        Way::Acquire => unreachable!("by hand, nothing of ours calls anything"),
    }
}

fn limiter(in_flight: usize, queue: usize) -> ConcurrencyLimiter {
    let builder = ConcurrencyLimiter::builder(in_flight).queue(queue);
    if queue == 0 {
        return builder.build().unwrap();
    }
    builder.max_wait(DAY).build().unwrap()
}

fn counts(limiter: &ConcurrencyLimiter) -> (usize, usize) {
    let stats = limiter.stats();
    (stats.in_flight, stats.waiting)
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Bell(AtomicU32);

impl Bell {
    fn rung(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// L1
#[tokio::test(start_paused = true)]
async fn idle_handles_hold_nothing() {
    let limiter = limiter(10, 0);
    let worker = Worker::default();
    let service = {
        let worker = worker.clone();
        service_fn(move |()| worker.clone().work(SECOND))
    };
    let shield = Shield::builder(by_error(|_: &Rejected| Kind::Ignored)).limiter(&limiter);
    let shield = shield.build().unwrap();
    let mut layered = vec![limiter.layer().layer(service.clone()); 100];
    let mut shielded = vec![shield.layer(service.clone()); 100];
    for idle in &mut layered {
        idle.ready().await.unwrap();
    }
    for idle in &mut shielded {
        idle.ready().await.unwrap();
    }
    assert_eq!(counts(&limiter), (0, 0));
    limiter.layer().layer(service).oneshot(()).await.unwrap();
    shielded[7].call(()).await.unwrap();
    layered[7].call(()).await.unwrap();
    assert_eq!(worker.begun(), 3);
}

// L2
#[tokio::test(start_paused = true)]
async fn whoever_gave_up_waiting_captures_no_slot() {
    for way in WAYS {
        let limiter = limiter(1, 10);
        let worker = Worker::default();
        let mut running = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        assert_pending!(running.poll());

        let mut service = limiter
            .layer()
            .layer(service_fn(async |()| Ok::<_, Rejected>(())));
        let ready = timeout(MS, service.ready()).await;
        assert!(ready.is_ok(), "readiness does not wait for a slot");
        let waiting = worker.call(way, &limiter, DAY, SECOND);
        assert!(timeout(MS, waiting).await.is_err(), "{way:?}");
        assert_eq!(counts(&limiter), (1, 0), "{way:?}");

        advance(SECOND).await;
        assert_ready_ok!(running.poll());
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
        assert!(limiter.try_acquire().is_some(), "{way:?}");
    }
}

// L3
#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    for way in WAYS {
        let limiter = limiter(1, 2);
        let worker = Worker::default();
        let mut calls = Vec::new();
        for _ in 0..3 {
            let mut call = task::spawn(worker.call(way, &limiter, DAY, SECOND));
            assert_pending!(call.poll());
            calls.push(call);
        }
        assert_eq!(counts(&limiter), (1, 2), "{way:?}");
        let one_more = worker.call(way, &limiter, DAY, SECOND).await;
        assert_eq!(one_more, Err(QUEUE_FULL), "{way:?}");
        calls.pop();
        let mut one_more = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        assert_pending!(one_more.poll(), "a place is free");
        assert_eq!(worker.begun(), 1, "{way:?}");
    }
}

// L3
#[tokio::test(start_paused = true)]
async fn waiting_counts_against_the_deadline() {
    for way in WAYS {
        let limiter = limiter(1, 2);
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let start = Instant::now();
        let result = worker.call(way, &limiter, 200 * MS, SECOND).await;
        assert_eq!(result, Err(NOT_SENT), "{way:?}");
        assert_eq!(start.elapsed(), 200 * MS, "{way:?}");
        assert_eq!((worker.begun(), counts(&limiter)), (0, (1, 0)), "{way:?}");
    }
}

// L4
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_told_from_a_timeout() {
    for way in WAYS {
        let limiter = limiter(1, 0);
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let rejected = worker.call(way, &limiter, DAY, SECOND).await.unwrap_err();
        assert_eq!(rejected, QUEUE_FULL, "{way:?}");
        let error = io::Error::from(rejected);
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    }
}

/// A call that takes 100 ms in the only slot of `limiter`, while another one waits: a sample is taken of it.
async fn sample(limiter: &ConcurrencyLimiter, time: Duration) {
    let worker = Worker::default();
    let first = worker.call(Way::Layer, limiter, DAY, time);
    let second = worker.call(Way::Layer, limiter, DAY, Duration::ZERO);
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    second.unwrap();
    assert_eq!(counts(limiter), (0, 0));
}

// L5
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_time_is_too_short_is_shed_when_its_turn_comes() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        // Nothing is known yet: both may wait.
        let mut short = task::spawn(worker.call(way, &limiter, 130 * MS, 100 * MS));
        let mut long = task::spawn(worker.call(way, &limiter, DAY, 100 * MS));
        let mut first = task::spawn(worker.call(way, &limiter, DAY, 100 * MS));
        assert_pending!(first.poll());
        assert_pending!(short.poll());
        assert_pending!(long.poll());
        drop(running);
        assert_pending!(first.poll(), "it works");
        advance(100 * MS).await;
        assert_ready_ok!(first.poll());
        // A call takes 100 ms, and 30 are left.
        assert!(short.is_woken() && long.is_woken(), "{way:?}");
        assert_eq!(assert_ready!(short.poll()), Err(TOO_LITTLE_TIME));
        assert_pending!(long.poll());
        assert_eq!(worker.begun(), 2, "{way:?}");
    }
}

/// Sends a call every `interval`, each with 300 ms in all; how many succeeded, and how many were sent in vain.
async fn load(
    way: Way,
    limiter: &ConcurrencyLimiter,
    calls: u32,
    interval: Duration,
) -> (u32, u32) {
    let worker = Worker::default();
    let mut set = JoinSet::new();
    for _ in 0..calls {
        set.spawn(worker.call(way, limiter, 300 * MS, 100 * MS));
        sleep(interval).await;
    }
    let results = set.join_all().await;
    let succeeded = results.iter().filter(|result| result.is_ok()).count() as u32;
    (succeeded, worker.begun() - succeeded)
}

// L5
#[tokio::test(start_paused = true)]
async fn an_overload_neither_wastes_slots_nor_outlives_its_cause() {
    for way in SERVICES {
        // 20 calls a second can be served, and 40 come.
        let limiter = limiter(2, 1_000);
        let (succeeded, in_vain) = load(way, &limiter, 400, 25 * MS).await;
        assert!(
            succeeded >= 195,
            "{way:?}: {succeeded} of 200 possible ones"
        );
        assert!(in_vain <= 4, "{way:?}: {in_vain} were sent in vain");
        // Then 17 a second.
        let (succeeded, in_vain) = load(way, &limiter, 100, 60 * MS).await;
        assert_eq!((succeeded, in_vain), (100, 0), "{way:?}");
    }
}

// L7
#[test]
fn a_limit_of_nothing_is_refused_when_it_is_built() {
    assert_eq!(
        ConcurrencyLimiter::new(0).unwrap_err().setting(),
        "in_flight"
    );
    assert!(ConcurrencyLimiter::new(1).is_ok());
}

// L9
#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_once() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(bell.clone());
        let mut cx = Context::from_waker(&waker);
        let mut call = worker.call(way, &limiter, DAY, SECOND);
        assert_pending!(call.as_mut().poll(&mut cx));
        advance(SECOND).await;
        assert_pending!(call.as_mut().poll(&mut cx));
        assert_eq!(bell.rung(), 0, "{way:?}");
        drop(running);
        assert_eq!(bell.rung(), 1, "{way:?}");
        assert_pending!(call.as_mut().poll(&mut cx));
        assert_eq!((bell.rung(), worker.begun()), (1, 1), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_pass_in_order_of_arrival() {
    for way in WAYS {
        let limiter = limiter(2, 99);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut set = JoinSet::new();
        for n in 0..20 {
            let call = Worker::default().call(way, &limiter, DAY, 10 * MS);
            let order = order.clone();
            set.spawn(async move {
                call.await.unwrap();
                order.lock().unwrap().push((n, Instant::now()));
            });
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        set.join_all().await;
        assert_eq!(start.elapsed(), 100 * MS, "{way:?}: two at a time");
        let order = order.lock().unwrap();
        assert!(order.is_sorted_by_key(|(n, _)| n / 2), "{way:?}: {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_those_who_wait() {
    let limiter = limiter(1, 9);
    let running = limiter.try_acquire().unwrap();
    let mut waiting = task::spawn(limiter.acquire());
    assert_pending!(waiting.poll());
    drop(running);
    assert!(limiter.try_acquire().is_none(), "the slot is the waiter's");
    assert_eq!(counts(&limiter), (1, 0));
    let permit = assert_ready_ok!(waiting.poll());
    assert!(limiter.try_acquire().is_none());
    drop(permit);
    assert!(limiter.try_acquire().is_some());
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_from_the_middle_of_the_queue_stops_nobody() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let mut calls = Vec::new();
        for _ in 0..4 {
            let mut call = task::spawn(worker.call(way, &limiter, DAY, 10 * MS));
            assert_pending!(call.poll());
            calls.push(call);
        }
        drop(calls.remove(1));
        drop(calls.remove(1));
        assert_eq!(counts(&limiter), (1, 2), "{way:?}");
        drop(running);
        assert!(calls[0].is_woken() && !calls[1].is_woken(), "{way:?}");
        assert_pending!(calls[0].poll());
        advance(10 * MS).await;
        assert_ready_ok!(calls[0].poll());
        assert!(calls[1].is_woken(), "{way:?}");
        assert_pending!(calls[1].poll());
        assert_eq!(counts(&limiter), (1, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_given_to_somebody_who_leaves_goes_to_the_next() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let mut first = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        let mut second = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        drop(running);
        assert!(first.is_woken() && !second.is_woken(), "{way:?}");
        drop(first);
        assert!(second.is_woken(), "{way:?}");
        assert_pending!(second.poll());
        assert_eq!((worker.begun(), counts(&limiter)), (1, (1, 0)), "{way:?}");
        drop(second);
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_no_longer_than_max_wait() {
    for way in WAYS {
        let limiter = ConcurrencyLimiter::builder(1).max_wait(300 * MS);
        let limiter = limiter.build().unwrap();
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let start = Instant::now();
        let result = worker.call(way, &limiter, DAY, SECOND).await;
        let reason = Overload::MaxWait;
        assert_eq!(result, Err(Rejected::Overloaded { reason }), "{way:?}");
        assert_eq!(start.elapsed(), 300 * MS, "{way:?}");
        let result = worker.call(way, &limiter, 200 * MS, SECOND).await;
        assert_eq!(result, Err(NOT_SENT), "{way:?}: the deadline is earlier");
        assert_eq!(start.elapsed(), 500 * MS, "{way:?}");
        assert_eq!(counts(&limiter), (1, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_woken_after_its_deadline_does_not_call() {
    for way in SERVICES {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let mut call = task::spawn(worker.call(way, &limiter, 100 * MS, SECOND));
        assert_pending!(call.poll());
        advance(90 * MS).await;
        drop(running);
        advance(20 * MS).await;
        assert_eq!(assert_ready!(call.poll()), Err(NOT_SENT), "{way:?}");
        assert_eq!((worker.begun(), counts(&limiter)), (0, (0, 0)), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_with_too_little_time_for_its_place_is_shed_on_entering() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        sample(&limiter, 100 * MS).await;
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        // One before it, and itself.
        let result = worker.call(way, &limiter, 190 * MS, SECOND).await;
        assert_eq!(result, Err(TOO_LITTLE_TIME), "{way:?}");
        let mut first = task::spawn(worker.call(way, &limiter, 210 * MS, SECOND));
        assert_pending!(first.poll());
        let result = worker.call(way, &limiter, 290 * MS, SECOND).await;
        assert_eq!(result, Err(TOO_LITTLE_TIME), "{way:?}");
        let mut second = task::spawn(worker.call(way, &limiter, 310 * MS, SECOND));
        assert_pending!(second.poll());
        assert_eq!(worker.begun(), 0, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_expected_fades_so_that_it_shuts_nobody_out_for_ever() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        sample(&limiter, SECOND).await;
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let short = || task::spawn(worker.call(way, &limiter, 300 * MS, SECOND));
        assert_eq!(
            assert_ready!(short().poll()),
            Err(TOO_LITTLE_TIME),
            "{way:?}"
        );
        advance(2 * SECOND).await;
        assert_eq!(
            assert_ready!(short().poll()),
            Err(TOO_LITTLE_TIME),
            "{way:?}"
        );
        advance(SECOND).await;
        assert_pending!(short().poll(), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_finds_a_free_slot_is_never_shed() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        sample(&limiter, SECOND).await;
        let worker = Worker::default();
        let result = worker.call(way, &limiter, 20 * MS, 10 * MS).await;
        assert_eq!(result, Ok(()), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_reported() {
    #[derive(Clone, Default)]
    struct Refusals(Arc<Mutex<Vec<(String, Rejected)>>>);

    impl Observer for Refusals {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::Refused { name, rejected, .. } = event {
                let refusal = (name.to_string(), Rejected::clone(rejected));
                self.0.lock().unwrap().push(refusal);
            }
        }
    }

    for way in WAYS {
        let refusals = Refusals::default();
        let limiter = ConcurrencyLimiter::builder(1)
            .queue(1)
            .name("pool")
            .observer(refusals.clone())
            .build()
            .unwrap();
        let _running = limiter.try_acquire().unwrap();
        let worker = Worker::default();
        let mut waiting = task::spawn(worker.call(way, &limiter, SECOND, SECOND));
        assert_pending!(waiting.poll());
        worker.call(way, &limiter, DAY, SECOND).await.unwrap_err();
        waiting.await.unwrap_err();
        let expected = [QUEUE_FULL, NOT_SENT].map(|rejected| ("pool".to_owned(), rejected));
        assert_eq!(*refusals.0.lock().unwrap(), expected, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_frees_its_slot() {
    for way in WAYS {
        let limiter = limiter(1, 9);
        let worker = Worker::default();
        let mut call = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        assert_pending!(call.poll());
        let mut waiting = task::spawn(worker.call(way, &limiter, DAY, SECOND));
        assert_pending!(waiting.poll());
        drop(call);
        assert!(waiting.is_woken(), "{way:?}");
        drop(waiting);
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_frees_its_slot() {
    for way in SERVICES {
        let limiter = limiter(1, 0);
        let panics = || async { panic!("on purpose") };
        let call: Call = call(way, &limiter, DAY, panics);
        tokio::spawn(call).await.unwrap_err();
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_call_frees_its_slot() {
    for way in SERVICES {
        let limiter = limiter(1, 0);
        let call: Call = call(way, &limiter, SECOND, future::pending);
        let cut_off = Rejected::DeadlineExceeded { sent: true };
        assert_eq!(call.await, Err(cut_off), "{way:?}");
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_inner_call_is_dropped_before_its_slot_is_free() {
    struct Spy(ConcurrencyLimiter, Arc<AtomicU32>);

    impl Drop for Spy {
        fn drop(&mut self) {
            let in_flight = self.0.stats().in_flight as u32;
            self.1.store(in_flight, Ordering::Relaxed);
        }
    }

    for way in SERVICES {
        let limiter = limiter(3, 0);
        let seen = Arc::new(AtomicU32::new(9));
        let spy = {
            let (limiter, seen) = (limiter.clone(), seen.clone());
            move || {
                let spy = Spy(limiter.clone(), seen.clone());
                async move {
                    let _spy = spy;
                    future::pending().await
                }
            }
        };
        let mut call: task::Spawn<Call> = task::spawn(call(way, &limiter, DAY, spy));
        assert_pending!(call.poll());
        drop(call);
        assert_eq!(seen.load(Ordering::Relaxed), 1, "{way:?}");
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_that_was_readied_is_the_one_that_is_called() {
    let worker = Worker::default();
    let inner = service_fn({
        let worker = worker.clone();
        move |()| worker.clone().work(10 * MS)
    });
    // It panics when it is called without having been readied.
    let inner = tower::limit::ConcurrencyLimit::new(inner, 1);
    let mut service = limiter(2, 9).layer().layer(inner);
    let calls: Vec<_> = (0..9).map(|_| service.call(())).collect();
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!(worker.begun(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_permit_taken_by_hand_may_go_anywhere() {
    let limiter = limiter(2, 9);
    let first = limiter.acquire().await.unwrap();
    let second = limiter.clone().try_acquire().unwrap();
    assert!(limiter.try_acquire().is_none());
    let mut third = task::spawn(limiter.acquire());
    assert_pending!(third.poll());
    thread::spawn(move || drop(first)).join().unwrap();
    assert!(third.is_woken());
    let third = assert_ready_ok!(third.poll());
    drop((second, third));
    assert_eq!(counts(&limiter), (0, 0));
}

#[test]
fn the_queue_has_fifty_places_for_each_slot_and_a_thousand_at_most() {
    for (limit, queue) in [(1, 50), (19, 950), (20, 1_000), (500, 1_000)] {
        let stats = ConcurrencyLimiter::new(limit).unwrap().stats();
        assert_eq!((stats.limit, stats.queue), (limit, queue));
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = [
        (ConcurrencyLimiter::builder(1_000_001), "in_flight"),
        (ConcurrencyLimiter::builder(1).queue(1_000_001), "queue"),
        (
            ConcurrencyLimiter::builder(1).max_wait(Duration::ZERO),
            "max_wait",
        ),
        (
            ConcurrencyLimiter::builder(1).max_wait(400 * DAY),
            "max_wait",
        ),
        (
            ConcurrencyLimiter::builder(1).queue(0).max_wait(SECOND),
            "max_wait",
        ),
    ];
    for (builder, setting) in refused {
        assert_eq!(builder.build().unwrap_err().setting(), setting);
    }
}

/// When a call asks for a hold.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Before its future exists.
    InCall,
    InFirstPoll,
    AfterFirstPoll,
}

/// A call that returns a hold on its slot.
fn holding(way: Way, limiter: &ConcurrencyLimiter, ask: Ask) -> Call<Option<Hold>> {
    call(way, limiter, DAY, move || {
        let early = match ask {
            Ask::InCall => limit::hold(),
            Ask::InFirstPoll | Ask::AfterFirstPoll => None,
        };
        async move {
            if let Ask::AfterFirstPoll = ask {
                tokio::task::yield_now().await;
            }
            Ok(early.or_else(limit::hold))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_hold_keeps_the_slot_beyond_the_end_of_its_call() {
    for way in SERVICES {
        for ask in [Ask::InCall, Ask::InFirstPoll, Ask::AfterFirstPoll] {
            let limiter = limiter(1, 9);
            let hold = holding(way, &limiter, ask).await.unwrap();
            assert!(hold.is_some());
            assert_eq!(counts(&limiter), (1, 0), "{way:?}, {ask:?}");
            let mut next = task::spawn(limiter.acquire());
            assert_pending!(next.poll());
            drop(hold);
            assert!(next.is_woken(), "{way:?}, {ask:?}");
            drop(next);
            assert_eq!(counts(&limiter), (0, 0), "{way:?}, {ask:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_when_the_last_of_its_holds_is_gone() {
    for way in SERVICES {
        let limiter = limiter(1, 0);
        let call = call(way, &limiter, DAY, || async {
            let early = limit::hold();
            tokio::task::yield_now().await;
            Ok([early.clone(), early, limit::hold()])
        });
        let [first, second, third] = call.await.unwrap();
        drop(first);
        drop(third);
        assert_eq!(counts(&limiter), (1, 0), "{way:?}");
        drop(second);
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_dropped_within_its_call_frees_nothing() {
    for way in SERVICES {
        let limiter = limiter(1, 0);
        let within = limiter.clone();
        let call = call(way, &limiter, DAY, move || {
            let limiter = within.clone();
            drop(limit::hold());
            async move {
                drop(limit::hold());
                tokio::task::yield_now().await;
                Ok(counts(&limiter))
            }
        });
        assert_eq!(call.await, Ok((1, 0)), "{way:?}");
        assert_eq!(counts(&limiter), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_nested_limiters_a_hold_is_the_innermost_ones() {
    let [outer, inner] = [limiter(1, 0), limiter(1, 0)];
    let holding = service_fn(async |()| Ok::<_, Rejected>(limit::hold()));
    let nested = ServiceBuilder::new()
        .layer(outer.layer())
        .map_future(async |inner: limit::ResponseFuture<_, ()>| {
            let of_inner: Option<Hold> = inner.await?;
            Ok::<_, Rejected>((of_inner, limit::hold()))
        })
        .layer(inner.layer())
        .service(holding);
    let (of_inner, of_outer) = nested.oneshot(()).await.unwrap();
    assert_eq!((counts(&outer).0, counts(&inner).0), (1, 1));
    drop(of_inner);
    assert_eq!((counts(&outer).0, counts(&inner).0), (1, 0));
    drop(of_outer);
    assert_eq!((counts(&outer).0, counts(&inner).0), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hold_outlives_a_call_that_panics_or_is_dropped() {
    for way in SERVICES {
        for panics in [true, false] {
            let limiter = limiter(1, 0);
            let kept = Arc::new(Mutex::new(None));
            let work = {
                let kept = kept.clone();
                move || {
                    let kept = kept.clone();
                    async move {
                        *kept.lock().unwrap() = limit::hold();
                        assert!(!panics, "on purpose");
                        future::pending().await
                    }
                }
            };
            let mut call: task::Spawn<Call> = task::spawn(call(way, &limiter, DAY, work));
            let polled = catch_unwind(AssertUnwindSafe(|| call.poll().is_pending()));
            assert_eq!(polled.is_err(), panics);
            assert!(limit::hold().is_none(), "{way:?}: the call is left");
            drop(call);
            assert_eq!(counts(&limiter), (1, 0), "{way:?}");
            let hold = kept.lock().unwrap().take();
            assert!(hold.is_some());
            thread::spawn(move || drop(hold)).join().unwrap();
            assert_eq!(counts(&limiter), (0, 0), "{way:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_nothing_to_hold_outside_of_a_call() {
    let limiter = limiter(1, 0);
    assert!(limit::hold().is_none());
    let permit = limiter.acquire().await.unwrap();
    assert!(limit::hold().is_none());
    drop(permit);
    let spawned = call(Way::Layer, &limiter, DAY, || async {
        let spawned = tokio::spawn(async { limit::hold() });
        Ok(spawned.await.unwrap())
    });
    assert!(
        spawned.await.unwrap().is_none(),
        "a task does not inherit it"
    );
}

// A task that only its wakers keep alive dies with the last of them, and what it had waited for is given up then.
#[tokio::test(start_paused = true)]
async fn a_waker_may_take_a_waiter_with_it_when_it_is_dropped() {
    struct LastOwner {
        _task: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
    }

    impl Wake for LastOwner {
        fn wake(self: Arc<Self>) {}
    }

    for granted in [false, true] {
        let limiter = limiter(1, 9);
        let running = limiter.try_acquire().unwrap();
        let wait = || {
            let limiter = limiter.clone();
            Box::pin(async move { drop(limiter.acquire().await) })
        };
        let (mut moving, mut owned) = (wait(), wait());
        for waiting in [&mut moving, &mut owned] {
            let mut cx = Context::from_waker(Waker::noop());
            assert_pending!(waiting.as_mut().poll(&mut cx));
        }
        let waker = Waker::from(Arc::new(LastOwner {
            _task: Mutex::new(owned),
        }));
        assert_pending!(moving.as_mut().poll(&mut Context::from_waker(&waker)));
        drop(waker);
        // The timer goes off and lets go of the waker: now only the queue owns that task, which waits in the same queue.
        advance(DAY).await;
        assert_eq!(counts(&limiter), (1, 2));
        without_blocking(move || {
            if granted {
                drop(running);
                assert_eq!(counts(&limiter), (1, 0));
            }
            // Where nothing was granted: polled by another task, the limiter drops the waker of the first.
            let mut cx = Context::from_waker(Waker::noop());
            assert_ready!(moving.as_mut().poll(&mut cx));
            assert_eq!(counts(&limiter), (usize::from(!granted), 0));
        });
    }
}
