//! The server: it answers while all workers are blocked and the blocking pool is full, and no client can hurt it.

mod scraped;
mod seen;

use scraped::{Scraped, get, scrape};
use seen::{FOREVER, Seen};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{Guard, Liveness, Phase, StartError};

const WORKERS: usize = 2;

struct Service {
    runtime: Runtime,
    watch: Option<Guard>,
    seen: Seen,
    served_at: SocketAddr,
}

impl Service {
    fn start(name: &str, liveness: Liveness) -> Service {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (builder, seen) = Seen::builder();
        let watch = builder
            .runtime(name, runtime.handle().clone())
            .serve(([127, 0, 0, 1], 0))
            .liveness(liveness)
            .start()
            .unwrap();
        let served_at = watch.served_at().unwrap();
        Service {
            runtime,
            watch: Some(watch),
            seen,
            served_at,
        }
    }

    /// Blocks so many workers until the sender is dropped.
    fn block(&self, workers: usize) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        for _ in 0..workers {
            let held = held.clone();
            self.runtime.spawn(async move {
                // Only one has the lock, and all are released when the sender goes.
                let held = held.lock().unwrap();
                held.recv().ok();
            });
        }
        release
    }

    fn wait(&self, fits: impl Fn(&Scraped) -> bool) -> Scraped {
        let deadline = Instant::now() + FOREVER;
        loop {
            let scraped = scrape(self.served_at);
            if fits(&scraped) {
                return scraped;
            }
            assert!(Instant::now() < deadline, "waited in vain: {scraped:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.watch.take());
    }
}

fn stalled(scraped: &Scraped) -> usize {
    let workers = scraped.with("tokio_stall_worker_stalled_seconds", &[]);
    workers.filter(|(_, age)| *age > 0.0).count()
}

#[test]
fn scrapes_are_answered_while_every_worker_is_blocked_and_the_pool_is_full() {
    let service = Service::start("blocked", Liveness::default());
    let (full, pool) = mpsc::channel::<()>();
    let pool = std::sync::Arc::new(std::sync::Mutex::new(pool));
    for _ in 0..8 {
        let pool = pool.clone();
        service.runtime.spawn_blocking(move || {
            pool.lock().unwrap().recv().ok();
        });
    }
    let release = service.block(WORKERS);
    service.wait(|scraped| stalled(scraped) == WORKERS);
    // Three seconds of it. The stall goes on until the sender is dropped, so every answer is one during it.
    let mut times = Vec::new();
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    let mut oldest = 0.0;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let answer = get(service.served_at, "/metrics").expect("an answer during the stall");
        times.push(answer.took);
        let scraped = Scraped::parse(&answer.body);
        assert_eq!(stalled(&scraped), WORKERS);
        let age = scraped.sum("tokio_stall_longest_recent_seconds", &[]);
        assert!(age >= oldest, "a stall does not get younger");
        oldest = age;
        for (series, value) in scraped.growing() {
            let before = last.insert(series.to_owned(), value).unwrap_or(0.0);
            assert!(
                value >= before,
                "{series} went back from {before} to {value}"
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{} scrapes during the stall: median {median:?}, slowest {slowest:?}",
        times.len()
    );
    assert!(
        median < Duration::from_millis(100),
        "half of the scrapes took longer"
    );
    let waiting = service
        .wait(|scraped| scraped.sum("tokio_stall_blocking_queue_wait_ongoing_seconds", &[]) > 0.0);
    assert!(waiting.sum("tokio_stall_scheduler_lag_ongoing_seconds", &[]) > 0.0);
    assert!(
        waiting.sum("tokio_stall_runtime_busy_ratio", &[]) > 0.5,
        "the held workers are busy"
    );
    drop((release, full));
    service.wait(|scraped| {
        stalled(scraped) == 0
            && scraped.sum("tokio_stall_stall_duration_seconds_count", &[]) == WORKERS as f64
    });
}

#[test]
fn a_stall_that_lasts_too_long_is_a_reason_to_restart_and_one_that_ends_is_none() {
    let moment = Duration::from_millis(300);
    let one = Service::start("one", Liveness::default().one_worker(Some(moment)));
    let all = Liveness::default()
        .one_worker(None)
        .all_workers(Some(moment));
    let all = Service::start("all", all);
    let health = |service: &Service| {
        let answer = get(service.served_at, "/health/live").expect("an answer");
        (answer.status, answer.body)
    };
    let wait = |service: &Service, status: u16| {
        let deadline = Instant::now() + FOREVER;
        while health(service).0 != status {
            assert!(Instant::now() < deadline, "{:?}", health(service));
            std::thread::sleep(Duration::from_millis(10));
        }
        health(service).1
    };
    assert_eq!(health(&one), (200, "ok\n".to_owned()));
    let (release_one, release_all) = (one.block(1), all.block(1));
    let why = wait(&one, 503);
    assert!(why.starts_with("\"one\": worker "), "{why}");
    assert!(why.contains(" has been stalled for 0 s"), "{why}");
    // As old as the other, and not all workers.
    all.wait(|scraped| scraped.sum("tokio_stall_longest_recent_seconds", &[]) > 0.4);
    assert_eq!(health(&all).0, 200);
    let second = all.block(1);
    let why = wait(&all, 503);
    assert!(
        why.starts_with("\"all\": all its workers have been stalled"),
        "{why}"
    );
    drop((release_one, release_all, second));
    wait(&one, 200);
    wait(&all, 200);
}

#[test]
fn stalls_are_served_as_json_and_as_folded_stacks() {
    let service = Service::start("json", Liveness::default());
    let release = service.block(1);
    service.wait(|scraped| stalled(scraped) == 1);
    let ask = |path: &str| get(service.served_at, path).expect("an answer");
    let during: serde_json::Value = serde_json::from_str(&ask("/stalls").body).unwrap();
    assert_eq!(during["now"].as_array().unwrap().len(), 1, "{during:#}");
    assert_eq!(during["now"][0]["runtime"], "json");
    drop(release);
    service.seen.wait(|report| report.phase == Phase::Ended);
    // What was asked for a moment ago is answered from memory.
    std::thread::sleep(Duration::from_millis(150));
    let after: serde_json::Value = serde_json::from_str(&ask("/stalls").body).unwrap();
    assert_eq!(after["now"].as_array().unwrap().len(), 0, "{after:#}");
    assert_eq!(after["recent"][0]["cause"], "blocked/lock");
    let folded = ask("/stalls/folded");
    let line = folded.body.lines().next().expect("a stack");
    assert!(line.starts_with("json;"), "{line}");
    let weight: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(weight > 1000, "microseconds: {line}");
    let samples = ask("/stalls/folded?by=samples");
    assert!(
        samples.body.lines().next().unwrap().ends_with(" 1"),
        "{}",
        samples.body
    );
    assert_eq!(ask("/stalls/folded?by=colour").status, 400);
    assert_eq!(ask("/nothing").status, 404);
    assert!(ask("/").body.contains("/health/live"));
}

/// Sends bytes and returns the status, or `None` if the connection was closed without an answer.
fn send(address: SocketAddr, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    // The server may hang up before it has read all.
    stream.write_all(request).ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn hostile_clients_hurt_neither_the_server_nor_the_detector() {
    let service = Service::start("hostile", Liveness::default());
    let address = service.served_at;
    let is_well = |after: &str| {
        let answer = get(address, "/health/live");
        assert_eq!(
            answer.map(|answer| answer.status),
            Some(200),
            "after {after}"
        );
    };
    is_well("nothing");
    assert_eq!(send(address, b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"), Some(405));
    assert_eq!(send(address, b"what is this\r\n\r\n"), Some(400));
    assert_eq!(send(address, b"GET / HTTP/9.9\r\n\r\n"), Some(400));
    is_well("nonsense");
    let mut huge = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
    huge.resize(4 << 20, b'x');
    let status = send(address, &huge);
    assert!(matches!(status, None | Some(400 | 431)), "{status:?}");
    is_well("a head of four megabytes");
    // A body that never ends, on a request that is answered without it.
    let mut endless = TcpStream::connect(address).unwrap();
    endless
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    for _ in 0..64 {
        if endless
            .write_all(b"10000\r\n")
            .and_then(|()| endless.write_all(&[0; 65536]))
            .and_then(|()| endless.write_all(b"\r\n"))
            .is_err()
        {
            break;
        }
    }
    is_well("an endless body");
    // Clients that hold connections and say nothing, or hardly anything, or do not read.
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(address).unwrap();
        match number % 3 {
            0 => {}
            1 => stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: ")
                .unwrap(),
            _ => {
                let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
                stream.set_nonblocking(true).unwrap();
                for _ in 0..2000 {
                    if stream.write_all(request).is_err() {
                        break;
                    }
                }
            }
        }
        held.push(stream);
    }
    is_well("three hundred connections held");
    // Thousands, one after the other, each hung up at once.
    for _ in 0..3000 {
        drop(TcpStream::connect(address).unwrap());
    }
    is_well("three thousand connections");
    // And all the while the detector does its work.
    let release = service.block(1);
    service.wait(|scraped| stalled(scraped) == 1);
    drop(release);
    service.wait(|scraped| stalled(scraped) == 0);
    drop(held);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    assert!(open < 400, "{open} descriptors are open");
}

#[test]
fn an_address_in_use_is_an_error_of_the_start_and_a_watch_that_ends_gives_it_free() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let runtime = Runtime::new().unwrap();
    let start = || {
        tokio_stall::Builder::new()
            .runtime("taken", runtime.handle().clone())
            .serve(address)
            .start()
    };
    let error = start().expect_err("the address is taken");
    assert!(matches!(&error, StartError::Serve { address: at, .. } if *at == address));
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("port 0"),
        "{text}"
    );
    drop(taken);
    let watch = start().expect("it is free now, and the runtime is not watched");
    assert_eq!(watch.served_at(), Some(address));
    assert!(get(address, "/health/live").is_some());
    drop(watch);
    assert!(get(address, "/health/live").is_none());
    drop(start().expect("free again"));
}
