//! A connection while it is ours, and those kept at hand between two calls.
//!
//! ```text
//!                        ┌───────────── a call ─────────────┐
//!   sqlx's pool ──ping──►│ leased ──well──► at hand ──fresh─►│ leased
//!        ▲               └────│───────────────│──────────────┘
//!        │                    │ in doubt      │ half a second unused
//!        └──── clean ◄── the reaper           ▼
//!        └──────────────────────────── given back
//! ```
//!
//! A connection that was used a moment ago need not be asked whether it is alive, neither before the next call nor after the last one. That
//! spares the two round trips that a pool spends on every call.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

use crate::db::driver::{Driver, Identity};

/// One connection of the pool while it is ours.
pub(super) struct Session<DB: Driver> {
    // `None` only while it is dropped.
    connection: Option<PoolConnection<DB>>,
    pub(super) identity: Option<Identity>,
    generation: u64,
    epoch: u64,
    taken: Instant,
    used: Instant,
    runtime: Handle,
}

impl<DB: Driver> Session<DB> {
    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect(WHOLE)
    }

    pub(super) fn shared(&self) -> &DB::Connection {
        self.connection.as_ref().expect(WHOLE)
    }

    pub(super) fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// Closes it without a word, so that a server which is silent can't keep us.
    pub(super) fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            let _here = self.runtime.enter();
            drop(connection.detach());
        }
    }

    /// Gives it back to the pool, or closes it where that takes too long.
    pub(super) async fn give_back(mut self) {
        if let Some(mut connection) = self.connection.take() {
            // Dropped, the future closes the connection and frees its place.
            let _ = crate::time::within(GIVE_BACK, connection.return_to_pool()).await;
        }
    }

    /// The pool's own connection, which is no longer ours.
    pub(super) fn into_inner(mut self) -> PoolConnection<DB> {
        self.connection.take().expect(WHOLE)
    }
}

impl<DB: Driver> Drop for Session<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // It spawns a task, which needs a runtime, wherever this is.
            let _here = self.runtime.enter();
            drop(connection);
        }
    }
}

impl<DB: Driver> fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Connections that were used a moment ago; the last one used is the first to go.
pub(super) struct AtHand<DB: Driver> {
    sessions: Mutex<Vec<Session<DB>>>,
    generation: AtomicU64,
    epoch: AtomicU64,
}

impl<DB: Driver> AtHand<DB> {
    pub(super) fn new() -> Self {
        Self {
            sessions: Mutex::new(Vec::new()),
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// A session for a connection that the pool has just handed out.
    pub(super) fn admit(&self, connection: PoolConnection<DB>, now: Instant) -> Session<DB> {
        Session {
            connection: Some(connection),
            identity: None,
            generation: self.generation.load(Ordering::Relaxed),
            epoch: self.epoch.load(Ordering::Relaxed),
            taken: now,
            used: now,
            runtime: Handle::current(),
        }
    }

    /// One that was used a moment ago, and whether it can be relied on without asking it.
    pub(super) fn take(&self, now: Instant) -> Option<(Session<DB>, bool)> {
        let session = self.lock().pop()?;
        let fresh = self.is_fresh(&session, now);
        Some((session, fresh))
    }

    /// Keeps one that is well; hands it back where it is time that the pool looks after it.
    pub(super) fn keep(&self, mut session: Session<DB>, now: Instant) -> Option<Session<DB>> {
        let is_old = now.saturating_duration_since(session.taken) >= OURS_FOR;
        if !self.is_current(&session) || self.is_retired(&session) || is_old {
            return Some(session);
        }
        session.used = now;
        self.lock().push(session);
        None
    }

    /// Whether it is from before all were retired.
    pub(super) fn is_retired(&self, session: &Session<DB>) -> bool {
        session.epoch != self.epoch.load(Ordering::Relaxed)
    }

    /// It was asked and is well, as of now.
    pub(super) fn vouch(&self, session: &mut Session<DB>, identity: Identity) {
        session.identity = Some(identity);
        session.generation = self.generation.load(Ordering::Relaxed);
    }

    /// Those that are in use now are closed when they come back.
    pub(super) fn retire_all(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was lost: from now on each of the others is asked before it is used.
    pub(super) fn suspect_all(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Those that nobody has used for a while.
    pub(super) fn stale(&self, now: Instant) -> Vec<Session<DB>> {
        let mut sessions = self.lock();
        // The oldest lie at the bottom.
        let stale = sessions.partition_point(|s| now.saturating_duration_since(s.used) >= FRESH);
        sessions.drain(..stale).collect()
    }

    /// Those that would have to be asked.
    pub(super) fn doubtful(&self, now: Instant) -> Vec<Session<DB>> {
        let mut sessions = self.lock();
        let all = sessions.drain(..);
        let (fresh, doubtful): (Vec<_>, _) = all.partition(|session| self.is_fresh(session, now));
        *sessions = fresh;
        doubtful
    }

    /// All of them.
    pub(super) fn drain(&self) -> Vec<Session<DB>> {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_fresh(&self, session: &Session<DB>, now: Instant) -> bool {
        self.is_current(session) && now.saturating_duration_since(session.used) < FRESH
    }

    fn is_current(&self, session: &Session<DB>) -> bool {
        session.generation == self.generation.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Session<DB>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const WHOLE: &str = "a session has its connection until it is dropped";

/// A connection that was used so recently is not asked whether it is alive: as long as a server needs to restart, and the bypass that other
/// pools have.
pub(super) const FRESH: Duration = Duration::from_millis(500);

/// After so long the pool gets to see a connection again, which closes it when its lifetime is over.
const OURS_FOR: Duration = Duration::from_secs(30);

/// The pool asks a connection that comes back whether it is alive. A peer that is silent for so long, several times what the slowest link takes, is not.
const GIVE_BACK: Duration = Duration::from_secs(1);
