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
    kind::{Classify, Kind, Verdict},
    limit,
    owner::Owner,
    retry::unless_refused,
    stamp::Stamp,
    time::Timer,
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

impl Parts for Owner<Policy> {
    type Breaker = Owner<breaker::Shared>;
    type Limiter = Owner<limit::Shared>;

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
    /// 2. Where there is no `future`, what is waited for is the end of a pause, or of a `wait` in line, if anything.
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
        // Boxed: only who stands in line pays for it.
        wait: Option<Box<Wait<P::Breaker, P::Limiter>>>,
        bound: Bound,
        attempt_bound: Bound,
        timer: Timer,
        // From 1; 0 before the call begins, `OVER` when it has ended.
        attempt: u32,
        // Until then no attempt begins.
        pause_until: Stamp,
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

/// The line that a call stands in.
enum Wait<B, L>
where
    B: Deref<Target = breaker::Shared>,
    L: Deref<Target = limit::Shared>,
{
    Circuit(breaker::Waiting<B>),
    Queue(limit::Waiting<L>),
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
            wait: None,
            bound: Bound::NONE.within(deadline),
            attempt_bound: Bound::NONE,
            timer: Timer::new(),
            attempt: 0,
            pause_until: Stamp::NONE,
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
        if (self.attempt == 0 || self.attempt == OVER)
            && let Err(rejected) = self.as_mut().begin()
        {
            return Poll::Ready(Err(rejected.into()));
        }
        loop {
            if self.future.is_none()
                && !self.as_mut().pass()
                && let Err(rejected) = ready!(self.as_mut().admit(cx))
            {
                return Poll::Ready(self.refuse(rejected));
            }
            let result = match self.as_mut().call(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => ready!(self.as_mut().wait(cx)),
            };
            if let Some(result) = self.as_mut().settle(result) {
                return Poll::Ready(result);
            }
        }
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
    /// Begins the call, unless there is no time for it.
    #[inline(always)]
    fn begin(self: Pin<&mut Self>) -> Result<(), Rejected> {
        let this = self.project();
        assert!(*this.attempt != OVER, "polled again after its result");
        if this.bound.is_nothing() || Bound::ambient().is_over() {
            *this.attempt = OVER;
            return Err(this.parts.policy().reporter.refused(TOO_LATE));
        }
        *this.attempt = 1;
        Ok(())
    }

    /// Gets the leave for an attempt if nothing is in its way; what it got of it is kept.
    #[inline(always)]
    fn pass(self: Pin<&mut Self>) -> bool {
        let this = self.project();
        if this.wait.is_some() || this.pause_until.is_some() {
            return false;
        }
        let hang = this.parts.policy().hang_after;
        if let Some(breaker) = this.parts.breaker() {
            *this.pass = breaker::Shared::pass(breaker, hang);
            if this.pass.is_none() {
                return false;
            }
        }
        if let Some(limiter) = this.parts.limiter() {
            *this.slot = limit::Shared::pass(limiter);
            if this.slot.is_none() {
                return false;
            }
        }
        true
    }

    /// Asks for the leave that is missing, and waits for it.
    #[cold]
    fn admit(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        let mut bound = self.bound;
        let admitted = bound.enter(|| {
            loop {
                ready!(self.as_mut().resume(cx))?;
                let this = self.as_mut().project();
                if this.pass.is_none()
                    && let Some(breaker) = this.parts.breaker()
                {
                    match breaker::Shared::ask(breaker, this.parts.policy().hang_after) {
                        Answer::Granted(pass) => *this.pass = Some(pass),
                        Answer::Refused(rejected) => return Poll::Ready(Err(rejected)),
                        Answer::Wait(waiting) => {
                            *this.wait = Some(Box::new(Wait::Circuit(waiting)));
                            continue;
                        }
                    }
                }
                if this.slot.is_none()
                    && let Some(limiter) = this.parts.limiter()
                {
                    match limit::Shared::ask(limiter) {
                        Answer::Granted(slot) => *this.slot = Some(slot),
                        Answer::Refused(rejected) => return Poll::Ready(Err(rejected)),
                        Answer::Wait(waiting) => {
                            *this.wait = Some(Box::new(Wait::Queue(waiting)));
                            continue;
                        }
                    }
                }
                return Poll::Ready(Ok(()));
            }
        });
        *self.project().bound = bound;
        admitted
    }

    /// Goes on with what is waited for, if anything, until that is over.
    fn resume(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        let this = self.project();
        if this.pause_until.is_some() {
            ready!(this.timer.poll(*this.pause_until, cx));
            if Bound::ambient().is_over() {
                return Poll::Ready(Err(TOO_LATE));
            }
            *this.attempt += 1;
            *this.pause_until = Stamp::NONE;
        }
        match this.wait.as_deref_mut() {
            None => return Poll::Ready(Ok(())),
            Some(Wait::Circuit(waiting)) => *this.pass = Some(ready!(in_line(waiting, cx))?),
            Some(Wait::Queue(waiting)) => *this.slot = Some(ready!(in_line(waiting, cx))?),
        }
        *this.wait = None;
        if Bound::ambient().is_over() {
            let reporter = &this.parts.policy().reporter;
            return Poll::Ready(Err(reporter.refused(TOO_LATE)));
        }
        Poll::Ready(Ok(()))
    }

    /// Polls the attempt, which it makes first where there is none yet. One that is over is dropped.
    #[inline(always)]
    fn call(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let policy = this.parts.policy();
        let begins = this.future.is_none();
        if begins {
            *this.attempt_bound = this.bound.within(policy.attempt_deadline);
            *this.waited = false;
        }
        let (attempts, attempt) = (this.attempts, *this.attempt);
        let mut poll = || {
            if begins {
                let last = attempt >= policy.most_attempts();
                this.future.set(Some(attempts.next(last)));
            }
            let future = this.future.as_mut().as_pin_mut();
            let polled = future.expect("made just now").poll(cx);
            if polled.is_ready() {
                this.future.set(None);
            }
            polled
        };
        // By reference: three scopes hand it on.
        entered(this.slot, this.pass, this.attempt_bound, &mut poll)
    }

    /// The attempt is under way: waits until it has to be over.
    #[inline(always)]
    fn wait(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        ambient::set_in_line(false);
        if !mem::replace(this.waited, true) {
            // One look at the clock starts everything that counts from here.
            let now = ambient::waits_now();
            this.bound.resolve(now);
            this.attempt_bound.resolve(now);
            if let Some(pass) = this.pass {
                pass.waits_since(|| now);
            }
            if let Some(slot) = this.slot {
                slot.waits_since(|| now);
            }
        }
        ready!(this.timer.poll(this.attempt_bound.resolve_now(), cx));
        this.attempt_bound.enter(|| this.future.set(None));
        let rejected = Rejected::DeadlineExceeded { sent: true };
        let reporter = &this.parts.policy().reporter;
        Poll::Ready(Err(reporter.refused(rejected).into()))
    }

    /// Takes the result of an attempt, and gives the leave for it back; `None`: another attempt follows.
    #[inline(always)]
    fn settle(mut self: Pin<&mut Self>, result: F::Output) -> Option<F::Output> {
        let this = self.as_mut().project();
        *this.slot = None;
        let verdict = judge(this.classify, &result);
        let pass = this.pass.as_mut();
        if verdict.kind != Kind::Success || !pass.is_none_or(breaker::Pass::succeed) {
            return self.settle_slowly(result, verdict);
        }
        *this.pass = None;
        *this.attempt = OVER;
        if let Some(retry) = &this.parts.policy().retry {
            retry.deposit();
        }
        Some(result)
    }

    /// The same where the circuit or the retry has to think about it.
    #[cold]
    fn settle_slowly(
        self: Pin<&mut Self>,
        result: F::Output,
        verdict: Verdict,
    ) -> Option<F::Output> {
        let this = self.project();
        let retry = this.parts.policy().retry.as_ref();
        let mut bound = *this.bound;
        let pause = bound.enter(|| {
            if let Some(mut pass) = this.pass.take() {
                pass.settle_judged(verdict, &result);
            }
            retry.and_then(|retry| retry.next(*this.attempt, verdict, *this.previous))
        });
        *this.bound = bound;
        let Some(pause) = pause else {
            *this.attempt = OVER;
            return Some(match this.last.take() {
                Some(Err(before)) => unless_refused(result, Some(before)),
                _ => result,
            });
        };
        // An `Ok` may hold a slot that the next attempt needs.
        *this.last = result.err().map(Err);
        *this.previous = pause.delay;
        *this.pause_until = pause.until.into();
        None
    }

    /// The result of a call that we refused.
    #[cold]
    fn refuse(self: Pin<&mut Self>, rejected: Rejected) -> F::Output {
        let this = self.project();
        *this.attempt = OVER;
        *this.wait = None;
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
