//! Blocks of all candidates in turn, again and again in another order: whatever slows the machine down meets all of them.

use std::{
    cell::Cell,
    hint, io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use candidates::candidate::Block;
use tokio::{
    runtime::{Builder, Runtime},
    task::{unconstrained, yield_now},
    time::sleep,
};

/// How the rounds are made.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    pub rounds: usize,
    /// About how long a block takes.
    pub block: Duration,
    /// No round begins later than this, if there were enough.
    pub at_most: Duration,
}

const ENOUGH: usize = 9;

/// The times of one candidate, by round, in nanoseconds for each call; NaN where it was not to be had.
pub type Times = Vec<f64>;

impl Rounds {
    /// The times of each candidate. `measure(candidate, calls)` makes so many calls and returns the time for each.
    pub fn of(&self, candidates: usize, mut measure: impl FnMut(usize, u32) -> f64) -> Vec<Times> {
        let calls: Vec<u32> = (0..candidates)
            .map(|candidate| self.calls(|calls| measure(candidate, calls)))
            .collect();
        let mut times = vec![Times::new(); candidates];
        let mut order: Vec<usize> = (0..candidates).collect();
        let began = Instant::now();
        for round in 0..self.rounds {
            if round >= ENOUGH && began.elapsed() > self.at_most {
                break;
            }
            fastrand::shuffle(&mut order);
            for &candidate in &order {
                times[candidate].push(measure(candidate, calls[candidate]));
            }
        }
        times
    }

    /// How many calls fill a block.
    fn calls(&self, mut measure: impl FnMut(u32) -> f64) -> u32 {
        // The first block pays for whatever is bought once; a slow moment must not make the blocks too short.
        measure(LEAST);
        let fastest = (0..3).map(|_| measure(LEAST)).fold(1_000.0, f64::min);
        let calls = self.block.as_nanos() as f64 / fastest.max(1.0);
        // A whole number of the patterns that recur: failures, reads of the clock.
        (calls as u32 / LEAST).max(1) * LEAST
    }
}

const LEAST: u32 = 1_600;

/// Where the calls are made.
pub struct Threads {
    one: Runtime,
    two: Runtime,
    misses: Cell<u32>,
}

impl Threads {
    pub fn new() -> io::Result<Self> {
        let threads = Self {
            one: Builder::new_current_thread().enable_time().build()?,
            two: Builder::new_multi_thread()
                .worker_threads(2)
                .enable_time()
                .build()?,
            misses: Cell::new(0),
        };
        // As in any process that does something, the next timer to ring is another one: setting ours wakes nobody.
        for runtime in [&threads.one, &threads.two] {
            runtime.spawn(async {
                loop {
                    sleep(Duration::from_millis(10)).await;
                }
            });
        }
        Ok(threads)
    }

    pub fn one(&self) -> &Runtime {
        &self.one
    }

    pub fn two(&self) -> &Runtime {
        &self.two
    }

    /// The time of a call on one thread, in nanoseconds.
    pub fn alone(&self, block: &Block, calls: u32) -> f64 {
        let took = self.one.block_on(unconstrained(async {
            // Whatever waits to be run runs now, and the timers that are due.
            for _ in 0..2 {
                yield_now().await;
            }
            block(calls)
        }));
        per_call(took, calls)
    }

    /// The mean time of a call on two threads that make such calls at once, in nanoseconds.
    pub fn at_once(&self, block: &Block, calls: u32) -> f64 {
        const TRIES: u32 = 3;
        let mut tries = (0..TRIES).map(|_| self.try_at_once(block, calls));
        let at_once = tries.find(|(shared, _)| *shared > 0.7);
        let Some((_, took)) = at_once else {
            self.misses.set(self.misses.get() + 1);
            return f64::NAN;
        };
        per_call(took, calls)
    }

    /// The share of the time in which both threads ran, and the mean of their times.
    fn try_at_once(&self, block: &Block, calls: u32) -> (f64, Duration) {
        let met = Arc::new(AtomicU32::new(0));
        let run = || {
            let (met, block) = (met.clone(), block.clone());
            let run = unconstrained(async move {
                meet(&met);
                let began = Instant::now();
                let took = block(calls);
                (began, Instant::now(), took)
            });
            self.two.spawn(run)
        };
        let (here, there) = (run(), run());
        let (here, there) = self.two.block_on(async { (here.await, there.await) });
        let (here, there) = (here.expect("no panic"), there.expect("no panic"));
        let both = here
            .1
            .min(there.1)
            .saturating_duration_since(here.0.max(there.0));
        let either = here.1.max(there.1) - here.0.min(there.0);
        let shared = both.as_secs_f64() / either.as_secs_f64();
        (shared, (here.2 + there.2) / 2)
    }

    /// How often the two threads did not run at once, because the machine was busy.
    pub fn misses(&self) -> u32 {
        self.misses.get()
    }
}

/// Waits for the other thread to run too.
fn meet(met: &AtomicU32) {
    for meeting in 1..=3 {
        met.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while met.load(Ordering::SeqCst) < 2 * meeting {
            spins += 1;
            if spins % 10_000 == 0 {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
    }
}

pub fn per_call(took: Duration, calls: u32) -> f64 {
    took.as_nanos() as f64 / f64::from(calls)
}

/// A median with the bounds that hold it with 95 % confidence.
#[derive(Clone, Copy, Debug)]
pub struct Median {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Median {
    /// Of those that are numbers.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        if values.is_empty() {
            values.push(f64::NAN);
        }
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        // The ranks of the bounds: a binomial of n and a half, by its normal approximation.
        let spread = 0.98 * count.sqrt();
        let at = |rank: f64| values[(rank.max(0.0) as usize).min(values.len() - 1)];
        Self {
            low: at(count / 2.0 - spread),
            median: at(count / 2.0),
            high: at(count / 2.0 + spread),
        }
    }
}
