//! What one attempt's result means.

use std::{fmt, sync::Arc, time::Duration};

/// What one attempt's result means, as the dependency's [`Classify`] sees it.
///
/// Breaker and retry read the same answer:
///
/// | kind | effect on the dependency | breaker | retry |
/// |---|---|---|---|
/// | [`Success`](Kind::Success) | done | good | no; funds the budget |
/// | [`Invalid`](Kind::Invalid) | none | good | no |
/// | [`Conflict`](Kind::Conflict) | undone | good | yes, quickly, off the budget |
/// | [`Saturated`](Kind::Saturated) | none | neutral | yes, slower |
/// | [`Overloaded`](Kind::Overloaded) | none | bad | yes, slower; honours a hint |
/// | [`Unavailable`](Kind::Unavailable) | none or undone | bad | yes |
/// | [`TimedOut`](Kind::TimedOut) | undone | a slow call | no, unless asked for |
/// | [`Ambiguous`](Kind::Ambiguous) | unknown | bad | only if idempotent |
/// | [`Broken`](Kind::Broken) | none | bad | no |
/// | [`Ignored`](Kind::Ignored) | – | – | no |
///
/// ```
/// use steadfast::{Effect, Kind};
///
/// assert_eq!(Kind::Ambiguous.effect(), Effect::Unknown);
/// assert_eq!(Kind::Conflict.to_string(), "conflict");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// It did what was asked.
    Success,
    /// The dependency is healthy and said no: a constraint, a syntax error, no such row, 404.
    Invalid,
    /// Healthy, but undone by a rival: serialization failure, deadlock, lock timeout, busy.
    Conflict,
    /// A local resource of ours is full: the connection pool.
    Saturated,
    /// The server refused before it acted: too many connections, 429, 503.
    Overloaded,
    /// It could not be reached, or the work was undone because it went away.
    Unavailable,
    /// The server itself stopped it: a statement timeout.
    TimedOut,
    /// It failed and may have acted: connection lost mid-statement, attempt deadline, 502, 504.
    Ambiguous,
    /// Unwell, and a repeat is useless: bad password, database missing, corrupt.
    Broken,
    /// Says nothing about the dependency: a refusal of ours, the caller left.
    Ignored,
}

/// What an attempt of some [`Kind`] has left behind in the dependency.
///
/// ```
/// assert!(steadfast::Kind::Overloaded.effect().is_repeatable());
/// assert!(!steadfast::Kind::Ambiguous.effect().is_repeatable());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// What was asked for is done.
    Done,
    /// Nothing was done.
    None,
    /// It was begun, and the dependency rolled it back.
    Undone,
    /// It may or may not have been done.
    Unknown,
}

impl Effect {
    /// Whether a repeat can't do the same work twice.
    pub fn is_repeatable(self) -> bool {
        matches!(self, Self::None | Self::Undone)
    }
}

impl Kind {
    /// Every kind, in the order of the table above.
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::Invalid,
        Self::Conflict,
        Self::Saturated,
        Self::Overloaded,
        Self::Unavailable,
        Self::TimedOut,
        Self::Ambiguous,
        Self::Broken,
        Self::Ignored,
    ];

    /// What an attempt of this kind has left behind.
    ///
    /// [`Unavailable`](Self::Unavailable) stands for both "none" and "undone"; `Undone` is returned.
    /// [`Ignored`](Self::Ignored) says nothing, so it is `Unknown`.
    pub fn effect(self) -> Effect {
        match self {
            Self::Success => Effect::Done,
            Self::Invalid | Self::Saturated | Self::Overloaded | Self::Broken => Effect::None,
            Self::Conflict | Self::Unavailable | Self::TimedOut => Effect::Undone,
            Self::Ambiguous | Self::Ignored => Effect::Unknown,
        }
    }

    /// The name in lower case, as it stands in events and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Saturated => "saturated",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed out",
            Self::Ambiguous => "ambiguous",
            Self::Broken => "broken",
            Self::Ignored => "ignored",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A [`Kind`], and the dependency's hint of when to come back.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Kind, Verdict};
///
/// let verdict = Verdict::from(Kind::Overloaded).retry_after(Duration::from_secs(2));
/// assert_eq!(verdict.retry_after, Some(Duration::from_secs(2)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Verdict {
    /// What the result means.
    pub kind: Kind,
    /// The dependency asked not to be called again before this much time has passed.
    pub retry_after: Option<Duration>,
}

impl Verdict {
    /// Adds the dependency's hint of when to come back.
    pub fn retry_after(mut self, hint: Duration) -> Self {
        self.retry_after = Some(hint);
        self
    }
}

impl From<Kind> for Verdict {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            retry_after: None,
        }
    }
}

/// What says what a result means; written once per dependency.
///
/// It takes the result by parts (`result.as_ref()`), so that one classifier can serve inside
/// another. [`by_error`] makes one from a closure; [`classify`](crate::classify) has ready-made ones.
/// A refusal of ours ([`Rejected`](crate::Rejected)) is recognised before the classifier is asked.
///
/// ```
/// use steadfast::{Classify, Kind, Verdict};
///
/// /// An empty answer is as good as none.
/// struct NotEmpty;
///
/// impl Classify<String, std::io::Error> for NotEmpty {
///     fn classify(&self, result: Result<&String, &std::io::Error>) -> Verdict {
///         match result {
///             Ok(text) if text.is_empty() => Kind::Unavailable.into(),
///             Ok(_) => Kind::Success.into(),
///             Err(_) => Kind::Ambiguous.into(),
///         }
///     }
/// }
/// assert_eq!(NotEmpty.classify(Ok(&String::new())).kind, Kind::Unavailable);
/// ```
pub trait Classify<T, E> {
    /// What `result` means. It is called once per attempt and must not block.
    fn classify(&self, result: Result<&T, &E>) -> Verdict;
}

impl<T, E, C: Classify<T, E> + ?Sized> Classify<T, E> for &C {
    fn classify(&self, result: Result<&T, &E>) -> Verdict {
        (**self).classify(result)
    }
}

impl<T, E, C: Classify<T, E> + ?Sized> Classify<T, E> for Arc<C> {
    fn classify(&self, result: Result<&T, &E>) -> Verdict {
        (**self).classify(result)
    }
}

/// A classifier that looks at the error only: every `Ok` is a [`Kind::Success`].
///
/// The closure may return a [`Kind`] or a [`Verdict`].
///
/// ```
/// use steadfast::{Classify, Kind, by_error};
///
/// let classify = by_error(|error: &std::io::Error| match error.kind() {
///     std::io::ErrorKind::ConnectionRefused => Kind::Unavailable,
///     _ => Kind::Ambiguous,
/// });
/// assert_eq!(classify.classify(Ok(&"any type")).kind, Kind::Success);
/// ```
pub fn by_error<E, V, F>(judge: F) -> ByError<F>
where
    F: Fn(&E) -> V,
    V: Into<Verdict>,
{
    ByError { judge }
}

/// The classifier that [`by_error`] makes.
#[derive(Clone, Copy)]
pub struct ByError<F> {
    judge: F,
}

impl<T, E, V, F> Classify<T, E> for ByError<F>
where
    F: Fn(&E) -> V,
    V: Into<Verdict>,
{
    fn classify(&self, result: Result<&T, &E>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(error) => (self.judge)(error).into(),
        }
    }
}

impl<F> fmt::Debug for ByError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByError")
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_and_leaves_something_behind() {
        use Effect::{Done, None, Undone, Unknown};
        let table = [
            ("success", Done, false),
            ("invalid", None, true),
            ("conflict", Undone, true),
            ("saturated", None, true),
            ("overloaded", None, true),
            ("unavailable", Undone, true),
            ("timed out", Undone, true),
            ("ambiguous", Unknown, false),
            ("broken", None, true),
            ("ignored", Unknown, false),
        ];
        for (kind, expected) in Kind::ALL.into_iter().zip(table) {
            let effect = kind.effect();
            let found = (kind.as_str(), effect, effect.is_repeatable());
            assert_eq!(found, expected);
            assert_eq!(kind.to_string(), kind.as_str());
        }
    }

    #[test]
    fn a_closure_is_shown_by_its_wrapper() {
        let classify = by_error(|_: &()| Kind::Broken);
        assert_eq!(format!("{classify:?}"), "ByError");
    }
}
