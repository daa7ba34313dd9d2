//! The environment: every variable is either what it must be, or named by the error; and no password is shown.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use sqlx::Sqlite;
use steadfast::db::Config;

#[derive(Arbitrary, Debug)]
struct Input {
    url: Option<String>,
    size: Option<Value>,
    overflow: Option<Value>,
    timeout: Option<Value>,
    recycle: Option<Value>,
    ping: Option<Value>,
    echo: Option<Value>,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Text(String),
    Whole(i64),
    Number(f64),
    Flag(bool),
    Blank,
    /// Variables that were swapped.
    Url(String),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Blank => " ".to_owned(),
            Self::Url(user) => format!("postgres://{user}:{SECRET}@db/shop"),
        }
    }
}

/// No fuzzer types it by chance.
const SECRET: &str = "HUNTER2HUNTER2";

fuzz_target!(|input: Input| {
    let text = |value: &Option<Value>| value.as_ref().map(Value::text);
    let url = input
        .url
        .as_ref()
        .map(|user| format!("postgres://{user}:{SECRET}@db/shop"));
    let vars = [
        ("DATABASE_URL", url),
        ("DB_POOL_SIZE", text(&input.size)),
        ("DB_MAX_OVERFLOW", text(&input.overflow)),
        ("DB_POOL_TIMEOUT", text(&input.timeout)),
        ("DB_POOL_RECYCLE", text(&input.recycle)),
        ("DB_POOL_PRE_PING", text(&input.ping)),
        ("DB_ECHO_POOL", text(&input.echo)),
    ];
    let var = |name: &str| {
        let found = vars.iter().find(|(its, _)| *its == name)?;
        found.1.clone()
    };
    // What is blank is not there.
    let given = |name| {
        var(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let wrong = vars.iter().find(|(name, _)| match given(name) {
        None => *name == "DATABASE_URL",
        Some(value) => !is_right(name, &value),
    });

    match Config::from_vars(var) {
        Ok(config) => {
            assert_eq!(wrong, None);
            hides(&format!("{config:?}"));
            let size = |name, usual| {
                given(name).map_or(usual, |value| whole(&value).expect("it is right"))
            };
            let most = size("DB_POOL_SIZE", 20) + size("DB_MAX_OVERFLOW", 0);
            // The settings are the same for every database.
            let url = |name: &str| match name {
                "DATABASE_URL" => Some("sqlite://data.db".to_owned()),
                name => var(name),
            };
            let config = Config::from_vars(url).expect("only the URL is another");
            match config.pool_options::<Sqlite>() {
                Ok(pool) => assert_eq!(u64::from(pool.get_max_connections()), most),
                // A call may wait for so long, and then take 10 s more.
                Err(error) => {
                    assert_eq!(error.setting(), "deadline");
                    let wait = given("DB_POOL_TIMEOUT").expect("nothing else is so long");
                    let wait = wait.parse().expect("it is right");
                    assert!(Duration::from_secs_f64(wait) + STATEMENT > YEAR, "{error}");
                }
            }
        }
        Err(error) => {
            let (name, _) = wrong.expect("something is wrong");
            assert_eq!(error.setting(), *name);
            let said = error.to_string();
            assert!(
                said.starts_with(&format!("environment: {name} is ")),
                "{said}"
            );
            hides(&said);
        }
    }
});

fn is_right(name: &str, value: &str) -> bool {
    let seconds = |least: f64| {
        let number = value.parse::<f64>().ok().filter(|number| *number >= 0.0);
        let time = number.and_then(|number| Duration::try_from_secs_f64(number).ok());
        let least = Duration::from_secs_f64(least);
        time.is_some_and(|time| (least..=YEAR).contains(&time))
    };
    match name {
        "DATABASE_URL" => true,
        "DB_POOL_SIZE" => whole(value).is_some_and(|count| (1..=10_000).contains(&count)),
        "DB_MAX_OVERFLOW" => whole(value).is_some_and(|count| count <= 10_000),
        "DB_POOL_TIMEOUT" => seconds(0.001),
        "DB_POOL_RECYCLE" => value == "-1" || seconds(1.0),
        _ => {
            let words = ["true", "1", "yes", "on", "false", "0", "no", "off"];
            words.iter().any(|word| word.eq_ignore_ascii_case(value))
        }
    }
}

/// A number that may be longer than any machine's.
fn whole(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    match significant.len() {
        0 => Some(0),
        1..=9 => significant.parse().ok(),
        _ => Some(u64::MAX),
    }
}

const STATEMENT: Duration = Duration::from_secs(10);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

fn hides(shown: &str) {
    assert!(!shown.contains(SECRET), "{shown}");
}
