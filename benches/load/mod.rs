//! A real axum service at saturation: what it serves, the load on it, and the figures of one round.
//!
//! The load is one thread of the same process, and its CPU time is taken off: with a process of its own, two CPUs
//! answered half as many requests, and the rounds differed more. Each of its connections sends the next request when
//! the answer to the last one is complete. It is plain TCP: what the load spends, the service does not get. It is on
//! no runtime, since a tool that watches tokio's tasks would watch the load's, too.

// Each program that includes this uses its part.
#![allow(dead_code)]

use crate::rounds::{Row, Table};
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::future::IntoFuture as _;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tracing::{Instrument as _, info_span};

/// A default runtime has as many as there are CPUs; set, so that figures from two machines can be compared.
pub(crate) const WORKERS: usize = 2;
pub(crate) const CONNECTIONS: usize = 32;
/// A second after its start, a detector opens the program's debug information, once. That is over by then.
const WARM_UP: Duration = Duration::from_millis(1_500);
pub(crate) const TIME: Duration = Duration::from_secs(1);
/// How long nothing may be answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request that stalls holds its worker: above the default threshold, by more than the quarter from
/// which on every stall is promised to be found.
pub(crate) const STALL: Duration = Duration::from_millis(15);

/// Places of the figures that [`measure`] returns.
pub(crate) const REQUESTS_PER_SECOND: usize = 0;
pub(crate) const P50: usize = 1;
pub(crate) const P99: usize = 2;
pub(crate) const P999: usize = 3;
/// Microseconds of CPU time for a request, of the whole process but the load.
pub(crate) const CPU: usize = 4;
/// How many there are. A benchmark may append its own.
pub(crate) const FIGURES: usize = 5;

const REQUEST: &[u8] = b"GET /orders/4711 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n";

static SERVED: AtomicU64 = AtomicU64::new(0);

/// One request in so many stalls.
#[derive(Clone, Copy)]
pub(crate) enum Stalls {
    None,
    OneIn(u64),
}

/// The runtime of a service that has set nothing.
pub(crate) fn builder() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(WORKERS).enable_all();
    builder
}

pub(crate) fn runtime() -> Runtime {
    builder().build().expect("a runtime")
}

/// What is served.
pub(crate) fn routes(stalls: Stalls) -> Router {
    Router::new()
        .route("/orders/{id}", get(order))
        .with_state(stalls)
}

/// The same, with a span around each request, as services have it.
pub(crate) fn routes_in_spans(stalls: Stalls) -> Router {
    routes(stalls).layer(from_fn(in_span))
}

async fn in_span(request: Request, next: Next) -> Response {
    let span = info_span!("request", path = request.uri().path());
    next.run(request).instrument(span).await
}

/// Which request stalls is counted, not drawn: all rows get the same share.
async fn order(State(stalls): State<Stalls>, Path(id): Path<u64>) -> Json<Order> {
    let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    if let Stalls::OneIn(requests) = stalls
        && served % requests == 0
    {
        std::thread::sleep(STALL);
    }
    Json(Order::of(id))
}

/// An answer of some 400 bytes.
#[derive(Serialize)]
struct Order {
    id: u64,
    customer: String,
    status: &'static str,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    article: String,
    quantity: u32,
    cents: u64,
}

impl Order {
    fn of(id: u64) -> Order {
        let line = |number: u64| Line {
            article: format!("article {number} of order {id}"),
            quantity: 3,
            cents: 1_999 * number,
        };
        Order {
            id,
            customer: format!("customer {}", id % 1_000),
            status: "shipped",
            lines: (1..=5).map(line).collect(),
        }
    }
}

/// Requests that this process has served so far.
pub(crate) fn served() -> u64 {
    SERVED.load(Ordering::Relaxed)
}

/// How many of them have stalled.
pub(crate) fn stalls_made(stalls: Stalls) -> u64 {
    match stalls {
        Stalls::None => 0,
        Stalls::OneIn(requests) => served() / requests,
    }
}

/// Serves, has a load driven against it, and returns the figures of the round.
///
/// # Panics
///
/// If anything goes wrong: a request that is not answered, or a load that ends early.
pub(crate) fn measure(runtime: &Runtime, routes: Router) -> Vec<f64> {
    let address = serve(runtime, routes).expect("a port of the loopback interface");
    std::thread::spawn(move || drive(address))
        .join()
        .expect("it does not panic")
        .expect("the service answers")
}

fn serve(runtime: &Runtime, routes: Router) -> io::Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| {
        // An answer that waits for an acknowledgement would measure that.
        stream.set_nodelay(true).expect("a TCP stream has it");
    });
    runtime.spawn(axum::serve(listener, routes).into_future());
    Ok(address)
}

/// A table of rows, each beside the one of them at the same place in `bases`, in the same round. `more` has a cell for
/// each of the columns that the header names besides.
pub(crate) fn show(
    table: &Table,
    rows: &[Row],
    bases: &[usize],
    columns: &[&str],
    more: impl Fn(&Row) -> Vec<String>,
) {
    let mut header = vec![
        "service",
        "requests/s",
        "× base",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "CPU µs per request",
        "× base",
    ];
    header.extend(columns);
    println!("| {} |", header.join(" | "));
    println!("|{}", "---|".repeat(header.len()));
    for (row, base) in rows.iter().zip(bases) {
        let figure = |place, decimals| table.figure(row.name, place).show(decimals);
        let ratio = |place| match rows[*base].name {
            base if base == row.name => "base".to_owned(),
            base => table.ratio(row.name, base, place).show(4),
        };
        let mut cells = vec![
            row.name.to_owned(),
            figure(REQUESTS_PER_SECOND, 0),
            ratio(REQUESTS_PER_SECOND),
            figure(P50, 0),
            figure(P99, 0),
            figure(P999, 0),
            figure(CPU, 2),
            ratio(CPU),
        ];
        cells.extend(more(row));
        println!("| {} |", cells.join(" | "));
    }
}

/// What this process has spent so far on all its threads but this one, and the requests it has served.
fn spent() -> (Duration, u64) {
    let clock = |id| Duration::try_from(clock_gettime(id)).expect("it is not negative");
    let this_thread = clock(ClockId::ThreadCPUTime);
    (clock(ClockId::ProcessCPUTime) - this_thread, served())
}

/// One that is kept alive, with a request under way.
struct Connection {
    stream: TcpStream,
    asked: Instant,
    answer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream: TcpStream::from_std(stream),
            asked: Instant::now(),
            answer: Vec::with_capacity(4096),
        })
    }

    fn ask(&mut self) -> io::Result<()> {
        self.asked = Instant::now();
        self.answer.clear();
        self.stream.write_all(REQUEST)
    }

    /// Reads what is there. When that completes the answer: how long it took.
    fn hear(&mut self) -> io::Result<Option<Duration>> {
        let mut part = [0; 4096];
        while !is_complete(&self.answer)? {
            match self.stream.read(&mut part) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.answer.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(self.asked.elapsed()))
    }
}

/// The figures, from the end of the warm-up on.
fn drive(address: SocketAddr) -> io::Result<Vec<f64>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(CONNECTIONS);
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        let mut connection = Connection::open(address)?;
        poll.registry()
            .register(&mut connection.stream, Token(number), Interest::READABLE)?;
        connection.ask()?;
        connections.push(connection);
    }
    let mut latencies = Histogram::<u64>::new(3).expect("three digits are allowed");
    let start = Instant::now() + WARM_UP;
    let mut before = None;
    while start.elapsed() < TIME {
        poll.poll(&mut events, Some(PATIENCE))?;
        if events.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            let Some(took) = connection.hear()? else {
                continue;
            };
            if connection.asked >= start {
                latencies
                    .record(took.as_nanos() as u64)
                    .expect("it grows with them");
            }
            connection.ask()?;
        }
        if before.is_none() && Instant::now() >= start {
            before = Some(spent());
        }
    }
    let ((cpu_before, served_before), (cpu, served)) = (before.expect("it was warm"), spent());
    let cpu = (cpu - cpu_before).as_nanos() as f64 / 1e3;
    let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    let figures = vec![
        latencies.len() as f64 / TIME.as_secs_f64(),
        micros(0.5),
        micros(0.99),
        micros(0.999),
        cpu / (served - served_before) as f64,
    ];
    assert_eq!(figures.len(), FIGURES);
    Ok(figures)
}

fn is_complete(answer: &[u8]) -> io::Result<bool> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).map_err(io::Error::other)? else {
        return Ok(false);
    };
    if head.code != Some(200) {
        return Err(io::Error::other(format!("{:?}", head.code)));
    }
    let body = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| {
            std::str::from_utf8(header.value)
                .ok()?
                .parse::<usize>()
                .ok()
        })
        .ok_or_else(|| io::Error::other("an answer without a length"))?;
    Ok(answer.len() >= length + body)
}
