//! Who holds the connections: a list of leases.

use std::{
    panic::Location,
    time::{Duration, Instant},
};

use crate::{
    event::Name,
    held::{Activity, LeaseReport},
};

/// The leases that are open; whoever shares it puts it under a lock.
///
/// To open and to close one costs a few moves; memory is asked for only when there are more of them than ever before.
///
/// Invariant: `free` holds just the indices of the slots that are `None`.
#[derive(Debug)]
pub(crate) struct Registry<S> {
    slots: Vec<Option<Lease<S>>>,
    free: Vec<usize>,
    opened: u64,
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            opened: 0,
        }
    }
}

impl<S: AsRef<str>> Registry<S> {
    /// A connection was taken.
    pub(crate) fn open(&mut self, taken: Taken, now: Instant) -> Key {
        self.opened += 1;
        let id = self.opened;
        let lease = Lease {
            id,
            taken,
            statement: None,
            opened: now,
            activity: Activity::Idle,
            since: now,
            statements: 0,
            is_told: false,
            is_idle_told: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(lease);
                slot
            }
            None => {
                self.slots.push(Some(lease));
                self.slots.len() - 1
            }
        };
        Key { slot, id }
    }

    /// A connection was given back; `None` if it had been already.
    pub(crate) fn close(&mut self, key: Key, now: Instant) -> Option<Closed> {
        self.held(key)?;
        let lease = self.slots[key.slot].take()?;
        self.free.push(key.slot);
        Some(Closed {
            leak: lease.is_told.then(|| lease.report(now)),
        })
    }

    /// It does something else now; each time that it runs is a statement.
    pub(crate) fn state(&mut self, key: Key, activity: Activity, now: Instant) {
        if let Some(lease) = self.held(key) {
            let runs = activity.is_running();
            lease.statements += u64::from(runs);
            if runs || lease.activity != activity {
                lease.activity = activity;
                lease.since = now;
            }
        }
    }

    /// The text of the statement that it runs.
    pub(crate) fn sent(&mut self, key: Key, statement: S) {
        if let Some(lease) = self.held(key) {
            lease.statement = Some(statement);
        }
    }

    /// What became overdue, the oldest lease first. Each lease is told of once as a leak and once as idle in a transaction.
    pub(crate) fn overdue(&mut self, patience: Patience, now: Instant) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for lease in self.slots.iter_mut().flatten() {
            let is_past = |due: Option<Instant>| due.is_some_and(|due| due <= now);
            if is_past(lease.leak_due(patience)) {
                lease.is_told = true;
                overdue.push((lease.order(), Overdue::Leak(lease.report(now))));
            }
            if is_past(lease.idle_due(patience)) {
                lease.is_idle_told = true;
                let report = lease.report(now);
                overdue.push((lease.order(), Overdue::IdleInTransaction(report)));
            }
        }
        overdue.sort_by_key(|(order, _)| *order);
        overdue.into_iter().map(|(_, overdue)| overdue).collect()
    }

    /// The open leases, the oldest first.
    pub(crate) fn list(&self, now: Instant) -> Vec<LeaseReport> {
        let mut leases: Vec<_> = self.leases().collect();
        leases.sort_by_key(|lease| lease.order());
        leases.into_iter().map(|lease| lease.report(now)).collect()
    }

    /// How many of the open leases are held for longer than that.
    pub(crate) fn leaks(&self, leak_after: Duration, now: Instant) -> usize {
        self.leases()
            .filter(|lease| now.saturating_duration_since(lease.opened) >= leak_after)
            .count()
    }

    /// How many leases are open.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn leases(&self) -> impl Iterator<Item = &Lease<S>> {
        self.slots.iter().flatten()
    }

    fn held(&mut self, key: Key) -> Option<&mut Lease<S>> {
        let lease = self.slots.get_mut(key.slot)?.as_mut()?;
        // The slot may be another lease's by now.
        (lease.id == key.id).then_some(lease)
    }
}

/// How a connection was taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) location: Option<&'static Location<'static>>,
    pub(crate) operation: Option<Name>,
    /// The name of the tracing span.
    pub(crate) span: Option<&'static str>,
}

/// Names a lease; harmless once that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    slot: usize,
    id: u64,
}

/// A lease that is over.
#[derive(Debug)]
pub(crate) struct Closed {
    /// What to say of it if it was told of as a leak.
    pub(crate) leak: Option<LeaseReport>,
}

/// For how long nothing is said; [`Duration::MAX`] is for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// With a lease.
    pub(crate) leak_after: Duration,
    /// With a transaction that runs no statement.
    pub(crate) idle_in_transaction_after: Duration,
}

/// What has to be told of a lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    Leak(LeaseReport),
    IdleInTransaction(LeaseReport),
}

#[derive(Debug)]
struct Lease<S> {
    id: u64,
    taken: Taken,
    statement: Option<S>,
    opened: Instant,
    activity: Activity,
    /// When the activity began.
    since: Instant,
    statements: u64,
    is_told: bool,
    is_idle_told: bool,
}

impl<S: AsRef<str>> Lease<S> {
    fn report(&self, now: Instant) -> LeaseReport {
        let taken = self.taken.clone();
        LeaseReport {
            id: self.id,
            location: taken.location,
            operation: taken.operation,
            span: taken.span,
            statement: self
                .statement
                .as_ref()
                .map(|sql| Name::from(sql.as_ref().to_owned())),
            age: now.saturating_duration_since(self.opened),
            activity: self.activity,
            activity_for: now.saturating_duration_since(self.since),
            statements: self.statements,
        }
    }

    /// When it has to be told of as a leak.
    fn leak_due(&self, patience: Patience) -> Option<Instant> {
        let due = self.opened.checked_add(patience.leak_after);
        due.filter(|_| !self.is_told)
    }

    /// When it has to be told of as idle in its transaction.
    fn idle_due(&self, patience: Patience) -> Option<Instant> {
        let due = self.since.checked_add(patience.idle_in_transaction_after);
        due.filter(|_| !self.is_idle_told && self.activity == Activity::InTransaction)
    }

    /// The oldest is the least.
    fn order(&self) -> (Instant, u64) {
        (self.opened, self.id)
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use allocation_counter::measure;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, start};

    const PATIENCE: Patience = Patience {
        leak_after: Duration::from_secs(30),
        idle_in_transaction_after: Duration::from_secs(10),
    };

    #[test]
    fn a_leak_is_told_of_once_when_it_is_due() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        registry.open(named("a"), start);
        assert_eq!(registry.overdue(PATIENCE, at(start, 29.9)), []);
        assert_eq!(
            told(registry.overdue(PATIENCE, at(start, 30.0))),
            ["leak a"]
        );
        assert_eq!(registry.overdue(PATIENCE, at(start, 99.0)), []);
    }

    #[test]
    fn the_oldest_leak_is_told_of_first() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let gone = registry.open(named("gone"), start);
        registry.open(named("b"), at(start, 1.0));
        registry.close(gone, at(start, 2.0));
        // Takes the slot in front of the older one.
        registry.open(named("c"), at(start, 3.0));
        let overdue = registry.overdue(PATIENCE, at(start, 60.0));
        assert_eq!(told(overdue), ["leak b", "leak c"]);
        let listed = registry.list(at(start, 60.0));
        let ages: Vec<_> = listed.iter().map(|report| report.age.as_secs()).collect();
        assert_eq!(ages, [59, 57]);
    }

    #[test]
    fn a_return_is_told_of_only_if_the_leak_was() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let early = registry.open(named("early"), start);
        let late = registry.open(named("late"), start);
        let closed = registry.close(early, at(start, 29.0)).unwrap();
        assert_eq!(closed.leak, None);
        assert_eq!(registry.overdue(PATIENCE, at(start, 30.0)).len(), 1);
        let leak = registry.close(late, at(start, 45.0)).unwrap().leak.unwrap();
        assert_eq!((leak.id, leak.age.as_secs()), (2, 45));
    }

    #[test]
    fn a_transaction_that_idles_is_told_of_once_and_apart_from_the_leak() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let key = registry.open(named("a"), start);
        registry.state(key, Activity::RunningInTransaction, at(start, 1.0));
        registry.state(key, Activity::InTransaction, at(start, 12.0));
        assert_eq!(registry.overdue(PATIENCE, at(start, 21.9)), []);
        let idle = registry.overdue(PATIENCE, at(start, 22.0));
        assert_eq!(told(idle), ["idle a"]);
        let leak = registry.overdue(PATIENCE, at(start, 30.0));
        assert_eq!(told(leak), ["leak a"]);
        // It idles once more.
        registry.state(key, Activity::RunningInTransaction, at(start, 31.0));
        registry.state(key, Activity::InTransaction, at(start, 32.0));
        assert_eq!(registry.overdue(PATIENCE, at(start, 99.0)), []);
    }

    #[test]
    fn only_a_transaction_that_runs_nothing_idles_in_it() {
        let start = start();
        for activity in [
            Activity::Idle,
            Activity::Running,
            Activity::RunningInTransaction,
        ] {
            let mut registry = Registry::<&str>::default();
            let key = registry.open(named("a"), start);
            registry.state(key, activity, start);
            let overdue = registry.overdue(PATIENCE, at(start, 29.0));
            assert_eq!(overdue, [], "{activity:?}");
        }
    }

    #[test]
    fn being_told_the_same_again_starts_no_new_idleness() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let key = registry.open(named("a"), start);
        registry.state(key, Activity::InTransaction, start);
        registry.state(key, Activity::InTransaction, at(start, 5.0));
        let report = &registry.list(at(start, 8.0))[0];
        assert_eq!(report.idle_for(), Some(Duration::from_secs(8)));
    }

    #[test]
    fn each_statement_is_counted_and_the_last_one_is_shown() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let key = registry.open(named("a"), start);
        for statement in ["SELECT 1", "SELECT 2"] {
            registry.state(key, Activity::Running, at(start, 2.0));
            registry.sent(key, statement);
        }
        registry.state(key, Activity::Idle, at(start, 3.0));
        let report = &registry.list(at(start, 5.0))[0];
        assert_eq!(report.statements, 2);
        assert_eq!(report.statement, Some(Name::new("SELECT 2")));
        assert_eq!(report.idle_for(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn who_closes_twice_does_not_close_somebody_elses() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let first = registry.open(named("first"), start);
        assert!(registry.close(first, start).is_some());
        let second = registry.open(named("second"), start);
        assert_eq!(first.slot, second.slot);
        assert!(registry.close(first, start).is_none());
        registry.state(first, Activity::Running, start);
        registry.sent(first, "SELECT 1");
        let report = &registry.list(start)[0];
        assert_eq!((registry.len(), report.statements), (1, 0));
        assert_eq!(report.statement, None);
    }

    #[test]
    fn endless_patience_is_never_over() {
        let start = start();
        let patience = Patience {
            leak_after: Duration::MAX,
            idle_in_transaction_after: Duration::MAX,
        };
        let mut registry = Registry::<&str>::default();
        let key = registry.open(named("a"), start);
        registry.state(key, Activity::InTransaction, start);
        assert_eq!(registry.overdue(patience, at(start, 1e9)), []);
        assert_eq!(registry.leaks(patience.leak_after, at(start, 1e9)), 0);
    }

    #[test]
    fn leaks_are_counted_until_they_are_given_back() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let key = registry.open(named("a"), start);
        registry.open(named("b"), at(start, 1.0));
        let leaks = |registry: &Registry<&str>, seconds| {
            registry.leaks(PATIENCE.leak_after, at(start, seconds))
        };
        let counts = [29.0, 30.0, 31.0].map(|seconds| leaks(&registry, seconds));
        assert_eq!(counts, [0, 1, 2]);
        registry.overdue(PATIENCE, at(start, 31.0));
        assert_eq!(leaks(&registry, 31.0), 2);
        registry.close(key, at(start, 31.0));
        assert_eq!(leaks(&registry, 31.0), 1);
    }

    #[test]
    fn a_slot_that_was_used_before_costs_no_memory() {
        let start = start();
        let mut registry = Registry::<&str>::default();
        let keys = [(); 20].map(|()| registry.open(named("warm-up"), start));
        for key in keys {
            registry.close(key, start);
        }
        let shared = named("shared");
        let allocations = measure(|| {
            for _ in 0..1_000 {
                let key = registry.open(shared.clone(), start);
                registry.state(key, Activity::Running, start);
                registry.state(key, Activity::Idle, start);
                assert!(registry.close(key, start).is_some());
            }
        });
        assert_eq!(allocations.count_total, 0);
        assert!(measure(|| drop(registry.list(start))).count_total == 0);
        registry.open(shared, start);
        assert!(measure(|| drop(registry.list(start))).count_total > 0);
    }

    proptest! {
        /// The model is a list of the open keys.
        #[test]
        fn it_equals_a_list(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let start = start();
            let mut registry = Registry::<&str>::default();
            let (mut open, mut closed): (Vec<Key>, Vec<Key>) = Default::default();
            for (step, (opens, which)) in steps.into_iter().enumerate() {
                let now = at(start, step as f64);
                if opens || open.is_empty() {
                    open.push(registry.open(Taken::default(), now));
                } else {
                    let key = open.remove(which.index(open.len()));
                    prop_assert!(registry.close(key, now).is_some());
                    closed.push(key);
                }
                for key in &closed {
                    prop_assert!(registry.close(*key, now).is_none());
                }
                prop_assert_eq!(registry.len(), open.len());
                let listed = registry.list(now);
                let listed: Vec<u64> = listed.iter().map(|report| report.id).collect();
                let expected: Vec<u64> = open.iter().map(|key| key.id).collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }

    fn named(operation: &'static str) -> Taken {
        Taken {
            operation: Some(Name::new(operation)),
            ..Taken::default()
        }
    }

    fn told(overdue: Vec<Overdue>) -> Vec<String> {
        let told = overdue.into_iter().map(|overdue| {
            let (what, report) = match overdue {
                Overdue::Leak(report) => ("leak", report),
                Overdue::IdleInTransaction(report) => ("idle", report),
            };
            format!("{what} {}", report.operation.unwrap())
        });
        told.collect()
    }
}
