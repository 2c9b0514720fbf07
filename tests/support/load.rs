//! Work that takes a known time of the CPU, and threads that take the CPUs away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_stall::FutureExt as _;

/// Computes for this much time of the thread's own, however long the machine takes to give it.
pub fn compute(time: Duration) {
    let start = thread_time();
    while thread_time() - start < time {
        std::hint::black_box((0..1_000u64).fold(0, |sum, n| sum ^ n.wrapping_mul(sum | 1)));
    }
}

#[cfg(target_os = "linux")]
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(target_os = "linux"))]
pub fn thread_time() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Two tasks that are busy with so many short polls each: marked, and none of them a stall.
pub async fn short_polls(polls: usize) {
    let busy = [(); 2].map(|()| {
        let task = async move {
            for _ in 0..polls {
                compute(Duration::from_millis(2));
                tokio::task::yield_now().await;
            }
        };
        tokio::spawn(task.watched("short_polls"))
    });
    for busy in busy {
        busy.await.unwrap();
    }
}

/// Threads that spin, to take the CPUs away. They end with the value.
pub struct Hogs(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Hogs {
    pub fn start(threads: usize) -> Hogs {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..threads)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::black_box((0..10_000u64).sum::<u64>());
                    }
                })
            })
            .collect();
        Hogs(stop, threads)
    }

    /// Starts four for each CPU.
    pub fn four_for_each_cpu() -> Hogs {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Hogs::start(cpus * 4)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        for thread in self.1.drain(..) {
            thread.join().unwrap();
        }
    }
}
