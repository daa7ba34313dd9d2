//! What a stack reports: one enum of events, delivered to an [`Observer`].

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

pub use crate::held::{Activity, LeaseReport};
use crate::{error::Rejected, kind::Kind};

/// The name of a breaker, limiter, retry or shield in events and messages.
///
/// A `&'static str` costs nothing; a `String` is shared, never copied into an event.
///
/// ```
/// use steadfast::event::Name;
///
/// let tenant = Name::from(format!("tenant-{}", 7));
/// assert_eq!(tenant.as_str(), "tenant-7");
/// ```
#[derive(Clone)]
pub struct Name(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Name {
    /// A name known when the program is built.
    pub const fn new(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

/// By their text, wherever that lies.
impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What a circuit lets through.
///
/// ```
/// use steadfast::{Breaker, breaker::State};
///
/// let breaker = Breaker::default();
/// breaker.force_open();
/// assert_eq!(breaker.state(), State::ForcedOpen);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Every call.
    Closed,
    /// None, until its time is over.
    Open,
    /// A few probes.
    HalfOpen,
    /// None, until it is reset.
    ForcedOpen,
    /// Every call, whatever the results, until it is reset.
    ForcedClosed,
}

impl State {
    /// The name in lower case, as it stands in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced open",
            Self::ForcedClosed => "forced closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a circuit changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Too many calls of the window failed.
    FailureRate,
    /// Too many calls failed in a row.
    Consecutive,
    /// Too many calls of the window were slow.
    SlowRate,
    /// The open time is over.
    OpenTimeOver,
    /// A probe failed.
    ProbeFailed,
    /// A probe's slot expired before it came back.
    ProbeExpired,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// Somebody asked for it.
    Asked,
}

impl Cause {
    /// The name in lower case, as it stands in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FailureRate => "failure rate",
            Self::Consecutive => "consecutive failures",
            Self::SlowRate => "slow-call rate",
            Self::OpenTimeOver => "open time over",
            Self::ProbeFailed => "probe failed",
            Self::ProbeExpired => "probe expired",
            Self::ProbesSucceeded => "probes succeeded",
            Self::Asked => "asked",
        }
    }
}

/// Why no further attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GaveUp {
    /// All attempts are used up.
    Attempts,
    /// The next one could not start before the deadline.
    Deadline,
    /// The retry budget is empty.
    Budget,
}

impl GaveUp {
    /// The name in lower case, as it stands in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts used up",
            Self::Deadline => "deadline too near",
            Self::Budget => "retry budget empty",
        }
    }
}

/// Something that happened in a stack.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An attempt failed and another one will follow.
    Retry {
        /// The name of the retry or shield.
        name: &'a Name,
        /// The attempt that failed; the first is 1.
        attempt: u32,
        /// What it meant.
        kind: Kind,
        /// How long until the next attempt.
        delay: Duration,
    },
    /// An attempt failed, could have been repeated, and was not.
    GaveUp {
        /// The name of the retry or shield.
        name: &'a Name,
        /// How many attempts were made.
        attempts: u32,
        /// What the last one meant.
        kind: Kind,
        /// Why it was not repeated.
        reason: GaveUp,
    },
    /// A circuit changed its state.
    Transition {
        /// The breaker's name.
        name: &'a Name,
        /// The state it left.
        from: State,
        /// The state it is in.
        to: State,
        /// Why.
        cause: Cause,
    },
    /// A layer of ours refused a call.
    Refused {
        /// The name of the part that refused.
        name: &'a Name,
        /// The refusal.
        rejected: &'a Rejected,
    },
    /// A connection is held for too long; said once of each lease.
    Leak {
        /// The database's name.
        name: &'a Name,
        /// Who holds it.
        lease: &'a LeaseReport,
    },
    /// A connection came back that was held for too long.
    LeakReturned {
        /// The database's name.
        name: &'a Name,
        /// Who held it.
        lease: &'a LeaseReport,
    },
    /// A transaction runs no statement for too long; said once of each lease.
    IdleInTransaction {
        /// The database's name.
        name: &'a Name,
        /// Who holds it.
        lease: &'a LeaseReport,
    },
    /// A COMMIT's reply was lost, and it was found out how it had ended.
    CommitResolved {
        /// The database's name.
        name: &'a Name,
        /// Whether it took place.
        committed: bool,
    },
}

/// Somebody who wants to know what happens in a stack.
///
/// It is called outside every lock, in the task in which the event happened. It must not block. It may call the handles back: nothing of
/// theirs is locked. An event is built when it happens, which is never on a success. A pair of observers is an observer.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use steadfast::{Event, Observer};
///
/// #[derive(Default)]
/// struct CountRetries(AtomicU32);
///
/// impl Observer for CountRetries {
///     fn on_event(&self, event: &Event<'_>) {
///         if let Event::Retry { .. } = event {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// `event` happened.
    fn on_event(&self, event: &Event<'_>);
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn on_event(&self, event: &Event<'_>) {
        (**self).on_event(event);
    }
}

impl<A: Observer, B: Observer> Observer for (A, B) {
    fn on_event(&self, event: &Event<'_>) {
        self.0.on_event(event);
        self.1.on_event(event);
    }
}

/// The observer that every part has unless told otherwise: hands events to [`tracing`].
///
/// Nothing is logged at `ERROR`. A circuit that opens is `WARN`, every other transition `INFO`; a call that was given up is `WARN`. Retries and
/// refusals are `DEBUG`, because under overload there are as many of them as calls. A connection that is held for too long and a transaction that
/// idles are `WARN`, its return is `INFO`, and so is a COMMIT whose end was found out.
#[cfg(feature = "tower")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing;

#[cfg(feature = "tower")]
impl Observer for Tracing {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::Retry {
                name,
                attempt,
                kind,
                delay,
            } => {
                let delay_ms = delay.as_millis() as u64;
                tracing::debug!(%name, attempt, %kind, delay_ms, "attempt failed, will be repeated");
            }
            Event::GaveUp {
                name,
                attempts,
                kind,
                reason,
            } => {
                tracing::warn!(%name, attempts, %kind, reason = reason.as_str(), "gave up");
            }
            Event::Transition {
                name,
                from,
                to,
                cause,
            } => {
                let cause = cause.as_str();
                match to {
                    State::Open | State::ForcedOpen => {
                        tracing::warn!(%name, %from, %to, cause, "circuit changed");
                    }
                    State::Closed | State::HalfOpen | State::ForcedClosed => {
                        tracing::info!(%name, %from, %to, cause, "circuit changed");
                    }
                }
            }
            Event::Refused { name, rejected } => {
                tracing::debug!(%name, %rejected, "call refused");
            }
            Event::Leak { name, lease } => {
                tracing::warn!(%name, lease = lease.id, report = %lease, "connection not given back");
            }
            Event::LeakReturned { name, lease } => {
                tracing::info!(%name, lease = lease.id, report = %lease, "connection given back late");
            }
            Event::IdleInTransaction { name, lease } => {
                tracing::warn!(%name, lease = lease.id, report = %lease, "transaction idle");
            }
            Event::CommitResolved { name, committed } => {
                tracing::info!(%name, committed, "lost reply to COMMIT resolved");
            }
        }
    }
}

/// A part's name and its observer.
#[cfg(feature = "tower")]
#[derive(Clone)]
pub(crate) struct Reporter {
    name: Name,
    observer: Option<Arc<dyn Observer>>,
}

#[cfg(feature = "tower")]
impl Reporter {
    /// Reports to [`Tracing`] under `name`.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self {
            name: Name::new(name),
            observer: None,
        }
    }

    pub(crate) fn rename(&mut self, name: Name) {
        self.name = name;
    }

    pub(crate) fn observe(&mut self, observer: impl Observer) {
        self.observer = Some(Arc::new(observer));
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Reports `rejected`, and hands it back.
    #[cold]
    pub(crate) fn refused(&self, rejected: Rejected) -> Rejected {
        self.emit(|name| Event::Refused {
            name,
            rejected: &rejected,
        });
        rejected
    }

    /// Delivers the event that `make` builds from the part's name.
    #[cold]
    pub(crate) fn emit<'a>(&'a self, make: impl FnOnce(&'a Name) -> Event<'a>) {
        let event = make(&self.name);
        match &self.observer {
            Some(observer) => observer.on_event(&event),
            None => Tracing.on_event(&event),
        }
    }
}

#[cfg(feature = "tower")]
impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name, f)
    }
}

#[cfg(all(test, feature = "tower", not(steadfast_loom)))]
mod tests {
    use std::{collections::HashSet, hash::DefaultHasher, sync::Mutex};

    use super::*;
    use crate::testing::{CAUSES, Log};

    #[test]
    fn leases_are_logged_as_lines() {
        let lease = LeaseReport {
            id: 7,
            location: None,
            operation: Some(Name::new("list-orders")),
            span: None,
            statement: None,
            age: Duration::from_secs(31),
            activity: Activity::InTransaction,
            activity_for: Duration::from_secs(12),
            statements: 1,
        };
        let (name, lease) = (&Name::new("db"), &lease);
        let logged = logged(&[
            Event::Leak { name, lease },
            Event::LeakReturned { name, lease },
            Event::IdleInTransaction { name, lease },
        ]);
        let rest = "name=db lease=7 report=held for 31.0s, operation list-orders, in transaction, idle for 12.0s";
        let expected = [
            format!(" WARN connection not given back {rest}"),
            format!(" INFO connection given back late {rest}"),
            format!(" WARN transaction idle {rest}"),
        ];
        assert_eq!(logged.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_fate_of_a_commit_is_logged_as_a_line() {
        let name = &Name::new("db");
        let committed = true;
        let logged = logged(&[Event::CommitResolved { name, committed }]);
        let expected = " INFO lost reply to COMMIT resolved name=db committed=true\n";
        assert_eq!(logged, expected);
    }

    /// What it was told, as it is shown.
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn on_event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(format!("{event:?}"));
        }
    }

    #[test]
    fn both_of_a_pair_hear_what_a_part_says_under_its_own_name() {
        let pair = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let mut reporter = Reporter::new("usual");
        reporter.rename(Name::new("mine"));
        reporter.observe(pair.clone());
        let rejected = Rejected::DeadlineExceeded { sent: false };
        assert_eq!(reporter.refused(rejected.clone()), rejected);
        for heard in [pair.0, pair.1] {
            let told = r#"Refused { name: "mine", rejected: DeadlineExceeded { sent: false } }"#;
            assert_eq!(*heard.0.lock().unwrap(), [told]);
        }
        assert_eq!(reporter.name().as_str(), "mine");
        assert_eq!(format!("{reporter:?}"), r#""mine""#);
    }

    #[test]
    fn names_are_told_apart_by_their_text_wherever_it_lies() {
        let here = Name::new("db");
        let hash = |name: &Name| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            hasher.finish()
        };
        let shared: Arc<str> = "db".into();
        for same in [Name::from("db"), "db".to_owned().into(), shared.into()] {
            assert_eq!(same, here);
            assert_eq!(hash(&same), hash(&here));
            assert_eq!(format!("{same} {same:?}"), r#"db "db""#);
        }
        let other = Name::from("queue".to_owned());
        assert_ne!(other, here);
        assert_ne!(hash(&other), hash(&here), "a map would be a list");
    }

    #[test]
    fn no_two_states_causes_or_reasons_have_the_same_name() {
        let states = [
            State::Closed,
            State::Open,
            State::HalfOpen,
            State::ForcedOpen,
            State::ForcedClosed,
        ];
        let reasons = [GaveUp::Attempts, GaveUp::Deadline, GaveUp::Budget];
        assert_distinct(&states.map(State::as_str));
        assert_distinct(&states.map(|state| state.to_string()));
        assert_distinct(&CAUSES.map(Cause::as_str));
        assert_distinct(&reasons.map(GaveUp::as_str));
    }

    fn assert_distinct(names: &[impl AsRef<str>]) {
        let distinct: HashSet<&str> = names.iter().map(AsRef::as_ref).collect();
        assert_eq!(distinct.len(), names.len(), "{distinct:?}");
        for name in distinct {
            assert!(!name.is_empty() && name == name.to_lowercase(), "{name}");
        }
    }

    fn logged(events: &[Event<'_>]) -> String {
        let (log, _guard) = Log::begin();
        for event in events {
            Tracing.on_event(event);
        }
        log.text()
    }
}
