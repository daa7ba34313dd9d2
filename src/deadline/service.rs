use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::Deadline;
use crate::{
    ambient::Bound,
    error::{Refusal, Rejected},
    event::Reporter,
    ready::ReadyCall,
    time::Timer,
};

/// Puts a [`Deadline`] around a service; see the [module](crate::deadline).
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    deadline: Deadline,
}

impl DeadlineLayer {
    pub(super) fn new(deadline: Deadline) -> Self {
        Self { deadline }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService {
            inner,
            deadline: self.deadline.clone(),
        }
    }
}

/// The service that [`DeadlineLayer`] makes. Always ready; holds nothing between calls.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
    deadline: Deadline,
}

impl<S, Req> Service<Req> for DeadlineService<S>
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

    fn call(&mut self, request: Req) -> Self::Future {
        let outer = Bound::ambient();
        let mut bound = outer.within(self.deadline.within);
        let call = if outer.is_over() {
            None
        } else {
            Some(bound.enter(|| ReadyCall::begin(&mut self.inner, request)))
        };
        ResponseFuture {
            call,
            bound,
            timer: Timer::new(),
            reporter: self.deadline.reporter.clone(),
        }
    }
}

pin_project! {
    /// The future of a [`DeadlineService`].
    ///
    /// # Cancel safety
    /// Dropping it drops the inner call, with the deadline still around it.
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        // `None`: the deadline was over before the call.
        #[pin]
        call: Option<ReadyCall<S, Req>>,
        bound: Bound,
        timer: Timer,
        reporter: Reporter,
    }

    impl<S, Req> PinnedDrop for ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            this.bound.enter(|| this.call.set(None));
        }
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req>,
    S::Error: Refusal,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let sent = match this.call.as_mut().as_pin_mut() {
            None => false,
            Some(call) => {
                // Inner first: a finished call wins over an expired deadline.
                if let Poll::Ready(result) = this.bound.enter(|| call.poll(cx)) {
                    return Poll::Ready(result);
                }
                ready!(this.timer.poll(this.bound.resolve_now(), cx));
                this.bound.enter(|| this.call.set(None));
                true
            }
        };
        let rejected = this.reporter.refused(Rejected::DeadlineExceeded { sent });
        Poll::Ready(Err(rejected.into()))
    }
}
