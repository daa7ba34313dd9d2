//! The circuit behind a gate: while it is closed, calls pass and succeed without its lock.
//!
//! Invariants:
//! 1. `open_epoch` is the circuit's epoch while calls may pass without the lock, else 0. It changes only under the lock, after
//!    the shards were turned to the epoch.
//! 2. A success is counted once, in the epoch that its call passed in, or never if that is over.
//! 3. Whatever changes the circuit sees every success that was settled before: the shards are emptied first.
//! 4. Changes are told in their order, outside the lock: one caller at a time tells them, the others leave theirs to it.

use std::{mem, time::Instant};

use super::circuit::{Change, Circuit, Ticket};
use crate::{
    event::State,
    ring::Ticks,
    shard::Tally,
    sync::{AtomicU64, Mutex, Ordering, lock},
};

pub(crate) struct Gate {
    open_epoch: AtomicU64,
    tally: Tally,
    ticks: Ticks,
    judge: Mutex<Judge>,
}

struct Judge {
    circuit: Circuit,
    telling: bool,
}

impl Gate {
    /// `shards` is a power of two.
    pub(crate) fn new(circuit: Circuit, shards: usize, ticks: Ticks) -> Self {
        let epoch = circuit.epoch();
        Self {
            open_epoch: AtomicU64::new(epoch),
            tally: Tally::new(shards, epoch),
            ticks,
            judge: Mutex::new(Judge {
                circuit,
                telling: false,
            }),
        }
    }

    /// Lets a call pass if the circuit need not be asked.
    #[inline]
    pub(crate) fn pass(&self) -> Option<Ticket> {
        // Acquire pairs with the release in `change`: who sees an epoch sees the shards turned to it.
        match self.open_epoch.load(Ordering::Acquire) {
            0 => None,
            epoch => Some(Ticket::closed(epoch)),
        }
    }

    /// Counts a good, fast result of the call that passed with `ticket`. `now` reads the clock.
    #[inline]
    pub(crate) fn succeed(&self, ticket: Ticket, now: impl FnOnce() -> Instant) {
        let epoch = ticket.epoch;
        // The shards compare 8 bits of the epoch; this compares all of it.
        if self.open_epoch.load(Ordering::Acquire) != epoch {
            return;
        }
        self.tally.count(
            epoch,
            || self.ticks.of(now()),
            |shard, tick, more| self.roll(epoch, shard, tick, more),
        );
    }

    /// Changes the circuit; returns besides whether that began a new epoch.
    pub(crate) fn change<R>(
        &self,
        now: Instant,
        change: impl FnOnce(&mut Circuit) -> R,
    ) -> (R, bool) {
        let circuit = &mut lock(&self.judge).circuit;
        let (before, tick) = (circuit.epoch(), self.ticks.of(now));
        if circuit.passes() {
            self.tally
                .collect(before, tick, |then, calls| circuit.good(calls, then));
        }
        let result = change(circuit);
        let epoch = circuit.epoch();
        if epoch != before {
            // What came in meanwhile was of the epoch that is over.
            self.tally.collect(epoch, tick, |_, _| {});
            let open_epoch = if circuit.passes() { epoch } else { 0 };
            self.open_epoch.store(open_epoch, Ordering::Release);
        }
        (result, epoch != before)
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.judge).circuit.state()
    }

    /// Hands what changed to `tell` until nothing is left, unless somebody else is at it already.
    ///
    /// Where `tell` panics, the next caller goes on behind the change that it was told.
    pub(crate) fn tell(&self, mut tell: impl FnMut(Change)) {
        if mem::replace(&mut lock(&self.judge).telling, true) {
            return;
        }
        let mut telling = Telling {
            judge: &self.judge,
            over: false,
        };
        while let Some(change) = telling.next() {
            tell(change);
        }
    }

    /// Moves a shard on; its calls, and `more` that it had no room for, are counted.
    #[cold]
    fn roll(&self, epoch: u64, shard: usize, tick: u64, more: u64) {
        let circuit = &mut lock(&self.judge).circuit;
        if circuit.epoch() == epoch && circuit.passes() {
            let (then, calls) = self.tally.roll(shard, epoch, tick);
            circuit.good(calls + more, then);
        }
    }
}

/// The right to tell what changed.
struct Telling<'a> {
    judge: &'a Mutex<Judge>,
    over: bool,
}

impl Telling<'_> {
    fn next(&mut self) -> Option<Change> {
        let mut judge = lock(self.judge);
        let change = judge.circuit.next_change();
        // Under the same lock: who changes something after this tells it.
        self.over = change.is_none();
        judge.telling = !self.over;
        change
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if !self.over {
            lock(self.judge).telling = false;
        }
    }
}
