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
        let delay = delay.max(retry_after.unwrap_or_default().min(self.max_hint));
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
