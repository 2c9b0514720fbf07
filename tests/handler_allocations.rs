//! To have one's stack taken allocates nothing: the handler may run in the middle of an allocation.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod seen;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio_stall::WorkerStack;

struct Counting;

thread_local! {
    /// How often this thread has called the allocator.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged; the counter is a constant-initialised thread-local without
// a destructor, whose access does not allocate.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns what the counter showed at first and at last.
fn spins_without_allocating(stop: &AtomicBool) -> (u64, u64) {
    let first = CALLS.get();
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    (first, CALLS.get())
}

/// Stops what spins, also when the test has failed: its runtime waits for it.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const MANY: usize = 200;

#[test]
fn to_have_its_stack_taken_does_not_allocate() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let watch = tokio_stall::Builder::new()
        .runtime("api", runtime.handle().clone())
        .start()
        .unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Stop(stopped.clone());
    let spinning = runtime.spawn(async move {
        let spun = spins_without_allocating(&stopped);
        let before = CALLS.get();
        drop(std::hint::black_box(vec![1_u8]));
        (spun, CALLS.get() - before)
    });

    let is_spinning = |stack: &WorkerStack| {
        let mut names = stack.frames.iter().flatten();
        names.any(|frame| {
            frame.function.as_deref() == Some("handler_allocations::spins_without_allocating")
        })
    };
    let deadline = Instant::now() + seen::FOREVER * 3;
    let mut taken = 0;
    while taken < MANY {
        let stacks = watch.worker_stacks();
        taken += stacks.iter().filter(|stack| is_spinning(stack)).count();
        assert!(Instant::now() < deadline, "{taken}, and then {stacks:#?}");
    }
    drop(stop);
    let ((first, last), counted) = runtime.block_on(spinning).unwrap();
    assert_eq!(last - first, 0);
    // Positive control: the counter counts on that thread.
    assert_eq!(counted, 2, "an allocation, and its end");
}
