//! The assertions of `testing` neither fail by accident nor miss code that blocks, in hundreds of
//! runs on a quiet machine and on one with four spinning threads for each core.
//!
//! `cargo test --release --test no_flakes -- --nocapture` takes two minutes, and prints
//! `false failures: 0/N` and `missed: 0/N`. Without `--release` there are two rounds only.
//!
//! A program of its own: its panic hook is that of the process, and it takes all CPUs.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

mod support;

use futures::FutureExt as _;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use support::load::{Hogs, compute};
use tokio::runtime::{Builder, Runtime};
use tokio_stall::testing::{self, assert_never_blocks};

const MS: Duration = Duration::from_millis(1);
/// A virtual machine may lose its CPU for 20 ms, which its kernel counts as computing.
const BUDGET: Duration = Duration::from_millis(100);

/// Rounds on the quiet machine and on the busy one, and how long they may take, together.
const ROUNDS: usize = if cfg!(debug_assertions) { 2 } else { 20 };
const AT_MOST: Duration = Duration::from_secs(150);

type Case = (
    &'static str,
    fn() -> Pin<Box<dyn Future<Output = ()> + Send>>,
);

macro_rules! cases {
    ($($name:literal => $body:expr;)*) => {
        &[$(($name, || Box::pin(async { $body }))),*]
    };
}

/// The directory on a disk: a `tmpfs` synchronises nothing.
fn file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A file in memory. One on a disk may have to be read anew on a busy machine, which is a sleep.
fn cached() -> &'static std::path::Path {
    use std::os::fd::AsRawFd as _;
    use std::sync::OnceLock;
    static CACHED: OnceLock<(std::fs::File, std::path::PathBuf)> = OnceLock::new();
    let (_, path) = CACHED.get_or_init(|| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("cached", flags).unwrap();
        let mut file = std::fs::File::from(file);
        file.write_all(&[1; 4096]).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        (file, path.into())
    });
    path
}

async fn computes_in_the_pool() {
    let computing = tokio::task::spawn_blocking(|| compute(MS / 10));
    computing.await.unwrap();
}

const CLEAN: &[Case] = cases! {
    "CPU work under its budget" => compute(3 * MS);
    "locks that are free" => {
        let lock = Mutex::new(0_u64);
        for _ in 0..10_000 {
            *lock.lock().unwrap() += 1;
        }
    };
    "allocation" => {
        for size in 0..200 {
            std::hint::black_box(vec![1_u8; size * 512]);
        }
    };
    "cached files" => {
        for _ in 0..10 {
            std::hint::black_box(std::fs::read(cached()).unwrap());
            std::hint::black_box(std::fs::metadata(cached()).unwrap());
        }
    };
    "channels" => {
        let (send, mut receive) = tokio::sync::mpsc::channel(4);
        let sender = tokio::spawn(async move {
            for number in 0..200 {
                send.send(number).await.unwrap();
            }
        });
        while receive.recv().await.is_some() {}
        sender.await.unwrap();
    };
    "timers" => {
        for _ in 0..3 {
            tokio::time::sleep(MS).await;
        }
    };
    "spawn_blocking" => {
        for _ in 0..5 {
            tokio::task::spawn_blocking(|| std::thread::sleep(MS)).await.unwrap();
        }
    };
    "many tasks that use the blocking pool" => {
        let tasks: Vec<_> = (0..20)
            .map(|_| tokio::spawn(computes_in_the_pool()))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    };
    "tokio's own files" => {
        tokio::fs::read("/etc/hosts").await.unwrap();
    };
};

const BLOCKING: &[Case] = cases! {
    "a sleep of 1 ms" => std::thread::sleep(MS);
    "a lock that is held" => {
        let lock = Arc::new(Mutex::new(()));
        let (locked, is_locked) = mpsc::channel();
        let held = lock.clone();
        let (release, released) = mpsc::channel::<()>();
        // Not a part of the case. A thread that starts takes the kernel's lock on the memory, and a
        // sleep in it would be the first of this poll.
        let holder = tokio_stall::allow_blocking("the holder starts and has the lock", || {
            let holder = std::thread::spawn(move || {
                let _guard = held.lock().unwrap();
                locked.send(()).unwrap();
                released.recv().unwrap();
                std::thread::sleep(20 * MS);
            });
            is_locked.recv().unwrap();
            holder
        });
        release.send(()).unwrap();
        drop(lock.lock().unwrap());
        tokio_stall::allow_blocking("the holder ends", || holder.join().unwrap());
    };
    "a file that is synchronised" => {
        let path = file(&format!("synced_{:?}", std::thread::current().id()));
        let mut file = std::fs::File::create(path).unwrap();
        // A disk takes its time for so much. With a few kilobytes, a thread that loses its CPU just
        // before it would wait may find that the disk is done.
        for _ in 0..4 {
            file.write_all(&[1; 1 << 21]).unwrap();
            file.sync_all().unwrap();
        }
    };
    "a join" => std::thread::spawn(|| std::thread::sleep(20 * MS)).join().unwrap();
    "a blocking channel" => {
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            std::thread::sleep(20 * MS);
            send.send(()).ok();
        });
        receive.recv().unwrap();
    };
    "a connection to a slow listener" => {
        std::net::TcpStream::connect_timeout(&slow_listener(), 30 * MS).ok();
    };
    "another process" => {
        std::process::Command::new("sleep").arg("0.01").output().unwrap();
    };
};

/// Code that `watch()` is to find. Its signal wakes a sleeper. With four spinning threads for each
/// core, the next 20 ms may pass in a run queue, blamed on nobody. Each stall is that much
/// longer than the threshold of 10 ms.
const STALLING: &[Case] = cases! {
    "a sleep of 250 ms" => std::thread::sleep(250 * MS);
    "a join of 250 ms" => std::thread::spawn(|| std::thread::sleep(250 * MS)).join().unwrap();
    "a process of 250 ms" => {
        std::process::Command::new("sleep").arg("0.25").output().unwrap();
    };
};

/// A listener whose queue is full: a connection to it waits.
fn slow_listener() -> std::net::SocketAddr {
    use std::sync::OnceLock;
    static FULL: OnceLock<(std::net::TcpListener, Vec<std::net::TcpStream>)> = OnceLock::new();
    let full = FULL.get_or_init(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        use std::os::fd::AsRawFd as _;
        shrink_backlog(listener.as_raw_fd());
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, 100 * MS) {
            queued.push(stream);
        }
        (listener, queued)
    });
    full.0.local_addr().unwrap()
}

fn shrink_backlog(listener: i32) {
    // SAFETY: a descriptor that is open; to listen again changes the length of the queue.
    unsafe { libc::listen(listener, 1) };
}

/// The results of the runs of one kind.
#[derive(Default)]
struct Tally {
    runs: u32,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, is_wrong: bool, what: impl FnOnce() -> String) {
        self.runs += 1;
        if is_wrong {
            self.wrong.push(what());
        }
    }
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// One case under each assertion that is to judge it: by itself, on a worker and beside one, and on
/// a runtime that measures itself, in both flavours.
fn judge((name, future): &Case, tell: &mut dyn FnMut(Option<String>, String)) {
    let asserted =
        || AssertUnwindSafe(assert_never_blocks(future()).cpu_budget(BUDGET)).catch_unwind();
    let runtime = multi_thread();
    tell(
        text(runtime.block_on(asserted())),
        format!("{name}, beside the workers"),
    );
    tell(
        text(runtime.block_on(async { tokio::spawn(asserted()).await.unwrap() })),
        format!("{name}, on a worker"),
    );
    tell(
        text(current_thread().block_on(asserted())),
        format!("{name}, current_thread"),
    );
    for (runtime, flavour) in [
        (testing::runtime(), "multi_thread"),
        (
            testing::runtime_from(Builder::new_current_thread().enable_all()),
            "current_thread",
        ),
    ] {
        let run = || runtime.block_on(async { tokio::spawn(future()).await.unwrap() });
        let result = std::panic::catch_unwind(AssertUnwindSafe(run));
        tell(
            text(result),
            format!("{name}, runtime that measures itself, {flavour}"),
        );
    }
}

/// One case under a watch, in both flavours.
fn judge_watched((name, future): &Case, tell: &mut dyn FnMut(Option<String>, String)) {
    for (runtime, flavour) in [
        (multi_thread(), "multi_thread"),
        (current_thread(), "current_thread"),
    ] {
        let run = || {
            runtime.block_on(async {
                let stalls = testing::watch();
                tokio::spawn(future()).await.unwrap();
                stalls.assert_none();
            });
        };
        let result = std::panic::catch_unwind(AssertUnwindSafe(run));
        tell(text(result), format!("{name}, watched, {flavour}"));
    }
}

type Judged = Result<(), Box<dyn std::any::Any + Send>>;

/// The text of an assertion that has failed.
fn text(result: Judged) -> Option<String> {
    result
        .err()
        .map(|failed| match failed.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "a panic of the case's own".to_owned(),
        })
}

/// All cases, once.
fn round(false_failures: &mut Tally, missed: &mut Tally) {
    for case in CLEAN {
        let mut tell = |failed: Option<String>, what: String| {
            let text = failed.clone().unwrap_or_default();
            false_failures.add(failed.is_some(), || format!("{what}: {text}"));
        };
        judge(case, &mut tell);
        judge_watched(case, &mut tell);
    }
    for case in BLOCKING {
        find(|tell| judge(case, tell), missed);
    }
    for case in STALLING {
        find(|tell| judge_watched(case, tell), missed);
    }
}

/// How often a case is run that was not found.
const TRIES: usize = 3;

/// Runs a case, and again if it was not found in some way. The first sleep of a poll is judged
/// (D155), and with so many threads for a CPU this may be one for a lock of the allocator's, whose
/// holder has none: then the case is excused, and says so.
fn find(run: impl Fn(&mut dyn FnMut(Option<String>, String)), missed: &mut Tally) {
    let mut found: BTreeMap<String, bool> = BTreeMap::new();
    for _ in 0..TRIES {
        run(&mut |failed, what| *found.entry(what).or_default() |= failed.is_some());
        if found.values().all(|found| *found) {
            break;
        }
    }
    for (what, is_found) in found {
        missed.add(!is_found, || what);
    }
}

#[test]
fn nothing_fails_by_accident_and_nothing_is_missed() {
    // Failures are expected here by the hundred, and looked at below.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let (mut false_failures, mut missed) = (Tally::default(), Tally::default());
    for number in 0..ROUNDS {
        let _hogs = (number % 2 == 1).then(Hogs::four_for_each_cpu);
        round(&mut false_failures, &mut missed);
        if start.elapsed() > AT_MOST {
            let rounds = number + 1;
            println!("stopped after {rounds} of {ROUNDS} rounds: the machine is slow");
            break;
        }
    }
    drop(std::panic::take_hook());
    for (name, tally) in [("false failures", &false_failures), ("missed", &missed)] {
        for wrong in &tally.wrong {
            println!("{name}: {wrong}");
        }
    }
    for (name, tally) in [("false failures", &false_failures), ("missed", &missed)] {
        println!("{name}: {}/{}", tally.wrong.len(), tally.runs);
    }
    println!("in {:.0?}", start.elapsed());
    assert!(false_failures.wrong.is_empty() && missed.wrong.is_empty());
    let enough = |tally: &Tally| cfg!(debug_assertions) || tally.runs >= 500;
    assert!(
        enough(&false_failures) && enough(&missed),
        "too few runs to say anything"
    );
}
