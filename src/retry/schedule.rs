//! Whether there is a next attempt, and when. Time, chance and the budget are passed in.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::{
    event::GaveUp,
    kind::{Kind, Verdict},
};

/// What is done after a failure of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// As many attempts in all, the first one included.
    pub(crate) attempts: u32,
    pub(crate) backoff: Backoff,
    /// Whether the retry draws on the budget.
    pub(crate) charged: bool,
}

/// The plans by kind.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) plans: [Option<Plan>; Kind::ALL.len()],
    pub(crate) idempotent: bool,
    pub(crate) max_hint: Duration,
}

/// The attempt that just failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// Its number; the first is 1.
    pub(crate) attempt: u32,
    pub(crate) verdict: Verdict,
    /// The delay before it.
    pub(crate) previous: Duration,
}

/// What follows a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another attempt after this delay.
    Retry(Duration),
    /// It could have been repeated, but is not.
    GiveUp(GaveUp),
    /// Nothing of its kind is repeated.
    Done,
}

impl Schedule {
    /// What follows `failed`. `withdraw` is asked last, once, and only for what is charged.
    pub(crate) fn next(
        &self,
        failed: Failed,
        deadline: Option<Instant>,
        withdraw: impl FnOnce() -> bool,
        random: u64,
        now: Instant,
    ) -> Next {
        let Verdict { kind, retry_after } = failed.verdict;
        let Some(plan) = self.plan(kind) else {
            return Next::Done;
        };
        if failed.attempt >= plan.attempts {
            return Next::GiveUp(GaveUp::Attempts);
        }
        let delay = plan.backoff.delay(failed.attempt, failed.previous, random);
        // On top of it: the hint is the same for everybody, and chance has to spread the crowd that waits for it.
        let delay = delay + retry_after.unwrap_or_default().min(self.max_hint);
        if deadline.is_some_and(|deadline| now + delay >= deadline) {
            return Next::GiveUp(GaveUp::Deadline);
        }
        if plan.charged && !withdraw() {
            return Next::GiveUp(GaveUp::Budget);
        }
        Next::Retry(delay)
    }

    /// The most attempts that any call can make.
    pub(crate) fn most_attempts(&self) -> u32 {
        let plans = Kind::ALL.into_iter().filter_map(|kind| self.plan(kind));
        plans.map(|plan| plan.attempts).max().unwrap_or(1)
    }

    fn plan(&self, kind: Kind) -> Option<&Plan> {
        if kind == Kind::Ambiguous && !self.idempotent {
            return None;
        }
        self.plans[kind as usize].as_ref()
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::{retry::backoff::Jitter, testing::start};

    const MS: Duration = Duration::from_millis(1);

    /// What follows attempt 1 of kind `kind`, with `budget` left and this much time; and how often the budget was asked.
    fn after_first(schedule: &Schedule, kind: Kind, left: Duration, budget: bool) -> (Next, u32) {
        let now = start();
        let asked = Cell::new(0);
        let withdraw = || {
            asked.set(asked.get() + 1);
            budget
        };
        let failed = Failed {
            attempt: 1,
            verdict: kind.into(),
            previous: Duration::ZERO,
        };
        let next = schedule.next(failed, Some(now + left), withdraw, 0, now);
        (next, asked.get())
    }

    /// Every kind is repeated `attempts` times after 100 ms, conflicts off the budget.
    fn schedule(attempts: u32, idempotent: bool) -> Schedule {
        let plan = |kind| {
            Some(Plan {
                attempts,
                backoff: Backoff::fixed(100 * MS).jitter(Jitter::None),
                charged: kind != Kind::Conflict,
            })
        };
        Schedule {
            plans: Kind::ALL.map(plan),
            idempotent,
            max_hint: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_budget_is_asked_last_and_only_for_what_is_charged() {
        let (three, one) = (schedule(3, false), schedule(1, false));
        let second = Duration::from_secs(1);
        let table = [
            (&three, Kind::Unavailable, second, Next::Retry(100 * MS), 1),
            (&three, Kind::Conflict, second, Next::Retry(100 * MS), 0),
            (
                &three,
                Kind::Unavailable,
                100 * MS,
                Next::GiveUp(GaveUp::Deadline),
                0,
            ),
            (
                &one,
                Kind::Unavailable,
                second,
                Next::GiveUp(GaveUp::Attempts),
                0,
            ),
            (&three, Kind::Ambiguous, second, Next::Done, 0),
        ];
        for (schedule, kind, left, next, asked) in table {
            let outcome = after_first(schedule, kind, left, true);
            assert_eq!(outcome, (next, asked), "{kind}, {left:?}");
        }
        let outcome = after_first(&three, Kind::Unavailable, second, false);
        assert_eq!(outcome, (Next::GiveUp(GaveUp::Budget), 1));
        let outcome = after_first(&three, Kind::Conflict, second, false);
        assert_eq!(outcome, (Next::Retry(100 * MS), 0));
    }

    #[test]
    fn the_most_attempts_are_those_of_a_plan_that_can_apply() {
        let mut schedule = schedule(3, false);
        let ambiguous = schedule.plans[Kind::Ambiguous as usize].as_mut().unwrap();
        ambiguous.attempts = 9;
        assert_eq!(schedule.most_attempts(), 3);
        schedule.idempotent = true;
        assert_eq!(schedule.most_attempts(), 9);
        schedule.plans = [None; Kind::ALL.len()];
        assert_eq!(schedule.most_attempts(), 1);
    }

    proptest! {
        #[test]
        fn no_delay_reaches_the_deadline_or_leaves_its_bounds(
            first in 0..5_000_u64, times in 1..20_u32, attempts in 1..10_u32, attempt in 1..12_u32, previous in 0..9_000_u64,
            hint in prop::option::of(0..60_000_u64), max_hint in 0..40_000_u64, left in prop::option::of(0..20_000_u64),
            kind in prop::sample::select(Kind::ALL.to_vec()), idempotent: bool, budget: bool, random: u64,
            jitter in prop::sample::select(vec![Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::None]),
        ) {
            let ms = Duration::from_millis;
            let (cap, max_hint, hint) = (ms(first) * times, ms(max_hint), hint.map(ms));
            let backoff = Backoff::exponential(ms(first), cap).jitter(jitter);
            let mut schedule = schedule(attempts, idempotent);
            schedule.max_hint = max_hint;
            for plan in schedule.plans.iter_mut().flatten() {
                plan.backoff = backoff;
            }
            let now = start();
            let deadline = left.map(|left| now + ms(left));
            let mut verdict = Verdict::from(kind);
            verdict.retry_after = hint;
            let failed = Failed { attempt, verdict, previous: ms(previous) };
            let mut asked = 0;
            let withdraw = || {
                asked += 1;
                budget
            };
            let next = schedule.next(failed, deadline, withdraw, random, now);

            let hinted = hint.unwrap_or_default().min(max_hint);
            let delay = backoff.delay(attempt, ms(previous), random) + hinted;
            let in_time = deadline.is_none_or(|deadline| now + delay < deadline);
            let charged = kind != Kind::Conflict;
            let expected = if kind == Kind::Ambiguous && !idempotent {
                Next::Done
            } else if attempt >= attempts {
                Next::GiveUp(GaveUp::Attempts)
            } else if !in_time {
                Next::GiveUp(GaveUp::Deadline)
            } else if charged && !budget {
                Next::GiveUp(GaveUp::Budget)
            } else {
                Next::Retry(delay)
            };
            prop_assert_eq!(next, expected);
            let may_ask = charged && matches!(next, Next::Retry(_) | Next::GiveUp(GaveUp::Budget));
            prop_assert_eq!(asked, u32::from(may_ask));
            if let Next::Retry(delay) = next {
                prop_assert!(delay <= cap + max_hint && delay >= hinted);
                prop_assert!(attempt < schedule.most_attempts());
            }
        }
    }
}
