//! A recorder that is installed for the whole program after the start of a watch misses nothing.
//!
//! A program of its own: a process has one recorder, and installs it once.

mod support;

use std::time::Duration;
use support::scraped::{Scraped, wait_for};
use support::stage::Stage;
use tokio_stall::prometheus::{self, PrometheusBuilder};

#[test]
fn a_recorder_that_comes_late_has_everything() {
    let stage = Stage::multi_thread(2).start();
    for _ in 0..3 {
        stage.stall();
    }
    // In this time the figures have gone to nobody.
    std::thread::sleep(Duration::from_millis(1200));

    let builder = prometheus::configure(PrometheusBuilder::new()).unwrap();
    let handle = builder.install_recorder().unwrap();
    let count = "tokio_stall_stall_duration_seconds_count";
    let told = wait_for(
        || Some(Scraped::parse(&handle.render())),
        |scraped| {
            // The last of the series.
            let dropped = scraped.with("tokio_stall_dropped_total", &[]);
            scraped.sum(count, &[]) >= 3.0
                && dropped.count() == 4 + usize::from(cfg!(feature = "tower"))
        },
    );
    let certain = ["certainty=\"certain\""];
    assert_eq!(told.sum("tokio_stall_stalls_total", &certain), 3.0);
    assert_eq!(told.sum(count, &[]), 3.0);
    assert_eq!(told.sum("tokio_stall_build_info", &[]), 1.0);
    let help = "# HELP tokio_stall_stalls_total ";
    assert!(handle.render().contains(help), "described after all");
}
