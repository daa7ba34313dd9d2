//! A stream written as a future that hands out items.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_core::{Stream, future::BoxFuture};

/// Takes the items that a future hands out.
///
/// Invariant: the slot holds an item only from when the future is pending on [`Out::put`] until the stream's next poll takes it.
pub(super) struct Generated<'e, T, E> {
    // `None` once it has ended.
    future: Option<BoxFuture<'e, Result<(), E>>>,
    slot: Slot<T>,
}

type Slot<T> = Arc<Mutex<Option<T>>>;

/// The way out for the items.
pub(super) struct Out<T> {
    slot: Slot<T>,
}

/// A stream of what `future` puts out; it ends as the future does.
pub(super) fn generate<'e, T, E, F, Fut>(future: F) -> Generated<'e, T, E>
where
    F: FnOnce(Out<T>) -> Fut,
    Fut: Future<Output = Result<(), E>> + Send + 'e,
{
    let slot = Slot::default();
    let out = Out {
        slot: Arc::clone(&slot),
    };
    Generated {
        future: Some(Box::pin(future(out))),
        slot,
    }
}

impl<T> Out<T> {
    /// Hands out one item; goes on when the next one is asked for.
    pub(super) async fn put(&mut self, item: T) {
        *lock(&self.slot) = Some(item);
        let mut is_out = false;
        std::future::poll_fn(|_| {
            // Whoever took the item polls again for the next one.
            if std::mem::replace(&mut is_out, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl<T, E> Generated<'_, T, E> {
    /// The next item; `None` at the end.
    ///
    /// # Cancel safety
    /// No item is lost with a future that is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<T>, E> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>, E>> {
        let Some(future) = &mut self.future else {
            return Poll::Ready(Ok(None));
        };
        let polled = future.as_mut().poll(cx);
        if let Poll::Ready(ended) = polled {
            self.future = None;
            return Poll::Ready(ended.map(|()| None));
        }
        match lock(&self.slot).take() {
            Some(item) => Poll::Ready(Ok(Some(item))),
            None => Poll::Pending,
        }
    }
}

impl<T, E> Stream for Generated<'_, T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        self.poll_item(cx).map(Result::transpose)
    }
}

fn lock<T>(slot: &Mutex<Option<T>>) -> std::sync::MutexGuard<'_, Option<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
