//! What is counted: a poll, a span, a request, each done a thousand times over in [`counted`].
//!
//! On a worker, where it is paid, and after it has run for a while: a thread's first mark, the first clock reading
//! and first allocations are in no count. Nor are the threads of a watch: settings that it makes for the process stay
//! when it ends. Only where requests go through a layer of tower, it lasts during the count.

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::{self, Runtime};
use tokio::task::coop::unconstrained;
use tokio_metrics::TaskMonitor;
use tokio_stall::tower::RequestLayer;
use tokio_stall::{FutureExt as _, PollTiming};
use tower_http::trace::TraceLayer;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

/// How often a thing is done in one count.
pub(crate) const TIMES: usize = 1_000;
const WARM_UP: usize = 100;

// ── polls ──

pub(crate) fn poll() {
    on_a_worker(multi_thread, || poller(Nothing(0)));
}

pub(crate) fn watched_poll(timing: PollTiming) {
    set_timing(timing);
    on_a_worker(multi_thread, || poller(Nothing(0).watched("poll")));
}

pub(crate) fn poll_between_clock_readings() {
    on_a_worker(multi_thread, || {
        let mut poll = poller(Nothing(0));
        move || {
            let start = Instant::now();
            poll();
            black_box(start.elapsed());
        }
    });
}

pub(crate) fn poll_in_task_monitor() {
    on_a_worker(multi_thread, || {
        poller(TaskMonitor::instrument(&TaskMonitor::new(), Nothing(0)))
    });
}

/// Is never ready, and does next to nothing to find that out. But it calls a function, as about every poll does: one
/// that calls nothing needs no stack frame, and what it costs to have one would be counted as ours.
struct Nothing(u64);

impl Future for Nothing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        count_down(&mut self.0);
        Poll::Pending
    }
}

#[inline(never)]
fn count_down(left: &mut u64) {
    *left = black_box(*left).wrapping_sub(1);
}

fn poller(future: impl Future<Output = ()>) -> impl FnMut() {
    let mut future = Box::pin(future);
    move || {
        let _ = black_box(future.as_mut().poll(&mut no_waker()));
    }
}

// ── spans ──

pub(crate) fn span(layer: Layer) {
    layer.install();
    on_a_worker(multi_thread, enterer);
}

pub(crate) fn span_in_a_span(layer: Layer) {
    layer.install();
    on_a_worker(multi_thread, || {
        let outer = info_span!("outer").entered();
        let mut enter = enterer();
        move || {
            let _inside = &outer;
            enter();
        }
    });
}

fn enterer() -> impl FnMut() {
    let span = info_span!("span");
    move || span.in_scope(|| black_box(()))
}

/// What a span is told to, besides the registry.
pub(crate) enum Layer {
    Empty,
    Ours(PollTiming),
}

impl Layer {
    fn install(self) {
        let registry = tracing_subscriber::registry();
        let installed = match self {
            Layer::Empty => tracing::subscriber::set_global_default(registry.with(Identity::new())),
            Layer::Ours(timing) => {
                set_timing(timing);
                tracing::subscriber::set_global_default(registry.with(tokio_stall::layer()))
            }
        };
        installed.expect("one subscriber for each count");
    }
}

// ── requests ──

pub(crate) fn request(layer: Layer) {
    layer.install();
    on_a_worker(multi_thread, || requester(|router| router));
}

pub(crate) fn request_on_current_thread(layer: Layer) {
    layer.install();
    on_a_worker(runtime::Builder::new_current_thread, || {
        requester(|router| router)
    });
}

/// A layer of tower that a request goes through.
pub(crate) enum Through {
    Empty,
    Ours,
    Trace,
}

/// A request to a watched runtime, through a layer of tower.
pub(crate) fn request_through(layer: Through) {
    Layer::Empty.install();
    on_a_watched_worker(|| {
        requester(move |router| match layer {
            Through::Empty => router.layer(tower::layer::util::Identity::new()),
            Through::Ours => router.layer(RequestLayer::new()),
            Through::Trace => router.layer(TraceLayer::new_for_http()),
        })
    });
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 2\r\n\r\nok";

/// A service with a span for each request, and a client whose connection to it stays open.
fn requester(layered: impl FnOnce(Router) -> Router) -> impl FnMut() {
    let (mut client, server) = tokio::io::duplex(4096);
    let service = layered(Router::new().route(
        "/",
        get(|| async { "ok" }.instrument(info_span!("request"))),
    ));
    let connection = http1::Builder::new()
        // It is made anew once a second, which would be in a count or not.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(server), TowerToHyperService::new(service));
    // All requests are in one poll of the worker's task: tokio would make it yield.
    let mut connection = Box::pin(unconstrained(connection));
    move || {
        let mut exchange = pin!(unconstrained(exchange(&mut client)));
        while exchange.as_mut().poll(&mut no_waker()).is_pending() {
            let closed = connection.as_mut().poll(&mut no_waker());
            assert!(closed.is_pending(), "{closed:?}");
        }
    }
}

async fn exchange(client: &mut DuplexStream) {
    let mut answer = [0; ANSWER.len()];
    client.write_all(REQUEST).await.expect("it is open");
    client.read_exact(&mut answer).await.expect("it is open");
    assert_eq!(answer, ANSWER);
}

// ── the count ──

/// What is counted: this function on whatever thread, and all it calls.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

/// Counts the work that is prepared, in a task of a runtime.
fn on_a_worker<W: FnMut()>(
    runtime: fn() -> runtime::Builder,
    prepare: impl FnOnce() -> W + Send + 'static,
) {
    count_on(&runtime().build().expect("a runtime"), prepare);
}

/// The same in a runtime that is watched.
fn on_a_watched_worker<W: FnMut()>(prepare: impl FnOnce() -> W + Send + 'static) {
    let runtime = multi_thread().build().expect("a runtime");
    let _watch = watch(&runtime, PollTiming::Off);
    count_on(&runtime, prepare);
}

fn count_on<W: FnMut()>(runtime: &Runtime, prepare: impl FnOnce() -> W + Send + 'static) {
    let task = runtime.spawn(async move {
        let mut work = prepare();
        for _ in 0..WARM_UP {
            work();
        }
        counted(&mut work);
    });
    runtime.block_on(task).expect("it does not panic");
}

fn multi_thread() -> runtime::Builder {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(1);
    builder
}

/// The mode of timing is the process's, and a watch sets it.
fn set_timing(timing: PollTiming) {
    drop(watch(&multi_thread().build().expect("a runtime"), timing));
}

fn watch(runtime: &Runtime, timing: PollTiming) -> tokio_stall::Guard {
    let watch = tokio_stall::Builder::new()
        // Everything is a stall at callgrind's pace, and it does not survive the signals.
        .turns(false)
        .stacks(tokio_stall::Stacks::Off)
        .runtime("counts", runtime.handle().clone())
        .poll_timing(timing)
        .start();
    watch.expect("nothing else is watched")
}

fn no_waker() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
