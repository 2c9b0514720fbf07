//! The world outside the service, which is slow: locks, pools and peers that are somebody else's for
//! a while.

use crate::failure::Failure;
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long everything outside takes.
pub(crate) const SLOW: Duration = Duration::from_millis(150);

/// Has a thread take something and keep it for a while. Returns once it is taken.
pub(crate) async fn hold(
    taker: impl FnOnce(Taken) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let (taken, is_taken) = oneshot::channel();
    thread::spawn(move || taker(Taken(taken)));
    // A thread that failed to take it has dropped its end.
    Ok(is_taken.await?)
}

/// For the thread to say: I have it.
pub(crate) struct Taken(oneshot::Sender<()>);

impl Taken {
    /// Tells whoever waits, and keeps what has been taken for as long as everything outside takes.
    pub(crate) fn keep(self) {
        if self.0.send(()).is_ok() {
            thread::sleep(SLOW);
        }
    }
}
