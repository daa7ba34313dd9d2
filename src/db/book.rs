//! What is written down of a database: who holds its connections, and how calls fare.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::SqlStr;

pub(super) use crate::{
    db::lease::{Key, Taken},
    event::Activity,
};
use crate::{
    db::{
        lease::{Overdue, Patience, Registry},
        meter::{Meter, Outcome},
        usage::Usage,
    },
    event::{Event, LeaseReport, Reporter},
    kind::Kind,
    time,
};

/// The accounts of one database. Two locks, neither of which is held while anything else happens.
#[derive(Debug)]
pub(super) struct Book {
    leases: Mutex<Leases>,
    meters: Mutex<Meters>,
    pub(super) reaping: AtomicUsize,
    pub(super) committed: AtomicU64,
    pub(super) aborted: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Leases {
    pub(super) registry: Registry<SqlStr>,
    pub(super) usage: Usage,
}

#[derive(Debug)]
pub(super) struct Meters {
    pub(super) calls: Meter,
    pub(super) waits: Meter,
}

impl Book {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            leases: Mutex::new(Leases {
                registry: Registry::default(),
                usage: Usage::new(now),
            }),
            meters: Mutex::new(Meters {
                calls: Meter::new(now),
                waits: Meter::new(now),
            }),
            reaping: AtomicUsize::new(0),
            committed: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
        }
    }

    /// A connection was taken, after its caller had `waited`.
    pub(super) fn open(&self, taken: Taken, waited: Duration, now: Instant) -> Key {
        self.meters().waits.record(waited, Outcome::Good, now);
        let mut leases = self.leases();
        let key = leases.registry.open(taken, now);
        leases.count(now);
        key
    }

    /// A connection was given back. That of a leak is told.
    pub(super) fn close(&self, key: Key, reporter: &Reporter) {
        let now = time::now();
        let closed = {
            let mut leases = self.leases();
            let closed = leases.registry.close(key, now);
            leases.count(now);
            closed
        };
        if let Some(lease) = closed.and_then(|closed| closed.leak) {
            reporter.emit(|name| Event::LeakReturned {
                name,
                lease: &lease,
            });
        }
    }

    /// What the holder of a connection does with it from now on.
    pub(super) fn activity(&self, key: Key, activity: Activity, sql: Option<&SqlStr>) {
        let now = time::now();
        let mut leases = self.leases();
        if let Some(sql) = sql {
            leases.registry.sent(key, sql.clone());
        }
        leases.registry.state(key, activity, now);
    }

    /// A call is over.
    pub(super) fn settled(&self, took: Duration, kind: Kind, now: Instant) {
        let outcome = match kind {
            Kind::Success | Kind::Invalid | Kind::Conflict => Outcome::Good,
            Kind::Ignored | Kind::Saturated => Outcome::Ignored,
            Kind::Overloaded
            | Kind::Unavailable
            | Kind::TimedOut
            | Kind::Ambiguous
            | Kind::Broken => Outcome::Bad,
        };
        self.meters().calls.record(took, outcome, now);
    }

    /// A connection was lost.
    pub(super) fn disconnected(&self) {
        let now = time::now();
        self.meters().calls.disconnected(now);
    }

    pub(super) fn in_use(&self) -> usize {
        self.leases().registry.len()
    }

    /// The lease that has lasted longest.
    pub(super) fn oldest(&self, now: Instant) -> Option<LeaseReport> {
        self.leases().registry.list(now).into_iter().next()
    }

    /// Tells of what is overdue.
    pub(super) fn report_overdue(&self, reporter: &Reporter, patience: Patience, now: Instant) {
        let overdue = self.leases().registry.overdue(patience, now);
        for overdue in &overdue {
            reporter.emit(|name| match overdue {
                Overdue::Leak(lease) => Event::Leak { name, lease },
                Overdue::IdleInTransaction(lease) => Event::IdleInTransaction { name, lease },
            });
        }
    }

    /// It was found out how a COMMIT ended whose reply was lost.
    pub(super) fn fate(&self, committed: bool, reporter: &Reporter) {
        let counter = if committed {
            &self.committed
        } else {
            &self.aborted
        };
        counter.fetch_add(1, Ordering::Relaxed);
        reporter.emit(|name| Event::CommitResolved { name, committed });
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn meters(&self) -> MutexGuard<'_, Meters> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leases {
    fn count(&mut self, now: Instant) {
        let in_use = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
        self.usage.change(in_use, now);
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use allocation_counter::measure;

    use super::*;

    #[test]
    fn to_write_a_lease_down_costs_no_memory_and_few_moves() {
        let book = Book::new(time::now());
        let reporter = Reporter::new("db");
        let sql = SqlStr::from_static("SELECT 1");
        let lease = || {
            let now = time::now();
            let key = book.open(Taken::default(), Duration::ZERO, now);
            book.activity(key, Activity::Running, Some(&sql));
            book.activity(key, Activity::Idle, None);
            book.close(key, &reporter);
        };
        (0..100).for_each(|_| lease());
        let lock = Mutex::new(0_u64);
        let locked = took(|| *lock.lock().unwrap() += 1);
        let mut written = Duration::MAX;
        let allocated = measure(|| written = took(lease));
        let times = written.as_secs_f64() / locked.as_secs_f64();
        println!("{written:?} for each lease, {times:.0} times a lock and its release");
        assert_eq!(allocated.count_total, 0);
        assert_eq!(book.in_use(), 0);
    }

    /// How long one takes, at best.
    fn took(mut one: impl FnMut()) -> Duration {
        const TIMES: u32 = 1_000;
        let rounds = (0..20).map(|_| {
            let started = time::now();
            (0..TIMES).for_each(|_| one());
            time::now().saturating_duration_since(started) / TIMES
        });
        rounds.min().expect("there are rounds")
    }
}
