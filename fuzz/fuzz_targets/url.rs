//! Connection URLs: what can't be read is refused by an error, and no password is shown by it, nor by `Debug`.
//!
//! What is taken is what sqlx alone takes, and goes to the same place.
#![no_main]

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use sqlx::{
    MySql, Postgres, Sqlite, mysql::MySqlConnectOptions, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};
use steadfast::db::Config;

#[derive(Arbitrary, Debug)]
enum Input {
    /// Anything.
    Raw(String),
    /// What has a password in it.
    Parts {
        scheme: u8,
        user: String,
        before: String,
        after: String,
        place: String,
    },
    /// A password in the query.
    Query {
        scheme: u8,
        place: String,
        after: String,
    },
}

const SCHEMES: [&str; 5] = ["postgres", "postgresql", "mysql", "mariadb", "sqlite"];

/// A fuzzer learns to type it elsewhere; that is no password, then.
const SECRET: &str = "HUNTER2HUNTER2";

fuzz_target!(|input: Input| {
    let scheme = |n: u8| SCHEMES[usize::from(n) % SCHEMES.len()];
    let url = match &input {
        Input::Raw(url) => url.clone(),
        Input::Parts {
            scheme: n,
            user,
            before,
            after,
            place,
        } => format!("{}://{user}:{before}{SECRET}{after}@{place}", scheme(*n)),
        Input::Query {
            scheme: n,
            place,
            after,
        } => format!("{}://{place}?password={SECRET}{after}", scheme(*n)),
    };
    if url.matches(SECRET).count() > usize::from(!matches!(input, Input::Raw(_))) {
        return;
    }
    let config = Config::new(&url);
    hides(&url, &format!("{config:?}"));

    match config.connect_options::<Postgres>() {
        Ok(ours) => {
            let theirs: PgConnectOptions = url.parse().expect("ours are made of theirs");
            assert_eq!(ours.get_host(), theirs.get_host());
            assert_eq!(ours.get_port(), theirs.get_port());
            assert_eq!(ours.get_username(), theirs.get_username());
            assert_eq!(ours.get_database(), theirs.get_database());
            assert_eq!(ours.get_socket(), theirs.get_socket());
            hides(&url, &format!("{:?}", config.pool_options::<Postgres>()));
        }
        Err(error) => refused(&url, &["postgres", "postgresql"], &error, || {
            url.parse::<PgConnectOptions>().is_ok()
        }),
    }
    match config.connect_options::<MySql>() {
        Ok(ours) => {
            let theirs: MySqlConnectOptions = url.parse().expect("ours are made of theirs");
            assert_eq!(ours.get_host(), theirs.get_host());
            assert_eq!(ours.get_port(), theirs.get_port());
            assert_eq!(ours.get_username(), theirs.get_username());
            assert_eq!(ours.get_database(), theirs.get_database());
        }
        Err(error) => refused(&url, &["mysql", "mariadb"], &error, || {
            url.parse::<MySqlConnectOptions>().is_ok()
        }),
    }
    match config.connect_options::<Sqlite>() {
        Ok(ours) => {
            let theirs: SqliteConnectOptions = url.parse().expect("ours are made of theirs");
            // Each parse of an URL of a database in memory invents a new name.
            if !url.contains("memory") {
                assert_eq!(ours.get_filename(), theirs.get_filename());
            }
        }
        Err(error) => refused(&url, &["sqlite"], &error, || {
            url.parse::<SqliteConnectOptions>().is_ok()
        }),
    }
});

/// What is refused has a wrong scheme, or sqlx refuses it too.
fn refused(
    url: &str,
    schemes: &[&str],
    error: &steadfast::ConfigError,
    sqlx_takes_it: impl FnOnce() -> bool,
) {
    hides(url, &error.to_string());
    hides(url, &format!("{error:?}"));
    assert!(error.setting() == "url", "{error}");
    let scheme = url.split_once(':').map(|(scheme, _)| scheme);
    let is_ours = scheme.is_some_and(|scheme| schemes.contains(&scheme));
    assert!(!is_ours || !sqlx_takes_it(), "{error}");
}

fn hides(url: &str, shown: &str) {
    if url.contains(SECRET) {
        assert!(!shown.contains(SECRET), "{url} is shown as {shown}");
    }
}
