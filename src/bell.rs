//! Between a shared timer and the task that it serves: a waker that wakes whoever listens.
//!
//! Invariants:
//! 1. No ring is lost: it wakes who listens, and whoever listens later is told of it, until the bell is muted.
//! 2. Wakers are cloned, woken and dropped outside the lock: that is code of the user's.

use std::{
    mem,
    sync::Arc,
    task::{Wake, Waker},
};

use crate::sync::{Mutex, lock};

pub(crate) struct Bell {
    state: Mutex<State>,
}

struct State {
    listener: Option<Waker>,
    rung: bool,
}

impl Bell {
    /// A bell that has rung: nothing is known of what it hangs on.
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                listener: None,
                rung: true,
            }),
        }
    }

    /// From now on a ring wakes `listener`; returns whether it has rung already.
    pub(crate) fn listen(&self, listener: Waker) -> bool {
        self.replace(Some(listener))
    }

    #[inline]
    fn replace(&self, listener: Option<Waker>) -> bool {
        let mut state = lock(&self.state);
        let before = mem::replace(&mut state.listener, listener);
        let rung = state.rung;
        drop(state);
        drop(before);
        rung
    }

    /// The same where it may be `listener` that listens already.
    pub(crate) fn keep_listening(&self, listener: &Waker) -> bool {
        let state = lock(&self.state);
        let before = state.listener.as_ref();
        if before.is_some_and(|before| before.will_wake(listener)) {
            return state.rung;
        }
        drop(state);
        self.listen(listener.clone())
    }

    /// Nobody listens any more.
    pub(crate) fn leave(&self) {
        self.replace(None);
    }

    /// What it rang for is seen to.
    pub(crate) fn mute(&self) {
        lock(&self.state).rung = false;
    }

    /// Whoever listens next is told that it has rung.
    pub(crate) fn unmute(&self) {
        lock(&self.state).rung = true;
    }

    /// It has rung, whether or not somebody listens; returns who did, to be woken.
    fn ring(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.rung = true;
        state.listener.take()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(listener) = self.ring() {
            listener.wake();
        }
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Sleeper(AtomicU32);

    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sleeper() -> (Arc<Sleeper>, Waker) {
        let sleeper = Arc::new(Sleeper::default());
        (sleeper.clone(), sleeper.into())
    }

    #[test]
    fn a_ring_wakes_who_listens_and_nobody_who_has_left() {
        let bell = Arc::new(Bell::new());
        bell.mute();
        let ((first, waker), (second, other)) = (sleeper(), sleeper());
        assert!(!bell.listen(waker.clone()));
        assert!(!bell.keep_listening(&waker));
        assert!(!bell.keep_listening(&other));
        Waker::from(bell.clone()).wake();
        let woken = [first, second.clone()].map(|sleeper| sleeper.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1]);
        bell.mute();
        bell.listen(other);
        bell.leave();
        Waker::from(bell).wake();
        assert_eq!(second.0.load(Ordering::Relaxed), 1);
        // It keeps nobody's task alive.
        assert_eq!(Arc::strong_count(&second), 1);
    }

    #[test]
    fn whoever_listens_after_a_ring_is_told_of_it_until_it_is_muted() {
        let bell = Arc::new(Bell::new());
        let (_, waker) = sleeper();
        assert!(bell.listen(waker.clone()), "a new one has rung");
        bell.mute();
        assert!(!bell.keep_listening(&waker));
        Waker::from(bell.clone()).wake();
        assert!(bell.keep_listening(&waker));
        bell.mute();
        bell.unmute();
        assert!(bell.listen(waker));
    }
}

#[cfg(all(test, steadfast_loom))]
mod model {
    use loom::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_beside_a_new_listener_is_seen_or_wakes_it() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            bell.mute();
            let ringer = {
                let bell = bell.clone();
                thread::spawn(move || bell.wake_by_ref())
            };
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let rung = bell.listen(flag.clone().into());
            ringer.join().unwrap();
            assert!(rung || flag.0.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_ring_beside_a_look_is_seen_by_it_or_by_the_next_listener() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            let is_due = Arc::new(AtomicBool::new(false));
            let ringer = {
                let (bell, is_due) = (bell.clone(), is_due.clone());
                thread::spawn(move || {
                    is_due.store(true, Ordering::Release);
                    bell.wake_by_ref();
                })
            };
            bell.mute();
            let seen = is_due.load(Ordering::Acquire);
            ringer.join().unwrap();
            assert!(seen || bell.listen(Waker::noop().clone()));
        });
    }
}
