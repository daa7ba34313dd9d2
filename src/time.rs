//! The one clock and the one timer. Nothing else in the crate reads time or sleeps.
//!
//! Both are tokio's, so that a paused test clock moves the whole crate. Instants are [`std::time::Instant`]s,
//! which the pure cores can take without knowing tokio.
#![allow(clippy::disallowed_methods, reason = "this is where the clock is read")]

use std::{
    cell::RefCell,
    future::Future,
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Instant,
};
#[cfg(feature = "sqlx")]
use std::{future::poll_fn, time::Duration};

use tokio::{
    runtime::{Handle, Id},
    task::unconstrained,
    time::Sleep,
};

use crate::error::LONGEST;

/// The present.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A timer that costs nothing until it is first waited for.
///
/// It allocates nothing where its thread has kept an idle one.
///
/// Invariants:
/// 1. A `Sleep` is only ever polled on the runtime that it was made on: one whose runtime is gone panics.
/// 2. An idle `Sleep` is over or lies a year ahead, and holds nobody's waker.
pub(crate) struct Timer {
    made: Option<Made>,
}

struct Made {
    on: Option<Id>,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub(crate) const fn new() -> Self {
        Self { made: None }
    }

    /// Ready once `at` has come. `at` may differ from one poll to the next.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time enabled.
    pub(crate) fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let at = tokio::time::Instant::from_std(at);
        let sleep = &mut self.made.get_or_insert_with(|| take(at)).sleep;
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        // tokio lets a task make only so much progress in one poll. Code that is always busy uses that up, which must
        // not stop the timer that should end it.
        pin!(unconstrained(sleep.as_mut())).poll(cx)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            put(made);
        }
    }
}

/// What `future` returns, if it does so within `limit`; else it is dropped.
#[cfg(feature = "sqlx")]
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    until(now() + limit, future).await
}

/// What `future` returns, if it does so by `at`; else it is dropped.
#[cfg(feature = "sqlx")]
pub(crate) async fn until<F: Future>(at: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = Timer::new();
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => timer.poll(at, cx).map(|()| None),
    })
    .await
}

/// Waits so long.
#[cfg(feature = "sqlx")]
pub(crate) async fn sleep(time: Duration) {
    sleep_until(now() + time).await;
}

/// Waits until then.
#[cfg(feature = "sqlx")]
pub(crate) async fn sleep_until(at: Instant) {
    let mut timer = Timer::new();
    poll_fn(|cx| timer.poll(at, cx)).await;
}

/// What the clock on the wall shows. Only for dates that come from elsewhere: it may jump, and a paused clock does not stop it.
#[cfg(feature = "http")]
pub(crate) fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The idle timers of one thread, all made on the runtime `made_on`.
struct Pool {
    made_on: Option<Id>,
    idle: Vec<Pin<Box<Sleep>>>,
}

/// The most idle timers that a thread keeps. More would rarely be in use again before they are dropped.
const IDLE: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { made_on: None, idle: Vec::new() }) };
}

fn here() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

fn take(at: tokio::time::Instant) -> Made {
    let on = here();
    let mut stale = Vec::new();
    let pooled = POOL.with_borrow_mut(|pool| {
        if pool.made_on != on {
            pool.made_on = on;
            stale = mem::take(&mut pool.idle);
        }
        pool.idle.pop()
    });
    // Dropped outside the borrow: a timer's waker may be the last owner of a task that has timers of its own.
    drop(stale);
    let sleep = pooled.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(at)));
    Made { on, sleep }
}

fn put(Made { on, mut sleep }: Made) {
    if on != here() {
        return;
    }
    if !sleep.is_elapsed() {
        let idle = sleep.deadline() + LONGEST;
        sleep.as_mut().reset(idle);
        // It lets go of the waker that it holds, which may be all that keeps a task alive.
        let mut cx = Context::from_waker(Waker::noop());
        let _ = pin!(unconstrained(sleep.as_mut())).poll(&mut cx);
    }
    // The thread's storage may be gone already when a task is dropped at its end.
    let _ = POOL.try_with(|pool| {
        let Ok(mut pool) = pool.try_borrow_mut() else {
            return;
        };
        if pool.made_on == on && pool.idle.len() < IDLE {
            pool.idle.push(sleep);
        }
    });
}
