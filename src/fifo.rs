//! A queue in order of arrival from whose middle anybody can leave: push, pop and leave in constant time.
//!
//! Invariants:
//! 1. A key names the value that it was given for, until that is removed; a key of a removed value names nothing.
//! 2. `len` counts the values in line; one that was popped is out of line but is still there under its key.

/// Names a value in a [`Fifo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: usize,
    generation: u64,
}

pub(crate) struct Fifo<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<usize>,
    first: Option<usize>,
    last: Option<usize>,
    len: usize,
    generation: u64,
}

struct Slot<T> {
    generation: u64,
    value: Option<T>,
    in_line: bool,
    before: Option<usize>,
    behind: Option<usize>,
}

impl<T> Fifo<T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            first: None,
            last: None,
            len: 0,
            generation: 0,
        }
    }

    /// Puts `value` at the end of the line.
    pub(crate) fn push(&mut self, value: T) -> Key {
        self.generation += 1;
        let slot = Slot {
            generation: self.generation,
            value: Some(value),
            in_line: true,
            before: self.last,
            behind: None,
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        match self.last {
            Some(last) => self.slots[last].behind = Some(index),
            None => self.first = Some(index),
        }
        self.last = Some(index);
        self.len += 1;
        Key {
            index,
            generation: self.generation,
        }
    }

    /// Takes the first out of line; its value stays until it is removed.
    pub(crate) fn pop(&mut self) -> Option<&mut T> {
        let index = self.first?;
        self.unlink(index);
        self.slots[index].value.as_mut()
    }

    /// Takes the value away, in line or not.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get(key.index)?;
        if slot.generation != key.generation || slot.value.is_none() {
            return None;
        }
        if slot.in_line {
            self.unlink(key.index);
        }
        self.vacant.push(key.index);
        self.slots[key.index].value.take()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.value.as_mut()
    }

    /// Every value that is in line, in no particular order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let in_line = self.slots.iter_mut().filter(|slot| slot.in_line);
        in_line.filter_map(|slot| slot.value.as_mut())
    }

    /// How many are in line.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn unlink(&mut self, index: usize) {
        let Slot { before, behind, .. } = self.slots[index];
        match before {
            Some(before) => self.slots[before].behind = behind,
            None => self.first = behind,
        }
        match behind {
            Some(behind) => self.slots[behind].before = before,
            None => self.last = before,
        }
        self.slots[index].in_line = false;
        self.len -= 1;
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_of_a_removed_value_does_not_name_whoever_has_its_place_now() {
        let mut fifo = Fifo::new();
        let gone = fifo.push("gone");
        fifo.remove(gone);
        let here = fifo.push("here");
        assert_eq!(gone.index, here.index, "the place is used again");
        assert_eq!(fifo.get_mut(gone), None);
        assert_eq!(fifo.remove(gone), None);
        assert_eq!(fifo.get_mut(here), Some(&mut "here"));
    }

    proptest! {
        #[test]
        fn it_is_a_list_from_whose_middle_one_can_leave(steps in prop::collection::vec((0..4_u8, 0..64_usize), 1..200)) {
            let mut fifo = Fifo::new();
            let mut keys: Vec<(Key, usize)> = Vec::new();
            let mut line = VecDeque::new();
            for (value, (step, pick)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        keys.push((fifo.push(value), value));
                        line.push_back(value);
                    }
                    2 => prop_assert_eq!(fifo.pop().copied(), line.pop_front()),
                    _ if keys.is_empty() => {}
                    _ => {
                        let (key, value) = keys.swap_remove(pick % keys.len());
                        prop_assert_eq!(fifo.remove(key), Some(value));
                        prop_assert_eq!(fifo.remove(key), None);
                        line.retain(|waiting| *waiting != value);
                    }
                }
                prop_assert_eq!(fifo.len(), line.len());
                for (key, value) in &keys {
                    prop_assert_eq!(fifo.get_mut(*key).copied(), Some(*value));
                }
            }
            let mut waiting: Vec<usize> = fifo.iter_mut().map(|value| *value).collect();
            waiting.sort_unstable();
            prop_assert_eq!(waiting, line.into_iter().collect::<Vec<_>>());
        }
    }
}
