//! The dependency that is called: it answers at once, or after one wait, or fails, or hangs.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll},
};

use steadfast::{Refusal, Rejected};
use tower::Service;

/// What is asked of the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The answer is there at the first poll.
    AtOnce,
    /// It is there at the second poll, as with everything that comes over a network.
    AfterOneWait,
    /// It fails at the first poll.
    Fail,
    /// It never comes.
    Hang,
}

/// What a good answer is.
pub const GOOD: u64 = 42;

/// How many calls that hang were begun.
static HANGING: AtomicUsize = AtomicUsize::new(0);

/// How many calls that hang have reached the dependency so far.
pub fn hanging() -> usize {
    HANGING.load(Ordering::Relaxed)
}

/// The answer of the dependency.
#[derive(Debug)]
pub struct Answer {
    ask: Ask,
}

impl Answer {
    #[inline]
    pub fn to(ask: Ask) -> Self {
        if ask == Ask::Hang {
            HANGING.fetch_add(1, Ordering::Relaxed);
        }
        Self { ask }
    }
}

impl Future for Answer {
    type Output = Result<u64, Trouble>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.ask {
            Ask::AtOnce => Poll::Ready(Ok(GOOD)),
            Ask::AfterOneWait => {
                self.ask = Ask::AtOnce;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ask::Fail => Poll::Ready(Err(Trouble::Down)),
            Ask::Hang => Poll::Pending,
        }
    }
}

/// The dependency as a service.
#[derive(Clone, Copy, Debug)]
pub struct Inner;

impl Service<Ask> for Inner {
    type Response = u64;
    type Error = Trouble;
    type Future = Answer;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, ask: Ask) -> Answer {
        Answer::to(ask)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The dependency failed.
    Down,
    /// We refused, or cut the call off.
    Ours(Rejected),
    /// A peer did.
    Theirs,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Error for Trouble {}

impl From<Rejected> for Trouble {
    fn from(rejected: Rejected) -> Self {
        Self::Ours(rejected)
    }
}

impl Refusal for Trouble {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Ours(rejected) => Some(rejected),
            _ => None,
        }
    }
}
