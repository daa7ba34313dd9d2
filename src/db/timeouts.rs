use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{Connection, Database, pool::PoolOptions};

use super::{Config, PoolerMode, Preset};
use crate::{
    sync::{Mutex, lock},
    time,
};

/// How sqlx makes one connection to the database.
pub type ConnectOptions<DB> = <<DB as Database>::Connection as Connection>::Options;

/// All that sqlx needs to know. No `Debug`: the options would show the password.
pub struct Plan<DB: Database> {
    pub(super) connect: ConnectOptions<DB>,
    pub(super) pool: PoolOptions<DB>,
    /// With what the environment overrides.
    pub(super) preset: Preset,
    pub(super) mode: PoolerMode,
    /// Why it is this mode.
    pub(super) why: &'static str,
}

/// Out of reach, so that nobody else implements [`Driver`].
pub trait Planned: Database {
    /// `connect` is what the URL says, `preset` is checked.
    fn plan(config: &Config, connect: ConnectOptions<Self>, preset: Preset) -> Plan<Self>;
}

#[cfg(feature = "postgres")]
mod postgres {
    use sqlx::{Postgres, postgres::PgConnectOptions};

    use super::{Config, Plan, Planned, PoolerMode, Preset, milliseconds, pool_options};
    use crate::db::pooler;

    impl Planned for Postgres {
        fn plan(config: &Config, connect: PgConnectOptions, preset: Preset) -> Plan<Self> {
            let (mode, why) = match config.told() {
                Some(told) => told,
                None => match connect.get_socket() {
                    Some(socket) => pooler::detect(&socket.to_string_lossy(), connect.get_port()),
                    None => pooler::detect(connect.get_host(), connect.get_port()),
                },
            };
            let connect = named(config, connect);
            let connect = match mode {
                PoolerMode::Direct => {
                    let ours = settings(&preset);
                    let theirs = connect.get_options().unwrap_or_default().to_owned();
                    connect.options(ours.into_iter().filter(|(name, _)| !names(&theirs, name)))
                }
                // Even this one of sqlx's own would be refused. From PostgreSQL 12 on, the server's default is as exact.
                PoolerMode::TransactionWithPrepared | PoolerMode::TransactionPlain => {
                    connect.extra_float_digits(None)
                }
            };
            Plan {
                connect,
                pool: pool_options(&preset, config.echoes()),
                preset,
                mode,
                why,
            }
        }
    }

    /// With the application's name, unless the URL or `PGAPPNAME` has one.
    fn named(config: &Config, connect: PgConnectOptions) -> PgConnectOptions {
        let usual = || {
            let usual = config.named().map_or("steadfast", |name| name.as_str());
            connect.get_application_name().is_none().then_some(usual)
        };
        match config.application().or_else(usual) {
            Some(name) => {
                let name = printable(name);
                connect.application_name(&name)
            }
            None => connect,
        }
    }

    /// As the server would keep it. A zero byte must not reach it: behind one, the next setting begins.
    fn printable(name: &str) -> String {
        let printable = |letter| {
            if matches!(letter, ' '..='~') {
                letter
            } else {
                '?'
            }
        };
        name.chars().map(printable).take(63).collect()
    }

    /// The settings of each session, in milliseconds where they are times.
    ///
    /// `tcp_user_timeout` is not among them: it also ends the session of a client that is there, and only reads its rows slowly.
    fn settings(preset: &Preset) -> Vec<(&'static str, String)> {
        let times = [
            ("statement_timeout", Some(preset.statement)),
            ("lock_timeout", Some(preset.lock)),
            (
                "idle_in_transaction_session_timeout",
                Some(preset.idle_in_transaction),
            ),
            ("client_connection_check_interval", preset.check_interval),
        ];
        let times = times.into_iter().filter_map(|(name, time)| {
            Some((name, milliseconds(time?, i32::MAX as u32).to_string()))
        });
        let keepalives = [
            ("tcp_keepalives_idle", "60"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
        ];
        times
            .chain(keepalives.map(|(name, value)| (name, value.to_owned())))
            .collect()
    }

    /// Whether the user's options, as `-c a=1 --b-c=2`, say something about the setting.
    fn names(options: &str, setting: &str) -> bool {
        options.split_whitespace().any(|option| {
            let option = option
                .strip_prefix("--")
                .or_else(|| option.strip_prefix("-c"))
                .unwrap_or(option);
            let name = option.split('=').next().unwrap_or(option);
            name.replace('-', "_").eq_ignore_ascii_case(setting)
        })
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use sqlx::Postgres;

        use super::{Plan, PoolerMode, Preset, names, printable};
        use crate::{db::Config, error::LONGEST};

        #[test]
        fn a_direct_session_has_the_time_limits_of_its_preset() {
            let plan = plan(Config::new(URL).preset(Preset::batch()));
            assert_eq!(plan.mode, PoolerMode::Direct, "{}", plan.why);
            let settings = "-c statement_timeout=600000 -c lock_timeout=30000 \
                -c idle_in_transaction_session_timeout=300000 -c client_connection_check_interval=100 \
                -c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3";
            assert_eq!(plan.connect.get_options(), Some(settings));
        }

        #[test]
        fn times_fit_into_what_the_server_can_count() {
            let short = Preset::web()
                .check_interval(Duration::from_micros(1_500))
                .statement(LONGEST)
                .deadline(LONGEST);
            let plan = plan(Config::new(URL).preset(short));
            let options = plan.connect.get_options().unwrap();
            assert!(
                options.contains("statement_timeout=2147483647 "),
                "{options}"
            );
            assert!(options.contains("check_interval=2 "), "{options}");
        }

        #[test]
        fn a_check_interval_can_be_left_out() {
            let plan = plan(Config::new(URL).preset(Preset::web().check_interval(None)));
            let options = plan.connect.get_options().unwrap();
            assert!(options.contains("-c lock_timeout=2000 "), "{options}");
            assert!(!options.contains("check_interval"), "{options}");
        }

        #[test]
        fn what_the_url_says_stands() {
            let url = "postgres://app@127.0.0.1/shop?application_name=theirs&options=-c%20lock_timeout%3D5s%20--statement-timeout%3D0";
            let plan = plan(Config::new(url).name("ours"));
            let options = plan.connect.get_options().unwrap();
            assert_eq!(options.matches("lock_timeout").count(), 1, "{options}");
            assert!(!options.contains("statement_timeout"), "{options}");
            assert!(
                options.contains("idle_in_transaction_session_timeout=60000"),
                "{options}"
            );
            assert_eq!(plan.connect.get_application_name(), Some("theirs"));
        }

        #[test]
        fn an_option_is_known_by_its_whole_name() {
            for options in [
                "-c lock_timeout=1",
                "-clock_timeout=1",
                "--lock-timeout=1",
                "-c geqo=off -c LOCK_TIMEOUT=1",
            ] {
                assert!(names(options, "lock_timeout"), "{options}");
            }
            for options in [
                "",
                "-c deadlock_timeout=1",
                "-c x=lock_timeout",
                "-c statement_timeout=1",
            ] {
                assert!(!names(options, "lock_timeout"), "{options}");
            }
        }

        #[test]
        fn a_session_has_a_name() {
            for (config, name) in [
                (Config::new(URL), "steadfast"),
                (Config::new(URL).name("shop"), "shop"),
                (
                    Config::new(URL).name("shop").application_name("till"),
                    "till",
                ),
                (
                    Config::new(format!("{URL}?application_name=theirs")).application_name("till"),
                    "till",
                ),
            ] {
                assert_eq!(plan(config).connect.get_application_name(), Some(name));
            }
        }

        #[test]
        fn a_name_can_not_smuggle_settings_in() {
            assert_eq!(printable("a\0options\0-c x\n\u{e9}"), "a?options?-c x??");
            assert_eq!(printable(&"x".repeat(100)).len(), 63);
        }

        #[test]
        fn a_pooler_is_sent_no_settings() {
            let with = |mode| Config::new(URL).pooler(mode);
            for config in [
                Config::new("postgres://app@127.0.0.1:6543/shop"),
                with(PoolerMode::TransactionPlain),
                with(PoolerMode::TransactionWithPrepared),
            ] {
                let told = config.told();
                let plan = plan(config);
                let told = told.map_or(PoolerMode::TransactionPlain, |(mode, _)| mode);
                assert_eq!(plan.mode, told);
                assert_eq!(plan.connect.get_options(), None);
                // There is no getter for it, nor anything else to see it by.
                let shown = format!("{:?}", plan.connect);
                assert!(shown.contains("extra_float_digits: None"), "{shown}");
            }
        }

        #[test]
        fn the_mode_that_is_told_is_not_doubted() {
            let config = Config::new("postgres://app@pooler/shop").pooler(PoolerMode::Direct);
            let plan = plan(config);
            assert_eq!((plan.mode, plan.why), (PoolerMode::Direct, "it was told"));
        }

        #[test]
        fn a_socket_speaks_of_a_pooler_by_its_folder() {
            let plan = plan(Config::new("postgres:///shop?host=/run/pgbouncer"));
            assert_eq!(plan.mode, PoolerMode::TransactionPlain);
        }

        #[test]
        fn a_url_of_another_database_is_refused() {
            for (url, message) in [
                (
                    "mysql://app:hunter2@db/shop",
                    "config: url is \"mysql://app:***@db/shop\", but must be a URL that begins with postgres: or postgresql:",
                ),
                (
                    "hunter2",
                    "config: url is \"***\", but must be a URL that begins with postgres: or postgresql:",
                ),
                (
                    "postgres://app:hunter2/3@db/shop",
                    "config: url is \"postgres://app:***@db/shop\", but must be a URL that sqlx can read: invalid port number",
                ),
            ] {
                let error = Config::new(url)
                    .connect_options::<Postgres>()
                    .expect_err(url);
                assert_eq!(error.to_string(), message);
            }
        }

        const URL: &str = "postgres://app@127.0.0.1/shop";

        fn plan(config: Config) -> Plan<Postgres> {
            config.plan().unwrap()
        }
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use sqlx::{AssertSqlSafe, MySql, mysql::MySqlConnectOptions};

    use super::{Config, Plan, Planned, PoolerMode, Preset, milliseconds, pool_options, seconds};

    impl Planned for MySql {
        fn plan(config: &Config, connect: MySqlConnectOptions, preset: Preset) -> Plan<Self> {
            let (mode, why) = match config.told() {
                Some(told) => told,
                None => (
                    PoolerMode::Direct,
                    "no pooler of MySQL's is known by its address",
                ),
            };
            let mut pool = pool_options(&preset, config.echoes());
            if mode == PoolerMode::Direct {
                let settings = settings(&preset);
                pool = pool.after_connect(move |connection, _| {
                    let settings = sqlx::raw_sql(AssertSqlSafe(settings.clone()));
                    Box::pin(async move {
                        settings.execute(connection).await?;
                        Ok(())
                    })
                });
            }
            Plan {
                connect,
                pool,
                preset,
                mode,
                why,
            }
        }
    }

    /// One statement for both servers: each leaves out what stands in a comment for the other.
    ///
    /// `lock_wait_timeout` is about the locks of tables, which a change of the schema takes.
    fn settings(preset: &Preset) -> String {
        format!(
            "SET SESSION innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock} \
            /*M! , max_statement_time = {statement} */ \
            /*M!100300 , idle_transaction_timeout = {idle} */ \
            /*!50708 , max_execution_time = {execution} */",
            lock = seconds(preset.lock),
            statement = preset.statement.as_secs_f64(),
            idle = seconds(preset.idle_in_transaction),
            execution = milliseconds(preset.statement, u32::MAX),
        )
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use sqlx::MySql;

        use super::{PoolerMode, Preset, settings};
        use crate::{db::Config, error::LONGEST};

        #[test]
        fn one_statement_speaks_to_both_servers() {
            let preset = Preset::web().statement(Duration::from_millis(2_500));
            let expected = "SET SESSION innodb_lock_wait_timeout = 2, lock_wait_timeout = 2 \
                /*M! , max_statement_time = 2.5 */ /*M!100300 , idle_transaction_timeout = 60 */ \
                /*!50708 , max_execution_time = 2500 */";
            assert_eq!(settings(&preset), expected);
        }

        #[test]
        fn whole_seconds_are_rounded_up() {
            let preset = Preset::web()
                .lock(Duration::from_millis(1))
                .idle_in_transaction(Duration::from_millis(1_001));
            let settings = settings(&preset);
            assert!(
                settings.contains("innodb_lock_wait_timeout = 1,"),
                "{settings}"
            );
            assert!(
                settings.contains("idle_transaction_timeout = 2 "),
                "{settings}"
            );
        }

        #[test]
        fn times_fit_into_what_the_servers_can_count() {
            let settings = settings(&Preset::web().statement(LONGEST).lock(LONGEST));
            assert!(
                settings.contains("lock_wait_timeout = 31536000 "),
                "{settings}"
            );
            assert!(
                settings.contains("max_statement_time = 31536000 "),
                "{settings}"
            );
            assert!(
                settings.contains("max_execution_time = 4294967295 "),
                "{settings}"
            );
        }

        #[test]
        fn urls_of_both_servers_are_taken() {
            for url in ["mysql://app@db/shop", "mariadb://app@db/shop"] {
                let plan = Config::new(url).plan::<MySql>().unwrap();
                assert_eq!(plan.mode, PoolerMode::Direct, "{}", plan.why);
                assert_eq!(plan.connect.get_host(), "db");
            }
            assert!(
                Config::new("postgres://app@db/shop")
                    .plan::<MySql>()
                    .is_err()
            );
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use sqlx::{Sqlite, sqlite::SqliteConnectOptions};

    use super::{Config, Plan, Planned, PoolerMode, Preset, pool_options};

    impl Planned for Sqlite {
        fn plan(config: &Config, connect: SqliteConnectOptions, mut preset: Preset) -> Plan<Self> {
            if in_memory(config.url()) {
                // With its last connection, the database would be gone.
                preset = preset.recycle(None).overflow(0);
            }
            Plan {
                connect: connect.busy_timeout(preset.lock),
                pool: pool_options(&preset, config.echoes()),
                preset,
                mode: PoolerMode::Direct,
                why: "nothing stands in front of a file",
            }
        }
    }

    fn in_memory(url: &str) -> bool {
        url.contains(":memory:") || url.contains("mode=memory")
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use sqlx::Sqlite;

        use super::Preset;
        use crate::db::Config;

        #[test]
        fn the_time_for_a_lock_is_the_busy_timeout() {
            let config = Config::new("sqlite://shop.db")
                .preset(Preset::web().lock(Duration::from_millis(1_234)));
            let shown = format!("{:?}", config.connect_options::<Sqlite>().unwrap());
            assert!(shown.contains("busy_timeout: 1.234s"), "{shown}");
        }

        #[test]
        fn a_database_in_memory_is_never_left_by_all_connections() {
            for url in [
                "sqlite::memory:",
                "sqlite://:memory:",
                "sqlite://shop?mode=memory",
            ] {
                let config = Config::new(url).preset(Preset::web().overflow(5));
                let pool = config.pool_options::<Sqlite>().unwrap();
                assert_eq!(
                    (pool.get_max_lifetime(), pool.get_idle_timeout()),
                    (None, None),
                    "{url}"
                );
            }
            let pool = Config::new("sqlite://shop.db")
                .pool_options::<Sqlite>()
                .unwrap();
            assert_eq!(pool.get_max_lifetime(), Preset::web().recycle);
        }
    }
}

/// What is the same for all drivers.
///
/// The pool's time limit is that of connecting: callers queue in front of the pool, where a limiter lets in only as many as there are
/// connections, and all that is left to wait for is a new one. A pool whose limit also covers the queue closes, when it
/// strikes, connections that it was about to hand out.
fn pool_options<DB: Database>(preset: &Preset, echoes: bool) -> PoolOptions<DB> {
    let idle_timeout = (preset.overflow > 0).then_some(preset.idle_timeout);
    let mut pool = PoolOptions::new()
        .max_connections(preset.connections())
        .acquire_timeout(preset.connect)
        // It would ping without a time limit of its own.
        .test_before_acquire(false)
        .max_lifetime(preset.recycle)
        .idle_timeout(idle_timeout);
    if echoes {
        // The type is of a crate that sqlx does not hand on.
        pool = pool.acquire_time_level("info".parse().expect("it is the name of a level"));
    }
    if let Some(recycle) = preset.recycle {
        let relay = Arc::new(Mutex::new(Relay::new(recycle, preset.connections())));
        pool = pool.before_acquire(move |_, connection| {
            let keeps = !lock(&relay).is_due(connection.age, fastrand::f64(), time::now());
            Box::pin(async move { Ok(keeps) })
        });
    }
    pool
}

/// Replaces connections that were made together one after the other.
///
/// From nine tenths of the age on, one at a time; who reaches the age, at once. A threshold drawn anew at each checkout would not do: a
/// connection that is used a hundred times a second soon draws a low one, and all would be replaced within seconds.
struct Relay {
    recycle: Duration,
    from: Duration,
    /// The longest time from one to the next; all of them fit into the last tenth.
    gap: Duration,
    next: Option<Instant>,
}

impl Relay {
    fn new(recycle: Duration, connections: u32) -> Self {
        let tenth = recycle / 10;
        Self {
            recycle,
            from: recycle - tenth,
            gap: tenth / connections.max(1),
            next: None,
        }
    }

    /// Whether a connection of this age is to be replaced; `random` is in 0..1, so that instances that were started together drift apart.
    fn is_due(&mut self, age: Duration, random: f64, now: Instant) -> bool {
        if age >= self.recycle {
            return true;
        }
        if age < self.from || self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + self.gap.mul_f64((1.0 + random) / 2.0));
        true
    }
}

#[cfg(feature = "mysql")]
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Rounded up, and at most `most`.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn milliseconds(time: Duration, most: u32) -> u32 {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(milliseconds).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Relay;

    const HALF_HOUR: Duration = Duration::from_secs(1_800);

    #[test]
    fn connections_made_together_are_replaced_one_after_the_other() {
        let start = crate::time::now();
        let mut relay = Relay::new(HALF_HOUR, 20);
        let mut made = [start; 20];
        let mut replaced: Vec<Instant> = Vec::new();
        let mut now = start;
        // Each is used a hundred times a second.
        while now < start + HALF_HOUR {
            for made in &mut made {
                if relay.is_due(now - *made, 0.7, now) {
                    replaced.push(now);
                    *made = now;
                }
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(replaced.len(), 20);
        assert!(replaced[0] >= start + HALF_HOUR.mul_f64(0.9));
        for pair in replaced.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_millis(4_500));
        }
    }

    #[test]
    fn chance_shortens_the_gap_by_up_to_a_half() {
        let start = crate::time::now();
        let age = HALF_HOUR.mul_f64(0.95);
        for (random, gap) in [(0.0, 4_500), (0.999_999, 8_999)] {
            let mut relay = Relay::new(HALF_HOUR, 20);
            let gap = Duration::from_millis(gap);
            assert!(relay.is_due(age, random, start));
            assert!(!relay.is_due(age, random, start + gap - Duration::from_millis(1)));
            assert!(relay.is_due(age, random, start + gap + Duration::from_millis(1)));
        }
    }

    #[test]
    fn the_next_ones_turn_comes_at_the_end_of_the_gap() {
        let start = crate::time::now();
        let mut relay = Relay::new(HALF_HOUR, 20);
        assert!(relay.is_due(HALF_HOUR.mul_f64(0.95), 0.0, start));
        let end = start + Duration::from_millis(4_500);
        assert!(relay.is_due(HALF_HOUR.mul_f64(0.95), 0.0, end));
    }

    #[test]
    fn who_is_too_old_does_not_wait_for_its_turn() {
        let now = crate::time::now();
        let mut relay = Relay::new(HALF_HOUR, 20);
        assert!(relay.is_due(HALF_HOUR.mul_f64(0.9), 0.5, now));
        assert!(!relay.is_due(HALF_HOUR.mul_f64(0.99), 0.5, now));
        assert!(relay.is_due(HALF_HOUR, 0.5, now));
        assert!(!relay.is_due(HALF_HOUR.mul_f64(0.89), 0.5, now + HALF_HOUR));
    }

    #[cfg(feature = "sqlite")]
    mod pool {
        use std::time::Duration;

        use sqlx::Sqlite;

        use crate::{
            db::{Config, Preset},
            testing::Log,
        };

        #[test]
        fn a_pool_waits_for_connections_only_and_pings_none() {
            let pool = Config::new("sqlite://shop.db").preset(Preset::web().overflow(10));
            let pool = pool.pool_options::<Sqlite>().unwrap();
            assert_eq!(pool.get_max_connections(), 30);
            assert_eq!(pool.get_min_connections(), 0);
            assert_eq!(pool.get_acquire_timeout(), Duration::from_secs(5));
            assert!(!pool.get_test_before_acquire());
            assert_eq!(pool.get_max_lifetime(), Some(Duration::from_secs(1_800)));
            assert_eq!(pool.get_idle_timeout(), Some(Duration::from_secs(60)));
        }

        #[test]
        fn the_time_to_connect_is_not_that_of_the_queue() {
            let preset = Preset::web()
                .connect(Duration::from_secs(3))
                .acquire(Duration::from_secs(4));
            let config = Config::new("sqlite://shop.db").preset(preset);
            let pool = config.pool_options::<Sqlite>().unwrap();
            assert_eq!(pool.get_acquire_timeout(), Duration::from_secs(3));
        }

        #[tokio::test]
        async fn a_connection_that_is_not_old_is_used_again() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let config = Config::new(format!("sqlite://{}", file.path().display()))
                .preset(Preset::web().pool_size(1));
            let options = config.connect_options::<Sqlite>().unwrap();
            let pool = config.pool_options::<Sqlite>().unwrap();
            let pool = pool.connect_lazy_with(options);
            for statement in ["CREATE TEMPORARY TABLE ours (id)", "SELECT id FROM ours"] {
                let mut connection = pool.acquire().await.unwrap();
                let done = sqlx::raw_sql(statement).execute(&mut *connection).await;
                assert!(done.is_ok(), "{statement}: {done:?}");
            }
        }

        #[tokio::test]
        async fn checkouts_are_logged_if_that_is_asked_for() {
            for echoes in [false, true] {
                let config = Config::new("sqlite::memory:").echo_pool(echoes);
                let options = config.connect_options::<Sqlite>().unwrap();
                let pool = config.pool_options::<Sqlite>().unwrap();
                let pool = pool.connect_lazy_with(options);
                let (log, _guard) = Log::begin();
                drop(pool.acquire().await.unwrap());
                let log = log.text();
                assert_eq!(log.contains("acquired connection"), echoes, "{log}");
            }
        }

        #[test]
        fn without_overflow_no_connection_is_closed_for_being_idle() {
            let pool = Config::new("sqlite://shop.db")
                .pool_options::<Sqlite>()
                .unwrap();
            assert_eq!(
                (pool.get_max_connections(), pool.get_idle_timeout()),
                (20, None)
            );
        }
    }
}
