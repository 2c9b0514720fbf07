//! The data that the requests of one runtime share with the detector.
//!
//! *Runs on:* worker threads write: at a wake, at a poll, at the end of a request. `stall-watchdog`
//! reads and writes once a tick.
//! *Must not:* lock or wait on a worker thread.

use super::intervals::StallIntervals;
use super::routes::Route;
use super::time::{RequestTime, Stretch};
use crate::clock::Nanos;
use crate::slot::PollKey;
use crate::tally::Tally;
use crossbeam_queue::ArrayQueue;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Messages that wait for the watchdog. It takes them at each tick; further ones are dropped and
/// counted.
const NEWS: usize = 1024;

/// A request that was ready for so long is late. Stalls are longer by far; on a busy machine, so
/// are many waits for a CPU.
pub(crate) const LATE: Duration = Duration::from_millis(1);

/// News of a request, for the detector.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestNews {
    /// It was ready for a time, and not polled.
    Late {
        request: u64,
        route: Route,
        ready: Stretch,
    },
    /// It waited, and the runtime's driver was frozen for a part of that time.
    Frozen { request: u64, waiting: Stretch },
    /// A stall holds requests up, or has done so. From the watchdog, ahead of the requests that it
    /// has held up.
    Stalled {
        stall: u64,
        since: Nanos,
        /// `None` while it goes on.
        until: Option<Nanos>,
        certain: bool,
        /// The marked poll that it is, if it is one.
        poll: Option<PollKey>,
    },
    /// A request that was late or slow has ended.
    Ended {
        /// Zero for one that was never late.
        request: u64,
        route: Route,
        time: RequestTime,
        driver_frozen: Duration,
        /// The longest of its own polls.
        longest_poll: Option<PollKey>,
    },
}

/// The data that the requests of one runtime share with the detector.
#[derive(Debug)]
pub(crate) struct Board {
    /// Tokio's number for the runtime.
    pub(crate) runtime: u64,
    pub(crate) stalls: StallIntervals,
    /// Made by the first request: most runtimes have none.
    used: OnceLock<Used>,
    dropped: AtomicU64,
    /// Requests that have been woken and not polled since, by generation.
    ready: [AtomicUsize; 2],
    /// The generation that is counted up now: 0 or 1.
    generation: AtomicUsize,
    /// Requests that last for so long are told of at their end.
    slow_from: Option<Duration>,
    /// Whether a request that was held up logs it.
    pub(super) logs: bool,
    /// The time for which the runtime's driver has been frozen in periods that are over.
    frozen: AtomicU64,
    /// The begin of the period that goes on; 0 if none does.
    frozen_since: AtomicU64,
}

/// The part that a runtime with requests needs, some 200 KiB.
#[derive(Debug)]
pub(crate) struct Used {
    news: ArrayQueue<RequestNews>,
    /// By the place of the route: durations of all requests.
    pub(crate) durations: Box<[Tally]>,
    /// By the place of the route: the time that requests lost to stalls, of those that lost any.
    /// Only the reporter writes it.
    pub(crate) lost: Box<[Tally]>,
}

impl Default for Used {
    fn default() -> Used {
        let tallies = || (0..Route::PLACES).map(|_| Tally::new()).collect();
        Used {
            news: ArrayQueue::new(NEWS),
            durations: tallies(),
            lost: tallies(),
        }
    }
}

/// The last number that was given to a late request.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// A number for a late request.
pub(super) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed) + 1
}

impl Board {
    /// A board for a runtime, by tokio's number for it. Requests that last for `slow_from` are told
    /// of, as are late ones. With `logs`, a request that was held up logs it.
    pub(crate) fn new(runtime: u64, slow_from: Option<Duration>, logs: bool) -> Board {
        Board {
            runtime,
            stalls: StallIntervals::default(),
            used: OnceLock::new(),
            dropped: AtomicU64::new(0),
            ready: [AtomicUsize::new(0), AtomicUsize::new(0)],
            generation: AtomicUsize::new(0),
            slow_from,
            logs,
            frozen: AtomicU64::new(0),
            frozen_since: AtomicU64::new(0),
        }
    }

    /// Whether a request that took so long is told of at its end.
    pub(super) fn is_slow(&self, total: Duration) -> bool {
        self.slow_from.is_some_and(|from| total >= from)
    }

    /// The part that requests need; `None` before the first request.
    pub(crate) fn used(&self) -> Option<&Used> {
        self.used.get()
    }

    /// A request begins. The first one of a runtime allocates.
    pub(super) fn begin_use(&self) {
        self.used.get_or_init(Used::default);
    }

    pub(super) fn tell(&self, news: RequestNews) {
        let sent = self.used().map(|used| used.news.push(news).is_ok());
        if sent == Some(false) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The news since the last call, in order.
    pub(crate) fn take_news(&self) -> Vec<RequestNews> {
        let next = || self.used().and_then(|used| used.news.pop());
        std::iter::from_fn(next).take(NEWS).collect()
    }

    pub(crate) fn has_news(&self) -> bool {
        self.used().is_some_and(|used| !used.news.is_empty())
    }

    /// News that found no room so far.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))] // Metrics show it.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts a request that has ended.
    pub(super) fn count(&self, route: Route, total: Duration) {
        let used = self.used();
        if let Some(tally) = used.and_then(|used| used.durations.get(route.place())) {
            tally.note_shared(total);
        }
    }

    /// A request becomes ready. Returns the generation that it is counted in.
    pub(super) fn becomes_ready(&self) -> usize {
        // Acquire: pairs with the Release in `begin_generation`. A request that is woken at that
        // very moment may be counted in either: the stall was over before.
        let generation = self.generation.load(Ordering::Acquire) & 1;
        self.ready[generation].fetch_add(1, Ordering::Relaxed);
        generation
    }

    /// A request that was ready has been polled or dropped, and has told what there is to tell.
    pub(super) fn is_ready_no_more(&self, generation: usize) {
        // Release: pairs with the Acquire in `is_drained`.
        self.ready[generation & 1].fetch_sub(1, Ordering::Release);
    }

    /// The number of requests that are ready and not polled.
    pub(crate) fn ready_now(&self) -> usize {
        let [one, other] = &self.ready;
        one.load(Ordering::Relaxed) + other.load(Ordering::Relaxed)
    }

    /// Begins a new generation, so that the requests that are ready now can be waited for. `false`
    /// if some of the generation before are still ready.
    pub(crate) fn begin_generation(&self) -> bool {
        if !self.is_drained() {
            return false;
        }
        // Release: pairs with the Acquire in `becomes_ready`.
        self.generation.fetch_xor(1, Ordering::Release);
        true
    }

    /// Whether all requests that were ready when this generation began have been polled since.
    pub(crate) fn is_drained(&self) -> bool {
        let before = (self.generation.load(Ordering::Relaxed) & 1) ^ 1;
        // Acquire: pairs with the Release in `is_ready_no_more`. What these requests have told is
        // in the queue.
        self.ready[before].load(Ordering::Acquire) == 0
    }

    /// Notes whether no worker waits for the runtime's sockets and timers, and since when.
    pub(crate) fn driver_is_frozen(&self, since: Option<Nanos>, now: Nanos) {
        let before = Nanos(self.frozen_since.load(Ordering::Relaxed));
        match since {
            Some(since) if before == Nanos(0) => {
                self.frozen_since.store(since.0.max(1), Ordering::Relaxed);
            }
            Some(_) => {}
            None if before != Nanos(0) => {
                let more = now.since(before).as_nanos() as u64;
                self.frozen.fetch_add(more, Ordering::Relaxed);
                self.frozen_since.store(0, Ordering::Relaxed);
            }
            None => {}
        }
    }

    /// How long the driver has been frozen, since the start of the watch.
    pub(super) fn frozen(&self, now: Nanos) -> Duration {
        let over = Duration::from_nanos(self.frozen.load(Ordering::Relaxed));
        match self.frozen_since.load(Ordering::Relaxed) {
            0 => over,
            since => over + now.since(Nanos(since)),
        }
    }
}

#[cfg(all(test, not(loom)))]
impl Board {
    /// A board that is in use.
    pub(crate) fn for_tests(runtime: u64) -> Board {
        let board = Board::new(runtime, None, false);
        board.begin_use();
        board
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn those_who_were_ready_before_are_waited_for_and_later_ones_are_not() {
        let board = Board::for_tests(1);
        let early = board.becomes_ready();
        assert!(board.begin_generation());
        let late = board.becomes_ready();
        assert!(!board.is_drained());
        assert!(!board.begin_generation(), "one at a time");
        board.is_ready_no_more(early);
        assert!(board.is_drained());
        assert_eq!(board.ready_now(), 1);
        board.is_ready_no_more(late);
        assert_eq!(board.ready_now(), 0);
    }

    #[test]
    fn frozen_time_grows_while_the_driver_is_frozen() {
        let board = Board::for_tests(1);
        let at = |millis: u64| Nanos(millis * 1_000_000);
        board.driver_is_frozen(Some(at(10)), at(20));
        assert_eq!(board.frozen(at(30)), Duration::from_millis(20));
        board.driver_is_frozen(None, at(40));
        assert_eq!(board.frozen(at(90)), Duration::from_millis(30));
    }

    #[test]
    fn news_without_room_is_counted() {
        let board = Board::for_tests(1);
        let news = RequestNews::Late {
            request: 1,
            route: Route::at(0),
            ready: Stretch {
                since: Nanos(1),
                until: Nanos(2),
            },
        };
        (0..NEWS + 3).for_each(|_| board.tell(news));
        assert_eq!(board.dropped(), 3);
        assert_eq!(board.take_news().len(), NEWS);
        assert!(!board.has_news());
    }
}
