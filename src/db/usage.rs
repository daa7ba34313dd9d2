//! How many connections were in use of late.

use std::time::{Duration, Instant};

use crate::ring::{BUCKETS, Ring};

/// How many connections are in use, and were during the last ten seconds.
///
/// It weighs each number by how long it lasted, so that a short peak weighs little. Seconds are counted from its start.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    start: Instant,
    seconds: Ring<Busy>,
    in_use: u32,
    /// Until when it is added up, in nanoseconds since the start.
    until: u64,
}

impl Usage {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            start: now,
            seconds: Ring::default(),
            in_use: 0,
            until: 0,
        }
    }

    /// From `now` on, so many are in use.
    pub(crate) fn change(&mut self, in_use: u32, now: Instant) {
        self.catch_up(now);
        self.in_use = in_use;
    }

    /// How many were in use on average: of the nine seconds before this one, and of what has passed of this one.
    pub(crate) fn mean(&mut self, now: Instant) -> f64 {
        self.catch_up(now);
        let (mut busy, mut lasted) = (0.0, 0.0);
        for second in self.seconds.oldest_first() {
            busy += second.busy as f64;
            lasted += second.lasted as f64;
        }
        if lasted > 0.0 {
            busy / lasted
        } else {
            self.in_use.into()
        }
    }

    /// Whether in each full second of the last ten at least this share of `max` was in use.
    ///
    /// There is none before nine seconds are full.
    pub(crate) fn sustained(&mut self, at_least: f64, max: u32, now: Instant) -> bool {
        self.catch_up(now);
        let (current, all) = (self.until / SECOND, f64::from(max) * SECOND as f64);
        if current + 1 < BUCKETS as u64 {
            return false;
        }
        let mut full = current + 1 - BUCKETS as u64..current;
        // Divided and not multiplied: 18 / 20 is just what `0.9` is, and of no connections there is no share.
        full.all(|second| {
            let second = self.seconds.at(second).map_or(0, |second| second.busy);
            second as f64 / all >= at_least
        })
    }

    /// Adds up what has passed since the last time; for an earlier `now` there is nothing to add.
    fn catch_up(&mut self, now: Instant) {
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        let current = now / SECOND;
        self.seconds.advance(current, |_| {});
        let oldest = (current + 1).saturating_sub(BUCKETS as u64) * SECOND;
        let mut from = self.until.max(oldest);
        while from < now {
            let second = from / SECOND;
            let to = now.min((second + 1) * SECOND);
            if let Some(busy) = self.seconds.at(second) {
                busy.busy += (to - from) * u64::from(self.in_use);
                busy.lasted += to - from;
            }
            from = to;
        }
        self.until = self.until.max(now);
    }
}

/// A second, or what has passed of it.
#[derive(Clone, Copy, Debug, Default)]
struct Busy {
    /// How many connections were in use, times the nanoseconds for which they were.
    busy: u64,
    /// In nanoseconds.
    lasted: u64,
}

/// In nanoseconds.
const SECOND: u64 = Duration::from_secs(1).as_nanos() as u64;

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, start};

    #[test]
    fn a_number_weighs_as_long_as_it_lasted() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(20, at(start, 1.0));
        usage.change(4, at(start, 1.5));
        // 1 s of 0, 0.5 s of 20, 2.5 s of 4.
        assert_eq!(usage.mean(at(start, 4.0)), 5.0);
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(20, start);
        usage.change(0, at(start, 1.0));
        assert_eq!(usage.mean(at(start, 9.999)).round(), 2.0);
        assert_eq!(usage.mean(at(start, 10.0)), 0.0);
    }

    #[test]
    fn a_long_silence_is_as_busy_as_its_number() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(7, at(start, 0.5));
        assert_eq!(usage.mean(at(start, 1e6)), 7.0);
    }

    #[test]
    fn before_any_time_has_passed_it_is_the_number_itself() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(3, start);
        assert_eq!(usage.mean(start), 3.0);
    }

    #[test]
    fn an_earlier_time_adds_nothing() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(4, start);
        usage.change(8, at(start, 4.0));
        // Of a thread that read the clock before the other, and came after it.
        usage.change(2, at(start, 3.0));
        assert_eq!(usage.mean(at(start, 8.0)), 3.0);
        assert_eq!(usage.mean(at(start, 6.0)), 3.0);
    }

    #[test]
    fn it_is_sustained_once_every_full_second_is_at_the_share() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(18, start);
        assert!(!usage.sustained(0.9, 20, at(start, 8.999)));
        assert!(usage.sustained(0.9, 20, at(start, 9.0)));
        assert!(usage.sustained(0.9, 20, at(start, 1e6)));
        assert!(!usage.sustained(0.91, 20, at(start, 1e6)));
        assert!(!usage.sustained(0.9, 21, at(start, 1e6)));
    }

    #[test]
    fn a_second_below_the_share_ends_it_for_the_next_nine() {
        let start = start();
        let mut usage = Usage::new(start);
        usage.change(18, start);
        usage.change(17, at(start, 20.9));
        usage.change(18, at(start, 20.91));
        assert!(usage.sustained(0.9, 20, at(start, 20.95)));
        assert!(!usage.sustained(0.9, 20, at(start, 21.0)));
        assert!(!usage.sustained(0.9, 20, at(start, 29.999)));
        assert!(usage.sustained(0.9, 20, at(start, 30.0)));
    }

    #[test]
    fn a_peak_makes_up_for_a_gap_in_the_same_second_only() {
        let start = start();
        let mut usage = Usage::new(start);
        for second in 0..20 {
            usage.change(20, at(start, f64::from(second)));
            usage.change(16, at(start, f64::from(second) + 0.5));
        }
        assert!(usage.sustained(0.9, 20, at(start, 20.0)));
        assert!(!usage.sustained(0.91, 20, at(start, 20.0)));
    }

    #[test]
    fn a_pool_of_nothing_is_not_busy() {
        let start = start();
        assert!(!Usage::new(start).sustained(0.0, 0, at(start, 100.0)));
    }

    proptest! {
        /// The model looks at every tenth of a second; changes happen only then.
        #[test]
        fn it_equals_a_list_of_samples(changes in prop::collection::vec((1..30_usize, 0..50_u32), 1..30)) {
            let start = start();
            let tenth = |tenths: usize| start + Duration::from_millis(100) * tenths as u32;
            let mut usage = Usage::new(start);
            let mut samples = Vec::new();
            let mut in_use = 0;
            for (wait, next) in changes {
                samples.extend(std::iter::repeat_n(in_use, wait));
                in_use = next;
                let now = samples.len();
                usage.change(in_use, tenth(now));
                let oldest = ((now / 10 + 1) * 10).saturating_sub(100);
                let window = &samples[oldest..];
                if !window.is_empty() {
                    let mean = window.iter().sum::<u32>() as f64 / window.len() as f64;
                    prop_assert!((usage.mean(tenth(now)) - mean).abs() < 1e-9);
                }
                let full = &samples[oldest..now / 10 * 10];
                let sustained = full.len() == 90
                    && full.chunks(10).all(|second| second.iter().sum::<u32>() >= 200);
                prop_assert_eq!(usage.sustained(0.5, 40, tenth(now)), sustained);
            }
        }
    }
}
