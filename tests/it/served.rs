//! The server and its clients: each complete request is answered, and a service that answers is never restarted.

use crate::support::FOREVER;
use crate::support::scraped::get;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{Builder, Guard, Liveness};

fn workers(number: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(number).enable_all().build().unwrap()
}

fn served(runtime: &Runtime, builder: Builder) -> (Guard, SocketAddr) {
    let watch = builder
        .runtime("api", runtime.handle().clone())
        .serve(([127, 0, 0, 1], 0))
        .start()
        .unwrap();
    let address = watch.served_at().unwrap();
    (watch, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
}

fn status(mut stream: TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn each_of_a_hundred_requests_at_once_is_answered() {
    let runtime = workers(1);
    let (_watch, address) = served(&runtime, Builder::new());
    // Those who say nothing take all places first, and give way.
    let silent: Vec<_> = (0..100).map(|_| connect(address)).collect();
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let stream = connect(address);
            ask(&stream, "/health/live");
            stream
        })
        .collect();
    let answers: Vec<_> = asking.into_iter().map(status).collect();
    assert_eq!(answers, vec![Some(200); 100]);
    let cut_off = |mut stream: TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Ok(0))
    };
    let cut_off = silent.into_iter().map(cut_off);
    assert!(
        cut_off.filter(|gone| *gone).count() >= 36,
        "64 places are all there are"
    );
}

#[test]
fn health_is_answered_beside_two_thousand_clients() {
    let runtime = workers(1);
    let (_watch, address) = served(&runtime, Builder::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..250 {
                    let stream = connect(address);
                    ask(&stream, "/metrics");
                    assert_eq!(status(stream), Some(200));
                }
            });
        }
        for _ in 0..20 {
            let asked = Instant::now();
            let answer = get(address, "/health/live").expect("an answer");
            assert_eq!(answer.status, 200);
            // A wide margin: milliseconds on a quiet machine.
            assert!(
                asked.elapsed() < Duration::from_secs(5),
                "{:?}",
                asked.elapsed()
            );
        }
    });
}

#[test]
fn a_page_from_elsewhere_cannot_ask() {
    let runtime = workers(1);
    let (_watch, address) = served(&runtime, Builder::new());
    let asked_as = |host: &str| {
        let mut stream = connect(address);
        let request = format!("GET /stalls HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        status(stream)
    };
    let port = address.port();
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]"] {
        assert_eq!(asked_as(host), Some(200), "{host}");
    }
    assert_eq!(asked_as(&format!("127.0.0.1:{port}")), Some(200));
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
    ] {
        assert_eq!(asked_as(host), Some(421), "{host}");
    }
}

/// Polls in a row that block for less than the limit each: the service goes on, and is late with everything.
#[test]
fn a_saturated_service_that_goes_on_is_not_to_be_restarted() {
    for counts_turns in [true, false] {
        let runtime = workers(2);
        let liveness = Liveness::default()
            .one_worker(Some(Duration::from_secs(2)))
            .all_workers(Some(Duration::from_secs(2)));
        let builder = Builder::new().liveness(liveness).turns(counts_turns);
        let (watch, address) = served(&runtime, builder);
        let blocking: Vec<_> = (0..8)
            .map(|_| {
                runtime.spawn(async {
                    for _ in 0..6 {
                        std::thread::sleep(Duration::from_millis(600));
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let live = || get(address, "/health/live").expect("an answer").status;
        while !blocking.iter().all(tokio::task::JoinHandle::is_finished) {
            assert_eq!(
                live(),
                200,
                "turns: {counts_turns}; {:#?}",
                watch.stalled_now()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        // The positive control: one poll that blocks for longer than the limit.
        runtime.spawn(async { std::thread::sleep(Duration::from_secs(4)) });
        while live() == 200 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!watch.stalled_now().is_empty(), "while it lasts");
    }
}
