//! Getting a connection, and finding out why there is none.
//!
//! ```text
//!   at hand and fresh? ──────────────────────────────────────────────► lease
//!        │ no
//!   sqlx's pool ── within a tenth of a second ── alive? ─────────────► lease
//!        │ it takes longer
//!        ▼
//!   one connect of our own: ── it fails ──► the server is down, or has no slots: that very error
//!                           └─ it works ──► the pool is slow or full: wait; then `PoolFull`, with who holds it
//! ```
//!
//! Invariants:
//! 1. Whoever has a lease has a slot of the limiter, or is the reaper; the slot is free when the lease is over *and* the server is done with it.
//! 2. A connection is at hand only if nothing runs on it and no transaction is open.

use std::{
    fmt, io,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_core::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, Database, Pool, pool::PoolConnection};
use tokio::{runtime::Handle, sync};

use crate::{
    ambient,
    breaker::Breaker,
    classify::{self, Phase},
    db::{
        book::Book,
        driver::{Driver, Fates, Flags, Identity, Limits},
        guard::Lease,
        lease::{Patience, Taken},
        pooler::PoolerMode,
        session::{AtHand, FRESH, Session},
        transaction::nested,
        verdict::{Failed, Guarded, Judged},
    },
    error::Rejected,
    event::Reporter,
    kind::Kind,
    limit::{self, ConcurrencyLimiter},
    time,
};

/// What all handles of one `Db` share.
pub(super) struct Inner<DB: Driver> {
    pub(super) pool: Pool<DB>,
    pub(super) limiter: ConcurrencyLimiter,
    pub(super) breaker: Breaker,
    pub(super) shields: Shields,
    pub(super) settings: Settings,
    pub(super) reporter: Reporter,
    pub(super) book: Book,
    pub(super) flags: Flags,
    pub(super) fates: Fates,
    pub(super) at_hand: AtHand<DB>,
    pub(super) admin: Admin<DB>,
    pub(super) keeping: AtomicBool,
}

/// The stack for each way of using the database.
pub(super) struct Shields {
    pub(super) cautious: Guarded,
    pub(super) idempotent: Guarded,
    pub(super) once: Guarded,
    pub(super) transaction: Guarded,
    pub(super) transaction_once: Guarded,
}

/// How it behaves.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// How long a transaction may take in all.
    pub(super) deadline: Duration,
    /// How long one statement's attempt may take.
    pub(super) attempt_deadline: Duration,
    pub(super) acquire: Duration,
    pub(super) connect: Duration,
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle_in_transaction: Duration,
    pub(super) check_interval: Duration,
    /// What is said with each transaction, as it could not be said when connecting.
    pub(super) check_behind: Option<Duration>,
    /// Whether to wait while the server is away, rather than to say so.
    pub(super) waits: bool,
    /// Whether sqlx asks a connection by itself before it hands it out.
    pub(super) pool_pings: bool,
    pub(super) pre_ping: bool,
    pub(super) pooler: PoolerMode,
    /// Connections above this number are closed when they are idle.
    pub(super) base_size: u32,
    pub(super) patience: Patience,
}

impl<DB: Driver> Inner<DB> {
    /// A connection that is well, for a call that has its slot.
    ///
    /// # Cancel safety
    /// What was asked meanwhile is closed or given back.
    pub(super) async fn checkout(self: &Arc<Self>, taken: Taken) -> Result<Lease<DB>, Failed> {
        if let Some(nested) = nested(self, &taken) {
            return Err(Judged::new(nested, Kind::Ignored).into());
        }
        let hold = limit::hold();
        let started = time::now();
        let by = started + self.settings.acquire;
        let mut strangers = 0;
        let session = loop {
            if let Some((session, fresh)) = self.at_hand.take(time::now()) {
                if fresh {
                    break session;
                }
                match self.ask(session, by).await {
                    Ok(session) => break session,
                    Err(error) => self.can_go_on(error, by)?,
                };
                continue;
            }
            let connection = self.from_pool(by).await?;
            let new = self.at_hand.admit(connection, time::now());
            // Where there is somebody to stop, it must be known who that is before the first statement.
            let pinged = self.settings.pool_pings && self.settings.pooler != PoolerMode::Direct;
            let trusted = pinged || !self.settings.pre_ping;
            if trusted && DB::CANCELS {
                break new;
            }
            match self.ask(new, by).await {
                Ok(session) => break session,
                Err(error) => {
                    let verdict = classify::database(&error, Phase::Connect);
                    let error = self.can_go_on(error, by)?;
                    strangers += 1;
                    // There were no more old ones: this one was new.
                    if strangers > self.pool.options().get_max_connections() {
                        return Err(Judged::by(error, verdict).into());
                    }
                }
            }
        };
        Ok(Lease::new(self, session, hold, taken, started))
    }

    /// The session, if it answers by then; else it is closed.
    ///
    /// Where it is silent, another connection is asked. Had that an answer, this one is dead. Had it none, the server is slow, or the pooler full: then
    /// it would be no better to begin anew, behind all others who wait.
    pub(super) async fn ask(
        self: &Arc<Self>,
        session: Session<DB>,
        by: Instant,
    ) -> Result<Session<DB>, sqlx::Error> {
        // Closed, should this future be dropped: an answer may be under way.
        let mut asked = Asked(Some(session));
        let session = asked.0.as_mut().expect("it is there until it answered");
        let started = time::now();
        let answered = {
            let mut answer = pin!(DB::identify(session.connection(), &self.flags));
            match time::until(by.min(started + PING), answer.as_mut()).await {
                None if DB::CANCELS => {
                    let mut another = pin!(time::until(by, self.answers(started)));
                    std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                        Poll::Ready(answered) => Poll::Ready(Some(answered)),
                        Poll::Pending => another.as_mut().poll(cx).map(|another| {
                            if matches!(another, Some(Ok(()))) {
                                // Where one is dead, others are; to ask each of them would take as long.
                                self.drop_idle(time::now());
                            }
                            None
                        }),
                    })
                    .await
                }
                // Nothing lies between us and an embedded database.
                None => time::until(by, answer).await,
                answered => answered,
            }
        };
        match answered {
            Some(Ok(identity)) => {
                self.at_hand.vouch(session, self.reliable(identity));
                Ok(asked.0.take().expect("it is there until it answered"))
            }
            failed => {
                self.book.disconnected();
                let silent = || {
                    let waited = time::now().saturating_duration_since(started);
                    let silent = format!("the connection did not answer within {waited:.0?}");
                    io::Error::new(io::ErrorKind::TimedOut, silent).into()
                };
                Err(failed.and_then(Result::err).unwrap_or_else(silent))
            }
        }
    }

    /// Gives the error back of a connection that is no good, if another one may be.
    fn can_go_on(&self, error: sqlx::Error, by: Instant) -> Result<sqlx::Error, Failed> {
        let mut verdict = classify::database(&error, Phase::Connect);
        let late = time::now() >= by;
        if late && self.settings.pooler != PoolerMode::Direct {
            // It took us in, and had no server for us.
            verdict.kind = Kind::Overloaded;
        }
        if late || verdict.kind == Kind::Overloaded {
            return Err(Judged::by(error, verdict).into());
        }
        Ok(error)
    }

    /// Ready once the server has answered somebody who came after `since`. One at a time, for all who wait.
    async fn answers(self: &Arc<Self>, since: Instant) -> Result<(), sqlx::Error> {
        let mut connection = self.admin.connection.lock().await;
        if self.admin.has_answered(since) {
            return Ok(());
        }
        let began = time::now();
        let mut opened = self.connect().await?;
        DB::identify(&mut opened, &self.flags).await?;
        self.admin.answered(began);
        self.admin.reached(time::now());
        *connection = Some(opened);
        self.keep_house_later(&Handle::current());
        Ok(())
    }

    /// Closes the connections that nobody uses and that would have to be asked first.
    pub(super) fn drop_idle(&self, now: Instant) {
        for session in self.at_hand.doubtful(now) {
            session.close();
        }
        for _ in 0..self.pool.num_idle() {
            let Some(connection) = self.pool.try_acquire() else {
                break;
            };
            drop(connection.detach());
        }
    }

    /// What is known of a connection, as far as it stays true.
    pub(super) fn reliable(&self, mut identity: Identity) -> Identity {
        if self.settings.pooler != PoolerMode::Direct {
            // The server's session behind a pooler may be another one with each transaction.
            identity.session = None;
        }
        identity
    }

    /// Until when the server may be busy with a transaction that begins now.
    pub(super) fn limits(&self, now: Instant) -> Limits {
        let settings = &self.settings;
        let left =
            ambient::current().map_or(settings.deadline, |at| at.saturating_duration_since(now));
        // The server ends a statement a little earlier than we would.
        let left = left.saturating_sub(EARLIER);
        Limits {
            statement: settings.statement.min(left),
            lock: settings.lock.min(left),
            idle: settings.idle_in_transaction.min(left + EARLIER + IDLE),
            check: settings.check_behind,
        }
    }

    /// Whether a connection can be one's own for longer than a transaction.
    pub(super) fn has_sessions(&self) -> Result<(), sqlx::Error> {
        if !self.is_plain() {
            return Ok(());
        }
        let why = "behind a pooler by transaction no connection is one's own: use `begin` or `transaction`, \
                   or, if the pooler knows prepared statements, PoolerMode::TransactionWithPrepared";
        Err(sqlx::Error::Configuration(why.into()))
    }

    /// Whether named statements must not be left behind on the server.
    pub(super) fn is_plain(&self) -> bool {
        self.settings.pooler == PoolerMode::TransactionPlain
    }

    /// A connection from sqlx's pool, or why there is none.
    async fn from_pool(
        self: &Arc<Self>,
        acquire_by: Instant,
    ) -> Result<PoolConnection<DB>, Failed> {
        let deadline = ambient::current();
        let by = deadline.map_or(acquire_by, |deadline| deadline.min(acquire_by));
        let mut may_be_stuck = self.settings.pool_pings && DB::CANCELS;
        loop {
            let why_not = {
                // Gone before anything else is awaited: it may hold what that waits for.
                let mut why_not = pin!(self.why_not(by, may_be_stuck));
                loop {
                    let mut acquiring = Acquiring::new(self);
                    let either = std::future::poll_fn(|cx| {
                        if let Poll::Ready(acquired) = acquiring.poll(cx) {
                            return Poll::Ready(Ok(acquired));
                        }
                        why_not.as_mut().poll(cx).map(Err)
                    });
                    let either = either.await;
                    let in_a_hurry = by < acquire_by && matches!(either, Err(WhyNot::Full));
                    if !in_a_hurry {
                        acquiring.end();
                    }
                    match either {
                        Ok(Ok(connection)) => return Ok(connection),
                        // Its own patience may be shorter than ours.
                        Ok(Err(sqlx::Error::PoolTimedOut)) if time::now() < by => {}
                        Ok(Err(sqlx::Error::PoolTimedOut)) => break WhyNot::Full,
                        Ok(Err(error)) => break WhyNot::Away(error),
                        Err(why_not) => break why_not,
                    }
                }
            };
            match why_not {
                WhyNot::Stuck => {
                    may_be_stuck = false;
                    self.drop_idle(time::now());
                }
                WhyNot::Away(error) => self.wait_for_server(error, by).await?,
                WhyNot::Full if by < acquire_by => {
                    return Err(Failed::Rejected(Rejected::DeadlineExceeded { sent: false }));
                }
                WhyNot::Full if self.admin.is_reachable() => {
                    let full = sqlx::Error::Io(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        self.pool_full(),
                    ));
                    return Err(Judged::new(full, Kind::Saturated).into());
                }
                WhyNot::Full => {
                    let silent = format!(
                        "no connection to the server was made within {:?}",
                        self.settings.acquire
                    );
                    let silent = io::Error::new(io::ErrorKind::TimedOut, silent);
                    return Err(Judged::new(silent.into(), Kind::Unavailable).into());
                }
            }
        }
    }

    /// Ready with a reason as soon as there is one, at the latest when the time is over.
    async fn why_not(self: &Arc<Self>, by: Instant, may_be_stuck: bool) -> WhyNot {
        let stuck = time::now() + PATIENCE + PING;
        loop {
            let again = time::now() + PATIENCE;
            time::sleep_until(again.min(by)).await;
            if again >= by {
                return WhyNot::Full;
            }
            // The server may have gone since it was last seen. The pool would not say so: it tries again, after ever longer pauses.
            if let Some(Err(error)) = time::until(by, self.probe()).await {
                return WhyNot::Away(error);
            }
            if may_be_stuck && time::now() >= stuck {
                return WhyNot::Stuck;
            }
        }
    }

    /// The server is away: fails with its error, unless calls are to wait and it comes back in time.
    async fn wait_for_server(
        self: &Arc<Self>,
        mut error: sqlx::Error,
        by: Instant,
    ) -> Result<(), Failed> {
        loop {
            let verdict = classify::database(&error, Phase::Connect);
            let passes = matches!(verdict.kind, Kind::Unavailable | Kind::Overloaded);
            let again = time::now() + AWAY + AWAY.mul_f64(fastrand::f64());
            if !self.settings.waits || !passes || again >= by {
                return Err(Judged::by(error, verdict).into());
            }
            time::sleep_until(again).await;
            match time::until(by, self.probe()).await {
                Some(Ok(())) => return Ok(()),
                Some(Err(still)) => error = still,
                None => {}
            }
        }
    }

    /// Connects once by itself, unless that worked a moment ago. One at a time.
    async fn probe(self: &Arc<Self>) -> Result<(), sqlx::Error> {
        let mut connection = self.admin.connection.lock().await;
        if self.admin.is_reachable() {
            return Ok(());
        }
        let opened = self.connect().await?;
        self.admin.reached(time::now());
        *connection = Some(opened);
        self.keep_house_later(&Handle::current());
        Ok(())
    }

    async fn connect(&self) -> Result<DB::Connection, sqlx::Error> {
        let options = self.pool.connect_options();
        let limit = self.settings.connect;
        match time::within(limit, options.connect()).await {
            Some(opened) => opened,
            None => {
                let silent = format!("the server did not answer within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, silent).into())
            }
        }
    }

    /// Asks something beside the pool, on a connection of its own.
    pub(super) async fn with_admin<A, T>(
        self: &Arc<Self>,
        limit: Duration,
        about: &A,
        ask: Ask<DB, A, T>,
    ) -> Result<T, sqlx::Error> {
        let mut kept = self.admin.connection.lock().await;
        loop {
            // Taken out, so that it is closed where this future is dropped or fails.
            let (mut connection, old) = match kept.take() {
                Some(connection) => (connection, true),
                None => (self.connect().await?, false),
            };
            match time::within(limit, ask(&mut connection, about)).await {
                Some(Ok(answer)) => {
                    *kept = Some(connection);
                    self.admin.reached(time::now());
                    self.keep_house_later(&Handle::current());
                    return Ok(answer);
                }
                Some(Err(sqlx::Error::Database(error))) if !is_fatal(&*error) => {
                    *kept = Some(connection);
                    return Err(sqlx::Error::Database(error));
                }
                // It may have died since it was last used.
                _ if old => {}
                Some(Err(error)) => return Err(error),
                None => {
                    let silent = format!("the server did not answer within {limit:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silent).into());
                }
            }
        }
    }

    fn pool_full(&self) -> PoolFull {
        let now = time::now();
        PoolFull {
            max: self.pool.options().get_max_connections(),
            ours: self.book.in_use(),
            holder: self.book.oldest(now),
            waited: self.settings.acquire,
        }
    }

    /// Takes back a connection on which nothing runs and no transaction is open.
    pub(super) fn put_back(self: &Arc<Self>, session: Session<DB>, hold: Option<limit::Hold>) {
        if session.identity.is_none() && DB::CANCELS && self.settings.pooler == PoolerMode::Direct {
            // The first call on it is over: time to learn whom to stop if the next one is dropped.
            let (inner, runtime) = (Arc::clone(self), session.runtime());
            runtime.spawn(async move {
                let by = time::now() + inner.settings.acquire;
                if let Ok(session) = inner.ask(session, by).await {
                    inner.put_at_hand(session).await;
                }
                drop(hold);
            });
            return;
        }
        // A lease may be dropped outside of its runtime.
        let runtime = session.runtime();
        match self.at_hand.keep(session, time::now()) {
            None => self.keep_house_later(&runtime),
            Some(session) => {
                let inner = Arc::clone(self);
                runtime.spawn(async move {
                    inner.return_to_pool(session).await;
                    drop(hold);
                });
            }
        }
    }

    pub(super) async fn put_at_hand(self: &Arc<Self>, session: Session<DB>) {
        match self.at_hand.keep(session, time::now()) {
            None => self.keep_house_later(&Handle::current()),
            Some(session) => self.return_to_pool(session).await,
        }
    }

    pub(super) async fn return_to_pool(&self, session: Session<DB>) {
        if self.pool.size() > self.settings.base_size || self.at_hand.is_retired(&session) {
            session.close();
        } else {
            session.give_back().await;
        }
    }

    /// Starts the task that looks after what lies around, unless it runs.
    pub(super) fn keep_house_later(self: &Arc<Self>, runtime: &Handle) {
        // Relaxed: whoever finds it running has left something, which the task's last look comes after, or is told by the swap.
        if self.keeping.load(Ordering::Relaxed) || self.keeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let keeper = Keeper(Arc::downgrade(self));
        runtime.spawn(async move {
            loop {
                time::sleep(FRESH / 2).await;
                let Some(inner) = keeper.0.upgrade() else {
                    return;
                };
                inner.keep_house().await;
                if inner.is_tidy() {
                    inner.keeping.store(false, Ordering::Release);
                    // Whoever left something meanwhile found us still there.
                    if inner.is_tidy() || inner.keeping.swap(true, Ordering::AcqRel) {
                        return keeper.done();
                    }
                }
            }
        });
    }

    async fn keep_house(self: &Arc<Self>) {
        let now = time::now();
        for session in self.at_hand.stale(now) {
            // Each by itself: one may be silent.
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.return_to_pool(session).await });
        }
        self.book
            .report_overdue(&self.reporter, self.settings.patience, now);
        if self.admin.is_idle(now)
            && let Ok(mut connection) = self.admin.connection.try_lock()
            && let Some(connection) = connection.take()
        {
            let _ = time::within(GOODBYE, connection.close()).await;
        }
    }

    fn is_tidy(&self) -> bool {
        let admin = self.admin.connection.try_lock();
        self.at_hand.len() == 0 && self.book.in_use() == 0 && admin.is_ok_and(|kept| kept.is_none())
    }
}

/// The task that looks after what lies around. Should its runtime end, somebody else takes over.
struct Keeper<DB: Driver>(Weak<Inner<DB>>);

impl<DB: Driver> Keeper<DB> {
    /// It has said already that it is gone.
    fn done(mut self) {
        self.0 = Weak::new();
    }
}

impl<DB: Driver> Drop for Keeper<DB> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.keeping.store(false, Ordering::Release);
        }
    }
}

/// A session that was asked whether it is well. Dropped, it is closed.
struct Asked<DB: Driver>(Option<Session<DB>>);

impl<DB: Driver> Drop for Asked<DB> {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.close();
        }
    }
}

/// A question to the server about something.
type Ask<DB, A, T> = for<'e> fn(
    &'e mut <DB as Database>::Connection,
    &'e A,
) -> BoxFuture<'e, Result<T, sqlx::Error>>;

/// The pool is getting a connection. Dropped, it goes on for a while: closed half made, connections would never be there for callers in a hurry.
struct Acquiring<DB: Driver> {
    // `None` once it is over.
    future: Option<BoxFuture<'static, Result<PoolConnection<DB>, sqlx::Error>>>,
    inner: Arc<Inner<DB>>,
    hold: Option<limit::Hold>,
}

impl<DB: Driver> Acquiring<DB> {
    fn new(inner: &Arc<Inner<DB>>) -> Self {
        Self {
            future: Some(Box::pin(inner.pool.acquire())),
            inner: Arc::clone(inner),
            hold: limit::hold(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<PoolConnection<DB>, sqlx::Error>> {
        let future = self.future.as_mut().expect("it is polled until it is over");
        future.as_mut().poll(cx)
    }

    /// Nothing goes on.
    fn end(&mut self) {
        self.future = None;
    }
}

impl<DB: Driver> Drop for Acquiring<DB> {
    fn drop(&mut self) {
        let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) else {
            return;
        };
        let (inner, hold) = (Arc::clone(&self.inner), self.hold.take());
        runtime.spawn(async move {
            if let Some(Ok(connection)) = time::within(GOES_ON, future).await {
                let session = inner.at_hand.admit(connection, time::now());
                inner.put_back(session, hold);
            }
        });
    }
}

/// Why there is no connection.
enum WhyNot {
    /// Connecting fails.
    Away(sqlx::Error),
    /// The pool may be asking one that is dead, for which it has no limit.
    Stuck,
    /// The time is over, and nothing is known against the server.
    Full,
}

/// A connection beside the pool, for questions about the others, and when it last answered.
pub(super) struct Admin<DB: Driver> {
    pub(super) connection: sync::Mutex<Option<DB::Connection>>,
    reached: Mutex<Option<Instant>>,
    /// When the last one came who had an answer.
    answered: Mutex<Option<Instant>>,
}

impl<DB: Driver> Admin<DB> {
    pub(super) fn new() -> Self {
        Self {
            connection: sync::Mutex::new(None),
            reached: Mutex::new(None),
            answered: Mutex::new(None),
        }
    }

    /// Somebody who came then has had an answer.
    fn answered(&self, came: Instant) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(came);
    }

    fn has_answered(&self, since: Instant) -> bool {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.is_some_and(|came| came >= since)
    }

    fn reached(&self, now: Instant) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        let reached = *self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        Some(now.saturating_duration_since(reached?))
    }

    /// Whether the server could be reached a moment ago.
    fn is_reachable(&self) -> bool {
        self.age(time::now()).is_some_and(|age| age < BELIEVED)
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age >= ADMIN_IDLE)
    }
}

/// Every connection of the pool is in use, and the server is well.
///
/// It travels inside of an `sqlx::Error::Io` of the kind `ResourceBusy`.
///
/// ```
/// use steadfast::db::PoolFull;
///
/// fn explain(error: &sqlx::Error) -> Option<String> {
///     PoolFull::of(error).map(|full| full.to_string())
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolFull {
    /// The pool's size.
    pub max: u32,
    /// How many of its connections calls through this `Db` hold.
    pub ours: usize,
    /// The lease that has lasted longest.
    pub holder: Option<super::LeaseReport>,
    /// How long the call waited.
    pub waited: Duration,
}

impl PoolFull {
    /// The one inside of an error, if it is that.
    pub fn of(error: &sqlx::Error) -> Option<&Self> {
        match error {
            sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            max, ours, waited, ..
        } = self;
        write!(
            f,
            "no connection was free within {waited:?}: the pool has {max}, of which {ours} are in use here"
        )?;
        if let Some(holder) = &self.holder {
            write!(f, ", the longest {holder}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PoolFull {}

fn is_fatal(error: &dyn sqlx::error::DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some(code) if code.starts_with("57P") || code.starts_with("08"))
}

/// Getting a connection takes no longer where all is well.
const PATIENCE: Duration = Duration::from_millis(100);

/// A connection that is silent for so long is doubted. A packet that was lost is sent again after a fifth of a second.
const PING: Duration = Duration::from_millis(500);

/// The least time between two looks at whether the server is back; up to twice that.
const AWAY: Duration = Duration::from_millis(50);

/// The server was reached so recently that it need not be tried.
const BELIEVED: Duration = Duration::from_secs(1);

/// Making a connection goes on for so long without anybody who waits for it.
const GOES_ON: Duration = Duration::from_secs(1);

/// The connection for questions is closed after so long.
const ADMIN_IDLE: Duration = Duration::from_secs(10);

const GOODBYE: Duration = Duration::from_millis(200);

/// The server ends a statement so much earlier than its client, so that the client gets an answer.
const EARLIER: Duration = Duration::from_millis(50);

/// A transaction that we do not end for so long after its deadline is ended by the server.
const IDLE: Duration = Duration::from_secs(1);
