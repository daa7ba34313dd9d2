//! A call that needs somebody's leave first: the way in which breaker and limiter wrap a service.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{ambient, error::Rejected, ready::ReadyCall};

/// The leave to make one call. Dropped, it is given back.
pub(crate) trait Leave {
    /// Runs code of the call.
    fn enter<R>(&mut self, f: impl FnOnce() -> R) -> R;

    /// The call has to wait.
    fn waits(&mut self);
}

/// A place in the line of those who wait for leave. Dropped, it is given up.
pub(crate) trait Wait {
    type Leave: Leave;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::Leave, Rejected>>;
}

/// The answer to a call that asks for leave.
pub(crate) enum Answer<W: Wait> {
    Granted(W::Leave),
    Wait(W),
    Refused(Rejected),
}

pin_project! {
    /// One call of `S`, made when leave is given.
    pub(crate) struct Gated<S, Req, W>
    where
        S: Service<Req>,
        W: Wait,
    {
        #[pin]
        state: State<S, Req, W, W::Leave>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, W, L>
    where
        S: Service<Req>,
    {
        Refused { rejected: Option<Rejected> },
        // Waiting -> Calling: leave is given.
        Waiting { wait: W, held: Option<(S, Req)> },
        // `call` stands first: it is dropped before the leave is given back.
        Calling { #[pin] call: ReadyCall<S, Req>, leave: Option<L> },
        Over,
    }
}

impl<S, Req, W> Gated<S, Req, W>
where
    S: Service<Req> + Clone,
    W: Wait,
{
    /// Calls `service` at once if leave is given; else keeps a clone of it for later.
    #[inline(always)]
    pub(crate) fn new(answer: Answer<W>, service: &mut S, request: Req) -> Self {
        match answer {
            Answer::Granted(mut leave) => Self {
                state: State::Calling {
                    call: leave.enter(|| ReadyCall::begin(service, request)),
                    leave: Some(leave),
                },
            },
            Answer::Wait(wait) => Self {
                state: State::Waiting {
                    wait,
                    held: Some((service.clone(), request)),
                },
            },
            Answer::Refused(rejected) => Self {
                state: State::Refused {
                    rejected: Some(rejected),
                },
            },
        }
    }
}

impl<S, Req, W> Gated<S, Req, W>
where
    S: Service<Req>,
    S::Error: From<Rejected>,
    W: Wait,
{
    /// The result, which `settle` is shown before the leave that it was made by is given back; a refusal is not.
    #[inline]
    pub(crate) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        settle: impl FnOnce(&mut W::Leave, &Result<S::Response, S::Error>),
    ) -> Poll<Result<S::Response, S::Error>> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Calling { mut call, leave } => {
                    let entered = leave.as_mut().expect("polled again after its result");
                    ambient::polls();
                    let Poll::Ready(result) = entered.enter(|| call.as_mut().poll(cx)) else {
                        // A line of ours further in is not the dependency: waiting there is not timed.
                        if !ambient::is_in_line() {
                            entered.waits();
                        }
                        return Poll::Pending;
                    };
                    call.end();
                    // In its place: moving it would cost more than all the rest.
                    settle(entered, &result);
                    *leave = None;
                    return Poll::Ready(result);
                }
                StateProj::Refused { rejected } => {
                    let rejected = rejected.take().expect("polled again after its result");
                    return Poll::Ready(Err(rejected.into()));
                }
                StateProj::Waiting { wait, held } => match ready!(in_line(wait, cx)) {
                    Ok(leave) => {
                        let (service, request) = held.take().expect("held until it is called");
                        state.set(State::Calling {
                            call: ReadyCall::later(service, request),
                            leave: Some(leave),
                        });
                    }
                    Err(rejected) => {
                        state.set(State::Over);
                        return Poll::Ready(Err(rejected.into()));
                    }
                },
                StateProj::Over => panic!("polled again after its result"),
            }
        }
    }
}

/// Waits in line, and lets the layers further out know.
pub(crate) fn in_line<W: Wait>(
    wait: &mut W,
    cx: &mut Context<'_>,
) -> Poll<Result<W::Leave, Rejected>> {
    let polled = wait.poll(cx);
    ambient::set_in_line(polled.is_pending());
    polled
}
