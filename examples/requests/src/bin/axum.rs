//! An axum service with one handler that blocks, under load. Each slow request is told with the
//! parts of its time, and the stalls that held it up.
//!
//! `cargo run --release -p requests --bin axum`; with `twin`, the same without stalls

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_stall::Phase;
use tokio_stall::tower::RequestLayer;
use tower_http::trace::TraceLayer;

/// Slower requests are told of.
const SLOW: Duration = Duration::from_millis(100);
/// How long the clients send requests.
const LOAD: Duration = Duration::from_secs(3);

mod cache {
    /// Loads everything anew, and blocks its worker meanwhile.
    pub(crate) fn rebuild() {
        std::thread::sleep(std::time::Duration::from_millis(300)); // planted
    }

    /// The same, on the blocking pool.
    pub(crate) async fn rebuild_beside() {
        tokio::task::spawn_blocking(rebuild).await.ok();
    }
}

mod database {
    /// A driver that blocks, so it is called on the blocking pool.
    pub(crate) fn find(id: u64) -> String {
        std::thread::sleep(std::time::Duration::from_millis(5));
        format!("user {id}")
    }
}

async fn user(Path(id): Path<u64>) -> Result<String, StatusCode> {
    let query = tokio::task::spawn_blocking(move || database::find(id));
    query.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn rebuild() -> &'static str {
    if std::env::args().any(|argument| argument == "twin") {
        cache::rebuild_beside().await;
    } else {
        cache::rebuild();
    }
    "rebuilt"
}

// `settle` is common to these programs.
#[allow(unreachable_pub)]
#[path = "../../../start/src/lib.rs"]
mod start;

// region watch
use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;

fn observe() -> Result<tokio_stall::Guard, tokio_stall::StartError> {
    // The span of `TraceLayer` is DEBUG. The log stays at INFO.
    tracing_subscriber::registry()
        .with(tokio_stall::layer().with_max_level(LevelFilter::DEBUG))
        .with(tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO))
        .init();
    tokio_stall::Builder::from_env()
        .on_slow_request(SLOW, |request| eprintln!("{request}"))
        .on_stall(|stall| {
            if stall.phase == Phase::Ended {
                eprintln!("{stall}");
            }
        })
        .start()
}

fn service() -> Router {
    Router::new()
        .route("/users/{id}", get(user))
        .route("/rebuild", post(rebuild))
        .layer(RequestLayer::new())
        .layer(TraceLayer::new_for_http())
}
// endregion

// As in a container with one CPU.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let watch = observe()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move { axum::serve(listener, service()).await });
    tokio::task::spawn_blocking(move || load(address)).await?;
    start::settle(&watch).await;
    server.abort();
    println!("done");
    Ok(())
}

/// Eight clients ask for users, one rebuilds the cache now and then.
fn load(address: SocketAddr) {
    let until = Instant::now() + LOAD;
    let goes_on = move || Instant::now() < until;
    let mut clients = Vec::new();
    for id in 0..8 {
        clients.push(thread::spawn(move || {
            let agent = ureq::agent();
            while goes_on() {
                let users = format!("http://{address}/users/{id}");
                agent.get(&users).call().expect("an answer");
            }
        }));
    }
    while goes_on() {
        thread::sleep(Duration::from_millis(500));
        let rebuild = format!("http://{address}/rebuild");
        ureq::post(&rebuild).send_empty().expect("an answer");
    }
    clients
        .into_iter()
        .for_each(|client| client.join().expect("it ends"));
}
