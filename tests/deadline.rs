//! The deadline and its surroundings, on tokio's paused clock.
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    future::{self, Future},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use steadfast::{
    ConcurrencyLimiter, Deadline, Event, Kind, Observer, Rejected, Retry, Shield, by_error,
    deadline::{self, current},
    retry::{Backoff, Jitter},
};
use tokio::{
    runtime,
    task::consume_budget,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const SENT: Rejected = Rejected::DeadlineExceeded { sent: true };
const NOT_SENT: Rejected = Rejected::DeadlineExceeded { sent: false };

type Answer<T = ()> = Result<T, Rejected>;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn within(time: Duration) -> Deadline {
    Deadline::new(time).unwrap()
}

/// What is left of the deadline around the code that runs now.
fn left() -> Option<Duration> {
    current().map(|at| at - now())
}

fn ignore_all() -> impl steadfast::Classify<(), Rejected> + Clone {
    by_error(|_: &Rejected| Kind::Ignored)
}

#[tokio::test(start_paused = true)]
async fn a_call_is_cut_off_at_its_deadline() {
    let service = service_fn(async |()| future::pending::<Answer>().await);
    let start = now();
    let result = within(SECOND).layer().layer(service).oneshot(()).await;
    assert_eq!((result, now() - start), (Err(SENT), SECOND));
}

/// Notes the deadline around it when it is dropped.
struct Note(Arc<Mutex<Vec<Option<Instant>>>>);

impl Drop for Note {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(current());
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_surrounds_the_call_the_poll_and_the_drop() {
    for cut_off in [false, true] {
        for by_shield in [false, true] {
            let notes = Arc::new(Mutex::new(Vec::new()));
            let call = {
                let notes = notes.clone();
                move || {
                    drop(Note(notes.clone()));
                    let dropped = Note(notes.clone());
                    async move {
                        drop(Note(dropped.0.clone()));
                        future::pending::<()>().await;
                        drop(dropped);
                        Answer::Ok(())
                    }
                }
            };
            let at = now() + SECOND;
            let call = async move {
                if by_shield {
                    let shield = Shield::builder(ignore_all()).deadline(SECOND);
                    shield
                        .attempt_deadline(SECOND)
                        .build()
                        .unwrap()
                        .run(call)
                        .await
                } else {
                    let mut service = within(SECOND).layer().layer(service_fn(move |()| call()));
                    service.call(()).await
                }
            };
            let mut call = task::spawn(call);
            assert_pending!(call.poll());
            if cut_off {
                advance(SECOND).await;
                assert_eq!(assert_ready!(call.poll()), Err(SENT));
            } else {
                drop(call);
            }
            assert_eq!(current(), None);
            let notes = notes.lock().unwrap();
            assert_eq!(
                *notes,
                [Some(at); 3],
                "by the shield: {by_shield}, cut off: {cut_off}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_nested_deadline_can_only_be_shorter() {
    for (outer, inner, expected) in [(1, 3, 1), (3, 1, 1), (2, 2, 2)] {
        let nested = ServiceBuilder::new()
            .layer(within(outer * SECOND).layer())
            .layer(within(inner * SECOND).layer())
            .service_fn(async |()| Answer::Ok(left()));
        let expected = Some(expected * SECOND);
        assert_eq!(nested.oneshot(()).await, Ok(expected), "{outer}, {inner}");

        let inner = within(inner * SECOND);
        let shield = Shield::builder(by_error(|_: &Rejected| Kind::Ignored));
        let shield = shield.deadline(outer * SECOND);
        let shield = shield.attempt_deadline(outer * SECOND).build().unwrap();
        let run = shield.run(|| {
            let service = service_fn(async |()| Answer::Ok(left()));
            inner.layer().layer(service).oneshot(())
        });
        assert_eq!(run.await, Ok(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn the_outer_deadline_is_back_when_the_inner_call_is_over() {
    let inner = within(SECOND).layer();
    let call = service_fn(async |()| {
        let nested = inner.layer(service_fn(async |()| Answer::Ok(left())));
        let inside = nested.oneshot(()).await?;
        Answer::Ok((inside, left()))
    });
    let seen = within(5 * SECOND).layer().layer(call).oneshot(()).await;
    assert_eq!(seen, Ok((Some(SECOND), Some(5 * SECOND))));
    assert_eq!(current(), None);
}

#[tokio::test(start_paused = true)]
async fn a_scope_carries_the_deadline_into_a_task() {
    let call = service_fn(async |()| {
        let at = current().expect("there is one");
        let bare = tokio::spawn(async { left() }).await.unwrap();
        let scoped = tokio::spawn(deadline::scope(at, async {
            sleep(300 * MS).await;
            left()
        }));
        Answer::Ok((bare, scoped.await.unwrap()))
    });
    let seen = within(SECOND).layer().layer(call).oneshot(()).await;
    assert_eq!(seen, Ok((None, Some(700 * MS))));
}

#[tokio::test(start_paused = true)]
async fn a_scope_can_only_be_shorter_and_surrounds_the_drop() {
    let call = service_fn(async |()| {
        let longer = deadline::scope(now() + 9 * SECOND, async { left() });
        let shorter = deadline::scope(now() + 200 * MS, async { left() });
        Answer::Ok((longer.await, shorter.await))
    });
    let seen = within(SECOND).layer().layer(call).oneshot(()).await;
    assert_eq!(seen, Ok((Some(SECOND), Some(200 * MS))));

    let notes = Arc::new(Mutex::new(Vec::new()));
    let note = Note(notes.clone());
    let at = now() + SECOND;
    drop(deadline::scope(at, async move { drop(note) }));
    assert_eq!(*notes.lock().unwrap(), [Some(at)]);
}

// The call is made outside of the scope, and polled inside.
#[tokio::test(start_paused = true)]
async fn a_scope_bounds_a_call_that_was_made_before_it() {
    for by_shield in [false, true] {
        let service = service_fn(async |()| future::pending::<Answer>().await);
        let at = now() + SECOND;
        let start = now();
        let result = if by_shield {
            let shield = Shield::builder(ignore_all()).build().unwrap();
            let mut service = shield.layer(service);
            deadline::scope(at, service.call(())).await
        } else {
            let mut service = within(5 * SECOND).layer().layer(service);
            deadline::scope(at, service.call(())).await
        };
        assert_eq!(result, Err(SENT), "by the shield: {by_shield}");
        assert_eq!(now() - start, SECOND, "by the shield: {by_shield}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_scope_that_is_entered_late_bounds_what_is_left_of_a_call() {
    let seen = Mutex::new(Vec::new());
    let shield = Shield::builder(ignore_all()).build().unwrap();
    let call = shield.run(|| async {
        loop {
            seen.lock().unwrap().push(left());
            sleep(SECOND).await;
        }
    });
    let mut call = pin!(call);
    let mut cx = Context::from_waker(Waker::noop());
    assert_pending!(call.as_mut().poll(&mut cx));
    advance(SECOND).await;
    let at = now() + 200 * MS;
    let mut late = pin!(deadline::scope(at, call));
    assert_pending!(late.as_mut().poll(&mut cx));
    assert_eq!(*seen.lock().unwrap(), [Some(3 * SECOND), Some(200 * MS)]);
}

#[tokio::test(start_paused = true)]
async fn it_counts_from_the_first_time_that_the_call_has_to_wait() {
    let service = service_fn(async |()| future::pending::<Answer>().await);
    let mut service = within(SECOND).layer().layer(service);
    let mut call = task::spawn(service.call(()));
    advance(5 * SECOND).await;
    assert_pending!(call.poll());
    advance(999 * MS).await;
    assert_pending!(call.poll());
    advance(MS).await;
    assert!(call.is_woken());
    assert_eq!(assert_ready!(call.poll()), Err(SENT));
}

#[tokio::test(start_paused = true)]
async fn it_counts_from_the_first_time_that_somebody_asks() {
    let service = service_fn(|()| {
        assert_eq!(left(), Some(SECOND));
        future::pending::<Answer>()
    });
    let mut service = within(SECOND).layer().layer(service);
    let mut call = task::spawn(service.call(()));
    advance(600 * MS).await;
    assert_pending!(call.poll());
    advance(400 * MS).await;
    assert_eq!(assert_ready!(call.poll()), Err(SENT));
}

#[tokio::test(start_paused = true)]
async fn a_finished_call_wins_over_a_deadline_that_has_passed() {
    for by_shield in [false, true] {
        let (send, receive) = tokio::sync::oneshot::channel();
        let receive = Arc::new(Mutex::new(Some(receive)));
        let service = service_fn(move |()| {
            let receive = receive.lock().unwrap().take().unwrap();
            async move {
                receive.await.unwrap();
                Answer::Ok(())
            }
        });
        let call = async move {
            if by_shield {
                let shield = Shield::builder(ignore_all()).deadline(SECOND);
                shield.build().unwrap().layer(service).oneshot(()).await
            } else {
                within(SECOND).layer().layer(service).oneshot(()).await
            }
        };
        let mut call = task::spawn(call);
        assert_pending!(call.poll());
        advance(2 * SECOND).await;
        send.send(()).unwrap();
        assert_eq!(assert_ready!(call.poll()), Ok(()), "{by_shield}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_outer_deadline_refuses_before_the_call() {
    let calls = Arc::new(AtomicU32::new(0));
    let service = {
        let calls = calls.clone();
        service_fn(move |()| {
            calls.fetch_add(1, Ordering::Relaxed);
            future::ready(Answer::Ok(()))
        })
    };
    let shield = Shield::builder(ignore_all()).build().unwrap();
    let expired = deadline::scope(now(), async {
        let layer = within(SECOND).layer().layer(service.clone());
        let shielded = shield.layer(service.clone());
        let mut run = service.clone();
        [
            layer.oneshot(()).await,
            shielded.oneshot(()).await,
            shield.run(|| run.call(())).await,
        ]
    });
    assert_eq!(expired.await, [Err(NOT_SENT), Err(NOT_SENT), Err(NOT_SENT)]);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_service_is_not_ready_in_time_was_not_sent() {
    let (inner, mut handle) = tower_test::mock::pair::<u32, u32>();
    handle.allow(0);
    let mut service = within(SECOND).layer().layer(inner);
    let start = now();
    let error: BoxError = service.call(1).await.unwrap_err();
    assert_eq!(Rejected::of(&*error), Some(&NOT_SENT));
    assert_eq!(now() - start, SECOND);

    // Woken late, it finds the service ready.
    let mut call = task::spawn(service.call(2));
    assert_pending!(call.poll());
    advance(2 * SECOND).await;
    handle.allow(1);
    let error = assert_ready!(call.poll()).unwrap_err();
    assert_eq!(Rejected::of(&*error), Some(&NOT_SENT));

    handle.allow(1);
    let mut call = task::spawn(service.call(3));
    assert_pending!(call.poll());
    let (request, respond) = handle.next_request().await.unwrap();
    respond.send_response(request + 1);
    assert_eq!(assert_ready!(call.poll()).unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_outer_deadline_is_back_after_a_panic() {
    let panics = service_fn(|()| -> future::Ready<Answer> { panic!("on purpose") });
    let mut in_call = within(SECOND).layer().layer(panics);
    let mut cx = Context::from_waker(Waker::noop());
    let at = now() + 5 * SECOND;
    let outer = deadline::scope(at, async {
        let in_call = catch_unwind(AssertUnwindSafe(|| drop(in_call.call(()))));
        let after_call = current();

        let shield = Shield::builder(ignore_all()).build().unwrap();
        let run = shield.run(|| async { panic!("on purpose") });
        let mut run = Box::pin(run);
        let in_poll = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut cx).is_ready()));
        let after_poll = current();
        drop(run);
        assert!(in_call.is_err() && in_poll.is_err());
        [after_call, after_poll, current()]
    });
    assert_eq!(outer.await, [Some(at); 3]);
    assert_eq!(current(), None);
}

#[tokio::test(start_paused = true)]
async fn it_bounds_every_attempt_of_a_retry() {
    let retry = Retry::builder()
        .attempts(9)
        .idempotent(true)
        .backoff(Backoff::fixed(100 * MS).jitter(Jitter::None))
        .without_budget()
        .build()
        .unwrap();
    let ambiguous = by_error(|_: &Rejected| Kind::Ambiguous);
    for by_shield in [false, true] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let inner = {
            let seen = seen.clone();
            service_fn(move |()| {
                seen.lock().unwrap().push(left().unwrap());
                future::pending::<Answer>()
            })
        };
        let start = now();
        let result = if by_shield {
            let shield = Shield::builder(ambiguous).retry(retry.clone());
            let shield = shield.deadline(SECOND).attempt_deadline(400 * MS);
            let shield = shield.without_breaker().build().unwrap();
            shield.layer(inner).oneshot(()).await
        } else {
            let service = ServiceBuilder::new()
                .layer(within(SECOND).layer())
                .layer(retry.layer(ambiguous))
                .layer(within(400 * MS).layer())
                .service(inner);
            service.oneshot(()).await
        };
        assert_eq!(result, Err(SENT), "by the shield: {by_shield}");
        // 0 to 400, 500 to 900; a third one would start at 1000 ms.
        assert_eq!(now() - start, 900 * MS, "by the shield: {by_shield}");
        let seen = seen.lock().unwrap();
        assert_eq!(*seen, [400 * MS, 400 * MS], "by the shield: {by_shield}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_covers_the_time_in_a_queue() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let permit = limiter.acquire().await.unwrap();
    let service = ServiceBuilder::new()
        .layer(within(SECOND).layer())
        .layer(limiter.layer())
        .service_fn(async |()| Answer::Ok(left()));
    let start = now();
    assert_eq!(service.clone().oneshot(()).await, Err(NOT_SENT));
    assert_eq!(now() - start, SECOND);

    let waiting = tokio::spawn(service.oneshot(()));
    sleep(300 * MS).await;
    drop(permit);
    assert_eq!(waiting.await.unwrap(), Ok(Some(700 * MS)));
}

// tokio lets a task make no more progress once it has made some, and a timer is progress.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_always_busy_is_cut_off_as_well() {
    let busy = || async {
        loop {
            consume_budget().await;
        }
    };
    for by_shield in [false, true] {
        let call = tokio::spawn(async move {
            if by_shield {
                let shield = Shield::builder(ignore_all()).deadline(SECOND);
                let shield = shield.build().unwrap();
                shield.run(busy).await
            } else {
                let service = within(SECOND).layer().layer(service_fn(move |()| busy()));
                service.oneshot(()).await
            }
        });
        for _ in 0..20 {
            advance(100 * MS).await;
        }
        assert!(call.is_finished(), "by the shield: {by_shield}");
        assert_eq!(call.await.unwrap(), Err(SENT), "by the shield: {by_shield}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_reported_when_it_strikes() {
    #[derive(Clone, Default)]
    struct Refusals(Arc<Mutex<Vec<String>>>);

    impl Observer for Refusals {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::Refused { name, rejected, .. } = event {
                self.0.lock().unwrap().push(format!("{name}: {rejected}"));
            }
        }
    }

    let refusals = Refusals::default();
    let layer = within(SECOND)
        .name("total")
        .observer(refusals.clone())
        .layer();
    let service = layer.layer(service_fn(async |()| future::pending::<Answer>().await));
    service.clone().oneshot(()).await.unwrap_err();
    let expired = deadline::scope(now(), service.oneshot(()));
    expired.await.unwrap_err();
    let expected = [
        "total: deadline exceeded while the call was under way",
        "total: deadline exceeded before the call was sent",
    ];
    assert_eq!(*refusals.0.lock().unwrap(), expected);
}

// Idle timers are kept by thread, and one whose runtime is gone panics when it is polled.
#[test]
fn one_thread_may_run_one_runtime_after_another() {
    let mut left_over = Vec::new();
    for _ in 0..3 {
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let service = service_fn(async |time| {
            sleep(time).await;
            Answer::Ok(())
        });
        let mut service = within(SECOND).layer().layer(service);
        runtime.block_on(async {
            let calls = (1..100).map(|n| service.call(n * 100 * MS));
            let results = futures_util::future::join_all(calls).await;
            let in_time = results.iter().filter(|result| result.is_ok()).count();
            assert!((9..=10).contains(&in_time), "{in_time} of 99");
            // Its timer outlives its runtime.
            let mut call = Box::pin(service.call(100 * MS));
            let mut cx = Context::from_waker(Waker::noop());
            assert_pending!(call.as_mut().poll(&mut cx));
            left_over.push(call);
        });
        drop(runtime);
        left_over.truncate(1);
    }
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_timer_wakes_nobody() {
    let service = service_fn(async |time| {
        sleep(time).await;
        Answer::Ok(())
    });
    let mut service = within(SECOND).layer().layer(service);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut cx = Context::from_waker(&waker);
    let mut call = Box::pin(service.call(MS));
    assert_pending!(call.as_mut().poll(&mut cx));
    advance(MS).await;
    assert_eq!(assert_ready!(call.as_mut().poll(&mut cx)), Ok(()));
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    drop(call);
    // Nor does it keep anybody's task: what is left is ours.
    assert_eq!(Arc::strong_count(&wakes), 2);
    advance(10 * SECOND).await;
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
}

// An idle timer is used again: for later, for earlier, or after it has gone off.
#[tokio::test(start_paused = true)]
async fn a_deadline_strikes_in_time_whatever_its_timer_was_used_for_before() {
    let call = |time| {
        let service = service_fn(async |()| future::pending::<Answer>().await);
        Box::pin(within(time).layer().layer(service).oneshot(()))
    };
    for (first, second) in [
        (SECOND, 10 * SECOND),
        (10 * SECOND, SECOND),
        (SECOND, SECOND),
    ] {
        for cut_off in [false, true] {
            let mut before = task::spawn(call(first));
            assert_pending!(before.poll());
            if cut_off {
                advance(first).await;
                assert_eq!(assert_ready!(before.poll()), Err(SENT));
            }
            drop(before);
            let mut call = task::spawn(call(second));
            assert_pending!(call.poll());
            advance(second - MS).await;
            // It may have been woken for the time of the first.
            if call.is_woken() {
                assert_pending!(call.poll());
            }
            advance(MS).await;
            assert!(call.is_woken(), "{first:?} {second:?} {cut_off}");
            assert_eq!(assert_ready!(call.poll()), Err(SENT));
        }
    }
    // A timer that is waited for is moved, too.
    let mut moved = call(10 * SECOND);
    assert_pending!(task::spawn(moved.as_mut()).poll());
    let mut moved = task::spawn(deadline::scope(now() + SECOND, moved));
    assert_pending!(moved.poll());
    advance(SECOND).await;
    assert!(moved.is_woken(), "in a scope");
    assert_eq!(assert_ready!(moved.poll()), Err(SENT));
    // One that has gone off stays where it is for the next call with the same deadline.
    let at = now() + SECOND;
    let late = [(); 2].map(|()| {
        let service = service_fn(async |()| future::pending::<Answer>().await);
        within(10 * SECOND).layer().layer(service).call(())
    });
    advance(SECOND).await;
    for call in late {
        let mut call = task::spawn(deadline::scope(at, call));
        assert_eq!(assert_ready!(call.poll()), Err(SENT));
    }
}

#[test]
fn a_deadline_of_nothing_or_of_over_a_year_is_refused() {
    for time in [Duration::ZERO, MS / 2, 366 * 24 * 3_600 * SECOND] {
        assert_eq!(Deadline::new(time).unwrap_err().setting(), "within");
    }
    assert!(Deadline::new(MS).is_ok());
}
