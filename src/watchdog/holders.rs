//! The threads of a blocking pool that probes have met, and their stacks while a probe waits.
//!
//! *Runs on:* `stall-pulse`.
//! *Must not:* signal a thread that is not known to be the pool's. A thread that has taken a probe
//! is, until it exits: the probe has given it a slot, whose owner every request names.
//!
//! Tokio starts all threads of its pool in one way, those that drive workers among them. So the
//! signal is as safe for one as for the other.

use crate::capture::{Addressee, MAILBOXES, Request};
use crate::clock::Nanos;
use crate::engine::{PoolStack, WatchedRuntime, Work};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

/// The most threads that are remembered of one pool.
const THREADS: usize = 16;
/// The most stacks that are taken at once. The other half of the buffers is left to the watchdog.
const AT_ONCE: usize = MAILBOXES / 2;
/// The shortest time between two rounds of stacks.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// The time after which a request without an answer is withdrawn, and the wait is judged without a
/// stack that is yet to be explained. The first stack is slow: its debug information is read.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The known threads of one pool. The one that has taken a probe last is the first, as it is the
/// likeliest to be idle, and those that were asked last are at the end.
#[derive(Debug, Default)]
pub(super) struct Holders {
    threads: Vec<Addressee>,
    /// The threads that have not been asked in this wait, by their number: they come first.
    unasked: usize,
    /// Some have been asked in this wait, or none can be.
    is_asked: bool,
    asked: Vec<Request>,
    /// The stacks that the explainer has.
    explained: Vec<Receiver<PoolStack>>,
    asked_at: Nanos,
    /// The age of the wait when the requests were sent.
    after: Duration,
}

impl Holders {
    /// Notes that a thread has taken a probe.
    pub(super) fn met(&mut self, thread: Addressee) {
        let is_another = |known: &Addressee| !std::ptr::eq(known.slot, thread.slot);
        self.threads
            .retain(|known| is_there(known) && is_another(known));
        self.threads.truncate(THREADS - 1);
        self.threads.insert(0, thread);
    }

    /// A wait begins, or begins anew: each thread may be asked, and stacks of before are of no use.
    pub(super) fn begin(&mut self) {
        self.unasked = self.threads.len();
        self.is_asked = self.threads.is_empty();
        self.asked.clear();
        self.explained.clear();
    }

    /// Asks some of the threads, unless that was done in this wait.
    pub(super) fn ask_once(&mut self, runtime: &WatchedRuntime, after: Duration, now: Nanos) {
        if !self.is_asked {
            self.ask(runtime, after, now);
        }
    }

    /// Asks some of the threads for their stacks, unless this was done a moment ago. In one wait
    /// each thread is asked once: a signal interrupts one that computes.
    pub(super) fn ask(&mut self, runtime: &WatchedRuntime, after: Duration, now: Nanos) {
        let Ok(signal) = runtime.watch.signal else {
            self.is_asked = true;
            return;
        };
        let some = self.asked_now(now);
        if some == 0 {
            return;
        }
        self.after = after;
        let threads = self.threads[..some]
            .iter()
            .filter(|thread| is_there(thread));
        let requests = threads.filter_map(|thread| Request::send(*thread, signal).ok());
        self.asked = requests.collect();
        self.threads.rotate_left(some);
    }

    /// The number of threads, from the first on, that are to be asked now.
    fn asked_now(&mut self, now: Nanos) -> usize {
        if self.asked_at != Nanos::default() && now.since(self.asked_at) < ROUND_EVERY {
            return 0;
        }
        let some = self.unasked.min(AT_ONCE);
        if some == 0 {
            return 0;
        }
        self.unasked -= some;
        self.is_asked = true;
        self.asked_at = now;
        some
    }

    /// Sends the stacks that have come by now to the explainer.
    pub(super) fn send_on(
        &mut self,
        runtime: &WatchedRuntime,
        explainer: &SyncSender<Work>,
        now: Nanos,
    ) {
        for request in std::mem::take(&mut self.asked) {
            match request.collect() {
                Ok(stack) if stack.is_answered() => {
                    let (answer, explained) = sync_channel(1);
                    self.explained.push(explained);
                    let (watch, after) = (runtime.watch.clone(), self.after);
                    let work = Work::OfPool {
                        watch,
                        after,
                        stack,
                        answer,
                    };
                    // If the explainer has much to do, there is one stack less.
                    explainer.try_send(work).ok();
                }
                Ok(_) => {}
                Err(request) => self.asked.push(request),
            }
        }
        if now.since(self.asked_at) >= ANSWERS_WITHIN {
            self.asked.clear();
        }
    }

    /// The stacks that have been explained by now.
    pub(super) fn explained(&mut self) -> Vec<PoolStack> {
        let mut come = Vec::new();
        self.explained
            .retain(|explained| match explained.try_recv() {
                Ok(stack) => {
                    come.push(stack);
                    false
                }
                Err(error) => error == TryRecvError::Empty,
            });
        come
    }

    /// Whether a stack is on its way, or is yet to be asked for.
    pub(super) fn awaits(&self, now: Nanos) -> bool {
        let is_under_way = !(self.asked.is_empty() && self.explained.is_empty());
        !self.is_asked || is_under_way && now.since(self.asked_at) < ANSWERS_WITHIN
    }
}

fn is_there(thread: &Addressee) -> bool {
    thread.slot.tenancy() == thread.tenancy
}

#[cfg(all(test, not(loom)))]
impl Holders {
    /// The explainer has done this stack.
    pub(super) fn is_explained(&mut self, stack: PoolStack) {
        let (answer, explained) = sync_channel(1);
        answer.send(stack).expect("room for one");
        self.explained.push(explained);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::slot;
    use std::sync::{Arc, Mutex, mpsc};

    fn met() -> Addressee {
        let slot = slot::mine().expect("a slot");
        let tenancy = slot.tenancy();
        Addressee { slot, tenancy }
    }

    #[test]
    fn a_thread_is_known_once_and_until_it_exits() {
        let mut holders = Holders::default();
        holders.met(met());
        holders.met(met());
        assert_eq!(holders.threads.len(), 1);
        let gone = std::thread::spawn(met).join().unwrap();
        holders.met(met());
        assert!(!is_there(&gone));
        holders.met(gone);
        holders.met(met());
        assert_eq!(holders.threads.len(), 1);
    }

    #[test]
    fn a_thread_is_asked_once_in_a_wait() {
        let threads = vec![met(); AT_ONCE + 1];
        let mut holders = Holders {
            threads,
            ..Holders::default()
        };
        let second = |second: u64| Nanos(second * 1_000_000_000);
        holders.begin();
        assert_eq!(holders.asked_now(second(1)), AT_ONCE);
        assert_eq!(holders.asked_now(Nanos(second(2).0 - 1)), 0, "a moment ago");
        assert_eq!(holders.asked_now(second(2)), 1);
        assert_eq!(holders.asked_now(second(3)), 0);
        assert!(!holders.awaits(second(3)), "nothing is under way");
        holders.begin();
        assert!(holders.awaits(second(3)), "none has been asked");
        assert_eq!(
            holders.asked_now(second(3)),
            AT_ONCE,
            "a round of none is none"
        );
        assert!(!holders.awaits(second(4)));
    }

    #[test]
    fn an_explainer_that_is_stuck_is_waited_for_a_while() {
        let (answer, explained) = sync_channel(1);
        let second = |second: u64| Nanos(second * 1_000_000_000);
        let mut holders = Holders {
            explained: vec![explained],
            is_asked: true,
            asked_at: second(1),
            ..Holders::default()
        };
        let before = Nanos(second(2).0 - 1);
        assert!(holders.explained().is_empty() && holders.awaits(before));
        assert!(!holders.awaits(second(2)));
        drop(answer);
        assert!(holders.explained().is_empty());
        assert!(!holders.awaits(before), "it has none to give");
    }

    #[test]
    fn few_threads_are_remembered() {
        let end = Arc::new(Mutex::new(()));
        let until_end = end.lock().unwrap();
        let (send, threads) = mpsc::channel();
        let all: Vec<_> = (0..THREADS + 4)
            .map(|_| {
                let (send, end) = (send.clone(), end.clone());
                std::thread::spawn(move || {
                    send.send(met()).unwrap();
                    drop(end.lock());
                })
            })
            .collect();
        let mut holders = Holders::default();
        for _ in &all {
            holders.met(threads.recv().unwrap());
        }
        assert_eq!(holders.threads.len(), THREADS);
        drop(until_end);
        for thread in all {
            thread.join().unwrap();
        }
    }

    /// The verdict of a stack of this thread, taken and explained as in a wait.
    #[cfg(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    fn shown_now(explainer: &mut crate::explain::Explainer, thread: Addressee) -> Option<Shown> {
        let mut request = Request::send(thread, crate::capture::DEFAULT_SIGNAL).ok()?;
        let stack = loop {
            match request.collect() {
                Ok(stack) => break stack,
                Err(again) => request = again,
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let own = crate::explain::OwnCode::default();
        let explained = explainer.explain(&stack, &own).ok()?;
        Some((crate::explain::pool_thread(&explained), explained))
    }

    type Shown = (
        Option<crate::explain::PoolThread>,
        crate::explain::Explained,
    );

    #[cfg(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    #[test]
    fn a_real_thread_of_a_pool_is_idle_until_a_closure_holds_it() {
        use crate::explain::{Explainer, PoolThread};
        crate::capture::install(crate::capture::DEFAULT_SIGNAL).expect("nobody else's");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let thread = runtime.block_on(runtime.spawn_blocking(met)).unwrap();
        let mut explainer = Explainer::default();
        // It may still be at the end of the closure.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let shown = shown_now(&mut explainer, thread);
            if matches!(shown, Some((Some(PoolThread::Idle), _))) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{shown:#?}");
        }
        let (release, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        runtime.spawn_blocking(move || {
            begun.send(()).unwrap();
            held.recv().ok();
        });
        begins.recv().unwrap();
        let shown = shown_now(&mut explainer, thread);
        let holds = matches!(shown, Some((Some(PoolThread::Holds), _)));
        assert!(holds, "{shown:#?}");
        drop(release);
    }
}
