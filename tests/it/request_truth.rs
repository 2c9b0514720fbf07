//! The parts of requests' time, and the victims of stalls, of a real service under load, beside a
//! second measurement of the test's own.
//!
//! Each stamp of the layer lies between one that the test takes outside of it and one inside. So the
//! test knows a least and a most of each part, on a machine however busy.

mod truth;

use crate::support::load::Hogs;
use crate::support::service::{self, Service};
use crate::support::wait_until;
use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_stall::tower::{LostTo, RequestLayer, RequestReport};
use tokio_stall::{Blocking, Cause, Phase, StallReport};
use tower::Layer as _;
use truth::{Timed, Truth};

const CLIENTS: usize = 12;
const REQUESTS_OF_EACH: usize = 6;
const BLOCKS: usize = 4;
/// The time for which a handler blocks its worker.
const BLOCKED: Duration = Duration::from_millis(300);
/// From this length on, a time without a poll is late (D180).
const LATE: Duration = Duration::from_millis(1);

type Query = (usize, oneshot::Sender<()>);

/// A database beside the runtime: each query takes some milliseconds.
fn database() -> Sender<Query> {
    let (send, queries) = channel::<Query>();
    std::thread::spawn(move || {
        for (number, answer) in queries {
            std::thread::sleep(Duration::from_millis(1 + number as u64 * 7 % 20));
            answer.send(()).ok();
        }
    });
    send
}

fn router(database: Sender<Query>) -> Router {
    let waits = move |Path(number): Path<usize>| {
        let (answer, answered) = oneshot::channel();
        database.send((number, answer)).unwrap();
        async move {
            answered.await.unwrap();
            "answered"
        }
    };
    let blocks = |Path(_): Path<usize>| async {
        std::thread::sleep(BLOCKED);
        "blocked"
    };
    Router::new()
        .route("/waits/{n}", get(waits))
        .route("/blocks/{n}", get(blocks))
}

/// The service, and the two measurements of the test.
struct Measured {
    service: Service,
    outside: Truth,
    inside: Truth,
}

impl Measured {
    fn start(workers: usize) -> Measured {
        let (outside, inside) = (Truth::default(), Truth::default());
        // Without a route that the layer could know, each path has its own name.
        let watched = RequestLayer::new()
            .by_path(true)
            .layer(inside.layer(router(database())));
        let router = Router::new().fallback_service(outside.layer(watched));
        Measured {
            service: Service::start(workers, router),
            outside,
            inside,
        }
    }

    /// All clients ask for all they want, and a handler blocks so many times meanwhile. Returns the
    /// reports of the requests, by their names.
    fn load(&self, blocks: usize) -> BTreeMap<String, RequestReport> {
        let address = self.service.address;
        let clients = (0..CLIENTS).map(|client| {
            std::thread::spawn(move || {
                for request in 0..REQUESTS_OF_EACH {
                    ask(
                        address,
                        &format!("/waits/{}", client * REQUESTS_OF_EACH + request),
                    );
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        (0..blocks).for_each(|block| ask(address, &format!("/blocks/{block}")));
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        let all = CLIENTS * REQUESTS_OF_EACH + blocks;
        wait_until("all requests to be over", || {
            self.outside.are_over(all) && self.inside.are_over(all)
        });
        let reports = (0..all).map(|_| self.service.next_request());
        reports
            .map(|report| (report.route.clone(), report))
            .collect()
    }

    /// No poll is reported but those of these spans.
    ///
    /// The handlers and both measurements take locks. On a busy machine their holder may be without
    /// a CPU for longer than the threshold; then a poll really waits for a lock.
    #[track_caller]
    fn assert_blocked_only_in(&self, spans: &BTreeSet<String>) {
        for report in self.service.stage.seen.all() {
            let span = report.span.as_deref().unwrap_or_default();
            // The holder of an allocator's lock that has no CPU is the host's.
            let in_futex = report.asleep_in.as_deref() == Some("futex");
            let waits = waits_for_a_lock(Some(report.cause)) || report.cause.is_host() && in_futex;
            assert!(waits || spans.contains(span), "false alarm: {report:#?}");
        }
    }

    fn bounds(&self, route: &str) -> Bounds {
        let path = route.strip_prefix("GET ").unwrap();
        Bounds {
            outside: self.outside.of(path),
            inside: self.inside.of(path),
        }
    }
}

fn waits_for_a_lock(cause: Option<Cause>) -> bool {
    cause == Some(Cause::Blocked(Blocking::Lock))
}

fn ask(address: SocketAddr, path: &str) {
    let response = service::get(address, path);
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

/// A stretch of time.
#[derive(Clone, Copy, Debug)]
struct Span {
    since: Instant,
    until: Instant,
}

impl Span {
    fn length(self) -> Duration {
        self.until.saturating_duration_since(self.since)
    }

    fn common(self, other: Span) -> Duration {
        let since = self.since.max(other.since);
        self.until.min(other.until).saturating_duration_since(since)
    }
}

/// One request, measured on both sides of the layer.
struct Bounds {
    outside: Timed,
    inside: Timed,
}

/// The sum of the polls.
fn own(timed: &Timed) -> Duration {
    timed.polls.iter().map(|poll| poll.ended - poll.begun).sum()
}

impl Bounds {
    /// The stretches for which it was ready at least.
    fn least_ready(&self) -> Vec<Span> {
        ready(&self.outside, self.inside.called, &self.outside)
    }

    /// The stretches for which it was ready at most.
    fn most_ready(&self) -> Vec<Span> {
        let mut stretches = ready(&self.inside, self.outside.called, &self.inside);
        let (dropped, woken) = self.outside.dropped.unwrap();
        stretches.extend(self.inside.dropped.unwrap().1.or(woken).map(|since| Span {
            since,
            until: dropped,
        }));
        stretches
    }

    #[track_caller]
    fn assert_holds(&self, request: &RequestReport) {
        let sum = |spans: Vec<Span>| spans.into_iter().map(Span::length).sum();
        let least = self.inside.polls.last().unwrap().ended - self.inside.called;
        let most = self.outside.dropped.unwrap().0 - self.outside.called;
        assert_between("total", request.total, least, most, request);
        assert_between(
            "own",
            request.own,
            own(&self.inside),
            own(&self.outside),
            request,
        );
        let (least, most) = (sum(self.least_ready()), sum(self.most_ready()));
        assert_between("ready", request.ready, least, most, request);
        assert_eq!(request.own + request.ready + request.waiting, request.total);
    }
}

/// The stretches before the polls of `timed` in which the request was ready: first from its call on,
/// and then from a wake, or from the end of the poll in which that came.
fn ready(timed: &Timed, called: Instant, ends: &Timed) -> Vec<Span> {
    let ended = ends.polls.iter().map(|poll| Some(poll.ended));
    let before = std::iter::once(None).chain(ended);
    let polls = timed.polls.iter().zip(before);
    let stretches = polls.filter_map(|(poll, before)| {
        let since = match before {
            None => called,
            Some(before) => poll.woken?.max(before),
        };
        let until = poll.begun;
        Some(Span { since, until })
    });
    stretches.collect()
}

/// The clock of the detector and that of the test may differ by so much.
fn clocks_differ(by: Duration) -> Duration {
    Duration::from_micros(100) + by / 1000
}

#[track_caller]
fn assert_between(
    part: &str,
    found: Duration,
    least: Duration,
    most: Duration,
    of: &impl std::fmt::Display,
) {
    let error = clocks_differ(most);
    let fits = found + error >= least && found <= most + error;
    assert!(fits, "{part} is {found:?}, not {least:?} to {most:?}: {of}");
}

/// The time that a request lost to a stall, at least and at most.
fn lost(request: &Bounds, culprit: &Bounds) -> (Duration, Duration) {
    let longest = |timed: &Timed| {
        let spans = timed.polls.iter().map(|poll| Span {
            since: poll.begun,
            until: poll.ended,
        });
        spans.max_by_key(|span| span.length()).unwrap()
    };
    let late = |spans: Vec<Span>, least: Duration, stall: Span| -> Duration {
        let late = spans.into_iter().filter(|span| span.length() >= least);
        late.map(|span| span.common(stall)).sum()
    };
    let error = clocks_differ(LATE);
    let least = late(
        request.least_ready(),
        LATE + error,
        longest(&culprit.inside),
    );
    let most = late(
        request.most_ready(),
        LATE - error,
        longest(&culprit.outside),
    );
    (least, most)
}

/// Compares the losses to one stall with the truth. Returns the number of its victims.
fn assert_victims(
    measured: &Measured,
    requests: &BTreeMap<String, RequestReport>,
    stall: &StallReport,
) -> u64 {
    let culprit = measured.bounds(stall.span.as_deref().unwrap());
    // The begin of the stall is known to within a tick.
    let error = stall.duration_error * 2;
    let (mut count, mut together) = (0, Duration::ZERO);
    for request in requests.values() {
        let found = request.lost.iter().find(|lost| lost.stall == stall.id);
        let found = found.map_or(Duration::ZERO, |lost| lost.lost);
        let (least, most) = lost(&measured.bounds(&request.route), &culprit);
        let most = if most.is_zero() { most } else { most + error };
        let least = least.saturating_sub(error);
        assert_between(
            "lost",
            found,
            least,
            most,
            &format_args!("{request}\n{stall}"),
        );
        count += u64::from(!found.is_zero());
        together += found;
    }
    let victims = stall.victims.as_ref().expect("requests are watched");
    assert_eq!(
        (victims.requests, victims.total),
        (count, together),
        "{stall}"
    );
    count
}

/// A loaded service with this many workers, of which a handler blocks one now and then.
fn assert_truth(workers: usize) {
    let measured = Measured::start(workers);
    let requests = measured.load(BLOCKS);
    for request in requests.values() {
        measured.bounds(&request.route).assert_holds(request);
    }
    let spans: BTreeSet<_> = (0..BLOCKS)
        .map(|block| format!("GET /blocks/{block}"))
        .collect();
    let stalls = spans
        .iter()
        .map(|span| measured.service.stage.seen.wait_for_end_of(span));
    let victims: u64 = stalls
        .map(|stall| assert_victims(&measured, &requests, &stall))
        .sum();
    // With one worker, some request is ready while it is blocked.
    assert!(victims > 0 || workers > 1, "nobody was held up");
    measured.assert_blocked_only_in(&spans);
}

#[test]
fn with_one_worker() {
    assert_truth(1);
}

#[test]
fn with_two_workers() {
    assert_truth(2);
}

#[test]
fn with_one_worker_beside_other_programs() {
    let _hogs = Hogs::start(2);
    assert_truth(1);
}

#[test]
fn with_two_workers_beside_other_programs() {
    let _hogs = Hogs::start(2);
    assert_truth(2);
}

#[test]
fn a_service_that_does_not_block_has_no_victims() {
    let measured = Measured::start(2);
    let requests = measured.load(0);
    for request in requests.values() {
        measured.bounds(&request.route).assert_holds(request);
        let seen = || measured.service.stage.seen.all();
        let is_lock =
            |lost: &LostTo| waits_for_a_lock(lost.cause) || lost.cause.is_some_and(Cause::is_host);
        assert!(request.lost.iter().all(is_lock), "{request}\n{:#?}", seen());
    }
    measured.assert_blocked_only_in(&BTreeSet::new());
    // Positive control.
    ask(measured.service.address, "/blocks/0");
    let ended = measured.service.stage.seen.wait_for_end_of("GET /blocks/0");
    assert_eq!(ended.phase, Phase::Ended);
    assert!(ended.victims.is_some());
}
