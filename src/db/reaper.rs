//! What becomes of a connection that was left in the middle of something.
//!
//! ```text
//!   dropped ──► does it end by itself within 10 ms? ──yes──────────────────────────► clean, at hand again
//!                  │ no
//!                  ▼
//!               stop it on the server ──► it says so within a quarter of a second ─► clean, at hand again
//!                  │ who it is, is not known; or no answer
//!                  ▼
//!               close the socket; keep the slot until the server must have noticed
//! ```
//!
//! The slot of the call is kept throughout. So there are never more statements at work than slots, whatever is dropped.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use sqlx::Connection;

use crate::{
    db::{book::Key, checkout::Inner, driver::Driver, guard::State, session::Session},
    limit::Hold,
    time,
};

/// Takes over a connection that is not clean.
pub(super) fn reap<DB: Driver>(
    inner: &Arc<Inner<DB>>,
    session: Session<DB>,
    hold: Option<Hold>,
    key: Key,
    state: State,
) {
    let inner = Arc::clone(inner);
    inner.book.close(key, &inner.reporter);
    let runtime = session.runtime();
    let reaping = Reaping::count(&inner);
    runtime.spawn(async move {
        let cleaned = clean(&inner, session, state).await;
        drop(reaping);
        if let Some(session) = cleaned {
            inner.put_at_hand(session).await;
        }
        drop(hold);
    });
}

/// One connection that is being cleaned, in the statistics.
struct Reaping<DB: Driver>(Arc<Inner<DB>>);

impl<DB: Driver> Reaping<DB> {
    fn count(inner: &Arc<Inner<DB>>) -> Self {
        inner.book.reaping.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inner))
    }
}

impl<DB: Driver> Drop for Reaping<DB> {
    fn drop(&mut self) {
        self.0.book.reaping.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connection with nothing running on it and no transaction open; or `None`, once the server is done with it.
async fn clean<DB: Driver>(
    inner: &Arc<Inner<DB>>,
    mut session: Session<DB>,
    state: State,
) -> Option<Session<DB>> {
    let identity = session.identity.clone();
    if let Some(stop) = identity
        .as_ref()
        .and_then(|identity| identity.stop.as_ref())
        && state == State::Busy
    {
        stop.store(true, Ordering::Relaxed);
    }
    match is_clean(inner, &mut session, BY_ITSELF).await {
        Some(true) => return Some(session),
        Some(false) => {}
        None => return lost(inner, session),
    }
    let stoppable = identity.filter(|identity| identity.session.is_some());
    let stopped = match &stoppable {
        Some(identity) if DB::CANCELS => {
            let cancelled = inner.with_admin(STOP, identity, DB::cancel);
            matches!(time::within(STOP, cancelled).await, Some(Ok(())))
        }
        _ => false,
    };
    let patience = match (DB::CANCELS, stopped) {
        (true, true) => STOPPED,
        // There is nothing to stop, and a transaction is soon rolled back.
        (true, false) if state == State::Doubtful => STOPPED,
        (true, false) => Duration::ZERO,
        // Nobody would notice that it was closed.
        (false, _) => inner.settings.statement,
    };
    match is_clean(inner, &mut session, patience).await {
        Some(true) => return Some(session),
        Some(false) => drop(lost(inner, session)),
        None => return lost(inner, session),
    }
    if !stopped {
        // The server looks from time to time whether its client is still there.
        time::sleep(inner.settings.check_interval + NOTICE).await;
    }
    None
}

/// Nobody answers at its other end.
fn lost<DB: Driver>(inner: &Inner<DB>, session: Session<DB>) -> Option<Session<DB>> {
    inner.book.disconnected();
    session.close();
    None
}

/// Whether nothing runs on it any more; `None` if it is of no use.
async fn is_clean<DB: Driver>(
    inner: &Inner<DB>,
    session: &mut Session<DB>,
    limit: Duration,
) -> Option<bool> {
    let connection = session.connection();
    let answer = async {
        if inner.is_plain() && connection.cached_statements_size() > 0 {
            // As long as the transaction is open, in which they were made.
            connection.clear_cached_statements().await?;
        }
        DB::identify(connection, &inner.flags).await
    };
    match time::within(limit, answer).await {
        Some(Ok(identity)) => {
            let known = session.identity.clone();
            let identity = known.unwrap_or_else(|| inner.reliable(identity));
            inner.at_hand.vouch(session, identity);
            Some(true)
        }
        Some(Err(_)) => None,
        None => Some(false),
    }
}

/// Most statements take less, and need not be stopped.
const BY_ITSELF: Duration = Duration::from_millis(10);

/// Asking a server to stop a statement takes a round trip, or a connect and a round trip.
const STOP: Duration = Duration::from_secs(1);

/// A statement that was told to stop does so at its next look.
const STOPPED: Duration = Duration::from_millis(250);

/// What the server needs to end a statement after it noticed.
const NOTICE: Duration = Duration::from_millis(25);
