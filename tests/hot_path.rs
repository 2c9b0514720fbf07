//! A mark allocates nothing, from a thread's second mark on.
//!
//! A program of its own: its allocator counts, and its subscriber is that of the process.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use support::stage::Stage;
use tokio_stall::{FutureExt as _, PollTiming};
use tracing_subscriber::prelude::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged; the counter is a constant-initialised thread-local
// without a destructor, whose access does not allocate.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// Ready at every second poll, for ever.
fn poll_once(future: &mut std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

/// Timed polls are the slower way through a mark; with `Every` all take it.
fn stage() -> Stage {
    let stage = Stage::multi_thread(1).settings(|builder| {
        let builder = builder.poll_timing(PollTiming::Every);
        // A stall would leave a record, and the machine may take the CPU away at any time.
        builder.threshold(std::time::Duration::from_secs(3_600))
    });
    stage.start()
}

#[test]
fn marks_do_not_allocate() {
    let registry = tracing_subscriber::registry();
    registry.with(tokio_stall::layer()).init();
    let counted = stage().run(async {
        let mut endless = pin!(std::future::pending::<()>().watched("endless"));
        let span = tracing::info_span!("request");
        let inner = tracing::info_span!("inner");
        let mut marks = || {
            for _ in 0..1_000 {
                assert!(poll_once(&mut endless).is_pending());
                span.in_scope(|| inner.in_scope(|| {}));
            }
        };
        // A thread's first marks take a slot, and the registry makes room for the spans.
        marks();
        allocations(marks)
    });
    assert_eq!(counted, 0);
    // Positive control: the counter counts.
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8]))) > 0);
}
