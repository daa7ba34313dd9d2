//! The one clock and the one timer. Nothing else in the crate reads time or sleeps.
//!
//! Both are tokio's, so that a paused test clock moves the whole crate. Instants are [`std::time::Instant`]s,
//! which the pure cores can take without knowing tokio.
#![allow(clippy::disallowed_methods, reason = "this is where the clock is read")]

use std::{
    cell::RefCell,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
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

use crate::{bell::Bell, error::LONGEST, stamp::Stamp};

/// The present.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The present, in one word.
pub(crate) fn stamp() -> Stamp {
    now().into()
}

/// A timer that costs nothing until it is first waited for.
///
/// It allocates nothing where its thread has kept an idle one, and mostly asks nothing of tokio: an idle timer stays armed for when its last
/// user's time would have come. Its next user's time comes later, as a rule, so that it is armed anew only when it has gone off.
///
/// Invariants:
/// 1. A `Sleep` is only ever polled on the runtime that it was made on: one whose runtime is gone panics.
/// 2. The bell of an idle timer holds nobody's waker.
/// 3. Between two polls that return `Pending`, the `Sleep` is armed for the caller's instant or an earlier one, and rings the bell then.
pub(crate) struct Timer {
    made: Option<Box<Made>>,
}

impl Timer {
    pub(crate) const fn new() -> Self {
        Self { made: None }
    }

    /// Ready once `at` has come, if ever. `at` may differ from one poll to the next. It may wake before.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time enabled.
    pub(crate) fn poll(&mut self, at: Stamp, cx: &mut Context<'_>) -> Poll<()> {
        let (made, rung) = match &mut self.made {
            Some(made) => {
                let rung = made.bell.keep_listening(cx.waker());
                (made, rung)
            }
            None => {
                let made = self.made.insert(take());
                let rung = made.bell.listen(cx.waker().clone());
                (made, rung)
            }
        };
        if rung || at < made.armed {
            made.arm(at)
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Timer {
    #[inline]
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            put(made);
        }
    }
}

struct Made {
    on: Id,
    /// None before it is armed for the first time.
    armed: Stamp,
    sleep: Pin<Box<Sleep>>,
    bell: Arc<Bell>,
    // The bell's.
    waker: Waker,
}

impl Made {
    fn new(on: Id) -> Self {
        let bell = Arc::new(Bell::new());
        Self {
            on,
            armed: Stamp::NONE,
            sleep: Box::pin(tokio::time::sleep_until(instant(Stamp::NONE))),
            waker: Waker::from(bell.clone()),
            bell,
        }
    }

    /// Rings the bell at `at`, unless it has come already.
    #[cold]
    fn arm(&mut self, at: Stamp) -> Poll<()> {
        // Before it is polled: a ring from then on is a new one.
        self.bell.mute();
        if self.armed != at {
            self.armed = at;
            self.sleep.as_mut().reset(instant(at));
        }
        let mut cx = Context::from_waker(&self.waker);
        // tokio lets a task make only so much progress in one poll. Code that is always busy uses that up, which must
        // not stop the timer that should end it.
        let polled = pin!(unconstrained(self.sleep.as_mut())).poll(&mut cx);
        if polled.is_ready() {
            // It won't ring again by itself.
            self.bell.unmute();
        }
        polled
    }
}

/// For tokio, to which never is a date.
fn instant(at: Stamp) -> tokio::time::Instant {
    at.instant().unwrap_or_else(|| now() + LONGEST).into()
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
        Poll::Pending => timer.poll(at.into(), cx).map(|()| None),
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
    poll_fn(|cx| timer.poll(at.into(), cx)).await;
}

/// What the clock on the wall shows. Only for dates that come from elsewhere: it may jump, and a paused clock does not stop it.
#[cfg(feature = "http")]
pub(crate) fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The idle timers of one thread, all made on the runtime `made_on`.
struct Pool {
    made_on: Option<Id>,
    #[allow(
        clippy::vec_box,
        reason = "their users hold them boxed: the box changes hands"
    )]
    idle: Vec<Box<Made>>,
}

impl Pool {
    #[inline]
    fn take(&mut self, on: Id) -> Option<Box<Made>> {
        if self.made_on != Some(on) {
            self.made_on = Some(on);
            // Nobody listens to their bells: no code of a user's runs here.
            self.idle.clear();
        }
        self.idle.pop()
    }
}

/// The most idle timers that a thread keeps. More would rarely be in use again before they are dropped.
const IDLE: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { made_on: None, idle: Vec::new() }) };
}

fn take() -> Box<Made> {
    let on = Handle::current().id();
    POOL.with_borrow_mut(|pool| pool.take(on))
        .unwrap_or_else(|| Box::new(Made::new(on)))
}

#[inline(never)]
fn put(made: Box<Made>) {
    made.bell.leave();
    // The thread's storage may be gone already when a task is dropped at its end.
    let _ = POOL.try_with(|pool| {
        let Ok(mut pool) = pool.try_borrow_mut() else {
            return;
        };
        if pool.made_on == Some(made.on) && pool.idle.len() < IDLE {
            pool.idle.push(made);
        }
    });
}
