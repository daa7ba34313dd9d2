//! How many connections a pool needs, and whether the server has them for all processes.

use std::{fmt, time::Duration};

use crate::error::ConfigError;

/// The pool that each process needs for what is asked at the peak.
///
/// By Little's law the connections in use are the calls per second times how long a call holds its connection: 300 calls/s of 20 ms keep six busy, on average. A pool of six
/// would do with a queue without end; this finds the least pool with head-room, and sees whether all the processes' pools fit into the server.
///
/// ```
/// use std::time::Duration;
/// use steadfast::db::{PoolPlan, Preset};
///
/// let plan = PoolPlan::builder(300.0, Duration::from_millis(20))
///     .replicas(4)
///     .max_connections(100) // SHOW max_connections
///     .reserved(3 + 12) // superuser_reserved_connections, and the reports
///     .build()?;
/// assert_eq!((plan.pool_size, plan.processes, plan.connections), (4, 5, 25));
/// assert!(plan.utilization < 0.4);
/// let preset = Preset::web().pool_size(plan.pool_size);
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
///
/// What does not fit is an error that says what would:
///
/// ```
/// use std::time::Duration;
/// use steadfast::db::PoolPlan;
///
/// let error = PoolPlan::builder(300.0, Duration::from_millis(20)).replicas(40).build().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "pool plan: max_connections is 100, but must be at least 153: 50 processes at a time need 2 connections each and one beside them, and 3 are reserved; \
///      or run at most 25 replicas; or use a pooler by transaction that keeps 9 connections to the server"
/// );
/// ```
///
/// # Where the numbers come from
/// `db.stats()` has them, taken at the peak: `calls` of a minute, of all replicas together, and `mean`, which is how long a call held its connection, without its wait.
///
/// # Defaults
/// | setting | value | why |
/// |---|---|---|
/// | `spread` | the mean | times that differ as by chance (exponential), which queueing theory takes where it knows nothing better |
/// | `replicas` | 1 | |
/// | `surge` | a quarter of the replicas, rounded up | a rolling deployment of Kubernetes starts so many before it stops others (`maxSurge`: 25 %) |
/// | `max_connections` | 100 | PostgreSQL's own default; MySQL's and MariaDB's is 151 |
/// | `reserved` | 3 | PostgreSQL's own default of `superuser_reserved_connections` |
/// | `utilization` | 70 % | at 80 % [`Db::health`](super::Db::health) warns; a seventh more load than expected does not get there |
/// | `mean_wait` | a tenth of a call | so much does not show beside the call itself |
/// | the least pool | 2 | with one connection, one slow call stops all others |
/// | beside each pool | 1 | a [`Db`](super::Db) stops statements and asks for the fate of COMMITs on one more connection |
///
/// # Limits
/// The wait is that of Erlang's C formula, and of Allen and Cunneen's rule for the spread: calls that come independently of each other, and a database whose calls take no
/// longer because there are many. A burst beyond that is what the queue in front of the pool is for. How many connections the server's processors can keep busy it does not know.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PoolPlan {
    /// The connections of each process: [`Preset::pool_size`](super::Preset::pool_size), without overflow.
    pub pool_size: u32,
    /// The share of them that is in use at the peak, from 0 to 1.
    pub utilization: f64,
    /// How long a call waits for its connection at the peak, on average.
    pub mean_wait: Duration,
    /// How many processes there are at a time, those of a deployment included.
    pub processes: u32,
    /// The connections of all processes together, those beside the pools included.
    pub connections: u32,
    /// How many of them there may be: the server's, or those that the pooler takes.
    pub allowed: u32,
    /// Behind a pooler, how many connections it needs to the server: `default_pool_size`.
    pub server_connections: Option<u32>,
}

impl PoolPlan {
    /// The settings of a plan.
    ///
    /// `calls_per_second` is what all replicas together ask for at the peak; `service_time` is how long a call holds its connection on average, a transaction as a whole.
    pub fn builder(calls_per_second: f64, service_time: Duration) -> PoolPlanBuilder {
        PoolPlanBuilder {
            calls_per_second,
            service_time,
            spread: None,
            replicas: 1,
            surge: None,
            max_connections: 100,
            reserved: 3,
            pooler: None,
            utilization: 0.7,
            mean_wait: None,
        }
    }
}

impl fmt::Display for PoolPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections for each of {} processes, {} of {} in all; at the peak {:.0} % of a pool are in use, and a call waits {:.2?}",
            self.pool_size,
            self.processes,
            self.connections,
            self.allowed,
            self.utilization * 100.0,
            self.mean_wait
        )?;
        match self.server_connections {
            Some(connections) => write!(f, "; the pooler keeps {connections} to the server"),
            None => Ok(()),
        }
    }
}

/// The settings of a [`PoolPlan`]; their defaults stand there.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct PoolPlanBuilder {
    calls_per_second: f64,
    service_time: Duration,
    spread: Option<Duration>,
    replicas: u32,
    surge: Option<u32>,
    max_connections: u32,
    reserved: u32,
    /// How many clients the pooler takes.
    pooler: Option<u32>,
    utilization: f64,
    mean_wait: Option<Duration>,
}

impl PoolPlanBuilder {
    /// The standard deviation of the time for which calls hold their connections.
    ///
    /// Few calls that take long among many that are short have one far above the mean.
    pub fn spread(mut self, deviation: Duration) -> Self {
        self.spread = Some(deviation);
        self
    }

    /// The number of processes that share the load.
    pub fn replicas(mut self, processes: u32) -> Self {
        self.replicas = processes;
        self
    }

    /// The number of processes besides, while a deployment replaces the others.
    pub fn surge(mut self, processes: u32) -> Self {
        self.surge = Some(processes);
        self
    }

    /// How many connections the server takes: `SHOW max_connections`.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections;
        self
    }

    /// How many of these are not for us.
    ///
    /// `superuser_reserved_connections`, `reserved_connections`, other services, migrations, dashboards, and who is called at night.
    pub fn reserved(mut self, connections: u32) -> Self {
        self.reserved = connections;
        self
    }

    /// Behind a pooler by transaction that takes so many clients: `max_client_conn`.
    ///
    /// Then the processes' connections count against these, and the server's limit against those that the pooler keeps to it. Measure `service_time` through the pooler.
    pub fn pooler(mut self, max_clients: u32) -> Self {
        self.pooler = Some(max_clients);
        self
    }

    /// The share of a pool that may be in use at the peak.
    ///
    /// Over 0, under 1.
    pub fn utilization(mut self, share: f64) -> Self {
        self.utilization = share;
        self
    }

    /// How long a call may wait for its connection at the peak, on average.
    pub fn mean_wait(mut self, within: Duration) -> Self {
        self.mean_wait = Some(within);
        self
    }

    /// The least pool with that head-room, if all of them fit.
    ///
    /// # Errors
    /// Where a setting is out of range, or the pools don't fit: then it names the limit that is too low, what it must be, and what else would do.
    pub fn build(self) -> Result<PoolPlan, ConfigError> {
        self.check()?;
        let pool = self.pool(self.replicas)?;
        let processes = self.replicas + self.surge_of(self.replicas);
        let connections = processes.saturating_mul(pool.size + BESIDE);
        let free = self.max_connections - self.reserved;
        let mut plan = PoolPlan {
            pool_size: pool.size,
            utilization: pool.utilization,
            mean_wait: self.service_time.mul_f64(pool.wait),
            processes,
            connections,
            allowed: free,
            server_connections: None,
        };
        let Some(clients) = self.pooler else {
            if connections > free {
                return Err(self.too_few(pool.size, processes, connections));
            }
            return Ok(plan);
        };
        let shared = self.pool(1)?;
        if connections > clients {
            let allowed = format!(
                "at least {connections}: {processes} processes at a time need {} connections each and one beside them",
                pool.size
            );
            return Err(ConfigError::new(PART, "pooler", clients, allowed));
        }
        if shared.size > free {
            let allowed = format!(
                "at least {}: the pooler needs {} connections to the server, and {} are reserved; or let a call hold its connection for a shorter time",
                shared.size.saturating_add(self.reserved),
                shared.size,
                self.reserved
            );
            return Err(self.max_connections_must_be(allowed));
        }
        plan.allowed = clients;
        plan.server_connections = Some(shared.size);
        // One waits in its own queue, and then in the pooler's.
        plan.mean_wait += self.service_time.mul_f64(shared.wait);
        Ok(plan)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let calls = self.calls_per_second;
        if !(calls > 0.0 && calls.is_finite()) {
            let allowed = "over 0, and finite";
            return Err(ConfigError::new(PART, "calls_per_second", calls, allowed));
        }
        ConfigError::check_time(PART, "service_time", self.service_time, SHORTEST)?;
        let spread = self.spread.unwrap_or_default();
        ConfigError::check_time(PART, "spread", spread, Duration::ZERO)?;
        let mean_wait = self.mean_wait.unwrap_or(SHORTEST);
        ConfigError::check_time(PART, "mean_wait", mean_wait, SHORTEST)?;
        let share = self.utilization;
        if !(share > 0.0 && share < 1.0) {
            let allowed = "over 0 and under 1";
            return Err(ConfigError::new(PART, "utilization", share, allowed));
        }
        for (setting, count, least) in [
            ("replicas", self.replicas, 1),
            ("surge", self.surge.unwrap_or_default(), 0),
            ("pooler", self.pooler.unwrap_or(1), 1),
            ("max_connections", self.max_connections, 1),
        ] {
            ConfigError::check_count(PART, setting, count as usize, least, MOST_COUNTED)?;
        }
        if self.reserved >= self.max_connections {
            let allowed = format!("less than max_connections, {}", self.max_connections);
            return Err(ConfigError::new(PART, "reserved", self.reserved, allowed));
        }
        Ok(())
    }

    /// What each of so many processes needs; one is the whole.
    fn pool(&self, processes: u32) -> Result<Pool, ConfigError> {
        let busy = self.calls_per_second * self.service_time.as_secs_f64();
        self.least(busy / f64::from(processes)).ok_or_else(|| {
            let allowed = format!(
                "so many that no pool needs over {MOST} connections; at {:?} a call they keep {busy:.0} busy, of {} replicas",
                self.service_time, self.replicas
            );
            ConfigError::new(PART, "calls_per_second", self.calls_per_second, allowed)
        })
    }

    /// The least pool that has the head-room where `load` of its connections are busy on average.
    fn least(&self, load: f64) -> Option<Pool> {
        if load > self.utilization * f64::from(MOST) {
            return None;
        }
        let mean = self.service_time.as_secs_f64();
        let spread = self.spread.unwrap_or(self.service_time).as_secs_f64();
        let most = match self.mean_wait {
            Some(wait) => wait.as_secs_f64() / mean,
            None => UNSEEN,
        };
        // Allen and Cunneen: half for the arrivals, half for how much calls differ.
        let variability = f64::midpoint(1.0, (spread / mean).powi(2));
        let mut lost = 1.0;
        (1..=MOST).find_map(|size| {
            let servers = f64::from(size);
            // Erlang B, from one pool to the next: the share that would be turned away without a queue.
            lost = load * lost / (servers + load * lost);
            let utilization = load / servers;
            if size < LEAST || utilization > self.utilization {
                return None;
            }
            // Erlang C: the share that has to wait.
            let waits = lost / (1.0 - utilization * (1.0 - lost));
            let wait = waits / (servers * (1.0 - utilization)) * variability;
            (wait <= most).then_some(Pool {
                size,
                utilization,
                wait,
            })
        })
    }

    fn surge_of(&self, replicas: u32) -> u32 {
        self.surge.unwrap_or(replicas.div_ceil(4))
    }

    fn too_few(&self, size: u32, processes: u32, connections: u32) -> ConfigError {
        let free = self.max_connections - self.reserved;
        let fits = |replicas: &u32| {
            let processes = replicas + self.surge_of(*replicas);
            let pool = self.pool(*replicas);
            pool.is_ok_and(|pool| processes.saturating_mul(pool.size + BESIDE) <= free)
        };
        let mut allowed = format!(
            "at least {}: {processes} processes at a time need {size} connections each and one beside them, and {} are reserved",
            connections.saturating_add(self.reserved),
            self.reserved
        );
        let fewer = (1..self.replicas).rev().find(fits);
        if let Some(replicas) = fewer {
            allowed += &format!("; or run at most {replicas} replicas");
        }
        match self.pool(1) {
            Ok(shared) if shared.size <= free => {
                allowed += &format!(
                    "; or use a pooler by transaction that keeps {} connections to the server",
                    shared.size
                );
            }
            _ => allowed += "; or let a call hold its connection for a shorter time",
        }
        self.max_connections_must_be(allowed)
    }

    fn max_connections_must_be(&self, allowed: String) -> ConfigError {
        ConfigError::new(PART, "max_connections", self.max_connections, allowed)
    }
}

/// A pool, and how it fares.
struct Pool {
    size: u32,
    utilization: f64,
    /// On average, in service times.
    wait: f64,
}

/// The most connections of one pool, as with `Preset::pool_size`.
const MOST: u32 = 10_000;

/// With one connection, one slow call stops all others.
const LEAST: u32 = 2;

/// The connections that a `Db` has beside its pool.
const BESIDE: u32 = 1;

/// The share of a call's own time for which it may wait.
const UNSEEN: f64 = 0.1;

const SHORTEST: Duration = Duration::from_micros(1);

/// More processes, clients or connections than anybody has.
const MOST_COUNTED: usize = 1_000_000;

const PART: &str = "pool plan";

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pool_has_head_room_over_littles_law() {
        // 500 calls/s of 20 ms keep ten busy.
        let plan = on_a_big_server(500.0, 20 * MS).build().unwrap();
        assert_eq!(
            (plan.pool_size, plan.processes, plan.connections),
            (15, 2, 32)
        );
        assert_eq!(plan.utilization, 10.0 / 15.0);
        assert!(plan.mean_wait < 2 * MS, "{:?}", plan.mean_wait);
    }

    #[test]
    fn the_share_that_waits_is_erlangs() {
        // Known values: of two busy ones, 4/9 of the calls wait for three; of one alone, a share of its load does.
        let pool = |size: u32, load: f64| {
            let most = load / f64::from(size) + 1e-9;
            let builder = PoolPlan::builder(1.0, MS).utilization(most);
            let pool = builder
                .mean_wait(Duration::from_secs(9))
                .least(load)
                .unwrap();
            assert_eq!(pool.size, size);
            pool.wait
        };
        assert!((pool(3, 2.0) - 4.0 / 9.0).abs() < 1e-9);
        assert!((pool(2, 1.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_wait_is_what_a_simulated_pool_makes_of_it() {
        for (load, spread, calls_by) in [
            (6.0, 1.0, exponential as fn(&mut fastrand::Rng) -> f64),
            (2.5, 1.0, exponential),
            (6.0, 0.0, |_| 1.0),
            (6.0, 3.0_f64.sqrt(), mostly_short),
        ] {
            let builder = PoolPlan::builder(1_000.0, MS).spread(MS.mul_f64(spread));
            let pool = builder
                .mean_wait(MS / 5)
                .utilization(0.85)
                .least(load)
                .unwrap();
            let simulated = simulate(pool.size, load, calls_by);
            let off = (pool.wait - simulated).abs() / simulated;
            assert!(
                off < 0.2,
                "load {load}, spread {spread}: {} and {simulated}",
                pool.wait
            );
        }
    }

    #[test]
    fn calls_that_differ_more_need_more_connections() {
        let with = |deviation| {
            let builder = on_a_big_server(500.0, 20 * MS).spread(deviation);
            builder.build().unwrap().pool_size
        };
        assert_eq!(
            [with(Duration::ZERO), with(20 * MS), with(100 * MS)],
            [15, 15, 17]
        );
    }

    #[test]
    fn the_largest_pool_of_all_may_be_as_busy_as_any_and_no_busier() {
        let with = |calls| {
            let builder = on_a_big_server(calls, Duration::from_secs(1));
            builder.utilization(0.5).build()
        };
        let plan = with(5_000.0).unwrap();
        assert_eq!((plan.pool_size, plan.utilization), (10_000, 0.5));
        assert_eq!(with(5_000.1).unwrap_err().setting(), "calls_per_second");
    }

    #[test]
    fn a_quiet_service_has_two_connections() {
        let plan = PoolPlan::builder(0.1, MS).build().unwrap();
        assert_eq!((plan.pool_size, plan.connections), (2, 6));
    }

    #[test]
    fn a_deployment_counts() {
        let surge = |replicas, surge: Option<u32>| {
            let builder = PoolPlan::builder(1.0, MS).replicas(replicas);
            let builder = surge.into_iter().fold(builder, PoolPlanBuilder::surge);
            builder.build().unwrap().processes
        };
        assert_eq!(surge(1, None), 2);
        assert_eq!(surge(4, None), 5);
        assert_eq!(surge(5, None), 7);
        assert_eq!(surge(5, Some(0)), 5);
    }

    #[test]
    fn behind_a_pooler_both_sides_are_sized() {
        let builder = PoolPlan::builder(300.0, 20 * MS).replicas(40);
        let plan = builder.pooler(200).build().unwrap();
        assert_eq!(
            (plan.pool_size, plan.connections, plan.allowed),
            (2, 150, 200)
        );
        assert_eq!(plan.server_connections, Some(9));
        assert_eq!(
            plan.to_string(),
            "2 connections for each of 50 processes, 150 of 200 in all; at the peak 8 % of a pool are in use, and a call waits 1.42ms; \
             the pooler keeps 9 to the server"
        );
        // As many as it takes are enough, on both sides.
        assert!(builder.pooler(150).max_connections(12).build().is_ok());
        let error = builder.pooler(149).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "pool plan: pooler is 149, but must be at least 150: 50 processes at a time need 2 connections each and one beside them"
        );
        let error = builder.pooler(200).max_connections(11).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "pool plan: max_connections is 11, but must be at least 12: the pooler needs 9 connections to the server, and 3 are reserved; \
             or let a call hold its connection for a shorter time"
        );
    }

    #[test]
    fn as_many_replicas_as_it_says_fit_and_one_more_does_not() {
        let with = |replicas| PoolPlan::builder(300.0, 20 * MS).replicas(replicas).build();
        let said = with(40).unwrap_err().to_string();
        let advice = "; or run at most 25 replicas; or use a pooler by transaction that keeps 9 connections to the server";
        assert!(said.ends_with(advice), "{said}");
        assert!(with(25).is_ok());
        assert_eq!(with(26).unwrap_err().setting(), "max_connections");
    }

    #[test]
    fn a_load_beyond_the_server_wants_shorter_calls() {
        let error = PoolPlan::builder(1_000.0, 200 * MS)
            .replicas(4)
            .build()
            .unwrap_err();
        assert_eq!(error.setting(), "max_connections");
        let said = error.to_string();
        assert!(
            said.ends_with("; or let a call hold its connection for a shorter time"),
            "{said}"
        );
        assert!(
            !said.contains("replicas;") && !said.contains("pooler"),
            "{said}"
        );
    }

    #[test]
    fn what_can_not_be_used_is_refused_with_its_name_and_range() {
        let fine = || PoolPlan::builder(300.0, 20 * MS);
        for (builder, message) in [
            (
                PoolPlan::builder(0.0, MS),
                "calls_per_second is 0.0, but must be over 0, and finite",
            ),
            (
                PoolPlan::builder(f64::NAN, MS),
                "calls_per_second is NaN, but must be over 0, and finite",
            ),
            (
                PoolPlan::builder(f64::INFINITY, MS),
                "calls_per_second is inf, but must be over 0, and finite",
            ),
            (
                PoolPlan::builder(1e9, MS),
                "calls_per_second is 1000000000.0, but must be so many that no pool needs over 10000 connections; at 1ms a call they keep 1000000 busy, of 1 replicas",
            ),
            (
                PoolPlan::builder(1.0, Duration::ZERO),
                "service_time is 0ns, but must be at least 1µs and at most 365 days",
            ),
            (
                fine().spread(Duration::MAX),
                "spread is 18446744073709551615.999999999s, but must be at least 0ns and at most 365 days",
            ),
            (
                fine().mean_wait(Duration::ZERO),
                "mean_wait is 0ns, but must be at least 1µs and at most 365 days",
            ),
            (
                fine().utilization(1.0),
                "utilization is 1.0, but must be over 0 and under 1",
            ),
            (
                fine().utilization(0.0),
                "utilization is 0.0, but must be over 0 and under 1",
            ),
            (
                fine().utilization(f64::NAN),
                "utilization is NaN, but must be over 0 and under 1",
            ),
            (
                fine().replicas(0),
                "replicas is 0, but must be at least 1 and at most 1000000",
            ),
            (
                fine().surge(u32::MAX),
                "surge is 4294967295, but must be at least 0 and at most 1000000",
            ),
            (
                fine().pooler(0),
                "pooler is 0, but must be at least 1 and at most 1000000",
            ),
            (
                fine().max_connections(0),
                "max_connections is 0, but must be at least 1 and at most 1000000",
            ),
            (
                fine().reserved(100),
                "reserved is 100, but must be less than max_connections, 100",
            ),
        ] {
            let error = builder.build().expect_err(message);
            assert_eq!(error.to_string(), format!("pool plan: {message}"));
        }
    }

    proptest! {
        #[test]
        fn a_plan_keeps_what_was_asked_for_and_no_smaller_one_would(
            calls in 0.1..5_000.0_f64, micros in 10..500_000_u64, spread in 0.0..4.0_f64,
            replicas in 1..60_u32, max in 2..2_000_u32, share in 0.05..0.95_f64,
        ) {
            let time = Duration::from_micros(micros);
            let builder = PoolPlan::builder(calls, time).spread(time.mul_f64(spread));
            let builder = builder.replicas(replicas).max_connections(max).reserved(max / 10).utilization(share);
            let Ok(plan) = builder.build() else {
                // What is said to be enough is enough.
                let enough = builder.max_connections(1_000_000).build();
                if let Ok(plan) = enough {
                    let least = plan.connections + max / 10;
                    prop_assert!(least > max);
                    prop_assert!(builder.max_connections(least).build().is_ok());
                    prop_assert!(builder.max_connections(least - 1).build().is_err());
                }
                return Ok(());
            };
            prop_assert!(plan.utilization <= share);
            let load = calls * time.as_secs_f64() / f64::from(replicas);
            prop_assert!((plan.utilization * f64::from(plan.pool_size) - load).abs() <= 1e-9 * load.max(1.0));
            prop_assert!(plan.mean_wait <= time / 10 + Duration::from_nanos(1));
            prop_assert_eq!(plan.connections, plan.processes * (plan.pool_size + BESIDE));
            prop_assert!(plan.connections <= plan.allowed && plan.allowed == max - max / 10);
            let wait = |size| wait_by_sums(size, load) * f64::midpoint(1.0, spread * spread);
            prop_assert!(wait(plan.pool_size) <= UNSEEN * (1.0 + 1e-6));
            let smaller = plan.pool_size - 1;
            let is_enough = load / f64::from(smaller) <= share * (1.0 - 1e-9) && wait(smaller) <= UNSEEN * (1.0 - 1e-6);
            prop_assert!(smaller < LEAST || !is_enough, "{} would do", smaller);
        }

        #[test]
        fn more_load_never_takes_a_smaller_pool(calls in 0.1..5_000.0_f64, more in 1.0..2.0_f64, micros in 10..100_000_u64) {
            let of = |calls| on_a_big_server(calls, Duration::from_micros(micros)).build().unwrap().pool_size;
            prop_assert!(of(calls * more) >= of(calls));
        }
    }

    /// Erlang C as the textbooks have it, by the sum over how many are there; in service times, for exponential ones.
    fn wait_by_sums(size: u32, load: f64) -> f64 {
        let servers = f64::from(size);
        if load >= servers {
            return f64::INFINITY;
        }
        // Scaled by the last term, so that none of them is too large to be written down.
        let (mut term, mut sum) = (1.0, 0.0);
        for there in (1..=size).rev() {
            term *= f64::from(there) / load;
            sum += term;
        }
        let all = servers / (servers - load);
        all / (sum + all) / (servers - load)
    }

    fn on_a_big_server(calls: f64, time: Duration) -> PoolPlanBuilder {
        PoolPlan::builder(calls, time).max_connections(100_000)
    }

    /// How long a call waits on average, in service times, if calls come by chance and are served in their order.
    fn simulate(size: u32, load: f64, calls_by: fn(&mut fastrand::Rng) -> f64) -> f64 {
        const CALLS: u32 = 400_000;
        let mut random = fastrand::Rng::with_seed(7);
        let mut free_at = vec![0.0; size as usize];
        let (mut now, mut waited) = (0.0, 0.0);
        for _ in 0..CALLS {
            now += exponential(&mut random) / load;
            let first = free_at
                .iter_mut()
                .min_by(|a, b| f64::total_cmp(a, b))
                .unwrap();
            let begins = first.max(now);
            waited += begins - now;
            *first = begins + calls_by(&mut random);
        }
        waited / f64::from(CALLS)
    }

    /// With a mean of 1.
    fn exponential(random: &mut fastrand::Rng) -> f64 {
        -(1.0 - random.f64()).ln()
    }

    /// With a mean of 1 and a variance of 3: three quarters take no time to speak of.
    fn mostly_short(random: &mut fastrand::Rng) -> f64 {
        if random.f64() < 0.75 { 0.0 } else { 4.0 }
    }
}
