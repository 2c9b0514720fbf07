//! Requests of a real service: the parts of their time, and the stalls that held them up.

use crate::support::stage::Stage;
use crate::support::{FOREVER, Held, wait_until};
use axum::Router;
use axum::routing::get;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_stall::tower::{RequestLayer, RequestReport};
use tokio_stall::{Phase, StallReport};

/// Answers that handlers wait for; a thread beside the runtime sends them.
type Answers = mpsc::UnboundedSender<oneshot::Sender<()>>;

/// A service on a stage, and the reports of its requests.
struct Service {
    stage: Stage,
    address: SocketAddr,
    /// Requests to `/waits` that wait for an answer.
    waiting: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    /// Ends one `/blocks`.
    release: std::sync::mpsc::Sender<()>,
    requests: Receiver<RequestReport>,
}

impl Service {
    fn start(workers: usize) -> Service {
        let (told, requests) = channel();
        let tell = move |request: &RequestReport| {
            told.send(request.clone()).ok();
        };
        let settings =
            |builder: tokio_stall::Builder| builder.on_slow_request(Duration::ZERO, tell);
        let stage = Stage::multi_thread(workers).settings(settings).start();
        let (release, held) = Held::new();
        let (answers, waiting) = mpsc::unbounded_channel();
        let listener = stage.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = router(answers, held);
        stage
            .runtime
            .spawn(async move { axum::serve(listener, router).await });
        Service {
            stage,
            address,
            waiting,
            release,
            requests,
        }
    }

    /// A request on its own connection. The value is the response.
    fn get(&self, path: &str) -> JoinHandle<String> {
        let address = self.address;
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).expect("it listens");
            stream.set_read_timeout(Some(FOREVER * 3)).expect("a time");
            stream.write_all(head.as_bytes()).expect("it reads");
            let mut response = String::new();
            stream.read_to_string(&mut response).expect("a response");
            response
        })
    }

    /// So many requests to `/waits` that have been polled, and wait.
    fn waiting(&mut self, count: usize) -> (Vec<JoinHandle<String>>, Vec<oneshot::Sender<()>>) {
        let clients = (0..count).map(|_| self.get("/waits/1")).collect();
        let answers = (0..count).map(|_| self.waiting.blocking_recv().expect("a request"));
        (clients, answers.collect())
    }

    /// The report of the next request to this route.
    fn request(&self, route: &str) -> RequestReport {
        let deadline = Instant::now() + FOREVER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = self
                .requests
                .recv_timeout(left)
                .expect("a request's report");
            if request.route == route {
                return request;
            }
        }
    }

    fn stalled(&self) -> StallReport {
        let is_held = |report: &StallReport| report.span.as_deref() == Some("GET /blocks");
        self.stage.seen.wait(is_held)
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
        .route("/waits/{id}", get(waits))
        .route("/blocks", get(blocks))
        .route("/short", get(|| async { "short" }))
        .layer(RequestLayer::new().server_timing(true))
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
    let mut service = Service::start(1);
    let early = service.get("/short");
    assert!(early.join().unwrap().contains("short"));
    let (clients, answers) = service.waiting(5);
    let culprit = service.get("/blocks");
    let began = service.stalled();
    // The only worker is blocked. From now on these requests are ready.
    let woken = Instant::now();
    answers
        .into_iter()
        .for_each(|answer| answer.send(()).expect("it waits"));
    wait_until("a report that counts those who wait", || {
        let reports = service.stage.seen.all();
        let waiting = |report: &StallReport| report.victims.as_ref().map(|v| v.waiting);
        reports.iter().any(|report| waiting(report) == Some(5))
    });
    let lost = woken.elapsed();
    service.release.send(()).ok();
    for client in clients {
        assert!(client.join().unwrap().contains("answered"));
    }
    culprit.join().unwrap();
    let late = service.get("/short");
    let response = late.join().unwrap();
    assert!(response.contains("server-timing: own;dur="), "{response}");

    let ended = service.stage.seen.wait_for_end(began.id);
    let victims = ended.victims.as_ref().expect("requests are watched");
    assert_eq!((victims.requests, victims.waiting), (5, 0), "{ended}");
    assert!(
        victims.longest >= lost && victims.longest <= ended.duration,
        "{victims:?}"
    );
    assert!(victims.total >= lost * 5, "{victims:?}");
    assert_eq!(victims.routes[0].route, "GET /waits/{id}");
    assert_eq!(victims.routes[0].requests, 5);
    for _ in 0..5 {
        let request = service.request("GET /waits/{id}");
        assert_adds_up(&request);
        assert_eq!(request.lost.len(), 1, "{request}");
        let lost_to = &request.lost[0];
        assert_eq!(lost_to.stall, ended.id);
        assert!(
            lost_to.lost >= lost && lost_to.lost <= request.ready,
            "{request}"
        );
        assert_eq!(lost_to.span.as_deref(), Some("GET /blocks"));
    }
}

#[test]
fn the_culprit_has_its_own_time_and_is_no_victim() {
    let service = Service::start(2);
    let culprit = service.get("/blocks");
    let began = service.stalled();
    service.release.send(()).ok();
    culprit.join().unwrap();
    let ended = service.stage.seen.wait_for_end(began.id);
    assert_eq!(ended.victims.map(|victims| victims.requests), Some(0));
    let request = service.request("GET /blocks");
    assert_adds_up(&request);
    assert!(request.lost.is_empty(), "{request}");
    assert!(
        request.longest_poll + ended.duration_error >= ended.duration,
        "{request}"
    );
}

#[test]
fn requests_that_another_worker_serves_are_victims_only_if_they_lost_time() {
    const REQUESTS: usize = 20;
    let service = Service::start(2);
    // The worker that is free goes on looking for news of sockets.
    let busy = service.stage.runtime.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let culprit = service.get("/blocks");
    let began = service.stalled();
    let others: Vec<_> = (0..REQUESTS).map(|_| service.get("/short")).collect();
    for other in others {
        assert!(other.join().unwrap().contains("short"));
    }
    // All of them have been answered, and the stall goes on.
    let stalled = service.stage.watch.stalled_now();
    assert!(
        stalled.iter().any(|stall| stall.id == began.id),
        "{stalled:?}"
    );
    service.release.send(()).ok();
    culprit.join().unwrap();
    busy.abort();
    let ended = service.stage.seen.wait_for_end(began.id);
    let victims = ended.victims.as_ref().expect("requests are watched");
    let requests = (0..REQUESTS).map(|_| service.request("GET /short"));
    let is_its = |request: &RequestReport| {
        assert_adds_up(request);
        let lost = request.lost.iter().find(|lost| lost.stall == ended.id);
        lost.is_some_and(|lost| lost.lost <= request.ready && request.total < ended.duration)
    };
    let count = requests.filter(is_its).count() as u64;
    assert_eq!(victims.requests, count, "{ended}");
}

#[test]
fn a_stall_beside_no_request_has_no_victims() {
    let service = Service::start(1);
    assert!(service.get("/short").join().unwrap().contains("short"));
    let stall = service.stage.stall();
    assert_eq!(stall.ended.phase, Phase::Ended);
    let victims = stall.ended.victims.expect("requests are watched");
    assert_eq!((victims.requests, victims.frozen), (0, 0));
}
