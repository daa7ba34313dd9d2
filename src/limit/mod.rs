//! A limit on the calls in flight, with a bounded queue in front.
//!
//! The queue sheds whoever can't be served in time.
//!
//! ```text
//!  call ──► a slot is free? ──yes──► runs ──► gives its slot to the first in line
//!              │ no
//!              ▼
//!           queue full, or too little time left for its place? ──yes──► Overloaded, at once
//!              │ no
//!              ▼
//!           waits in order of arrival, at most until its deadline or `max_wait`
//! ```
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{ConcurrencyLimiter, Overload, Rejected};
//! use tower::{Service, ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limiter = ConcurrencyLimiter::builder(1).queue(0).build()?;
//! let mut service = ServiceBuilder::new()
//!     .layer(limiter.layer())
//!     .service_fn(async |_: ()| io::Result::Ok(()));
//!
//! let first = service.ready().await?.call(());
//! let second = service.ready().await?.call(()).await.unwrap_err();
//! let reason = Overload::QueueFull;
//! assert_eq!(Rejected::of(&second), Some(&Rejected::Overloaded { reason }));
//! first.await?;
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! In front of whatever serves only so many at a time: a connection pool (the limit is its size), a server with so many workers. Not as a rate limit: it counts
//! calls under way, not calls per second.
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `in_flight` | to be given | only you know how many your dependency serves at a time |
//! | `queue` | 50 × the limit, at most 1,000 | rides out a burst; at 10 ms a call the last in line waits half a second |
//! | `max_wait` | 1 s | whoever has waited longer is served too late: in the [model of overload](https://github.com/steadfast-rs/steadfast/blob/main/docs/overload.md), where callers leave after 3 s, a database that slows down under load survives a spike with 1 s, and not with 2 s |
//!
//! # What it reports
//! [`Event::Refused`](crate::Event::Refused): `DEBUG call refused name=limiter rejected=overloaded: the queue is full`.
//!
//! # Its place in the stack
//! Inside the breaker, so that nobody queues for a dependency that is down; outside the attempt deadline, so that time in the queue does not count
//! against the attempt.
//!
//! # What a clone shares
//! Everything: a [`ConcurrencyLimiter`] is a handle. All services of one layer, all layers of one handle, and all clones share the slots and the queue.
//!
//! # Cancel safety
//! Dropping a call's future drops the inner call and then frees its slot, or gives up its place in the queue. A slot that it was given at the same
//! moment goes to the next in line.
//!
//! # Limits
//! A slot is taken when the service is called: a future that is never polled keeps it until dropped. Idle services hold nothing.
//! Dropping a call does not stop what the server does for it; [`hold`] keeps the slot for as long as that takes.

mod estimate;
mod gate;
mod hold;
mod permits;
mod service;

use std::{
    fmt,
    future::poll_fn,
    ops::Deref,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use self::gate::{Entered, Gate, Turn};
pub(crate) use self::hold::Slot;
pub use self::{
    hold::{Hold, hold},
    service::{LimitLayer, LimitService, ResponseFuture},
};
use crate::{
    ambient,
    error::{ConfigError, Overload, Rejected},
    event::{Name, Observer, Reporter},
    fifo::Key,
    gated::{Answer, Wait},
    owner::{Owner, Owners},
    stamp::Stamp,
    time::{self, Timer},
};

/// A handle to a limit on the calls in flight; see the [module](self).
///
/// Clones share the slots and the queue.
///
/// ```
/// use steadfast::ConcurrencyLimiter;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = ConcurrencyLimiter::new(20)?;
/// let permit = limiter.acquire().await?;
/// assert_eq!(limiter.stats().in_flight, 1);
/// drop(permit);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimiter {
    shared: Owners<Shared>,
}

impl ConcurrencyLimiter {
    /// A limiter for `in_flight` calls at a time, with the [module](self)'s default queue.
    ///
    /// # Errors
    /// Where `in_flight` is 0 or over a million.
    pub fn new(in_flight: usize) -> Result<Self, ConfigError> {
        Self::builder(in_flight).build()
    }

    /// The settings of a limiter for `in_flight` calls at a time.
    pub fn builder(in_flight: usize) -> Builder {
        Builder {
            in_flight,
            queue: None,
            max_wait: None,
            reporter: Reporter::new("limiter"),
        }
    }

    /// Waits for a slot in order of arrival, within the surrounding [deadline](crate::deadline) and `max_wait`.
    ///
    /// # Errors
    /// [`Rejected::Overloaded`] where the queue would not do, [`Rejected::DeadlineExceeded`] where the deadline came first.
    ///
    /// # Panics
    /// The future, where it has to wait outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub async fn acquire(&self) -> Result<Permit, Rejected> {
        let slot = match Shared::ask(self.owned()) {
            Answer::Granted(slot) => slot,
            Answer::Wait(mut waiting) => poll_fn(|cx| waiting.poll(cx)).await?,
            Answer::Refused(rejected) => return Err(rejected),
        };
        Ok(Permit { _slot: slot })
    }

    /// A slot, if one is free right now.
    ///
    /// It overtakes nobody: while somebody waits, none is free.
    pub fn try_acquire(&self) -> Option<Permit> {
        let slot = Shared::try_admit(self.owned())?;
        Some(Permit { _slot: slot })
    }

    /// How many calls run and wait at this moment.
    pub fn stats(&self) -> Stats {
        let (in_flight, waiting) = self.shared.gate.counts();
        Stats {
            in_flight,
            limit: self.shared.limit,
            waiting,
            queue: self.shared.queue,
        }
    }

    /// A tower layer over these slots.
    pub fn layer(&self) -> LimitLayer {
        LimitLayer::new(self.clone())
    }

    /// The limiter, for a slot that borrows it.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The limiter, for a slot that outlives this handle.
    #[inline]
    pub(crate) fn owned(&self) -> Owner<Shared> {
        self.shared.owner()
    }
}

impl fmt::Debug for ConcurrencyLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimiter")
            .field("name", &self.shared.reporter.name())
            .field("stats", &self.stats())
            .finish()
    }
}

/// How full a [`ConcurrencyLimiter`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that have a slot.
    pub in_flight: usize,
    /// The limit.
    pub limit: usize,
    /// Calls that wait for a slot.
    pub waiting: usize,
    /// The queue's length.
    pub queue: usize,
}

/// The settings of a [`ConcurrencyLimiter`]; their defaults stand in the [module](self).
///
/// ```
/// use std::time::Duration;
/// use steadfast::ConcurrencyLimiter;
///
/// let limiter = ConcurrencyLimiter::builder(20)
///     .queue(200)
///     .max_wait(Duration::from_millis(500))
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    in_flight: usize,
    queue: Option<usize>,
    max_wait: Option<Duration>,
    reporter: Reporter,
}

impl Builder {
    /// Its name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// The number of calls that may wait; 0 refuses whoever finds no free slot.
    pub fn queue(mut self, calls: usize) -> Self {
        self.queue = Some(calls);
        self
    }

    /// The longest that a call may wait in the queue, besides its deadline.
    ///
    /// Together with the time of the call itself it should be less than your callers wait: what is done for a caller who has left is wasted.
    pub fn max_wait(mut self, time: Duration) -> Self {
        self.max_wait = Some(time);
        self
    }

    /// Name and observer at once.
    #[cfg(feature = "sqlx")]
    pub(crate) fn reporter(mut self, reporter: Reporter) -> Self {
        self.reporter = reporter;
        self
    }

    /// Who hears of its refusals, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The limiter, with every slot free.
    ///
    /// # Errors
    /// Where a setting is out of range, or can't have an effect; the error names it, its value and the range.
    pub fn build(self) -> Result<ConcurrencyLimiter, ConfigError> {
        const PART: &str = "limiter";
        const MOST: usize = 1_000_000;
        let limit = self.in_flight;
        ConfigError::check_count(PART, "in_flight", limit, 1, MOST)?;
        let queue = self.queue.unwrap_or((50 * limit).min(1_000));
        ConfigError::check_count(PART, "queue", queue, 0, MOST)?;
        if let Some(time) = self.max_wait {
            ConfigError::check_time(PART, "max_wait", time, Duration::from_millis(1))?;
            if queue == 0 {
                let allowed = "left out where the queue is 0: nobody can wait";
                return Err(ConfigError::new(PART, "max_wait", time, allowed));
            }
        }
        let shared = |me: &Weak<Shared>| Shared {
            me: me.clone(),
            gate: Gate::new(limit, queue),
            limit,
            queue,
            max_wait: self.max_wait.unwrap_or(MAX_WAIT),
            reporter: self.reporter,
        };
        Ok(ConcurrencyLimiter {
            shared: Owners::new(Arc::new_cyclic(shared)),
        })
    }
}

/// The right to one call in flight; dropped, its slot is free.
///
/// It owns what it needs and may be sent anywhere, so that whatever outlives the call can keep the slot.
#[must_use = "dropping a permit frees its slot"]
pub struct Permit {
    _slot: Slot<Owner<Shared>>,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

const MAX_WAIT: Duration = Duration::from_secs(1);

/// The limiter with everything that is shared.
pub(crate) struct Shared {
    me: Weak<Self>,
    gate: Gate,
    limit: usize,
    queue: usize,
    max_wait: Duration,
    reporter: Reporter,
}

impl Shared {
    /// A slot, if one is free.
    #[inline]
    pub(crate) fn try_admit<B: Deref<Target = Self>>(limiter: B) -> Option<Slot<B>> {
        limiter
            .gate
            .try_pass()
            .then(|| Slot::new(limiter, Stamp::NONE))
    }

    /// A slot, if one is at hand.
    #[inline(always)]
    pub(crate) fn pass<B>(limiter: B) -> Option<Slot<B>>
    where
        B: Deref<Target = Self>,
    {
        let passes = limiter.gate.pass();
        passes.then(|| Slot::new(limiter, Stamp::NONE))
    }

    /// A slot, a place in the queue, or a refusal.
    #[inline(always)]
    pub(crate) fn ask<B>(limiter: B) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        if limiter.gate.pass() {
            Answer::Granted(Slot::new(limiter, Stamp::NONE))
        } else {
            Self::stand_in_line(limiter)
        }
    }

    #[cold]
    fn stand_in_line<B>(limiter: B) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        let now = time::now();
        let deadline = ambient::current();
        let reason = match limiter.gate.enter(deadline, now) {
            Entered::Passes => return Answer::Granted(Slot::new(limiter, Stamp::NONE)),
            Entered::Waits(key) => {
                let until = (now + limiter.max_wait).into();
                return Answer::Wait(Waiting {
                    limiter,
                    key: Some(key),
                    deadline: deadline.into(),
                    until,
                    timer: Timer::new(),
                });
            }
            Entered::Shed(reason) => reason,
        };
        Answer::Refused(limiter.reporter.refused(refusal(reason, deadline, now)))
    }

    /// Owns what is only borrowed here.
    fn own(&self) -> Arc<Self> {
        let owned = self.me.upgrade();
        owned.expect("whoever borrows it keeps it alive")
    }
}

/// A place in the queue. Dropped, it is given up.
pub(crate) struct Waiting<B: Deref<Target = Shared>> {
    limiter: B,
    // `None` once it was called or shed.
    key: Option<Key>,
    deadline: Stamp,
    until: Stamp,
    timer: Timer,
}

impl<B: Deref<Target = Shared> + Clone> Wait for Waiting<B> {
    type Leave = Slot<B>;

    /// Waits for the slot.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Slot<B>, Rejected>> {
        let key = self.key.expect("polled again after its result");
        let rejected = match self.limiter.gate.turn(key, cx.waker()) {
            Turn::Passes(started) => {
                self.key = None;
                return Poll::Ready(Ok(Slot::new(self.limiter.clone(), started.into())));
            }
            Turn::Shed => {
                self.key = None;
                refusal(
                    Overload::TooLittleTime,
                    self.deadline.instant(),
                    time::now(),
                )
            }
            Turn::Waits => {
                ready!(self.timer.poll(self.deadline.min(self.until), cx));
                if self.deadline <= self.until {
                    Rejected::DeadlineExceeded { sent: false }
                } else {
                    Rejected::Overloaded {
                        reason: Overload::MaxWait,
                    }
                }
            }
        };
        Poll::Ready(Err(self.limiter.reporter.refused(rejected)))
    }
}

impl<B: Deref<Target = Shared>> Drop for Waiting<B> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.limiter.gate.leave_line(key, time::now);
        }
    }
}

/// That the deadline has passed says more than what else stood in the way.
fn refusal(reason: Overload, deadline: Option<Instant>, now: Instant) -> Rejected {
    if deadline.is_some_and(|deadline| deadline <= now) {
        Rejected::DeadlineExceeded { sent: false }
    } else {
        Rejected::Overloaded { reason }
    }
}
