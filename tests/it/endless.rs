//! A stall that does not end, and a reporter that is stuck: the news still gets out.

use crate::support::stage::Stage;
use crate::support::{FOREVER, child, wait_until};
use std::io::{BufRead as _, BufReader, Read};
use std::process::Child;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tokio_stall::FutureExt as _;

const CHILD: &str = "TOKIO_STALL_TEST_ENDLESS_CHILD";

/// The child: one task never returns, and the callback never returns either.
#[test]
fn endless_child() {
    if !child::is_here(CHILD) {
        return;
    }
    let (told, began) = mpsc::channel();
    let stage = Stage::multi_thread(2).named("api").settings(|builder| {
        builder.on_stall(move |report| {
            told.send(report.id).ok();
            std::thread::sleep(Duration::MAX);
        })
    });
    let Stage { runtime, watch, .. } = stage.start();
    runtime.spawn(async { std::thread::sleep(Duration::MAX) }.watched("never_returns"));
    let id = began.recv_timeout(FOREVER).unwrap();
    // The sinks are stuck for good. The live view does not need them. On a busy machine the first
    // report may come before the name.
    wait_until("the live view with the name", || {
        let now = watch.stalled_now();
        let stalls = now.iter().map(|stall| (stall.id, stall.span.as_deref()));
        stalls.eq([(id, Some("never_returns"))])
    });
    println!("live view works");
    // The parent ends us once it has read our standard error.
    std::thread::sleep(Duration::MAX);
}

/// The lines of both outputs of a child, as they come.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    let errors: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
    let output: Box<dyn Read + Send> = Box::new(child.stdout.take().unwrap());
    for file in [errors, output] {
        let send = send.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(file).lines().map_while(Result::ok);
            lines.try_for_each(|line| send.send(line))
        });
    }
    lines
}

#[test]
fn an_endless_stall_reaches_standard_error_past_a_stuck_reporter() {
    let mut child = child::start("endless::endless_child", CHILD);
    let lines = lines_of(&mut child);
    let deadline = Instant::now() + FOREVER * 2;
    let (mut live, mut last_words) = (false, false);
    let mut all = Vec::new();
    while !(live && last_words) {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left);
        let line = line.unwrap_or_else(|_| panic!("no more lines, or no more time: {all:#?}"));
        live |= line.contains("live view works");
        last_words |=
            line.contains("tokio-stall: worker ") && line.contains("of \"api\" blocked for 10");
        all.push(line);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
