//! Calling a service that may not be ready.
//!
//! Invariants:
//! 1. The instance that was readied is the instance that is called.
//! 2. A request that is still held here when the deadline comes is refused as not sent.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    ambient::{self, Bound},
    error::Rejected,
    time::Timer,
};

pin_project! {
    /// One call of `S`, readied first.
    pub(crate) struct ReadyCall<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, F>
    where
        S: Service<Req>,
    {
        // Readying -> Calling: the service is ready. Readying -> Over: the deadline came first.
        Readying { held: Option<(S, Req)>, timer: Timer },
        Calling { #[pin] future: F },
        // The service failed to become ready when `begin` asked.
        Failed { error: Option<S::Error> },
        Over,
    }
}

impl<S, Req> ReadyCall<S, Req>
where
    S: Service<Req>,
{
    /// Calls `service` at once if it is ready; else moves it into the future and leaves a clone in its place.
    #[inline(always)]
    pub(crate) fn begin(service: &mut S, request: Req) -> Self
    where
        S: Clone,
    {
        // Nobody is there to be woken yet: a service that is not ready is asked again when the future is polled.
        let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Ok(())) = ready {
            return Self {
                state: State::Calling {
                    future: service.call(request),
                },
            };
        }
        Self::begin_slowly(ready, service, request)
    }

    /// The same where it failed to become ready, or is not ready yet.
    #[cold]
    fn begin_slowly(ready: Poll<Result<(), S::Error>>, service: &mut S, request: Req) -> Self
    where
        S: Clone,
    {
        if let Poll::Ready(Err(error)) = ready {
            return Self {
                state: State::Failed { error: Some(error) },
            };
        }
        let clone = service.clone();
        Self::later(mem::replace(service, clone), request)
    }

    /// The result is there: ends what made it.
    #[inline]
    pub(crate) fn end(self: Pin<&mut Self>) {
        self.project().state.set(State::Over);
    }

    /// Touches `service` only when the future is polled.
    pub(crate) fn later(service: S, request: Req) -> Self {
        let held = Some((service, request));
        Self {
            state: State::Readying {
                held,
                timer: Timer::new(),
            },
        }
    }
}

impl<S, Req> Future for ReadyCall<S, Req>
where
    S: Service<Req>,
    S::Error: From<Rejected>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_or_refuse(Some(S::Error::from), cx)
    }
}

impl<S, Req> ReadyCall<S, Req>
where
    S: Service<Req>,
{
    /// Calls once the service is ready; where the deadline comes first, the result is what `refuse` makes of that.
    #[inline]
    pub(crate) fn poll_or_refuse(
        self: Pin<&mut Self>,
        refuse: Option<fn(Rejected) -> S::Error>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Response, S::Error>> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Calling { future } => return future.poll(cx),
                StateProj::Failed { error } => {
                    let error = error.take().expect("polled again after its result");
                    return Poll::Ready(Err(error));
                }
                StateProj::Readying { held, timer } => {
                    let (service, _) = held.as_mut().expect("held until the service is called");
                    let ready = service.poll_ready(cx)?.is_ready();
                    if let Some(refuse) = refuse
                        && is_over(ready, timer, cx)
                    {
                        state.set(State::Over);
                        let refused = Rejected::DeadlineExceeded { sent: false };
                        return Poll::Ready(Err(refuse(refused)));
                    }
                    if !ready {
                        return Poll::Pending;
                    }
                    let (mut service, request) = held.take().expect("held until it is called");
                    let future = service.call(request);
                    state.set(State::Calling { future });
                }
                StateProj::Over => panic!("polled again after its result"),
            }
        }
    }
}

/// Whether the deadline has come for a request that is still held; where it is waited for, `timer` wakes.
fn is_over(ready: bool, timer: &mut Timer, cx: &mut Context<'_>) -> bool {
    if ready {
        // Whoever is woken late finds the service ready, but the deadline over.
        Bound::ambient().is_over()
    } else {
        ambient::current().is_some_and(|at| timer.poll(at.into(), cx).is_ready())
    }
}
