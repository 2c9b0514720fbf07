//! The exporter for the whole program, installed from inside a runtime, answers while that runtime
//! is blocked.
//!
//! A program of its own: a process has one recorder, and installs it once.

mod support;

use std::net::SocketAddr;
use support::Held;
use support::scraped::{Scraped, free_address, get, wait_for};
use support::stage::Stage;
use tokio_stall::prometheus::{self, PrometheusBuilder};

/// The first answer that fits.
fn wait(address: SocketAddr, fits: impl Fn(&Scraped) -> bool) -> Scraped {
    let scrape = || get(address, "/metrics").map(|answer| Scraped::parse(&answer.body));
    wait_for(scrape, fits)
}

fn install(address: SocketAddr) -> bool {
    let builder = PrometheusBuilder::new().with_http_listener(address);
    prometheus::install(builder).is_ok()
}

#[test]
fn the_exporter_answers_while_its_runtime_is_blocked() {
    let address = free_address();
    let stage = Stage::multi_thread(2)
        .runtime(|builder| builder.max_blocking_threads(1))
        .start_after(|runtime| {
            let _inside = runtime.enter();
            assert!(install(address));
        });
    let _inside = stage.runtime.enter();
    wait(address, |scraped| {
        scraped.sum("tokio_stall_workers", &[]) == 2.0
    });

    // Nothing marks these polls: the thread of each worker must be known.
    support::wait_for_threads(&stage.watch);
    let (release, held) = Held::new();
    for _ in 0..2 {
        let (worker, pool) = (held.clone(), held.clone());
        stage.runtime.spawn(async move { worker.wait() });
        stage.runtime.spawn_blocking(move || pool.wait());
    }
    let during = wait(address, |scraped| scraped.stalled() == 2);
    let oldest = |scraped: &Scraped| scraped.sum("tokio_stall_longest_recent_seconds", &[]);
    wait(address, |scraped| {
        scraped.stalled() == 2 && oldest(scraped) > oldest(&during)
    });
    let kind = &during.types["tokio_stall_scheduler_lag_seconds"];
    assert_eq!(kind, "histogram");
    drop(release);
    wait(address, |scraped| scraped.stalled() == 0);
    assert!(!install(free_address()), "there is a recorder already");
}
