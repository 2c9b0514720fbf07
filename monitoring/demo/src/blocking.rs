//! Ways of holding a worker for a given time.

use serde::Deserialize;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// `std::thread::sleep`.
    #[default]
    Sleep,
    /// A loop.
    Cpu,
    /// A lock that another thread holds.
    Lock,
    /// Many small writes to a file, each forced to the disk.
    File,
    /// Another program.
    Process,
}

impl How {
    /// Holds the calling thread for that long, or for as long as it takes.
    pub(crate) fn block_for(self, time: Duration) {
        match self {
            How::Sleep => std::thread::sleep(time),
            How::Cpu => compute_for(time),
            How::Lock => wait_for_lock(time),
            How::File => write_for(time),
            How::Process => run_for(time),
        }
    }
}

fn compute_for(time: Duration) {
    let until = Instant::now() + time;
    let mut sum = 0_u64;
    while Instant::now() < until {
        sum =
            std::hint::black_box((0..10_000_u64).fold(sum, |sum, next| sum.rotate_left(1) ^ next));
    }
}

fn wait_for_lock(time: Duration) {
    let lock = Mutex::new(());
    std::thread::scope(|scope| {
        let (held, is_held) = std::sync::mpsc::channel();
        let lock = &lock;
        scope.spawn(move || {
            let _guard = lock.lock();
            held.send(()).ok();
            std::thread::sleep(time);
        });
        is_held.recv().ok();
        drop(lock.lock());
    });
}

fn write_for(time: Duration) {
    let until = Instant::now() + time;
    let path = std::env::temp_dir().join(format!("tokio-stall-example-{}", std::process::id()));
    if let Ok(mut file) = std::fs::File::create(&path) {
        while Instant::now() < until && file.write_all(&[0; 4096]).is_ok() {
            file.sync_all().ok();
        }
    }
    std::fs::remove_file(path).ok();
}

fn run_for(time: Duration) {
    let seconds = time.as_secs_f64().to_string();
    std::process::Command::new("sleep")
        .arg(seconds)
        .output()
        .ok();
}
