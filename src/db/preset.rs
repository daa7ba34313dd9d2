use std::time::Duration;

use crate::{breaker::WhenOpen, error::ConfigError};

/// Time limits, sizes and habits of one database's pool, by what it is for.
///
/// ```text
///  a call ─► acquire: the queue ─► connect, if none is idle ─► lock ⊂ statement ─► its answer
///          └──────────────────────────── deadline ──────────────────────────────┘
/// ```
///
/// ```
/// use std::time::Duration;
/// use steadfast::db::{Config, Preset};
///
/// let reports = Preset::web().statement(Duration::from_secs(60)).pool_size(4);
/// let config = Config::new("postgres://app@localhost/shop").preset(reports);
/// ```
///
/// # Defaults
/// | setting | web | batch | why |
/// |---|---|---|---|
/// | `connect` | 5 s | 10 s | a lost packet is sent again after 1 s and after 3 s; a batch can wait for a failover |
/// | `acquire` | 5 s | 30 s | a user who waited longer has gone; a batch has nowhere to go |
/// | `statement` | 10 s | 10 min | what a page needs takes milliseconds, so this ends only what went wrong; reports and migrations take minutes |
/// | `lock` | 2 s | 30 s | shorter than `statement`, so that waiting for a lock can be told from being slow |
/// | `idle_in_transaction` | 60 s | 5 min | nobody thinks for so long with rows locked; a batch may compute in between |
/// | `deadline` | `acquire` + `statement` | the same | whoever was let in may use up the statement's time |
/// | `pool_size` | 20 | 5 | it keeps a server with 8 cores busy, and four instances fit into PostgreSQL's 100; batches give way to users |
/// | `overflow` | 0 | 0 | more connections than the server has cores make everybody slower; the queue is the better place for a burst |
/// | `idle_timeout` | 60 s | 60 s | a burst is over by then; applies only where there is `overflow` |
/// | `recycle` | 30 min | the same | caches of a session stop growing, and after a failover or a change of DNS the old server is left |
/// | `pre_ping` | on | on | firewalls drop idle connections without a word; one that was just in use is not pinged |
/// | `check_interval` | 100 ms | the same | a query whose client has gone ends that soon; asking costs the server one system call |
/// | `when_open` | [`Refuse`](WhenOpen::Refuse) | [`Wait`](WhenOpen::Wait), for 1,000 calls | a user gets an answer at once; a batch continues where it was |
///
/// Also PostgreSQL's keepalives are set, at 60 s and then three times every 10 s: a server that asks its clients notices within 90 s, and not after two hours,
/// that a machine with an open transaction is gone, and firewalls see that the connection is in use.
///
/// The servers' units are coarser than ours. PostgreSQL counts milliseconds, for at most 24 days; MySQL and MariaDB count `lock` and
/// `idle_in_transaction` in seconds, rounded up. MySQL ends by `statement` only what reads, and knows no `idle_in_transaction`. To SQLite, `lock` is the busy timeout.
#[derive(Clone, Debug)]
#[must_use = "a preset does nothing until a `Config` has it"]
pub struct Preset {
    pub(crate) connect: Duration,
    pub(crate) acquire: Duration,
    pub(crate) statement: Duration,
    pub(crate) lock: Duration,
    pub(crate) idle_in_transaction: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) pool_size: u32,
    pub(crate) overflow: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) recycle: Option<Duration>,
    pub(crate) pre_ping: bool,
    pub(crate) check_interval: Option<Duration>,
    pub(crate) when_open: WhenOpen,
}

impl Preset {
    /// For calls that somebody waits for.
    pub fn web() -> Self {
        Self {
            connect: Duration::from_secs(5),
            acquire: Duration::from_secs(5),
            statement: Duration::from_secs(10),
            lock: Duration::from_secs(2),
            idle_in_transaction: Duration::from_secs(60),
            deadline: None,
            pool_size: 20,
            overflow: 0,
            idle_timeout: Duration::from_secs(60),
            recycle: Some(Duration::from_secs(30 * 60)),
            pre_ping: true,
            check_interval: Some(Duration::from_millis(100)),
            when_open: WhenOpen::Refuse,
        }
    }

    /// For work in the background, which would rather wait than fail.
    pub fn batch() -> Self {
        Self {
            connect: Duration::from_secs(10),
            acquire: Duration::from_secs(30),
            statement: Duration::from_secs(10 * 60),
            lock: Duration::from_secs(30),
            idle_in_transaction: Duration::from_secs(5 * 60),
            pool_size: 5,
            when_open: WhenOpen::Wait { queue: 1_000 },
            ..Self::web()
        }
    }

    /// How long making a connection may take.
    pub fn connect(mut self, within: Duration) -> Self {
        self.connect = within;
        self
    }

    /// How long a call may wait for its turn.
    pub fn acquire(mut self, within: Duration) -> Self {
        self.acquire = within;
        self
    }

    /// How long one statement may run before the server ends it.
    pub fn statement(mut self, within: Duration) -> Self {
        self.statement = within;
        self
    }

    /// How long a statement may wait for one lock; at most the time of a statement.
    pub fn lock(mut self, within: Duration) -> Self {
        self.lock = within;
        self
    }

    /// How long a transaction may be idle before the server ends its session.
    pub fn idle_in_transaction(mut self, within: Duration) -> Self {
        self.idle_in_transaction = within;
        self
    }

    /// How long a call may take in all, with its wait and its repeats.
    ///
    /// At least the time of a statement.
    pub fn deadline(mut self, within: Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// The number of connections.
    ///
    /// How many are needed, and whether the server has them for all processes, says a [`PoolPlan`](super::PoolPlan).
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.pool_size = connections;
        self
    }

    /// The number of connections on top of the pool's size, for bursts.
    pub fn overflow(mut self, connections: u32) -> Self {
        self.overflow = connections;
        self
    }

    /// How long a connection may be idle where there is [`overflow`](Self::overflow).
    ///
    /// Without overflow, no connection is closed for being idle.
    pub fn idle_timeout(mut self, after: Duration) -> Self {
        self.idle_timeout = after;
        self
    }

    /// The age at which a connection is replaced; `None` is never.
    ///
    /// It happens within the last tenth of it, for one connection after the other.
    pub fn recycle(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.recycle = after.into();
        self
    }

    /// Whether a connection that was idle is pinged before it is used.
    ///
    /// After half a second of silence a new connection is made beside it. Once the server has answered there, the silent one is closed, and with it all that are
    /// idle: where one is dead, others are. So dead connections cost one call half a second and a connect, however many there are. While the server is silent
    /// everywhere, or a pooler is full, they are kept, and calls wait for as long as [`acquire`](Self::acquire) says.
    pub fn pre_ping(mut self, pings: bool) -> Self {
        self.pre_ping = pings;
        self
    }

    /// How often PostgreSQL looks whether the client of a running query is still there.
    ///
    /// PostgreSQL knows it from version 14 on, on Linux, macOS and most BSDs. Older and other servers, and some that are only compatible, refuse a
    /// connection that asks for it: `unrecognized configuration parameter "client_connection_check_interval"`. For those, say `None`: then a
    /// query that nobody waits for any more runs on until [`statement`](Self::statement) is over.
    pub fn check_interval(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.check_interval = every.into();
        self
    }

    /// What happens to a call while the circuit is open.
    pub fn when_open(mut self, when_open: WhenOpen) -> Self {
        self.when_open = when_open;
        self
    }

    /// How long a call may take in all.
    pub(crate) fn longest_call(&self) -> Duration {
        self.deadline
            .unwrap_or(self.acquire.saturating_add(self.statement))
    }

    /// The most connections that there are.
    pub(crate) fn connections(&self) -> u32 {
        self.pool_size.saturating_add(self.overflow)
    }

    /// Refuses what can't be used. The breaker checks `when_open`.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("connect", self.connect, LEAST),
            ("acquire", self.acquire, LEAST),
            ("statement", self.statement, LEAST),
            ("lock", self.lock, LEAST),
            ("idle_in_transaction", self.idle_in_transaction, LEAST),
            ("idle_timeout", self.idle_timeout, LEAST_AGE),
            ("recycle", self.recycle.unwrap_or(LEAST_AGE), LEAST_AGE),
            (
                "check_interval",
                self.check_interval.unwrap_or(LEAST),
                LEAST,
            ),
            ("deadline", self.longest_call(), LEAST),
        ];
        for (setting, time, least) in times {
            ConfigError::check_time(PART, setting, time, least)?;
        }
        ConfigError::check_count(PART, "pool_size", self.pool_size as usize, 1, MOST)?;
        ConfigError::check_count(PART, "overflow", self.overflow as usize, 0, MOST)?;
        let statement = self.statement;
        if self.lock > statement {
            let allowed = format!("at most the time of a statement, {statement:?}");
            return Err(ConfigError::new(PART, "lock", self.lock, allowed));
        }
        let deadline = self.longest_call();
        if deadline < statement {
            let allowed = format!("at least the time of a statement, {statement:?}");
            return Err(ConfigError::new(PART, "deadline", deadline, allowed));
        }
        Ok(())
    }
}

/// The most connections that a size may name; no server of today takes more.
pub(super) const MOST: usize = 10_000;

/// The shortest time, which is the unit of PostgreSQL's.
pub(super) const LEAST: Duration = Duration::from_millis(1);

/// The shortest life of a connection: the pool looks for what is too old as often as that.
pub(super) const LEAST_AGE: Duration = Duration::from_secs(1);

const PART: &str = "preset";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Preset;
    use crate::{breaker::WhenOpen, error::LONGEST};

    const OVER: Duration = LONGEST.saturating_add(Duration::from_nanos(1));
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_presets_are_in_range() {
        for preset in [Preset::web(), Preset::batch()] {
            assert_eq!(preset.check(), Ok(()), "{preset:?}");
        }
    }

    #[test]
    fn a_batch_waits_longer_with_fewer_connections_and_sits_an_outage_out() {
        type Time = fn(&Preset) -> Duration;
        let (web, batch) = (Preset::web(), Preset::batch());
        let times: &[(&str, Time)] = &[
            ("connect", |preset| preset.connect),
            ("acquire", |preset| preset.acquire),
            ("statement", |preset| preset.statement),
            ("lock", |preset| preset.lock),
            ("idle_in_transaction", |preset| preset.idle_in_transaction),
        ];
        for (setting, time) in times {
            assert!(time(&batch) > time(&web), "{setting}");
        }
        assert!(batch.connections() < web.connections());
        assert_eq!(web.when_open, WhenOpen::Refuse);
        assert!(matches!(batch.when_open, WhenOpen::Wait { .. }));
    }

    #[test]
    fn a_call_may_take_the_wait_and_the_statement_unless_told_otherwise() {
        let preset = Preset::web().acquire(3 * SECOND).statement(7 * SECOND);
        assert_eq!(preset.longest_call(), 10 * SECOND);
        assert_eq!(preset.deadline(8 * SECOND).longest_call(), 8 * SECOND);
    }

    #[test]
    fn what_can_not_be_used_is_refused_with_its_name_and_range() {
        type Set = fn(Preset) -> Preset;
        let table: &[(Set, &str)] = &[
            (
                |p| p.connect(Duration::ZERO),
                "connect is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.connect(OVER),
                "connect is 31536000.000000001s, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.acquire(Duration::ZERO),
                "acquire is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.statement(Duration::ZERO),
                "statement is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.lock(Duration::ZERO),
                "lock is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.lock(11 * SECOND),
                "lock is 11s, but must be at most the time of a statement, 10s",
            ),
            (
                |p| p.statement(SECOND),
                "lock is 2s, but must be at most the time of a statement, 1s",
            ),
            (
                |p| p.idle_in_transaction(Duration::ZERO),
                "idle_in_transaction is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.idle_timeout(SECOND / 2),
                "idle_timeout is 500ms, but must be at least 1s and at most 365 days",
            ),
            (
                |p| p.recycle(SECOND / 2),
                "recycle is 500ms, but must be at least 1s and at most 365 days",
            ),
            (
                |p| p.check_interval(Duration::ZERO),
                "check_interval is 0ns, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.deadline(9 * SECOND),
                "deadline is 9s, but must be at least the time of a statement, 10s",
            ),
            (
                |p| p.deadline(OVER),
                "deadline is 31536000.000000001s, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.acquire(LONGEST),
                "deadline is 31536010s, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.acquire(Duration::MAX),
                "acquire is 18446744073709551615.999999999s, but must be at least 1ms and at most 365 days",
            ),
            (
                |p| p.pool_size(0),
                "pool_size is 0, but must be at least 1 and at most 10000",
            ),
            (
                |p| p.pool_size(u32::MAX),
                "pool_size is 4294967295, but must be at least 1 and at most 10000",
            ),
            (
                |p| p.overflow(10_001),
                "overflow is 10001, but must be at least 0 and at most 10000",
            ),
        ];
        for (set, message) in table {
            let error = set(Preset::web()).check().expect_err(message);
            assert_eq!(error.to_string(), format!("preset: {message}"));
        }
    }

    #[test]
    fn a_lock_may_take_the_statements_whole_time_and_the_call_no_more() {
        let preset = Preset::web().statement(7 * SECOND);
        let preset = preset.lock(7 * SECOND).deadline(7 * SECOND);
        assert_eq!(preset.check(), Ok(()));
    }

    #[test]
    fn what_can_be_left_out_is_in_range_without() {
        let preset = Preset::web().recycle(None).check_interval(None);
        assert_eq!(preset.check(), Ok(()));
    }
}
