//! An actix-web service with a handler that blocks. Each of its threads has a runtime of its own,
//! and one call in the factory watches them all.
//!
//! `cargo run --release -p actix`; with `twin`, the same without a stall

use actix_web::dev::Server;
use actix_web::{App, HttpServer, get};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio_stall::{FutureExt as _, Guard, Phase};

/// Clients, one after another.
const REQUESTS: usize = 4;

#[get("/report")]
async fn report() -> String {
    if std::env::args().any(|argument| argument == "twin") {
        let rendered = actix_web::rt::task::spawn_blocking(render).await;
        return rendered.unwrap_or_default();
    }
    async { render() }.watched("report").await
}

/// Blocks the thread, and with it every other request that this thread serves.
#[inline(never)]
fn render() -> String {
    thread::sleep(Duration::from_millis(150)); // planted
    "report".to_owned()
}

// `settle` is common to these programs.
#[allow(unreachable_pub)]
#[path = "../../start/src/lib.rs"]
mod start;

// region watch
fn serve() -> Result<(Arc<Guard>, Server, SocketAddr), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let watch = tokio_stall::Builder::from_env().on_stall(|stall| {
        if stall.phase == Phase::Ended {
            eprintln!("{stall}");
        }
    });
    let watch = Arc::new(watch.start()?);
    let of_factory = watch.clone();
    let server = HttpServer::new(move || {
        // Runs on each thread of the server, and watches its runtime.
        if let Err(error) = of_factory.watch_here() {
            tracing::warn!("{error}");
        }
        App::new().service(report)
    });
    let server = server.workers(2).bind(("127.0.0.1", 0))?;
    let address = server.addrs()[0];
    Ok((watch, server.run(), address))
}
// endregion

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (watch, server, address) = serve()?;
    let stop = server.handle();
    let clients = thread::spawn(move || {
        for _ in 0..REQUESTS {
            let answer = ureq::get(&format!("http://{address}/report")).call();
            answer.expect("an answer");
        }
    });
    let watched = watch.clone();
    actix_web::rt::spawn(async move {
        while !clients.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        start::settle(&watched).await;
        stop.stop(true).await;
    });
    server.await?;
    for coverage in watch.coverage() {
        println!("watched {:?}", coverage.runtime);
    }
    println!("done");
    Ok(())
}
