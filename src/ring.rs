//! Time cut into ticks, and a value for each of the last ten.

use std::time::{Duration, Instant};

/// How many ticks a window is cut into.
pub(crate) const BUCKETS: usize = 10;

/// Counts time in ticks of one width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    start: Instant,
    width: Duration,
}

impl Ticks {
    /// Ticks of which [`BUCKETS`] make up a `window`, counted from `start`.
    pub(crate) fn new(window: Duration, start: Instant) -> Self {
        let width = (window / BUCKETS as u32).max(Duration::from_nanos(1));
        Self { start, width }
    }

    /// The tick that `now` is in; what lies before the start is in the first.
    pub(crate) fn of(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start);
        (passed.as_nanos() / self.width.as_nanos()) as u64
    }
}

/// A value for each of the last [`BUCKETS`] ticks.
///
/// Invariant: the bucket of tick `t` is `t % BUCKETS`, for `latest - BUCKETS < t <= latest`; what is older is forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring<T> {
    buckets: [T; BUCKETS],
    latest: u64,
}

impl<T: Copy + Default> Ring<T> {
    /// Moves on to `tick`, handing each forgotten value to `forget`. An earlier tick changes nothing.
    pub(crate) fn advance(&mut self, tick: u64, mut forget: impl FnMut(T)) {
        let steps = tick.saturating_sub(self.latest).min(BUCKETS as u64);
        for step in 1..=steps {
            // The last `steps` buckets before `tick`; where all are forgotten, their order does not matter.
            let bucket = (self.latest + step) as usize % BUCKETS;
            forget(std::mem::take(&mut self.buckets[bucket]));
        }
        self.latest = self.latest.max(tick);
    }

    /// The value of `tick`, unless that is forgotten or was never reached.
    pub(crate) fn at(&mut self, tick: u64) -> Option<&mut T> {
        let known = tick <= self.latest && self.latest - tick < BUCKETS as u64;
        known.then(|| &mut self.buckets[tick as usize % BUCKETS])
    }

    /// The values, the oldest first.
    pub(crate) fn oldest_first(&mut self) -> impl Iterator<Item = &mut T> {
        let (newer, older) = self
            .buckets
            .split_at_mut((self.latest + 1) as usize % BUCKETS);
        older.iter_mut().chain(newer)
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn a_value_is_forgotten_after_ten_ticks_and_not_before() {
        let mut ring = Ring::default();
        ring.advance(3, |_: u32| {});
        *ring.at(3).unwrap() = 7;
        let mut forgotten = 0;
        ring.advance(12, |value| forgotten += value);
        assert_eq!((forgotten, *ring.at(3).unwrap()), (0, 7));
        ring.advance(13, |value| forgotten += value);
        assert_eq!((forgotten, ring.at(3)), (7, None));
    }

    #[test]
    fn a_long_silence_forgets_everything_once() {
        let mut ring = Ring::default();
        for tick in 0..10 {
            ring.advance(tick, |_: u32| {});
            *ring.at(tick).unwrap() = 1;
        }
        let mut forgotten = 0;
        ring.advance(1_000_003, |value| forgotten += value);
        assert_eq!(forgotten, 10);
        assert_eq!(ring.oldest_first().map(|value| *value).sum::<u32>(), 0);
    }

    #[test]
    fn the_oldest_comes_first() {
        let mut ring = Ring::default();
        for tick in 0..24 {
            ring.advance(tick, |_: u64| {});
            *ring.at(tick).unwrap() = tick;
        }
        let values: Vec<u64> = ring.oldest_first().map(|value| *value).collect();
        assert_eq!(values, (14..24).collect::<Vec<_>>());
    }

    #[test]
    fn ticks_before_the_start_are_the_first() {
        let start = start();
        let ticks = Ticks::new(Duration::from_secs(10), start);
        assert_eq!(ticks.of(start - Duration::from_secs(5)), 0);
        assert_eq!(ticks.of(start + Duration::from_millis(2_999)), 2);
    }
}
