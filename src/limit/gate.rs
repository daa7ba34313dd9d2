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
mod tests;

#[cfg(all(test, steadfast_loom))]
mod model;
