//! Metrics, health and stalls over HTTP, also while the program's own server is stuck.
//!
//! *Runs on:* its own thread, `stall-serve`, with a runtime of its own.
//! *Must not:* touch a watched runtime. A slow client holds up this thread and no other.

mod connections;
mod routes;

use crate::engine::View;
use crate::os;
use routes::Routes;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// A running server. The drop ends it.
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
    /// Starts the thread that serves this view.
    pub(crate) fn serve(self, view: View) -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let routes = Arc::new(Routes::new(view, self.address.ip().is_loopback()));
        let main = move || runtime.block_on(run(self.listener, &routes, &stopped));
        let thread = os::spawn("stall-serve", main)?;
        Ok(Server {
            address: self.address,
            stop,
            thread: Some(thread),
        })
    }
}

/// The thread's main function, on its own runtime.
async fn run(listener: std::net::TcpListener, routes: &Arc<Routes>, stopped: &Notify) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => connections::accept(&listener, routes, stopped).await,
        Err(error) => {
            tracing::error!(target: "tokio_stall", "the server could not start: {error}");
        }
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
            // The thread waits for nothing, so it ends at once. A panic in it has been printed.
            thread.join().ok();
        }
    }
}
