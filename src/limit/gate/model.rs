use std::task::Wake;

use loom::{
    model::Builder,
    sync::{
        Arc, Notify,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::*;
use crate::{shard, testing::start};

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.notify();
    }
}

/// A gate, and how many are past it.
struct Watched {
    gate: Gate,
    inside: AtomicUsize,
    now: Instant,
}

impl Watched {
    fn new(limit: usize, now: Instant) -> Arc<Self> {
        Self::in_shards(limit, 1, now)
    }

    fn in_shards(limit: usize, shards: usize, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::with(Permits::in_shards(limit, shards), limit, 9),
            inside: AtomicUsize::new(0),
            now,
        })
    }

    /// Waits for its turn as a task does; a wake-up that is lost is a deadlock.
    fn wait(&self) {
        if self.gate.try_pass() {
            return;
        }
        match self.gate.enter(None, self.now) {
            Entered::Passes => {}
            Entered::Waits(key) => {
                let bell = std::sync::Arc::new(Bell(Notify::new()));
                let waker = Waker::from(bell.clone());
                while self.gate.turn(key, &waker) == Turn::Waits {
                    bell.0.wait();
                }
            }
            Entered::Shed(overload) => panic!("{overload}"),
        }
    }

    /// Arrives and leaves again, with or without a permit.
    fn give_up(&self) {
        match self.gate.enter(None, self.now) {
            Entered::Passes => self.leave(),
            Entered::Waits(key) => self.gate.leave_line(key, || self.now),
            Entered::Shed(overload) => panic!("{overload}"),
        }
    }

    fn leave(&self) {
        self.gate.leave(self.now.into(), || self.now);
    }

    /// What a call does that has a permit.
    fn run(&self, limit: usize) {
        let inside = self.inside.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(inside <= limit, "{inside} are inside");
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.leave();
    }

    fn assert_idle(&self, limit: usize) {
        assert_eq!(self.gate.counts(), (0, 0));
        for _ in 0..limit {
            assert!(self.gate.try_pass(), "a permit is lost");
        }
        assert!(!self.gate.try_pass(), "a permit was given back twice");
    }
}

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn whoever_enters_while_the_permit_comes_back_gets_it() {
    let now = start();
    loom::model(move || {
        let watched = Watched::new(1, now);
        assert!(watched.gate.try_pass());
        let waiter = {
            let watched = watched.clone();
            thread::spawn(move || {
                watched.wait();
                watched.run(1);
            })
        };
        watched.leave();
        waiter.join().unwrap();
        watched.assert_idle(1);
    });
}

#[test]
fn no_more_than_the_limit_are_inside_and_every_permit_comes_back() {
    let now = start();
    check(3, move || {
        let watched = Watched::new(1, now);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let watched = watched.clone();
                thread::spawn(move || {
                    watched.wait();
                    watched.run(1);
                })
            })
            .collect();
        watched.wait();
        watched.run(1);
        for caller in callers {
            caller.join().unwrap();
        }
        watched.assert_idle(1);
    });
}

#[test]
fn two_permits_and_three_callers() {
    let now = start();
    check(2, move || {
        let watched = Watched::new(2, now);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let watched = watched.clone();
                thread::spawn(move || {
                    watched.wait();
                    watched.run(2);
                })
            })
            .collect();
        watched.wait();
        watched.run(2);
        for caller in callers {
            caller.join().unwrap();
        }
        watched.assert_idle(2);
    });
}

#[test]
fn a_permit_given_to_somebody_who_gives_up_goes_to_the_next() {
    let now = start();
    check(3, move || {
        let watched = Watched::new(1, now);
        assert!(watched.gate.try_pass());
        let quitter = {
            let watched = watched.clone();
            thread::spawn(move || watched.give_up())
        };
        let waiter = {
            let watched = watched.clone();
            thread::spawn(move || {
                watched.wait();
                watched.run(1);
            })
        };
        watched.leave();
        quitter.join().unwrap();
        waiter.join().unwrap();
        watched.assert_idle(1);
    });
}

#[test]
fn while_somebody_waits_nobody_overtakes() {
    let now = start();
    loom::model(move || {
        let watched = Watched::new(1, now);
        assert!(watched.gate.try_pass());
        let Entered::Waits(key) = watched.gate.enter(None, now) else {
            panic!("there is no permit left");
        };
        let rival = {
            let watched = watched.clone();
            thread::spawn(move || assert!(!watched.gate.try_pass(), "it overtook"))
        };
        watched.leave();
        rival.join().unwrap();
        assert_eq!(watched.gate.turn(key, Waker::noop()), Turn::Passes(now));
        watched.leave();
        watched.assert_idle(1);
    });
}

#[test]
fn two_callers_on_one_shard_find_the_permit_of_the_other() {
    let now = start();
    check(3, move || {
        let watched = Watched::in_shards(2, 2, now);
        let other = {
            let watched = watched.clone();
            thread::spawn(move || {
                assert!(watched.gate.try_pass(), "two permits, two callers");
                watched.leave();
            })
        };
        assert!(watched.gate.try_pass(), "two permits, two callers");
        other.join().unwrap();
        watched.leave();
        watched.assert_idle(2);
    });
}

#[test]
fn three_callers_and_two_shards() {
    let now = start();
    check(2, move || {
        let watched = Watched::in_shards(2, 2, now);
        let others = [0, 1].map(|shard| {
            let watched = watched.clone();
            thread::spawn(move || {
                shard::set_mine(shard);
                watched.wait();
                watched.run(2);
            })
        });
        shard::set_mine(0);
        watched.wait();
        watched.run(2);
        for other in others {
            other.join().unwrap();
        }
        watched.assert_idle(2);
    });
}

#[test]
fn a_permit_that_comes_back_to_another_shard_while_the_line_forms_is_not_missed() {
    let now = start();
    check(3, move || {
        let watched = Watched::in_shards(2, 2, now);
        shard::set_mine(0);
        assert!(watched.gate.try_pass() && watched.gate.try_pass());
        let releaser = {
            let watched = watched.clone();
            thread::spawn(move || {
                shard::set_mine(1);
                watched.leave();
            })
        };
        watched.wait();
        releaser.join().unwrap();
        watched.leave();
        watched.leave();
        watched.assert_idle(2);
    });
}
