//! How long to wait before the next attempt.

use std::time::Duration;

use crate::error::{ConfigError, LONGEST};

/// How the time between attempts grows, and how chance spreads it.
///
/// ```
/// use std::time::Duration;
/// use steadfast::retry::{Backoff, Jitter};
///
/// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));
/// let steps = Backoff::linear(Duration::from_millis(100), Duration::from_secs(1)).jitter(Jitter::None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    growth: Growth,
    first: Duration,
    cap: Duration,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    Fixed,
    Linear,
    Exponential,
}

/// How chance spreads a delay.
///
/// Always applied after the cap, so that late retries are not simultaneous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// Anything from nothing to the delay; spreads best, and is the default.
    #[default]
    Full,
    /// Anything from half of the delay to all of it.
    Equal,
    /// Anything from the first delay to three times the one before, at most the cap.
    ///
    /// The one before includes the dependency's hint, if it gave one.
    Decorrelated,
    /// The delay itself: for tests, or where nobody else retries at the same time.
    None,
}

impl Backoff {
    /// `first`, doubling with each retry up to `cap`; full jitter.
    pub const fn exponential(first: Duration, cap: Duration) -> Self {
        Self::new(Growth::Exponential, first, cap)
    }

    /// `step` more with each retry, up to `cap`; full jitter.
    pub const fn linear(step: Duration, cap: Duration) -> Self {
        Self::new(Growth::Linear, step, cap)
    }

    /// The same `delay` before each retry; full jitter.
    pub const fn fixed(delay: Duration) -> Self {
        Self::new(Growth::Fixed, delay, delay)
    }

    /// How chance spreads the delays.
    pub const fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The delay before retry number `retry`, the first being 1, when the one before was `previous`.
    pub(crate) fn delay(&self, retry: u32, previous: Duration, random: u64) -> Duration {
        let grown = match self.growth {
            Growth::Fixed => self.first,
            Growth::Linear => self.first.saturating_mul(retry),
            Growth::Exponential => {
                let doubled = 2_u32.saturating_pow(retry.saturating_sub(1));
                self.first.saturating_mul(doubled)
            }
        };
        let capped = grown.min(self.cap);
        match self.jitter {
            Jitter::Full => between(Duration::ZERO, capped, random),
            Jitter::Equal => between(capped / 2, capped, random),
            Jitter::Decorrelated => {
                let most = previous.saturating_mul(3).clamp(self.first, self.cap);
                between(self.first.min(self.cap), most, random)
            }
            Jitter::None => capped,
        }
    }

    pub(crate) fn check(&self, setting: &'static str) -> Result<(), ConfigError> {
        ConfigError::check_time("retry", setting, self.first, Duration::ZERO)?;
        if self.cap < self.first || self.cap > LONGEST {
            let allowed = format!(
                "at least the first delay, {:?}, and at most 365 days",
                self.first
            );
            return Err(ConfigError::new("retry", setting, self.cap, allowed));
        }
        Ok(())
    }

    const fn new(growth: Growth, first: Duration, cap: Duration) -> Self {
        Self {
            growth,
            first,
            cap,
            jitter: Jitter::Full,
        }
    }
}

/// A time from `least` to `most`, both included, picked by a word of chance.
fn between(least: Duration, most: Duration, random: u64) -> Duration {
    let range = (most - least).as_nanos();
    // The range is at most a year: 55 bits of nanoseconds by 64 bits of chance.
    let picked = ((range + 1) * u128::from(random)) >> 64;
    least + Duration::from_nanos(picked as u64)
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_doubles_up_to_the_cap() {
        let backoff = Backoff::exponential(50 * MS, 300 * MS).jitter(Jitter::None);
        let delays = [1, 2, 3, 4, 5, 99].map(|retry| backoff.delay(retry, Duration::ZERO, 7));
        assert_eq!(delays, [50, 100, 200, 300, 300, 300].map(|ms| ms * MS));
    }

    #[test]
    fn it_grows_by_the_step_up_to_the_cap() {
        let backoff = Backoff::linear(100 * MS, 250 * MS).jitter(Jitter::None);
        let delays = [1, 2, 3, 4].map(|retry| backoff.delay(retry, Duration::ZERO, 7));
        assert_eq!(delays, [100, 200, 250, 250].map(|ms| ms * MS));
    }

    #[test]
    fn a_cap_below_the_first_delay_is_refused() {
        let error = Backoff::exponential(50 * MS, 10 * MS)
            .check("backoff")
            .unwrap_err();
        let expected = "retry: backoff is 10ms, but must be at least the first delay, 50ms, and at most 365 days";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_cap_goes_from_the_first_delay_to_a_year() {
        let check = |cap| Backoff::exponential(50 * MS, cap).check("backoff").is_ok();
        assert!(check(50 * MS));
        assert!(check(LONGEST));
        assert!(!check(LONGEST + MS));
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_bounds_and_reaches_them(
            first in 1..2_000_u64, times in 1..50_u64, retry in 1..40_u32, previous in 0..200_000_u64, random: u64,
        ) {
            let (first, previous) = (Duration::from_millis(first), Duration::from_millis(previous));
            let cap = first * times as u32;
            let grown = first.saturating_mul(2_u32.saturating_pow(retry - 1)).min(cap);
            let decorrelated = (previous * 3).clamp(first, cap);
            let bounds = [
                (Jitter::Full, Duration::ZERO, grown),
                (Jitter::Equal, grown / 2, grown),
                (Jitter::Decorrelated, first, decorrelated),
                (Jitter::None, grown, grown),
            ];
            for (jitter, least, most) in bounds {
                let delay = |random| Backoff::exponential(first, cap).jitter(jitter).delay(retry, previous, random);
                prop_assert!((least..=most).contains(&delay(random)), "{jitter:?}");
                prop_assert_eq!((delay(0), delay(u64::MAX)), (least, most), "{:?}", jitter);
            }
        }
    }
}
