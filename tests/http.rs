//! HTTP: guards around handlers, and what clients need, on tokio's paused clock; where a connection matters, over a real one.
#![cfg(feature = "http")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    convert::Infallible,
    error::Error as _,
    fmt,
    future::{Future, pending},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request as AxumRequest, routing::get};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, Deadline, Error, Event, Kind, Observer, Overload,
    Rejected, Retry, Shield,
    breaker::State,
    by_error,
    classify::HttpStatus,
    deadline,
    error::{WrapLayer, Wrapped},
    http::{
        self as steadfast_http, ByMethod, DeadlineHeader, HttpLayer, HttpService, ResponseBody,
        ResponseFuture, refusal_response,
    },
    retry::{Backoff, Jitter},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, layer::util::Identity,
    limit::GlobalConcurrencyLimitLayer, service_fn,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const QUEUE_FULL: Rejected = Rejected::Overloaded {
    reason: Overload::QueueFull,
};

/// The layer with a deadline of 2 s, 10 s at most.
fn builder() -> steadfast_http::Builder {
    let builder = HttpLayer::builder().deadline(2 * SECOND);
    builder.max_deadline(10 * SECOND)
}

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

fn response<B>(status: u16, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn bare(status: u16) -> Response<Empty<Bytes>> {
    response(status, Empty::new())
}

/// Answers with the status that it is told in the header `status`, and counts its calls.
#[derive(Clone, Default)]
struct Desk {
    calls: Arc<AtomicU32>,
}

impl Desk {
    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    #[allow(clippy::type_complexity, reason = "what a service is")]
    fn service(
        &self,
    ) -> impl Service<
        Request<()>,
        Response = Response<Empty<Bytes>>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + use<> {
        let calls = self.calls.clone();
        service_fn(move |request: Request<()>| {
            calls.fetch_add(1, Ordering::Relaxed);
            let status = request.headers().get("status");
            let status = status.map_or(200, |status| status.to_str().unwrap().parse().unwrap());
            async move { Ok(bare(status)) }
        })
    }
}

/// A handler that tells how much time it has.
async fn time_left(_: Request<()>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let at = deadline::current().expect("there is a deadline");
    let left = at - Instant::now().into_std();
    let mut response = bare(200);
    let left = left.as_millis().to_string();
    response.headers_mut().insert("left", left.parse().unwrap());
    Ok(response)
}

async fn hangs(_: Request<()>) -> Result<Response<Empty<Bytes>>, Infallible> {
    pending().await
}

/// Whose clones tell how often one of them was dropped.
#[derive(Clone)]
struct Canary {
    alive: Arc<()>,
}

impl Canary {
    fn new() -> Self {
        Self {
            alive: Arc::new(()),
        }
    }

    fn others(&self) -> usize {
        Arc::strong_count(&self.alive) - 1
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_header_is_the_handlers_deadline_within_what_is_allowed() {
    for (headers, left) in [
        (&[][..], "2000"),
        (&[("x-request-timeout-ms", "300")], "300"),
        (&[("x-envoy-expected-rq-timeout-ms", "400")], "400"),
        (&[("grpc-timeout", "1S")], "1000"),
        (
            &[("grpc-timeout", "1S"), ("x-request-timeout-ms", "700")],
            "700",
        ),
        (&[("x-request-timeout-ms", "5000")], "5000"),
        (&[("x-request-timeout-ms", "60000")], "10000"),
        (&[("x-request-timeout-ms", "99999999999999999999")], "2000"),
        (&[("x-request-timeout-ms", "soon")], "2000"),
        (&[("grpc-timeout", "-1S")], "2000"),
    ] {
        let service = builder().build().unwrap().layer(service_fn(time_left));
        let response = service.oneshot(request(headers)).await.unwrap();
        assert_eq!(response.headers()["left"], left, "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_can_not_ask_for_more_unless_that_is_said() {
    let layer = HttpLayer::builder().deadline(2 * SECOND).build().unwrap();
    let long = request(&[("x-request-timeout-ms", "5000")]);
    let response = layer.layer(service_fn(time_left)).oneshot(long).await;
    assert_eq!(response.unwrap().headers()["left"], "2000");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_around_it_all_is_kept() {
    let service = builder().build().unwrap().layer(service_fn(time_left));
    let at = (Instant::now() + 500 * MS).into_std();
    let response = deadline::scope(at, service.oneshot(request(&[]))).await;
    assert_eq!(response.unwrap().headers()["left"], "500");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_too_slow_is_dropped_and_answered_for_by_504() {
    let canary = Canary::new();
    let held = canary.clone();
    let handler = service_fn(move |request: Request<()>| {
        let held = held.clone();
        async move {
            let _held = held;
            hangs(request).await
        }
    });
    let mut service = builder().build().unwrap().layer(handler);
    let start = Instant::now();
    let mut call = task::spawn(service.call(request(&[("x-request-timeout-ms", "300")])));
    assert_pending!(call.poll());
    assert_eq!(canary.others(), 2);
    advance(299 * MS).await;
    assert_pending!(call.poll());
    let response = call.await.unwrap();
    assert_eq!(start.elapsed(), 300 * MS);
    assert_eq!(canary.others(), 1);
    assert_eq!(response.status(), 504);
    assert!(!response.headers().contains_key("retry-after"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_time_is_refused_before_the_handler_is_called() {
    let desk = Desk::default();
    let service = builder().build().unwrap().layer(desk.service());
    let no_time = request(&[("grpc-timeout", "0n")]);
    let response = service.oneshot(no_time).await.unwrap();
    assert_eq!((response.status().as_u16(), desk.calls()), (503, 0));
    assert_eq!(
        response.extensions().get(),
        Some(&Rejected::DeadlineExceeded { sent: false })
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_until_its_deadline_was_not_sent() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let _taken = limiter.try_acquire().unwrap();
    let desk = Desk::default();
    let layer = builder().limiter(&limiter).build().unwrap();
    let service = layer.layer(desk.service());
    let start = Instant::now();
    let response = service.oneshot(request(&[("x-request-timeout-ms", "300")]));
    let response = response.await.unwrap();
    assert_eq!(start.elapsed(), 300 * MS);
    assert_eq!((response.status().as_u16(), desk.calls()), (503, 0));
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(limiter.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn an_overload_is_a_problem_that_says_when_to_come_back() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let _taken = limiter.try_acquire().unwrap();
    let layer = builder().limiter(&limiter);
    for (layer, status, title) in [
        (layer.clone(), 503, "Service Unavailable"),
        (layer.too_many_requests(), 429, "Too Many Requests"),
    ] {
        let service = layer.build().unwrap().layer(Desk::default().service());
        let response = service.oneshot(request(&[])).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(response.extensions().get(), Some(&QUEUE_FULL));
        let body = response.into_body();
        let length = body.size_hint().exact().expect("it is known");
        let text = body.collect().await.unwrap().to_bytes();
        assert_eq!(text.len() as u64, length);
        let text = std::str::from_utf8(&text).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{status},\
                 \"detail\":\"overloaded: the queue is full\",\"reason\":\"queue_full\"}}"
            )
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_answers_without_the_handler_and_says_when_it_is_over() {
    let desk = Desk::default();
    let breaker = Breaker::consecutive(1)
        .open_for(30 * SECOND)
        .build()
        .unwrap();
    let layer = builder().breaker(&breaker).build().unwrap();
    let service = layer.layer(desk.service());
    let failed = service.clone().oneshot(request(&[("status", "503")])).await;
    assert_eq!(failed.unwrap().extensions().get::<Rejected>(), None);
    let refused = service.oneshot(request(&[])).await.unwrap();
    assert_eq!((refused.status().as_u16(), desk.calls()), (503, 1));
    let seconds = refused.headers()["retry-after"].to_str().unwrap().parse();
    let seconds: u64 = seconds.unwrap();
    // Jittered.
    assert!((15..=45).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn the_slot_covers_the_body_until_its_end() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let (frames, body) = mpsc::channel::<Frame<Bytes>>(4);
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = service_fn(move |_: Request<()>| {
        let body = body.lock().unwrap().take().expect("called once");
        async { Ok::<_, Infallible>(Response::new(Channel(body))) }
    });
    let layer = builder().limiter(&limiter).build().unwrap();
    let response = layer.layer(handler).oneshot(request(&[])).await.unwrap();
    let in_flight = || limiter.stats().in_flight;
    assert_eq!(in_flight(), 1);

    let mut body = response.into_body();
    frames.send(Frame::data("text".into())).await.unwrap();
    frames
        .send(Frame::trailers(HeaderMap::new()))
        .await
        .unwrap();
    drop(frames);
    let data = body.frame().await.unwrap().unwrap();
    assert_eq!(data.into_data().unwrap(), "text");
    assert_eq!(in_flight(), 1);
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert_eq!(in_flight(), 1);
    assert!(body.frame().await.is_none());
    assert_eq!(in_flight(), 0);
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// A server need not ask a body that says by itself that it has ended.
#[tokio::test(start_paused = true)]
async fn the_slot_is_free_with_the_last_frame_where_the_body_knows_which_that_is() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let mut body = body_of(Full::<Bytes>::from("text"), &limiter).await;
    assert_eq!(limiter.stats().in_flight, 1);
    assert_eq!(body.size_hint().exact(), Some(4));
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "text"
    );
    assert_eq!(limiter.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_keeps_no_slot() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let body = body_of(Empty::<Bytes>::new(), &limiter).await;
    assert_eq!(limiter.stats().in_flight, 0);
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_frees_its_slot_after_itself() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let seen = Arc::new(Mutex::new(None));
    let watched = Watched {
        limiter: limiter.clone(),
        when_dropped: seen.clone(),
    };
    let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let frames = futures_util::StreamExt::inspect(frames, move |_| {
        let _ = &watched;
    });
    let mut body = Box::pin(body_of(StreamBody::new(frames), &limiter).await);
    assert_pending!(task::spawn(body.frame()).poll());
    assert_eq!(limiter.stats().in_flight, 1);
    drop(body);
    assert_eq!(limiter.stats().in_flight, 0);
    // What the body held was given back first.
    assert_eq!(*seen.lock().unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_frees_its_slot() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let failure = Err::<Frame<Bytes>, _>(io::Error::other("torn"));
    let mut body = body_of(
        StreamBody::new(futures_util::stream::iter([failure])),
        &limiter,
    )
    .await;
    assert_eq!(limiter.stats().in_flight, 1);
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "torn");
    assert_eq!(limiter.stats().in_flight, 0);
}

/// Only a body of `Bytes` is handed on without a copy, but any other is handed on too.
#[tokio::test(start_paused = true)]
async fn any_body_will_do() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let body = body_of(Full::new(&b"text"[..]), &limiter).await;
    assert_eq!(body.collect().await.unwrap().to_bytes(), "text");
}

#[tokio::test(start_paused = true)]
async fn the_next_in_line_is_served_when_the_body_ends() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let body = body_of(Full::<Bytes>::from("text"), &limiter).await;
    let layer = builder().limiter(&limiter).build().unwrap();
    let mut service = layer.layer(Desk::default().service());
    let mut next = task::spawn(service.call(request(&[])));
    assert_pending!(next.poll());
    drop(body);
    assert!(next.is_woken());
    assert_eq!(assert_ready!(next.poll()).unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_asks_for_leave_when_it_is_polled() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let layer = builder().limiter(&limiter).build().unwrap();
    let mut service = layer.layer(service_fn(hangs));
    let mut call = task::spawn(service.call(request(&[])));
    let mut idle: Vec<_> = (0..100).map(|_| service.clone()).collect();
    for clone in &mut idle {
        clone.ready().await.unwrap();
    }
    assert_eq!(limiter.stats().in_flight, 0);
    assert_pending!(call.poll());
    assert_eq!(limiter.stats().in_flight, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_ends_the_handler_and_counts_for_nothing() {
    let canary = Canary::new();
    let held = canary.clone();
    let handler = service_fn(move |request: Request<()>| {
        let held = held.clone();
        async move {
            let _held = held;
            hangs(request).await
        }
    });
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let breaker = Breaker::consecutive(1).build().unwrap();
    let layer = builder()
        .limiter(&limiter)
        .breaker(&breaker)
        .build()
        .unwrap();
    let mut service = layer.layer(handler);
    // Half of the deadline, less what is taken for equal.
    for (stays, state) in [(900 * MS, State::Closed), (SECOND, State::Open)] {
        let mut call = task::spawn(service.call(request(&[])));
        assert_pending!(call.poll());
        assert_eq!((canary.others(), limiter.stats().in_flight), (2, 1));
        advance(stays).await;
        drop(call);
        assert_eq!((canary.others(), limiter.stats().in_flight), (1, 0));
        assert_eq!(breaker.state(), state, "{stays:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_has_failed_and_frees_its_slot() {
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let breaker = Breaker::consecutive(1).build().unwrap();
    let layer = builder()
        .limiter(&limiter)
        .breaker(&breaker)
        .build()
        .unwrap();
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        if true {
            panic!("of the handler");
        }
        Ok::<_, Infallible>(bare(200))
    }));
    let mut call = task::spawn(service.call(request(&[])));
    let panicked = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready()));
    assert!(panicked.is_err());
    drop(call);
    assert_eq!(limiter.stats().in_flight, 0);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_opens_on_failures_of_the_handler_and_on_no_other_answer() {
    for (status, state) in [
        ("500", State::Open),
        ("502", State::Open),
        ("503", State::Open),
        ("504", State::Open),
        ("200", State::Closed),
        ("302", State::Closed),
        ("400", State::Closed),
        ("404", State::Closed),
        ("409", State::Closed),
        ("501", State::Closed),
    ] {
        let breaker = Breaker::consecutive(5).build().unwrap();
        let layer = builder().breaker(&breaker).build().unwrap();
        let service = layer.layer(Desk::default().service());
        for _ in 0..5 {
            let call = service.clone().oneshot(request(&[("status", status)]));
            assert_eq!(call.await.unwrap().status().as_str(), status);
        }
        assert_eq!(breaker.state(), state, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_handlers_own_error_comes_through_and_is_a_failure() {
    #[derive(Debug, PartialEq)]
    struct Own(u32);
    let breaker = Breaker::consecutive(1).build().unwrap();
    let layer = builder().breaker(&breaker).build().unwrap();
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Err::<Response<Empty<Bytes>>, _>(Own(7))
    }));
    let error = service.oneshot(request(&[])).await.unwrap_err();
    assert_eq!(error, Own(7));
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn our_own_refusals_count_for_nothing() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let _taken = limiter.try_acquire().unwrap();
    let open = Breaker::default();
    open.force_open();
    let inner: [(&str, HttpLayer); 3] = [
        ("limiter", builder().limiter(&limiter).build().unwrap()),
        (
            "429",
            builder()
                .limiter(&limiter)
                .too_many_requests()
                .build()
                .unwrap(),
        ),
        ("breaker", builder().breaker(&open).build().unwrap()),
    ];
    for (name, inner) in inner {
        let breaker = Breaker::consecutive(1).build().unwrap();
        let outer = builder().breaker(&breaker).build().unwrap();
        let service = outer.layer(inner.layer(Desk::default().service()));
        let response = service.oneshot(request(&[])).await.unwrap();
        assert!(response.extensions().get::<Rejected>().is_some(), "{name}");
        assert_eq!(breaker.state(), State::Closed, "{name}");
    }

    // The same by one layer.
    let breaker = Breaker::consecutive(1).build().unwrap();
    let both = builder()
        .breaker(&breaker)
        .limiter(&limiter)
        .build()
        .unwrap();
    let service = both.layer(Desk::default().service());
    let response = service.oneshot(request(&[])).await.unwrap();
    assert_eq!(response.extensions().get(), Some(&QUEUE_FULL));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_a_handler_hands_on_is_judged_as_a_refusal() {
    for (sent, state) in [(false, State::Closed), (true, State::Open)] {
        let breaker = Breaker::consecutive(1).build().unwrap();
        let layer = builder().breaker(&breaker).build().unwrap();
        let service = layer.layer(service_fn(move |_: Request<()>| {
            let rejected = Rejected::DeadlineExceeded { sent };
            let refused: Response<Full<Bytes>> = refusal_response(&rejected);
            async { Ok::<_, Infallible>(refused) }
        }));
        service.oneshot(request(&[])).await.unwrap();
        assert_eq!(breaker.state(), state, "{sent}");
    }
}

/// A handler that took the refusal of its database for a reason to do something else has answered.
#[tokio::test(start_paused = true)]
async fn an_answer_with_a_refusal_among_its_extensions_is_an_answer() {
    let breaker = Breaker::consecutive(1).build().unwrap();
    let layer = builder().breaker(&breaker).build().unwrap();
    let service = layer.layer(service_fn(async |_: Request<()>| {
        let mut failed = bare(500);
        failed.extensions_mut().insert(QUEUE_FULL);
        Ok::<_, Infallible>(failed)
    }));
    service.oneshot(request(&[])).await.unwrap();
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_impatient_caller_opens_no_circuit() {
    let breaker = Breaker::consecutive(1).build().unwrap();
    let layer = builder().breaker(&breaker).build().unwrap();
    let service = layer.layer(service_fn(hangs));
    for (patience, state) in [("300", State::Closed), ("2000", State::Open)] {
        let call = service
            .clone()
            .oneshot(request(&[("x-request-timeout-ms", patience)]));
        assert_eq!(call.await.unwrap().status(), 504);
        assert_eq!(breaker.state(), state, "{patience}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_counts_also_after_a_wait_in_the_queue() {
    let breaker = Breaker::consecutive(1).build().unwrap();
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let layer = builder()
        .breaker(&breaker)
        .limiter(&limiter)
        .build()
        .unwrap();
    let mut service = layer.layer(service_fn(hangs));
    let taken = limiter.try_acquire().unwrap();
    let mut call = task::spawn(service.call(request(&[])));
    assert_pending!(call.poll());
    advance(800 * MS).await;
    drop(taken);
    assert_pending!(call.poll());
    assert_eq!(call.await.unwrap().status(), 504);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_knows_how_long_an_attempt_may_take_decides_itself_what_a_hang_is() {
    let breaker = Breaker::consecutive(1).attempt_deadline(200 * MS).build();
    let breaker = breaker.unwrap();
    let layer = builder().breaker(&breaker).build().unwrap();
    let service = layer.layer(service_fn(hangs));
    let call = service.oneshot(request(&[("x-request-timeout-ms", "200")]));
    assert_eq!(call.await.unwrap().status(), 504);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_the_deadline_is_told() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);
    impl Observer for Log {
        fn on_event(&self, event: &Event<'_>) {
            let Event::Refused { name, rejected } = event else {
                panic!("{event:?}");
            };
            self.0.lock().unwrap().push(format!("{name}: {rejected}"));
        }
    }
    let log = Log::default();
    let layer = builder().name("orders").observer(log.clone()).build();
    let service = layer.unwrap().layer(service_fn(hangs));
    service.oneshot(request(&[])).await.unwrap();
    assert_eq!(
        *log.0.lock().unwrap(),
        ["orders: deadline exceeded while the call was under way"]
    );
}

#[test]
fn deadlines_that_contradict_each_other_are_refused() {
    let error = |builder: steadfast_http::Builder| builder.build().unwrap_err().to_string();
    assert_eq!(
        error(HttpLayer::builder().max_deadline(SECOND)),
        "http: max_deadline is 1s, but must be at least the deadline, 10s"
    );
    assert_eq!(
        error(HttpLayer::builder().deadline(Duration::ZERO)),
        "http: deadline is 0ns, but must be at least 1ms and at most 365 days"
    );
}

#[test]
fn everything_can_go_from_thread_to_thread() {
    fn is_sent<T: Send + 'static>() {}
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<HttpLayer>();
    is_shared::<HttpService<axum::routing::Route>>();
    is_sent::<ResponseFuture<axum::routing::Route, AxumRequest>>();
    is_sent::<ResponseBody<axum::body::Body>>();
    is_shared::<ByMethod<HttpLayer, HttpLayer>>();
}

#[tokio::test(start_paused = true)]
async fn an_axum_router_is_guarded_as_it_is() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let layer = builder().limiter(&limiter).build().unwrap();
    let app: Router = Router::new()
        .route("/hello", get(async || "hello"))
        .route("/slow", get(async || sleep(60 * SECOND).await))
        .layer(layer);
    let get = |path: &str| {
        let request = AxumRequest::get(path).body(axum::body::Body::empty());
        app.clone().oneshot(request.unwrap())
    };
    let hello = get("/hello").await.unwrap();
    assert_eq!(get("/hello").await.unwrap().status(), 503);
    let text = hello.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "hello");
    assert_eq!(get("/slow").await.unwrap().status(), 504);
    assert_eq!(get("/nowhere").await.unwrap().status(), 404);
    assert_eq!(limiter.stats().in_flight, 0);
}

/// With `frames` as its body; they can't be sent behind the last one.
struct Channel(mpsc::Receiver<Frame<Bytes>>);

impl Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// Looks how many calls are in flight when it is dropped.
struct Watched {
    limiter: ConcurrencyLimiter,
    when_dropped: Arc<Mutex<Option<usize>>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        *self.when_dropped.lock().unwrap() = Some(self.limiter.stats().in_flight);
    }
}

/// `body` as it comes out of a layer with `limiter`.
async fn body_of<B: Body + Send + 'static>(
    body: B,
    limiter: &ConcurrencyLimiter,
) -> ResponseBody<B> {
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = service_fn(move |_: Request<()>| {
        let body = body.lock().unwrap().take().expect("called once");
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let layer = builder().limiter(limiter).build().unwrap();
    let response = layer.layer(handler).oneshot(request(&[])).await;
    response.unwrap().into_body()
}

/// Serves `app` on a port of the loopback; returns where.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// What happens over a real connection happens soon, or not at all.
async fn soon<F: Future>(future: F) -> F::Output {
    let waited = timeout(10 * SECOND, future).await;
    waited.expect("it happens within ten seconds")
}

/// Asks for `path` on a connection that is kept open, and reads the response up to the end of `body`.
async fn ask(connection: &mut TcpStream, path: &str, body: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(body.as_bytes()) {
        let mut part = [0; 1_024];
        let length = connection.read(&mut part).await.unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&read));
        read.extend(&part[..length]);
    }
}

#[tokio::test]
async fn an_idle_connection_that_is_kept_open_holds_nothing() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let layer = HttpLayer::builder().limiter(&limiter).build().unwrap();
    let app = Router::new().route("/", get(async || "hello")).layer(layer);
    let address = serve(app).await;
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        for _ in 0..2 {
            soon(ask(&mut connection, "/", "hello")).await;
        }
        connections.push(connection);
    }
    assert_eq!(limiter.stats().in_flight, 0);
}

#[tokio::test]
async fn a_connection_that_is_closed_ends_the_handler() {
    /// Tells that it was dropped.
    struct Tells(Arc<Notify>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let limiter = ConcurrencyLimiter::new(1).unwrap();
    let layer = HttpLayer::builder().limiter(&limiter).build().unwrap();
    let (begun, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let tell = (begun.clone(), ended.clone());
    let handler = async move || {
        let _tells = Tells(tell.1);
        tell.0.notify_one();
        pending::<()>().await
    };
    let address = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    let mut connection = TcpStream::connect(&address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    connection.write_all(request).await.unwrap();
    soon(begun.notified()).await;
    assert_eq!(limiter.stats().in_flight, 1);
    drop(connection);
    soon(ended.notified()).await;
    // The slot is given back right after the handler, by another thread of the same runtime at most.
    soon(async {
        while limiter.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A client whose answers are the statuses in a list, the last one for ever; it keeps the headers of all requests.
#[derive(Clone)]
struct Remote {
    answers: Arc<Mutex<Vec<Response<()>>>>,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Remote {
    fn new(answers: impl IntoIterator<Item = Response<()>>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        Self {
            answers: Arc::new(Mutex::new(answers)),
            seen: Arc::default(),
        }
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The header `name` of each request.
    fn header(&self, name: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let values = seen.iter().map(|headers| headers.get(name));
        let texts =
            values.map(|value| value.map_or("", |value| value.to_str().unwrap()).to_owned());
        texts.collect()
    }

    #[allow(clippy::type_complexity, reason = "what a service is")]
    fn service(
        &self,
    ) -> impl Service<Request<()>, Response = Response<()>, Error = io::Error, Future: Send>
    + Clone
    + use<> {
        let remote = self.clone();
        service_fn(move |request: Request<()>| {
            let remote = remote.clone();
            async move {
                remote.seen.lock().unwrap().push(request.headers().clone());
                sleep(100 * MS).await;
                let mut answers = remote.answers.lock().unwrap();
                let last = answers.last().expect("there is an answer").clone();
                if answers.len() > 1 {
                    answers.pop();
                }
                Ok(last)
            }
        })
    }
}

fn retry() -> steadfast::retry::Builder {
    Retry::builder().backoff(Backoff::fixed(SECOND).jitter(Jitter::None))
}

fn asks_for(method: Method, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = request(headers);
    *request.method_mut() = method;
    request
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_sent_twice_is_repeated_after_an_answer_that_hides_what_was_done() {
    for (method, headers, calls) in [
        (Method::GET, &[][..], 2),
        (Method::PUT, &[], 2),
        (Method::DELETE, &[], 2),
        (Method::POST, &[], 1),
        (Method::PATCH, &[], 1),
        (Method::POST, &[("idempotency-key", "8e03978e")], 2),
    ] {
        let remote = Remote::new([response(502, ()), response(200, ())]);
        let repeatable = retry().idempotent(true).build().unwrap();
        let by_method = ByMethod::new(
            repeatable.layer(HttpStatus),
            retry().build().unwrap().layer(HttpStatus),
        );
        let client = by_method.layer(remote.service());
        let answer = client.oneshot(asks_for(method.clone(), headers)).await;
        assert_eq!(remote.calls(), calls, "{method} {headers:?}");
        let status = answer.unwrap().status();
        assert_eq!(status == 200, calls == 2, "{method} {headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_for_both_methods_reserves_nothing_in_the_one_that_it_does_not_call() {
    let remote = Remote::new([response(200, ())]);
    let by_method = ByMethod::new(GlobalConcurrencyLimitLayer::new(1), Identity::new());
    let mut client = by_method.layer(remote.service());
    let mut other = client.clone();
    for (client, method) in [(&mut client, Method::POST), (&mut other, Method::GET)] {
        let call = async { client.ready().await?.call(asks_for(method, &[])).await };
        let answer = timeout(SECOND, call).await.expect("a place is free");
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_was_sent_away_comes_back_when_the_server_says() {
    for status in [429, 503] {
        let mut busy = response(status, ());
        busy.headers_mut().insert("retry-after", 7.into());
        let remote = Remote::new([busy, response(201, ())]);
        let backoff = Backoff::fixed(MS).jitter(Jitter::None);
        let retry = retry().on(Kind::Overloaded, 2, backoff).build().unwrap();
        let client = retry.layer(HttpStatus).layer(remote.service());
        let start = Instant::now();
        let answer = client.oneshot(asks_for(Method::POST, &[])).await.unwrap();
        assert_eq!((answer.status().as_u16(), remote.calls()), (201, 2));
        // Two calls and the backoff on top.
        assert_eq!(start.elapsed(), 7 * SECOND + 200 * MS + MS, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_handed_on_whatever_it_is() {
    let mut last = response(503, ());
    last.headers_mut().insert("last", 1.into());
    let remote = Remote::new([response(503, ()), last]);
    let retry = retry().attempts(2).build().unwrap();
    let client = retry.layer(HttpStatus).layer(remote.service());
    let answer = client.oneshot(request(&[])).await.unwrap();
    assert_eq!(answer.headers()["last"], "1");
}

#[tokio::test(start_paused = true)]
async fn each_attempt_tells_the_server_what_is_left_of_it() {
    let remote = Remote::new([response(502, ()), response(200, ())]);
    let shield = Shield::builder(HttpStatus)
        .deadline(3 * SECOND)
        .attempt_deadline(2_500 * MS)
        .retry(retry().idempotent(true).build().unwrap());
    let client = ServiceBuilder::new()
        .layer(shield.build().unwrap())
        .layer(DeadlineHeader::new())
        .layer(DeadlineHeader::grpc())
        .service(remote.service());
    client.oneshot(request(&[])).await.unwrap();
    // The whole is 3 s; the first call took 100 ms, the pause 1 s.
    assert_eq!(remote.header("x-request-timeout-ms"), ["2500", "1900"]);
    assert_eq!(remote.header("grpc-timeout"), ["2500000u", "1900000u"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_where_there_is_no_deadline() {
    let remote = Remote::new([response(200, ())]);
    let client = DeadlineHeader::new().layer(remote.service());
    client.oneshot(request(&[])).await.unwrap();
    assert_eq!(remote.header("x-request-timeout-ms"), [""]);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_has_left_is_what_the_handler_has() {
    let layer = builder().build().unwrap();
    let client = ServiceBuilder::new()
        .layer(Deadline::new(700 * MS).unwrap().layer())
        .layer(DeadlineHeader::new())
        .layer(WrapLayer)
        .layer_fn(|service| {
            // As over a network: nothing ambient gets across.
            service_fn(move |request: Request<()>| {
                let call = tower::ServiceExt::oneshot(Clone::clone(&service), request);
                async { tokio::spawn(call).await.expect("it does not panic") }
            })
        })
        .layer(layer)
        .service_fn(time_left);
    let response = client.oneshot(request(&[])).await.unwrap();
    assert_eq!(response.headers()["left"], "700");
}

#[test]
fn an_error_of_the_client_is_ambiguous_unless_nobody_was_reached() {
    /// An error with another behind it.
    #[derive(Debug)]
    struct Outer(io::Error);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("it failed")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let judged = |kind: io::ErrorKind| {
        let error = Outer(io::Error::from(kind));
        HttpStatus.classify(Err::<&Response<()>, _>(&error)).kind
    };
    assert_eq!(judged(io::ErrorKind::ConnectionRefused), Kind::Unavailable);
    assert_eq!(judged(io::ErrorKind::ConnectionReset), Kind::Ambiguous);
    let nothing = HttpStatus.classify(Err::<&Response<()>, _>(&fmt::Error));
    assert_eq!(nothing.kind, Kind::Ambiguous);

    let boxed: BoxError = "torn".into();
    let classify = HttpStatus::with_errors(by_error(|_: &BoxError| Kind::Broken));
    let failed = classify.classify(Err::<&Response<()>, _>(&boxed));
    assert_eq!(failed.kind, Kind::Broken);
    let answered = classify.classify(Ok::<_, &BoxError>(&response(503, ())));
    assert_eq!(answered.kind, Kind::Overloaded);
}

#[test]
fn a_date_in_the_future_is_a_hint_that_counts_from_the_servers_clock() {
    let mut busy = response(503, ());
    for (name, value) in [
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"),
    ] {
        busy.headers_mut().insert(name, value.parse().unwrap());
    }
    let verdict = HttpStatus.classify(Ok::<_, &Infallible>(&busy));
    assert_eq!(verdict.retry_after, Some(20 * SECOND));
    // Without it our own clock has to do, for which that time is over.
    busy.headers_mut().remove("date");
    let verdict = HttpStatus.classify(Ok::<_, &Infallible>(&busy));
    assert_eq!(verdict.retry_after, Some(Duration::ZERO));
}

#[tokio::test]
async fn hyper_utils_client_is_a_service_like_any_other() {
    let handler = async |request: AxumRequest| {
        let told = request.headers().get("x-request-timeout-ms");
        told.map_or(0, |told| told.to_str().unwrap().parse().unwrap())
            .to_string()
    };
    let address = serve(Router::new().route("/", get(handler))).await;
    let client = ServiceBuilder::new()
        .layer(Shield::builder(Wrapped(HttpStatus)).build().unwrap())
        .layer(DeadlineHeader::new())
        .layer(WrapLayer)
        .service(Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());
    let request = |address: &str| Request::get(format!("http://{address}/")).body(Full::default());
    let response = soon(client.clone().oneshot(request(&address).unwrap())).await;
    let text = response.unwrap().into_body().collect().await.unwrap();
    let told: u64 = std::str::from_utf8(&text.to_bytes())
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3_000).contains(&told), "{told}");
}

#[tokio::test]
async fn hyper_utils_client_is_known_to_have_reached_nobody() {
    // Nobody listens there any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::get(format!("http://{address}/")).body(Full::default());
    let result = soon(client.request(request.unwrap())).await;
    let error = result.as_ref().unwrap_err();
    assert!(error.source().is_some());
    assert_eq!(HttpStatus.classify(result.as_ref()).kind, Kind::Unavailable);
    let wrapped = result.map_err(Error::Inner);
    let verdict = Wrapped(HttpStatus).classify(wrapped.as_ref());
    assert_eq!(verdict.kind, Kind::Unavailable);
}

#[tokio::test]
async fn a_plain_hyper_server_is_guarded_too() {
    let limiter = ConcurrencyLimiter::builder(1).queue(0).build().unwrap();
    let layer = HttpLayer::builder().limiter(&limiter).build().unwrap();
    async fn handler<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.uri().path() == "/slow" {
            pending::<()>().await;
        }
        Ok(Response::new(Full::from("hello")))
    }
    let service = layer.layer(service_fn(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let server = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                let served = server.serve_connection(TokioIo::new(stream), service);
                served.await
            });
        }
    });
    let mut kept = TcpStream::connect(address).await.unwrap();
    soon(ask(&mut kept, "/", "hello")).await;
    assert_eq!(limiter.stats().in_flight, 0);

    // Nothing is held by the connection that is kept, but by the request under way.
    let mut slow = TcpStream::connect(address).await.unwrap();
    let request = b"GET /slow HTTP/1.1\r\nhost: test\r\nx-request-timeout-ms: 500\r\n\r\n";
    slow.write_all(request).await.unwrap();
    soon(async {
        while limiter.stats().in_flight == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(ask(&mut kept, "/", r#""reason":"queue_full"}"#)).await;
    let mut late = [0; 64];
    soon(slow.read(&mut late)).await.unwrap();
    assert!(late.starts_with(b"HTTP/1.1 504 Gateway Timeout\r\n"));
    assert_eq!(limiter.stats().in_flight, 0);
}

#[tokio::test]
async fn what_reqwest_answers_is_judged_by_its_status_and_its_error_by_what_was_reached() {
    let app = Router::new()
        .route("/hangs", get(async || pending::<()>().await))
        .route(
            "/busy",
            get(async || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")])),
        );
    let address = serve(app).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |url: String| {
        let request = client.get(url).timeout(200 * MS).send();
        let result = soon(request).await.map(Response::<reqwest::Body>::from);
        HttpStatus.classify(result.as_ref())
    };
    let busy = ask(format!("http://{address}/busy")).await;
    assert_eq!(busy.kind, Kind::Overloaded);
    assert_eq!(busy.retry_after, Some(7 * SECOND));
    // It may be at work.
    let hung = ask(format!("http://{address}/hangs")).await;
    assert_eq!(hung.kind, Kind::Ambiguous);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let refused = ask(format!("http://{nobody}/")).await;
    assert_eq!(refused.kind, Kind::Unavailable);
}
