//! The host's doing is not the code's: a process that is stopped and continued is not a stall.

use crate::support::child;
use crate::support::load::short_polls;
use crate::support::stage::{Stage, sleeps};
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::time::Duration;

const CHILD: &str = "TOKIO_STALL_TEST_STOPPED_CHILD";

/// The child: busy with short polls, stopped from outside again and again.
#[test]
fn stopped_child() {
    if !child::is_here(CHILD) {
        return;
    }
    let stage = Stage::multi_thread(2).start();
    stage.block_on(short_polls(400));
    let false_alarms = stage.seen.certain();
    // Positive control: the same child does see a stall of its own.
    stage.certain_control(|| sleeps(Duration::from_millis(100)));
    let pid = getpid().as_raw_nonzero();
    assert!(false_alarms.is_empty(), "process {pid}: {false_alarms:#?}");
    println!("no false alarm in the child");
}

#[test]
fn a_process_that_is_stopped_and_continued_is_not_stalled() {
    let mut child = child::start("host::stopped_child", CHILD);
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
