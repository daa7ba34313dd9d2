//! How much time a request's headers leave: read by `HttpLayer`, written by `DeadlineHeader`.
//!
//! The shortest that can be read is what the handler has, at most what is allowed. What was written is read as no longer, and as hardly shorter.
#![no_main]

use std::{cell::Cell, convert::Infallible, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use steadfast::{
    deadline,
    http::{DeadlineHeader, HttpLayer},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};
use tower::{ServiceExt, layer::Layer, service_fn};

#[derive(Arbitrary, Debug)]
struct Input {
    headers: Vec<(u8, Vec<u8>)>,
    usual: u32,
    most: u32,
    grpc: bool,
    left: Duration,
}

const NAMES: [&str; 3] = [
    "x-request-timeout-ms",
    "grpc-timeout",
    "x-envoy-expected-rq-timeout-ms",
];

thread_local! {
    /// Its clock stands still.
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
}

fuzz_target!(|input: Input| {
    let mut headers = HeaderMap::new();
    for (which, value) in &input.headers {
        // A server refuses what is no header before we see it.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let name = NAMES[usize::from(*which) % NAMES.len()];
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let usual = Duration::from_millis(u64::from(input.usual % 100_000) + 1);
    let most = usual + Duration::from_millis(u64::from(input.most % 100_000));
    let told = NAMES
        .iter()
        .filter_map(|name| shortest(&headers, name))
        .min();
    let expected = told.unwrap_or(usual).min(most);
    let left = left(headers.clone(), usual, most);
    if expected.is_zero() {
        assert_eq!(left, None, "a handler without any time");
    } else {
        assert_eq!(left, Some(expected));
    }

    // Written within a deadline of another, and read by the next server.
    let name = if input.grpc { NAMES[1] } else { NAMES[0] };
    let before = shortest(&headers, name);
    let has = Duration::new(
        input.left.as_secs() % YEAR.as_secs(),
        input.left.subsec_nanos(),
    );
    let has = before.map_or(has, |before| before.min(has));
    write(&mut headers, input.grpc, has);
    assert_eq!(headers.get_all(name).iter().count(), 1);
    let read = shortest(&headers, name).expect("it was just written");
    assert!(read <= has, "{has:?} became {read:?}");
    let lost = has - read;
    assert!(lost <= (has / 100_000).max(MS), "{has:?} became {read:?}");
});

const MS: Duration = Duration::from_millis(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// How long the handler has, if it is called.
fn left(headers: HeaderMap, usual: Duration, most: Duration) -> Option<Duration> {
    thread_local! {
        static LEFT: Cell<Option<Duration>> = const { Cell::new(None) };
    }
    LEFT.set(None);
    let layer = HttpLayer::builder().deadline(usual).max_deadline(most);
    let service = layer
        .build()
        .expect("in range")
        .layer(service_fn(async |_: Request<()>| {
            let at = deadline::current().expect("the layer's");
            LEFT.set(Some(
                at.saturating_duration_since(Instant::now().into_std()),
            ));
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    let response = RUNTIME.with(|runtime| runtime.block_on(service.oneshot(request)));
    let status = response.expect("it can't fail").status();
    assert_eq!(status.is_success(), LEFT.get().is_some(), "{status}");
    LEFT.get()
}

fn write(headers: &mut HeaderMap, grpc: bool, left: Duration) {
    let header = if grpc {
        DeadlineHeader::grpc()
    } else {
        DeadlineHeader::new()
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let at = (Instant::now() + left).into_std();
            deadline::scope(at, async { header.write(headers) }).await;
        });
    });
}

/// What the header says, read in another way than ours.
fn shortest(headers: &HeaderMap, name: &str) -> Option<Duration> {
    let values = headers.get_all(name).iter();
    let times = values.filter_map(|value| {
        let bytes = value.as_bytes();
        if name != "grpc-timeout" {
            return digits(bytes, 20).and_then(|n| Some(Duration::from_millis(n.try_into().ok()?)));
        }
        let (unit, bytes) = bytes.split_last()?;
        let nanos: u64 = match unit {
            b'n' => 1,
            b'u' => 1_000,
            b'm' => 1_000_000,
            b'S' => 1_000_000_000,
            b'M' => 60_000_000_000,
            b'H' => 3_600_000_000_000,
            _ => return None,
        };
        let nanos = digits(bytes, 8)? * u128::from(nanos);
        Some(Duration::new(
            (nanos / 1_000_000_000) as u64,
            (nanos % 1_000_000_000) as u32,
        ))
    });
    times.min()
}

/// Leading zeros count as digits where there are few of them, but make no number too long for 64 bits.
fn digits(bytes: &[u8], most: usize) -> Option<u128> {
    let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    if !is_number || most == 8 && bytes.len() > most {
        return None;
    }
    let mut number = 0_u128;
    for byte in bytes {
        number = number
            .checked_mul(10)?
            .checked_add(u128::from(byte - b'0'))?;
    }
    (number <= u128::from(u64::MAX)).then_some(number)
}
