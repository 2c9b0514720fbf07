//! The end of a poll, and the time on a CPU until then: a hardware breakpoint of `perf` on the
//! instruction that the thread executes once the poll is over.
//!
//! *Runs on:* the main thread.
//! *Must not:* write into the other process. The processor compares addresses, and the kernel
//! counts. One thread alone has the breakpoint, and only while a poll of it is suspected.

use perf_event::events::Breakpoint;
use perf_event::{Builder, Counter};
use std::time::Duration;

/// Counts how often one thread executes one instruction, and its time on a CPU.
#[derive(Debug)]
pub(crate) struct PollEnd {
    counter: Counter,
    address: u64,
    /// The time on a CPU before the time that is asked for.
    before: Duration,
}

impl PollEnd {
    /// Counts from now on. `None` if the kernel or a sandbox has none to give.
    pub(crate) fn of(tid: u32, address: u64) -> Option<PollEnd> {
        let mut builder = Builder::new(Breakpoint::execute(address));
        builder.observe_pid(tid as i32);
        builder.any_cpu().exclude_kernel(true).exclude_hv(true);
        builder.enabled(true);
        let counter = builder.build().ok()?;
        Some(PollEnd {
            counter,
            address,
            before: Duration::ZERO,
        })
    }

    /// Whether it counts this instruction.
    pub(crate) fn is_at(&self, address: u64) -> bool {
        self.address == address
    }

    /// Counts the time on a CPU from now on.
    pub(crate) fn begins(&mut self) {
        let so_far = self.on_cpu().unwrap_or_default();
        self.before += so_far;
    }

    /// The thread's time on a CPU. `None` once the instruction has been executed, so that the poll
    /// is over. A counter that fails proves nothing any more, so it counts as an end.
    ///
    /// The time of an event is that in which its thread is on a CPU. The kernel brings it up to
    /// date when it is read, where the figures in `/proc` are as old as the kernel's last tick.
    pub(crate) fn on_cpu(&mut self) -> Option<Duration> {
        let read = self.counter.read_full().ok()?;
        let time = read.time_enabled()?;
        (read.count() == 0).then(|| time.saturating_sub(self.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;

    #[inline(never)]
    fn is_never_called() {
        std::hint::black_box(0);
    }

    #[test]
    fn only_time_on_a_cpu_counts() {
        let (send, receive) = mpsc::channel();
        let (let_go, until_told) = mpsc::channel::<()>();
        let computes = Arc::new(AtomicBool::new(true));
        let goes_on = computes.clone();
        let thread = thread::spawn(move || {
            send.send(std::fs::read_link("/proc/thread-self").unwrap())
                .unwrap();
            while goes_on.load(Ordering::Relaxed) {}
            until_told.recv().ok();
        });
        let this = receive.recv().unwrap();
        let tid = this.file_name().unwrap().to_str().unwrap();
        let tid: u32 = tid.parse().unwrap();
        let end = PollEnd::of(tid, is_never_called as *const () as u64);
        let Some(mut end) = end else {
            eprintln!("NOT TRIED: the kernel gives no breakpoint");
            computes.store(false, Ordering::Relaxed);
            return;
        };
        while end.on_cpu().unwrap() < Duration::from_millis(30) {
            thread::sleep(Duration::from_millis(1));
        }
        end.begins();
        assert!(end.on_cpu().unwrap() < Duration::from_millis(30));
        computes.store(false, Ordering::Relaxed);
        let is_asleep = || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
            stat.unwrap().contains(") S ")
        };
        while !is_asleep() {
            thread::sleep(Duration::from_millis(1));
        }
        let before = end.on_cpu();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(end.on_cpu(), before, "asleep");
        drop(let_go);
        thread.join().unwrap();
    }
}
