//! The requests of one runtime that were late, joined with its stalls.
//!
//! *Runs on:* `stall-reporter`.
//!
//! A request that was ready and was not polled, while a stall went on, was held up by it. Both are
//! kept for a while, since either may become known after the other.

use crate::clock::Nanos;
use crate::engine::StallId;
use crate::report::{RouteVictims, Victims};
use crate::requests::{Route, Stretch};
use crate::slot::PollKey;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Late polls that are kept. A stall that holds up more requests counts the last ones.
const LATE: usize = 8192;
/// Stalls that are kept.
const STALLS: usize = 64;
/// Routes in a report.
const ROUTES: usize = 3;

/// The late requests of one runtime, and its stalls.
#[derive(Default)]
pub(super) struct Lateness {
    late: VecDeque<LatePoll>,
    /// The number of the first late poll that is kept.
    first: u64,
    /// The last late poll of each request, by its number.
    last_of: HashMap<u64, u64>,
    /// Requests that waited while the driver was frozen.
    waited: VecDeque<(u64, Stretch)>,
    stalls: VecDeque<Known>,
}

struct LatePoll {
    request: u64,
    route: Route,
    ready: Stretch,
    /// The number of the same request's late poll before.
    before: Option<u64>,
}

/// A stall of the runtime.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) id: StallId,
    pub(super) since: Nanos,
    /// `None` while it goes on.
    pub(super) until: Option<Nanos>,
    /// Only certain stalls have cost requests time, as far as counters go.
    pub(super) certain: bool,
    /// The marked poll that it is, if it is one.
    pub(super) poll: Option<PollKey>,
}

impl Lateness {
    /// Takes in a late poll.
    pub(super) fn late(&mut self, request: u64, route: Route, ready: Stretch) {
        if self.late.len() == LATE {
            self.forget_first();
        }
        let number = self.first + self.late.len() as u64;
        self.late.push_back(LatePoll {
            request,
            route,
            ready,
            before: self.last_of.insert(request, number),
        });
    }

    fn forget_first(&mut self) {
        let Some(late) = self.late.pop_front() else {
            return;
        };
        if self.last_of.get(&late.request) == Some(&self.first) {
            self.last_of.remove(&late.request);
        }
        self.first += 1;
    }

    /// Takes in a wait during which the driver was frozen.
    pub(super) fn waited(&mut self, request: u64, waiting: Stretch) {
        if self.waited.len() == LATE {
            self.waited.pop_front();
        }
        self.waited.push_back((request, waiting));
    }

    /// Takes in a stall, or its end.
    pub(super) fn stall(&mut self, stall: Known) {
        if let Some(known) = self.stalls.iter_mut().find(|known| known.id == stall.id) {
            *known = stall;
            return;
        }
        if self.stalls.len() == STALLS {
            self.stalls.pop_front();
        }
        self.stalls.push_back(stall);
    }

    /// The stall that this poll is.
    pub(super) fn stall_of(&self, poll: PollKey) -> Option<StallId> {
        let stall = self.stalls.iter().find(|known| known.poll == Some(poll));
        stall.map(|known| known.id)
    }

    /// The requests that a stall has held up, of those that have been polled since.
    pub(super) fn victims(&self, id: StallId) -> Victims {
        let mut lost: HashMap<u64, (Route, Duration)> = HashMap::new();
        let stall = self.stalls.iter().find(|known| known.id == id);
        for late in stall.iter().flat_map(|_| &self.late) {
            let part = stall.map_or(Duration::ZERO, |stall| stall.part_of(late.ready));
            if !part.is_zero() {
                lost.entry(late.request)
                    .or_insert((late.route, Duration::ZERO))
                    .1 += part;
            }
        }
        Victims {
            requests: lost.len() as u64,
            waiting: 0,
            frozen: stall.map_or(0, |stall| self.frozen_by(stall)),
            total: lost.values().map(|(_, lost)| *lost).sum(),
            longest: lost
                .values()
                .map(|(_, lost)| *lost)
                .max()
                .unwrap_or_default(),
            routes: by_route(lost.into_values()),
        }
    }

    /// The number of requests that waited during a stall while the driver was frozen.
    fn frozen_by(&self, stall: &Known) -> u64 {
        let waited = self.waited.iter();
        let of_stall = waited.filter(|(_, waiting)| !stall.part_of(*waiting).is_zero());
        let requests: HashSet<u64> = of_stall.map(|(request, _)| *request).collect();
        requests.len() as u64
    }

    /// The times for which a request was ready, and late.
    pub(super) fn late_times(&self, request: u64) -> Vec<Stretch> {
        let mut number = self.last_of.get(&request).copied();
        let back = std::iter::from_fn(|| {
            let place = number?.checked_sub(self.first)?;
            let late = &self.late[place as usize];
            number = late.before;
            Some(late.ready)
        });
        back.collect()
    }

    /// The stalls that went on during these times, with the part of each, the largest first.
    pub(super) fn losses(&self, late: &[Stretch]) -> Vec<(StallId, Duration)> {
        let part = |stall: &Known| late.iter().map(|ready| stall.part_of(*ready)).sum();
        let losses = self.stalls.iter().map(|stall| (stall.id, part(stall)));
        let mut losses: Vec<(StallId, Duration)> = losses.collect();
        losses.retain(|(_, lost)| !lost.is_zero());
        losses.sort_by_key(|(_, lost)| std::cmp::Reverse(*lost));
        losses
    }

    /// The part of these times in which any certain stall went on. Stalls that overlap count once.
    pub(super) fn lost(&self, late: &[Stretch]) -> Duration {
        late.iter().map(|ready| self.lost_in(*ready)).sum()
    }

    fn lost_in(&self, ready: Stretch) -> Duration {
        let certain = self.stalls.iter().filter(|stall| stall.certain);
        let parts = certain.map(|stall| stall.during(ready));
        let mut parts: Vec<_> = parts.map(|part| (part.since, part.until)).collect();
        parts.sort_unstable();
        let (mut lost, mut counted) = (Duration::ZERO, ready.since);
        for (since, until) in parts {
            lost += until.since(since.max(counted));
            counted = counted.max(until);
        }
        lost
    }
}

impl Known {
    fn during(&self, ready: Stretch) -> Stretch {
        ready.during(self.since, self.until)
    }

    fn part_of(&self, ready: Stretch) -> Duration {
        self.during(ready).length()
    }
}

/// The routes that lost most.
fn by_route(requests: impl Iterator<Item = (Route, Duration)>) -> Vec<RouteVictims> {
    let mut routes: HashMap<Route, (u64, Duration)> = HashMap::new();
    for (route, lost) in requests {
        let of_route = routes.entry(route).or_default();
        *of_route = (of_route.0 + 1, of_route.1 + lost);
    }
    let mut routes: Vec<_> = routes.into_iter().collect();
    routes.sort_by_key(|(route, (_, lost))| (std::cmp::Reverse(*lost), *route));
    let worst = routes.into_iter().take(ROUTES);
    let worst = worst.map(|(route, (requests, total))| RouteVictims {
        route: route.name().to_owned(),
        requests,
        total,
    });
    worst.collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn at(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    fn ready(since: u64, until: u64) -> Stretch {
        Stretch {
            since: at(since),
            until: at(until),
        }
    }

    fn known(id: u64, since: Nanos, until: Option<Nanos>) -> Known {
        Known {
            id: StallId(id),
            since,
            until,
            certain: true,
            poll: Some(poll(id)),
        }
    }

    fn poll(nth: u64) -> PollKey {
        PollKey {
            thread: (0x1000, 1),
            epoch: 2 * nth + 1,
        }
    }

    fn losses(lateness: &Lateness, request: u64) -> Vec<(StallId, Duration)> {
        lateness.losses(&lateness.late_times(request))
    }

    #[test]
    fn victims_are_those_that_were_ready_during_the_stall_and_no_others() {
        let mut lateness = Lateness::default();
        lateness.late(1, Route::at(0), ready(0, 50));
        lateness.late(2, Route::at(1), ready(150, 420));
        lateness.stall(known(7, at(100), None));
        lateness.late(3, Route::at(1), ready(350, 401));
        lateness.late(4, Route::at(0), ready(402, 500));
        lateness.stall(known(7, at(100), Some(at(400))));
        let victims = lateness.victims(StallId(7));
        assert_eq!(victims.requests, 2);
        assert_eq!((victims.total, victims.longest), (MS(300), MS(250)));
        assert_eq!(victims.routes.len(), 1);
        assert_eq!(victims.routes[0].requests, 2);
        assert_eq!(lateness.victims(StallId(8)), Victims::default());
        assert_eq!(losses(&lateness, 2), [(StallId(7), MS(250))]);
        assert_eq!(losses(&lateness, 4), []);
    }

    #[test]
    fn a_stall_is_found_by_its_poll() {
        let mut lateness = Lateness::default();
        lateness.stall(known(1, at(0), Some(at(60))));
        lateness.stall(known(2, at(0), None));
        assert_eq!(lateness.stall_of(poll(2)), Some(StallId(2)));
        assert_eq!(lateness.stall_of(poll(3)), None);
    }

    #[test]
    fn a_request_that_is_late_twice_is_one_victim() {
        let mut lateness = Lateness::default();
        lateness.stall(known(1, at(0), Some(at(100))));
        lateness.late(5, Route::at(0), ready(10, 20));
        lateness.late(5, Route::at(0), ready(30, 60));
        let victims = lateness.victims(StallId(1));
        assert_eq!((victims.requests, victims.longest), (1, MS(40)));
    }

    #[test]
    fn two_stalls_at_one_time_are_lost_time_once() {
        let mut lateness = Lateness::default();
        lateness.stall(known(1, at(0), Some(at(60))));
        lateness.stall(known(2, at(40), Some(at(100))));
        lateness.late(5, Route::at(0), ready(20, 120));
        assert_eq!(lateness.lost(&lateness.late_times(5)), MS(80));
        let both = [(StallId(2), MS(60)), (StallId(1), MS(40))];
        assert_eq!(losses(&lateness, 5), both);
    }

    #[test]
    fn a_stall_that_is_only_likely_costs_nothing() {
        let mut lateness = Lateness::default();
        let certain = known(1, at(0), Some(at(60)));
        lateness.late(5, Route::at(0), ready(20, 120));
        for certain in [
            Known {
                certain: false,
                ..certain
            },
            certain,
        ] {
            lateness.stall(certain);
            let lost = if certain.certain { MS(40) } else { MS(0) };
            assert_eq!(lateness.lost(&lateness.late_times(5)), lost);
        }
    }

    #[test]
    fn the_three_routes_that_lost_most_are_named() {
        let mut lateness = Lateness::default();
        lateness.stall(known(1, at(0), Some(at(1000))));
        for route in 0..5 {
            let until = 10 + 10 * route;
            lateness.late(route, Route::at(route as usize), ready(0, until));
        }
        let totals = lateness.victims(StallId(1)).routes;
        let totals: Vec<_> = totals.iter().map(|route| route.total).collect();
        assert_eq!(totals, [MS(50), MS(40), MS(30)]);
    }

    #[test]
    fn waits_during_a_stall_are_counted_apart() {
        let mut lateness = Lateness::default();
        lateness.stall(known(1, at(100), Some(at(200))));
        lateness.waited(1, ready(0, 150));
        lateness.waited(1, ready(160, 210));
        lateness.waited(2, ready(200, 300));
        let victims = lateness.victims(StallId(1));
        assert_eq!((victims.frozen, victims.requests), (1, 0));
    }

    #[test]
    fn all_lists_are_bounded() {
        let mut lateness = Lateness::default();
        (0..LATE as u64 + 9).for_each(|request| {
            lateness.late(request, Route::at(0), ready(0, 5));
            lateness.waited(request, ready(0, 5));
            lateness.stall(known(request, at(0), None));
        });
        assert_eq!((lateness.late.len(), lateness.last_of.len()), (LATE, LATE));
        // The times of a request that are gone are not looked for.
        (0..LATE).for_each(|_| lateness.late(1, Route::at(0), ready(0, 5)));
        lateness.late(2, Route::at(0), ready(0, 5));
        assert_eq!(lateness.late_times(1).len(), LATE - 1);
        assert_eq!(lateness.late_times(LATE as u64), []);
        assert_eq!(lateness.waited.len(), LATE);
        assert_eq!(lateness.stalls.len(), STALLS);
    }
}
