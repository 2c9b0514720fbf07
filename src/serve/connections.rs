//! Connections: few, short, and the newest first.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* keep anything for a client without a limit: connections, time and bytes each have
//! one.
//!
//! With all places taken the oldest connection is closed, so clients that hold connections keep no
//! other client out.

use super::routes::Routes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The most connections at one time.
const CONNECTIONS: usize = 64;
/// The longest time for a request's head, also for the next request on an open connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest life of a connection, busy or not.
const LIFE: Duration = Duration::from_secs(60);
/// The most bytes of a request's head, and of the write buffer. The library's minimum is 8 KiB.
const BUFFER: usize = 16 * 1024;
/// The pause after an error of `accept`, such as no free file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop` is notified.
pub(super) async fn accept(listener: &TcpListener, routes: &Arc<Routes>, stop: &Notify) {
    let mut stopped = pin!(stop.notified());
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let next = poll_fn(|cx| match stopped.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(cx).map(Some),
        });
        match next.await {
            None => return,
            Some(Ok((stream, _))) => {
                make_room(&mut open);
                let task = tokio::spawn(connection(stream, routes.clone()));
                open.push_back(task.abort_handle());
            }
            Some(Err(_)) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Aborts the oldest connection if all places are taken.
fn make_room(open: &mut VecDeque<AbortHandle>) {
    open.retain(|connection| !connection.is_finished());
    if open.len() >= CONNECTIONS {
        if let Some(oldest) = open.pop_front() {
            oldest.abort();
        }
    }
}

async fn connection(stream: TcpStream, routes: Arc<Routes>) {
    let service = service_fn(move |request| {
        let response = routes.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // Errors are the client's: it has gone, was too slow, or spoke no HTTP.
    tokio::time::timeout(LIFE, connection).await.ok();
}
