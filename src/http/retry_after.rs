//! When a server wants to be asked again: `Retry-After`, read and written.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{DATE, RETRY_AFTER},
};

use crate::error::LONGEST;

/// How long the server asks to be left alone, a year at most; `None` where it does not say, or can't be read.
///
/// A date counts from the response's own `Date`, so that the two clocks need not agree; where it has none, from `now`.
pub(super) fn read(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let time = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number may have are a long time too.
        text.parse().map_or(LONGEST, Duration::from_secs)
    } else {
        let until = httpdate::parse_http_date(text).ok()?;
        let from = date(headers, DATE).unwrap_or_else(now);
        // It is over already.
        until.duration_since(from).unwrap_or_default()
    };
    Some(time.min(LONGEST))
}

/// In whole seconds, rounded up; at least one.
pub(super) fn write(time: Duration) -> HeaderValue {
    let part = u64::from(time.subsec_nanos() > 0);
    let seconds = time.as_secs().saturating_add(part);
    HeaderValue::from(seconds.max(1))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Sun, 06 Nov 1994 08:49:37 GMT
    fn then() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn asked(pairs: &[(HeaderName, &str)]) -> Option<Duration> {
        let pairs = pairs.iter();
        let headers = pairs.map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (name.clone(), value)
        });
        read(&headers.collect(), then)
    }

    #[test]
    fn seconds_are_seconds() {
        assert_eq!(asked(&[(RETRY_AFTER, "120")]), Some(120 * SECOND));
        assert_eq!(asked(&[(RETRY_AFTER, "0")]), Some(Duration::ZERO));
    }

    #[test]
    fn a_date_counts_from_now_in_all_three_forms_that_http_knows() {
        for date in [
            "Sun, 06 Nov 1994 08:50:07 GMT",
            "Sunday, 06-Nov-94 08:50:07 GMT",
            "Sun Nov  6 08:50:07 1994",
        ] {
            assert_eq!(asked(&[(RETRY_AFTER, date)]), Some(30 * SECOND), "{date}");
        }
    }

    #[test]
    fn a_date_counts_from_the_servers_own_clock_where_it_is_told() {
        let pairs = [
            (DATE, "Sun, 06 Nov 1994 09:50:00 GMT"),
            (RETRY_AFTER, "Sun, 06 Nov 1994 09:50:05 GMT"),
        ];
        assert_eq!(asked(&pairs), Some(5 * SECOND));
        let garbled = [(DATE, "yesterday"), pairs[1].clone()];
        assert_eq!(asked(&garbled), Some(3_628 * SECOND));
    }

    #[test]
    fn a_date_that_is_over_asks_for_no_time() {
        let date = "Sun, 06 Nov 1994 08:49:36 GMT";
        assert_eq!(asked(&[(RETRY_AFTER, date)]), Some(Duration::ZERO));
    }

    #[test]
    fn nobody_is_sent_away_for_more_than_a_year() {
        for long in [
            "31536001",
            "99999999999999999999999",
            "Thu, 01 Jan 2099 00:00:00 GMT",
        ] {
            assert_eq!(asked(&[(RETRY_AFTER, long)]), Some(LONGEST), "{long}");
        }
    }

    #[test]
    fn what_can_not_be_read_asks_for_nothing() {
        assert_eq!(asked(&[]), None);
        for value in ["", "soon", "-1", "1.5", "5 s", "Sun, 06 Nov 1994"] {
            assert_eq!(asked(&[(RETRY_AFTER, value)]), None, "{value:?}");
        }
    }

    #[test]
    fn it_is_written_in_whole_seconds_and_never_too_few() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (4_900, "5")] {
            assert_eq!(write(Duration::from_millis(millis)), seconds);
        }
    }

    /// It overflowed, which came out as a second.
    #[test]
    fn the_longest_time_of_all_can_be_written() {
        assert_eq!(write(Duration::MAX), u64::MAX.to_string().as_str());
    }

    proptest! {
        #[test]
        fn whatever_is_sent_it_is_at_most_a_year(value in "[ -~]{0,32}") {
            prop_assert!(asked(&[(RETRY_AFTER, &value)]).is_none_or(|time| time <= LONGEST));
        }

        #[test]
        fn what_was_written_is_read_as_no_less(millis in 0_u64..10_000_000_000) {
            let time = Duration::from_millis(millis);
            let headers = [(RETRY_AFTER, write(time))].into_iter().collect();
            let read = read(&headers, then).expect("just written");
            prop_assert!(read >= time && read <= time + SECOND);
        }
    }
}
