//! What a refusal looks like to a caller over HTTP.

use std::time::Duration;

use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::retry_after;
use crate::error::{Overload, Rejected};

/// The response that tells a caller of a refusal of ours.
///
/// As [`HttpLayer`](super::HttpLayer) answers; for handlers that find one in an error of theirs.
///
/// | refusal | status | `Retry-After` |
/// |---|---|---|
/// | [`CircuitOpen`](Rejected::CircuitOpen) | 503 | when it makes sense to ask again |
/// | [`Overloaded`](Rejected::Overloaded) | 503 | 1 s |
/// | [`DeadlineExceeded`](Rejected::DeadlineExceeded), not sent | 503 | 1 s |
/// | [`DeadlineExceeded`](Rejected::DeadlineExceeded), sent | 504 | none |
///
/// So 503 says that nothing was done, and 504 that something may have been; [`HttpStatus`](super::HttpStatus) reads them so. The body is
/// `application/problem+json` (RFC 9457). The refusal itself is among the response's extensions, where layers further out find it: their
/// breakers take it for what it is, not for a failure of the handler.
///
/// ```
/// use http::{Response, StatusCode};
/// use steadfast::{Rejected, http::refusal_response};
///
/// fn respond(error: std::io::Error) -> Response<String> {
///     match Rejected::of(&error) {
///         Some(rejected) => refusal_response(rejected),
///         None => {
///             let mut response = Response::new("it failed".to_owned());
///             *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
///             response
///         }
///     }
/// }
///
/// let response = respond(Rejected::DeadlineExceeded { sent: true }.into());
/// assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
/// ```
pub fn refusal_response<B: From<String>>(rejected: &Rejected) -> Response<B> {
    respond(rejected, StatusCode::SERVICE_UNAVAILABLE).map(B::from)
}

/// `overload` is the status of an overload.
pub(super) fn respond(rejected: &Rejected, overload: StatusCode) -> Response<String> {
    let (status, reason, retry_after) = match rejected {
        Rejected::CircuitOpen { retry_after } => (UNAVAILABLE, "circuit_open", Some(*retry_after)),
        Rejected::DeadlineExceeded { sent: false } => {
            (UNAVAILABLE, "deadline_exceeded", Some(SOON))
        }
        // Whoever comes back may have the work done twice.
        Rejected::DeadlineExceeded { sent: true } => {
            (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", None)
        }
        Rejected::Overloaded { reason } => (overload, name(*reason), Some(SOON)),
    };
    let title = status.canonical_reason().unwrap_or("Refused");
    // None of the texts has a letter in it that JSON would have escaped.
    let text = format!(
        r#"{{"type":"about:blank","title":"{title}","status":{},"detail":"{rejected}","reason":"{reason}"}}"#,
        status.as_u16(),
    );
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
    if let Some(time) = retry_after {
        headers.insert(RETRY_AFTER, retry_after::write(time));
    }
    response.extensions_mut().insert(rejected.clone());
    response
}

fn name(reason: Overload) -> &'static str {
    match reason {
        Overload::QueueFull => "queue_full",
        Overload::TooLittleTime => "too_little_time",
        Overload::MaxWait => "max_wait",
    }
}

const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

const PROBLEM: &str = "application/problem+json";

/// When to come back where nobody knows: the least that the header can say.
const SOON: Duration = Duration::from_secs(1);

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    const ALL: [Rejected; 6] = [
        Rejected::CircuitOpen {
            retry_after: Duration::from_millis(4_900),
        },
        Rejected::DeadlineExceeded { sent: false },
        Rejected::DeadlineExceeded { sent: true },
        Rejected::Overloaded {
            reason: Overload::QueueFull,
        },
        Rejected::Overloaded {
            reason: Overload::TooLittleTime,
        },
        Rejected::Overloaded {
            reason: Overload::MaxWait,
        },
    ];

    fn told(rejected: &Rejected, overload: StatusCode) -> (u16, Option<String>) {
        let response = respond(rejected, overload);
        let hint = response.headers().get(RETRY_AFTER);
        let hint = hint.map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), hint)
    }

    #[test]
    fn the_status_says_whether_anything_may_have_been_done() {
        for rejected in &ALL {
            let (status, hint) = told(rejected, UNAVAILABLE);
            assert_eq!(status == 504, rejected.sent(), "{rejected}");
            assert_eq!(status == 503, !rejected.sent(), "{rejected}");
            assert_eq!(hint.is_some(), !rejected.sent(), "{rejected}");
        }
    }

    #[test]
    fn an_overload_alone_is_told_by_another_status_if_asked() {
        for rejected in &ALL {
            let (status, hint) = told(rejected, StatusCode::TOO_MANY_REQUESTS);
            let overloaded = matches!(rejected, Rejected::Overloaded { .. });
            assert_eq!(status == 429, overloaded, "{rejected}");
            assert!(status != 429 || hint.is_some());
        }
    }

    #[test]
    fn an_open_circuit_says_when_it_makes_sense_to_ask_again() {
        let hint = Some("5".to_owned());
        assert_eq!(told(&ALL[0], UNAVAILABLE), (503, hint));
    }

    #[test]
    fn the_body_is_a_problem_in_json() {
        let response = respond(&ALL[0], UNAVAILABLE);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            response.body(),
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"circuit open for 4.9s more","reason":"circuit_open"}"#
        );
    }

    #[test]
    fn the_reason_can_be_read_by_a_program() {
        let reasons = [
            "circuit_open",
            "deadline_exceeded",
            "deadline_exceeded",
            "queue_full",
            "too_little_time",
            "max_wait",
        ];
        for (rejected, reason) in ALL.iter().zip(reasons) {
            let body = respond(rejected, UNAVAILABLE).into_body();
            let field = format!(r#""reason":"{reason}"}}"#);
            assert!(body.ends_with(&field), "{body}");
        }
    }

    #[test]
    fn no_text_needs_to_be_escaped() {
        for rejected in &ALL {
            let text = rejected.to_string();
            let plain = |letter: char| (' '..='~').contains(&letter) && !"\"\\".contains(letter);
            assert!(text.chars().all(plain), "{text}");
        }
    }

    #[test]
    fn the_refusal_is_among_the_extensions() {
        for rejected in &ALL {
            let response: Response<String> = refusal_response(rejected);
            assert_eq!(response.extensions().get(), Some(rejected));
        }
    }
}
