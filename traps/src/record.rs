//! What really happened: the blocking code's own note of when it began and when it was over.

use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Time that was blocked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

impl Blocked {
    pub(crate) fn lasted(&self) -> Duration {
        self.until - self.from
    }
}

/// Where traps put their notes, for the judge.
#[derive(Clone, Debug)]
pub(crate) struct Record(UnboundedSender<Blocked>);

pub(crate) fn channel() -> (Record, UnboundedReceiver<Blocked>) {
    let (sender, receiver) = unbounded_channel();
    (Record(sender), receiver)
}

impl Record {
    /// Runs `block`, and notes how long it took.
    pub(crate) fn around<R>(&self, block: impl FnOnce() -> R) -> R {
        let from = Instant::now();
        let result = block();
        self.since(from);
        result
    }

    /// Notes what began at `from` and is over now.
    pub(crate) fn since(&self, from: Instant) {
        let until = Instant::now();
        // Without a judge nobody wants to know.
        self.0.send(Blocked { from, until }).ok();
    }
}
