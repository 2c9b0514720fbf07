//! A stall that does not end, and a reporter that is stuck: the news still gets out.
#![cfg(target_os = "linux")]

mod seen;

use seen::{FOREVER, child, workers};
use std::io::{BufRead as _, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio_stall::FutureExt as _;

const CHILD: &str = "TOKIO_STALL_TEST_ENDLESS_CHILD";

/// The child: one task never returns, and the callback never returns either.
#[test]
fn endless_child() {
    if !child::is_here(CHILD) {
        return;
    }
    let runtime = workers(2);
    let (told, began) = mpsc::channel();
    let watch = tokio_stall::Builder::new()
        .runtime("api", runtime.handle().clone())
        .on_stall(move |report| {
            told.send(report.id).ok();
            std::thread::sleep(Duration::MAX);
        })
        .start()
        .unwrap();
    runtime.spawn(async { std::thread::sleep(Duration::MAX) }.watched("never_returns"));
    let id = began.recv_timeout(FOREVER).unwrap();
    // The reporter is stuck for good. The live view does not depend on it, names included.
    let now = watch.stalled_now();
    assert_eq!(now.len(), 1);
    assert_eq!(
        (now[0].id, now[0].span.as_deref()),
        (id, Some("never_returns"))
    );
    println!("live view works");
    // The parent ends us once it has read our standard error.
    std::thread::sleep(Duration::MAX);
}

#[test]
fn an_endless_stall_reaches_standard_error_past_a_stuck_reporter() {
    let mut child = child::start("endless_child", CHILD);
    let (send, lines) = mpsc::channel();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let output = BufReader::new(child.stdout.take().unwrap());
    let also_send = send.clone();
    std::thread::spawn(move || {
        errors
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| send.send(line))
    });
    std::thread::spawn(move || {
        output
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| also_send.send(line))
    });
    let deadline = Instant::now() + FOREVER * 2;
    let (mut live, mut last_words) = (false, false);
    let mut all = Vec::new();
    while !(live && last_words) {
        let line = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let line =
            line.unwrap_or_else(|_| panic!("neither more lines nor what is wanted in {all:#?}"));
        live |= line.contains("live view works");
        last_words |=
            line.contains("tokio-stall: worker ") && line.contains("of \"api\" blocked for 10");
        all.push(line);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
