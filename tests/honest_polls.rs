//! Polls of 2 ms are never blamed, beside threads that take the CPUs away, however little the
//! system shows of threads.
//!
//! A program of its own: privileges and mounts belong to a process, and each test starts one for
//! itself. `TOKIO_STALL_SOAK_SECONDS` is how long each set-up runs; a run before a release takes
//! 100.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use std::io::Write as _;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::child::alone;
use support::load::{Hogs, compute};
use support::process::{cover_files_of_threads, hide_files_of_threads, hide_proc};
use support::stage::{Stage, sleeps};
use support::wait_until;
use tokio_stall::{Cause, FutureExt as _, Phase, StallReport};

/// The threads that spin beside the polls.
const HOGS: usize = 10;

fn length() -> Duration {
    let asked = std::env::var("TOKIO_STALL_SOAK_SECONDS").ok();
    let seconds = asked.map(|seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Four tasks of honest polls, marked and unmarked in turn, on two workers, after this set-up.
/// Nothing is told of them, and of the control that follows there is a report in the end.
fn assert_silent(set_up: impl FnOnce() -> bool) {
    let mut is_set_up = false;
    let stage = Stage::multi_thread(2).start_after(|_| is_set_up = set_up());
    if !is_set_up {
        eprintln!("NOT TRIED: it needs the rights of root");
        return;
    }
    println!("{}", stage.watch.coverage()[0]);
    let hogs = Hogs::start(HOGS);
    let until = Instant::now() + length();
    let polls = move || async move {
        while Instant::now() < until {
            compute(Duration::from_millis(2));
            tokio::task::yield_now().await;
        }
    };
    let tasks = [(); 2].map(|()| {
        [
            stage.runtime.spawn(polls().watched("honest")),
            stage.runtime.spawn(polls()),
        ]
    });
    for task in tasks.into_iter().flatten() {
        stage.runtime.block_on(task).unwrap();
    }
    drop(hogs);
    stage.seen.assert_nothing();
    // Where a thread is hidden, a sleep is believed if no thread is preempted meanwhile.
    let is_told = |report: &StallReport| report.span.as_deref() == Some("control");
    wait_until("a report of the control", || {
        stage.run(sleeps(Duration::from_millis(100)).watched("control"));
        stage.seen.all().iter().any(is_told)
    });
    assert!(
        stage.seen.all().iter().all(is_told),
        "{:#?}",
        stage.seen.all()
    );
}

/// As after a change of user, or with a capability in the program's file.
fn become_nobody() -> bool {
    // SAFETY: only numbers go in.
    unsafe { libc::setgid(65_534) == 0 && libc::setuid(65_534) == 0 && forbid_dumps() }
}

fn forbid_dumps() -> bool {
    // SAFETY: only numbers go in.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 }
}

#[test]
fn where_all_is_seen() {
    alone(|| assert_silent(|| true));
}

#[test]
fn where_the_process_may_not_be_dumped() {
    alone(|| assert_silent(forbid_dumps));
}

#[test]
fn where_calls_belong_to_another_user() {
    alone(|| {
        assert_silent(hide_calls);
    });
}

/// Hides the calls that threads sleep in.
fn hide_calls() -> bool {
    become_nobody() && std::fs::File::open("/proc/thread-self/syscall").is_err()
}

/// A computation of 300 ms, beside others, is told as one in the end, and never as blocking. Returns
/// its last report. On a busy machine, one may get no CPU for most of its time.
#[track_caller]
fn told_as_computing(stage: &Stage, name: &'static str) -> StallReport {
    let ended = || {
        let mut reports = stage.seen.all();
        reports.retain(|told| told.phase == Phase::Ended && told.span.as_deref() == Some(name));
        reports
    };
    let _hogs = Hogs::start(HOGS / 2);
    let is_computing = |told: &StallReport| told.cause == Cause::Cpu;
    wait_until("a computation that is told as one", || {
        stage.run(async { compute(Duration::from_millis(300)) }.watched(name));
        ended().iter().any(is_computing)
    });
    for told in ended() {
        assert!(!matches!(told.cause, Cause::Blocked(_)), "{told:#?}");
    }
    ended().into_iter().find(is_computing).unwrap()
}

#[test]
fn computing_is_no_blocking_where_calls_are_hidden() {
    alone(|| {
        let mut is_hidden = false;
        let stage = Stage::multi_thread(1).start_after(|_| is_hidden = hide_calls());
        if !is_hidden {
            eprintln!("NOT TRIED: it needs the rights of root");
            return;
        }
        let coverage = stage.watch.coverage().remove(0);
        assert!(coverage.thread_evidence && !coverage.calls, "{coverage}");
        let here = told_as_computing(&stage, "here");
        // Another thread takes the worker over, and computes there.
        let (begins, begun) = channel();
        let (ends, end) = channel::<()>();
        let waits = stage.runtime.spawn(async move {
            tokio::task::block_in_place(|| {
                begins.send(()).unwrap();
                end.recv().ok();
            });
        });
        begun.recv().unwrap();
        let elsewhere = told_as_computing(&stage, "elsewhere");
        assert_ne!(elsewhere.tid, here.tid, "{elsewhere:#?}");
        drop(ends);
        stage.block_on(waits).unwrap();
    });
}

#[test]
fn where_run_queues_are_empty() {
    alone(|| assert_silent(|| hide_files_of_threads("schedstat")));
}

/// As with a kernel that keeps no times of threads. Each sleep looks like the one before.
#[test]
fn where_run_queues_are_zeros() {
    alone(|| {
        let mut zeros = tempfile::NamedTempFile::new().unwrap();
        zeros.write_all(b"0 0 0\n").unwrap();
        assert_silent(|| cover_files_of_threads("schedstat", zeros.path()));
    });
}

#[test]
fn where_states_are_empty() {
    alone(|| assert_silent(|| hide_files_of_threads("stat")));
}

#[test]
fn where_there_is_no_proc() {
    alone(|| assert_silent(hide_proc));
}
