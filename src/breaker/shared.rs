use std::{
    mem,
    ops::Deref,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    WhenOpen,
    circuit::{Change, Circuit, Outcome, Rules, Ticket},
    gate::Gate,
};
use crate::{
    ambient::{self, Bound},
    error::{Refusal, Rejected, judge},
    event::{Event, Reporter, State},
    fifo::{Fifo, Key},
    gated::{Answer, Leave, Wait},
    kind::{Classify, Kind, Verdict},
    ring::Ticks,
    shard,
    stamp::{Span, Stamp},
    sync::{Mutex, lock},
    time::{self, Timer},
};

/// The circuit with everything around it that is shared.
///
/// Invariants:
/// 1. Lock order: `state`'s own, then the gate's. `waiting` is taken alone.
/// 2. Nothing of the user's (observers, wakers) runs under a lock.
/// 3. Whatever may let a waiter pass wakes it, before any observer is told.
pub(crate) struct Shared {
    pub(super) gate: Gate,
    waiting: Mutex<Fifo<Waker>>,
    pub(super) state: watch::Sender<State>,
    open_for: Span,
    slow_after: Option<Duration>,
    pub(super) attempt_deadline: Option<Duration>,
    when_open: WhenOpen,
    pub(super) reporter: Reporter,
}

/// The circuit is open at `now`; it makes sense to ask again at `ask_again`.
pub(crate) struct Refused {
    ask_again: Stamp,
    now: Stamp,
}

impl Shared {
    pub(super) fn new(
        rules: Rules,
        attempt_deadline: Option<Duration>,
        when_open: WhenOpen,
        reporter: Reporter,
    ) -> Self {
        let ticks = Ticks::new(rules.window, time::now());
        let slow_after = rules.slow.map(|slow| slow.after);
        let open_for = rules.open_for.into();
        let circuit = Circuit::new(rules, ticks);
        Self {
            gate: Gate::new(circuit, shard::shards(), ticks),
            waiting: Mutex::new(Fifo::new()),
            state: watch::Sender::new(State::Closed),
            open_for,
            slow_after,
            attempt_deadline,
            when_open,
            reporter,
        }
    }

    /// Admits one call whose attempt deadline is `attempt_deadline`, or else the breaker's own.
    #[inline]
    pub(crate) fn admit<B: Deref<Target = Self>>(
        breaker: B,
        attempt_deadline: Option<Duration>,
    ) -> Result<Pass<B>, Refused> {
        let ticket = breaker.ticket(attempt_deadline)?;
        Ok(Pass::new(breaker, ticket, attempt_deadline))
    }

    /// Admits a call if the circuit need not be asked.
    #[inline(always)]
    pub(crate) fn pass<B>(breaker: B, attempt_deadline: Option<Duration>) -> Option<Pass<B>>
    where
        B: Deref<Target = Self>,
    {
        let ticket = breaker.gate.pass()?;
        Some(Pass::new(breaker, ticket, attempt_deadline))
    }

    /// Admits a call, gives it a place in line, or refuses it.
    #[inline(always)]
    pub(crate) fn ask<B>(breaker: B, attempt_deadline: Option<Duration>) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        match breaker.gate.pass() {
            Some(ticket) => Answer::Granted(Pass::new(breaker, ticket, attempt_deadline)),
            None => Self::ask_slowly(breaker, attempt_deadline),
        }
    }

    #[cold]
    fn ask_slowly<B>(breaker: B, attempt_deadline: Option<Duration>) -> Answer<Waiting<B>>
    where
        B: Deref<Target = Self> + Clone,
    {
        let refused = match breaker.ticket_slowly(attempt_deadline) {
            Ok(ticket) => {
                return Answer::Granted(Pass::new(breaker, ticket, attempt_deadline));
            }
            Err(refused) => refused,
        };
        let WhenOpen::Wait { queue } = breaker.when_open else {
            return Answer::Refused(breaker.refuse(refused));
        };
        let key = {
            let mut waiting = lock(&breaker.waiting);
            let free = waiting.len() < queue;
            free.then(|| waiting.push(Waker::noop().clone()))
        };
        match key {
            None => Answer::Refused(breaker.refuse(refused)),
            Some(key) => Answer::Wait(Waiting {
                breaker,
                key,
                attempt_deadline,
                timer: Timer::new(),
            }),
        }
    }

    /// The refusal that the caller sees; reported.
    #[cold]
    pub(super) fn refuse(&self, refused: Refused) -> Rejected {
        let retry_after = refused.ask_again.since(refused.now);
        self.reporter.refused(Rejected::CircuitOpen { retry_after })
    }

    #[inline]
    fn ticket(&self, attempt_deadline: Option<Duration>) -> Result<Ticket, Refused> {
        match self.gate.pass() {
            Some(ticket) => Ok(ticket),
            None => self.ticket_slowly(attempt_deadline),
        }
    }

    #[cold]
    fn ticket_slowly(&self, attempt_deadline: Option<Duration>) -> Result<Ticket, Refused> {
        let now = time::now();
        let stamp = Stamp::from(now);
        if let Some(until) = self.gate.refuses(stamp) {
            let ask_again = if until.is_some() {
                until
            } else {
                stamp + self.open_for
            };
            return Err(Refused {
                ask_again,
                now: stamp,
            });
        }
        let attempt_deadline = attempt_deadline.or(self.attempt_deadline);
        let slot_life = attempt_deadline.map_or(SLOT_LIFE, |time| 2 * time);
        let admitted = self.change(now, |circuit| {
            circuit.admit(slot_life, fastrand::u64(..), now)
        });
        admitted.map_err(|ask_again| Refused {
            ask_again: ask_again.into(),
            now: stamp,
        })
    }

    #[cold]
    fn settle(&self, ticket: Ticket, outcome: Outcome) {
        let now = time::now();
        self.change(now, |circuit| {
            circuit.settle(ticket, outcome, fastrand::u64(..), now);
        });
        if ticket.is_probe() {
            self.wake();
        }
    }

    /// Changes the circuit, and tells everybody outside the lock.
    pub(super) fn change<R>(&self, now: Instant, change: impl FnOnce(&mut Circuit) -> R) -> R {
        let (result, changed) = self.gate.change(now, change);
        if changed {
            // The present state, not that of this change: another thread may have published a later one already.
            self.state.send_if_modified(|state| {
                let now = self.gate.state();
                mem::replace(state, now) != now
            });
            self.wake();
            self.gate.tell(|Change { from, to, cause }| {
                self.reporter.emit(|name| Event::Transition {
                    name,
                    from,
                    to,
                    cause,
                });
            });
        }
        result
    }

    /// Lets everybody in line ask again.
    fn wake(&self) {
        if !matches!(self.when_open, WhenOpen::Wait { .. }) {
            return;
        }
        // Taken, not cloned: a waker's code is the user's.
        let take = |waker: &mut Waker| mem::replace(waker, Waker::noop().clone());
        let wakers: Vec<Waker> = lock(&self.waiting).iter_mut().map(take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A place in the line of those who wait for the circuit. Dropped, it is given up.
pub(crate) struct Waiting<B: Deref<Target = Shared>> {
    breaker: B,
    key: Key,
    attempt_deadline: Option<Duration>,
    timer: Timer,
}

impl<B: Deref<Target = Shared> + Clone> Wait for Waiting<B> {
    type Leave = Pass<B>;

    /// Waits until the circuit lets this call pass, or its deadline comes.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pass<B>, Rejected>> {
        loop {
            // In line before asking, so that no change in between is missed.
            let waker = cx.waker().clone();
            let place = |place: &mut Waker| mem::replace(place, waker);
            let replaced = lock(&self.breaker.waiting).get_mut(self.key).map(place);
            // Outside the lock: it may be the last owner of a task that waits in this line too.
            drop(replaced);
            let deadline = ambient::current();
            if deadline.is_some_and(|at| at <= time::now()) {
                let rejected = Rejected::DeadlineExceeded { sent: false };
                return Poll::Ready(Err(self.breaker.reporter.refused(rejected)));
            }
            let ask_again = match Shared::admit(self.breaker.clone(), self.attempt_deadline) {
                Ok(pass) => return Poll::Ready(Ok(pass)),
                Err(refused) => refused.ask_again,
            };
            let wake_at = ask_again.min(deadline.into());
            if self.timer.poll(wake_at, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<B: Deref<Target = Shared>> Drop for Waiting<B> {
    fn drop(&mut self) {
        let waker = lock(&self.breaker.waiting).remove(self.key);
        drop(waker);
    }
}

/// The right to make one call, with whatever way of holding the circuit. Dropped unsettled, the call was abandoned.
///
/// It is moved with each call, and made of whole words for that.
pub(crate) struct Pass<B: Deref<Target = Shared>> {
    breaker: B,
    // A stray one as soon as the circuit has learnt what became of the call.
    pub(super) ticket: Ticket,
    attempt_deadline: Span,
    started: Stamp,
}

impl<B: Deref<Target = Shared>> Pass<B> {
    #[inline]
    fn new(breaker: B, ticket: Ticket, attempt_deadline: Option<Duration>) -> Self {
        let own = || breaker.attempt_deadline;
        let attempt_deadline = attempt_deadline.or_else(own).into();
        Self {
            breaker,
            ticket,
            attempt_deadline,
            started: Stamp::NONE,
        }
    }

    /// The call has to wait: it is timed from `now` on, if anything depends on it.
    #[inline]
    pub(crate) fn waits_since(&mut self, now: impl FnOnce() -> Stamp) {
        let timed = self.attempt_deadline.is_some() || self.breaker.slow_after.is_some();
        if timed && !self.started.is_some() {
            self.started = now();
        }
    }

    /// Takes the call's result; returns what it means.
    #[inline]
    pub(crate) fn settle_result<T, E, C>(&mut self, classify: &C, result: &Result<T, E>) -> Verdict
    where
        E: Refusal,
        C: Classify<T, E>,
    {
        let verdict = judge(classify, result);
        self.settle_judged(verdict, result);
        verdict
    }

    /// Takes the call's result, and what it means.
    #[inline]
    pub(crate) fn settle_judged<T, E: Refusal>(&mut self, verdict: Verdict, result: &Result<T, E>) {
        let rejected = result.as_ref().err().and_then(Refusal::rejected);
        let cut = matches!(rejected, Some(Rejected::DeadlineExceeded { .. }));
        self.settle(verdict, cut);
    }

    /// Takes what the result means. `cut`: it is a deadline of ours that struck, no answer.
    #[inline]
    pub(super) fn settle(&mut self, verdict: Verdict, cut: bool) {
        let good = matches!(verdict.kind, Kind::Success | Kind::Invalid | Kind::Conflict);
        if !(good && self.succeed()) {
            self.settle_slowly(verdict, cut);
        }
    }

    /// Counts a good result, unless the circuit has to be asked what follows from it.
    #[inline(always)]
    pub(crate) fn succeed(&mut self) -> bool {
        if self.ticket.is_probe() || self.is_slow() {
            return false;
        }
        let ticket = mem::replace(&mut self.ticket, Ticket::STRAY);
        self.breaker.gate.succeed(ticket, time::now);
        true
    }

    #[cold]
    fn settle_slowly(&mut self, verdict: Verdict, cut: bool) {
        let (bad, slow) = match verdict.kind {
            // It did not even become ready in the time that it has for all of it.
            Kind::Ignored if cut && self.ran_its_time() => (true, false),
            Kind::Saturated | Kind::Ignored => return self.report(Outcome::Neutral),
            Kind::Success | Kind::Invalid | Kind::Conflict => (false, false),
            Kind::TimedOut => (false, true),
            // The caller's own deadline struck, and that was shorter than what the dependency may take.
            Kind::Ambiguous if cut && Bound::ambient().is_over() && !self.ran_its_time() => {
                return self.report(Outcome::Neutral);
            }
            Kind::Overloaded | Kind::Unavailable | Kind::Ambiguous | Kind::Broken => (true, false),
        };
        self.report(Outcome::Counted {
            bad,
            slow: slow || self.is_slow(),
            retry_after: verdict.retry_after,
        });
    }

    /// Tells the circuit, once.
    fn report(&mut self, outcome: Outcome) {
        let ticket = mem::replace(&mut self.ticket, Ticket::STRAY);
        let learns = ticket != Ticket::STRAY;
        if learns && (outcome != Outcome::Neutral || ticket.is_probe()) {
            self.breaker.settle(ticket, outcome);
        }
    }

    #[inline]
    fn is_slow(&self) -> bool {
        match self.breaker.slow_after {
            Some(after) => self.ran_for(|| after),
            None => false,
        }
    }

    /// The call was dropped before it had a result.
    #[cold]
    fn abandon(&mut self) {
        let bad = self.ran_its_time();
        self.report(if bad { BAD } else { Outcome::Neutral });
    }

    /// Whether the call had run for its attempt deadline.
    fn ran_its_time(&self) -> bool {
        let time = self.attempt_deadline.duration();
        time.is_some_and(|time| self.ran_for(|| time - time / CLOSE_TO))
    }

    /// Whether it has waited for so long since it first had to.
    fn ran_for(&self, time: impl FnOnce() -> Duration) -> bool {
        self.started.is_some() && time::stamp() >= self.started + time().into()
    }
}

impl<B: Deref<Target = Shared>> Leave for Pass<B> {
    /// A panic of the call's code is a failure of the dependency.
    #[inline(always)]
    fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        struct Bomb<'a, B: Deref<Target = Shared>>(&'a mut Pass<B>);
        impl<B: Deref<Target = Shared>> Drop for Bomb<'_, B> {
            fn drop(&mut self) {
                self.0.report(BAD);
            }
        }
        let bomb = Bomb(self);
        let result = f();
        mem::forget(bomb);
        result
    }

    #[inline]
    fn waits(&mut self) {
        self.waits_since(ambient::waits_since);
    }
}

impl<B: Deref<Target = Shared>> Drop for Pass<B> {
    #[inline]
    fn drop(&mut self) {
        if self.ticket != Ticket::STRAY {
            self.abandon();
        }
    }
}

const BAD: Outcome = Outcome::Counted {
    bad: true,
    slow: false,
    retry_after: None,
};

/// A probe's slot expires after this time where no attempt deadline is known.
const SLOT_LIFE: Duration = Duration::from_secs(30);

/// A call that was cut off within this fraction of its attempt deadline has run for it: the two may start their clocks a little apart.
const CLOSE_TO: u32 = 32;
