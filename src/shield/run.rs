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
    mem,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
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
    retry::{Retry, unless_refused},
    stamp::Stamp,
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
    ///
    /// Invariants:
    /// 1. `slot` and `pass` are held from when they are given until the attempt is over, and are given back in this order, behind the
    ///    attempt's future.
    /// 2. There is a `future`, or the `stage` says what is waited for.
    /// 3. Code of the user's runs within both bounds: the call's is entered by whoever polls or drops, the attempt's by `entered`.
    pub(crate) struct Engine<P, K, A, F>
    where
        P: Parts,
        F: Future,
    {
        #[pin]
        future: Option<F>,
        slot: Option<limit::Slot<P::Limiter>>,
        pass: Option<breaker::Pass<P::Breaker>>,
        stage: Stage<P::Breaker, P::Limiter>,
        bound: Bound,
        attempt_bound: Bound,
        timer: Timer,
        // From 1; 0 before the call begins, `OVER` when it has ended.
        attempt: u32,
        waited: bool,
        previous: Duration,
        // The error of the attempt before: it stands if the next one is refused by us.
        last: Option<F::Output>,
        parts: P,
        classify: K,
        attempts: A,
    }

    impl<P, K, A, F> PinnedDrop for Engine<P, K, A, F>
    where
        P: Parts,
        F: Future,
    {
        #[inline]
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                let (mut bound, mut attempt_bound) = (*this.bound, *this.attempt_bound);
                bound.enter(|| attempt_bound.enter(|| this.future.set(None)));
            }
        }
    }
}

/// Where a call is that is not at an attempt.
enum Stage<B, L>
where
    B: Deref<Target = breaker::Shared>,
    L: Deref<Target = limit::Shared>,
{
    /// It asks for leave, or has it.
    Start,
    Circuit(breaker::Waiting<B>),
    Queue(limit::Waiting<L>),
    Pause(Stamp),
}

impl<P, K, A, F> Engine<P, K, A, F>
where
    P: Parts,
    F: Future,
{
    /// `deadline` is this call's own.
    #[inline]
    pub(crate) fn new(parts: P, deadline: Duration, classify: K, attempts: A) -> Self {
        Self {
            future: None,
            slot: None,
            pass: None,
            stage: Stage::Start,
            bound: Bound::NONE.within(deadline),
            attempt_bound: Bound::NONE,
            timer: Timer::new(),
            attempt: 0,
            waited: false,
            previous: Duration::ZERO,
            last: None,
            parts,
            classify,
            attempts,
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

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        if *this.attempt == 0 {
            if this.bound.is_nothing() || Bound::ambient().is_over() {
                *this.attempt = OVER;
                let policy = this.parts.policy();
                return Poll::Ready(Err(policy.reporter.refused(TOO_LATE).into()));
            }
            *this.attempt = 1;
        } else if *this.attempt == OVER {
            panic!("polled again after its result");
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
    #[inline]
    fn advance(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            if self.future.is_none()
                && let Err(rejected) = ready!(self.as_mut().admit(cx))
            {
                return Poll::Ready(self.refuse(rejected));
            }
            let result = match self.as_mut().call(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => ready!(self.as_mut().wait(cx)),
            };
            let this = self.as_mut().project();
            *this.slot = None;
            let verdict = match this.pass {
                Some(pass) => pass.settle_result(this.classify, &result),
                None => judge(this.classify, &result),
            };
            *this.pass = None;
            let retry = this.parts.policy().retry.as_ref();
            let pause = retry.and_then(|r| r.next(*this.attempt, verdict, *this.previous));
            let Some(pause) = pause else {
                *this.attempt = OVER;
                return Poll::Ready(match this.last.take() {
                    Some(Err(before)) => unless_refused(result, Some(before)),
                    _ => result,
                });
            };
            // An `Ok` may hold a slot that the next attempt needs.
            *this.last = result.err().map(Err);
            *this.previous = pause.delay;
            *this.stage = Stage::Pause(pause.until.into());
        }
    }

    /// Gets the leave of circuit and limiter for an attempt.
    #[inline]
    fn admit(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        loop {
            if !matches!(self.stage, Stage::Start) {
                ready!(self.as_mut().resume(cx))?;
            }
            let this = self.as_mut().project();
            let policy = this.parts.policy();
            if this.pass.is_none()
                && let Some(breaker) = this.parts.breaker()
            {
                *this.pass = breaker::Shared::pass(&breaker, policy.hang_after);
                if this.pass.is_none() {
                    match breaker::Shared::ask(breaker, policy.hang_after) {
                        Answer::Granted(pass) => *this.pass = Some(pass),
                        Answer::Wait(waiting) => {
                            *this.stage = Stage::Circuit(waiting);
                            continue;
                        }
                        Answer::Refused(rejected) => return Poll::Ready(Err(rejected)),
                    }
                }
            }
            if this.slot.is_none()
                && let Some(limiter) = this.parts.limiter()
            {
                *this.slot = limit::Shared::pass(&limiter);
                if this.slot.is_none() {
                    match limit::Shared::ask(limiter) {
                        Answer::Granted(slot) => *this.slot = Some(slot),
                        Answer::Wait(waiting) => {
                            *this.stage = Stage::Queue(waiting);
                            continue;
                        }
                        Answer::Refused(rejected) => return Poll::Ready(Err(rejected)),
                    }
                }
            }
            *this.attempt_bound = Bound::ambient().within(policy.attempt_deadline);
            *this.waited = false;
            return Poll::Ready(Ok(()));
        }
    }

    /// Waits for what the stage says.
    #[cold]
    fn resume(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        let this = self.project();
        match this.stage {
            Stage::Start => {}
            Stage::Circuit(waiting) => *this.pass = Some(ready!(in_line(waiting, cx))?),
            Stage::Queue(waiting) => *this.slot = Some(ready!(in_line(waiting, cx))?),
            Stage::Pause(until) => {
                ready!(this.timer.poll(*until, cx));
                if Bound::ambient().is_over() {
                    return Poll::Ready(Err(TOO_LATE));
                }
                *this.attempt += 1;
                *this.stage = Stage::Start;
                return Poll::Ready(Ok(()));
            }
        }
        *this.stage = Stage::Start;
        if Bound::ambient().is_over() {
            let reporter = &this.parts.policy().reporter;
            return Poll::Ready(Err(reporter.refused(TOO_LATE)));
        }
        Poll::Ready(Ok(()))
    }

    /// Polls the attempt, which it makes first where there is none yet. One that is over is dropped.
    #[inline]
    fn call(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let (attempts, attempt) = (this.attempts, *this.attempt);
        let retry = this.parts.policy().retry.as_ref();
        entered(this.slot, this.pass, this.attempt_bound, || {
            if this.future.is_none() {
                let last = attempt >= retry.map_or(1, Retry::most_attempts);
                let future = attempts.next(last);
                this.future.set(Some(future));
            }
            let future = this.future.as_mut().as_pin_mut();
            let polled = future.expect("made just now").poll(cx);
            if polled.is_ready() {
                this.future.set(None);
            }
            polled
        })
    }

    /// The attempt is under way: waits until it has to be over.
    #[inline]
    fn wait(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        ambient::set_in_line(false);
        if !mem::replace(this.waited, true) {
            first_wait(this.slot, this.pass, this.attempt_bound);
        }
        ready!(this.timer.poll(this.attempt_bound.resolve_now(), cx));
        this.attempt_bound.enter(|| this.future.set(None));
        let rejected = Rejected::DeadlineExceeded { sent: true };
        let reporter = &this.parts.policy().reporter;
        Poll::Ready(Err(reporter.refused(rejected).into()))
    }

    /// The result of a call that we refused.
    #[cold]
    fn refuse(self: Pin<&mut Self>, rejected: Rejected) -> F::Output {
        let this = self.project();
        *this.attempt = OVER;
        *this.stage = Stage::Start;
        *this.slot = None;
        *this.pass = None;
        // The answer of an earlier attempt says more than that we refused the next.
        let answered = this.last.take();
        answered.unwrap_or_else(|| Err(rejected.into()))
    }
}

const OVER: u32 = u32::MAX;

/// Whoever is woken late may go on, but has no time left.
const TOO_LATE: Rejected = Rejected::DeadlineExceeded { sent: false };

/// Runs code of the call, with everything around it that it may see.
#[inline(always)]
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
    let now = time::stamp();
    ambient::resolve(now);
    bound.resolve(now);
    if let Some(pass) = pass {
        pass.waits_since(|| now);
    }
    if let Some(slot) = slot {
        slot.waits_since(|| now);
    }
}
