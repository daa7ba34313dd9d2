//! Owning what many calls share, without a count that all of their threads write.
//!
//! Each thread's calls own it through a count of its shard.
//!
//! Invariants:
//! 1. What is owned lives as long as an [`Owner`] or an [`Owners`] of it.
//! 2. Who is given an owner writes one cache line, that of its thread's shard; and whoever drops it the same one.

use std::{fmt, ops::Deref, sync::Arc};

use crate::shard;

/// Lends a value, and gives out owners of it; its clones share the counts.
pub(crate) struct Owners<T> {
    value: Arc<T>,
    // As many as shards, a power of two.
    lines: Arc<[Owner<T>]>,
}

impl<T> Owners<T> {
    pub(crate) fn new(value: impl Into<Arc<T>>) -> Self {
        Self::in_shards(value.into(), shard::shards())
    }

    /// `shards` is a power of two.
    fn in_shards(value: Arc<T>, shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        let owner = |_| Owner(Arc::new(Line(value.clone())));
        Self {
            lines: (0..shards).map(owner).collect(),
            value,
        }
    }

    /// An owner for a call of this thread.
    #[inline]
    pub(crate) fn owner(&self) -> Owner<T> {
        shard::of_mine(&self.lines).clone()
    }
}

impl<T> Clone for Owners<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            lines: self.lines.clone(),
        }
    }
}

impl<T> Deref for Owners<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Owners<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Keeps a value alive, and lends it.
pub(crate) struct Owner<T>(Arc<Line<T>>);

/// Padded to two cache lines, because pairs of lines are fetched together: the count, which stands in front of it, has its own.
#[repr(align(128))]
struct Line<T>(Arc<T>);

impl<T> Clone for Owner<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Owner<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0.0
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_value_lives_as_long_as_somebody_owns_it() {
        let value = Arc::new(7);
        let watch = Arc::downgrade(&value);
        let owners = Owners::in_shards(value, 4);
        assert_eq!(format!("{owners:?} {}", *owners), "7 7");
        let (first, second) = (owners.owner(), owners.clone().owner());
        drop((owners, first));
        assert_eq!(*second, 7);
        drop(second);
        assert!(watch.upgrade().is_none());
    }

    #[test]
    fn threads_of_different_shards_count_apart() {
        let owners = Owners::in_shards(Arc::new(()), 4);
        let counts = || -> Vec<usize> {
            let count = |line: &Owner<()>| Arc::strong_count(&line.0);
            owners.lines.iter().map(count).collect()
        };
        let of_shard = |shard| {
            shard::set_mine(shard);
            owners.owner()
        };
        let held = [of_shard(1), of_shard(6), of_shard(2)];
        assert_eq!(counts(), [1, 2, 3, 1]);
        drop(held);
        assert_eq!(counts(), [1; 4]);
    }
}
