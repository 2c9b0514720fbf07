//! A waker that notes when it was first used since the last poll.
//!
//! *Runs on:* any thread that wakes the request, and the thread that polls it.
//! *Must not:* lock or allocate.

use super::board::Board;
use crate::clock::{self, Nanos};
use atomic_waker::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};

/// In place of a stamp: wakes are not noted. No stamp has this value.
const RESTS: u64 = 1;

/// The waker of one request.
pub(super) struct RequestWaker {
    /// The waker of the task that polls the request.
    outer: AtomicWaker,
    /// When it was first woken since the last poll, and in the lowest bit the generation that it is
    /// counted in; 0 if it was not, and [`RESTS`] while nobody waits for it.
    woken: AtomicU64,
    board: Option<Arc<Board>>,
}

impl RequestWaker {
    /// The waker of a new request, which is ready from now on.
    pub(super) fn new(board: Option<Arc<Board>>, now: Nanos) -> RequestWaker {
        let waker = RequestWaker {
            outer: AtomicWaker::new(),
            woken: AtomicU64::new(0),
            board,
        };
        waker.note(now);
        waker
    }

    /// Takes the first wake since the last call, and the waker of the task for the next one.
    pub(super) fn begin_poll(&self, outer: &Waker) -> Option<Woken> {
        let woken = self.take(0);
        // Before the poll: a wake during the poll reaches this task.
        self.outer.register(outer);
        woken
    }

    /// Takes the first wake since the last poll, and notes none until the next one. Others may keep
    /// this waker and use it, though nobody waits for the request: it has given a part of its
    /// response, or has ended.
    pub(super) fn rest(&self) -> Option<Woken> {
        self.take(RESTS)
    }

    fn take(&self, then: u64) -> Option<Woken> {
        // Relaxed: the stamp is complete in itself. The wake itself orders the rest.
        let woken = self.woken.swap(then, Ordering::Relaxed);
        (woken > RESTS).then_some(Woken {
            at: Nanos(woken & !1),
            generation: (woken & 1) as usize,
        })
    }

    fn note(&self, now: Nanos) {
        let generation = self.board.as_ref().map_or(0, |board| board.becomes_ready());
        let stamp = now.0.max(2) & !1 | generation as u64;
        let first = (self.woken).compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
        if let (Err(_), Some(board)) = (first, &self.board) {
            board.is_ready_no_more(generation);
        }
    }
}

/// The first wake since a poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct Woken {
    pub(super) at: Nanos,
    /// The generation in which the board counts the request as ready, until it is told otherwise.
    pub(super) generation: usize,
}

impl Wake for RequestWaker {
    fn wake(self: Arc<RequestWaker>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<RequestWaker>) {
        if self.woken.load(Ordering::Relaxed) == 0 {
            self.note(clock::now());
        }
        self.outer.wake();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_first_wake_counts_and_each_poll_begins_anew() {
        let board = Arc::new(Board::for_tests(1));
        let count = Arc::new(Count::default());
        let task = Waker::from(count.clone());
        let waker = Arc::new(RequestWaker::new(Some(board.clone()), clock::now()));
        assert_eq!(board.ready_now(), 1, "a new request is ready");
        let new = waker.begin_poll(&task).expect("a new request is ready");
        board.is_ready_no_more(new.generation);
        assert_eq!(board.ready_now(), 0);
        let before = clock::now();
        waker.wake_by_ref();
        let after = clock::now();
        waker.wake_by_ref();
        assert_eq!(board.ready_now(), 1);
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "one wake is enough");
        let woken = waker.begin_poll(&task).expect("it was woken");
        assert!(before.0 & !1 <= woken.at.0 && woken.at <= after);
        assert!(waker.take(0).is_none());
        assert_eq!(board.ready_now(), 1, "until the board is told otherwise");
        board.is_ready_no_more(woken.generation);
        assert_eq!(board.ready_now(), 0);
    }

    #[test]
    fn a_wake_while_nobody_waits_does_not_count() {
        let board = Arc::new(Board::for_tests(1));
        let waker = Arc::new(RequestWaker::new(Some(board.clone()), clock::now()));
        let new = waker.rest().expect("a new request is ready");
        board.is_ready_no_more(new.generation);
        waker.wake_by_ref();
        assert_eq!(board.ready_now(), 0);
        // The control: after the next poll wakes count again.
        assert!(waker.begin_poll(Waker::noop()).is_none());
        waker.wake_by_ref();
        assert_eq!(board.ready_now(), 1);
    }

    #[test]
    fn a_wake_between_two_polls_reaches_the_task_of_the_last_one() {
        let waker = Arc::new(RequestWaker::new(None, clock::now()));
        let [first, last] = [Arc::new(Count::default()), Arc::new(Count::default())];
        waker.begin_poll(&Waker::from(first.clone()));
        waker.begin_poll(&Waker::from(last.clone()));
        waker.wake_by_ref();
        let counts = [&first, &last].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(counts, [0, 1]);
    }
}
