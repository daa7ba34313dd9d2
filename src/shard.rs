//! Counting successes without a shared cache line and, mostly, without the clock.
//!
//! Invariants:
//! 1. Every success is handed to the owner exactly once: by [`Tally::roll`], by [`Tally::collect`], or as
//!    [`Added::Full`].
//! 2. It is dated to its shard's last clock read, never later.
//! 3. One of another epoch is not counted.
//! 4. A shard's epoch and tick change only under the owner's lock; its count grows without it.

use std::cell::Cell;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Successes not yet handed to their owner, by shard.
pub(crate) struct Tally {
    shards: Box<[Shard]>,
}

/// Padded to two cache lines, because pairs of lines are fetched together.
#[repr(align(128))]
struct Shard {
    // Tick, epoch and count in one word, so that a count can't be dated to a tick that it does not belong to.
    word: AtomicU64,
    // The clock is read for one success in so many; a power of two.
    every: AtomicU32,
}

/// What became of a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    /// It is counted.
    Counted,
    /// It is counted, and the owner should read the clock and [`roll`](Tally::roll) the shard.
    ReadClock,
    /// It is of another epoch.
    Stale,
    /// It is not counted: the owner has to count it itself, and roll the shard.
    Full,
}

/// A shard's word, taken apart: `tick` in the upper 40 bits, then 8 of the epoch, then 16 of the count.
#[derive(Clone, Copy)]
struct Word {
    tick: u64,
    epoch: u8,
    count: u16,
}

impl Word {
    fn unpack(word: u64) -> Self {
        Self {
            tick: word >> 24,
            epoch: (word >> 16) as u8,
            count: word as u16,
        }
    }

    fn pack(self) -> u64 {
        self.tick << 24 | u64::from(self.epoch) << 16 | u64::from(self.count)
    }
}

/// The clock is read at least once for so many successes.
const RARELY: u32 = 64;

impl Tally {
    /// So many shards, a power of two, all in `epoch` and tick 0.
    pub(crate) fn new(shards: usize, epoch: u64) -> Self {
        debug_assert!(shards.is_power_of_two());
        let word = Word {
            tick: 0,
            epoch: epoch as u8,
            count: 0,
        };
        let shard = || Shard {
            word: AtomicU64::new(word.pack()),
            every: AtomicU32::new(1),
        };
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
        }
    }

    /// Counts one success of `epoch`. `tick` reads the clock; `roll(shard, tick, more)` rolls a shard under the owner's lock
    /// and counts `more` besides.
    #[inline(always)]
    pub(crate) fn count(
        &self,
        epoch: u64,
        tick: impl FnOnce() -> u64,
        roll: impl FnOnce(usize, u64, u64),
    ) {
        let mine = mine();
        let added = self.add(mine, epoch);
        if matches!(added, Added::ReadClock | Added::Full) {
            self.catch_up(mine, added, tick(), roll);
        }
    }

    /// The rest of it, where the clock had to be read.
    #[cold]
    fn catch_up(&self, shard: usize, added: Added, tick: u64, roll: impl FnOnce(usize, u64, u64)) {
        if added == Added::Full {
            roll(shard, tick, 1);
        } else if self.is_behind(shard, tick) {
            roll(shard, tick, 0);
        }
    }

    /// Counts one success of `epoch` in `shard`.
    ///
    /// Only the lowest 8 bits of the epoch are compared: the caller has seen just now that the epoch holds.
    #[inline(always)]
    fn add(&self, shard: usize, epoch: u64) -> Added {
        let shard = self.shard(shard);
        let mut seen = shard.word.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(seen);
            if word.epoch != epoch as u8 {
                return Added::Stale;
            }
            if word.count == u16::MAX {
                return Added::Full;
            }
            // Relaxed: the word is all there is; nothing else is published by it.
            match shard.word.compare_exchange_weak(
                seen,
                seen + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    let every = shard.every.load(Ordering::Relaxed);
                    let read = (u32::from(word.count) + 1) & (every - 1) == 0;
                    return if read {
                        Added::ReadClock
                    } else {
                        Added::Counted
                    };
                }
                Err(newer) => seen = newer,
            }
        }
    }

    /// Whether the clock, read just now for `shard`, says that the shard has to be rolled.
    ///
    /// Where the tick stands still, the clock is read less often.
    fn is_behind(&self, shard: usize, tick: u64) -> bool {
        let shard = self.shard(shard);
        let word = Word::unpack(shard.word.load(Ordering::Relaxed));
        let behind = word.tick < tick;
        let every = if behind {
            // Fewer successes than `RARELY` in a tick would otherwise be dated ever further back.
            1
        } else {
            (shard.every.load(Ordering::Relaxed) * 2).min(RARELY)
        };
        shard.every.store(every, Ordering::Relaxed);
        behind || word.count > u16::MAX / 2
    }

    /// Moves `shard` on to `tick` and returns what it had counted, with the tick of that. Under the owner's lock.
    pub(crate) fn roll(&self, shard: usize, epoch: u64, tick: u64) -> (u64, u64) {
        let shard = self.shard(shard);
        let before = Word::unpack(shard.word.load(Ordering::Relaxed)).tick;
        let word = Word {
            tick: tick.max(before),
            epoch: epoch as u8,
            count: 0,
        };
        let old = Word::unpack(shard.word.swap(word.pack(), Ordering::Relaxed));
        (old.tick, u64::from(old.count))
    }

    /// Rolls every shard to `tick`, handing what each had counted to `count`. Under the owner's lock.
    pub(crate) fn collect(&self, epoch: u64, tick: u64, mut count: impl FnMut(u64, u64)) {
        for shard in 0..self.shards.len() {
            let (then, counted) = self.roll(shard, epoch, tick);
            if counted > 0 {
                count(then, counted);
            }
        }
    }

    fn shard(&self, shard: usize) -> &Shard {
        &self.shards[shard & (self.shards.len() - 1)]
    }
}

/// How many shards this machine is worth.
pub(crate) fn shards() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    threads.next_power_of_two().min(MOST)
}

const MOST: usize = 64;

/// This thread's one of `shards`, whose number is a power of two.
#[inline]
pub(crate) fn of_mine<T>(shards: &[T]) -> &T {
    &shards[mine() & (shards.len() - 1)]
}

/// This thread's shard; threads take turns.
#[inline]
pub(crate) fn mine() -> usize {
    match MINE.with(Cell::get) {
        NOT_YET => choose(),
        mine => mine,
    }
}

#[cfg(not(steadfast_loom))]
#[cold]
fn choose() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mine = NEXT.fetch_add(1, Ordering::Relaxed) % NOT_YET;
    MINE.with(|cell| cell.set(mine));
    mine
}

/// Models choose for themselves.
#[cfg(steadfast_loom)]
fn choose() -> usize {
    0
}

/// Puts this thread on a shard.
#[cfg(test)]
pub(crate) fn set_mine(shard: usize) {
    MINE.with(|mine| mine.set(shard));
}

const NOT_YET: usize = usize::MAX;

#[cfg(not(steadfast_loom))]
thread_local! {
    static MINE: Cell<usize> = const { Cell::new(NOT_YET) };
}

#[cfg(steadfast_loom)]
loom::thread_local! {
    static MINE: Cell<usize> = Cell::new(NOT_YET);
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_read_for_each_success_while_they_are_rare_and_for_one_in_64_when_not() {
        let tally = Tally::new(1, 1);
        let mut reads = 0;
        for tick in 0..10 {
            assert_eq!(
                tally.add(0, 1),
                Added::ReadClock,
                "one success in tick {tick}"
            );
            if tally.is_behind(0, tick) {
                tally.roll(0, 1, tick);
            }
        }
        for _ in 0..6_400 {
            if tally.add(0, 1) == Added::ReadClock {
                reads += 1;
                tally.is_behind(0, 9);
            }
        }
        assert!((100..=110).contains(&reads), "{reads} reads");
    }

    #[test]
    fn a_full_shard_says_so_and_loses_nothing() {
        let tally = Tally::new(1, 1);
        for _ in 0..u16::MAX {
            assert_ne!(tally.add(0, 1), Added::Full);
        }
        assert_eq!(tally.add(0, 1), Added::Full);
        assert_eq!(tally.roll(0, 1, 5), (0, u64::from(u16::MAX)));
        assert_eq!(tally.add(0, 1), Added::ReadClock);
    }

    #[test]
    fn a_success_in_a_later_tick_rolls_its_shard() {
        let tally = Tally::new(1, 1);
        let mut rolled = Vec::new();
        for tick in [0, 3, 3] {
            let roll = |shard, now, more| {
                rolled.push((tally.roll(shard, 1, now), more));
            };
            tally.count(1, || tick, roll);
        }
        assert_eq!(rolled, [((0, 2), 0)], "the success of tick 3 is in it");
        assert_eq!(tally.roll(0, 1, 4), (3, 1));
    }

    #[test]
    fn a_success_that_a_full_shard_does_not_take_is_handed_to_the_owner() {
        let tally = Tally::new(1, 1);
        while tally.add(0, 1) != Added::Full {}
        let mut rolled = Vec::new();
        tally.count(1, || 7, |_, tick, more| rolled.push((tick, more)));
        assert_eq!(rolled, [(7, 1)]);
    }

    #[test]
    fn a_shard_that_is_more_than_half_full_is_rolled_although_no_time_has_passed() {
        let tally = Tally::new(1, 1);
        for (more, behind) in [(u16::MAX / 2, false), (1, true), (1, true)] {
            for _ in 0..more {
                tally.add(0, 1);
            }
            assert_eq!(tally.is_behind(0, 0), behind);
        }
    }

    #[test]
    fn every_shard_is_collected_and_any_number_names_one() {
        let tally = Tally::new(4, 1);
        for (shard, successes) in [(0, 1), (1, 2), (2, 3), (4, 10), (7, 20)] {
            for _ in 0..successes {
                tally.add(shard, 1);
            }
        }
        let mut counts = Vec::new();
        tally.collect(1, 1, |_, counted| counts.push(counted));
        assert_eq!(counts, [11, 2, 3, 20]);
    }

    #[test]
    fn a_machine_is_worth_a_shard_for_each_of_its_threads() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(shards().is_power_of_two());
        assert!(shards() >= threads.min(MOST) && shards() <= MOST);
    }

    #[test]
    fn threads_have_different_shards_and_keep_them() {
        let threads = [(); 3].map(|()| std::thread::spawn(|| (mine(), mine())));
        let mut seen = threads.map(|thread| thread.join().unwrap());
        assert!(seen.iter().all(|(first, again)| first == again), "{seen:?}");
        seen.sort_unstable();
        assert!(seen[0] < seen[1] && seen[1] < seen[2], "{seen:?}");
    }

    #[test]
    fn a_shard_does_not_move_back_in_time() {
        let tally = Tally::new(1, 1);
        tally.roll(0, 1, 7);
        tally.add(0, 1);
        assert_eq!(tally.roll(0, 1, 5), (7, 1));
        tally.add(0, 1);
        assert_eq!(tally.roll(0, 1, 8), (7, 1));
    }

    #[test]
    fn a_success_of_another_epoch_is_not_counted() {
        let tally = Tally::new(2, 4);
        assert_eq!(tally.add(1, 3), Added::Stale);
        tally.collect(5, 0, |_, _| panic!("nothing was counted"));
        assert_eq!(tally.add(1, 5), Added::ReadClock);
    }
}

#[cfg(all(test, steadfast_loom))]
mod model {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::sync::{Mutex, lock};

    #[test]
    fn every_success_is_handed_over_once_and_none_across_epochs() {
        let mut builder = loom::model::Builder::new();
        // All interleavings take minutes.
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let tally = Arc::new(Tally::new(1, 1));
            // Handed over of epoch 1 and 2, and the epoch that holds.
            let owner = Arc::new(Mutex::new(([0; 2], 1)));
            let adders: Vec<_> = [1_u64, 2]
                .into_iter()
                .map(|epoch| {
                    let tally = tally.clone();
                    thread::spawn(move || u64::from(tally.add(0, epoch) != Added::Stale))
                })
                .collect();
            let roller = {
                let (tally, owner) = (tally.clone(), owner.clone());
                thread::spawn(move || {
                    let (handed, epoch) = &mut *lock(&owner);
                    handed[*epoch as usize - 1] += tally.roll(0, *epoch, 1).1;
                })
            };
            {
                let (handed, epoch) = &mut *lock(&owner);
                tally.collect(2, 2, |_, counted| handed[0] += counted);
                *epoch = 2;
            }
            let added: Vec<u64> = adders.into_iter().map(|t| t.join().unwrap()).collect();
            roller.join().unwrap();
            let (handed, _) = &mut *lock(&owner);
            tally.collect(3, 3, |_, counted| handed[1] += counted);
            assert_eq!(handed[..], added[..]);
        });
    }
}
