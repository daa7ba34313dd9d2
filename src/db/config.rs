use std::{env, fmt, time::Duration};

use sqlx::pool::PoolOptions;

use super::{
    Builder, Db, PoolerMode, Preset,
    driver::Driver,
    pooler,
    preset::{LEAST, LEAST_AGE, MOST},
    timeouts::{ConnectOptions, Plan},
};
use crate::{
    error::{ConfigError, LONGEST},
    event::Name,
};

/// Where a database is, and how to treat it.
///
/// ```
/// use steadfast::db::{Config, Preset};
///
/// # let env = |name: &str| (name == "DATABASE_URL").then(|| "postgres://app:secret@localhost/shop".to_owned());
/// # let from_env = || Config::from_vars(env);
/// let config = from_env()?.preset(Preset::batch()).name("shop");
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
///
/// # The environment
/// [`Config::from_env`] reads what follows. A variable that is empty counts as not set.
///
/// | variable | what it is | overrides |
/// |---|---|---|
/// | `DATABASE_URL` | as sqlx takes it; required | |
/// | `DB_POOL_SIZE` | connections: 1 to 10000 | [`pool_size`](Preset::pool_size) |
/// | `DB_MAX_OVERFLOW` | connections for bursts: 0 to 10000 | [`overflow`](Preset::overflow) |
/// | `DB_POOL_TIMEOUT` | seconds, also 0.5 | [`acquire`](Preset::acquire) |
/// | `DB_POOL_RECYCLE` | seconds, or -1 for never | [`recycle`](Preset::recycle) |
/// | `DB_POOL_PRE_PING` | true, 1, yes, on, or false, 0, no, off | [`pre_ping`](Preset::pre_ping) |
/// | `DB_ECHO_POOL` | the same | [`echo_pool`](Self::echo_pool) |
///
/// The environment is the operator's word and stands above the program's: it overrides the [`Preset`], whether that is given before or after. What it does
/// not name is the preset's. `echo_pool` has the last word over `DB_ECHO_POOL`.
///
/// Passwords are not shown by `Debug`, nor by errors.
#[derive(Clone)]
#[must_use = "a config does nothing until it connects"]
pub struct Config {
    url: String,
    preset: Preset,
    overrides: Overrides,
    pooler: Option<PoolerMode>,
    /// Why it is this mode.
    found: &'static str,
    name: Option<Name>,
    application_name: Option<String>,
    echo_pool: bool,
}

impl Config {
    /// With [`Preset::web`].
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            preset: Preset::web(),
            overrides: Overrides::default(),
            pooler: None,
            found: "it was told",
            name: None,
            application_name: None,
            echo_pool: false,
        }
    }

    /// What the process's environment says, and otherwise [`Preset::web`].
    ///
    /// # Errors
    /// If `DATABASE_URL` is missing, or a variable can't be used; the error names the variable, its value and what is allowed.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(|name| Some(env::var_os(name)?.to_string_lossy().into_owned()))
    }

    /// What these variables say, in place of the process's environment.
    ///
    /// ```
    /// use steadfast::db::Config;
    ///
    /// let error = Config::from_vars(|name| match name {
    ///     "DATABASE_URL" => Some("postgres://app:secret@localhost/shop".to_owned()),
    ///     "DB_POOL_SIZE" => Some("many".to_owned()),
    ///     _ => None,
    /// })
    /// .unwrap_err();
    /// assert_eq!(error.to_string(), "environment: DB_POOL_SIZE is \"many\", but must be a whole number from 1 to 10000");
    /// ```
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars(vars: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(|name: &str| {
            let value = vars(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        });
        let Some(url) = (vars.0)("DATABASE_URL") else {
            let allowed = "the database's URL, as in postgres://user@host/database";
            let missing = format_args!("not set");
            return Err(ConfigError::new(
                ENVIRONMENT,
                "DATABASE_URL",
                missing,
                allowed,
            ));
        };
        let overrides = Overrides {
            pool_size: vars.count("DB_POOL_SIZE", 1)?,
            overflow: vars.count("DB_MAX_OVERFLOW", 0)?,
            acquire: vars.seconds("DB_POOL_TIMEOUT")?,
            recycle: vars.age("DB_POOL_RECYCLE")?,
            pre_ping: vars.flag("DB_POOL_PRE_PING")?,
        };
        let echo_pool = vars.flag("DB_ECHO_POOL")?.unwrap_or_default();
        Ok(Self {
            overrides,
            ..Self::new(url).echo_pool(echo_pool)
        })
    }

    /// Time limits, sizes and habits, but for those that the environment overrides.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// What stands between us and the server, in place of finding it out.
    pub fn pooler(mut self, mode: PoolerMode) -> Self {
        self.pooler = Some(mode);
        self
    }

    /// The database's name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Our name in PostgreSQL's `pg_stat_activity`.
    ///
    /// Without it, that is what the URL or `PGAPPNAME` says, or else the [`name`](Self::name), or `steadfast`. PostgreSQL keeps 63 bytes of ASCII.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// Whether sqlx logs, at `INFO`, how long each checkout from the pool took.
    pub fn echo_pool(mut self, echoes: bool) -> Self {
        self.echo_pool = echoes;
        self
    }

    /// Connects once to see that it works, and finds out what stands in between.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// use steadfast::db::{Config, SqliteDb};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
    /// let db: SqliteDb = Config::new("sqlite::memory:").connect().await?;
    /// # Ok(()) }
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Configuration` if a setting is out of range; else why connecting failed.
    pub async fn connect<DB: Driver>(&self) -> Result<Db<DB>, sqlx::Error> {
        let db = self.connect_lazy()?;
        let why = match db.reach().await {
            Ok(false) if self.pooler.is_none() => "settings sent when connecting have no effect",
            Ok(_) => return Ok(db),
            Err(error) if self.pooler.is_none() && pooler::is_refusal(&error) => {
                "it refuses settings when connecting"
            }
            Err(error) => return Err(error),
        };
        let found = Self {
            found: why,
            ..self.clone().pooler(PoolerMode::TransactionPlain)
        };
        let db = found.connect_lazy()?;
        db.reach().await?;
        Ok(db)
    }

    /// Connects when the first call needs it.
    ///
    /// # Errors
    /// If the URL is not one of this database, or a setting is out of range.
    pub fn connect_lazy<DB: Driver>(&self) -> Result<Db<DB>, ConfigError> {
        self.builder()?.build()
    }

    /// The `Db`'s builder, for what else it can be told.
    ///
    /// # Errors
    /// As [`connect_lazy`](Self::connect_lazy).
    pub fn builder<DB: Driver>(&self) -> Result<Builder<DB>, ConfigError> {
        let plan = self.plan::<DB>()?;
        if plan.mode != PoolerMode::Direct {
            tracing::info!(mode = ?plan.mode, why = plan.why, "behind a pooler");
        }
        let builder = Builder::planned(plan);
        Ok(match &self.name {
            Some(name) => builder.name(name.clone()),
            None => builder,
        })
    }

    /// How sqlx would make one connection.
    ///
    /// It and [`pool_options`](Self::pool_options) are for whoever makes the pool.
    ///
    /// ```
    /// use sqlx::Sqlite;
    /// use steadfast::db::Config;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # #[cfg(feature = "sqlite")] {
    /// let config = Config::new("sqlite::memory:");
    /// let options = config.connect_options::<Sqlite>()?;
    /// let pool = config.pool_options::<Sqlite>()?.connect_lazy_with(options);
    /// assert_eq!(pool.options().get_max_connections(), 20);
    /// # }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If the URL is not one of this database, or a setting is out of range.
    pub fn connect_options<DB: Driver>(&self) -> Result<ConnectOptions<DB>, ConfigError> {
        Ok(self.plan::<DB>()?.connect)
    }

    /// How sqlx would make the pool.
    ///
    /// The pool pings no connection, as the handle in front of it does, and with a time limit. For a pool that is used by itself,
    /// `.test_before_acquire(true)`.
    ///
    /// # Errors
    /// As [`connect_options`](Self::connect_options).
    pub fn pool_options<DB: Driver>(&self) -> Result<PoolOptions<DB>, ConfigError> {
        Ok(self.plan::<DB>()?.pool)
    }

    /// All that sqlx needs to know, checked.
    pub(super) fn plan<DB: Driver>(&self) -> Result<Plan<DB>, ConfigError> {
        let scheme = self.url.split_once(':').map(|(scheme, _)| scheme);
        if !scheme.is_some_and(|scheme| DB::URL_SCHEMES.contains(&scheme)) {
            let schemes = DB::URL_SCHEMES.join(": or ");
            return Err(self.unusable(format!("a URL that begins with {schemes}:")));
        }
        let options = self.url.parse().map_err(|error: sqlx::Error| {
            let why = match error {
                sqlx::Error::Configuration(why) => why.to_string(),
                error => error.to_string(),
            };
            // It may quote what it can't read.
            if has_stray_at(&self.url) || why.contains(UNSAFE) {
                let allowed = "a URL that sqlx can read, with % codes in place of /, ?, #, @ and =";
                return self.unusable(allowed.to_owned());
            }
            self.unusable(format!("a URL that sqlx can read: {why}"))
        })?;
        Ok(DB::plan(self, options, self.settings()?))
    }

    /// The preset and what the environment overrides of it, checked.
    pub(super) fn settings(&self) -> Result<Preset, ConfigError> {
        let mut preset = self.preset.clone();
        let overrides = &self.overrides;
        preset.pool_size = overrides.pool_size.unwrap_or(preset.pool_size);
        preset.overflow = overrides.overflow.unwrap_or(preset.overflow);
        preset.acquire = overrides.acquire.unwrap_or(preset.acquire);
        preset.recycle = overrides.recycle.unwrap_or(preset.recycle);
        preset.pre_ping = overrides.pre_ping.unwrap_or(preset.pre_ping);
        preset.check()?;
        Ok(preset)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The mode that was told, and why it was.
    pub(super) fn told(&self) -> Option<(PoolerMode, &'static str)> {
        Some((self.pooler?, self.found))
    }

    pub(super) fn named(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// What the application is called by the config itself.
    pub(super) fn application(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    pub(super) fn echoes(&self) -> bool {
        self.echo_pool
    }

    fn unusable(&self, allowed: String) -> ConfigError {
        ConfigError::new("config", "url", redacted(&self.url), allowed)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &redacted(&self.url))
            .field("preset", &self.preset)
            .field("overrides", &self.overrides)
            .field("pooler", &self.pooler)
            .field("name", &self.name)
            .field("application_name", &self.application_name)
            .field("echo_pool", &self.echo_pool)
            .finish()
    }
}

/// What the environment says about the settings of a preset.
#[derive(Clone, Debug, Default)]
struct Overrides {
    pool_size: Option<u32>,
    overflow: Option<u32>,
    acquire: Option<Duration>,
    /// `Some(None)` is never.
    recycle: Option<Option<Duration>>,
    pre_ping: Option<bool>,
}

/// Variables by their name.
struct Vars<F>(F);

impl<F: Fn(&str) -> Option<String>> Vars<F> {
    fn count(&self, name: &'static str, least: u32) -> Result<Option<u32>, ConfigError> {
        let allowed = || format!("a whole number from {least} to {MOST}");
        self.read(name, allowed, |value| {
            let count: u32 = value.parse().ok()?;
            (count >= least && count as usize <= MOST).then_some(count)
        })
    }

    fn seconds(&self, name: &'static str) -> Result<Option<Duration>, ConfigError> {
        let allowed =
            || "a time in seconds, as in 5 or 0.5, of at least 0.001 and at most 365 days";
        self.read(name, allowed, |value| seconds(value, LEAST))
    }

    fn age(&self, name: &'static str) -> Result<Option<Option<Duration>>, ConfigError> {
        let allowed = || "a time in seconds, of at least 1 and at most 365 days, or -1 for never";
        self.read(name, allowed, |value| match value {
            "-1" => Some(None),
            value => seconds(value, LEAST_AGE).map(Some),
        })
    }

    fn flag(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        let allowed = || "one of true, 1, yes, on, false, 0, no, off";
        self.read(name, allowed, |value| {
            match value.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            }
        })
    }

    fn read<T, A: Into<String>>(
        &self,
        name: &'static str,
        allowed: impl Fn() -> A,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = (self.0)(name) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(read) => Ok(Some(read)),
            // Two variables may have been swapped.
            None if value.contains(':') => Err(ConfigError::new(
                ENVIRONMENT,
                name,
                redacted(&value),
                allowed(),
            )),
            None => Err(ConfigError::new(ENVIRONMENT, name, value, allowed())),
        }
    }
}

fn seconds(value: &str, least: Duration) -> Option<Duration> {
    let time = Duration::try_from_secs_f64(value.parse().ok()?).ok()?;
    (time >= least && time <= LONGEST).then_some(time)
}

/// The URL without what may be a secret, also where it is none.
///
/// A password that was not encoded may contain anything that has a meaning in a URL. So everything up to the last `@` may be the password, and without one
/// everything that can't be a port. Where the last `@` may as well be one of the query's, only what is before the first mark is shown. Of the query, the values
/// stay that are known to be harmless.
fn redacted(url: &str) -> String {
    if url.starts_with("sqlite:") && !url.contains('@') {
        // A path, and nobody logs in.
        let (path, query) = split_query(url);
        return format!("{path}{}", redacted_query(query));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return HIDDEN.to_owned();
    };
    if !scheme.chars().all(char::is_alphanumeric) {
        return HIDDEN.to_owned();
    }
    if has_stray_at(url) {
        let first = rest.split([':', '/', '?', '#']).next().unwrap_or_default();
        return format!("{scheme}://{first}:{HIDDEN}@{HIDDEN}");
    }
    let (user, place) = match rest.rsplit_once('@') {
        Some((login, place)) => match login.split_once(':') {
            Some((user, _)) => (format!("{user}:{HIDDEN}@"), place),
            None => (format!("{login}@"), place),
        },
        None => (String::new(), rest),
    };
    let (place, query) = split_query(place);
    // Within its brackets an address of IPv6 has colons too.
    let brackets = if place.starts_with('[') {
        place.find(']').unwrap_or(0)
    } else {
        0
    };
    let colon = place[brackets..].find(':').map(|at| brackets + at);
    let place = match colon.map(|at| place.split_at(at + 1)) {
        Some((host, rest)) if !begins_with_port(rest) => format!("{host}{HIDDEN}"),
        _ => place.to_owned(),
    };
    format!("{scheme}://{user}{place}{}", redacted_query(query))
}

/// Whether there is an `@` behind what begins a query: in a password that was not encoded, or in what is no login at all.
fn has_stray_at(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let login = rest.rsplit_once('@').map(|(login, _)| login);
    login.is_some_and(|login| login.contains(['?', '#']))
}

fn begins_with_port(text: &str) -> bool {
    let end = text.find('/').unwrap_or(text.len());
    text[..end].parse::<u16>().is_ok()
}

/// The query is without its question mark.
fn split_query(url: &str) -> (&str, Option<&str>) {
    match url.split_once(['?', '#']) {
        Some((place, query)) => (place, Some(query)),
        None => (url, None),
    }
}

fn redacted_query(query: Option<&str>) -> String {
    let Some(query) = query else {
        return String::new();
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, value)) if HARMLESS.contains(&key) && !value.contains(UNSAFE) => pair.to_owned(),
        Some((key, _)) => format!("{key}={HIDDEN}"),
        None => HIDDEN.to_owned(),
    });
    format!("?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// Keys of a URL's query whose values are no secrets.
const HARMLESS: [&str; 14] = [
    "application_name",
    "cache",
    "charset",
    "dbname",
    "host",
    "hostaddr",
    "immutable",
    "mode",
    "port",
    "ssl-mode",
    "sslmode",
    "statement-cache-capacity",
    "timezone",
    "user",
];

/// What no harmless value has in it: there, two have got into one.
const UNSAFE: [char; 4] = ['=', '?', '#', '@'];

const HIDDEN: &str = "***";

const ENVIRONMENT: &str = "environment";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{prop_assert, proptest};

    use super::{Config, redacted};
    #[cfg(feature = "postgres")]
    use crate::{
        db::PoolerMode,
        testing::{Log, refusing},
    };
    use crate::{db::Preset, error::ConfigError};

    const URL: &str = "postgres://app:hunter2@db.example.com/shop";

    #[test]
    fn without_other_variables_the_settings_are_the_presets() {
        let config = from(&[("DATABASE_URL", URL)]).unwrap();
        assert_eq!(said(&config), format!("{:?}", Preset::web()));
        let config = config.preset(Preset::batch());
        assert_eq!(said(&config), format!("{:?}", Preset::batch()));
        assert!(!config.echo_pool);
    }

    #[test]
    fn each_variable_sets_its_setting() {
        type Set = fn(Preset) -> Preset;
        let table: &[(&str, &str, Set)] = &[
            ("DB_POOL_SIZE", "1", |p| p.pool_size(1)),
            ("DB_POOL_SIZE", " 10000\n", |p| p.pool_size(10_000)),
            ("DB_POOL_SIZE", "", |p| p),
            ("DB_MAX_OVERFLOW", "0", |p| p.overflow(0)),
            ("DB_MAX_OVERFLOW", "12", |p| p.overflow(12)),
            ("DB_POOL_TIMEOUT", "7", |p| {
                p.acquire(Duration::from_secs(7))
            }),
            ("DB_POOL_TIMEOUT", "0.25", |p| {
                p.acquire(Duration::from_millis(250))
            }),
            ("DB_POOL_RECYCLE", "3600", |p| {
                p.recycle(Duration::from_secs(3_600))
            }),
            ("DB_POOL_RECYCLE", "1.5", |p| {
                p.recycle(Duration::from_millis(1_500))
            }),
            ("DB_POOL_RECYCLE", "-1", |p| p.recycle(None)),
            ("DB_POOL_PRE_PING", "false", |p| p.pre_ping(false)),
            ("DB_POOL_PRE_PING", "0", |p| p.pre_ping(false)),
            ("DB_POOL_PRE_PING", "No", |p| p.pre_ping(false)),
            ("DB_POOL_PRE_PING", "OFF", |p| p.pre_ping(false)),
        ];
        for (name, value, set) in table {
            let config = from(&[("DATABASE_URL", URL), (name, value)]).unwrap();
            let expected = set(Preset::web());
            assert_eq!(said(&config), format!("{expected:?}"), "{name}={value}");
        }
    }

    #[test]
    fn flags_can_be_said_in_four_ways() {
        for (value, flag) in [
            ("true", true),
            ("1", true),
            ("YES", true),
            ("on", true),
            ("false", false),
            ("0", false),
            ("no", false),
            ("off", false),
        ] {
            let vars = [
                ("DATABASE_URL", URL),
                ("DB_ECHO_POOL", value),
                ("DB_POOL_PRE_PING", value),
            ];
            let config = from(&vars).unwrap().preset(Preset::web().pre_ping(!flag));
            assert_eq!(config.echo_pool, flag, "{value}");
            assert_eq!(config.settings().unwrap().pre_ping, flag, "{value}");
        }
    }

    #[test]
    fn the_environment_overrides_a_preset_that_is_given_later() {
        let config = from(&[
            ("DATABASE_URL", URL),
            ("DB_POOL_SIZE", "7"),
            ("DB_POOL_RECYCLE", "-1"),
        ]);
        let config = config.unwrap().preset(Preset::batch());
        let expected = Preset::batch().pool_size(7).recycle(None);
        assert_eq!(said(&config), format!("{expected:?}"));
    }

    #[test]
    fn a_bad_value_is_named_with_its_variable_and_what_is_allowed() {
        const COUNT: &str = "a whole number from 1 to 10000";
        const TIME: &str =
            "a time in seconds, as in 5 or 0.5, of at least 0.001 and at most 365 days";
        const AGE: &str = "a time in seconds, of at least 1 and at most 365 days, or -1 for never";
        const FLAG: &str = "one of true, 1, yes, on, false, 0, no, off";
        for (name, value, allowed) in [
            ("DB_POOL_SIZE", "many", COUNT),
            ("DB_POOL_SIZE", "0", COUNT),
            ("DB_POOL_SIZE", "10001", COUNT),
            ("DB_POOL_SIZE", "-1", COUNT),
            ("DB_POOL_SIZE", "4294967297", COUNT),
            ("DB_POOL_SIZE", "2.0", COUNT),
            ("DB_MAX_OVERFLOW", "-1", "a whole number from 0 to 10000"),
            ("DB_MAX_OVERFLOW", "10001", "a whole number from 0 to 10000"),
            ("DB_POOL_TIMEOUT", "5s", TIME),
            ("DB_POOL_TIMEOUT", "0", TIME),
            ("DB_POOL_TIMEOUT", "-5", TIME),
            ("DB_POOL_TIMEOUT", "NaN", TIME),
            ("DB_POOL_TIMEOUT", "inf", TIME),
            ("DB_POOL_TIMEOUT", "31536001", TIME),
            ("DB_POOL_TIMEOUT", "1e300", TIME),
            ("DB_POOL_RECYCLE", "-2", AGE),
            ("DB_POOL_RECYCLE", "0", AGE),
            ("DB_POOL_RECYCLE", "never", AGE),
            ("DB_POOL_PRE_PING", "maybe", FLAG),
            ("DB_ECHO_POOL", "2", FLAG),
        ] {
            let error = from(&[("DATABASE_URL", URL), (name, value)]).expect_err(value);
            assert_eq!(error.setting(), name);
            let message = format!("environment: {name} is \"{value}\", but must be {allowed}");
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn without_a_url_there_is_no_config() {
        for vars in [&[][..], &[("DATABASE_URL", " ")]] {
            let error = from(vars).expect_err("no URL");
            let message = "environment: DATABASE_URL is not set, but must be the database's URL, as in postgres://user@host/database";
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_url_in_the_wrong_variable_does_not_give_its_password_away() {
        let error = from(&[("DATABASE_URL", "20"), ("DB_POOL_SIZE", URL)]).unwrap_err();
        let shown = "DB_POOL_SIZE is \"postgres://app:***@db.example.com/shop\"";
        assert!(error.to_string().contains(shown), "{error}");
    }

    #[test]
    fn a_preset_out_of_range_is_refused() {
        let config = Config::new(URL).preset(Preset::web().pool_size(0));
        assert_eq!(config.settings().unwrap_err().setting(), "pool_size");
    }

    #[test]
    fn debug_shows_where_but_not_the_password() {
        let shown = format!("{:?}", Config::new(URL));
        assert!(
            shown.contains("postgres://app:***@db.example.com/shop"),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn of_a_url_stays_what_is_no_secret() {
        for (url, shown) in [
            ("postgres://app@db/shop", "postgres://app@db/shop"),
            ("postgres://db:5432/shop", "postgres://db:5432/shop"),
            (
                "postgres://a:b@[::1]:5432/shop",
                "postgres://a:***@[::1]:5432/shop",
            ),
            ("postgres://[::1]/shop", "postgres://[::1]/shop"),
            (
                "postgres:///shop?host=/run/pg&password=x&sslmode=disable",
                "postgres:///shop?host=/run/pg&password=***&sslmode=disable",
            ),
            (
                "mysql://a:@db/shop?ssl-key=x",
                "mysql://a:***@db/shop?ssl-key=***",
            ),
            ("sqlite::memory:", "sqlite::memory:"),
            ("sqlite://data.db?mode=rwc", "sqlite://data.db?mode=rwc"),
            (
                "sqlite:///var/data.db?key=x",
                "sqlite:///var/data.db?key=***",
            ),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }

    #[test]
    fn of_a_url_whose_last_at_is_not_the_logins_hardly_anything_is_shown() {
        for (url, shown) in [
            (
                "postgres://db/shop?password=hun@ter2",
                "postgres://db:***@***",
            ),
            (
                "postgres://db:5432/shop?password=hun@ter2",
                "postgres://db:***@***",
            ),
            ("postgres://?password=hunter2@", "postgres://:***@***"),
            ("postgres://app:hun?ter2@db/shop", "postgres://app:***@***"),
        ] {
            assert_eq!(redacted(url), shown);
        }
        let shown = redacted("postgres://db/shop?sslmode=?password=hunter2");
        assert_eq!(shown, "postgres://db/shop?sslmode=***");
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn what_sqlx_says_of_a_url_does_not_give_the_password_away() {
        for url in [
            "postgres://app:?sslmode=hunter2@db/shop",
            "postgres://app:?sslmode=hunter2&x=@db/shop",
            "postgres://db/shop?sslmode=?password=hunter2",
        ] {
            let error = Config::new(url).connect_options::<sqlx::Postgres>();
            let error = error.expect_err(url).to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains("% codes in place of"), "{error}");
        }
        let url = "postgres://db/shop?sslmode=maybe";
        let error = Config::new(url).connect_options::<sqlx::Postgres>();
        let error = error.expect_err(url).to_string();
        assert!(error.contains("maybe"), "{error}");
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn only_who_may_be_behind_a_pooler_connects_once_more_without_settings() {
        let settings = ("08P01", "unsupported startup parameter: options");
        let password = ("28P01", "password authentication failed");
        for (told, (code, message), without) in [
            (None, settings, true),
            (Some(PoolerMode::Direct), settings, false),
            (None, password, false),
        ] {
            let (port, packets) = refusing("FATAL", code, message);
            let url = format!("postgres://app@127.0.0.1:{port}/shop?sslmode=disable");
            let config = Config::new(url);
            let config = told.into_iter().fold(config, Config::pooler);
            let error = config.connect::<sqlx::Postgres>().await.unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            let packets = packets.lock().unwrap();
            let has_settings = |packet: &String| packet.contains("statement_timeout");
            assert!(packets.first().is_some_and(has_settings), "{packets:?}");
            let last = packets.last().is_some_and(has_settings);
            assert_eq!(last, !without, "{told:?}: {message}");
        }
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn that_it_is_behind_a_pooler_is_logged_with_the_reason() {
        let logged = |host| {
            let (log, _guard) = Log::begin();
            let config = Config::new(format!("postgres://app@{host}/shop"));
            drop(config.builder::<sqlx::Postgres>().unwrap());
            log.text()
        };
        assert_eq!(logged("127.0.0.1"), "");
        let expected =
            " INFO behind a pooler mode=TransactionPlain why=\"the host's name says pooler\"\n";
        assert_eq!(logged("pooler"), expected);
    }

    #[test]
    fn what_is_no_url_is_not_shown() {
        for url in [
            "postgres:app:hunter2@db/shop",
            "app:hunter2@db://shop",
            "host=db password=hunter2",
            "hunter2",
        ] {
            assert_eq!(redacted(url), "***");
        }
        assert_eq!(redacted("postgres://app:hunter2"), "postgres://app:***");
        assert_eq!(
            redacted("postgres://app:hunter2/shop"),
            "postgres://app:***"
        );
    }

    proptest! {
        #[test]
        fn a_password_is_never_shown(before in "[a-z0-9:@/?#&=%.]{0,6}", after in "[a-z0-9:@/?#&=%.]{0,6}") {
            let url = format!("postgres://app:{before}HUNTER{after}@db.example.com:5432/shop?sslmode=disable");
            let shown = redacted(&url);
            prop_assert!(!shown.contains("HUNTER"), "{shown}");
            prop_assert!(shown.starts_with("postgres://app:***@"), "{shown}");
        }

        #[test]
        fn nor_in_a_query(before in "[a-z0-9:@/?#&=%.]{0,12}", after in "[a-z0-9:@/?#&=%.]{0,6}") {
            let shown = redacted(&format!("postgres://{before}?password=HUNTER{after}"));
            prop_assert!(!shown.contains("HUNTER"), "{shown}");
        }
    }

    fn from(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_vars(|name| {
            let found = vars.iter().find(|(its, _)| *its == name)?;
            Some(found.1.to_owned())
        })
    }

    fn said(config: &Config) -> String {
        format!("{:?}", config.settings().unwrap())
    }
}
