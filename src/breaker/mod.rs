//! A circuit breaker: stops calling a dependency that fails, and finds out when it is back.
//!
//! ```text
//!     ≥ 50 % of ≥ 20 calls in 10 s, or 50 in a row, failed        500 ms over, somebody calls
//!  Closed ──────────────────────────────────────────────────► Open ────────────────────────────► HalfOpen
//!    ▲                                                         ▲                                   │
//!    │                 a probe succeeded                       └─ a probe failed or hung: doubled ─┤
//!    └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{Breaker, Rejected, breaker::State, classify};
//! use tower::{Service, ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let breaker = Breaker::consecutive(5).open_for(Duration::from_secs(60)).build()?;
//! let mut service = ServiceBuilder::new()
//!     .layer(breaker.layer(classify::Io))
//!     .service_fn(async |_: ()| Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused)));
//!
//! for _ in 0..5 {
//!     service.ready().await?.call(()).await.unwrap_err();
//! }
//! assert_eq!(breaker.state(), State::Open);
//! let error = service.ready().await?.call(()).await.unwrap_err();
//! assert!(matches!(Rejected::of(&error), Some(Rejected::CircuitOpen { .. })));
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! One for each dependency that fails as a whole: a database, a service, a shard. Not one over several hosts that fail one by one (one sick host would take
//! all with it), and not for failures that are about the request rather than the dependency: classify those as [`Invalid`](crate::Kind::Invalid).
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `failure_rate` | 50 % | retries still serve calls well at lower rates; above it most of the work is wasted |
//! | `minimum_calls` | 20 | fewer say too little: at 10 % failures, ten bad ones of 20 by chance come once in 140,000 |
//! | `window` | 10 s | long enough to gather `minimum_calls` from a quiet service, short enough to notice a restart |
//! | `open_for`, `max_open_for` | 500 ms, 30 s | a database restarts in well under a second; doubling spares one that is gone for longer |
//! | `probes`, `required_successes` | 1, 1 | one call answers the question; the queue behind a limiter takes what comes then |
//! | `attempt_deadline` | none; `Shield` sets its own | a breaker alone can't know how long a call may take |
//! | slot of a probe | 2 × `attempt_deadline`, else 30 s | longer than any probe that is still worth waiting for |
//! | `consecutive` | 50, or `minimum_calls` where that is more | a total outage is noticed at once, however many good calls the window remembers; more than a usual pool's connections, which one restart breaks all at a time |
//! | `slow_calls` | off | only you know what is slow |
//! | `when_open` | [`Refuse`](WhenOpen::Refuse) | waiting ties up callers; it is for batch work |
//!
//! # What it reports
//! [`Event::Transition`]: `WARN circuit changed name=db from=closed to=open cause="failure rate"`; and [`Event::Refused`]:
//! `DEBUG call refused name=db rejected=circuit open for 0.4s more`. Transitions are told in their order, outside every lock.
//!
//! # Its place in the stack
//! Inside the retry, so that it judges each attempt; outside the limiter, so that an open circuit refuses at once instead of queueing.
//! It never touches the inner service while it refuses.
//!
//! # What a clone shares
//! Everything: a [`Breaker`] is a handle. All services of one layer, all layers of one handle, and all clones are one circuit.
//!
//! # Cancel safety
//! A call that is dropped gives its probe slot back and counts nothing, unless it had run for the configured
//! [`attempt_deadline`](Builder::attempt_deadline): then it is a failure, whoever cut it off.
//!
//! # Limits
//! It trips when a failure (or slow call) is recorded, never on a success. Results are dated to a tenth of the window; successes of a thread that
//! made many at once and then few may be dated further back, and so be forgotten early: at most 63 for each thread.
//! It knows of one process only.

mod circuit;
mod gate;
mod service;
mod window;

use std::{
    fmt, mem,
    num::NonZeroU32,
    ops::Deref,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::watch;

pub use self::service::{BreakerLayer, BreakerService, ResponseFuture};
use self::{
    circuit::{Change, Circuit, Forced, Outcome, Rules, Slow, Ticket},
    gate::Gate,
};
pub use crate::event::State;
use crate::{
    ambient::{self, Bound},
    error::{ConfigError, Refusal, Rejected, judge},
    event::{Event, Name, Observer, Reporter},
    fifo::{Fifo, Key},
    gated::{Answer, Leave, Wait},
    kind::{Classify, Kind, Verdict},
    ring::Ticks,
    shard,
    sync::{Mutex, lock},
    time::{self, Timer},
};

/// A handle to a circuit; see the [module](self). Clones share the circuit.
///
/// ```
/// use steadfast::{Breaker, Kind};
///
/// let breaker = Breaker::default();
/// let permit = breaker.admit()?;
/// permit.settle(Kind::Success);
/// # Ok::<(), steadfast::Rejected>(())
/// ```
#[derive(Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

impl Breaker {
    /// A breaker with the defaults of the [module](self).
    pub fn builder() -> Builder {
        Builder {
            rules: Rules {
                failure_rate: Some(0.5),
                minimum_calls: 20,
                window: Duration::from_secs(10),
                consecutive: None,
                slow: None,
                open_for: Duration::from_millis(500),
                max_open_for: Duration::from_secs(30),
                probes: 1,
                required_successes: 1,
            },
            consecutive: None,
            max_open_for: None,
            attempt_deadline: None,
            when_open: WhenOpen::Refuse,
            reporter: Reporter::new("breaker"),
        }
    }

    /// The textbook's breaker: opens after `failures` in a row, whatever the rate.
    pub fn consecutive(failures: u32) -> Builder {
        let mut builder = Self::builder().consecutive(failures);
        builder.rules.failure_rate = None;
        builder
    }

    /// Admits one call, or says that the circuit is open. Never waits.
    ///
    /// # Errors
    /// [`Rejected::CircuitOpen`].
    pub fn admit(&self) -> Result<Permit, Rejected> {
        let pass = Shared::admit(self.shared.clone(), None);
        let mut pass = pass.map_err(|refused| self.shared.refuse(refused))?;
        pass.waits();
        Ok(Permit { pass })
    }

    /// Refuses every call until [`reset`](Self::reset). Calls under way go on, and count for nothing.
    pub fn force_open(&self) {
        self.shared
            .change(time::now(), |circuit| circuit.force(Forced::Open));
    }

    /// Lets every call pass and judges none until [`reset`](Self::reset).
    pub fn force_closed(&self) {
        self.shared
            .change(time::now(), |circuit| circuit.force(Forced::Closed));
    }

    /// Judges and reports as always, but lets every call pass, until [`reset`](Self::reset).
    ///
    /// Calls under way count for nothing, as with every forced state.
    pub fn observe_only(&self) {
        let observe = |circuit: &mut Circuit| circuit.force(Forced::ObserveOnly);
        self.shared.change(time::now(), observe);
    }

    /// Closes the circuit, forgets every result, and undoes a forced state.
    pub fn reset(&self) {
        self.shared.change(time::now(), Circuit::reset);
    }

    /// The state as of the last call. An open circuit whose time is over stays `Open` until somebody calls.
    pub fn state(&self) -> State {
        self.shared.gate.state()
    }

    /// The state, now and whenever it changes. States that follow each other closely may be skipped.
    ///
    /// ```
    /// use steadfast::{Breaker, breaker::State};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = Breaker::default();
    /// let mut states = breaker.subscribe();
    /// breaker.force_open();
    /// states.changed().await?;
    /// assert_eq!(*states.borrow(), State::ForcedOpen);
    /// # Ok(()) }
    /// ```
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// A tower layer over this circuit; `classify` says what the results of the service mean.
    pub fn layer<C>(&self, classify: C) -> BreakerLayer<C> {
        BreakerLayer::new(self.clone(), classify)
    }

    /// The circuit, for a pass that borrows it.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The circuit, for a pass that outlives this handle.
    pub(crate) fn owned(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::builder().build().expect("the defaults are in range")
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.shared.reporter.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What happens to a call that finds the circuit open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenOpen {
    /// It is refused at once.
    Refuse,
    /// It waits until a probe succeeds or its deadline comes; at most so many calls wait, the others are refused.
    Wait {
        /// How many calls may wait.
        queue: usize,
    },
}

/// The settings of a [`Breaker`]; their defaults stand in the [module](self).
///
/// ```
/// use std::time::Duration;
/// use steadfast::Breaker;
///
/// let breaker = Breaker::builder()
///     .name("orders")
///     .failure_rate(0.3)
///     .slow_calls(Duration::from_secs(1), 0.8)
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    rules: Rules,
    consecutive: Option<u32>,
    max_open_for: Option<Duration>,
    attempt_deadline: Option<Duration>,
    when_open: WhenOpen,
    reporter: Reporter,
}

impl Builder {
    /// Its name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// The share of failed calls in the window that opens the circuit: over 0, at most 1.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.rules.failure_rate = Some(rate);
        self
    }

    /// Rates are judged from so many calls in the window on.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.rules.minimum_calls = calls;
        self
    }

    /// How far back results count.
    pub fn window(mut self, window: Duration) -> Self {
        self.rules.window = window;
        self
    }

    /// So many failures in a row open the circuit, whatever the rate.
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = Some(failures);
        self
    }

    /// Calls are slow from `after` on, and a share of `rate` of them in the window opens the circuit.
    pub fn slow_calls(mut self, after: Duration, rate: f64) -> Self {
        self.rules.slow = Some(Slow { after, rate });
        self
    }

    /// How long the circuit stays open the first time; shortened by up to a fifth by chance.
    ///
    /// It doubles with each failed round of probes, up to [`max_open_for`](Self::max_open_for).
    pub fn open_for(mut self, time: Duration) -> Self {
        self.rules.open_for = time;
        self
    }

    /// The longest that the circuit stays open: the default 30 s, or `open_for` where that is longer.
    pub fn max_open_for(mut self, time: Duration) -> Self {
        self.max_open_for = Some(time);
        self
    }

    /// So many probes may be under way at a time.
    pub fn probes(mut self, probes: u32) -> Self {
        self.rules.probes = probes;
        self
    }

    /// So many successful probes close the circuit.
    pub fn required_successes(mut self, successes: u32) -> Self {
        self.rules.required_successes = successes;
        self
    }

    /// How long one call may take at most. One that was cut off after this time is a failure, whoever cut it off;
    /// one that was cut off earlier says nothing, so that an impatient caller can't open a shared circuit.
    ///
    /// Times within 3 % of it are taken for it. A probe's slot expires after twice this time.
    pub fn attempt_deadline(mut self, time: Duration) -> Self {
        self.attempt_deadline = Some(time);
        self
    }

    /// What happens to a call that finds the circuit open.
    pub fn when_open(mut self, when_open: WhenOpen) -> Self {
        self.when_open = when_open;
        self
    }

    /// Name and observer at once.
    pub(crate) fn reporter(mut self, reporter: Reporter) -> Self {
        self.reporter = reporter;
        self
    }

    /// Who hears of its events, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The breaker, closed.
    ///
    /// # Errors
    /// Where a setting is out of range; the error names it, its value and the range.
    pub fn build(self) -> Result<Breaker, ConfigError> {
        const PART: &str = "breaker";
        const LEAST: Duration = Duration::from_millis(1);
        let mut rules = self.rules;
        if let Some(rate) = rules.failure_rate {
            ConfigError::check_rate(PART, "failure_rate", rate)?;
        }
        if let Some(slow) = rules.slow {
            ConfigError::check_rate(PART, "slow_calls rate", slow.rate)?;
            ConfigError::check_time(PART, "slow_calls after", slow.after, LEAST)?;
        }
        let counts = [
            ("minimum_calls", rules.minimum_calls),
            ("probes", rules.probes),
            ("required_successes", rules.required_successes),
            ("consecutive", self.consecutive.unwrap_or(1)),
        ];
        for (setting, count) in counts {
            ConfigError::check_count(PART, setting, count as usize, 1, MOST)?;
        }
        let usual = CONSECUTIVE.max(rules.minimum_calls);
        rules.consecutive = NonZeroU32::new(self.consecutive.unwrap_or(usual));
        ConfigError::check_time(PART, "window", rules.window, 10 * LEAST)?;
        ConfigError::check_time(PART, "open_for", rules.open_for, LEAST)?;
        rules.max_open_for = match self.max_open_for {
            Some(longest) => longest,
            None => rules.max_open_for.max(rules.open_for),
        };
        ConfigError::check_time(PART, "max_open_for", rules.max_open_for, rules.open_for)?;
        if let Some(time) = self.attempt_deadline {
            ConfigError::check_time(PART, "attempt_deadline", time, LEAST)?;
        }
        if let WhenOpen::Wait { queue } = self.when_open {
            ConfigError::check_count(PART, "when_open queue", queue, 1, MOST)?;
        }
        let ticks = Ticks::new(rules.window, time::now());
        let circuit = Circuit::new(rules.clone(), ticks);
        let shared = Shared {
            gate: Gate::new(circuit, shard::shards(), ticks),
            waiting: Mutex::new(Fifo::new()),
            state: watch::Sender::new(State::Closed),
            slow_after: rules.slow.map(|slow| slow.after),
            attempt_deadline: self.attempt_deadline,
            when_open: self.when_open,
            reporter: self.reporter,
        };
        Ok(Breaker {
            shared: Arc::new(shared),
        })
    }
}

const CONSECUTIVE: u32 = 50;
const MOST: usize = 1_000_000;

/// The right to make one call. Dropped unsettled, it frees its slot and counts nothing, unless it was held for the
/// [`attempt_deadline`](Builder::attempt_deadline): then the call has failed.
///
/// ```
/// use steadfast::{Breaker, Kind};
///
/// let breaker = Breaker::default();
/// let permit = breaker.admit()?;
/// drop(permit); // nothing happened
/// breaker.admit()?.settle(Kind::Unavailable);
/// # Ok::<(), steadfast::Rejected>(())
/// ```
#[must_use = "dropping a permit counts nothing"]
pub struct Permit {
    pass: Pass<Arc<Shared>>,
}

impl Permit {
    /// Reports how the call went.
    pub fn settle(self, verdict: impl Into<Verdict>) {
        self.pass.settle(verdict.into(), false);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("probe", &self.pass.ticket.is_probe())
            .finish_non_exhaustive()
    }
}

/// The circuit with everything around it that is shared.
///
/// Invariants:
/// 1. Lock order: `state`'s own, then the gate's. `waiting` is taken alone.
/// 2. Nothing of the user's (observers, wakers) runs under a lock.
/// 3. Whatever may let a waiter pass wakes it, before any observer is told.
pub(crate) struct Shared {
    gate: Gate,
    waiting: Mutex<Fifo<Waker>>,
    state: watch::Sender<State>,
    slow_after: Option<Duration>,
    attempt_deadline: Option<Duration>,
    when_open: WhenOpen,
    reporter: Reporter,
}

/// The circuit is open at `now`; it makes sense to ask again at `ask_again`.
pub(crate) struct Refused {
    ask_again: Instant,
    now: Instant,
}

impl Shared {
    /// Admits one call whose attempt deadline is `attempt_deadline`, or else the breaker's own.
    #[inline]
    pub(crate) fn admit<B: Deref<Target = Self>>(
        breaker: B,
        attempt_deadline: Option<Duration>,
    ) -> Result<Pass<B>, Refused> {
        let attempt_deadline = attempt_deadline.or(breaker.attempt_deadline);
        let ticket = match breaker.gate.pass() {
            Some(ticket) => ticket,
            None => breaker.admit_slowly(attempt_deadline)?,
        };
        Ok(Pass {
            breaker,
            ticket,
            attempt_deadline,
            started: None,
            over: false,
        })
    }

    /// Admits a call, gives it a place in line, or refuses it.
    #[inline]
    pub(crate) fn ask<B>(breaker: B, attempt_deadline: Option<Duration>) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        match Self::admit(breaker.clone(), attempt_deadline) {
            Ok(pass) => Answer::Granted(pass),
            Err(refused) => Self::stand_in_line(breaker, attempt_deadline, refused),
        }
    }

    #[cold]
    fn stand_in_line<B>(
        breaker: B,
        attempt_deadline: Option<Duration>,
        refused: Refused,
    ) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        let WhenOpen::Wait { queue } = breaker.when_open else {
            return Answer::Refused(breaker.refuse(refused));
        };
        let key = {
            let mut waiting = lock(&breaker.waiting);
            let free = waiting.len() < queue;
            free.then(|| waiting.push(Waker::noop().clone()))
        };
        match key {
            None => Answer::Refused(breaker.refuse(refused)),
            Some(key) => Answer::Wait(Waiting {
                breaker,
                key,
                attempt_deadline,
                timer: Timer::new(),
            }),
        }
    }

    /// The refusal that the caller sees; reported.
    #[cold]
    fn refuse(&self, refused: Refused) -> Rejected {
        let retry_after = refused.ask_again.saturating_duration_since(refused.now);
        self.report(Rejected::CircuitOpen { retry_after })
    }

    #[cold]
    fn admit_slowly(&self, attempt_deadline: Option<Duration>) -> Result<Ticket, Refused> {
        let now = time::now();
        let slot_life = attempt_deadline.map_or(SLOT_LIFE, |time| 2 * time);
        let admitted = self.change(now, |circuit| {
            circuit.admit(slot_life, fastrand::u64(..), now)
        });
        admitted.map_err(|ask_again| Refused { ask_again, now })
    }

    #[cold]
    fn settle(&self, ticket: Ticket, outcome: Outcome) {
        let now = time::now();
        self.change(now, |circuit| {
            circuit.settle(ticket, outcome, fastrand::u64(..), now);
        });
        if ticket.is_probe() {
            self.wake();
        }
    }

    /// Changes the circuit, and tells everybody outside the lock.
    fn change<R>(&self, now: Instant, change: impl FnOnce(&mut Circuit) -> R) -> R {
        let (result, changed) = self.gate.change(now, change);
        if changed {
            // The present state, not that of this change: another thread may have published a later one already.
            self.state.send_if_modified(|state| {
                let now = self.gate.state();
                mem::replace(state, now) != now
            });
            self.wake();
            self.gate.tell(|Change { from, to, cause }| {
                self.reporter.emit(|name| Event::Transition {
                    name,
                    from,
                    to,
                    cause,
                });
            });
        }
        result
    }

    /// Lets everybody in line ask again.
    fn wake(&self) {
        if !matches!(self.when_open, WhenOpen::Wait { .. }) {
            return;
        }
        // Taken, not cloned: a waker's code is the user's.
        let take = |waker: &mut Waker| mem::replace(waker, Waker::noop().clone());
        let wakers: Vec<Waker> = lock(&self.waiting).iter_mut().map(take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn report(&self, rejected: Rejected) -> Rejected {
        self.reporter.emit(|name| Event::Refused {
            name,
            rejected: &rejected,
        });
        rejected
    }
}

/// A place in the line of those who wait for the circuit. Dropped, it is given up.
pub(crate) struct Waiting<B: Deref<Target = Shared>> {
    breaker: B,
    key: Key,
    attempt_deadline: Option<Duration>,
    timer: Timer,
}

impl<B: Deref<Target = Shared> + Clone> Wait for Waiting<B> {
    type Leave = Pass<B>;

    /// Waits until the circuit lets this call pass, or its deadline comes.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pass<B>, Rejected>> {
        loop {
            // In line before asking, so that no change in between is missed.
            let waker = cx.waker().clone();
            let place = |place: &mut Waker| mem::replace(place, waker);
            let replaced = lock(&self.breaker.waiting).get_mut(self.key).map(place);
            // Outside the lock: it may be the last owner of a task that waits in this line too.
            drop(replaced);
            let deadline = ambient::current();
            if deadline.is_some_and(|at| at <= time::now()) {
                let rejected = Rejected::DeadlineExceeded { sent: false };
                return Poll::Ready(Err(self.breaker.report(rejected)));
            }
            let ask_again = match Shared::admit(self.breaker.clone(), self.attempt_deadline) {
                Ok(pass) => return Poll::Ready(Ok(pass)),
                Err(refused) => refused.ask_again,
            };
            let wake_at = deadline.map_or(ask_again, |at| at.min(ask_again));
            if self.timer.poll(wake_at, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<B: Deref<Target = Shared>> Drop for Waiting<B> {
    fn drop(&mut self) {
        let waker = lock(&self.breaker.waiting).remove(self.key);
        drop(waker);
    }
}

/// The right to make one call, with whatever way of holding the circuit. Dropped unsettled, the call was abandoned.
pub(crate) struct Pass<B: Deref<Target = Shared>> {
    breaker: B,
    ticket: Ticket,
    attempt_deadline: Option<Duration>,
    started: Option<Instant>,
    over: bool,
}

impl<B: Deref<Target = Shared>> Pass<B> {
    /// The call has to wait: it is timed from `now` on, if anything depends on it.
    #[inline]
    pub(crate) fn waits_since(&mut self, now: impl FnOnce() -> Instant) {
        let timed = self.attempt_deadline.is_some() || self.breaker.slow_after.is_some();
        if timed && self.started.is_none() {
            self.started = Some(now());
        }
    }

    /// Takes the call's result; returns what it means.
    #[inline]
    pub(crate) fn settle_result<T, E, C>(self, classify: &C, result: &Result<T, E>) -> Verdict
    where
        E: Refusal,
        C: Classify<T, E>,
    {
        let verdict = judge(classify, result);
        let cut = matches!(result, Err(error) if error.rejected().is_some());
        self.settle(verdict, cut);
        verdict
    }

    /// Takes what the result means. `cut`: it is a refusal, no answer.
    #[inline]
    fn settle(mut self, verdict: Verdict, cut: bool) {
        if mem::replace(&mut self.over, true) {
            // It panicked, which was counted, and was polled again.
            return;
        }
        let good = matches!(verdict.kind, Kind::Success | Kind::Invalid | Kind::Conflict);
        if good && !self.ticket.is_probe() && !self.is_slow() {
            self.breaker.gate.succeed(self.ticket, time::now);
        } else {
            self.settle_slowly(verdict, cut);
        }
    }

    #[cold]
    fn settle_slowly(&self, verdict: Verdict, cut: bool) {
        let (bad, slow) = match verdict.kind {
            Kind::Saturated | Kind::Ignored => return self.report(Outcome::Neutral),
            Kind::Success | Kind::Invalid | Kind::Conflict => (false, false),
            Kind::TimedOut => (false, true),
            // The caller's own deadline struck, and that was shorter than what the dependency may take.
            Kind::Ambiguous if cut && Bound::ambient().is_over() && !self.ran_its_time() => {
                return self.report(Outcome::Neutral);
            }
            Kind::Overloaded | Kind::Unavailable | Kind::Ambiguous | Kind::Broken => (true, false),
        };
        self.report(Outcome::Counted {
            bad,
            slow: slow || self.is_slow(),
            retry_after: verdict.retry_after,
        });
    }

    fn report(&self, outcome: Outcome) {
        let learns = self.ticket != Ticket::STRAY;
        if learns && (outcome != Outcome::Neutral || self.ticket.is_probe()) {
            self.breaker.settle(self.ticket, outcome);
        }
    }

    #[inline]
    fn is_slow(&self) -> bool {
        match (self.breaker.slow_after, self.started) {
            (Some(after), Some(started)) => time::now() >= started + after,
            _ => false,
        }
    }

    /// Whether the call had run for its attempt deadline.
    fn ran_its_time(&self) -> bool {
        match (self.attempt_deadline, self.started) {
            (Some(time), Some(started)) => time::now() >= started + (time - time / CLOSE_TO),
            _ => false,
        }
    }
}

impl<B: Deref<Target = Shared>> Leave for Pass<B> {
    /// A panic of the call's code is a failure of the dependency.
    #[inline]
    fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        struct Bomb<'a, B: Deref<Target = Shared>>(&'a mut Pass<B>);
        impl<B: Deref<Target = Shared>> Drop for Bomb<'_, B> {
            fn drop(&mut self) {
                if !mem::replace(&mut self.0.over, true) {
                    self.0.report(BAD);
                }
            }
        }
        let bomb = Bomb(self);
        let result = f();
        mem::forget(bomb);
        result
    }

    #[inline]
    fn waits(&mut self) {
        self.waits_since(time::now);
    }
}

impl<B: Deref<Target = Shared>> Drop for Pass<B> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let bad = self.ran_its_time();
        self.report(if bad { BAD } else { Outcome::Neutral });
    }
}

const BAD: Outcome = Outcome::Counted {
    bad: true,
    slow: false,
    retry_after: None,
};

/// A probe's slot expires after this time where no attempt deadline is known.
const SLOT_LIFE: Duration = Duration::from_secs(30);

/// A call that was cut off within this fraction of its attempt deadline has run for it: the two may start their clocks a little apart.
const CLOSE_TO: u32 = 32;
