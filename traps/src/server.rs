//! The service: its runtime, its ordinary routes, and a span around every request.

use crate::controls;
use crate::corpus::Entry;
use crate::failure::Failure;
use crate::traps::{self, Setup};
use axum::extract::{Path, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use std::future::IntoFuture;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tracing::{Instrument, info_span, instrument};

#[cfg(tokio_unstable)]
use tokio_stall::RuntimeBuilderExt as _;

pub(crate) const WORKERS: usize = 2;

/// Few, so that the pool can be exhausted.
pub(crate) const BLOCKING_THREADS: usize = 4;

/// The runtime of the service. Its polls are `marked` where tokio lets them be.
pub(crate) fn runtime(marked: bool) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder
        .enable_all()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS);
    #[cfg(tokio_unstable)]
    if marked {
        builder.watch_polls();
    }
    #[cfg(not(tokio_unstable))]
    let _ = marked;
    builder.build()
}

/// Everything the service answers. Prepares, and measures the work of, those traps that will run.
pub(crate) fn routes(
    entries: &[Entry],
    setup: &Setup<'_>,
    marked: bool,
) -> Result<Router, Failure> {
    let mut router = Router::new()
        .route("/ping", get(ping))
        .route("/users/{id}", get(get_user))
        .merge(controls::routes(marked));
    for trap in traps::ALL {
        if entries.iter().any(|entry| entry.trap == Some(trap.name)) {
            router = router.merge((trap.routes)(setup)?);
        }
    }
    Ok(router.layer(from_fn(in_request_span)))
}

/// Serves on a free port of the loopback interface.
pub(crate) fn start(runtime: &Runtime, routes: Router) -> io::Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    runtime.spawn(axum::serve(listener, routes).into_future());
    Ok(address)
}

async fn in_request_span(request: Request, next: Next) -> Response {
    let span = info_span!("request", path = request.uri().path());
    next.run(request).instrument(span).await
}

#[instrument(skip_all)]
async fn ping() -> &'static str {
    "pong"
}

#[instrument(skip_all)]
async fn get_user(Path(id): Path<u64>) -> Json<User> {
    Json(User {
        id,
        name: format!("user {id}"),
    })
}

#[derive(Serialize)]
struct User {
    id: u64,
    name: String,
}
