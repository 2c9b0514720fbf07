//! The exporter for the whole program, installed from inside a runtime, answers while that runtime is blocked.
//! One test, since a recorder is installed once in a process.

mod scraped;
mod seen;

use scraped::{Scraped, get};
use seen::{FOREVER, Seen};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio_stall::prometheus::{self, PrometheusBuilder};

/// Free now, and likely still free in a moment.
fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The first answer that fits; while the exporter starts, there may be none.
fn wait(address: SocketAddr, fits: impl Fn(&Scraped) -> bool) -> Scraped {
    let deadline = Instant::now() + FOREVER;
    loop {
        let answer = get(address, "/metrics").map(|answer| Scraped::parse(&answer.body));
        match answer {
            Some(scraped) if fits(&scraped) => return scraped,
            answer => assert!(Instant::now() < deadline, "waited in vain: {answer:#?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_exporter_answers_while_the_runtime_it_was_installed_in_is_blocked() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = free_address();
    let _inside = runtime.enter();
    prometheus::install(PrometheusBuilder::new().with_http_listener(address)).unwrap();
    let (_watch, _) = Seen::watch();
    wait(address, |scraped| {
        scraped.sum("tokio_stall_workers", &[]) == 2.0
    });

    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    for _ in 0..2 {
        let (worker, pool) = (held.clone(), held.clone());
        runtime.spawn(async move { worker.lock().unwrap().recv().ok() });
        runtime.spawn_blocking(move || pool.lock().unwrap().recv().ok());
    }
    let stalled = |scraped: &Scraped| {
        let workers = scraped.with("tokio_stall_worker_stalled_seconds", &[]);
        workers.filter(|(_, age)| *age > 0.0).count()
    };
    let during = wait(address, |scraped| stalled(scraped) == 2);
    wait(address, |scraped| {
        let oldest = |scraped: &Scraped| scraped.sum("tokio_stall_longest_recent_seconds", &[]);
        stalled(scraped) == 2 && oldest(scraped) > oldest(&during)
    });
    assert_eq!(
        during.types["tokio_stall_scheduler_lag_seconds"],
        "histogram"
    );
    drop(release);
    wait(address, |scraped| stalled(scraped) == 0);

    let again = prometheus::install(PrometheusBuilder::new().with_http_listener(free_address()));
    assert!(again.is_err(), "there is a recorder already");
}
