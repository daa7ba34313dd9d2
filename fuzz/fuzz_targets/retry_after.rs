//! When a server wants to be asked again: `Retry-After`, read by `HttpStatus`, written by `refusal_response`.
//!
//! Nobody is sent away for more than a year; only a failure has a hint; seconds are seconds, and dates count from the server's own. What was written is read as
//! no shorter, and as less than a second longer.
#![no_main]

use std::{io, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use steadfast::{Classify, Kind, Rejected, classify::HttpStatus, http::refusal_response};

#[derive(Arbitrary, Debug)]
struct Input {
    status: u16,
    retry_after: Vec<u8>,
    date: Option<Vec<u8>>,
    time: Duration,
}

fuzz_target!(|input: Input| {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(&input.retry_after) {
        headers.insert(header::RETRY_AFTER, value);
    }
    if let Some(Ok(value)) = input.date.as_deref().map(HeaderValue::from_bytes) {
        headers.insert(header::DATE, value);
    }
    let status = StatusCode::from_u16(100 + input.status % 900).expect("three digits");
    let (kind, hint) = read(status, headers.clone());
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // Who sent something wrong has nothing to wait for.
    let failed = !matches!(kind, Kind::Success | Kind::Invalid);
    assert!(failed || hint.is_none(), "a hint of {status}");
    assert!(hint.is_none_or(|hint| hint <= YEAR), "{hint:?}");
    let Some(asked) = text(header::RETRY_AFTER) else {
        assert_eq!(hint, None);
        return;
    };
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let is_number = !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit());
    if failed && is_number {
        // A number of more than nine digits is more than a year.
        let significant = asked.trim_start_matches('0');
        let seconds = match significant.len() {
            0 => 0,
            1..=9 => significant.parse().expect("nine digits"),
            _ => YEAR.as_secs(),
        };
        assert_eq!(hint, Some(Duration::from_secs(seconds).min(YEAR)));
    } else if failed {
        match (date(asked), text(header::DATE).and_then(date)) {
            (None, _) => assert_eq!(hint, None),
            (Some(until), Some(from)) => {
                let time = until.duration_since(from).unwrap_or_default();
                assert_eq!(hint, Some(time.min(YEAR)));
            }
            // From the clock of this machine.
            (Some(_), None) => assert!(hint.is_some()),
        }
    }

    let rejected = Rejected::CircuitOpen {
        retry_after: input.time,
    };
    let response = refusal_response::<String>(&rejected);
    let (kind, hint) = read(response.status(), response.headers().clone());
    assert_eq!(kind, Kind::Overloaded);
    let (hint, time) = (hint.expect("just written"), input.time.min(YEAR));
    assert!(hint >= time.max(SECOND), "{time:?} became {hint:?}");
    assert!(hint < time.max(SECOND) + SECOND, "{time:?} became {hint:?}");
});

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

fn read(status: StatusCode, headers: HeaderMap) -> (Kind, Option<Duration>) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let verdict = HttpStatus.classify(Ok::<_, &io::Error>(&response));
    (verdict.kind, verdict.retry_after)
}
