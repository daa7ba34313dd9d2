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
    ambient::{self, Bound},
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

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let outer = Bound::ambient();
        let mut bound = outer.within(self.deadline.within);
        if outer.is_over() {
            return ResponseFuture {
                call: None,
                begun: Begun::TooLate,
                bound,
                timer: Timer::new(),
                reporter: self.deadline.reporter.clone(),
            };
        }
        ResponseFuture {
            call: Some(bound.enter(|| ReadyCall::begin(&mut self.inner, request))),
            begun: Begun::InTime,
            bound,
            timer: Timer::new(),
            reporter: self.deadline.reporter.clone(),
        }
    }
}

/// Whether the deadline was over before the call.
///
/// As wide as its neighbours: a byte that was written alone would hold up the move of the words around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Begun {
    InTime,
    TooLate,
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
        // Until it is over, in whatever way.
        #[pin]
        call: Option<ReadyCall<S, Req>>,
        begun: Begun,
        bound: Bound,
        timer: Timer,
        reporter: Reporter,
    }

    impl<S, Req> PinnedDrop for ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[inline]
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.call.is_some() {
                this.bound.enter(|| this.call.set(None));
            }
        }
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
        let mut this = self.project();
        let sent = *this.begun == Begun::InTime;
        if sent {
            ambient::polls();
            // Inner first: a finished call wins over an expired deadline.
            let polled = this.bound.enter(|| {
                let call = this.call.as_mut().as_pin_mut();
                let polled = call.expect("polled again after its result").poll(cx);
                if polled.is_ready() {
                    this.call.set(None);
                }
                polled
            });
            if polled.is_ready() {
                return polled;
            }
            ready!(this.timer.poll(this.bound.resolve_waiting(), cx));
            this.bound.enter(|| this.call.set(None));
        }
        let rejected = this.reporter.refused(Rejected::DeadlineExceeded { sent });
        Poll::Ready(Err(rejected.into()))
    }
}
