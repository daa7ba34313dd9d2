//! How much time a request's headers leave, read and written.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// In which header the time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Milliseconds in `x-request-timeout-ms`.
    #[default]
    Milliseconds,
    /// `grpc-timeout`.
    Grpc,
}

impl Form {
    /// Writes that `left` is left, unless the header already says less. Never more than is left.
    pub(super) fn write(self, headers: &mut HeaderMap, left: Duration) {
        let (name, parse) = self.header();
        let least = shortest(headers, name, parse).map_or(left, |told| told.min(left));
        let text = match self {
            Self::Milliseconds => least.as_millis().to_string(),
            Self::Grpc => to_grpc(least),
        };
        let value = HeaderValue::from_str(&text).expect("digits and a letter");
        headers.insert(HeaderName::from_static(name), value);
    }

    fn header(self) -> Header {
        match self {
            Self::Milliseconds => HEADERS[0],
            Self::Grpc => HEADERS[1],
        }
    }
}

/// The least time that any of the headers leaves, at most `most`; `None` where none of them says.
///
/// What can't be read is as good as not there.
pub(super) fn read(headers: &HeaderMap, most: Duration) -> Option<Duration> {
    let told = HEADERS.iter();
    let told = told.filter_map(|(name, parse)| shortest(headers, name, *parse));
    told.min().map(|told| told.min(most))
}

fn shortest(headers: &HeaderMap, name: &str, parse: Parse) -> Option<Duration> {
    let values = headers.get_all(name).iter();
    let told = values.filter_map(|value| parse(value.to_str().ok()?));
    told.min()
}

type Parse = fn(&str) -> Option<Duration>;
type Header = (&'static str, Parse);

const HEADERS: [Header; 3] = [
    ("x-request-timeout-ms", from_milliseconds),
    ("grpc-timeout", from_grpc),
    ("x-envoy-expected-rq-timeout-ms", from_milliseconds),
];

fn from_milliseconds(text: &str) -> Option<Duration> {
    number(text).map(Duration::from_millis)
}

/// At most eight digits and a unit, as gRPC's protocol has it.
fn from_grpc(text: &str) -> Option<Duration> {
    let (at, letter) = text.char_indices().last()?;
    let digits = &text[..at];
    let (_, unit) = GRPC_UNITS.iter().find(|(name, _)| *name == letter)?;
    if digits.len() > GRPC_DIGITS {
        return None;
    }
    let nanos = u128::from(number(digits)?) * unit;
    Some(from_nanos(nanos))
}

/// In the finest unit in which it has eight digits at most.
fn to_grpc(time: Duration) -> String {
    let most = 10_u128.pow(GRPC_DIGITS as u32) - 1;
    let fits = |(_, unit): &&(char, u128)| time.as_nanos() / unit <= most;
    match GRPC_UNITS.iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", time.as_nanos() / unit),
        None => format!("{most}H"),
    }
}

/// The most digits of a `grpc-timeout`.
const GRPC_DIGITS: usize = 8;

/// In nanoseconds, from the finest.
const GRPC_UNITS: [(char, u128); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60_000_000_000),
    ('H', 3_600_000_000_000),
];

fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let (seconds, rest) = (nanos / SECOND, nanos % SECOND);
    Duration::new(
        u64::try_from(seconds).unwrap_or(u64::MAX),
        u32::try_from(rest).expect("less than a second"),
    )
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_str(value).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    fn told(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        read(&headers(pairs), 30 * MINUTE)
    }

    #[test]
    fn every_header_is_read_in_its_own_unit() {
        assert_eq!(told(&[("x-request-timeout-ms", "300")]), Some(300 * MS));
        let envoy = "x-envoy-expected-rq-timeout-ms";
        assert_eq!(told(&[(envoy, "15000")]), Some(15 * SECOND));
        for (value, time) in [
            ("1H", 30 * MINUTE),
            ("2M", 2 * MINUTE),
            ("3S", 3 * SECOND),
            ("250m", 250 * MS),
            ("4000u", 4 * MS),
            ("5000000n", 5 * MS),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(told(&[("grpc-timeout", value)]), Some(time), "{value}");
        }
    }

    #[test]
    fn the_shortest_wins_within_a_header_and_among_them() {
        let pairs = [
            ("x-request-timeout-ms", "700"),
            ("x-request-timeout-ms", "500"),
            ("x-envoy-expected-rq-timeout-ms", "400"),
            ("grpc-timeout", "1S"),
        ];
        assert_eq!(told(&pairs), Some(400 * MS));
        assert_eq!(told(&pairs[..2]), Some(500 * MS));
    }

    #[test]
    fn nothing_is_longer_than_what_is_allowed() {
        let long = headers(&[("x-request-timeout-ms", "60000")]);
        assert_eq!(read(&long, SECOND), Some(SECOND));
    }

    #[test]
    fn no_time_left_is_no_time_left() {
        assert_eq!(told(&[("x-request-timeout-ms", "0")]), Some(Duration::ZERO));
        assert_eq!(told(&[("grpc-timeout", "0n")]), Some(Duration::ZERO));
    }

    #[test]
    fn what_can_not_be_read_is_not_there() {
        assert_eq!(told(&[]), None);
        for value in [
            "",
            "x",
            "-1",
            "+1",
            "1.5",
            "1 ",
            "1e3",
            "5, 6",
            "1S",
            "99999999999999999999",
        ] {
            assert_eq!(told(&[("x-request-timeout-ms", value)]), None, "{value:?}");
        }
        for value in ["", "S", "1", "-1S", "1s", "1 S", "1SS", "123456789n", "1ms"] {
            assert_eq!(told(&[("grpc-timeout", value)]), None, "{value:?}");
        }
        let pairs = [("x-request-timeout-ms", "soon"), ("grpc-timeout", "2S")];
        assert_eq!(told(&pairs), Some(2 * SECOND));
    }

    #[test]
    fn what_is_left_is_rounded_down() {
        let mut headers = HeaderMap::new();
        Form::Milliseconds.write(&mut headers, Duration::from_micros(1_999));
        assert_eq!(headers["x-request-timeout-ms"], "1");
        for (left, value) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999H"),
        ] {
            headers.clear();
            Form::Grpc.write(&mut headers, left);
            assert_eq!(headers["grpc-timeout"], value);
        }
    }

    #[test]
    fn what_already_says_less_stays_and_everything_else_is_replaced() {
        for (before, after) in [("300", "300"), ("900", "500"), ("soon", "500")] {
            let mut headers = headers(&[("x-request-timeout-ms", before)]);
            Form::Milliseconds.write(&mut headers, 500 * MS);
            let values: Vec<_> = headers.get_all("x-request-timeout-ms").iter().collect();
            assert_eq!(values, [after], "{before}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_it_is_never_longer_than_allowed(
            values in prop::collection::vec((0_usize..3, prop::collection::vec(32_u8..=255, 0..12)), 0..4),
            most in 1_u64..100_000,
        ) {
            let mut headers = HeaderMap::new();
            for (which, value) in values {
                // 127 is the one that no header may have.
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(HeaderName::from_static(HEADERS[which].0), value);
                }
            }
            let most = Duration::from_millis(most);
            prop_assert!(read(&headers, most).is_none_or(|told| told <= most));
        }

        #[test]
        fn what_was_written_is_read_as_no_longer_and_hardly_shorter(
            seconds in 0_u64..40_000_000,
            nanos in 0_u32..1_000_000_000,
            grpc in any::<bool>(),
        ) {
            let left = Duration::new(seconds, nanos);
            let mut headers = HeaderMap::new();
            let form = if grpc { Form::Grpc } else { Form::Milliseconds };
            form.write(&mut headers, left);
            let told = read(&headers, Duration::MAX).expect("just written");
            prop_assert!(told <= left);
            prop_assert!(left - told <= (left / 100_000).max(MS), "{left:?} became {told:?}");
        }
    }
}
