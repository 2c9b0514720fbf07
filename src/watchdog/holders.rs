//! The threads of a blocking pool that probes have met, and their stacks while the pool is
//! exhausted.
//!
//! *Runs on:* `stall-pulse`.
//! *Must not:* signal a thread that is not known to be the pool's. A thread that has taken a probe
//! is, until it exits: the probe has given it a slot, whose owner every request names.
//!
//! Tokio starts all threads of its pool in one way, those that drive workers among them. So the
//! signal is as safe for one as for the other.

use crate::capture::{Addressee, MAILBOXES, RawStack, Request};
use crate::clock::Nanos;
use crate::engine::WatchedRuntime;
use std::time::Duration;

/// The most threads that are remembered of one pool.
const THREADS: usize = 16;
/// The most stacks that are taken at once. The other half of the buffers is left to the watchdog.
const AT_ONCE: usize = MAILBOXES / 2;
/// The shortest time between two rounds of stacks.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// The time after which a request without an answer is withdrawn.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The known threads of one pool, the one that was asked last at the end.
#[derive(Debug, Default)]
pub(super) struct Holders {
    threads: Vec<Addressee>,
    /// The threads that have not been asked in this wait, by their number: they come first.
    unasked: usize,
    wait: u64,
    asked: Vec<Request>,
    asked_at: Nanos,
    /// The age of the wait when the requests were sent.
    after: Duration,
}

impl Holders {
    /// Notes that a thread has taken a probe.
    pub(super) fn met(&mut self, thread: Addressee) {
        self.threads.retain(is_there);
        let is_new = |known: &Addressee| !std::ptr::eq(known.slot, thread.slot);
        if self.threads.iter().all(is_new) {
            self.threads.truncate(THREADS - 1);
            self.threads.insert(0, thread);
        }
    }

    /// Asks some of the threads for their stacks, unless this was done a moment ago. In one wait
    /// each thread is asked once: the signal interrupts system calls.
    pub(super) fn ask(&mut self, wait: u64, runtime: &WatchedRuntime, after: Duration, now: Nanos) {
        let Ok(signal) = runtime.watch.signal else {
            return;
        };
        let some = self.asked_now(wait, now);
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
    fn asked_now(&mut self, wait: u64, now: Nanos) -> usize {
        if self.asked_at != Nanos::default() && now.since(self.asked_at) < ROUND_EVERY {
            return 0;
        }
        if self.wait != wait {
            (self.wait, self.unasked) = (wait, self.threads.len());
        }
        let some = self.unasked.min(AT_ONCE);
        self.unasked -= some;
        self.asked_at = now;
        some
    }

    /// The stacks that have come by now, with the age of the wait when they were asked for.
    pub(super) fn answers(&mut self, now: Nanos) -> Vec<(Duration, RawStack)> {
        let mut come = Vec::new();
        for request in std::mem::take(&mut self.asked) {
            match request.collect() {
                Ok(stack) if stack.is_answered() => come.push((self.after, stack)),
                Ok(_) => {}
                Err(request) => self.asked.push(request),
            }
        }
        if now.since(self.asked_at) >= ANSWERS_WITHIN {
            self.asked.clear();
        }
        come
    }
}

fn is_there(thread: &Addressee) -> bool {
    thread.slot.tenancy() == thread.tenancy
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
        assert_eq!(holders.asked_now(1, second(1)), AT_ONCE);
        assert_eq!(
            holders.asked_now(1, Nanos(second(2).0 - 1)),
            0,
            "a moment ago"
        );
        assert_eq!(holders.asked_now(1, second(2)), 1);
        assert_eq!(holders.asked_now(1, second(3)), 0);
        assert_eq!(holders.asked_now(2, second(4)), AT_ONCE);
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
}
