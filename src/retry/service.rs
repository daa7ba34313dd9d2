use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
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
    ready::ReadyCall,
    time::Timer,
};

/// Puts a [`Retry`] around a service; see the [module](crate::retry).
#[derive(Clone, Debug)]
pub struct RetryLayer<C> {
    retry: Arc<Retry>,
    classify: C,
}

impl<C> RetryLayer<C> {
    pub(super) fn new(retry: Retry, classify: C) -> Self {
        let retry = Arc::new(retry);
        Self { retry, classify }
    }
}

impl<S, C: Clone> Layer<S> for RetryLayer<C> {
    type Service = RetryService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService {
            inner,
            retry: self.retry.clone(),
            classify: self.classify.clone(),
        }
    }
}

/// The service that [`RetryLayer`] makes.
///
/// Always ready; holds nothing between calls. It is a service only where both the request and the inner service are `Clone`, as each may be
/// needed for another attempt.
#[derive(Clone, Debug)]
pub struct RetryService<S, C> {
    inner: S,
    retry: Arc<Retry>,
    classify: C,
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
        let again = (self.retry.most_attempts() > 1).then(|| request.clone());
        ResponseFuture {
            again: again.map(|request| (self.inner.clone(), request)),
            state: State::Attempt {
                call: ReadyCall::begin(&mut self.inner, request),
            },
            attempt: 1,
            previous: Duration::ZERO,
            last: None,
            retry: self.retry.clone(),
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
        again: Option<(S, Req)>,
        attempt: u32,
        previous: Duration,
        // The error of the attempt before: it stands if the next one is refused by us.
        last: Option<S::Error>,
        retry: Arc<Retry>,
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
        loop {
            match this.state.as_mut().project() {
                StateProj::Attempt { call } => {
                    let result = ready!(call.poll(cx));
                    let verdict = judge(this.classify, &result);
                    match this.retry.next(*this.attempt, verdict, *this.previous) {
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
                    let (service, request) = if *this.attempt < this.retry.most_attempts() {
                        this.again.clone()
                    } else {
                        this.again.take()
                    }
                    .expect("kept while there may be another attempt");
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
