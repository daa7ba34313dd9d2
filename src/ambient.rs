//! The deadline that surrounds the code that runs now.
//!
//! Invariants:
//! 1. A bound only ever gets shorter on its way in: what is entered is the minimum of the outer one and our own.
//! 2. What was entered is left again before the poll, call or drop around it returns, even by a panic.
//! 3. The clock is read only when somebody needs an instant; from then on that bound stays where it is.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use crate::time;

/// When the work at hand must be over: an instant, a length that nobody has counted from yet, or the earlier of both.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bound {
    at: Option<Instant>,
    within: Option<Duration>,
}

impl Bound {
    /// The bound around the code that runs now.
    pub(crate) fn ambient() -> Self {
        CURRENT.get()
    }

    /// At `at`, or earlier where `self` is.
    pub(crate) fn until(mut self, at: Instant) -> Self {
        self.at = Some(self.at.map_or(at, |outer| outer.min(at)));
        self
    }

    /// `within` from when it is first waited for, or earlier where `self` is.
    pub(crate) fn within(mut self, within: Duration) -> Self {
        self.within = Some(self.within.map_or(within, |outer| outer.min(within)));
        self
    }

    /// The instant, counting from `now` what nobody has counted from yet.
    pub(crate) fn resolve(&mut self, now: Instant) -> Option<Instant> {
        if let Some(within) = self.within.take() {
            *self = self.until(now + within);
        }
        self.at
    }

    /// The instant; reads the clock if nobody has yet.
    pub(crate) fn resolve_now(&mut self) -> Option<Instant> {
        if self.within.is_some() {
            self.resolve(time::now())
        } else {
            self.at
        }
    }

    /// Whether it is known to be over; reads the clock only where there is an instant to compare with.
    pub(crate) fn is_over(&self) -> bool {
        self.at.is_some_and(|at| time::now() >= at)
    }

    /// Runs `f` with this bound around it.
    pub(crate) fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let outer = CURRENT.get();
        // It may be kept from a time when another one surrounded it.
        if let Some(at) = outer.at {
            *self = self.until(at);
        }
        if let Some(within) = outer.within {
            *self = self.within(within);
        }
        CURRENT.set(*self);
        let _left = Entered { bound: self, outer };
        f()
    }
}

/// The instant by which the code that runs now must be over; reads the clock if nobody has yet.
pub(crate) fn current() -> Option<Instant> {
    let mut bound = CURRENT.get();
    let at = bound.resolve_now();
    CURRENT.set(bound);
    at
}

/// Says that what runs now waits in a line of ours: its call is not under way.
pub(crate) fn set_in_line(in_line: bool) {
    IN_LINE.set(in_line);
}

/// Whether what ran since [`set_in_line`]`(false)` waits in a line of ours.
pub(crate) fn is_in_line() -> bool {
    IN_LINE.get()
}

/// Counts from `now` what nobody has counted from yet.
pub(crate) fn resolve(now: Instant) {
    let mut bound = CURRENT.get();
    bound.resolve(now);
    CURRENT.set(bound);
}

struct Entered<'a> {
    bound: &'a mut Bound,
    outer: Bound,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // What was resolved inside is kept.
        *self.bound = CURRENT.replace(self.outer);
    }
}

thread_local! {
    static IN_LINE: Cell<bool> = const { Cell::new(false) };
    static CURRENT: Cell<Bound> = const { Cell::new(Bound { at: None, within: None }) };
}
