//! The handle to a [`Balance`] that many callers share.

use std::{fmt, sync::Arc, time::Duration, time::Instant};

use super::balance::{Balance, Rules};
use crate::{
    error::ConfigError,
    ring::Ticks,
    shard::{self, Tally},
    sync::{Mutex, lock},
    time,
};

/// How many retries a dependency can bear; a handle whose clones share one balance.
///
/// Each success of the last three seconds pays for a tenth of a retry. Besides, one retry a second is free, and up to five of those
/// can be saved. Share one budget among all retries of one dependency.
///
/// ```
/// use steadfast::retry::{Budget, Retry};
///
/// let budget = Budget::builder().ratio(0.2).build()?;
/// let reads = Retry::builder().budget(&budget).idempotent(true).build()?;
/// let writes = Retry::builder().budget(&budget).build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

/// Invariant: every success of the window is in the tally or in the balance, in one of them only.
struct Shared {
    tally: Tally,
    balance: Mutex<Balance>,
    ticks: Ticks,
}

impl Budget {
    /// A budget with the defaults of the [module](super).
    pub fn builder() -> BudgetBuilder {
        BudgetBuilder {
            rules: Rules {
                ratio: 0.1,
                window: Duration::from_secs(3),
                per_second: 1.0,
                burst: 5,
            },
        }
    }

    /// Pays in for one success.
    ///
    /// Retries do so by themselves; this is for other traffic of the same dependency that they should live on.
    #[inline]
    pub fn deposit(&self) {
        let shared = &*self.shared;
        shared.tally.count(
            EPOCH,
            || shared.ticks.of(time::now()),
            |shard, tick, more| {
                let mut balance = lock(&shared.balance);
                let (then, counted) = shared.tally.roll(shard, EPOCH, tick);
                balance.earn(counted + more, then);
            },
        );
    }

    /// Takes out one retry; `false` where the balance is too low.
    ///
    /// For hedges and retries of your own that should share the budget.
    #[must_use = "without the budget's consent there is no retry"]
    pub fn withdraw(&self) -> bool {
        self.withdraw_at(time::now())
    }

    pub(crate) fn withdraw_at(&self, now: Instant) -> bool {
        let shared = &*self.shared;
        let mut balance = lock(&shared.balance);
        shared
            .tally
            .collect(EPOCH, shared.ticks.of(now), |then, counted| {
                balance.earn(counted, then);
            });
        balance.withdraw(now)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::builder().build().expect("the defaults are in range")
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").finish_non_exhaustive()
    }
}

/// The settings of a [`Budget`]; their defaults stand in the [module](super).
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BudgetBuilder {
    rules: Rules,
}

impl BudgetBuilder {
    /// The share of a retry that one success pays for.
    ///
    /// At least a millionth, at most 1.
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.rules.ratio = ratio;
        self
    }

    /// How long a success pays.
    pub fn window(mut self, window: Duration) -> Self {
        self.rules.window = window;
        self
    }

    /// The number of retries a second that need no success.
    ///
    /// Up to `burst` of them can be saved.
    pub fn floor(mut self, per_second: f64, burst: u32) -> Self {
        self.rules.per_second = per_second;
        self.rules.burst = burst;
        self
    }

    /// The budget, with its floor full.
    ///
    /// # Errors
    /// Where a setting is out of range; the error names it, its value and the range.
    pub fn build(self) -> Result<Budget, ConfigError> {
        const PART: &str = "budget";
        let rules = self.rules;
        if !(LEAST_RATIO..=1.0).contains(&rules.ratio) {
            let allowed = format!("at least {LEAST_RATIO} and at most 1");
            return Err(ConfigError::new(PART, "ratio", rules.ratio, allowed));
        }
        ConfigError::check_time(PART, "window", rules.window, Duration::from_millis(10))?;
        if !(0.0..=1e6).contains(&rules.per_second) {
            let allowed = "at least 0 and at most 1000000 per second";
            return Err(ConfigError::new(PART, "floor", rules.per_second, allowed));
        }
        // A floor of which nothing can be saved is none.
        let least = usize::from(rules.per_second > 0.0);
        ConfigError::check_count(PART, "floor burst", rules.burst as usize, least, 1_000_000)?;
        let now = time::now();
        let shared = Shared {
            tally: Tally::new(shard::shards(), EPOCH),
            balance: Mutex::new(Balance::new(rules, now)),
            ticks: Ticks::new(rules.window, now),
        };
        Ok(Budget {
            shared: Arc::new(shared),
        })
    }
}

/// Balances are counted in millionths of a retry.
const LEAST_RATIO: f64 = 0.000_001;

/// A budget has one epoch only.
const EPOCH: u64 = 0;

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::at;

    /// Spends all there is.
    fn drain(budget: &Budget, now: Instant) -> u64 {
        (0..).take_while(|_| budget.withdraw_at(now)).count() as u64
    }

    #[test]
    fn threads_that_pay_in_and_take_out_lose_nothing_and_make_nothing_up() {
        const DEPOSITS: u64 = 40_000;
        // No deposit expires while the test runs, and nothing refills.
        let window = Duration::from_secs(3_600);
        let builder = Budget::builder().window(window).floor(0.0, 5);
        let budget = builder.build().unwrap();
        let withdrawn: u64 = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let deposit = |_: &u64| budget.deposit();
                        let take = |n: u64| u64::from(n.is_multiple_of(7) && budget.withdraw());
                        (0..DEPOSITS).inspect(deposit).map(take).sum::<u64>()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!(withdrawn > 0, "some were taken out meanwhile");
        let left = drain(&budget, time::now());
        assert_eq!(withdrawn + left, 4 * DEPOSITS / 10 + 5);
    }

    #[test]
    fn what_can_not_be_used_is_refused_with_its_name_and_range() {
        let builder = Budget::builder;
        for (builder, message) in [
            (
                builder().ratio(0.0),
                "ratio is 0.0, but must be at least 0.000001 and at most 1",
            ),
            (
                builder().ratio(1.1),
                "ratio is 1.1, but must be at least 0.000001 and at most 1",
            ),
            (
                builder().window(Duration::from_millis(9)),
                "window is 9ms, but must be at least 10ms and at most 365 days",
            ),
            (
                builder().floor(-1.0, 5),
                "floor is -1.0, but must be at least 0 and at most 1000000 per second",
            ),
            (
                builder().floor(1.0, 0),
                "floor burst is 0, but must be at least 1 and at most 1000000",
            ),
        ] {
            let error = builder.build().expect_err(message);
            assert_eq!(error.to_string(), format!("budget: {message}"));
        }
        assert!(builder().floor(0.0, 0).build().is_ok(), "without a floor");
    }

    #[test]
    fn a_success_that_its_shard_has_no_room_for_pays_all_the_same() {
        let window = Duration::from_secs(3_600);
        let builder = Budget::builder().ratio(1.0).window(window);
        let budget = builder.floor(0.0, 0).build().unwrap();
        // Nobody rolls the shard, as if all others were about to.
        for _ in 0..u16::MAX {
            budget.shared.tally.count(EPOCH, || 0, |_, _, _| {});
        }
        budget.deposit();
        assert_eq!(drain(&budget, time::now()), u64::from(u16::MAX) + 1);
    }

    #[test]
    fn it_is_shown_without_what_changes() {
        assert_eq!(format!("{:?}", Budget::default()), "Budget { .. }");
    }

    proptest! {
        #[test]
        fn what_is_taken_out_was_paid_in_or_refilled(
            ratio in 1..=100_u32, per_second in 0..5_u32, burst in 0..9_u32,
            steps in prop::collection::vec((0..200_u32, 0..30_u32, 0..30_u32), 1..60),
        ) {
            let (ratio, burst) = (f64::from(ratio) / 100.0, burst.max(per_second.min(1)));
            let builder = Budget::builder().ratio(ratio).floor(f64::from(per_second), burst);
            let budget = builder.build().unwrap();
            let start = time::now();
            let (mut now, mut paid_in, mut taken) = (0.0, 0, 0);
            for (deposits, withdrawals, tenths) in steps {
                for _ in 0..deposits {
                    budget.deposit();
                }
                paid_in += deposits;
                for _ in 0..withdrawals {
                    taken += u32::from(budget.withdraw_at(at(start, now)));
                }
                // The budget was made a moment before `start`.
                let refilled = f64::from(per_second) * (now + 1.0);
                let most = ratio * f64::from(paid_in) + refilled + f64::from(burst);
                prop_assert!(f64::from(taken) <= most + 1e-6, "{taken} of {most}");
                now += f64::from(tenths) / 10.0;
            }
        }
    }
}
