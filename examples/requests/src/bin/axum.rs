//! An axum service with one handler that blocks, under load. Each slow request is told with the
//! parts of its time, and the stalls that held it up.
//!
//! `cargo run --release -p requests --bin axum`

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
        std::thread::sleep(std::time::Duration::from_millis(300));
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
    cache::rebuild();
    "rebuilt"
}

// As in a container with one CPU.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .init();
    let _watch = tokio_stall::Builder::new()
        .on_slow_request(SLOW, |request| println!("{request}"))
        .on_stall(|stall| {
            if stall.phase == Phase::Ended {
                println!("{stall}");
            }
        })
        .start()?;
    let router = Router::new()
        .route("/users/{id}", get(user))
        .route("/rebuild", post(rebuild))
        .layer(RequestLayer::new())
        .layer(TraceLayer::new_for_http());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    tokio::task::spawn_blocking(move || load(address)).await?;
    server.abort();
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
