use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Policy, Shield,
    run::{Attempts, Engine},
};
use crate::{
    error::{Refusal, Rejected},
    kind::Classify,
    owner::Owner,
    ready::ReadyCall,
};

impl<S, C: Clone> Layer<S> for Shield<C> {
    type Service = ShieldService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ShieldService {
            inner,
            shield: self.clone(),
        }
    }
}

/// The service that a [`Shield`] makes as a layer.
///
/// Always ready; holds nothing between calls. It is a service only where both the request and the inner service are `Clone`, as each may be
/// needed for another attempt.
///
/// ```
/// use std::io;
/// use steadfast::{Shield, classify};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let service = ServiceBuilder::new()
///     .layer(Shield::builder(classify::Io).build()?)
///     .service_fn(async |n: u32| io::Result::Ok(n + 1));
/// assert_eq!(service.oneshot(1).await?, 2);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ShieldService<S, C> {
    inner: S,
    shield: Shield<C>,
}

impl<S, C, Req> Service<Req> for ShieldService<S, C>
where
    S: Service<Req> + Clone,
    S::Error: Refusal,
    C: Classify<S::Response, S::Error> + Clone,
    Req: Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, Req>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let clone = self.inner.clone();
        let service = mem::replace(&mut self.inner, clone);
        let attempts = Again {
            held: Some((service, request)),
        };
        let Shield { policy, classify } = &self.shield;
        ResponseFuture {
            engine: Engine::new(policy.owner(), policy.deadline, classify.clone(), attempts),
        }
    }
}

pin_project! {
    /// The future of a [`ShieldService`]. It asks for leave when it is first polled.
    ///
    /// # Cancel safety
    /// See the [module](super).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, C, Req>
    where
        S: Service<Req>,
        S::Error: From<Rejected>,
    {
        #[pin]
        engine: Engine<Owner<Policy>, C, Again<S, Req>, ReadyCall<S, Req>>,
    }
}

impl<S, C, Req> Future for ResponseFuture<S, C, Req>
where
    S: Service<Req> + Clone,
    S::Error: Refusal,
    C: Classify<S::Response, S::Error>,
    Req: Clone,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().engine.poll(cx)
    }
}

/// Calls a service once for each attempt.
struct Again<S, Req> {
    // Kept while there may be another attempt.
    held: Option<(S, Req)>,
}

impl<S, Req> Attempts for Again<S, Req>
where
    S: Service<Req> + Clone,
    S::Error: From<Rejected>,
    Req: Clone,
{
    type Future = ReadyCall<S, Req>;

    fn next(&mut self, last: bool) -> Self::Future {
        const KEPT: &str = "kept while there may be another attempt";
        if last {
            let (service, request) = self.held.take().expect(KEPT);
            ReadyCall::later(service, request)
        } else {
            let (service, request) = self.held.as_mut().expect(KEPT);
            ReadyCall::begin(service, request.clone())
        }
    }
}
