//! How a database fares: the numbers, and what follows from them.

use std::{fmt, time::Duration};

use crate::event::State;

/// The numbers of a database at one moment.
///
/// Latencies, rates and counts of calls are those of the last minute, of which the first six seconds may be missing. They are nothing without calls. The two
/// counts of fates go back to when the database was made.
///
/// Its text is one line of `key=value`: `max=20 size=12 in_use=3 idle=9 waiting=0 available=17 utilization=0.150 ..`
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// How many connections there may be.
    pub max: u32,
    /// How many there are.
    pub size: u32,
    /// How many of them somebody holds.
    pub in_use: u32,
    /// How many of them nobody holds.
    pub idle: u32,
    /// Calls that wait for a connection.
    pub waiting: usize,
    /// How many more could be taken at once.
    pub available: u32,
    /// The share of `max` in use, from 0 to 1, averaged over ten seconds.
    pub utilization: f64,
    /// Connections that are held for longer than the leak threshold.
    pub leaks: usize,
    /// Connections whose statement is still being ended on the server.
    pub reaping: usize,
    /// How long a call waited for its connection on average.
    pub wait_mean: Duration,
    /// How long 99 % of the calls waited at most, to about 6 %.
    pub wait_p99: Duration,
    /// Calls that were good or bad.
    pub calls: u64,
    /// How long a call took on average.
    pub mean: Duration,
    /// How long 99 % of the calls took at most, to about 6 %.
    pub p99: Duration,
    /// The share of the calls that was bad, from 0 to 1.
    pub error_rate: f64,
    /// Connections that were lost.
    pub disconnects: u64,
    /// COMMITs whose reply was lost, and which turned out to have taken place.
    pub fates_committed: u64,
    /// COMMITs whose reply was lost, and which turned out not to have taken place.
    pub fates_aborted: u64,
    /// What the circuit lets through.
    pub circuit: State,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "max={} size={} in_use={} idle={} waiting={} available={} utilization={:.3} leaks={} reaping={} ",
            self.max,
            self.size,
            self.in_use,
            self.idle,
            self.waiting,
            self.available,
            self.utilization,
            self.leaks,
            self.reaping
        )?;
        write!(
            f,
            "wait_mean={} wait_p99={} calls={} mean={} p99={} error_rate={:.3} disconnects={} \
             fates_committed={} fates_aborted={} circuit={}",
            Millis(self.wait_mean),
            Millis(self.wait_p99),
            self.calls,
            Millis(self.mean),
            Millis(self.p99),
            self.error_rate,
            self.disconnects,
            self.fates_committed,
            self.fates_aborted,
            // A value has no space in it.
            self.circuit.as_str().replace(' ', "-")
        )
    }
}

/// Whether a database is fit for calls, and what is the matter.
///
/// Its text is one line: `ready, warning: 83.0 % of the connections in use; 2 connections held for too long`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Health {
    /// Whether to send calls here at all.
    pub ready: bool,
    /// The worst of the reasons' levels.
    pub level: Level,
    /// What is the matter; empty when all is well.
    pub reasons: Vec<Reason>,
}

impl Health {
    /// What follows from the numbers.
    ///
    /// `sustained` is whether [`SUSTAINED`] of the connections and more have been in use all the time. A circuit that is half open does not make a
    /// database unready: without calls it would stay so.
    pub(crate) fn judge(stats: &Stats, sustained: bool) -> Self {
        let has_failures = stats.calls >= ENOUGH_CALLS && stats.error_rate > ERROR_RATE;
        let is_open = matches!(stats.circuit, State::Open | State::ForcedOpen);
        let reasons = [
            is_open.then_some(Reason::CircuitOpen),
            sustained.then_some(Reason::Exhausted),
            (stats.utilization >= WARNING).then_some(Reason::Utilization {
                share: stats.utilization,
            }),
            (stats.mean > MEAN).then_some(Reason::Slow { mean: stats.mean }),
            has_failures.then_some(Reason::Failures {
                rate: stats.error_rate,
            }),
            (stats.disconnects >= DISCONNECTS).then_some(Reason::Disconnects {
                count: stats.disconnects,
            }),
            (stats.leaks > 0).then_some(Reason::Leaks { count: stats.leaks }),
        ];
        let reasons: Vec<_> = reasons.into_iter().flatten().collect();
        Self {
            ready: !reasons.iter().any(Reason::is_unready),
            level: reasons.iter().map(Reason::level).max().unwrap_or(Level::Ok),
            reasons,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "not ready" };
        write!(f, "{ready}, {}", self.level)?;
        for (index, reason) in self.reasons.iter().enumerate() {
            let mark = if index == 0 { ':' } else { ';' };
            write!(f, "{mark} {reason}")?;
        }
        Ok(())
    }
}

/// How bad it is; what is worse is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// All is well.
    Ok,
    /// Somebody should look at it during the day.
    Warning,
    /// Somebody should look at it now.
    Critical,
}

impl Level {
    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that is the matter with a database.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Its circuit is open: not ready.
    CircuitOpen,
    /// In each of the last nine seconds 90 % of the connections were in use: not ready.
    Exhausted,
    /// 80 % of the connections were in use on average; from 95 % on it is critical.
    Utilization {
        /// From 0 to 1.
        share: f64,
    },
    /// A call takes more than 5 s on average.
    Slow {
        /// How long it takes.
        mean: Duration,
    },
    /// More than 5 % of at least 20 calls failed.
    Failures {
        /// From 0 to 1.
        rate: f64,
    },
    /// Five connections or more were lost within the last minute.
    Disconnects {
        /// How many.
        count: u64,
    },
    /// Connections are held for longer than the leak threshold.
    Leaks {
        /// How many.
        count: usize,
    },
}

impl Reason {
    /// How bad it is.
    pub fn level(&self) -> Level {
        match self {
            Self::CircuitOpen | Self::Exhausted => Level::Critical,
            Self::Utilization { share } if *share >= CRITICAL => Level::Critical,
            Self::Utilization { .. }
            | Self::Slow { .. }
            | Self::Failures { .. }
            | Self::Disconnects { .. }
            | Self::Leaks { .. } => Level::Warning,
        }
    }

    /// Whether no calls should be sent because of it.
    pub fn is_unready(&self) -> bool {
        matches!(self, Self::CircuitOpen | Self::Exhausted)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CircuitOpen => write!(f, "the circuit is open"),
            Self::Exhausted => {
                write!(
                    f,
                    "{} of the connections in use for seconds",
                    Percent(SUSTAINED)
                )
            }
            Self::Utilization { share } => {
                write!(f, "{} of the connections in use", Percent(*share))
            }
            Self::Slow { mean } => write!(f, "a call takes {}", Millis(*mean)),
            Self::Failures { rate } => write!(f, "{} of the calls failed", Percent(*rate)),
            Self::Disconnects { count } => write!(f, "{count} connections lost within a minute"),
            Self::Leaks { count } => write!(f, "{count} connections held for too long"),
        }
    }
}

/// The share of the connections that makes a database unready when it lasts.
pub(crate) const SUSTAINED: f64 = 0.9;

const WARNING: f64 = 0.8;

const CRITICAL: f64 = 0.95;

const MEAN: Duration = Duration::from_secs(5);

const ERROR_RATE: f64 = 0.05;

const ENOUGH_CALLS: u64 = 20;

const DISCONNECTS: u64 = 5;

struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}ms", self.0.as_secs_f64() * 1e3)
    }
}

struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Changes one number.
    type Set = fn(&mut Stats);

    #[test]
    fn all_is_well_when_nothing_is_the_matter() {
        let health = Health::judge(&well(), false);
        assert_eq!(
            (health.ready, health.level, health.reasons.is_empty()),
            (true, Level::Ok, true)
        );
    }

    #[test]
    fn a_reason_begins_at_its_threshold() {
        let cases: &[(Set, Option<Level>)] = &[
            (|stats| stats.utilization = 0.799, None),
            (|stats| stats.utilization = 0.8, Some(Level::Warning)),
            (|stats| stats.utilization = 0.949, Some(Level::Warning)),
            (|stats| stats.utilization = 0.95, Some(Level::Critical)),
            (|stats| stats.utilization = 1.0, Some(Level::Critical)),
            (|stats| stats.mean = 5 * SECOND, None),
            (
                |stats| stats.mean = 5 * SECOND + Duration::from_nanos(1),
                Some(Level::Warning),
            ),
            (|stats| stats.error_rate = 0.05, None),
            (|stats| stats.error_rate = 0.051, Some(Level::Warning)),
            (|stats| (stats.error_rate, stats.calls) = (1.0, 19), None),
            (
                |stats| (stats.error_rate, stats.calls) = (1.0, 20),
                Some(Level::Warning),
            ),
            (|stats| stats.disconnects = 4, None),
            (|stats| stats.disconnects = 5, Some(Level::Warning)),
            (|stats| stats.leaks = 0, None),
            (|stats| stats.leaks = 1, Some(Level::Warning)),
            (|stats| stats.circuit = State::HalfOpen, None),
            (|stats| stats.circuit = State::ForcedClosed, None),
        ];
        for (index, (set, level)) in cases.iter().enumerate() {
            let mut stats = well();
            set(&mut stats);
            let health = Health::judge(&stats, false);
            assert_eq!(health.reasons.len(), level.iter().len(), "case {index}");
            let expected = (level.unwrap_or(Level::Ok), true);
            assert_eq!((health.level, health.ready), expected, "case {index}");
        }
    }

    #[test]
    fn an_open_circuit_is_not_ready() {
        for circuit in [State::Open, State::ForcedOpen] {
            let health = Health::judge(&Stats { circuit, ..well() }, false);
            assert_eq!(health.reasons, [Reason::CircuitOpen]);
            assert_eq!((health.level, health.ready), (Level::Critical, false));
        }
    }

    #[test]
    fn a_pool_that_stays_full_is_not_ready() {
        let health = Health::judge(&well(), true);
        assert_eq!(health.reasons, [Reason::Exhausted]);
        assert_eq!((health.level, health.ready), (Level::Critical, false));
    }

    #[test]
    fn the_worst_reason_makes_the_level_and_all_are_told() {
        let stats = Stats {
            utilization: 0.97,
            mean: 6 * SECOND,
            error_rate: 0.5,
            disconnects: 7,
            leaks: 2,
            circuit: State::Open,
            ..well()
        };
        let health = Health::judge(&stats, true);
        assert_eq!(
            health.to_string(),
            "not ready, critical: the circuit is open; 90.0 % of the connections in use for seconds; \
             97.0 % of the connections in use; a call takes 6000.0ms; 50.0 % of the calls failed; \
             7 connections lost within a minute; 2 connections held for too long"
        );
        assert_eq!(
            Health::judge(&well(), false).to_string(),
            "ready, ok",
            "without reasons"
        );
    }

    #[test]
    fn the_numbers_are_one_line_of_keys_and_values() {
        let stats = Stats {
            circuit: State::ForcedOpen,
            ..well()
        };
        let text = stats.to_string();
        assert_eq!(
            text,
            "max=20 size=12 in_use=3 idle=9 waiting=0 available=17 utilization=0.150 leaks=0 reaping=0 \
             wait_mean=0.2ms wait_p99=1.5ms calls=1000 mean=3.0ms p99=20.0ms error_rate=0.001 disconnects=0 \
             fates_committed=2 fates_aborted=1 circuit=forced-open"
        );
        assert!(text.split(' ').all(|pair| pair.split('=').count() == 2));
    }

    fn well() -> Stats {
        Stats {
            max: 20,
            size: 12,
            in_use: 3,
            idle: 9,
            waiting: 0,
            available: 17,
            utilization: 0.15,
            leaks: 0,
            reaping: 0,
            wait_mean: Duration::from_micros(200),
            wait_p99: Duration::from_micros(1_500),
            calls: 1_000,
            mean: Duration::from_millis(3),
            p99: Duration::from_millis(20),
            error_rate: 0.001,
            disconnects: 0,
            fates_committed: 2,
            fates_aborted: 1,
            circuit: State::Closed,
        }
    }
}
