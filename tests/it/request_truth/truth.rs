//! A second measurement of requests, by code of the test's own: a layer that notes when a request is
//! called, polled, woken and dropped.
//!
//! One stands outside of the layer under test, and one inside. Each stamp of the layer under test
//! lies between the two.

use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;
use tower::{Layer, Service};

/// One poll of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimedPoll {
    /// The first wake since the begin of the poll before.
    pub(super) woken: Option<Instant>,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    pub(super) called: Instant,
    pub(super) polls: Vec<TimedPoll>,
    /// When it was dropped, and the first wake since its last poll.
    pub(super) dropped: Option<(Instant, Option<Instant>)>,
}

/// The requests that one layer has seen, by their paths.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth(Arc<Mutex<HashMap<String, Timed>>>);

impl Truth {
    pub(super) fn of(&self, path: &str) -> Timed {
        self.0.lock().unwrap()[path].clone()
    }

    /// Whether so many requests have come, and are over.
    pub(super) fn are_over(&self, requests: usize) -> bool {
        let timed = self.0.lock().unwrap();
        let over = timed.values().filter(|timed| timed.dropped.is_some());
        over.count() == requests
    }
}

impl<S> Layer<S> for Truth {
    type Service = TruthService<S>;

    fn layer(&self, inner: S) -> TruthService<S> {
        let truth = self.clone();
        TruthService { inner, truth }
    }
}

#[derive(Clone)]
pub(super) struct TruthService<S> {
    inner: S,
    truth: Truth,
}

impl<S, B> Service<Request> for TruthService<S>
where
    S: Service<Request, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<TimedPart<B>>;
    type Error = S::Error;
    type Future = TimedPart<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let path = request.uri().path().to_owned();
        let timed = Timed {
            called: Instant::now(),
            polls: Vec::new(),
            dropped: None,
        };
        self.truth.0.lock().unwrap().insert(path.clone(), timed);
        TimedPart {
            inner: Some(Box::pin(self.inner.call(request))),
            path,
            truth: self.truth.clone(),
            waker: Arc::default(),
        }
    }
}

/// Notes the first wake since the begin of a poll.
#[derive(Default)]
struct Noted {
    woken: Mutex<Option<Instant>>,
    to: Mutex<Option<Waker>>,
}

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap().get_or_insert_with(Instant::now);
        let to = self.to.lock().unwrap().clone();
        to.expect("it has been polled").wake();
    }
}

/// The future of a request, or the body of its response.
pub(super) struct TimedPart<T> {
    /// `None` once the future has made way for the body.
    inner: Option<Pin<Box<T>>>,
    path: String,
    truth: Truth,
    waker: Arc<Noted>,
}

impl<T> TimedPart<T> {
    fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        poll: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> R,
    ) -> R {
        *self.waker.to.lock().unwrap() = Some(cx.waker().clone());
        let woken = self.waker.woken.lock().unwrap().take();
        let waker = Waker::from(self.waker.clone());
        let inner = self.inner.as_mut().expect("it goes on").as_mut();
        let begun = Instant::now();
        let result = poll(inner, &mut Context::from_waker(&waker));
        let ended = Instant::now();
        self.note(|timed| {
            timed.polls.push(TimedPoll {
                woken,
                begun,
                ended,
            });
        });
        result
    }

    fn note(&self, change: impl FnOnce(&mut Timed)) {
        change(self.truth.0.lock().unwrap().get_mut(&self.path).unwrap());
    }
}

impl<F, B, E> Future for TimedPart<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<TimedPart<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let response = std::task::ready!(TimedPart::poll(this, cx, |inner, cx| inner.poll(cx)));
        this.inner = None;
        let (path, truth, waker) = (this.path.clone(), this.truth.clone(), this.waker.clone());
        Poll::Ready(response.map(|response| {
            response.map(|body| TimedPart {
                inner: Some(Box::pin(body)),
                path,
                truth,
                waker,
            })
        }))
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for TimedPart<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, B::Error>>> {
        TimedPart::poll(&mut *self, cx, |inner, cx| inner.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_some_and(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner
            .as_ref()
            .map_or_else(http_body::SizeHint::default, |body| body.size_hint())
    }
}

impl<T> Drop for TimedPart<T> {
    fn drop(&mut self) {
        // Later than the drop of what is inside of it.
        if self.inner.take().is_some() {
            let woken = self.waker.woken.lock().unwrap().take();
            self.note(|timed| timed.dropped = Some((Instant::now(), woken)));
        }
    }
}
