//! What retries may still cost: a share of the recent successes, and a small floor. Time is passed in.

use std::time::{Duration, Instant};

use crate::ring::{Ring, Ticks};

/// What may still be spent, as plain data: deposits that expire, and a floor that refills.
///
/// Invariants:
/// 1. A deposit is spent at most once, and not after its window: the oldest are spent first.
/// 2. The balance never exceeds `ratio × successes of the window + burst`.
///
/// It counts in millionths of a retry, so that no ratio is rounded to nothing.
pub(crate) struct Balance {
    deposit: u64,
    deposits: Ring<u64>,
    ticks: Ticks,
    floor: Floor,
}

struct Floor {
    per_second: u64,
    burst: u64,
    left: u64,
    filled: Instant,
}

const RETRY: u64 = 1_000_000;

impl Balance {
    pub(crate) fn new(rules: Rules, now: Instant) -> Self {
        let burst = u64::from(rules.burst) * RETRY;
        Self {
            deposit: (rules.ratio * RETRY as f64).round() as u64,
            deposits: Ring::default(),
            ticks: Ticks::new(rules.window, now),
            floor: Floor {
                per_second: (rules.per_second * RETRY as f64).round() as u64,
                burst,
                left: burst,
                filled: now,
            },
        }
    }

    /// Takes `successes` of `tick`.
    pub(crate) fn earn(&mut self, successes: u64, tick: u64) {
        self.deposits.advance(tick, drop);
        if let Some(deposits) = self.deposits.at(tick) {
            *deposits += successes * self.deposit;
        }
    }

    /// Spends one retry, if there is as much.
    pub(crate) fn withdraw(&mut self, now: Instant) -> bool {
        if self.left(now) < RETRY {
            return false;
        }
        let mut owed = RETRY;
        for left in self.deposits.oldest_first().chain([&mut self.floor.left]) {
            let paid = owed.min(*left);
            *left -= paid;
            owed -= paid;
        }
        true
    }

    /// What is left, in millionths of a retry.
    fn left(&mut self, now: Instant) -> u64 {
        self.deposits.advance(self.ticks.of(now), drop);
        self.floor.refill(now);
        self.deposits.oldest_first().map(|left| *left).sum::<u64>() + self.floor.left
    }
}

impl Floor {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let earned = u128::from(self.per_second) * passed.as_nanos() / NANOS;
        // Time that earned no whole unit is kept for the next time: who asks often would else never see it.
        if earned > 0 {
            let left = u128::from(self.left) + earned;
            self.left = left.min(u128::from(self.burst)) as u64;
            let paid_for = (earned * NANOS).div_ceil(u128::from(self.per_second));
            self.filled += Duration::from_nanos(paid_for as u64);
        }
    }
}

const NANOS: u128 = 1_000_000_000;

/// The settings of a budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) ratio: f64,
    pub(crate) window: Duration,
    pub(crate) per_second: f64,
    pub(crate) burst: u32,
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ring::BUCKETS,
        testing::{at, start},
    };

    const RULES: Rules = Rules {
        ratio: 0.1,
        window: Duration::from_secs(10),
        per_second: 1.0,
        burst: 5,
    };

    /// Spends all there is.
    fn drain(balance: &mut Balance, now: Instant) -> u32 {
        (0..10_000).take_while(|_| balance.withdraw(now)).count() as u32
    }

    #[test]
    fn without_a_floor_nothing_but_successes_pays() {
        let rules = Rules {
            per_second: 0.0,
            burst: 0,
            ..RULES
        };
        let start = start();
        let mut balance = Balance::new(rules, start);
        assert!(!balance.withdraw(at(start, 1.0)));
        balance.earn(10, 1);
        assert_eq!(drain(&mut balance, at(start, 1.0)), 1);
    }

    #[test]
    fn ten_successes_pay_for_one_retry() {
        let start = start();
        let mut balance = Balance::new(RULES, start);
        balance.earn(19, 0);
        assert_eq!(drain(&mut balance, start), 6, "5 of the floor and 1 of 1.9");
    }

    #[test]
    fn deposits_expire_and_the_floor_refills() {
        let start = start();
        let mut balance = Balance::new(RULES, start);
        balance.earn(1_000, 0);
        assert_eq!(
            drain(&mut balance, at(start, 10.0)),
            5,
            "100 deposits are too old"
        );
        assert_eq!(drain(&mut balance, at(start, 12.5)), 2, "2.5 seconds later");
        assert_eq!(drain(&mut balance, at(start, 13.0)), 1, "the half was kept");
        assert_eq!(
            drain(&mut balance, at(start, 99.0)),
            5,
            "no more than the burst"
        );
    }

    #[test]
    fn a_small_ratio_is_not_rounded_to_nothing_nor_up() {
        let start = start();
        let rules = Rules {
            ratio: 0.000_01,
            burst: 0,
            ..RULES
        };
        let mut balance = Balance::new(rules, start);
        balance.earn(99_999, 0);
        assert_eq!(drain(&mut balance, start), 0);
        balance.earn(1, 0);
        assert_eq!(drain(&mut balance, start), 1);
    }

    #[test]
    fn a_slow_floor_refills_however_often_it_is_asked() {
        let start = start();
        let rules = Rules {
            per_second: 0.001,
            burst: 1,
            ..RULES
        };
        let mut balance = Balance::new(rules, start);
        assert_eq!(drain(&mut balance, start), 1);
        // Each 1.9 ms earn 1.9 units.
        let asked = (1..=540_000).map(|n| start + n * Duration::from_micros(1_900));
        assert_eq!(asked.filter(|now| balance.withdraw(*now)).count(), 1);
    }

    /// Tokens in a list, each with its birth and what is left of it; the floor is a number.
    struct Model {
        tokens: Vec<(u64, f64)>,
        floor: f64,
        filled: f64,
    }

    impl Model {
        fn withdraw(&mut self, seconds: f64) -> bool {
            let tick = seconds as u64;
            self.tokens.retain(|(born, _)| tick - born < BUCKETS as u64);
            self.floor = (self.floor + seconds - self.filled).min(5.0);
            self.filled = seconds;
            let left = self.tokens.iter().map(|(_, left)| left).sum::<f64>() + self.floor;
            if left < 1.0 - 1e-4 {
                return false;
            }
            let mut owed: f64 = 1.0;
            for (_, left) in &mut self.tokens {
                let paid = owed.min(*left);
                *left -= paid;
                owed -= paid;
            }
            self.floor -= owed;
            true
        }
    }

    proptest! {
        #[test]
        fn it_equals_a_list_of_tokens_that_expire(steps in prop::collection::vec((0..40_u64, 0..30_u64, 0..4_u8), 1..200)) {
            let start = start();
            let mut balance = Balance::new(RULES, start);
            let mut model = Model { tokens: Vec::new(), floor: 5.0, filled: 0.0 };
            let mut quarters = 0;
            for (forward, successes, withdrawals) in steps {
                quarters += forward / 8;
                let seconds = quarters as f64 / 4.0;
                balance.earn(successes, seconds as u64);
                model.tokens.push((seconds as u64, successes as f64 * 0.1));
                for _ in 0..withdrawals {
                    prop_assert_eq!(balance.withdraw(at(start, seconds)), model.withdraw(seconds), "at {} s", seconds);
                }
            }
        }
    }
}
