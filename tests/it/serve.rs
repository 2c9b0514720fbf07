//! The server answers while all workers are blocked and the blocking pool is full, and no client
//! can hurt it.

use crate::support::scraped::{Answer, Scraped, free_address, get, scrape, wait_for};
use crate::support::stage::Stage;
use crate::support::{FOREVER, Held, wait_until};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{Guard, Liveness, StartError};

const WORKERS: usize = 2;

/// A runtime with a server of its metrics.
struct Service {
    stage: Stage,
    served_at: SocketAddr,
}

impl Service {
    fn start(name: &str, liveness: Liveness) -> Service {
        let stage = Stage::multi_thread(WORKERS)
            .named(name)
            .runtime(|builder| builder.max_blocking_threads(2))
            .settings(|builder| builder.serve(([127, 0, 0, 1], 0)).liveness(liveness))
            .start();
        let served_at = stage.watch.served_at().unwrap();
        Service { stage, served_at }
    }

    /// Blocks so many workers until the sender is dropped.
    fn block(&self, workers: usize) -> Sender<()> {
        let (release, held) = Held::new();
        for _ in 0..workers {
            let held = held.clone();
            self.stage.runtime.spawn(async move { held.wait() });
        }
        release
    }

    /// Fills the blocking pool until the sender is dropped.
    fn fill_the_pool(&self) -> Sender<()> {
        let (release, held) = Held::new();
        for _ in 0..8 {
            let held = held.clone();
            self.stage.runtime.spawn_blocking(move || held.wait());
        }
        release
    }

    fn wait(&self, fits: impl Fn(&Scraped) -> bool) -> Scraped {
        wait_for(|| Some(scrape(self.served_at)), fits)
    }

    fn ask(&self, path: &str) -> Answer {
        get(self.served_at, path).expect("an answer")
    }

    fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.ask(path).body).unwrap()
    }

    fn health(&self) -> u16 {
        self.ask("/health/live").status
    }

    /// Waits for this state of health, and returns the words about it.
    fn wait_for_health(&self, status: u16) -> String {
        wait_until("a state of health", || self.health() == status);
        self.ask("/health/live").body
    }
}

/// A service whose workers are blocked, and whose blocking pool is full, until the release.
struct Blocked {
    // Dropped first: the runtime waits for its threads.
    release: (Sender<()>, Sender<()>),
    service: Service,
}

impl Blocked {
    fn start(name: &str) -> Blocked {
        let service = Service::start(name, Liveness::default());
        let full = service.fill_the_pool();
        let release = (service.block(WORKERS), full);
        service.wait(|scraped| scraped.stalled() == WORKERS);
        Blocked { release, service }
    }

    /// Scrapes for three seconds, and returns all answers.
    fn scrapes(&self) -> Vec<Answer> {
        let until = Instant::now() + Duration::from_secs(3);
        let mut answers = Vec::new();
        while Instant::now() < until {
            answers.push(self.service.ask("/metrics"));
            std::thread::sleep(Duration::from_millis(50));
        }
        answers
    }
}

#[test]
fn scrapes_are_answered_fast_while_everything_is_blocked() {
    let blocked = Blocked::start("answers");
    let answers = blocked.scrapes();
    for answer in &answers {
        assert_eq!(Scraped::parse(&answer.body).stalled(), WORKERS);
    }
    let mut times: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
    times.sort();
    let (number, slowest) = (times.len(), times[times.len() - 1]);
    let median = times[number / 2];
    println!("{number} scrapes during the stall: median {median:?}, slowest {slowest:?}");
    // A wide margin: an exporter that the stall holds up does not answer at all.
    let fast = Duration::from_secs(1);
    assert!(median < fast, "half of the scrapes took longer");
}

#[test]
fn figures_do_not_go_back_while_everything_is_blocked() {
    let blocked = Blocked::start("figures");
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    let mut oldest = 0.0;
    for answer in blocked.scrapes() {
        let scraped = Scraped::parse(&answer.body);
        let age = scraped.sum("tokio_stall_longest_recent_seconds", &[]);
        assert!(age >= oldest, "a stall does not get younger");
        oldest = age;
        for (series, value) in scraped.growing() {
            let before = last.insert(series.to_owned(), value).unwrap_or(0.0);
            assert!(value >= before, "{series}: {value} after {before}");
        }
    }
}

#[test]
fn a_scrape_shows_the_blocked_workers_and_the_full_pool() {
    let Blocked { release, service } = Blocked::start("shows");
    let queue = "tokio_stall_blocking_queue_wait_ongoing_seconds";
    let lag = "tokio_stall_scheduler_lag_ongoing_seconds";
    service.wait(|scraped| scraped.sum(queue, &[]) > 0.0 && scraped.sum(lag, &[]) > 0.0);
    // The held workers are busy.
    service.wait(|scraped| scraped.sum("tokio_stall_runtime_busy_ratio", &[]) > 0.5);
    drop(release);
    service.wait(|scraped| {
        let over = scraped.sum("tokio_stall_stall_duration_seconds_count", &[]);
        scraped.stalled() == 0 && over == WORKERS as f64
    });
}

const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn a_stalled_worker_is_a_reason_to_restart_until_it_goes_on() {
    let service = Service::start("one", Liveness::default().one_worker(Some(MOMENT)));
    assert_eq!(service.ask("/health/live").body, "ok\n");
    assert_eq!(service.health(), 200);
    let release = service.block(1);
    let why = service.wait_for_health(503);
    assert!(why.starts_with("\"one\": worker "), "{why}");
    assert!(why.contains(" has been stalled for "), "{why}");
    drop(release);
    service.wait_for_health(200);
}

#[test]
fn a_full_pool_is_a_reason_to_restart_if_it_is_asked_for() {
    let liveness = Liveness::default().blocking_pool(Some(MOMENT));
    let service = Service::start("pool", liveness);
    assert_eq!(service.health(), 200);
    let release = service.fill_the_pool();
    let why = service.wait_for_health(503);
    let expected = "\"pool\": its blocking pool has been full for ";
    assert!(why.starts_with(expected), "{why}");
    drop(release);
    service.wait_for_health(200);
}

#[test]
fn all_workers_can_be_needed_for_a_reason_to_restart() {
    let liveness = Liveness::default().one_worker(None);
    let service = Service::start("all", liveness.all_workers(Some(MOMENT)));
    let first = service.block(1);
    // Older than the moment, but not all workers.
    service.wait(|scraped| scraped.sum("tokio_stall_longest_recent_seconds", &[]) > 0.4);
    assert_eq!(service.health(), 200);
    let second = service.block(1);
    let why = service.wait_for_health(503);
    let expected = "\"all\": all its workers have been stalled";
    assert!(why.starts_with(expected), "{why}");
    drop((first, second));
    service.wait_for_health(200);
}

#[test]
fn stalls_are_served_as_json_while_they_last_and_afterwards() {
    let service = Service::start("json", Liveness::default());
    let release = service.block(1);
    service.wait(|scraped| scraped.stalled() == 1);
    let during = service.json("/stalls");
    assert_eq!(during["now"].as_array().unwrap().len(), 1, "{during:#}");
    assert_eq!(during["now"][0]["runtime"], "json");
    drop(release);
    let ended = service.stage.seen.wait_for_an_end();
    // An answer of a moment ago is given again from memory.
    std::thread::sleep(Duration::from_millis(150));
    let after = service.json("/stalls");
    assert_eq!(after["now"].as_array().unwrap().len(), 0, "{after:#}");
    // On a busy machine it may have waited for a CPU for most of its time.
    assert_eq!(after["recent"][0]["cause"], ended.cause.as_str());
    let stacks = |json: &serde_json::Value| json["recent"][0]["stacks"].as_array().unwrap().len();
    assert_eq!(stacks(&after), ended.stacks.len().min(1), "{after:#}");
    let all = service.json("/stalls?stacks=all");
    assert_eq!(stacks(&all), ended.stacks.len(), "{all:#}");
    assert_eq!(stacks(&service.json("/stalls?stacks=none")), 0);
    let wrong = service.ask("/stalls?stacks=some");
    assert_eq!(wrong.status, 400, "{}", wrong.body);
}

#[test]
fn stalls_are_served_as_folded_stacks() {
    let service = Service::start("folded", Liveness::default());
    let release = service.block(1);
    service.wait(|scraped| scraped.stalled() == 1);
    drop(release);
    service.stage.seen.wait_for_an_end();
    std::thread::sleep(Duration::from_millis(150));
    let sites = service.ask("/stalls/sites").body;
    assert!(
        sites.contains(" × ") && sites.contains(" in all"),
        "{sites}"
    );
    let folded = service.ask("/stalls/folded").body;
    let line = folded.lines().next().expect("a stack");
    assert!(line.starts_with("folded;"), "{line}");
    let weight: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(weight > 1000, "microseconds: {line}");
    let samples = service.ask("/stalls/folded?by=samples").body;
    assert!(samples.lines().next().unwrap().ends_with(" 1"), "{samples}");
}

#[test]
fn unknown_paths_are_errors_and_the_first_page_lists_the_known() {
    let service = Service::start("paths", Liveness::default());
    assert_eq!(service.ask("/stalls/folded?by=colour").status, 400);
    assert_eq!(service.ask("/nothing").status, 404);
    assert!(service.ask("/").body.contains("/health/live"));
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

#[track_caller]
fn assert_well(service: &Service, after: &str) {
    assert_eq!(service.health(), 200, "after {after}");
}

#[track_caller]
fn assert_detects(service: &Service) {
    let release = service.block(1);
    service.wait(|scraped| scraped.stalled() == 1);
    drop(release);
    service.wait(|scraped| scraped.stalled() == 0);
}

#[test]
fn nonsense_is_refused() {
    let service = Service::start("nonsense", Liveness::default());
    let address = service.served_at;
    assert_well(&service, "nothing");
    let post = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\
                 Connection: close\r\n\r\nabc";
    assert_eq!(send(address, post), Some(405));
    assert_eq!(send(address, b"what is this\r\n\r\n"), Some(400));
    assert_eq!(send(address, b"GET / HTTP/9.9\r\n\r\n"), Some(400));
    assert_well(&service, "nonsense");
    assert_detects(&service);
}

#[test]
fn requests_without_end_hurt_nobody() {
    let service = Service::start("endless", Liveness::default());
    let address = service.served_at;
    let mut huge = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
    huge.resize(4 << 20, b'x');
    let status = send(address, &huge);
    assert!(matches!(status, None | Some(400 | 431)), "{status:?}");
    assert_well(&service, "a head of four megabytes");
    // A body without end, on a request that is answered without it.
    let mut endless = TcpStream::connect(address).unwrap();
    let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    endless.write_all(head).unwrap();
    let chunk = [b"10000\r\n", &[0; 65536][..], b"\r\n"].concat();
    for _ in 0..64 {
        if endless.write_all(&chunk).is_err() {
            break;
        }
    }
    assert_well(&service, "an endless body");
    assert_detects(&service);
}

/// A connection that says nothing, or hardly anything, or does not read.
fn held_connection(address: SocketAddr, kind: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    match kind % 3 {
        0 => {}
        1 => {
            let part = b"GET /metrics HTTP/1.1\r\nHost: ";
            stream.write_all(part).unwrap();
        }
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
    stream
}

#[test]
fn thousands_of_connections_hurt_nobody() {
    let service = Service::start("many", Liveness::default());
    let address = service.served_at;
    let held: Vec<TcpStream> = (0..300)
        .map(|kind| held_connection(address, kind))
        .collect();
    assert_well(&service, "three hundred connections held");
    // One after the other, each hung up at once.
    for _ in 0..3000 {
        drop(TcpStream::connect(address).unwrap());
    }
    assert_well(&service, "three thousand connections");
    assert_detects(&service);
    drop(held);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    assert!(open < 400, "{open} descriptors are open");
}

fn start_at(runtime: &Runtime, address: SocketAddr) -> Result<Guard, StartError> {
    let builder = tokio_stall::Builder::new().runtime("taken", runtime.handle().clone());
    builder.serve(address).start()
}

#[test]
fn an_address_in_use_is_an_error_of_the_start() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let runtime = Runtime::new().unwrap();
    let error = start_at(&runtime, address).expect_err("the address is taken");
    assert!(matches!(&error, StartError::Serve { address: at, .. } if *at == address));
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("port 0"), "{text}");
    // Positive control: the address is free now, and the runtime is not watched.
    drop(taken);
    let watch = start_at(&runtime, address).expect("it is free");
    assert_eq!(watch.served_at(), Some(address));
}

#[test]
fn a_watch_that_ends_gives_its_address_free() {
    let runtime = Runtime::new().unwrap();
    let address = free_address();
    let watch = start_at(&runtime, address).expect("it is free");
    assert!(get(address, "/health/live").is_some());
    drop(watch);
    assert!(get(address, "/health/live").is_none());
    drop(start_at(&runtime, address).expect("free again"));
}
