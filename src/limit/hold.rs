//! Keeping a slot beyond the end of its call.
//!
//! Invariants:
//! 1. A slot is given back once: by its call where nobody holds it, else by the last of the call and its holds.
//! 2. A hold exists only from within its call: the slot it shares is put into the share before that poll returns.

use std::{
    cell::Cell,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::Shared;
use crate::{gated::Leave, time};

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
    let share = match AMBIENT.replace(Ambient::None) {
        Ambient::None => return None,
        Ambient::Call => Arc::default(),
        Ambient::Shared(share) => share,
    };
    AMBIENT.set(Ambient::Shared(Arc::clone(&share)));
    Some(Hold { _share: share })
}

/// One of the slots of a limiter, with whatever way of holding the limiter. Dropped, it is free, unless somebody holds it.
pub(crate) struct Slot<B: Deref<Target = Shared>> {
    limiter: B,
    started: Option<Instant>,
    share: Option<Arc<Share>>,
}

impl<B: Deref<Target = Shared>> Slot<B> {
    pub(super) fn new(limiter: B, started: Option<Instant>) -> Self {
        Self {
            limiter,
            started,
            share: None,
        }
    }

    /// The call has to wait: where all slots are taken, it is timed from `now` on.
    #[inline]
    pub(crate) fn waits_since(&mut self, now: impl FnOnce() -> Instant) {
        if self.started.is_none() && self.limiter.gate.is_full() {
            self.started = Some(now());
        }
    }
}

impl<B: Deref<Target = Shared>> Leave for Slot<B> {
    /// The call's code may ask for a hold.
    #[inline]
    fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let ambient = match self.share.take() {
            None => Ambient::Call,
            Some(share) => Ambient::Shared(share),
        };
        let outer = AMBIENT.replace(ambient);
        let _left = Left { slot: self, outer };
        f()
    }

    #[inline]
    fn waits(&mut self) {
        self.waits_since(time::now);
    }
}

impl<B: Deref<Target = Shared>> Drop for Slot<B> {
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
    fn drop(&mut self) {
        let outer = std::mem::replace(&mut self.outer, Ambient::None);
        if let Ambient::Shared(share) = AMBIENT.replace(outer) {
            share.owned.get_or_init(|| Owned {
                limiter: self.slot.limiter.own(),
                started: self.slot.started,
            });
            self.slot.share = Some(share);
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
    started: Option<Instant>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.limiter.gate.leave(self.started, time::now);
    }
}

enum Ambient {
    None,
    Call,
    Shared(Arc<Share>),
}

thread_local! {
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::None) };
}
