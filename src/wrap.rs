//! Giving a service an error type that can carry a refusal.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::error::Error;

/// Turns a service's error `E` into [`Error<E>`]; goes innermost.
///
/// With that the layers around it can refuse. Those that take a classifier take the one for `E` in [`Wrapped`](crate::error::Wrapped).
///
/// ```
/// use std::num::ParseIntError;
/// use steadfast::{Breaker, ConcurrencyLimiter, Error, Kind, by_error, error::{WrapLayer, Wrapped}};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let classify = by_error(|_: &ParseIntError| Kind::Invalid);
/// let service = ServiceBuilder::new()
///     .layer(Breaker::default().layer(Wrapped(classify)))
///     .layer(ConcurrencyLimiter::new(8)?.layer())
///     .layer(WrapLayer)
///     .service_fn(async |text: &str| text.parse::<i32>());
/// assert!(matches!(service.oneshot("x").await, Err(Error::Inner(_))));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct WrapLayer;

impl<S> Layer<S> for WrapLayer {
    type Service = WrapService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WrapService { inner }
    }
}

/// The service that [`WrapLayer`] makes.
#[derive(Clone, Copy, Debug)]
pub struct WrapService<S> {
    inner: S,
}

impl<S, Req> Service<Req> for WrapService<S>
where
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = WrapFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Inner)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        WrapFuture::new(self.inner.call(request))
    }
}

pin_project! {
    /// The future of a [`WrapService`].
    #[derive(Debug)]
    pub struct WrapFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F> WrapFuture<F> {
    pub(crate) fn new(future: F) -> Self {
        Self { future }
    }
}

impl<F, T, E> Future for WrapFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map_err(Error::Inner)
    }
}
