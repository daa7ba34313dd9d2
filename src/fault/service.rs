//! The tower plumbing: a fault, then or around the call of the inner service.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Fault, Faults};
use crate::{
    kind::Kind,
    ready::ReadyCall,
    time::{self, Timer},
};

/// Puts faults in front of, around and behind a service.
///
/// [`Faults::layer`] makes it. All services that it makes share its [`Faults`]. See the [module](crate::fault).
#[derive(Debug)]
pub struct FaultLayer<E> {
    pub(super) faults: Faults<E>,
}

impl<E> Clone for FaultLayer<E> {
    fn clone(&self) -> Self {
        Self {
            faults: self.faults.clone(),
        }
    }
}

impl<S, E> Layer<S> for FaultLayer<E> {
    type Service = FaultService<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        FaultService {
            inner,
            faults: self.faults.clone(),
        }
    }
}

/// The service that [`FaultLayer`] makes.
///
/// It is always ready. The fault of a call is chosen in `call`, so the order of calls decides, not the order in which
/// their futures are polled. A clone shares the [`Faults`]. See the [module](crate::fault).
#[derive(Debug)]
pub struct FaultService<S, E> {
    inner: S,
    faults: Faults<E>,
}

impl<S: Clone, E> Clone for FaultService<S, E> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            faults: self.faults.clone(),
        }
    }
}

impl<S, Req> Service<Req> for FaultService<S, S::Error>
where
    S: Service<Req> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = match self.faults.next() {
            Fault::Pass => self.begin(request, Then::Answer),
            Fault::Latency(delay) => {
                let clone = self.inner.clone();
                let call = ReadyCall::later(mem::replace(&mut self.inner, clone), request);
                State::Waiting {
                    wait: Wait::until(delay),
                    held: Some(call),
                }
            }
            Fault::LatencyAfter(delay) => self.begin(request, Then::Wait { delay }),
            Fault::Fail(kind) => State::Answering {
                answer: Answer::Failure { kind },
            },
            Fault::FailAfter(kind) => self.begin(request, Then::Fail { kind }),
            Fault::Drop { after, kind } => {
                let wait = Wait::until(after);
                self.begin(request, Then::Drop { wait, kind })
            }
            Fault::Hang => State::Answering {
                answer: Answer::Never,
            },
            Fault::HangAfter => self.begin(request, Then::Hang),
        };
        ResponseFuture {
            state,
            faults: self.faults.clone(),
        }
    }
}

impl<S, E> FaultService<S, E> {
    fn begin<Req>(&mut self, request: Req, then: Then) -> CallState<S, Req>
    where
        S: Service<Req> + Clone,
    {
        State::Calling {
            call: ReadyCall::begin(&mut self.inner, request),
            then,
        }
    }
}

pin_project! {
    /// The future of a [`FaultService`].
    ///
    /// # Cancel safety
    /// Dropped, it drops the inner call if that was begun and is not at its end. The fault stays used and counted.
    ///
    /// # Panics
    /// When a fault with a time is polled outside of a tokio runtime with time enabled.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: CallState<S, Req>,
        faults: Faults<S::Error>,
    }
}

type CallState<S, Req> =
    State<ReadyCall<S, Req>, <S as Service<Req>>::Response, <S as Service<Req>>::Error>;

pin_project! {
    #[project = StateProj]
    enum State<C, T, E> {
        // Waiting -> Calling: the latency in front of the call is over.
        Waiting { wait: Wait, held: Option<C> },
        // Calling -> Answering: the inner call is at its end or is cut off, and what comes `then` is not its answer.
        Calling { #[pin] call: C, then: Then },
        Answering { answer: Answer<T, E> },
    }
}

/// What follows the inner call.
enum Then {
    Answer,
    Wait { delay: Duration },
    Fail { kind: Kind },
    Hang,
    Drop { wait: Wait, kind: Kind },
}

/// What the caller gets in the end.
enum Answer<T, E> {
    /// The service's own answer, held back.
    Later {
        wait: Wait,
        result: Option<Result<T, E>>,
    },
    Failure {
        kind: Kind,
    },
    Never,
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Waiting { wait, held } => {
                    ready!(wait.poll(cx));
                    State::Calling {
                        call: held.take().expect("held until the wait is over"),
                        then: Then::Answer,
                    }
                }
                StateProj::Calling { call, then } => match (call.poll_or_refuse(None, cx), then) {
                    (Poll::Pending, Then::Drop { wait, kind }) => {
                        ready!(wait.poll(cx));
                        State::Answering {
                            answer: Answer::Failure { kind: *kind },
                        }
                    }
                    (Poll::Pending, _) => return Poll::Pending,
                    (Poll::Ready(result), Then::Answer | Then::Drop { .. }) => {
                        return Poll::Ready(result);
                    }
                    (Poll::Ready(result), Then::Wait { delay }) => State::Answering {
                        answer: Answer::Later {
                            wait: Wait::until(*delay),
                            result: Some(result),
                        },
                    },
                    (Poll::Ready(_), Then::Fail { kind }) => State::Answering {
                        answer: Answer::Failure { kind: *kind },
                    },
                    (Poll::Ready(_), Then::Hang) => State::Answering {
                        answer: Answer::Never,
                    },
                },
                StateProj::Answering { answer } => {
                    return match answer {
                        Answer::Later { wait, result } => {
                            ready!(wait.poll(cx));
                            Poll::Ready(result.take().expect("polled again after its result"))
                        }
                        Answer::Failure { kind } => Poll::Ready(Err(this.faults.failure(*kind))),
                        // Nothing wakes the task: whoever waits has to give up by itself.
                        Answer::Never => Poll::Pending,
                    };
                }
            };
            state.set(next);
        }
    }
}

impl<S, Req> fmt::Debug for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Ready once its time has come.
struct Wait {
    at: Instant,
    timer: Timer,
}

impl Wait {
    fn until(delay: Duration) -> Self {
        Self {
            at: time::now() + delay,
            timer: Timer::new(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The timer is told in whole milliseconds; no wait at all has to stay none.
        if self.at <= time::now() {
            return Poll::Ready(());
        }
        self.timer.poll(self.at.into(), cx)
    }
}
