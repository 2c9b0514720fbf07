//! Common parts of the programs in `src/bin`.

use std::time::{Duration, Instant};
use tokio_stall::{Guard, Phase};

/// Waits until the stalls so far have had their last report, for 30 s at most.
///
/// A service that goes on needs no such thing. These programs end at once, and the first report
/// with a line takes a second or more, because it reads the debug information of an unoptimised
/// program.
pub async fn settle(watch: &Guard) {
    let until = Instant::now() + Duration::from_secs(30);
    let goes_on = || {
        let recent = watch.recent();
        !watch.stalled_now().is_empty() || recent.iter().any(|stall| stall.phase != Phase::Ended)
    };
    while goes_on() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The log follows the report.
    tokio::time::sleep(Duration::from_millis(200)).await;
}
