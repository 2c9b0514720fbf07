//! A stall says what its time was spent on: computing, asleep and in which call, or without a CPU.
#![cfg(target_os = "linux")]

mod seen;

use seen::{Hogs, Seen, compute};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stall::{FutureExt as _, Phase, StallReport};

const LONG: Duration = Duration::from_millis(120);

/// Runs `blocking` on a worker and returns the last report about it.
async fn report_of(
    seen: &Seen,
    name: &'static str,
    blocking: impl FnOnce() + Send + 'static,
) -> StallReport {
    tokio::spawn(async { blocking() }.watched(name))
        .await
        .unwrap();
    let ended =
        seen.wait(|report| report.phase == Phase::Ended && report.span.as_deref() == Some(name));
    // The parts are of the whole, whatever they are.
    let (parts, whole) = (
        ended.time.total().as_secs_f64(),
        ended.duration.as_secs_f64(),
    );
    assert!(
        (parts / whole - 1.0).abs() < 0.05,
        "{parts} of {whole}: {ended}"
    );
    ended
}

#[track_caller]
fn assert_asleep_in(report: &StallReport, calls: &[&str]) {
    let call = report.asleep_in.as_deref();
    assert!(
        call.is_some_and(|call| calls.contains(&call)),
        "{calls:?} expected: {report}"
    );
    assert!(report.time.asleep > report.time.cpu, "{report}");
    assert!(
        report
            .to_string()
            .contains(&format!("asleep in {}", call.unwrap_or_default())),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_says_what_its_time_was_spent_on() {
    let (_watch, seen) = Seen::watch();

    let sleep = report_of(&seen, "sleep", || std::thread::sleep(LONG)).await;
    assert_asleep_in(&sleep, &["clock_nanosleep", "nanosleep"]);

    let mutex = Arc::new(Mutex::new(()));
    let held = mutex.clone();
    let (taken, is_taken) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let _guard = held.lock().unwrap();
        taken.send(()).unwrap();
        std::thread::sleep(LONG);
    });
    is_taken.recv().unwrap();
    let lock = report_of(&seen, "lock", move || drop(mutex.lock().unwrap())).await;
    assert_asleep_in(&lock, &["futex"]);
    holder.join().unwrap();

    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let slow = std::thread::spawn(move || {
        std::thread::sleep(LONG);
        writer.write_all(b"x").unwrap();
    });
    let read = report_of(&seen, "read", move || reader.read_exact(&mut [0]).unwrap()).await;
    assert_asleep_in(&read, &["read"]);
    slow.join().unwrap();

    let cpu = report_of(&seen, "cpu", || compute(LONG)).await;
    assert!(
        cpu.time.cpu >= LONG * 9 / 10 && cpu.time.cpu > cpu.time.asleep,
        "{cpu}"
    );

    // With four times more to do than there are CPUs, most of the time is the host's.
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    let _hogs = Hogs::start(cpus * 4);
    let starved = report_of(&seen, "starved", || compute(LONG)).await;
    assert!(starved.time.run_queue > starved.time.asleep, "{starved}");
    assert!(
        starved.time.run_queue > LONG / 2 && starved.time.cpu >= LONG * 9 / 10,
        "{starved}"
    );
}
