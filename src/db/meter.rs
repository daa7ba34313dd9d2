//! How calls went of late: how long they took, how many failed, how often the connection was lost.

use std::time::{Duration, Instant};

use crate::ring::{Ring, Ticks};

/// The calls of the last minute, in ten buckets of six seconds.
///
/// Counts and mean are exact. A quantile is off by at most a sixteenth of its value: each octave has [`STEPS`] cells, and the middle of the right one is
/// told. What took less than a microsecond took none; what took more than four and a half minutes took that.
///
/// Invariant: `totals` is the sum of the ring.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    ticks: Ticks,
    ring: Ring<Calls>,
    totals: Calls,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Bad,
    /// It says nothing of the database; how long it took does not count either.
    Ignored,
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            ticks: Ticks::new(WINDOW, now),
            ring: Ring::default(),
            totals: Calls::default(),
        }
    }

    /// A call is over.
    pub(crate) fn record(&mut self, took: Duration, outcome: Outcome, now: Instant) {
        if outcome == Outcome::Ignored {
            return;
        }
        let nanos = took.as_nanos().try_into().unwrap_or(u64::MAX);
        let cell = cell(nanos);
        self.update(now, |calls| {
            calls.cells[cell] += 1;
            calls.calls += 1;
            calls.bad += u64::from(outcome == Outcome::Bad);
            calls.nanos += u128::from(nanos);
        });
    }

    /// A connection was lost.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.update(now, |calls| calls.disconnects += 1);
    }

    /// How many calls there were.
    pub(crate) fn calls(&mut self, now: Instant) -> u64 {
        self.totals(now).calls
    }

    /// How long a call took on average; nothing without calls.
    pub(crate) fn mean(&mut self, now: Instant) -> Duration {
        let totals = self.totals(now);
        let mean = totals.nanos.checked_div(u128::from(totals.calls));
        Duration::from_nanos(mean.unwrap_or(0) as u64)
    }

    /// How long the slowest of this share of the calls took, the fastest first; nothing without calls.
    pub(crate) fn quantile(&mut self, share: f64, now: Instant) -> Duration {
        let totals = self.totals(now);
        let rank = (totals.calls as f64 * share).ceil().max(1.0) as u64;
        let mut calls = 0;
        let reached = totals.cells.iter().position(|cell| {
            calls += u64::from(*cell);
            calls >= rank
        });
        reached.map_or(Duration::ZERO, middle)
    }

    /// The share of the calls that was bad; none without calls.
    pub(crate) fn error_rate(&mut self, now: Instant) -> f64 {
        let totals = self.totals(now);
        totals.bad as f64 / totals.calls.max(1) as f64
    }

    /// How many connections were lost.
    pub(crate) fn disconnects(&mut self, now: Instant) -> u64 {
        self.totals(now).disconnects
    }

    fn totals(&mut self, now: Instant) -> &Calls {
        self.advance(self.ticks.of(now));
        &self.totals
    }

    /// What happened in a bucket that is forgotten already is too old to count.
    fn update(&mut self, now: Instant, update: impl Fn(&mut Calls)) {
        let tick = self.ticks.of(now);
        self.advance(tick);
        if let Some(bucket) = self.ring.at(tick) {
            update(bucket);
            update(&mut self.totals);
        }
    }

    fn advance(&mut self, tick: u64) {
        let totals = &mut self.totals;
        self.ring
            .advance(tick, |forgotten| totals.subtract(&forgotten));
    }
}

#[derive(Clone, Copy, Debug)]
struct Calls {
    cells: [u32; CELLS],
    calls: u64,
    bad: u64,
    /// How long they took together.
    nanos: u128,
    disconnects: u64,
}

impl Calls {
    fn subtract(&mut self, less: &Self) {
        if less.calls > 0 {
            for (cell, less) in self.cells.iter_mut().zip(&less.cells) {
                *cell -= less;
            }
        }
        self.calls -= less.calls;
        self.bad -= less.bad;
        self.nanos -= less.nanos;
        self.disconnects -= less.disconnects;
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            cells: [0; CELLS],
            calls: 0,
            bad: 0,
            nanos: 0,
            disconnects: 0,
        }
    }
}

/// The cell of what took so many nanoseconds.
fn cell(nanos: u64) -> usize {
    let Some(octave) = nanos.checked_ilog2().and_then(|log| log.checked_sub(FIRST)) else {
        return 0;
    };
    let step = (nanos >> (octave + FIRST - STEPS.ilog2())) as usize % STEPS;
    (1 + octave as usize * STEPS + step).min(CELLS - 1)
}

/// What is in the middle of a cell.
fn middle(cell: usize) -> Duration {
    let Some(cell) = cell.checked_sub(1) else {
        return Duration::ZERO;
    };
    let (octave, step) = (cell / STEPS, cell % STEPS);
    let width = 1 << (octave as u32 + FIRST - STEPS.ilog2());
    Duration::from_nanos((STEPS + step) as u64 * width + width / 2)
}

const WINDOW: Duration = Duration::from_secs(60);

/// The first octave begins at so many doublings of a nanosecond: about a microsecond.
const FIRST: u32 = 10;

/// So many doublings of that: about four and a half minutes.
const OCTAVES: usize = 28;

/// The cells of an octave, all of them of one width.
const STEPS: usize = 8;

/// The first one is for what is shorter than the first octave.
const CELLS: usize = 1 + OCTAVES * STEPS;

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use allocation_counter::measure;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, start};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_calls_there_is_nothing() {
        let start = start();
        let mut meter = Meter::new(start);
        assert_eq!(meter.mean(start), Duration::ZERO);
        assert_eq!(meter.quantile(0.99, start), Duration::ZERO);
        assert_eq!(meter.error_rate(start), 0.0);
        assert_eq!((meter.calls(start), meter.disconnects(start)), (0, 0));
    }

    #[test]
    fn the_mean_is_exact() {
        let start = start();
        let mut meter = Meter::new(start);
        for millis in 1..=100 {
            meter.record(millis * MS, Outcome::Good, start);
        }
        assert_eq!(meter.mean(start), Duration::from_micros(50_500));
    }

    #[test]
    fn the_slowest_hundredth_is_above_the_quantile() {
        let start = start();
        let mut meter = Meter::new(start);
        for _ in 0..99 {
            meter.record(10 * MS, Outcome::Good, start);
        }
        meter.record(900 * MS, Outcome::Good, start);
        assert!(is_near(meter.quantile(0.99, start), 10 * MS));
        meter.record(900 * MS, Outcome::Good, start);
        assert!(is_near(meter.quantile(0.99, start), 900 * MS));
    }

    #[test]
    fn the_error_rate_is_that_of_the_calls_that_count() {
        let start = start();
        let mut meter = Meter::new(start);
        meter.record(MS, Outcome::Bad, start);
        for _ in 0..3 {
            meter.record(MS, Outcome::Good, start);
        }
        for _ in 0..6 {
            meter.record(1_000 * MS, Outcome::Ignored, start);
        }
        assert_eq!((meter.calls(start), meter.error_rate(start)), (4, 0.25));
        assert_eq!(meter.mean(start), MS);
        assert!(is_near(meter.quantile(1.0, start), MS));
    }

    #[test]
    fn a_minute_later_it_is_forgotten_and_not_before() {
        let start = start();
        let mut meter = Meter::new(start);
        meter.record(MS, Outcome::Bad, at(start, 5.9));
        meter.disconnected(at(start, 5.9));
        meter.record(3 * MS, Outcome::Good, at(start, 6.0));
        let now = at(start, 59.9);
        assert_eq!((meter.calls(now), meter.disconnects(now)), (2, 1));
        assert_eq!((meter.mean(now), meter.error_rate(now)), (2 * MS, 0.5));
        let now = at(start, 60.0);
        assert_eq!((meter.calls(now), meter.disconnects(now)), (1, 0));
        assert_eq!((meter.mean(now), meter.error_rate(now)), (3 * MS, 0.0));
        assert!(is_near(meter.quantile(0.0, now), 3 * MS));
        let now = at(start, 1e6);
        assert_eq!((meter.calls(now), meter.mean(now)), (0, Duration::ZERO));
    }

    #[test]
    fn what_is_out_of_range_is_told_as_its_end() {
        let start = start();
        let mut meter = Meter::new(start);
        meter.record(Duration::from_nanos(1_023), Outcome::Good, start);
        assert_eq!(meter.quantile(1.0, start), Duration::ZERO);
        meter.record(Duration::MAX, Outcome::Good, start);
        let longest = Duration::from_nanos(1 << (FIRST as usize + OCTAVES));
        assert!(is_near(meter.quantile(1.0, start), longest));
        assert!(longest > Duration::from_secs(270));
    }

    #[test]
    fn a_record_allocates_nothing() {
        let start = start();
        let mut meter = Meter::new(start);
        let allocations = measure(|| {
            for second in 0..1_000 {
                meter.record(second * MS, Outcome::Good, at(start, second.into()));
            }
            assert!(meter.quantile(0.99, at(start, 999.0)) > 900 * MS);
        });
        assert_eq!(allocations.count_total, 0);
    }

    proptest! {
        /// The model sorts a list.
        #[test]
        fn a_quantile_is_off_by_at_most_a_sixteenth(
            mut took in prop::collection::vec((10_u32..38).prop_flat_map(|log| 1_u64 << log..2_u64 << log), 1..200),
            share in 0.0..=1.0_f64,
        ) {
            took.iter_mut().for_each(|nanos| *nanos = (*nanos).min((1 << 38) - 1));
            let start = start();
            let mut meter = Meter::new(start);
            for nanos in &took {
                meter.record(Duration::from_nanos(*nanos), Outcome::Good, start);
            }
            took.sort_unstable();
            let rank = (took.len() as f64 * share).ceil() as usize;
            let exact = took[rank.max(1) - 1] as f64;
            let told = meter.quantile(share, start).as_nanos() as f64;
            prop_assert!((told - exact).abs() <= exact / 16.0, "{} for {}", told, exact);
        }
    }

    fn is_near(told: Duration, exact: Duration) -> bool {
        (told.as_secs_f64() / exact.as_secs_f64() - 1.0).abs() <= 1.0 / 16.0
    }
}
