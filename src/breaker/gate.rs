//! The circuit behind a gate: while it is closed, calls pass and succeed without its lock.
//!
//! Invariants:
//! 1. `passing` is the circuit's epoch while calls may pass without the lock, else 0. It changes only under the lock, after
//!    the shards were turned to the epoch.
//! 2. A success is counted once, in the epoch that its call passed in, or never if that is over.
//! 3. Whatever changes the circuit sees every success that was settled before: the shards are emptied first.
//! 4. `refusing` is set under the lock: until then the circuit lets nobody pass, unless it is changed before. Who reads an older one
//!    was refused a moment earlier.
//! 5. Changes are told in their order, outside the lock: one caller at a time tells them, the others leave theirs to it.

use std::{mem, time::Instant};

use super::circuit::{Change, Circuit, Ticket};
use crate::{
    event::State,
    ring::Ticks,
    shard::Tally,
    stamp::Stamp,
    sync::{AtomicU64, Mutex, Ordering, lock},
};

pub(crate) struct Gate {
    passing: AtomicU64,
    // A stamp; none where it refuses until it is told otherwise.
    refusing: AtomicU64,
    tally: Tally,
    ticks: Ticks,
    judge: Mutex<Judge>,
}

struct Judge {
    circuit: Circuit,
    telling: bool,
}

impl Gate {
    /// `shards` is a power of two.
    pub(crate) fn new(circuit: Circuit, shards: usize, ticks: Ticks) -> Self {
        let epoch = circuit.epoch();
        Self {
            passing: AtomicU64::new(epoch),
            refusing: AtomicU64::new(Stamp::PAST.to_bits()),
            tally: Tally::new(shards, epoch),
            ticks,
            judge: Mutex::new(Judge {
                circuit,
                telling: false,
            }),
        }
    }

    /// Lets a call pass if the circuit need not be asked.
    #[inline]
    pub(crate) fn pass(&self) -> Option<Ticket> {
        // Acquire pairs with the release in `change`: who sees an epoch sees the shards turned to it.
        match self.passing.load(Ordering::Acquire) {
            0 => None,
            epoch => Some(Ticket::closed(epoch)),
        }
    }

    /// Until when the circuit refuses whoever asks at `now`, where that can be told without asking it; none: until it is told otherwise.
    #[inline]
    pub(crate) fn refuses(&self, now: Stamp) -> Option<Stamp> {
        let until = Stamp::from_bits(self.refusing.load(Ordering::Relaxed));
        (now < until).then_some(until)
    }

    /// Counts a good, fast result of the call that passed with `ticket`. `now` reads the clock.
    #[inline(always)]
    pub(crate) fn succeed(&self, ticket: Ticket, now: impl FnOnce() -> Instant) {
        let epoch = ticket.epoch;
        // The shards compare 8 bits of the epoch; this compares all of it.
        if self.passing.load(Ordering::Acquire) != epoch {
            return;
        }
        self.tally.count(
            epoch,
            || self.ticks.of(now()),
            |shard, tick, more| self.roll(epoch, shard, tick, more),
        );
    }

    /// Changes the circuit; returns besides whether that began a new epoch.
    pub(crate) fn change<R>(
        &self,
        now: Instant,
        change: impl FnOnce(&mut Circuit) -> R,
    ) -> (R, bool) {
        let circuit = &mut lock(&self.judge).circuit;
        let (before, tick) = (circuit.epoch(), self.ticks.of(now));
        if circuit.passes() {
            self.tally
                .collect(before, tick, |then, calls| circuit.good(calls, then));
        }
        let result = change(circuit);
        let epoch = circuit.epoch();
        if epoch != before {
            // What came in meanwhile was of the epoch that is over.
            self.tally.collect(epoch, tick, |_, _| {});
            let passing = if circuit.passes() { epoch } else { 0 };
            self.passing.store(passing, Ordering::Release);
        }
        self.refusing
            .store(circuit.refuses_until().to_bits(), Ordering::Relaxed);
        (result, epoch != before)
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.judge).circuit.state()
    }

    /// Whether the circuit is open and its time is over.
    #[cfg(any(feature = "sqlx", test))]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        lock(&self.judge).circuit.is_due(now)
    }

    /// Hands what changed to `tell` until nothing is left, unless somebody else is at it already.
    ///
    /// Where `tell` panics, the next caller goes on behind the change that it was told.
    pub(crate) fn tell(&self, mut tell: impl FnMut(Change)) {
        if mem::replace(&mut lock(&self.judge).telling, true) {
            return;
        }
        let mut telling = Telling {
            judge: &self.judge,
            over: false,
        };
        while let Some(change) = telling.next() {
            tell(change);
        }
    }

    /// Moves a shard on; its calls, and `more` that it had no room for, are counted.
    #[cold]
    fn roll(&self, epoch: u64, shard: usize, tick: u64, more: u64) {
        let circuit = &mut lock(&self.judge).circuit;
        if circuit.epoch() == epoch && circuit.passes() {
            let (then, calls) = self.tally.roll(shard, epoch, tick);
            circuit.good(calls + more, then);
        }
    }
}

/// The right to tell what changed.
struct Telling<'a> {
    judge: &'a Mutex<Judge>,
    over: bool,
}

impl Telling<'_> {
    fn next(&mut self) -> Option<Change> {
        let mut judge = lock(self.judge);
        let change = judge.circuit.next_change();
        // Under the same lock: who changes something after this tells it.
        self.over = change.is_none();
        judge.telling = !self.over;
        change
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if !self.over {
            lock(self.judge).telling = false;
        }
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        time::Duration,
    };

    use super::*;
    use crate::{
        breaker::circuit::{Forced, Outcome, Rules},
        testing::start,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// It opens when half of its calls have failed.
    fn gate(now: Instant) -> Gate {
        let rules = Rules {
            failure_rate: Some(0.5),
            minimum_calls: 1,
            window: 10 * SECOND,
            consecutive: None,
            slow: None,
            open_for: SECOND,
            max_open_for: SECOND,
            probes: 1,
            required_successes: 1,
        };
        let ticks = Ticks::new(rules.window, now);
        Gate::new(Circuit::new(rules, ticks), 1, ticks)
    }

    /// As many as successes are known, and one if none is.
    fn failures_to_open(gate: &Gate, now: Instant) -> u32 {
        let outcome = Outcome::Counted {
            bad: true,
            slow: false,
            retry_after: None,
        };
        let failures = (1..100).find(|_| {
            let ticket = gate.pass().expect("it is closed");
            gate.change(now, |circuit| circuit.settle(ticket, outcome, 0, now));
            gate.pass().is_none()
        });
        let failures = failures.expect("enough failures open it");
        assert_eq!(gate.state(), State::Open);
        failures
    }

    #[test]
    fn successes_that_pass_by_the_circuit_are_known_to_it_when_it_judges() {
        let now = start();
        let gate = gate(now);
        for n in 0..5 {
            let ticket = gate.pass().expect("it is closed");
            gate.succeed(ticket, || now + n * SECOND);
        }
        assert_eq!(failures_to_open(&gate, now + 4 * SECOND), 5);
    }

    #[test]
    fn a_success_of_an_epoch_that_is_over_does_not_count() {
        let now = start();
        let gate = gate(now);
        let ticket = gate.pass().expect("it is closed");
        gate.change(now, Circuit::reset);
        gate.succeed(ticket, || now);
        assert_eq!(failures_to_open(&gate, now), 1);
    }

    #[test]
    fn what_a_full_shard_had_no_room_for_is_counted_with_it() {
        let now = start();
        let gate = gate(now);
        let ticket = gate.pass().expect("it is closed");
        (0..3).for_each(|_| gate.succeed(ticket, || now));
        gate.roll(ticket.epoch, 0, 0, 2);
        gate.roll(ticket.epoch + 1, 0, 0, 9);
        assert_eq!(failures_to_open(&gate, now), 5);
    }

    #[test]
    fn a_change_says_whether_it_began_an_epoch_and_from_an_open_circuit_nobody_passes() {
        let now = start();
        let gate = gate(now);
        assert_eq!(gate.change(now, |circuit| circuit.epoch()), (1, false));
        assert!(gate.pass().is_some());
        let force = |circuit: &mut Circuit| circuit.force(Forced::Open);
        assert_eq!(gate.change(now, force), ((), true));
        assert_eq!((gate.state(), gate.pass()), (State::ForcedOpen, None));
        assert_eq!(gate.change(now, Circuit::reset), ((), true));
        assert_eq!(gate.pass().map(|ticket| ticket.epoch), Some(3));
    }

    #[test]
    fn without_being_asked_an_open_circuit_refuses_until_its_time_is_over() {
        let now = start();
        let gate = gate(now);
        let refuses = |after: Duration| gate.refuses((now + after).into());
        assert_eq!(refuses(Duration::ZERO), None);
        failures_to_open(&gate, now);
        let until = Some((now + SECOND).into());
        assert_eq!(refuses(Duration::ZERO), until);
        assert_eq!(refuses(SECOND - Duration::from_nanos(1)), until);
        assert_eq!(refuses(SECOND), None, "somebody has to probe");
        gate.change(now, |circuit| circuit.force(Forced::Open));
        assert_eq!(refuses(1_000 * SECOND), Some(Stamp::NONE));
        gate.change(now, Circuit::reset);
        assert_eq!(refuses(Duration::ZERO), None);
    }

    #[test]
    fn a_probe_is_due_when_the_open_time_is_over() {
        let now = start();
        let gate = gate(now);
        failures_to_open(&gate, now);
        assert!(!gate.is_due(now));
        assert!(gate.is_due(now + SECOND));
    }

    #[test]
    fn changes_are_told_once_in_their_order_and_by_one_caller_at_a_time() {
        let now = start();
        let gate = gate(now);
        for _ in 0..2 {
            gate.change(now, |circuit| circuit.force(Forced::Closed));
            gate.change(now, Circuit::reset);
            let mut told = Vec::new();
            gate.tell(|change| {
                gate.tell(|_| panic!("somebody is at it already"));
                told.push(change.to);
            });
            assert_eq!(told, [State::ForcedClosed, State::Closed]);
            gate.tell(|_| panic!("everything was told"));
        }
    }

    #[test]
    fn whoever_is_told_may_panic_and_the_next_caller_goes_on_behind_that() {
        let now = start();
        let gate = gate(now);
        gate.change(now, |circuit| circuit.force(Forced::Closed));
        gate.change(now, Circuit::reset);
        let tell = || gate.tell(|_| panic!("told"));
        assert!(catch_unwind(AssertUnwindSafe(tell)).is_err());
        let mut told = Vec::new();
        gate.tell(|change| told.push(change.to));
        assert_eq!(told, [State::Closed]);
    }
}

#[cfg(all(test, steadfast_loom))]
mod model {
    use std::time::Duration;

    use loom::{
        model::Builder,
        sync::{Arc, atomic::AtomicU32},
        thread,
    };

    use super::*;
    use crate::{
        breaker::circuit::{Forced, Outcome, Rules},
        testing::start,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// Walks through the interleavings with at most two preemptions; more take minutes.
    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    fn gate(now: Instant) -> Gate {
        let rules = Rules {
            failure_rate: Some(0.6),
            minimum_calls: 1,
            window: 10 * SECOND,
            consecutive: None,
            slow: None,
            open_for: SECOND,
            max_open_for: SECOND,
            probes: 1,
            required_successes: 1,
        };
        let ticks = Ticks::new(rules.window, now);
        Gate::new(Circuit::new(rules, ticks), 1, ticks)
    }

    /// One call that succeeds; returns the epoch that it passed in.
    fn succeed(gate: &Gate, now: Instant) -> u64 {
        let Some(ticket) = gate.pass() else { return 0 };
        gate.succeed(ticket, || now);
        ticket.epoch
    }

    fn settle(gate: &Gate, ticket: Ticket, outcome: Outcome, now: Instant) {
        gate.change(now, |circuit| circuit.settle(ticket, outcome, 0, now));
    }

    fn fail(gate: &Gate, now: Instant) {
        let ticket = gate.pass().expect("the circuit is closed");
        let failed = Outcome::Counted {
            bad: true,
            slow: false,
            retry_after: None,
        };
        settle(gate, ticket, failed, now);
    }

    /// How many failures open the circuit tells how many successes it knows of: 1 if none, 2 if one, 3 if two.
    fn failures_to_open(gate: &Gate, now: Instant) -> u32 {
        (1..9)
            .find(|_| {
                fail(gate, now);
                gate.state() == State::Open
            })
            .expect("enough failures open it")
    }

    #[test]
    fn every_success_that_was_settled_before_a_failure_is_known_to_it_once() {
        check(|| {
            let start = start();
            let gate = Arc::new(gate(start));
            // Of another tick than the shards', so that both roll their shard while it is emptied.
            let now = start + SECOND;
            let callers = [(); 2].map(|()| {
                let gate = gate.clone();
                thread::spawn(move || succeed(&gate, now))
            });
            gate.change(now, |_| {});
            for caller in callers {
                assert_eq!(caller.join().unwrap(), 1);
            }
            assert_eq!(failures_to_open(&gate, now), 3);
        });
    }

    #[test]
    fn a_success_counts_in_the_epoch_that_it_passed_in_and_in_no_other() {
        check(|| {
            let start = start();
            let gate = Arc::new(gate(start));
            let now = start + SECOND;
            let callers = [(); 2].map(|()| {
                let gate = gate.clone();
                thread::spawn(move || succeed(&gate, now))
            });
            gate.change(now, |circuit| circuit.force(Forced::Open));
            gate.change(now, Circuit::reset);
            let epochs = callers.map(|caller| caller.join().unwrap());
            let counted = epochs.iter().filter(|epoch| **epoch == 3).count();
            assert_eq!(failures_to_open(&gate, now), 1 + counted as u32);
        });
    }

    #[test]
    fn a_failure_beside_a_success_loses_neither() {
        check(|| {
            let start = start();
            let gate = Arc::new(gate(start));
            let now = start + SECOND;
            gate.change(now, |circuit| circuit.good(2, 1));
            let caller = {
                let gate = gate.clone();
                thread::spawn(move || succeed(&gate, now))
            };
            fail(&gate, now);
            assert_eq!(caller.join().unwrap(), 1);
            // 5 of 8 are over 60 %, 4 of 7 are not.
            assert_eq!(1 + failures_to_open(&gate, now), 5);
        });
    }

    #[test]
    fn no_more_probes_are_under_way_than_may_be() {
        check(|| {
            let start = start();
            let gate = Arc::new(gate(start));
            fail(&gate, start);
            let now = start + SECOND;
            let under_way = Arc::new(AtomicU32::new(0));
            let ask = move |gate: &Gate, under_way: &AtomicU32| {
                let admit = |circuit: &mut Circuit| circuit.admit(SECOND, 0, now);
                let Ok(ticket) = gate.change(now, admit).0 else {
                    return 0;
                };
                assert!(ticket.is_probe());
                assert_eq!(under_way.fetch_add(1, Ordering::Relaxed), 0);
                under_way.fetch_sub(1, Ordering::Relaxed);
                settle(gate, ticket, Outcome::Neutral, now);
                1
            };
            let others = [(); 2].map(|()| {
                let (gate, under_way) = (gate.clone(), under_way.clone());
                thread::spawn(move || ask(&gate, &under_way))
            });
            let mine = ask(&gate, &under_way);
            let probes = others
                .map(|other| other.join().unwrap())
                .iter()
                .sum::<u32>()
                + mine;
            assert!(probes >= 1);
            assert_eq!(gate.state(), State::HalfOpen);
        });
    }

    #[test]
    fn every_change_is_told_once_and_in_order() {
        check(|| {
            let now = start();
            let gate = Arc::new(gate(now));
            let told = Arc::new(Mutex::new(Vec::new()));
            let act = move |gate: &Gate, told: &Mutex<Vec<Change>>, change: fn(&mut Circuit)| {
                gate.change(now, change);
                gate.tell(|change| lock(told).push(change));
            };
            let forcer = {
                let (gate, told) = (gate.clone(), told.clone());
                thread::spawn(move || act(&gate, &told, |circuit| circuit.force(Forced::Open)))
            };
            act(&gate, &told, |circuit| circuit.force(Forced::Closed));
            act(&gate, &told, Circuit::reset);
            forcer.join().unwrap();
            let mut state = State::Closed;
            for change in &*lock(&told) {
                assert_eq!(change.from, state);
                state = change.to;
            }
            assert_eq!(state, gate.state());
        });
    }
}
