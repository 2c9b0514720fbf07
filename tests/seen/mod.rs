//! What a test has been told by the detector, and how to wait for more of it.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its own part.

pub mod child;

use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stall::{Builder, Certainty, FutureExt as _, Guard, Missing, Phase, StallReport};

/// Waiting ends on news. The bound is only for a test that would otherwise wait for ever.
pub const FOREVER: Duration = Duration::from_secs(20);

/// All reports so far, in their order.
#[derive(Clone, Default)]
pub struct Seen(Arc<(Mutex<Vec<StallReport>>, Condvar)>);

impl Seen {
    /// A builder that tells us everything.
    pub fn builder() -> (Builder, Seen) {
        let seen = Seen::default();
        let told = seen.clone();
        let builder = Builder::new().on_stall(move |report| {
            let (reports, news) = &*told.0;
            reports.lock().unwrap().push(report.clone());
            news.notify_all();
        });
        (builder, seen)
    }

    /// Watches the runtime the caller is in.
    pub fn watch() -> (Guard, Seen) {
        let (builder, seen) = Seen::builder();
        (builder.start().expect("a runtime is here"), seen)
    }

    pub fn all(&self) -> Vec<StallReport> {
        self.0.0.lock().unwrap().clone()
    }

    /// The first report that fits, now or later.
    pub fn wait(&self, fits: impl Fn(&StallReport) -> bool) -> StallReport {
        self.wait_until(|reports| reports.iter().find(|report| fits(report)).cloned())
    }

    fn wait_until(&self, told: impl Fn(&[StallReport]) -> Option<StallReport>) -> StallReport {
        let (reports, news) = &*self.0;
        let deadline = Instant::now() + FOREVER;
        let mut reports = reports.lock().unwrap();
        loop {
            if let Some(report) = told(&reports) {
                return report;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain; all there is: {reports:#?}"
            );
            reports = news.wait_timeout(reports, left).unwrap().0;
        }
    }

    /// Blocks a worker of the current runtime until we have been told of it, and returns what we were
    /// told first. However slow the machine, the stall is as long as it takes.
    ///
    /// Two such stalls in a row on one worker may look like one: nothing marks where one poll ends.
    pub async fn stall_until_told(&self) -> StallReport {
        let before = self.all().len();
        self.stall_until(
            move |reports| reports.get(before).cloned(),
            |held| tokio::spawn(held),
        )
        .await
    }

    /// The same in a poll with a mark, which is a stall of its own.
    pub async fn marked_stall_until_told(&self) -> StallReport {
        let known: Vec<u64> = self.all().iter().map(|report| report.id).collect();
        let is_new = move |report: &&StallReport| !known.contains(&report.id);
        self.stall_until(
            move |reports| reports.iter().find(&is_new).cloned(),
            |held| tokio::spawn(held.watched("held")),
        )
        .await
    }

    async fn stall_until(
        &self,
        told: impl Fn(&[StallReport]) -> Option<StallReport> + Send + 'static,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> JoinHandle<()>,
    ) -> StallReport {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let blocked = spawn(Box::pin(async move {
            receive.recv().ok();
        }));
        let seen = self.clone();
        let began = tokio::task::spawn_blocking(move || seen.wait_until(told));
        let began = began.await.unwrap();
        drop(send);
        blocked.await.unwrap();
        began
    }

    pub fn wait_for_end(&self, id: u64) -> StallReport {
        self.wait(|report| report.id == id && report.phase == Phase::Ended)
    }

    pub fn certain(&self) -> Vec<StallReport> {
        let certain = |report: &StallReport| report.certainty == Certainty::Certain;
        self.all().into_iter().filter(certain).collect()
    }

    /// Nothing was certain, with the reports for the message.
    #[track_caller]
    pub fn assert_nothing_certain(&self) {
        let certain = self.certain();
        assert!(certain.is_empty(), "false alarm: {certain:#?}");
    }

    #[track_caller]
    pub fn assert_nothing(&self) {
        let all = self.all();
        assert!(all.is_empty(), "false alarm: {all:#?}");
    }
}

/// What is missing about the names of a poll. Its stack is another matter, and may come later.
pub fn missing_names(report: &StallReport) -> Vec<Missing> {
    let about_names = |missing: &Missing| {
        matches!(
            missing,
            Missing::Unmarked | Missing::MovedOn | Missing::TooDeep
        )
    };
    report.missing.iter().copied().filter(about_names).collect()
}

/// A runtime with so many workers.
pub fn workers(number: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(number).enable_all();
    builder.build().unwrap()
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
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Processes that spin, to take the CPUs away; they end with the value.
pub struct Hogs(
    Arc<std::sync::atomic::AtomicBool>,
    Vec<std::thread::JoinHandle<()>>,
);

impl Hogs {
    pub fn start(threads: usize) -> Hogs {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let threads = (0..threads)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::black_box((0..10_000u64).sum::<u64>());
                    }
                })
            })
            .collect();
        Hogs(stop, threads)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        for thread in self.1.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// How many threads this process has.
#[cfg(target_os = "linux")]
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The names of this process's threads.
#[cfg(target_os = "linux")]
pub fn thread_names() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// How many files this process has open.
#[cfg(target_os = "linux")]
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
