//! A stall says what its time was spent on: computing, asleep in a call, or without a CPU.

use crate::support::load::{Hogs, compute};
use crate::support::stage::Stage;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio_stall::StallReport;

const LONG: Duration = Duration::from_millis(120);

/// On a busy machine the signal of a stack, or a late watchdog, takes some of a sleep's blame away.
const LONG_SLEEP: Duration = Duration::from_secs(1);

/// Runs `blocking` on a worker and returns the last report about it.
fn report_of(blocking: impl FnOnce() + Send + 'static) -> StallReport {
    let stage = Stage::multi_thread(2).start();
    let ended = stage.run_stalling("blocking", async { blocking() });
    // The parts are of the whole, whatever they are.
    let parts = ended.time.total().as_secs_f64();
    let whole = ended.duration.as_secs_f64();
    let off = parts / whole - 1.0;
    assert!(off.abs() < 0.05, "{parts} of {whole}: {ended}");
    ended
}

#[track_caller]
fn assert_asleep_in(report: &StallReport, calls: &[&str]) {
    let call = report.asleep_in.as_deref().unwrap_or_default();
    assert!(calls.contains(&call), "{calls:?} expected: {report}");
    assert!(report.time.asleep > report.time.cpu, "{report}");
    let text = format!("asleep in {call}");
    assert!(report.to_string().contains(&text), "{report}");
}

#[test]
fn a_sleep_is_asleep_in_its_call() {
    let report = report_of(|| std::thread::sleep(LONG_SLEEP));
    assert_asleep_in(&report, &["clock_nanosleep", "nanosleep"]);
}

#[test]
fn a_wait_for_a_lock_is_asleep_in_futex() {
    let mutex = Arc::new(Mutex::new(()));
    let held = mutex.clone();
    let (taken, is_taken) = mpsc::channel();
    let (waits, is_waiting) = mpsc::channel();
    let holder = std::thread::spawn(move || {
        let _guard = held.lock().unwrap();
        taken.send(()).unwrap();
        is_waiting.recv().unwrap();
        std::thread::sleep(LONG_SLEEP);
    });
    is_taken.recv().unwrap();
    let report = report_of(move || {
        waits.send(()).unwrap();
        drop(mutex.lock().unwrap());
    });
    assert_asleep_in(&report, &["futex"]);
    holder.join().unwrap();
}

#[test]
fn a_read_of_a_slow_pipe_is_asleep_in_read() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let (reads, is_reading) = mpsc::channel();
    let slow = std::thread::spawn(move || {
        is_reading.recv().unwrap();
        std::thread::sleep(LONG_SLEEP);
        writer.write_all(b"x").unwrap();
    });
    let report = report_of(move || {
        reads.send(()).unwrap();
        reader.read_exact(&mut [0]).unwrap();
    });
    assert_asleep_in(&report, &["read"]);
    slow.join().unwrap();
}

#[test]
fn a_computation_has_its_time_on_the_cpu() {
    let report = report_of(|| compute(LONG));
    let time = report.time;
    assert!(time.cpu >= LONG * 9 / 10, "{time:?}");
    assert!(time.cpu > time.asleep, "{time:?}");
    assert_eq!(report.asleep_in, None, "{report}");
}

/// With four times more to do than there are CPUs, most of the time is the host's.
#[test]
fn a_computation_without_a_cpu_has_its_time_in_the_run_queue() {
    let _hogs = Hogs::four_for_each_cpu();
    let time = report_of(|| compute(LONG)).time;
    assert!(time.run_queue > time.asleep, "{time:?}");
    assert!(time.run_queue > LONG / 2, "{time:?}");
    assert!(time.cpu >= LONG * 9 / 10, "{time:?}");
}
