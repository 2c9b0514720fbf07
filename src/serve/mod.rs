//! Metrics, health and stalls over HTTP, also while the program's own server is stuck.
//!
//! *Runs on:* its own thread, `stall-serve`, with a runtime of its own; and `stall-recorder`, which
//! writes files.
//! *Must not:* touch a watched runtime. A slow client holds up this thread and no other.

mod access;
mod connections;
mod events;
mod feed;
#[cfg(feature = "flamegraph")]
mod flamegraph;
mod lanes;
mod page;
mod profiles;
mod recording;
mod recordings;
mod routes;
mod stalls;

use crate::engine::View;
use crate::os;
use access::Access;
pub(crate) use access::ServeToken;
pub(crate) use recordings::{Recordings, try_directory};
use routes::Routes;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Notify;

/// The time between two exports while nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(10);
/// The same, if there is much to export.
const BUSY_UPKEEP: Duration = Duration::from_secs(1);

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
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the thread that serves this view.
    pub(crate) fn serve(self, view: View, token: Option<ServeToken>) -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let routes = Arc::new(Routes::new(view, Access::new(self.address, token)));
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
        Ok(listener) => {
            // It ends with the runtime.
            drop(tokio::spawn(keep_up(routes.clone())));
            let news = routes.clone();
            drop(tokio::spawn(async move { news.events.run().await }));
            connections::accept(&listener, routes, stopped).await;
            drop(listener);
            routes.events.end().await;
        }
        Err(error) => {
            tracing::error!(target: "tokio_stall", "the server could not start: {error}");
        }
    }
}

/// Exports and drains now and then, so that a scrape after a long time is no larger than others.
async fn keep_up(routes: Arc<Routes>) {
    let mut pause = UPKEEP;
    loop {
        tokio::time::sleep(pause).await;
        pause = if routes.keep_up() {
            BUSY_UPKEEP
        } else {
            UPKEEP
        };
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
            // The thread waits for a tenth of a second at most, until open pages have its last
            // words. A panic in it has been printed.
            thread.join().ok();
        }
    }
}

/// The file name of the program.
fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name();
    name.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::{Shared, WatchedRuntime};

    #[test]
    fn figures_are_taken_while_nobody_scrapes() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let tokio = builder.enable_time().start_paused(true).build().unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let shared = Arc::new(Shared::default());
        shared.watched.lock().push(runtime.clone());
        let watch = runtime.watch.clone();
        let routes = Arc::new(Routes::new(
            View { watch, shared },
            Access::new(([127, 0, 0, 1], 0).into(), None),
        ));
        tokio.block_on(async {
            let lag = &runtime.stats.scheduler_lag;
            // More than one export takes.
            let all = 100_000;
            (0..all).for_each(|_| lag.note(Duration::from_micros(20)));
            let count = |wanted: u32| {
                let line = "tokio_stall_scheduler_lag_seconds_count{runtime=\"test\"}";
                let text = routes.rendered_so_far();
                assert!(text.contains(&format!("{line} {wanted}\n")), "{text}");
            };
            count(0);
            drop(tokio::spawn(keep_up(routes.clone())));
            tokio::time::sleep(UPKEEP * 2).await;
            count(all);
        });
    }
}
