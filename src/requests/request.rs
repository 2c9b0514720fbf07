//! One request: its polls are marked and timed, and the detector is told if it was late.
//!
//! *Runs on:* the threads that poll the request.
//! *Must not:* lock or allocate in a poll. A request allocates its waker once. One that was held up
//! logs it, if the program asks for events of this level.

use super::board::{Board, LATE, RequestNews, next_number};
use super::routes::Route;
use super::time::{BetweenPolls, RequestTime, Stretch};
use super::waker::{RequestWaker, Woken};
use super::{boards, timing};
use crate::clock::{self, Nanos};
use crate::probe;
use crate::slot::{self, PollKey};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

/// The target of events about requests.
const TARGET: &str = "tokio_stall::request";

/// One request, from the call of the service to the end of its response.
pub(super) struct TimedRequest {
    board: Option<Arc<Board>>,
    route: Route,
    /// The number of the route's name, for marks.
    mark: u32,
    /// Given when it is late for the first time; 0 before.
    number: u64,
    time: RequestTime,
    /// The part of the time ready that fell into stalls known at that moment.
    lost: Duration,
    driver_frozen: Duration,
    /// The longest of its own polls, by its mark.
    longest_poll: Option<PollKey>,
    /// The driver's frozen time at the end of the last poll.
    frozen_before: Duration,
    noted: Arc<RequestWaker>,
    /// The same as a waker.
    waker: Waker,
}

impl TimedRequest {
    pub(super) fn new(route: Route) -> TimedRequest {
        let board = boards::here();
        let now = clock::now();
        let noted = Arc::new(RequestWaker::new(board.clone(), now));
        let frozen_before = match &board {
            Some(board) => {
                board.begin_use();
                board.frozen(now)
            }
            None => Duration::ZERO,
        };
        TimedRequest {
            board,
            route,
            mark: route.mark(),
            number: 0,
            time: RequestTime::new(now),
            lost: Duration::ZERO,
            driver_frozen: Duration::ZERO,
            longest_poll: None,
            frozen_before,
            waker: Waker::from(noted.clone()),
            noted,
        }
    }

    /// Polls a part of the request, marked and timed.
    pub(super) fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> R,
    ) -> R {
        self.begin_poll(cx);
        let mut timed = TimedPoll {
            board: self.board.as_deref(),
            time: &mut self.time,
            frozen_before: &mut self.frozen_before,
            poll: None,
            longest: &mut self.longest_poll,
        };
        let _marked = probe::mark(self.mark);
        timed.poll = slot::own_poll();
        poll(&mut Context::from_waker(&self.waker))
    }

    fn begin_poll(&mut self, cx: &Context<'_>) {
        let woken = self.noted.begin_poll(cx.waker());
        let now = clock::now();
        let gap = self.time.poll_begins(now, woken.map(|woken| woken.at));
        self.tell(&gap, woken, now);
    }

    /// Tells the detector of the time since the last poll, if the request was late. Only then the
    /// request counts as ready no more.
    fn tell(&mut self, gap: &BetweenPolls, woken: Option<Woken>, now: Nanos) {
        // Taken for the time of this call: a clone for each poll would cost more.
        let Some(board) = self.board.take() else {
            return;
        };
        self.note_frozen(&board, gap, now);
        let is_late = gap.ready.length() >= LATE;
        let lost = is_late.then(|| self.is_late(&board, gap.ready)).flatten();
        if let Some(woken) = woken {
            board.is_ready_no_more(woken.generation);
        }
        let logs = board.logs;
        self.board = Some(board);
        if let Some((stall, lost)) = lost.filter(|_| logs) {
            self.log(stall, lost);
        }
    }

    /// Logs that a stall has held it up. A stall can hold up thousands, so the level is one that a
    /// program has to ask for.
    #[cold]
    fn log(&self, stall: u64, lost: Duration) {
        tracing::debug!(
            target: TARGET,
            stall,
            route = self.route.name(),
            lost_seconds = lost.as_secs_f64(),
            "held up by stall #{stall}"
        );
    }

    /// Adds the part of the last wait for which the runtime's driver was frozen.
    fn note_frozen(&mut self, board: &Board, gap: &BetweenPolls, now: Nanos) {
        let frozen = board.frozen(now).saturating_sub(self.frozen_before);
        // While it was ready, a frozen driver kept nothing from it.
        let frozen = frozen.saturating_sub(gap.ready.length());
        let frozen = frozen.min(gap.waiting.length());
        self.driver_frozen += frozen;
        if frozen >= LATE {
            let request = self.numbered();
            board.tell(RequestNews::Frozen {
                request,
                waiting: gap.waiting,
            });
        }
    }

    /// A part of the response is there, and nobody waits for the next one yet: a slow client takes
    /// what there is first.
    pub(super) fn rests(&self) {
        if let (Some(woken), Some(board)) = (self.noted.rest(), &self.board) {
            board.is_ready_no_more(woken.generation);
        }
    }

    /// The number of this request, under which the detector knows it.
    fn numbered(&mut self) -> u64 {
        if self.number == 0 {
            self.number = next_number();
        }
        self.number
    }

    /// Tells the detector that it was late. Returns the stall with the largest part of that time,
    /// as far as stalls are known by now.
    #[cold]
    fn is_late(&mut self, board: &Board, ready: Stretch) -> Option<(u64, Duration)> {
        let request = self.numbered();
        board.tell(RequestNews::Late {
            request,
            route: self.route,
            ready,
        });
        let lost = board.stalls.lost_in(ready);
        self.lost += lost.map_or(Duration::ZERO, |(_, lost)| lost);
        lost
    }

    /// The value of the header `Server-Timing` for the time so far, in milliseconds.
    pub(super) fn server_timing(&self) -> String {
        timing::header(&self.time, self.lost)
    }
}

/// A poll under way. Its time ends also if it panics.
struct TimedPoll<'a> {
    board: Option<&'a Board>,
    time: &'a mut RequestTime,
    frozen_before: &'a mut Duration,
    poll: Option<PollKey>,
    longest: &'a mut Option<PollKey>,
}

impl Drop for TimedPoll<'_> {
    fn drop(&mut self) {
        let now = clock::now();
        if self.time.poll_ends(now) {
            *self.longest = self.poll;
        }
        if let Some(board) = self.board {
            *self.frozen_before = board.frozen(now);
        }
    }
}

impl Drop for TimedRequest {
    fn drop(&mut self) {
        let (woken, now) = (self.noted.rest(), clock::now());
        let gap = self.time.ends(now, woken.map(|woken| woken.at));
        self.tell(&gap, woken, now);
        let Some(board) = &self.board else {
            return;
        };
        let total = self.time.total();
        board.count(self.route, total);
        if self.number != 0 || board.is_slow(total) {
            board.tell(RequestNews::Ended {
                request: self.number,
                route: self.route,
                time: self.time,
                driver_frozen: self.driver_frozen,
                longest_poll: self.longest_poll,
            });
        }
    }
}
