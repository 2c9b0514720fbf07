//! The signal that takes a stack allocates nothing: the handler may run inside of an allocation.
//!
//! A program of its own: its allocator counts.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use support::Stop;
use support::stage::Stage;

struct Counting;

thread_local! {
    /// How often this thread has called the allocator.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged; the counter is a constant-initialised thread-local
// without a destructor, whose access does not allocate.
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

/// Returns the first and the last state of the counter.
fn spins_without_allocating(stop: &AtomicBool) -> (u64, u64) {
    let first = CALLS.get();
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    (first, CALLS.get())
}

const MANY: usize = 200;

#[test]
fn a_thread_whose_stack_is_taken_does_not_allocate() {
    let stage = Stage::multi_thread(1).start();
    let (stop, stopped) = Stop::new();
    let spinning = stage.runtime.spawn(async move {
        let spun = spins_without_allocating(&stopped);
        let before = CALLS.get();
        drop(std::hint::black_box(vec![1_u8]));
        (spun, CALLS.get() - before)
    });
    let spins = "handler_allocations::spins_without_allocating";
    stage.take_stacks_in(&[spins], MANY);
    drop(stop);
    let ((first, last), counted) = stage.block_on(spinning).unwrap();
    assert_eq!(last - first, 0);
    // Positive control: the counter counts on that thread.
    assert_eq!(counted, 2, "an allocation, and its end");
}
