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
    #[inline(always)]
    pub(crate) fn ambient() -> Self {
        Self {
            at: AT.get(),
            within: WITHIN.get(),
        }
    }

    /// Makes it the bound around the code that runs now.
    #[inline(always)]
    fn surround(self) {
        AT.set(self.at);
        WITHIN.set(self.within);
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
        self.resolve_at(time::stamp)
    }

    /// The same where what was asked to run waits.
    pub(crate) fn resolve_waiting(&mut self) -> Stamp {
        self.resolve_at(waits_since)
    }

    #[inline]
    fn resolve_at(&mut self, now: impl FnOnce() -> Stamp) -> Stamp {
        if self.within.is_some() {
            self.resolve(now())
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
        let outer = Self::ambient();
        // It may be kept from a time when another one surrounded it.
        self.at = self.at.min(outer.at);
        self.within = self.within.min(outer.within);
        self.surround();
        let _left = Entered { bound: self, outer };
        f()
    }
}

/// The instant by which the code that runs now must be over; reads the clock if nobody has yet.
pub(crate) fn current() -> Option<Instant> {
    let mut bound = Bound::ambient();
    let at = bound.resolve_now();
    bound.surround();
    at.instant()
}

/// A call is about to be polled: from here on it is told anew how it waits.
#[inline]
pub(crate) fn polls() {
    IN_LINE.set(false);
    WAITS_SINCE.set(Stamp::NONE);
}

/// Says that what runs now waits in a line of ours: its call is not under way.
pub(crate) fn set_in_line(in_line: bool) {
    IN_LINE.set(in_line);
}

/// Whether what ran since [`polls`] waits in a line of ours.
pub(crate) fn is_in_line() -> bool {
    IN_LINE.get()
}

/// When what ran since [`polls`] was found to wait: the first layer that wants to know reads the clock for all around it.
pub(crate) fn waits_since() -> Stamp {
    let since = WAITS_SINCE.get();
    if since.is_some() { since } else { waits_now() }
}

/// Reads the clock for a call that was found to wait, and for all around it.
pub(crate) fn waits_now() -> Stamp {
    let now = time::stamp();
    WAITS_SINCE.set(now);
    now
}

struct Entered<'a> {
    bound: &'a mut Bound,
    outer: Bound,
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        // What was resolved inside is kept.
        *self.bound = Bound::ambient();
        self.outer.surround();
    }
}

thread_local! {
    static IN_LINE: Cell<bool> = const { Cell::new(false) };
    static WAITS_SINCE: Cell<Stamp> = const { Cell::new(Stamp::NONE) };
    // Apart: where two words are written one by one and read as one a moment later, the read waits for both to leave the store buffer.
    static AT: Cell<Stamp> = const { Cell::new(Stamp::NONE) };
    static WITHIN: Cell<Span> = const { Cell::new(Span::NONE) };
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        time::Duration,
    };

    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn until(at: Instant) -> Bound {
        Bound::NONE.until(at)
    }

    #[test]
    fn what_is_entered_only_ever_gets_shorter_and_is_left_again() {
        let now = time::now();
        let instant = |seconds: u32| now + seconds * SECOND;
        assert_eq!(current(), None);
        until(instant(5)).enter(|| {
            assert_eq!(current(), Some(instant(5)));
            until(instant(9)).enter(|| assert_eq!(current(), Some(instant(5))));
            until(instant(2)).enter(|| assert_eq!(current(), Some(instant(2))));
            assert_eq!(current(), Some(instant(5)));
        });
        assert_eq!(current(), None);
    }

    #[test]
    fn it_is_left_by_a_panic_too() {
        let mut bound = until(time::now());
        let entered = catch_unwind(AssertUnwindSafe(|| bound.enter(|| panic!("inside"))));
        assert!(entered.is_err());
        assert_eq!(current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_layers_of_one_poll_wait_since_the_same_instant_and_the_next_call_is_told_anew() {
        polls();
        let first = waits_since();
        set_in_line(true);
        advance(SECOND).await;
        assert_eq!((waits_since(), is_in_line()), (first, true));
        polls();
        assert_eq!(waits_since(), first + SECOND.into());
        assert!(!is_in_line());
    }

    #[tokio::test(start_paused = true)]
    async fn a_length_counts_from_when_it_is_first_asked_for_and_then_stays() {
        let now = time::now();
        let mut bound = Bound::NONE.within(3 * SECOND);
        advance(SECOND).await;
        assert_eq!(bound.enter(current), Some(now + 4 * SECOND));
        advance(SECOND).await;
        assert_eq!(bound.enter(current), Some(now + 4 * SECOND));
        assert_eq!(bound.resolve_now().instant(), Some(now + 4 * SECOND));
    }

    #[test]
    fn the_earlier_of_an_instant_and_a_length_counts() {
        let now = time::now();
        for (at, seconds) in [(1, 1), (9, 3)] {
            let mut bound = until(now + at * SECOND).within(3 * SECOND);
            let resolved = bound.resolve(now.into());
            assert_eq!(resolved.instant(), Some(now + seconds * SECOND));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_its_instant_has_come() {
        let bound = until(time::now() + 2 * SECOND);
        advance(2 * SECOND - Duration::from_millis(1)).await;
        assert!(!bound.is_over());
        advance(Duration::from_millis(1)).await;
        assert!(bound.is_over());
        assert!(!Bound::NONE.is_over());
        let uncounted = Bound::NONE.within(Duration::ZERO);
        assert!(!uncounted.is_over(), "nobody has counted from an instant");
    }

    #[test]
    fn within_no_time_nothing_can_be_done() {
        assert!(Bound::NONE.within(Duration::ZERO).is_nothing());
        assert!(!Bound::NONE.within(Duration::from_nanos(1)).is_nothing());
        assert!(!Bound::NONE.is_nothing());
    }

    #[test]
    fn who_waits_in_line_says_so() {
        set_in_line(true);
        assert!(is_in_line());
        set_in_line(false);
        assert!(!is_in_line());
    }
}
