//! The time of one request, by the way in which it was spent.
//!
//! *Runs on:* the thread that polls the request.
//! *Must not:* read a clock: stamps are arguments.
//!
//! Three stamps divide the time: the end of a poll, the wake after it, and the begin of the next
//! poll. Each interval has one meaning, so the parts add up to the whole.

use crate::clock::Nanos;
use std::time::Duration;

/// The time of one request so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestTime {
    pub(crate) began: Nanos,
    /// The end of the last interval that has been counted.
    last: Nanos,
    /// Whether a poll goes on since `last`.
    in_poll: bool,
    pub(crate) polls: u64,
    /// Inside its own polls.
    pub(crate) own: Duration,
    pub(crate) longest_poll: Duration,
    /// Woken, and not polled yet.
    pub(crate) ready: Duration,
    /// Not woken: it waits for a timer, a peer, or another task.
    pub(crate) waiting: Duration,
}

/// A part of a request's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) since: Nanos,
    pub(crate) until: Nanos,
}

/// The time between two polls of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BetweenPolls {
    /// Not woken yet.
    pub(crate) waiting: Stretch,
    /// Woken, and not polled yet.
    pub(crate) ready: Stretch,
}

impl Stretch {
    /// The part of it in which something went on, since a time, and until a time if it is over.
    pub(crate) fn during(self, since: Nanos, until: Option<Nanos>) -> Stretch {
        let since = self.since.max(since);
        let until = until.map_or(self.until, |until| until.min(self.until));
        Stretch {
            since,
            until: until.max(since),
        }
    }

    pub(crate) fn length(self) -> Duration {
        self.until.since(self.since)
    }
}

impl RequestTime {
    pub(crate) fn new(began: Nanos) -> RequestTime {
        RequestTime {
            began,
            last: began,
            in_poll: false,
            polls: 0,
            own: Duration::ZERO,
            longest_poll: Duration::ZERO,
            ready: Duration::ZERO,
            waiting: Duration::ZERO,
        }
    }

    /// A poll begins. Returns the time before it, since the last poll.
    ///
    /// A poll without a wake is one that its task makes for another reason: the request was waiting
    /// until now. A wake inside the last poll makes it ready from the end of that poll on.
    pub(crate) fn poll_begins(&mut self, now: Nanos, woken: Option<Nanos>) -> BetweenPolls {
        let gap = self.passes(now, woken);
        self.polls += 1;
        self.in_poll = true;
        gap
    }

    /// Time passes outside of a poll, up to now.
    fn passes(&mut self, now: Nanos, woken: Option<Nanos>) -> BetweenPolls {
        let now = now.max(self.last);
        let since = woken.unwrap_or(now).clamp(self.last, now);
        let gap = BetweenPolls {
            waiting: Stretch {
                since: self.last,
                until: since,
            },
            ready: Stretch { since, until: now },
        };
        self.waiting += gap.waiting.length();
        self.ready += gap.ready.length();
        self.last = now;
        gap
    }

    /// A poll ends. Returns whether it is the longest one so far.
    pub(crate) fn poll_ends(&mut self, now: Nanos) -> bool {
        let now = now.max(self.last);
        let poll = now.since(self.last);
        let is_longest = poll > self.longest_poll;
        self.own += poll;
        self.longest_poll = self.longest_poll.max(poll);
        (self.last, self.in_poll) = (now, false);
        is_longest
    }

    /// The request ends now: its last byte has been handed on, or it is dropped. Returns the time
    /// since its last poll.
    pub(crate) fn ends(&mut self, now: Nanos, woken: Option<Nanos>) -> BetweenPolls {
        if self.in_poll {
            self.poll_ends(now);
        }
        self.passes(now, woken)
    }

    /// The time from the call of the service to the last interval's end.
    pub(crate) fn total(&self) -> Duration {
        self.last.since(self.began)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn at(millis: u64) -> Nanos {
        Nanos(1 + millis * 1_000_000)
    }

    #[test]
    fn each_interval_has_one_meaning() {
        let mut time = RequestTime::new(at(0));
        assert_eq!(time.poll_begins(at(3), Some(at(0))).ready.length(), MS(3));
        time.poll_ends(at(10));
        assert_eq!(
            time.poll_begins(at(110), Some(at(60))).ready.length(),
            MS(50)
        );
        time.poll_ends(at(115));
        time.ends(at(120), None);
        assert_eq!((time.own, time.longest_poll), (MS(12), MS(7)));
        assert_eq!((time.ready, time.waiting), (MS(53), MS(55)));
        assert_eq!((time.total(), time.polls), (MS(120), 2));
    }

    #[test]
    fn a_wake_inside_a_poll_makes_it_ready_from_the_end_of_that_poll_on() {
        let mut time = RequestTime::new(at(0));
        time.poll_begins(at(0), None);
        time.poll_ends(at(10));
        let ready = time.poll_begins(at(12), Some(at(4))).ready;
        assert_eq!(ready.since, at(10));
        assert_eq!(time.ready, MS(2));
    }

    #[test]
    fn a_request_that_is_dropped_while_it_is_ready_was_ready_until_then() {
        let mut time = RequestTime::new(at(0));
        time.poll_begins(at(0), None);
        time.poll_ends(at(1));
        let gap = time.ends(at(300), Some(at(100)));
        assert_eq!(
            (gap.waiting.length(), gap.ready.length()),
            (MS(99), MS(200))
        );
        assert_eq!(time.ready, MS(200));
    }

    #[test]
    fn a_stretch_is_cut_to_what_went_on() {
        let stretch = |since, until| Stretch {
            since: at(since),
            until: at(until),
        };
        let ready = stretch(10, 50);
        assert_eq!(ready.during(at(20), None), stretch(20, 50));
        assert_eq!(ready.during(at(0), Some(at(30))), stretch(10, 30));
        assert_eq!(ready.during(at(60), None).length(), MS(0));
        assert_eq!(ready.during(at(0), Some(at(5))).length(), MS(0));
    }

    #[test]
    fn a_poll_without_a_wake_ends_a_wait() {
        let mut time = RequestTime::new(at(0));
        time.poll_begins(at(0), None);
        time.poll_ends(at(1));
        assert_eq!(time.poll_begins(at(9), None).ready.length(), MS(0));
        assert_eq!(time.waiting, MS(8));
    }

    #[test]
    fn a_request_that_is_dropped_inside_a_poll_has_its_poll() {
        let mut time = RequestTime::new(at(0));
        time.poll_begins(at(1), Some(at(0)));
        time.ends(at(5), None);
        assert_eq!((time.own, time.ready), (MS(4), MS(1)));
    }

    proptest! {
        /// Stamps of several threads may be a little out of order.
        #[test]
        fn the_parts_add_up_to_the_whole(
            steps in prop::collection::vec((0..500u64, prop::option::of(0..900u64), 0..50u64), 0..40),
            end in (0..500u64, prop::option::of(0..900u64)),
        ) {
            let mut time = RequestTime::new(at(1000));
            let mut now = at(1000);
            let later = |from: Nanos, millis: u64| from.plus(MS(millis));
            for (gap, woken, poll) in steps {
                let woken = woken.map(|ago| later(now, gap).minus(MS(ago)));
                now = later(now, gap);
                let gap = time.poll_begins(now, woken);
                prop_assert!(gap.waiting.since <= gap.waiting.until);
                prop_assert!(gap.ready.since <= gap.ready.until);
                now = later(now, poll);
                time.poll_ends(now);
            }
            let woken = end.1.map(|ago| later(now, end.0).minus(MS(ago)));
            now = later(now, end.0);
            time.ends(now, woken);
            prop_assert_eq!(time.total(), now.since(at(1000)));
            prop_assert_eq!(time.own + time.ready + time.waiting, time.total());
            prop_assert!(time.longest_poll <= time.own);
        }
    }
}
