use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{deadline_header::Form, is_idempotent};
use crate::{ambient, ready::ReadyCall, time};

/// Tells the server how much time is left, by a header of each request.
///
/// It goes innermost, where the deadline is that of the attempt. Where no deadline surrounds a call, nothing is written; where the header already says
/// less, it stays. What is left is rounded down. It is a tower layer; [`write`](Self::write) serves other clients.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use http::{Request, Response};
/// use steadfast::{Deadline, Error, error::WrapLayer, http::DeadlineHeader};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ServiceBuilder::new()
///     .layer(Deadline::new(Duration::from_secs(2))?.layer())
///     .layer(DeadlineHeader::new())
///     .layer(WrapLayer)
///     .service_fn(async |request: Request<()>| {
///         let told = request.headers()["x-request-timeout-ms"].clone();
///         Ok::<_, Infallible>(Response::new(told))
///     });
/// let response = client.oneshot(Request::new(())).await?;
/// assert_eq!(response.body(), "2000");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineHeader {
    form: Form,
}

impl DeadlineHeader {
    /// In milliseconds, as `x-request-timeout-ms`.
    pub fn new() -> Self {
        Self::default()
    }

    /// As gRPC has it: `grpc-timeout`.
    pub fn grpc() -> Self {
        Self { form: Form::Grpc }
    }

    /// Writes how much time the surrounding [deadline](crate::deadline) leaves.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use steadfast::http::DeadlineHeader;
    ///
    /// let mut headers = HeaderMap::new();
    /// DeadlineHeader::new().write(&mut headers);
    /// assert!(headers.is_empty()); // no deadline is around this
    /// ```
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(at) = ambient::current() {
            let left = at.saturating_duration_since(time::now());
            self.form.write(headers, left);
        }
    }
}

impl<S> Layer<S> for DeadlineHeader {
    type Service = DeadlineHeaderService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineHeaderService {
            inner,
            header: *self,
        }
    }
}

/// The service that [`DeadlineHeader`] makes as a layer. Ready when the inner one is.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineHeaderService<S> {
    inner: S,
    header: DeadlineHeader,
}

impl<S, B> Service<Request<B>> for DeadlineHeaderService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        self.header.write(request.headers_mut());
        self.inner.call(request)
    }
}

/// One layer for requests that may be sent twice, another for all others.
///
/// [`is_idempotent`] tells them apart. So reads are repeated after an answer that never came, and orders are not. Both layers are usually over one
/// [`Breaker`](crate::Breaker), one [`ConcurrencyLimiter`](crate::ConcurrencyLimiter) and one [`Budget`](crate::retry::Budget).
///
/// ```
/// use http::{Request, Response};
/// use steadfast::{Breaker, Retry, Shield, classify::HttpStatus, http::ByMethod};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = Breaker::default();
/// let shield = || Shield::builder(HttpStatus).breaker(&breaker);
/// let repeatable = shield().retry(Retry::builder().idempotent(true).build()?).build()?;
/// let client = ServiceBuilder::new()
///     .layer(ByMethod::new(repeatable, shield().build()?))
///     .service_fn(async |_: Request<String>| std::io::Result::Ok(Response::new(())));
/// client.oneshot(Request::put("http://example.test/").body("text".to_owned())?).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ByMethod<I, O> {
    idempotent: I,
    other: O,
}

impl<I, O> ByMethod<I, O> {
    /// `idempotent` for those that may be sent twice, `other` for the rest.
    pub fn new(idempotent: I, other: O) -> Self {
        Self { idempotent, other }
    }
}

impl<S, I, O> Layer<S> for ByMethod<I, O>
where
    S: Clone,
    I: Layer<S>,
    O: Layer<S>,
{
    type Service = ByMethodService<I::Service, O::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        ByMethodService {
            idempotent: self.idempotent.layer(inner.clone()),
            other: self.other.layer(inner),
        }
    }
}

/// The service that [`ByMethod`] makes. Always ready; holds nothing between calls.
#[derive(Clone, Copy, Debug)]
pub struct ByMethodService<I, O> {
    idempotent: I,
    other: O,
}

impl<I, O, B> Service<Request<B>> for ByMethodService<I, O>
where
    I: Service<Request<B>> + Clone,
    O: Service<Request<B>, Response = I::Response, Error = I::Error> + Clone,
{
    type Response = I::Response;
    type Error = I::Error;
    type Future = ByMethodFuture<I, O, Request<B>>;

    /// Which of its services will be called is not known yet: to ready both would reserve a place in one for nothing.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = if is_idempotent(request.method(), request.headers()) {
            let call = ReadyCall::begin(&mut self.idempotent, request);
            State::Idempotent { call }
        } else {
            let call = ReadyCall::begin(&mut self.other, request);
            State::Other { call }
        };
        ByMethodFuture { state }
    }
}

pin_project! {
    /// The future of a [`ByMethodService`].
    ///
    /// # Cancel safety
    /// That of the layer that the request was sent through.
    #[must_use = "futures do nothing unless polled"]
    pub struct ByMethodFuture<I, O, Req>
    where
        I: Service<Req>,
        O: Service<Req>,
    {
        #[pin]
        state: State<I, O, Req>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<I, O, Req>
    where
        I: Service<Req>,
        O: Service<Req>,
    {
        Idempotent { #[pin] call: ReadyCall<I, Req> },
        Other { #[pin] call: ReadyCall<O, Req> },
    }
}

impl<I, O, Req> Future for ByMethodFuture<I, O, Req>
where
    I: Service<Req>,
    O: Service<Req, Response = I::Response, Error = I::Error>,
{
    type Output = Result<I::Response, I::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Idempotent { call } => call.poll_or_refuse(None, cx),
            StateProj::Other { call } => call.poll_or_refuse(None, cx),
        }
    }
}
