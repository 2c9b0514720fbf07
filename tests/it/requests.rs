//! Requests of a real service: the parts of their time, and the stalls that held them up.

use crate::support::service::{Service, get};
use crate::support::{Held, assert_at_least, wait_until};
use axum::Router;
use axum::routing;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio_stall::tower::{RequestLayer, RequestReport};
use tokio_stall::{Phase, StallReport};

/// Answers that handlers wait for; a thread beside the runtime sends them.
type Answers = mpsc::UnboundedSender<oneshot::Sender<()>>;

/// The service, and the threads of its handlers.
struct Handlers {
    service: Service,
    /// Requests to `/waits` that wait for an answer.
    waiting: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    /// Ends one `/blocks`.
    release: std::sync::mpsc::Sender<()>,
    /// The wakers of requests to `/keeps`.
    kept: std::sync::mpsc::Receiver<Waker>,
}

impl Handlers {
    fn start(workers: usize) -> Handlers {
        let (release, held) = Held::new();
        let (answers, waiting) = mpsc::unbounded_channel();
        let (keep, kept) = std::sync::mpsc::channel();
        let router = router(answers, held).route("/keeps", routing::get(|| keeps_waker(keep)));
        let router = router.layer(RequestLayer::new().server_timing(true));
        Handlers {
            service: Service::start(workers, router),
            waiting,
            release,
            kept,
        }
    }

    /// A request on its own connection. The value is the response.
    fn get(&self, path: &'static str) -> JoinHandle<String> {
        let address = self.service.address;
        std::thread::spawn(move || get(address, path))
    }

    /// So many requests to `/waits` that have been polled, and wait.
    fn waiting(&mut self, count: usize) -> (Vec<JoinHandle<String>>, Vec<oneshot::Sender<()>>) {
        let clients = (0..count).map(|_| self.get("/waits/1")).collect();
        let answers = (0..count).map(|_| self.waiting.blocking_recv().expect("a request"));
        (clients, answers.collect())
    }

    /// The report of the next request to this route.
    fn request(&self, route: &str) -> RequestReport {
        loop {
            let request = self.service.next_request();
            if request.route == route {
                return request;
            }
        }
    }

    fn stalled(&self) -> StallReport {
        let is_held = |report: &StallReport| report.span.as_deref() == Some("GET /blocks");
        self.service.stage.seen.wait(is_held)
    }
}

fn router(answers: Answers, held: Held) -> Router {
    let waits = move || {
        let (answer, answered) = oneshot::channel();
        answers.send(answer).ok();
        async move {
            answered.await.ok();
            "answered"
        }
    };
    let blocks = move || {
        let held = held.clone();
        async move {
            held.wait();
            "released"
        }
    };
    Router::new()
        .route("/waits/{id}", routing::get(waits))
        .route("/blocks", routing::get(blocks))
        .route("/short", routing::get(|| async { "short" }))
}

/// Answers at once, and gives its waker away.
async fn keeps_waker(keep: std::sync::mpsc::Sender<Waker>) {
    poll_fn(|cx| Poll::Ready(keep.send(cx.waker().clone()).ok())).await;
}

/// The parts add up, as the report promises.
#[track_caller]
fn assert_adds_up(request: &RequestReport) {
    let parts = request.own + request.ready + request.waiting;
    assert_eq!(parts, request.total, "{request:#?}");
    assert!(request.longest_poll <= request.own);
}

#[test]
fn requests_that_were_ready_during_a_stall_are_its_victims_and_no_others() {
    let mut handlers = Handlers::start(1);
    let early = handlers.get("/short");
    assert!(early.join().unwrap().contains("short"));
    let (clients, answers) = handlers.waiting(5);
    let culprit = handlers.get("/blocks");
    let began = handlers.stalled();
    // The only worker is blocked. From now on these requests are ready.
    answers
        .into_iter()
        .for_each(|answer| answer.send(()).expect("it waits"));
    let woken = Instant::now();
    wait_until("a report that counts those who wait", || {
        let reports = handlers.service.stage.seen.all();
        let waiting = |report: &StallReport| report.victims.as_ref().map(|v| v.waiting);
        reports.iter().any(|report| waiting(report) == Some(5))
    });
    let lost = woken.elapsed();
    handlers.release.send(()).ok();
    for client in clients {
        assert!(client.join().unwrap().contains("answered"));
    }
    culprit.join().unwrap();
    let late = handlers.get("/short");
    let response = late.join().unwrap();
    assert!(response.contains("server-timing: own;dur="), "{response}");

    let ended = handlers.service.stage.seen.wait_for_end(began.id);
    let victims = ended.victims.as_ref().expect("requests are watched");
    assert_eq!((victims.requests, victims.waiting), (5, 0), "{ended}");
    assert_at_least(victims.longest, lost);
    assert!(victims.longest <= ended.duration, "{victims:?}");
    assert_at_least(victims.total, lost * 5);
    assert_eq!(victims.routes[0].route, "GET /waits/{id}");
    assert_eq!(victims.routes[0].requests, 5);
    for _ in 0..5 {
        let request = handlers.request("GET /waits/{id}");
        assert_adds_up(&request);
        assert_eq!(request.own_stall, None, "{request}");
        assert_eq!(request.lost.len(), 1, "{request}");
        let lost_to = &request.lost[0];
        assert_eq!(lost_to.stall, ended.id);
        assert_at_least(lost_to.lost, lost);
        assert!(lost_to.lost <= request.ready, "{request}");
        assert_eq!(lost_to.span.as_deref(), Some("GET /blocks"));
    }
}

#[test]
fn the_culprit_has_its_own_time_and_is_no_victim() {
    let handlers = Handlers::start(2);
    let culprit = handlers.get("/blocks");
    let began = handlers.stalled();
    handlers.release.send(()).ok();
    culprit.join().unwrap();
    let ended = handlers.service.stage.seen.wait_for_end(began.id);
    assert_eq!(ended.victims.map(|victims| victims.requests), Some(0));
    let request = handlers.request("GET /blocks");
    assert_adds_up(&request);
    assert!(request.lost.is_empty(), "{request}");
    let own = request.own_stall.as_ref().expect("its longest poll");
    assert_eq!((own.stall, own.lost), (ended.id, request.longest_poll));
    assert_eq!(own.span.as_deref(), Some("GET /blocks"));
    assert!(
        request.longest_poll + ended.duration_error >= ended.duration,
        "{request}"
    );
}

#[test]
fn requests_that_another_worker_serves_are_victims_only_if_they_lost_time() {
    const REQUESTS: usize = 20;
    let handlers = Handlers::start(2);
    // The worker that is free goes on looking for news of sockets.
    let busy = handlers.service.stage.runtime.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let culprit = handlers.get("/blocks");
    let began = handlers.stalled();
    let others: Vec<_> = (0..REQUESTS).map(|_| handlers.get("/short")).collect();
    for other in others {
        assert!(other.join().unwrap().contains("short"));
    }
    // All of them have been answered, and the stall goes on.
    let stalled = handlers.service.stage.watch.stalled_now();
    assert!(
        stalled.iter().any(|stall| stall.id == began.id),
        "{stalled:?}"
    );
    handlers.release.send(()).ok();
    culprit.join().unwrap();
    busy.abort();
    let ended = handlers.service.stage.seen.wait_for_end(began.id);
    let victims = ended.victims.as_ref().expect("requests are watched");
    let requests = (0..REQUESTS).map(|_| handlers.request("GET /short"));
    let is_its = |request: &RequestReport| {
        assert_adds_up(request);
        let lost = request.lost.iter().find(|lost| lost.stall == ended.id);
        lost.is_some_and(|lost| lost.lost <= request.ready && request.total < ended.duration)
    };
    let count = requests.filter(is_its).count() as u64;
    assert_eq!(victims.requests, count, "{ended}");
}

#[test]
fn a_request_that_is_woken_after_its_end_is_not_late() {
    let handlers = Handlers::start(1);
    handlers.get("/keeps").join().unwrap();
    let kept = handlers.kept.recv().expect("a waker");
    handlers.request("GET /keeps");
    kept.wake();
    let culprit = handlers.get("/blocks");
    let began = handlers.stalled();
    handlers.release.send(()).ok();
    culprit.join().unwrap();
    handlers.service.stage.seen.wait_for_end(began.id);
    for report in handlers.service.stage.seen.all() {
        let victims = report.victims.as_ref().expect("requests are watched");
        assert_eq!((victims.requests, victims.waiting), (0, 0), "{report}");
    }
}

#[test]
fn a_stall_beside_no_request_has_no_victims() {
    let handlers = Handlers::start(1);
    assert!(handlers.get("/short").join().unwrap().contains("short"));
    let stall = handlers.service.stage.stall();
    assert_eq!(stall.ended.phase, Phase::Ended);
    let victims = stall.ended.victims.expect("requests are watched");
    assert_eq!((victims.requests, victims.frozen), (0, 0));
}
