//! How the last calls went: exact totals over ten buckets of time.

use crate::ring::Ring;

/// How many calls there were, and how they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) bad: u64,
    pub(crate) slow: u64,
}

/// The counts of the last ten ticks.
///
/// Invariant: `totals` is the sum of the ring.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    ring: Ring<Counts>,
    totals: Counts,
}

impl Window {
    /// Adds calls of `tick`; those of a tick that is forgotten already are too old to count.
    pub(crate) fn record(&mut self, counts: Counts, tick: u64) {
        self.advance(tick);
        if let Some(bucket) = self.ring.at(tick) {
            bucket.add(counts);
            self.totals.add(counts);
        }
    }

    /// The totals as of `tick`.
    pub(crate) fn totals(&mut self, tick: u64) -> Counts {
        self.advance(tick);
        self.totals
    }

    fn advance(&mut self, tick: u64) {
        let totals = &mut self.totals;
        self.ring
            .advance(tick, |forgotten| totals.subtract(forgotten));
    }
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.bad += more.bad;
        self.slow += more.slow;
    }

    fn subtract(&mut self, less: Self) {
        self.calls -= less.calls;
        self.bad -= less.bad;
        self.slow -= less.slow;
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::BUCKETS;

    proptest! {
        /// The model is a list of calls with the tick of each, and filters it anew each time.
        #[test]
        fn it_equals_a_list_of_timestamps_rounded_to_the_bucket(
            calls in prop::collection::vec((0..4_u64, 0..3_u64, any::<bool>(), any::<bool>()), 1..300),
        ) {
            let mut window = Window::default();
            let mut list: Vec<(u64, bool, bool)> = Vec::new();
            let mut now = 0;
            for (forward, back, bad, slow) in calls {
                now += forward;
                // Threads race: a result may be dated to shortly before another one that is recorded already.
                let tick = now - back.min(now);
                window.record(Counts { calls: 1, bad: bad.into(), slow: slow.into() }, tick);
                list.push((tick, bad, slow));
                let seen = window.totals(now);
                let recent = || list.iter().filter(|(tick, ..)| now - tick < BUCKETS as u64);
                let expected = Counts {
                    calls: recent().count() as u64,
                    bad: recent().filter(|(_, bad, _)| *bad).count() as u64,
                    slow: recent().filter(|(_, _, slow)| *slow).count() as u64,
                };
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
