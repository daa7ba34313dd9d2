//! One call through the whole stack.
//!
//! ```text
//!          ┌──────────────────────────── pause over ───────────────────────────┐
//!          ▼                                                                   │
//!  Start ─────► Circuit (waits for it) ─────► Queue (waits for a slot) ─────► Calling ─ may be repeated ─► Pause
//!    │             │                            │                              │
//!    └─ refused ───┴── refused ─────────────────┴── refused ───────────────────┴─ result ─► Over
//! ```

use std::{
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

use super::Policy;
use crate::{
    ambient::{self, Bound},
    breaker,
    error::{Refusal, Rejected, judge},
    gated::{Answer, Leave, in_line},
    kind::Classify,
    limit,
    retry::unless_refused,
    time::{self, Timer},
};

/// A policy with a way to hold its parts: borrowed for a call that the shield outlives, owned for one that it may not.
pub(crate) trait Parts {
    type Breaker: Deref<Target = breaker::Shared> + Clone;
    type Limiter: Deref<Target = limit::Shared> + Clone;

    fn policy(&self) -> &Policy;
    fn breaker(&self) -> Option<Self::Breaker>;
    fn limiter(&self) -> Option<Self::Limiter>;
}

impl<'a> Parts for &'a Policy {
    type Breaker = &'a breaker::Shared;
    type Limiter = &'a limit::Shared;

    fn policy(&self) -> &Policy {
        self
    }

    fn breaker(&self) -> Option<Self::Breaker> {
        Some(self.breaker.as_ref()?.shared())
    }

    fn limiter(&self) -> Option<Self::Limiter> {
        Some(self.limiter.as_ref()?.shared())
    }
}

impl Parts for Arc<Policy> {
    type Breaker = Arc<breaker::Shared>;
    type Limiter = Arc<limit::Shared>;

    fn policy(&self) -> &Policy {
        self
    }

    fn breaker(&self) -> Option<Self::Breaker> {
        Some(self.breaker.as_ref()?.owned())
    }

    fn limiter(&self) -> Option<Self::Limiter> {
        Some(self.limiter.as_ref()?.owned())
    }
}

/// Makes the attempts of one call.
pub(crate) trait Attempts {
    type Future: Future;

    /// The next attempt; `last`: no other can follow it.
    fn next(&mut self, last: bool) -> Self::Future;
}

impl<F, Fut> Attempts for F
where
    F: FnMut() -> Fut,
    Fut: Future,
{
    type Future = Fut;

    fn next(&mut self, _last: bool) -> Fut {
        self()
    }
}

pin_project! {
    /// The future of a call through a [`Shield`](super::Shield).
    ///
    /// # Cancel safety
    /// See the [module](super).
    #[must_use = "futures do nothing unless polled"]
    pub struct Run<'a, K, F, Fut>
    where
        Fut: Future,
    {
        #[pin]
        engine: Engine<&'a Policy, K, F, Fut>,
    }
}

impl<'a, K, F, Fut: Future> Run<'a, K, F, Fut> {
    pub(super) fn new(policy: &'a Policy, classify: K, call: F) -> Self {
        let engine = Engine::new(policy, policy.deadline, classify, call);
        Self { engine }
    }
}

impl<K, F, Fut, T, E> Future for Run<'_, K, F, Fut>
where
    K: Classify<T, E>,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: Refusal,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().engine.poll(cx)
    }
}

pin_project! {
    /// One call through the stack `P`, whose attempts `A` makes and `K` judges.
    pub(crate) struct Engine<P, K, A, F>
    where
        P: Parts,
        F: Future,
    {
        parts: P,
        deadline: Duration,
        classify: K,
        attempts: A,
        attempt: u32,
        previous: Duration,
        // The error of the attempt before: it stands if the next one is refused by us.
        last: Option<F::Output>,
        bound: Bound,
        timer: Timer,
        #[pin]
        state: State<P::Breaker, P::Limiter, F>,
    }

    impl<P, K, A, F> PinnedDrop for Engine<P, K, A, F>
    where
        P: Parts,
        F: Future,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let mut bound = *this.bound;
            bound.enter(|| this.state.as_mut().abandon());
        }
    }
}

pin_project! {
    #[project = StateProj]
    enum State<B, L, F>
    where
        B: Deref<Target = breaker::Shared>,
        L: Deref<Target = limit::Shared>,
    {
        Start,
        Circuit { waiting: breaker::Waiting<B> },
        Queue { waiting: limit::Waiting<L>, pass: Option<breaker::Pass<B>> },
        // `future` stands first: it is dropped before its slot and its probe are given back.
        Calling {
            #[pin]
            future: F,
            slot: Option<limit::Slot<L>>,
            pass: Option<breaker::Pass<B>>,
            bound: Bound,
            waited: bool,
        },
        Pause { until: Instant },
        Over,
    }
}

impl<P, K, A, F> Engine<P, K, A, F>
where
    P: Parts,
    F: Future,
{
    /// `deadline` is this call's own.
    pub(crate) fn new(parts: P, deadline: Duration, classify: K, attempts: A) -> Self {
        Self {
            parts,
            deadline,
            classify,
            attempts,
            attempt: 0,
            previous: Duration::ZERO,
            last: None,
            bound: Bound::default(),
            timer: Timer::new(),
            state: State::Start,
        }
    }
}

impl<P, K, A, F, T, E> Future for Engine<P, K, A, F>
where
    P: Parts,
    K: Classify<T, E>,
    A: Attempts<Future = F>,
    F: Future<Output = Result<T, E>>,
    E: Refusal,
{
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let policy = this.parts.policy();
        let outer = Bound::ambient();
        if *this.attempt == 0 {
            if this.deadline.is_zero() || outer.is_over() {
                let rejected = Rejected::DeadlineExceeded { sent: false };
                return Poll::Ready(Err(policy.reporter.refused(rejected).into()));
            }
            *this.bound = outer.within(*this.deadline);
            *this.attempt = 1;
        }
        let mut bound = *this.bound;
        let polled = bound.enter(|| self.as_mut().advance(cx));
        *self.project().bound = bound;
        polled
    }
}

impl<P, K, A, F, T, E> Engine<P, K, A, F>
where
    P: Parts,
    K: Classify<T, E>,
    A: Attempts<Future = F>,
    F: Future<Output = Result<T, E>>,
    E: Refusal,
{
    /// Goes on until it has to wait or is over. The call's deadline surrounds it.
    fn advance(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let parts = &*this.parts;
        let policy = parts.policy();
        let rejected = loop {
            // What leave there is now: the circuit's, and perhaps a slot already.
            let (mut pass, mut slot) = match this.state.as_mut().project() {
                StateProj::Calling {
                    future,
                    slot,
                    pass,
                    bound,
                    waited,
                } => {
                    let polled = entered(slot, pass, bound, || future.poll(cx));
                    let result = match polled {
                        Poll::Ready(result) => result,
                        Poll::Pending => {
                            ambient::set_in_line(false);
                            if !std::mem::replace(waited, true) {
                                first_wait(slot, pass, bound);
                            }
                            let at = bound.resolve_now().expect("the attempt has a deadline");
                            ready!(this.timer.poll(at, cx));
                            Err(policy
                                .reporter
                                .refused(Rejected::DeadlineExceeded { sent: true })
                                .into())
                        }
                    };
                    let (pass, slot) = (pass.take(), slot.take());
                    this.state.as_mut().abandon();
                    drop(slot);
                    let verdict = match pass {
                        Some(pass) => pass.settle_result(this.classify, &result),
                        None => judge(this.classify, &result),
                    };
                    let retry = policy.retry.as_ref();
                    let pause = retry.and_then(|r| r.next(*this.attempt, verdict, *this.previous));
                    let Some(pause) = pause else {
                        let before = this.last.take().and_then(Result::err);
                        return Poll::Ready(unless_refused(result, before));
                    };
                    // An `Ok` may hold a slot that the next attempt needs.
                    *this.last = result.err().map(Err);
                    *this.previous = pause.delay;
                    let until = pause.until;
                    this.state.set(State::Pause { until });
                    continue;
                }
                StateProj::Start => {
                    let hang = policy.hang_after;
                    match parts.breaker().map(|b| breaker::Shared::ask(b, hang)) {
                        None => (None, None),
                        Some(Answer::Granted(pass)) => (Some(pass), None),
                        Some(Answer::Wait(waiting)) => {
                            this.state.set(State::Circuit { waiting });
                            continue;
                        }
                        Some(Answer::Refused(rejected)) => break rejected,
                    }
                }
                StateProj::Circuit { waiting } => match ready!(in_line(waiting, cx)) {
                    Ok(_) if Bound::ambient().is_over() => break policy.reporter.refused(TOO_LATE),
                    Ok(pass) => (Some(pass), None),
                    Err(rejected) => break rejected,
                },
                StateProj::Queue { waiting, pass } => match ready!(in_line(waiting, cx)) {
                    Ok(_) if Bound::ambient().is_over() => break policy.reporter.refused(TOO_LATE),
                    Ok(slot) => (pass.take(), Some(slot)),
                    Err(rejected) => break rejected,
                },
                StateProj::Pause { until } => {
                    ready!(this.timer.poll(*until, cx));
                    if Bound::ambient().is_over() {
                        break TOO_LATE;
                    }
                    *this.attempt += 1;
                    this.state.set(State::Start);
                    continue;
                }
                StateProj::Over => panic!("polled again after its result"),
            };
            if slot.is_none()
                && let Some(limiter) = parts.limiter()
            {
                match limit::Shared::ask(limiter) {
                    Answer::Granted(granted) => slot = Some(granted),
                    Answer::Wait(waiting) => {
                        this.state.set(State::Queue { waiting, pass });
                        continue;
                    }
                    Answer::Refused(rejected) => break rejected,
                }
            }
            let retry = policy.retry.as_ref();
            let last = *this.attempt >= retry.map_or(1, |retry| retry.most_attempts());
            let mut bound = Bound::ambient().within(policy.attempt_deadline);
            let attempts = &mut *this.attempts;
            let future = entered(&mut slot, &mut pass, &mut bound, || attempts.next(last));
            this.state.set(State::Calling {
                future,
                slot,
                pass,
                bound,
                waited: false,
            });
        };
        this.state.set(State::Over);
        // The answer of an earlier attempt says more than that we refused the next.
        let answered = this.last.take();
        Poll::Ready(answered.unwrap_or_else(|| Err(rejected.into())))
    }
}

/// Whoever is woken late may go on, but has no time left.
const TOO_LATE: Rejected = Rejected::DeadlineExceeded { sent: false };

impl<B, L, F> State<B, L, F>
where
    B: Deref<Target = breaker::Shared>,
    L: Deref<Target = limit::Shared>,
{
    /// Drops what is under way, with its own deadline around it.
    fn abandon(mut self: Pin<&mut Self>) {
        match self.as_mut().project() {
            StateProj::Calling { bound, .. } => {
                let mut bound = *bound;
                bound.enter(|| self.set(Self::Over));
            }
            _ => self.set(Self::Over),
        }
    }
}

/// Runs code of the call, with everything around it that it may see.
#[inline]
fn entered<B, L, R>(
    slot: &mut Option<limit::Slot<L>>,
    pass: &mut Option<breaker::Pass<B>>,
    bound: &mut Bound,
    f: impl FnOnce() -> R,
) -> R
where
    B: Deref<Target = breaker::Shared>,
    L: Deref<Target = limit::Shared>,
{
    bound.enter(|| match (pass, slot) {
        (Some(pass), Some(slot)) => pass.enter(|| slot.enter(f)),
        (Some(pass), None) => pass.enter(f),
        (None, Some(slot)) => slot.enter(f),
        (None, None) => f(),
    })
}

/// The call has to wait: one look at the clock starts everything that counts from here.
fn first_wait<B, L>(
    slot: &mut Option<limit::Slot<L>>,
    pass: &mut Option<breaker::Pass<B>>,
    bound: &mut Bound,
) where
    B: Deref<Target = breaker::Shared>,
    L: Deref<Target = limit::Shared>,
{
    let now = time::now();
    ambient::resolve(now);
    bound.resolve(now);
    if let Some(pass) = pass {
        pass.waits_since(|| now);
    }
    if let Some(slot) = slot {
        slot.waits_since(|| now);
    }
}
