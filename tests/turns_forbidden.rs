//! Sandboxes that forbid to read one's own memory: turns are read another way, or are given up with
//! a word, and nothing else changes.
//!
//! A program of its own: a sandbox holds for a process, and each test starts one for itself.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod support;

use std::time::Duration;
use support::child::alone;
use support::load::compute;
use support::process::hide_proc;
use support::signal::forbid_process_vm_readv;
use support::stage::Stage;
use support::wait_for_threads;
use tokio_stall::{Certainty, Phase};

const LONG: Duration = Duration::from_millis(100);

/// Rows of unmarked polls, of which there is nothing to report. The caller has the control.
fn assert_silent(stage: &Stage) {
    for _ in 0..100 {
        stage.run(async {
            compute(Duration::from_millis(3));
            tokio::task::yield_now().await;
            compute(Duration::from_millis(3));
        });
    }
    stage.seen.assert_nothing();
}

#[test]
fn turns_are_read_from_the_file_if_the_call_is_forbidden() {
    alone(|| {
        forbid_process_vm_readv().unwrap();
        let stage = Stage::multi_thread(2).start();
        let coverage = &stage.watch.coverage()[0];
        assert!(coverage.turns, "{coverage}");
        assert_silent(&stage);
        wait_for_threads(&stage.watch);
        stage.run(async { compute(LONG) });
        let began = stage.seen.wait(|report| report.phase == Phase::Began);
        assert_eq!(began.certainty, Certainty::Certain, "{began}");
    });
}

#[test]
fn marks_are_left_if_call_and_file_are_forbidden() {
    alone(|| {
        if !hide_proc() {
            eprintln!("NOT TRIED: hiding /proc needs CAP_SYS_ADMIN");
            return;
        }
        forbid_process_vm_readv().unwrap();
        let stage = Stage::multi_thread(2).start();
        let coverage = &stage.watch.coverage()[0];
        assert!(!coverage.turns, "{coverage}");
        let why = coverage.no_turns.expect("it says why");
        assert!(why.contains("forbids"), "{coverage}");
        assert_silent(&stage);
        // Computing without a mark looks like a row.
        stage.run(async { compute(LONG) });
        stage.seen.assert_nothing();
        stage.silent_beside(|| async { compute(LONG) });
    });
}
