//! Requests in the reporter: victims for the reports of stalls, and reports of slow requests.
//!
//! *Runs on:* `stall-reporter`.

use super::case::Case;
use super::sinks::Delivery;
use super::{Lateness, Reporter};
use crate::clock::{Nanos, wall_clock};
use crate::engine::{RequestsNews, StallId, StallNews, WatchedRuntime};
use crate::report::{LostTo, Phase, RequestReport, StallReport};
use crate::requests::{RequestNews, RequestTime, Route};
use std::sync::Arc;
use std::time::Duration;

/// A request that has ended.
struct Ended {
    request: u64,
    route: Route,
    time: RequestTime,
    driver_frozen: Duration,
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
                } => self.lateness(runtime.id).late(request, route, ready),
                RequestNews::Frozen { request, waiting } => {
                    self.lateness(runtime.id).waited(request, waiting)
                }
                RequestNews::Ended {
                    request,
                    route,
                    time,
                    driver_frozen,
                } => self.ended(
                    &runtime,
                    &Ended {
                        request,
                        route,
                        time,
                        driver_frozen,
                    },
                ),
            }
        }
    }

    fn lateness(&mut self, runtime: u64) -> &mut Lateness {
        self.requests.entry(runtime).or_default()
    }

    /// Takes in the interval of a stall that is announced.
    pub(super) fn stall_of_requests(&mut self, news: &StallNews) {
        let stall = &news.live.stall;
        if news.phase.is_some() {
            let is_over = news.phase == Some(Phase::Ended);
            let until: Option<Nanos> = is_over.then(|| stall.since.plus(stall.duration));
            let lateness = self.lateness(news.live.runtime.id);
            lateness.stall(news.live.id, stall.since, until);
        }
    }

    /// Adds the requests that a stall has held up, if the runtime has requests.
    pub(super) fn add_victims(&self, case: &Case, report: &mut StallReport) {
        let Some(news) = case.latest() else {
            return;
        };
        let board = &news.live.runtime.requests;
        if !board.is_used() {
            return;
        }
        let known = self.requests.get(&news.live.runtime.id);
        let known = known.map(|requests| requests.victims(StallId(report.id)));
        let mut victims = known.unwrap_or_default();
        if report.phase != Phase::Ended {
            victims.waiting = board.ready_now() as u64;
        }
        report.victims = Some(victims);
    }

    /// Counts the time that a request has lost, and reports it if it took long.
    fn ended(&mut self, runtime: &Arc<WatchedRuntime>, ended: &Ended) {
        let lateness = self.lateness(runtime.id);
        let lost = lateness.lost(ended.request);
        let losses = lateness.losses(ended.request);
        if !lost.is_zero() {
            if let Some(tally) = runtime.requests.lost.get(ended.route.place()) {
                tally.note(lost);
            }
        }
        let slow_from = runtime.watch.settings.slow_requests_from();
        if slow_from.is_some_and(|from| ended.time.total() >= from) {
            let report = report(runtime, ended, losses);
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
