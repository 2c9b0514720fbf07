//! Requests in the reporter: victims for the reports of stalls, and reports of slow requests.
//!
//! *Runs on:* `stall-reporter`.

use super::Reporter;
use super::case::Case;
use super::lateness::{Known, Lateness};
use super::sinks::Delivery;
use crate::clock::wall_clock;
use crate::engine::{RequestsNews, StallId, WatchedRuntime};
use crate::report::{LostTo, Phase, RequestReport, StallReport};
use crate::requests::{RequestNews, RequestTime, Route};
use crate::slot::PollKey;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The late requests of a runtime that is watched.
#[derive(Default)]
pub(super) struct OfRuntime {
    runtime: Weak<WatchedRuntime>,
    lateness: Lateness,
}

/// A request that has ended.
struct Ended {
    request: u64,
    route: Route,
    time: RequestTime,
    driver_frozen: Duration,
    longest_poll: Option<PollKey>,
}

impl Reporter<'_> {
    /// Takes in news of requests.
    pub(super) fn requests(&mut self, news: RequestsNews) {
        let runtime = news.runtime;
        for news in news.news {
            match news {
                RequestNews::Late {
                    request,
                    route,
                    ready,
                } => self.lateness(&runtime).late(request, route, ready),
                RequestNews::Frozen { request, waiting } => {
                    self.lateness(&runtime).waited(request, waiting)
                }
                RequestNews::Stalled {
                    stall,
                    since,
                    until,
                    certain,
                    poll,
                } => {
                    let stall = Known {
                        id: StallId(stall),
                        since,
                        until,
                        certain,
                        poll,
                    };
                    self.lateness(&runtime).stall(stall);
                }
                RequestNews::Ended {
                    request,
                    route,
                    time,
                    driver_frozen,
                    longest_poll,
                } => self.ended(
                    &runtime,
                    &Ended {
                        request,
                        route,
                        time,
                        driver_frozen,
                        longest_poll,
                    },
                ),
            }
        }
    }

    /// The late requests of a runtime. Those of runtimes that have gone are forgotten.
    fn lateness(&mut self, runtime: &Arc<WatchedRuntime>) -> &mut Lateness {
        if !self.requests.contains_key(&runtime.id) {
            self.requests
                .retain(|_, known| known.runtime.strong_count() > 0);
        }
        let known = self.requests.entry(runtime.id).or_default();
        known.runtime = Arc::downgrade(runtime);
        &mut known.lateness
    }

    /// Adds the requests that a stall has held up, if the runtime has requests.
    pub(super) fn add_victims(&self, case: &Case, report: &mut StallReport) {
        let Some(news) = case.latest() else {
            return;
        };
        let board = &news.live.runtime.requests;
        if board.used().is_none() {
            return;
        }
        let known = self.requests.get(&news.live.runtime.id);
        let known = known.map(|known| known.lateness.victims(StallId(report.id)));
        let mut victims = known.unwrap_or_default();
        if report.phase != Phase::Ended {
            victims.waiting = board.ready_now() as u64;
        }
        report.victims = Some(victims);
    }

    /// Counts the time that a request has lost, and reports it if it took long.
    fn ended(&mut self, runtime: &Arc<WatchedRuntime>, ended: &Ended) {
        let lateness = self.lateness(runtime);
        let late = lateness.late_times(ended.request);
        let lost = lateness.lost(&late);
        let slow_from = runtime.watch.settings.slow_requests_from();
        let is_slow = slow_from.is_some_and(|from| ended.time.total() >= from);
        // One poll of a task can be the poll of several requests.
        let is_long = ended.time.longest_poll >= runtime.rules.threshold;
        let own = ended.longest_poll.filter(|_| is_long);
        let own = own.and_then(|poll| lateness.stall_of(poll));
        let losses = is_slow.then(|| lateness.losses(&late));
        let used = runtime.requests.used().filter(|_| !lost.is_zero());
        if let Some(tally) = used.and_then(|used| used.lost.get(ended.route.place())) {
            tally.note(lost);
        }
        if let Some(losses) = losses {
            let report = report(runtime, ended, own, losses);
            self.pass_on(Delivery::Request {
                report,
                runtime: runtime.clone(),
            });
        }
    }
}

fn report(
    runtime: &Arc<WatchedRuntime>,
    ended: &Ended,
    own: Option<StallId>,
    losses: Vec<(StallId, Duration)>,
) -> RequestReport {
    let time = &ended.time;
    let losses = losses.into_iter();
    RequestReport {
        runtime: runtime.name.clone(),
        route: ended.route.name().to_owned(),
        started_at: wall_clock(time.began),
        total: time.total(),
        own: time.own,
        longest_poll: time.longest_poll,
        ready: time.ready,
        waiting: time.waiting,
        driver_frozen: ended.driver_frozen.min(time.waiting),
        own_stall: own.map(|id| lost_to(runtime, id, time.longest_poll)),
        lost: losses
            .map(|(id, lost)| lost_to(runtime, id, lost))
            .collect(),
    }
}

/// A loss, with the facts that are known of the stall by now.
fn lost_to(runtime: &WatchedRuntime, id: StallId, lost: Duration) -> LostTo {
    let stall = runtime.watch.recent.lock().stall(id.0);
    let (span, site, cause) = match stall {
        Some(stall) => (stall.span, stall.site, Some(stall.cause)),
        None => (None, None, None),
    };
    LostTo {
        stall: id.0,
        lost,
        span,
        site,
        cause,
    }
}
