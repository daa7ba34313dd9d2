//! Who may pass now, and who waits: permits taken without a lock, the line of those who wait behind one.
//!
//! Invariants:
//! 1. Permits given = limit − free.
//! 2. The permits are closed before anybody is in line and opened when nobody is: a release then hands its permit to the first in line,
//!    so that nobody who comes later overtakes it, and no release misses a waiter.
//! 3. Wakers are cloned, woken and dropped outside the lock: that is code of the user's, and the last waker of a task may take
//!    others that wait here with it.

use std::{
    mem,
    task::Waker,
    time::{Duration, Instant},
};

use super::{estimate::Estimate, permits::Permits};
use crate::{
    error::Overload,
    fifo::{Fifo, Key},
    stamp::Stamp,
    sync::{Mutex, lock},
};

pub(crate) struct Gate {
    permits: Permits,
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

impl Gate {
    pub(crate) fn new(limit: usize, queue: usize) -> Self {
        Self::with(Permits::new(limit), limit, queue)
    }

    /// All of `limit` in `permits`.
    fn with(permits: Permits, limit: usize, queue: usize) -> Self {
        Self {
            permits,
            line: Mutex::new(Line {
                waiters: Fifo::new(),
                estimate: Estimate::default(),
            }),
            limit,
            queue,
        }
    }

    /// Takes a permit if one is at hand; else one may be elsewhere.
    #[inline]
    pub(crate) fn pass(&self) -> bool {
        self.permits.take()
    }

    /// Takes a free permit, if there is one.
    pub(crate) fn try_pass(&self) -> bool {
        self.pass() || {
            let _line = lock(&self.line);
            self.permits.take_any()
        }
    }

    /// Takes a permit, or a place in line unless it is too long for what is left until `deadline`.
    #[cold]
    pub(crate) fn enter(&self, deadline: Option<Instant>, now: Instant) -> Entered {
        let mut line = lock(&self.line);
        if self.permits.take_any() {
            return Entered::Passes;
        }
        if let Some(overload) = self.refuses(&line, deadline, now) {
            return Entered::Shed(overload);
        }
        if !self.permits.close() {
            return Entered::Passes;
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
                woken.wake();
            }
            _ => {
                if line.waiters.len() == 0 {
                    self.permits.open();
                }
                drop(line);
            }
        }
        drop(waiter);
    }

    /// Gives a permit back; `started` is when its call did, if that is known.
    #[inline]
    pub(crate) fn leave(&self, started: Stamp, now: impl FnOnce() -> Instant) {
        if !self.permits.give() {
            self.leave_to_line(started.instant(), now());
        }
    }

    /// Whether permits are scarce: from then on it is worth while to time calls.
    #[inline]
    pub(crate) fn is_scarce(&self) -> bool {
        self.permits.are_scarce()
    }

    /// Permits given, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let waiting = lock(&self.line).waiters.len();
        (self.limit.saturating_sub(self.permits.free()), waiting)
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
        woken.wake();
    }

    /// Gives a permit to the first in line who has time enough, else frees it; returns whom to wake.
    fn hand_on(&self, line: &mut Line, now: Instant) -> Woken {
        let expected = line.estimate.expected(0, self.limit, now);
        let mut woken = Woken::default();
        while woken.given.is_none()
            && let Some(waiter) = line.waiters.pop()
        {
            let waker = mem::replace(&mut waiter.waker, Waker::noop().clone());
            if waiter.has(expected, now) {
                waiter.turn = Turn::Passes(now);
                woken.given = Some(waker);
            } else {
                waiter.turn = Turn::Shed;
                woken.shed.push(waker);
            }
        }
        if line.waiters.len() == 0 {
            self.permits.open();
        }
        if woken.given.is_none() {
            self.permits.put();
        }
        woken
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

/// Whom to wake, outside the lock.
#[derive(Default)]
struct Woken {
    given: Option<Waker>,
    shed: Vec<Waker>,
}

impl Woken {
    fn wake(self) {
        let Self { given, shed } = self;
        given.into_iter().chain(shed).for_each(Waker::wake);
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
