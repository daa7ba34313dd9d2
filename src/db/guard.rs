//! One connection in somebody's hands.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_core::future::BoxFuture;
use sqlx::{Connection, pool::PoolConnection};

use crate::{
    classify::{self, DbVerdict, Fate, Heal, Phase},
    db::{
        book::{Activity, Key, Taken},
        checkout::Inner,
        driver::Driver,
        pooler::PoolerMode,
        reaper,
        replay::Replay,
        session::Session,
        verdict::Judged,
    },
    kind::Kind,
    limit::Hold,
    time,
};

/// A connection of a [`Db`](super::Db), and the slot that goes with it.
///
/// `&mut lease` is an sqlx `Executor`. It also derefs to sqlx's connection, for functions that take nothing else; what is done there is not seen.
///
/// Dropped, it is cleaned and can be used by the next: a statement that still runs is stopped on the server, a transaction that was left open is rolled
/// back. Until then nobody else gets its slot.
///
/// ```no_run
/// # async fn example(db: steadfast::db::PgDb) -> Result<(), sqlx::Error> {
/// let mut lease = db.acquire().await?;
/// sqlx::query("SET LOCAL work_mem = '64MB'").execute(&mut lease).await?;
/// # Ok(()) }
/// ```
pub struct Lease<DB: Driver> {
    // `None` once it was given back.
    session: Option<Session<DB>>,
    inner: Arc<Inner<DB>>,
    hold: Option<Hold>,
    key: Key,
    state: State,
    /// Whether a transaction of ours is open on it.
    in_transaction: bool,
    /// Whether that was told to change nothing.
    pub(super) read_only: bool,
    started: Instant,
}

/// What is known of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing runs on it and no transaction is open.
    Clean,
    /// Nothing of ours runs on it; a transaction may be open.
    Doubtful,
    /// Somebody had it without our seeing what for: a statement may run on it, and a transaction be open.
    Untracked,
    /// A statement runs on it.
    Busy,
    /// It is of no use any more.
    Lost,
}

/// A way of running a query on a connection.
pub(super) type RunOn<DB, T> = for<'e> fn(
    &'e mut <DB as sqlx::Database>::Connection,
    Replay<DB>,
) -> BoxFuture<'e, Result<T, sqlx::Error>>;

impl<DB: Driver> Lease<DB> {
    pub(super) fn new(
        inner: &Arc<Inner<DB>>,
        session: Session<DB>,
        hold: Option<Hold>,
        taken: Taken,
        asked: Instant,
    ) -> Self {
        let now = time::now();
        let key = inner
            .book
            .open(taken, now.saturating_duration_since(asked), now);
        inner.keep_house_later(&session.runtime());
        Self {
            session: Some(session),
            inner: Arc::clone(inner),
            hold,
            key,
            state: State::Clean,
            in_transaction: false,
            read_only: false,
            started: now,
        }
    }

    /// Runs a statement that is nobody's but its own.
    pub(super) async fn statement<T>(
        &mut self,
        query: Replay<DB>,
        run: RunOn<DB, T>,
    ) -> Result<T, Judged<sqlx::Error>> {
        let result = if self.wraps(&query) {
            self.wrapped(query, run).await
        } else {
            self.run(query, Phase::Statement, run).await
        };
        let kind = result
            .as_ref()
            .map_or_else(|judged| judged.kind, |_| Kind::Success);
        self.settled(kind);
        result
    }

    /// Behind a pooler that knows no prepared statements: both halves of the protocol in one transaction, so that they meet the same server.
    async fn wrapped<T>(
        &mut self,
        query: Replay<DB>,
        run: RunOn<DB, T>,
    ) -> Result<T, Judged<sqlx::Error>> {
        self.enter().await?;
        let answer = self.run(query.unprepared(), Phase::Transaction, run).await;
        let left = self.leave(answer.is_ok()).await;
        let answer = answer?;
        left.map(|()| answer)
    }

    /// Whether a query needs a transaction around it that it did not ask for. What is sent as a text takes one round trip, and meets one server anyway.
    pub(super) fn wraps(&self, query: &Replay<DB>) -> bool {
        self.is_plain() && !query.is_text()
    }

    /// Begins a transaction around one call.
    pub(super) async fn enter(&mut self) -> Result<(), Judged<sqlx::Error>> {
        // Should it fail, nobody knows how much of it was done.
        self.in_transaction = true;
        let begin = DB::around_call(self.inner.limits(time::now()));
        self.run(Replay::raw(begin), Phase::Transaction, DB::execute)
            .await
            .map(drop)
    }

    /// Ends the transaction around one call, unless it went with its connection.
    pub(super) async fn leave(&mut self, commits: bool) -> Result<(), Judged<sqlx::Error>> {
        if self.state == State::Lost {
            return Ok(());
        }
        self.forget_statements().await?;
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        self.run(Replay::raw(end), Phase::Commit, DB::execute)
            .await?;
        self.set_in_transaction(false);
        Ok(())
    }

    /// Leaves no named statement behind on a server where the next transaction is a stranger's.
    pub(super) async fn forget_statements(&mut self) -> Result<(), Judged<sqlx::Error>> {
        if !self.is_plain() || self.session().connection().cached_statements_size() == 0 {
            return Ok(());
        }
        self.run_with(Phase::Transaction, |connection| {
            Box::pin(connection.clear_cached_statements())
        })
        .await
    }

    /// Runs a statement, and judges by it what becomes of the connection.
    pub(super) async fn run<T>(
        &mut self,
        query: Replay<DB>,
        phase: Phase,
        run: RunOn<DB, T>,
    ) -> Result<T, Judged<sqlx::Error>> {
        self.begins(Some(query.text()));
        let result = run(self.session().connection(), query).await;
        self.ended(result, phase).await
    }

    /// Does something of ours on the connection.
    pub(super) async fn run_with<T>(
        &mut self,
        phase: Phase,
        run: for<'e> fn(&'e mut DB::Connection) -> BoxFuture<'e, Result<T, sqlx::Error>>,
    ) -> Result<T, Judged<sqlx::Error>> {
        self.begins(None);
        let result = run(self.session().connection()).await;
        self.ended(result, phase).await
    }

    /// A statement is being sent. Should it never end, the connection counts as busy.
    pub(super) fn begins(&mut self, sql: Option<&sqlx::SqlStr>) {
        self.state = State::Busy;
        let activity = if self.in_transaction {
            Activity::RunningInTransaction
        } else {
            Activity::Running
        };
        self.inner.book.activity(self.key, activity, sql);
    }

    /// A statement has ended.
    pub(super) async fn ended<T>(
        &mut self,
        result: Result<T, sqlx::Error>,
        phase: Phase,
    ) -> Result<T, Judged<sqlx::Error>> {
        let ended = self.ended_with(result, phase).await;
        ended.map_err(|(error, verdict)| Judged::by(error, verdict))
    }

    /// A statement has ended; its error comes with the whole of the verdict.
    pub(super) async fn ended_with<T>(
        &mut self,
        result: Result<T, sqlx::Error>,
        phase: Phase,
    ) -> Result<T, (sqlx::Error, DbVerdict)> {
        let error = match result {
            Ok(answer) => {
                self.rests();
                return Ok(answer);
            }
            Err(error) => error,
        };
        let verdict = self.judge(&error, phase);
        if verdict.fate == Fate::Discard {
            self.lose();
        } else if verdict.heal == Heal::ClearStatements {
            let cleared = self.session().connection().clear_cached_statements();
            match time::within(HEAL, cleared).await {
                Some(Ok(())) => self.rests(),
                Some(Err(_)) | None => self.lose(),
            }
        } else {
            self.rests();
        }
        Err((error, verdict))
    }

    pub(super) fn judge(&self, error: &sqlx::Error, phase: Phase) -> DbVerdict {
        let verdict = classify::database(error, phase);
        let direct = self.inner.settings.pooler == PoolerMode::Direct;
        if !direct && phase == Phase::Statement && verdict.kind == Kind::Unavailable {
            // Whose end a pooler reports can't be told.
            return classify::lost(phase);
        }
        let code = error.as_database_error().and_then(|error| error.code());
        if self.read_only && code.as_deref() == Some("25006") {
            return DbVerdict {
                kind: Kind::Invalid,
                fate: Fate::Keep,
                why: "it is the transaction that is read-only, not the server",
                ..verdict
            };
        }
        verdict
    }

    fn rests(&mut self) {
        let (state, activity) = if self.in_transaction {
            (State::Doubtful, Activity::InTransaction)
        } else {
            (State::Clean, Activity::Idle)
        };
        self.state = state;
        self.inner.book.activity(self.key, activity, None);
    }

    /// The connection is of no use any more, and perhaps none of the others is.
    pub(super) fn lose(&mut self) {
        self.state = State::Lost;
        self.inner.at_hand.suspect_all();
        self.inner.book.disconnected();
    }

    /// A transaction of ours is open on it, or no longer.
    pub(super) fn set_in_transaction(&mut self, open: bool) {
        self.in_transaction = open;
        if self.state != State::Lost {
            self.rests();
        }
    }

    /// The call that it was taken for is over.
    pub(super) fn settled(&self, kind: Kind) {
        let now = time::now();
        let took = now.saturating_duration_since(self.started);
        self.inner.book.settled(took, kind, now);
    }

    /// The connection, for a statement that was announced.
    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        self.session().connection()
    }

    /// Whether named statements must not be left behind on the server.
    pub(super) fn is_plain(&self) -> bool {
        self.inner.is_plain()
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn inner(&self) -> &Arc<Inner<DB>> {
        &self.inner
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The connection, of which nothing is known from here on.
    pub(super) fn untracked(&mut self) -> &mut DB::Connection {
        if self.state != State::Busy || DB::RESUMES {
            self.state = State::Untracked;
        }
        self.session().connection()
    }

    /// sqlx's own guard. The connection is no longer tracked, and its slot is free.
    pub(super) fn into_inner(mut self) -> PoolConnection<DB> {
        let session = self.session.take().expect(HELD);
        self.inner.book.close(self.key, &self.inner.reporter);
        session.into_inner()
    }

    fn session(&mut self) -> &mut Session<DB> {
        self.session.as_mut().expect(HELD)
    }
}

/// A connection whose user runs statements through us.
pub(super) struct Tracked<'l, DB: Driver> {
    pub(super) lease: &'l mut Lease<DB>,
}

impl<DB: Driver> Tracked<'_, DB> {
    pub(super) async fn statement<T>(
        &mut self,
        query: Replay<DB>,
        run_on: RunOn<DB, T>,
    ) -> Result<T, sqlx::Error> {
        let query = self.ready(query).await?;
        self.lease.begins(Some(query.text()));
        let result = run_on(self.lease.connection(), query).await;
        self.saw(result).await
    }

    /// The query, if the connection can take one.
    pub(super) async fn ready(&mut self, query: Replay<DB>) -> Result<Replay<DB>, sqlx::Error> {
        let lost = match self.lease.state {
            State::Busy if !DB::RESUMES => "a statement was dropped on it before it had ended",
            State::Lost => "it was lost",
            _ => return Ok(query),
        };
        let lost = format!("the connection can't be used any more: {lost}");
        Err(io::Error::new(io::ErrorKind::NotConnected, lost).into())
    }

    /// Takes note of how a statement ended.
    pub(super) async fn saw<T>(
        &mut self,
        result: Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let ended = self.lease.ended(result, Phase::Statement).await;
        if self.lease.state == State::Clean {
            // It may have been a BEGIN.
            self.lease.state = State::Doubtful;
        }
        ended.map_err(|judged| judged.error)
    }
}

impl<DB: Driver> Deref for Lease<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.session.as_ref().expect(HELD).shared()
    }
}

impl<DB: Driver> DerefMut for Lease<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.untracked()
    }
}

impl<DB: Driver> Drop for Lease<DB> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let hold = self.hold.take();
        match self.state {
            State::Clean => {
                self.inner.book.close(self.key, &self.inner.reporter);
                self.inner.put_back(session, hold);
            }
            State::Lost => {
                self.inner.book.close(self.key, &self.inner.reporter);
                session.close();
            }
            State::Doubtful | State::Untracked | State::Busy => {
                reaper::reap(&self.inner, session, hold, self.key, self.state);
            }
        }
    }
}

impl<DB: Driver> fmt::Debug for Lease<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("session", &self.session)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

const HELD: &str = "a lease has its session until it is given back";

/// Forgetting statements takes one round trip.
const HEAL: Duration = Duration::from_secs(1);
