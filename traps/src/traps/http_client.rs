//! A blocking HTTP client in an async handler.
//!
//! People take the client they know, here `ureq`. Its `call` returns when the other side has
//! answered, and the worker waits in `recv` until then. The twin uses an async client, whose task
//! waits while the worker goes on.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside::SLOW;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "http-client",
    caught: Expects::Stall(Diagnosis {
        span: "http_client",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::Network)],
        advice: "async HTTP client",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

struct Clients {
    record: Record,
    upstream: String,
    blocking: ureq::Agent,
    not_blocking: reqwest::Client,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let clients = Clients {
        record: setup.record.clone(),
        upstream: start_upstream()?,
        blocking: ureq::Agent::config_builder()
            .proxy(None)
            .build()
            .new_agent(),
        not_blocking: reqwest::Client::builder().no_proxy().build()?,
    };
    Ok(Router::new()
        .route("/http-client", get(http_client))
        .route("/http-client/twin", get(http_client_twin))
        .with_state(Arc::new(clients)))
}

#[instrument(skip_all)]
async fn http_client(State(clients): State<Arc<Clients>>) -> Result<String, Failure> {
    let answer = clients.record.around(|| {
        let mut response = clients.blocking.get(&clients.upstream).call()?;
        response.body_mut().read_to_string()
    })?;
    Ok(answer)
}

#[instrument(skip_all)]
async fn http_client_twin(State(clients): State<Arc<Clients>>) -> Result<String, Failure> {
    let response = clients.not_blocking.get(&clients.upstream).send().await?;
    Ok(response.text().await?)
}

/// Starts a service that thinks for a while about every request, and returns its address.
fn start_upstream() -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/", listener.local_addr()?);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || answer_slowly(&connection));
        }
    });
    Ok(url)
}

fn answer_slowly(mut connection: &TcpStream) -> io::Result<()> {
    for line in BufReader::new(connection).lines() {
        if line?.is_empty() {
            break;
        }
    }
    thread::sleep(SLOW);
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nslow")
}
