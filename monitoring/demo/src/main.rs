//! A service to try the metrics and the dashboard with: it blocks when asked to.
//!
//! ```sh
//! cargo run --release -p demo
//! curl 'localhost:8080/block?ms=300'             # asleep on a worker
//! curl 'localhost:8080/block?ms=300&how=cpu'     # computing
//! curl 'localhost:8080/fill?ms=3000'             # all threads of the blocking pool are taken
//! curl localhost:9464/metrics
//! curl localhost:9464/stalls
//! ```
//!
//! With `--traffic 20 --blocking 30` it asks by itself: 20 well-behaved requests a second, and 30 a minute that
//! block.

mod blocking;
mod traffic;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use blocking::How;
use clap::Parser;
use serde::Deserialize;
use std::net::SocketAddr;
use std::time::Duration;
use tokio_stall::Liveness;
use tokio_stall::tower::RequestLayer;
use tracing::Instrument as _;
use tracing_subscriber::prelude::*;

/// Few enough that `/fill` can take them all.
const BLOCKING_THREADS: usize = 16;

/// A service that blocks when asked to, with metrics about it.
#[derive(Parser)]
struct Options {
    /// Where the service listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where metrics, health and stalls are served.
    #[arg(long, default_value = "127.0.0.1:9464")]
    metrics: SocketAddr,
    /// Requests of its own: so many well-behaved ones a second …
    #[arg(long, default_value_t = 0)]
    traffic: u32,
    /// … and so many a minute that block.
    #[arg(long, default_value_t = 0)]
    blocking: u32,
}

#[derive(Deserialize)]
struct Block {
    /// For how long, in milliseconds; a minute at most.
    #[serde(default = "a_moment")]
    ms: u64,
    #[serde(default)]
    how: How,
    /// On how many workers at the same time.
    #[serde(default = "one")]
    workers: usize,
}

#[derive(Deserialize)]
struct Fill {
    /// For how long, in milliseconds; a minute at most.
    #[serde(default = "a_moment")]
    ms: u64,
}

fn a_moment() -> u64 {
    200
}

fn one() -> usize {
    1
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?
        .block_on(serve())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .with(
            tracing_subscriber::fmt::layer()
                .with_filter(tracing_subscriber::filter::LevelFilter::INFO),
        )
        .init();
    let options = Options::parse();
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen at {}: {error}", options.listen))?;
    let watch = tokio_stall::Builder::new()
        .runtime("api", tokio::runtime::Handle::current())
        .liveness(Liveness::default().one_worker(Some(Duration::from_secs(30))))
        .serve(options.metrics)
        .start()?;
    if let Some(address) = watch.served_at() {
        println!(
            "service at http://{}, metrics at http://{address}",
            listener.local_addr()?
        );
    }
    if options.traffic > 0 || options.blocking > 0 {
        let service = listener.local_addr()?;
        // On a thread of its own, as clients are elsewhere: it does not stall with the service.
        std::thread::spawn(move || traffic::run(service, options.traffic, options.blocking));
    }
    let router = Router::new()
        .route("/", get(hello))
        .route("/report", get(report))
        .route("/block", get(block))
        .route("/fill", get(fill))
        .layer(RequestLayer::new());
    axum::serve(listener, router).await?;
    Ok(())
}

async fn hello() -> &'static str {
    async {
        // As if a database were asked.
        tokio::time::sleep(Duration::from_millis(40)).await;
        "hello\n"
    }
    .instrument(tracing::info_span!("hello"))
    .await
}

/// Some honest work, off the workers.
async fn report() -> Result<Json<u64>, StatusCode> {
    let sum = tokio::task::spawn_blocking(|| (0..2_000_000_u64).fold(0, |sum, next| sum ^ next));
    let sum = sum.instrument(tracing::info_span!("report")).await;
    sum.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn block(Query(asked): Query<Block>) -> String {
    let time = Duration::from_millis(asked.ms.min(60_000));
    let workers = asked.workers.clamp(1, 64);
    let held = (0..workers).map(|_| {
        tokio::spawn(
            async move { asked.how.block_for(time) }.instrument(tracing::info_span!("block")),
        )
    });
    for task in held.collect::<Vec<_>>() {
        task.await.ok();
    }
    format!("blocked {workers} times for {time:?}\n")
}

/// Takes all threads of the blocking pool, and has as many closures wait for one.
async fn fill(Query(asked): Query<Fill>) -> String {
    let time = Duration::from_millis(asked.ms.min(60_000));
    let closures = 2 * BLOCKING_THREADS;
    let waiting =
        (0..closures).map(|_| tokio::task::spawn_blocking(move || std::thread::sleep(time)));
    for closure in waiting.collect::<Vec<_>>() {
        closure.await.ok();
    }
    format!("{closures} closures took {BLOCKING_THREADS} threads for {time:?} each\n")
}
