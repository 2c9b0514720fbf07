//! A gRPC service of tonic, whose requests are watched: the health service, with a layer that
//! blocks now and then.
//!
//! `cargo run --release -p requests --bin tonic`; with `twin`, the same without stalls

use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stall::Phase;
use tokio_stall::tower::RequestLayer;
use tonic::service::{Interceptor, InterceptorLayer};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{self, Channel, Server};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Requests of one client.
const REQUESTS: usize = 40;

/// Looks the caller up. Every tenth time the list of callers is loaded anew, which blocks.
#[derive(Clone)]
struct Authorize {
    loads: bool,
}

impl Interceptor for Authorize {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let number = request.metadata().get("number");
        let number = number.and_then(|number| number.to_str().ok()?.parse::<usize>().ok());
        if self.loads && number.is_some_and(|number| number % 10 == 9) {
            load_callers();
        }
        Ok(request)
    }
}

#[inline(never)]
fn load_callers() {
    std::thread::sleep(Duration::from_millis(120)); // planted
}

// `settle` is common to these programs.
#[allow(unreachable_pub)]
#[path = "../../../start/src/lib.rs"]
mod start;

// region watch
fn observe() -> Result<tokio_stall::Guard, tokio_stall::StartError> {
    tracing_subscriber::fmt().init();
    tokio_stall::Builder::from_env()
        .on_slow_request(Duration::from_millis(50), |request| eprintln!("{request}"))
        .on_stall(|stall| {
            if stall.phase == Phase::Ended {
                eprintln!("{stall}");
            }
        })
        .start()
}

async fn serve(listener: TcpListener, authorize: Authorize) -> Result<(), transport::Error> {
    let (_, health) = tonic_health::server::health_reporter();
    Server::builder()
        .layer(RequestLayer::new().by_path(true)) // one path for each method
        .layer(InterceptorLayer::new(authorize))
        .add_service(health)
        .serve_with_incoming(TcpIncoming::from(listener))
        .await
}
// endregion

#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let watch = observe()?;
    let loads = !std::env::args().any(|argument| argument == "twin");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve(listener, Authorize { loads }));
    let channel = Channel::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let clients = (0..4).map(|_| tokio::spawn(client(channel.clone())));
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    start::settle(&watch).await;
    server.abort();
    println!("done");
    Ok(())
}

async fn client(channel: Channel) -> Result<(), Status> {
    let mut health = HealthClient::new(channel);
    for number in 0..REQUESTS {
        let mut request = Request::new(HealthCheckRequest::default());
        let number = number.to_string().parse().expect("digits are ASCII");
        request.metadata_mut().insert("number", number);
        health.check(request).await?;
    }
    Ok(())
}
