//! What it costs to take a stack and to name it: the pause of the thread, the way from the request to the
//! frames, the first look at debug information and the later ones, and the memory that it takes.
//!
//! ```text
//! cargo bench --bench stacks
//! ```

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
fn main() {
    linux::main();
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
fn main() {
    println!("no stacks are taken on this system");
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod linux {
    use std::hint::black_box;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};
    use tokio_stall::{Builder, Guard};

    const STACKS: usize = 2_000;

    pub(super) fn main() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let watch = Builder::new()
            .runtime("bench", runtime.handle().clone())
            // Only what is asked for here is measured, not what the detector does by itself.
            .threshold(Duration::from_secs(3_600))
            .log(false)
            .start()
            .expect("a runtime is watched once");
        let gaps = Arc::new(Gaps::default());
        let spinning = gaps.clone();
        let spinner = runtime.spawn(async move { spinning.spin() });
        while gaps.last.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }

        let before = resident();
        let first = time(|| take(&watch));
        let after_first = resident();
        let second = time(|| take(&watch));
        println!("```text");
        println!("the first stack of a process   {first:>10.1?}");
        println!("the second                     {second:>10.1?}");
        println!(
            "memory for tables and names    {:>7} KiB",
            after_first.saturating_sub(before)
        );

        let quiet = gaps.of(|| std::thread::sleep(Duration::from_secs(1)));
        let mut whole = Vec::new();
        let taken = gaps.of(|| {
            for _ in 0..STACKS {
                whole.push(time(|| take(&watch)));
            }
        });
        whole.sort_unstable();
        println!("of {STACKS} more, each 20 to 40 frames deep:");
        println!("  request to named frames      {}", percentiles(&whole));
        println!(
            "  longest pauses of the thread {}",
            percentiles(&taken[taken.len().saturating_sub(STACKS)..])
        );
        println!(
            "  the same without stacks      {}",
            percentiles(&quiet[quiet.len().saturating_sub(STACKS)..])
        );
        println!("```");
        gaps.stop.store(true, Ordering::Relaxed);
        runtime.block_on(spinner).expect("it does not panic");
    }

    fn take(watch: &Guard) {
        let stacks = watch.worker_stacks();
        let frames = stacks[0].frames.as_ref().expect("its thread spins");
        assert!(black_box(frames).len() > 10);
    }

    fn time(f: impl FnOnce()) -> Duration {
        let start = Instant::now();
        f();
        start.elapsed()
    }

    /// Half, 99 of 100 and the longest.
    fn percentiles(sorted: &[Duration]) -> String {
        let at = |part: usize| sorted[(sorted.len() - 1) * part / 100];
        format!("{:>9.1?} {:>9.1?} {:>9.1?}", at(50), at(99), at(100))
    }

    /// A thread that does nothing but look at the clock, and what it noticed of being held up.
    #[derive(Default)]
    struct Gaps {
        stop: AtomicBool,
        last: AtomicU64,
        longest: parking_lot::Mutex<Vec<Duration>>,
    }

    /// Between two looks at the clock there is less.
    const NOTICED: Duration = Duration::from_micros(1);

    impl Gaps {
        fn spin(&self) {
            let mut seen = Instant::now();
            while !self.stop.load(Ordering::Relaxed) {
                let now = Instant::now();
                let gap = now - seen;
                if gap >= NOTICED {
                    self.longest.lock().push(gap);
                }
                seen = now;
                self.last.store(1, Ordering::Relaxed);
            }
        }

        /// The gaps while `f` ran, shortest first.
        fn of(&self, f: impl FnOnce()) -> Vec<Duration> {
            self.longest.lock().clear();
            f();
            let mut gaps = std::mem::take(&mut *self.longest.lock());
            gaps.sort_unstable();
            gaps
        }
    }

    /// Memory of this process that is in use, in KiB.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let figure = line.and_then(|line| line.trim().split(' ').next());
        figure.and_then(|figure| figure.parse().ok()).unwrap_or(0)
    }
}
