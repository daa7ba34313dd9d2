//! Blocks of all candidates in turn, again and again in another order: whatever slows the machine down meets all of them.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use candidates::candidate::Block;
use tokio::runtime::Handle;

/// How the rounds are made.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    pub rounds: usize,
    /// About how long a block takes.
    pub block: Duration,
}

/// The times of one candidate, by round, in nanoseconds for each call.
pub type Times = Vec<f64>;

impl Rounds {
    /// The times of each candidate. `measure(candidate, calls)` makes so many calls and returns the time for each.
    pub fn of(&self, candidates: usize, mut measure: impl FnMut(usize, u32) -> f64) -> Vec<Times> {
        let calls: Vec<u32> = (0..candidates)
            .map(|candidate| self.calls(|calls| measure(candidate, calls)))
            .collect();
        let mut times = vec![Times::new(); candidates];
        let mut order: Vec<usize> = (0..candidates).collect();
        for _ in 0..self.rounds {
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
        let fastest = (0..3).map(|_| measure(LEAST)).fold(f64::INFINITY, f64::min);
        let calls = self.block.as_nanos() as f64 / fastest.max(1.0);
        // A whole number of the patterns that recur: failures, reads of the clock.
        (calls as u32 / LEAST).max(1) * LEAST
    }
}

const LEAST: u32 = 1_600;

/// A second thread, which makes the same calls at the same time.
pub struct Second {
    jobs: Sender<Job>,
    took: Receiver<Duration>,
}

struct Job {
    block: Block,
    calls: u32,
    start: Arc<AtomicU32>,
}

impl Second {
    /// Runs for as long as the program does.
    pub fn on(runtime: Handle) -> Self {
        let (jobs, todo) = channel::<Job>();
        let (done, took) = channel();
        thread::spawn(move || {
            let _entered = runtime.enter();
            for Job {
                block,
                calls,
                start,
            } in todo
            {
                meet(&start);
                if done.send(block(calls)).is_err() {
                    return;
                }
            }
        });
        Self { jobs, took }
    }

    /// The mean time of both threads for one call, in nanoseconds.
    pub fn beside(&self, block: &Block, calls: u32) -> f64 {
        let start = Arc::new(AtomicU32::new(0));
        let job = Job {
            block: block.clone(),
            calls,
            start: start.clone(),
        };
        self.jobs.send(job).expect("the thread runs");
        meet(&start);
        let here = block(calls);
        let there = self.took.recv().expect("no block panics");
        per_call((here + there) / 2, calls)
    }
}

/// Waits for the other thread without sleeping.
fn meet(start: &AtomicU32) {
    start.fetch_add(1, Ordering::Relaxed);
    while start.load(Ordering::Relaxed) < 2 {
        hint::spin_loop();
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
    /// There is at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
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
