//! Keeping a slot beyond the end of its call.
//!
//! Invariants:
//! 1. A slot is given back once: by its call where nobody holds it, else by the last of the call and its holds.
//! 2. A hold exists only from within its call: the slot it shares is put into the share before that poll returns.
//! 3. `SHARES` holds one share for each scope on the thread's stack that is `Shared`, the innermost last. Code that asks for no hold
//!    touches the flag only.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::Shared;
use crate::{ambient, gated::Leave, stamp::Stamp, time};

/// Keeps the slot of the call that asked for it.
///
/// The slot is free when the call *and* all its holds are gone. It is for work that goes on after the call's future has ended: the body of a
/// response, a statement that the server still runs.
///
/// ```
/// use steadfast::{ConcurrencyLimiter, limit};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = ConcurrencyLimiter::new(4)?;
/// let service = ServiceBuilder::new()
///     .layer(limiter.layer())
///     .service_fn(async |_: ()| std::io::Result::Ok(limit::hold()));
/// let hold = service.oneshot(()).await?;
/// assert_eq!(limiter.stats().in_flight, 1);
/// drop(hold);
/// assert_eq!(limiter.stats().in_flight, 0);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "dropping a hold gives it up"]
pub struct Hold {
    _share: Arc<Share>,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hold")
    }
}

/// A hold on the slot of the call that runs now; `None` outside of one.
///
/// Of nested limiters it is the innermost one's.
pub fn hold() -> Option<Hold> {
    match AMBIENT.get() {
        Ambient::None => return None,
        Ambient::Call => {
            push(Arc::default());
            AMBIENT.set(Ambient::Shared);
        }
        Ambient::Shared => {}
    }
    let share = SHARES.with_borrow(|shares| shares.last().cloned());
    share.map(|share| Hold { _share: share })
}

/// One of the slots of a limiter, with whatever way of holding the limiter. Dropped, it is free, unless somebody holds it.
pub(crate) struct Slot<B: Deref<Target = Shared>> {
    limiter: B,
    started: Stamp,
    share: Option<Arc<Share>>,
}

impl<B: Deref<Target = Shared>> Slot<B> {
    pub(super) fn new(limiter: B, started: Stamp) -> Self {
        Self {
            limiter,
            started,
            share: None,
        }
    }

    /// Owns the slot together with whoever holds it.
    #[cold]
    fn take_share(&mut self) {
        let share = SHARES.with_borrow_mut(Vec::pop);
        let share = share.expect("pushed when it was asked for");
        share.owned.get_or_init(|| Owned {
            limiter: self.limiter.own(),
            started: self.started,
        });
        self.share = Some(share);
    }

    /// The call has to wait: where slots are scarce, it is timed from `now` on.
    #[inline]
    pub(crate) fn waits_since(&mut self, now: impl FnOnce() -> Stamp) {
        if !self.started.is_some() && self.limiter.gate.is_scarce() {
            self.started = now();
        }
    }
}

impl<B: Deref<Target = Shared>> Leave for Slot<B> {
    /// The call's code may ask for a hold.
    #[inline(always)]
    fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let ambient = match self.share.take() {
            None => Ambient::Call,
            Some(share) => {
                push(share);
                Ambient::Shared
            }
        };
        let outer = AMBIENT.replace(ambient);
        let _left = Left { slot: self, outer };
        f()
    }

    #[inline]
    fn waits(&mut self) {
        self.waits_since(ambient::waits_since);
    }
}

impl<B: Deref<Target = Shared>> Drop for Slot<B> {
    #[inline]
    fn drop(&mut self) {
        // A share gives the slot back itself.
        if self.share.is_none() {
            self.limiter.gate.leave(self.started, time::now);
        }
    }
}

/// Restores the ambient slot when the code of a call returns, even by a panic.
struct Left<'a, B: Deref<Target = Shared>> {
    slot: &'a mut Slot<B>,
    outer: Ambient,
}

impl<B: Deref<Target = Shared>> Drop for Left<'_, B> {
    #[inline]
    fn drop(&mut self) {
        if AMBIENT.replace(self.outer) == Ambient::Shared {
            self.slot.take_share();
        }
    }
}

/// A slot that a call and its holds own together; empty until the poll in which it was asked for returns.
#[derive(Default)]
struct Share {
    owned: OnceLock<Owned>,
}

struct Owned {
    limiter: Arc<Shared>,
    started: Stamp,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.limiter.gate.leave(self.started, time::now);
    }
}

/// Which slot the code that runs now may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ambient {
    None,
    Call,
    /// Somebody has asked for it.
    Shared,
}

thread_local! {
    // Has no destructor, and so costs nothing to reach.
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::None) };
    static SHARES: RefCell<Vec<Arc<Share>>> = const { RefCell::new(Vec::new()) };
}

#[cold]
fn push(share: Arc<Share>) {
    SHARES.with_borrow_mut(|shares| shares.push(share));
}
