use std::{
    future::Future,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Pause, Retry};
use crate::{
    error::{Refusal, judge},
    kind::Classify,
    owner::{Owner, Owners},
    ready::ReadyCall,
    sync::{Mutex, lock},
    time::Timer,
};

/// Puts a [`Retry`] around a service; see the [module](crate::retry).
#[derive(Clone, Debug)]
pub struct RetryLayer<C> {
    retry: Retry,
    classify: C,
}

impl<C> RetryLayer<C> {
    pub(super) fn new(retry: Retry, classify: C) -> Self {
        Self { retry, classify }
    }
}

impl<S, C: Clone> Layer<S> for RetryLayer<C> {
    type Service = RetryService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService {
            again: Owners::new(Again {
                service: OnceLock::new(),
                retry: self.retry.clone(),
            }),
            inner,
            classify: self.classify.clone(),
        }
    }
}

/// The service that [`RetryLayer`] makes.
///
/// Always ready; holds nothing between calls. It is a service only where both the request and the inner service are `Clone`, as each may be
/// needed for another attempt.
///
/// The first attempt calls the inner service itself; others call clones of it as it was before the first call. What clones of a service are to know of
/// each other they have to share, as ever with tower.
#[derive(Clone, Debug)]
pub struct RetryService<S, C> {
    inner: S,
    again: Owners<Again<S>>,
    classify: C,
}

/// What another attempt takes. It is shared, so that the first one need not clone the service.
#[derive(Debug)]
struct Again<S> {
    // Nobody calls it: each attempt but the first gets a clone of it, as it was before the first call. Locked only to be cloned, which is
    // code of the user's: that can't reach this lock, as nothing but the future of a retry takes it.
    service: OnceLock<Mutex<S>>,
    retry: Retry,
}

impl<S, C, Req> Service<Req> for RetryService<S, C>
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
        let may_repeat = self.again.retry.most_attempts() > 1;
        if may_repeat {
            let service = &self.again.service;
            service.get_or_init(|| Mutex::new(self.inner.clone()));
        }
        ResponseFuture {
            request: may_repeat.then(|| request.clone()),
            state: State::Attempt {
                call: ReadyCall::begin(&mut self.inner, request),
            },
            attempt: 1,
            previous: Duration::ZERO,
            last: None,
            again: self.again.owner(),
            classify: self.classify.clone(),
        }
    }
}

pin_project! {
    /// The future of a [`RetryService`].
    ///
    /// # Cancel safety
    /// Dropping it ends the attempt under way, or the sleep before the next.
    pub struct ResponseFuture<S, C, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
        // For the next attempt, while there may be one.
        request: Option<Req>,
        attempt: u32,
        previous: Duration,
        // The error of the attempt before: it stands if the next one is refused by us.
        last: Option<S::Error>,
        again: Owner<Again<S>>,
        classify: C,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // Attempt -> Pause: it failed, and may be repeated.
        Attempt { #[pin] call: ReadyCall<S, Req> },
        // Pause -> Attempt: the delay is over.
        Pause { pause: Pause, timer: Timer },
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
        let mut this = self.project();
        let retry = &this.again.retry;
        loop {
            match this.state.as_mut().project() {
                StateProj::Attempt { call } => {
                    let result = ready!(call.poll(cx));
                    let verdict = judge(this.classify, &result);
                    match retry.next(*this.attempt, verdict, *this.previous) {
                        Some(pause) => {
                            // An `Ok` may hold a slot that the next attempt needs.
                            *this.last = result.err();
                            *this.previous = pause.delay;
                            let timer = Timer::new();
                            this.state.set(State::Pause { pause, timer });
                        }
                        None => return Poll::Ready(unless_refused(result, this.last.take())),
                    }
                }
                StateProj::Pause { pause, timer } => {
                    ready!(timer.poll(pause.until.into(), cx));
                    *this.attempt += 1;
                    let request = if *this.attempt < retry.most_attempts() {
                        this.request.clone()
                    } else {
                        this.request.take()
                    };
                    let request = request.expect("kept while there may be another attempt");
                    let service = this.again.service.get().expect("set by the first call");
                    let service = lock(service).clone();
                    let call = ReadyCall::later(service, request);
                    this.state.set(State::Attempt { call });
                }
            }
        }
    }
}

/// The result of the last attempt; where we refused that, the error of the one before.
pub(crate) fn unless_refused<T, E: Refusal>(
    result: Result<T, E>,
    before: Option<E>,
) -> Result<T, E> {
    let refused = matches!(&result, Err(error) if error.rejected().is_some_and(|r| !r.sent()));
    match before {
        Some(before) if refused => Err(before),
        _ => result,
    }
}
