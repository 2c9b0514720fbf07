//! The layer for tower stacks: each request of a service is marked and timed.
//!
//! *Runs on:* the threads that call and poll the service.
//! *Must not:* change the errors of the service, or its response but for the type of the body.

use super::body::ResponseBody;
use super::request::TimedRequest;
use super::routes::Route;
use super::timing;
use http::{HeaderValue, Response};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A layer that marks and times the requests of a service.
///
/// Each poll of a request carries the name of its route, so a stall in it is certain and named. For
/// each stall the detector then knows whom it held up:
/// [`StallReport::victims`](crate::StallReport::victims). Response bodies belong to their request.
///
/// A request is named by its method and its path, as the program's router knows it: with the
/// feature `axum`, the layer finds axum's `MatchedPath`. Without a router, it is the name given to
/// [`named`](RequestLayer::named). The path that a client sends is used only if
/// [`by_path`](RequestLayer::by_path) allows it: there is no limit to such paths.
///
/// Inside of `TraceLayer`, events about a request belong to its span:
/// `ServiceBuilder::new().layer(TraceLayer::new_for_http()).layer(RequestLayer::new())`.
///
/// # Cost
///
/// A request allocates once. Each poll reads the clock twice, each wake once.
///
/// # Examples
///
/// ```
/// use std::convert::Infallible;
/// use tokio_stall::tower::RequestLayer;
/// use tower::{ServiceBuilder, ServiceExt as _, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Infallible> {
/// let service = ServiceBuilder::new()
///     .layer(RequestLayer::new().named("api"))
///     .service(service_fn(|_: http::Request<String>| async {
///         Ok::<_, Infallible>(http::Response::new(String::from("hello")))
///     }));
/// let response = service.oneshot(http::Request::new(String::new())).await?;
/// assert_eq!(response.status(), 200);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RequestLayer {
    settings: LayerSettings,
}

#[derive(Clone, Copy, Debug)]
struct LayerSettings {
    /// In place of a path.
    name: &'static str,
    by_path: bool,
    server_timing: bool,
}

impl Default for RequestLayer {
    fn default() -> RequestLayer {
        RequestLayer::new()
    }
}

impl RequestLayer {
    /// A layer for any service.
    pub fn new() -> RequestLayer {
        RequestLayer {
            settings: LayerSettings {
                name: "request",
                by_path: false,
                server_timing: false,
            },
        }
    }

    /// The name of requests for which no router knows a path, in its place. `request` by default.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> RequestLayer {
        self.settings.name = name;
        self
    }

    /// Names requests by the paths that clients send, where no router knows better. For services
    /// with few paths, as in gRPC: `POST /grpc.health.v1.Health/Check`.
    ///
    /// A client can send any path. From 128 routes of the process on, all further ones are `other`.
    #[must_use]
    pub fn by_path(mut self, named: bool) -> RequestLayer {
        self.settings.by_path = named;
        self
    }

    /// Adds the header `Server-Timing` to each response: `own`, `ready`, `stall` and `wait`, in
    /// milliseconds. Browsers show it.
    ///
    /// It tells every client how the program is doing, so it is off by default. A stall that is
    /// not announced yet when the response begins is missing in `stall`, and never in `ready`.
    #[must_use]
    pub fn server_timing(mut self, added: bool) -> RequestLayer {
        self.settings.server_timing = added;
        self
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService {
            inner,
            settings: self.settings,
        }
    }
}

/// A service whose requests are marked and timed; made by [`RequestLayer`].
#[derive(Clone, Debug)]
pub struct RequestService<S> {
    inner: S,
    settings: LayerSettings,
}

impl<S, B, R> Service<http::Request<B>> for RequestService<S>
where
    S: Service<http::Request<B>, Response = Response<R>>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> ResponseFuture<S::Future> {
        let named = || match self.settings.by_path {
            true => request.uri().path(),
            false => self.settings.name,
        };
        let path = matched_path(&request).unwrap_or_else(named);
        let timed = TimedRequest::new(Route::of(request.method(), path));
        ResponseFuture {
            inner: self.inner.call(request),
            request: Some(timed),
            server_timing: self.settings.server_timing,
        }
    }
}

#[cfg(feature = "axum")]
fn matched_path<B>(request: &http::Request<B>) -> Option<&str> {
    let matched = request.extensions().get::<axum::extract::MatchedPath>();
    matched.map(axum::extract::MatchedPath::as_str)
}

#[cfg(not(feature = "axum"))]
fn matched_path<B>(_: &http::Request<B>) -> Option<&str> {
    None
}

pin_project! {
    /// The response of a [`RequestService`], which [`RequestLayer`] makes, as a future.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        // `None` once the response is there.
        request: Option<TimedRequest>,
        server_timing: bool,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.request.as_mut() {
            Some(request) => request.poll(cx, |cx| this.inner.poll(cx)),
            // Polled after its end: the inner future decides.
            None => this.inner.poll(cx),
        };
        let response = ready!(polled);
        let request = this.request.take();
        Poll::Ready(response.map(|mut response| {
            let timing = request.as_ref().filter(|_| *this.server_timing);
            let timing = timing.and_then(|request| request.server_timing().parse().ok());
            if let Some(timing) = timing {
                let timing: HeaderValue = timing;
                response.headers_mut().append(timing::NAME, timing);
            }
            if let Some(request) = &request {
                request.rests();
            }
            response.map(|body| ResponseBody::new(body, request))
        }))
    }
}

impl<F> std::fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
