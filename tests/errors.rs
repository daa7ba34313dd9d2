//! The lessons on errors, composition and cost: rows E1, E2, E5, E8 and E9. Row E4 stands in `alloc.rs`.
#![cfg(feature = "tower")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    error::Error as StdError,
    fmt,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, Deadline, Error, Event, Kind, Observer, Overload,
    Refusal, Rejected, Retry, Shield,
    breaker::State,
    by_error,
    error::WrapLayer,
    event::Name,
    retry::{Backoff, Budget, Jitter},
};
use tokio::{
    sync::Semaphore,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, task::spawn};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

// Row E1.
#[tokio::test(start_paused = true)]
async fn one_flat_error_comes_out_of_five_layers_and_its_source_works() {
    let service = ServiceBuilder::new()
        .layer(stack(by_error(|_: &Error<Query>| Kind::Broken)))
        .layer(WrapLayer)
        .service_fn(async |(): ()| Err::<(), _>(Query(io::Error::other("disk full"))));
    let error: Error<Query> = service.oneshot(()).await.unwrap_err();
    assert_eq!(error.to_string(), "query failed");
    assert_eq!(messages(&error), ["query failed", "disk full"]);
    assert!(matches!(error, Error::Inner(Query(_))));
}

// Row E1.
#[test]
fn a_refusal_is_found_in_any_error_that_carries_it() {
    let refusal = || Rejected::Overloaded {
        reason: Overload::QueueFull,
    };
    let io = || io::Error::from(refusal());
    let boxed = || BoxError::from(refusal());
    let carriers: [(&str, BoxError); 10] = [
        ("itself", refusal().into()),
        ("Error<E>", Error::<Query>::from(refusal()).into()),
        (
            "Error<Error<E>>",
            Error::Inner(Error::<Query>::from(refusal())).into(),
        ),
        ("BoxError", boxed()),
        ("io::Error", io().into()),
        ("io::Error of a BoxError", io::Error::other(boxed()).into()),
        ("io::Error of an io::Error", io::Error::other(io()).into()),
        ("the source of an error", Query(io()).into()),
        ("Error<io::Error>", Error::Inner(io()).into()),
        (
            "an error that is transparent to it",
            Transparent::from(io()).into(),
        ),
    ];
    for (carrier, error) in carriers {
        let found = Rejected::of(&*error);
        assert_eq!(found, Some(&refusal()), "{carrier}: {error:?}");
        let chain = messages(&*error);
        let shown = refusal().to_string();
        assert!(chain.contains(&shown), "{carrier}: {chain:?}");
    }
    let foreign: [BoxError; 3] = [
        "circuit open".into(),
        io::Error::from(io::ErrorKind::TimedOut).into(),
        Query(io::Error::other("disk full")).into(),
    ];
    for error in foreign {
        assert_eq!(Rejected::of(&*error), None, "{error:?}");
    }
}

// Row E1.
#[test]
fn every_error_that_can_be_refused_gives_the_refusal_back() {
    fn there_and_back<E: Refusal + fmt::Debug>() {
        let refusals = [
            Rejected::CircuitOpen {
                retry_after: SECOND,
            },
            Rejected::DeadlineExceeded { sent: false },
            Rejected::DeadlineExceeded { sent: true },
            Rejected::Overloaded {
                reason: Overload::MaxWait,
            },
        ];
        for refusal in refusals {
            let error = E::from(refusal.clone());
            assert_eq!(error.rejected(), Some(&refusal), "{error:?}");
        }
    }
    there_and_back::<Rejected>();
    there_and_back::<Error<Query>>();
    there_and_back::<BoxError>();
    there_and_back::<io::Error>();
}

// Row E2.
#[tokio::test(start_paused = true)]
async fn the_error_type_is_kept_through_a_whole_stack_and_so_is_the_error() {
    async fn kept<E>(error: impl Fn() -> E + Clone + Send)
    where
        E: Refusal + fmt::Debug + Send + Sync + 'static,
    {
        let shown = format!("{:?}", error());
        let classify = by_error(|_: &E| Kind::Invalid);
        let inner = || {
            let error = error.clone();
            service_fn(move |(): ()| std::future::ready(Err::<(), E>(error())))
        };
        let layered: Result<(), E> = stack(classify).layer(inner()).oneshot(()).await;
        assert_eq!(format!("{:?}", layered.unwrap_err()), shown);
        let shield = Shield::builder(classify).build().unwrap();
        let layered: Result<(), E> = shield.layer(inner()).oneshot(()).await;
        assert_eq!(format!("{:?}", layered.unwrap_err()), shown);
        let run: Result<(), E> = shield.run(async || Err(error())).await;
        assert_eq!(format!("{:?}", run.unwrap_err()), shown);
    }
    kept(|| io::Error::from(io::ErrorKind::NotFound)).await;
    kept(|| BoxError::from("no such row")).await;
    kept(|| Error::Inner(Query(io::Error::other("disk full")))).await;
    kept(|| Transparent::from(io::Error::other("disk full"))).await;
}

// Row E5.
#[test]
fn every_event_carries_the_one_shared_name() {
    let names = Arc::new(Names::default());
    let name = Name::from(String::from("a name of one tenant of many"));
    let first = name.as_str().as_ptr() as usize;
    let breaker = Breaker::consecutive(1)
        .name(name.clone())
        .observer(names.clone())
        .build()
        .unwrap();
    let limiter = ConcurrencyLimiter::builder(1)
        .queue(0)
        .name(name)
        .observer(names.clone())
        .build()
        .unwrap();
    breaker.admit().unwrap().settle(Kind::Broken);
    breaker.clone().admit().unwrap_err();
    let slot = limiter.try_acquire();
    assert_ready!(spawn(limiter.acquire()).poll()).unwrap_err();
    drop(slot);
    assert_eq!(*names.0.lock().unwrap(), [first; 3]);
}

// Row E5.
#[tokio::test(start_paused = true)]
async fn a_call_to_which_nothing_happens_builds_no_event() {
    let events = Arc::new(Events::default());
    let breaker = Breaker::builder().observer(events.clone()).build().unwrap();
    let classify = by_error(|_: &io::Error| Kind::Unavailable);
    let shield = Shield::builder(classify)
        .observer(events.clone())
        .retry(Retry::builder().observer(events.clone()).build().unwrap())
        .breaker(&breaker)
        .build()
        .unwrap();
    for _ in 0..100 {
        breaker.admit().unwrap().settle(Kind::Success);
        shield.run(async || io::Result::Ok(())).await.unwrap();
    }
    // A failure that opens nothing.
    breaker.admit().unwrap().settle(Kind::Broken);
    assert_eq!(events.take(), [""; 0]);
    breaker.force_open();
    assert_eq!(events.take(), ["transition"], "somebody does listen");
}

// Row E8.
#[tokio::test(start_paused = true)]
async fn a_retry_neither_repeats_nor_charges_nor_reports_the_breakers_refusals() {
    for (name, build) in with_retry_and_breaker() {
        let Parts {
            service,
            breaker,
            budget,
            events,
            calls,
            ..
        } = build();
        breaker.force_open();
        events.take();
        let error = service.oneshot(()).await.unwrap_err();
        assert!(
            matches!(Rejected::of(&error), Some(Rejected::CircuitOpen { .. })),
            "{name}: {error}"
        );
        assert_eq!(events.take(), ["refused"], "{name}: once, and no retry");
        assert_eq!(calls.load(Ordering::Relaxed), 0, "{name}");
        assert!(budget.withdraw(), "{name}: the one repeat is still there");
        assert!(!budget.withdraw(), "{name}: there was but one");
    }
}

// Row E8.
#[tokio::test(start_paused = true)]
async fn a_retry_hands_back_the_last_answer_when_its_repeat_is_refused() {
    for (name, build) in with_retry_and_breaker() {
        let Parts {
            service,
            breaker,
            events,
            calls,
            ..
        } = build();
        // The first failure opens the circuit, so that the repeat is refused.
        let error = service.oneshot(()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}: {error}");
        assert_eq!(breaker.state(), State::Open, "{name}");
        assert_eq!(calls.load(Ordering::Relaxed), 1, "{name}");
        assert_eq!(events.take(), ["transition", "retry", "refused"], "{name}");
    }
}

// Row E8.
#[tokio::test(start_paused = true)]
async fn a_limiters_refusal_does_not_trip_the_breaker() {
    for (name, build) in with_retry_and_breaker() {
        let Parts {
            service,
            breaker,
            limiter,
            events,
            ..
        } = build();
        let slot = limiter.try_acquire().expect("free");
        for _ in 0..10 {
            let error = service.clone().oneshot(()).await.unwrap_err();
            assert!(
                matches!(Rejected::of(&error), Some(Rejected::Overloaded { .. })),
                "{name}: {error}"
            );
        }
        assert_eq!(breaker.state(), State::Closed, "{name}");
        assert_eq!(events.take(), ["refused"; 10], "{name}");
        drop(slot);
        // One failure of the service itself does.
        service.oneshot(()).await.unwrap_err();
        assert_eq!(breaker.state(), State::Open, "{name}");
    }
}

// Row E8.
#[tokio::test(start_paused = true)]
async fn a_limiters_refusal_gives_the_probe_back() {
    for (name, build) in with_retry_and_breaker() {
        let Parts {
            service,
            breaker,
            limiter,
            ..
        } = build();
        breaker.admit().unwrap().settle(Kind::Broken);
        sleep(SECOND).await;
        let slot = limiter.try_acquire().expect("free");
        service.oneshot(()).await.unwrap_err();
        assert_eq!(breaker.state(), State::HalfOpen, "{name}");
        drop(slot);
        breaker.admit().expect(name).settle(Kind::Success);
        assert_eq!(breaker.state(), State::Closed, "{name}");
    }
}

// Row E9: tokio makes whatever a task polls be pending once it has done much; a timer may then not say that it is over.
#[tokio::test(start_paused = true)]
async fn a_free_permit_is_never_shed_by_a_task_that_has_used_up_its_budget() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let shield = Shield::builder(by_error(|_: &io::Error| Kind::Broken))
        .limiter(&limiter)
        .build()
        .unwrap();
    let layered = limiter
        .layer()
        .layer(service_fn(async |(): ()| io::Result::Ok(())));
    for _ in 0..3 {
        use_up_the_budget().await;
        assert!(assert_ready!(spawn(limiter.acquire()).poll()).is_ok());
        assert!(assert_ready!(spawn(layered.clone().oneshot(())).poll()).is_ok());
        let run = shield.run(async || io::Result::Ok(()));
        assert!(assert_ready!(spawn(run).poll()).is_ok());
        assert!(is_used_up(), "none of it gave the budget back");
    }
}

// Row E9.
#[tokio::test(start_paused = true)]
async fn a_queued_call_of_such_a_task_gets_the_slot_that_it_was_given() {
    let limiter = ConcurrencyLimiter::builder(1)
        .max_wait(SECOND)
        .build()
        .unwrap();
    let shield = Shield::builder(by_error(|_: &io::Error| Kind::Broken))
        .limiter(&limiter)
        .build()
        .unwrap();
    let layered = ServiceBuilder::new()
        .layer(Deadline::new(SECOND).unwrap().layer())
        .layer(limiter.layer())
        .service_fn(async |(): ()| io::Result::Ok(()));
    let slot = limiter.try_acquire().expect("free");
    let mut acquire = spawn(limiter.acquire());
    let mut layered = spawn(layered.oneshot(()));
    let mut run = spawn(shield.run(async || io::Result::Ok(())));
    for _ in 0..3 {
        use_up_the_budget().await;
        assert_pending!(acquire.poll());
        assert_pending!(layered.poll());
        assert_pending!(run.poll());
        tokio::task::yield_now().await;
    }
    assert_eq!(limiter.stats().waiting, 3);
    drop(slot);
    use_up_the_budget().await;
    assert!(is_used_up());
    drop(assert_ready!(acquire.poll()).unwrap());
    assert!(assert_ready!(layered.poll()).is_ok());
    assert!(assert_ready!(run.poll()).is_ok());
}

// Row E9. A timer that is polled after a call which uses up the budget each time was never told that its time had come,
// so that the deadline of a busy call never struck.
#[tokio::test(start_paused = true)]
async fn a_deadline_strikes_a_call_that_uses_up_the_budget_at_each_poll() {
    async fn busy() -> io::Result<()> {
        poll_fn(|cx| {
            spend(cx);
            Poll::<()>::Pending
        })
        .await;
        Ok(())
    }
    let layered = Deadline::new(SECOND)
        .unwrap()
        .layer()
        .layer(service_fn(async |(): ()| busy().await));
    let shield = Shield::builder(by_error(|_: &io::Error| Kind::Broken))
        .deadline(SECOND)
        .attempt_deadline(SECOND)
        .build()
        .unwrap();
    let mut layered = spawn(layered.oneshot(()));
    let mut run = spawn(shield.run(busy));
    for wait in [0, 999] {
        advance(wait * MS).await;
        assert_pending!(layered.poll());
        tokio::task::yield_now().await;
        assert_pending!(run.poll());
    }
    advance(MS).await;
    let error = assert_ready!(layered.poll()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    tokio::task::yield_now().await;
    let error = assert_ready!(run.poll()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

/// Returns with the budget used up for the rest of this poll of the task.
async fn use_up_the_budget() {
    poll_fn(|cx| {
        spend(cx);
        Poll::Ready(())
    })
    .await;
    assert!(is_used_up());
}

fn spend(cx: &mut Context<'_>) {
    let free = Semaphore::new(1);
    // Each acquisition costs one unit, however many permits are free.
    for _ in 0..10_000 {
        if pin!(free.acquire()).poll(cx).is_pending() {
            return;
        }
    }
    panic!("there is no budget");
}

fn is_used_up() -> bool {
    let free = Semaphore::new(1);
    spawn(free.acquire()).poll().is_pending()
}

/// Deadline, retry, breaker, limiter and attempt deadline, as layers.
fn stack<C: Copy, S>(classify: C) -> impl Layer<S, Service = Stacked<S, C>> {
    (
        Deadline::new(10 * SECOND).unwrap().layer(),
        Retry::default().layer(classify),
        Breaker::default().layer(classify),
        ConcurrencyLimiter::new(1).unwrap().layer(),
        Deadline::new(SECOND).unwrap().layer(),
    )
}

type Stacked<S, C> = steadfast::deadline::DeadlineService<
    steadfast::retry::RetryService<
        steadfast::breaker::BreakerService<
            steadfast::limit::LimitService<steadfast::deadline::DeadlineService<S>>,
            C,
        >,
        C,
    >,
>;

type Failing = tower::util::BoxCloneService<(), (), io::Error>;

type Named<T> = (&'static str, T);

/// A service that always fails, with the parts around it.
struct Parts {
    service: Failing,
    breaker: Breaker,
    limiter: ConcurrencyLimiter,
    budget: Budget,
    events: Arc<Events>,
    calls: Arc<AtomicU32>,
}

/// The same parts as layers, as a shield around a service, and as a shield around a closure.
fn with_retry_and_breaker() -> [Named<fn() -> Parts>; 3] {
    fn build(around: impl FnOnce(&Parts, Retry) -> Failing) -> Parts {
        let events = Arc::new(Events::default());
        let calls = Arc::new(AtomicU32::new(0));
        let inner = service_fn({
            let calls = calls.clone();
            move |(): ()| {
                calls.fetch_add(1, Ordering::Relaxed);
                std::future::ready(Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)))
            }
        });
        let budget = Budget::builder().floor(0.0, 1).build().unwrap();
        let breaker = Breaker::consecutive(1)
            .open_for(SECOND)
            .observer(events.clone());
        let limiter = ConcurrencyLimiter::builder(1)
            .queue(0)
            .observer(events.clone());
        let mut parts = Parts {
            service: Failing::new(inner),
            breaker: breaker.build().unwrap(),
            limiter: limiter.build().unwrap(),
            budget: budget.clone(),
            events: events.clone(),
            calls,
        };
        let retry = Retry::builder()
            .budget(&budget)
            .backoff(Backoff::fixed(10 * MS).jitter(Jitter::None))
            .observer(events);
        parts.service = around(&parts, retry.build().unwrap());
        parts
    }
    fn shield(parts: &Parts, retry: Retry) -> Shield<impl Classify<(), io::Error> + Copy + use<>> {
        Shield::builder(by_error(unavailable))
            .retry(retry)
            .breaker(&parts.breaker)
            .limiter(&parts.limiter)
            .build()
            .unwrap()
    }
    fn unavailable(_: &io::Error) -> Kind {
        Kind::Unavailable
    }
    [
        ("layers", || {
            build(|parts, retry| {
                let layers = (
                    retry.layer(by_error(unavailable)),
                    parts.breaker.layer(by_error(unavailable)),
                    parts.limiter.layer(),
                );
                Failing::new(layers.layer(parts.service.clone()))
            })
        }),
        ("shield as a layer", || {
            build(|parts, retry| Failing::new(shield(parts, retry).layer(parts.service.clone())))
        }),
        ("shield", || {
            build(|parts, retry| {
                let (shield, inner) = (shield(parts, retry), parts.service.clone());
                Failing::new(service_fn(move |(): ()| {
                    let (shield, inner) = (shield.clone(), inner.clone());
                    async move { shield.run(move || inner.clone().oneshot(())).await }
                }))
            })
        }),
    ]
}

/// Notes what kind of events it hears.
#[derive(Default)]
struct Events(Mutex<Vec<&'static str>>);

impl Events {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Events {
    fn on_event(&self, event: &Event<'_>) {
        let kind = match event {
            Event::Retry { .. } => "retry",
            Event::GaveUp { .. } => "gave up",
            Event::Transition { .. } => "transition",
            Event::Refused { .. } => "refused",
            _ => "unknown",
        };
        self.0.lock().unwrap().push(kind);
    }
}

/// Notes where the names of the events are.
#[derive(Default)]
struct Names(Mutex<Vec<usize>>);

impl Observer for Names {
    fn on_event(&self, event: &Event<'_>) {
        let (Event::Transition { name, .. } | Event::Refused { name, .. }) = event else {
            return;
        };
        let at = name.as_str().as_ptr() as usize;
        self.0.lock().unwrap().push(at);
    }
}

/// An error with a source.
#[derive(Debug, thiserror::Error)]
#[error("query failed")]
struct Query(#[source] io::Error);

/// A user's error that shows another one as if it were that.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Transparent(#[from] io::Error);

impl From<Rejected> for Transparent {
    fn from(rejected: Rejected) -> Self {
        Self(rejected.into())
    }
}

impl Refusal for Transparent {
    fn rejected(&self) -> Option<&Rejected> {
        self.0.rejected()
    }
}

/// What a log that walks the sources shows.
fn messages(error: &(dyn StdError + 'static)) -> Vec<String> {
    let sources = std::iter::successors(Some(error), |&error| error.source());
    sources.map(ToString::to_string).collect()
}
