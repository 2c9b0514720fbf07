//! `TOKIO_STALL` in the environment of a real program: settings, errors, `off` and `doctor`.
//!
//! A program of its own: an environment belongs to a process, and each test starts one.
#![cfg(target_os = "linux")]

mod support;

use std::ffi::OsStr;
use std::process::Output;
use std::time::Duration;
use support::child;
use support::wait_until;
use tokio::runtime::Runtime;
use tokio_stall::{Builder, FutureExt as _, SettingSource};

const CHILD: &str = "TOKIO_STALL_TEST_ENVIRONMENT";

/// The child: a program that takes its settings from the environment.
#[test]
fn environment_child() {
    if !child::is_here(CHILD) {
        return;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let builder = Builder::from_env().runtime("api", runtime.handle().clone());
    // Else a stall that lasts on a busy machine is told on standard error.
    let builder = builder.on_stall(|_| ());
    // The environment wins over this one.
    let watch = match builder
        .threshold(Duration::from_millis(7))
        .recent(3)
        .start()
    {
        Ok(watch) => watch,
        Err(error) => {
            println!("error: {error}");
            return;
        }
    };
    let diagnosis = watch.explain_coverage();
    for setting in &diagnosis.settings {
        let is_given = setting.source != SettingSource::Default;
        is_given.then(|| println!("{} = {} {:?}", setting.key, setting.value, setting.source));
    }
    #[cfg(feature = "serve")]
    match watch.served_at() {
        Some(address) => answers(address),
        None => println!("not served"),
    }
    println!("threads: {}", support::process::detector_threads().len());
    println!("off: {} {}", watch.coverage()[0].off, watch.status().off);
    println!("coverage: {}", watch.coverage()[0]);
    match watch.status().off {
        true => {
            blocks_once(&runtime);
            watch.add("again", runtime.handle().clone()).unwrap();
            println!("stalls: {}", watch.recent().len());
        }
        // On a busy machine one such stall may be over before the watchdog runs.
        false => wait_until("a stall", || {
            blocks_once(&runtime);
            !watch.recent().is_empty()
        }),
    }
}

#[cfg(feature = "serve")]
fn answers(address: std::net::SocketAddr) {
    for path in ["/health/live", "/metrics", "/stalls"] {
        let answer = support::scraped::get(address, path).unwrap();
        println!("{path}: {} {}", answer.status, answer.body);
    }
}

fn blocks_once(runtime: &Runtime) {
    let blocks = async { std::thread::sleep(Duration::from_millis(60)) };
    let blocks = runtime.spawn(blocks.watched("blocks"));
    runtime.block_on(blocks).unwrap();
}

fn run(variable: Option<&OsStr>) -> Output {
    let mut command = child::command("environment_child", CHILD);
    command.env_remove("TOKIO_STALL");
    command.envs(variable.map(|text| ("TOKIO_STALL", text)));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    output
}

/// The words of a program with this variable: standard output, and standard error.
fn words(variable: &str) -> (String, String) {
    let output = run(Some(variable.as_ref()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn settings_of_the_environment_win_over_those_of_the_code() {
    let (said, _) = words("threshold=20ms,warn=250ms,stacks=off");
    assert_has(
        &said,
        &[
            "threshold = 20ms Environment",
            "warn_after = 250ms Environment",
            "stacks = off Environment",
            "recent = 3 Code",
            "off: false false",
        ],
    );
    assert!(!said.contains("threads: 0"), "{said}");
}

#[test]
fn without_the_variable_the_code_decides() {
    for variable in [None, Some(OsStr::new(""))] {
        let output = run(variable);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_has(&said, &["threshold = 7ms Code"]);
        assert!(!said.contains("Environment"), "{said}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("tokio-stall"), "{errors}");
    }
}

#[test]
fn a_watch_that_is_off_has_no_threads_and_says_so() {
    let (said, _) = words("off");
    assert_has(
        &said,
        &[
            "threads: 0",
            "off: true true",
            "\"api\": nothing is seen: the watch is switched off by `TOKIO_STALL=off`",
            "stalls: 0",
        ],
    );
}

/// Else a probe of Kubernetes has a program restarted that works.
#[cfg(feature = "serve")]
#[test]
fn a_watch_that_is_off_answers_all_the_same() {
    assert_has(
        &words("off,serve=127.0.0.1:0").0,
        &[
            "/health/live: 200 ok",
            "/metrics: 200 # the watch is switched off",
            "\ntokio_stall_watchdog_last_tick_timestamp_seconds 0\n",
            "/stalls: 503 nothing is seen: the watch is switched off",
            "threads: 1\n",
        ],
    );
    // The control.
    assert_has(
        &words("serve=127.0.0.1:0").0,
        &[
            "/health/live: 200 ok",
            "/metrics: 200 ",
            "tokio_stall_build_info{",
            "/stalls: 200 {",
        ],
    );
}

/// The same address is an error of a watch that is on: see `start_errors`.
#[cfg(feature = "serve")]
#[test]
fn a_watch_that_is_off_starts_without_its_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (said, errors) = words(&format!("off,serve={address}"));
    assert_has(&said, &["off: true true", "not served"]);
    let why = format!("the watch is off, and not served: cannot serve at {address}");
    assert_has(&errors, &[&why]);
}

#[test]
fn the_doctor_is_printed_at_the_start() {
    let (_, errors) = words("doctor,recent=5");
    assert_has(
        &errors,
        &[
            "tokio-stall: version ",
            "runtime \"api\"",
            "workers    the thread of its 1 worker",
            "NO   spans      no subscriber has the layer; add `tokio_stall::layer()`",
            "NO   log        the process has no subscriber of `tracing`; install one",
            "recent            5  (by TOKIO_STALL)",
        ],
    );
    let (_, off) = words("doctor,off");
    assert_has(&off, &["NO   workers    the watch is switched off"]);
    assert!(!off.contains("on_stall") && !off.contains("yes "), "{off}");
}

/// A program that starts in a poll, as one in `#[tokio::main(flavor = "current_thread")]` does.
#[test]
fn in_a_poll_child() {
    if !child::is_here(CHILD) {
        return;
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let watch = Builder::from_env().start().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        for allowed in watch.status().allowed {
            println!("allowed: {} {}", allowed.reason, allowed.count);
        }
        for stall in watch.recent() {
            println!("stall: {stall}");
        }
    });
}

/// It waits for the thread of the worker, which is this one.
#[test]
fn the_wait_of_the_doctor_is_no_stall() {
    let mut command = child::command("in_a_poll_child", CHILD);
    let output = command.env("TOKIO_STALL", "doctor").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_has(&said, &["allowed: TOKIO_STALL=doctor 1"]);
    assert!(!said.contains("stall: "), "{said}");
}

#[test]
fn a_wrong_setting_is_an_error_of_the_start() {
    let wrong = "error: the environment variable TOKIO_STALL";
    let (said, _) = words("threshold=20");
    assert_has(&said, &[wrong, "sets threshold to \"20\"", "20ms"]);
    let (said, errors) = words("serve_token=a-secret");
    assert_has(&said, &[wrong, "has serve_token"]);
    assert!(
        !said.contains("a-secret") && !errors.contains("a-secret"),
        "{said}{errors}"
    );
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    use std::os::unix::ffi::OsStrExt as _;
    let output = run(Some(OsStr::from_bytes(b"threshold=\xff")));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_has(&said, &["TOKIO_STALL is no Unicode text"]);
}
