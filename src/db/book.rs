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
    use std::sync::Arc;

    use allocation_counter::measure;
    use tokio::time::advance;

    use super::*;
    use crate::event::{Name, Observer};

    const SECOND: Duration = Duration::from_secs(1);

    /// What was told, in a few words each.
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn on_event(&self, event: &Event<'_>) {
            let told = match event {
                Event::Leak { name, lease } => format!("{name}: leak {}", lease.id),
                Event::LeakReturned { name, lease } => format!("{name}: returned {}", lease.id),
                Event::IdleInTransaction { name, lease } => format!("{name}: idle {}", lease.id),
                Event::CommitResolved { name, committed } => {
                    format!("{name}: committed {committed}")
                }
                other => panic!("nothing else is told here: {other:?}"),
            };
            self.0.lock().unwrap().push(told);
        }
    }

    impl Heard {
        fn reporter() -> (Arc<Self>, Reporter) {
            let heard = Arc::new(Self::default());
            let mut reporter = Reporter::new("db");
            reporter.observe(heard.clone());
            (heard, reporter)
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_told_of_with_what_it_does_until_it_is_closed() {
        let (book, reporter) = (Book::new(time::now()), Reporter::new("db"));
        let key = book.open(Taken::default(), Duration::ZERO, time::now());
        advance(2 * SECOND).await;
        let sql = SqlStr::from_static("SELECT 1");
        book.activity(key, Activity::Running, Some(&sql));
        advance(SECOND).await;
        let oldest = book.oldest(time::now()).expect("it is open");
        assert_eq!((oldest.age, oldest.activity_for), (3 * SECOND, SECOND));
        assert_eq!(oldest.activity, Activity::Running);
        assert_eq!(oldest.statement, Some(Name::new("SELECT 1")));
        assert_eq!(book.in_use(), 1);
        book.close(key, &reporter);
        assert_eq!((book.in_use(), book.oldest(time::now())), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_and_given_back_changes_how_many_are_in_use() {
        let (book, reporter) = (Book::new(time::now()), Reporter::new("db"));
        let open = || book.open(Taken::default(), Duration::ZERO, time::now());
        let (first, _second) = (open(), open());
        advance(SECOND).await;
        book.close(first, &reporter);
        advance(SECOND).await;
        assert_eq!(book.leases().usage.mean(time::now()), 1.5);
    }

    #[test]
    fn a_wait_for_a_connection_is_no_call() {
        let now = time::now();
        let book = Book::new(now);
        book.open(Taken::default(), 3 * SECOND, now);
        let mut meters = book.meters();
        assert_eq!(meters.waits.mean(now), 3 * SECOND);
        assert_eq!(meters.calls.calls(now), 0);
    }

    #[test]
    fn an_error_is_what_speaks_against_the_database() {
        let now = time::now();
        for (kinds, calls, error_rate) in [
            (&[Kind::Success, Kind::Invalid, Kind::Conflict][..], 1, 0.0),
            (&[Kind::Ignored, Kind::Saturated], 0, 0.0),
            (&[Kind::Overloaded, Kind::Unavailable], 1, 1.0),
            (&[Kind::TimedOut, Kind::Ambiguous, Kind::Broken], 1, 1.0),
        ] {
            for kind in kinds {
                let book = Book::new(now);
                book.settled(SECOND, *kind, now);
                let counted = &mut book.meters().calls;
                let found = (counted.calls(now), counted.error_rate(now));
                assert_eq!(found, (calls, error_rate), "{kind}");
            }
        }
    }

    #[test]
    fn a_lost_connection_is_counted() {
        let book = Book::new(time::now());
        book.disconnected();
        assert_eq!(book.meters().calls.disconnects(time::now()), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_overdue_is_told_once_and_a_leaks_return_as_well() {
        let book = Book::new(time::now());
        let (heard, reporter) = Heard::reporter();
        let patience = Patience {
            leak_after: 30 * SECOND,
            idle_in_transaction_after: 10 * SECOND,
        };
        let key = book.open(Taken::default(), Duration::ZERO, time::now());
        book.activity(key, Activity::InTransaction, None);
        for (second, told) in [
            (9, &[][..]),
            (10, &["db: idle 1"]),
            (29, &[]),
            (30, &["db: leak 1"]),
            (60, &[]),
        ] {
            let now = time::now() + second * SECOND;
            book.report_overdue(&reporter, patience, now);
            assert_eq!(heard.take(), told, "after {second} s");
        }
        book.close(key, &reporter);
        assert_eq!(heard.take(), ["db: returned 1"]);
        let early = book.open(Taken::default(), Duration::ZERO, time::now());
        book.close(early, &reporter);
        assert_eq!(heard.take(), [""; 0]);
    }

    #[test]
    fn the_fates_of_commits_are_told_and_counted_apart() {
        let book = Book::new(time::now());
        let (heard, reporter) = Heard::reporter();
        for committed in [true, true, false] {
            book.fate(committed, &reporter);
        }
        let [committed, aborted] =
            [&book.committed, &book.aborted].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!((committed, aborted), (2, 1));
        let told = [
            "db: committed true",
            "db: committed true",
            "db: committed false",
        ];
        assert_eq!(heard.take(), told);
    }

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
