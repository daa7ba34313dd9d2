use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Wake,
};

use proptest::prelude::*;

use super::*;
use crate::{shard, testing::start};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A gate as a counter and a list.
struct Model {
    free: usize,
    line: VecDeque<usize>,
    // By the number of the arrival; `None` once it is gone.
    arrived: Vec<Option<Arrived>>,
}

struct Arrived {
    key: Key,
    deadline: Option<Instant>,
    turn: Turn,
    bell: Arc<Bell>,
    polled: bool,
}

impl Model {
    /// Somebody of those who are there.
    fn pick(&self, pick: usize) -> Option<usize> {
        let there: Vec<usize> = (0..self.arrived.len())
            .filter(|n| self.arrived[*n].is_some())
            .collect();
        there.get(pick % there.len().max(1)).copied()
    }

    fn hand_on(&mut self, now: Instant) {
        while let Some(first) = self.line.pop_front() {
            let first = self.arrived[first].as_mut().expect("it is in line");
            if first.deadline.is_none_or(|deadline| deadline > now) {
                first.turn = Turn::Passes(now);
                return;
            }
            first.turn = Turn::Shed;
        }
        self.free += 1;
    }
}

proptest! {
    #[test]
    fn it_equals_a_counter_and_a_list(
        limit in 1..6_usize,
        queue in 0..6_usize,
        shards in prop::sample::select(&[1, 2, 4][..]),
        steps in prop::collection::vec((0..9_u8, any::<usize>(), prop::option::of(0..8_u32), 0..2_u32, 0..4_usize), 1..200),
    ) {
        let gate = Gate::with(Permits::in_shards(limit, shards), limit, queue);
        let mut model = Model { free: limit, line: VecDeque::new(), arrived: Vec::new() };
        let mut held = 0;
        let mut now = start();
        for (step, pick, left, forward, thread) in steps {
            shard::set_mine(thread);
            now += forward * SECOND;
            let deadline = left.map(|left| now + left * SECOND);
            match step {
                0 => {
                    let passes = model.free > 0;
                    prop_assert_eq!(gate.try_pass(), passes);
                    held += usize::from(passes);
                    model.free -= usize::from(passes);
                }
                1..=3 => {
                    let entered = gate.enter(deadline, now);
                    if model.free > 0 {
                        prop_assert_eq!(entered, Entered::Passes);
                        model.free -= 1;
                        held += 1;
                    } else if model.line.len() >= queue {
                        prop_assert_eq!(entered, Entered::Shed(Overload::QueueFull));
                    } else if deadline.is_some_and(|deadline| deadline <= now) {
                        prop_assert_eq!(entered, Entered::Shed(Overload::TooLittleTime));
                    } else if let Entered::Waits(key) = entered {
                        model.line.push_back(model.arrived.len());
                        let (turn, bell) = (Turn::Waits, Arc::default());
                        model.arrived.push(Some(Arrived { key, deadline, turn, bell, polled: false }));
                    } else {
                        prop_assert!(false, "{entered:?} where it has to wait");
                    }
                }
                4 | 5 => if let Some(picked) = model.pick(pick) {
                    let arrived = model.arrived[picked].as_mut().unwrap();
                    let waker = Waker::from(arrived.bell.clone());
                    prop_assert_eq!(gate.turn(arrived.key, &waker), arrived.turn);
                    match arrived.turn {
                        Turn::Waits => arrived.polled = true,
                        Turn::Passes(_) => {
                            held += 1;
                            model.arrived[picked] = None;
                        }
                        Turn::Shed => model.arrived[picked] = None,
                    }
                },
                6 => if let Some(picked) = model.pick(pick) {
                    let arrived = model.arrived[picked].take().unwrap();
                    gate.leave_line(arrived.key, || now);
                    model.line.retain(|waiting| *waiting != picked);
                    if let Turn::Passes(_) = arrived.turn {
                        model.hand_on(now);
                    }
                },
                _ => if held > 0 {
                    held -= 1;
                    gate.leave(Stamp::NONE, || now);
                    model.hand_on(now);
                },
            }
            let there = || model.arrived.iter().flatten();
            let given = there().filter(|arrived| matches!(arrived.turn, Turn::Passes(_))).count();
            prop_assert_eq!(gate.counts(), (held + given, model.line.len()));
            prop_assert!(gate.is_scarce() || model.free > 0);
            prop_assert!(!gate.is_scarce() || shards > 1 || model.free == 0);
            prop_assert_eq!(model.free + held + given, limit);
            for arrived in there() {
                let woken = arrived.polled && arrived.turn != Turn::Waits;
                prop_assert_eq!(arrived.bell.0.load(Ordering::Relaxed), u32::from(woken));
            }
        }
    }
}

#[test]
fn a_permit_at_hand_is_taken_without_the_lock() {
    let gate = Gate::new(1, 2);
    let line = lock(&gate.line);
    assert!(gate.pass());
    assert!(!gate.pass());
    drop(line);
    assert_eq!(gate.counts(), (1, 0));
}

#[test]
fn a_key_whose_turn_is_over_names_nobody() {
    let now = start();
    let gate = Gate::new(1, 2);
    assert!(gate.try_pass());
    let Entered::Waits(key) = gate.enter(None, now) else {
        panic!("there is no permit left");
    };
    gate.leave(Stamp::NONE, || now);
    assert_eq!(gate.turn(key, Waker::noop()), Turn::Passes(now));
    gate.leave_line(key, || now);
    assert_eq!(gate.turn(key, Waker::noop()), Turn::Shed);
    assert_eq!(gate.counts(), (1, 0), "its permit is not given back twice");
}

/// Only where somebody waits is a permit given back under the lock, and by the clock.
#[test]
fn where_nobody_waits_the_clock_is_not_read() {
    let (now, unread) = (start(), || -> Instant { panic!("the clock is read") });
    let gate = Gate::new(1, 2);
    assert!(gate.try_pass());
    gate.leave(now.into(), unread);

    assert!(gate.try_pass());
    let Entered::Waits(impatient) = gate.enter(None, now) else {
        panic!("there is no permit left");
    };
    gate.leave_line(impatient, unread);
    gate.leave(Stamp::NONE, unread);

    assert!(gate.try_pass());
    let Entered::Waits(patient) = gate.enter(None, now) else {
        panic!("there is no permit left");
    };
    gate.leave(Stamp::NONE, || now);
    assert_eq!(gate.turn(patient, Waker::noop()), Turn::Passes(now));
    gate.leave(Stamp::NONE, unread);
    assert_eq!(gate.counts(), (0, 0));
}

#[test]
fn who_can_not_be_served_in_time_is_turned_away_at_once() {
    let started = start();
    let now = started + SECOND;
    let gate = Gate::new(1, 9);
    assert!(gate.try_pass());
    let Entered::Waits(_) = gate.enter(None, now) else {
        panic!("there is no permit left");
    };
    // A call took a second; the one that waited has begun.
    gate.leave(started.into(), || now);
    let enter = |left: f64| gate.enter(Some(now + SECOND.mul_f64(left)), now);
    let late = Entered::Shed(Overload::TooLittleTime);
    assert_eq!(enter(1.9), late, "that one's second, and its own");
    assert!(matches!(enter(2.1), Entered::Waits(_)));
    assert_eq!(enter(2.9), late);
    assert!(matches!(enter(3.1), Entered::Waits(_)));
}
