//! Tasks that yield on a worker: what a poll costs where it is paid.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Polls in one round, all tasks together, and the tasks.
pub(crate) const POLLS: usize = 3_000_000;
pub(crate) const TASKS: usize = 16;

/// Asks to be polled again, so many times.
pub(crate) struct Yielding(usize);

impl Future for Yielding {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

pin_project_lite::pin_project! {
    /// Reads the clock before and after each poll.
    pub(crate) struct Clocked<F> {
        #[pin]
        pub(crate) inner: F,
    }
}

impl<F: Future> Future for Clocked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let start = Instant::now();
        let poll = self.project().inner.poll(context);
        black_box(start.elapsed());
        poll
    }
}

/// Nanoseconds a poll, from the first task's spawn to the last one's end, after a fifth as many to warm up.
pub(crate) fn nanos_a_poll(
    runtime: &Runtime,
    spawn: impl Fn(Yielding) -> JoinHandle<()> + Send + Sync + 'static,
) -> Vec<f64> {
    // Spawned from the worker itself: the thread in `block_on` is none.
    let work = runtime.spawn(async move {
        let round = |polls: usize| {
            let tasks: Vec<_> = (0..TASKS).map(|_| spawn(Yielding(polls / TASKS))).collect();
            async move {
                for task in tasks {
                    task.await.expect("it does not panic");
                }
            }
        };
        round(POLLS / 5).await;
        let start = Instant::now();
        round(POLLS).await;
        start.elapsed().as_nanos() as f64 / POLLS as f64
    });
    vec![runtime.block_on(work).expect("it does not panic")]
}
