//! Connections: few, short, one request each.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* keep anything for a client without a limit: connections, time and bytes each have
//! one.
//!
//! With all places taken, the connection that has waited longest for its client's request gives
//! way, or else one whose client does not read its answer. A request that has come is always
//! answered: while each place has one, the next connection waits.

use super::routes::Routes;
use crate::clock::{self, Nanos};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

/// The most connections at one time.
const CONNECTIONS: usize = 64;
/// A request's head must have come after this long.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// A client has read its answer after this long, or may be cut off for others.
const READ_TIME: Duration = Duration::from_millis(250);
/// A connection lives for so long at most, whatever its client does.
const LIFE: Duration = Duration::from_secs(60);
/// The most bytes of a request's head, and of the write buffer. The library's minimum is 8 KiB.
const BUFFER: usize = 16 * 1024;
/// The pause after an error of `accept`, such as no free file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until told to stop.
pub(super) async fn accept(listener: &TcpListener, routes: &Arc<Routes>, stop: &Notify) {
    let mut stopped = pin!(stop.notified());
    let mut accepting = pin!(accept_for_ever(listener, routes));
    poll_fn(|cx| match stopped.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => accepting.as_mut().poll(cx),
    })
    .await;
}

async fn accept_for_ever(listener: &TcpListener, routes: &Arc<Routes>) {
    let mut open = Open::default();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(stream) = listener.accept().await.map(|(stream, _)| stream) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let place = loop {
            if places.available_permits() == 0 {
                open.give_way(clock::now());
            }
            let place = places.clone().acquire_owned();
            if let Ok(Ok(place)) = tokio::time::timeout(READ_TIME, place).await {
                break place;
            }
        };
        let asked_at = Arc::new(AtomicU64::new(0));
        let connection = connection(stream, routes.clone(), asked_at.clone());
        let task = tokio::spawn(async move {
            connection.await;
            drop(place);
        });
        open.0.push_back((asked_at, task.abort_handle()));
        // Its request may be there already: it is looked at before it can be made to give way.
        tokio::task::yield_now().await;
    }
}

/// The open connections, the oldest first: when the request of each has come, 0 for not yet.
#[derive(Default)]
struct Open(VecDeque<(Arc<AtomicU64>, AbortHandle)>);

impl Open {
    /// Ends the oldest that waits for its client, if there is one.
    fn give_way(&mut self, now: Nanos) {
        self.0.retain(|(_, task)| !task.is_finished());
        // Relaxed: all of this is on one thread.
        let waits = |asked_at: &AtomicU64| asked_at.load(Ordering::Relaxed) == 0;
        let is_slow = |asked_at: &AtomicU64| {
            let asked_at = Nanos(asked_at.load(Ordering::Relaxed));
            now.since(asked_at) >= READ_TIME
        };
        let mut open = self.0.iter();
        let oldest = open
            .clone()
            .position(|(asked_at, _)| waits(asked_at))
            .or_else(|| open.position(|(asked_at, _)| is_slow(asked_at)));
        if let Some((_, task)) = oldest.and_then(|oldest| self.0.remove(oldest)) {
            task.abort();
        }
    }
}

async fn connection(stream: TcpStream, routes: Arc<Routes>, asked_at: Arc<AtomicU64>) {
    let service = service_fn(move |request| {
        asked_at.store(clock::now().0, Ordering::Relaxed);
        let response = routes.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // Errors are the client's: it has gone, was too slow, or spoke no HTTP.
    tokio::time::timeout(LIFE, connection).await.ok();
}
