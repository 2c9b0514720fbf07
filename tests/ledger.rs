//! The ledger: blocking far below the threshold is seen, work and a busy host are not taken for it, and the parts
//! add up to the time that has passed.
#![cfg(target_os = "linux")]

mod seen;

use seen::Seen;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{Guard, WorkerTime};

const NAP: Duration = Duration::from_micros(300);

fn total(time: &WorkerTime) -> Duration {
    time.cpu + time.blocked + time.contention + time.parked + time.unknown
}

/// One worker, and a watch of its own.
struct Watched {
    runtime: Runtime,
    watch: Guard,
    seen: Seen,
}

impl Watched {
    fn start(name: &str) -> Watched {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (builder, seen) = Seen::builder();
        let builder = builder.runtime(name, runtime.handle().clone());
        let watch = builder.start().unwrap();
        Watched {
            runtime,
            watch,
            seen,
        }
    }

    fn time(&self) -> WorkerTime {
        self.watch.status().runtimes[0].worker_time[0]
    }

    /// The ledger once nothing is being added to it: the states are added one after the other.
    fn whole_page(&self) -> WorkerTime {
        loop {
            let time = self.time();
            std::thread::sleep(Duration::from_millis(10));
            if self.time() == time {
                return time;
            }
        }
    }

    /// The ledger just after something has been added to it, and when that was.
    fn next_page(&self) -> (Instant, WorkerTime) {
        let before = self.time();
        let deadline = Instant::now() + seen::FOREVER;
        loop {
            let time = self.time();
            if time != before {
                let at = Instant::now();
                return (at, self.whole_page());
            }
            assert!(Instant::now() < deadline, "nothing is added to the ledger");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn small_naps_are_seen_work_is_not_and_all_adds_up() {
    let napping = Watched::start("napping");
    let working = Watched::start("working");
    let idle = Watched::start("idle");
    let naps = Arc::new(AtomicU64::new(0));
    let took = Arc::new(AtomicU64::new(0));
    let (counted, timed) = (naps.clone(), took.clone());
    napping.runtime.spawn(async move {
        loop {
            let start = Instant::now();
            std::thread::sleep(NAP);
            timed.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    working.runtime.spawn(async {
        loop {
            seen::compute(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
    });
    working.runtime.spawn(async {
        let mut ticks = 0_u32;
        loop {
            ticks += 1;
            if ticks % 1000 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::yield_now().await;
        }
    });
    let all = [&napping, &working, &idle];
    let begun = all.map(Watched::next_page);
    let naps_before = naps.load(Ordering::Relaxed);
    let took_before = took.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(4));
    let naps_taken = naps.load(Ordering::Relaxed) - naps_before;
    let (_, napping_then) = napping.next_page();
    let took = Duration::from_nanos(took.load(Ordering::Relaxed) - took_before);
    // From here on there is no CPU to be had for most of the time.
    let stop = Arc::new(AtomicBool::new(false));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let spinning: Vec<_> = (0..4 * cpus)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(4));
    stop.store(true, Ordering::Relaxed);
    for thread in spinning {
        thread.join().unwrap();
    }
    let ended = all.map(Watched::next_page);

    for ((began, first), (end, last)) in begun.iter().zip(&ended) {
        let (wall, parts) = (*end - *began, total(last) - total(first));
        let off = parts.as_secs_f64() / wall.as_secs_f64() - 1.0;
        assert!(off.abs() < 0.02, "{parts:?} of {wall:?}: {last:?}");
        let unknown = (last.unknown - first.unknown).as_secs_f64();
        assert!(unknown < 0.01 * wall.as_secs_f64(), "{last:?}");
    }

    // Each nap is at least that long. What tokio does not call busy hides as much of them as it takes.
    let napped = NAP * u32::try_from(naps_taken).unwrap();
    let first = begun[0].1;
    let blocked = napping_then.blocked - first.blocked;
    let hidden = napping_then.cpu - first.cpu + napping_then.contention - first.contention;
    println!("napped {napped:?} or more, {took:?} or less; found {blocked:?}; may hide {hidden:?}");
    assert!(
        blocked + hidden >= napped,
        "{blocked:?} of {napped:?}, {hidden:?} hidden"
    );
    assert!(
        blocked < took + took / 20,
        "{blocked:?}, and all naps took {took:?}"
    );
    assert!(
        blocked > Duration::from_millis(50),
        "{blocked:?} of {napped:?}"
    );

    for quiet in [1, 2] {
        let ((_, first), (_, last)) = (&begun[quiet], &ended[quiet]);
        let (blocked, all) = (last.blocked - first.blocked, total(last) - total(first));
        assert!(blocked < all / 50, "{blocked:?} of {all:?}: {last:?}");
    }
    let (work, idleness) = (ended[1].1, ended[2].1);
    assert!(
        work.contention - begun[1].1.contention > Duration::from_secs(1),
        "{work:?}"
    );
    assert!(idleness.parked > total(&idleness) / 2, "{idleness:?}");
    for watched in all {
        watched.seen.assert_nothing_certain();
    }
}
