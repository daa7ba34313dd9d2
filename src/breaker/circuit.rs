//! The circuit itself: which calls may pass, and what their results change. Time and chance are passed in.
//!
//! ```text
//!            too many bad calls                    open time over, somebody calls
//!  Closed ───────────────────────► Open ───────────────────────────────► HalfOpen
//!    ▲                              ▲                                        │
//!    │   enough good probes         └── a probe failed, or its slot expired ─┤
//!    └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! 1. A ticket is worth something in its own epoch only; each change of state begins a new one.
//! 2. Unexpired slots ≤ probes. A slot is freed by its own ticket, at most once.
//! 3. An expired slot is a failed probe at the moment of its expiry, whenever that is noticed.
//! 4. Open time grows only by failed probe rounds in a row; closing forgets them.

use std::{
    collections::VecDeque,
    num::{NonZeroU32, NonZeroU64},
    time::{Duration, Instant},
};

use super::window::{Counts, Window};
use crate::{
    event::{Cause, State},
    ring::Ticks,
    stamp::Stamp,
};

/// When a circuit opens and how it closes again.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) failure_rate: Option<f64>,
    pub(crate) minimum_calls: u32,
    pub(crate) window: Duration,
    pub(crate) consecutive: Option<NonZeroU32>,
    pub(crate) slow: Option<Slow>,
    pub(crate) open_for: Duration,
    pub(crate) max_open_for: Duration,
    pub(crate) probes: u32,
    pub(crate) required_successes: u32,
}

/// When a call is slow, and how many of them open the circuit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    pub(crate) after: Duration,
    pub(crate) rate: f64,
}

/// The right to make one call, as plain data: what the circuit wants to see again with the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) epoch: u64,
    slot: Option<NonZeroU64>,
}

impl Ticket {
    /// For a call that passes though nothing is to be learnt from it.
    pub(crate) const STRAY: Self = Self {
        epoch: u64::MAX,
        slot: None,
    };

    /// For a call through the closed circuit of `epoch`.
    pub(crate) fn closed(epoch: u64) -> Self {
        Self { epoch, slot: None }
    }

    pub(crate) fn is_probe(&self) -> bool {
        self.slot.is_some()
    }
}

/// What a result says about the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing: the slot is freed, nothing is counted.
    Neutral,
    /// It answered.
    Counted {
        bad: bool,
        slow: bool,
        /// The dependency asked not to be called again before this much time has passed.
        retry_after: Option<Duration>,
    },
}

/// A change of state, to be told outside the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) cause: Cause,
}

pub(crate) struct Circuit {
    rules: Rules,
    ticks: Ticks,
    phase: Phase,
    forced: Option<Forced>,
    epoch: u64,
    window: Window,
    in_a_row: u32,
    failed_rounds: u32,
    next_slot: NonZeroU64,
    changes: VecDeque<Change>,
}

enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { slots: Vec<Slot>, successes: u32 },
}

struct Slot {
    id: NonZeroU64,
    expires: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forced {
    Open,
    Closed,
    /// Judges, changes its state and reports, but lets every call pass.
    ObserveOnly,
}

impl Circuit {
    pub(crate) fn new(rules: Rules, ticks: Ticks) -> Self {
        Self {
            rules,
            ticks,
            phase: Phase::Closed,
            forced: None,
            epoch: 1,
            window: Window::default(),
            in_a_row: 0,
            failed_rounds: 0,
            next_slot: NonZeroU64::MIN,
            changes: VecDeque::new(),
        }
    }

    /// Lets a call pass, or says when it makes sense to ask again.
    ///
    /// A probe's slot expires `slot_life` from `now`. `random` is a word of chance.
    pub(crate) fn admit(
        &mut self,
        slot_life: Duration,
        random: u64,
        now: Instant,
    ) -> Result<Ticket, Instant> {
        match self.forced {
            Some(Forced::Open) => return Err(now + self.rules.open_for),
            Some(Forced::Closed) => return Ok(Ticket::STRAY),
            Some(Forced::ObserveOnly) | None => {}
        }
        self.expire(random, now);
        if matches!(self.phase, Phase::Open { until } if now >= until) {
            // Open -> HalfOpen: the first caller after this instant probes.
            let half_open = Phase::HalfOpen {
                slots: Vec::new(),
                successes: 0,
            };
            self.turn(half_open, Cause::OpenTimeOver);
        }
        let ask_again = match &mut self.phase {
            Phase::Closed => return Ok(Ticket::closed(self.epoch)),
            Phase::Open { until } => *until,
            Phase::HalfOpen { slots, .. } => {
                if slots.len() < self.rules.probes as usize {
                    let id = self.next_slot;
                    self.next_slot = id.saturating_add(1);
                    slots.push(Slot {
                        id,
                        expires: now + slot_life,
                    });
                    return Ok(Ticket {
                        epoch: self.epoch,
                        slot: Some(id),
                    });
                }
                // A probe that answers does so long before its slot expires.
                let expiry = earliest(slots).expect("at least one probe is allowed");
                expiry.min(now + self.rules.open_for)
            }
        };
        match self.forced {
            Some(Forced::ObserveOnly) => Ok(Ticket::STRAY),
            _ => Err(ask_again),
        }
    }

    /// Until when nobody can pass, as things are: none while it is forced open, and the past where that can't be told.
    pub(crate) fn refuses_until(&self) -> Stamp {
        match (self.forced, &self.phase) {
            (Some(Forced::Open), _) => Stamp::NONE,
            (None, Phase::Open { until }) => (*until).into(),
            _ => Stamp::PAST,
        }
    }

    /// Takes the result of the call that `ticket` was given for. One of an older epoch, or of an expired slot, changes nothing.
    pub(crate) fn settle(&mut self, ticket: Ticket, outcome: Outcome, random: u64, now: Instant) {
        self.expire(random, now);
        if ticket.epoch != self.epoch {
            return;
        }
        match &mut self.phase {
            Phase::Closed => self.record(outcome, random, now),
            Phase::Open { .. } => {}
            Phase::HalfOpen { slots, successes } => {
                let Some(slot) = slots.iter().position(|slot| Some(slot.id) == ticket.slot) else {
                    return;
                };
                slots.swap_remove(slot);
                let Outcome::Counted {
                    bad,
                    slow,
                    retry_after,
                } = outcome
                else {
                    return;
                };
                if bad || slow && self.rules.slow.is_some() {
                    // HalfOpen -> Open: a probe failed.
                    self.failed_rounds += 1;
                    self.open(Cause::ProbeFailed, retry_after, random, now);
                    return;
                }
                *successes += 1;
                if *successes >= self.rules.required_successes {
                    // HalfOpen -> Closed: enough probes succeeded.
                    self.close(Cause::ProbesSucceeded);
                }
            }
        }
    }

    /// Takes `calls` good results of `tick` that came through the closed circuit.
    pub(crate) fn good(&mut self, calls: u64, tick: u64) {
        if calls == 0 {
            return;
        }
        self.in_a_row = 0;
        let counts = Counts {
            calls,
            ..Counts::default()
        };
        self.window.record(counts, tick);
    }

    /// Holds a state until [`reset`](Self::reset).
    pub(crate) fn force(&mut self, forced: Forced) {
        let from = self.state();
        self.forced = Some(forced);
        if let Phase::HalfOpen { slots, successes } = &mut self.phase {
            // Nobody can free them any more: their tickets are of the epoch that ends here.
            slots.clear();
            *successes = 0;
        }
        self.epoch += 1;
        self.tell(from, Cause::Asked);
    }

    /// Undoes a forced state, closes the circuit and forgets everything.
    pub(crate) fn reset(&mut self) {
        let from = self.state();
        self.forced = None;
        self.phase = Phase::Closed;
        self.forget();
        self.epoch += 1;
        self.tell(from, Cause::Asked);
    }

    pub(crate) fn state(&self) -> State {
        match (self.forced, &self.phase) {
            (Some(Forced::Open), _) => State::ForcedOpen,
            (Some(Forced::Closed), _) => State::ForcedClosed,
            (_, Phase::Closed) => State::Closed,
            (_, Phase::Open { .. }) => State::Open,
            (_, Phase::HalfOpen { .. }) => State::HalfOpen,
        }
    }

    /// Whether the next call would be let through as a probe.
    #[cfg(any(feature = "sqlx", test))]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.forced.is_none() && matches!(self.phase, Phase::Open { until } if now >= until)
    }

    /// The epoch; while the circuit is closed and judges, calls pass without asking it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether calls may pass with [`Ticket::closed`] of this epoch.
    pub(crate) fn passes(&self) -> bool {
        self.state() == State::Closed
    }

    /// The first change that is not told yet.
    pub(crate) fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    fn record(&mut self, outcome: Outcome, random: u64, now: Instant) {
        let Outcome::Counted {
            bad,
            slow,
            retry_after,
        } = outcome
        else {
            return;
        };
        let tick = self.ticks.of(now);
        let counts = Counts {
            calls: 1,
            bad: bad.into(),
            slow: slow.into(),
        };
        self.window.record(counts, tick);
        self.in_a_row = if bad { self.in_a_row + 1 } else { 0 };
        if let Some(cause) = self.judge(bad, slow, tick) {
            // Closed -> Open: too many bad calls.
            self.open(cause, retry_after, random, now);
        }
    }

    /// Whether a result that speaks against the dependency is the one too many.
    fn judge(&mut self, bad: bool, slow: bool, tick: u64) -> Option<Cause> {
        let totals = self.window.totals(tick);
        let enough = totals.calls >= u64::from(self.rules.minimum_calls);
        // Divided, not multiplied: 7 / 100 is 0.07, but 0.07 * 100 is more than 7.
        let over = |count: u64, rate: f64| enough && count as f64 / totals.calls as f64 >= rate;
        let rules = &self.rules;
        if bad
            && rules
                .consecutive
                .is_some_and(|most| self.in_a_row >= most.get())
        {
            Some(Cause::Consecutive)
        } else if bad
            && rules
                .failure_rate
                .is_some_and(|rate| over(totals.bad, rate))
        {
            Some(Cause::FailureRate)
        } else if slow && rules.slow.is_some_and(|rule| over(totals.slow, rule.rate)) {
            Some(Cause::SlowRate)
        } else {
            None
        }
    }

    /// An expired slot is a failed probe: it opens the circuit as of then.
    fn expire(&mut self, random: u64, now: Instant) {
        let Phase::HalfOpen { slots, .. } = &self.phase else {
            return;
        };
        if let Some(expiry) = earliest(slots).filter(|expires| *expires <= now) {
            self.failed_rounds += 1;
            self.open(Cause::ProbeExpired, None, random, expiry);
        }
    }

    fn open(&mut self, cause: Cause, hint: Option<Duration>, random: u64, from: Instant) {
        let doubled = 2_u32.saturating_pow(self.failed_rounds);
        let longest = self.rules.max_open_for;
        let open_for = self.rules.open_for.saturating_mul(doubled).min(longest);
        // After the cap, so that many instances do not probe at once however long the outage lasts.
        let open_for = open_for.mul_f64(1.0 - JITTER * fraction(random));
        let open_for = open_for.max(hint.unwrap_or_default().min(longest));
        let until = from + open_for;
        self.turn(Phase::Open { until }, cause);
    }

    fn close(&mut self, cause: Cause) {
        self.forget();
        self.turn(Phase::Closed, cause);
    }

    fn forget(&mut self) {
        self.window = Window::default();
        self.in_a_row = 0;
        self.failed_rounds = 0;
    }

    fn turn(&mut self, phase: Phase, cause: Cause) {
        let from = self.state();
        self.phase = phase;
        self.epoch += 1;
        self.tell(from, cause);
    }

    fn tell(&mut self, from: State, cause: Cause) {
        let to = self.state();
        if from != to {
            self.changes.push_back(Change { from, to, cause });
        }
    }
}

fn earliest(slots: &[Slot]) -> Option<Instant> {
    slots.iter().map(|slot| slot.expires).min()
}

/// A number from 0 to 1, both included, from a word of chance.
fn fraction(random: u64) -> f64 {
    random as f64 / u64::MAX as f64
}

/// The open time is shortened by up to this much of itself.
const JITTER: f64 = 0.2;

#[cfg(all(test, not(steadfast_loom)))]
mod tests;
