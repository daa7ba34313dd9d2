//! Who may pass now, and who waits: permits in one atomic, the line of those who wait behind a lock.
//!
//! Invariants:
//! 1. Permits given = limit − free; a permit is given once and comes back once.
//! 2. While the `WAITING` bit is set, no permit is free and the word changes only under the lock: a release then hands its permit to
//!    the first in line, so that nobody who comes later overtakes it.
//! 3. The bit is set before anybody is in line and cleared when nobody is: no release misses a waiter.
//! 4. Wakers are cloned, woken and dropped outside the lock: that is code of the user's, and the last waker of a task may take
//!    others that wait here with it.

use std::{
    mem,
    task::Waker,
    time::{Duration, Instant},
};

use super::estimate::Estimate;
use crate::{
    error::Overload,
    fifo::{Fifo, Key},
    sync::{AtomicUsize, Mutex, Ordering, lock},
};

pub(crate) struct Gate {
    // Free permits times two, plus the bit.
    word: AtomicUsize,
    line: Mutex<Line>,
    limit: usize,
    queue: usize,
}

struct Line {
    waiters: Fifo<Waiter>,
    estimate: Estimate,
}

struct Waiter {
    waker: Waker,
    deadline: Option<Instant>,
    turn: Turn,
}

/// What became of somebody in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Waits,
    /// It has a permit since then.
    Passes(Instant),
    /// It had too little time left when its turn came.
    Shed,
}

/// What became of somebody who found no free permit at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    Passes,
    Waits(Key),
    Shed(Overload),
}

const WAITING: usize = 1;
const PERMIT: usize = 2;

impl Gate {
    pub(crate) fn new(limit: usize, queue: usize) -> Self {
        Self {
            word: AtomicUsize::new(limit * PERMIT),
            line: Mutex::new(Line {
                waiters: Fifo::new(),
                estimate: Estimate::default(),
            }),
            limit,
            queue,
        }
    }

    /// Takes a free permit, if there is one.
    #[inline]
    pub(crate) fn try_pass(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word >= PERMIT {
            // Acquire pairs with the release in `leave`: what was done under the permit before is seen.
            match self.word.compare_exchange_weak(
                word,
                word - PERMIT,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(newer) => word = newer,
            }
        }
        false
    }

    /// Takes a permit, or a place in line unless it is too long for what is left until `deadline`.
    #[cold]
    pub(crate) fn enter(&self, deadline: Option<Instant>, now: Instant) -> Entered {
        let mut line = lock(&self.line);
        if self.try_pass() {
            return Entered::Passes;
        }
        if let Some(overload) = self.refuses(&line, deadline, now) {
            return Entered::Shed(overload);
        }
        loop {
            // Whoever gave a permit back before the bit was set left it in the word.
            if self.try_pass() {
                return Entered::Passes;
            }
            let seen = self.word.load(Ordering::Relaxed);
            let waiting = seen < PERMIT
                && self
                    .word
                    .compare_exchange(seen, WAITING, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if waiting {
                break;
            }
        }
        Entered::Waits(line.waiters.push(Waiter {
            waker: Waker::noop().clone(),
            deadline,
            turn: Turn::Waits,
        }))
    }

    /// Whether it is somebody's turn; once it is, or it was shed, the key names nobody any more.
    pub(crate) fn turn(&self, key: Key, waker: &Waker) -> Turn {
        // Declared before the lock, and so dropped after it.
        let mut waker = waker.clone();
        let mut line = lock(&self.line);
        let Some(waiter) = line.waiters.get_mut(key) else {
            return Turn::Shed;
        };
        let turn = waiter.turn;
        if turn == Turn::Waits {
            mem::swap(&mut waiter.waker, &mut waker);
            return turn;
        }
        let waiter = line.waiters.remove(key);
        drop(line);
        drop(waiter);
        turn
    }

    /// Somebody leaves the line; a permit that it was given meanwhile goes to the next.
    pub(crate) fn leave_line(&self, key: Key, now: impl FnOnce() -> Instant) {
        let mut line = lock(&self.line);
        let waiter = line.waiters.remove(key);
        match waiter.as_ref().map(|waiter| waiter.turn) {
            Some(Turn::Passes(_)) => {
                let woken = self.hand_on(&mut line, now());
                drop(line);
                woken.into_iter().for_each(Waker::wake);
            }
            _ => {
                if line.waiters.len() == 0 {
                    self.nobody_waits();
                }
                drop(line);
            }
        }
        drop(waiter);
    }

    /// Gives a permit back; `started` is when its call did, if that is known.
    #[inline]
    pub(crate) fn leave(&self, started: Option<Instant>, now: impl FnOnce() -> Instant) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & WAITING == 0 {
            match self.word.compare_exchange_weak(
                word,
                word + PERMIT,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(newer) => word = newer,
            }
        }
        self.leave_to_line(started, now());
    }

    /// Whether every permit is given: from then on it is worth while to time calls.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.word.load(Ordering::Relaxed) < PERMIT
    }

    /// Permits given, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let waiting = lock(&self.line).waiters.len();
        let free = self.word.load(Ordering::Relaxed) / PERMIT;
        (self.limit - free, waiting)
    }

    #[cold]
    fn leave_to_line(&self, started: Option<Instant>, now: Instant) {
        let mut line = lock(&self.line);
        if let Some(started) = started {
            let took = now.saturating_duration_since(started);
            line.estimate.record(took, now);
        }
        let woken = self.hand_on(&mut line, now);
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Gives a permit to the first in line who has time enough, else frees it; returns whom to wake.
    fn hand_on(&self, line: &mut Line, now: Instant) -> Vec<Waker> {
        let expected = line.estimate.expected(0, self.limit, now);
        let mut woken = Vec::new();
        let mut given = false;
        while !given && let Some(waiter) = line.waiters.pop() {
            given = waiter.has(expected, now);
            waiter.turn = if given { Turn::Passes(now) } else { Turn::Shed };
            woken.push(mem::replace(&mut waiter.waker, Waker::noop().clone()));
        }
        if line.waiters.len() == 0 {
            self.nobody_waits();
        }
        if !given {
            self.word.fetch_add(PERMIT, Ordering::Release);
        }
        woken
    }

    /// Under the lock, with nobody in line.
    fn nobody_waits(&self) {
        // Nothing changes the word while the bit is set, and where it is not set, nothing is to be done.
        self.word.fetch_and(!WAITING, Ordering::Release);
    }

    fn refuses(&self, line: &Line, deadline: Option<Instant>, now: Instant) -> Option<Overload> {
        let ahead = line.waiters.len();
        if ahead >= self.queue {
            return Some(Overload::QueueFull);
        }
        let expected = line.estimate.expected(ahead + 1, self.limit, now);
        let late = deadline.is_some_and(|deadline| !has(deadline, expected, now));
        late.then_some(Overload::TooLittleTime)
    }
}

impl Waiter {
    fn has(&self, time: Duration, now: Instant) -> bool {
        self.deadline
            .is_none_or(|deadline| has(deadline, time, now))
    }
}

/// Whether `deadline` is further away than `time`.
fn has(deadline: Instant, time: Duration, now: Instant) -> bool {
    deadline.saturating_duration_since(now) > time
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::testing::start;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A gate as a counter and a list.
    struct Model {
        free: usize,
        line: VecDeque<usize>,
        // By the number of the arrival; `None` once it is gone.
        arrived: Vec<Option<Arrived>>,
    }

    struct Arrived {
        key: Key,
        deadline: Option<Instant>,
        turn: Turn,
        bell: Arc<Bell>,
        polled: bool,
    }

    impl Model {
        /// Somebody of those who are there.
        fn pick(&self, pick: usize) -> Option<usize> {
            let there: Vec<usize> = (0..self.arrived.len())
                .filter(|n| self.arrived[*n].is_some())
                .collect();
            there.get(pick % there.len().max(1)).copied()
        }

        fn hand_on(&mut self, now: Instant) {
            while let Some(first) = self.line.pop_front() {
                let first = self.arrived[first].as_mut().expect("it is in line");
                if first.deadline.is_none_or(|deadline| deadline > now) {
                    first.turn = Turn::Passes(now);
                    return;
                }
                first.turn = Turn::Shed;
            }
            self.free += 1;
        }
    }

    proptest! {
        #[test]
        fn it_equals_a_counter_and_a_list(
            limit in 1..4_usize,
            queue in 0..6_usize,
            steps in prop::collection::vec((0..9_u8, any::<usize>(), prop::option::of(0..8_u32), 0..2_u32), 1..200),
        ) {
            let gate = Gate::new(limit, queue);
            let mut model = Model { free: limit, line: VecDeque::new(), arrived: Vec::new() };
            let mut held = 0;
            let mut now = start();
            for (step, pick, left, forward) in steps {
                now += forward * SECOND;
                let deadline = left.map(|left| now + left * SECOND);
                match step {
                    0 => {
                        let passes = model.free > 0;
                        prop_assert_eq!(gate.try_pass(), passes);
                        held += usize::from(passes);
                        model.free -= usize::from(passes);
                    }
                    1..=3 => {
                        let entered = gate.enter(deadline, now);
                        if model.free > 0 {
                            prop_assert_eq!(entered, Entered::Passes);
                            model.free -= 1;
                            held += 1;
                        } else if model.line.len() >= queue {
                            prop_assert_eq!(entered, Entered::Shed(Overload::QueueFull));
                        } else if deadline.is_some_and(|deadline| deadline <= now) {
                            prop_assert_eq!(entered, Entered::Shed(Overload::TooLittleTime));
                        } else if let Entered::Waits(key) = entered {
                            model.line.push_back(model.arrived.len());
                            let (turn, bell) = (Turn::Waits, Arc::default());
                            model.arrived.push(Some(Arrived { key, deadline, turn, bell, polled: false }));
                        } else {
                            prop_assert!(false, "{entered:?} where it has to wait");
                        }
                    }
                    4 | 5 => if let Some(picked) = model.pick(pick) {
                        let arrived = model.arrived[picked].as_mut().unwrap();
                        let waker = Waker::from(arrived.bell.clone());
                        prop_assert_eq!(gate.turn(arrived.key, &waker), arrived.turn);
                        match arrived.turn {
                            Turn::Waits => arrived.polled = true,
                            Turn::Passes(_) => {
                                held += 1;
                                model.arrived[picked] = None;
                            }
                            Turn::Shed => model.arrived[picked] = None,
                        }
                    },
                    6 => if let Some(picked) = model.pick(pick) {
                        let arrived = model.arrived[picked].take().unwrap();
                        gate.leave_line(arrived.key, || now);
                        model.line.retain(|waiting| *waiting != picked);
                        if let Turn::Passes(_) = arrived.turn {
                            model.hand_on(now);
                        }
                    },
                    _ => if held > 0 {
                        held -= 1;
                        gate.leave(None, || now);
                        model.hand_on(now);
                    },
                }
                let there = || model.arrived.iter().flatten();
                let given = there().filter(|arrived| matches!(arrived.turn, Turn::Passes(_))).count();
                prop_assert_eq!(gate.counts(), (held + given, model.line.len()));
                prop_assert_eq!(gate.is_full(), model.free == 0);
                prop_assert_eq!(model.free + held + given, limit);
                for arrived in there() {
                    let woken = arrived.polled && arrived.turn != Turn::Waits;
                    prop_assert_eq!(arrived.bell.0.load(Ordering::Relaxed), u32::from(woken));
                }
            }
        }
    }

    #[test]
    fn a_key_whose_turn_is_over_names_nobody() {
        let now = start();
        let gate = Gate::new(1, 2);
        assert!(gate.try_pass());
        let Entered::Waits(key) = gate.enter(None, now) else {
            panic!("there is no permit left");
        };
        gate.leave(None, || now);
        assert_eq!(gate.turn(key, Waker::noop()), Turn::Passes(now));
        gate.leave_line(key, || now);
        assert_eq!(gate.turn(key, Waker::noop()), Turn::Shed);
        assert_eq!(gate.counts(), (1, 0), "its permit is not given back twice");
    }
}

#[cfg(all(test, steadfast_loom))]
mod model {
    use std::task::Wake;

    use loom::{
        model::Builder,
        sync::{Arc, Notify},
        thread,
    };

    use super::*;
    use crate::testing::start;

    struct Bell(Notify);

    impl Wake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.notify();
        }
    }

    /// A gate, and how many are past it.
    struct Watched {
        gate: Gate,
        inside: AtomicUsize,
        now: Instant,
    }

    impl Watched {
        fn new(limit: usize, now: Instant) -> Arc<Self> {
            Arc::new(Self {
                gate: Gate::new(limit, 9),
                inside: AtomicUsize::new(0),
                now,
            })
        }

        /// Waits for its turn as a task does; a wake-up that is lost is a deadlock.
        fn wait(&self) {
            if self.gate.try_pass() {
                return;
            }
            match self.gate.enter(None, self.now) {
                Entered::Passes => {}
                Entered::Waits(key) => {
                    let bell = std::sync::Arc::new(Bell(Notify::new()));
                    let waker = Waker::from(bell.clone());
                    while self.gate.turn(key, &waker) == Turn::Waits {
                        bell.0.wait();
                    }
                }
                Entered::Shed(overload) => panic!("{overload}"),
            }
        }

        /// Arrives and leaves again, with or without a permit.
        fn give_up(&self) {
            match self.gate.enter(None, self.now) {
                Entered::Passes => self.leave(),
                Entered::Waits(key) => self.gate.leave_line(key, || self.now),
                Entered::Shed(overload) => panic!("{overload}"),
            }
        }

        fn leave(&self) {
            self.gate.leave(Some(self.now), || self.now);
        }

        /// What a call does that has a permit.
        fn run(&self, limit: usize) {
            let inside = self.inside.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(inside <= limit, "{inside} are inside");
            self.inside.fetch_sub(1, Ordering::Relaxed);
            self.leave();
        }

        fn assert_idle(&self, limit: usize) {
            assert_eq!(self.gate.counts(), (0, 0));
            for _ in 0..limit {
                assert!(self.gate.try_pass(), "a permit is lost");
            }
            assert!(!self.gate.try_pass(), "a permit was given back twice");
        }
    }

    fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    #[test]
    fn whoever_enters_while_the_permit_comes_back_gets_it() {
        let now = start();
        loom::model(move || {
            let watched = Watched::new(1, now);
            assert!(watched.gate.try_pass());
            let waiter = {
                let watched = watched.clone();
                thread::spawn(move || {
                    watched.wait();
                    watched.run(1);
                })
            };
            watched.leave();
            waiter.join().unwrap();
            watched.assert_idle(1);
        });
    }

    #[test]
    fn no_more_than_the_limit_are_inside_and_every_permit_comes_back() {
        let now = start();
        check(3, move || {
            let watched = Watched::new(1, now);
            let callers: Vec<_> = (0..2)
                .map(|_| {
                    let watched = watched.clone();
                    thread::spawn(move || {
                        watched.wait();
                        watched.run(1);
                    })
                })
                .collect();
            watched.wait();
            watched.run(1);
            for caller in callers {
                caller.join().unwrap();
            }
            watched.assert_idle(1);
        });
    }

    #[test]
    fn two_permits_and_three_callers() {
        let now = start();
        check(2, move || {
            let watched = Watched::new(2, now);
            let callers: Vec<_> = (0..2)
                .map(|_| {
                    let watched = watched.clone();
                    thread::spawn(move || {
                        watched.wait();
                        watched.run(2);
                    })
                })
                .collect();
            watched.wait();
            watched.run(2);
            for caller in callers {
                caller.join().unwrap();
            }
            watched.assert_idle(2);
        });
    }

    #[test]
    fn a_permit_given_to_somebody_who_gives_up_goes_to_the_next() {
        let now = start();
        check(3, move || {
            let watched = Watched::new(1, now);
            assert!(watched.gate.try_pass());
            let quitter = {
                let watched = watched.clone();
                thread::spawn(move || watched.give_up())
            };
            let waiter = {
                let watched = watched.clone();
                thread::spawn(move || {
                    watched.wait();
                    watched.run(1);
                })
            };
            watched.leave();
            quitter.join().unwrap();
            waiter.join().unwrap();
            watched.assert_idle(1);
        });
    }

    #[test]
    fn while_somebody_waits_nobody_overtakes() {
        let now = start();
        loom::model(move || {
            let watched = Watched::new(1, now);
            assert!(watched.gate.try_pass());
            let Entered::Waits(key) = watched.gate.enter(None, now) else {
                panic!("there is no permit left");
            };
            let rival = {
                let watched = watched.clone();
                thread::spawn(move || assert!(!watched.gate.try_pass(), "it overtook"))
            };
            watched.leave();
            rival.join().unwrap();
            assert_eq!(watched.gate.turn(key, Waker::noop()), Turn::Passes(now));
            watched.leave();
            watched.assert_idle(1);
        });
    }
}
