//! The ways to hold a worker, and the ways to be busy without it.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Computes for so long.
pub fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        black_box((0..1000_u64).sum::<u64>());
    }
}

/// Sleeps in a poll.
pub async fn sleeps(time: Duration) {
    std::thread::sleep(time);
}

/// Computes in a poll.
pub async fn computes(time: Duration) {
    compute(time);
}

/// Sleeps many times in a poll.
pub async fn naps(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Waits for a lock in a poll.
pub async fn locks(time: Duration) {
    let lock = Arc::new(Mutex::new(()));
    let (theirs, (held, is_held)) = (lock.clone(), std::sync::mpsc::channel());
    let holder = std::thread::spawn(move || {
        let _guard = theirs.lock().unwrap();
        held.send(()).unwrap();
        std::thread::sleep(time);
    });
    is_held.recv().unwrap();
    drop(lock.lock().unwrap());
    holder.join().unwrap();
}

/// Many tasks with polls of a millisecond, and one that computes in pieces of one.
pub async fn is_honestly_busy() {
    for _ in 0..8 {
        tokio::spawn(async {
            loop {
                compute(Duration::from_micros(800));
                tokio::task::yield_now().await;
            }
        });
    }
    std::future::pending().await
}
