//! tokio-stall: a task that blocks must be reported, by the mark it is under.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_stall::{Guard, StallReport};

/// Long enough for a default threshold of 10 ms, however busy the machine.
pub const STALL: Duration = Duration::from_millis(50);

/// The stalls reported so far, once there is one.
///
/// # Panics
///
/// If there is none within seconds.
pub fn reported(watch: &Guard) -> Vec<StallReport> {
    let start = Instant::now();
    loop {
        let stalls = watch.recent();
        if !stalls.is_empty() {
            return stalls;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no stall seen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A task that blocks its worker, once.
pub struct Blocking;

impl Future for Blocking {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        std::thread::sleep(STALL);
        Poll::Ready(())
    }
}
