use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::limit::Hold;

pin_project! {
    /// A handler's body with the slot of its call, or a refusal's text.
    ///
    /// The slot is free once the body has ended, failed, or is dropped. The data is handed on as it is: where it already is `Bytes`, nothing is copied.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<B> {
        // Handler -> Over: it ended or failed. `body` stands first: it is dropped before the slot is given back.
        Handler { #[pin] body: B, hold: Option<Hold> },
        // Refusal -> Over: its text was handed out.
        Refusal { text: Bytes },
        Over,
    }
}

impl<B: Body> ResponseBody<B> {
    /// A body that has ended already keeps no slot.
    pub(super) fn of_handler(body: B, hold: Option<Hold>) -> Self {
        let hold = hold.filter(|_| !body.is_end_stream());
        Self {
            state: State::Handler { body, hold },
        }
    }

    pub(super) fn of_refusal(text: String) -> Self {
        let text = Bytes::from(text);
        Self {
            state: State::Refusal { text },
        }
    }
}

/// An empty body.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self { state: State::Over }
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut state = self.project().state;
        let frame = match state.as_mut().project() {
            StateProj::Handler { mut body, .. } => {
                let frame = ready!(body.as_mut().poll_frame(cx));
                if matches!(frame, Some(Ok(_))) && !body.is_end_stream() {
                    return Poll::Ready(frame.map(as_bytes));
                }
                frame.map(as_bytes)
            }
            StateProj::Refusal { text } => Some(Ok(Frame::data(std::mem::take(text)))),
            StateProj::Over => None,
        };
        state.set(State::Over);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Handler { body, .. } => body.is_end_stream(),
            State::Refusal { .. } => false,
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Handler { body, .. } => body.size_hint(),
            State::Refusal { text } => SizeHint::with_exact(text.len() as u64),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

fn as_bytes<D: Buf, E>(frame: Result<Frame<D>, E>) -> Result<Frame<Bytes>, E> {
    frame.map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
}
