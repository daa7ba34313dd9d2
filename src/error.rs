//! Refusals, the error types that carry them, and bad configuration.

use std::{error, fmt, io, iter, time::Duration};

use thiserror::Error;

use crate::kind::{Classify, Kind, Verdict};
#[cfg(feature = "tower")]
pub use crate::wrap::{WrapFuture, WrapLayer, WrapService};

/// The one way in which *we* say no.
///
/// It travels inside your own error type ([`Refusal`]), never around it. [`Rejected::of`] finds it in
/// any error.
///
/// ```
/// use std::{io, time::Duration};
/// use steadfast::Rejected;
///
/// let error = io::Error::from(Rejected::CircuitOpen { retry_after: Duration::from_millis(4_900) });
/// assert_eq!(error.to_string(), "circuit open for 4.9s more");
/// assert!(Rejected::of(&error).is_some_and(|rejected| !rejected.sent()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The circuit is open; the call was not sent.
    #[error("circuit open for {:.1}s more", .retry_after.as_secs_f64())]
    CircuitOpen {
        /// When it makes sense to ask again.
        ///
        /// The open time is over then, or the probe that is under way has had time to answer. For a circuit that was forced open it is the
        /// breaker's `open_for`, as nobody knows when it is reset.
        retry_after: Duration,
    },
    /// The deadline came first.
    #[error("deadline exceeded {}", if *.sent { "while the call was under way" } else { "before the call was sent" })]
    DeadlineExceeded {
        /// `false` only while a layer of ours still held the call; `true` means that it may have acted.
        sent: bool,
    },
    /// The queue in front of the dependency would not do; the call was not sent.
    #[error("overloaded: {reason}")]
    Overloaded {
        /// What stood in the way.
        reason: Overload,
    },
}

impl Rejected {
    /// The refusal inside `error`, wherever in its source chain it is.
    ///
    /// ```
    /// use steadfast::{Overload, Rejected};
    ///
    /// let inner = Rejected::Overloaded { reason: Overload::QueueFull };
    /// let error: Box<dyn std::error::Error + Send + Sync> = std::io::Error::from(inner).into();
    /// assert!(matches!(Rejected::of(&*error), Some(Rejected::Overloaded { .. })));
    /// ```
    pub fn of<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|error| error.downcast_ref())
    }

    /// Whether the dependency may have acted on the call.
    pub fn sent(&self) -> bool {
        matches!(self, Self::DeadlineExceeded { sent: true })
    }

    /// What it means to breaker and retry: a call that was sent may have acted, any other says nothing about the dependency.
    pub(crate) fn kind(&self) -> Kind {
        if self.sent() {
            Kind::Ambiguous
        } else {
            Kind::Ignored
        }
    }

    /// When it makes sense to come back, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::CircuitOpen { retry_after } => Some(*retry_after),
            Self::DeadlineExceeded { .. } | Self::Overloaded { .. } => None,
        }
    }
}

/// The error and everything behind it.
pub(crate) fn chain<'a>(
    error: &'a (dyn error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn error::Error + 'static)> {
    iter::successors(Some(error), |error| {
        // `io::Error` hides what it wraps from `source()`, but not from `get_ref()`.
        match error.downcast_ref::<io::Error>().map(io::Error::get_ref) {
            Some(Some(inner)) => Some(inner),
            _ => error.source(),
        }
    })
}

/// Why the queue in front of a dependency refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Overload {
    /// No place in the queue is free.
    #[error("the queue is full")]
    QueueFull,
    /// The deadline is expected to come before its turn does.
    #[error("too little time is left for its place in the queue")]
    TooLittleTime,
    /// It waited as long as the queue's `max_wait` allows.
    #[error("it waited in the queue for as long as is allowed")]
    MaxWait,
}

/// An error type that can carry a refusal of ours.
///
/// Our layers require it of the inner service's error.
///
/// Implemented for [`Error<E>`](crate::Error), `Box<dyn Error + Send + Sync>`, [`io::Error`] and, with the `sqlx` feature,
/// `sqlx::Error`. For an error that can't implement it, see [`WrapLayer`] and `Shield::run_wrapped`.
///
/// ```
/// use steadfast::{Refusal, Rejected};
///
/// #[derive(Debug, thiserror::Error)]
/// enum StoreError {
///     #[error(transparent)]
///     Rejected(#[from] Rejected),
///     #[error("row {0} is missing")]
///     Missing(u64),
/// }
///
/// impl Refusal for StoreError {
///     fn rejected(&self) -> Option<&Rejected> {
///         if let Self::Rejected(rejected) = self { Some(rejected) } else { None }
///     }
/// }
/// ```
pub trait Refusal: From<Rejected> {
    /// The refusal, if this error is one.
    fn rejected(&self) -> Option<&Rejected>;
}

impl Refusal for Rejected {
    fn rejected(&self) -> Option<&Rejected> {
        Some(self)
    }
}

impl Refusal for Box<dyn error::Error + Send + Sync> {
    fn rejected(&self) -> Option<&Rejected> {
        Rejected::of(&**self)
    }
}

impl From<Rejected> for io::Error {
    /// `TimedOut` for a deadline, `ResourceBusy` for an overload, `ConnectionRefused` for an open circuit.
    fn from(rejected: Rejected) -> Self {
        let kind = match rejected {
            Rejected::CircuitOpen { .. } => io::ErrorKind::ConnectionRefused,
            Rejected::DeadlineExceeded { .. } => io::ErrorKind::TimedOut,
            Rejected::Overloaded { .. } => io::ErrorKind::ResourceBusy,
        };
        Self::new(kind, Carried(rejected))
    }
}

impl Refusal for io::Error {
    fn rejected(&self) -> Option<&Rejected> {
        let inner = self.get_ref()?;
        match inner.downcast_ref() {
            Some(Carried(rejected)) => Some(rejected),
            None => inner.downcast_ref(),
        }
    }
}

/// A refusal inside an [`io::Error`]. That one's `source()` skips what it wraps, and so does every error that is
/// transparent to it: the refusal stands one deeper, where they all find it.
#[derive(Debug, Error)]
#[error("{0}")]
struct Carried(#[source] Rejected);

/// Either a refusal of ours or the service's own error `E`.
///
/// For error types that can't carry a refusal; [`WrapLayer`] and `Shield::run_wrapped` make it.
///
/// ```
/// use steadfast::{Error, Rejected};
///
/// let error = "x".parse::<i32>().map_err(Error::Inner).unwrap_err();
/// assert_eq!(error.to_string(), "invalid digit found in string");
/// assert!(error.into_inner().is_some());
/// assert!(Error::<()>::from(Rejected::DeadlineExceeded { sent: false }).into_inner().is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// We refused the call.
    Rejected(Rejected),
    /// The service answered with its own error.
    Inner(E),
}

impl<E> Error<E> {
    /// The service's own error, unless we refused the call.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Rejected(_) => None,
            Self::Inner(error) => Some(error),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: error::Error + 'static> error::Error for Error<E> {
    /// The refusal itself, or what is behind the service's error.
    ///
    /// The refusal is returned so that [`Rejected::of`] finds it, although its message then stands twice in a chain that is printed. The
    /// service's error forwards its own source, so that its message stands there once.
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Inner(error) => error.source(),
        }
    }
}

impl<E> From<Rejected> for Error<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E> Refusal for Error<E> {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Inner(_) => None,
        }
    }
}

/// What `result` means to the parts of a stack.
///
/// A refusal of ours is recognised before `classify` is asked. A call that was sent and then ran out of time may have acted:
/// [`Ambiguous`](Kind::Ambiguous). Every other refusal says nothing about the dependency: [`Ignored`](Kind::Ignored). Ask this rather than the classifier when you want to know what became of a call.
///
/// ```
/// use std::io;
/// use steadfast::{Kind, Rejected, classify, error::judge};
///
/// let refused: io::Result<()> = Err(Rejected::DeadlineExceeded { sent: false }.into());
/// assert_eq!(judge(&classify::Io, &refused).kind, Kind::Ignored);
/// ```
pub fn judge<T, E, C>(classify: &C, result: &Result<T, E>) -> Verdict
where
    E: Refusal,
    C: Classify<T, E>,
{
    match result {
        Ok(_) => classify.classify(result.as_ref()),
        Err(error) => match error.rejected() {
            Some(rejected) => rejected.kind().into(),
            None => classify.classify(result.as_ref()),
        },
    }
}

/// Lets a classifier written for `E` judge an [`Error<E>`](crate::Error), as [`WrapLayer`] makes it.
///
/// ```
/// use steadfast::{Classify, Error, Kind, by_error, error::Wrapped};
///
/// let classify = Wrapped(by_error(|_: &std::fmt::Error| Kind::Broken));
/// let result: Result<(), _> = Err(Error::Inner(std::fmt::Error));
/// assert_eq!(classify.classify(result.as_ref()).kind, Kind::Broken);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Wrapped<C>(
    /// The classifier for the service's own error.
    pub C,
);

impl<T, E, C: Classify<T, E>> Classify<T, Error<E>> for Wrapped<C> {
    fn classify(&self, result: Result<&T, &Error<E>>) -> Verdict {
        match result {
            Ok(value) => self.0.classify(Ok(value)),
            Err(Error::Inner(error)) => self.0.classify(Err(error)),
            Err(Error::Rejected(rejected)) => rejected.kind().into(),
        }
    }
}

/// An argument that can't be used, refused when a part is built.
///
/// ```
/// use steadfast::Breaker;
///
/// let error = Breaker::builder().failure_rate(1.2).build().unwrap_err();
/// assert_eq!(error.to_string(), "breaker: failure_rate is 1.2, but must be over 0 and at most 1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{part}: {setting} is {value}, but must be {allowed}")]
pub struct ConfigError {
    part: &'static str,
    setting: &'static str,
    value: String,
    allowed: String,
}

impl ConfigError {
    /// `part` is what is built, `setting` the setter's name; `allowed` completes "must be ..".
    pub(crate) fn new(
        part: &'static str,
        setting: &'static str,
        value: impl fmt::Debug,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            part,
            setting,
            value: format!("{value:?}"),
            allowed: allowed.into(),
        }
    }

    /// The setter's name.
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// A rate: over 0 and at most 1.
    pub(crate) fn check_rate(
        part: &'static str,
        setting: &'static str,
        rate: f64,
    ) -> Result<(), Self> {
        if rate > 0.0 && rate <= 1.0 {
            return Ok(());
        }
        Err(Self::new(part, setting, rate, "over 0 and at most 1"))
    }

    /// A count: at least `least`, at most `most`.
    pub(crate) fn check_count(
        part: &'static str,
        setting: &'static str,
        count: usize,
        least: usize,
        most: usize,
    ) -> Result<(), Self> {
        if (least..=most).contains(&count) {
            return Ok(());
        }
        let allowed = format!("at least {least} and at most {most}");
        Err(Self::new(part, setting, count, allowed))
    }

    /// A time: at least `least`, at most a year, so that no sum of an instant and a setting overflows.
    pub(crate) fn check_time(
        part: &'static str,
        setting: &'static str,
        time: Duration,
        least: Duration,
    ) -> Result<(), Self> {
        if time >= least && time <= LONGEST {
            return Ok(());
        }
        let allowed = format!("at least {least:?} and at most 365 days");
        Err(Self::new(part, setting, time, allowed))
    }
}

/// The longest time that a setting or a hint may name.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
