//! Real programs that know nothing of their observer. They are built by this test, and run beside
//! it. Each stall lasts for seconds, so that a slow machine is no reason to miss it.

mod support;

use serde_json::Value;
use std::time::{Duration, Instant};
use support::{Observer, Service, dump, is_running, output_of};

/// The length of a trap.
const LONG: &str = "3000";

/// Attaches to a service in a trap, and returns the first stall that is over.
#[track_caller]
fn first_stall(flavor: &str, trap: &str) -> Value {
    let service = Service::start(&[flavor, trap, LONG]);
    let mut observer = Observer::attach(service.pid(), &[]);
    let stall = observer.find(|report| report["phase"] == "ended");
    let text = observer.interrupt();
    assert!(text.contains("workers watched"), "{text}");
    assert!(is_running(service.pid()), "{flavor} {trap}");
    stall
}

#[track_caller]
fn assert_found(flavor: &str, trap: &str, site: &str, causes: &[&str]) {
    let stall = first_stall(flavor, trap);
    let shown = format!("{flavor} {trap}: {stall:#}");
    assert_eq!(stall["site"]["function"], site, "{shown}");
    assert!(
        causes.iter().any(|cause| stall["cause"] == *cause),
        "{shown}"
    );
    assert_eq!(stall["certainty"], "certain", "{shown}");
    assert!(stall["duration_seconds"].as_f64() > Some(0.1), "{shown}");
    assert!(stall["advice"].is_string(), "{shown}");
}

/// Causes of code that computes: a busy machine takes the CPU.
const COMPUTES: &[&str] = &["cpu", "contention"];

#[test]
fn a_sleep_is_found() {
    for flavor in ["multi", "current"] {
        assert_found(flavor, "sleep", "programs::sleeps", &["blocked/sleep"]);
    }
}

#[test]
fn computing_is_found_and_proven_where_the_kernel_has_breakpoints() {
    for flavor in ["multi", "current"] {
        assert_found(flavor, "compute", "programs::compute", COMPUTES);
    }
}

#[test]
fn many_short_sleeps_in_one_poll_are_one_stall() {
    assert_found("multi", "naps", "programs::naps", &["blocked/sleep"]);
}

#[test]
fn a_wait_for_a_lock_is_found() {
    assert_found("current", "lock", "programs::locks", &["blocked/lock"]);
}

#[test]
fn a_sleep_whose_stack_needs_a_stop_is_found() {
    // If the stop meets the call before it is seen, the kernel has forgotten its name.
    let causes = &["blocked/sleep", "blocked/other"];
    assert_found("multi", "hidden", "programs::hides", causes);
}

#[test]
fn a_wait_that_nothing_ends_is_found() {
    // Elsewhere the program only sleeps.
    let cause = match cfg!(target_arch = "x86_64") {
        true => "blocked/process",
        false => "blocked/sleep",
    };
    assert_found("multi", "waits", "programs::waits", &[cause]);
}

/// Its stack needs the frame pointer, which only a stop would show.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_thread_that_cannot_be_stopped_holds_nobody_up() {
    let service = Service::start(&["multi", "waits_hidden", LONG, "2"]);
    let observer = Observer::attach(service.pid(), &[]);
    // The observer ends when the process does, which would not end if it were held back.
    let (reports, text) = observer.until_the_end();
    assert!(reports.is_empty(), "a stall needs a stack: {reports:#?}");
    assert!(text.contains("could not be stopped"), "{text}");
}

#[test]
fn honest_programs_are_silent() {
    for (flavor, honest) in [
        ("multi", "idle"),
        ("multi", "busy"),
        ("current", "busy"),
        ("multi", "pool"),
        ("multi", "in_place"),
    ] {
        let service = Service::start(&[flavor, honest, LONG]);
        let observer = Observer::attach(service.pid(), &["--duration", "5s"]);
        let (reports, text) = observer.until_the_end();
        assert!(reports.is_empty(), "{flavor} {honest}: {reports:#?}");
        // The workers were seen. The other tests are the control for stalls.
        assert!(!text.contains("0 workers watched"), "{honest}: {text}");
        assert!(is_running(service.pid()));
    }
}

#[test]
fn a_dump_shows_workers_polls_and_closures() {
    let service = Service::start(&["multi", "sleep", "600000"]);
    dump_until(
        service.pid(),
        &[
            "worker, in a poll, asleep in clock_nanosleep",
            "worker, parked",
            "programs::sleeps (src/lib.rs:",
            "2 workers, 1 of them in a poll",
        ],
    );
    let service = Service::start(&["multi", "pool", "600000"]);
    dump_until(service.pid(), &["blocking pool, in a closure, computing"]);
}

/// Dumps a process until the text has all of these. On a busy machine a thread may be on its way to
/// where it belongs.
#[track_caller]
fn dump_until(pid: u32, wanted: &[&str]) {
    let begun = Instant::now();
    loop {
        let text = dump(pid);
        if wanted.iter().all(|wanted| text.contains(wanted)) {
            return;
        }
        assert!(begun.elapsed() < support::PATIENCE, "{wanted:?} in {text}");
    }
}

#[test]
fn a_program_without_lines_has_a_site_and_one_without_names_an_error() {
    let symbols = Service::of(
        &support::stripped("--strip-debug"),
        &["multi", "sleep", LONG],
    );
    let mut observer = Observer::attach(symbols.pid(), &[]);
    let stall = observer.find(|report| report["phase"] == "ended");
    assert_eq!(stall["site"]["function"], "programs::sleeps", "{stall:#}");
    let nameless = Service::of(&support::stripped("--strip-all"), &["multi", "sleep", LONG]);
    let (code, text) = output_of(&["dump", &nameless.pid().to_string()]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("has a name, so no worker can be told"),
        "{text}"
    );
    assert!(is_running(nameless.pid()));
}

#[test]
fn errors_are_a_sentence() {
    for (arguments, said) in [
        (
            &["attach", "4194304"][..],
            "tokio-stall: there is no process 4194304",
        ),
        (&["dump", "none"], "`none` is not the number of a process"),
        (&["report", "/no/such/file"], "/no/such/file: No such file"),
    ] {
        let (code, text) = output_of(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
    // In a container there may be no thread of the kernel.
    let second = std::fs::read_to_string("/proc/2/comm");
    if second.is_ok_and(|name| name == "kthreadd\n") {
        let (code, text) = output_of(&["attach", "2"]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("process 2 "), "{text}");
    }
}

#[test]
fn a_process_that_ends_ends_the_observation() {
    let service = Service::start(&["current", "sleep", "1000", "2"]);
    let observer = Observer::attach(service.pid(), &[]);
    let (_, text) = observer.until_the_end();
    assert!(text.contains("watched"), "{text}");
    // The parent has not taken its exit yet.
    let (code, text) = output_of(&["dump", &service.pid().to_string()]);
    assert_eq!(code, Some(2));
    assert!(text.contains("has ended"), "{text}");
}

#[test]
fn threads_that_exit_in_a_stop_do_not_hold_their_process_back() {
    let mut stops = 0;
    for _ in 0..20 {
        let service = Service::start(&["multi", "churns", "4000", "1"]);
        let observer = Observer::attach(service.pid(), &["--threshold", "10ms"]);
        // It ends when the process does.
        let (_, text) = observer.until_the_end();
        stops += stops_in(&text);
        if stops >= 10 {
            return;
        }
    }
    panic!("only {stops} stops");
}

#[test]
fn without_breakpoints_computing_is_likely_and_asked_for() {
    let service = Service::start(&["multi", "compute", LONG]);
    let attach = |options| Observer::attach_without_breakpoints(service.pid(), options);
    let (reports, text) = attach(&["--duration", "6s"]).until_the_end();
    assert!(reports.is_empty(), "{reports:#?}");
    assert!(text.contains("allow `perf_event_open`"), "{text}");
    let mut observer = attach(&["--likely"]);
    let stall = observer.find(|report| report["phase"] == "ended");
    assert_eq!(stall["certainty"], "likely", "{stall:#}");
    assert_eq!(stall["site"]["function"], "programs::compute", "{stall:#}");
    // One sleep is one poll, whatever is forbidden.
    let service = Service::start(&["multi", "sleep", LONG]);
    let mut observer = Observer::attach_without_breakpoints(service.pid(), &[]);
    let stall = observer.find(|report| report["phase"] == "ended");
    assert_eq!(stall["certainty"], "certain", "{stall:#}");
}

#[test]
fn the_oldest_tokio_is_known() {
    assert_known("1.20");
}

#[test]
fn a_later_tokio_is_known() {
    assert_known("1.38");
}

/// Programs with this tokio are told apart: those that stall, and honest ones.
#[track_caller]
fn assert_known(version: &str) {
    let program = support::program_with(version);
    for flavor in ["multi", "current"] {
        let service = Service::of(&program, &[flavor, "compute", LONG]);
        let mut observer = Observer::attach(service.pid(), &[]);
        let stall = observer.find(|report| report["phase"] == "ended");
        assert_eq!(stall["site"]["function"], "programs::compute", "{stall:#}");
        assert_eq!(stall["certainty"], "certain", "{stall:#}");
        for honest in ["idle", "busy"] {
            let service = Service::of(&program, &[flavor, honest, LONG]);
            let observer = Observer::attach(service.pid(), &["--duration", "3s"]);
            let (reports, text) = observer.until_the_end();
            assert!(
                reports.is_empty(),
                "{version} {flavor} {honest}: {reports:#?}"
            );
            assert!(!text.contains("0 workers watched"), "{version}: {text}");
        }
    }
}

/// A process that checks all that it does, and aborts at the first error.
fn a_watchful_process() -> Service {
    Service::start(&["multi", "checks"])
}

/// Dumps all threads so often. Each dump stops the ones that compute.
fn dumps(count: usize) {
    let service = a_watchful_process();
    for round in 0..count {
        let text = dump(service.pid());
        assert!(text.contains("workers"), "{round}: {text}");
        assert!(is_running(service.pid()), "{round}");
    }
    service.assert_goes_on();
}

/// Stops threads so often; each stop attaches to a thread, and detaches.
fn stops(count: u64) {
    let service = a_watchful_process();
    let mut stops = 0;
    for _ in 0..count.max(20) {
        if stops >= count {
            return service.assert_goes_on();
        }
        let options = ["--threshold", "10ms", "--duration", "5s"];
        let (_, text) = Observer::attach(service.pid(), &options).until_the_end();
        stops += stops_in(&text);
        assert!(is_running(service.pid()), "after {stops} stops: {text}");
        println!("{stops} stops so far; {text}");
    }
    panic!("only {stops} stops");
}

/// The number in `310 stops of a thread, …`.
fn stops_in(text: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.contains(" stops of a thread"));
    let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
    number.unwrap_or_default()
}

/// Kills observers at any moment of their work.
fn kills(count: u64) {
    let service = a_watchful_process();
    for round in 0..count {
        let mut observer = Observer::attach(service.pid(), &["--threshold", "10ms"]);
        observer.find(|report| report["phase"] == "began");
        // Every moment of a tick has its turn.
        std::thread::sleep(Duration::from_micros(round * 97 % 2_000));
        observer.kill();
        service.assert_goes_on();
    }
}

#[test]
fn a_detached_process_goes_on() {
    dumps(20);
    stops(100);
}

#[test]
fn a_killed_observer_leaves_the_process_running() {
    kills(5);
}

#[test]
#[ignore = "minutes"]
fn a_thousand_dumps_leave_the_process_running() {
    dumps(1_000);
}

#[test]
#[ignore = "minutes"]
fn ten_thousand_stops_leave_the_process_running() {
    stops(10_000);
}

#[test]
#[ignore = "minutes"]
fn a_hundred_killed_observers_leave_the_process_running() {
    kills(100);
}

#[test]
fn another_user_is_told_the_fix() {
    let service = Service::start(&["multi", "idle", LONG]);
    let pid = service.pid().to_string();
    let Some((code, text)) = support::as_nobody(&["attach", &pid, "--duration", "1s"]) else {
        eprintln!("not root, so there is no other user to be");
        return;
    };
    assert_eq!(code, Some(2), "{text}");
    let said = format!("process {pid} may not be looked at; ");
    assert!(text.contains(&said) && text.contains("run as"), "{text}");
}

#[test]
fn a_threshold_of_seconds_leaves_shorter_stalls_out() {
    let service = Service::start(&["multi", "sleep", "1000"]);
    let observer = Observer::attach(service.pid(), &["--threshold", "60s", "--duration", "4s"]);
    let (reports, _) = observer.until_the_end();
    assert!(reports.is_empty(), "{reports:#?}");
}
