//! HTTP: guards around handlers that answer for them where they refuse, and what clients need.
//!
//! ```text
//!  request ──► deadline   from the caller's header, at most `max_deadline`; else `deadline`
//!                │ breaker  open ───────────────────────────────────────────────► 503
//!                │   limiter  queue full, too little time, waited too long ─────► 503, or 429
//!                │     your handler ── not over by the deadline ────────────────► 504
//!                ▼
//!  response ◄── head, body ◄─ the slot is free once the body has ended
//! ```
//!
//! The handler's error type stays as it is, [`Infallible`](std::convert::Infallible) for axum's: a refusal is a response, not an error.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, extract::Request, http::StatusCode, routing::get};
//! use steadfast::{ConcurrencyLimiter, http::HttpLayer};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layer = HttpLayer::builder()
//!     .deadline(Duration::from_secs(5))
//!     .limiter(&ConcurrencyLimiter::new(100)?)
//!     .build()?;
//! let app: Router = Router::new()
//!     .route("/slow", get(async || tokio::time::sleep(Duration::from_secs(1)).await))
//!     .layer(layer);
//!
//! let request = Request::get("/slow").header("x-request-timeout-ms", "300");
//! let response = app.oneshot(request.body(Body::empty())?).await?;
//! assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
//! # Ok(()) }
//! ```
//!
//! # Deadlines in headers
//! `x-request-timeout-ms` and `x-envoy-expected-rq-timeout-ms` are milliseconds, `grpc-timeout` is as gRPC has it. The shortest wins. What can't be read is ignored, so
//! it makes nothing longer; neither does a caller's wish for more than `max_deadline`. The deadline is [ambient](crate::deadline): a database or a client under the
//! handler that knows [`deadline::current`](crate::deadline::current) ends by then, and [`DeadlineHeader`] sends what is left on to the next server.
//!
//! # Clients
//! [`HttpStatus`] says what a response means, `Retry-After` included; [`is_idempotent`] and [`ByMethod`] which requests may be sent twice; [`DeadlineHeader`]
//! tells the server how much time is left. With `hyper-util`'s client, or any other that is a tower service, everything is a layer:
//!
//! ```no_run
//! use http::{Request, Uri};
//! use http_body_util::Full;
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use steadfast::{Retry, Shield, classify::HttpStatus, error::{WrapLayer, Wrapped}, http::{ByMethod, DeadlineHeader}};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! type Body = Full<bytes::Bytes>;
//! let shield = Shield::builder(Wrapped(HttpStatus)).build()?;
//! let repeatable = Shield::builder(Wrapped(HttpStatus))
//!     .retry(Retry::builder().idempotent(true).build()?)
//!     .breaker(shield.breaker().expect("built with one"))
//!     .build()?;
//! let client = ServiceBuilder::new()
//!     .layer(ByMethod::new(repeatable, shield))
//!     .layer(DeadlineHeader::new())
//!     .layer(WrapLayer) // the client's error can't carry a refusal of ours
//!     .service(Client::builder(TokioExecutor::new()).build_http::<Body>());
//! let request = Request::get(Uri::from_static("http://127.0.0.1:8080/")).body(Body::default())?;
//! println!("{}", client.oneshot(request).await?.status());
//! # Ok(()) }
//! ```
//!
//! A request is cloned for the next attempt, so its body has to be `Clone` (`Full<Bytes>`, `String`). A stream can be read once only, is not `Clone`, and does not
//! compile under a [`Retry`](crate::Retry) or a [`Shield`](crate::Shield); send it through the breaker's and the limiter's own layers:
//!
//! ```compile_fail
//! use http::{Request, Response};
//! use steadfast::{Shield, classify::HttpStatus};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! /// Can be read once.
//! struct Stream;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = ServiceBuilder::new()
//!     .layer(Shield::builder(HttpStatus).build()?)
//!     .service_fn(async |_: Request<Stream>| std::io::Result::Ok(Response::new(())));
//! client.oneshot(Request::new(Stream)).await?;
//! # Ok(()) }
//! ```
//!
//! A client that is no tower service (`reqwest`) is called in a closure. Here `send` and `ClientError` stand for its own, which can't carry a refusal of ours:
//!
//! ```
//! use http::{Request, Response};
//! use steadfast::{Error, Retry, Shield, classify::HttpStatus, http::{DeadlineHeader, is_idempotent}};
//!
//! # #[derive(Debug, thiserror::Error)] #[error("it failed")] struct ClientError;
//! # async fn send(_: Request<String>) -> Result<Response<String>, ClientError> { Ok(Response::new("hello".into())) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shield = Shield::builder(HttpStatus).build()?;
//! let repeatable = Shield::builder(HttpStatus)
//!     .retry(Retry::builder().idempotent(true).build()?)
//!     .breaker(shield.breaker().expect("built with one"))
//!     .build()?;
//!
//! let request = Request::put("http://example.test/").body("text".to_owned())?;
//! let shield = if is_idempotent(request.method(), request.headers()) { &repeatable } else { &shield };
//! let answer = shield.run_wrapped(|| {
//!     let mut attempt = request.clone();
//!     DeadlineHeader::new().write(attempt.headers_mut());
//!     send(attempt)
//! });
//! match answer.await {
//!     Ok(response) => assert_eq!(response.body(), "hello"),
//!     Err(Error::Rejected(rejected)) => println!("we refused: {rejected}"),
//!     Err(Error::Inner(error)) => println!("it failed: {error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//! Around all of a service, or around the routes that share what they need. Not around routes that stay open (events, sockets, long downloads): their slots would be
//! taken for as long. A breaker around handlers is for those that stand for one dependency, a gateway's; where a handler's database has a breaker of its own,
//! another around the handler would also refuse the requests that need no database.
//!
//! # Defaults
//! | setting | value | why |
//! |---|---|---|
//! | `deadline` | 10 s | the longest that most callers wait |
//! | `max_deadline` | the `deadline` | a caller can only ask for less, unless you say for how much more |
//! | `limiter`, `breaker` | none | only you know how many requests you serve at a time, and whether the handlers fail together |
//! | `too_many_requests` | off: an overload is a 503 | 429 is for callers of whom one asks too much, 503 for a server that is full |
//! | a handler's hang | half of the `deadline`, unless the breaker has an `attempt_deadline` | one that ran for so long and was then cut off, by a deadline or by a caller that left, has failed, also after a wait in the queue |
//!
//! # What it reports
//! [`Event::Refused`](crate::Event::Refused) where a deadline strikes: `DEBUG call refused name=http rejected=deadline exceeded while the call was under way`. Limiter and breaker
//! report under their own names.
//!
//! # Its place in the stack
//! Outermost, but inside of whatever has to see refusals: tracing, metrics, CORS. What is refused is a response like any other, with the
//! [`Rejected`](crate::Rejected) among its extensions. Another `HttpLayer` further out, with a breaker, does not count it as a failure; handlers make such responses by
//! [`refusal_response`].
//!
//! # What a clone shares
//! Everything: limiter and breaker are handles.
//!
//! # Cancel safety
//! A server drops the future of a request whose caller went away. With it go the handler, its work in the database as far as that ends what is dropped, and its
//! slot. That counts for nothing with the breaker, unless the handler had run for the time of a hang.
//!
//! # Limits
//! - The deadline covers the time up to the response's head. A body is sent without one; a caller that reads slowly keeps the slot. Set your server's write timeout.
//! - The breaker judges the status. What goes wrong in the body is not seen.
//! - A handler is dropped at an `await`: one that computes without any is not stopped.
//! - Refusals do not look like gRPC's own; its clients take 503, 504 and 429 all for `UNAVAILABLE`.
//! - To [`HttpStatus`] a 503 says that nothing was done. A proxy that answers so where it lost its server in the middle of a request is wrong about that: where the work must not
//!   be done twice, judge its 503 by a [classifier](crate::Classify) of your own.

mod body;
mod classify;
mod client;
mod deadline_header;
mod method;
mod response;
mod retry_after;
mod service;
mod status;

use std::{fmt, time::Duration};

use http::StatusCode;

pub use self::{
    body::ResponseBody,
    classify::{HttpStatus, HttpStatusAnd},
    client::{ByMethod, ByMethodFuture, ByMethodService, DeadlineHeader, DeadlineHeaderService},
    method::is_idempotent,
    response::refusal_response,
    service::{HttpService, ResponseFuture},
};
use crate::{
    breaker::Breaker,
    error::ConfigError,
    event::{Name, Observer, Reporter},
    limit::ConcurrencyLimiter,
    owner::Owners,
    shield::Policy,
};

/// Deadline, breaker and limiter around a handler; see the [module](self).
///
/// It is a tower layer, for axum's `Router::layer` as for a plain service. Clones share everything.
///
/// ```
/// use std::convert::Infallible;
/// use http::{Request, Response, StatusCode};
/// use http_body_util::{Empty, BodyExt};
/// use steadfast::{Breaker, http::HttpLayer};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = Breaker::default();
/// breaker.force_open();
/// let service = ServiceBuilder::new()
///     .layer(HttpLayer::builder().breaker(&breaker).build()?)
///     .service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Empty::<&[u8]>::new())));
/// let response = service.oneshot(Request::new(())).await?;
/// assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
/// assert_eq!(response.headers()["retry-after"], "1");
/// assert!(response.into_body().collect().await?.to_bytes().starts_with(b"{"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HttpLayer {
    // Its deadline is the longest that a caller may ask for.
    policy: Owners<Policy>,
    deadline: Duration,
    overload: StatusCode,
}

impl HttpLayer {
    /// A layer with the defaults of the [module](self): a deadline, and nothing else.
    pub fn builder() -> Builder {
        Builder {
            deadline: Duration::from_secs(10),
            max_deadline: None,
            limiter: None,
            breaker: None,
            overload: StatusCode::SERVICE_UNAVAILABLE,
            reporter: Reporter::new("http"),
        }
    }
}

impl fmt::Debug for HttpLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpLayer")
            .field("name", &self.policy.reporter.name())
            .field("deadline", &self.deadline)
            .field("max_deadline", &self.policy.deadline)
            .field("limiter", &self.policy.limiter)
            .field("breaker", &self.policy.breaker)
            .finish_non_exhaustive()
    }
}

/// The settings of an [`HttpLayer`]; their defaults stand in the [module](self).
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Breaker, ConcurrencyLimiter, http::HttpLayer};
///
/// let layer = HttpLayer::builder()
///     .name("orders")
///     .deadline(Duration::from_secs(5))
///     .max_deadline(Duration::from_secs(30))
///     .limiter(&ConcurrencyLimiter::new(100)?)
///     .breaker(&Breaker::default())
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    deadline: Duration,
    max_deadline: Option<Duration>,
    limiter: Option<ConcurrencyLimiter>,
    breaker: Option<Breaker>,
    overload: StatusCode,
    reporter: Reporter,
}

impl Builder {
    /// Its name in events; limiter and breaker keep their own.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// How long a request may take whose caller says nothing.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }

    /// The longest time for which a caller may ask.
    pub fn max_deadline(mut self, time: Duration) -> Self {
        self.max_deadline = Some(time);
        self
    }

    /// How many requests are served at a time, and how many wait.
    ///
    /// A request is served until its response's body has ended.
    pub fn limiter(mut self, limiter: &ConcurrencyLimiter) -> Self {
        self.limiter = Some(limiter.clone());
        self
    }

    /// The breaker that judges the handler's responses.
    ///
    /// They are judged as [`HttpStatus`] has it: 500, 502, 503 and 504 are failures, 404 is not. Our own refusals do not count.
    pub fn breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Some(breaker.clone());
        self
    }

    /// Answers an overload by 429 in place of 503.
    ///
    /// For a limiter of which each caller has one, or where a balancer takes a 503 for a server that is down.
    pub fn too_many_requests(mut self) -> Self {
        self.overload = StatusCode::TOO_MANY_REQUESTS;
        self
    }

    /// Who hears of its deadline's refusals, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The layer.
    ///
    /// # Errors
    /// Where a deadline is out of range, or the longest is shorter than the usual one; the error names it, its value and the range.
    pub fn build(self) -> Result<HttpLayer, ConfigError> {
        const PART: &str = "http";
        const LEAST: Duration = Duration::from_millis(1);
        let deadline = self.deadline;
        ConfigError::check_time(PART, "deadline", deadline, LEAST)?;
        let max_deadline = self.max_deadline.unwrap_or(deadline);
        ConfigError::check_time(PART, "max_deadline", max_deadline, LEAST)?;
        if max_deadline < deadline {
            let allowed = format!("at least the deadline, {deadline:?}");
            return Err(ConfigError::new(
                PART,
                "max_deadline",
                max_deadline,
                allowed,
            ));
        }
        let knows = self.breaker.as_ref().map(Breaker::has_attempt_deadline);
        let policy = Policy {
            deadline: max_deadline,
            // The handler has all the time that the request has.
            attempt_deadline: max_deadline,
            hang_after: (knows == Some(false)).then_some(deadline / 2),
            retry: None,
            breaker: self.breaker,
            limiter: self.limiter,
            reporter: self.reporter,
        };
        Ok(HttpLayer {
            policy: Owners::new(policy),
            deadline,
            overload: self.overload,
        })
    }
}
