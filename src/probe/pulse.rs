//! Pulses: tiny tasks that tell which thread is which worker, and how long a ready task waits.
//!
//! *Runs on:* sent from the pulse thread, and by whoever starts a watch; received on worker threads as an
//! ordinary poll.
//! *Must not:* block: a pulse's poll takes well under a microsecond. Only the gatherings hold workers, for at
//! most two milliseconds each at the start, so that every worker takes one, and for less than that later on,
//! while some worker is not known.

use crate::clock::{self, Nanos};
use crate::slot;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;

/// One task that lives on a watched runtime and is woken from outside now and then.
#[derive(Debug)]
pub(crate) struct Pulse {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waker: Mutex<Option<Waker>>,
    /// When the pulse under way was sent; 0 while there is none.
    sent_at: AtomicU64,
    /// How long the last one took, in nanoseconds; taken by the sender.
    lag: AtomicU64,
    stop: AtomicBool,
    gone: AtomicBool,
}

impl Pulse {
    /// Spawns the task; `None` if the runtime has been shut down.
    pub(crate) fn spawn(runtime: &Handle) -> Option<Pulse> {
        let shared = Arc::new(Shared::default());
        shared.sent_at.store(clock::now().0, Ordering::Release);
        let task = runtime.spawn(Receiver(shared.clone()));
        let shut_down = task.is_finished() && shared.gone.load(Ordering::Acquire);
        (!shut_down).then_some(Pulse { shared })
    }

    /// Sends a pulse unless one is under way.
    pub(crate) fn send(&self) {
        if self.shared.sent_at.load(Ordering::Acquire) != 0 {
            return;
        }
        let waker = self.shared.waker.lock().take();
        if let Some(waker) = waker {
            self.shared.sent_at.store(clock::now().0, Ordering::Release);
            waker.wake();
        }
    }

    /// When the pulse under way was sent.
    #[cfg(feature = "metrics")]
    pub(crate) fn sent_at(&self) -> Option<Nanos> {
        match self.shared.sent_at.load(Ordering::Acquire) {
            0 => None,
            at => Some(Nanos(at)),
        }
    }

    /// The scheduler lag that the last pulse met, once for each pulse.
    pub(crate) fn take_lag(&self) -> Option<Duration> {
        match self.shared.lag.swap(0, Ordering::Acquire) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Ends the task at its next poll, which this wakes it for.
    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let waker = self.shared.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The runtime has dropped the task: it is shutting down.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Receiver(Arc<Shared>);

impl Future for Receiver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &self.0;
        // A pulse is polled by the scheduler itself, never inside another poll.
        slot::reset_marks();
        if shared.stop.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        *shared.waker.lock() = Some(cx.waker().clone());
        match shared.sent_at.load(Ordering::Acquire) {
            0 => {}
            sent_at => {
                let lag = clock::now().since(Nanos(sent_at)).as_nanos();
                let lag = u64::try_from(lag).unwrap_or(u64::MAX).max(1);
                shared.lag.store(lag, Ordering::Release);
                shared.sent_at.store(0, Ordering::Release);
            }
        }
        // The guard may have been dropped between the look above and the new waker.
        if shared.stop.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Release);
    }
}

/// The longest a worker is held once, at the start, until the others have come too.
const LONGEST_GATHERING: Duration = Duration::from_millis(2);

/// The workers of a runtime on their way to be known.
#[derive(Clone, Debug)]
pub(crate) struct Gathering {
    expected: usize,
    arrived: Arc<AtomicUsize>,
    deadline: Nanos,
}

/// Enrols the threads of all workers: as many tasks as there are workers, each of which waits for the
/// others, so that every worker takes one. Returns at once.
pub(crate) fn gather(runtime: &Handle, longest: Duration) -> Gathering {
    // The caller may be on one of the workers, and would wait for itself in vain.
    let here = usize::from(slot::enrol() == Some(slot::raw_id(&runtime.id())));
    let gathering = Gathering {
        expected: runtime.metrics().num_workers() - here,
        arrived: Arc::default(),
        deadline: clock::now().plus(LONGEST_GATHERING.min(longest)),
    };
    for _ in 0..gathering.expected {
        let gathering = gathering.clone();
        runtime.spawn(async move {
            slot::reset_marks();
            gathering.arrived.fetch_add(1, Ordering::AcqRel);
            gathering.wait();
        });
    }
    gathering
}

impl Gathering {
    /// Waits until all have come, or the time is up.
    pub(crate) fn wait(&self) {
        while self.arrived.load(Ordering::Acquire) < self.expected && clock::now() < self.deadline {
            std::thread::yield_now();
        }
    }
}
