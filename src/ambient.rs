//! The deadline that surrounds the code that runs now.
//!
//! Invariants:
//! 1. A bound only ever gets shorter on its way in: what is entered is the minimum of the outer one and our own.
//! 2. What was entered is left again before the poll, call or drop around it returns, even by a panic.
//! 3. The clock is read only when somebody needs an instant; from then on that bound stays where it is.

use std::{cell::Cell, time::Instant};

use crate::{
    stamp::{Span, Stamp},
    time,
};

/// When the work at hand must be over: an instant, a length that nobody has counted from yet, or the earlier of both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    at: Stamp,
    within: Span,
}

impl Bound {
    pub(crate) const NONE: Self = Self {
        at: Stamp::NONE,
        within: Span::NONE,
    };

    /// The bound around the code that runs now.
    #[inline]
    pub(crate) fn ambient() -> Self {
        CURRENT.get()
    }

    /// At `at`, or earlier where `self` is.
    pub(crate) fn until(mut self, at: Instant) -> Self {
        self.at = self.at.min(at.into());
        self
    }

    /// `within` from when it is first waited for, or earlier where `self` is.
    #[inline]
    pub(crate) fn within(mut self, within: impl Into<Span>) -> Self {
        self.within = self.within.min(within.into());
        self
    }

    /// Whether nothing can be done within it.
    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        self.within == Span::ZERO
    }

    /// The instant, counting from `now` what nobody has counted from yet.
    pub(crate) fn resolve(&mut self, now: Stamp) -> Stamp {
        self.at = self.at.min(now + self.within);
        self.within = Span::NONE;
        self.at
    }

    /// The instant; reads the clock if nobody has yet.
    pub(crate) fn resolve_now(&mut self) -> Stamp {
        if self.within.is_some() {
            self.resolve(time::stamp())
        } else {
            self.at
        }
    }

    /// Whether it is known to be over; reads the clock only where there is an instant to compare with.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.at.is_some() && self.at <= time::stamp()
    }

    /// Runs `f` with this bound around it.
    #[inline(always)]
    pub(crate) fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let outer = CURRENT.get();
        // It may be kept from a time when another one surrounded it.
        self.at = self.at.min(outer.at);
        self.within = self.within.min(outer.within);
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
    at.instant()
}

/// Says that what runs now waits in a line of ours: its call is not under way.
pub(crate) fn set_in_line(in_line: bool) {
    IN_LINE.set(in_line);
}

/// Whether what ran since [`set_in_line`]`(false)` waits in a line of ours.
pub(crate) fn is_in_line() -> bool {
    IN_LINE.get()
}

struct Entered<'a> {
    bound: &'a mut Bound,
    outer: Bound,
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        // What was resolved inside is kept.
        *self.bound = CURRENT.replace(self.outer);
    }
}

thread_local! {
    static IN_LINE: Cell<bool> = const { Cell::new(false) };
    static CURRENT: Cell<Bound> = const { Cell::new(Bound::NONE) };
}
