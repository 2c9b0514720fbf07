//! Metrics, health and stalls over HTTP, while the program's own server may be what is stuck.
//!
//! *Runs on:* its own thread, `stall-serve`, with a runtime of its own.
//! *Here:* touches no watched runtime. Whatever clients do, they hold this thread up and nothing else.

mod connections;
mod routes;

use crate::engine::View;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// An address that has been bound, and is not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

/// Binds the address now, so that the start fails if it is taken.
pub(crate) fn bind(address: SocketAddr) -> io::Result<Bound> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// Serves what this view shows.
    pub(crate) fn serve(self, view: View) -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let routes = Arc::new(routes::Routes::new(view));
        let main = move || {
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(self.listener) {
                    Ok(listener) => connections::accept(&listener, &routes, &stopped).await,
                    Err(error) => {
                        tracing::error!(target: "tokio_stall", "the server could not start: {error}");
                    }
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("stall-serve".to_owned())
            .spawn(main)?;
        Ok(Server {
            address: self.address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // It waits for nobody, so it ends at once; a panic of ours has been printed where it happened.
            thread.join().ok();
        }
    }
}
