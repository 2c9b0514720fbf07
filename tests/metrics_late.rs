//! A recorder that is installed for the whole program, after the watch was started: nothing is lost.
//! One test, since a recorder is installed once in a process.

mod scraped;
mod seen;

use scraped::Scraped;
use seen::{FOREVER, Seen};
use std::time::{Duration, Instant};
use tokio_stall::Phase;
use tokio_stall::prometheus::{self, PrometheusBuilder};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_that_comes_late_hears_everything() {
    let (watch, seen) = Seen::watch();
    for _ in 0..3 {
        seen.marked_stall_until_told().await;
    }
    let ended = |seen: &Seen| {
        let all = seen.all();
        all.iter()
            .filter(|report| report.phase == Phase::Ended)
            .count()
    };
    let deadline = Instant::now() + FOREVER;
    while ended(&seen) < 3 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Long enough for the nobody who listens to have been told.
    tokio::time::sleep(Duration::from_millis(1200)).await;

    let handle = prometheus::configure(PrometheusBuilder::new())
        .unwrap()
        .install_recorder()
        .unwrap();
    let told = loop {
        let scraped = Scraped::parse(&handle.render());
        let told = scraped.sum("tokio_stall_stall_duration_seconds_count", &[]) >= 3.0;
        // The last of what is told.
        if told && scraped.with("tokio_stall_dropped_total", &[]).count() == 4 {
            break scraped;
        }
        assert!(Instant::now() < deadline, "{scraped:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        told.sum("tokio_stall_stalls_total", &["certainty=\"certain\""]),
        3.0
    );
    assert_eq!(
        told.sum("tokio_stall_stall_duration_seconds_count", &[]),
        3.0
    );
    assert_eq!(told.sum("tokio_stall_build_info", &[]), 1.0);
    assert!(
        handle.render().contains("# HELP tokio_stall_stalls_total "),
        "described after all"
    );
    drop(watch);
}
