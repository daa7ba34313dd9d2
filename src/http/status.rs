//! What a response's status says of the server, and of the work.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};

use super::retry_after;
use crate::kind::{Kind, Verdict};

/// What the status means; with the server's hint of when to come back where something went wrong.
pub(super) fn verdict(
    status: StatusCode,
    headers: &HeaderMap,
    now: impl FnOnce() -> SystemTime,
) -> Verdict {
    let kind = kind(status);
    let retry_after = match kind {
        Kind::Success | Kind::Invalid => None,
        _ => retry_after::read(headers, now),
    };
    match retry_after {
        None => kind.into(),
        Some(time) => Verdict::from(kind).retry_after(time),
    }
}

fn kind(status: StatusCode) -> Kind {
    match status.as_u16() {
        // The connection is given to another protocol, or the answer is elsewhere: it did what was asked.
        100..=399 => Kind::Success,
        // HTTP means a request that did not come in whole, but many servers say it of a handler that took too long.
        408 => Kind::Ambiguous,
        // We are known to the server, or to a proxy before it, and are sent away before anything is done.
        429 => Kind::Overloaded,
        // A proxy or a network wants credentials of ours: not the request is wrong, but how we are set up.
        407 | 511 => Kind::Broken,
        // The request is wrong, whoever sends it again. Conflicts (409) too: mostly what is to be made exists already.
        400..=499 => Kind::Invalid,
        // Not in this method, this version, or without an extension: the server is well.
        501 | 505 | 510 => Kind::Invalid,
        503 => Kind::Overloaded,
        // Full; somebody has to make room.
        507 => Kind::Broken,
        // It failed somewhere: a handler in the middle (500), a proxy that lost its server (502) or waited for it in vain (504).
        // Statuses that HTTP does not know are taken for 500, as it asks.
        _ => Kind::Ambiguous,
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use std::time::Duration;

    use http::{HeaderValue, header::RETRY_AFTER};

    use super::*;

    fn judged(status: u16, retry_after: Option<&'static str>) -> Verdict {
        let hint = retry_after.map(|text| (RETRY_AFTER, HeaderValue::from_static(text)));
        let status = StatusCode::from_u16(status).unwrap();
        verdict(status, &hint.into_iter().collect(), || {
            SystemTime::UNIX_EPOCH
        })
    }

    #[test]
    fn what_the_statuses_mean() {
        for (statuses, kind) in [
            (&[101, 200, 201, 204, 301, 304, 399][..], Kind::Success),
            (
                &[400, 401, 403, 404, 409, 412, 422, 425, 499],
                Kind::Invalid,
            ),
            (&[501, 505, 510], Kind::Invalid),
            (&[429, 503], Kind::Overloaded),
            (
                &[408, 500, 502, 504, 508, 520, 599, 600, 999],
                Kind::Ambiguous,
            ),
            (&[407, 507, 511], Kind::Broken),
        ] {
            for status in statuses {
                assert_eq!(judged(*status, None).kind, kind, "{status}");
            }
        }
    }

    #[test]
    fn a_hint_is_taken_from_a_failure_only() {
        let hint = Some(Duration::from_secs(7));
        for (status, hint) in [
            (503, hint),
            (429, hint),
            (500, hint),
            (301, None),
            (404, None),
        ] {
            assert_eq!(judged(status, Some("7")).retry_after, hint, "{status}");
        }
    }

    /// Whether the work was done can't be known: a repeat is for those who say that it does no harm.
    #[test]
    fn no_status_that_may_hide_work_done_is_called_undone() {
        for status in [408, 500, 502, 504] {
            let effect = judged(status, None).kind.effect();
            assert!(!effect.is_repeatable(), "{status}");
        }
    }
}
