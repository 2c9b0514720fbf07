//! The requests of one runtime: their news on the way to the reporter, in an order that makes the
//! last report of a stall complete.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait.
//!
//! A stall holds requests up, and they are polled after its end. So its last report is held back
//! until those that were ready at its end have been polled. In turn, a request that has ended may
//! have been held up by a poll that is only suspected yet, so it is told of once that is decided.

use super::News;
use crate::clock::{self, Nanos};
use crate::detect::HeldBy;
use crate::engine::{RequestsNews, StallNews, WatchedRuntime};
use crate::report::{Certainty, Phase};
use crate::requests::RequestNews;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long a report is held back at most: a request may not be polled for long, and a worker may
/// be suspected for long.
const HELD_FOR: Duration = Duration::from_secs(1);
/// The most news of stalls that wait for room in the reporter's queue.
const STALLED: usize = 1024;
/// The most ended requests that wait for a decision.
const ENDED: usize = 4096;

/// The requests of one runtime.
#[derive(Default)]
pub(super) struct RequestWatch {
    /// The last news of stalls that are over.
    held: Vec<HeldBack>,
    /// Whether the requests that were ready at the end of these stalls are being waited for.
    is_waiting: bool,
    /// The intervals of stalls that the reporter has to know before the requests.
    stalled: Vec<RequestNews>,
    /// Requests that have ended, and a moment after that.
    ended: VecDeque<(Nanos, RequestNews)>,
}

struct HeldBack {
    news: StallNews,
    since: Nanos,
    /// Those that were ready at its end are waited for. `false` while those of an earlier stall
    /// are.
    is_waited_for: bool,
}

impl RequestWatch {
    /// Takes in news of a stall. Passes it on unless it is to be held back.
    pub(super) fn stall(
        &mut self,
        runtime: &WatchedRuntime,
        news: StallNews,
        now: Nanos,
        out: &mut News,
    ) {
        let stall = &news.live.stall;
        let is_over = news.phase == Some(Phase::Ended);
        if news.phase.is_some() {
            let until = is_over.then(|| stall.since.plus(stall.duration));
            let certain = stall.certainty == Certainty::Certain;
            if certain {
                let intervals = &runtime.requests.stalls;
                intervals.note(news.live.id.0, stall.since, until);
            }
            if runtime.requests.used().is_some() {
                self.stalled.push(RequestNews::Stalled {
                    stall: news.live.id.0,
                    since: stall.since,
                    until,
                    certain,
                    poll: match stall.held_by {
                        HeldBy::Mark(poll) => Some(poll),
                        _ => None,
                    },
                });
            }
        }
        if !is_over || runtime.requests.used().is_none() {
            out.stalls.push(news);
            return;
        }
        out.over.push(news.live.id);
        self.held.push(HeldBack {
            news,
            since: now,
            is_waited_for: false,
        });
    }

    /// Passes on what is due. Up to `decided` it is known whether the workers were stalled.
    pub(super) fn tick(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        now: Nanos,
        decided: Nanos,
        out: &mut News,
    ) {
        let board = &runtime.requests;
        let is_drained = board.is_drained();
        // After the look at the counter: the news of requests that are drained is in the queue.
        let late = self.take_news(runtime);
        let mut news = std::mem::take(&mut self.stalled);
        news.extend(late);
        let is_due = |(taken_at, _): &&(Nanos, RequestNews)| {
            *taken_at < decided || now.since(*taken_at) >= HELD_FOR
        };
        let due = self.ended.iter().take_while(is_due).count();
        news.extend(self.ended.drain(..due).map(|(_, ended)| ended));
        if !news.is_empty() {
            out.requests.push(RequestsNews {
                runtime: runtime.clone(),
                news,
            });
        }
        self.release(is_drained, now, out);
        let begins = !self.held.is_empty() && !self.is_waiting && board.begin_generation();
        if begins {
            self.is_waiting = true;
            self.held
                .iter_mut()
                .for_each(|held| held.is_waited_for = true);
        }
    }

    /// Takes the news of requests. Returns those of late polls; ends wait.
    fn take_news(&mut self, runtime: &WatchedRuntime) -> Vec<RequestNews> {
        if !runtime.requests.has_news() {
            return Vec::new();
        }
        let has_ended = |news: &RequestNews| matches!(news, RequestNews::Ended { .. });
        let news = runtime.requests.take_news().into_iter();
        let (ended, mut late): (Vec<_>, Vec<_>) = news.partition(has_ended);
        // Workers went on during this tick. A poll that began after the look at its worker, and
        // has held up one of these, is found by the next tick.
        let taken_at = clock::now();
        self.ended
            .extend(ended.into_iter().map(|news| (taken_at, news)));
        while self.ended.len() > ENDED {
            late.extend(self.ended.pop_front().map(|(_, news)| news));
        }
        late
    }

    /// Passes on last reports whose requests have been polled, or that have been held for long.
    fn release(&mut self, is_drained: bool, now: Nanos, out: &mut News) {
        let is_due =
            |held: &HeldBack| held.is_waited_for && is_drained || now.since(held.since) >= HELD_FOR;
        let held = std::mem::take(&mut self.held).into_iter();
        let (due, held) = held.partition(is_due);
        self.held = held;
        out.stalls
            .extend(due.into_iter().map(|held: HeldBack| held.news));
        self.is_waiting &= !is_drained;
    }

    /// Takes back what the reporter has had no room for. It has to learn that a stall is over: each
    /// request would be held up by it from then on.
    pub(super) fn take_back(&mut self, unsent: Vec<RequestNews>) {
        let is_stall = |news: &RequestNews| matches!(news, RequestNews::Stalled { .. });
        let newer = std::mem::take(&mut self.stalled);
        self.stalled = unsent.into_iter().filter(is_stall).chain(newer).collect();
        let too_many = self.stalled.len().saturating_sub(STALLED);
        self.stalled.drain(..too_many);
    }

    /// Passes everything on: the runtime is not watched any more.
    pub(super) fn flush(&mut self, runtime: &Arc<WatchedRuntime>, now: Nanos, out: &mut News) {
        self.tick(runtime, now, Nanos(u64::MAX), out);
        out.stalls.extend(self.held.drain(..).map(|held| held.news));
    }

    /// Notes since when no worker waits for the runtime's sockets and timers, if none does.
    pub(super) fn driver_is_frozen(runtime: &WatchedRuntime, since: Option<Nanos>, now: Nanos) {
        runtime.requests.driver_is_frozen(since, now);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::requests::Stretch;

    fn stalled(stall: u64) -> RequestNews {
        RequestNews::Stalled {
            stall,
            since: Nanos(1),
            until: Some(Nanos(2)),
            certain: true,
            poll: None,
        }
    }

    #[test]
    fn stalls_that_found_no_room_are_told_again_before_newer_ones() {
        let mut watch = RequestWatch::default();
        watch.stalled.push(stalled(STALLED as u64));
        let waited = RequestNews::Frozen {
            request: 1,
            waiting: Stretch {
                since: Nanos(1),
                until: Nanos(2),
            },
        };
        let unsent = (0..STALLED as u64).map(stalled);
        watch.take_back(unsent.chain([waited]).collect());
        let numbers = watch.stalled.iter().map(|news| match news {
            RequestNews::Stalled { stall, .. } => *stall,
            other => panic!("{other:?}"),
        });
        // The oldest one makes room.
        assert!(numbers.eq(1..=STALLED as u64));
    }
}
