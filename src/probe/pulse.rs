//! Pulses: small tasks that measure scheduler lag and renew the claims of workers.
//!
//! *Runs on:* `stall-pulse` and the thread that starts a watch (sending); worker threads, as an
//! ordinary poll (receiving).
//! *Must not:* block. A pulse's poll takes well under a microsecond. Only the gatherings hold
//! workers, so that every worker takes one: for at most two milliseconds each at the start, and for
//! less later on, while the thread of some worker is not known.

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

/// One task that lives on a watched runtime and is woken from outside at intervals.
#[derive(Debug)]
pub(crate) struct Pulse {
    link: Arc<PulseLink>,
}

/// The state that a pulse's sender and its task share.
#[derive(Debug, Default)]
struct PulseLink {
    waker: Mutex<Option<Waker>>,
    /// The time at which the pulse under way was sent; 0 while there is none.
    sent_at: AtomicU64,
    /// The lag of the last pulse in nanoseconds; the sender takes it.
    lag: AtomicU64,
    stop: AtomicBool,
    gone: AtomicBool,
}

impl Pulse {
    /// Spawns the task; `None` if the runtime has been shut down.
    pub(crate) fn spawn(runtime: &Handle) -> Option<Pulse> {
        let link = Arc::new(PulseLink::default());
        link.sent_at.store(clock::now().0, Ordering::Release);
        let task = runtime.spawn(Receiver(link.clone()));
        let shut_down = task.is_finished() && link.gone.load(Ordering::Acquire);
        (!shut_down).then_some(Pulse { link })
    }

    /// Sends a pulse unless one is under way.
    pub(crate) fn send(&self) {
        if self.link.sent_at.load(Ordering::Acquire) != 0 {
            return;
        }
        let waker = self.link.waker.lock().take();
        if let Some(waker) = waker {
            self.link.sent_at.store(clock::now().0, Ordering::Release);
            waker.wake();
        }
    }

    /// The time at which the pulse under way was sent.
    #[cfg(feature = "metrics")]
    pub(crate) fn sent_at(&self) -> Option<Nanos> {
        match self.link.sent_at.load(Ordering::Acquire) {
            0 => None,
            at => Some(Nanos(at)),
        }
    }

    /// The scheduler lag that the last pulse measured, once for each pulse.
    pub(crate) fn take_lag(&self) -> Option<Duration> {
        match self.link.lag.swap(0, Ordering::Acquire) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Ends the task: wakes it for its last poll.
    pub(crate) fn stop(&self) {
        self.link.stop.store(true, Ordering::Release);
        let waker = self.link.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether it has been stopped: nobody watches the runtime any more.
    pub(crate) fn is_stopped(&self) -> bool {
        // Acquire: pairs with the Release in `stop`.
        self.link.stop.load(Ordering::Acquire)
    }

    /// Whether the runtime has dropped the task: it is shutting down.
    pub(crate) fn is_gone(&self) -> bool {
        self.link.gone.load(Ordering::Acquire)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop();
    }
}

impl PulseLink {
    /// Ends the pulse under way, if there is one, and keeps its lag.
    fn receive(&self) {
        match self.sent_at.load(Ordering::Acquire) {
            0 => {}
            sent_at => {
                let lag = clock::now().since(Nanos(sent_at)).as_nanos();
                let lag = u64::try_from(lag).unwrap_or(u64::MAX).max(1);
                self.lag.store(lag, Ordering::Release);
                self.sent_at.store(0, Ordering::Release);
            }
        }
    }
}

/// The task: it receives pulses.
struct Receiver(Arc<PulseLink>);

impl Future for Receiver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let link = &self.0;
        // A pulse is polled by the scheduler itself, never inside another poll.
        slot::reset_marks_in_this_process();
        if link.stop.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        *link.waker.lock() = Some(cx.waker().clone());
        link.receive();
        // The pulse may have been stopped between the first check and the new waker.
        if link.stop.load(Ordering::Acquire) {
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

/// The longest time for which a worker is held at the start, until the others have come too.
const LONGEST_GATHERING: Duration = Duration::from_millis(2);

/// The workers of a runtime that wait for each other, so that each enrols.
#[derive(Clone, Debug)]
pub(crate) struct Gathering {
    expected: usize,
    arrived: Arc<AtomicUsize>,
    deadline: Nanos,
}

/// Enrols the threads of all workers. There are as many tasks as workers, and each task waits for
/// the others, so that every worker takes one. Returns at once.
pub(crate) fn gather(runtime: &Handle, longest: Duration) -> Gathering {
    // The caller may be on one of the workers, which would then wait for its own task in vain.
    let here = usize::from(slot::enrol() == Some(slot::raw_id(&runtime.id())));
    let gathering = Gathering {
        expected: runtime.metrics().num_workers() - here,
        arrived: Arc::default(),
        deadline: clock::now().plus(LONGEST_GATHERING.min(longest)),
    };
    for _ in 0..gathering.expected {
        let gathering = gathering.clone();
        runtime.spawn(async move {
            slot::reset_marks_in_this_process();
            gathering.arrived.fetch_add(1, Ordering::AcqRel);
            gathering.wait();
        });
    }
    gathering
}

impl Gathering {
    /// Whether all its tasks have ended. Those of a blocked worker stay in its runtime's queue.
    pub(crate) fn is_over(&self) -> bool {
        Arc::strong_count(&self.arrived) == 1
    }

    /// Waits until all tasks have begun, or the time is up.
    pub(crate) fn wait(&self) {
        while self.arrived.load(Ordering::Acquire) < self.expected && clock::now() < self.deadline {
            std::thread::yield_now();
        }
    }
}
