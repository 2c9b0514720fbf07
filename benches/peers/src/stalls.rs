//! tokio-stall: a task that blocks must be reported, by the mark it is under.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_stall::{Guard, StallReport};

/// Long enough for a default threshold of 10 ms, however busy the machine.
pub const STALL: Duration = Duration::from_millis(50);

/// Waits until a stall like that is among those reported.
///
/// # Panics
///
/// If that takes more than seconds.
pub fn has_reported(watch: &Guard, is_it: impl Fn(&StallReport) -> bool) {
    let start = Instant::now();
    while !watch.recent().iter().any(&is_it) {
        let seen = watch.recent();
        assert!(start.elapsed() < Duration::from_secs(10), "{seen:#?}");
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
