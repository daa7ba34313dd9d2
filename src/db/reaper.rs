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
//! Where the driver loses its place in a dropped statement's answer, as sqlx's for MySQL does, the connection is not spoken to again: the session is ended, and
//! the slot kept until the server knows it no more.
//!
//! The slot of the call is kept throughout. So there are never more statements at work than slots, whatever is dropped.

use std::{
    io::ErrorKind::ConnectionRefused,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sqlx::Connection;

use crate::{
    db::{
        book::Key,
        checkout::Inner,
        driver::{Driver, Identity},
        guard::State,
        session::Session,
    },
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
    if state == State::Busy && !DB::RESUMES {
        lost(inner, session);
        end(inner, identity).await;
        return None;
    }
    if let Some(stop) = identity.as_ref().and_then(|known| known.stop.as_ref())
        && state != State::Doubtful
    {
        stop.store(true, Ordering::Relaxed);
    }
    let known = identity.clone();
    let stoppable = identity.filter(|identity| DB::CANCELS && identity.session.is_some());
    let mut stopped = false;
    let answered = {
        // The same question all along: another one could be given what is left of this one's answer.
        let mut answer = pin!(tidy(inner, session.connection()));
        let answered = time::within(BY_ITSELF, answer.as_mut()).await;
        if answered.is_none() {
            if let Some(identity) = &stoppable {
                let cancelled = inner.with_admin(STOP, identity, DB::cancel);
                stopped = matches!(time::within(STOP, cancelled).await, Some(Ok(())));
            }
            let patience = match (DB::CANCELS, stopped) {
                (true, true) => STOPPED,
                // There is nothing to stop, and a transaction is soon rolled back.
                (true, false) if state == State::Doubtful => STOPPED,
                (true, false) => Duration::ZERO,
                // Nobody would notice that it was closed.
                (false, _) => inner.settings.statement,
            };
            time::within(patience, answer).await
        } else {
            answered
        }
    };
    match answered {
        Some(Ok(identity)) => {
            let identity = known.unwrap_or_else(|| inner.reliable(identity));
            inner.at_hand.vouch(&mut session, identity);
            Some(session)
        }
        failed => {
            lost(inner, session);
            if !DB::RESUMES {
                end(inner, known).await;
            } else if failed.is_none() && !stopped {
                // The server looks from time to time whether its client is still there.
                time::sleep(inner.settings.check_interval + NOTICE).await;
            }
            None
        }
    }
}

/// Ends what is left on a connection, and asks who it is.
async fn tidy<DB: Driver>(
    inner: &Inner<DB>,
    connection: &mut DB::Connection,
) -> Result<Identity, sqlx::Error> {
    if inner.is_plain() && connection.cached_statements_size() > 0 {
        // As long as the transaction is open, in which they were made.
        connection.clear_cached_statements().await?;
    }
    DB::identify(connection, &inner.flags).await
}

/// Nobody answers at its other end.
fn lost<DB: Driver>(inner: &Inner<DB>, session: Session<DB>) {
    inner.book.disconnected();
    session.close();
}

/// Ends what goes on without its client, on a server that does not look whether that is still there.
async fn end<DB: Driver>(inner: &Arc<Inner<DB>>, identity: Option<Identity>) {
    let by = time::now() + inner.settings.statement;
    let identity = identity.filter(|identity| identity.session.is_some());
    let Some(identity) = identity else {
        return time::sleep_until(by).await;
    };
    let mut pause = LOOK_AGAIN;
    loop {
        let ended = inner.with_admin(STOP, &identity, DB::end);
        let ended = time::within(STOP, ended).await;
        match ended {
            Some(Ok(true)) => return,
            // There is no server.
            Some(Err(sqlx::Error::Io(error))) if error.kind() == ConnectionRefused => return,
            _ if time::now() + pause >= by => return,
            _ => {}
        }
        time::sleep(pause).await;
        pause = (2 * pause).min(LOOK_AGAIN_AT_MOST);
    }
}

/// Most statements take less, and need not be stopped.
const BY_ITSELF: Duration = Duration::from_millis(10);

/// Asking a server to stop a statement takes a round trip, or a connect and a round trip.
const STOP: Duration = Duration::from_secs(1);

/// A statement that was told to stop does so at its next look.
const STOPPED: Duration = Duration::from_millis(250);

/// The pauses between two looks at whether a session that was ended is gone; what it did has to be rolled back first.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(100);

/// What the server needs to end a statement after it noticed.
const NOTICE: Duration = Duration::from_millis(25);
