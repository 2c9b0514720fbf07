//! Connections: few, short, one request each; and those of open pages, which last.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* keep anything for a client without a limit: connections, time and bytes each have
//! one.
//!
//! With all places taken, the connection that has waited longest for its client's request gives
//! way, or else one whose client does not read its answer. A request that has come is always
//! answered: while each place has one, the next connection waits.
//!
//! The connection of an open page gives its place back. Pages have places of their own
//! ([`PAGES`](super::events::PAGES)), no limit to their life, and give way to nobody; the queue of
//! their news is their limit.

use super::routes::Routes;
use crate::clock::{self, Nanos};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
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
        let connection = Arc::new(Connection::with(place));
        let task = tokio::spawn(converse(stream, routes.clone(), connection.clone()));
        connection.task.set(task.abort_handle()).ok();
        open.0.push_back(connection);
        // Its request may be there already: it is looked at before it can be made to give way.
        tokio::task::yield_now().await;
    }
}

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// When its request has come, 0 for not yet.
    asked_at: AtomicU64,
    /// Whether it is the connection of an open page.
    streams: AtomicBool,
    /// Its place among all; none for an open page, and for a connection that has ended.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    task: OnceLock<AbortHandle>,
}

// Relaxed: all of this is on one thread.
impl Connection {
    fn with(place: OwnedSemaphorePermit) -> Connection {
        Connection {
            place: Mutex::new(Some(place)),
            ..Connection::default()
        }
    }

    /// A connection without a client.
    #[cfg(all(test, not(loom)))]
    pub(super) fn for_tests() -> Arc<Connection> {
        Arc::default()
    }

    fn is_asked(&self) {
        self.asked_at.store(clock::now().0, Ordering::Relaxed);
    }

    /// It is that of an open page from now on, which has a place of its own.
    pub(super) fn becomes_a_stream(&self) {
        self.streams.store(true, Ordering::Relaxed);
        self.place.lock().take();
    }

    fn is_stream(&self) -> bool {
        self.streams.load(Ordering::Relaxed)
    }

    /// Ends it, whatever is still to be sent.
    pub(super) fn cut(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        self.place.lock().take();
    }

    pub(super) fn is_over(&self) -> bool {
        self.task.get().is_some_and(AbortHandle::is_finished)
    }

    fn waits_for_its_client(&self) -> bool {
        self.asked_at.load(Ordering::Relaxed) == 0
    }

    fn is_slow(&self, now: Nanos) -> bool {
        let asked_at = Nanos(self.asked_at.load(Ordering::Relaxed));
        now.since(asked_at) >= READ_TIME
    }
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Open(VecDeque<Arc<Connection>>);

impl Open {
    /// Ends the oldest that waits for its client, if there is one.
    fn give_way(&mut self, now: Nanos) {
        self.0.retain(|open| !open.is_over() && !open.is_stream());
        let mut open = self.0.iter();
        let oldest = open
            .clone()
            .position(|open| open.waits_for_its_client())
            .or_else(|| open.position(|open| open.is_slow(now)));
        if let Some(oldest) = oldest.and_then(|oldest| self.0.remove(oldest)) {
            oldest.cut();
        }
    }
}

async fn converse(stream: TcpStream, routes: Arc<Routes>, state: Arc<Connection>) {
    let asked = state.clone();
    let service = service_fn(move |request| {
        asked.is_asked();
        let response = routes.answer(&request, &asked);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Errors are the client's: it has gone, was too slow, or spoke no HTTP.
    let in_time = tokio::time::timeout(LIFE, connection.as_mut()).await;
    if in_time.is_err() && state.is_stream() {
        connection.await.ok();
    }
    state.place.lock().take();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::access::Access;
    use super::*;
    use crate::engine::{Shared, View, WatchedRuntime};
    use std::io::{self, Read as _, Write as _};
    use std::net::{self, SocketAddr};

    /// More clients at one time than there are places.
    const CLIENTS: usize = 100;
    /// The bound of a test that would otherwise never end.
    const FOREVER: Duration = Duration::from_secs(60);

    /// A client that has sent a whole request, whether somebody accepts it or not.
    fn asks(address: SocketAddr, path: &str) -> net::TcpStream {
        let mut client = net::TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(FOREVER)).expect("a time");
        let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        client.write_all(head.as_bytes()).expect("it has room");
        client
    }

    /// Whether the client has its whole answer.
    fn is_answered(mut client: &net::TcpStream) -> bool {
        let mut answer = String::new();
        let read: io::Result<usize> = client.read_to_string(&mut answer);
        read.is_ok() && answer.starts_with("HTTP/1.1 200 ")
    }

    fn listens() -> (net::TcpListener, SocketAddr) {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    /// Accepts while the clients do this, and serves a view of a runtime without stalls.
    fn accepting<R>(listener: net::TcpListener, clients: impl FnOnce() -> R) -> R {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let tokio = builder.enable_all().build().expect("a runtime");
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let (watch, shared) = (runtime.watch.clone(), Arc::new(Shared::default()));
        shared.watched.lock().push(runtime);
        let address = listener.local_addr().expect("an address");
        let view = View { watch, shared };
        let routes = Arc::new(Routes::new(view, Access::new(address, None)));
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                tokio.block_on(async {
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    accept(&listener, &routes, &stopped).await;
                });
            });
            let outcome = clients();
            stop.notify_one();
            outcome
        })
    }

    #[test]
    fn all_requests_that_have_come_before_the_first_is_accepted_are_answered() {
        let (listener, address) = listens();
        let clients = [(); CLIENTS].map(|()| asks(address, "/health/live"));
        let answered = accepting(listener, || {
            clients.iter().filter(|client| is_answered(client)).count()
        });
        assert_eq!(answered, CLIENTS);
    }

    #[test]
    fn a_late_probe_is_answered_beside_clients_of_long_answers() {
        let (listener, address) = listens();
        let clients = [(); CLIENTS].map(|()| asks(address, "/stalls"));
        let (probe, answered) = accepting(listener, || {
            // The others have not read theirs.
            let probe = is_answered(&asks(address, "/health/live"));
            let answered = clients.iter().filter(|client| is_answered(client));
            (probe, answered.count())
        });
        assert!(probe);
        assert_eq!(answered, CLIENTS);
    }
}
