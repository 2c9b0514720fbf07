//! A real axum service at saturation: what it serves, the load on it, and the figures of one round.
//!
//! The load is a process of its own. So the CPU time of the service's process is the service's and its watchers'
//! alone, and a subscriber or a runtime's hook there costs the load nothing. It drives its connections from one
//! thread, each sending its next request when the answer to the last one is complete. It is plain TCP with
//! `httparse`: what the load spends, the service does not get, and what it does not get waters down the difference
//! between two rows.

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
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::future::IntoFuture as _;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tracing::{Instrument as _, info_span};

/// A default runtime has as many as there are CPUs; set, so that figures from two machines can be compared.
pub(crate) const WORKERS: usize = 2;
pub(crate) const CONNECTIONS: usize = 32;
/// A second after its start, a detector opens the program's debug information, once. That is over by then.
const WARM_UP: Duration = Duration::from_millis(1_500);
pub(crate) const TIME: Duration = Duration::from_secs(1);
/// How long after the end an answer may come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request that stalls holds its worker: above the default threshold, by more than the quarter from
/// which on every stall is promised to be found.
pub(crate) const STALL: Duration = Duration::from_millis(15);

/// Places of the figures that [`measure`] returns.
pub(crate) const REQUESTS_PER_SECOND: usize = 0;
pub(crate) const P50: usize = 1;
pub(crate) const P99: usize = 2;
pub(crate) const P999: usize = 3;
/// Microseconds of CPU time for a request, of the whole process of the service.
pub(crate) const CPU: usize = 4;
/// How many there are. A benchmark may append its own.
pub(crate) const FIGURES: usize = 5;

/// The variable that tells a process that it is the load, and on which address.
const LOAD: &str = "TOKIO_STALL_BENCH_LOAD";
/// What the load writes when its warm-up is over.
const WARM: &str = "warm";
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
    let mut load = Command::new(std::env::current_exe().expect("the path of this program"))
        .env(LOAD, address.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts");
    let mut lines = BufReader::new(load.stdout.take().expect("it is piped")).lines();
    let mut line = || lines.next().expect("the load goes on").expect("text");

    assert_eq!(line(), WARM);
    let (cpu, served) = (cpu_time(), served());
    let mut figures: Vec<f64> = line()
        .split(' ')
        .map(|figure| figure.parse().expect("a figure"))
        .collect();
    let (cpu, served) = (cpu_time() - cpu, self::served() - served);
    assert!(load.wait().expect("it can be waited for").success());

    figures.push(cpu.as_nanos() as f64 / 1e3 / served as f64);
    assert_eq!(figures.len(), FIGURES);
    figures
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

/// What this process has spent so far, on all its threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it is not negative")
}

/// In a process that was started to be the load, drives it and ends the process. The first thing `main` does.
pub(crate) fn be_the_load_if_asked_for() {
    let Ok(address) = std::env::var(LOAD) else {
        return;
    };
    let address = address.parse().expect("an address");
    let figures = drive(address, || println!("{WARM}")).expect("the service answers");
    let figures: Vec<_> = figures.iter().map(f64::to_string).collect();
    println!("{}", figures.join(" "));
    std::process::exit(0);
}

/// Requests and their latencies, from the end of the warm-up on.
fn drive(address: SocketAddr, warm: impl FnOnce()) -> io::Result<[f64; 4]> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let latencies = Histogram::new(3).expect("three digits are allowed");
    let latencies = Arc::new(Mutex::new(latencies));
    let start = Instant::now() + WARM_UP;
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let latencies = latencies.clone();
            runtime.spawn(one_connection(address, start, latencies))
        })
        .collect();
    runtime.block_on(async {
        tokio::time::sleep_until(start.into()).await;
        warm();
        for connection in connections {
            let ended = tokio::time::timeout(TIME + PATIENCE, connection).await?;
            ended.expect("it does not panic")?;
        }
        io::Result::Ok(())
    })?;
    let latencies = latencies.lock().expect("nobody panicked");
    let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok([
        latencies.len() as f64 / TIME.as_secs_f64(),
        micros(0.5),
        micros(0.99),
        micros(0.999),
    ])
}

async fn one_connection(
    address: SocketAddr,
    start: Instant,
    latencies: Arc<Mutex<Histogram<u64>>>,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut answer = Vec::with_capacity(4096);
    loop {
        let asked = Instant::now();
        if asked > start + TIME {
            return Ok(());
        }
        stream.write_all(REQUEST).await?;
        answer.clear();
        while !is_complete(&answer)? {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if asked >= start {
            let took = asked.elapsed().as_nanos() as u64;
            latencies
                .lock()
                .expect("nobody panicked")
                .record(took)
                .expect("it grows");
        }
    }
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
