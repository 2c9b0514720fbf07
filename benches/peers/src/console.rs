//! console-subscriber: a layer for the spans which tokio has around its tasks, and a server that nobody is connected
//! to while we measure, as it is in a service nobody looks at.

use console_api::instrument::InstrumentRequest;
use console_api::instrument::instrument_client::InstrumentClient;
use console_subscriber::ConsoleLayer;
use std::collections::HashMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// The layer with its defaults, and where its server, on a thread of its own, is.
pub fn layer<S>() -> (impl Layer<S>, SocketAddr)
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    // It does not tell which port it has taken, so it gets one that was free a moment ago.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on loopback");
    let address = free.local_addr().expect("its address");
    drop(free);
    let layer = ConsoleLayer::builder().server_addr(address).spawn();
    (layer, address)
}

/// Waits until its server has told a client of at least so many polls, of all tasks together.
///
/// # Panics
///
/// If that takes more than seconds.
pub fn has_recorded(address: SocketAddr, at_least: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut polls = HashMap::new();
    let told = async {
        let mut client = InstrumentClient::connect(format!("http://{address}")).await?;
        let updates = client.watch_updates(InstrumentRequest {}).await?;
        let mut updates = updates.into_inner();
        // The first may come before the last spans have been looked at, and later ones are of what is new.
        while polls.values().sum::<u64>() < at_least {
            let update = updates.message().await?.ok_or("no further update")?;
            let tasks = update.task_update.map(|tasks| tasks.stats_update);
            for (task, stats) in tasks.into_iter().flatten() {
                polls.insert(task, stats.poll_stats.map_or(0, |stats| stats.polls));
            }
        }
        Ok::<_, Box<dyn Error>>(())
    };
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(10), told).await })
        .unwrap_or_else(|_| panic!("told of {} polls only", polls.values().sum::<u64>()))
        .expect("its server answers");
}
