//! How long a call will take at least, judged by the last ones.

use std::time::{Duration, Instant};

/// A low percentile of the last service times; without samples it fades, so that it can't shut everybody out for ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Estimate {
    samples: [Duration; SAMPLES],
    taken: usize,
    latest: Option<Instant>,
}

const SAMPLES: usize = 32;

/// One call in so many is faster than the estimate: it should be too low rather than too high.
const ONE_IN: usize = 10;

/// So many samples are needed to know the percentile of all.
const LOWEST: usize = SAMPLES / ONE_IN + 1;

const HALF_LIFE: Duration = Duration::from_secs(1);

impl Estimate {
    /// Takes the time that one call took.
    pub(crate) fn record(&mut self, took: Duration, now: Instant) {
        self.samples[self.taken % SAMPLES] = took;
        self.taken += 1;
        self.latest = Some(now);
    }

    /// How long a call is likely to take at least that starts behind `ahead` others where `limit` run at a time.
    pub(crate) fn expected(&self, ahead: usize, limit: usize, now: Instant) -> Duration {
        let Some(latest) = self.latest else {
            return Duration::ZERO;
        };
        let age = now.saturating_duration_since(latest);
        let faded = (-age.div_duration_f64(HALF_LIFE)).exp2();
        self.low()
            .mul_f64(faded * (1.0 + ahead as f64 / limit as f64))
    }

    /// The percentile. Whoever hands a slot on asks for it, so it looks at each sample once.
    fn low(&self) -> Duration {
        let samples = &self.samples[..self.taken.min(SAMPLES)];
        // The lowest ones, in order.
        let mut lowest = [Duration::MAX; LOWEST];
        for mut sample in samples.iter().copied() {
            if sample >= lowest[LOWEST - 1] {
                continue;
            }
            for low in &mut lowest {
                (*low, sample) = (sample.min(*low), sample.max(*low));
            }
        }
        lowest[samples.len() / ONE_IN]
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, start};

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        #[test]
        fn it_is_what_sorting_the_last_samples_gives(took in prop::collection::vec(0..50_u32, 1..100)) {
            let mut estimate = Estimate::default();
            for took in &took {
                estimate.record(*took * MS, start());
            }
            let mut last = took[took.len().saturating_sub(SAMPLES)..].to_vec();
            last.sort_unstable();
            prop_assert_eq!(estimate.low(), last[last.len() / ONE_IN] * MS);
        }
    }

    #[test]
    fn nothing_is_expected_before_the_first_sample() {
        assert_eq!(
            Estimate::default().expected(1_000, 1, start()),
            Duration::ZERO
        );
    }

    #[test]
    fn it_is_a_low_percentile_of_the_recent_samples() {
        let start = start();
        let mut estimate = Estimate::default();
        for _ in 0..100 {
            estimate.record(1 * MS, start);
        }
        for sample in 1..=SAMPLES as u32 {
            estimate.record(sample * 10 * MS, start);
        }
        assert_eq!(estimate.expected(0, 4, start), 40 * MS);
        assert_eq!(estimate.expected(8, 4, start), 120 * MS);
    }

    #[test]
    fn it_fades_without_samples() {
        let start = start();
        let mut estimate = Estimate::default();
        estimate.record(800 * MS, start);
        assert_eq!(estimate.expected(0, 1, at(start, 3.0)), 100 * MS);
        assert!(estimate.expected(50, 1, at(start, 60.0)) < MS);
    }
}
