//! The page in a real browser: a stall and its line while it lasts, hostile names as text, a
//! restart; and the clients of its news beside those of metrics and health.

use crate::support::browser::Browser;
use crate::support::scraped::{Scraped, free_address, get};
use crate::support::stage::Stage;
use crate::support::{FOREVER, Held, child};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tokio_stall::{Builder, FutureExt as _, StartError};

const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>";
const LOCAL: [u8; 4] = [127, 0, 0, 1];

/// The line that the page has to show.
const LINE: u32 = line!() + 3;
#[inline(never)]
fn holds_the_worker(until: &Receiver<()>) {
    until.recv().ok();
}

fn stage(name: &str) -> (Stage, SocketAddr) {
    let stage = Stage::multi_thread(2)
        .named(name)
        .runtime(|builder| builder.thread_name("<b>bold</b>"))
        .settings(|builder| builder.serve((LOCAL, 0)))
        .start();
    let address = stage.watch.served_at().unwrap();
    (stage, address)
}

fn opened(browser: &mut Browser, address: SocketAddr) {
    browser.open(&format!("http://{address}/"));
    browser.wait("document.querySelector('#connection')?.textContent === 'Live'");
}

/// A worker that is held until the drop of the sender.
fn hold(stage: &Stage, name: &'static str) -> std::sync::mpsc::Sender<()> {
    let (release, until) = std::sync::mpsc::channel();
    let held = async move { holds_the_worker(&until) };
    stage.runtime.spawn(held.watched(name));
    release
}

#[test]
fn a_stall_is_shown_while_it_lasts_and_its_report_opens_by_keyboard() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (stage, address) = stage("page");
    opened(&mut browser, address);
    browser.wait("document.querySelector('#quiet').textContent.startsWith('Nothing has blocked')");
    let release = hold(&stage, "held");
    let place = format!("page::holds_the_worker (tests/it/page.rs:{LINE})");
    browser.wait("document.querySelectorAll('.block[data-live]').length === 1");
    browser.wait(&format!(
        "document.querySelector('#now').textContent.includes('{place}')"
    ));
    browser.wait(&has_pixels_of("--held"));
    browser.wait(&has_pixels_of("--parked"));
    browser.value("document.querySelector('.block[data-live]').focus()");
    browser.press("Enter");
    browser.wait("document.querySelector('#report').open");
    let report = browser.text("#report-body");
    assert!(report.contains(&place), "{report}");
    assert!(report.contains("blocked/lock"), "{report}");
    let own = browser.text("#report-body .own");
    assert!(own.contains("holds_the_worker"), "{own}");
    browser.press("Escape");
    browser.wait("!document.querySelector('#report').open");
    drop(release);
    browser.wait("document.querySelectorAll('.block[data-live]').length === 0");
    browser.wait("document.querySelectorAll('.block').length === 1");
    browser.wait(&format!(
        "document.querySelector('#sites').textContent.includes('{place}')"
    ));
    browser.assert_no_errors();
}

/// Whether a lane has a pixel of the colour that the style gives this name.
fn has_pixels_of(color: &str) -> String {
    format!(
        "(() => {{
            const probe = document.createElement('canvas').getContext('2d');
            probe.fillStyle = getComputedStyle(document.documentElement)
                .getPropertyValue('{color}');
            probe.fillRect(0, 0, 1, 1);
            const wanted = probe.getImageData(0, 0, 1, 1).data.join();
            return [...document.querySelectorAll('.track canvas')].some((lane) => {{
                const {{ width }} = lane;
                if (width === 0) return false;
                const {{ data }} = lane.getContext('2d').getImageData(0, 2, width, 1);
                for (let at = 0; at < data.length; at += 4) {{
                    if (data.slice(at, at + 4).join() === wanted) return true;
                }}
                return false;
            }});
        }})()"
    )
}

#[test]
fn hostile_names_are_text_everywhere() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (stage, address) = stage(HOSTILE);
    opened(&mut browser, address);
    let release = hold(&stage, HOSTILE);
    let shown = json!(HOSTILE).to_string();
    browser.wait(&format!(
        "document.querySelector('#now').textContent.includes({shown})"
    ));
    browser.wait("document.querySelector('#now').textContent.includes('holds_the_worker')");
    browser.value("document.querySelector('#now button').click()");
    let report = browser.text("#report-body");
    assert!(report.contains(HOSTILE), "{report}");
    assert!(report.contains("<b>bold</b>"), "{report}");
    browser.value("document.querySelector('#copy').click()");
    browser.wait("document.querySelector('#copy').textContent !== 'Copy as text'");
    browser.press("Escape");
    drop(release);
    browser.wait(&format!(
        "document.querySelector('#sites').textContent.includes({shown})"
    ));
    // Folded stacks have no spaces in names.
    let shown = json!(HOSTILE.replace(' ', "_")).to_string();
    browser.wait(&format!(
        "document.querySelector('#flame').textContent.includes({shown})"
    ));
    let made = "document.querySelectorAll('img, b, script:not([type=module])').length";
    assert_eq!(browser.value(made), 0);
    assert_eq!(browser.value("document.scripts.length"), 1);
    browser.assert_no_errors();
    // The positive control: the policy refuses markup that a page should make of such a name.
    let markup = json!(format!("{HOSTILE}<p style='color: red'>")).to_string();
    browser.value(&format!("document.body.innerHTML = {markup}"));
    browser.wait("document.images.length === 1");
    browser.call("Runtime.evaluate", json!({"expression": "1"}));
    let refused = |error: &String| error.contains("Content Security Policy");
    assert!(browser.errors.iter().any(refused), "{:#?}", browser.errors);
    assert!(
        !browser
            .errors
            .iter()
            .any(|error| error.contains("javascriptDialog"))
    );
}

#[test]
fn the_flame_graph_zooms_by_keyboard_and_resets() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (stage, address) = stage("flames");
    opened(&mut browser, address);
    let release = hold(&stage, "held");
    browser.wait("document.querySelector('#now').textContent.includes('holds_the_worker')");
    drop(release);
    let box_of_it = "[...document.querySelectorAll('#flame button')]
        .find((box) => box.textContent.endsWith('holds_the_worker'))";
    browser.wait(&format!("Boolean({box_of_it})"));
    assert_eq!(
        browser.value("document.querySelector('#flame-reset').disabled"),
        true
    );
    browser.value(&format!("{box_of_it}.focus()"));
    browser.press("Enter");
    browser.wait("document.querySelector('#flame-of').textContent.includes('holds_the_worker')");
    assert_eq!(
        browser.value("document.querySelector('#flame-reset').disabled"),
        false
    );
    browser.press("Escape");
    browser.wait("document.querySelector('#flame-of').textContent.startsWith('All stacks')");
    assert_eq!(
        browser.value("document.querySelector('#flame-reset').disabled"),
        true
    );
    browser.assert_no_errors();
}

/// Opens the page with no news but those that the test sends.
fn opened_without_news(browser: &mut Browser, address: SocketAddr) {
    let source = "window.EventSource = class {
        static CLOSED = 2;
        readyState = 1;
        takers = {};
        constructor() {
            window.send = (name, data) => this.takers[name]({ data: JSON.stringify(data) });
        }
        addEventListener(name, taker) { this.takers[name] = taker; }
        close() {}
    };";
    let source = json!({"source": source});
    browser.call("Page.addScriptToEvaluateOnNewDocument", source);
    browser.open(&format!("http://{address}/"));
    browser.wait("Boolean(window.send && document.querySelector('#legend li'))");
}

fn send(browser: &mut Browser, name: &str, data: &Value) {
    browser.value(&format!("send('{name}', {data})"));
}

fn send_hello(browser: &mut Browser, pid: u32) {
    let runtime = json!({
        "name": "api", "workers": 2, "threshold_seconds": 0.1, "tower": false, "coverage": "",
        "gaps": [],
    });
    let hello = json!({
        "version": "0", "pid": pid, "program": "made up", "started_at": 1_000.0,
        "started_clock": 100.0, "runtimes": [runtime],
    });
    send(browser, "hello", &hello);
}

/// Sends a second of lanes that ends at this time, by the wall clock `wall`.
fn send_lanes(browser: &mut Browser, clock: f64, wall: f64, change: impl FnOnce(&mut Value)) {
    let mut lanes = json!({
        "clock": clock, "now": wall, "zero": 1_000.0, "watching": true, "step_seconds": 0.05,
        "first": (clock - 1.0) * 20.0, "workers_left_out": 0, "stalled": [],
        "workers": [{"runtime": "api", "worker": 0, "cells": "H".repeat(20)}],
    });
    change(&mut lanes);
    send(browser, "lanes", &lanes);
}

/// Sends a stall that was over at 1000 s, after half a second.
fn send_stall(browser: &mut Browser, id: u64, span: &str) {
    let (name, _) = span.split_once('{').unwrap_or((span, ""));
    let stall = json!({
        "id": id, "phase": "ended", "certainty": "certain", "runtime": "api", "worker": 0,
        "thread": null, "tid": null, "span": span, "span_names": name, "spawned_at": null,
        "started_at": 1_999.5, "started_clock": 999.5, "duration_seconds": 0.5,
        "duration_error_seconds": 0, "cause": "cpu", "asleep_in": null,
        "driver_frozen_seconds": null, "victims": null, "place": "a::line (a.rs:1)",
        "shared_site": "a::line (a.rs)", "dependency": null, "advice": null, "seen_here": 1, "lost_here_seconds": 0.5,
        "headline": format!("headline of {span}"), "calls": [], "calls_left_out": 0, "lacks": [],
        "text": format!("text of {span}"),
        "time": {
            "cpu_seconds": 0.5, "asleep_seconds": 0, "run_queue_seconds": 0,
            "throttled_seconds": 0, "stopped_seconds": 0, "unknown_seconds": 0,
        },
    });
    send(browser, "stall", &stall);
}

/// Sends totals with a site for each of these spans.
fn send_totals(browser: &mut Browser, spans: &[&str]) {
    let site = |span: &&str| {
        json!({
            "runtime": "api", "span": span, "place": "a::line (a.rs:1)",
            "shared_site": "a::line (a.rs)", "cause": "cpu",
            "count": 1, "total_seconds": 0.5, "longest_seconds": 0.5,
        })
    };
    let totals = json!({
        "stalls": 1, "likely_stalls": 0, "lost_seconds": 0.5, "dropped_reports": 0,
        "sites_left_out": 0, "routes": [], "sites": spans.iter().map(site).collect::<Vec<_>>(),
    });
    send(browser, "totals", &totals);
}

/// A stall of `lanes` that goes on, since this time.
fn goes_on(lanes: &mut Value, id: u64, since: f64) {
    let clock = lanes["clock"].as_f64().unwrap();
    lanes["stalled"] = json!([{
        "id": id, "runtime": "api", "worker": 0, "seconds": clock - since, "certainty": "certain",
    }]);
}

#[test]
fn lanes_do_not_move_with_the_wall_clock_and_go_with_their_runtime() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (_stage, address) = stage("steps");
    opened_without_news(&mut browser, address);
    send_hello(&mut browser, 1);
    send_lanes(&mut browser, 1_000.0, 2_000.0, |_| {});
    browser.wait(&has_pixels_of("--held"));
    for (clock, wall) in [(1_001.0, 5_601.0), (1_002.0, 1_002.0)] {
        send_lanes(&mut browser, clock, wall, |_| {});
        browser.wait(&has_pixels_of("--held"));
    }
    let lanes = "document.querySelectorAll('.lane').length";
    send_lanes(&mut browser, 1_003.0, 2_003.0, |lanes| {
        let other = json!({"runtime": "other", "worker": 0, "cells": "H"});
        lanes["workers"].as_array_mut().unwrap().push(other);
        lanes["workers_left_out"] = json!(36);
    });
    assert_eq!(browser.value(lanes), 2);
    let left_out = browser.text("#lanes-left-out");
    assert_eq!(left_out, "36 more workers have no lane here.");
    send_lanes(&mut browser, 1_004.0, 2_004.0, |_| {});
    assert_eq!(browser.value(lanes), 1);
    assert_eq!(browser.text("#lanes-left-out"), "");
    // The control: cells go with time.
    send_lanes(&mut browser, 1_100.0, 2_100.0, |lanes| {
        lanes["workers"][0]["cells"] = json!("");
    });
    assert_eq!(browser.value(&has_pixels_of("--held")), false);
    browser.assert_no_errors();
}

#[test]
fn a_page_of_a_detector_that_has_stopped_says_so() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (_stage, address) = stage("blind");
    opened_without_news(&mut browser, address);
    send_hello(&mut browser, 1);
    let mut words_after = |watching: bool| {
        send_lanes(&mut browser, 1_000.0, 2_000.0, |lanes| {
            lanes["watching"] = json!(watching);
        });
        [browser.text("#connection"), browser.text("#quiet")]
    };
    let [state, quiet] = words_after(false);
    assert_eq!(state, "The detector has stopped");
    assert_eq!(quiet, "Nothing is seen any more: the detector has stopped.");
    // The control.
    let [state, quiet] = words_after(true);
    assert_eq!(state, "Live");
    assert!(quiet.starts_with("Nothing has blocked for"), "{quiet}");
    browser.assert_no_errors();
}

#[test]
fn a_site_shows_the_last_minutes_of_its_span_and_they_pass_without_news() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (_stage, address) = stage("minutes");
    opened_without_news(&mut browser, address);
    send_hello(&mut browser, 1);
    send_stall(&mut browser, 1, "first{id=1}");
    send_lanes(&mut browser, 1_000.0, 2_000.0, |_| {});
    send_totals(&mut browser, &["first", "second"]);
    let words = "[...document.querySelectorAll('.spark')]
        .map((graph) => graph.getAttribute('aria-label')).join()";
    let both = "500 ms in five minutes,0.00 ms in five minutes";
    assert_eq!(browser.value(words), both);
    let links =
        "[...document.querySelectorAll('#sites .link')].map((link) => link.disabled).join()";
    assert_eq!(
        browser.value(links),
        "false,true",
        "the second has no report"
    );
    send_lanes(&mut browser, 1_400.0, 2_400.0, |_| {});
    browser.wait(&format!(
        "{words} === '0.00 ms in five minutes,0.00 ms in five minutes'"
    ));
    browser.assert_no_errors();
}

#[test]
fn an_open_report_stays_when_its_stall_is_forgotten_or_the_program_restarts() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (_stage, address) = stage("stays");
    opened_without_news(&mut browser, address);
    send_hello(&mut browser, 1);
    send_stall(&mut browser, 7, "first");
    send_lanes(&mut browser, 1_000.0, 2_000.0, |_| {});
    browser.value("document.querySelector('.block').click()");
    let title = "#report-title";
    assert_eq!(browser.text(title), "headline of first");
    (100..601).for_each(|id| send_stall(&mut browser, id, "other"));
    // A copy that cannot be made is shown as text instead.
    browser.value("navigator.clipboard.writeText = () => Promise.reject()");
    let text = "document.querySelector('#report-body pre')?.textContent === 'text of first'";
    browser.value("document.querySelector('#copy').click()");
    browser.wait(text);
    send_hello(&mut browser, 2);
    assert_eq!(browser.text(title), "Before the restart: headline of first");
    send_stall(&mut browser, 7, "second");
    assert_eq!(browser.text(title), "Before the restart: headline of first");
    browser.value("document.querySelector('#report-body pre').remove()");
    browser.value("document.querySelector('#copy').click()");
    browser.wait(text);
    browser.press("Escape");
    browser.wait("!document.querySelector('#report').open");
    // The control: the new stall of that number has its own report.
    send_lanes(&mut browser, 1_000.0, 2_000.0, |_| {});
    browser.value("document.querySelector('.block').click()");
    assert_eq!(browser.text(title), "headline of second");
    browser.assert_no_errors();
}

#[test]
fn begin_and_end_of_a_stall_are_told_once_each() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (_stage, address) = stage("told");
    opened_without_news(&mut browser, address);
    send_hello(&mut browser, 1);
    browser.value(
        "window.told = [];
        const status = '[role=status], [aria-live]';
        new MutationObserver((changes) => changes.forEach(({ target }) => {
            if (target.closest(status)) window.told.push(target.closest(status).textContent);
        })).observe(document.querySelector('main'), { childList: true, subtree: true })",
    );
    for tick in 0..8 {
        let clock = 999.5 + f64::from(tick) / 4.0;
        send_lanes(&mut browser, clock, 1_000.0 + clock, |lanes| {
            goes_on(lanes, 7, 999.0)
        });
    }
    let told = "window.told.join('|')";
    browser.wait(&format!("{told} === 'Stall 7 began on worker 0.'"));
    send_stall(&mut browser, 7, "first");
    send_lanes(&mut browser, 1_002.0, 2_002.0, |_| {});
    let both = "Stall 7 began on worker 0.|\
                Stall 7 on worker 0 is over after 500 ms: cpu, a::line (a.rs:1).";
    browser.wait(&format!("{told} === '{both}'"));
    let width = "document.querySelector('#told').getBoundingClientRect().width";
    assert_eq!(browser.value(width), 1);
    browser.assert_no_errors();
}

const PORT: &str = "TOKIO_STALL_PAGE_PORT";

/// A program that serves the page until it is killed.
#[test]
fn served_until_killed() {
    let Some(port) = std::env::var(PORT).ok().and_then(|port| port.parse().ok()) else {
        return;
    };
    let setup = Stage::multi_thread(1).settings(|builder| builder.serve((LOCAL, port)));
    let _stage = setup.start();
    println!("served");
    loop {
        std::thread::sleep(FOREVER);
    }
}

struct Killed(Child);

impl Killed {
    fn start(address: SocketAddr) -> Killed {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "page::served_until_killed", "--nocapture"])
            .env(PORT, address.port().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serves = lines.any(|line| line.unwrap().contains("served"));
        assert!(serves, "{:?}", child.wait());
        Killed(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_page_survives_a_restart_of_the_program() {
    assert!(!child::is_here(PORT));
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let address = free_address();
    let program = Killed::start(address);
    opened(&mut browser, address);
    let pid = format!("pid {}", program.0.id());
    browser.wait(&format!(
        "document.querySelector('#process').textContent.startsWith('{pid} ')"
    ));
    browser.assert_no_errors();
    drop(program);
    let state = "document.querySelector('#connection').textContent";
    browser.wait(&format!("{state} === 'Connection lost, trying again'"));
    let program = Killed::start(address);
    browser.wait(&format!("{state} === 'Live'"));
    let pid = format!("pid {}", program.0.id());
    browser.wait(&format!(
        "document.querySelector('#process').textContent.startsWith('{pid} ')"
    ));
    // The browser itself notes connections that were refused.
    browser.errors.retain(|error| !error.contains("net::ERR_"));
    browser.assert_no_errors();
}

#[test]
fn the_end_of_the_watch_is_told() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let (stage, address) = stage("ends");
    opened(&mut browser, address);
    drop(stage);
    let state = "document.querySelector('#connection').textContent";
    browser.wait(&format!("{state} === 'The detector has stopped'"));
}

/// Opens `/events` and returns the status, with the open connection.
fn events(address: SocketAddr) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    let request = "GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    let status = std::str::from_utf8(&head[9..]).unwrap().parse().unwrap();
    (status, stream)
}

#[test]
fn metrics_and_health_are_answered_beside_64_pages_during_a_total_stall() {
    let (stage, address) = stage("crowd");
    let (release, held) = Held::new();
    for _ in 0..2 {
        let held = held.clone();
        stage.runtime.spawn(async move { held.wait() });
    }
    let stalled = || get(address, "/metrics").map(|answer| Scraped::parse(&answer.body).stalled());
    crate::support::wait_until("a total stall", || stalled() == Some(2));
    let pages: Vec<_> = (0..64).map(|_| events(address)).collect();
    let with = |wanted: u16| pages.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!((with(200), with(503)), (16, 48));
    let mut times = Vec::new();
    for round in 0..40 {
        let path = ["/metrics", "/health/live"][round % 2];
        let asked = Instant::now();
        assert_eq!(get(address, path).expect("an answer").status, 200);
        times.push(asked.elapsed());
    }
    times.sort();
    println!(
        "40 answers beside 64 pages: median {:?}, slowest {:?}",
        times[20], times[39]
    );
    // A wide margin: milliseconds on a quiet machine.
    assert!(times[20] < Duration::from_secs(1), "{times:?}");
    // Pages that go make room for others.
    drop(pages);
    crate::support::wait_until("room", || events(address).0 == 200);
    drop(release);
}

/// Sends a request with these headers, and returns the head of the answer.
fn ask(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_browser_gets_the_page_and_other_clients_the_list() {
    let (_stage, address) = stage("both");
    let page = ask(address, "/", "Accept: text/html,*/*\r\n");
    assert!(page.contains("<!doctype html>"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'sha256-"));
    let list = ask(address, "/", "Accept: */*\r\n");
    assert!(
        list.contains("/health/live") && !list.contains("<!doctype"),
        "{list}"
    );
    let foreign = ask(address, "/events", "Origin: http://evil.example\r\n");
    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    let long = ask(address, &format!("/{}", "x".repeat(2000)), "");
    assert!(long.starts_with("HTTP/1.1 414 "), "{long}");
}

#[test]
fn a_token_opens_the_page_in_a_browser_and_health_needs_none() {
    let token = "a-token-of-this-test";
    let stage = Stage::multi_thread(1)
        .named("token")
        .settings(|builder| builder.serve((LOCAL, 0)).serve_token(token))
        .start();
    let address = stage.watch.served_at().unwrap();
    assert!(ask(address, "/metrics", "").starts_with("HTTP/1.1 401 "));
    assert!(ask(address, "/health/live", "").starts_with("HTTP/1.1 200 "));
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert!(ask(address, "/metrics", &bearer).starts_with("HTTP/1.1 200 "));
    let Some(mut browser) = Browser::start() else {
        return;
    };
    opened_with(&mut browser, address, token);
    assert_eq!(browser.value("location.pathname + location.search"), "/");
    assert_eq!(
        browser.value("document.cookie"),
        "",
        "scripts do not see it"
    );
    browser.assert_no_errors();
}

fn opened_with(browser: &mut Browser, address: SocketAddr, token: &str) {
    browser.open(&format!("http://{address}/?token={token}"));
    browser.wait("document.querySelector('#connection')?.textContent === 'Live'");
}

#[test]
fn a_bad_token_is_an_error_of_the_start_with_its_fix() {
    let start = |token: &str| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let builder = Builder::new().runtime("bad token", runtime.handle().clone());
        builder
            .serve((LOCAL, 0))
            .serve_token(token)
            .start()
            .map(drop)
    };
    for token in ["", "short", "sixteen letters; and others"] {
        let error = start(token).expect_err("it cannot be used");
        assert!(
            matches!(error, StartError::ServeTokenUnusable { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("openssl rand"), "{error}");
    }
    start("0123456789abcdef").expect("a usable one");
}

/// Makes the pictures in `docs/` of the program that `TOKIO_STALL_PAGE` gives the address of:
///
/// ```sh
/// cargo run --release --example prometheus --features serve &
/// TOKIO_STALL_PAGE=http://127.0.0.1:9464 cargo test --all-features --test it page::pictures \
///     -- --ignored
/// ```
#[test]
#[ignore = "makes pictures for the documentation"]
fn pictures() {
    let address = std::env::var("TOKIO_STALL_PAGE").expect("an address");
    let mut browser = Browser::start().expect("a Chromium");
    browser.open(&address);
    // The lanes are drawn by the end of a stall.
    browser.wait("!!document.querySelector('#now .line')");
    browser.wait("!document.querySelector('#now .line')");
    for (name, scheme, width, height) in [
        ("light", "light", 1180, 1250),
        ("dark", "dark", 1180, 1250),
        ("phone", "light", 360, 1500),
        ("report", "light", 1180, 900),
    ] {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        browser.call("Emulation.setEmulatedMedia", json!({"features": features}));
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500,
        });
        browser.call("Emulation.setDeviceMetricsOverride", size);
        browser.wait("document.querySelector('#now .line')?.textContent.includes('.rs:')");
        if name == "report" {
            browser.value("document.querySelector('#now button')?.click()");
        }
        let picture = browser.call("Page.captureScreenshot", json!({}));
        assert_eq!(
            browser.value("document.documentElement.scrollWidth <= innerWidth"),
            true,
            "{name}: nothing is wider than the window"
        );
        save(name, picture["data"].as_str().unwrap());
    }
}

/// Writes a picture, which comes in base 64.
fn save(name: &str, picture: &str) {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte: &u8| digits.iter().position(|digit| digit == byte);
    let digits: Vec<usize> = picture.as_bytes().iter().filter_map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let word = four.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - four.len()));
        let bytes = [(word >> 16) as u8, (word >> 8) as u8, word as u8];
        bytes.into_iter().take(four.len() - 1)
    });
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pictures");
    std::fs::create_dir_all(&folder).unwrap();
    let bytes: Vec<u8> = bytes.collect();
    std::fs::write(folder.join(format!("page-{name}.png")), bytes).unwrap();
}
