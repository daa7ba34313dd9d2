//! A deadline over everything below it, visible to every layer and call there.
//!
//! ```text
//!  Deadline 10 s ├──────────────────────────────────────────────┤ at
//!    attempt 1   ├──── 3 s ────┤ fails
//!    backoff                   ├─┤
//!    attempt 2                   ├──── 3 s ────┤ …  each one: min(at, now + 3 s)
//! ```
//!
//! ```
//! use std::{io, time::Duration};
//! use steadfast::{Deadline, deadline};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = ServiceBuilder::new()
//!     .layer(Deadline::new(Duration::from_secs(10))?.layer())
//!     .service_fn(async |_: ()| {
//!         assert!(deadline::current().is_some());
//!         std::future::pending::<io::Result<()>>().await
//!     });
//! let error = service.oneshot(()).await.unwrap_err();
//! assert_eq!(error.kind(), io::ErrorKind::TimedOut);
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! Outermost, around everything that a caller waits for; and innermost, around one attempt, so that a hang becomes a failure that
//! the breaker sees. Not for streams that are meant to stay open.
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `Shield`'s deadline | 10 s | the longest that most callers in front of it wait |
//! | `Shield`'s attempt deadline | 3 s, or a third of the deadline where that is shorter | leaves room for three attempts within the whole |
//!
//! A `Deadline` of your own has no default: you give its length.
//!
//! # What it reports
//! [`Event::Refused`](crate::Event::Refused) when it strikes: `DEBUG call refused name=deadline rejected=deadline exceeded while the call was under way`.
//! A call that is refused while its service is still getting ready is returned as refused, but not reported as an event.
//!
//! # Its place in the stack
//! Outermost, so that nothing outlives it: queueing, waiting for an open circuit, backoff and every attempt count against it. The deadline is *ambient*:
//! it surrounds every poll, call and drop of what is inside, where [`current`] sees it. Further in it can only get shorter. A spawned task does not inherit it;
//! [`scope`] carries it there.
//!
//! # What a clone shares
//! The length. Each call has a deadline of its own.
//!
//! # Cancel safety
//! Dropping a call's future drops the inner one, with its deadline still around it.
//!
//! # Limits
//! It counts from the first time that the inner future has to wait, or that somebody asks for [`current`]: a future that is not polled does not age.
//! A call that is finished wins over a deadline that has passed. What was sent goes on in the dependency, unless somebody tells it to stop;
//! such a call ends as [`DeadlineExceeded`](crate::Rejected::DeadlineExceeded) with `sent: true`.

mod service;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

pub use service::{DeadlineLayer, DeadlineService, ResponseFuture};

use crate::{
    ambient::{self, Bound},
    error::ConfigError,
    event::{Name, Observer, Reporter},
};

/// How long a call may take.
///
/// ```
/// use std::time::Duration;
/// use steadfast::Deadline;
///
/// assert!(Deadline::new(Duration::from_secs(3)).is_ok());
/// assert!(Deadline::new(Duration::ZERO).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Deadline {
    within: Duration,
    reporter: Reporter,
}

impl Deadline {
    /// A deadline of `within` for each call.
    ///
    /// # Errors
    /// Where `within` is under a millisecond or over a year.
    pub fn new(within: Duration) -> Result<Self, ConfigError> {
        ConfigError::check_time("deadline", "within", within, Duration::from_millis(1))?;
        Ok(Self {
            within,
            reporter: Reporter::new("deadline"),
        })
    }

    /// Its name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// Who hears of its refusals, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// A tower layer with this deadline.
    pub fn layer(&self) -> DeadlineLayer {
        DeadlineLayer::new(self.clone())
    }
}

/// The instant by which the running code must be over, if a deadline surrounds it.
///
/// The first one who asks starts a deadline that nobody has waited for yet.
///
/// ```
/// assert_eq!(steadfast::deadline::current(), None);
/// ```
pub fn current() -> Option<Instant> {
    ambient::current()
}

/// Surrounds `future` by the deadline `at`, or by an earlier one that surrounds it already.
///
/// It ends nothing by itself: layers and pools within see the deadline and keep it. This is how a deadline gets into a spawned task.
///
/// ```
/// use steadfast::deadline;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let at = std::time::Instant::now() + std::time::Duration::from_secs(1);
/// let task = tokio::spawn(deadline::scope(at, async { deadline::current() }));
/// assert_eq!(task.await.unwrap(), Some(at));
/// # }
/// ```
///
/// # Cancel safety
/// As cancel safe as `future`.
pub fn scope<F: Future>(at: Instant, future: F) -> Scope<F> {
    Scope {
        at,
        future: Some(future),
    }
}

pin_project! {
    /// The future that [`scope`] makes.
    #[must_use = "futures do nothing unless polled"]
    pub struct Scope<F> {
        at: Instant,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Scope<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            Bound::ambient().until(*this.at).enter(|| this.future.set(None));
        }
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future.as_pin_mut().expect("set until it is dropped");
        Bound::ambient().until(*this.at).enter(|| future.poll(cx))
    }
}
