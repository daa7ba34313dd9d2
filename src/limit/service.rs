use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ConcurrencyLimiter, Shared, Waiting};
use crate::{error::Refusal, gated::Gated, owner::Owner};

/// Puts a [`ConcurrencyLimiter`] around a service; see the [module](crate::limit).
#[derive(Clone, Debug)]
pub struct LimitLayer {
    limiter: ConcurrencyLimiter,
}

impl LimitLayer {
    pub(super) fn new(limiter: ConcurrencyLimiter) -> Self {
        Self { limiter }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = LimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitService {
            inner,
            limiter: self.limiter.clone(),
        }
    }
}

/// The service that [`LimitLayer`] makes. Always ready; holds nothing between calls.
#[derive(Clone, Debug)]
pub struct LimitService<S> {
    inner: S,
    limiter: ConcurrencyLimiter,
}

impl<S, Req> Service<Req> for LimitService<S>
where
    S: Service<Req> + Clone,
    S::Error: Refusal,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let answer = Shared::ask(self.limiter.owned());
        ResponseFuture {
            gated: Gated::new(answer, &mut self.inner, request),
        }
    }
}

pin_project! {
    /// The future of a [`LimitService`].
    ///
    /// # Cancel safety
    /// Dropping it drops the inner call and then frees its slot, or its place in the queue.
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        gated: Gated<S, Req, Waiting<Owner<Shared>>>,
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req>,
    S::Error: Refusal,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().gated.poll(cx, |_, _| {})
    }
}
