use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{HttpLayer, ResponseBody, classify, deadline_header, response};
use crate::{
    error::{Error, WrapLayer, WrapService},
    kind::{Classify, Kind, Verdict},
    limit::{self, Hold},
    owner::Owner,
    ready::ReadyCall,
    shield::{Attempts, Engine, Policy},
};

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpService {
            inner: WrapLayer.layer(inner),
            layer: self.clone(),
        }
    }
}

/// The service that [`HttpLayer`] makes. Always ready; holds nothing between calls.
#[derive(Clone, Debug)]
pub struct HttpService<S> {
    inner: WrapService<S>,
    layer: HttpLayer,
}

impl<S, A, B> Service<Request<A>> for HttpService<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    B: Body,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, Request<A>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let clone = self.inner.clone();
        let service = mem::replace(&mut self.inner, clone);
        let HttpLayer {
            policy,
            deadline,
            overload,
        } = &self.layer;
        let told = deadline_header::read(request.headers(), policy.deadline);
        let once = Once {
            holds: policy.limiter.is_some(),
            held: Some((service, request)),
        };
        ResponseFuture {
            engine: Engine::new(policy.owner(), told.unwrap_or(*deadline), Judge, once),
            overload: *overload,
        }
    }
}

pin_project! {
    /// The future of an [`HttpService`]. It asks for leave when it is first polled.
    ///
    /// # Cancel safety
    /// Dropping it drops the handler's future, with its deadline still around it, then frees its slot and its probe.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        engine: Engine<Owner<Policy>, Judge, Once<S, Req>, Handling<S, Req>>,
        overload: StatusCode,
    }
}

impl<S, A, B> Future for ResponseFuture<S, Request<A>>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    B: Body,
{
    type Output = Result<Response<ResponseBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.engine.poll(cx)) {
            Ok(Handled { response, hold }) => {
                Ok(response.map(|body| ResponseBody::of_handler(body, hold)))
            }
            Err(Error::Inner(error)) => Err(error),
            Err(Error::Rejected(rejected)) => {
                let response = response::respond(&rejected, *this.overload);
                Ok(response.map(ResponseBody::of_refusal))
            }
        })
    }
}

/// The one attempt of a call.
struct Once<S, Req> {
    held: Option<(WrapService<S>, Req)>,
    holds: bool,
}

impl<S, Req> Attempts for Once<S, Req>
where
    S: Service<Req>,
{
    type Future = Handling<S, Req>;

    fn next(&mut self, _last: bool) -> Self::Future {
        let (service, request) = self.held.take().expect("there is only one attempt");
        Handling {
            call: ReadyCall::later(service, request),
            holds: self.holds,
        }
    }
}

pin_project! {
    /// The handler at work.
    struct Handling<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        call: ReadyCall<WrapService<S>, Req>,
        holds: bool,
    }
}

impl<S, Req> Future for Handling<S, Req>
where
    S: Service<Req>,
{
    type Output = Result<Handled<S::Response>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.call.poll(cx))?;
        // Here it runs within its call, so the slot is that of our limiter.
        let hold = if *this.holds { limit::hold() } else { None };
        Poll::Ready(Ok(Handled { response, hold }))
    }
}

/// A handler's response, and the slot of its call.
struct Handled<R> {
    response: R,
    hold: Option<Hold>,
}

/// What a handler's results say of it.
#[derive(Clone, Copy)]
struct Judge;

impl<B, E> Classify<Handled<Response<B>>, Error<E>> for Judge {
    fn classify(&self, result: Result<&Handled<Response<B>>, &Error<E>>) -> Verdict {
        match result {
            Ok(handled) => classify::verdict(&handled.response),
            // It did not even make a response.
            Err(_) => Kind::Ambiguous.into(),
        }
    }
}
