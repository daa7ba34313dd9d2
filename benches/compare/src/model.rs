//! The days that every stack lives through, and what is read off their records.

use crate::{
    overload::{Cache, Clock, Database, Day, Record, Serves, Spike, Trigger, live_by},
    stacks::{Call, Make},
};

/// One of the models.
pub struct Model {
    /// Its short name, as in the names of files.
    pub name: &'static str,
    pub title: &'static str,
    /// In flight at a time, for stacks that limit it.
    pub limit: usize,
    pub day: Day,
    /// When it gets bad and when that ends, in seconds.
    pub trigger: (usize, usize),
    /// What could be answered in each second of the trigger, at the very best.
    pub residual: f64,
    pub residual_is: &'static str,
    keys: Option<usize>,
}

/// What one day of one stack came to.
pub struct Outcome {
    pub record: Record,
    /// Mean goodput during the trigger, as a share of what was possible.
    pub during: f64,
    /// How many seconds after the trigger it was back; `None`: not within the rest of the day.
    pub recovered: Option<usize>,
    /// Queries that began since the trigger, for each call that arrived.
    pub load: f64,
    /// The mean goodput of the last 30 s, as a share of the arrivals.
    pub late: f64,
}

const LEAD: usize = 60;
const CALLS: f64 = 1_000.0;
const KEYS: usize = 500;
const CACHED_CAPACITY: f64 = 200.0;

impl Model {
    /// All of them; `quick` ends the day 30 s after the trigger, not 120 s.
    pub fn all(quick: bool) -> Vec<Self> {
        let rest = if quick { 30 } else { 120 };
        vec![
            Self::brownout("a69", 900.0, rest),
            Self::brownout("a85", 730.0, rest),
            Self::spike(rest),
            Self::cold_cache(rest),
        ]
    }

    fn brownout(name: &'static str, capacity: f64, rest: usize) -> Self {
        let (from, until, share) = (LEAD, LEAD + 10, 0.2);
        Self {
            name,
            title: match name {
                "a69" => "A: a fifth of the capacity for 10 s, at 69 % utilisation",
                _ => "A: a fifth of the capacity for 10 s, at 85 % utilisation",
            },
            limit: 16,
            day: Day {
                serves: Serves::Workers {
                    workers: 16,
                    capacity,
                },
                trigger: Trigger {
                    from: from as f64,
                    until: until as f64,
                    share,
                },
                arrivals: 620.0,
                spike: Spike::NONE,
                seconds: (until + rest) as u64,
            },
            trigger: (from, until),
            residual: capacity * share,
            residual_is: "a fifth of the capacity",
            keys: None,
        }
    }

    fn spike(rest: usize) -> Self {
        let (from, until) = (LEAD, LEAD + 5);
        Self {
            name: "b",
            title: "B: latency grows with load; twice the arrivals for 5 s",
            limit: 60,
            day: Day {
                serves: Serves::Everybody {
                    base: 1.0,
                    more: 0.01,
                },
                trigger: Trigger::NONE,
                arrivals: 40.0,
                spike: Spike {
                    from: from as f64,
                    until: until as f64,
                    arrivals: 80.0,
                },
                seconds: (until + rest) as u64,
            },
            trigger: (from, until),
            residual: 200.0 / 3.0,
            residual_is: "66.7/s, what 200 in flight give in 3 s each",
            keys: None,
        }
    }

    fn cold_cache(rest: usize) -> Self {
        let (from, until) = (LEAD, LEAD + 3);
        Self {
            name: "c",
            title: "C: the look-aside cache is emptied",
            limit: 16,
            day: Day {
                serves: Serves::Workers {
                    workers: 16,
                    capacity: CACHED_CAPACITY,
                },
                trigger: Trigger::NONE,
                arrivals: CALLS,
                spike: Spike::NONE,
                // Back may be whoever is back at once, but has as long as in the others.
                seconds: (from + rest) as u64,
            },
            trigger: (from, until),
            residual: (0..3).map(refill).sum::<f64>() / 3.0,
            residual_is: "the best refill, in which every query brings a new key, over the first 3 s",
            keys: Some(KEYS),
        }
    }

    /// Lets a stack live through the day.
    pub fn run(&self, make: Make, clock: Clock, seed: u64) -> Outcome {
        self.live(clock, seed, || make(self.limit, clock))
    }

    /// Lets what `make` makes live through the day.
    pub fn live(&self, clock: Clock, seed: u64, make: impl FnOnce() -> Call) -> Outcome {
        let record = match self.keys {
            None => live_by(clock, self.day, seed, make),
            Some(keys) => live_by(clock, self.day, seed, move || {
                let (call, cache) = (make(), Cache::new(keys, LEAD as f64, seed));
                move |database: Database| {
                    let (miss, cache) = (call(database), cache.clone());
                    async move { cache.look_aside(miss).await }
                }
            }),
        };
        self.read(record)
    }

    fn read(&self, record: Record) -> Outcome {
        let (from, until) = self.trigger;
        let since = |from: usize, counts: &[u32]| f64::from(counts[from..].iter().sum::<u32>());
        let late = record.goodput.len() - 30;
        Outcome {
            during: record.mean_goodput(from, until) / self.residual,
            recovered: match self.keys {
                None => record.recovered_after(until, 0.9 * self.day.arrivals),
                Some(_) => refilled_after(&record, from),
            },
            load: since(from, &record.load) / since(from, &record.offered),
            late: since(late, &record.goodput) / since(late, &record.offered),
            record,
        }
    }
}

/// What a cache that was emptied `second` ago lets through in that second at the very best: hits, and as many misses as the database serves.
fn refill(second: usize) -> f64 {
    let steps = 1_000;
    let at = |step: usize| {
        let seconds = second as f64 + (step as f64 + 0.5) / steps as f64;
        let held = (CACHED_CAPACITY * seconds / KEYS as f64).min(1.0);
        (CALLS * held + CACHED_CAPACITY).min(CALLS)
    };
    (0..steps).map(at).sum::<f64>() / steps as f64
}

/// As [`Record::recovered_after`], but what was possible grows from second to second.
fn refilled_after(record: &Record, from: usize) -> Option<usize> {
    let back = |second: &usize| {
        let good = record.mean_goodput(from + second, from + second + 3);
        let best = (0..3).map(|more| refill(second + more)).sum::<f64>() / 3.0;
        good >= 0.9 * best
    };
    (0..=record.goodput.len() - from - 3).find(back)
}
