//! console-subscriber: a layer for the spans which tokio has around its tasks, and a server that nobody is connected
//! to while we measure, as it is in a service nobody looks at.

use console_api::instrument::InstrumentRequest;
use console_api::instrument::instrument_client::InstrumentClient;
use console_subscriber::ConsoleLayer;
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

/// The polls of all tasks, as the server tells its first client.
pub fn polls_recorded(address: SocketAddr) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let first_update = async {
        let mut client = InstrumentClient::connect(format!("http://{address}")).await?;
        let updates = client.watch_updates(InstrumentRequest {}).await?;
        let update = updates.into_inner().message().await?;
        Ok::<_, Box<dyn std::error::Error>>(update.expect("an update"))
    };
    let update = runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(10), first_update).await })
        .expect("an update within seconds")
        .expect("its server answers");
    let tasks = update.task_update.map(|tasks| tasks.stats_update);
    let polls = tasks.iter().flat_map(|tasks| tasks.values());
    polls
        .filter_map(|task| Some(task.poll_stats.as_ref()?.polls))
        .sum()
}
