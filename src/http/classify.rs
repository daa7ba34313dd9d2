use std::{error, io};

use http::{Response, StatusCode};

use super::status;
use crate::{
    classify::Io,
    error::{Rejected, chain},
    kind::{Classify, Kind, Verdict},
    time,
};

/// The classifier for HTTP responses, which goes by their status.
///
/// | status | kind | why |
/// |---|---|---|
/// | 2xx, 3xx | [`Success`](Kind::Success) | |
/// | 4xx, 501, 505, 510 | [`Invalid`](Kind::Invalid) | the server is well; the same request would fail again. 401 and 403 are of the request's sender, 409 is mostly a thing that exists already |
/// | 429, 503 | [`Overloaded`](Kind::Overloaded) | sent away before anything was done |
/// | 408 | [`Ambiguous`](Kind::Ambiguous) | many servers say it of a handler that took too long |
/// | 500, 502, 504, every other | [`Ambiguous`](Kind::Ambiguous) | a part may have been done |
/// | 407, 507, 511 | [`Broken`](Kind::Broken) | credentials for the network, or room: somebody has to act |
///
/// `Retry-After`, in seconds or as a date, is taken as the hint of a failure, and cut to a year; [`Retry`](crate::Retry) believes at most its own `max_hint`.
/// A response that was made from a refusal of ours ([`refusal_response`](super::refusal_response)) is judged as that refusal by whoever sees it
/// in the same process.
///
/// An error of the client is [`Ambiguous`](Kind::Ambiguous), unless there is an [`io::Error`] behind it that shows that nobody was reached. For a
/// client that knows more, and for an error type that is no [`Error`](error::Error), see [`with_errors`](Self::with_errors).
///
/// ```
/// use std::{io, time::Duration};
/// use http::Response;
/// use steadfast::{Classify, Kind, classify::HttpStatus};
///
/// let response = Response::builder().status(503).header("retry-after", "7").body("")?;
/// let verdict = HttpStatus.classify(Ok::<_, &io::Error>(&response));
/// assert_eq!(verdict.kind, Kind::Overloaded);
/// assert_eq!(verdict.retry_after, Some(Duration::from_secs(7)));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpStatus;

impl HttpStatus {
    /// Judges responses so, and errors by `errors`.
    ///
    /// ```
    /// use std::fmt;
    /// use http::Response;
    /// use steadfast::{Classify, Kind, by_error, classify::HttpStatus};
    ///
    /// let classify = HttpStatus::with_errors(by_error(|_: &fmt::Error| Kind::Unavailable));
    /// let failed = Err::<&Response<()>, _>(&fmt::Error);
    /// assert_eq!(classify.classify(failed).kind, Kind::Unavailable);
    /// ```
    pub fn with_errors<C>(errors: C) -> HttpStatusAnd<C> {
        HttpStatusAnd { errors }
    }
}

impl<B, E: error::Error + 'static> Classify<Response<B>, E> for HttpStatus {
    fn classify(&self, result: Result<&Response<B>, &E>) -> Verdict {
        match result {
            Ok(response) => verdict(response),
            Err(error) => unanswered(error).into(),
        }
    }
}

/// [`HttpStatus`] for responses and another classifier for errors; see [`HttpStatus::with_errors`].
#[derive(Clone, Copy, Debug)]
pub struct HttpStatusAnd<C> {
    errors: C,
}

impl<B, E, C: Classify<Response<B>, E>> Classify<Response<B>, E> for HttpStatusAnd<C> {
    fn classify(&self, result: Result<&Response<B>, &E>) -> Verdict {
        match result {
            Ok(response) => verdict(response),
            Err(error) => self.errors.classify(Err(error)),
        }
    }
}

/// What `response` says; a refusal of ours is not the handler's, although it looks so.
pub(super) fn verdict<B>(response: &Response<B>) -> Verdict {
    let status = response.status();
    let refused = matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
    );
    match response.extensions().get::<Rejected>() {
        Some(rejected) if refused => rejected.kind().into(),
        _ => status::verdict(status, response.headers(), time::wall),
    }
}

/// A call that was not answered may have acted, unless nobody was reached.
fn unanswered(error: &(dyn error::Error + 'static)) -> Kind {
    let mut errors = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    let judged = |error| Io.classify(Err::<&(), _>(error)).kind;
    if errors.any(|error| judged(error) == Kind::Unavailable) {
        Kind::Unavailable
    } else {
        Kind::Ambiguous
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;
    use crate::{http::refusal_response, kind::by_error};

    fn kind<E: error::Error + 'static>(error: E) -> Kind {
        HttpStatus.classify(Err::<&Response<()>, _>(&error)).kind
    }

    /// Whoever answers in another way has made something else of the refusal.
    #[test]
    fn a_refusal_of_ours_is_judged_as_such_unless_it_was_answered_in_another_way() {
        let rejected = Rejected::DeadlineExceeded { sent: false };
        let mut response: Response<String> = refusal_response(&rejected);
        for (status, kind) in [
            (StatusCode::SERVICE_UNAVAILABLE, rejected.kind()),
            (StatusCode::GATEWAY_TIMEOUT, rejected.kind()),
            (StatusCode::TOO_MANY_REQUESTS, rejected.kind()),
            (StatusCode::OK, Kind::Success),
            (StatusCode::INTERNAL_SERVER_ERROR, Kind::Ambiguous),
        ] {
            *response.status_mut() = status;
            let verdict = HttpStatus.classify(Ok::<_, &io::Error>(&response));
            assert_eq!(verdict.kind, kind, "{status}");
        }
    }

    #[test]
    fn a_call_that_was_not_answered_may_have_acted_unless_nobody_was_reached() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(refused()), Kind::Unavailable);
        assert_eq!(kind(io::Error::other(refused())), Kind::Unavailable);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(kind(reset), Kind::Ambiguous);
        assert_eq!(kind(std::fmt::Error), Kind::Ambiguous);
    }

    #[test]
    fn errors_can_be_left_to_somebody_who_knows_more() {
        let classify = HttpStatus::with_errors(by_error(|_: &io::Error| Kind::Broken));
        let error = io::Error::from(io::ErrorKind::ConnectionRefused);
        let failed = classify.classify(Err::<&Response<()>, _>(&error));
        assert_eq!(failed.kind, Kind::Broken);
        let answered = classify.classify(Ok(&Response::new(())));
        assert_eq!(answered.kind, Kind::Success);
    }
}
