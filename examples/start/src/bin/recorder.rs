//! A service with a metrics recorder of its own. The figures of the detector are beside those of
//! the service, and are answered while every worker is blocked.
//!
//! `cargo run -p start --bin recorder`; with `twin`, the same without a stall

use axum::Router;
use axum::routing::get;
use std::error::Error;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stall::{Builder, Guard};
// region watch
use tokio_stall::prometheus::{self, PrometheusBuilder};

/// In place of `PrometheusBuilder::install`, which puts the exporter on the runtime.
fn observe(address: SocketAddr) -> Result<Guard, Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    prometheus::install(PrometheusBuilder::new().with_http_listener(address))?;
    Ok(tokio_stall::watch()?)
}
// endregion

async fn order() -> &'static str {
    metrics::counter!("orders_total").increment(1);
    if std::env::args().any(|argument| argument == "twin") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    } else {
        reserve();
    }
    "ordered"
}

/// A client that blocks.
#[inline(never)]
fn reserve() {
    thread::sleep(Duration::from_secs(1)); // planted
}

// With one worker, each stall holds the whole runtime.
#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn Error>> {
    let exporter = free_address()?;
    let watch = observe(exporter)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let service = listener.local_addr()?;
    let router = Router::new().route("/order", get(order));
    tokio::spawn(async { axum::serve(listener, router).await });
    // Stalls of the first two seconds are not logged.
    tokio::time::sleep(Builder::DEFAULT_STARTUP_GRACE).await;
    let order = move || ureq::get(&format!("http://{service}/order")).call();
    let order = thread::spawn(order);
    let during = move || {
        thread::sleep(Duration::from_millis(500));
        show("during the order", exporter)
    };
    tokio::task::spawn_blocking(during).await??;
    order.join().expect("no panic")?;
    start::settle(&watch).await;
    // Counters are exported once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    show("after the order", exporter)?;
    println!("done");
    Ok(())
}

/// Prints the service's own figures, and those of stalls that are not zero.
fn show(when: &str, exporter: SocketAddr) -> Result<(), ureq::Error> {
    let mut answer = ureq::get(&format!("http://{exporter}/metrics")).call()?;
    let text = answer.body_mut().read_to_string()?;
    println!("{when}:");
    let shown = [
        "orders_total",
        "tokio_stall_worker_stalled_seconds{",
        "tokio_stall_stalls_by_site_total{",
    ];
    for line in text.lines().filter(|line| !line.ends_with(" 0")) {
        if shown.iter().any(|name| line.starts_with(name)) {
            println!("  {line}");
        }
    }
    Ok(())
}

fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}
