//! The host's doing is not the code's: a process that is stopped and continued is not a stall.
#![cfg(target_os = "linux")]

mod seen;

use rustix::process::{Pid, Signal, getpid, kill_process};
use seen::{Seen, child, short_polls, workers};
use std::time::Duration;
use tokio_stall::{Certainty, FutureExt as _, Phase};

const CHILD: &str = "TOKIO_STALL_TEST_STOPPED_CHILD";

/// The child: busy with short polls, stopped from outside again and again.
#[test]
fn stopped_child() {
    if !child::is_here(CHILD) {
        return;
    }
    workers(2).block_on(async {
        let (_watch, seen) = Seen::watch();
        short_polls(400).await;
        let false_alarms = seen.certain();
        // Positive control: the same child does see a stall of its own.
        tokio::spawn(async { std::thread::sleep(Duration::from_millis(100)) }.watched("control"))
            .await
            .unwrap();
        seen.wait(|report| {
            report.phase == Phase::Ended
                && report.certainty == Certainty::Certain
                && report.span.as_deref() == Some("control")
        });
        let pid = getpid().as_raw_nonzero();
        assert!(false_alarms.is_empty(), "process {pid}: {false_alarms:#?}");
        println!("no false alarm in the child");
    });
}

#[test]
fn a_process_that_is_stopped_and_continued_is_not_stalled() {
    let mut child = child::start("stopped_child", CHILD);
    let pid = Pid::from_child(&child);
    let mut stops = 0;
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(90));
        if kill_process(pid, Signal::STOP).is_ok() {
            std::thread::sleep(Duration::from_millis(60));
            kill_process(pid, Signal::CONT).ok();
            stops += 1;
        }
    }
    child::assert_said(child, "no false alarm in the child");
    assert!(stops >= 3, "stopped {stops} times: the test proves nothing");
}
