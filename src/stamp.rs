//! Instants and lengths of time in one word each, "none" among them: a call carries several, and hands them on at each poll.
//!
//! None is the greatest, so that the earlier of two, or the shorter, is their `min`.

use std::{
    fmt,
    ops::Add,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// An instant, or none, to the nanosecond.
///
/// Instants more than 292 years away count as that far away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(i64);

/// What stamps count from: the first instant that became one.
static START: OnceLock<Instant> = OnceLock::new();

impl Stamp {
    pub(crate) const NONE: Self = Self(i64::MAX);
    /// Before anything that ever was.
    pub(crate) const PAST: Self = Self(i64::MIN);

    /// For an atomic.
    pub(crate) fn to_bits(self) -> u64 {
        self.0 as u64
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits as i64)
    }

    /// How long after `earlier` it is; nothing where that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let nanos = i128::from(self.0) - i128::from(earlier.0);
        Duration::from_nanos(u64::try_from(nanos.max(0)).expect("a difference of two words"))
    }

    pub(crate) fn is_some(self) -> bool {
        self != Self::NONE
    }

    pub(crate) fn instant(self) -> Option<Instant> {
        if !self.is_some() {
            return None;
        }
        let start = *START.get().expect("set by the first stamp");
        let distance = Duration::from_nanos(self.0.unsigned_abs());
        if self.0 < 0 {
            start.checked_sub(distance)
        } else {
            start.checked_add(distance)
        }
    }
}

impl Add<Span> for Stamp {
    type Output = Self;

    /// `time` later; none where either is none.
    #[inline]
    fn add(self, time: Span) -> Self {
        if !self.is_some() || !time.is_some() {
            return Self::NONE;
        }
        let most = i64::MAX - 1;
        let time = time.0.min(most as u64) as i64;
        Self(self.0.saturating_add(time).min(most))
    }
}

impl From<Option<Instant>> for Stamp {
    fn from(instant: Option<Instant>) -> Self {
        instant.map_or(Self::NONE, Self::from)
    }
}

impl From<Instant> for Stamp {
    fn from(instant: Instant) -> Self {
        const MOST: u64 = i64::MAX as u64 - 1;
        let start = *START.get_or_init(|| instant);
        match instant.checked_duration_since(start) {
            Some(later) => Self(Span::from(later).0.min(MOST) as i64),
            None => Self(-(Span::from(start.duration_since(instant)).0.min(MOST) as i64)),
        }
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instant().fmt(f)
    }
}

/// A length of time, or none, to the nanosecond.
///
/// 584 years and more are the longest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(u64);

impl Span {
    pub(crate) const NONE: Self = Self(u64::MAX);
    pub(crate) const ZERO: Self = Self(0);

    #[inline]
    pub(crate) const fn new(time: Duration) -> Self {
        let nanos = time
            .as_secs()
            .saturating_mul(1_000_000_000)
            .saturating_add(time.subsec_nanos() as u64);
        Self(if nanos == u64::MAX { nanos - 1 } else { nanos })
    }

    pub(crate) fn is_some(self) -> bool {
        self != Self::NONE
    }

    pub(crate) fn duration(self) -> Option<Duration> {
        self.is_some().then(|| Duration::from_nanos(self.0))
    }
}

impl From<Duration> for Span {
    #[inline]
    fn from(time: Duration) -> Self {
        Self::new(time)
    }
}

impl From<Option<Duration>> for Span {
    #[inline]
    fn from(time: Option<Duration>) -> Self {
        time.map_or(Self::NONE, Self::new)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.duration().fmt(f)
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::start;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_and_in_the_same_order(first in -1_000_000_000_000_i64.., second: i32, third: i64) {
            let instant = |nanos: i64| {
                let distance = Duration::from_nanos(nanos.unsigned_abs() % 100_000_000_000_000_000);
                if nanos < 0 { start().checked_sub(distance) } else { start().checked_add(distance) }
            };
            let instants: Vec<Instant> = [first, second.into(), third].into_iter().filter_map(instant).collect();
            for one in &instants {
                prop_assert_eq!(Stamp::from(*one).instant(), Some(*one));
                for other in &instants {
                    prop_assert_eq!(Stamp::from(*one).cmp(&Stamp::from(*other)), one.cmp(other));
                }
            }
        }

        #[test]
        fn a_length_comes_out_as_it_went_in(nanos in 0..u64::MAX - 1) {
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(Span::new(time).duration(), Some(time));
        }
    }

    #[test]
    fn a_sum_is_that_of_instants_and_none_stays_none() {
        let (now, second) = (start(), Duration::from_secs(1));
        assert_eq!(
            (Stamp::from(now) + second.into()).instant(),
            Some(now + second)
        );
        assert_eq!(Stamp::NONE + second.into(), Stamp::NONE);
        assert_eq!(Stamp::from(now) + Span::NONE, Stamp::NONE);
        assert!((Stamp::from(now) + Duration::MAX.into()).is_some());
    }

    #[test]
    fn how_long_after_is_the_distance_and_nothing_before() {
        let (now, second) = (start(), Duration::from_secs(1));
        let (earlier, later) = (Stamp::from(now), Stamp::from(now + second));
        assert_eq!(later.since(earlier), second);
        assert_eq!(earlier.since(later), Duration::ZERO);
        let longest = Duration::from_nanos(u64::MAX);
        assert_eq!(Stamp::NONE.since(Stamp::PAST), longest);
    }

    #[test]
    fn what_an_atomic_holds_is_the_same_stamp() {
        for stamp in [Stamp::PAST, Stamp::from(start()), Stamp::NONE] {
            assert_eq!(Stamp::from_bits(stamp.to_bits()), stamp);
        }
    }

    #[test]
    fn they_are_shown_as_what_they_stand_for() {
        let (now, second) = (start(), Duration::from_secs(1));
        assert_eq!(
            format!("{:?} {:?}", Stamp::from(now), Span::new(second)),
            format!("{:?} {:?}", Some(now), Some(second))
        );
        assert_eq!(format!("{:?} {:?}", Stamp::NONE, Span::NONE), "None None");
    }

    #[test]
    fn none_is_later_and_longer_than_anything() {
        let far = start() + Duration::from_secs(1_000 * 365 * 24 * 3_600);
        assert!(Stamp::from(far) > Stamp::from(start()));
        assert!(Stamp::from(far) < Stamp::NONE);
        assert!(Stamp::from(far).instant().is_some());
        assert!(Span::new(Duration::MAX) < Span::NONE);
        assert_eq!((Stamp::NONE.instant(), Span::NONE.duration()), (None, None));
    }
}
