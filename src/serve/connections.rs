//! Connections: few, short, and the newest first.
//!
//! *Runs on:* the server's thread.
//! *Here:* a limit on everything a client can make us keep or wait for: connections, time, bytes. With all places
//! taken the oldest connection gives way, so that those who hold connections keep nobody out.

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

/// Connections kept at one time.
const CONNECTIONS: usize = 64;
/// A request's head must have come after this long, also the next one on a connection kept open.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// A connection lives for so long at most, whatever its client does.
const LIFE: Duration = Duration::from_secs(60);
/// Bytes of a request's head, and of what is buffered for writing. The library's smallest is 8 KiB.
const BUFFER: usize = 16 * 1024;
/// Without descriptors no connection can be accepted; after this long there may be some.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves whoever comes, until told to stop.
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
                open.retain(|connection| !connection.is_finished());
                if open.len() >= CONNECTIONS {
                    if let Some(oldest) = open.pop_front() {
                        oldest.abort();
                    }
                }
                let task = tokio::spawn(connection(stream, routes.clone()));
                open.push_back(task.abort_handle());
            }
            Some(Err(_)) => tokio::time::sleep(PAUSE).await,
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
    // What goes wrong is the client's affair: it has gone, was too slow, or spoke no HTTP.
    tokio::time::timeout(LIFE, connection).await.ok();
}
