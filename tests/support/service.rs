//! A real HTTP service on a stage, with the reports of all its requests.

use super::FOREVER;
use super::stage::Stage;
use axum::Router;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stall::tower::RequestReport;

pub struct Service {
    pub stage: Stage,
    pub address: SocketAddr,
    pub requests: Receiver<RequestReport>,
}

impl Service {
    /// Serves a router that has a `RequestLayer`, on a runtime with this many workers.
    pub fn start(workers: usize, router: Router) -> Service {
        let (reported, requests) = channel();
        let report = move |request: &RequestReport| {
            reported.send(request.clone()).ok();
        };
        let settings =
            |builder: tokio_stall::Builder| builder.on_slow_request(Duration::ZERO, report);
        let stage = Stage::multi_thread(workers).settings(settings).start();
        let listener = stage.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serve = async move { axum::serve(listener, router).await };
        stage.runtime.spawn(serve);
        Service {
            stage,
            address,
            requests,
        }
    }

    /// The report of the next request to end.
    #[track_caller]
    pub fn next_request(&self) -> RequestReport {
        self.requests
            .recv_timeout(FOREVER)
            .expect("a request's report")
    }
}

/// One request on a connection of its own. The value is the response, with its head.
pub fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(FOREVER * 3)).expect("a time");
    let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response
}
