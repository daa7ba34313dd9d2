//! A circuit breaker: it stops calling a failing dependency, and notices when it is back.
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
//! all of them with it), and not for failures that are about the request rather than the dependency: classify those as [`Invalid`](crate::Kind::Invalid).
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
//! | `consecutive` | 50, or `minimum_calls` where that is more | a total outage is noticed at once, however many good calls the window remembers; it is more than the connections of a usual pool, which one restart breaks all together |
//! | `slow_calls` | off | only you know what is slow |
//! | `when_open` | [`Refuse`](WhenOpen::Refuse) | waiting ties up callers; it is for batch work |
//!
//! # What it reports
//! [`Event::Transition`](crate::Event::Transition): `WARN circuit changed name=db from=closed to=open cause="failure rate"`; and [`Event::Refused`](crate::Event::Refused):
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
//! - It ends no call. Where the layers are used alone, set an [`attempt_deadline`](Builder::attempt_deadline), or a hang counts only if a
//!   [`Deadline`](crate::Deadline) inside the breaker ends it in time; best set both, to the same time. A [`Shield`](crate::Shield) has both.
//! - The deadlines of callers must be longer than the attempt deadline. A hang that a caller cuts off earlier says nothing, so that with impatient
//!   callers only, hangs never count.
//! - A call whose service does not become ready within the attempt deadline has failed.
//! - It trips when a failure (or slow call) is recorded, never on a success.
//! - Results are dated to a tenth of the window. Successes of a thread that made many at once and then few may be dated further back, and so be
//!   forgotten early: at most 63 for each thread.
//! - It knows of one process only.

mod builder;
mod circuit;
mod gate;
mod service;
mod shared;
mod window;

use std::fmt;

use tokio::sync::watch;

use self::circuit::{Circuit, Forced};
pub(crate) use self::shared::{Pass, Shared, Waiting};
pub use self::{
    builder::{Builder, WhenOpen},
    service::{BreakerLayer, BreakerService, ResponseFuture},
};
pub use crate::event::State;
use crate::{
    error::Rejected,
    kind::Verdict,
    owner::{Owner, Owners},
    time,
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
    shared: Owners<Shared>,
}

impl Breaker {
    /// A breaker with the defaults of the [module](self).
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The textbook's breaker: opens after `failures` in a row, whatever the rate.
    pub fn consecutive(failures: u32) -> Builder {
        Builder::only_consecutive(failures)
    }

    /// Admits one call, or says that the circuit is open. Never waits.
    ///
    /// # Errors
    /// [`Rejected::CircuitOpen`].
    pub fn admit(&self) -> Result<Permit, Rejected> {
        let mut pass = match Shared::pass(self.owned(), None) {
            Some(pass) => pass,
            None => {
                Shared::admit(self.owned(), None).map_err(|refused| self.shared.refuse(refused))?
            }
        };
        pass.waits_since(time::stamp);
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

    /// The state as of the last call.
    ///
    /// An open circuit whose time is over stays `Open` until somebody calls.
    pub fn state(&self) -> State {
        self.shared.gate.state()
    }

    /// The state, now and whenever it changes.
    ///
    /// States that follow each other closely may be skipped.
    ///
    /// ```
    /// use steadfast::{Breaker, breaker::State};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = Breaker::default();
    /// let mut states = breaker.subscribe();
    /// breaker.force_open();
    /// states.changed().await;
    /// assert_eq!(states.state(), State::ForcedOpen);
    /// # Ok(()) }
    /// ```
    pub fn subscribe(&self) -> States {
        States {
            receiver: self.shared.state.subscribe(),
        }
    }

    /// A tower layer over this circuit; `classify` says what the results of the service mean.
    pub fn layer<C>(&self, classify: C) -> BreakerLayer<C> {
        BreakerLayer::new(self.clone(), classify)
    }

    /// Whether the circuit is open only because nobody has called since its time was over.
    #[cfg(feature = "sqlx")]
    pub(crate) fn is_due(&self) -> bool {
        self.shared.gate.is_due(time::now())
    }

    /// Whether it was told how long an attempt may take.
    #[cfg(feature = "http")]
    pub(crate) fn has_attempt_deadline(&self) -> bool {
        self.shared.attempt_deadline.is_some()
    }

    /// The circuit, for a pass that borrows it.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The circuit, for a pass that outlives this handle.
    #[inline]
    pub(crate) fn owned(&self) -> Owner<Shared> {
        self.shared.owner()
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

/// The states of a circuit, as they follow each other; see [`Breaker::subscribe`].
///
/// It hands out copies, never a guard: whoever looks at a state can call the breaker meanwhile. A clone has seen what the original has.
#[derive(Clone, Debug)]
pub struct States {
    receiver: watch::Receiver<State>,
}

impl States {
    /// The state now.
    pub fn state(&self) -> State {
        *self.receiver.borrow()
    }

    /// The next state that was not yet waited for; `None` once the breaker is gone.
    ///
    /// # Cancel safety
    /// A change is not lost with a future that is dropped: the next one returns at once.
    pub async fn changed(&mut self) -> Option<State> {
        self.receiver.changed().await.ok()?;
        Some(*self.receiver.borrow_and_update())
    }
}

/// The right to make one call.
///
/// Dropped unsettled, it frees its slot and counts nothing, unless it was held for the
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
    pass: Pass<Owner<Shared>>,
}

impl Permit {
    /// Reports how the call went.
    pub fn settle(mut self, verdict: impl Into<Verdict>) {
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
