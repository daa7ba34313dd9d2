//! Faults on purpose, for the tests of your own services.
//!
//! ```text
//! your test ─► retry, breaker, .. ─► FaultService ─► your service, or a fake of it
//!                                        │
//!         Latency ── waits, then calls ──┤                         ┌── LatencyAfter ── answers late
//!         Fail ───── answers a failure   ├─ calls ─── it is done ──┼── FailAfter ───── answers a failure
//!         Hang ───── never answers       │              │          └── HangAfter ───── never answers
//!                                        │              └ Drop: cut off halfway, answers a failure
//!                     no effect          │              an effect, or half of one
//! ```
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{Kind, fault::{Fault, Faults}};
//! use tower::{Service, ServiceBuilder};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let faults = Faults::builder(|kind| io::Error::other(kind.to_string()))
//!     .script([Fault::Fail(Kind::Unavailable), Fault::FailAfter(Kind::Ambiguous)])
//!     .rate(0.1, Fault::Latency(Duration::from_millis(20)))
//!     .seed(7)
//!     .build()?;
//! let mut service = ServiceBuilder::new()
//!     .layer(faults.layer())
//!     .service_fn(async |n: u32| Ok::<_, io::Error>(n + 1));
//!
//! assert_eq!(service.call(1).await.unwrap_err().to_string(), "unavailable");
//! assert_eq!(service.call(1).await.unwrap_err().to_string(), "ambiguous");
//! faults.disable();
//! assert_eq!(service.call(1).await?, 2);
//! assert_eq!((faults.counts().fail, faults.counts().fail_after), (1, 1));
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! To see what your stack, and the code above it, does when a dependency is slow, full, gone, or did the work and lost the
//! answer. Failures *after* the call took effect find the writes that are not safe to repeat; no fake that just returns
//! errors finds them. It is no substitute for one test against the real dependency: it breaks calls, not connections.
//! Leave it out of production builds; that is why it is a feature.
//!
//! # Defaults
//! | setting | default | why |
//! |---|---|---|
//! | script | empty | a layer without settings changes nothing |
//! | rates | none | as above |
//! | seed | 0 | a failing test fails again when it is repeated |
//! | enabled | yes | whoever builds faults wants them |
//!
//! # What it reports
//! Nothing to an observer: the parts around it report what they make of it. [`Faults::counts`] says what was chosen.
//!
//! # Its place in the stack
//! Innermost, around the service itself, so that everything above takes the faults for the service's own. A
//! [`WrapLayer`](crate::error::WrapLayer) may go on either side.
//!
//! # What a clone shares
//! Clones of [`Faults`], [`FaultLayer`] and [`FaultService`] share everything: script, dice, counts and the switch.
//!
//! # Cancel safety
//! A dropped future drops the inner call where that had begun. Its fault is used up and stays counted.
//!
//! # Limits
//! - The same faults for the same seed need the same order of calls: concurrent callers race for the script.
//! - A fault is chosen per call, so a burst or an outage is a script, or the rate 1 switched on and off.
//! - A call that is at its end the first time it is polled can't be dropped halfway.

mod plan;
mod service;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::plan::Plan;
pub use self::service::{FaultLayer, FaultService, ResponseFuture};
use crate::{error::ConfigError, kind::Kind};

/// What goes wrong with one call.
///
/// ```
/// use steadfast::{Kind, fault::Fault};
///
/// assert!(!Fault::Fail(Kind::Unavailable).reaches_service());
/// assert!(Fault::FailAfter(Kind::Ambiguous).reaches_service());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    Pass,
    /// The call reaches the service that much later.
    Latency(Duration),
    /// The service does its work; the answer comes that much later.
    LatencyAfter(Duration),
    /// The call fails without reaching the service.
    Fail(Kind),
    /// The service does its work; its answer is thrown away, and the call fails.
    FailAfter(Kind),
    /// The call reaches the service, and fails halfway.
    ///
    /// It is dropped if it still runs `after` that time. A call that is done by then is answered as it is. With `Duration::ZERO` it is polled once.
    Drop {
        /// How long the call may run.
        after: Duration,
        /// What the failure means.
        kind: Kind,
    },
    /// The call never reaches the service, and the caller never hears of it.
    Hang,
    /// The service does its work; the caller never hears of it.
    HangAfter,
}

impl Fault {
    /// Whether the service gets the call, so that it may act on it.
    pub fn reaches_service(self) -> bool {
        !matches!(self, Self::Fail(_) | Self::Hang)
    }

    fn check(self, setting: &'static str) -> Result<(), ConfigError> {
        match self {
            Self::Latency(time) | Self::LatencyAfter(time) | Self::Drop { after: time, .. } => {
                ConfigError::check_time(PART, setting, time, Duration::ZERO)?;
            }
            Self::Pass | Self::Fail(_) | Self::FailAfter(_) | Self::Hang | Self::HangAfter => {}
        }
        match self {
            Self::Fail(Kind::Success)
            | Self::FailAfter(Kind::Success)
            | Self::Drop {
                kind: Kind::Success,
                ..
            } => Err(ConfigError::new(
                PART,
                setting,
                self,
                "a failure, not a success",
            )),
            _ => Ok(()),
        }
    }
}

/// How often each fault was chosen.
///
/// ```
/// use steadfast::fault::Faults;
///
/// let faults = Faults::builder(|kind| std::io::Error::other(kind.to_string())).build()?;
/// assert_eq!(faults.counts().injected(), 0);
/// # Ok::<_, steadfast::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// [`Fault::Pass`], calls made while the faults were off among them.
    pub pass: u64,
    /// [`Fault::Latency`].
    pub latency: u64,
    /// [`Fault::LatencyAfter`].
    pub latency_after: u64,
    /// [`Fault::Fail`].
    pub fail: u64,
    /// [`Fault::FailAfter`].
    pub fail_after: u64,
    /// [`Fault::Drop`], whether or not the call was done before.
    pub drop: u64,
    /// [`Fault::Hang`].
    pub hang: u64,
    /// [`Fault::HangAfter`].
    pub hang_after: u64,
}

impl Counts {
    fn add(&mut self, fault: Fault) {
        *match fault {
            Fault::Pass => &mut self.pass,
            Fault::Latency(_) => &mut self.latency,
            Fault::LatencyAfter(_) => &mut self.latency_after,
            Fault::Fail(_) => &mut self.fail,
            Fault::FailAfter(_) => &mut self.fail_after,
            Fault::Drop { .. } => &mut self.drop,
            Fault::Hang => &mut self.hang,
            Fault::HangAfter => &mut self.hang_after,
        } += 1;
    }

    /// All calls that something went wrong with.
    pub fn injected(&self) -> u64 {
        let late = self.latency + self.latency_after;
        late + self.fail + self.fail_after + self.drop + self.hang + self.hang_after
    }

    /// All calls.
    pub fn calls(&self) -> u64 {
        self.pass + self.injected()
    }
}

/// The faults of a test: what is to go wrong, the switch, and the counts.
///
/// A clone shares everything. `E` is the error of the service. See the [module](crate::fault) for an example.
pub struct Faults<E> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    /// Never called under the lock.
    fail: Box<dyn Fn(Kind) -> E + Send + Sync>,
    /// Never held across anything of the user's.
    state: Mutex<Dice>,
}

struct Dice {
    plan: Plan,
    rng: fastrand::Rng,
}

impl<E> Faults<E> {
    /// Faults whose failures are the errors that `fail` makes.
    ///
    /// Your classifier should give an error that was made from a kind that same kind.
    pub fn builder(fail: impl Fn(Kind) -> E + Send + Sync + 'static) -> FaultsBuilder<E> {
        FaultsBuilder {
            fail: Box::new(fail),
            script: Vec::new(),
            rates: Vec::new(),
            seed: 0,
        }
    }

    /// The layer that injects these faults.
    pub fn layer(&self) -> FaultLayer<E> {
        FaultLayer {
            faults: self.clone(),
        }
    }

    /// Adds to the end of the script.
    ///
    /// # Errors
    /// When one of them has a time of more than a year, or fails with a success; then none is added.
    ///
    /// ```
    /// use steadfast::{Kind, fault::{Fault, Faults}};
    ///
    /// let faults = Faults::builder(|kind| std::io::Error::other(kind.to_string())).build()?;
    /// // An outage of three calls, from here on.
    /// faults.append([Fault::Fail(Kind::Unavailable); 3])?;
    /// # Ok::<_, steadfast::ConfigError>(())
    /// ```
    pub fn append(&self, script: impl IntoIterator<Item = Fault>) -> Result<(), ConfigError> {
        let script: Vec<_> = script.into_iter().collect();
        for fault in &script {
            fault.check("append")?;
        }
        self.lock().plan.script.extend(script);
        Ok(())
    }

    /// Lets every new call pass. Script and dice stay where they are.
    pub fn disable(&self) {
        self.lock().plan.enabled = false;
    }

    /// Goes on where [`disable`](Self::disable) stopped.
    pub fn enable(&self) {
        self.lock().plan.enabled = true;
    }

    /// Whether new calls get faults.
    pub fn is_enabled(&self) -> bool {
        self.lock().plan.enabled
    }

    /// What was chosen so far, by all clones.
    pub fn counts(&self) -> Counts {
        self.lock().plan.counts
    }

    fn next(&self) -> Fault {
        let Dice { plan, rng } = &mut *self.lock();
        plan.next(|| rng.f64())
    }

    fn failure(&self, kind: Kind) -> E {
        (self.shared.fail)(kind)
    }

    fn lock(&self) -> MutexGuard<'_, Dice> {
        // Nothing that is done under the lock leaves half a change behind.
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Clone for Faults<E> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<E> fmt::Debug for Faults<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faults").field(&self.lock().plan).finish()
    }
}

/// Builds [`Faults`]; [`Faults::builder`] begins it.
///
/// ```
/// use steadfast::{Kind, fault::{Fault, Faults}};
///
/// let error = Faults::builder(|kind| std::io::Error::other(kind.to_string()))
///     .rate(0.7, Fault::Fail(Kind::Unavailable))
///     .rate(0.5, Fault::Hang)
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "faults: rate is 1.2, but must be at most 1 in sum");
/// ```
#[must_use = "nothing is built before `build`"]
pub struct FaultsBuilder<E> {
    fail: Box<dyn Fn(Kind) -> E + Send + Sync>,
    script: Vec<Fault>,
    rates: Vec<(f64, Fault)>,
    seed: u64,
}

impl<E> FaultsBuilder<E> {
    /// The faults of the first calls, in order. Called again, it adds to them.
    pub fn script(mut self, script: impl IntoIterator<Item = Fault>) -> Self {
        self.script.extend(script);
        self
    }

    /// The part of the calls after the script to which `fault` happens.
    ///
    /// Called again, it adds another.
    pub fn rate(mut self, rate: f64, fault: Fault) -> Self {
        self.rates.push((rate, fault));
        self
    }

    /// Where the dice start.
    ///
    /// The same seed and the same order of calls give the same faults.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The faults, switched on.
    ///
    /// # Errors
    /// When a rate is not over 0 and at most 1, or all of them together are over 1; when a time is more than a year;
    /// when a failure is to be a [`Kind::Success`].
    pub fn build(self) -> Result<Faults<E>, ConfigError> {
        for fault in &self.script {
            fault.check("script")?;
        }
        let mut sum = 0.0;
        for (rate, fault) in &self.rates {
            fault.check("rate")?;
            ConfigError::check_rate(PART, "rate", *rate)?;
            sum += rate;
        }
        if sum > 1.0 + ROUNDING {
            return Err(ConfigError::new(PART, "rate", sum, "at most 1 in sum"));
        }
        let plan = Plan {
            script: self.script.into(),
            rates: self.rates,
            enabled: true,
            counts: Counts::default(),
        };
        let rng = fastrand::Rng::with_seed(self.seed);
        Ok(Faults {
            shared: Arc::new(Shared {
                fail: self.fail,
                state: Mutex::new(Dice { plan, rng }),
            }),
        })
    }
}

impl<E> fmt::Debug for FaultsBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultsBuilder")
            .field("script", &self.script)
            .field("rates", &self.rates)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// The part's name in a [`ConfigError`].
const PART: &str = "faults";

/// How far a sum of rates that is 1 on paper may be over it: 0.2 + 0.4 + 0.3 + 0.1 is.
const ROUNDING: f64 = 1e-9;
