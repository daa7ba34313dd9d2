use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Breaker, Shared, Waiting};
use crate::{error::Refusal, gated::Gated, kind::Classify, owner::Owner};

/// Puts a [`Breaker`] around a service; see the [module](crate::breaker).
#[derive(Clone, Debug)]
pub struct BreakerLayer<C> {
    breaker: Breaker,
    classify: C,
}

impl<C> BreakerLayer<C> {
    pub(super) fn new(breaker: Breaker, classify: C) -> Self {
        Self { breaker, classify }
    }
}

impl<S, C: Clone> Layer<S> for BreakerLayer<C> {
    type Service = BreakerService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        BreakerService {
            inner,
            breaker: self.breaker.clone(),
            classify: self.classify.clone(),
        }
    }
}

/// The service that [`BreakerLayer`] makes. Always ready; holds nothing between calls.
#[derive(Clone, Debug)]
pub struct BreakerService<S, C> {
    inner: S,
    breaker: Breaker,
    classify: C,
}

impl<S, C, Req> Service<Req> for BreakerService<S, C>
where
    S: Service<Req> + Clone,
    S::Error: Refusal,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, Req>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let answer = Shared::ask(self.breaker.owned(), None);
        ResponseFuture {
            gated: Gated::new(answer, &mut self.inner, request),
            classify: self.classify.clone(),
        }
    }
}

pin_project! {
    /// The future of a [`BreakerService`].
    ///
    /// # Cancel safety
    /// Dropping it drops the inner call and then gives its probe slot back; it counts nothing, unless the call had run
    /// for the configured attempt deadline.
    pub struct ResponseFuture<S, C, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        gated: Gated<S, Req, Waiting<Owner<Shared>>>,
        classify: C,
    }
}

impl<S, C, Req> Future for ResponseFuture<S, C, Req>
where
    S: Service<Req>,
    S::Error: Refusal,
    C: Classify<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.gated.poll(cx, |pass, result| {
            pass.settle_result(this.classify, result);
        })
    }
}
