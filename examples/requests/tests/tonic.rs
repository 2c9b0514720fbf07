//! A call of a real tonic client to a real server is held up by another call that blocks. Its report
//! names the call that blocked. Beside a call that waits without blocking, it loses no time.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc as async_mpsc, oneshot};
use tokio_stall::tower::{RequestLayer, RequestReport};
use tokio_stall::{Builder, Guard};
use tonic::codegen::BoxStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const BLOCKS: Duration = Duration::from_millis(300);
/// No report takes so long, on the busiest machine.
const FOREVER: Duration = Duration::from_secs(60);
const CHECK: &str = "POST /grpc.health.v1.Health/Check";
const WATCH: &str = "POST /grpc.health.v1.Health/Watch";

/// `watch` waits until a `check` wakes it. `check` then holds its worker, or leaves it.
struct Pair {
    waits: async_mpsc::UnboundedSender<oneshot::Sender<()>>,
    waiting: Mutex<async_mpsc::UnboundedReceiver<oneshot::Sender<()>>>,
}

#[tonic::async_trait]
impl Health for Pair {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let wake = self.waiting.lock().await.recv().await;
        // The woken task is the next of this worker, and no other worker takes it.
        wake.expect("one waits").send(()).ok();
        if request.get_ref().service == "blocks" {
            hold();
        } else {
            tokio::time::sleep(BLOCKS).await;
        }
        Ok(Response::new(HealthCheckResponse::default()))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (wake, woken) = oneshot::channel();
        self.waits.send(wake).ok();
        woken.await.ok();
        Err(Status::unimplemented("there is nothing to watch"))
    }
}

#[inline(never)]
fn hold() {
    thread::sleep(BLOCKS);
}

/// A server with two workers under watch, and the reports of its requests. The watch ends first.
struct Served {
    _watch: Guard,
    requests: Receiver<RequestReport>,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Served {
    fn start() -> Served {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (told, requests) = mpsc::channel();
        let tell = move |request: &RequestReport| told.send(request.clone()).unwrap_or_default();
        let watch = Builder::new()
            .runtime("grpc", runtime.handle().clone())
            .on_slow_request(Duration::ZERO, tell)
            .start();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(serve(listener));
        Served {
            _watch: watch.expect("it starts"),
            requests,
            address,
            _runtime: runtime,
        }
    }

    /// One `watch`, and one `check` that wakes it. Returns their reports.
    fn call(&self, service: &str) -> (RequestReport, RequestReport) {
        let client = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let client = client.expect("a runtime");
        client.block_on(call(self.address, service));
        let reports = [self.report(), self.report()];
        let of = |route: &str| reports.iter().find(|report| report.route == route).cloned();
        println!("{}\n{}", reports[0], reports[1]);
        (of(WATCH).expect("a report"), of(CHECK).expect("a report"))
    }

    fn report(&self) -> RequestReport {
        let report = self.requests.recv_timeout(FOREVER);
        report.expect("a report of each request")
    }
}

async fn serve(listener: TcpListener) -> Result<(), tonic::transport::Error> {
    let (waits, waiting) = async_mpsc::unbounded_channel();
    let waiting = Mutex::new(waiting);
    Server::builder()
        .layer(RequestLayer::new().by_path(true))
        .add_service(HealthServer::new(Pair { waits, waiting }))
        .serve_with_incoming(TcpIncoming::from(listener))
        .await
}

async fn call(server: SocketAddr, service: &str) {
    let channel = Channel::from_shared(format!("http://{server}")).expect("an address");
    let channel = channel.connect().await.expect("it listens");
    let mut health = HealthClient::new(channel.clone());
    let watched = tokio::spawn(async move { health.watch(asks("")).await.map(|_| ()) });
    // By then it waits. If not, it is not held up, and the test calls again.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let checked = HealthClient::new(channel).check(asks(service)).await;
    checked.expect("an answer");
    let status = watched.await.expect("no panic").expect_err("a status");
    assert_eq!(status.code(), Code::Unimplemented);
}

fn asks(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[test]
fn the_report_of_a_call_names_the_call_that_held_it_up() {
    let served = Served::start();
    let mut calls = (0..10).map(|_| served.call("blocks"));
    let held_up = calls.find(|(watched, _)| !watched.lost.is_empty());
    let (watched, checked) = held_up.expect("one of the calls was held up");
    let lost = &watched.lost[0];
    assert_eq!(lost.span.as_deref(), Some(CHECK), "{watched:#?}");
    assert!(lost.lost >= BLOCKS / 2, "{watched:#?}");
    assert!(watched.ready >= lost.lost, "{watched:#?}");
    assert!(checked.own >= BLOCKS, "{checked:#?}");
    assert!(checked.lost.is_empty(), "{checked:#?}");
}

#[test]
fn a_call_beside_one_that_waits_loses_no_time() {
    let served = Served::start();
    for _ in 0..3 {
        let (watched, checked) = served.call("waits");
        assert!(watched.lost.is_empty(), "{watched:#?}");
        assert!(checked.waiting >= BLOCKS / 2, "{checked:#?}");
        assert!(checked.lost.is_empty(), "{checked:#?}");
    }
    // The same server finds a call that blocks.
    let mut calls = (0..10).map(|_| served.call("blocks"));
    assert!(calls.any(|(watched, _)| !watched.lost.is_empty()));
}
