//! The body of a response: its polls belong to the request, which ends with it.
//!
//! *Runs on:* the thread that polls the body.

use super::request::TimedRequest;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// The body of a response of a [`RequestService`](super::RequestService), as
    /// [`RequestLayer`](super::RequestLayer) makes it.
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        // `None` once the body has ended.
        request: Option<TimedRequest>,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn new(inner: B, request: Option<TimedRequest>) -> ResponseBody<B> {
        ResponseBody { inner, request }
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let polled = match this.request.as_mut() {
            Some(request) => request.poll(cx, |cx| this.inner.poll_frame(cx)),
            None => this.inner.poll_frame(cx),
        };
        match (&polled, this.request.as_ref()) {
            (Poll::Ready(None | Some(Err(_))), _) => *this.request = None,
            (Poll::Ready(Some(Ok(_))), Some(request)) => request.rests(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for ResponseBody<B> {
    /// An empty body, of no request.
    fn default() -> ResponseBody<B> {
        ResponseBody {
            inner: B::default(),
            request: None,
        }
    }
}

impl<B> std::fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
