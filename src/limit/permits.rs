//! Free permits, in shards: threads take and give them without a common cache line.
//!
//! Invariants:
//! 1. A permit is in one shard, or given: it is taken once and comes back once, to the shard of whoever gives it back.
//! 2. All shards are open, or all are closed; that changes under the owner's lock only, and whoever has the lock sees them all alike.
//! 3. While they are closed, no permit is free, none is taken, and none is given back: the owner hands it on.
//! 4. Permits move from one shard to another under the lock only.

use crate::{
    shard,
    sync::{AtomicUsize, Ordering},
};

pub(super) struct Permits {
    shards: Box<[Shard]>,
}

/// Padded to two cache lines, because pairs of lines are fetched together.
#[repr(align(128))]
struct Shard {
    // Free permits times two, plus the bit.
    word: AtomicUsize,
}

const CLOSED: usize = 1;
const PERMIT: usize = 2;

/// A limit is worth being cut up where each shard gets so many: below that, threads would mostly look for permits elsewhere.
const WORTH_IT: usize = 8;

impl Permits {
    /// So many free ones, in as many shards as that number is worth here.
    pub(super) fn new(permits: usize) -> Self {
        let shards = shard::shards();
        let worth = permits >= WORTH_IT * shards;
        Self::in_shards(permits, if worth { shards } else { 1 })
    }

    /// `shards` is a power of two.
    pub(super) fn in_shards(permits: usize, shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        let shard = |index| {
            let share = permits / shards + usize::from(index < permits % shards);
            Shard {
                word: AtomicUsize::new(share * PERMIT),
            }
        };
        Self {
            shards: (0..shards).map(shard).collect(),
        }
    }

    /// Takes one out of this thread's shard.
    #[inline]
    pub(super) fn take(&self) -> bool {
        self.mine().take(|_| 1) == 1
    }

    /// Takes one, wherever it is. Under the owner's lock.
    #[cold]
    pub(super) fn take_any(&self) -> bool {
        if self.take() {
            return true;
        }
        for shard in &self.shards {
            // Half of them come along: this thread will need more.
            let taken = shard.take(|free| free.div_ceil(2));
            if taken > 0 {
                self.mine().add(taken - 1);
                return true;
            }
        }
        false
    }

    /// Gives one back; `false` where they are closed: the owner has to hand it on.
    #[inline]
    pub(super) fn give(&self) -> bool {
        let word = &self.mine().word;
        let mut seen = word.load(Ordering::Relaxed);
        while seen & CLOSED == 0 {
            // Release pairs with the acquire in `take`: what was done under the permit is seen by the next.
            match word.compare_exchange_weak(
                seen,
                seen + PERMIT,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(newer) => seen = newer,
            }
        }
        false
    }

    /// Closes them all; `false`: a permit was free, is taken, and all stay open. Under the owner's lock.
    pub(super) fn close(&self) -> bool {
        for shard in &self.shards {
            // Where a permit came back meanwhile, it is in the word or finds the bit.
            while !shard.close() {
                if shard.take(|_| 1) == 1 {
                    self.open();
                    return false;
                }
            }
        }
        true
    }

    /// Opens them all. Under the owner's lock.
    pub(super) fn open(&self) {
        for shard in &self.shards {
            shard.word.fetch_and(!CLOSED, Ordering::Relaxed);
        }
    }

    /// Gives one back to the open shards. Under the owner's lock.
    pub(super) fn put(&self) {
        self.mine().add(1);
    }

    /// Whether this thread's shard has none: a hint that they are scarce.
    #[inline]
    pub(super) fn are_scarce(&self) -> bool {
        self.mine().word.load(Ordering::Relaxed) < PERMIT
    }

    /// How many are free, or nearly so where others take and give meanwhile.
    pub(super) fn free(&self) -> usize {
        let words = self.shards.iter().map(|shard| &shard.word);
        words
            .map(|word| word.load(Ordering::Relaxed) / PERMIT)
            .sum()
    }

    #[inline]
    fn mine(&self) -> &Shard {
        shard::of_mine(&self.shards)
    }
}

impl Shard {
    /// Takes as many as `wanted` makes of the number of free ones, if there are any.
    #[inline]
    fn take(&self, wanted: impl Fn(usize) -> usize) -> usize {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen >= PERMIT {
            let taken = wanted(seen / PERMIT);
            match self.word.compare_exchange_weak(
                seen,
                seen - taken * PERMIT,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return taken,
                Err(newer) => seen = newer,
            }
        }
        0
    }

    fn add(&self, permits: usize) {
        self.word.fetch_add(permits * PERMIT, Ordering::Release);
    }

    /// Closes it; `false` where a permit is free.
    fn close(&self) -> bool {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen < PERMIT {
            match self.word.compare_exchange_weak(
                seen,
                CLOSED,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(newer) => seen = newer,
            }
        }
        false
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    /// How many this thread gets out of its own shard until it is empty.
    fn take_all(permits: &Permits) -> usize {
        (0..100).take_while(|_| permits.take()).count()
    }

    #[test]
    fn a_limit_is_cut_up_where_each_shard_gets_eight() {
        let shards = shard::shards();
        assert_eq!(Permits::new(8 * shards).shards.len(), shards);
        assert_eq!(Permits::new(8 * shards - 1).shards.len(), 1);
    }

    #[test]
    fn shards_share_evenly_and_the_first_ones_get_the_rest() {
        let permits = Permits::in_shards(11, 4);
        assert_eq!(permits.free(), 11);
        let taken = [0, 1, 2, 3].map(|shard| {
            shard::set_mine(shard);
            take_all(&permits)
        });
        assert_eq!(taken, [3, 3, 3, 2]);
        assert_eq!(permits.free(), 0);
    }

    #[test]
    fn a_thread_whose_shard_is_empty_moves_half_of_anothers_there() {
        let permits = Permits::in_shards(18, 2);
        shard::set_mine(0);
        assert_eq!(take_all(&permits), 9);
        assert!(permits.take_any());
        assert_eq!(permits.free(), 8);
        assert_eq!(take_all(&permits), 4, "five of nine, and one is taken");
        shard::set_mine(1);
        assert_eq!(take_all(&permits), 4);
        assert!(!permits.take_any());
    }

    #[test]
    fn what_is_given_back_lies_in_the_shard_of_whoever_gives_it() {
        let permits = Permits::in_shards(2, 2);
        shard::set_mine(0);
        assert!(permits.take());
        shard::set_mine(1);
        assert!(permits.give());
        permits.put();
        assert_eq!(take_all(&permits), 3);
        shard::set_mine(0);
        assert!(permits.are_scarce());
    }

    #[test]
    fn one_free_permit_is_not_scarce_and_a_closed_shard_is() {
        let permits = Permits::in_shards(1, 1);
        assert!(!permits.are_scarce());
        assert!(permits.take());
        assert!(permits.are_scarce());
        assert!(permits.close());
        assert!(permits.are_scarce());
    }

    #[test]
    fn closed_shards_give_and_take_nothing_until_they_are_open() {
        let permits = Permits::in_shards(2, 2);
        assert!(permits.take_any() && permits.take_any());
        assert!(permits.close());
        for shard in [0, 1] {
            shard::set_mine(shard);
            assert!(!permits.give(), "the owner has to hand it on");
            assert!(!permits.take() && !permits.take_any());
        }
        assert_eq!(permits.free(), 0);
        permits.open();
        for shard in [0, 1] {
            shard::set_mine(shard);
            assert!(permits.give());
        }
        assert_eq!(permits.free(), 2);
    }

    #[test]
    fn to_close_takes_a_permit_that_is_free_and_leaves_all_open() {
        let permits = Permits::in_shards(3, 2);
        shard::set_mine(0);
        assert_eq!(take_all(&permits), 2);
        // The first shard is closed when the last permit of all is found.
        assert!(!permits.close());
        assert_eq!(permits.free(), 0);
        assert!(permits.give());
        assert_eq!(permits.free(), 1);
    }

    #[test]
    fn to_open_loses_no_permit() {
        let permits = Permits::in_shards(5, 1);
        permits.open();
        assert_eq!(permits.free(), 5);
    }
}
